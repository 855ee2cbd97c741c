"""Crops: margins, lesions, windows around and beside them, and the array and table that they become."""

from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import ROOT, small_params

from lesionlab.data import crops
from lesionlab.data.cards import read_card
from lesionlab.data.crops import (
    HIGHLIGHT_LEVEL,
    IN_FLIGHT,
    MARGIN_LEVEL,
    SMALLEST_WINDOW,
    background_windows,
    content_box,
    crop_all,
    crop_frame,
    crop_frames,
    cut,
    describe_crops,
    draw_sheet,
    fit_whole,
    frame_digest,
    lesion_boxes,
    lesion_windows,
)
from lesionlab.data.readers import BrokenImageError, Frame, find_frames, read_frames, read_rgb
from lesionlab.data.thumbnails import thumbnail
from lesionlab.errors import InputError
from lesionlab.files import read_images, read_index, read_lesions, read_thumbnails
from lesionlab.params import CropParams, Params

PARAMS = Params.model_validate(small_params()).crop
BOTH = ["background", "polyp"]


def changed(**changes: object) -> CropParams:
    return CropParams.model_validate(PARAMS.model_dump() | changes)


# Margins


@given(
    st.integers(40, 120),
    st.integers(40, 120),
    st.integers(0, 15),
    st.integers(0, 15),
    st.integers(0, 15),
    st.integers(0, 15),
)
def test_content_box_finds_the_part_inside_the_margins(height, width, left, top, right, bottom):
    image = np.random.default_rng(0).integers(0, MARGIN_LEVEL, (height, width, 3)).astype("uint8")
    inner = np.s_[top : height - bottom, left : width - right]
    image[inner] = 30  # dark, and yet not margin
    assert content_box(image) == (left, top, width - left - right, height - top - bottom)


def test_content_box_ignores_text_in_the_margin_and_a_black_image_is_all_content():
    image = np.zeros((100, 200, 3), "uint8")
    image[10:90, 50:190] = 120
    image[2:5, 10:22] = 255  # below 8 % of its rows and columns
    assert content_box(image) == (50, 10, 140, 80)
    assert content_box(np.zeros((30, 40, 3), "uint8")) == (0, 0, 40, 30)


# Lesions


def test_lesions_are_components_of_eight_neighbours():
    mask = np.zeros((20, 30), bool)
    mask[2:5, 3:7] = True
    mask[5, 7] = True  # touches the first at a corner only
    mask[10:14, 20:28] = True
    labels, boxes = lesion_boxes(mask, 0.0)
    assert boxes == [(3, 2, 5, 4), (20, 10, 8, 4)]
    assert [np.count_nonzero(labels == i) for i in (0, 1, 2)] == [600 - 13 - 32, 13, 32]
    assert labels[5, 7] == labels[2, 3] == 1


def test_specks_are_not_lesions():
    mask = np.zeros((100, 100), bool)
    mask[0, 0:9] = True  # 9 pixels of 10,000
    mask[50, 0:10] = True  # 10 pixels: just not a speck
    mask[90:95, 90:95] = True
    labels, boxes = lesion_boxes(mask, 0.001)
    assert boxes == [(0, 50, 10, 1), (90, 90, 5, 5)]
    assert np.unique(labels).tolist() == [0, 1, 2]
    assert labels[0, 0] == 0
    assert lesion_boxes(np.zeros((5, 5), bool), 0.001)[1] == []


@given(st.integers(0, 2**32 - 1))
def test_boxes_belong_to_their_labels(seed):
    mask = np.random.default_rng(seed).random((24, 32)) > 0.75
    labels, boxes = lesion_boxes(mask, 0.005)
    for number, (x, y, width, height) in enumerate(boxes, start=1):
        rows, columns = np.nonzero(labels == number)
        assert (x, y) == (columns.min(), rows.min())
        assert (width, height) == (np.ptp(columns) + 1, np.ptp(rows) + 1)
        assert len(rows) >= 0.005 * mask.size
    assert labels.max() == len(boxes)


# Windows


