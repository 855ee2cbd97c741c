"""Pictures of explanations: heat on crops and on frames, and the figures that masks give."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from lesionlab.data.crops import Box
from lesionlab.pictures import LESION_COLOUR, SERIES_COLOURS, save_figure

HEAT_COLOURS = "inferno"
METHOD_NAMES = {"gradcam": "Grad-CAM", "hirescam": "HiResCAM", "attention": "attention"}
# What is compared, with a colour and a marker each.
COMPARED = {
    "": ("trained network", SERIES_COLOURS[0], "o"),
    "randomised_": ("randomised weights", SERIES_COLOURS[1], "s"),
    "random_": ("random map", SERIES_COLOURS[2], "^"),
}


@dataclass(frozen=True)
class Example:
    """A picture with its maps.

    title: one line or two. pixels: (height, width, 3) uint8. lesion: (height, width), or None without a mask.
    heat: a map (height, width) for each method. window: x, y, width, height of the crop that the title is about.
    """

    title: str
    pixels: np.ndarray
    lesion: np.ndarray | None
    heat: dict[str, np.ndarray]
    window: Box | None = None


def draw_heat(axis: plt.Axes, pixels: np.ndarray, heat: np.ndarray) -> None:
    """Heat over a picture, from clear where there is none to opaque colour at the map's maximum."""
    strength = heat / max(float(heat.max()), np.finfo("float32").tiny)
    axis.imshow(np.asarray(pixels).mean(axis=2), cmap="gray", vmin=0, vmax=255)
    axis.imshow(strength, cmap=HEAT_COLOURS, vmin=0, vmax=1, alpha=0.15 + 0.6 * strength)


def draw_examples(path: Path, blocks: dict[str, Sequence[Example]], note: str) -> None:
    """A block of columns for each kind of case; below each picture its maps, the lesion outlined in all of them."""
    kinds = {kind: examples for kind, examples in blocks.items() if examples}
    columns = max((len(examples) for examples in kinds.values()), default=1)
    names = _names_of(kinds)
    lines = 1 + len(names)
    inches, title, left = 1.45, 0.7, 0.5
    height = inches * lines + title
    figure = plt.figure(figsize=(inches * columns + left, height * max(len(kinds), 1)))
    parts = figure.subfigures(max(len(kinds), 1), 1, squeeze=False)[:, 0]
    for part, (kind, examples) in zip(parts, kinds.items(), strict=False):
        part.text(0.01, 1 - 0.1 / height, kind, va="top", fontsize=10, fontweight="bold")
        axes = part.subplots(lines, columns, squeeze=False)
        part.subplots_adjust(left / figure.get_figwidth(), 0.01, 0.99, 1 - title / height, wspace=0.05, hspace=0.05)
        for axis in axes.ravel():
            axis.axis("off")
        for column, example in zip(axes.T, examples, strict=False):
            column[0].set_title(example.title, fontsize=7)
            _draw_column(column, example)
        for axis, name in zip(axes[:, 0], ("crop", *names), strict=True):
            axis.text(-0.08, 0.5, name, transform=axis.transAxes, rotation=90, va="center", ha="right", fontsize=8)
    figure.text(0.01, -0.005, note, fontsize=7, va="top")
    save_figure(figure, path)


