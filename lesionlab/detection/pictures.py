"""Overlays: the frame with lesion outline and boxes, and the heat map beside it."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle

from lesionlab.detection.boxes import NO_LESION
from lesionlab.detection.froc import RATES
from lesionlab.pictures import HIT_COLOUR, LESION_COLOUR, MISS_COLOUR, save_figure


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
