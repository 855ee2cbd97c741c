"""One run of training: the same twice, every crop every epoch, the best epoch kept, a NaN refused."""

import os
import platform
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import keras
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight
from tiny import ROOT, change_params, crop_stage, run_stage, split_stage
from tiny_networks import BATCH, THREADS, tiny_architecture, tiny_crops, tiny_inputs, tiny_task, training_params

from lesionlab.errors import InputError
from lesionlab.files import read_images, read_json
from lesionlab.models.networks import build_network, in_float32, softmax
from lesionlab.models.saved import load_classifier
from lesionlab.seeds import generator
from lesionlab.training import backend, resume
from lesionlab.training.fit import Task, _class_weights, _epoch_batches, fit, mix, predict_rows
from lesionlab.training.prefix import PLAIN, Inputs
from lesionlab.training.run import read_task

PLAIN_RUN = {"baseline__augment": False, "baseline__epochs": 3, "baseline__patience": 3}


def train_baseline(
    images: np.ndarray,
    task: Task,
    seed: int = 42,
    architecture: dict | None = None,
    states: Path | None = None,
    **changes: object,
) -> tuple:
    """The small CNN through `fit`: the network, its Fit and its Inputs."""
    params = training_params(seed=seed, **PLAIN_RUN | changes)
    network = build_network(tiny_architecture(None, **architecture or {}), seed)
    inputs = tiny_inputs(images, "tf", params)
    result = fit(
        network, inputs, task, params.baseline, params.training, stage="baseline", seed=seed, copies=0, states=states
    )  # fmt: skip
    return network, result, inputs


@pytest.fixture(scope="module")
def crops():
    images, labels = tiny_crops(30)
    return images, tiny_task(labels, 20)


@pytest.mark.parametrize("augment", [False, True])
def test_two_runs_give_the_same_bits(crops, augment):
    first, again, other = (train_baseline(*crops, seed=seed, baseline__augment=augment) for seed in (1, 1, 2))
    for a, b in zip(first[0].get_weights(), again[0].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert first[1].history.equals(again[1].history)
    assert (first[1].history["loss"] != other[1].history["loss"]).all()


def test_the_history_has_a_row_an_epoch(crops):
    _, result, _ = train_baseline(*crops)
    columns = ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "val_auc", "learning_rate"]
    assert list(result.history.columns) == columns
    assert result.history["epoch"].tolist() == [0, 1, 2]
    assert np.isfinite(result.history.to_numpy()).all()


def test_training_learns_what_can_be_learnt(crops):
    _, result, _ = train_baseline(*crops, baseline__epochs=12, baseline__patience=12, baseline__learning_rate=1e-2)
    assert result.history["loss"].iloc[-1] < 0.5 * result.history["loss"].iloc[0]
    assert result.history["val_accuracy"].max() == 1.0
    assert result.history["val_auc"].max() == 1.0


def test_the_best_epoch_is_restored_and_patience_ends_training(crops):
    """Validation labels are turned round, so that what is learnt makes the validation loss worse."""
    images, task = crops
    labels = task.labels.copy()
    labels[task.val] = 1 - labels[task.val]
    task = Task(labels, task.train, task.val, 2)
    changes = {"baseline__epochs": 30, "baseline__patience": 2, "baseline__learning_rate": 2e-3}
    network, result, inputs = train_baseline(images, task, **changes)
    losses = result.history["val_loss"]
    assert result.kept_epoch == losses.idxmin()
    assert len(losses) == result.kept_epoch + 1 + 2
    assert len(losses) < 30
    now = predict_rows(network, inputs, task.val)
    np.testing.assert_array_equal(now, result.val_probabilities)
    assert log_loss(labels[task.val], now) == pytest.approx(losses.min(), rel=1e-9)
    assert losses.iloc[-1] > losses.min()


