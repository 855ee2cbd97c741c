"""Boxes: overlap, non-maximum suppression, and which lesion a box found."""

import numpy as np
import pandas as pd

BOX = ["x", "y", "width", "height"]
NO_LESION = 0
IGNORED = -1  # the centre lies on a speck that `crop` ignores too: neither hit nor false positive


def overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of one box (4,) with others (n, 4); x, y, width, height in pixels: (n,) in [0, 1]."""
    left_top = np.maximum(box[:2], others[:, :2])
    right_bottom = np.minimum(box[:2] + box[2:], others[:, :2] + others[:, 2:])
    shared = np.clip(right_bottom - left_top, 0, None).prod(axis=1)
    union = box[2:].prod() + others[:, 2:].prod(axis=1) - shared
    return shared / np.maximum(union, 1e-12)


def suppress(boxes: np.ndarray, scores: np.ndarray, limit: float) -> np.ndarray:
    """Non-maximum suppression: row numbers kept, best score first.

    A box goes when it overlaps a better one by more than `limit` (intersection over union), or when one of the two
    centres lies inside the other box at less than half the distance to its edge: windows of different size around
    one lesion hardly overlap by area.
    boxes: (n, 4) x, y, width, height. scores: (n,); equal scores keep their order.
    """
    order = np.argsort(-scores, kind="stable")
    centres = boxes[:, :2] + boxes[:, 2:] / 2
    kept = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        reach = np.maximum(boxes[best, 2:], boxes[rest, 2:]) / 4
        same_centre = (np.abs(centres[rest] - centres[best]) < reach).all(axis=1)
        order = rest[(overlap(boxes[best], boxes[rest]) <= limit) & ~same_centre]
    return np.array(kept, dtype=int)


def found_lesion(boxes: np.ndarray, lesions: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Number of the lesion in which each box's centre lies, NO_LESION or IGNORED: (n,) int.

    lesions: (height, width) label image, 0 background. mask: the same with specks, bool.
    """
    height, width = lesions.shape
    x = np.clip((boxes[:, 0] + boxes[:, 2] / 2).astype(int), 0, width - 1)
    y = np.clip((boxes[:, 1] + boxes[:, 3] / 2).astype(int), 0, height - 1)
    return np.where(mask[y, x] & (lesions[y, x] == 0), IGNORED, lesions[y, x])


def boxes_table(frame: str, boxes: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    """A row a box: frame, x, y, width, height (pixels), score."""
    table = pd.DataFrame(np.asarray(boxes).reshape(-1, 4), columns=BOX)
    table.insert(0, "frame", frame)
    return table.assign(score=scores)