@st.composite
def scenes(draw):
    """A frame with black margins, highlights and up to three lesions: image, label image, boxes, content box."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    height, width = draw(st.integers(60, 110)), draw(st.integers(60, 110))
    image = np.zeros((height, width, 3), "uint8")
    left, top = draw(st.integers(0, 12)), draw(st.integers(0, 12))
    image[top:, left:] = rng.integers(40, 200, (height - top, width - left, 3))
    y, x = np.mgrid[:height, :width]
    image[(x + y) < draw(st.integers(0, 60))] = 0
    image[height - 5 : height - 2, width - 9 : width - 4] = HIGHLIGHT_LEVEL + 20
    mask = np.zeros((height, width), bool)
    for _ in range(draw(st.integers(0, 3))):
        radius = rng.uniform(4, 20)
        mask |= (x - rng.uniform(left, width)) ** 2 + (y - rng.uniform(top, height)) ** 2 < radius**2
    labels, boxes = lesion_boxes(mask, 0.001)
    return image, labels, boxes, content_box(image)


def inside(window: tuple, content: tuple) -> bool:
    x, y, width, height = window
    left, top, full_width, full_height = content
    return x >= left and y >= top and x + width <= left + full_width and y + height <= top + full_height


@given(scenes(), st.integers(0, 1000), st.integers(1, 4), st.floats(0, 0.5), st.floats(0, 1), st.floats(0, 4))
def test_lesion_windows_are_square_and_inside_the_content(scene, seed, count, jitter, scale_jitter, context):
    _, _, boxes, content = scene
    params = changed(positives_per_lesion=count, jitter=jitter, scale_jitter=scale_jitter, context=context)
    windows = lesion_windows(boxes, content, params, np.random.default_rng(seed))
    assert len(windows) == count * len(boxes)
    for window in windows:
        assert window[2] == window[3] >= min(SMALLEST_WINDOW, *content[2:])
        assert inside(window, content)


def test_without_jitter_a_window_is_the_lesion_with_its_context():
    params = changed(positives_per_lesion=1, jitter=0, scale_jitter=0, context=0.5)
    boxes = [(40, 50, 20, 10), (0, 0, 20, 20)]
    windows = lesion_windows(boxes, (0, 0, 100, 100), params, np.random.default_rng(0))
    assert windows == [(35, 40, 30, 30), (0, 0, 30, 30)]


def test_jitter_moves_and_scales_as_much_as_it_says():
    params = changed(positives_per_lesion=300, jitter=0.2, scale_jitter=0.3, context=0)
    windows = np.array(lesion_windows([(480, 480, 40, 40)], (0, 0, 1000, 1000), params, np.random.default_rng(0)))
    sides = windows[:, 2]
    shift = np.abs(windows[:, :2] + sides[:, None] / 2 - 500) / sides[:, None]
    assert 0.19 < shift.max() < 0.2 + 2 / sides.min()
    assert abs(sides.min() / 40 - np.exp(-0.3)) < 0.03
    assert abs(sides.max() / 40 - np.exp(0.3)) < 0.03


@given(
    scenes(),
    st.integers(0, 1000),
    st.integers(0, 6),
    st.sampled_from([0, 0.05, 0.1, 0.3]),
    st.sampled_from([0, 0.3, 1]),
)
def test_background_windows_keep_their_limits(scene, seed, count, max_overlap, max_black):
    image, lesions, boxes, content = scene
    params = changed(negatives_per_frame=count, max_overlap=max_overlap, max_black=max_black)
    windows = background_windows(image, lesions, boxes, content, params, np.random.default_rng(seed))
    assert len(windows) <= count
    areas = np.bincount(lesions.ravel(), minlength=len(boxes) + 1)
    for window in windows:
        x, y, width, height = window
        assert width == height >= min(SMALLEST_WINDOW, *content[2:])
        assert inside(window, content)
        seen = lesions[y : y + height, x : x + width]
        assert np.count_nonzero(seen) <= max_overlap * width * height
        for number in range(1, len(boxes) + 1):
            assert np.count_nonzero(seen == number) <= max_overlap * areas[number]
        black = (image[y : y + height, x : x + width] <= MARGIN_LEVEL).all(axis=2)
        assert black.mean() <= max_black


def plain_frame() -> tuple[np.ndarray, np.ndarray, list, tuple]:
    image = np.full((200, 200, 3), 100, "uint8")
    image[150:152, 150:152] = 255
    mask = np.zeros((200, 200), bool)
    mask[40:70, 40:70] = True
    return image, *lesion_boxes(mask, 0.001), (0, 0, 200, 200)


def test_as_many_negatives_as_wanted_and_as_many_hard_ones():
    scene = plain_frame()
    for fraction, hard in ((0, 0), (0.5, 4), (1, 8)):
        params = changed(negatives_per_frame=8, hard_fraction=fraction, scale_jitter=0)
        windows = np.array(background_windows(*scene, params, np.random.default_rng(3)))
        assert len(windows) == 8
        centres = windows[:, :2] + windows[:, 2:] / 2
        near_lesion = np.abs(centres - 55).max(axis=1) <= 15 + windows[:, 2] / 2 * 1.5
        on_highlight = np.abs(centres - 151).max(axis=1) <= 2
        assert (near_lesion | on_highlight)[:hard].all()
        if fraction == 1:
            assert near_lesion.any()
            assert on_highlight.any()
        if fraction == 0:
            assert not (near_lesion | on_highlight).all()


def test_a_frame_that_is_all_lesion_gives_no_negatives():
    image = np.full((60, 60, 3), 100, "uint8")
    labels, boxes = lesion_boxes(np.ones((60, 60), bool), 0.001)
    assert background_windows(image, labels, boxes, (0, 0, 60, 60), PARAMS, np.random.default_rng(0)) == []


# Cutting


def test_cut_is_the_window_itself_where_no_scaling_is_needed():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype("uint8")
    assert np.array_equal(cut(Image.fromarray(pixels), (7, 9, 20, 20), 20), pixels[9:29, 7:27])


def test_reduction_averages():
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    small = cut(Image.fromarray(np.repeat(board[..., None], 3, axis=2).astype("uint8")), (0, 0, 64, 64), 8)
    assert abs(small.astype(int) - 128).max() < 8


def test_whole_images_are_padded_or_squashed():
    pixels = np.full((40, 60, 3), 200, "uint8")
    pixels[:, :10] = 0
    image, content = Image.fromarray(pixels), content_box(pixels)
    assert content == (10, 0, 50, 40)
    squashed = fit_whole(image, content, 50, "squash")
    assert np.array_equal(squashed, np.full((50, 50, 3), 200))
    padded = fit_whole(image, content, 50, "pad")
    assert np.array_equal(padded[5:45], np.full((40, 50, 3), 200))
    assert padded[:5].max() == padded[45:].max() == 0


def frame_of(folder: Path, name: str, image: np.ndarray, mask: np.ndarray | None = None, **fields: object) -> Frame:
    paths = {"image": folder / f"{name}.png", "mask": None if mask is None else folder / f"{name}_mask.png"}
    Image.fromarray(image).save(paths["image"])
    if mask is not None:
        Image.fromarray(mask).save(paths["mask"])
    return Frame(**{"name": name, "label": None, "group": "", "official": "", **paths, **fields})


def noise(shape: tuple) -> np.ndarray:
    return np.random.default_rng(0).integers(40, 220, shape).astype("uint8")


def test_a_frame_with_two_lesions_gives_positives_first_and_rows_that_tell_where(tmp_path):
    mask = np.zeros((100, 120), "uint8")
    mask[10:30, 10:30] = 255
    mask[60:90, 80:110] = 255
    frame = frame_of(tmp_path, "a", noise((100, 120, 3)), mask, group="p1", official="test")
    crops = crop_frame(frame, BOTH, changed(positives_per_lesion=2, negatives_per_frame=3), 32, 42)
    assert crops.images.shape == (7, 32, 32, 3)
    assert crops.images.dtype == np.uint8
    assert [row["label"] for row in crops.rows] == ["polyp"] * 4 + ["background"] * 3
    assert {(row["frame"], row["group"], row["official"]) for row in crops.rows} == {("a", "p1", "test")}
    with Image.open(frame.image) as image:
        for pixels, row in zip(crops.images, crops.rows, strict=True):
            window = row["x"], row["y"], row["width"], row["height"]
            assert np.array_equal(pixels, cut(image, window, 32))


def test_an_empty_mask_gives_negatives_only_and_a_frame_without_group_is_its_own(tmp_path):
    frame = frame_of(tmp_path, "a", noise((100, 120, 3)), np.zeros((100, 120), "uint8"))
    crops = crop_frame(frame, BOTH, changed(negatives_per_frame=3), 32, 42)
    assert [(row["label"], row["group"]) for row in crops.rows] == [("background", "a")] * 3


def test_an_image_with_a_label_is_one_crop(tmp_path):
    image = np.zeros((50, 70, 3), "uint8")
    image[5:45, 10:60] = noise((40, 50, 3))
    crops = crop_frame(frame_of(tmp_path, "a", image, label="ill"), ["well", "ill"], PARAMS, 25, 42)
    (row,) = crops.rows
    assert (row["label"], row["x"], row["y"], row["width"], row["height"]) == ("ill", 10, 5, 50, 40)
    assert crops.images[0, :2].max() == crops.images[0, 22:].max() == 0
    assert crops.images[0, 2:22].min() > 20


def test_hash_and_thumbnail_see_the_content_and_not_the_margins(tmp_path):
    picture = np.asarray(Image.fromarray(noise((6, 8, 3))).resize((80, 60)))
    framed = np.zeros((100, 120, 3), "uint8")
    framed[20:80, 10:90] = picture
    empty = np.zeros
    bare = crop_frame(frame_of(tmp_path, "a", picture, empty((60, 80), "uint8")), BOTH, PARAMS, 32, 42)
    edged = crop_frame(frame_of(tmp_path, "b", framed, empty((100, 120), "uint8")), BOTH, PARAMS, 32, 42)
    other = crop_frame(frame_of(tmp_path, "c", picture[::-1].copy(), empty((60, 80), "uint8")), BOTH, PARAMS, 32, 42)
    assert bare.rows[0]["hash"] == edged.rows[0]["hash"] != other.rows[0]["hash"]
    assert len(bare.rows[0]["hash"]) == 16
    assert np.array_equal(bare.thumbnail, edged.thumbnail)
    assert not np.array_equal(bare.thumbnail, other.thumbnail)


def test_frames_have_the_same_digest_where_their_pixels_are_equal(tmp_path):
    picture = noise((60, 80, 3))
    for name in ("a.png", "a.bmp"):
        Image.fromarray(picture).save(tmp_path / name)
    turned = picture.copy()
    turned[30, 40, 1] ^= 1  # too little for the perceptual hash
    frames = [Frame(name, tmp_path / name, None, "ill", "", "") for name in ("a.png", "a.bmp")]
    frames.append(frame_of(tmp_path, "b", turned, label="ill"))
    first, copy, other = (crop_frame(frame, ["well", "ill"], PARAMS, 32, 42).rows[0] for frame in frames)
    assert first["frame_digest"] == copy["frame_digest"] != other["frame_digest"]
    assert first["hash"] == copy["hash"] == other["hash"]
    assert len(first["frame_digest"]) == 16
    assert frame_digest(picture) != frame_digest(picture.reshape(80, 60, 3))


def test_the_draw_depends_on_seed_and_name_only(drawn_phantom, tiny_card):
    frames = read_frames(tiny_card, drawn_phantom)[:8]

    def crops_of(frames: list[Frame], seed: int, workers: int) -> dict:
        results = crop_frames(frames, BOTH, PARAMS, 32, seed, workers)
        return {frame.name: (crops.rows, crops.images.tobytes()) for frame, crops in results}

    all_of_them = crops_of(frames, 42, 2)
    assert crops_of(frames, 42, 1) == all_of_them
    assert crops_of(frames[::-1], 42, 2) == all_of_them
    for frame in frames[2:4]:
        assert crops_of([frame], 42, 2) == {frame.name: all_of_them[frame.name]}
    other = crops_of(frames, 43, 2)
    assert all(other[name][0] != all_of_them[name][0] for name in other)
    renamed = Frame("elsewhere", *[getattr(frames[0], key) for key in ("image", "mask", "label", "group", "official")])
    assert crops_of([renamed], 42, 1)["elsewhere"][1] != all_of_them[frames[0].name][1]


@pytest.mark.parametrize("workers", [2, 3])
def test_processes_give_what_one_loop_gives(drawn_phantom, tiny_card, tmp_path, monkeypatch, workers):
    """Same crops in the same order, and a broken frame's error in its place."""
    frames = read_frames(tiny_card, drawn_phantom)[:18]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG")
    frames.insert(11, Frame("broken", broken, frames[0].mask, None, "", ""))
    one = list(crop_frames(frames, BOTH, PARAMS, 32, 42, 1))
    monkeypatch.setattr("lesionlab.data.crops.FEWEST_FOR_PROCESSES", 1)
    monkeypatch.setattr("lesionlab.data.crops.PART", 2)
    several = list(crop_frames(frames, BOTH, PARAMS, 32, 42, workers))
    assert [frame for frame, _ in several] == [frame for frame, _ in one] == frames
    for number, ((_, expected), (_, result)) in enumerate(zip(one, several, strict=True)):
        if number == 11:
            assert isinstance(result, BrokenImageError)
            assert str(result) == str(expected)
        else:
            assert result.rows == expected.rows
            assert np.array_equal(result.images, expected.images)


