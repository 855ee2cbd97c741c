"""Entropy, mutual information, risk-coverage and referral."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lesionlab.evaluation.metrics import Scores
from lesionlab.evaluation.uncertainty import (
    aurc,
    decision_uncertainty,
    entropy,
    mutual_information,
    optimal_uncertainty,
    referral_metrics,
    referral_threshold,
    risk_coverage,
    selective_metrics,
)

seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(shape[-1]), shape[:-1])


def test_entropy_of_known_distributions():
    assert entropy(np.array([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]])) == pytest.approx(
        [math.log(2), 0, -0.25 * math.log(0.25) - 0.75 * math.log(0.75)]
    )
    assert entropy(np.full((3, 4), 0.25)) == pytest.approx([math.log(4)] * 3)


@given(seeds, st.integers(2, 5), st.integers(2, 5))
def test_mutual_information_is_the_mean_divergence_from_the_mean(seed, members, classes):
    said = drawn(seed, members, 7, classes)
    mean = said.mean(axis=0)
    divergence = [[(p * np.log(p / q)).sum() for p, q in zip(one, mean, strict=True)] for one in said]
    assert mutual_information(said) == pytest.approx(np.mean(divergence, axis=0), abs=1e-12)


def test_members_that_agree_know_and_members_that_are_sure_of_opposites_do_not():
    same = np.repeat(drawn(1, 1, 5, 3), 4, axis=0)
    assert mutual_information(same) == pytest.approx(np.zeros(5), abs=1e-12)
    assert mutual_information(np.array([[[1.0, 0.0]], [[0.0, 1.0]]])) == pytest.approx([math.log(2)])


@given(seeds, st.integers(1, 30))
def test_the_curve_and_its_area_as_by_brute_force(seed, count):
    rng = np.random.default_rng(seed)
    wrong, uncertainty = rng.random(count) < 0.3, rng.permutation(count) / count
    order = np.argsort(uncertainty)
    risks = [wrong[order[: kept + 1]].mean() for kept in range(count)]
    table = risk_coverage(wrong, uncertainty)
    assert table["risk"].tolist() == pytest.approx(risks)
    assert table["coverage"].tolist() == pytest.approx((np.arange(count) + 1) / count)
    assert table["uncertainty"].tolist() == sorted(uncertainty)
    assert aurc(wrong, uncertainty)[0] == pytest.approx(np.mean(risks))
    figures = selective_metrics(wrong, uncertainty, np.ones((1, count)))
    assert figures["error_at_90_coverage"][0] == pytest.approx(risks[math.ceil(0.9 * count - 1e-9) - 1])


@given(seeds)
def test_a_weight_of_two_is_a_crop_that_is_there_twice(seed):
    rng = np.random.default_rng(seed)
    wrong, uncertainty = rng.random(20) < 0.4, rng.integers(0, 9, 20) / 9
    weights = rng.integers(0, 3, 20)
    weights[0] = 1
    chosen = np.repeat(np.arange(20), weights)
    weighted = selective_metrics(wrong, uncertainty, weights[None].astype(float))
    repeated = selective_metrics(wrong[chosen], uncertainty[chosen], np.ones((1, len(chosen))))
    for name in set(weighted) - {"aurc_excess"}:
        assert weighted[name][0] == pytest.approx(repeated[name][0], abs=1e-12), name


@given(seeds)
def test_no_order_beats_the_optimal_one_and_random_orders_give_the_error_rate(seed):
    rng = np.random.default_rng(seed)
    wrong = rng.random(40) < 0.3
    best = aurc(wrong, optimal_uncertainty(wrong))[0]
    areas = [aurc(wrong, rng.random(40))[0] for _ in range(300)]
    assert best <= min(areas)
    assert np.mean(areas) == pytest.approx(wrong.mean(), abs=0.04)
    assert aurc(wrong, np.zeros(40))[0] == pytest.approx(wrong.mean())


def test_the_optimal_area_is_that_of_geifman():
    """Geifman et al. 2019, equation 4: e + (1 - e) ln(1 - e), for many crops."""
    wrong = np.arange(20_000) % 5 == 0
    assert aurc(wrong, optimal_uncertainty(wrong))[0] == pytest.approx(0.2 + 0.8 * math.log(0.8), abs=1e-3)


def test_a_crop_called_against_its_probability_is_the_least_sure():
    """With a threshold of 0.2 a crop of 0.25 is called positive: entropy ranks 0.5 as less sure, and is wrong."""
    positive = np.array([0.05, 0.25, 0.5, 0.9])
    scores = Scores(np.zeros(4, dtype=int), np.stack([1 - positive, positive], axis=1), np.arange(4), 0.2)
    assert decision_uncertainty(scores) == pytest.approx([0.05, 0.75, 0.5, 0.1])


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.25])
def test_the_rate_holds_on_validation_crops(rate):
    scores = Scores(np.zeros(200, dtype=int), drawn(3, 200, 2), np.arange(200), 0.5)
    threshold = referral_threshold(scores, rate)
    assert (decision_uncertainty(scores) > threshold).mean() == pytest.approx(rate)


def test_referral_figures():
    wrong = np.array([True, False, False, True, False])
    referred = np.array([True, True, False, False, False])
    figures = referral_metrics(wrong, referred)(np.array([[1.0, 1, 1, 1, 1], [0, 0, 1, 2, 1]]))
    assert figures["referred_share"] == pytest.approx([0.4, 0])
    assert figures["error_kept"] == pytest.approx([1 / 3, 0.5])
    assert figures["error_referred"][0] == 0.5
    assert np.isnan(figures["error_referred"][1])
