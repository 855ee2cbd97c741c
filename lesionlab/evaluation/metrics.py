"""Figures of a classifier, each as a function of crop weights, so that one pass gives value and bootstrap interval."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lesionlab.seeds import generator

INTERVAL = (2.5, 97.5)  # percentiles of the bootstrap distribution
CHUNK = 200  # resamples computed at once: bounds memory at CHUNK x crops


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
    """A row a metric: metric, value, low, high (95 % interval, percentile bootstrap over groups).

    Groups, not crops, are drawn with replacement: crops of one patient or sequence are not independent.
    Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; Field & Welsh 2007 for clusters.
    """
    group, names = pd.factorize(scores.groups)
    rng = generator(seed, "evaluate", "bootstrap")
    parts = []
    for start in range(0, resamples, CHUNK):
        drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), min(CHUNK, resamples - start))
        parts.append(pd.DataFrame(classification_metrics(scores, drawn[:, group].astype("float64"))))
    distribution = pd.concat(parts)
    values = classification_metrics(scores, np.ones((1, len(scores.labels))))
    low, high = np.nanpercentile(distribution.to_numpy(), INTERVAL, axis=0)
    table = pd.DataFrame({"metric": distribution.columns, "low": low, "high": high})
    table.insert(1, "value", [values[name][0] for name in table["metric"]])
    return table


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
