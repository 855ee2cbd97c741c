"""Thumbnails: counted as a comparison of all by NumPy counts them, and only reported, never a reason to split."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from tiny import ROOT, crop_stage, run_stage, split_stage

from lesionlab.data import thumbnails
from lesionlab.data.cards import SUBSETS, read_card
from lesionlab.data.crops import crop_frames
from lesionlab.data.readers import read_frames
from lesionlab.data.thumbnails import ALIKE, SIDE, by_subset, count_alike, describe_likeness, likeness, thumbnail
from lesionlab.files import read_index, read_thumbnails


@st.composite
def pictures(draw, most: int = 12):
    """Two piles of thumbnails: noise, constant ones, and noisy copies of one another with other brightness."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    made = [rng.integers(0, 256, (SIDE, SIDE)) for _ in range(draw(st.integers(1, 4)))]
    made += [np.full((SIDE, SIDE), level) for level in draw(st.lists(st.sampled_from([0, 7, 255]), max_size=2))]
    for _ in range(draw(st.integers(0, most))):
        copied = made[rng.integers(len(made))] * rng.uniform(0.2, 1) + rng.uniform(0, 50)
        made.append(np.clip(copied + rng.normal(0, rng.uniform(0, 12), (SIDE, SIDE)), 0, 255))
    both = np.array(made).astype("uint8")[rng.permutation(len(made))]
    cut = draw(st.integers(0, len(made)))
    return both[:cut], both[cut:]


def by_numpy(first: np.ndarray, second: np.ndarray) -> list[float]:
    """The correlation of each pair that has one."""
    varied = [[picture.ravel() for picture in pile if np.ptp(picture)] for pile in (first, second)]
    return [np.corrcoef(a, b)[0, 1] for a, b in itertools.product(*varied)]


@pytest.mark.filterwarnings("error")
@given(pictures(), st.sampled_from([1, 5, 1 << 20]))
def test_counts_are_those_of_a_comparison_of_all(piles, block_pairs):
    expected = by_numpy(*piles)
    assume(all(abs(correlation - ALIKE) > 1e-9 for correlation in expected))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thumbnails, "BLOCK_PAIRS", block_pairs)
        alike, highest = count_alike(*piles)
    assert alike == sum(correlation >= ALIKE for correlation in expected)
    assert highest == (pytest.approx(max(expected), abs=1e-12) if expected else None)


def test_brightness_and_contrast_do_not_matter_and_the_same_picture_correlates_at_one():
    picture = np.random.default_rng(0).integers(0, 120, (1, SIDE, SIDE), dtype="uint8")
    assert count_alike(picture, picture) == (1, pytest.approx(1))
    assert count_alike(picture, picture * 2 + 15) == (1, pytest.approx(1))
    assert count_alike(picture, 255 - picture) == (0, pytest.approx(-1))


def test_white_pictures_are_added_exactly():
    """The largest sum of products that float32 must hold to the last unit."""
    nearly = np.full((2, SIDE, SIDE), 255, "uint8")
    nearly[0, 0, 0], nearly[1, -1, -1] = 254, 254
    assert count_alike(nearly[:1], nearly[1:]) == (0, pytest.approx(-1 / (SIDE**2 - 1), abs=1e-15))


def test_a_frame_of_one_grey_level_has_no_correlation():
    grey = np.full((3, SIDE, SIDE), 9, "uint8")
    assert count_alike(grey, grey) == (0, None)
    assert count_alike(grey, grey[:0]) == (0, None)


def test_a_thumbnail_is_the_means_of_the_picture():
    pixels = np.random.default_rng(1).integers(0, 256, (SIDE * 3, SIDE * 5), dtype="uint8")
    means = pixels.reshape(SIDE, 3, SIDE, 5).mean(axis=(1, 3))
    np.testing.assert_allclose(thumbnail(Image.fromarray(pixels)), means, atol=1)


# Subsets


