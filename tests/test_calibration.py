"""Calibration: reliability diagram, expected calibration error, Brier score and log loss."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss

from lesionlab.evaluation.calibration import BINS, calibration_metrics, reliability
from lesionlab.evaluation.metrics import Scores

seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int, count: int, classes: int, overconfidence: float = 1.0) -> Scores:
    """Labels drawn from probabilities, which are then made surer than they should be."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (count, classes))
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (chances.cumsum(axis=1) < rng.random((count, 1))).sum(axis=1).clip(max=classes - 1)
    said = np.exp(logits * overconfidence)
    return Scores(labels, said / said.sum(axis=1, keepdims=True), np.arange(count), None)


def brute_ece(scores: Scores, weights: np.ndarray) -> float:
    """Guo et al. 2017, equations 2, 3 and 5, bin by bin."""
    total = 0.0
    for number in range(BINS):
        inside = [i for i, p in enumerate(scores.probabilities.max(axis=1)) if number / BINS < p <= (number + 1) / BINS]
        mass = sum(weights[i] for i in inside)
        if mass:
            right = sum(weights[i] * (scores.probabilities[i].argmax() == scores.labels[i]) for i in inside) / mass
            sure = sum(weights[i] * scores.probabilities[i].max() for i in inside) / mass
            total += mass * abs(right - sure)
    return total / weights.sum()


def brute_adaptive(scores: Scores, weights: np.ndarray) -> float:
    """Bin by bin; each ends where a fifteenth more of the crops have less confidence (Nguyen & O'Connor 2015)."""
    sure = scores.probabilities.max(axis=1)
    gaps = sure - (scores.probabilities.argmax(axis=1) == scores.labels)
    edges = [-np.inf, *(np.percentile(sure, 100 * k / BINS) for k in range(1, BINS)), np.inf]
    total = 0.0
    for low, high in itertools.pairwise(edges):
        total += abs(sum(weights[i] * gaps[i] for i, p in enumerate(sure) if low < p <= high))
    return total / weights.sum()


@given(seeds, st.integers(2, 5))
def test_brier_log_loss_and_ece_as_scikit_learn_and_brute_force(seed, classes):
    scores = drawn(seed, 40, classes)
    weights = np.random.default_rng(seed).integers(0, 4, (3, 40)).astype(float) + 0.5
    ours = calibration_metrics(scores, weights)
    for row, weight in enumerate(weights):
        how = {"sample_weight": weight, "labels": np.arange(classes)}
        if classes == 2:
            expected = brier_score_loss(scores.labels, scores.probabilities[:, 1], sample_weight=weight)
        else:
            expected = brier_score_loss(scores.labels, scores.probabilities, **how)
        assert ours["brier"][row] == pytest.approx(expected)
        assert ours["log_loss"][row] == pytest.approx(log_loss(scores.labels, scores.probabilities, **how))
        assert ours["ece"][row] == pytest.approx(brute_ece(scores, weight))
        assert ours["ece_adaptive"][row] == pytest.approx(brute_adaptive(scores, weight))


@pytest.mark.parametrize("classes", [2, 4])
def test_true_probabilities_are_calibrated_and_exaggerated_ones_are_not(classes):
    honest, boastful = (calibration_metrics(drawn(1, 20_000, classes, o), np.ones((1, 20_000))) for o in (1.0, 3.0))
    for name in ("ece", "ece_adaptive"):
        assert honest[name][0] < 0.015
        assert boastful[name][0] > 0.1
    assert honest["brier"][0] < boastful["brier"][0]
    assert honest["log_loss"][0] < boastful["log_loss"][0]


def test_a_certain_error_costs_what_scikit_learn_says():
    scores = Scores(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]), np.arange(2), None)
    figures = calibration_metrics(scores, np.ones((1, 2)))
    assert figures["log_loss"][0] == pytest.approx(log_loss([0, 1], scores.probabilities))
    assert (figures["brier"][0], figures["ece"][0], figures["ece_adaptive"][0]) == (0.5, 0.5, 0.5)


@given(seeds, st.integers(2, 5))
def test_the_diagram_adds_up_to_the_error(seed, classes):
    scores = drawn(seed, 60, classes, 2.0)
    table = reliability(scores)
    assert table["crops"].sum() == 60
    assert ((table["low"] <= table["confidence"]) & (table["confidence"] <= table["high"] + 1e-12)).all()
    error = (table["crops"] * (table["accuracy"] - table["confidence"]).abs()).sum() / 60
    assert calibration_metrics(scores, np.ones((1, 60)))["ece"][0] == pytest.approx(error)


def test_a_hand_made_diagram():
    confidence = np.array([0.62, 0.64, 0.9, 1.0])
    scores = Scores(np.array([1, 0, 1, 1]), np.stack([1 - confidence, confidence], axis=1), np.arange(4), 0.3)
    table = reliability(scores)
    assert table["confidence"].tolist() == pytest.approx([0.63, 0.9, 1.0])
    assert table["accuracy"].tolist() == [0.5, 1.0, 1.0]
    assert table["high"].tolist() == pytest.approx([10 / 15, 14 / 15, 1.0])
    assert calibration_metrics(scores, np.ones((1, 4)))["ece"][0] == pytest.approx((2 * 0.13 + 0.1) / 4)
