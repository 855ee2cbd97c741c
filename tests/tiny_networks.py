"""Small crops, tasks and networks for tests; importing this starts Keras as a stage does."""

from pathlib import Path

import h5py
import keras
import numpy as np
from tiny import small_params

from lesionlab.models.backbones import preprocess
from lesionlab.models.networks import Architecture, build_network, freeze, prefix_of
from lesionlab.params import Params
from lesionlab.training.backend import start_keras
from lesionlab.training.fit import Fit, Task, fit
from lesionlab.training.prefix import Inputs, weights_digest

THREADS = 2
SIZE = 32
BATCH = 8
CLASSES = ["background", "polyp"]

_LIVELY: dict[str, list[list[np.ndarray]]] = {}

start_keras(THREADS)


def tiny_architecture(backbone: str | None, **changes: object) -> Architecture:
    content = {
        "backbone": backbone, "filters": (4, 8), "dense": 8, "dropout": 0.3, "image_size": SIZE, "classes": CLASSES,
    }  # fmt: skip
    return Architecture(**content | changes)


def tiny_crops(count: int, classes: int = 2, size: int = SIZE, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise (count, size, size, 3) uint8 with a square whose brightness tells the class, and the labels (count,)."""
    rng = np.random.default_rng(seed)
    images = rng.integers(40, 120, (count, size, size, 3))
    labels = np.arange(count) % classes
    images[:, size // 4 : size // 2, size // 4 : size // 2] += (labels * 100 // (classes - 1))[:, None, None, None]
    return images.astype("uint8"), labels


def tiny_task(labels: np.ndarray, train: int, classes: int = 2) -> Task:
    """The first `train` crops train, the others validate."""
    rows = np.arange(len(labels))
    return Task(labels, rows[:train], rows[train:], classes)


def training_params(**changes: object) -> Params:
    """Params of the tiny project with BATCH crops a step; changes are dotted keys with __ for the dot."""
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    return Params.model_validate(small_params({"training.batch_size": BATCH} | changed))


def tiny_inputs(images: np.ndarray, preprocessing: str, params: Params, **changes: object) -> Inputs:
    return Inputs(images, preprocessing, params.augment, params.seed, BATCH, THREADS, **changes)


def lively(network: keras.Model, architecture: Architecture) -> keras.Model:
    """Give each BatchNormalization the statistics of some crops: as drawn, a deep network's activations fade."""
    key = architecture.model_dump_json() + weights_digest(network)  # as drawn from its seed
    if key not in _LIVELY:
        normalising = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
        for layer in normalising:
            layer.momentum = 0.0
        images = tiny_crops(BATCH, size=architecture.image_size)[0]
        network(preprocess(images, architecture.preprocessing), training=True)
        _LIVELY[key] = [layer.get_weights() for layer in normalising]
    normalising = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer, weights in zip(normalising, _LIVELY[key], strict=True):
        layer.set_weights(weights)
    return network


def save_official(model: keras.Model, path: Path) -> None:
    """The format of the official files of keras.applications: HDF5 groups in the order of the layers."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = b"2.1.5"
        for layer in model.layers:
            group = file.create_group(layer.name)
            # As Keras 2 did: trainable weights first, then moving statistics.
            weights = layer.trainable_weights + layer.non_trainable_weights
            group.attrs["weight_names"] = [f"{layer.name}/{weight.name}:0".encode() for weight in weights]
            for weight in weights:
                group[f"{layer.name}/{weight.name}:0"] = np.asarray(weight)


def train(
    architecture: Architecture, unfrozen_blocks: int, params: Params, images: np.ndarray, task: Task, **how: object
) -> tuple[keras.Model, Fit]:
    """Train a network drawn from params.seed the way the finetune stage does; `whole`: without a prefix at all.

    how: `cache` (a folder or None), `whole` (every step through the one flat model).
    """
    network = lively(build_network(architecture, params.seed), architecture)
    boundary = architecture.boundary(unfrozen_blocks)
    suffix = freeze(network, boundary, normalization=params.finetune.batch_normalization == "trained")
    prefix = prefix_of(network, boundary) if boundary else None
    if how.pop("whole", False):
        suffix, prefix = network, None
    inputs = tiny_inputs(images, architecture.preprocessing, params, prefix=prefix, **how)
    result = fit(
        suffix, inputs, task, params.finetune, params.training, stage="finetune", seed=params.seed,
        copies=params.augment.copies,
    )  # fmt: skip
    return network, result
