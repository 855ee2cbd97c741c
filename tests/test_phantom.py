import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from lesionlab.data.cards import PhantomLayout
from lesionlab.data.phantom import draw_phantom, draw_sequence, lesion_free_frames
from lesionlab.seeds import generator


def layout(**changes) -> PhantomLayout:
    fields = {"sequences": 4, "frames_per_sequence": 2, "width": 96, "height": 80, "lesion_free": 0.5}
    return PhantomLayout(kind="phantom", **fields | changes)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "frames.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    draw_phantom(layout(), 42, folder)
    return folder


@pytest.fixture(scope="module")
def frames(phantom) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (np.asarray(Image.open(phantom / row["image"])), np.asarray(Image.open(phantom / row["mask"])))
        for row in rows(phantom)
    ]


def test_table_names_every_file_and_its_sequence(phantom):
    table = rows(phantom)
    assert table[3] == {"image": "images/s001_f01.png", "mask": "masks/s001_f01.png", "sequence": "s001"}
    assert [row["sequence"] for row in table] == [f"s{i // 2:03d}" for i in range(8)]
    named = {"frames.csv", *(row["image"] for row in table), *(row["mask"] for row in table)}
    assert set(files(phantom)) == named


def test_same_seed_gives_same_bytes_and_another_seed_does_not(phantom, tmp_path):
    draw_phantom(layout(), 42, tmp_path / "again")
    draw_phantom(layout(), 43, tmp_path / "other")
    assert files(tmp_path / "again") == files(phantom)
    other = files(tmp_path / "other")
    assert all(other[row["image"]] != files(phantom)[row["image"]] for row in rows(phantom))


def test_another_white_balance_changes_colours_alone(frames):
    other = draw_sequence(layout(white_balance=(0.7, 1.0, 1.3)), 42, 0)
    for (image, mask), (tinted, same) in zip(frames[:2], other, strict=True):
        assert (mask == same).all()
        assert ((image > 0).any(axis=2) == (tinted > 0).any(axis=2)).all()
        red, green, blue = np.moveaxis(tinted.astype(int) - image, -1, 0)
        assert red.max() <= 0
        assert (green == 0).all()
        assert blue.min() >= 0
        assert red.mean() < -5 < 5 < blue.mean()


def test_longer_data_set_begins_with_the_same_files(phantom, tmp_path):
    draw_phantom(layout(sequences=2), 42, tmp_path)
    shorter, longer = files(tmp_path), files(phantom)
    assert longer.pop("frames.csv").startswith(shorter.pop("frames.csv"))
    assert len(shorter) == 2 * 2 * 2
    assert shorter.items() <= longer.items()


def test_sizes_and_modes(frames):
    for image, mask in frames:
        assert image.shape == (80, 96, 3)
        assert image.dtype == np.uint8
        assert mask.shape == (80, 96)
        assert set(np.unique(mask)) <= {0, 255}


@pytest.mark.parametrize(("width", "height"), [(64, 64), (64, 150), (201, 97)])
def test_any_size_is_honoured(width, height):
    pairs = draw_sequence(layout(width=width, height=height), 1, 0)
    assert [(image.shape, mask.shape) for image, mask in pairs] == [((height, width, 3), (height, width))] * 2


def test_lesions_lie_in_the_visible_area(frames):
    for image, mask in frames:
        black = (image == 0).all(axis=-1)
        assert 0.05 < black.mean() < 0.5
        assert black[0, 0]
        parts, count = ndimage.label(mask)
        for part in range(1, count + 1):
            assert not black[parts == part].any()


def test_half_of_the_frames_are_free_of_lesions(frames):
    empty = [not mask.any() for _, mask in frames]
    assert [sum(empty[i : i + 2]) for i in range(0, 8, 2)] == [1, 1, 1, 1]


@pytest.mark.parametrize(("frame_count", "share"), [(5, 0.2), (5, 0.3), (2, 0.1), (3, 0.0), (4, 0.95)])
def test_lesion_free_share_is_kept_on_average(frame_count, share):
    counts = [len(lesion_free_frames(frame_count, share, generator(0, "test", draw))) for draw in range(2000)]
    assert np.mean(counts) / frame_count == pytest.approx(share, abs=0.01)
    assert max(counts) - min(counts) <= 1


def test_every_other_frame_shows_a_lesion_that_is_not_a_speck():
    pairs = [pair for i in range(8) for pair in draw_sequence(layout(lesion_free=0), 5, i)]
    areas = np.array([(mask > 0).mean() for _, mask in pairs])
    assert areas.min() > 0.002
    assert areas.max() < 0.5


def test_a_lesion_free_frame_is_the_same_scene_without_its_lesions():
    for sequence in range(4):
        ((with_lesion, mask),) = draw_sequence(layout(frames_per_sequence=1, lesion_free=0), 42, sequence)
        ((without, empty),) = draw_sequence(layout(frames_per_sequence=1, lesion_free=0.999), 42, sequence)
        change = np.abs(with_lesion.astype(int) - without).max(axis=-1)
        away = ~ndimage.binary_dilation(mask > 0, iterations=12)
        assert not empty.any()
        assert change[away].max() <= 6
        assert change[mask > 0].mean() > 12


def test_frames_of_a_sequence_are_alike_and_sequences_are_not(frames):
    thumbnails = [
        np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BOX), float).ravel() for image, _ in frames
    ]
    likeness = np.corrcoef(thumbnails)
    sequence = np.arange(8) // 2
    same = likeness[(sequence[:, None] == sequence) & ~np.eye(8, dtype=bool)]
    different = likeness[sequence[:, None] != sequence]
    assert same.min() > 0.9
    assert np.median(different) < 0.8
    assert same.min() > np.quantile(different, 0.9)


def test_colour_alone_does_not_tell_lesions(frames):
    """The mean colour of a lesion lies within the range of colours of the wall around it."""
    for image, mask in frames:
        if mask.any():
            near = ndimage.binary_dilation(mask > 0, iterations=10) & (image > 0).any(axis=-1)
            wall = image[near & (mask == 0)]
            lesion = image[mask > 0].mean(axis=0)
            assert (np.abs(lesion - wall.mean(axis=0)) < 2.5 * wall.std(axis=0)).all()
