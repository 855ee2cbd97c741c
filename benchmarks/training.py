"""Rows of `make bench` about training: the prefix cache, bfloat16 and memory, against the plain way in the same run.

The plain way is `model.fit` through the whole of VGG16 with its first blocks frozen. Weights (drawn at random), crops,
epochs, batch size, optimizer and validation after every epoch are the same; nothing is augmented. Of the plain way's
epochs, which are alike, PLAIN_EPOCHS are run and the later ones multiplied; ours runs all of its epochs, with the cache
and the state for resuming on the disk. Times are medians of ROUNDS rounds, in each of which all ways take turns.

The floor is the ratio of counted multiply-adds: a forward pass of each layer, and for the layers that train a gradient
by their weights and, but for the first of them, one by their input.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import keras
import numpy as np

from benchmarks.rows import Row
from lesionlab.files import repository_root
from lesionlab.models.backbones import preprocess
from lesionlab.models.networks import Architecture, build_network, freeze, prefix_of
from lesionlab.params import AugmentParams, FitParams, TrainingParams
from lesionlab.progress import progress
from lesionlab.seeds import generator
from lesionlab.training.backend import bfloat16_in_hardware, start_keras
from lesionlab.training.fit import Task, fit
from lesionlab.training.prefix import Inputs

ROUNDS = 3
PLAIN_EPOCHS = 2
THREADS, BATCH = 2, 16
TRANSFER_EPOCHS, FINETUNE_EPOCHS = 10, 20
TRANSFER_CROPS, FINETUNE_CROPS = (64, 16), (32, 16)  # training, validation
RATE, OTHER_RATE = 1e-4, 3e-5
MEMORY_CROPS = 2000
VGG16 = Architecture(backbone="vgg16", dense=128, dropout=0.0, image_size=150, classes=["background", "polyp"])
SMALL = VGG16.model_copy(update={"backbone": "mobilenet_0.25", "image_size": 96})
TRANSFER = f"transfer, VGG16 at 150 px, {TRANSFER_EPOCHS} epochs, cache included"
LAST_BLOCK = f"finetune, VGG16 at 150 px, last block, {FINETUNE_EPOCHS} epochs, cache included"
TWO_BLOCKS = f"finetune, last two blocks, {FINETUNE_EPOCHS} epochs"
AGAIN = "the same finetune (last block) again with another learning rate (cache warm)"
SWEEP = f"sweep unfrozen_blocks 0..2, {FINETUNE_EPOCHS} epochs, ours against three plain runs"
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

    @property
    def boundary(self) -> str:
        """Where the frozen part ends."""
        return self.architecture.boundary(self.unfrozen_blocks)


def rows(seed: int) -> list[Row]:
    """Measure everything; Keras is started, or has been, with THREADS threads in float32."""
    start_keras(THREADS)
    transfer = _case(VGG16, *TRANSFER_CROPS, unfrozen_blocks=0, epochs=TRANSFER_EPOCHS, seed=seed)
    sweep = [_case(VGG16, *FINETUNE_CROPS, unfrozen_blocks=k, epochs=FINETUNE_EPOCHS, seed=seed) for k in range(3)]
    times: dict[str, list[float]] = {}

    def measure(name: str, seconds: float) -> None:
        times.setdefault(name, []).append(seconds)
        bar.update()

    bfloat16 = bfloat16_in_hardware()
    with progress(total=ROUNDS * (10 + bfloat16), desc="bench: training", unit="run") as bar:
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
                    measure("bfloat16", train_in_bfloat16(sweep[1], folder))
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
        _bfloat16_row(seconds),
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
    times = []
    started = time.perf_counter()
    pixels = preprocess(case.images, case.architecture.preprocessing)
    targets = np.eye(case.task.classes, dtype="float32")[case.task.labels]
    train, val = case.task.train, case.task.val
    network.fit(
        pixels[train], targets[train], batch_size=BATCH, epochs=PLAIN_EPOCHS, verbose=0,
        validation_data=(pixels[val], targets[val]), validation_batch_size=BATCH,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: times.append(time.perf_counter()))],
    )  # fmt: skip
    first, later = times[0] - started, np.diff(times)
    return first + float(np.median(later)) * (case.epochs - 1)


def train(case: Case, folder: Path, rate: float = RATE) -> float:
    """Seconds that the same takes by the code of the stages, with the cache and the state in `folder`."""
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
        batch_size=BATCH, class_weights=True, label_smoothing=0, sensitivity=None,
        dtype=keras.config.dtype_policy().name, prefix_cache=True, prefix_cache_gib=10,
        cache_dtype="float32", threads=THREADS,
    )  # fmt: skip
    started = time.perf_counter()
    suffix = freeze(network, case.boundary)
    ends = tuple(case.architecture.boundary(k) for k in range(5))[::-1]
    inputs = Inputs(
        case.images, case.architecture.preprocessing, NO_AUGMENTATION, case.seed, BATCH, THREADS,
        prefix=prefix_of(network, case.boundary), cache=folder / "prefix", block_ends=ends,
    )  # fmt: skip
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
    return time.perf_counter() - started


def train_in_bfloat16(case: Case, folder: Path) -> float:
    """Seconds that `train` takes with networks built in mixed_bfloat16."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        return train(case, folder)
    finally:
        keras.config.set_dtype_policy("float32")


