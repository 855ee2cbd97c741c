"""The frozen part of a network, computed once a crop: activations in a memory-mapped, content-addressed cache."""

import hashlib
import json
import mmap
import os
import shutil
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import keras
import numpy as np
from filelock import FileLock

from lesionlab.errors import InputError
from lesionlab.files import repository_root, whole_file
from lesionlab.models.backbones import Preprocessing, preprocess
from lesionlab.models.networks import network_of, prefix_of
from lesionlab.models.saved import pad_batch
from lesionlab.params import AugmentParams
from lesionlab.progress import progress
from lesionlab.training.augmentation import augment, draw_augmentation
from lesionlab.training.backend import environment

BYTES_A_BLOCK = 512  # of st_blocks
PLAIN = -1  # the version of a crop that is not augmented
SECONDS_BETWEEN_COMMITS = 60.0  # while a cache is filled: what an interruption costs at most


@dataclass
class Inputs:
    """What the trainable part of a network is fed: pixels, or activations at the freeze boundary.

    images: (n, size, size, 3) uint8. prefix: the frozen part, None when everything trains.
    cache: folder for activations, None to compute them again at every batch. cache_dtype: how they are stored.
    block_ends: layers, from input to output, at which other runs may have cut; what the cache holds at one of them is
    computed on from there.
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
    cache_dtype: str = "float32"
    block_ends: tuple[str, ...] = ()

    def __post_init__(self):
        self._entries: dict[int, _Entry] = {}
        self._segments: dict[str, keras.Model] = {}
        self._drawn: tuple[int, np.ndarray] = (PLAIN, np.zeros(0))

    def prepare(self, rows: np.ndarray, versions: list[int], desc: str) -> None:
        """Compute what the cache lacks of `rows` in each of `versions` (PLAIN or a number); nothing without a cache."""
        if self.prefix is None or self.cache is None:
            return
        todo = []
        for version in versions:
            missing = rows[~self._entry(version).done[rows]]
            for source in self._shallower_entries(version) if len(missing) else []:
                there = source.done[missing]
                todo += [(version, source, part) for part in _batches(missing[there], self.batch_size)]
                missing = missing[~there]
            todo += [(version, None, part) for part in _batches(missing, self.batch_size)]
        row_bytes = np.dtype(self.cache_dtype).itemsize * int(np.prod(self.prefix.output_shape[1:]))
        _require_space(self.cache, sum(len(part) for _, _, part in todo) * row_bytes)
        committed = time.monotonic()
        for version, source, part in progress(todo, desc=desc, unit="batch", leave=False):
            values = self._activations(part, version) if source is None else self._activations_from(source, part)
            self._entries[version].write(part, values)
            if time.monotonic() - committed > SECONDS_BETWEEN_COMMITS:
                self._entries[version].commit()
                committed = time.monotonic()
        for version in versions:
            self._entries[version].commit()
        used = {entry.folder for entry in self._entries.values()}
        _limit_cache(self.cache, self.cache_bytes, used)

    def read(self, rows: np.ndarray, versions: np.ndarray) -> np.ndarray:
        """Inputs of at most `batch_size` crops, each in its version: (len(rows), ...) float32.

        From the cache where `prepare` was asked for them, else computed now.
        """
        if all(self._is_prepared(rows[versions == version], version) for version in np.unique(versions)):
            result = np.empty((len(rows), *self.prefix.output_shape[1:]), dtype="float32")
            for version in np.unique(versions):
                chosen = versions == version
                result[chosen] = self._entries[version].read(rows[chosen])
            return result
        pixels = np.empty((len(rows), *self.images.shape[1:]), dtype="float32")
        for version in np.unique(versions):
            chosen = versions == version
            pixels[chosen] = self._pixels(rows[chosen], int(version))
        return self._run_prefix(pixels)

    @cached_property
    def identity(self) -> dict:
        """What decides the inputs' values, the version of the crops aside."""
        return {
            "weights": None if self.prefix is None else weights_digest(self.prefix),
            "boundary": None if self.prefix is None else self.prefix.output_names[0],
            "crops": array_digest(self.images),
            "preprocessing": self.preprocessing,
            "batch_size": self.batch_size,
            "cache_dtype": self.cache_dtype,
            "environment": environment(self.threads),
            "code": code_digest("models/backbones.py", "training/augmentation.py", "training/prefix.py", "seeds.py"),
        }

    def _activations(self, rows: np.ndarray, version: int) -> np.ndarray:
        return self._run_prefix(self._pixels(rows, version))

    def _activations_from(self, source: "_Entry", rows: np.ndarray) -> np.ndarray:
        """The same from what the cache holds at a shallower boundary."""
        boundary = source.identity["boundary"]
        if boundary not in self._segments:
            start = self.prefix.get_layer(boundary).output
            self._segments[boundary] = network_of(start, self.prefix.output, "segment")
        return self._predict(self._segments[boundary], source.read(rows))

    def _run_prefix(self, pixels: np.ndarray) -> np.ndarray:
        inputs = preprocess(pixels, self.preprocessing)
        return inputs if self.prefix is None else self._predict(self.prefix, inputs)

    def _predict(self, model: keras.Model, batch: np.ndarray) -> np.ndarray:
        # One batch size everywhere: a convolution may round differently at another.
        values = model.predict_on_batch(pad_batch(batch, self.batch_size))
        return np.asarray(values, dtype="float32")[: len(batch)]

    def _pixels(self, rows: np.ndarray, version: int) -> np.ndarray:
        pixels = np.asarray(self.images[rows], dtype="float32")
        let_go(self.images)
        if version == PLAIN:
            return pixels
        if self._drawn[0] != version:
            self._drawn = version, draw_augmentation(self.augmentation, self.seed, version, len(self.images))
        return augment(pixels, self._drawn[1][rows])

    def _is_prepared(self, rows: np.ndarray, version: int) -> bool:
        return version in self._entries and bool(self._entries[version].done[rows].all())

    def _entry(self, version: int) -> "_Entry":
        if version not in self._entries:
            self._entries[version] = _Entry(self.cache, self._entry_identity(version), self._shape(self.prefix))
        return self._entries[version]

    def _shallower_entries(self, version: int) -> list["_Entry"]:
        """Entries of this version at earlier boundaries, the deepest first.

        None where storage rounds: an entry's values would depend on what the cache held when they were computed.
        """
        if not np.can_cast(self.prefix.compute_dtype, self.cache_dtype):
            return []
        found = []
        for boundary, weights in self._shallower_weights.items():
            identity = self._entry_identity(version) | {"boundary": boundary, "weights": weights}
            if _entry_folder(self.cache, identity).exists():
                shape = self._shape(self.prefix.get_layer(boundary))
                found.append(_Entry(self.cache, identity, shape))
        return found

    @cached_property
    def _shallower_weights(self) -> dict[str, str]:
        """Digest of the weights up to each end of a block inside the prefix, the deepest first."""
        inside = {layer.name for layer in self.prefix.layers} - set(self.prefix.output_names)
        ends = [end for end in reversed(self.block_ends) if end in inside]
        return {end: weights_digest(prefix_of(self.prefix, end)) for end in ends}

    def _entry_identity(self, version: int) -> dict:
        augmentation = None
        if version != PLAIN:
            settings = self.augmentation.model_dump(exclude={"copies"})
            augmentation = {**settings, "seed": self.seed, "version": version}
        return {**self.identity, "augmentation": augmentation}

    def _shape(self, end: keras.Model | keras.layers.Layer) -> tuple[int, ...]:
        return (len(self.images), *end.output.shape[1:])


