"""FROC and operating figures against counting by hand and by brute force."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from lesionlab.detection.boxes import IGNORED
from lesionlab.detection.froc import (
    RATES,
    SIZES,
    average_precision,
    found_by_centre,
    found_by_overlap,
    froc_band,
    froc_curve,
    froc_figures,
    operating_metrics,
    sensitivity_at,
    sensitivity_by_size,
    size_limits,
)
from lesionlab.seeds import generator


@st.composite
def findings(draw) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Frames with 0 to 3 lesions, and boxes on lesions, beside them and on ignored specks, with ties of score."""
    counts = draw(st.lists(st.integers(0, 3), min_size=1, max_size=6).filter(any))
    frames = pd.DataFrame({
        "frame": [f"f{k}" for k in range(len(counts))], "group": [f"g{k // 2}" for k in range(len(counts))],
        "lesions": counts,
    })  # fmt: skip
    rows = []
    for _ in range(draw(st.integers(0, 25))):
        frame = draw(st.integers(0, len(counts) - 1))
        lesion, nearest = draw(st.integers(IGNORED, counts[frame])), draw(st.integers(0, counts[frame]))
        overlap = draw(st.sampled_from([0.2, 0.5, 0.8])) if nearest else 0.0
        rows.append((f"f{frame}", draw(st.integers(1, 10)) / 10, lesion, nearest, overlap))
    return pd.DataFrame(rows, columns=["frame", "score", "lesion", "nearest", "iou"]), frames


def count(detections: pd.DataFrame, frames: pd.DataFrame, threshold: float) -> tuple[int, int]:
    """Lesions found and false positives at a threshold, a box at a time."""
    found, false = set(), 0
    for row in detections.itertuples():
        if row.score >= threshold:
            if row.lesion > 0:
                found.add((row.frame, row.lesion))
            elif row.lesion == 0:
                false += 1
    return len(found), false


@given(findings())
def test_the_curve_is_what_counting_at_every_threshold_gives(given_findings):
    detections, frames = given_findings
    curve = froc_curve(detections, frames)
    thresholds = sorted(set(detections["score"]), reverse=True)
    assert curve["score"].tolist() == thresholds
    for row, threshold in zip(curve.itertuples(), thresholds, strict=True):
        found, false = count(detections, frames, threshold)
        assert row.sensitivity == pytest.approx(found / frames["lesions"].sum())
        assert row.false_positives_per_frame == pytest.approx(false / len(frames))


@given(findings())
def test_sensitivity_never_passes_one_and_never_falls(given_findings):
    curve = froc_curve(*given_findings)
    assert curve["sensitivity"].le(1).all()
    assert curve["sensitivity"].is_monotonic_increasing
    assert curve["false_positives_per_frame"].is_monotonic_increasing


@given(findings(), st.sampled_from([0.0, 0.125, 0.5, 1.0, 8.0]))
def test_sensitivity_at_a_rate_is_the_best_that_any_threshold_gives(given_findings, rate):
    detections, frames = given_findings
    row = sensitivity_at(froc_curve(detections, frames), (rate,)).iloc[0]
    best = 0.0
    for threshold in set(detections["score"]):
        found, false = count(detections, frames, threshold)
        if false / len(frames) <= rate:
            best = max(best, found / frames["lesions"].sum())
    assert row["sensitivity"] == pytest.approx(best)
    if np.isfinite(row["score"]):
        found, false = count(detections, frames, row["score"])
        assert found / frames["lesions"].sum() == pytest.approx(best)
        assert false / len(frames) <= rate


@given(findings(), st.sampled_from([0.25, 0.5, 0.75]))
def test_operating_figures_are_those_of_counting(given_findings, threshold):
    detections, frames = given_findings
    figures = operating_metrics(detections, frames, threshold, resamples=100, seed=1)
    found, false = count(detections, frames, threshold)
    lesions = frames["lesions"].sum()
    expected = {"recall": found / lesions, "false_positives_per_frame": false / len(frames)}
    free = frames[frames["lesions"] == 0]["frame"]
    if len(free):
        on_free = count(detections[detections["frame"].isin(free)], frames, threshold)[1]
        expected["false_positives_per_lesion_free_frame"] = on_free / len(free)
    expected["f1"] = 2 * found / (found + false + lesions)
    if found + false:
        expected["precision"] = found / (found + false)
    for name, figure in figures.items():
        assert figure["value"] == pytest.approx(expected[name]), name
        assert_spread(figure, frames["group"])
    assert {"false_positives_per_frame"} <= set(figures)


