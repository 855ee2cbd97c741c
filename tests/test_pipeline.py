"""The pipeline as a user runs it: dvc repro and dvc exp run in a clone, on a tiny phantom."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import DATASET, small_params, write_card, write_yaml_file

REPOSITORY = Path(__file__).parent.parent
STAGES = {
    "download@images", "download@weights", "crop", "split", "baseline", "transfer", "finetune", "evaluate", "detect",
    "explain",
}  # fmt: skip


def _run(folder: Path, *command: str, check: bool = True) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_", "GIT_"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment |= dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"), "test")
    environment |= dict.fromkeys(("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"), "test@example.org")
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert not check or result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout + result.stderr


def _stages_run(output: str) -> set[str]:
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """The work tree as Git would clone it, with small parameters, after one dvc repro."""
    folder = tmp_path_factory.mktemp("clone") / "lesion lab"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=REPOSITORY, capture_output=True, check=True
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    write_yaml_file(folder / "params.yaml", small_params())
    write_card(folder, DATASET)
    _run(folder, "git", "init", "-q")
    _run(folder, "git", "add", "-A")
    _run(folder, "git", "commit", "-qm", "small")
    assert _stages_run(_run(folder, "dvc", "repro")) == STAGES
    _run(folder, "git", "add", "-A")
    _run(folder, "git", "commit", "-qm", "first run")
    return folder


@pytest.mark.slow
def test_repro_writes_figures_with_protocol_seed_and_interval(clone):
    evaluated = json.loads((clone / "metrics/evaluate.json").read_text())
    assert (evaluated["subset"], evaluated["protocol"], evaluated["group_disjoint"]) == ("test", "group", True)
    for model in ("baseline", "transfer", "finetune"):
        figure = evaluated[model]["accuracy"]
        assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
    proof = json.loads((clone / "metrics/split.json").read_text())["proof"]
    assert proof.pop("highest_correlation_train_test") < 0.99
    assert set(proof.values()) == {0}
    table = _run(clone, sys.executable, "-m", "lesionlab.summary")
    assert re.search(rf"^finetune  +{evaluated['finetune']['accuracy']['value']:.3f} ", table, re.MULTILINE)


@pytest.mark.slow
def test_repro_again_runs_nothing(clone):
    output = _run(clone, "dvc", "repro")
    assert _stages_run(output) == set()
    assert "Data and pipelines are up to date" in output


@pytest.mark.slow
def test_forced_training_gives_the_same_bytes(clone):
    before = (clone / "dvc.lock").read_text()
    output = _run(clone, "dvc", "repro", "--force", "--single-item", "baseline", "transfer", "finetune", "evaluate")
    assert _stages_run(output) == {"baseline", "transfer", "finetune", "evaluate"}
    assert (clone / "dvc.lock").read_text() == before


@pytest.mark.slow
def test_an_experiment_runs_only_what_its_change_reaches(clone):
    cached = set((clone / ".lesionlab/prefix").iterdir())
    output = _run(clone, "dvc", "exp", "run", "--temp", "-n", "two-blocks", "-S", "finetune.unfrozen_blocks=2")
    assert _stages_run(output) == {"finetune", "evaluate", "detect", "explain"}
    changes = json.loads(_run(clone, "dvc", "params", "diff", "--json", "HEAD", "two-blocks"))
    change = changes["params.yaml"]["finetune.unfrozen_blocks"]
    assert (change["old"], change["new"]) == (1, 2)
    metrics = json.loads(_run(clone, "dvc", "metrics", "diff", "--json", "HEAD", "two-blocks"))
    trained = metrics["metrics/finetune.json"]["trained_parameters"]
    assert trained["new"] > trained["old"]
    # The temporary copy wrote into the one database and the one cache of the repository.
    runs = dict(sqlite3.connect(clone / "mlflow.db").execute("select name, count(*) from runs group by name"))
    assert runs["two-blocks"] == 1
    assert runs["finetune"] >= 2
    assert set((clone / ".lesionlab/prefix").iterdir()) > cached


@pytest.mark.slow
def test_plots_lay_the_models_over_each_other(clone):
    _run(clone, "dvc", "plots", "show", "--out", "report")
    page = (clone / "report/index.html").read_text()
    overlaid = ("Validation accuracy", "ROC on test crops", "Calibration on test crops", "Error against coverage")
    for name in (*overlaid, "FROC on test frames", "Confusion of finetune"):
        assert name in page
    for model in ("baseline", "transfer", "finetune"):
        assert f"roc_{model}.csv" in page
