"""Augmentation: what is drawn, what it does to a picture, and that a row needs no other row."""

import numpy as np
import pytest
from tiny_networks import tiny_crops, training_params

from lesionlab.training.augmentation import augment, draw_augmentation

IDENTITY = np.array([1.0, 1.0, 0.0, 1.0, 0.0, 1.0])
SIGN_X, SIGN_Y, ANGLE, ZOOM, BRIGHTNESS, CONTRAST = range(6)


def drawn_with(count: int, **columns: float) -> np.ndarray:
    drawn = np.tile(IDENTITY, (count, 1))
    for name, value in columns.items():
        drawn[:, globals()[name]] = value
    return drawn


@pytest.fixture
def images():
    return tiny_crops(6)[0]


def test_identity_gives_the_image_back(images):
    result = augment(images, drawn_with(6))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, images, atol=1e-3)


@pytest.mark.parametrize(
    ("columns", "flipped"),
    [
        ({"SIGN_X": -1}, np.s_[:, :, ::-1]),
        ({"SIGN_Y": -1}, np.s_[:, ::-1]),
        ({"SIGN_X": -1, "SIGN_Y": -1}, np.s_[:, ::-1, ::-1]),
    ],
)
def test_flips_are_exact(images, columns, flipped):
    np.testing.assert_allclose(augment(images, drawn_with(6, **columns)), images[flipped], atol=1e-3)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_are_exact(images, turns):
    result = augment(images, drawn_with(6, ANGLE=turns * np.pi / 2))
    candidates = [np.rot90(images, sign * turns, axes=(1, 2)) for sign in (1, -1)]
    inner = np.s_[:, 1:-1, 1:-1]  # the outermost pixels may be interpolated with reflected ones
    assert min(np.abs(result[inner] - candidate[inner]).max() for candidate in candidates) < 0.05


def test_zoom_scales_about_the_centre():
    ramp = np.broadcast_to(np.arange(32.0)[None, None, :, None] * 4, (1, 32, 32, 3))
    result = augment(ramp, drawn_with(1, ZOOM=0.5))
    np.testing.assert_allclose(
        result[0, :, :, 0], np.tile((15.5 + (np.arange(32) - 15.5) * 0.5) * 4, (32, 1)), atol=1e-2
    )


def test_brightness_adds_and_contrast_scales_about_the_mean(images):
    np.testing.assert_allclose(augment(images, drawn_with(6, BRIGHTNESS=20)), images + 20.0, atol=1e-3)
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    expected = np.clip((images - mean) * 1.2 + mean, 0, 255)
    np.testing.assert_allclose(augment(images, drawn_with(6, CONTRAST=1.2)), expected, atol=1e-2)


def test_values_stay_in_the_range_of_pixels(images):
    assert augment(images, drawn_with(6, BRIGHTNESS=500)).min() == 255
    assert augment(images, drawn_with(6, BRIGHTNESS=-500)).max() == 0


def test_a_row_does_not_depend_on_the_batch(images):
    params = training_params().augment
    drawn = draw_augmentation(params, 7, 0, 6)
    whole = augment(images, drawn)
    for row in range(6):
        np.testing.assert_array_equal(augment(images[row : row + 1], drawn[row : row + 1])[0], whole[row])
    np.testing.assert_array_equal(augment(images[[4, 1]], drawn[[4, 1]]), whole[[4, 1]])


def test_a_draw_depends_on_seed_and_version_and_row_alone():
    params = training_params().augment
    first = draw_augmentation(params, 7, 0, 50)
    np.testing.assert_array_equal(draw_augmentation(params, 7, 0, 50), first)
    np.testing.assert_array_equal(draw_augmentation(params, 7, 0, 20), first[:20])
    for other in (draw_augmentation(params, 7, 1, 50), draw_augmentation(params, 8, 0, 50)):
        assert (other[:, ANGLE] != first[:, ANGLE]).all()
    assert len(np.unique(first[:, ANGLE])) == 50


def test_draws_fill_the_limits_of_params_and_do_not_pass_them():
    changes = {"augment__rotation": 0.25, "augment__zoom": 0.1, "augment__brightness": 0.1, "augment__contrast": 0.2}
    drawn = draw_augmentation(training_params(**changes).augment, 1, 0, 4000)
    for column, middle, reach in ((ANGLE, 0, np.pi / 2), (ZOOM, 1, 0.1), (BRIGHTNESS, 0, 25.5), (CONTRAST, 1, 0.2)):
        away = drawn[:, column] - middle
        assert np.abs(away).max() <= reach
        assert away.min() < -0.98 * reach
        assert away.max() > 0.98 * reach
    for column in (SIGN_X, SIGN_Y):
        assert set(drawn[:, column]) == {-1.0, 1.0}
        assert abs(drawn[:, column].mean()) < 0.08


def test_what_params_turn_off_does_not_happen(images):
    off = {f"augment__{name}": 0 for name in ("rotation", "zoom", "brightness", "contrast")}
    params = training_params(augment__horizontal_flip=False, augment__vertical_flip=False, **off).augment
    drawn = draw_augmentation(params, 1, 0, 6)
    np.testing.assert_array_equal(drawn, drawn_with(6))
    only_x = draw_augmentation(params.model_copy(update={"horizontal_flip": True}), 1, 0, 40)
    assert set(only_x[:, SIGN_X]) == {-1.0, 1.0}
    assert (only_x[:, 1:] == IDENTITY[1:]).all()
