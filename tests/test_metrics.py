"""Figures of a classifier against scikit-learn's, their intervals, and the choice of the threshold."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from lesionlab.evaluation.metrics import Scores, classification_metrics, with_intervals
from lesionlab.training.threshold import choose_threshold

seeds = st.integers(0, 2**32 - 1)


def scores_from(seed: int, count: int, classes: int, levels: int, threshold: float | None) -> Scores:
    """Random labels of every class, and probabilities on few levels so that there are ties."""
    rng = np.random.default_rng(seed)
    labels = np.r_[np.arange(classes), rng.integers(classes, size=count - classes)]
    raw = rng.integers(1, levels + 1, (count, classes)).astype(float)
    return Scores(labels, raw / raw.sum(axis=1, keepdims=True), np.arange(count), threshold)


def scikit_learn(scores: Scores, weights: np.ndarray) -> dict[str, float]:
    labels, predicted, probabilities = scores.labels, scores.predicted, scores.probabilities
    classes = probabilities.shape[1]
    how = {"sample_weight": weights, "zero_division": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if classes == 2:
            how |= {"average": "binary", "pos_label": 1}
            specificity = sk.recall_score(labels, predicted, sample_weight=weights, pos_label=0)
            roc = sk.roc_auc_score(labels, probabilities[:, 1], sample_weight=weights)
            area = sk.average_precision_score(labels, probabilities[:, 1], sample_weight=weights)
        else:
            how |= {"average": "macro", "labels": range(classes)}
            ones = [(labels == k, predicted == k, probabilities[:, k]) for k in range(classes)]
            specificity = np.mean([sk.recall_score(~a, ~p, sample_weight=weights) for a, p, _ in ones])
            roc = np.mean([sk.roc_auc_score(a, s, sample_weight=weights) for a, _, s in ones])
            area = np.mean([sk.average_precision_score(a, s, sample_weight=weights) for a, _, s in ones])
        return {
            "accuracy": sk.accuracy_score(labels, predicted, sample_weight=weights),
            "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted, sample_weight=weights),
            "precision": sk.precision_score(labels, predicted, **how),
            "recall": sk.recall_score(labels, predicted, **how),
            "specificity": specificity,
            "f1": sk.f1_score(labels, predicted, **how),
            "roc_auc": roc,
            "pr_auc": area,
        }


def hold_against_scikit_learn(scores: Scores, weights: np.ndarray) -> None:
    ours = classification_metrics(scores, weights)
    for row, weight in enumerate(weights):
        for name, expected in scikit_learn(scores, weight).items():
            assert ours[name][row] == pytest.approx(expected, abs=1e-12), name
        assert len(ours) == 8


@given(seeds, st.integers(4, 40), st.integers(1, 6), st.sampled_from([None, 0.3, 0.5, 0.71]))
def test_two_classes_as_scikit_learn(seed, count, levels, threshold):
    scores = scores_from(seed, count, 2, levels, threshold)
    hold_against_scikit_learn(scores, np.ones((1, count)))


@given(seeds, st.integers(3, 5), st.integers(1, 6))
def test_several_classes_as_scikit_learn(seed, classes, levels):
    scores = scores_from(seed, 30, classes, levels, None)
    hold_against_scikit_learn(scores, np.ones((1, 30)))


@given(seeds, st.sampled_from([2, 3]))
def test_weights_are_scikit_learns_sample_weights(seed, classes):
    scores = scores_from(seed, 30, classes, 4, None)
    weights = np.random.default_rng(seed).integers(0, 4, (3, 30)).astype(float)
    weights[:, :classes] += 1  # every class keeps some weight
    hold_against_scikit_learn(scores, weights)


@given(seeds)
def test_a_crop_of_weight_two_is_a_crop_that_is_there_twice(seed):
    scores = scores_from(seed, 20, 2, 5, 0.5)
    weights = np.random.default_rng(seed).integers(0, 3, 20)
    weights[:2] = 1
    chosen = np.repeat(np.arange(20), weights)
    repeated = Scores(scores.labels[chosen], scores.probabilities[chosen], scores.groups[chosen], 0.5)
    weighted = classification_metrics(scores, weights[None].astype(float))
    for name, values in classification_metrics(repeated, np.ones((1, len(chosen)))).items():
        assert weighted[name][0] == pytest.approx(values[0], abs=1e-12), name


def test_hand_made_figures():
    positive = np.array([0.9, 0.8, 0.6, 0.4, 0.3, 0.2])
    scores = Scores(np.array([1, 1, 0, 1, 0, 0]), np.stack([1 - positive, positive], axis=1), np.arange(6), 0.5)
    figures = {name: values[0] for name, values in classification_metrics(scores, np.ones((1, 6))).items()}
    assert figures == pytest.approx({
        "accuracy": 4 / 6, "balanced_accuracy": 2 / 3, "precision": 2 / 3, "recall": 2 / 3, "specificity": 2 / 3,
        "f1": 2 / 3, "roc_auc": 8 / 9, "pr_auc": (1 + 1 + 3 / 4) / 3,
    })  # fmt: skip


def test_a_figure_without_its_class_is_not_a_number():
    scores = scores_from(1, 10, 2, 5, 0.5)
    figures = classification_metrics(scores, (scores.labels == 0)[None].astype(float))
    for name in ("recall", "roc_auc", "pr_auc", "balanced_accuracy"):
        assert np.isnan(figures[name][0]), name
    assert 0 <= figures["accuracy"][0] <= 1


def random_scores(seed: int, count: int, groups: int, separation: float = 1.0) -> Scores:
    """Overlapping normal distributions of the score; the crops of a group are drawn independently."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    positive = 1 / (1 + np.exp(-rng.normal((labels - 0.5) * 2 * separation)))
    return Scores(labels, np.stack([1 - positive, positive], axis=1), np.arange(count) % groups, 0.5)


