import contextlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from lesionlab import tracking
from lesionlab.params import Overlay, overlaid
from lesionlab.tracking import log_stage, prepare

REPOSITORY = Path(__file__).parent.parent
VARIABLES = ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV")
HISTORY = pd.DataFrame(
    {"epoch": [1, 2, 3], "loss": [0.5, 0.3, 0.4], "val_auc": [0.7, 0.9, 0.8], "phase": ["warm", "warm", "late"]}
)
# What a stage does, in a process of its own: the name of the stage, then what to record.
STAGE = """
import sys
from lesionlab.tracking import log_stage
log_stage(sys.argv[1], params={"k": 2}, history=None, metrics={"auc": 0.5}, seconds=1.0)
"""


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch, tmp_path):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def start_stage(name, **variables):
    environment = {**os.environ, **variables, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen([sys.executable, "-c", STAGE, name], env=environment, stderr=subprocess.PIPE, text=True)


def log_small(stage="finetune", **changes):
    log_stage(**{"stage": stage, "params": {}, "history": None, "metrics": {"auc": 0.5}, "seconds": 1.0, **changes})


def read_runs(database):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("lesionlab")
    return client, client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])


def record_here(request):
    tracking._record(request, *tracking._resolve(tracking._uri(), tracking.repository_root()))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Three stages of one experiment, recorded from a copy of the work tree as `dvc exp run --temp` makes it."""
    root = tmp_path_factory.mktemp("a root ü")
    copy = tmp_path_factory.mktemp("copy")
    shutil.copy(REPOSITORY / "params.yaml", copy)
    picture = copy / "curve.png"
    picture.write_bytes(b"a picture")
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(copy):
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        patch.setenv("DVC_ROOT", str(root))
        patch.setenv("DVC_EXP_NAME", "brave-otter")
        patch.setenv("DVC_EXP_BASELINE_REV", "0123abcd")
        patch.setenv("DVC_STAGE", "finetune")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        log_stage(
            "finetune",
            params={"finetune": {"learning_rate": 1e-05, "filters": [16, 32]}, "long": "x" * 7000},
            history=HISTORY,
            metrics={"val_auc": 0.9},
            pictures=[picture],
            tags={"lesionlab.data": "feed"},
            seconds=60,
        )
        # The other two without a process each, which would import MLflow again.
        patch.setattr(tracking, "_record_in_child", record_here)
        metrics = {"finetune": {"auc": 0.88, "undefined": None}, "sensitivity@0.5": 0.7, "note": "text"}
        log_stage("evaluate", params={}, history=None, metrics=metrics, seconds=3)
        log_stage("finetune", params={}, history=None, metrics={}, seconds=2)
    client, runs = read_runs(root / "mlflow.db")
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    return SimpleNamespace(root=root, copy=copy, client=client, parents=parents, children=children)


def child(recorded, stage):
    return next(run for run in recorded.children if run.info.run_name == stage)


def test_one_parent_holds_a_child_for_every_run_of_a_stage(recorded):
    (parent,) = recorded.parents
    assert parent.info.run_name == "brave-otter"
    assert parent.data.tags["lesionlab.experiment"] == "brave-otter"
    assert sorted(run.info.run_name for run in recorded.children) == ["evaluate", "finetune", "finetune"]
    assert {run.data.tags["mlflow.parentRunId"] for run in recorded.children} == {parent.info.run_id}
    assert {run.info.status for run in [parent, *recorded.children]} == {"FINISHED"}


def test_the_database_is_in_the_root_and_the_copy_stays_clean(recorded):
    assert sorted(path.name for path in recorded.copy.iterdir()) == ["curve.png", "params.yaml"]
    names = sorted(path.name for path in recorded.root.iterdir())
    assert names == [".lesionlab", "mlartifacts", "mlflow.db"]


def test_every_epoch_is_a_step_and_the_final_figure_is_the_one_shown(recorded):
    run = child(recorded, "finetune")
    loss = recorded.client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in loss] == [(1, 0.5), (2, 0.3), (3, 0.4)]
    assert run.data.metrics == {"loss": 0.4, "val_auc": 0.9, "seconds": 60.0}
    assert run.info.end_time - run.info.start_time == 60_000


def test_params_are_recorded_as_given(recorded):
    run = child(recorded, "finetune")
    assert run.data.params["finetune.learning_rate"] == "1e-05"
    assert run.data.params["finetune.filters"] == "[16, 32]"
    assert run.data.params["long"] == "x" * 6000


def test_the_parent_has_all_params_and_the_metrics_of_the_evaluation(recorded):
    (parent,) = recorded.parents
    assert parent.data.params["seed"] == "42"
    assert parent.data.params["finetune.unfrozen_blocks"].isdigit()
    assert parent.data.tags["dataset"] == "phantom"
    assert parent.data.metrics == {"evaluate.finetune.auc": 0.88, "evaluate.sensitivity_0.5": 0.7}
    evaluate = child(recorded, "evaluate")
    assert evaluate.data.metrics == {"finetune.auc": 0.88, "sensitivity_0.5": 0.7, "seconds": 3.0}


def test_tags_name_data_code_and_commit(recorded):
    tags = child(recorded, "finetune").data.tags
    assert tags["lesionlab.data"] == "feed"
    assert len(tags["lesionlab.code"]) == 16
    assert tags["mlflow.source.git.commit"] == tags["DVC_EXP_BASELINE_REV"] == "0123abcd"
    assert tags["DVC_STAGE"] == "finetune"
    assert tags["dataset"] == "phantom"


def test_pictures_are_kept_beside_the_database(recorded):
    run = child(recorded, "finetune")
    assert [file.path for file in recorded.client.list_artifacts(run.info.run_id)] == ["curve.png"]
    kept = recorded.root / "mlartifacts" / run.info.run_id / "artifacts" / "curve.png"
    assert kept.read_bytes() == b"a picture"


@pytest.mark.slow
def test_the_user_interface_serves_what_was_recorded(recorded, monkeypatch):
    monkeypatch.chdir(recorded.root)
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", "sqlite:///mlflow.db"]
    command += [
        "--default-artifact-root",
        "./mlartifacts",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(f"{address}/health", seconds=90)
        run = child(recorded, "finetune").info.run_id
        with urllib.request.urlopen(f"{address}/api/2.0/mlflow/runs/get?run_id={run}") as answer:
            tags = json.load(answer)["run"]["data"]["tags"]
        assert {"key": "mlflow.parentRunId", "value": recorded.parents[0].info.run_id} in tags
        with urllib.request.urlopen(f"{address}/get-artifact?path=curve.png&run_uuid={run}") as answer:
            assert answer.read() == b"a picture"
    finally:
        server.terminate()
        server.wait(timeout=30)


def wait_for(address, seconds):
    end = time.monotonic() + seconds
    while True:
        try:
            return urllib.request.urlopen(address, timeout=5).close()
        except (urllib.error.URLError, OSError):
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


@pytest.mark.slow
def test_two_processes_share_a_fresh_database_and_one_parent(tmp_path):
    uri = "sqlite:///elsewhere/runs.db"  # begins at the root
    processes = [
        start_stage(name, MLFLOW_TRACKING_URI=uri, DVC_EXP_NAME="bob's", DVC_ROOT=str(tmp_path))
        for name in ("transfer", "evaluate")
    ]
    assert [process.communicate()[1] for process in processes] == ["", ""]
    _, runs = read_runs(tmp_path / "elsewhere" / "runs.db")
    assert sorted(run.info.run_name for run in runs) == ["bob_s", "evaluate", "transfer"]
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.slow
def test_slow_servers_are_given_up_and_said_so(tmp_path):
    silent = socket.create_server(("127.0.0.1", 0), backlog=64)
    database = tmp_path / "locked.db"
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other, silent:
        other.execute("CREATE TABLE anything (value)")
        other.execute("BEGIN EXCLUSIVE")
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        roots = [tmp_path / name for name in ("impatient", "patient", "locked")]
        started = time.monotonic()
        impatient = start_stage(
            "a", MLFLOW_TRACKING_URI=address, MLFLOW_HTTP_REQUEST_TIMEOUT="1", DVC_ROOT=str(roots[0])
        )
        patient = start_stage(
            "b", MLFLOW_TRACKING_URI=address, MLFLOW_HTTP_REQUEST_TIMEOUT="99", DVC_ROOT=str(roots[1])
        )
        locked = start_stage("c", MLFLOW_TRACKING_URI=f"sqlite:///{database}", DVC_ROOT=str(roots[2]))
        said = [process.communicate()[1] for process in (impatient, patient, locked)]
        took = time.monotonic() - started
    assert [process.returncode for process in (impatient, patient, locked)] == [0, 0, 0]
    assert took < tracking.ANSWER_SECONDS + 45  # MLflow by itself tries for minutes; the rest is its import, thrice
    assert said[0] == warning(address, "a", "TimeoutError: timed out")
    assert said[1] == warning(address, "b", "no answer within 15 s")
    assert said[2] == warning(f"sqlite:///{database}", "c", "OperationalError: database is locked")


def warning(server, stage, reason):
    return (
        f"warning: MLflow at {server} did not record all of stage {stage}: {reason}; "
        "the stage's results are not affected\n"
    )


def assert_warned(capfd, server, reason, started):
    assert time.monotonic() - started < 45
    out, err = capfd.readouterr()
    assert (out, err) == ("", warning(server, "finetune", reason))


def test_a_refused_port_is_a_warning_without_the_password(monkeypatch, capfd):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")
    started = time.monotonic()
    log_small()
    reason = "ConnectionRefusedError: [Errno 111] Connection refused"
    if sys.platform == "darwin":
        reason = reason.replace("111", "61")
    assert_warned(capfd, f"http://***@127.0.0.1:{port}", reason, started)


def test_a_file_that_is_no_database_is_a_warning_and_stays(tmp_path, capfd):
    database = tmp_path / "mlflow.db"
    database.write_text("minutes of a meeting, kept under an unlucky name\n" * 9)
    started = time.monotonic()
    log_small()
    assert_warned(capfd, f"sqlite:///{database}", "DatabaseError: file is not a database", started)
    assert database.read_text().startswith("minutes")


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, capfd):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):  # root may write everywhere: let a file stand where the folder should be
        folder.rmdir()
        folder.touch()
    uri = f"sqlite:///{folder}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    started = time.monotonic()
    log_small()
    err = capfd.readouterr().err
    assert time.monotonic() - started < 45
    assert err.startswith(f"warning: MLflow at {uri} did not record")
    assert err.count("\n") == 1
    assert "[Errno" in err


def test_mlflow_that_cannot_be_imported_is_a_warning(tmp_path, monkeypatch, capfd):
    package = tmp_path / "broken" / "mlflow"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("print('half of it')\nimport no_such_module_anywhere")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    started = time.monotonic()
    log_small()
    reason = "ModuleNotFoundError: No module named 'no_such_module_anywhere'"
    assert_warned(capfd, f"sqlite:///{tmp_path / 'mlflow.db'}", reason, started)


def test_a_killed_child_is_a_warning(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tracking.sys, "executable", shutil.which("false"))
    log_small()
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert capfd.readouterr().err == warning(uri, "finetune", "its process ended with status 1")


def test_a_history_without_epochs_is_a_warning(capfd):
    log_small(history=HISTORY.drop(columns="epoch"))
    assert "did not record all of stage finetune: KeyError: 'epoch'" in capfd.readouterr().err


def test_an_interrupt_ends_the_stage(monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tracking.subprocess.Popen, "communicate", interrupted)
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0123abcd")
    with pytest.raises(KeyboardInterrupt):
        log_small()


def test_a_prepared_process_records_later(tmp_path):
    prepare()
    [child] = tracking._waiting
    log_small()
    assert (child.returncode, tracking._waiting) == (0, [])
    assert [run.data.metrics["auc"] for run in read_runs(tmp_path / "mlflow.db")[1] if run.data.metrics] == [0.5]


def test_a_prepared_process_without_a_request_ends_quietly(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "MLFLOW_TRACKING_URI": "sqlite:///runs.db"}
    command = [sys.executable, "-m", "lesionlab.tracking", str(tmp_path)]
    child = subprocess.run(command, input="", env=environment, capture_output=True, text=True)
    assert (child.returncode, child.stdout) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == [".lesionlab"]


def test_without_an_experiment_the_key_follows_params_and_commit(monkeypatch):
    first = tracking._experiment_key({"seed": 1, "dataset": "phantom"}, "abc")
    assert first.startswith("repro-")
    assert len(first) == len("repro-") + 8
    assert tracking._experiment_key({"dataset": "phantom", "seed": 1}, "abc") == first
    assert tracking._experiment_key({"dataset": "phantom", "seed": 2}, "abc") != first
    assert tracking._experiment_key({"dataset": "phantom", "seed": 1}, "abd") != first
    monkeypatch.setenv("DVC_EXP_NAME", "brave-otter")
    assert tracking._experiment_key({"dataset": "phantom", "seed": 2}, "abc") == "brave-otter"


def test_cells_of_a_study_share_a_parent_and_have_names_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    study = Path("studies/depth/params.yaml")
    study.parent.mkdir(parents=True)
    study.write_text("set: {seed: 3}\n")
    requests = []
    for settings in (("split.test_fold=0",), ("split.test_fold=1", "finetune.unfrozen_blocks=2")):
        with overlaid(Overlay(study, None, settings)):
            requests.append(tracking._request("finetune", {}, None, {}, (), {}, 1.0))
    first, second = requests
    assert first["key"] == second["key"]
    assert first["key"].startswith("depth-")
    assert first["name"] == "finetune split.test_fold=0"
    assert second["name"] == "finetune split.test_fold=1 finetune.unfrozen_blocks=2"
    assert (first["parent_tags"]["lesionlab.study"], first["parent_params"]["seed"]) == ("depth", "3")
    assert first["tags"]["lesionlab.cell"] == "split.test_fold=0"
    plain = tracking._request("finetune", {}, None, {}, (), {}, 1.0)
    assert plain["name"] == "finetune"
    assert plain["key"].startswith("repro-")
    assert "lesionlab.study" not in plain["parent_tags"]


def test_the_commit_is_that_of_the_root(tmp_path):
    assert tracking._git_head() == ""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "--no-gpg-sign", "-m", "begin"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert tracking._git_head() == head


@pytest.mark.parametrize(
    ("uri", "resolved", "database"),
    [
        ("sqlite:///runs.db", "sqlite:////root/runs.db", "/root/runs.db"),
        ("sqlite:////data/runs.db", "sqlite:////data/runs.db", "/data/runs.db"),
        ("sqlite+pysqlite:///a b/r.db?timeout=9", "sqlite+pysqlite:////root/a b/r.db?timeout=9", "/root/a b/r.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000", None),
        ("postgresql://user:pass@host/db", "postgresql://user:pass@host/db", None),
    ],
)
def test_a_relative_database_begins_at_the_root(uri, resolved, database):
    assert tracking._resolve(uri, Path("/root")) == (resolved, Path(database) if database else None)


def test_a_deleted_experiment_names_the_remedy():
    experiment = SimpleNamespace(lifecycle_stage="deleted", experiment_id="7")
    client = SimpleNamespace(get_experiment_by_name=lambda _: experiment)
    with pytest.raises(tracking.TrackingError, match="restore --experiment-id 7"):
        tracking._find_experiment(client, None)


def test_mlflow_is_not_imported_by_a_stage():
    code = "import sys, lesionlab.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0