def test_only_a_few_parts_are_computed_ahead_and_some_of_them_here(drawn_phantom, tiny_card, monkeypatch):
    frames = read_frames(tiny_card, drawn_phantom)[:1] * 40
    computed, submitted = [], []
    plain = crops.crop_frame

    def counted(frame, *rest):
        computed.append(frame)
        return plain(frame, *rest)

    class WhenAsked(Future):
        """A part that no process begins before its result is asked for."""

        def __init__(self, call, part):
            super().__init__()
            self.compute = partial(call, part)

        def result(self):
            self.set_result(self.compute())
            return super().result()

    class Slow:
        """An executor that counts what it is given."""

        def __init__(self, *_, **__): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def shutdown(self, **_): ...
        def submit(self, call, part):
            submitted.append(len(part))
            return WhenAsked(call, part)

    monkeypatch.setattr(crops, "crop_frame", counted)
    monkeypatch.setattr(crops, "FEWEST_FOR_PROCESSES", 1)
    monkeypatch.setattr(crops, "PART", 2)
    monkeypatch.setattr(crops, "MOST_AHEAD", 6)
    monkeypatch.setattr(crops, "ProcessPoolExecutor", Slow)
    results = crop_frames(frames, BOTH, PARAMS, 32, 42, 2)
    for taken in range(1, 41):
        next(results)
        assert len(computed) - taken <= 2 * 6
        assert sum(submitted) - taken <= 2 * 6
    assert len(computed) == 40
    assert 2 * IN_FLIGHT <= sum(submitted) < 40