def test_the_last_epoch_is_kept_where_that_is_asked_for(crops):
    """Validation labels turned round: the last epoch is worse than the first, and patience would have ended it."""
    images, task = crops
    labels = task.labels.copy()
    labels[task.val] = 1 - labels[task.val]
    changes = {"baseline__epochs": 8, "baseline__patience": 2, "baseline__learning_rate": 2e-3}
    network, result, inputs = train_baseline(
        images, Task(labels, task.train, task.val, 2), baseline__keep="last", **changes
    )
    assert len(result.history) == 8
    assert result.kept_epoch == 7
    assert result.history["val_loss"].idxmin() < 7
    np.testing.assert_array_equal(predict_rows(network, inputs, task.val), result.val_probabilities)


def refusal(images: np.ndarray, task: Task, **changes: object) -> str:
    with pytest.raises(InputError) as caught:
        train_baseline(images, task, **{"baseline__schedule": "constant"} | changes)
    return str(caught.value)


def test_a_loss_that_is_no_number_names_the_learning_rate(crops):
    """1e39 is infinite in float32: the loss of the second step is no number."""
    message = refusal(*crops, baseline__learning_rate=1e39)
    assert re.fullmatch(
        r"baseline: the loss is (nan|inf) at epoch 0, step 1; "
        r"lower baseline\.learning_rate in params\.yaml \(is 1e\+39\)",
        message,
    )


def test_weights_that_break_in_the_last_step_are_refused_too():
    """With one step an epoch the loss is still a number; only validation shows that the weights are not."""
    images, labels = tiny_crops(30)
    message = refusal(images, tiny_task(labels, BATCH), baseline__learning_rate=1e39, baseline__epochs=1)
    assert message == (
        "baseline: validation gives no numbers after epoch 0; lower baseline.learning_rate in params.yaml (is 1e+39)"
    )


def test_the_cosine_schedule_falls_and_the_constant_one_does_not(crops):
    _, cosine, _ = train_baseline(*crops, baseline__epochs=4, baseline__patience=4, baseline__learning_rate=1e-3)
    expected = [0.5e-3 * (1 + np.cos(np.pi * (epoch + 1) / 4)) for epoch in range(4)]
    np.testing.assert_allclose(cosine.history["learning_rate"], expected, atol=1e-9)
    _, constant, _ = train_baseline(*crops, baseline__schedule="constant", baseline__learning_rate=1e-3)
    np.testing.assert_allclose(constant.history["learning_rate"], 1e-3, rtol=1e-6)


def batches(epoch: int, seed: int = 1, augment: bool = False, copies: int = 0, count: int = 21) -> tuple:
    """Rows and versions of an epoch of `count` training crops, numbered from 100."""
    params = training_params(seed=seed, finetune__augment=augment)
    steps = -(-count // BATCH)
    parts = list(
        _epoch_batches(
            np.arange(100, 100 + count), epoch, steps, params.finetune, params.training, "finetune", seed, copies
        )
    )
    assert all(len(rows) == len(versions) == BATCH for rows, versions in parts)
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([versions for _, versions in parts])


def test_every_epoch_has_every_crop_in_an_order_of_its_own():
    orders = [batches(epoch)[0] for epoch in range(5)]
    for order in orders:
        assert sorted(order[:21]) == list(range(100, 121))
        assert order[21:].tolist() == order[:3].tolist()  # the last batch is filled from the start
    for first in range(5):
        for second in range(first):
            assert (orders[first] != orders[second]).sum() > 10


def test_the_order_follows_from_seed_stage_and_epoch_alone():
    np.testing.assert_array_equal(batches(3)[0], batches(3)[0])
    np.testing.assert_array_equal(batches(3)[0], batches(3, augment=True, copies=2)[0])
    assert (batches(3)[0] != batches(3, seed=2)[0]).any()


def test_versions_go_through_the_copies():
    assert set(batches(0)[1]) == {PLAIN}
    assert set(batches(4, augment=True)[1]) == {4}
    seen: dict[int, list[int]] = {}
    for epoch in range(3):
        rows, versions = batches(epoch, augment=True, copies=3)
        assert len(set(versions)) == 3
        for row, version in {(int(r), int(v)) for r, v in zip(rows, versions, strict=True)}:
            seen.setdefault(row, []).append(version)
    assert all(sorted(versions) == [0, 1, 2] for versions in seen.values())


def test_class_weights_are_scikit_learns():
    labels = np.r_[np.zeros(12, int), np.ones(5, int), np.full(3, 2), np.zeros(9, int)]
    task = tiny_task(labels, 20, classes=3)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels[:20])
    np.testing.assert_allclose(_class_weights(task, True), expected, rtol=1e-6)
    np.testing.assert_array_equal(_class_weights(task, False), np.ones(3))


