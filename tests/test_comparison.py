"""Paired comparison of models: the bootstrap, McNemar's and DeLong's tests."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from lesionlab.evaluation.comparison import compare, delong, mcnemar
from lesionlab.evaluation.metrics import Figures, Scores, classification_metrics, resample

seeds = st.integers(0, 2**32 - 1)


def figures_of(scores: Scores, resamples: int = 300, seed: int = 1) -> Figures:
    return resample(lambda weights: classification_metrics(scores, weights), scores.groups, resamples, seed)


def two_class(labels: np.ndarray, positive: np.ndarray, groups: np.ndarray) -> Scores:
    return Scores(labels, np.stack([1 - positive, positive], axis=1), groups, 0.5)


def noisy(labels: np.ndarray, noise: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-(labels - 0.5) * 2 - noise))


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 5))
def test_mcnemar_is_the_sum_over_coin_tosses(only_first, only_second, both):
    first = np.r_[np.ones(only_first), np.zeros(only_second), np.ones(both)].astype(bool)
    second = np.r_[np.zeros(only_first), np.ones(only_second), np.ones(both)].astype(bool)
    tosses = only_first + only_second
    tail = sum(math.comb(tosses, k) for k in range(min(only_first, only_second) + 1)) / 2**tosses
    assert mcnemar(first, second) == (only_first, only_second, pytest.approx(min(1.0, 2 * tail)))


def test_mcnemar_on_the_approval_ratings_of_agresti():
    """Categorical Data Analysis, table 10.1: 150 approved only at first, 86 only later; exact p 3.716e-05 (R)."""
    first = np.r_[np.ones(150), np.zeros(86), np.ones(794), np.zeros(570)].astype(bool)
    second = np.r_[np.zeros(150), np.ones(86), np.ones(794), np.zeros(570)].astype(bool)
    assert mcnemar(first, second)[2] == pytest.approx(3.716e-05, rel=1e-3)


def test_delong_on_the_ratings_of_hanley_and_mcneil():
    """Radiology 143, 1982, table 1: 109 CT images rated 1 to 5. Area 0.8932; DeLong's standard error 0.0307 (Stata)."""
    normal, abnormal = (33, 6, 6, 11, 2), (3, 2, 2, 11, 33)
    ratings = np.r_[np.repeat(np.arange(1, 6), normal), np.repeat(np.arange(1, 6), abnormal)]
    positive = np.arange(109) >= sum(normal)
    result = delong(positive, ratings, -ratings)
    assert result.areas == pytest.approx((0.8932, 1 - 0.8932), abs=5e-5)
    assert result.errors == pytest.approx((0.0307, 0.0307), abs=5e-5)