# The whole


def test_images_and_index_belong_together(tmp_path, drawn_phantom, tiny_card):
    written, skipped = crop_all(drawn_phantom, tmp_path / "crops", tiny_card, PARAMS, 32, 42)
    images, index = read_images(tmp_path / "crops"), read_index(tmp_path / "crops")
    assert skipped == []
    assert index.to_dict("records") == written.to_dict("records")
    assert index["id"].tolist() == list(range(len(index)))
    assert images.shape == (len(index), 32, 32, 3)
    assert images.dtype == np.uint8
    assert isinstance(images, np.memmap)
    assert set(index["label"]) == set(BOTH)
    assert index["frame"].nunique() == 24
    row = index.iloc[-1]
    with Image.open(drawn_phantom / row["frame"]) as image:
        assert np.array_equal(images[-1], cut(image, tuple(row[["x", "y", "width", "height"]]), 32))
    assert describe_crops(index, ["x.png"]) == {
        "frames": 24,
        "crops": len(index),
        "classes": {name: int((index["label"] == name).sum()) for name in BOTH},
        "skipped": 1,
        "skipped_frames": ["x.png"],
    }


def test_thumbnails_are_those_of_the_frames_that_gave_a_crop(tmp_path, drawn_phantom, tiny_card):
    params = changed(negatives_per_frame=0)  # frames without a lesion give none
    card = tiny_card.model_copy(update={"classes": ["polyp"]})
    index, _ = crop_all(drawn_phantom, tmp_path / "crops", card, params, 32, 42)
    shown = read_thumbnails(tmp_path / "crops", index)
    assert shown.dtype == np.uint8
    assert len(shown) < 24
    for name, small in zip(index["frame"].unique(), shown, strict=True):
        grey = Image.fromarray(cut_content(drawn_phantom / name)).convert("L")
        assert np.array_equal(small, thumbnail(grey))