def draw_frames(path: Path, blocks: dict[str, Sequence[Example]], note: str) -> None:
    """A block of lines for each kind of case, a whole frame a line: the frame, and its heat by each method.

    Of the blocks at least one has an example; those without are left out.
    """
    kinds = {kind: examples for kind, examples in blocks.items() if examples}
    tallest = max(example.pixels.shape[0] / example.pixels.shape[1] for block in kinds.values() for example in block)
    # Lines of pictures below their titles. No layout engine: its solver moves grey levels from run to run.
    inches, title, above = 2.9, 0.3, 0.45
    picture, names = inches * tallest, _names_of(kinds)
    heights = [title + (picture + above) * len(examples) for examples in kinds.values()]
    figure = plt.figure(figsize=(inches * (1 + len(names)), sum(heights)))
    parts = figure.subfigures(len(kinds), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, height, (kind, examples) in zip(parts, heights, kinds.items(), strict=True):
        part.suptitle(kind, x=0.01, y=1 - 0.1 / height, ha="left", va="top", fontsize=10, fontweight="bold")
        axes = part.subplots(len(examples), 1 + len(names), squeeze=False)
        top = 1 - (title + above) / height
        part.subplots_adjust(0.01, 0.01, 0.99, top, wspace=0.04, hspace=above / picture)
        for line, example in zip(axes, examples, strict=True):
            _draw_column(line, example)
            for axis, name in zip(line, (example.title, *names), strict=True):
                axis.set_title(name, fontsize=8)
                axis.axis("off")
    figure.text(0.01, -0.005, note, fontsize=8, va="top")
    save_figure(figure, path)


def _names_of(kinds: dict[str, Sequence[Example]]) -> list[str]:
    """Names of the methods of all examples, in their order."""
    first = next((example for examples in kinds.values() for example in examples), None)
    return [] if first is None else [METHOD_NAMES[method] for method in first.heat]


def _draw_column(axes: Sequence[plt.Axes], example: Example) -> None:
    axes[0].imshow(example.pixels)
    for axis, heat in zip(axes[1:], example.heat.values(), strict=True):
        draw_heat(axis, example.pixels, heat)
    if example.lesion is not None and example.lesion.min() < 0.5 <= example.lesion.max():
        for axis in axes:
            axis.contour(example.lesion, levels=[0.5], colors=LESION_COLOUR, linewidths=1)
    if example.window is not None:
        x, y, width, height = example.window
        seen_on_white = [withStroke(linewidth=2.4, foreground="black")]
        for axis in axes:
            axis.add_patch(
                Rectangle(
                    (x - 0.5, y - 0.5), width, height, fill=False, edgecolor="white", linewidth=1.2,
                    path_effects=seen_on_white,
                )
            )  # fmt: skip


def draw_agreement(path: Path, figures: dict[str, dict], title: str) -> None:
    """Share of heat inside the lesion and pointing game with 95 % intervals, against both controls.

    figures: for each method what metrics/explain.json holds of it.
    """
    names = {
        "share_inside": "share of heat inside the lesion",
        "pointing": "pointing game: hottest pixel in the lesion",
    }
    shown, axes = plt.subplots(1, len(names), figsize=(9, 2.6), sharey=True, layout="constrained")
    for axis, (key, label) in zip(axes, names.items(), strict=True):
        for row, figure in enumerate(figures.values()):
            for offset, (prefix, (name, colour, marker)) in zip((-0.2, 0, 0.2), COMPARED.items(), strict=True):
                value, low, high = (figure[prefix + key][part] for part in ("value", "low", "high"))
                axis.errorbar(
                    value, row + offset, xerr=[[value - low], [high - value]], color=colour, marker=marker,
                    capsize=3, linestyle="none", label=name if row == 0 else None,
                )  # fmt: skip
        axis.set(xlabel=label, xlim=(-0.02, 1.02), yticks=range(len(figures)), ylim=(len(figures) - 0.5, -0.5))
        axis.set_yticklabels([METHOD_NAMES[method] for method in figures])
        axis.grid(alpha=0.3, axis="x")
    axes[0].legend(fontsize=8, loc="best")
    shown.suptitle(title, fontsize=9)
    save_figure(shown, path)


def draw_occlusion(path: Path, pixels: np.ndarray, heat: np.ndarray, title: str, name: str) -> None:
    """Left: the picture. Right: over it, the fall of the log odds of class `name` where it is hidden (blue: a rise).

    pixels: (height, width, 3) uint8. heat: of any size, over the same part.
    """
    height, width = pixels.shape[:2]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2 * height / width + 0.5), layout="constrained")
    left.imshow(pixels)
    right.imshow(pixels.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    limit = max(float(np.abs(heat).max()), 1e-6)
    shown = right.imshow(
        heat, cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=0.6, extent=(-0.5, width - 0.5, height - 0.5, -0.5)
    )
    for axis in (left, right):
        axis.axis("off")
    figure.colorbar(shown, ax=right, fraction=0.046, label=f"fall of the log odds of {name} when hidden")
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)
