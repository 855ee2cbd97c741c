"""The operating point of a two-class model, chosen on validation crops."""

import numpy as np
from sklearn.metrics import roc_curve


def choose_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """Score from which a crop is called positive, at the largest Youden index (sensitivity + specificity - 1).

    labels: (n,) 0 or 1. scores: (n,) probability of class 1. The threshold lies half-way between the lowest score
    called positive and the highest called negative. Source: Youden, Cancer 3:32-35, 1950.
    """
    false_positive_rate, true_positive_rate, thresholds = roc_curve(labels, scores)
    # The curve's first point, at an infinite threshold, calls nothing positive: no score to choose.
    lowest_positive = thresholds[1:][np.argmax((true_positive_rate - false_positive_rate)[1:])]
    below = scores[scores < lowest_positive]
    return float((lowest_positive + below.max()) / 2) if len(below) else float(scores.min())