def test_lesions_lie_where_the_mask_covers_the_crop(tmp_path):
    mask = np.zeros((100, 120), "uint8")
    mask[20:60, 30:80] = 255
    frame = frame_of(tmp_path, "a", noise((100, 120, 3)), mask)
    crops = crop_frame(frame, BOTH, changed(max_overlap=0.2), 32, 42)
    assert crops.lesions.shape == (len(crops.rows), 4, 4)
    assert crops.lesions.dtype == np.uint8
    inside = []
    for cells, row in zip(crops.lesions, crops.rows, strict=True):
        window = mask[row["y"] : row["y"] + row["height"], row["x"] : row["x"] + row["width"]]
        inside.append(window.mean())
        if row["label"] == "polyp":
            assert abs(cells.mean() - window.mean()) < 8
            assert cells.mean() > 60
        else:
            assert not cells.any(), "the edge of a lesion in a window beside it is not what tells its class"
    assert any(0 < part < 60 for part in inside)


def test_lesions_of_a_whole_image_are_where_it_was_padded_to(tmp_path):
    mask, image = np.zeros((100, 120), "uint8"), noise((100, 120, 3))
    mask[20:60, 30:80] = 255
    frame = frame_of(tmp_path, "a", image, mask, label="ill")
    crops = crop_frame(frame, ["well", "ill"], PARAMS, 120, 42)
    expected = np.pad(mask, ((10, 10), (0, 0))).reshape(15, 8, 15, 8).mean(axis=(1, 3))
    np.testing.assert_allclose(crops.lesions[0], expected, atol=1)
    assert not crop_frame(frame_of(tmp_path, "b", image, label="ill"), ["ill"], PARAMS, 32, 42).lesions.any()
    Image.fromarray(mask[:-1]).save(frame.mask)
    with pytest.raises(InputError, match=r"mask is 120x99 pixels but .* is 120x100; both must have the same size"):
        crop_frame(frame, ["well", "ill"], PARAMS, 120, 42)


