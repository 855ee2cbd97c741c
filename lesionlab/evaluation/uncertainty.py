"""Does a model know when it does not know: entropy, mutual information, risk-coverage."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import stats

from lesionlab.evaluation.metrics import Scores

COVERAGE = 0.9  # part of the crops that are kept in `error_at_90_coverage`


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy in nats of each distribution: (..., classes) to (...)."""
    return stats.entropy(probabilities, axis=-1)


def mutual_information(member_probabilities: np.ndarray) -> np.ndarray:
    """How much the members disagree, in nats: entropy of their mean less the mean of their entropies.

    member_probabilities: (members, n, classes), of an ensemble or of passes with dropout. Returns (n,), 0 where all
    members say the same. Sources: Houlsby et al. 2011 (BALD); Lakshminarayanan et al., NeurIPS 2017 for ensembles.
    """
    information = entropy(member_probabilities.mean(axis=0)) - entropy(member_probabilities).mean(axis=0)
    return np.maximum(information, 0.0)  # never negative but for rounding


def decision_uncertainty(scores: Scores) -> np.ndarray:
    """(n,) 1 - probability of the class that is called: what a crop is ranked by to be kept or referred.

    With the most probable class called this is the softmax response of Geifman & El-Yaniv 2017. It follows the
    operating threshold too, which entropy does not: entropy is largest at one half wherever the threshold lies.
    """
    return 1 - scores.probabilities[np.arange(len(scores.labels)), scores.predicted]


def risk_coverage(wrong: np.ndarray, uncertainty: np.ndarray) -> pd.DataFrame:
    """The risk-coverage curve, a row a distinct uncertainty: coverage, risk, uncertainty.

    wrong: (n,) bool. uncertainty: (n,), larger is less sure. The surest crops, up to `uncertainty`, are kept: coverage
    is their part of all, risk the error among them. Source: Geifman & El-Yaniv, NeurIPS 2017.
    """
    coverage, risk, _ = _curve(wrong, uncertainty, np.ones((1, len(wrong))))
    return pd.DataFrame({"coverage": coverage[0], "risk": risk[0], "uncertainty": np.unique(uncertainty)})


def aurc(wrong: np.ndarray, uncertainty: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Area under the risk-coverage curve, the mean risk over all coverages, for each row of weights: (resamples,).

    Equal uncertainties are kept or referred together, so one that is constant gives the error rate, as does a random
    order on average. Source: Geifman & El-Yaniv, NeurIPS 2017; Geifman et al., ICLR 2019 for AURC and its excess.
    """
    weights = np.ones((1, len(wrong))) if weights is None else weights
    _, risk, mass = _curve(wrong, uncertainty, weights)
    return (risk * mass).sum(axis=1)


def optimal_uncertainty(wrong: np.ndarray) -> np.ndarray:
    """(n,) the best order there is: every crop that is right before any that is wrong."""
    return np.where(wrong, 1.0 + np.arange(len(wrong)), 0.0)


def selective_metrics(wrong: np.ndarray, uncertainty: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """What keeping only the sure crops gives, under each row of weights.

    aurc; aurc_excess over the best order; aurc_random: the error rate, which a random order gives on average;
    aurc_gain over that; error_at_90_coverage: among the surest crops, the smallest number that makes 90 %.
    """
    coverage, risk, mass = _curve(wrong, uncertainty, weights)
    area, random = (risk * mass).sum(axis=1), risk[:, -1]
    kept = np.argmax(coverage >= COVERAGE - 1e-12, axis=1)
    return {
        "aurc": area,
        "aurc_excess": area - aurc(wrong, optimal_uncertainty(wrong), weights),
        "aurc_random": random,
        "aurc_gain": random - area,
        "error_at_90_coverage": risk[np.arange(len(risk)), kept],
    }


def referral_threshold(validation: Scores, rate: float) -> float:
    """Uncertainty above which a crop is handed to a person: exceeded by `rate` of the validation crops.

    A threshold, not a rank among the test crops, since a new case comes alone; the share that it refers among the
    test crops is therefore a figure of its own, and differs from `rate` where they differ from validation.
    """
    return float(np.quantile(decision_uncertainty(validation), 1 - rate, method="inverted_cdf"))


def referral_metrics(wrong: np.ndarray, referred: np.ndarray) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function of weights: referred_share, error_kept (among what is not referred), error_referred."""

    def metrics(weights: np.ndarray) -> dict[str, np.ndarray]:
        away, kept = weights @ referred, weights @ ~referred
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "referred_share": away / (away + kept),
                "error_kept": weights @ (wrong & ~referred) / kept,
                "error_referred": weights @ (wrong & referred) / away,
            }

    return metrics


def _curve(
    wrong: np.ndarray, uncertainty: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coverage, risk and part of the crops at each distinct uncertainty: three (resamples, distinct) arrays."""
    order = np.argsort(uncertainty, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(uncertainty[order]) != 0])
    sorted_weights = weights[:, order]
    mass = np.add.reduceat(sorted_weights, starts, axis=1)
    errors = np.add.reduceat(sorted_weights * wrong[order], starts, axis=1).cumsum(axis=1)
    kept = mass.cumsum(axis=1)
    risk = np.divide(errors, kept, out=np.zeros_like(kept), where=kept > 0)
    total = kept[:, -1:]
    return kept / total, risk, mass / total
