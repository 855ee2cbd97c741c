"""Slide windows of several sizes over a frame, and lay what was said of them back over it."""

import numpy as np
from PIL import Image

from lesionlab.data.crops import Box


def window_grid(content: Box, fraction: float, stride: float) -> tuple[int, np.ndarray]:
    """Side in pixels, and corners (n, 2) x, y of the windows of one size that cover the content of a frame evenly.

    fraction: side in parts of the content's shorter side. stride: largest step, in parts of the side.
    """
    x, y, width, height = content
    side = max(8, round(fraction * min(width, height)))
    side = min(side, width, height)

    def starts(first: int, length: int) -> np.ndarray:
        count = int(np.ceil((length - side) / (stride * side))) + 1
        return first + np.linspace(0, length - side, count).round().astype(int)

    across, down = np.meshgrid(starts(x, width), starts(y, height))
    return side, np.stack([across.ravel(), down.ravel()], axis=1)


def cut_windows(image: Image.Image, content: Box, fraction: float, stride: float, size: int) -> tuple:
    """Boxes (n, 4) and pixels (n, size, size, 3) uint8 of the windows of one size.

    The frame is reduced once so that a window is `size` pixels wide; windows are views into it.
    """
    side, corners = window_grid(content, fraction, stride)
    x, y, width, height = content
    scale = size / side
    reduced_size = max(size, round(width * scale)), max(size, round(height * scale))
    reduced = np.asarray(image.resize(reduced_size, Image.Resampling.BILINEAR, box=(x, y, x + width, y + height)))
    left, top = ((corners - (x, y)) * scale).round().astype(int).T
    left, top = np.minimum(left, reduced_size[0] - size), np.minimum(top, reduced_size[1] - size)
    views = np.lib.stride_tricks.sliding_window_view(reduced, (size, size), axis=(0, 1))
    pixels = np.moveaxis(views[top, left], 1, -1)
    return np.column_stack([corners, np.full((len(corners), 2), side)]), pixels


def heat_map(boxes: np.ndarray, scores: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Mean score of the windows over each pixel, the mean over window sizes of each size's mean: (height, width)."""
    heat, sizes = np.zeros(shape), 0
    for side in np.unique(boxes[:, 2]):
        total, count = np.zeros(shape), np.zeros(shape)
        for (x, y, width, height), score in zip(boxes[boxes[:, 2] == side], scores[boxes[:, 2] == side], strict=True):
            total[y : y + height, x : x + width] += score
            count[y : y + height, x : x + width] += 1
        heat += total / np.maximum(count, 1)
        sizes += 1
    return heat / max(sizes, 1)
