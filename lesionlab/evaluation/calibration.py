"""Are probabilities what they say: reliability, expected calibration error, Brier score, log loss."""

import numpy as np
import pandas as pd

from lesionlab.evaluation.metrics import Scores

BINS = 15  # as in Guo et al. 2017


def reliability(scores: Scores) -> pd.DataFrame:
    """The reliability diagram, a row a bin that holds crops: confidence, accuracy (means), low, high (edges), crops.

    Confidence is the probability of the most probable class, accuracy how often that class is right; bins are of equal
    width, each with its upper edge. Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    confidence, right = _top(scores)
    table = pd.DataFrame({"bin": _equal_width(confidence), "confidence": confidence, "accuracy": right})
    table = table.groupby("bin").agg(
        confidence=("confidence", "mean"), accuracy=("accuracy", "mean"), crops=("bin", "size")
    )
    table.insert(2, "low", table.index / BINS)
    table.insert(3, "high", (table.index + 1) / BINS)
    return table.reset_index(drop=True)


def calibration_metrics(scores: Scores, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Calibration under each row of weights: (resamples, n) to a dictionary of (resamples,) arrays.

    ece: expected calibration error of the most probable class in 15 bins of equal width (Guo et al. 2017), the one to
    read and to compare with papers. ece_adaptive: the same in bins of equal number (Nguyen & O'Connor 2015). brier and
    log_loss equal scikit-learn's: the former from 0 to 1 with two classes, to 2 with more.
    With few crops a bin the ECE of a perfectly calibrated model is above 0, and that of a resample higher still: an
    interval that lies above its value says that there are too few crops to tell.
    """
    confidence, right = _top(scores)
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, BINS + 1)[1:-1]))
    hits = np.eye(scores.probabilities.shape[1])[scores.labels]
    squares = ((scores.probabilities - hits) ** 2).sum(axis=1)
    if hits.shape[1] == 2:
        squares /= 2
    chance = scores.probabilities[np.arange(len(scores.labels)), scores.labels]
    tiny = np.finfo("float64").eps  # scikit-learn's
    total = weights.sum(axis=1)
    return {
        "ece": _expected_error(_equal_width(confidence), confidence - right, weights),
        "ece_adaptive": _expected_error(np.searchsorted(edges, confidence), confidence - right, weights),
        "brier": weights @ squares / total,
        "log_loss": weights @ -np.log(np.clip(chance, tiny, 1 - tiny)) / total,
    }


def _top(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Probability of the most probable class, and whether that class is right: two (n,) arrays."""
    return scores.probabilities.max(axis=1), (scores.probabilities.argmax(axis=1) == scores.labels).astype("float64")


def _equal_width(confidence: np.ndarray) -> np.ndarray:
    return np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)


def _expected_error(bins: np.ndarray, gaps: np.ndarray, weights: np.ndarray) -> np.ndarray:
    members = np.eye(bins.max() + 1)[bins] * gaps[:, None]
    return np.abs(weights @ members).sum(axis=1) / weights.sum(axis=1)
