"""The pages of measured figures, written from what experiments left; none is run here."""

import json
import shlex

import numpy as np
import pytest
from tiny import ROOT

from benchmarks import figures
from benchmarks.experiments import Experiment
from benchmarks.means import chosen, figures_of_means
from lesionlab.errors import InputError
from lesionlab.evaluation.metrics import Scores
from lesionlab.files import write_json
from lesionlab.studies.predictions import Predictions


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
    evaluated = {
        "protocol": "group",
        "group_disjoint": True,
        "seed": 1,
        "crops": 9,
        "groups": 3,
        "warning": None,
    }
    evaluated |= {"validation": {"finetune": {"accuracy": {"value": 0.95, "low": 0.9, "high": 0.99}}}}
    metrics = {"evaluate": evaluated | {"finetune": model}}
    monkeypatch.setattr(figures, "metrics_of", lambda name, stage: metrics.get(stage, {}))
    monkeypatch.setattr(figures, "commit_of", lambda name: "0123456")
    said = "Calibration error, finetune: 0.050 [0.040, 0.060] at temperature 1, 0.020 [0.010, 0.030] after scaling."
    page = figures.pipeline_page("kvasir-group")
    assert said in page
    assert page[0].startswith("Protocol group (near-duplicates apart, patients unknown), seed 1;")  # as its card says
    assert any(line.startswith("| finetune | 0.950 [0.900, 0.990] | 0.900 [0.800, 1.000] |") for line in page)


def test_every_target_is_of_an_experiment():
    measured = {target.experiment for target in figures.TARGETS if target.ours is not figures.not_at_hand}
    assert measured <= {**figures.EXPERIMENTS, **figures.MEANS}.keys()
    for target in figures.TARGETS:
        if target.ours is figures.not_at_hand:  # then it names what runs the system
            assert (ROOT / "datasets" / f"{target.experiment.removeprefix('-S dataset=')}.yaml").exists()
    assert {member for mean in figures.MEANS.values() for member in mean.members} <= figures.EXPERIMENTS.keys()


def test_the_pages_commands_are_those_that_would_be_run_again():
    """Other settings would make another figure of the one that the page shows."""
    written = figures.sections((ROOT / figures.PAGE).read_text())
    assert set(written) <= {*figures.EXPERIMENTS, *figures.MEANS}
    for name in figures.EXPERIMENTS.keys() & written.keys():
        experiment = figures.EXPERIMENTS[name]
        command = shlex.join(experiment.command(name, "DATA", figures.PLACEHOLDERS))
        assert f"{command}`" in written[name], name
        assert f"&& {command}" in written[name] if experiment.study else f"`{command}" in written[name]


def test_the_cold_seconds_of_an_experiment_that_was_run_anew_are_not_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "COLD", tmp_path / "cold.json")
    monkeypatch.setattr(figures, "commit_of", lambda name: "abc1234")
    shown = figures.cold_figure("cvc-random")
    assert shown() == "not timed"
    write_json(figures.COLD, {"cvc-random": {"commit": "abc1234", "seconds": [48.2, 47.3, 53.5]}})
    assert shown() == "48.2 (47.3 to 53.5)"
    monkeypatch.setattr(figures, "commit_of", lambda name: "def5678")
    assert shown() == "not timed"


def test_what_was_measured_of_an_earlier_run_does_not_count(monkeypatch, tmp_path):
    monkeypatch.setattr(figures, "commit_of", lambda name: "0123456")
    path = tmp_path / "cold.json"
    assert figures.of_this_run(path, "cvc-random") == {}
    kept = {"commit": "0123456", "seconds": [1.0]}
    path.write_text(json.dumps({"cvc-random": kept, "cvc-group": kept | {"commit": "6543210"}, "old": {"seconds": []}}))
    assert figures.of_this_run(path, "cvc-random") == kept
    assert figures.of_this_run(path, "cvc-group") == figures.of_this_run(path, "old") == {}


def test_each_network_takes_its_own_weights():
    files = {"mobilenetv2": "w/v2.h5", "mobilenet": "w/v1.h5"}
    command = Experiment("title", "phantom", "folder", backbone="mobilenet").command("name", "DATA", files)
    assert {"model.backbone=mobilenet", "model.weights=w/v1.h5"} <= set(command)


@pytest.mark.parametrize("absent", ["data/one", "data/two", "v1.h5"])
def test_what_an_experiment_needs_is_looked_for_before_any_runs(tmp_path, monkeypatch, absent):
    external = Experiment("title", "phantom", "one", study="external", external=("other", "two"))
    experiments = {"first": external, "second": Experiment("title", "phantom", "one", backbone="mobilenet")}
    monkeypatch.setattr(figures, "EXPERIMENTS", experiments)
    files = {"mobilenetv2": tmp_path / "v2.h5", "mobilenet": tmp_path / "v1.h5"}
    for path in (tmp_path / "data" / "one", tmp_path / "data" / "two", *files.values()):
        path.mkdir(parents=True)
    figures.require_files(["first", "second"], tmp_path / "data", files)
    (tmp_path / absent).rmdir()
    with pytest.raises(InputError, match="needs it; add it, or run others with --only"):
        figures.require_files(["first", "second"], tmp_path / "data", files)


def test_validation_chooses_how_many_networks_are_averaged():
    labels = np.arange(3)
    sure, wrong = 0.05 + 0.85 * np.eye(3), 0.3 + 0.1 * np.roll(np.eye(3), 1, axis=1)

    def said(val, test):
        groups, ids = np.array(["a", "b", "c"]), np.array(["1", "2", "3"])
        scores = [Scores(labels, probabilities, groups, None) for probabilities in (val, test)]
        return [Predictions(*scores, ids, ids, ["x", "y", "z"])]

    def but(row):  # sure of all crops but one
        return np.where(np.arange(3)[:, None] == row, wrong, sure)

    members = {"one": said(but(0), wrong), "two": said(but(1), wrong), "three": said(but(2), sure)}
    cells = figures_of_means(members)
    table = cells.set_index("networks")
    third = pytest.approx(2 / 3)
    assert table["val_accuracy"].to_dict() == {
        "one": third,
        "two": third,
        "three": third,
        "one + two": 1,
        "one + two + three": 1,
    }
    assert table["accuracy"].to_dict() == {"one": 0, "two": 0, "three": 1, "one + two": 0, "one + two + three": 1}
    assert list(chosen(cells)["networks"]) == ["one + two"], "the fewest of equal ones, whatever test figures say"
    assert list(chosen(cells, declared=True)["networks"]) == ["one + two + three"]
    folds = figures_of_means({name: predicted + said(but(2), sure) for name, predicted in members.items()})
    assert list(chosen(folds)["networks"]) == ["one + two", "one"], "each fold by itself"