def interval(scores: Scores, metric: str = "accuracy", resamples: int = 600) -> tuple[float, float, float]:
    row = with_intervals(scores, resamples, seed=3).set_index("metric").loc[metric]
    return row["value"], row["low"], row["high"]


def test_the_interval_covers_the_true_value_as_often_as_it_says():
    """Accuracy of a score with unit normal noise, cut at its middle, is the normal distribution at 1: 0.8413."""
    covered = 0
    for seed in range(60):
        value, low, high = interval(random_scores(seed, 200, 200), resamples=400)
        assert low <= value <= high
        covered += low <= 0.8413 <= high
    assert 52 <= covered <= 60  # 95 % of 60 is 57


def test_every_value_lies_in_its_interval_and_in_range():
    table = with_intervals(random_scores(1, 150, 30), 500, seed=1)
    assert list(table.columns) == ["metric", "value", "low", "high"]
    assert len(table) == 8
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    assert ((table["low"] >= 0) & (table["high"] <= 1)).all()


def test_the_interval_shrinks_with_the_root_of_the_number():
    widths = []
    for count in (100, 400, 1600):
        _, low, high = interval(random_scores(5, count, count))
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.35)
    assert widths[1] / widths[2] == pytest.approx(2, rel=0.35)


def test_crops_that_repeat_each_other_add_nothing():
    """Ten copies of each crop: the bootstrap over groups knows, the one over crops claims three times the precision."""
    single = random_scores(2, 60, 60)
    copied = np.repeat(np.arange(60), 10)
    grouped = Scores(single.labels[copied], single.probabilities[copied], copied, 0.5)
    as_crops = Scores(grouped.labels, grouped.probabilities, np.arange(600), 0.5)
    _, low, high = interval(grouped)
    _, low_crops, high_crops = interval(as_crops)
    _, low_single, high_single = interval(single)
    assert (low, high) == pytest.approx((low_single, high_single), abs=1e-12)
    assert high - low == pytest.approx((high_crops - low_crops) * np.sqrt(10), rel=0.2)


def test_the_seed_decides_the_interval_and_not_the_value():
    scores = random_scores(4, 80, 20)
    first, again, other = (with_intervals(scores, 300, seed) for seed in (1, 1, 2))
    assert first.equals(again)
    assert (first["value"] == other["value"]).all()
    assert (first["low"] != other["low"]).any()


def test_chunks_change_no_number(monkeypatch):
    scores = random_scores(4, 40, 20)
    whole = with_intervals(scores, 450, 1)
    monkeypatch.setattr("lesionlab.bootstrap.CHUNK", 450)
    np.testing.assert_allclose(with_intervals(scores, 450, 1)[["low", "high"]], whole[["low", "high"]], atol=0.02)


@given(seeds, st.integers(4, 30), st.integers(2, 8))
def test_the_threshold_has_the_largest_youden_index_of_all(seed, count, levels):
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 1, rng.integers(2, size=count - 2)]
    scores = rng.integers(0, levels, count) / levels

    def youden(threshold: float) -> float:
        called = scores >= threshold
        return called[labels == 1].mean() - called[labels == 0].mean()

    best = max(youden(threshold) for threshold in (*scores, 2.0))
    chosen = choose_threshold(labels, scores)
    assert youden(chosen) == pytest.approx(best, abs=1e-12)
    assert 0 <= chosen <= 1


@pytest.mark.parametrize("scores", [[0.5, 0.5, 0.5, 0.5], [0.9, 0.8, 0.2, 0.1]])
def test_the_threshold_of_a_useless_score_is_a_number(scores):
    """Nothing beats chance: every crop is called positive, and the threshold can be written to JSON."""
    assert choose_threshold(np.array([0, 0, 1, 1]), np.array(scores)) == min(scores)


def test_the_threshold_lies_half_way_between_the_classes():
    assert choose_threshold(np.array([0, 0, 1, 1]), np.array([0.1, 0.3, 0.7, 0.9])) == pytest.approx(0.5)
    assert choose_threshold(np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.3, 0.9])) == pytest.approx(0.35)


@given(seeds, st.integers(4, 30), st.integers(2, 8), st.floats(0.05, 1))
def test_the_threshold_is_the_highest_that_reaches_a_sensitivity(seed, count, levels, wanted):
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 1, rng.integers(2, size=count - 2)]
    scores = rng.integers(0, levels, count) / levels
    chosen = choose_threshold(labels, scores, wanted)
    assert (scores[labels == 1] >= chosen).mean() >= wanted
    for higher in scores[scores >= chosen]:
        assert (scores[labels == 1] > higher).mean() < wanted


def test_the_threshold_decides_what_is_called_positive():
    positive = np.array([0.2, 0.4, 0.6])
    scores = Scores(np.array([0, 0, 1]), np.stack([1 - positive, positive], axis=1), np.arange(3), 0.4)
    assert scores.predicted.tolist() == [0, 1, 1]
    assert Scores(scores.labels, scores.probabilities, scores.groups, None).predicted.tolist() == [0, 0, 1]
