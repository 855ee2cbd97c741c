"""A frame is looked at once: by the head that learns, by the search for a threshold, and for the pictures."""

import os
from collections import Counter
from pathlib import Path
from shutil import rmtree
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_dense import SMALL, classifier_of
from test_head import frames, params  # noqa: F401, a fixture

import lesionlab.detection.detector
from lesionlab.data.readers import read_rgb
from lesionlab.detection import looks as looks_module
from lesionlab.detection.dense import DenseBackbone
from lesionlab.detection.looks import Looks, Seen, temporary_looks
from lesionlab.detection.run import detect_frames, train_and_detect

SIZES = [0.5, 0.8]


@pytest.fixture
def looked_at(monkeypatch) -> Counter:
    """How often the backbone, or the windows cut out, saw a frame at a size."""
    counts: Counter = Counter()

    see, cut = DenseBackbone.features, lesionlab.detection.detector.cut_windows

    def count_and_see(backbone, images, contents, fraction):
        counts.update((image.tobytes(), fraction) for image in images)
        return see(backbone, images, contents, fraction)

    def count_and_cut(image, content, fraction, *rest):
        counts[image.tobytes(), fraction] += 1
        return cut(image, content, fraction, *rest)

    monkeypatch.setattr(DenseBackbone, "features", count_and_see)
    monkeypatch.setattr(lesionlab.detection.detector, "cut_windows", count_and_cut)
    return counts


@pytest.mark.parametrize("mode", ["dense", "windows"])
def test_each_frame_is_read_and_looked_at_once_for_each_size(frames, looked_at, mode, monkeypatch):  # noqa: F811
    read: Counter = Counter()
    monkeypatch.setattr(looks_module, "read_rgb", lambda path: read.update([path]) or read_rgb(path))
    settings = params(window_sizes=SIZES, windows_per_frame=16, epochs=1, mode=mode)
    parts = {"train": frames[:6], "val": frames[6:9], "test": frames[9:12]}
    _, _, found = train_and_detect(classifier_of(SMALL), parts, settings)
    searched = frames[:12] if mode == "dense" else frames[6:12]
    pixels = [Image.open(frame.image).convert("RGB").tobytes() for frame in searched]
    assert looked_at == {(each, size): 1 for each in pixels for size in SIZES}
    assert read == {frame.image: 1 for frame in searched}
    assert list(found["test"].windows) == [frame.name for frame in frames[9:12]]  # what the heat maps are drawn from


def test_what_was_seen_before_gives_the_same_boxes(frames):  # noqa: F811
    settings = params(window_sizes=SIZES, windows_per_frame=16, epochs=1)
    parts = {"train": frames[:6], "val": frames[6:9], "test": frames[9:10]}
    detector, _, found = train_and_detect(classifier_of(SMALL), parts, settings)
    again = detect_frames(frames[6:9], detector, settings, "again")
    assert len(again.boxes)
    pd.testing.assert_frame_equal(found["val"].boxes, again.boxes)
    for name, (boxes, scores) in again.windows.items():
        np.testing.assert_array_equal(found["val"].windows[name][0], boxes)
        np.testing.assert_array_equal(found["val"].windows[name][1], scores)


def test_looks_are_those_that_were_kept_and_go_with_their_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    rng = np.random.default_rng(4)
    looks = [(rng.integers(9, size=(n, 4)), rng.normal(size=(n, 3)).astype("float32")) for n in (2, 5)]
    old, young = (tmp_path / ".lesionlab" / name for name in ("looks-old", "looks-young"))
    for folder in (old, young):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    with temporary_looks(["a/1.png", "2.png"]) as seen:
        assert not old.exists()
        assert seen.of("a/1.png") is None
        seen.keep("a/1.png", Seen((30, 40), looks))
        seen.keep("other.png", Seen((30, 40), looks))
        assert seen.of("other.png") is seen.of("2.png") is None
        shape, kept, pixels = seen.of("a/1.png")
        assert (shape, pixels) == ((30, 40), None)
        for (boxes, shown), (kept_boxes, kept_shown) in zip(looks, kept, strict=True):
            np.testing.assert_array_equal(boxes, kept_boxes)
            np.testing.assert_array_equal(shown, kept_shown)
            assert kept_shown.dtype == np.float32
        monkeypatch.setattr(looks_module, "disk_usage", lambda folder: SimpleNamespace(free=1))
        seen.keep("2.png", Seen((30, 40), looks))
        assert seen.of("2.png") is None  # the disk is almost full: it is looked at again
    assert list((tmp_path / ".lesionlab").iterdir()) == [young]
    assert Looks(Path("nowhere"), ["x"]).of("x") is None


def test_caches_that_are_deleted_meanwhile_cost_a_second_look_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with temporary_looks(["1.png"]) as seen:
        rmtree(tmp_path / ".lesionlab")
        seen.keep("1.png", Seen((30, 40), [(np.zeros((1, 4), int), np.zeros((1, 3), "float32"))]))
        assert seen.of("1.png") is None