def memory_row(seed: int) -> Row:
    """Peak memory of fine-tuning a small network, in processes of their own, at MEMORY_CROPS and at 4 times that."""
    if not Path("/proc/self/status").exists():
        return Row(MEMORY, None, None, None, 1.0, None, 1.15, "only Linux tells a process's own peak")
    few, many = (_peak_memory(count, seed) for count in (MEMORY_CROPS, 4 * MEMORY_CROPS))
    note = f"MiB of ours at {4 * MEMORY_CROPS} crops over those at {MEMORY_CROPS} (as plain); 96 px, MobileNet 0.25"
    return Row(MEMORY, few, many, many / few, 1.0, None, 1.15, note)


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
    frozen = {layer.name for layer in prefix_of(network, case.boundary).layers}
    trained = [multiply_adds(layer) for layer in suffix.layers if layer.name not in frozen and layer.weights]
    prefix = sum(multiply_adds(layer) for layer in network.layers if layer.name in frozen)
    return {"prefix": prefix, "suffix": sum(trained)}, 2 * sum(trained) - trained[0]


def _case(architecture: Architecture, train: int, val: int, *, unfrozen_blocks: int, epochs: int, seed: int) -> Case:
    count, size = train + val, architecture.image_size
    images = generator(seed, "bench", "crops", size).integers(256, size=(count, size, size, 3), dtype="uint8")
    numbers = np.arange(count)
    task = Task(numbers % 2, numbers[:train], numbers[train:], classes=2)
    return Case(architecture, images, task, unfrozen_blocks, epochs, seed)


def _row(name: str, plain: float, ours: float, floor: float, at_least: float, case: Case) -> Row:
    note = (
        f"{len(case.task.train)} training and {len(case.task.val)} validation crops, batches of {BATCH}; plain: "
        f"{PLAIN_EPOCHS} of {case.epochs} epochs run, the later ones multiplied"
    )
    return Row(name, plain, ours, plain / ours, floor, at_least, note=note)


def _bfloat16_row(seconds: dict[str, float]) -> Row:
    at_least, floor = 1.4, 2.0
    if "bfloat16" not in seconds:
        return Row(BFLOAT16, None, None, None, floor, at_least, note="this processor does not multiply bfloat16")
    plain, ours = seconds["last block"], seconds["bfloat16"]
    note = "finetune of the last block, cache included, by ours in both; floor: two bfloat16 in the place of a float32"
    return Row(BFLOAT16, plain, ours, plain / ours, floor, at_least, note=note)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    keras.utils.clear_session()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        yield Path(folder)


def _peak_memory(count: int, seed: int) -> float:
    """MiB that a process of its own takes at most for an epoch on `count` crops, which lie in a file."""
    with _folder() as folder:
        case = _case(SMALL, count * 3 // 4, count // 4, unfrozen_blocks=1, epochs=1, seed=seed)
        np.save(folder / "images.npy", case.images)
        result = subprocess.run(
            [sys.executable, "-m", "benchmarks.training", str(folder), str(seed)],
            cwd=repository_root(), env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True,
        )  # fmt: skip
    if result.returncode:
        raise RuntimeError(result.stderr)
    return float(result.stdout)


def _print_peak_memory(folder: Path, seed: int) -> None:
    """Train on the crops in `folder` and print this process's peak: VmHWM, since ru_maxrss begins at the parent's."""
    start_keras(THREADS)
    images = np.load(folder / "images.npy", mmap_mode="r")
    numbers = np.arange(len(images))
    task = Task(numbers % 2, numbers[: len(images) * 3 // 4], numbers[len(images) * 3 // 4 :], classes=2)
    train(Case(SMALL, images, task, 1, 1, seed), folder)
    status = Path("/proc/self/status").read_text()
    kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    print(kib / 1024)


if __name__ == "__main__":
    _print_peak_memory(Path(sys.argv[1]), int(sys.argv[2]))
