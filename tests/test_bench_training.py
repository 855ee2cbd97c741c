"""The training rows of `make bench`: counted work against published and hand-made figures, and a row that runs."""

import numpy as np
import pytest
from tiny_networks import tiny_architecture

from benchmarks import training
from benchmarks.training import (
    VGG16,
    Case,
    held_bytes,
    multiply_adds,
    plain_work,
    prefix_work,
    suffix_work,
    sweep_and_parts,
    train,
    train_in_parts,
    train_plainly,
)
from lesionlab.models.networks import build_network
from lesionlab.training.fit import Task


def test_vgg16_multiplies_what_is_published():
    """15.47 G multiply-adds at 224 px, of which 123.6 M in the three dense layers that are not part of the backbone."""
    network = build_network(VGG16.model_copy(update={"image_size": 224}), 1)
    backbone = sum(multiply_adds(layer) for layer in network.layers if layer.name.startswith("block"))
    assert backbone == 15_470_264_320 - 123_633_664


def a_case(blocks: int, epochs: int = 2, train_crops: int = 32, val_crops: int = 16) -> Case:
    count = train_crops + val_crops
    images = np.random.default_rng(0).integers(256, size=(count, 32, 32, 3), dtype="uint8")
    task = Task(np.arange(count) % 2, np.arange(train_crops), np.arange(train_crops, count), 2)
    return Case(tiny_architecture("vgg16", dense=0, dropout=0.0), images, task, blocks, epochs, 1)


def test_work_is_counted_layer_by_layer():
    """Block 5 at 32 px: three convolutions of 512 to 512 channels on 2 x 2 cells; the logits: 512 to 2."""
    convolution, logits = 2 * 2 * 9 * 512 * 512, 512 * 2
    suffix = 3 * convolution + logits
    backward = 2 * suffix - convolution
    case = a_case(1)
    whole = prefix_work(case) // 48 + suffix
    assert suffix_work(case) == 2 * (32 * (suffix + backward) + 16 * suffix)
    assert plain_work(case) == 2 * (32 * (whole + backward) + 16 * whole)
    assert prefix_work(a_case(0)) == 48 * (whole - logits)
    assert prefix_work(a_case(1, epochs=9)) == prefix_work(case)


@pytest.mark.slow
def test_both_ways_are_timed(tmp_path):
    case = a_case(0, epochs=3)
    assert train_plainly(case) > 0
    assert train(case, tmp_path) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["prefix"]


@pytest.mark.slow
def test_a_sweep_costs_more_than_its_parts_by_the_frozen_passes_alone(tmp_path):
    """Upwards each run computes its own; downwards, in the same folder, nothing is left to compute."""
    cases = [a_case(blocks, epochs=1) for blocks in (1, 2)]
    whole, parts = sweep_and_parts(cases, tmp_path)
    assert 0 < parts < whole
    assert len(list((tmp_path / "prefix").glob("*/done.npy"))) == 2
    frozen = [train_in_parts(case, tmp_path)[0] for case in reversed(cases)]
    assert max(frozen) < whole - parts


def test_a_sweep_over_all_blocks_has_a_row():
    """With five blocks nothing is frozen. By hand: the passes of the others beyond the longest, over all work."""
    cases = [a_case(blocks) for blocks in range(1, 6)]
    row = training._upwards_row({"upwards": 11.0, "parts": 10.0}, cases)
    trained, passes = sum(map(suffix_work, cases)), list(map(prefix_work, cases))
    assert passes == sorted(passes, reverse=True)
    assert passes[-1] == 0
    assert row.ratio == pytest.approx(1.1)
    assert row.floor == pytest.approx((trained + sum(passes)) / (trained + passes[0]))
    assert suffix_work(cases[4]) == plain_work(cases[4])


def test_held_bytes_grow_by_what_a_crop_is_known_by():
    """Three of four crops train: row number, order and version of each; of the fourth row number, two probabilities."""
    assert held_bytes(8, 1) - held_bytes(4, 1) == 8 * (4 + 4 + 3 * 2 + 1 * 2)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_crops(monkeypatch):
    monkeypatch.setattr(training, "ROUNDS", 1)
    row = training.memory_row(1)
    assert 300 < row.plain < 3000
    assert row.ratio == row.ours / row.plain <= row.at_most
    assert 1 < row.floor < row.at_most
