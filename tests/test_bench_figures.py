"""The pages of measured figures, written from what experiments left; none is run here."""

import json

import pytest

from benchmarks import figures


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ({"leak_roc_auc": 0.03, "leak_roc_auc_low": -0.01, "leak_roc_auc_high": 0.07}, "+0.030 [-0.010, +0.070]"),
        ({"leak_roc_auc": 0.03, "leak_roc_auc_sd": 0.02}, "+0.030"),
        ({}, "-"),
    ],
)
def test_a_leak_is_that_of_the_study_with_its_interval(found, text, monkeypatch):
    monkeypatch.setattr(figures, "read", lambda name, path: json.dumps(found))
    assert figures.of_leak("leakage-cvc", "roc_auc")() == text


def test_the_page_says_the_calibration_error_before_and_after_scaling(monkeypatch):
    names = ("accuracy", "roc_auc", "balanced_accuracy", "f1", "aurc_gain", "error_at_90_coverage")
    model = {name: {"value": 0.9, "low": 0.8, "high": 1.0} for name in names}
    model |= {"ece": {"value": 0.02, "low": 0.01, "high": 0.03}}
    model |= {"ece_before_scaling": {"value": 0.05, "low": 0.04, "high": 0.06}}
    evaluated = {"protocol": "group", "group_disjoint": True, "seed": 1, "crops": 9, "groups": 3, "warning": None}
    metrics = {"evaluate": evaluated | {"finetune": model}, "finetune": {"validation": {"accuracy": 0.9}}}
    monkeypatch.setattr(figures, "metrics_of", lambda name, stage: metrics.get(stage, {}))
    said = "Calibration error, finetune: 0.050 [0.040, 0.060] at temperature 1, 0.020 [0.010, 0.030] after scaling."
    assert said in figures.pipeline_page("kvasir-group")


def test_every_target_is_of_an_experiment():
    assert {target.experiment for target in figures.TARGETS} <= figures.EXPERIMENTS.keys()
