"""What the three training stages share: crops and split in; model, metrics, history and a tracked run out."""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
from sklearn.metrics import log_loss, roc_auc_score

from lesionlab import tracking
from lesionlab.data.cards import read_card, resolve_augmentation
from lesionlab.errors import InputError
from lesionlab.files import (
    file_digest,
    read_images,
    read_index,
    read_json,
    read_lesions,
    read_split,
    write_json,
    write_table,
)
from lesionlab.models.backbones import find_backbone
from lesionlab.models.networks import (
    ATTENTION_MAP,
    Architecture,
    freeze,
    in_float32,
    prefix_of,
    softmax,
    with_attention,
)
from lesionlab.models.saved import Classifier, Description, save_classifier
from lesionlab.params import AugmentParams, FitParams, Params
from lesionlab.training.backend import environment
from lesionlab.training.fit import Fit, Task, fit, predict_rows
from lesionlab.training.lesions import Attention, Lesions
from lesionlab.training.pictures import draw_history
from lesionlab.training.prefix import Inputs, cache_folder
from lesionlab.training.resume import states_folder
from lesionlab.training.threshold import choose_threshold, fit_temperature

BYTES_A_GIB = 2**30


@dataclass(frozen=True)
class Paths:
    """What a training stage reads (crops, split, proof) and writes (model, metrics, history)."""

    crops: Path
    split: Path
    proof: Path
    model: Path
    metrics: Path
    history: Path


def run_training(
    stage: str,
    network: keras.Model,
    architecture: Architecture,
    unfrozen_blocks: int,
    settings: FitParams,
    params: Params,
    paths: Paths,
    *,
    normalization: bool = False,
) -> None:
    """Train `network` with its last `unfrozen_blocks` blocks (and its head) unfrozen, and write everything.

    normalization: as in `freeze`.
    Raises InputError when crops are not of the architecture's size, the network has fewer blocks, the loss is
    NaN, or attention is to be taught and cannot be (`teach_attention`).
    """
    started = time.perf_counter()
    boundary = architecture.boundary(unfrozen_blocks)
    images = read_images(paths.crops)
    if images.shape[1] != architecture.image_size:
        raise InputError(
            f"{paths.crops}: crops are {images.shape[1]} px, the network takes {architecture.image_size}; run dvc "
            "repro (cells of a study share its crops, so there set.model.image_size alone counts)"
        )
    task = read_task(paths.crops, paths.split, architecture.classes)
    suffix = freeze(network, boundary, normalization=normalization)
    augmentation = resolve_augmentation(params.augment, read_card(params.dataset))
    inputs = Inputs(
        images,
        architecture.preprocessing,
        augmentation,
        params.seed,
        params.training.batch_size,
        params.training.threads,
        prefix=prefix_of(network, boundary) if boundary else None,
        cache=cache_folder() if params.training.prefix_cache else None,
        cache_bytes=params.training.prefix_cache_gib * BYTES_A_GIB,
        cache_dtype=params.training.cache_dtype,
        block_ends=tuple(_block_ends(architecture)),
    )
    attention = None
    if params.training.lesion_attention and architecture.backbone is not None:
        attention = teach_attention(network, boundary, paths.crops, task, augmentation, params.seed)
    copies = 0 if architecture.backbone is None else augmentation.copies
    result = fit(
        suffix,
        inputs,
        task,
        settings,
        params.training,
        stage=stage,
        seed=params.seed,
        copies=copies,
        states=states_folder(),
        attention=attention,
    )
    if keras.config.dtype_policy().name != "float32" or params.training.cache_dtype != "float32":
        # The threshold and the figures belong to the network as it is saved and used, which rounds nothing.
        plain = replace(inputs, prefix=None, cache=None)
        probabilities = predict_rows(in_float32(network, architecture), plain, task.val)
        result = replace(result, val_probabilities=probabilities)
    proof = read_json(paths.proof)
    temperature, threshold = _operating_point(task, result, params.training.sensitivity)
    description = Description(
        architecture=architecture,
        stage=stage,
        dataset=params.dataset,
        protocol=proof["protocol"],
        seed=params.seed,
        unfrozen_blocks=None if architecture.backbone is None else unfrozen_blocks,
        blocks=_block_ends(architecture),
        threshold=threshold,
        temperature=temperature,
        environment=environment(params.training.threads),
    )
    save_classifier(paths.model, Classifier(description, network))
    metrics = describe_training(task, result, proof, network, suffix, params.seed)
    write_json(paths.metrics, metrics)
    write_table(paths.history, result.history)
    seconds = time.perf_counter() - started
    print(
        f"{stage}: validation accuracy {metrics['validation']['accuracy']:.4f}, AUC {metrics['validation']['auc']:.4f} "
        f"at epoch {result.kept_epoch} of {len(result.history)}, {seconds:.0f} s"
    )
    with tempfile.TemporaryDirectory() as folder:
        curves = Path(folder) / f"{stage}.png"
        draw_history(curves, result.history, stage, result.kept_epoch)
        tracking.log_stage(
            stage,
            params={
                "seed": params.seed,
                "dataset": params.dataset,
                stage: settings.model_dump(),
                "training": params.training.model_dump(),
                "augment": augmentation.model_dump(),
                "architecture": architecture.model_dump(),
            },
            history=result.history,
            metrics={f"validation.{name}": value for name, value in metrics["validation"].items()},
            tags={
                "lesionlab.protocol": proof["protocol"],
                "lesionlab.crops": file_digest(paths.crops / "index.csv"),
                "lesionlab.data": file_digest(paths.split),
            },
            pictures=[curves],
            seconds=seconds,
        )


