"""Boxes: overlap, non-maximum suppression, and which lesion a box found."""

import numpy as np
import pandas as pd

BOX = ["x", "y", "width", "height"]
NO_LESION = 0
IGNORED = -1  # the centre lies on a speck that `crop` ignores too: neither hit nor false positive


def overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection of one box (4,) with others (n, 4) over the smaller of the two areas: (n,) in [0, 1].

    Boxes are x, y, width, height in pixels. Windows of several sizes around one lesion lie inside each other: their
    intersection over union is small, this is not.
    """
    smaller = np.minimum(box[2:].prod(), others[:, 2:].prod(axis=1))
    return _shared(box, others) / np.maximum(smaller, 1e-12)


def _shared(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    left_top = np.maximum(box[:2], others[:, :2])
    right_bottom = np.minimum(box[:2] + box[2:], others[:, :2] + others[:, 2:])
    return np.clip(right_bottom - left_top, 0, None).prod(axis=1)


def suppress(boxes: np.ndarray, scores: np.ndarray, limit: float) -> np.ndarray:
    """Non-maximum suppression: row numbers kept, best score first; a box goes when it overlaps a better one too much.

    boxes: (n, 4) x, y, width, height. scores: (n,); equal scores keep their order. limit: of `overlap`, in [0, 1].
    """
    order = np.argsort(-scores, kind="stable")
    kept = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        order = rest[overlap(boxes[best], boxes[rest]) <= limit]
    return np.array(kept, dtype=int)


def found_lesion(boxes: np.ndarray, lesions: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Number of the lesion in which each box's centre lies, NO_LESION or IGNORED: (n,) int.

    lesions: (height, width) label image, 0 background. mask: the same with specks, bool.
    """
    height, width = lesions.shape
    x = np.clip((boxes[:, 0] + boxes[:, 2] / 2).astype(int), 0, width - 1)
    y = np.clip((boxes[:, 1] + boxes[:, 3] / 2).astype(int), 0, height - 1)
    return np.where(mask[y, x] & (lesions[y, x] == 0), IGNORED, lesions[y, x])


def nearest_lesion(boxes: np.ndarray, lesion_boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lesion that each box overlaps most, (n,) its number from 1 or NO_LESION, and how much, (n,) in [0, 1].

    boxes: (n, 4), lesion_boxes: (m, 4) x, y, width, height. Overlap is intersection over union.
    """
    number, best = np.full(len(boxes), NO_LESION), np.zeros(len(boxes))
    for lesion, one in enumerate(lesion_boxes, start=1):
        shared = _shared(one, boxes)
        union = one[2:].prod() + boxes[:, 2:].prod(axis=1) - shared
        overlapped = shared / union
        number, best = np.where(overlapped > best, lesion, number), np.maximum(overlapped, best)
    return number, best


def boxes_table(frame: str, boxes: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    """A row a box: frame, x, y, width, height (pixels), score."""
    table = pd.DataFrame(np.asarray(boxes).reshape(-1, 4), columns=BOX)
    table.insert(0, "frame", frame)
    return table.assign(score=scores)
