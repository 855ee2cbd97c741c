"""Figures of a detector: FROC, and precision, recall and F1 at an operating threshold."""

import warnings

import numpy as np
import pandas as pd

from lesionlab.detection.boxes import NO_LESION
from lesionlab.seeds import generator

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
INTERVAL = (2.5, 97.5)


def froc_curve(detections: pd.DataFrame, frames: pd.DataFrame) -> pd.DataFrame:
    """Free-response ROC: a row a threshold, from high to low: score, false_positives_per_frame, sensitivity.

    A lesion is found when the centre of a box lies in its mask; every further box on it is neither hit nor miss.
    detections: one row a box: frame, score in [0, 1], lesion (its number in the frame, 0 for none, -1 ignored).
    frames: one row a frame: frame, lesions (how many it has).
    Raises ValueError when a frame of `detections` is not in `frames`.
    Source: Bunch et al. 1978.
    """
    unknown = set(detections["frame"]) - set(frames["frame"])
    if unknown:
        raise ValueError(f"detections on a frame that is not listed: {sorted(unknown)[0]}")
    ordered = detections.sort_values("score", ascending=False, kind="stable")
    on_lesion = ordered["lesion"] > NO_LESION
    first = on_lesion & ~ordered[on_lesion].duplicated(["frame", "lesion"]).reindex(ordered.index, fill_value=True)
    false = ordered["lesion"] == NO_LESION
    curve = pd.DataFrame({
        "score": ordered["score"],
        "false_positives_per_frame": false.cumsum() / len(frames),
        "sensitivity": first.cumsum() / max(frames["lesions"].sum(), 1),
    })  # fmt: skip
    # Boxes of one score are accepted together.
    return curve.drop_duplicates("score", keep="last").reset_index(drop=True)


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


def operating_metrics(
    detections: pd.DataFrame, frames: pd.DataFrame, threshold: float, *, resamples: int, seed: int
) -> dict[str, dict[str, float]]:
    """Recall, precision, F1 and false positives a frame at `threshold`, each as value, low, high.

    Precision counts each found lesion once. The 95 % interval is a percentile bootstrap over groups. A figure that is
    not defined (precision where no box is admitted) is left out.
    frames: frame, group, lesions. detections: frame, score, lesion.
    """
    admitted = detections[detections["score"] >= threshold]
    found = admitted[admitted["lesion"] > NO_LESION].drop_duplicates(["frame", "lesion"])
    false = admitted[admitted["lesion"] == NO_LESION]
    counts = frames.set_index("frame").assign(
        found=found.groupby("frame").size(), false=false.groupby("frame").size(), frames=1
    )
    by_group = counts.fillna({"found": 0, "false": 0}).groupby("group")[["lesions", "found", "false", "frames"]].sum()
    drawn = generator(seed, "detect", "bootstrap").multinomial(
        len(by_group), np.full(len(by_group), 1 / len(by_group)), resamples
    )
    value = _ratios(np.ones((1, len(by_group))) @ by_group.to_numpy(dtype=float))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a figure that is defined in no resample is left out below
        low, high = np.nanpercentile(_ratios(drawn @ by_group.to_numpy(dtype=float)), INTERVAL, axis=0)
    names = ("recall", "precision", "f1", "false_positives_per_frame")
    return {
        name: {"value": value[0, k], "low": low[k], "high": high[k]}
        for k, name in enumerate(names)
        if np.isfinite([value[0, k], low[k], high[k]]).all()
    }


def _ratios(totals: np.ndarray) -> np.ndarray:
    """(resamples, 4) lesions, found, false, frames to (resamples, 4) recall, precision, F1, false positives a frame."""
    lesions, found, false, frames = totals.T
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, precision = found / lesions, found / (found + false)
        f1 = 2 * found / (found + false + lesions)
        return np.stack([recall, precision, f1, false / frames], axis=1)
