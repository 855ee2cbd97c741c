"""Rows of `make bench` about training: the prefix cache, bfloat16 and memory, against the plain way in the same run.

The plain way is `model.fit` through the whole of VGG16 with its first blocks frozen. Weights (drawn at random), crops,
epochs, batch size, optimizer and validation after every epoch are the same; nothing is augmented. Both ways run all of
their epochs, ours with the cache and the state for resuming on the disk. Times are medians of ROUNDS rounds, in each of
which all ways take turns.

The floor is the ratio of counted multiply-adds: a forward pass of each layer, and for the layers that train a gradient
by their weights and, but for the first of them, one by their input. For bfloat16 it is that of the instructions that
take so many multiply-adds, and for memory that of the bytes which must be held.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import keras
import numpy as np
import pandas as pd

from benchmarks.peak import STATUS
from benchmarks.rows import Row
from lesionlab.files import repository_root, write_json, write_table
from lesionlab.models.backbones import preprocess
from lesionlab.models.networks import Architecture, build_network, freeze, in_float32, prefix_of
from lesionlab.models.saved import Classifier, Description, save_classifier
from lesionlab.params import AugmentParams, FitParams, TrainingParams
from lesionlab.progress import progress
from lesionlab.seeds import generator
from lesionlab.training.backend import bfloat16_in_hardware, start_keras
from lesionlab.training.fit import Task, fit, predict_rows
from lesionlab.training.prefix import Inputs

ROUNDS = 3
THREADS, BATCH = 2, 4
TRANSFER_EPOCHS, FINETUNE_EPOCHS, SWEEP_EPOCHS = 10, 20, 4
TRANSFER_CROPS, FINETUNE_CROPS = (20, 4), (8, 4)  # training, validation: few, so that all epochs can be run plainly
# As many as it takes for training to weigh more than what both types need alike: neither is run plainly.
BFLOAT16_CROPS, BFLOAT16_BATCH = (160, 32), 32
RATE, OTHER_RATE = 1e-4, 3e-5
MEMORY_CROPS, MEMORY_BATCH = 1000, 64
MULTIPLY_ADDS_AN_INSTRUCTION = {"float32": 16, "bfloat16": 32}  # of 512 bits (VFMADD231PS, VDPBF16PS)
VGG16 = Architecture(backbone="vgg16", dense=128, dropout=0.0, image_size=150, classes=["background", "polyp"])
SMALL = VGG16.model_copy(update={"backbone": "mobilenet_0.25", "image_size": 96})
REDUCED = VGG16.model_copy(update={"image_size": 64})
TRANSFER = f"transfer, VGG16 at 150 px, {TRANSFER_EPOCHS} epochs, cache included"
LAST_BLOCK = f"finetune, VGG16 at 150 px, last block, {FINETUNE_EPOCHS} epochs, cache included"
TWO_BLOCKS = f"finetune, last two blocks, {FINETUNE_EPOCHS} epochs"
AGAIN = "the same finetune (last block) again with another learning rate (cache warm)"
SWEEP = f"sweep unfrozen_blocks 0..2, {FINETUNE_EPOCHS} epochs, ours against three plain runs"
UPWARDS = f"sweep unfrozen_blocks 1..5 upwards, VGG16 at 64 px, {SWEEP_EPOCHS} epochs, against its parts"
MEMORY = "peak memory of finetune at 4 times the crops"
BFLOAT16 = "mixed_bfloat16 over float32"
NO_AUGMENTATION = AugmentParams(
    copies=0, horizontal_flip=False, vertical_flip=False, rotation=0, zoom=0, brightness=0, contrast=0
)


@dataclass(frozen=True)
class Case:
    """What is trained, and for how long. images: (n, size, size, 3) uint8; unfrozen_blocks: as in params.yaml."""

    architecture: Architecture
    images: np.ndarray
    task: Task
    unfrozen_blocks: int
    epochs: int
    seed: int
    batch_size: int = BATCH

    @property
    def boundary(self) -> str:
        """Where the frozen part ends."""
        return self.architecture.boundary(self.unfrozen_blocks)


def rows(seed: int) -> list[Row]:
    """Measure everything; Keras is started, or has been, with THREADS threads in float32."""
    start_keras(THREADS)
    transfer = _case(VGG16, *TRANSFER_CROPS, unfrozen_blocks=0, epochs=TRANSFER_EPOCHS, seed=seed)
    sweep = [_case(VGG16, *FINETUNE_CROPS, unfrozen_blocks=k, epochs=FINETUNE_EPOCHS, seed=seed) for k in range(3)]
    upwards = [_case(REDUCED, *FINETUNE_CROPS, unfrozen_blocks=k, epochs=SWEEP_EPOCHS, seed=seed) for k in range(1, 6)]
    rounded = _case(VGG16, *BFLOAT16_CROPS, unfrozen_blocks=1, epochs=FINETUNE_EPOCHS, seed=seed)
    rounded = replace(rounded, batch_size=BFLOAT16_BATCH)
    times: dict[str, list[float]] = {}

    def measure(name: str, seconds: float) -> None:
        times.setdefault(name, []).append(seconds)
        bar.update()

    bfloat16 = bfloat16_in_hardware()
    with progress(total=ROUNDS * (12 + 2 * bfloat16), desc="bench: training", unit="run") as bar:
        for _ in range(ROUNDS):
            measure("plain transfer", train_plainly(transfer))
            with _folder() as folder:
                measure("transfer", train(transfer, folder))
            for case in sweep:
                measure(f"plain {case.unfrozen_blocks}", train_plainly(case))
            with _folder() as folder:
                # As the pipeline runs it: the head alone first, then the finetune runs, the largest number of blocks
                # before the others, whose prefixes are computed on from its own.
                for case in (sweep[0], *reversed(sweep[1:])):
                    measure(f"sweep {case.unfrozen_blocks}", train(case, folder))
            with _folder() as folder:
                measure("last block", train(sweep[1], folder))
                measure("again", train(sweep[1], folder, OTHER_RATE))
            if bfloat16:
                with _folder() as folder:
                    measure("float32", train(rounded, folder))
                with _folder() as folder:
                    measure("bfloat16", train_in_bfloat16(rounded, folder))
            with _folder() as folder:
                whole, parts = sweep_and_parts(upwards, folder)
                measure("upwards", whole)
                measure("parts", parts)
    seconds = {name: median(values) for name, values in times.items()}
    plain, prefix, suffix = ([count(case) for case in sweep] for count in (plain_work, prefix_work, suffix_work))
    floors = [plain[k] / (prefix[k] + suffix[k]) for k in range(3)]
    transfer_floor = plain_work(transfer) / (prefix_work(transfer) + suffix_work(transfer))
    return [
        _row(TRANSFER, seconds["plain transfer"], seconds["transfer"], transfer_floor, 8, transfer),
        _row(LAST_BLOCK, seconds["plain 1"], seconds["last block"], floors[1], 3.3, sweep[1]),
        _row(TWO_BLOCKS, seconds["plain 2"], seconds["sweep 2"], floors[2], 1.4, sweep[2]),
        _row(AGAIN, seconds["plain 1"], seconds["again"], plain[1] / suffix[1], 4, sweep[1]),
        _row(
            SWEEP,
            sum(seconds[f"plain {k}"] for k in range(3)),
            sum(seconds[f"sweep {k}"] for k in range(3)),
            sum(plain) / (prefix[0] + prefix[1] + sum(suffix)),  # that of the head alone, and the deepest of the others
            2.5,
            sweep[0],
        ),
        _upwards_row(seconds, upwards),
        _bfloat16_row(seconds, rounded),
        memory_row(seed),
    ]


def train_plainly(case: Case) -> float:
    """Seconds that `model.fit` through the whole network takes."""
    network = build_network(case.architecture, case.seed)
    freeze(network, case.boundary)
    network.compile(
        optimizer=keras.optimizers.Adam(RATE),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    started = time.perf_counter()
    pixels = preprocess(case.images, case.architecture.preprocessing)
    targets = np.eye(case.task.classes, dtype="float32")[case.task.labels]
    train, val = case.task.train, case.task.val
    network.fit(
        pixels[train], targets[train], batch_size=case.batch_size, epochs=case.epochs, verbose=0,
        validation_data=(pixels[val], targets[val]), validation_batch_size=case.batch_size,
    )  # fmt: skip
    return time.perf_counter() - started


class TimedInputs(Inputs):
    """Inputs that note how long the frozen blocks took."""

    seconds = 0.0

    def prepare(self, rows: np.ndarray, versions: list[int], desc: str) -> None:
        """As it is, with a clock."""
        started = time.perf_counter()
        super().prepare(rows, versions, desc)
        self.seconds += time.perf_counter() - started


def train(case: Case, folder: Path, rate: float = RATE) -> float:
    """Seconds that the same takes by the code of the stages, with the cache and the state in `folder`."""
    return sum(train_in_parts(case, folder, rate))


def train_in_parts(case: Case, folder: Path, rate: float = RATE) -> tuple[float, float]:
    """Seconds of the frozen blocks, and of all else.

    Where the network is in bfloat16, the pass in float32 over the validation crops that closes a stage is part of it.
    """
    network = build_network(case.architecture, case.seed)
    settings = FitParams(
        augment=False,
        epochs=case.epochs,
        patience=case.epochs,
        learning_rate=rate,
        schedule="constant",
        keep="best",
    )
    training = TrainingParams(
        batch_size=case.batch_size, class_weights=True, label_smoothing=0, mixup=0, lesion_attention=0,
        sensitivity=None, dtype=keras.config.dtype_policy().name, prefix_cache=True, prefix_cache_gib=10,
        cache_dtype="float32", threads=THREADS,
    )  # fmt: skip
    started = time.perf_counter()
    suffix = freeze(network, case.boundary)
    ends = tuple(case.architecture.boundary(k) for k in range(5))[::-1]
    pixels = (case.images, case.architecture.preprocessing, NO_AUGMENTATION, case.seed, case.batch_size, THREADS)
    prefix = prefix_of(network, case.boundary) if case.boundary else None
    inputs = TimedInputs(*pixels, prefix=prefix, cache=folder / "prefix", block_ends=ends)
    fit(
        suffix,
        inputs,
        case.task,
        settings,
        training,
        stage="finetune",
        seed=case.seed,
        copies=0,
        states=folder / "runs",
    )
    if training.dtype != "float32":
        predict_rows(in_float32(network, case.architecture), Inputs(*pixels), case.task.val)
    return inputs.seconds, time.perf_counter() - started - inputs.seconds


def sweep_and_parts(cases: list[Case], folder: Path) -> tuple[float, float]:
    """Seconds of the runs one after the other, and of what none of them could do without.

    That is the training of each, and one pass through the frozen blocks of the one that freezes most. Upwards nothing
    is computed on from another run: each boundary lies before those that are there.
    """
    frozen, other = zip(*(train_in_parts(case, folder) for case in cases), strict=True)
    return sum(frozen) + sum(other), max(frozen) + sum(other)


def train_in_bfloat16(case: Case, folder: Path) -> float:
    """Seconds that `train` takes with networks built in mixed_bfloat16."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        return train(case, folder)
    finally:
        keras.config.set_dtype_policy("float32")