# Intervals: every resample written out, a frame of a group that is drawn twice being there twice

RESAMPLES, SEED = 12, 5


def resampled(frames: pd.DataFrame, detections: pd.DataFrame) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    groups = list(dict.fromkeys(frames["group"]))
    even = np.full(len(groups), 1 / len(groups))
    written = []
    for drawn in generator(SEED, "detect", "bootstrap").multinomial(len(groups), even, RESAMPLES):
        copies = [(group, k) for group, times in zip(groups, drawn, strict=True) for k in range(times)]
        parts = [
            [
                table[table["frame"].isin(frames.loc[frames["group"] == group, "frame"])].assign(
                    frame=lambda rows, k=k: rows["frame"] + f" copy {k}"
                )
                for group, k in copies
            ]
            for table in (detections, frames)
        ]
        written.append(tuple(pd.concat(part) for part in parts))
    return written


def interval_of(values: list[float], groups: pd.Series) -> tuple[float, float]:
    """Of one group none is known."""
    return tuple(np.nanpercentile(values, (2.5, 97.5))) if groups.nunique() > 1 else (np.nan, np.nan)


def assert_spread(figure: dict, groups: pd.Series) -> None:
    if groups.nunique() == 1:
        assert figure["low"] is figure["high"] is None
    else:
        assert figure["low"] <= figure["high"]


def bounds_of(figure: dict) -> tuple[float, float]:
    return tuple(np.nan if figure[name] is None else figure[name] for name in ("low", "high"))


def best_sensitivity(detections: pd.DataFrame, frames: pd.DataFrame, rate: float) -> float:
    if not frames["lesions"].sum():
        return np.nan
    at = [count(detections, frames, threshold) for threshold in {*detections["score"], 2.0}]
    return max(found for found, false in at if false / len(frames) <= rate) / frames["lesions"].sum()


@settings(max_examples=10)
@given(findings())
def test_the_interval_of_the_curve_is_that_of_resamples_written_out(given_findings):
    detections, frames = given_findings
    written = resampled(frames, detections)
    figures = froc_figures(detections, frames, resamples=RESAMPLES, seed=SEED)
    assert list(figures) == [f"{rate:g}" for rate in RATES]
    for rate, figure in zip(RATES, figures.values(), strict=True):
        assert figure["value"] == pytest.approx(best_sensitivity(detections, frames, rate))
        expected = interval_of([best_sensitivity(*one, rate) for one in written], frames["group"])
        assert bounds_of(figure) == pytest.approx(expected, nan_ok=True)
    band = froc_band(detections, frames, resamples=RESAMPLES, seed=SEED)
    assert band["false_positives_per_frame"].is_unique
    assert set(band["false_positives_per_frame"]) == {
        rate for rate in froc_curve(detections, frames)["false_positives_per_frame"] if rate <= 8
    }
    for row in band.head(3).itertuples():
        rate = row.false_positives_per_frame
        assert row.sensitivity == pytest.approx(best_sensitivity(detections, frames, rate))
        expected = interval_of([best_sensitivity(*one, rate) for one in written], frames["group"])
        assert (row.low, row.high) == pytest.approx(expected, nan_ok=True)


def area(detections: pd.DataFrame, frames: pd.DataFrame, rule: str) -> float:
    """Average precision, a threshold and a box at a time."""
    points = []
    for threshold in sorted(set(detections["score"]), reverse=True):
        found, false = set(), 0
        for row in (
            detections[detections["score"] >= threshold]
            .sort_values("score", ascending=False, kind="stable")
            .itertuples()
        ):
            lesion = row.lesion if rule == "centre" else row.nearest if row.iou >= 0.5 else 0
            if lesion > 0 and (row.frame, lesion) not in found:
                found.add((row.frame, lesion))
            elif (row.lesion == 0) if rule == "centre" else (row.lesion != IGNORED):
                false += 1
        points.append((len(found) / frames["lesions"].sum(), len(found) / max(len(found) + false, 1)))
    total, reached = 0.0, 0.0
    for place, (recall, _) in enumerate(points):
        total += (recall - reached) * max(precision for _, precision in points[place:])
        reached = recall
    return total


