"""Figures of a detector: FROC, average precision, and what it finds at an operating threshold, all with intervals.

Intervals are 95 % percentile bootstraps over groups: a group is drawn with all its frames, lesions and boxes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lesionlab.bootstrap import bootstrap, described, interval
from lesionlab.detection.boxes import IGNORED, NO_LESION

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
SIZES = ("small", "medium", "large")
LEAST_OVERLAP = 0.5  # intersection over union of a box that finds a lesion, in PASCAL VOC


def froc_curve(detections: pd.DataFrame, frames: pd.DataFrame) -> pd.DataFrame:
    """Free-response ROC: a row a threshold, from high to low: score, false_positives_per_frame, sensitivity.

    A lesion is found when the centre of a box lies in its mask; every further box on it is neither hit nor miss.
    detections: one row a box: frame, score in [0, 1], lesion (its number in the frame, 0 for none, -1 ignored).
    frames: one row a frame: frame, group, lesions (how many it has).
    Raises ValueError when a frame of `detections` is not in `frames`.
    Source: Bunch et al. 1978.
    """
    ranking = _rank(detections, frames, *found_by_centre(detections))
    return pd.DataFrame({
        "score": ranking.scores,
        "false_positives_per_frame": ranking.false.sum(axis=0) / len(frames),
        "sensitivity": ranking.hits.sum(axis=0) / max(frames["lesions"].sum(), 1),
    })  # fmt: skip


def sensitivity_at(curve: pd.DataFrame, rates: tuple[float, ...] = RATES) -> pd.DataFrame:
    """Highest sensitivity at no more than given false positives a frame.

    Returns a row a rate: false_positives_per_frame, sensitivity in [0, 1], score (the threshold; NaN where no box is
    admitted). Rates as in the LUNA16 challenge.
    """
    rows = []
    for rate in rates:
        allowed = curve[curve["false_positives_per_frame"] <= rate]
        best = allowed.iloc[-1] if len(allowed) else None
        rows.append((rate, 0.0 if best is None else best["sensitivity"], np.nan if best is None else best["score"]))
    return pd.DataFrame(rows, columns=["false_positives_per_frame", "sensitivity", "score"])


def froc_band(detections: pd.DataFrame, frames: pd.DataFrame, *, resamples: int, seed: int) -> pd.DataFrame:
    """The curve's steps up to the highest of RATES, with an interval of the sensitivity at each: low, high.

    Returns a row each rate of false positives that occurs: score (the lowest threshold that gives it),
    false_positives_per_frame, sensitivity, low, high.
    """
    curve = froc_curve(detections, frames).drop_duplicates("false_positives_per_frame", keep="last")
    curve = curve[curve["false_positives_per_frame"] <= RATES[-1]].reset_index(drop=True)
    rates = tuple(curve["false_positives_per_frame"])
    _, low, high = _sensitivity(detections, frames, rates, resamples, seed) if rates else (None, [], [])
    return curve.assign(low=low, high=high)


def froc_figures(
    detections: pd.DataFrame, frames: pd.DataFrame, *, resamples: int, seed: int
) -> dict[str, dict[str, float]]:
    """Sensitivity at each of RATES, as value, low, high; none where no frame has a lesion."""
    figures = _sensitivity(detections, frames, RATES, resamples, seed).T
    return {
        f"{rate:g}": described(*figure.tolist())
        for rate, figure in zip(RATES, figures, strict=True)
        if np.isfinite(figure[0])
    }


def average_precision(
    detections: pd.DataFrame, frames: pd.DataFrame, hit: np.ndarray, false: np.ndarray, *, resamples: int, seed: int
) -> dict[str, float]:
    """Area under precision over recall, as value, low, high; precision is the highest at that recall or beyond.

    hit, false: (boxes,) bool, of `found_by_centre` or `found_by_overlap`. Lesions that no box finds count: recall
    ends below 1. Boxes of one score are accepted together. Empty where no frame has a lesion.
    Source: Everingham et al., The PASCAL visual object classes challenge, IJCV 2010 (all points, as from VOC2010 on).
    """
    ranking = _rank(detections, frames, hit, false)

    def area(draws: np.ndarray) -> np.ndarray:
        hits, wrong = draws @ ranking.hits, draws @ ranking.false
        precision = hits / np.maximum(hits + wrong, 1)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        gain = np.diff(hits, axis=1, prepend=0) * precision
        return gain.sum(axis=1, keepdims=True) / (draws @ ranking.lesions)[:, None]

    figure = _with_interval(area, ranking, resamples, seed)[:, 0]
    return described(*figure.tolist()) if np.isfinite(figure[0]) else {}


def found_by_centre(detections: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Which boxes find a lesion and which are false: (n,) bool each.

    The best box with its centre in a lesion's mask finds it; further ones are neither, nor are those on specks.
    """
    lesion = detections["lesion"].to_numpy(dtype=int)
    return _first_on(detections, lesion), lesion == NO_LESION


