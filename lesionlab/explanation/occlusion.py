"""Occlusion sensitivity of one picture: how much the odds of a class fall when a square of it is hidden.

    python -m lesionlab.explanation.occlusion --model models/finetune --image file.jpg --out found.png

writes  found.png   the picture, and the fall of the log odds over it
        found.csv   x, y, width, height of each hidden square (pixels of the picture), probability, fall
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import pandas as pd
from PIL import Image
from typer import Option

from lesionlab.errors import InputError
from lesionlab.params import read_params
from lesionlab.stage import run

if TYPE_CHECKING:
    from lesionlab.models.saved import Classifier


def main(
    model: Annotated[Path, Option(help="folder of the model")],
    image: Annotated[Path, Option(help="picture to explain")],
    out: Annotated[Path, Option(help="PNG file to write; the table goes beside it as CSV")],
    box: Annotated[
        tuple[int, int, int, int] | None, Option(help="x y width height of the part to look at; else all of it")
    ] = None,
    name: Annotated[str | None, Option("--class", help="class to explain; else the most probable one")] = None,
    patch: Annotated[float, Option(help="side of the hidden square, in parts of the picture", min=0.02, max=1)] = 0.2,
    stride: Annotated[float, Option(help="step between squares, in parts of the square", min=0.05, max=1)] = 0.25,
) -> None:
    """Explain one picture and write PNG and CSV."""
    from lesionlab.training.backend import start_keras

    params = read_params()
    start_keras(params.training.threads)  # before anything that imports Keras
    from lesionlab.data.crops import content_box, cut
    from lesionlab.data.readers import read_rgb
    from lesionlab.explanation.pictures import draw_occlusion
    from lesionlab.files import write_table
    from lesionlab.models.saved import load_classifier

    if out.suffix.lower() != ".png":
        raise InputError(f"{out}: --out must end in .png")
    classifier, pixels = load_classifier(model), read_rgb(image)
    classes, size = classifier.description.architecture.classes, classifier.description.architecture.image_size
    if name is not None and name not in classes:
        raise InputError(f"--class {name}: {model} knows {', '.join(classes)}")
    window = content_box(pixels) if box is None else box
    x, y, width, height = window
    if min(x, y) < 0 or min(width, height) < 1 or x + width > pixels.shape[1] or y + height > pixels.shape[0]:
        raise InputError(f"--box {x} {y} {width} {height}: outside of {image}, {pixels.shape[1]}x{pixels.shape[0]}")
    crop = cut(Image.fromarray(pixels), window, size)
    whole = classifier.predict(crop[None], np.arange(1), 1)[0]
    target = int(whole.argmax()) if name is None else classes.index(name)
    table = occlusion(classifier, crop, target, patch, stride, params.training.batch_size)
    heat = fall_map(table, size)
    corners = table[["x", "y", "width", "height"]] * np.array([width, height, width, height]) / size
    table[["x", "y", "width", "height"]] = corners + np.array([x, y, 0, 0])
    title = f"{image.name}: {classes[target]} {whole[target]:.3f}"
    draw_occlusion(out, pixels[y : y + height, x : x + width], heat, title, classes[target])
    write_table(out.with_suffix(".csv"), table)
    largest = table.loc[table["fall"].idxmax()]
    print(
        f"{title}; hidden at x {largest['x']:.0f}, y {largest['y']:.0f} it falls most, to {largest['probability']:.3f}"
    )


def occlusion(
    classifier: "Classifier", crop: np.ndarray, target: int, patch: float, stride: float, batch_size: int
) -> pd.DataFrame:
    """Hide a square of a crop, everywhere in turn, under the crop's mean colour.

    crop: (size, size, 3) uint8. patch: side of the square in parts of the crop; stride: step in parts of the square.
    Returns a row a square: x, y, width, height (pixels of the crop), probability of the class `target`, and fall of
    its log odds (natural logarithm; probabilities near 1 would hide it). Source: Zeiler & Fergus, ECCV 2014.
    """
    size = len(crop)
    side = max(1, round(patch * size))
    count = int(np.ceil((size - side) / max(stride * side, 1))) + 1
    starts = np.linspace(0, size - side, count).round().astype(int)
    corners = [(x, y) for y in starts for x in starts]
    images = np.repeat(crop[None], len(corners) + 1, axis=0)
    for hidden, (x, y) in zip(images[1:], corners, strict=True):
        hidden[y : y + side, x : x + side] = crop.mean(axis=(0, 1)).round()
    probabilities = classifier.predict(images, np.arange(len(images)), batch_size, "occlusion")
    others = np.delete(probabilities, target, axis=1).sum(axis=1)
    tiny = np.finfo("float64").tiny
    odds = np.log(np.maximum(probabilities[:, target], tiny)) - np.log(np.maximum(others, tiny))
    table = pd.DataFrame(corners, columns=["x", "y"]).assign(width=side, height=side)
    return table.assign(probability=probabilities[1:, target], fall=odds[0] - odds[1:])


def fall_map(table: pd.DataFrame, size: int) -> np.ndarray:
    """Mean fall of the squares over each pixel of the crop: (size, size)."""
    total, count = np.zeros((size, size)), np.zeros((size, size))
    for row in table.itertuples():
        part = np.s_[row.y : row.y + row.height, row.x : row.x + row.width]
        total[part] += row.fall
        count[part] += 1
    return total / np.maximum(count, 1)


if __name__ == "__main__":
    run(main, __doc__)
