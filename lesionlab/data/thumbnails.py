"""Small grey pictures of frames, and how alike by them frames of different subsets are. They only report."""

from itertools import combinations

import numpy as np
import pandas as pd
from PIL import Image

from lesionlab.data.cards import SUBSETS

# Pixels. Products of two such pictures of 8 bits add up to less than 2 ** 24, so float32 adds them exactly, in whatever
# order a machine takes.
SIDE = 16
# Correlation at which two frames count as alike. Frames of different groups reach 0.967 in CVC-ClinicDB (178,726
# pairs), 0.987 in brain-tumor-cheng (4.7 million) and 0.514 in LC25000 (499,008). Of the 499,500 pairs of Kvasir-SEG
# five lie above 0.99, among them all three of one hash, and the next at 0.977; of the 17 million of chest-xray one, of
# one hash. All 131 copies of Kvasir-SEG frames at three quarters of the size and JPEG quality 50 stay above 0.99 (the
# lowest at 0.998), and 141 of 146 of brain-tumor-cheng. Not found are copies whose black margins seem to end elsewhere:
# 116 of 160 such copies of CVC-ClinicDB, where margins fade.
ALIKE = 0.99
MOST_PAIRS = 100_000_000  # compared in a few seconds; those of about 19,000 frames in five folds
BLOCK_PAIRS = 1 << 20  # compared at once


def thumbnail(picture: Image.Image) -> np.ndarray:
    """A grey picture of any size as (SIDE, SIDE) uint8, the mean of what each pixel covers."""
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX))


def count_alike(first: np.ndarray, second: np.ndarray) -> tuple[int, float | None]:
    """How many pairs, a thumbnail of each, have a Pearson correlation of at least ALIKE, and the highest correlation.

    first, second: (n, SIDE, SIDE) and (m, SIDE, SIDE) uint8. What is of one grey level has no correlation and is left
    out; without any pair the highest is None. Only whole numbers are added, so every machine gives the same.
    """
    (pixels, sums, spreads), (others, other_sums, other_spreads) = _moments(first), _moments(second)
    alike, highest = 0, -np.inf
    step = max(1, BLOCK_PAIRS // max(1, len(others)))
    for start in range(0, len(pixels), step):
        rows = slice(start, start + step)
        correlation = (pixels[rows] @ others.T).astype("float64") * SIDE**2
        correlation -= np.multiply.outer(sums[rows], other_sums)
        correlation /= np.multiply.outer(spreads[rows], other_spreads)
        alike += np.count_nonzero(correlation >= ALIKE)
        highest = max(highest, correlation.max(initial=-np.inf))
    return int(alike), None if np.isinf(highest) else min(float(highest), 1.0)


def _moments(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of those not constant: pixels (n, SIDE * SIDE), their sums, and SIDE * SIDE times their standard deviations."""
    pixels = thumbnails.reshape(len(thumbnails), SIDE**2)
    sums = pixels.sum(axis=1, dtype="int64")
    squares = SIDE**2 * np.square(pixels, dtype="int64").sum(axis=1) - sums**2
    varied = squares > 0
    return pixels[varied].astype("float32"), sums[varied].astype("float64"), np.sqrt(squares[varied])


def by_subset(index: pd.DataFrame, subset: pd.Series, thumbnails: np.ndarray) -> dict[str, np.ndarray]:
    """Thumbnails of the frames that each subset's crops show.

    subset: of each crop of the index. thumbnails: of each frame, in the order in which the index names them.
    """
    frame, _ = pd.factorize(index["frame"])
    return {name: thumbnails[np.unique(frame[subset == name])] for name in SUBSETS}


def describe_likeness(thumbnails: dict[str, np.ndarray]) -> dict[str, float | None]:
    """For the proof: how many pairs of frames of two subsets are alike, and the highest correlation of train and test.

    thumbnails: of each subset's frames. Both figures are None where there are more than MOST_PAIRS pairs, the latter
    also where there is none.
    """
    pairs = list(combinations(thumbnails, 2))
    if sum(len(thumbnails[a]) * len(thumbnails[b]) for a, b in pairs) > MOST_PAIRS:
        return {"alike_pairs_across_subsets": None, "highest_correlation_train_test": None}
    counted = {pair: count_alike(*(thumbnails[name] for name in pair)) for pair in pairs}
    return {
        "alike_pairs_across_subsets": sum(alike for alike, _ in counted.values()),
        "highest_correlation_train_test": counted["train", "test"][1],
    }


def likeness(proof: dict) -> str:
    """The same in words."""
    alike, highest = proof["alike_pairs_across_subsets"], proof["highest_correlation_train_test"]
    if alike is None:
        return f"thumbnails not compared: more than {MOST_PAIRS:,} pairs of frames across subsets"
    most = "no pair" if highest is None else f"{highest:.3f}"
    return f"{alike} pairs of thumbnails across subsets correlate at {ALIKE} or more (highest train/test: {most})"