def test_lesions_are_written_where_there_are_masks(tmp_path, drawn_phantom, tiny_card):
    index, _ = crop_all(drawn_phantom, tmp_path / "crops", tiny_card, PARAMS, 32, 42)
    lesions = read_lesions(tmp_path / "crops")
    assert lesions.shape == (len(index), 4, 4)
    covered = lesions.mean(axis=(1, 2)) / 255
    assert covered[index["label"] == "polyp"].min() > 0.1
    assert covered[index["label"] == "background"].max() == 0


def test_no_lesions_are_written_where_there_are_no_masks(tmp_path, drawn_phantom, tiny_card, monkeypatch):
    frames, reading = find_frames(tiny_card, drawn_phantom)
    bare = [replace(frame, mask=None, label=BOTH[number % 2]) for number, frame in enumerate(frames)]
    monkeypatch.setattr(crops, "find_frames", lambda *_: (bare, reading))
    crop_all(drawn_phantom, tmp_path / "crops", tiny_card, PARAMS, 32, 42)
    assert not (tmp_path / "crops" / "lesions.npy").exists()
    with pytest.raises(InputError, match=r"lesions\.npy: not found, since the data set has no masks"):
        read_lesions(tmp_path / "crops")


def cut_content(path: Path) -> np.ndarray:
    pixels = read_rgb(path)
    x, y, width, height = content_box(pixels)
    return pixels[y : y + height, x : x + width]


def test_cutting_twice_gives_the_same_bytes(tmp_path, drawn_phantom, tiny_card):
    for name in ("a", "b"):
        index, _ = crop_all(drawn_phantom, tmp_path / name, tiny_card, PARAMS, 32, 42)
        draw_sheet(tmp_path / f"{name}.png", tmp_path / name, index, BOTH, 42)
    for file in ("images.npy", "index.csv", "lesions.npy", "thumbnails.npy"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.width > 500
        assert np.asarray(sheet.convert("RGB")).std() > 20


@pytest.mark.real
@pytest.mark.parametrize(("dataset", "folder"), [("kvasir-seg", "Kvasir-SEG"), ("cvc-clinicdb", "cvc-clinicdb")])
def test_real_frames_give_both_classes(shared_data, monkeypatch, dataset, folder):
    monkeypatch.chdir(ROOT)
    card = read_card(dataset)
    frames = read_frames(card, shared_data / folder)[:10]
    for frame, found in crop_frames(frames, card.classes, PARAMS, 96, 42):
        labels = [row["label"] for row in found.rows]
        assert labels.count("polyp") >= 1, frame.name
        assert found.images.std() > 10
    assert "background" in labels
