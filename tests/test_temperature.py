"""The temperature that a training stage fits on validation crops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from lesionlab.models.networks import softmax
from lesionlab.training.threshold import TEMPERATURES, fit_temperature


def drawn(seed: int, count: int, classes: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from softmax(logits / temperature): logits that are `temperature` times too sure."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2 * temperature, (count, classes))
    chances = softmax(logits, temperature)
    labels = (chances.cumsum(axis=1) < rng.random((count, 1))).sum(axis=1)
    return labels, logits


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found(classes, temperature):
    labels, logits = drawn(1, 20_000, classes, temperature)
    assert fit_temperature(labels, logits) == pytest.approx(temperature, rel=0.05)


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_no_other_temperature_has_a_lower_log_loss(seed, classes):
    labels, logits = drawn(seed, 60, classes, 1.5)

    def loss(temperature: float) -> float:
        return log_loss(labels, softmax(logits, temperature), labels=range(classes))

    best = loss(fit_temperature(labels, logits))
    assert all(best <= loss(other) + 1e-9 for other in np.geomspace(*TEMPERATURES, 200))


def test_order_and_decision_stay_and_log_probabilities_serve_as_logits():
    labels, logits = drawn(2, 500, 2, 2.0)
    temperature = fit_temperature(labels, logits)
    before, after = softmax(logits), softmax(logits, temperature)
    assert (before.argmax(axis=1) == after.argmax(axis=1)).all()
    assert roc_auc_score(labels, after[:, 1]) == roc_auc_score(labels, before[:, 1])
    assert fit_temperature(labels, np.log(before)) == pytest.approx(temperature, abs=1e-5)


def test_separable_validation_crops_end_at_the_bound():
    labels = np.array([0, 0, 1, 1])
    logits = np.array([[2.0, 0], [3, 0], [0, 2], [0, 3]])
    assert fit_temperature(labels, logits) == pytest.approx(TEMPERATURES[0], rel=1e-4)
    assert fit_temperature(1 - labels, logits) == pytest.approx(TEMPERATURES[1], rel=1e-4)
