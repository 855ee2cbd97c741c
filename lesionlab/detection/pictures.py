"""Overlays: the frame with lesion outline and boxes, and the heat map beside it; class maps of tiles."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from lesionlab.detection.boxes import NO_LESION
from lesionlab.detection.froc import RATES
from lesionlab.pictures import HIT_COLOUR, LESION_COLOUR, MISS_COLOUR, save_figure

# Of the classes of a tile map: Okabe and Ito's, as everywhere, and two greys.
CLASS_COLOURS = (
    "#D55E00", "#0072B2", "#F0E442", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#444444", "#AAAAAA",
)  # fmt: skip
DARKER = 0.55
MOST_DRAWN = 1200  # pixels a side


def draw_overlay(
    path: Path, pixels: np.ndarray, heat: np.ndarray, boxes: pd.DataFrame, mask: np.ndarray | None, title: str
) -> None:
    """Left: frame, outline of the lesion (where a mask is at hand) and boxes with scores. Right: heat map on the frame.

    pixels: (height, width, 3) uint8. heat: (height, width) in [0, 1]. boxes: x, y, width, height, score, and lesion
    where a mask is at hand (0: a false positive, drawn dashed).
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 9 * pixels.shape[0] / pixels.shape[1] / 2 + 0.5))
    for axis in (left, right):
        axis.imshow(pixels)
        axis.axis("off")
        if mask is not None and mask.any():
            axis.contour(mask, levels=[0.5], colors=LESION_COLOUR, linewidths=1.5)
    for row in boxes.itertuples():
        false = mask is not None and row.lesion == NO_LESION
        colour = MISS_COLOUR if false else HIT_COLOUR
        style = "--" if false else "-"
        left.add_patch(
            Rectangle((row.x, row.y), row.width, row.height, fill=False, edgecolor=colour, linestyle=style, linewidth=2)
        )
        left.text(
            row.x + 3, row.y + 3, f"{row.score:.2f}", color="white", fontsize=8, va="top",
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 1, "alpha": 0.8},
        )  # fmt: skip
    shown = right.imshow(heat, cmap="magma", alpha=0.55, vmin=0, vmax=1)
    figure.colorbar(shown, ax=right, fraction=0.046, pad=0.02, label="lesion probability")
    left.set_title(title, fontsize=9, loc="left")
    right.set_title("heat map", fontsize=9, loc="left")
    figure.tight_layout()
    save_figure(figure, path)


def draw_froc(path: Path, curve: pd.DataFrame, rate: float, title: str) -> None:
    """Sensitivity with its interval against false positives a frame, and the rate at which the threshold was chosen.

    curve: rows of `froc.froc_band`.
    """
    figure, axis = plt.subplots(figsize=(5, 4))
    # The last step holds up to the axis's end: no further box is there.
    steps = pd.concat([curve, curve.tail(1).assign(false_positives_per_frame=RATES[-1])])
    places = steps["false_positives_per_frame"]
    axis.fill_between(
        places,
        steps["low"],
        steps["high"],
        step="post",
        color=HIT_COLOUR,
        alpha=0.2,
        linewidth=0,
        label="95 % interval",
    )
    axis.step(places, steps["sensitivity"], where="post", color=HIT_COLOUR, linewidth=1.8, label="sensitivity")
    axis.axvline(rate, color="#666666", linestyle=":", linewidth=1.2, label=f"operating rate: {rate:g} a frame")
    axis.set(xlabel="false positives a frame", ylabel="sensitivity", ylim=(0, 1.01), xlim=(0, RATES[-1]), title=title)
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", fontsize=8)
    save_figure(figure, path)


def class_colours(count: int) -> list[np.ndarray]:
    """RGB in [0, 1] of each of `count` classes; from the tenth on the first nine darkened, and so on."""
    return [
        np.array(to_rgb(CLASS_COLOURS[number % len(CLASS_COLOURS)])) * DARKER ** (number // len(CLASS_COLOURS))
        for number in range(count)
    ]


def draw_class_map(
    path: Path, pixels: np.ndarray, called: np.ndarray, probability: np.ndarray, classes: list[str], title: str
) -> None:
    """The picture, the most probable class of each pixel, and the probability of that class; axes in pixels.

    The probability has a panel of its own: a class's colour made paler would be another class's.
    pixels: (height, width, 3) uint8. called: (height, width) number of the class, negative where none.
    probability: (height, width), 0 where none. The legend gives each class's share of the pixels that have one.
    """
    height, width = pixels.shape[:2]
    step = -(-max(height, width) // MOST_DRAWN)
    counts = np.bincount(called[called >= 0], minlength=len(classes))
    colours = class_colours(len(classes))
    palette = np.array([*colours, (1, 1, 1)])  # the last is of pixels without a class
    called, probability = called[::step, ::step], probability[::step, ::step]
    beside = height > 0.5 * width
    inches = 3.9 if beside else 8.0
    lines, columns = (1, 3) if beside else (3, 1)
    figure, axes = plt.subplots(
        lines, columns, layout="constrained", sharex=True, sharey=True,
        figsize=((inches + 0.3) * columns + 0.7, (inches * height / width + 0.4) * lines + 0.9),
    )  # fmt: skip
    place = {"extent": (0, width, height, 0), "interpolation": "nearest"}
    axes[0].imshow(Image.fromarray(pixels).resize(called.shape[::-1], Image.Resampling.BOX), **place)
    axes[1].imshow(palette[called], **place)
    shown = axes[2].imshow(probability, cmap="gray", vmin=0, vmax=1, **place)
    figure.colorbar(shown, ax=axes[2], fraction=0.046, pad=0.02).ax.tick_params(labelsize=8)
    for number, (axis, name) in enumerate(zip(axes, (title, "most probable class", "its probability"), strict=True)):
        axis.set_title(name, fontsize=9, loc="left")
        if not beside or number == 0:
            axis.set_ylabel("y, pixels", fontsize=8)
        if beside or number == lines - 1:
            axis.set_xlabel("x, pixels", fontsize=8)
        axis.tick_params(labelsize=8)
    patches = [
        Patch(facecolor=colour, edgecolor="black", linewidth=0.5, label=f"{name} {share:.1%}")
        for name, colour, share in zip(classes, colours, counts / max(counts.sum(), 1), strict=True)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(classes), 5), fontsize=9, frameon=False)
    save_figure(figure, path)
