"""Boxes: overlap against counted pixels, suppression, and which lesion a box is on."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lesionlab.detection.boxes import (
    BOX,
    IGNORED,
    NO_LESION,
    boxes_table,
    found_lesion,
    nearest_lesion,
    overlap,
    suppress,
)

SIDE = 24
box = st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 12), st.integers(1, 12))
boxes_of_one_size = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 40), st.just(12), st.just(12)), min_size=1, max_size=15, unique=True
)
many_boxes = st.lists(box, min_size=1, max_size=15)


def pixels(one: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    x, y, width, height = one
    mask[y : y + height, x : x + width] = True
    return mask


def distinct_scores(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count) / count


@given(box, many_boxes)
def test_overlap_is_shared_pixels_over_those_of_the_smaller_box(one, others):
    masks = [pixels(other) for other in others]
    expected = [(pixels(one) & mask).sum() / min(pixels(one).sum(), mask.sum()) for mask in masks]
    np.testing.assert_allclose(overlap(np.array(one), np.array(others)), expected, atol=1e-12)


def test_overlap_of_hand_made_boxes():
    others = np.array([[0, 0, 10, 10], [5, 0, 10, 10], [10, 0, 10, 10], [2, 2, 5, 5], [30, 30, 4, 4]])
    np.testing.assert_allclose(overlap(np.array([0, 0, 10, 10]), others), [1, 0.5, 0, 1, 0])


@given(many_boxes, st.integers(0, 99), st.sampled_from([0.0, 0.3, 0.7, 1.0]))
def test_no_two_kept_boxes_overlap_more_than_the_limit(boxes, seed, limit):
    boxes, scores = np.array(boxes), distinct_scores(len(boxes), seed)
    kept = suppress(boxes, scores, limit)
    for place, row in enumerate(kept):
        rest = np.delete(kept, place)
        assert (overlap(boxes[row], boxes[rest]) <= limit).all()


@given(many_boxes, st.integers(0, 99), st.sampled_from([0.0, 0.3, 0.7]))
def test_the_best_box_is_kept_and_comes_first(boxes, seed, limit):
    boxes, scores = np.array(boxes), distinct_scores(len(boxes), seed)
    kept = suppress(boxes, scores, limit)
    assert kept[0] == scores.argmax()
    assert (np.diff(scores[kept]) < 0).all()
    assert len(set(kept)) == len(kept)


@given(many_boxes, st.integers(0, 99), st.sampled_from([0.0, 0.3, 0.7]))
def test_the_order_of_the_rows_does_not_matter(boxes, seed, limit):
    boxes, scores = np.array(boxes), distinct_scores(len(boxes), seed)
    shuffled = np.random.default_rng(seed + 1).permutation(len(boxes))
    kept = suppress(boxes, scores, limit)
    assert shuffled[suppress(boxes[shuffled], scores[shuffled], limit)].tolist() == kept.tolist()


@given(boxes_of_one_size, st.integers(0, 99))
def test_every_box_that_went_has_a_better_one_beside_it(boxes, seed):
    boxes, scores = np.array(boxes), distinct_scores(len(boxes), seed)
    kept = suppress(boxes, scores, 0.3)
    for row in set(range(len(boxes))) - set(kept):
        better = kept[scores[kept] > scores[row]]
        assert (overlap(boxes[row], boxes[better]) > 0.3).any()


def test_windows_of_different_size_around_one_centre_are_one_detection():
    boxes = np.array([[40, 40, 20, 20], [20, 20, 60, 60], [120, 40, 20, 20]])
    assert overlap(boxes[0], boxes[1:2])[0] == 1
    assert suppress(boxes, np.array([0.9, 0.8, 0.7]), 0.3).tolist() == [0, 2]
    assert suppress(boxes, np.array([0.8, 0.9, 0.7]), 0.3).tolist() == [1, 2]


def test_of_equal_scores_the_first_stays():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 10, 10], [50, 50, 10, 10]])
    assert suppress(boxes, np.full(3, 0.5), 0.3).tolist() == [0, 2]


def test_no_box_gives_no_box():
    assert suppress(np.zeros((0, 4)), np.zeros(0), 0.3).tolist() == []


def test_a_box_is_on_the_lesion_under_its_centre():
    lesions = np.zeros((20, 30), dtype=int)
    lesions[2:8, 2:8], lesions[10:16, 20:28] = 1, 2
    mask = lesions > 0
    mask[18:20, 0:2] = True  # a speck that is no lesion
    boxes = np.array([[0, 0, 10, 10], [18, 8, 10, 10], [9, 9, 4, 4], [0, 18, 2, 2], [28, 18, 40, 40]])
    assert found_lesion(boxes, lesions, mask).tolist() == [1, 2, NO_LESION, IGNORED, NO_LESION]


@given(many_boxes, st.lists(box, max_size=4))
def test_the_nearest_lesion_is_that_of_the_greatest_share_of_counted_pixels(boxes, lesions):
    numbers, overlaps = nearest_lesion(np.array(boxes), np.array(lesions).reshape(-1, 4))
    for one, number, best in zip(boxes, numbers, overlaps, strict=True):
        shares = [(pixels(one) & pixels(lesion)).sum() / (pixels(one) | pixels(lesion)).sum() for lesion in lesions]
        assert np.isclose(best, max(shares, default=0))
        assert number == (1 + int(np.argmax(shares)) if best > 0 else NO_LESION)


def test_the_table_of_boxes_has_the_documented_columns():
    table = boxes_table("a/b.png", np.array([[1, 2, 3, 4]]), np.array([0.5]))
    assert list(table.columns) == ["frame", *BOX, "score"]
    assert table.iloc[0].tolist() == ["a/b.png", 1, 2, 3, 4, 0.5]
    assert len(boxes_table("a", np.zeros((0, 4)), np.zeros(0))) == 0
