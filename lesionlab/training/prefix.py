"""The frozen part of a network, computed once a crop: activations in a memory-mapped, content-addressed cache."""

import errno
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from filelock import FileLock

from lesionlab.files import repository_root, whole_file
from lesionlab.models.backbones import Preprocessing, preprocess
from lesionlab.models.saved import pad_batch
from lesionlab.params import AugmentParams
from lesionlab.progress import progress
from lesionlab.training.augmentation import augment, draw_augmentation
from lesionlab.training.backend import environment

BYTES_A_BLOCK = 512  # of st_blocks
PLAIN = -1  # the version of a crop that is not augmented


@dataclass
class Inputs:
    """What the trainable part of a network is fed: pixels, or activations at the freeze boundary.

    images: (n, size, size, 3) uint8. prefix: the frozen part, None when everything trains.
    cache: folder for activations, None to compute them again at every batch.
    """

    images: np.ndarray
    preprocessing: Preprocessing
    augmentation: AugmentParams
    seed: int
    batch_size: int
    threads: int
    prefix: keras.Model | None = None
    cache: Path | None = None
    cache_bytes: float = float("inf")

    def __post_init__(self):
        self._entries: dict[int, _Entry] = {}
        self._drawn: tuple[int, np.ndarray] = (PLAIN, np.zeros(0))
        if self.prefix is not None and self.cache is not None:
            self._identity = {
                "weights": _weights_digest(self.prefix),
                "boundary": self.prefix.output_names[0],
                "crops": _array_digest(self.images),
                "preprocessing": self.preprocessing,
                "batch_size": self.batch_size,
                "environment": environment(self.threads),
            }

    def prepare(self, rows: np.ndarray, versions: list[int], desc: str) -> None:
        """Compute what the cache lacks of `rows` in each of `versions` (PLAIN or a number); nothing without a cache."""
        if self.prefix is None or self.cache is None:
            return
        todo = []
        for version in versions:
            entry = self._entry(version)
            todo += [(version, part) for part in _batches(rows[~entry.done[rows]], self.batch_size)]
        _require_space(self.cache, sum(len(part) for _, part in todo) * self._row_bytes)
        for version, part in progress(todo, desc=desc, unit="batch", leave=False):
            self._entries[version].write(part, self._activations(part, version))
        for version in versions:
            self._entries[version].commit()
        _limit_cache(self.cache, self.cache_bytes, {entry.folder for entry in self._entries.values()})

    def read(self, rows: np.ndarray, versions: np.ndarray) -> np.ndarray:
        """Inputs of at most `batch_size` crops, each in its version: (len(rows), ...) float32."""
        if self.prefix is not None and self.cache is not None:
            result = np.empty((len(rows), *self.prefix.output_shape[1:]), dtype="float32")
            for version in np.unique(versions):
                chosen = versions == version
                result[chosen] = self._entry(int(version)).values[rows[chosen]]
            return result
        pixels = np.empty((len(rows), *self.images.shape[1:]), dtype="float32")
        for version in np.unique(versions):
            chosen = versions == version
            pixels[chosen] = self._pixels(rows[chosen], int(version))
        return self._run_prefix(pixels)

    @property
    def _row_bytes(self) -> int:
        return 4 * int(np.prod(self.prefix.output_shape[1:]))

    def _activations(self, rows: np.ndarray, version: int) -> np.ndarray:
        return self._run_prefix(self._pixels(rows, version))

    def _run_prefix(self, pixels: np.ndarray) -> np.ndarray:
        inputs = preprocess(pixels, self.preprocessing)
        if self.prefix is None:
            return inputs
        # One batch size everywhere: a convolution may round differently at another.
        return np.asarray(self.prefix.predict_on_batch(pad_batch(inputs, self.batch_size)))[: len(pixels)]

    def _pixels(self, rows: np.ndarray, version: int) -> np.ndarray:
        pixels = np.asarray(self.images[rows], dtype="float32")
        if version == PLAIN:
            return pixels
        if self._drawn[0] != version:
            self._drawn = version, draw_augmentation(self.augmentation, self.seed, version, len(self.images))
        return augment(pixels, self._drawn[1][rows])

    def _entry(self, version: int) -> "_Entry":
        if version not in self._entries:
            augmentation = None
            if version != PLAIN:
                settings = self.augmentation.model_dump(exclude={"copies"})
                augmentation = {**settings, "seed": self.seed, "version": version}
            identity = {**self._identity, "augmentation": augmentation}
            shape = (len(self.images), *self.prefix.output_shape[1:])
            self._entries[version] = _Entry(self.cache, identity, shape)
        return self._entries[version]