@pytest.mark.parametrize(("weighted", "smoothing"), [(False, 0.0), (True, 0.0), (True, 0.2)])
def test_the_loss_is_the_weighted_cross_entropy(weighted, smoothing):
    """One step at a learning rate of nothing: the loss is that of the network as it was drawn."""
    images, _ = tiny_crops(20)
    labels = np.r_[np.zeros(6, int), np.ones(2, int), np.arange(12) % 2]
    task = tiny_task(labels, BATCH)
    _, result, _ = train_baseline(
        images, task, architecture={"dropout": 0.0}, baseline__epochs=1, baseline__learning_rate=1e-12,
        training__class_weights=weighted, training__label_smoothing=smoothing,
    )  # fmt: skip
    network = build_network(tiny_architecture(None, dropout=0.0), 42)
    probabilities = softmax(network.predict_on_batch(images[:BATCH] / np.float32(127.5) - 1))
    targets = np.eye(2)[labels[:BATCH]] * (1 - smoothing) + smoothing / 2
    weights = np.where(labels[:BATCH] == 1, 2.0, 2 / 3) if weighted else np.ones(BATCH)
    expected = (weights * -(targets * np.log(probabilities)).sum(axis=1)).mean()
    assert result.history["loss"].iloc[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixed_rows_cost_what_both_labels_cost(alpha):
    """The weighted cross entropy of a mixed row is that of its own label and of the other one, each by its share."""
    draws = np.random.default_rng(0)
    count, classes = 40, 3
    labels = draws.integers(classes, size=count)
    values = np.arange(count, dtype="float32")[:, None, None].repeat(2, axis=1)
    logs = np.log(softmax(draws.normal(size=(count, classes))))
    weights = np.array([0.5, 1.0, 3.0], dtype="float32")[labels]
    mixed, targets, total = mix(values, np.eye(classes, dtype="float32")[labels], weights, alpha, generator(1, "mixup"))
    again = generator(1, "mixup")
    other, share = again.permutation(count), again.beta(alpha, alpha, count)
    assert sorted(other) == list(range(count))
    assert share.std() > 0.2
    np.testing.assert_allclose(mixed[:, 0, 0], share * np.arange(count) + (1 - share) * other, rtol=1e-5)
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
    rows = np.arange(count)
    own, others = -weights * logs[rows, labels], -weights[other] * logs[rows, labels[other]]
    np.testing.assert_allclose(-total * (targets * logs).sum(axis=1), share * own + (1 - share) * others, rtol=1e-5)


def test_mixup_trains_to_the_same_bits_and_to_others_than_without(crops):
    first, again, without = (
        train_baseline(*crops, training__mixup=mixup, baseline__epochs=2)[0].get_weights() for mixup in (0.4, 0.4, 0)
    )
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(first, without, strict=True))


def test_validation_is_never_augmented(crops, monkeypatch):
    read = []
    original = Inputs.read

    def noted(self, rows, versions):
        read.extend(zip(rows.tolist(), versions.tolist(), strict=True))
        return original(self, rows, versions)

    monkeypatch.setattr(Inputs, "read", noted)
    images, task = crops
    train_baseline(images, task, baseline__augment=True, baseline__epochs=2)
    assert {row for row, version in read if version == PLAIN} == set(task.val)
    assert {row for row, version in read if version != PLAIN} == set(task.train)
    assert {version for _, version in read} == {PLAIN, 0, 1}