def memory_row(seed: int) -> Row:
    """Peak memory of the stage finetune with a small network, at MEMORY_CROPS and at 4 times that."""
    if not STATUS.exists():
        return Row(MEMORY, None, None, None, 1.0, None, 1.15, "only Linux tells a process's own peak")
    counts = (MEMORY_CROPS, 4 * MEMORY_CROPS)
    rounds = progress(range(ROUNDS), desc="bench: memory", unit="round")
    few, many = np.median([[_peak_memory(count, seed) for count in counts] for _ in rounds], axis=0)
    floor = np.divide(*(held_bytes(count, seed) for count in reversed(counts)))
    note = (
        f"MiB of ours at {counts[1]} crops over those at {counts[0]} (as plain), of the stage's process; "
        f"{SMALL.image_size} px, MobileNet 0.25; floor: bytes of weights, gradients, the optimizer, a batch and what "
        "each crop is known by"
    )
    return Row(MEMORY, float(few), float(many), float(many / few), float(floor), None, 1.15, note)


def held_bytes(count: int, seed: int) -> int:
    """Bytes that fine-tuning must hold at least, the program itself left out.

    Weights, and for those that train a gradient and Adam's two moments; a batch of activations at the boundary; of each
    crop its label, row number, place in the epoch's order and version, and the probabilities of validation crops.
    """
    case = _memory_case(np.zeros((count, SMALL.image_size, SMALL.image_size, 3), "uint8"), seed)
    network = build_network(case.architecture, case.seed)
    suffix = freeze(network, case.boundary)
    sizes = [sum(int(np.prod(weight.shape)) for weight in part) for part in (network.weights, suffix.trainable_weights)]
    batch = case.batch_size * int(np.prod(suffix.input_shape[1:]))
    crops = sum(part.nbytes for part in (case.task.labels, case.task.train, case.task.val))
    crops += 2 * case.task.train.nbytes + len(case.task.val) * case.task.classes * np.dtype("float64").itemsize
    return np.dtype("float32").itemsize * (sizes[0] + 3 * sizes[1] + batch) + crops