@st.composite
def subsets(draw):
    """Crops of frames, the subset of each crop, and the frames' thumbnails, of which few pictures are many."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    frames = draw(st.integers(1, 12))
    frame = np.repeat([f"f{number}" for number in rng.permutation(frames)], rng.integers(1, 4, frames))
    shown = rng.integers(0, 256, (6, SIDE, SIDE), dtype="uint8")[rng.integers(0, 6, frames)]
    index = pd.DataFrame({"frame": frame})
    return index, pd.Series(rng.choice([*SUBSETS, "none"], len(frame))), shown


@given(subsets())
def test_pairs_lie_across_subsets_and_frames_in_none_do_not_count(drawn):
    index, subset, shown = drawn
    order = list(dict.fromkeys(index["frame"]))
    alike, train_test = 0, []
    for a, b in itertools.combinations(SUBSETS, 2):
        sides = [sorted({order.index(frame) for frame in index["frame"][subset == name]}) for name in (a, b)]
        found = [np.array_equal(shown[i], shown[j]) for i, j in itertools.product(*sides)]
        alike += sum(found)
        train_test += found if (a, b) == ("train", "test") else []
    description = describe_likeness(by_subset(index, subset, shown))
    assert description["alike_pairs_across_subsets"] == alike
    highest = description["highest_correlation_train_test"]
    assert (highest is None) == (not train_test)
    assert not train_test or (highest > ALIKE) == any(train_test)


def test_too_many_pairs_are_not_compared_and_it_is_said(monkeypatch):
    shown = np.random.default_rng(2).integers(0, 256, (6, SIDE, SIDE), dtype="uint8")
    piles = dict(zip(SUBSETS, (shown[:3], shown[3:5], shown[5:]), strict=True))  # 3 x 2, 3 x 1 and 2 x 1 pairs
    monkeypatch.setattr(thumbnails, "MOST_PAIRS", 11)
    description = describe_likeness(piles)
    assert description["alike_pairs_across_subsets"] == 0
    most = description["highest_correlation_train_test"]
    expected = f"0 pairs of thumbnails across subsets correlate at 0.99 or more (highest train/test: {most:.3f})"
    assert likeness(description) == expected
    monkeypatch.setattr(thumbnails, "MOST_PAIRS", 10)
    description = describe_likeness(piles)
    assert set(description.values()) == {None}
    assert likeness(description) == "thumbnails not compared: more than 10 pairs of frames across subsets"


def test_without_pairs_of_train_and_test_there_is_no_highest():
    description = describe_likeness({"train": np.zeros((0, SIDE, SIDE), "uint8"), "test": np.eye(SIDE)[None] > 0})
    assert description == {"alike_pairs_across_subsets": 0, "highest_correlation_train_test": None}
    assert likeness(description).endswith("(highest train/test: no pair)")


# The stages


def test_the_split_stage_reports_a_copy_of_another_frame_and_splits_as_before(tiny_project):
    assert crop_stage().returncode == 0
    ended = split_stage()
    before, table = json.loads(Path("metrics/split.json").read_text()), Path("data/split.csv").read_bytes()
    assert before["proof"]["alike_pairs_across_subsets"] == 0
    assert 0 < before["proof"]["highest_correlation_train_test"] < ALIKE
    assert ended.stdout.strip() == (
        "split: "
        + ", ".join(f"{before['subsets'][name]['crops']} {name}" for name in SUBSETS)
        + " crops; protocol group; 0 pairs of thumbnails across subsets correlate at 0.99 or more "
        f"(highest train/test: {before['proof']['highest_correlation_train_test']:.3f})"
    )
    index, shown = read_index(Path("data/crops")), np.load("data/crops/thumbnails.npy")
    subset = pd.read_csv("data/split.csv")["subset"]
    numbers = pd.factorize(index["frame"])[0]
    train, test = (numbers[subset == name][0] for name in ("train", "test"))
    shown[train] = shown[test]
    np.save("data/crops/thumbnails.npy", shown)
    assert split_stage().returncode == 0
    after = json.loads(Path("metrics/split.json").read_text())
    assert after["proof"]["alike_pairs_across_subsets"] == 1
    assert after["proof"]["highest_correlation_train_test"] == 1.0
    assert after["group_disjoint"] is True
    assert Path("data/split.csv").read_bytes() == table


def test_thumbnails_of_other_frames_are_refused(tiny_project):
    assert crop_stage().returncode == 0
    path = Path("data/crops/thumbnails.npy")
    np.save(path, np.load(path)[1:])
    expected = "error: data/crops/thumbnails.npy: has other frames than index.csv; run dvc repro --force crop"
    assert split_stage().stderr.strip() == expected
    path.unlink()
    expected = "error: data/crops/thumbnails.npy: not found; run the stage that writes it (dvc repro crop)"
    assert split_stage().stderr.strip() == expected
    assert not Path("data/split.csv").exists()


def test_an_external_data_set_is_compared_with_all_frames_of_the_one_that_trains(tiny_project):
    assert crop_stage().returncode == 0
    Path("data/crops").rename("data/trains")
    index = read_index(Path("data/trains"))
    frames = index["frame"].nunique()
    rng = np.random.default_rng(3)
    external = Path("data/crops")
    external.mkdir()
    hashes = dict(zip(index["frame"].unique(), rng.integers(0, 2**63, frames), strict=True))
    index.assign(hash=index["frame"].map(lambda name: f"{int(hashes[name]):016x}")).to_csv(
        external / "index.csv", index=False
    )
    for file in ("images.npy", "reading.json"):
        shutil.copyfile(Path("data/trains") / file, external / file)
    shown = rng.integers(0, 256, (frames, SIDE, SIDE), dtype="uint8")
    shown[5] = read_thumbnails(Path("data/trains"), index)[9]
    np.save(external / "thumbnails.npy", shown)
    paths = ("--crops", "data/crops", "--split", "data/split.csv", "--metrics", "metrics/split.json")
    ended = run_stage("split", *paths, "--training", "data/trains", "--set", "split.protocol=external")
    assert ended.returncode == 0, ended.stderr
    proof = json.loads(Path("metrics/split.json").read_text())["proof"]
    assert proof["near_duplicates_of_training_frames"] == 0
    assert (proof["alike_pairs_across_subsets"], proof["highest_correlation_train_test"]) == (1, 1.0)


# Real data


@pytest.mark.real
@pytest.mark.parametrize(
    ("dataset", "folder", "highest"), [("kvasir-seg", "Kvasir-SEG", 0.98), ("cvc-clinicdb", "cvc-clinicdb", 0.97)]
)
def test_frames_of_two_groups_are_seldom_alike(shared_data, tiny_params, monkeypatch, dataset, folder, highest):
    monkeypatch.chdir(ROOT)
    card = read_card(dataset)
    frames = read_frames(card, shared_data / folder)[::4]
    results = [crops for _, crops in crop_frames(frames, card.classes, tiny_params.crop, 32, 42)]
    shown = np.stack([crops.thumbnail for crops in results])
    groups = np.array([crops.rows[0]["group"] for crops in results])
    first = np.isin(groups, np.unique(groups)[::2])
    alike, most = count_alike(shown[first], shown[~first])
    assert alike == 0
    assert 0.9 < most < highest
