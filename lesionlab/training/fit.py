"""One run of training: the order of every epoch drawn from (seed, stage, epoch), the best epoch kept (or the last)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import keras
import numpy as np
import pandas as pd
from sklearn.metrics import log_loss, roc_auc_score

from lesionlab.errors import InputError
from lesionlab.models.networks import softmax
from lesionlab.models.saved import pad_batch
from lesionlab.params import FitParams, TrainingParams
from lesionlab.progress import progress
from lesionlab.seeds import derive_seed, generator
from lesionlab.training.lesions import Attention
from lesionlab.training.prefix import PLAIN, Inputs, array_digest, code_digest, weights_digest
from lesionlab.training.resume import Standing, State


@dataclass(frozen=True)
class Task:
    """Which crops train and validate. labels: (n,) class numbers of all crops; train, val: row numbers."""

    labels: np.ndarray
    train: np.ndarray
    val: np.ndarray
    classes: int


class Source(Protocol):
    """What is fed to a network, a batch at a time: crops (`prefix.Inputs`), or anything else that has rows."""

    batch_size: int

    def prepare(self, rows: np.ndarray, versions: list[int], desc: str) -> None:
        """Compute what will be read."""

    def read(self, rows: np.ndarray, versions: np.ndarray) -> np.ndarray:
        """(len(rows), ...) float32."""


@dataclass(frozen=True)
class Fit:
    """What training gave. history: a row an epoch. val_probabilities: (len(val), classes) at `kept_epoch`."""

    history: pd.DataFrame
    kept_epoch: int
    val_probabilities: np.ndarray


def fit(
    suffix: keras.Model,
    inputs: Source,
    task: Task,
    settings: FitParams,
    training: TrainingParams,
    *,
    stage: str,
    seed: int,
    copies: int,
    states: Path | None = None,
    attention: Attention | None = None,
) -> Fit:
    """Train `suffix` in place and leave it at its epoch of lowest validation loss, or at its last (`settings.keep`).

    copies: how many augmented versions of a crop exist; 0 for a new version at every epoch. Ignored where
    `settings.augment` is false. states: folder for the state of a run on `Inputs`; an interrupted run that is started
    again with the same arguments goes on from there and ends with the same bits. attention: of `suffix`; a second
    loss, of weight `training.lesion_attention`, teaches it where lesions are.
    Raises InputError when the loss is not a number.
    """
    steps = -(-len(task.train) // training.batch_size)
    copies = copies if settings.augment else 0
    state = None
    if states is not None:
        state = State(states, _identity(suffix, inputs, task, settings, training, stage, seed, copies, attention))
    taught, columns = suffix, {"loss": "loss", "accuracy": "accuracy"}
    if attention is not None:
        taught, (classes, scores) = attention.network, attention.network.output_names
        columns = {"loss": f"{classes}_loss", "accuracy": f"{classes}_accuracy", "attention_loss": f"{scores}_loss"}
    _compile(taught, settings, training, steps)
    standing = state.load(taught) if state else None
    versions = list(range(copies)) if copies else [PLAIN]
    if not (settings.augment and not copies):
        inputs.prepare(task.train, versions, f"{stage}: frozen blocks, training crops")
    inputs.prepare(task.val, [PLAIN], f"{stage}: frozen blocks, validation crops")
    weights = _class_weights(task, training.class_weights)
    targets = np.eye(task.classes, dtype="float32")[task.labels]
    first = len(standing.history) if standing else 0
    with progress(total=settings.epochs * steps, initial=first * steps, desc=stage, unit="step") as bar:
        for epoch in range(first, settings.epochs):
            sums = dict.fromkeys(columns, 0.0)
            batches = _epoch_batches(task.train, epoch, steps, settings, training, stage, seed, copies)
            for step, (chosen, chosen_versions) in enumerate(batches):
                _seed_dropout(suffix, derive_seed(seed, stage, "dropout", epoch, step))
                batch = inputs.read(chosen, chosen_versions), targets[chosen], weights[task.labels[chosen]]
                if training.mixup:
                    batch = mix(*batch, training.mixup, generator(seed, stage, "mixup", epoch, step))
                if attention is not None:
                    values, *of_classes = batch
                    of_lesions = attention.lesions.read(chosen, chosen_versions)
                    batch = values, *map(list, zip(of_classes, of_lesions, strict=True))
                measured = taught.train_on_batch(*batch, return_dict=True)
                for name, key in columns.items():
                    sums[name] += float(measured[key])
                loss = measured["loss"]
                _require_finite(loss, f"the loss is {loss} at epoch {epoch}, step {step}", stage, settings)
                bar.update()
            probabilities = predict_rows(suffix, inputs, task.val)
            _require_finite(probabilities, f"validation gives no numbers after epoch {epoch}", stage, settings)
            row = {"epoch": epoch} | {name: total / steps for name, total in sums.items()}
            row |= _validate(task.labels[task.val], probabilities)
            row["learning_rate"] = float(taught.optimizer.learning_rate)
            bar.set_postfix(val_loss=f"{row['val_loss']:.3f}", val_accuracy=f"{row['val_accuracy']:.3f}")
            history = [*standing.history, row] if standing else [row]
            if standing is None or settings.keep == "last" or _is_better(row, standing):
                standing = Standing(history, epoch, suffix.get_weights(), probabilities)
            else:
                standing.history = history
            if epoch - standing.kept_epoch >= settings.patience:
                break
            if state:
                state.save(taught, standing)
    suffix.set_weights(standing.kept_weights)
    if state:
        state.remove()
    return Fit(pd.DataFrame(standing.history), standing.kept_epoch, standing.kept_probabilities)


def mix(
    values: np.ndarray, targets: np.ndarray, weights: np.ndarray, alpha: float, draws: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mixup: each row of a batch is mixed with another one; its share is drawn from Beta(alpha, alpha).

    values: (n, ...), pixels or maps. targets: (n, classes), each row with the sum 1. weights: (n,). The weighted cross
    entropy of what is returned is the mean, by the shares, of those of both labels.
    Source: Zhang et al., ICLR 2018, https://arxiv.org/abs/1710.09412; between layers: Verma et al., ICML 2019,
    https://arxiv.org/abs/1806.05236. There the whole batch has one share, here each row its own.
    """
    other = draws.permutation(len(values))
    share = draws.beta(alpha, alpha, len(values)).astype("float32")
    each = share.reshape(-1, *(1,) * (values.ndim - 1))
    own, others = share * weights, (1 - share) * weights[other]
    total = own + others
    mixed = (own[:, None] * targets + others[:, None] * targets[other]) / total[:, None]
    return each * values + (1 - each) * values[other], mixed, total


