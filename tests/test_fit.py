"""One run of training: the same twice, every crop every epoch, the best epoch kept, a NaN refused."""

import re

import numpy as np
import pytest
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight
from tiny_networks import BATCH, tiny_architecture, tiny_crops, tiny_inputs, tiny_task, training_params

from lesionlab.errors import InputError
from lesionlab.models.networks import build_network, softmax
from lesionlab.training.fit import Task, _class_weights, _epoch_batches, fit, predict_rows
from lesionlab.training.prefix import PLAIN, Inputs

PLAIN_RUN = {"baseline__augment": False, "baseline__epochs": 3, "baseline__patience": 3}


def train_baseline(
    images: np.ndarray, task: Task, seed: int = 42, architecture: dict | None = None, **changes: object
) -> tuple:
    """The small CNN through `fit`: the network, its Fit and its Inputs."""
    params = training_params(seed=seed, **PLAIN_RUN | changes)
    network = build_network(tiny_architecture(None, **architecture or {}), seed)
    inputs = tiny_inputs(images, "tf", params)
    result = fit(network, inputs, task, params.baseline, params.training, stage="baseline", seed=seed, copies=0)
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
    assert result.best_epoch == losses.idxmin()
    assert len(losses) == result.best_epoch + 1 + 2
    assert len(losses) < 30
    now = predict_rows(network, inputs, task.val)
    np.testing.assert_array_equal(now, result.val_probabilities)
    assert log_loss(labels[task.val], now) == pytest.approx(losses.min(), rel=1e-9)
    assert losses.iloc[-1] > losses.min()


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
