"""Figures of a classifier, each as a function of crop weights, so that one pass gives value and bootstrap interval."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from lesionlab.bootstrap import bootstrap, interval


@dataclass(frozen=True)
class Scores:
    """What a model said of the crops of a subset.

    labels: (n,) class numbers. probabilities: (n, classes). groups: (n,) names of what must stay together.
    threshold: of the last class's probability, for two classes; None: the most probable class is predicted.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    groups: np.ndarray
    threshold: float | None

    @property
    def predicted(self) -> np.ndarray:
        """(n,) class numbers at the operating point."""
        if self.threshold is None:
            return self.probabilities.argmax(axis=1)
        return (self.probabilities[:, -1] >= self.threshold).astype(int)

    @property
    def wrong(self) -> np.ndarray:
        """(n,) whether the class called at the operating point is another than the label."""
        return self.predicted != self.labels


@dataclass(frozen=True)
class Figures:
    """Metrics of one model, and the same metrics of every bootstrap resample.

    values: a number a metric. distribution: (resamples, metrics). groups: how many were drawn from.
    """

    values: pd.Series
    distribution: pd.DataFrame
    groups: int

    def minus(self, other: "Figures") -> "Figures":
        """The paired difference: both were made from the same groups, resamples and seed, so from the same draws."""
        return Figures(self.values - other.values, self.distribution - other.distribution, self.groups)

    def table(self) -> pd.DataFrame:
        """A row a metric: metric, value, low, high (95 %, percentile bootstrap); of one group no interval is known."""
        low, high = interval(self.distribution.to_numpy())
        columns = {"metric": self.values.index, "value": self.values.to_numpy(), "low": low, "high": high}
        return pd.DataFrame(columns)


def resample(
    metrics: Callable[[np.ndarray], dict[str, np.ndarray]], groups: np.ndarray, resamples: int, seed: int
) -> Figures:
    """Metrics of all crops and of `resamples` draws of groups with replacement.

    metrics: a function of weights (draws, n) that gives a (draws,) array a metric. groups: (n,) names.
    """
    group, distinct = pd.factorize(groups)
    names: list[str] = []

    def figures(draws: np.ndarray) -> np.ndarray:
        found = metrics(draws[:, group])
        names[:] = found
        return np.column_stack(list(found.values()))

    values, distribution = bootstrap(figures, len(distinct), resamples, seed, "evaluate")
    return Figures(pd.Series(values, names), pd.DataFrame(distribution, columns=names), len(distinct))


def classification_metrics(scores: Scores, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics under each row of weights: (resamples, n) to a dictionary of (resamples,) arrays.

    With two classes precision, recall, specificity, F1 and areas are those of the last class; with more they are
    means over classes (one against the rest). A figure that is not defined, because a resample lacks a class, is NaN.
    With weights of one they equal scikit-learn's.
    """
    classes = scores.probabilities.shape[1]
    pairs = np.eye(classes * classes)[scores.labels * classes + scores.predicted]
    confusion = (weights @ pairs).reshape(len(weights), classes, classes)
    positives = range(1, 2) if classes == 2 else range(classes)
    with np.errstate(invalid="ignore", divide="ignore"):
        diagonal = np.einsum("rii->ri", confusion)
        actual, called = confusion.sum(axis=2), confusion.sum(axis=1)
        total = confusion.sum(axis=(1, 2))
        recall = diagonal / actual
        precision = np.where(called > 0, diagonal / called, 0.0)
        specificity = 1 - (called - diagonal) / (total[:, None] - actual)
        f1 = 2 * diagonal / (actual + called)
    chosen = list(positives)
    areas = [_areas(scores.labels == k, scores.probabilities[:, k], weights) for k in chosen]
    return {
        "accuracy": diagonal.sum(axis=1) / total,
        "balanced_accuracy": recall.mean(axis=1),
        "precision": precision[:, chosen].mean(axis=1),
        "recall": recall[:, chosen].mean(axis=1),
        "specificity": specificity[:, chosen].mean(axis=1),
        "f1": f1[:, chosen].mean(axis=1),
        "roc_auc": np.mean([area for area, _ in areas], axis=0),
        "pr_auc": np.mean([area for _, area in areas], axis=0),
    }


def with_intervals(scores: Scores, resamples: int, seed: int) -> pd.DataFrame:
    """Classification metrics as a row each: metric, value, low, high (95 % interval, bootstrap over groups)."""
    return resample(partial(classification_metrics, scores), scores.groups, resamples, seed).table()


def _areas(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ROC AUC and average precision of one class under each row of weights: two (resamples,) arrays."""
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])
    sorted_weights = weights[:, order]
    hits = np.add.reduceat(sorted_weights * positive[order], starts, axis=1)
    alarms = np.add.reduceat(sorted_weights * ~positive[order], starts, axis=1)
    true_positives, false_positives = hits.cumsum(axis=1), alarms.cumsum(axis=1)
    positives, negatives = true_positives[:, -1], false_positives[:, -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        # A pair of equal scores counts half.
        above = (true_positives - hits / 2) * alarms
        roc = above.sum(axis=1) / (positives * negatives)
        called = true_positives + false_positives
        precision = np.where(called > 0, true_positives / called, 0.0)
        average_precision = (precision * hits).sum(axis=1) / positives
    return roc, average_precision