@settings(max_examples=10)
@given(findings(), st.sampled_from(["centre", "overlap"]))
def test_average_precision_is_that_of_counting(given_findings, rule):
    detections, frames = given_findings
    find = {"centre": found_by_centre, "overlap": found_by_overlap}[rule]
    figure = average_precision(detections, frames, *find(detections), resamples=RESAMPLES, seed=SEED)
    assert figure["value"] == pytest.approx(area(detections, frames, rule))
    written = [one for one in resampled(frames, detections) if one[1]["lesions"].sum()]
    expected = interval_of([area(*one, rule) for one in written], frames["group"])
    assert bounds_of(figure) == pytest.approx(expected, nan_ok=True)


def test_average_precision_without_envelope_is_that_of_scikit_learn():
    """Where precision only falls the envelope changes nothing; lesions that are never found lower the area."""
    score = np.linspace(0.9, 0.1, 9)
    hit = np.array([1, 1, 1, 0, 0, 1, 0, 0, 0], dtype=bool)
    boxes = pd.DataFrame({"frame": "a", "score": score, "lesion": np.where(hit, np.cumsum(hit), 0)})
    frames = pd.DataFrame({"frame": ["a"], "group": ["g"], "lesions": [8]})
    value = average_precision(boxes, frames, *found_by_centre(boxes), resamples=10, seed=1)["value"]
    assert value == pytest.approx(average_precision_score(hit, score) * hit.sum() / 8)


def test_a_second_box_is_neither_by_centre_and_false_by_overlap():
    boxes = pd.DataFrame({
        "frame": ["a"] * 5, "score": [0.5, 0.9, 0.8, 0.7, 0.6], "lesion": [1, 1, 0, IGNORED, 2],
        "nearest": [1, 1, 1, 0, 2], "iou": [0.9, 0.5, 0.4, 0.0, 0.49],
    })  # fmt: skip
    hit, false = found_by_centre(boxes)
    assert hit.tolist() == [False, True, False, False, True]
    assert false.tolist() == [False, False, True, False, False]
    hit, false = found_by_overlap(boxes)
    assert hit.tolist() == [False, True, False, False, False]
    assert false.tolist() == [True, False, True, False, True]


def test_no_lesion_gives_no_average_precision_and_no_box_gives_zero():
    frames = pd.DataFrame({"frame": ["a", "b"], "group": ["p", "q"], "lesions": [0, 0]})
    boxes = table([("a", 0.9, 0)])
    assert average_precision(boxes, frames, *found_by_centre(boxes), resamples=20, seed=1) == {}
    assert froc_figures(boxes, frames, resamples=20, seed=1) == {}
    none, listed = table([]), frames.assign(lesions=[1, 2])
    figure = average_precision(none, listed, *found_by_centre(none), resamples=20, seed=1)
    assert figure == {"value": 0, "low": 0, "high": 0}
    assert froc_figures(none, listed, resamples=20, seed=1)["1"] == {"value": 0, "low": 0, "high": 0}
    assert len(froc_band(none, listed, resamples=20, seed=1)) == 0


# Size of lesion


@settings(max_examples=20)
@given(findings(), st.integers(0, 99), st.sampled_from([0.25, 0.55]))
def test_sensitivity_by_size_is_that_of_counting(given_findings, seed, threshold):
    detections, frames = given_findings
    rows = [(row.frame, row.group, k) for row in frames.itertuples() for k in range(1, row.lesions + 1)]
    lesions = pd.DataFrame(rows, columns=["frame", "group", "lesion"])
    lesions["area"] = np.random.default_rng(seed).integers(1, 7, len(lesions)) / 10
    figures = sensitivity_by_size(detections, lesions, (0.3, 0.5), threshold, resamples=RESAMPLES, seed=SEED)
    admitted = detections[detections["score"] >= threshold]
    seen = set(zip(admitted["frame"], admitted["lesion"], strict=True))
    bounds = {"small": (0, 0.3), "medium": (0.3, 0.5), "large": (0.5, 1)}
    for name in SIZES:
        low, high = bounds[name]
        members = [row for row in lesions.itertuples() if low <= row.area < high]
        assert (name in figures) == bool(members)
        if members:
            found = sum((row.frame, row.lesion) in seen for row in members)
            assert figures[name]["lesions"] == len(members)
            assert figures[name]["value"] == pytest.approx(found / len(members))
            assert_spread(figures[name], lesions["group"])


def test_the_limits_part_lesions_into_equal_thirds():
    areas = np.random.default_rng(1).permutation(30) / 100
    limits = size_limits(pd.DataFrame({"area": areas}))
    assert np.bincount(np.digitize(areas, limits)).tolist() == [10, 10, 10]


