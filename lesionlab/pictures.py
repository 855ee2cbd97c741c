"""Pictures that stages share: contact sheets, and one colour for each model everywhere."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from lesionlab.files import whole_file

# Okabe and Ito's palette, told apart by colour-blind readers too; greys for models that do not look at shapes.
MODEL_COLOURS = {
    "baseline": "#E69F00", "transfer": "#0072B2", "finetune": "#009E73", "ensemble": "#CC79A7",
    "control_mean_colour": "#999999", "control_colour_histogram": "#555555",
}  # fmt: skip
# What is compared and is no model (subsets, labels, figures, rankings, controls): first, second and third of a picture.
# Indigo and sand of Tol's muted palette and a brown, at least 23 in CIELAB from the colours of models for readers of
# any colour vision (Machado et al. 2009), and farther from each other.
SERIES_COLOURS = ("#332288", "#8C510A", "#DDCC77")
OTHER_COLOUR = "black"  # of a model that the pipeline does not name
LESION_COLOUR = "#56B4E9"
HIT_COLOUR = "#009E73"
MISS_COLOUR = "#D55E00"
POSITION_DIGITS = 6  # of parts of a figure
GAP = 2  # pixels between the pictures of a contact sheet


def model_colour(model: str) -> str:
    """The colour of a model in every picture."""
    return MODEL_COLOURS.get(model, OTHER_COLOUR)


def save_figure(figure: plt.Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all, with the same bytes at every run."""
    if figure.get_layout_engine() is not None:
        _settle(figure)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def _settle(figure: plt.Figure) -> None:
    """Put the axes where the layout engine wants them, to a thousandth of a pixel.

    Its solver does not give the last bits again in another process, which would move the grey levels of pictures.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position(np.round(axes.get_position().bounds, POSITION_DIGITS))


def save_contact_sheet(path: Path, rows: list[tuple[str, np.ndarray]], columns: int) -> None:
    """Titled blocks of equal pictures, `columns` a line.

    rows: (title, images (n, size, size, 3) uint8), one a block.
    """
    size = rows[0][1].shape[1]
    width = columns * (size + GAP) - GAP
    sheets = [_grid(images, columns, width) for _, images in rows]
    heights = [sheet.shape[0] for sheet in sheets]
    inches = 9.0
    figure, axes = plt.subplots(
        len(rows), 1, figsize=(inches, inches * sum(heights) / width + 0.4 * len(rows)),
        gridspec_kw={"height_ratios": heights}, squeeze=False,
    )  # fmt: skip
    for axis, sheet, (title, _) in zip(axes[:, 0], sheets, rows, strict=True):
        axis.imshow(sheet, interpolation="nearest")
        axis.set_title(title, loc="left", fontsize=10)
        axis.axis("off")
    save_figure(figure, path)


def _grid(images: np.ndarray, columns: int, width: int) -> np.ndarray:
    size = images.shape[1] if len(images) else 8
    lines = max(1, -(-len(images) // columns))
    sheet = np.full((lines * (size + GAP) - GAP, width, 3), 255, dtype="uint8")
    for position, image in enumerate(images):
        top, left = position // columns * (size + GAP), position % columns * (size + GAP)
        sheet[top : top + size, left : left + size] = image
    return sheet