class _Entry:
    """Activations of one version of all crops, and which rows are there; filled as rows are asked for."""

    def __init__(self, cache: Path, identity: dict, shape: tuple[int, ...]):
        text = json.dumps(identity, sort_keys=True)
        self.folder = cache / hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / "lock")
        self._path = self.folder / "activations.npy"
        with self._lock:
            if not self._path.exists():
                # A record of values that somebody deleted vouches for nothing.
                (self.folder / "done.npy").unlink(missing_ok=True)
                with whole_file(self._path) as temporary:
                    np.lib.format.open_memmap(temporary, "w+", "float32", shape).flush()
                (self.folder / "identity.json").write_text(json.dumps(identity, indent=2) + "\n")
            self.done = self._read_done(shape[0])
            self.values = np.lib.format.open_memmap(self._path, "r+")
            self._inode = self._path.stat().st_ino
            os.utime(self.folder)

    def write(self, rows: np.ndarray, values: np.ndarray) -> None:
        self.values[rows] = values
        self.done[rows] = True

    def commit(self) -> None:
        """Data first, then the record of it: a crash in between costs work, never correctness.

        Nothing is recorded when the cache was deleted meanwhile: this run goes on with the values that it has open.
        """
        self.values.flush()
        with self._lock:
            if not self._path.exists() or self._path.stat().st_ino != self._inode:
                return
            self.done |= self._read_done(len(self.done))
            with whole_file(self.folder / "done.npy") as temporary, temporary.open("wb") as stream:
                np.save(stream, self.done)

    def _read_done(self, count: int) -> np.ndarray:
        path = self.folder / "done.npy"
        return np.load(path) if path.exists() else np.zeros(count, dtype=bool)


def cache_folder() -> Path:
    """Outside the outs and below the repository's root, so that runs in temporary copies share it."""
    return repository_root() / ".lesionlab" / "prefix"


def _limit_cache(cache: Path, limit: float, keep: set[Path]) -> None:
    """Delete the entries that were used longest ago until the cache is within its limit; never those in use here."""
    entries = sorted(entry for entry in map(_use_and_size, cache.iterdir()) if entry)
    total = sum(size for _, size, _ in entries)
    for _, size, path in entries:
        if total <= limit:
            return
        if path not in keep:
            with FileLock(path / "lock"):  # not while another run opens it or records in it
                shutil.rmtree(path, ignore_errors=True)
            total -= size


def _use_and_size(path: Path) -> tuple[float, int, Path] | None:
    """When an entry was last used, and its size in bytes; None when another run is just deleting it."""
    try:
        return path.stat().st_mtime, sum(file.stat().st_blocks * BYTES_A_BLOCK for file in path.iterdir()), path
    except (FileNotFoundError, NotADirectoryError):
        return None


def _require_space(cache: Path, needed: int) -> None:
    """Raises OSError where the disk would fill: a write through a memory map would end the process instead."""
    cache.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(cache).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(cache))


def _batches(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def _weights_digest(model: keras.Model) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for weight in model.weights:
        digest.update(f"{weight.path.split('/', 1)[-1]}{tuple(weight.shape)}".encode())
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)))
    return digest.hexdigest()


def _array_digest(array: np.ndarray) -> str:
    digest = hashlib.blake2b(f"{array.dtype}{array.shape}".encode(), digest_size=16)
    for start in range(0, len(array), 1024):
        digest.update(np.ascontiguousarray(array[start : start + 1024]))
    return digest.hexdigest()