class _Entry:
    """Activations of one version of all crops, and which rows are there; filled as rows are asked for."""

    def __init__(self, cache: Path, identity: dict, shape: tuple[int, ...]):
        self.identity = identity
        self.folder = _entry_folder(cache, identity)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / "lock")
        self._path = self.folder / "activations.npy"
        dtype = np.dtype(identity["cache_dtype"])
        # The .npy format knows no bfloat16.
        stored = np.dtype("uint16") if dtype == "bfloat16" else dtype
        with self._lock:
            if not self._path.exists():
                # A record of values that somebody deleted vouches for nothing.
                (self.folder / "done.npy").unlink(missing_ok=True)
                with whole_file(self._path) as temporary:
                    np.lib.format.open_memmap(temporary, "w+", stored, shape).flush()
                (self.folder / "identity.json").write_text(json.dumps(identity, indent=2) + "\n")
            self.done = self._read_done(shape[0])
            self._values = np.lib.format.open_memmap(self._path, "r+").view(dtype)
            self._inode = self._path.stat().st_ino
            os.utime(self.folder)

    def read(self, rows: np.ndarray) -> np.ndarray:
        values = np.asarray(self._values[rows])
        let_go(self._values)
        return values

    def write(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Raises InputError when a value is too large for the type that it is stored in."""
        with np.errstate(over="ignore"):
            stored = values.astype(self._values.dtype)
        if np.isinf(stored).any() and not np.isinf(values).any():
            raise InputError(
                f"activations at {self.identity['boundary']} reach {np.abs(values).max():.3g}, more than "
                f"{self._values.dtype} holds; set training.cache_dtype to bfloat16 or float32 in params.yaml"
            )
        self._values[rows] = stored
        self.done[rows] = True
        let_go(self._values)

    def commit(self) -> None:
        """Data first, then the record of it: a crash in between costs work, never correctness.

        Nothing is recorded when the cache was deleted meanwhile: this run goes on with the values that it has open.
        """
        self._values.flush()
        with self._lock:
            if not self._path.exists() or self._path.stat().st_ino != self._inode:
                return
            self.done |= self._read_done(len(self.done))
            with whole_file(self.folder / "done.npy") as temporary, temporary.open("wb") as stream:
                np.save(stream, self.done)

    def _read_done(self, count: int) -> np.ndarray:
        path = self.folder / "done.npy"
        return np.load(path) if path.exists() else np.zeros(count, dtype=bool)


def _entry_folder(cache: Path, identity: dict) -> Path:
    return cache / digest_of(identity)


def digest_of(identity: dict) -> str:
    """The name of what `identity`, of JSON's types, describes."""
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16).hexdigest()


