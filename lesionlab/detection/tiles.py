"""Tile maps: a large picture in a grid of tiles, each of which is of one of the model's classes."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from lesionlab.data.crops import content_box, cut
from lesionlab.detection.boxes import BOX
from lesionlab.detection.windows import heat_map, window_grid
from lesionlab.errors import InputError
from lesionlab.models.networks import softmax
from lesionlab.models.saved import Classifier
from lesionlab.progress import progress

NO_TILE = -1  # in a class map: a pixel of the black margin, over which no tile lies


def classify_tiles(
    pixels: np.ndarray, classifier: Classifier, tile: int, stride: float, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The tiles that cover a picture inside its black margins: boxes (n, 4) x, y, width, height; probabilities (n, k).

    pixels: (height, width, 3) uint8 RGB, at least a tile high and wide. tile: side in pixels. stride: largest step in
    parts of a tile; at 1 tiles share no more than it takes to end with the picture.
    Each is cut out before it is reduced, as the training images were: its edges know nothing of its neighbours.
    """
    height, width = pixels.shape[:2]
    content = content_box(pixels)
    if min(content[2:]) < tile:
        content = (0, 0, width, height)
    side, corners = window_grid(content, tile / min(content[2:]), stride)
    boxes = np.column_stack([corners, np.full((len(corners), 2), side)])
    size = classifier.description.architecture.image_size
    logits = []
    for start in progress(range(0, len(boxes), batch_size), desc="tiles", unit="batch", leave=False):
        crops = [_cut_alone(pixels, box, size) for box in boxes[start : start + batch_size]]
        logits.append(classifier.logits(np.stack(crops), batch_size))
    return boxes, softmax(np.concatenate(logits), classifier.description.temperature)


def _cut_alone(pixels: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
    x, y, width, height = box
    return cut(Image.fromarray(pixels[y : y + height, x : x + width]), (0, 0, width, height), size)


def tiles_table(file: str, boxes: np.ndarray, probabilities: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """A row a tile: file, x, y, width, height (pixels), class (the most probable), probability, probability_<class>."""
    table = pd.DataFrame(boxes, columns=BOX)
    table.insert(0, "file", file)
    table["class"] = np.array(classes)[probabilities.argmax(axis=1)]
    table["probability"] = probabilities.max(axis=1)
    return table.assign(
        **{f"probability_{name}": column for name, column in zip(classes, probabilities.T, strict=True)}
    )


def save_maps(paths: Iterable[Path], boxes: np.ndarray, probabilities: np.ndarray, shape: tuple[int, int]) -> tuple:
    """Write each class's mean probability of the tiles over each pixel: greyscale PNG, 255 is probability 1.

    paths: one a class. Returns the class map (height, width) int16, the number of the most probable class or NO_TILE,
    and its probability (height, width), 0 without one. One class is held at a time: a slide of many is large.
    """
    called, highest = np.full(shape, NO_TILE, dtype="int16"), np.zeros(shape, dtype="float32")
    for number, path in enumerate(paths):
        mean = heat_map(boxes, probabilities[:, number], shape).astype("float32")
        Image.fromarray((mean * 255).round().astype("uint8")).save(path)
        called[mean > highest] = number
        np.maximum(highest, mean, out=highest)
    return called, highest


def map_names(classes: list[str]) -> list[str]:
    """File name of each class's map of a picture; what a file name cannot hold becomes '-'.

    Raises InputError when two classes would have one name, also where a file system takes large letters for small.
    """
    class_of: dict[str, str] = {}
    names = []
    for label in classes:
        name = re.sub(r"[^\w.+-]+", "-", label) + ".png"
        other = class_of.setdefault(name.casefold(), label)
        if other != label:
            raise InputError(
                f"the maps of the classes '{other}' and '{label}' would have one file name ({name}); rename one in the "
                "data set's card and train the model again"
            )
        names.append(name)
    return names
