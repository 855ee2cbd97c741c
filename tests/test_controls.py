"""Colour controls: features, what they can and cannot tell, and when they warn."""

import numpy as np
import pandas as pd
import pytest

from lesionlab.evaluation.controls import (
    CONTROLS,
    colour_histogram,
    control_probabilities,
    mean_colour,
    warn_of_controls,
)
from lesionlab.evaluation.metrics import Figures


def test_features_of_known_pictures():
    red = np.zeros((1, 4, 4, 3), dtype="uint8")
    red[..., 0] = 255
    half = red.copy()
    half[0, :2] = (0, 0, 200)
    both = np.concatenate([red, half])
    assert mean_colour(both).tolist() == [[255, 0, 0], [127.5, 0, 100]]
    histogram = colour_histogram(both)
    assert histogram.shape == (2, 64)
    assert histogram.sum(axis=1).tolist() == [1, 1]
    assert histogram[0, 3 * 16] == 1
    assert (histogram[1, 3 * 16], histogram[1, 3]) == (0.5, 0.5)


def test_the_histogram_is_numpys():
    images = np.random.default_rng(1).integers(0, 256, (3, 9, 9, 3)).astype("uint8")
    for image, row in zip(images, colour_histogram(images), strict=True):
        expected, _ = np.histogramdd(image.reshape(-1, 3), bins=4, range=[(0, 256)] * 3)
        assert row == pytest.approx(expected.ravel() / 81)


def squares(classes: int, count: int, coloured: bool) -> tuple[np.ndarray, np.ndarray]:
    """Noise; the class is told by colour, or by where in the picture a bright square lies."""
    rng = np.random.default_rng(2)
    images, labels = rng.integers(60, 120, (count, 8, 8, 3)), np.arange(count) % classes
    for image, label in zip(images, labels, strict=True):
        if coloured:
            image[..., label] += 60
        else:
            image[2 * label : 2 * label + 2, :2] += 100
    return images.astype("uint8"), labels


@pytest.mark.parametrize("classes", [2, 3])
def test_controls_see_colour_and_not_place(classes, monkeypatch):
    monkeypatch.setattr("lesionlab.evaluation.controls.CHUNK", 50)  # several batches
    rows = np.arange(240)
    for coloured in (True, False):
        images, labels = squares(classes, 240, coloured)
        found = control_probabilities(images, labels, rows[:160], [rows[160:200], rows[200:]], classes)
        assert tuple(found) == tuple(CONTROLS)
        for validation, test in found.values():
            assert (validation.shape, test.shape) == ((40, classes), (40, classes))
            assert test.sum(axis=1) == pytest.approx(np.ones(40))
            accuracy = (test.argmax(axis=1) == labels[200:]).mean()
            assert accuracy == 1 if coloured else accuracy < 0.75


def test_a_class_without_training_crops_gets_no_probability():
    images, labels = squares(3, 60, coloured=True)
    rows = np.arange(60)
    found = control_probabilities(images, labels, rows[labels < 2], [rows], 3)
    for (predicted,) in found.values():
        assert (predicted[:, 2] == 0).all()
        assert predicted.sum(axis=1) == pytest.approx(np.ones(60))


def balanced_accuracy(value: float, spread: float) -> Figures:
    draws = value + spread * np.linspace(-1, 1, 101)
    return Figures(pd.Series({"balanced_accuracy": value}), pd.DataFrame({"balanced_accuracy": draws}), 20)


@pytest.mark.parametrize(
    ("mean", "histogram", "warned"),
    [(0.6, 0.7, []), (0.6, 0.89, ["histogram"]), (0.92, 0.7, ["mean"]), (0.9, 0.91, ["mean", "histogram"])],
)
def test_a_control_that_may_be_near_is_named(mean, histogram, warned):
    figures = {
        "finetune": balanced_accuracy(0.9, 0.0),
        "control_mean_colour": balanced_accuracy(mean, 0.01),
        "control_colour_histogram": balanced_accuracy(histogram, 0.01),
    }
    warning = warn_of_controls("finetune", figures)
    assert [name for name in ("mean", "histogram") if name in (warning or "")] == warned
    assert (warning is None) == (not warned)


def test_a_wide_interval_warns_although_the_difference_is_large():
    figures = {"finetune": balanced_accuracy(0.9, 0.0)}
    figures |= {name: balanced_accuracy(0.75, 0.15) for name in CONTROLS}
    assert warn_of_controls("finetune", figures).startswith(
        "control_mean_colour comes close to finetune: balanced accuracy lower by 0.150 [0.00"
    )


def test_without_an_interval_nothing_is_shown():
    figures = {"finetune": balanced_accuracy(0.9, 0.0)} | {name: balanced_accuracy(np.nan, 0.1) for name in CONTROLS}
    assert "control_mean_colour is not shown to be worse than finetune" in warn_of_controls("finetune", figures)