def multiply_adds(layer: keras.Layer) -> int:
    """Of one crop through a convolution or a dense layer; other layers of VGG16 multiply nothing."""
    if isinstance(layer, keras.layers.Conv2D):
        height, width = layer.output.shape[1:3]
        return height * width * int(np.prod(layer.kernel.shape))
    return int(np.prod(layer.kernel.shape)) if isinstance(layer, keras.layers.Dense) else 0


def plain_work(case: Case) -> int:
    """Of the plain way: everything forward at every step, the unfrozen part backward, validation every epoch."""
    forward, backward = _multiply_adds_a_crop(case)
    train, val = len(case.task.train), len(case.task.val)
    return case.epochs * (train * (sum(forward.values()) + backward) + val * sum(forward.values()))


def suffix_work(case: Case) -> int:
    """Of training the part after the boundary alone."""
    forward, backward = _multiply_adds_a_crop(case)
    suffix = forward["suffix"]
    return case.epochs * (len(case.task.train) * (suffix + backward) + len(case.task.val) * suffix)


def prefix_work(case: Case) -> int:
    """Of the frozen part, once a crop."""
    forward, _ = _multiply_adds_a_crop(case)
    return forward["prefix"] * len(case.images)


def _multiply_adds_a_crop(case: Case) -> tuple[dict[str, int], int]:
    """Multiply-adds of one crop forward, in the frozen part and behind it, and backward."""
    network = build_network(case.architecture, case.seed)
    suffix = freeze(network, case.boundary)
    frozen = {layer.name for layer in prefix_of(network, case.boundary).layers} if case.boundary else set()
    trained = [multiply_adds(layer) for layer in suffix.layers if layer.name not in frozen and layer.weights]
    prefix = sum(multiply_adds(layer) for layer in network.layers if layer.name in frozen)
    return {"prefix": prefix, "suffix": sum(trained)}, 2 * sum(trained) - trained[0]


