"""The table that evaluate prints."""

import pandas as pd
import pytest

from lesionlab.evaluation.run import chance
from lesionlab.evaluation.table import evaluation_table, interval
from lesionlab.summary import table


def figure(value: float | None, low: float | None = None, high: float | None = None) -> dict:
    return {"value": value, "low": low, "high": high}


@pytest.mark.parametrize(
    ("given", "style", "text"),
    [
        (figure(0.9621, 0.9312, 0.9858), ".3f", "0.962 [0.931, 0.986]"),
        (figure(-0.0123, -0.02, 0.01), "+.3f", "-0.012 [-0.020, +0.010]"),
        (figure(0.5), ".3f", "0.500"),
        (figure(None), ".3f", "-"),
        (None, ".3f", "-"),
    ],
)
def test_a_figure_as_text(given, style, text):
    assert interval(given, style) == text


def metrics(**changes: object) -> dict:
    names = ("accuracy", "balanced_accuracy", "roc_auc")
    part = {name: figure(0.9, 0.8, 1.0) for name in names}
    difference = {name: figure(0.1, -0.1, 0.2) for name in names} | {"mcnemar_p": 0.0314, "delong_p": None}
    content = {"protocol": "group", "group_disjoint": True, "grouped_by": "card", "seed": 1, "crops": 10, "groups": 5}
    content |= {"finetune": part | {"ece": figure(0.02, 0.01, 0.03)}, "control_mean_colour": part}
    return content | {"comparison": {"finetune_minus_baseline": difference}, "warning": None} | changes


def test_every_model_difference_and_warning_is_a_line():
    lines = evaluation_table(metrics())
    assert lines[0] == "10 test crops of 5 groups, protocol group (group-disjoint), seed 1; [95 % interval]"
    assert lines[2].split()[:3] == ["finetune", "0.900", "[0.800,"]
    assert "0.020 [0.010, 0.030]" in lines[2]
    assert lines[3].split()[0] == "control_mean_colour"
    assert lines[5].startswith("finetune - baseline")
    assert lines[5].split()[-2:] == ["0.031", "-"]
    assert len(lines) == 6
    assert evaluation_table(metrics(warning="too near"))[6] == "warning: too near"
    assert "NOT group-disjoint" in evaluation_table(metrics(group_disjoint=False))[0]
    assert "near-duplicates apart, patients unknown" in evaluation_table(metrics(grouped_by="near-duplicates"))[0]
    assert "runs of like images apart, patients unknown" in evaluation_table(metrics(grouped_by="runs"))[0]
    assert len(evaluation_table(metrics(comparison={}))) == 4


def test_chance_is_a_row_without_interval():
    row = chance(pd.Series(["a", "b", "b", "c", "b"]), 3)
    assert row == {"accuracy": figure(0.6), "balanced_accuracy": figure(1 / 3), "roc_auc": figure(0.5)}
    assert evaluation_table(metrics(chance=row))[4].split() == ["chance", "0.600", "0.333", "0.500", "-", "-"]


def test_the_weakest_subgroup_of_each_model_and_column_is_a_line():
    columns = ["model", "column", "level", "crops", "groups", "metric", "value", "low", "high", "note"]
    rows = [
        ("finetune", "lesion_size", "1 to 2", 7, 2, "accuracy", 0.9, "0.8", "1.0", ""),
        ("finetune", "lesion_size", "2 to 3", 5, 1, "accuracy", 0.7, "", "", "one group: no interval"),
        ("finetune", "lesion_size", "1 to 2", 7, 2, "recall", 0.1, "0.0", "0.2", ""),
        ("finetune", "centre", "north", 12, 3, "accuracy", 0.8, "0.7", "0.9", ""),
    ]
    lines = evaluation_table(metrics(), pd.DataFrame(rows, columns=columns))[-3:]
    assert lines[0].split() == ["weakest", "subgroup", "accuracy"]
    assert lines[1].split(maxsplit=2) == ["finetune", "0.700", "lesion_size 2 to 3; 5 crops; one group: no interval"]
    assert lines[2].split(maxsplit=4)[1:] == ["0.800", "[0.700,", "0.900]", "centre north; 12 crops"]
    assert evaluation_table(metrics(), pd.DataFrame(columns=columns)) == evaluation_table(metrics())


def test_the_summary_says_how_much_heat_lies_inside_lesions_where_masks_tell():
    heat = {"gradcam": {"share_inside": figure(0.4, 0.3, 0.5), "times_random": figure(2.3, 1.9, 2.7)}, "lesions": 9}
    said = "share of heat inside 0.400 [0.300, 0.500], 2.30 [1.90, 2.70] times a random map's"
    none = pd.DataFrame()
    assert f"Grad-CAM on 9 test lesions: {said}" in table(metrics(), {}, heat, none)
    assert not any("Grad-CAM" in line for line in table(metrics(), {}, {"gradcam": {"layer": "relu"}}, none))
