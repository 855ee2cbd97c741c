"""The table that evaluate prints."""

import pytest

from lesionlab.evaluation.table import evaluation_table, interval


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
    content = {"protocol": "group", "group_disjoint": True, "seed": 1, "crops": 10, "groups": 5}
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
    assert len(evaluation_table(metrics(comparison={}))) == 4
