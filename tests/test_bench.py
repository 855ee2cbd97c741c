"""What `make bench` counts and prints; what it measures here says nothing."""

import pytest
from tiny_networks import THREADS  # noqa: F401 (starts Keras)

from benchmarks import detection, idle
from benchmarks.bench import machine, markdown, merge, reached, table
from benchmarks.crops import CARD, CLASSES, draw_frames, pillow_loop
from benchmarks.detection import multiply_adds
from benchmarks.rows import Row
from lesionlab.data.crops import crop_frames
from lesionlab.data.readers import read_frames


def row(**changes: object) -> Row:
    return Row(**{"row": "a", "plain": 8.0, "ours": 2.0, "ratio": 4.0, "floor": 5.0, "at_least": 3.0} | changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"ratio": 3.0}, True),
        ({"ratio": 2.9}, False),
        ({"ratio": None}, False),
        ({"ratio": 1.1, "at_least": None, "at_most": 1.3}, True),
        ({"ratio": 1.4, "at_least": None, "at_most": 1.3}, False),
    ],
)
def test_a_row_has_reached_what_was_asked_for(changes, expected):
    assert reached(row(**changes)) is expected


def test_the_table_shows_every_row_and_says_which_fall_short():
    rows = [row(), row(row="b", ratio=None, plain=None, floor=None, note="not on this processor"), row(ratio=1.5)]
    lines = table(rows)
    assert lines[0].split("  ")[0] == "what"
    assert [line.split() for line in lines[1:4]] == [
        ["a", "8", "2", "4", "5", ">=", "3"],
        ["b", "[2]", "-", "2", "-", "-", ">=", "3", "NOT", "MEASURED"],
        ["a", "8", "2", "1.5", "5", ">=", "3", "FALLS", "SHORT"],
    ]
    assert lines[-1] == "[2] not on this processor"


def test_the_page_says_why_a_row_was_not_measured():
    rows = [row(ratio=None, ours=None, note="not on this processor"), row(ratio=1.5), row()]
    assert markdown(rows, {"processor": "P", "cores": 2})[2:] == [
        "| a | - | 5.00 | at least 3; not measured: not on this processor |",
        "| a | 1.50 | 5.00 | at least 3, **falls short** |",
        "| a | 4.00 | 5.00 | at least 3 |",
    ]


def test_a_part_that_is_measured_again_takes_its_old_rows_away():
    kept, old = row(row="kept", part="idle"), row(row="old name", part="crops")
    new = row(row="new name")
    assert merge([kept, old], "crops", [new]) == [row(row="new name", part="crops"), kept]


def test_the_machine_is_named_without_its_host():
    assert set(machine()) == {"processor", "cores"}


def test_multiply_adds_of_vgg16_are_the_published_ones():
    """15.3 billion at 224 px with the top's 0.12 (He et al., CVPR 2016, table 1: VGG-16 has 15.3 billion)."""
    assert multiply_adds(224, 0) == pytest.approx(15.35e9, rel=0.01)


def test_poolings_at_stride_one_repeat_what_follows_them_for_each_phase():
    """Block 5 is three convolutions of 512 channels on maps of a sixteenth; the last pooling is followed by nothing."""
    block5 = 3 * (64 / 16) ** 2 * 9 * 512 * 512
    assert multiply_adds(64, 1) == multiply_adds(64, 0)
    assert multiply_adds(64, 2) - multiply_adds(64, 0) == pytest.approx(3 * block5)


@pytest.mark.slow
def test_the_rows_of_dense_maps_say_how_many_windows_there_are():
    for row, windows in zip(detection.rows(1, frame=96, rounds=1), (9, 25), strict=True):
        assert row.note.startswith(f"{windows} windows of a frame of 96 px;")
        assert row.ratio > 0


def test_the_pillow_loop_cuts_as_many_crops(tmp_path, tiny_params):
    draw_frames(tmp_path, 6, 96, 1, ".jpg")
    frames = read_frames(CARD, tmp_path)
    ours = sum(len(crops.rows) for _, crops in crop_frames(frames, CLASSES, tiny_params.crop, 32, 1, 1))
    assert ours == pillow_loop(frames, tiny_params.crop, 32, 1) == 6 * 3


@pytest.mark.slow
def test_nothing_to_do_is_nothing_done(monkeypatch):
    """A row that had run a stage would have raised; the copies are those of this work tree."""
    monkeypatch.setattr(idle, "ROUNDS", 1)
    (row,) = idle.rows(1)
    assert 0.2 < row.ratio < 5
