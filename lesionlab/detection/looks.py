"""What is seen of a frame, and a folder of it for frames that are searched more than once."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from lesionlab.data.crops import Box, content_box
from lesionlab.files import repository_root

# Windows of one size: boxes (n, 4) x, y, width, height in pixels of the frame, and what each of them shows (n, ...).
Look = tuple[np.ndarray, np.ndarray]


def look_at(pixels: np.ndarray, look: Callable[[Image.Image, Box, float], Look], sizes: Iterable[float]) -> list[Look]:
    """A Look for each window size of a frame, (height, width, 3) uint8 RGB."""
    image, content = Image.fromarray(pixels), content_box(pixels)
    return [look(image, content, size) for size in sizes]


class Looks:
    """Looks at frames of given names, kept in files: no frame is looked at twice, and memory does not grow."""

    def __init__(self, folder: Path, names: Iterable[str]):
        self._folder = folder
        self._numbers = {name: number for number, name in enumerate(names)}

    def keep(self, name: str, looks: list[Look]) -> None:
        """Write what was seen of a frame, if its name is one of those that will be asked for."""
        if name in self._numbers:
            boxes = {f"boxes{k}": part for k, (part, _) in enumerate(looks)}
            shown = {f"shown{k}": part for k, (_, part) in enumerate(looks)}
            np.savez(self._path(name), **boxes, **shown)

    def of(self, name: str) -> list[Look] | None:
        """What was seen of a frame; None where it was not looked at before."""
        if name not in self._numbers or not self._path(name).exists():
            return None
        with np.load(self._path(name)) as file:
            return [(file[f"boxes{k}"], file[f"shown{k}"]) for k in range(len(file.files) // 2)]

    def _path(self, name: str) -> Path:
        return self._folder / f"{self._numbers[name]}.npz"


@contextmanager
def temporary_looks(names: Iterable[str]) -> Iterator[Looks]:
    """Looks that are deleted in the end, in the repository's folder of caches."""
    top = repository_root() / ".lesionlab"
    top.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix="looks-", dir=top) as folder:
        yield Looks(Path(folder), names)
