"""Windows around lesions with their masks, wide enough that it matters where in them the heat lies."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from PIL import Image

from lesionlab.data.crops import Box, content_box, cut, fit_whole, lesion_boxes, lesion_windows, mask_image
from lesionlab.data.readers import Frame, read_mask, read_rgb
from lesionlab.params import CropParams
from lesionlab.progress import progress
from lesionlab.seeds import generator

COLUMNS = ["frame", "group", "label", "x", "y", "width", "height"]


@dataclass(frozen=True)
class LesionWindows:
    """Windows that hold a lesion.

    images: (n, size, size, 3) uint8 RGB. lesion: (n, size, size) float32, part of each pixel that is lesion.
    table: COLUMNS, a row a window; lengths in pixels of the frame.
    """

    images: np.ndarray
    lesion: np.ndarray
    table: pd.DataFrame

    def thinned(self, count: int) -> "LesionWindows":
        """At most `count` of the windows, evenly taken."""
        kept = evenly(list(range(len(self.table))), count)
        return LesionWindows(self.images[kept], self.lesion[kept], self.table.iloc[kept].reset_index(drop=True))


def lesion_windows_of(
    frames: Iterable[Frame], classes: list[str], params: CropParams, context: float, size: int, seed: int, desc: str
) -> LesionWindows:
    """A window for each lesion of the frames that have a mask; for labelled frames, the whole frame as it was cropped.

    context: margin around a lesion in parts of its longer side, in place of `crop.context`; the lesion lies anywhere
    inside, so that a map which always points at the centre gains nothing. Where the frame ends before the window
    does, the window is smaller.
    """
    wide = params.model_copy(
        update={
            "context": context, "jitter": context / 2 / (1 + context), "scale_jitter": 0.0, "positives_per_lesion": 1
        }
    )  # fmt: skip
    images, lesions, rows = [], [], []
    for frame in progress(list(frames), desc=desc, unit="frame", leave=False):
        if frame.mask is None:
            continue
        pixels = read_rgb(frame.image)
        mask = read_mask(frame.mask, params.mask_threshold, pixels.shape[1::-1], frame.image)
        components, boxes = lesion_boxes(mask, params.min_lesion_area)
        if not boxes:
            continue
        image, content = Image.fromarray(pixels), content_box(pixels)
        windows = [None]
        if frame.label is None:
            windows = lesion_windows(boxes, content, wide, generator(seed, "explain", frame.name))
        for window in windows:
            whole = window is None
            images.append(fit_whole(image, content, size, params.whole_image) if whole else cut(image, window, size))
            lesions.append(cut_mask(components > 0, content, window, size, params.whole_image))
            label = classes[-1] if frame.label is None else frame.label
            rows.append((frame.name, frame.group or frame.name, label, *(window or content)))
    return LesionWindows(
        np.stack(images) if images else np.zeros((0, size, size, 3), "uint8"),
        np.stack(lesions) if lesions else np.zeros((0, size, size), "float32"),
        pd.DataFrame(rows, columns=COLUMNS),
    )


def cut_mask(mask: np.ndarray, content: Box, window: Box | None, size: int, whole_image: str) -> np.ndarray:
    """(size, size) float32: the part of each pixel of a crop that is lesion. mask: (height, width) bool.

    window None: the whole content, as the crop stage fits it.
    """
    grey = mask_image(mask)
    covered = fit_whole(grey, content, size, whole_image) if window is None else cut(grey, window, size)
    return covered.astype("float32") / 255


def evenly(items: list, count: int) -> list:
    """At most `count` of the items, evenly taken."""
    return [items[k] for k in np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)]
