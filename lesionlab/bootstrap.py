"""Bootstrap over groups: how often each group is drawn, and the interval that the draws give.

Groups, not crops, frames or lesions, are drawn: those of one patient or sequence are not independent.
Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; Field & Welsh 2007 for clusters.
"""

import warnings
from collections.abc import Callable

import numpy as np

from lesionlab.seeds import generator

INTERVAL = (2.5, 97.5)  # percentiles of the resamples
CHUNK = 200  # resamples computed at once: all of them for many crops or boxes are gigabytes


def bootstrap(
    figures: Callable[[np.ndarray], np.ndarray], groups: int, resamples: int, seed: int, purpose: str
) -> tuple[np.ndarray, np.ndarray]:
    """Figures of all groups, and of `resamples` draws of groups with replacement: (k,) and (resamples, k).

    figures: a function of draws (n, groups), how often each group counts, that gives (n, k). Two calls with the same
    groups, resamples, seed and purpose see the same draws, so that their difference is a paired one. One group drawn
    again and again says nothing about others: its resamples are NaN.
    """
    rng, even = generator(seed, purpose, "bootstrap"), np.full(groups, 1 / groups)
    starts = range(0, resamples, CHUNK)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = figures(np.ones((1, groups)))[0]
        if groups == 1:
            return value, np.full((resamples, len(value)), np.nan)
        drawn = (rng.multinomial(groups, even, min(CHUNK, resamples - start)).astype("float64") for start in starts)
        return value, np.concatenate([figures(draws) for draws in drawn])


def interval(distribution: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Low and high (95 %) of each figure of resamples (n, k): two (k,); NaN where no resample defines it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all of them are NaN
        low, high = np.nanpercentile(distribution, INTERVAL, axis=0)
    return low, high


def described(value: float, low: float, high: float) -> dict[str, float | None]:
    """A figure as metrics files hold it: value, low, high; None where no interval is known."""
    return {"value": value, **{name: x if np.isfinite(x) else None for name, x in (("low", low), ("high", high))}}