def brute_delong(positive: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Difference of areas and its variance by comparing every pair of crops."""
    kernels = [
        np.array([[(a > b) + (a == b) / 2 for b in score[~positive]] for a in score[positive]])
        for score in (first, second)
    ]
    kernel = kernels[0] - kernels[1]
    return kernel.mean(), np.var(kernel.mean(1), ddof=1) / len(kernel) + np.var(kernel.mean(0), ddof=1) / len(kernel.T)


@given(seeds, st.integers(2, 12), st.integers(2, 12), st.integers(2, 9))
def test_delong_as_by_brute_force(seed, positives, negatives, levels):
    rng = np.random.default_rng(seed)
    positive = rng.permutation(np.r_[np.ones(positives), np.zeros(negatives)].astype(bool))
    first, second = rng.integers(levels, size=(2, len(positive))) / levels
    result = delong(positive, first, second)
    difference, variance = brute_delong(positive, first, second)
    assert result.areas == pytest.approx((roc_auc_score(positive, first), roc_auc_score(positive, second)))
    assert result.areas[0] - result.areas[1] == pytest.approx(difference, abs=1e-12)
    assert result.difference_error == pytest.approx(math.sqrt(variance), abs=1e-12)
    if variance > 1e-12:
        assert result.p_value == pytest.approx(math.erfc(abs(difference) / math.sqrt(2 * variance)))


def test_delong_of_equal_scores_and_of_one_positive():
    positive, score = np.array([True, True, False, False]), np.array([0.9, 0.4, 0.5, 0.1])
    assert delong(positive, score, score).p_value == 1.0
    assert math.isnan(delong(np.array([True, False, False, False]), score, score).p_value)


def test_p_values_are_uniform_where_models_are_equally_good():
    """With independent crops each test rejects at 5 % in about 5 of 100 cases, the exact one in no more."""
    rng = np.random.default_rng(1)
    rejected = np.zeros(2)
    for _ in range(200):
        labels = np.arange(120) % 2
        first, second = noisy(labels, rng.normal(size=120)), noisy(labels, rng.normal(size=120))
        rejected[0] += delong(labels == 1, first, second).p_value < 0.05
        rejected[1] += mcnemar((first > 0.5) == labels, (second > 0.5) == labels)[2] < 0.05
    assert 3 <= rejected[0] <= 19
    assert rejected[1] <= 16


def test_the_paired_interval_is_narrower_than_the_models_own():
    """Errors that two models share cancel in the difference."""
    rng = np.random.default_rng(2)
    labels, groups, shared = np.arange(400) % 2, np.arange(400) // 4, rng.normal(size=400)
    names = ("first", "second")
    scores = {name: two_class(labels, noisy(labels, shared + 0.2 * rng.normal(size=400)), groups) for name in names}
    figures = {name: figures_of(score) for name, score in scores.items()}
    own = figures["first"].table().set_index("metric").loc["roc_auc"]
    row = compare([names], scores, figures).set_index("metric").loc["roc_auc"]
    assert row["high"] - row["low"] < 0.5 * (own["high"] - own["low"])
    drawn = figures["first"].distribution["roc_auc"] - figures["second"].distribution["roc_auc"]
    assert (row["low"], row["high"]) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))


def test_crops_that_repeat_each_other_deceive_the_tests_and_not_the_interval():
    """Each crop 20 times as one group: the p-values shrink, the interval stays as it was."""
    rng = np.random.default_rng(3)
    labels = np.arange(80) % 2
    single = {name: two_class(labels, noisy(labels, rng.normal(size=80)), np.arange(80)) for name in "ab"}
    again = np.repeat(np.arange(80), 20)
    copied = {name: Scores(s.labels[again], s.probabilities[again], again, 0.5) for name, s in single.items()}
    tables = [
        compare([("a", "b")], scores, {name: figures_of(score) for name, score in scores.items()}).set_index("metric")
        for scores in (single, copied)
    ]
    pd.testing.assert_frame_equal(tables[0][["low", "high"]], tables[1][["low", "high"]])
    assert tables[1].loc["roc_auc", "p_value"] < tables[0].loc["roc_auc", "p_value"]
    assert tables[1].loc["accuracy", "p_value"] < tables[0].loc["accuracy", "p_value"]
    assert "independent" in tables[0].loc["roc_auc", "note"]
    assert "independent" in tables[0].loc["accuracy", "note"]


def test_three_classes_are_compared_each_against_the_rest():
    rng = np.random.default_rng(4)
    labels = np.arange(60) % 3
    scores = {}
    for name, strength in (("good", 4.0), ("poor", 0.5)):
        raw = np.exp(rng.normal(size=(60, 3)) + strength * np.eye(3)[labels])
        scores[name] = Scores(labels, raw / raw.sum(axis=1, keepdims=True), np.arange(60), None)
    table = compare([("good", "poor")], scores, {name: figures_of(s) for name, s in scores.items()}).set_index("metric")
    assert list(table.index)[3:] == [f"roc_auc of class {number}" for number in range(3)]
    assert table["difference"].iloc[3:].mean() == pytest.approx(table.loc["roc_auc", "difference"])
    assert table.loc["roc_auc", "low"] > 0
    assert math.isnan(table.loc["roc_auc", "p_value"])
    assert (table["p_value"].iloc[3:] < 0.05).all()