def predict_rows(suffix: keras.Model, inputs: Source, rows: np.ndarray) -> np.ndarray:
    """Class probabilities of plain crops through the trainable part: (len(rows), classes)."""
    logits = []
    for start in range(0, len(rows), inputs.batch_size):
        batch = rows[start : start + inputs.batch_size]
        values = inputs.read(batch, np.full(len(batch), PLAIN))
        logits.append(np.asarray(suffix.predict_on_batch(pad_batch(values, inputs.batch_size)))[: len(batch)])
    return softmax(np.concatenate(logits))


def _is_better(row: dict[str, float], standing: Standing) -> bool:
    return row["val_loss"] < standing.history[standing.kept_epoch]["val_loss"]


def _identity(
    suffix: keras.Model,
    inputs: Inputs,
    task: Task,
    settings: FitParams,
    training: TrainingParams,
    stage: str,
    seed: int,
    copies: int,
    attention: Attention | None,
) -> dict:
    """All that decides the result of a run."""
    return {
        "stage": stage,
        "seed": seed,
        "copies": copies,
        "settings": settings.model_dump(),
        "training": training.model_dump(),
        "augmentation": inputs.augmentation.model_dump(),
        "inputs": inputs.identity,
        "lesions": None if attention is None else attention.lesions.identity,
        "start": weights_digest(suffix),
        "task": [array_digest(rows) for rows in (task.labels, task.train, task.val)] + [task.classes],
        "code": code_digest("models/*.py", "training/*.py", "seeds.py"),
    }


def _require_finite(values: np.ndarray, problem: str, stage: str, settings: FitParams) -> None:
    if not np.isfinite(values).all():
        raise InputError(
            f"{stage}: {problem}; lower {stage}.learning_rate in params.yaml (is {settings.learning_rate:g})"
        )


def _compile(model: keras.Model, settings: FitParams, training: TrainingParams, steps: int) -> None:
    """`model` ends in logits, or in these and attention's scores."""
    rate = settings.learning_rate
    if settings.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, settings.epochs * steps)
    of_classes = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=training.label_smoothing)
    nothing = [np.zeros((1, output.shape[-1]), dtype="float32") for output in model.outputs]
    if len(nothing) == 1:
        settled = {"loss": of_classes, "metrics": ["accuracy"]}
        nothing = nothing[0]
    else:
        of_attention = keras.losses.CategoricalCrossentropy(from_logits=True)
        settled = {
            "loss": [of_classes, of_attention],
            "loss_weights": [1.0, training.lesion_attention],
            "metrics": [["accuracy"], []],
        }
    model.compile(optimizer=keras.optimizers.Adam(rate), jit_compile=False, **settled)
    model.optimizer.build(model.trainable_variables)
    # Metrics too: Keras would make them in the first step, and then trace it once more. Of two losses each has one.
    if len(model.outputs) > 1:
        model.compute_loss(None, nothing, nothing)
    model.compute_metrics(None, nothing, nothing)


def _epoch_batches(
    train: np.ndarray,
    epoch: int,
    steps: int,
    settings: FitParams,
    training: TrainingParams,
    stage: str,
    seed: int,
    copies: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and versions of each batch; all are of one size, the last is filled from the epoch's start."""
    order = np.resize(generator(seed, stage, "order", epoch).permutation(len(train)), steps * training.batch_size)
    if not settings.augment:
        versions = np.full(len(train), PLAIN)
    elif copies:
        first = generator(seed, stage, "copies").integers(copies, size=len(train))
        versions = (first + epoch) % copies
    else:
        versions = np.full(len(train), epoch)
    for step in range(steps):
        chosen = order[step * training.batch_size : (step + 1) * training.batch_size]
        yield train[chosen], versions[chosen]


def _class_weights(task: Task, balanced: bool) -> np.ndarray:
    counts = np.bincount(task.labels[task.train], minlength=task.classes)
    if not balanced:
        return np.ones(task.classes, dtype="float32")
    return (len(task.train) / (task.classes * np.maximum(counts, 1))).astype("float32")


def _validate(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    classes = probabilities.shape[1]
    scores = probabilities[:, 1] if classes == 2 else probabilities
    return {
        "val_loss": float(log_loss(labels, probabilities, labels=np.arange(classes))),
        "val_accuracy": float((probabilities.argmax(axis=1) == labels).mean()),
        "val_auc": float(roc_auc_score(labels, scores, multi_class="ovr", labels=np.arange(classes))),
    }


def _seed_dropout(model: keras.Model, seed: int) -> None:
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.seed_generator.state.assign(np.array([seed, 0], dtype="uint32"))
