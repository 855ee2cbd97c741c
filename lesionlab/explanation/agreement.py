"""Heat against masks: share of heat inside the lesion, the pointing game, and their intervals."""

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from lesionlab.bootstrap import bootstrap, described, interval


def share_inside(heat: np.ndarray, lesion: np.ndarray) -> np.ndarray:
    """Part of each map's heat that lies inside the lesion: (n,) in [0, 1]; 0 for a map without heat.

    heat: (n, size, size), not negative. lesion: (n, size, size), part of each pixel that is lesion.
    """
    total = heat.sum(axis=(1, 2), dtype="float64")
    inside = (heat * lesion).sum(axis=(1, 2), dtype="float64")
    return np.divide(inside, total, out=np.zeros_like(total), where=total > 0)


def pointing_game(heat: np.ndarray, lesion: np.ndarray) -> np.ndarray:
    """Whether each map's hottest pixel lies in the lesion: (n,) bool; a map without heat points nowhere.

    No tolerance around the lesion. Source: Zhang et al., Top-down Neural Attention by Excitation Backprop, ECCV 2016.
    """
    flat = heat.reshape(len(heat), -1)
    rows, hottest = np.arange(len(flat)), flat.argmax(axis=1)
    return (lesion.reshape(len(flat), -1)[rows, hottest] >= 0.5) & (flat[rows, hottest] > 0)


def random_maps(count: int, cells: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Maps that know nothing: (count, rows, columns) uniform noise, to be enlarged as a network's map is."""
    return rng.uniform(size=(count, *cells)).astype("float32")


def rank_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's correlation of the cells of two maps, map by map: (n,); 0 where a map is constant.

    Source for its use on maps: Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018.
    """
    one, other = (rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (first, second))
    one, other = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (one, other))
    length = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    return np.divide((one * other).sum(axis=1), length, out=np.zeros(len(one)), where=length > 0)


def group_bootstrap(
    values: pd.DataFrame, groups: pd.Series, ratios: dict[str, tuple[str, str]], resamples: int, seed: int
) -> dict[str, dict[str, float]]:
    """Mean of each column, and ratio of the means of two columns, as value, low and high (95 %, over groups).

    values: a row a crop. groups: who belongs together; groups, not crops, are drawn with replacement.
    ratios: name to (numerator, denominator). A ratio whose denominator's mean is 0 is left out. Of one group no
    interval is known: low and high are None.
    """
    sums = values.astype("float64").groupby(groups.to_numpy()).sum()
    sizes = groups.groupby(groups.to_numpy()).size().reindex(sums.index).to_numpy()

    def figures(draws: np.ndarray) -> np.ndarray:
        means = pd.DataFrame(draws @ sums.to_numpy() / (draws @ sizes)[:, None], columns=values.columns)
        for name, (numerator, denominator) in ratios.items():
            means[name] = means[numerator] / means[denominator].replace(0, np.nan)
        return means.to_numpy()

    value, distribution = bootstrap(figures, len(sums), resamples, seed, "explain")
    low, high = interval(distribution)
    names = [*values.columns, *ratios]
    return {name: described(value[k], low[k], high[k]) for k, name in enumerate(names) if np.isfinite(value[k])}