def found_by_overlap(detections: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The same by intersection over union with a lesion's bounding box, of LEAST_OVERLAP or more: (n,) bool each.

    The best such box finds the lesion; further ones are false, as all others are but those on specks.
    detections: also nearest (the lesion of the greatest overlap) and iou.
    Source: Everingham et al. 2010.
    """
    near = (detections["iou"] >= LEAST_OVERLAP).to_numpy(dtype=bool)
    hit = _first_on(detections, np.where(near, detections["nearest"].to_numpy(dtype=int), NO_LESION))
    return hit, ~hit & (detections["lesion"] != IGNORED).to_numpy(dtype=bool)


def operating_metrics(
    detections: pd.DataFrame, frames: pd.DataFrame, threshold: float, *, resamples: int, seed: int
) -> dict[str, dict[str, float]]:
    """Recall, precision, F1 and false positives a frame at `threshold`, each as value, low, high.

    Precision counts each found lesion once. False positives are also counted on frames without a lesion alone. A
    figure that is not defined (precision where no box is admitted) is left out.
    frames: frame, group, lesions. detections: frame, score, lesion.
    """
    admitted = detections[detections["score"] >= threshold]
    hit, false = found_by_centre(admitted)
    counts = frames.set_index("frame").assign(
        found=admitted[hit].groupby("frame").size(), false=admitted[false].groupby("frame").size(), frames=1
    )
    counts = counts.fillna({"found": 0, "false": 0})
    free = counts["lesions"] == 0
    counts = counts.assign(free=free, false_on_free=counts["false"] * free)
    names = ("lesions", "found", "false", "frames", "free", "false_on_free")
    lesions, found, false, shown, free, false_on_free = counts.groupby("group")[list(names)].sum().to_numpy(float).T
    parts = {
        "recall": (found, lesions),
        "precision": (found, found + false),
        "f1": (2 * found, found + false + lesions),
        "false_positives_per_frame": (false, shown),
        "false_positives_per_lesion_free_frame": (false_on_free, free),
    }
    return _ratios(parts, resamples, seed)


def size_limits(lesions: pd.DataFrame) -> tuple[float, float]:
    """Areas (parts of the frame) that part lesions into three equally many, small, medium and large.

    lesions: one row a lesion of the validation frames: area. Limits must not come from the lesions that are counted.
    """
    return tuple(np.quantile(lesions["area"], (1 / 3, 2 / 3)))


def sensitivity_by_size(
    detections: pd.DataFrame,
    lesions: pd.DataFrame,
    limits: tuple[float, float],
    threshold: float,
    *,
    resamples: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Part of the lesions of each of SIZES that are found at `threshold`: lesions (their number), value, low, high.

    lesions: one row a lesion: frame, group, lesion (its number in the frame), area. limits: of `size_limits`; a lesion
    as large as a limit belongs to the larger size. A size without lesions is left out.
    """
    admitted = detections[detections["score"] >= threshold]
    hits = pd.MultiIndex.from_frame(admitted.loc[found_by_centre(admitted)[0], ["frame", "lesion"]])
    found = pd.MultiIndex.from_frame(lesions[["frame", "lesion"]]).isin(hits)
    size = pd.Categorical.from_codes(np.digitize(lesions["area"], limits), categories=SIZES)
    count = pd.crosstab(lesions["group"], size, dropna=False).reindex(columns=SIZES, fill_value=0)
    seen = pd.crosstab(lesions["group"][found], size[found], dropna=False)
    seen = seen.reindex(index=count.index, columns=SIZES, fill_value=0)
    parts = {name: (seen[name].to_numpy(float), count[name].to_numpy(float)) for name in SIZES}
    return {
        name: {"lesions": int(count[name].sum()), **figure} for name, figure in _ratios(parts, resamples, seed).items()
    }


@dataclass(frozen=True)
class Ranking:
    """Boxes from the highest score to the lowest, counted by group.

    scores: (m,) distinct, falling. hits, false: (groups, m) boxes of that score or a higher one that find a lesion or
    are false. lesions, frames: (groups,) how many there are.
    """

    scores: np.ndarray
    hits: np.ndarray
    false: np.ndarray
    lesions: np.ndarray
    frames: np.ndarray


def _rank(detections: pd.DataFrame, frames: pd.DataFrame, hit: np.ndarray, false: np.ndarray) -> Ranking:
    unknown = set(detections["frame"]) - set(frames["frame"])
    if unknown:
        raise ValueError(f"detections on a frame that is not listed: {sorted(unknown)[0]}")
    code, groups = pd.factorize(frames["group"])
    group = pd.Series(code, index=frames["frame"]).loc[detections["frame"]].to_numpy(dtype=int)
    scores, place = np.unique(-detections["score"].to_numpy(dtype=float), return_inverse=True)

    def counted(chosen: np.ndarray) -> np.ndarray:
        counts = np.zeros((len(groups), len(scores)))
        np.add.at(counts, (group[chosen], place[chosen]), 1)
        return counts.cumsum(axis=1)

    lesions = np.bincount(code, frames["lesions"].to_numpy(dtype=float), len(groups))
    return Ranking(-scores, counted(hit), counted(false), lesions, np.bincount(code, minlength=len(groups)))


def _first_on(detections: pd.DataFrame, lesion: np.ndarray) -> np.ndarray:
    """Whether a box is the best on its lesion (a number above NO_LESION): (n,) bool."""
    ordered = detections[["frame"]].assign(lesion=lesion, place=np.arange(len(detections)))
    ordered = ordered.iloc[np.argsort(-detections["score"].to_numpy(dtype=float), kind="stable")]
    first = ordered[ordered["lesion"] > NO_LESION].drop_duplicates(["frame", "lesion"])["place"]
    return np.isin(np.arange(len(detections)), first)


def _sensitivity(
    detections: pd.DataFrame, frames: pd.DataFrame, rates: tuple[float, ...], resamples: int, seed: int
) -> np.ndarray:
    """Value, low and high of the sensitivity at each rate: (3, rates)."""
    ranking = _rank(detections, frames, *found_by_centre(detections))

    def at_rates(draws: np.ndarray) -> np.ndarray:
        rate = draws @ ranking.false / (draws @ ranking.frames)[:, None]
        sensitivity = draws @ ranking.hits / (draws @ ranking.lesions)[:, None]
        sensitivity = np.pad(sensitivity, ((0, 0), (1, 0)))  # no box is admitted
        sensitivity[np.isnan(sensitivity).any(axis=1)] = np.nan
        last = [np.searchsorted(one, rates, side="right") for one in rate]
        return np.take_along_axis(sensitivity, np.array(last), axis=1)

    return _with_interval(at_rates, ranking, resamples, seed)


def _with_interval(
    figures: Callable[[np.ndarray], np.ndarray], ranking: Ranking, resamples: int, seed: int
) -> np.ndarray:
    """Value, low and high of `figures`, a function of draws (n, groups) to (n, figures): (3, figures)."""
    value, distribution = bootstrap(figures, len(ranking.lesions), resamples, seed, "detect")
    return np.stack([value, *interval(distribution)])


def _ratios(parts: dict[str, tuple[np.ndarray, np.ndarray]], resamples: int, seed: int) -> dict[str, dict[str, float]]:
    """Sums of numerators over sums of denominators, (groups,) each, as value, low, high; left out where undefined."""
    above, below = (np.stack([pair[k] for pair in parts.values()], axis=1) for k in (0, 1))
    value, distribution = bootstrap(
        lambda draws: (draws @ above) / (draws @ below), len(above), resamples, seed, "detect"
    )
    low, high = interval(distribution)
    return {name: described(value[k], low[k], high[k]) for k, name in enumerate(parts) if np.isfinite(value[k])}