def read_task(crops: Path, split: Path, classes: list[str]) -> Task:
    """Class numbers, and the rows that train and validate. Raises InputError on a label that is not in `classes`."""
    index = read_split(split, read_index(crops))
    unknown = sorted(set(index["label"]) - set(classes))
    if unknown:
        raise InputError(f"{crops / 'index.csv'}: label '{unknown[0]}' is not one of {', '.join(classes)}")
    labels = index["label"].map({name: number for number, name in enumerate(classes)}).to_numpy()
    subset = index["subset"].to_numpy()
    return Task(labels, np.flatnonzero(subset == "train"), np.flatnonzero(subset == "val"), len(classes))


def teach_attention(
    network: keras.Model, boundary: str | None, crops: Path, task: Task, augmentation: AugmentParams, seed: int
) -> Attention:
    """What teaches the attention of `network` behind `boundary`, from the masks of training crops.

    Raises InputError where its head has no attention, the data set no masks, or no training crop lesion.
    """
    taught = with_attention(network, boundary)
    shape = network.get_layer(ATTENTION_MAP).output.shape[1:3]
    return Attention(taught, Lesions(read_lesions(crops), shape, augmentation, seed, task.train))


def describe_training(
    task: Task, result: Fit, proof: dict, network: keras.Model, suffix: keras.Model, seed: int
) -> dict:
    """metrics/<stage>.json: protocol and seed, validation figures at the best epoch, type and size of the network."""
    labels, probabilities = task.labels[task.val], result.val_probabilities
    scores = probabilities[:, 1] if task.classes == 2 else probabilities
    numbers = np.arange(task.classes)
    return {
        "protocol": proof["protocol"],
        "group_disjoint": proof["group_disjoint"],
        "grouped_by": proof["grouped_by"],
        "labels": proof["labels"],
        "seed": seed,
        "validation": {
            "accuracy": float((probabilities.argmax(axis=1) == labels).mean()),
            "auc": float(roc_auc_score(labels, scores, multi_class="ovr", labels=numbers)),
            "loss": float(log_loss(labels, probabilities, labels=numbers)),
            "crops": len(labels),
        },
        "kept_epoch": result.kept_epoch,
        "epochs": len(result.history),
        "dtype": network.dtype_policy.name,
        "parameters": network.count_params(),
        "trained_parameters": sum(int(np.prod(weight.shape)) for weight in suffix.trainable_weights),
    }


def _operating_point(task: Task, result: Fit, sensitivity: float | None) -> tuple[float, float | None]:
    """Temperature, and the threshold on the probabilities that it gives; both from validation crops."""
    labels = task.labels[task.val]
    logits = np.log(np.maximum(result.val_probabilities, np.finfo("float64").tiny))
    temperature = fit_temperature(labels, logits)
    if task.classes != 2:
        return temperature, None
    return temperature, choose_threshold(labels, softmax(logits, temperature)[:, 1], sensitivity)


def _block_ends(architecture: Architecture) -> list[str]:
    return [] if architecture.backbone is None else list(find_backbone(architecture.backbone).block_ends)