def _case(architecture: Architecture, train: int, val: int, *, unfrozen_blocks: int, epochs: int, seed: int) -> Case:
    images = _noise(train + val, architecture.image_size, seed)
    return Case(architecture, images, _task(train, val), unfrozen_blocks, epochs, seed)


def _memory_case(images: np.ndarray, seed: int) -> Case:
    """An epoch of fine-tuning the last block of a small network; a quarter of the crops validates."""
    train = len(images) * 3 // 4
    return Case(SMALL, images, _task(train, len(images) - train), 1, 1, seed, MEMORY_BATCH)


def _noise(count: int, size: int, seed: int) -> np.ndarray:
    return generator(seed, "bench", "crops", size).integers(256, size=(count, size, size, 3), dtype="uint8")


def _task(train: int, val: int) -> Task:
    numbers = np.arange(train + val)
    return Task(numbers % 2, numbers[:train], numbers[train:], classes=2)


def _crops(case: Case) -> str:
    return (
        f"{len(case.task.train)} training and {len(case.task.val)} validation crops, batches of {case.batch_size}, all "
        f"{case.epochs} epochs run"
    )


def _row(name: str, plain: float, ours: float, floor: float, at_least: float, case: Case) -> Row:
    return Row(name, plain, ours, plain / ours, floor, at_least, note=_crops(case))


