"""What is seen of a frame, and a folder of it for frames that are searched more than once."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import disk_usage, rmtree
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from PIL import Image

from lesionlab.data.crops import Box, content_box
from lesionlab.data.readers import read_rgb
from lesionlab.files import STALE_SECONDS, repository_root

SPARE = 2 * 2**30  # bytes of the disk that are left to others: a frame too many is looked at again
DECODERS = 2  # threads; decoding holds no lock
# Windows of one size: boxes (n, 4) x, y, width, height in pixels of the frame, and what each of them shows (n, ...).
Look = tuple[np.ndarray, np.ndarray]
# A Look at windows of one size (their side in parts of a content's shorter side) for each of some frames.
LookAt = Callable[[Sequence[Image.Image], Sequence[Box], float], list[Look]]


class Seen(NamedTuple):
    """A frame that was looked at. shape: its height and width. looks: one for each window size.

    pixels: (height, width, 3) uint8 RGB; None where the frame was looked at earlier, and so was not read again.
    """

    shape: tuple[int, int]
    looks: list[Look]
    pixels: np.ndarray | None = None


class Looks:
    """Looks at frames of given names, kept in files: no frame is looked at twice, and they do not fill the memory."""

    def __init__(self, folder: Path, names: Iterable[str]):
        self._folder = folder
        self._numbers = {name: number for number, name in enumerate(names)}

    def keep(self, name: str, seen: Seen) -> None:
        """Write what was seen of a frame, without its pixels.

        If its name is one of those that will be asked for, and the disk has room.
        """
        if name not in self._numbers:
            return
        with suppress(FileNotFoundError):  # the caches were deleted meanwhile: the frame is looked at again
            if disk_usage(self._folder).free > SPARE:
                boxes = {f"boxes{k}": part for k, (part, _) in enumerate(seen.looks)}
                shown = {f"shown{k}": part for k, (_, part) in enumerate(seen.looks)}
                np.savez(self._path(name), shape=seen.shape, **boxes, **shown)

    def of(self, name: str) -> Seen | None:
        """What was seen of a frame; None where it was not looked at before."""
        if name not in self._numbers or not self._path(name).exists():
            return None
        with np.load(self._path(name)) as file:
            height, width = file["shape"].tolist()
            looks = [(file[f"boxes{k}"], file[f"shown{k}"]) for k in range(len(file.files) // 2)]
            return Seen((height, width), looks)

    def _path(self, name: str) -> Path:
        return self._folder / f"{self._numbers[name]}.npz"


def look_at_each(
    frames: Sequence[tuple[str, Path]], look: LookAt, sizes: Sequence[float], together: int, seen: Looks | None = None
) -> Iterator[Seen]:
    """What is seen of each frame (its name and file), in order.

    together: so many frames are read, and what they show is held, at a time. seen: those that were looked at before,
    which are not read again.
    """
    for begin in range(0, len(frames), together):
        part = frames[begin : begin + together]
        found = [None if seen is None else seen.of(name) for name, _ in part]
        new = [number for number, earlier in enumerate(found) if earlier is None]
        if new:
            with ThreadPoolExecutor(DECODERS) as pool:
                pixels = list(pool.map(read_rgb, [part[number][1] for number in new]))
            images, contents = [Image.fromarray(each) for each in pixels], [content_box(each) for each in pixels]
            by_size = [look(images, contents, size) for size in sizes]
            for number, each, looks in zip(new, pixels, zip(*by_size, strict=True), strict=True):
                found[number] = Seen(each.shape[:2], list(looks), each)
        yield from found


@contextmanager
def temporary_looks(names: Iterable[str]) -> Iterator[Looks]:
    """Looks that are deleted in the end, in the repository's folder of caches; so are those of killed runs."""
    top = repository_root() / ".lesionlab"
    top.mkdir(exist_ok=True)
    for left in top.glob("looks-*"):
        with suppress(FileNotFoundError):  # another run deletes it too
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                rmtree(left, ignore_errors=True)
    with TemporaryDirectory(prefix="looks-", dir=top) as folder:
        yield Looks(Path(folder), names)