def table(rows: list[tuple[str, float, int]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["frame", "score", "lesion"])


FRAMES = pd.DataFrame({"frame": ["a", "b", "c", "d"], "group": ["p", "p", "q", "r"], "lesions": [1, 2, 0, 1]})
HAND_MADE = table([
    ("a", 0.9, 1), ("a", 0.8, 1), ("b", 0.7, 2), ("c", 0.6, 0), ("b", 0.5, 1), ("d", 0.4, 0), ("a", 0.3, 0),
    ("d", 0.2, IGNORED),
])  # fmt: skip


def test_a_hand_made_curve():
    curve = froc_curve(HAND_MADE, FRAMES)
    assert curve["sensitivity"].tolist() == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 0.75, 0.75]
    assert curve["false_positives_per_frame"].tolist() == [0, 0, 0, 0.25, 0.25, 0.5, 0.75, 0.75]
    at = sensitivity_at(curve).set_index("false_positives_per_frame")
    assert tuple(at.index) == RATES
    assert at["sensitivity"].tolist() == [0.5, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75]
    assert at["score"].tolist() == [0.7, 0.5, 0.4, 0.2, 0.2, 0.2, 0.2]


def test_hand_made_operating_figures():
    figures = operating_metrics(HAND_MADE, FRAMES, 0.4, resamples=500, seed=1)
    assert {name: figure["value"] for name, figure in figures.items()} == pytest.approx(
        {
            "recall": 0.75,
            "precision": 0.6,
            "f1": 2 * 3 / (3 + 2 + 4),
            "false_positives_per_frame": 0.5,
            "false_positives_per_lesion_free_frame": 1.0,
        }
    )
    assert figures["recall"]["low"] < 0.75 < figures["recall"]["high"]


def test_a_second_box_on_a_lesion_is_neither_hit_nor_false_positive():
    once = froc_curve(table([("a", 0.9, 1), ("b", 0.5, 1)]), FRAMES)
    twice = froc_curve(table([("a", 0.9, 1), ("a", 0.8, 1), ("a", 0.9, 1), ("b", 0.5, 1)]), FRAMES)
    assert twice.iloc[-1].tolist() == once.iloc[-1].tolist()
    assert twice["sensitivity"].tolist() == [0.25, 0.25, 0.5]
    figures = operating_metrics(table([("a", 0.9, 1)] * 5), FRAMES, 0.5, resamples=100, seed=1)
    assert figures["recall"]["value"] == 0.25


def test_the_same_number_on_two_frames_is_two_lesions():
    assert froc_curve(table([("a", 0.9, 1), ("b", 0.8, 1)]), FRAMES)["sensitivity"].iloc[-1] == 0.5


def test_boxes_of_one_score_are_accepted_together():
    curve = froc_curve(table([("c", 0.5, 0), ("a", 0.5, 1), ("b", 0.5, 1)]), FRAMES)
    assert curve.to_numpy().tolist() == [[0.5, 0.25, 0.5]]


def test_no_boxes_at_all():
    curve = froc_curve(table([]), FRAMES)
    assert len(curve) == 0
    at = sensitivity_at(curve, (1.0,)).iloc[0]
    assert at["sensitivity"] == 0
    assert np.isnan(at["score"])


def test_a_frame_that_is_not_listed_is_an_error():
    with pytest.raises(ValueError, match="not listed: z"):
        froc_curve(table([("z", 0.5, 0)]), FRAMES)


def test_the_interval_is_over_groups():
    """Two frames a group that repeat each other tell no more than one."""
    rng = np.random.default_rng(1)
    single = pd.DataFrame({"frame": [f"s{k}" for k in range(40)], "group": [f"g{k}" for k in range(40)], "lesions": 1})
    hits = table([(f"s{k}", 0.9, 1) for k in np.flatnonzero(rng.random(40) < 0.6)])
    doubled = pd.concat([single, single.assign(frame="again " + single["frame"])], ignore_index=True)
    both = pd.concat([hits, hits.assign(frame="again " + hits["frame"])], ignore_index=True)
    once = operating_metrics(hits, single, 0.5, resamples=300, seed=2)["recall"]
    twice = operating_metrics(both, doubled, 0.5, resamples=300, seed=2)["recall"]
    assert twice == pytest.approx(once)
    assert once["high"] - once["low"] > 0.2