def _upwards_row(seconds: dict[str, float], cases: list[Case]) -> Row:
    whole, parts = seconds["upwards"], seconds["parts"]
    trained, passes = sum(map(suffix_work, cases)), list(map(prefix_work, cases))
    note = f"plain: of the same runs the trainings and one pass through the frozen blocks; {_crops(cases[0])}"
    floor = (trained + sum(passes)) / (trained + max(passes))
    return Row(UPWARDS, parts, whole, whole / parts, floor, None, 1.1, note)


def _bfloat16_row(seconds: dict[str, float], case: Case) -> Row:
    work, at_least = prefix_work(case) + suffix_work(case), 1.4
    forward, _ = _multiply_adds_a_crop(case)
    closing = len(case.task.val) * sum(forward.values())  # in float32
    rate = MULTIPLY_ADDS_AN_INSTRUCTION
    floor = (work / rate["float32"]) / (work / rate["bfloat16"] + closing / rate["float32"])
    if "bfloat16" not in seconds:
        return Row(BFLOAT16, None, None, None, floor, at_least, note="this processor does not multiply bfloat16")
    plain, ours = seconds["float32"], seconds["bfloat16"]
    note = "finetune of the last block, cache included, by ours in both; with the closing pass in float32; floor: "
    note += f"instructions of 512 bits; {_crops(case)}"
    return Row(BFLOAT16, plain, ours, plain / ours, floor, at_least, note=note)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    keras.utils.clear_session()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        yield Path(folder)


def _peak_memory(count: int, seed: int) -> float:
    """MiB that the process of `stages.finetune` takes at most for an epoch on `count` crops."""
    with _folder() as folder:
        settings = _write_inputs(folder, _memory_case(_noise(count, SMALL.image_size, seed), seed))
        files = {
            "crops": "crops", "split": "split.csv", "proof": "split.json", "start": "transfer",
            "model": "finetune", "metrics": "finetune.json", "history": "finetune.csv",
        }  # fmt: skip
        options = [word for name, file in files.items() for word in (f"--{name}", str(folder / file))]
        changes = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        result = subprocess.run(
            [sys.executable, "-m", "benchmarks.peak", "stages.finetune", *options, *changes],
            cwd=repository_root(),
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "DVC_ROOT": str(folder)},  # caches, and MLflow's database
            capture_output=True,
            text=True,
        )
    if result.returncode:
        raise RuntimeError(result.stderr)
    return float(result.stdout.splitlines()[-1])


def _write_inputs(folder: Path, case: Case) -> dict[str, object]:
    """What the stages before finetune would have written for a case. Returns the settings that go with it."""
    (folder / "crops").mkdir()
    np.save(folder / "crops" / "images.npy", case.images)
    numbers, size = np.arange(len(case.images)), case.architecture.image_size
    index = pd.DataFrame({"id": numbers, "label": np.take(case.architecture.classes, case.task.labels)})
    frames = {"group": numbers, "frame": numbers, "x": 0, "y": 0, "width": size, "height": size, "official": ""}
    write_table(folder / "crops" / "index.csv", index.assign(**frames, hash="0" * 16, frame_digest="0" * 32))
    subset = np.where(np.isin(numbers, case.task.train), "train", "val")
    write_table(folder / "split.csv", pd.DataFrame({"id": numbers, "fold": 0, "subset": subset}))
    proof = {"protocol": "group", "group_disjoint": True, "grouped_by": "card", "labels": "true"}
    write_json(folder / "split.json", proof)
    description = Description(
        architecture=case.architecture, stage="transfer", dataset="phantom", protocol="group", seed=case.seed,
        unfrozen_blocks=0, blocks=[], threshold=None, environment={},
    )  # fmt: skip
    save_classifier(folder / "transfer", Classifier(description, build_network(case.architecture, case.seed)))
    return {
        "seed": case.seed,
        "training.batch_size": case.batch_size,
        "training.threads": THREADS,
        "finetune.unfrozen_blocks": case.unfrozen_blocks,
        "finetune.epochs": case.epochs,
        "finetune.augment": "false",
    }
