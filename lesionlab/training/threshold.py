"""What is chosen on validation crops after training: first the temperature, then the threshold on its probabilities."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from sklearn.metrics import roc_curve

# Where every validation crop is classified rightly, the log loss falls without end as the temperature falls.
TEMPERATURES = (0.25, 10.0)


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """What to divide logits by for the lowest log loss: above 1 where the network is surer than it should be.

    labels: (n,) class numbers. logits: (n, classes); the logarithms of probabilities serve as well. The result lies
    within TEMPERATURES. Which class is the most probable does not change. Source: Guo et al., On Calibration of
    Modern Neural Networks, ICML 2017.
    """
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(np.mean(logsumexp(scaled, axis=1) - scaled[rows, labels]))

    result = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(result.x))


def choose_threshold(labels: np.ndarray, scores: np.ndarray, sensitivity: float | None = None) -> float:
    """Score from which a crop is called positive.

    labels: (n,) 0 or 1. scores: (n,) probability of class 1. sensitivity: the highest threshold that reaches it; None:
    the one of the largest Youden index (sensitivity + specificity - 1). The threshold lies half-way between the lowest
    score called positive and the highest called negative. Source: Youden, Cancer 3:32-35, 1950.
    """
    false_positive_rate, true_positive_rate, thresholds = roc_curve(
        labels, scores, drop_intermediate=sensitivity is None
    )
    gain = true_positive_rate - false_positive_rate if sensitivity is None else true_positive_rate >= sensitivity
    # The curve's first point, at an infinite threshold, calls nothing positive: no score to choose.
    lowest_positive = thresholds[1:][np.argmax(gain[1:])]
    below = scores[scores < lowest_positive]
    return float((lowest_positive + below.max()) / 2) if len(below) else float(scores.min())