def let_go(array: np.ndarray) -> None:
    """Take the pages of a memory-mapped file off the process: they stay in the system's cache of the file.

    Otherwise all that was ever read or written would count as the process's memory, which would grow with the crops.
    """
    if isinstance(array, np.memmap):
        array._mmap.madvise(mmap.MADV_DONTNEED)


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
    """Raises InputError where the disk would fill: a write through a memory map would end the process instead."""
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if free < needed:
        more, there = (f"{size / 2**30:.1f} GiB" for size in (needed, free))
        raise InputError(
            f"{cache}: the activations of the frozen blocks need {more} more, and {there} are free; free some, or set "
            "in params.yaml augment.copies to fewer or 0, training.cache_dtype to float16, or training.prefix_cache to "
            "false (slower, no cache)"
        )


def _batches(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def weights_digest(model: keras.Model) -> str:
    """Checksum of all weights with their names and shapes."""
    digest = hashlib.blake2b(digest_size=16)
    for weight in model.weights:
        digest.update(f"{weight.path.split('/', 1)[-1]}{tuple(weight.shape)}".encode())
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)))
    return digest.hexdigest()


def array_digest(array: np.ndarray) -> str:
    """Checksum of an array with its type and shape, read in parts."""
    digest = hashlib.blake2b(f"{array.dtype}{array.shape}".encode(), digest_size=16)
    for start in range(0, len(array), 1024):
        digest.update(np.ascontiguousarray(array[start : start + 1024]))
        let_go(array)
    return digest.hexdigest()


def code_digest(*patterns: str) -> str:
    """Checksum of files of this package: what other code computed is not what this code would compute."""
    package = Path(__file__).parent.parent
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for pattern in patterns for path in package.glob(pattern)):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