def test_several_classes_train():
    images, labels = tiny_crops(90, classes=3)
    network, result, _ = train_baseline(
        images, tiny_task(labels, 60, 3), architecture={"classes": ["a", "b", "c"], "dense": 32, "dropout": 0.0},
        baseline__epochs=15, baseline__patience=15, baseline__learning_rate=3e-3,
    )  # fmt: skip
    assert result.val_probabilities.shape == (30, 3)
    np.testing.assert_allclose(result.val_probabilities.sum(axis=1), 1)
    assert result.history["val_auc"].max() > 0.9
    assert network.output_shape == (None, 3)


class Killed(BaseException):
    """The process ends; no `except Exception` sees it."""


@pytest.fixture
def interrupt(monkeypatch):
    """A function that lets training die at a step (counted from the start of the process, from 0), or never (None)."""
    monkeypatch.setattr(resume, "SECONDS_BETWEEN_STATES", 0.0)
    original = Inputs.read

    def die_at(step: int | None) -> list[int]:
        steps = []

        def read(self, rows, versions):
            if (versions != PLAIN).any():  # a training step
                if len(steps) == step:
                    raise Killed
                steps.append(len(steps))
            return original(self, rows, versions)

        monkeypatch.setattr(Inputs, "read", read)
        return steps

    return die_at


