"""FROC and operating figures against counting by hand and by brute force."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lesionlab.detection.boxes import IGNORED
from lesionlab.detection.froc import RATES, froc_curve, operating_metrics, sensitivity_at


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
        rows.append((f"f{frame}", draw(st.integers(1, 10)) / 10, draw(st.integers(IGNORED, counts[frame]))))
    return pd.DataFrame(rows, columns=["frame", "score", "lesion"]), frames


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
    expected["f1"] = 2 * found / (found + false + lesions)
    if found + false:
        expected["precision"] = found / (found + false)
    for name, figure in figures.items():
        assert figure["value"] == pytest.approx(expected[name]), name
        assert figure["low"] <= figure["high"]
    assert {"false_positives_per_frame"} <= set(figures)


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
        {"recall": 0.75, "precision": 0.6, "f1": 2 * 3 / (3 + 2 + 4), "false_positives_per_frame": 0.5}
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
