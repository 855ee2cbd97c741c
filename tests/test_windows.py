"""Windows: they lie inside the content of a frame, cover all of it, and the heat map is their mean."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lesionlab.data.crops import cut
from lesionlab.detection.windows import cut_windows, heat_map, window_grid

contents = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(8, 160), st.integers(8, 160))
fractions = st.sampled_from([0.1, 0.25, 0.4, 0.6, 0.85, 1.0])
strides = st.sampled_from([0.05, 0.25, 0.5, 0.77, 1.0])


@given(contents, fractions, strides)
def test_windows_lie_inside_the_content_and_cover_every_pixel(content, fraction, stride):
    x, y, width, height = content
    side, corners = window_grid(content, fraction, stride)
    covered = np.zeros((y + height + 5, x + width + 5), dtype=bool)
    for left, top in corners:
        covered[top : top + side, left : left + side] = True
    inside = np.zeros_like(covered)
    inside[y : y + height, x : x + width] = True
    np.testing.assert_array_equal(covered, inside)


@given(contents, fractions, strides)
def test_a_step_is_at_most_the_stride(content, fraction, stride):
    side, corners = window_grid(content, fraction, stride)
    assert side == min(max(8, round(fraction * min(content[2:]))), *content[2:])
    for axis in (0, 1):
        steps = np.diff(np.unique(corners[:, axis]))
        assert (steps <= np.ceil(stride * side)).all()
    assert len(np.unique(corners, axis=0)) == len(corners)


def test_a_hand_made_grid():
    side, corners = window_grid((10, 20, 100, 60), 0.5, 0.5)
    assert side == 30
    assert sorted(set(corners[:, 0])) == [10, 24, 38, 52, 66, 80]
    assert sorted(set(corners[:, 1])) == [20, 35, 50]
    assert len(corners) == 18


@pytest.fixture
def frame():
    ramp = np.add.outer(np.arange(90.0), np.arange(120.0))
    return Image.fromarray(np.stack([ramp, ramp[::-1], 255 - ramp], axis=-1).clip(0, 255).astype("uint8"))


def test_windows_are_the_crops_that_the_crop_stage_would_cut(frame):
    boxes, pixels = cut_windows(frame, (8, 6, 100, 80), 0.4, 0.5, 32)
    assert pixels.shape == (len(boxes), 32, 32, 3)
    assert pixels.dtype == np.uint8
    assert (boxes[:, 2:] == 32).all()
    for box, window in zip(boxes, pixels, strict=True):
        expected = cut(frame, tuple(map(int, box)), 32).astype(int)
        assert np.abs(window.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("fraction", [0.3, 0.77, 1.0])
def test_reduced_windows_are_where_their_boxes_are(frame, fraction):
    boxes, pixels = cut_windows(frame, (0, 0, 120, 90), fraction, 0.4, 32)
    ramp = np.asarray(frame)[..., 0].astype(float)
    for (x, y, width, height), window in zip(boxes, pixels, strict=True):
        assert window[..., 0].mean() == pytest.approx(ramp[y : y + height, x : x + width].mean(), abs=3)


def test_the_heat_map_is_the_mean_over_windows_then_over_sizes():
    boxes = np.array([[0, 0, 4, 4], [2, 0, 4, 4], [0, 0, 6, 6]])
    heat = heat_map(boxes, np.array([0.2, 0.6, 1.0]), (6, 8))
    expected = np.zeros((6, 8))
    expected[:4, :6] = [0.2, 0.2, 0.4, 0.4, 0.6, 0.6]
    expected[:6, :6] += 1.0
    np.testing.assert_allclose(heat, expected / 2)


@given(st.integers(0, 999))
def test_the_heat_map_stays_between_zero_and_the_highest_score(seed):
    rng = np.random.default_rng(seed)
    boxes = np.column_stack([rng.integers(0, 20, (12, 2)), np.repeat(rng.integers(1, 12, (12, 1)), 2, axis=1)])
    scores = rng.random(12)
    heat = heat_map(boxes, scores, (32, 32))
    assert heat.shape == (32, 32)
    assert heat.min() >= 0
    assert heat.max() <= scores.max() + 1e-12