RESUMED = {"baseline__augment": True, "baseline__epochs": 6, "baseline__patience": 3, "baseline__learning_rate": 2e-3}


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, interrupt, schedule):
    """20 crops are 3 steps an epoch. Killed in the middle of epoch 2, then in the first step after going on."""
    images, labels = tiny_crops(30)
    task = tiny_task(labels, 20)
    changes = RESUMED | {"baseline__schedule": schedule}
    expected = train_baseline(images, task, **changes)
    assert len(expected[1].history) == 6
    interrupt(7)
    with pytest.raises(Killed):
        train_baseline(images, task, states=tmp_path, **changes)
    interrupt(0)
    with pytest.raises(Killed):
        train_baseline(images, task, states=tmp_path, **changes)
    assert len(list(tmp_path.iterdir())) == 1
    steps = interrupt(None)
    network, result, _ = train_baseline(images, task, states=tmp_path, **changes)
    assert len(steps) == 4 * 3  # epochs 2 to 5
    assert list(tmp_path.iterdir()) == []
    for a, b in zip(network.get_weights(), expected[0].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(network.optimizer.variables, expected[0].optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    assert result.history.equals(expected[1].history)
    assert result.kept_epoch == expected[1].kept_epoch
    np.testing.assert_array_equal(result.val_probabilities, expected[1].val_probabilities)


def test_the_best_epoch_and_patience_survive_an_interruption(tmp_path, interrupt):
    """Validation labels turned round: the best epoch is the first, and patience counts from it."""
    images, labels = tiny_crops(30)
    labels[20:] = 1 - labels[20:]
    task = tiny_task(labels, 20)
    changes = RESUMED | {"baseline__epochs": 30, "baseline__learning_rate": 1e-2}
    expected = train_baseline(images, task, **changes)
    last = len(expected[1].history) - 1
    assert expected[1].kept_epoch == last - 3
    interrupt(3 * last)
    with pytest.raises(Killed):
        train_baseline(images, task, states=tmp_path, **changes)
    steps = interrupt(None)
    network, result, _ = train_baseline(images, task, states=tmp_path, **changes)
    assert len(steps) == 3
    assert result.history.equals(expected[1].history)
    for a, b in zip(network.get_weights(), expected[0].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


OTHER_RUNS = {
    "learning rate": {"baseline__learning_rate": 3e-3},
    "seed": {"seed": 1},
    "augmentation": {"augment__zoom": 0.05},
    "epochs": {"baseline__epochs": 7},
    "class weights": {"training__class_weights": False},
    "start": {"architecture": {"filters": (4, 6)}},
}


@pytest.mark.parametrize("changes", OTHER_RUNS.values(), ids=OTHER_RUNS)
def test_another_run_does_not_take_the_state_up(tmp_path, interrupt, crops, changes):
    interrupt(4)
    with pytest.raises(Killed):
        train_baseline(*crops, states=tmp_path, **RESUMED)
    steps = interrupt(None)
    _, result, _ = train_baseline(*crops, states=tmp_path, **RESUMED | changes)
    assert len(steps) == 3 * len(result.history)
    assert len(list(tmp_path.iterdir())) == 1  # the interrupted run may still go on


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half a file"])
def test_a_state_that_was_cut_off_is_no_state(tmp_path, interrupt, crops, damage):
    interrupt(4)
    with pytest.raises(Killed):
        train_baseline(*crops, states=tmp_path, **RESUMED)
    next(tmp_path.iterdir()).write_bytes(damage)
    steps = interrupt(None)
    train_baseline(*crops, states=tmp_path, **RESUMED)
    assert len(steps) == 18


def test_states_of_forgotten_runs_do_not_pile_up(tmp_path, interrupt, crops, monkeypatch):
    monkeypatch.setattr(resume, "KEPT_STATES", 3)
    for seed in range(5):
        interrupt(4)
        with pytest.raises(Killed):
            train_baseline(*crops, seed=seed, states=tmp_path, **RESUMED)
    assert len(list(tmp_path.iterdir())) == 3
    steps = interrupt(None)
    train_baseline(*crops, seed=4, states=tmp_path, **RESUMED)
    assert len(steps) == 15


def test_short_epochs_write_no_state(tmp_path, interrupt, crops, monkeypatch):
    interrupt(10)
    monkeypatch.setattr(resume, "SECONDS_BETWEEN_STATES", 3600)
    with pytest.raises(Killed):
        train_baseline(*crops, states=tmp_path, **RESUMED)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def started():
    """A function that starts Keras as a stage does, until the test ends."""
    yield lambda dtype: backend.start_keras(THREADS, dtype)
    backend.start_keras(THREADS)


def test_mixed_precision_learns_and_keeps_float32_weights(crops, started):
    changes = {"baseline__epochs": 12, "baseline__patience": 12, "baseline__learning_rate": 1e-2}
    started("mixed_bfloat16")
    network, result, _ = train_baseline(*crops, **changes)
    assert result.history["val_auc"].max() == 1.0
    assert {layer.compute_dtype for layer in network.layers if "conv" in layer.name} == {"bfloat16"}
    assert network.get_layer("logits").compute_dtype == "float32"
    assert {str(weight.dtype) for weight in network.weights if "seed" not in weight.path} == {"float32"}
    assert backend.environment(THREADS)["dtype"] == "mixed_bfloat16"
    exact = in_float32(network, tiny_architecture(None))
    assert {layer.compute_dtype for layer in exact.layers} == {"float32"}
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
    images, task = crops
    pixels = images[task.val[:BATCH]] / np.float32(127.5) - 1
    logits, rounded = (np.asarray(model.predict_on_batch(pixels)) for model in (exact, network))
    assert 0 < np.abs(logits - rounded).max() < 0.1 * np.ptp(logits)
    started("float32")
    again = build_network(tiny_architecture(None), 7)
    again.set_weights(network.get_weights())
    np.testing.assert_array_equal(np.asarray(again.predict_on_batch(pixels)), logits)


@pytest.mark.parametrize(
    ("flags", "policy"),
    [
        ("fpu avx2 avx512f", "float32"),
        ("fpu avx512_bf16", "mixed_bfloat16"),
        ("fpu amx_bf16 amx_tile", "mixed_bfloat16"),
    ],
)
def test_auto_is_bfloat16_where_the_processor_has_it(started, monkeypatch, flags, policy):
    monkeypatch.setattr(backend, "_processor_flags", lambda: set(flags.split()))
    started("auto")
    assert keras.config.dtype_policy().name == policy
    started("float32")
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ("fpu avx2 avx512f avx512_bf16", "AVX512 with bfloat16"),
        ("fpu avx2 avx512f", "AVX512"),
        ("fpu avx2", "AVX2"),
        ("fp asimd bf16", f"{platform.machine()} with bfloat16"),
    ],
)
def test_the_record_says_what_rounding_depends_on(monkeypatch, flags, kind):
    monkeypatch.setattr(backend, "_processor_flags", lambda: set(flags.split()))
    assert backend.environment(THREADS)["instructions"] == kind


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux lists what the processor can do")
def test_the_processor_says_what_it_can_do():
    text = Path("/proc/cpuinfo").read_text()
    assert all(f" {flag} " in text.replace("\n", " \n") for flag in backend._processor_flags())
    assert ("avx512_bf16" in backend._processor_flags()) == ("avx512_bf16" in text)


@pytest.mark.slow
def test_stages_in_half_precision_report_what_the_saved_float32_model_gives(tiny_project):
    change_params(tiny_project, {"training.dtype": "mixed_bfloat16", "training.cache_dtype": "float16"})
    shared = ("--crops", "data/crops", "--split", "data/split.csv", "--proof", "metrics/split.json")
    runs = [crop_stage(), split_stage(), run_stage("download", "weights", "--out", "data/weights")]
    for name, options in (
        ("transfer", ("--weights", "data/weights")),
        ("finetune", ("--start", "models/transfer")),
    ):
        outs = ("--model", f"models/{name}", "--metrics", f"metrics/{name}.json", "--history", f"plots/{name}.csv")
        runs.append(run_stage(name, *shared, *options, *outs))
    assert [run.stderr for run in runs if run.returncode] == []
    task = read_task(Path("data/crops"), Path("data/split.csv"), ["background", "polyp"])
    images = read_images(Path("data/crops"))
    for name in ("transfer", "finetune"):
        metrics = read_json(Path(f"metrics/{name}.json"))
        classifier = load_classifier(Path(f"models/{name}"))
        assert metrics["dtype"] == classifier.description.environment["dtype"] == "mixed_bfloat16"
        assert {layer.compute_dtype for layer in classifier.model.layers} == {"float32"}
        with h5py.File(f"models/{name}/model.weights.h5") as file:
            kinds = set()
            file.visititems(
                lambda _, item, kinds=kinds: kinds.add(str(item.dtype)) if isinstance(item, h5py.Dataset) else None
            )
        assert kinds <= {"float32", "uint32"}
        unscaled = replace(classifier, description=classifier.description.model_copy(update={"temperature": 1.0}))
        probabilities = unscaled.predict(images, task.val, 16)
        loss = log_loss(task.labels[task.val], probabilities, labels=[0, 1])
        assert metrics["validation"]["loss"] == pytest.approx(loss, abs=1e-6)
        trained = pd.read_csv(f"plots/{name}.csv")["val_loss"].iloc[metrics["kept_epoch"]]
        assert trained == pytest.approx(loss, rel=0.05)


@pytest.mark.parametrize(("before", "ends"), [("", 0), ("import tensorflow; ", 1)])
def test_kernels_are_chosen_before_tensorflow_is_there(before, ends):
    """Afterwards it would not listen, and the record would say what is not so."""
    code = f"{before}from lesionlab.training.backend import start_keras, environment; start_keras(1); "
    code += "assert environment(1)['onednn'] == '1'"
    unset = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    ended = subprocess.run([sys.executable, "-c", code], env=unset, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == ends
    assert ("must come before TensorFlow is imported" in ended.stderr) == bool(ends)
