"""Is one model better than another on the same test crops: paired differences, McNemar, DeLong."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binomtest, norm, rankdata

from lesionlab.evaluation.metrics import Figures, Scores

COMPARED = ("accuracy", "balanced_accuracy", "roc_auc")
INDEPENDENT = "the test takes crops as independent, the interval does not: trust the interval"


@dataclass(frozen=True)
class DeLong:
    """Two areas under ROC curves of the same crops: standard error of each, and of their difference; p two-sided."""

    areas: tuple[float, float]
    errors: tuple[float, float]
    difference_error: float
    p_value: float


def compare(pairs: list[tuple[str, str]], scores: dict[str, Scores], figures: dict[str, Figures]) -> pd.DataFrame:
    """Each first model of `pairs` against its second, a row a metric.

    model, reference, metric, difference (model - reference), low, high (95 %, paired bootstrap over groups: the same
    draws for both), test, p_value, model_right and reference_right (crops that only this one calls rightly), note.
    McNemar's and DeLong's tests take crops as independent. Crops of one group are not, so their p-values are too
    small by an unknown factor; the interval, which draws whole groups, is the one to trust. DeLong's test is for two
    classes; with more it is given for each class against the rest, as rows of their own without an interval.
    """
    rows = []
    for model, reference in pairs:
        first, second = scores[model], scores[reference]
        table = figures[model].minus(figures[reference]).table().set_index("metric")
        for metric in COMPARED:
            figure = table.loc[metric]
            row = {"model": model, "reference": reference, "metric": metric, "difference": figure["value"]}
            row |= {"low": figure["low"], "high": figure["high"]}
            if metric == "accuracy":
                only_first, only_second, p_value = mcnemar(~first.wrong, ~second.wrong)
                row |= {"test": "McNemar, exact", "p_value": p_value, "note": INDEPENDENT}
                row |= {"model_right": only_first, "reference_right": only_second}
            elif metric == "roc_auc" and first.probabilities.shape[1] == 2:
                result = delong(first.labels == 1, first.probabilities[:, 1], second.probabilities[:, 1])
                row |= {"test": "DeLong", "p_value": result.p_value, "note": INDEPENDENT}
            rows.append(row)
        rows += _by_class(model, reference, first, second)
    columns = ["model", "reference", "metric", "difference", "low", "high", "test", "p_value"]
    columns += ["model_right", "reference_right", "note"]
    return pd.DataFrame(rows, columns=columns).astype({"model_right": "Int64", "reference_right": "Int64"})


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> tuple[int, int, float]:
    """Crops that only the first and only the second model calls rightly, and the exact two-sided p-value.

    Under the hypothesis that both err equally often either is as likely to be right where they differ. Crops are
    taken as independent. Source: McNemar, Psychometrika 12, 1947, with the binomial distribution in place of chi2.
    """
    only_first = int((first_right & ~second_right).sum())
    only_second = int((~first_right & second_right).sum())
    differing = only_first + only_second
    return only_first, only_second, float(binomtest(only_first, differing).pvalue) if differing else 1.0


def delong(positive: np.ndarray, first: np.ndarray, second: np.ndarray) -> DeLong:
    """Test of two areas under ROC curves on the same crops, which are taken as independent.

    positive: (n,) bool. first, second: (n,) scores of the two models. NaN where there are fewer than two crops of a
    class. Sources: DeLong, DeLong & Clarke-Pearson, Biometrics 44:837-845, 1988; computed by ranks as in Sun & Xu,
    IEEE Signal Processing Letters 21(11):1389-1393, 2014.
    """
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if min(positives, negatives) < 2:
        return DeLong((np.nan, np.nan), (np.nan, np.nan), np.nan, np.nan)
    scores = np.stack([first, second])
    ranks = rankdata(scores, axis=1)
    # Part of the negatives below each positive, and of the positives above each negative; an equal score counts half.
    below = (ranks[:, positive] - rankdata(scores[:, positive], axis=1)) / negatives
    above = 1 - (ranks[:, ~positive] - rankdata(scores[:, ~positive], axis=1)) / positives
    areas = below.mean(axis=1)

    def error(of_positives: np.ndarray, of_negatives: np.ndarray) -> float:
        return float(np.sqrt(of_positives.var(ddof=1) / positives + of_negatives.var(ddof=1) / negatives))

    difference, spread = areas[0] - areas[1], error(below[0] - below[1], above[0] - above[1])
    errors = error(below[0], above[0]), error(below[1], above[1])
    certain = 1.0 if difference == 0 else 0.0  # where the scores leave no spread
    p_value = float(2 * norm.sf(abs(difference) / spread)) if spread > 0 else certain
    return DeLong((float(areas[0]), float(areas[1])), errors, spread, p_value)


def _by_class(model: str, reference: str, first: Scores, second: Scores) -> list[dict]:
    classes = first.probabilities.shape[1]
    rows = []
    for number in range(classes) if classes > 2 else ():
        result = delong(first.labels == number, first.probabilities[:, number], second.probabilities[:, number])
        rows.append({
            "model": model, "reference": reference, "metric": f"roc_auc of class {number}",
            "difference": result.areas[0] - result.areas[1], "test": "DeLong", "p_value": result.p_value,
            "note": INDEPENDENT,
        })  # fmt: skip
    return rows
