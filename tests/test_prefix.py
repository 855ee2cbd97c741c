"""The prefix cache: bit for bit what training without it gives, and what happens when it is changed from outside."""

import json
import mmap
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import keras
import ml_dtypes
import numpy as np
import pytest
from tiny import ROOT
from tiny_networks import BATCH, lively, tiny_architecture, tiny_crops, tiny_inputs, tiny_task, train, training_params

from lesionlab.errors import InputError
from lesionlab.files import repository_root
from lesionlab.models.backbones import find_backbone
from lesionlab.models.networks import build_network, prefix_of
from lesionlab.training import prefix as prefix_module
from lesionlab.training.prefix import PLAIN, Inputs, array_digest, cache_folder

# Backbone, unfrozen blocks, augmented copies (None without augmentation, 0 anew at every epoch), normalization.
CASES = [
    pytest.param("vgg16", 1, None, "frozen", marks=pytest.mark.slow),
    pytest.param("vgg16", 1, 2, "frozen", marks=pytest.mark.slow),
    pytest.param("mobilenetv2_0.35", 1, None, "frozen", marks=pytest.mark.slow),
    pytest.param("mobilenetv2_0.35", 1, 2, "frozen", marks=pytest.mark.slow),
    pytest.param("mobilenetv2_0.35", 1, 2, "trained", marks=pytest.mark.slow),
    pytest.param("mobilenetv2_0.35", 1, 0, "frozen", marks=pytest.mark.slow),
    pytest.param("resnet50", 1, None, "frozen", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("backbone", "blocks", "copies", "normalization"), CASES)
def test_cached_uncached_and_end_to_end_training_give_the_same_bits(tmp_path, backbone, blocks, copies, normalization):
    """The boundaries of MobileNetV2 and ResNet50 lie after an addition; end to end is one flat model, no prefix."""
    images, labels = tiny_crops(28)
    task = tiny_task(labels, 20)
    augment = {"finetune__augment": copies is not None, "augment__copies": copies or 0}
    params = training_params(finetune__epochs=2, finetune__batch_normalization=normalization, **augment)
    architecture = tiny_architecture(backbone, dense=0)
    start = lively(build_network(architecture, params.seed), architecture)
    cached, result = train(architecture, blocks, params, images, task, cache=tmp_path)
    uncached = [{"cache": None}] if backbone != "resnet50" else []  # as slow as it is, and never seen to differ
    for how in (*uncached, {"cache": None, "whole": True}):
        other, other_result = train(architecture, blocks, params, images, task, **how)
        for a, b in zip(cached.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(result.val_probabilities, other_result.val_probabilities)
        assert result.history.equals(other_result.history)
    trained = {weight.path for weight in cached.trainable_weights}
    assert len(trained) >= 4
    trained |= {  # statistics move, though no gradient moves them
        weight.path
        for layer in cached.layers
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        for weight in layer.weights
    }
    assert any("moving" in path for path in trained) == (normalization == "trained")
    for old, weight in zip(start.weights, cached.weights, strict=True):
        if "seed" not in weight.path:
            assert np.array_equal(old, weight) == (weight.path not in trained), weight.path


def test_crops_are_mixed_to_the_same_bits_with_and_without_the_cache(tmp_path):
    images, labels = tiny_crops(28)
    params = training_params(finetune__epochs=2, training__mixup=0.4)
    run = tiny_architecture("mobilenet_0.25"), 1, params, images, tiny_task(labels, 20)
    (cached, result), (other, other_result) = train(*run, cache=tmp_path), train(*run, cache=None)
    for a, b in zip(cached.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert result.history.equals(other_result.history)


@pytest.fixture(scope="module")
def network():
    return lively(build_network(tiny_architecture("mobilenet_0.25"), 1), tiny_architecture("mobilenet_0.25"))


@pytest.fixture(scope="module")
def images():
    return tiny_crops(20)[0]


@pytest.fixture
def make(network, images, tmp_path):
    """A function that gives Inputs on one cache folder, with changes."""

    def make_inputs(blocks: int = 1, of=None, params=None, crops=None, **changes: object) -> Inputs:
        model = of or network
        prefix = prefix_of(model, tiny_architecture("mobilenet_0.25").boundary(blocks))
        changes = {"cache": tmp_path / "cache"} | changes
        chosen = images if crops is None else crops
        return tiny_inputs(chosen, "tf", params or training_params(), prefix=prefix, **changes)

    return make_inputs


@pytest.fixture
def computed(monkeypatch) -> list[tuple[int, ...]]:
    """The rows of every batch that went through a prefix to fill a cache."""
    batches = []
    original = Inputs._activations

    def counted(self, rows, version):
        batches.append(tuple(rows.tolist()))
        return original(self, rows, version)

    monkeypatch.setattr(Inputs, "_activations", counted)
    return batches


def entries(folder) -> list:
    return sorted(path for path in (folder / "cache").iterdir() if path.is_dir())


ROWS = np.arange(20)
PLAIN_ROWS = np.full(20, PLAIN)


def read_all(inputs: Inputs) -> np.ndarray:
    return np.concatenate([inputs.read(ROWS[k : k + BATCH], PLAIN_ROWS[k : k + BATCH]) for k in range(0, 20, BATCH)])


def test_cached_values_are_those_that_are_computed_anew(make):
    cached, direct = make(), make(cache=None)
    cached.prepare(ROWS, [PLAIN, 0, 1], "test")
    for version in (PLAIN, 0, 1):
        versions = np.full(BATCH, version)
        np.testing.assert_array_equal(cached.read(ROWS[:BATCH], versions), direct.read(ROWS[:BATCH], versions))
    mixed = np.array([0, 1, PLAIN, 1, 0, PLAIN, 0, 1])
    np.testing.assert_array_equal(cached.read(ROWS[3:11], mixed), direct.read(ROWS[3:11], mixed))
    assert not np.array_equal(cached.read(ROWS[:1], np.array([0])), cached.read(ROWS[:1], np.array([1])))


def test_what_was_not_prepared_is_computed_at_every_read(make):
    """A new augmentation at every epoch has versions that the cache does not know."""
    cached, direct = make(), make(cache=None)
    cached.prepare(ROWS[:5], [PLAIN, 0], "test")
    for rows, version in ((ROWS[:BATCH], 0), (ROWS[8:16], 0), (ROWS[8:16], PLAIN), (ROWS[:BATCH], 3)):
        versions = np.full(BATCH, version)
        np.testing.assert_array_equal(cached.read(rows, versions), direct.read(rows, versions))
    mixed = np.array([0, 3, PLAIN, 1, 0, PLAIN, 0, 1])
    np.testing.assert_array_equal(cached.read(ROWS[:BATCH], mixed), direct.read(ROWS[:BATCH], mixed))


def test_a_second_run_computes_nothing(make, computed):
    make().prepare(ROWS, [PLAIN, 0], "test")
    assert sorted(sum(computed, ())) == sorted([*ROWS, *ROWS])
    computed.clear()
    again = make()
    again.prepare(ROWS, [PLAIN, 0], "test")
    again.prepare(ROWS[::-1], [0], "test")
    assert computed == []


def test_only_the_missing_rows_are_computed(make, computed):
    make().prepare(ROWS[:6], [PLAIN], "test")
    computed.clear()
    make().prepare(ROWS[4:9], [PLAIN], "test")
    assert computed == [(6, 7, 8)]


def test_whatever_changes_the_values_changes_the_entry(make, images, network, tmp_path):
    make().prepare(ROWS[:1], [PLAIN], "test")
    assert len(entries(tmp_path)) == 1
    other_crops = images.copy()
    other_crops[7, 3, 3, 1] += 1
    changed = {
        "boundary": make(blocks=2),
        "weights": make(of=build_network(tiny_architecture("mobilenet_0.25"), 2)),
        "crops": make(crops=other_crops),
        "preprocessing": make(),
        "environment": make(),
    }
    changed["cache_dtype"] = make(cache_dtype="float16")
    changed["preprocessing"].identity["preprocessing"] = "caffe"
    changed["environment"].identity["environment"] = {"keras": "4.0"}
    for number, (reason, inputs) in enumerate(changed.items(), start=2):
        inputs.prepare(ROWS[:1], [PLAIN], "test")
        assert len(entries(tmp_path)) == number, reason
    make().prepare(ROWS[:1], [PLAIN], "test")
    assert len(entries(tmp_path)) == 7


def test_seed_version_and_augmentation_change_the_entry_of_augmented_crops_alone(make, tmp_path):
    runs = [training_params(), training_params(seed=1), training_params(augment__zoom=0.05)]
    for number, params in enumerate(runs, start=1):
        make(params=params).prepare(ROWS[:1], [PLAIN, 0], "test")
        assert len(entries(tmp_path)) == 1 + number
    make(params=training_params(augment__copies=7)).prepare(ROWS[:1], [0], "test")
    assert len(entries(tmp_path)) == 4
    make().prepare(ROWS[:1], [1], "test")
    assert len(entries(tmp_path)) == 5


def test_the_head_does_not_change_the_entry(make, network, tmp_path):
    make().prepare(ROWS[:1], [PLAIN], "test")
    other_head = build_network(tiny_architecture("mobilenet_0.25", dense=3), 1)
    for layer in prefix_of(network, "conv_pw_11_relu").layers:
        other_head.get_layer(layer.name).set_weights(layer.get_weights())
    make(of=other_head).prepare(ROWS[:1], [PLAIN], "test")
    assert len(entries(tmp_path)) == 1


def test_an_entry_says_what_it_holds(make, tmp_path):
    make().prepare(ROWS[:1], [0], "test")
    identity = json.loads((entries(tmp_path)[0] / "identity.json").read_text())
    assert identity["boundary"] == "conv_pw_11_relu"
    assert identity["augmentation"]["version"] == 0
    assert {"weights", "crops", "preprocessing", "batch_size", "environment"} <= set(identity)


@pytest.mark.parametrize("what", ["everything", "the record", "the values"])
def test_the_cache_may_be_deleted_between_runs(make, computed, tmp_path, what):
    first = make()
    first.prepare(ROWS, [PLAIN], "test")
    expected = read_all(first)
    folder = entries(tmp_path)[0]
    if what == "everything":
        shutil.rmtree(tmp_path / "cache")
    else:
        (folder / {"the record": "done.npy", "the values": "activations.npy"}[what]).unlink()
    computed.clear()
    again = make()
    again.prepare(ROWS, [PLAIN], "test")
    assert sorted(sum(computed, ())) == list(ROWS)
    np.testing.assert_array_equal(read_all(again), expected)


def test_the_cache_may_be_deleted_while_it_is_used(make, tmp_path):
    """A run that has opened its entry goes on; what it records later must not vouch for values that are gone."""
    direct = make(cache=None)
    running = make()
    running.prepare(ROWS[:10], [PLAIN], "test")
    shutil.rmtree(tmp_path / "cache")
    np.testing.assert_array_equal(running.read(ROWS[:5], PLAIN_ROWS[:5]), direct.read(ROWS[:5], PLAIN_ROWS[:5]))
    running.prepare(ROWS, [PLAIN], "test")
    np.testing.assert_array_equal(read_all(running), read_all(direct))
    later = make()
    later.prepare(ROWS, [PLAIN], "test")
    np.testing.assert_array_equal(read_all(later), read_all(direct))


def test_another_run_may_fill_the_entry_again_after_a_deletion(make, tmp_path):
    direct = make(cache=None)
    running = make()
    running.prepare(ROWS[:10], [PLAIN], "test")
    shutil.rmtree(tmp_path / "cache")
    other = make()
    other.prepare(ROWS[:3], [PLAIN], "test")
    running.prepare(ROWS, [PLAIN], "test")
    later = make()
    later.prepare(ROWS, [PLAIN], "test")
    for inputs in (running, later):
        np.testing.assert_array_equal(read_all(inputs), read_all(direct))


def test_an_interrupted_fill_is_done_again(make, monkeypatch, tmp_path):
    """The process ends in the second batch: values of the first were written, nothing vouches for them."""
    original = Inputs._activations
    broken = make()

    def fails_later(self, rows, version):
        if self is broken and rows[0] > 0:
            raise KeyboardInterrupt
        return original(self, rows, version)

    monkeypatch.setattr(Inputs, "_activations", fails_later)
    with pytest.raises(KeyboardInterrupt):
        broken.prepare(ROWS, [PLAIN], "test")
    folder = entries(tmp_path)[0]
    assert not (folder / "done.npy").exists()
    np.lib.format.open_memmap(folder / "activations.npy", "r+")[:] = np.nan
    again = make()
    again.prepare(ROWS, [PLAIN], "test")
    np.testing.assert_array_equal(read_all(again), read_all(make(cache=None)))


def test_a_long_fill_is_recorded_now_and_then(make, monkeypatch, computed):
    monkeypatch.setattr(prefix_module, "SECONDS_BETWEEN_COMMITS", 0.0)
    counted, broken = Inputs._activations, make()

    def fails_later(self, rows, version):
        if self is broken and rows[0] >= 16:
            raise KeyboardInterrupt
        return counted(self, rows, version)

    monkeypatch.setattr(Inputs, "_activations", fails_later)
    with pytest.raises(KeyboardInterrupt):
        broken.prepare(ROWS, [PLAIN], "test")
    computed.clear()
    again = make()
    again.prepare(ROWS, [PLAIN], "test")
    assert computed == [(16, 17, 18, 19)]
    np.testing.assert_array_equal(read_all(again), read_all(make(cache=None)))


def test_two_runs_that_fill_one_entry_at_once_add_up(make, computed, tmp_path):
    first, second = make(), make()
    first._entry(PLAIN), second._entry(PLAIN)  # both have seen an empty entry
    first.prepare(ROWS[:12], [PLAIN], "test")
    second.prepare(ROWS[8:], [PLAIN], "test")
    computed.clear()
    third = make()
    third.prepare(ROWS, [PLAIN], "test")
    assert computed == []
    np.testing.assert_array_equal(read_all(third), read_all(make(cache=None)))


SWEEP = [
    pytest.param("mobilenet_0.25", "float32"),
    pytest.param("mobilenet_0.25", "mixed_bfloat16"),
    pytest.param("vgg16", "float32", marks=pytest.mark.slow),
    pytest.param("mobilenetv2_0.35", "float32", marks=pytest.mark.slow),
    pytest.param("mobilenetv2_0.35", "mixed_bfloat16", marks=pytest.mark.slow),
    pytest.param("resnet50", "float32", marks=pytest.mark.slow),
]


@pytest.fixture
def policy():
    """A function that sets Keras's policy until the test ends."""
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy("float32")


@pytest.mark.slow
@pytest.mark.parametrize("cache_dtype", ["float32", "bfloat16"])
def test_mixed_precision_gives_the_same_bits_with_and_without_the_cache(tmp_path, policy, cache_dtype):
    """What a mixed network computes at its boundary is bfloat16 already: storing it as such rounds nothing."""
    policy("mixed_bfloat16")
    images, labels = tiny_crops(28)
    architecture, params = tiny_architecture("mobilenet_0.25", dense=0), training_params(finetune__epochs=2)
    runs = [
        train(architecture, 1, params, images, tiny_task(labels, 20), **how)
        for how in ({"cache": tmp_path, "cache_dtype": cache_dtype}, {"cache": None})
    ]
    for a, b in zip(*(network.get_weights() for network, _ in runs), strict=True):
        np.testing.assert_array_equal(a, b)
    assert runs[0][1].history.equals(runs[1][1].history)


@pytest.mark.parametrize(("backbone", "dtype"), SWEEP)
def test_a_deeper_boundary_is_computed_on_from_shallower_ones_bit_for_bit(
    tmp_path, monkeypatch, policy, backbone, dtype
):
    """unfrozen_blocks 4 to 0: each run finds the one before it, whatever its head; the last finds parts of two."""
    policy(dtype)
    architecture = tiny_architecture(backbone)
    network = lively(build_network(architecture, 1), architecture)
    images, ends = tiny_crops(20)[0], find_backbone(backbone).block_ends
    used = []
    from_entry, from_pixels = Inputs._activations_from, Inputs._activations

    def noted_from_entry(self, source, rows):
        used.append((source.identity["boundary"], len(rows)))
        return from_entry(self, source, rows)

    def noted_from_pixels(self, rows, version):
        used.append(("pixels", len(rows)))
        return from_pixels(self, rows, version)

    monkeypatch.setattr(Inputs, "_activations_from", noted_from_entry)
    monkeypatch.setattr(Inputs, "_activations", noted_from_pixels)

    def inputs(blocks: int, cache) -> Inputs:
        prefix = prefix_of(network, architecture.boundary(blocks))
        params = training_params()
        return tiny_inputs(images, architecture.preprocessing, params, prefix=prefix, cache=cache, block_ends=ends)

    def fill(blocks: int, rows: np.ndarray) -> list[tuple[str, int]]:
        used.clear()
        inputs(blocks, tmp_path / "cache").prepare(rows, [PLAIN, 0], "test")
        return used[: len(used) // 2]  # both versions alike

    assert fill(4, ROWS[:16]) == [("pixels", 8), ("pixels", 8)]
    assert fill(3, ROWS[:16]) == [(ends[0], 8), (ends[0], 8)]
    assert fill(2, ROWS[:5]) == [(ends[1], 5)]
    assert fill(0, ROWS) == [(ends[2], 5), (ends[1], 8), (ends[1], 3), ("pixels", 4)]
    assert fill(0, ROWS) == []
    found, direct = inputs(0, tmp_path / "cache"), inputs(0, None)
    for version in (PLAIN, 0):
        for start in range(0, 20, BATCH):
            rows = ROWS[start : start + BATCH]
            versions = np.full(len(rows), version)
            np.testing.assert_array_equal(found.read(rows, versions), direct.read(rows, versions))
    assert np.ptp(found.read(ROWS[:8], PLAIN_ROWS[:8])) > 0


def test_other_weights_further_down_do_not_hide_a_shallower_entry(make, computed):
    """The digest of a boundary covers what lies before it alone."""
    ends = find_backbone("mobilenet_0.25").block_ends
    make(blocks=3).prepare(ROWS, [PLAIN], "test")
    architecture = tiny_architecture("mobilenet_0.25")
    other = lively(build_network(architecture, 1), architecture)
    layer = other.get_layer("conv_pw_11")
    layer.set_weights([weight + 1 for weight in layer.get_weights()])
    computed.clear()
    deeper = make(of=other, block_ends=ends)
    deeper.prepare(ROWS, [PLAIN], "test")
    assert computed == []
    np.testing.assert_array_equal(read_all(deeper), read_all(make(of=other, cache=None)))
    layer = other.get_layer("conv_pw_2")
    layer.set_weights([weight + 1 for weight in layer.get_weights()])
    make(of=other, block_ends=ends).prepare(ROWS, [PLAIN], "test")
    assert sorted(sum(computed, ())) == list(ROWS)


@pytest.mark.parametrize(("dtype", "type_"), [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)])
def test_half_precision_takes_half_the_space_and_rounds_once(make, tmp_path, dtype, type_):
    full, half = make(), make(cache_dtype=dtype)
    for inputs in (full, half):
        inputs.prepare(ROWS, [PLAIN], "test")
    sizes = sorted((folder / "activations.npy").stat().st_size for folder in entries(tmp_path))
    assert sizes[0] - 128 == (sizes[1] - 128) / 2  # 128 bytes of header
    again = make(cache_dtype=dtype)
    again.prepare(ROWS, [PLAIN], "test")
    for inputs in (half, again):
        np.testing.assert_array_equal(read_all(inputs), read_all(full).astype(type_).astype("float32"))
    assert (read_all(half) != read_all(full)).any()


def test_rounded_activations_are_never_computed_on(make, computed):
    """What a run gets must not depend on what the cache holds."""
    ends = find_backbone("mobilenet_0.25").block_ends
    make(blocks=3, cache_dtype="bfloat16").prepare(ROWS, [PLAIN], "test")
    computed.clear()
    make(cache_dtype="bfloat16", block_ends=ends).prepare(ROWS, [PLAIN], "test")
    assert sorted(sum(computed, ())) == list(ROWS)


def test_activations_that_float16_cannot_hold_are_refused(make, monkeypatch):
    monkeypatch.setattr(
        Inputs, "_activations", lambda self, rows, version: np.full((len(rows), 2, 2, 128), 7e4, "float32")
    )
    with pytest.raises(InputError, match=r"conv_pw_11_relu reach 7e\+04, .*set training\.cache_dtype to bfloat16"):
        make(cache_dtype="float16").prepare(ROWS, [PLAIN], "test")
    make(cache_dtype="bfloat16").prepare(ROWS, [PLAIN], "test")


def resident(path) -> int:
    """Bytes of a mapped file that this process holds in memory, as Linux counts them."""
    total, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            here = line.endswith(str(path))
        elif here and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells what is resident")
def test_mapped_files_do_not_stay_in_memory(make, tmp_path):
    np.save(tmp_path / "crops.npy", np.tile(tiny_crops(20)[0], (40, 1, 1, 1)))
    crops = np.load(tmp_path / "crops.npy", mmap_mode="r")
    touched = crops.sum()
    assert resident(tmp_path / "crops.npy") > 2e6
    assert len(array_digest(crops)) == 32
    inputs = make(crops=crops)
    rows = np.arange(len(crops))
    inputs.prepare(rows, [PLAIN], "test")
    for start in range(0, len(rows), BATCH):
        inputs.read(rows[start : start + BATCH], np.full(BATCH, PLAIN))
    assert resident(tmp_path / "crops.npy") < mmap.PAGESIZE * 64
    values = inputs._entry(PLAIN).folder / "activations.npy"
    assert values.stat().st_size > 1.6e6
    assert resident(values) < mmap.PAGESIZE * 64
    assert crops.sum() == touched
    np.testing.assert_array_equal(
        inputs.read(rows[780:788], PLAIN_ROWS[:8]), inputs.read(rows[0:8] + 20, PLAIN_ROWS[:8])
    )


def test_a_full_disk_is_noticed_before_it_is_filled(make, monkeypatch, tmp_path):
    """Twenty crops of 2 x 2 x 128 float32 are 40960 bytes."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=40959))
    with pytest.raises(InputError, match=r"0\.0 GiB are free"):
        make().prepare(ROWS, [PLAIN], "test")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=40960))
    make().prepare(ROWS, [PLAIN], "test")


def test_a_cache_that_does_not_fit_says_its_size_and_what_to_set(monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=72 * 2**30))
    with pytest.raises(InputError) as caught:
        prefix_module._require_space(tmp_path / "cache", 320_000 * 14 * 14 * 1024 * 4)
    assert str(caught.value).startswith(f"{tmp_path / 'cache'}: ")
    for wanted in ("need 239.3 GiB more, and 72.0 GiB are free", "augment.copies", "training.cache_dtype to float16",
                   "training.prefix_cache to false"):  # fmt: skip
        assert wanted in str(caught.value)


@pytest.mark.slow
def test_two_processes_that_fill_one_entry_give_right_values(make, computed, tmp_path):
    program = """
import sys
from pathlib import Path
import numpy as np
from tiny_networks import lively, tiny_architecture, tiny_crops, tiny_inputs, training_params
from lesionlab.models.networks import build_network, prefix_of
from lesionlab.training.prefix import PLAIN
architecture = tiny_architecture("mobilenet_0.25")
network = lively(build_network(architecture, 1), architecture)
prefix = prefix_of(network, architecture.boundary(1))
inputs = tiny_inputs(tiny_crops(20)[0], "tf", training_params(), prefix=prefix, cache=Path(sys.argv[1]))
first, last = int(sys.argv[2]), int(sys.argv[3])
for row in range(first, last):
    inputs.prepare(np.array([row]), [PLAIN, 0], "test")
"""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PYTHONDONTWRITEBYTECODE": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "cache"), str(first), str(last)],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for first, last in ((0, 14), (6, 20))
    ]  # fmt: skip
    for process in running:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    inputs, direct = make(), make(cache=None)
    inputs.prepare(ROWS, [PLAIN, 0], "test")
    assert computed == []
    np.testing.assert_array_equal(read_all(inputs), read_all(direct))


def test_the_oldest_entries_go_when_the_cache_is_full(make, tmp_path):
    runs = [make(params=training_params(seed=seed)) for seed in range(4)]
    folders = []
    for age, inputs in zip((40, 10, 30, 20), runs, strict=True):
        inputs.prepare(ROWS, [0], "test")
        folder = inputs._entry(0).folder
        folders.append(folder)
        os.utime(folder, (time.time() - age, time.time() - age))
    size = sum(file.stat().st_blocks * 512 for file in folders[0].iterdir())
    newest = make(params=training_params(seed=4), cache_bytes=3.5 * size)
    newest.prepare(ROWS, [0], "test")
    assert {folder for folder in folders if folder.exists()} == {folders[1], folders[3]}
    assert newest._entry(0).folder.exists()


def test_entries_in_use_stay_however_small_the_limit(make, tmp_path):
    make().prepare(ROWS, [0], "test")
    inputs = make(cache_bytes=1)
    inputs.prepare(ROWS, [PLAIN, 1], "test")
    assert len(entries(tmp_path)) == 2
    np.testing.assert_array_equal(read_all(inputs), read_all(make(cache=None)))


def test_using_an_entry_makes_it_young(make, tmp_path):
    make().prepare(ROWS, [0], "test")
    folder = entries(tmp_path)[0]
    os.utime(folder, (1, 1))
    make().prepare(ROWS, [0], "test")
    assert folder.stat().st_mtime > time.time() - 60


def test_without_a_prefix_inputs_are_pixels(images, tmp_path):
    inputs = tiny_inputs(images, "tf", training_params(), cache=tmp_path / "cache")
    inputs.prepare(ROWS, [PLAIN], "test")
    assert not (tmp_path / "cache").exists()
    np.testing.assert_array_equal(inputs.read(ROWS[:3], PLAIN_ROWS[:3]), images[:3] / np.float32(127.5) - np.float32(1))


def test_the_cache_lies_below_dvcs_root(monkeypatch, tmp_path):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert cache_folder() == tmp_path.resolve() / ".lesionlab" / "prefix"
    monkeypatch.delenv("DVC_ROOT")
    assert cache_folder() == repository_root() / ".lesionlab" / "prefix"
    assert repository_root() == ROOT
