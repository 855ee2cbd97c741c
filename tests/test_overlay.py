"""What a study lays over params.yaml: file, then its `set`, then its cell, then the command line."""

import json
import subprocess
import sys

import pytest
from tiny import ROOT, run_stage, small_params, write_yaml_file

from lesionlab.errors import InputError
from lesionlab.params import Overlay, current_overlay, overlaid, read_params

STUDY = {
    "set": {"seed": 7, "baseline": {"filters": [], "dense": 16}, "finetune": {"epochs": 3}},
    "models": {"plain": {"baseline": {"dense": 4}}, "nothing": None, "wrong": 3},
}


@pytest.fixture
def study(tmp_path, monkeypatch):
    write_yaml_file(tmp_path / "params.yaml", small_params())
    path = tmp_path / "studies" / "depth" / "params.yaml"
    write_yaml_file(path, STUDY)
    monkeypatch.chdir(tmp_path)
    return path.relative_to(tmp_path)


def read(*arguments):
    with overlaid(Overlay(*arguments)):
        return read_params()


def refusal(*arguments) -> str:
    with pytest.raises(InputError) as caught:
        read(*arguments)
    return str(caught.value)


def test_each_layer_replaces_only_what_it_names(study):
    assert read_params().seed == 42
    params = read(study)
    assert (params.seed, params.baseline.filters, params.baseline.dense, params.finetune.epochs) == (7, [], 16, 3)
    assert params.finetune.learning_rate == read_params().finetune.learning_rate
    assert read(study, "models.plain").baseline.dense == 4
    assert read(study, "models.nothing") == params
    last = read(study, "models.plain", ("baseline.dense=2", "finetune.learning_rate=1e-05", "seed=1"))
    assert (last.baseline.dense, last.finetune.learning_rate, last.seed) == (2, 1e-5, 1)
    assert read(None, None, ("split.shuffle_labels=true",)).split.shuffle_labels is True
    assert read_params().seed == 42


def test_the_name_of_a_cell(study):
    assert current_overlay().name == ""
    assert (
        Overlay(study, "models.plain", ("seed=1", "split.test_fold=0")).name == "models.plain seed=1 split.test_fold=0"
    )


@pytest.mark.parametrize(
    ("cell", "settings", "message"),
    [
        (None, ("finetune.epoch=3",), "--set finetune.epoch=3: unknown key 'finetune.epoch'; did you mean 'epochs'?"),
        (
            None,
            ("finetune.epochs=0",),
            "--set finetune.epochs=0: finetune.epochs: Input should be greater than 0 (is: 0)",
        ),
        (None, ("finetune.epochs",), "--set finetune.epochs: must be KEY=VALUE"),
        (None, ("baseline.filters=[8",), "--set baseline.filters=[8: not valid YAML: "),
        (None, ("split.test_fold=3",), "--set split.test_fold=3: split: test_fold 3 must be below folds (3)"),
        ("models.none", (), "studies/depth/params.yaml: key 'models.none' is missing"),
        ("models.wrong", (), "studies/depth/params.yaml: models.wrong: must be a mapping"),
    ],
)
def test_a_fault_names_the_layer_that_holds_it(study, cell, settings, message):
    assert refusal(study, cell, settings).startswith(message)


def test_a_misspelt_key_of_a_study_names_its_file(study):
    write_yaml_file(study, {"set": {"crop": {"jiter": 0.1}}})
    expected = "studies/depth/params.yaml: set: unknown key 'crop.jiter'; did you mean 'jitter'?"
    assert refusal(study) == expected
    write_yaml_file(study, {"set": {}, "dataset": "kvasir-seg"})  # what DVC advises: -S +dataset=kvasir-seg
    expected = "studies/depth/params.yaml: 'dataset' stands beside 'set', where nothing reads it; say set.dataset"
    assert refusal(study).startswith(expected)
    write_yaml_file(study, {"sets": {}})
    assert refusal(study) == "studies/depth/params.yaml: key 'set' is missing"
    assert refusal(study.with_name("none.yaml")) == "studies/depth/none.yaml: not found"
    assert refusal(None, "models.plain") == "--cell models.plain: give --study too, the file that holds it"


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("ensemble", {"seeds": [1], "folds": [0]}, "one seed and one fold are one member; give several seeds"),
        ("blockwise", {"folds": [0], "blocks": [1], "seeds": [1]}, "unknown key 'seeds'"),
        ("leakage", {"protocols": ["chance"]}, "protocols"),
        ("variants", {"cnns": {}, "backbones": {"deep": {"finetune": {"epochs": 2}}}}, "nothing reads 'finetune'"),
    ],
)
def test_what_a_study_may_not_hold_is_refused_before_its_first_cell(tiny_project, kind, content, message):
    """The first stage of all, which would else fetch its images."""
    write_yaml_file(tiny_project / f"studies/{kind}/params.yaml", {"set": {}} | content)
    result = run_stage("download", "images", "--out", "fetched", "--study", f"studies/{kind}/params.yaml")
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: studies/{kind}/params.yaml: ")
    assert message in result.stderr
    assert not (tiny_project / "fetched").exists()


def test_a_stage_obeys_its_command_line(tiny_project):
    """The crop stage at a size, context and seed of the command line, and how long it took."""
    paths = ("--raw", "data/raw", "--crops", "data/crops", "--metrics", "metrics/crop.json", "--sheet", "sheet.png")
    write_yaml_file(tiny_project / "studies/one/params.yaml", {"set": {"crop": {"negatives_per_frame": 0}}})
    result = run_stage("crop", *paths, "--study", "studies/one/params.yaml", "--seconds", "time.json")
    assert result.returncode == 1
    assert "no crop of class 'background'" in result.stderr  # since no negatives were asked for
    more = ("--study", "studies/one/params.yaml", "--set", "crop.negatives_per_frame=1", "--seconds", "time.json")
    result = run_stage("crop", *paths, *more)
    assert result.returncode == 0, result.stderr
    assert 0 < json.loads((tiny_project / "time.json").read_text())["seconds"] < 300
    assert json.loads((tiny_project / "metrics/crop.json").read_text())["classes"]["background"] <= 24
    assert run_stage("crop", *paths, "--set", "crop.jiter=1").stderr.startswith(
        "error: --set crop.jiter=1: unknown key"
    )


def test_every_stage_shows_the_options_and_other_commands_do_not():
    scripts = sorted(path.stem for path in (ROOT / "stages").glob("[a-z]*.py"))
    assert {"predict", "summarise", "split"} <= set(scripts)
    for name in ("split", "finetune", "summarise"):
        shown = run_stage(name, "--help").stdout
        for option in ("--study", "--cell", "--set", "--seconds"):
            assert option in shown, name
    command = [sys.executable, "-m", "lesionlab.summary", "--help"]
    assert "--study" not in subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout
