"""MLflow: one parent run an experiment, and below it a child run for every stage that ran.

The parent is named after `dvc exp run`'s experiment, else `repro-<hash of params.yaml and the Git commit>`, with the
study's name in place of `repro` in a study: all its cells are below one parent. The database is `mlflow.db` in the
repository's root with artifacts in `mlartifacts` beside it, or what MLFLOW_TRACKING_URI names; a relative sqlite path
there is relative to the root, so that copies of the work tree (`--temp`, queue workers) write to the same database.

A stage records once, after its work is done, in a child process (`python -m lesionlab.tracking ROOT`, the request as
JSON on its standard input). A process can be ended whatever it hangs in, be it a socket, a name look-up or a lock,
which a thread cannot; and MLflow's import, threads and exit hooks stay out of the process that trains. It is started
with the stage (`prepare`), so that MLflow is imported, and a new database made, beside the stage's own imports. What
goes wrong there is one warning line here.
"""

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from lesionlab.files import repository_root, whole_file
from lesionlab.params import Overlay, current_overlay, read_params

EXPERIMENT = "lesionlab"
KEY_TAG = "lesionlab.experiment"
COPIED_TO_PARENT = ("evaluate", "detect", "explain", "summarise")  # stages whose metrics sort the table of experiments

ANSWER_SECONDS = 15  # from the first contact with the server or database to the end
TOTAL_SECONDS = 90  # with the import of MLflow and the making of a new database, on a busy machine
BUSY_SECONDS = 5  # for another writer of the database
ENVIRONMENT = {  # where the user has not set them
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


class TrackingError(Exception):
    """Why a stage was not recorded."""


_waiting: list[subprocess.Popen] = []  # the child process that `prepare` started, until a stage is recorded


def prepare() -> None:
    """Start the child process that the stage will be recorded in; without a request it ends with this process."""
    if not _waiting:
        _waiting.append(_start_child())


def log_stage(
    stage: str,
    *,
    params: Mapping[str, Any],
    history: pd.DataFrame | None,
    metrics: Mapping[str, Any],
    pictures: Sequence[Path] = (),
    tags: Mapping[str, str] | None = None,
    seconds: float,
) -> None:
    """Record a finished stage as a child run; the metrics of COPIED_TO_PARENT go to the parent as well.

    params: any nesting, recorded as `section.key`; the parent gets the whole params.yaml when it is made.
    history: one row an epoch, column `epoch` is the step and every other numeric column a metric; None without epochs.
    metrics: the final figures, any nesting, recorded as `section.key`; what is not a number is left out.
    pictures: files or folders to keep with the run.
    tags: the caller's, such as `lesionlab.data`, the checksum of what the stage read.
    seconds: how long the stage took.
    Never raises because of MLflow, and takes 15 s at most where a server does not answer: one line on standard error
    then says why the stage was not recorded.
    """
    try:
        _record_in_child(_request(stage, params, history, metrics, pictures, tags or {}, seconds))
    except Exception as error:
        server = re.sub(r"//[^/@]*@", "//***@", _uri())  # no password on a screen
        print(
            f"warning: MLflow at {server} did not record all of stage {stage}: {_reason(error)}; "
            "the stage's results are not affected",
            file=sys.stderr,
            flush=True,
        )


def _request(
    stage: str,
    params: Mapping[str, Any],
    history: pd.DataFrame | None,
    metrics: Mapping[str, Any],
    pictures: Sequence[Path],
    tags: Mapping[str, str],
    seconds: float,
) -> dict[str, Any]:
    """What the child process needs, in plain JSON values."""
    overlay = current_overlay()
    shared = Overlay(overlay.study)  # what all cells of a study have in common
    everything = read_params(overlay=shared).model_dump() if Path("params.yaml").exists() else dict(params)
    study = overlay.study.parent.name if overlay.study else None
    commit = os.environ.get("DVC_EXP_BASELINE_REV") or _git_head()
    shared_tags = {
        "dataset": everything.get("dataset"),
        "mlflow.source.git.commit": commit,
        "lesionlab.study": study,
    }
    for name in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        shared_tags[name] = os.environ.get(name)
    script = f"stages/{stage.partition('@')[0]}.py"
    child_tags = {
        **shared_tags,
        "DVC_STAGE": os.environ.get("DVC_STAGE"),
        "lesionlab.code": _code_digest(script),
        "lesionlab.cell": overlay.name,
        "mlflow.source.name": script,
        **tags,
    }
    final = _numbers(metrics)
    return {
        "key": _experiment_key(everything, commit, study or "repro"),
        "name": f"{stage} {overlay.name}".strip(),
        "end": time.time(),
        "seconds": float(seconds),
        "params": _texts(params),
        "parent_params": _texts(everything),
        "history": _epochs(history),
        "metrics": final,
        "parent_metrics": {f"{stage}.{name}": value for name, value in final.items()}
        if stage in COPIED_TO_PARENT
        else {},
        "pictures": [str(picture) for picture in pictures],
        "tags": {name: str(value) for name, value in child_tags.items() if value},
        "parent_tags": {name: str(value) for name, value in shared_tags.items() if value},
    }


def _experiment_key(params: Mapping[str, Any], commit: str, kind: str = "repro") -> str:
    name = os.environ.get("DVC_EXP_NAME")
    if name:
        return name.replace("'", "_")  # it stands between quotes in MLflow's search
    text = json.dumps(params, sort_keys=True, default=str) + commit
    return f"{kind}-" + hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def _git_head() -> str:
    command = ["git", "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, cwd=repository_root(), capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def _code_digest(script: str) -> str:
    """Checksum of the stage's script and the library, as they lie in the work tree that runs."""
    package = Path(__file__).parent
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted([*package.rglob("*.py"), package.parent / script]):
        if path.exists():
            content = path.read_bytes()
            digest.update(f"{path.relative_to(package.parent).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as `section.key`, in names that MLflow accepts."""
    flat = {}
    for key, value in content.items():
        name = prefix + re.sub(r"[^\w/. :-]", "_", str(key))
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name[:250]: value}
    return flat


def _texts(params: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value)[:6000] for name, value in _flat(params).items()}


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    numbers = {}
    for name, value in _flat(metrics).items():
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError):  # a text, a list or a figure that is not defined (None)
            continue
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _epochs(history: pd.DataFrame | None) -> list[tuple[int, dict[str, float]]]:
    if history is None or history.empty:
        return []
    steps = history["epoch"].astype(int)
    rows = history.select_dtypes("number").drop(columns="epoch").to_dict("records")
    return [(int(step), _numbers(row)) for step, row in zip(steps, rows, strict=True)]


def _uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{repository_root() / 'mlflow.db'}"


def _start_child() -> subprocess.Popen:
    search = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(filter(None, search)), "MLFLOW_TRACKING_URI": _uri()}
    return subprocess.Popen(
        [sys.executable, "-m", "lesionlab.tracking", str(repository_root())],
        env={**ENVIRONMENT, **os.environ, **own},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _record_in_child(request: dict[str, Any]) -> None:
    """Give the request to the child process. Raises TrackingError when it ends other than well."""
    with _waiting.pop() if _waiting else _start_child() as child:
        try:
            output, errors = child.communicate(json.dumps(request), timeout=TOTAL_SECONDS)
        except BaseException as error:
            child.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                raise TrackingError(f"not ready after {TOTAL_SECONDS} s") from None
            raise
    if child.returncode != 0:
        said = (output.splitlines() or errors.splitlines() or [""])[-1]
        raise TrackingError(said.strip() or f"its process ended with status {child.returncode}")


def _reason(error: BaseException) -> str:
    """One line for an error: what the system or database said, where that is what lies below MLflow's own words."""
    import sqlite3

    deepest, step = error, error.__cause__ or error.__context__
    while step is not None:
        if isinstance(step, OSError | sqlite3.Error):
            deepest = step
        step = step.__cause__ or step.__context__
    lines = str(deepest).splitlines()
    if isinstance(error, TrackingError):
        return lines[0]
    return f"{type(deepest).__name__}: {lines[0] if lines else ''}".rstrip(": ")[:300]


def _main() -> int:
    """The child process: record the request on standard input; status 1 and the reason as last line if it fails."""
    try:
        root = Path(sys.argv[1])
        uri, database = _resolve(os.environ["MLFLOW_TRACKING_URI"], root)
        import mlflow  # what it costs to import is not the server's fault: before the clock starts
        from filelock import FileLock

        if database:
            import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

        folder = root / ".lesionlab"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "mlflow.lock")
        with ExitStack() as stack:
            missing = database and _is_missing(database)
            fresh = stack.enter_context(_new_database(database, folder)) if missing else None
            request = sys.stdin.read()
            if not request:  # the stage failed, and leaves no database behind
                return 0
            if fresh:
                with lock:
                    if _is_missing(database):
                        with whole_file(database) as temporary:
                            shutil.copyfile(fresh, temporary)
        clock = threading.Timer(ANSWER_SECONDS, _give_up)
        clock.daemon = True
        clock.start()
        with lock:  # two stages at once make one parent, and sqlite has one writer at a time
            if database:
                _check_database(database)
            _record(json.loads(request), uri, database)
    except Exception as error:
        print(f"\n{_reason(error)}", flush=True)
        return 1
    return 0


def _give_up() -> None:
    print(f"\nno answer within {ANSWER_SECONDS} s", flush=True)
    os._exit(1)


def _resolve(uri: str, root: Path) -> tuple[str, Path | None]:
    """The tracking URI, and the file where it is a sqlite one; a relative path there begins at the root."""
    match = re.match(r"(sqlite(?:\+\w+)?:///)([^?]+)(.*)", uri)
    if match is None or match[2].startswith((":memory:", "file:")):
        return uri, None
    database = root / match[2]
    return f"{match[1]}{database}{match[3]}", database


def _is_missing(database: Path) -> bool:
    return not database.exists() or database.stat().st_size == 0


def _artifacts_beside(database: Path) -> str:
    return (database.parent / "mlartifacts").as_uri()


@contextmanager
def _new_database(database: Path, folder: Path) -> Iterator[Path]:
    """A whole database in `folder`, to be copied to its place: one that is interrupted halfway is of no use."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary) / database.name
        SqlAlchemyStore(f"sqlite:///{path}", _artifacts_beside(database)).engine.dispose()
        yield path


def _check_database(database: Path) -> None:
    """Raise sqlite3.Error when the file is not a database, is locked or is read-only: MLflow would try for minutes."""
    import sqlite3

    connection = sqlite3.connect(database, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    finally:
        connection.close()


def _record(request: dict[str, Any], uri: str, database: Path | None) -> None:
    """Write the child run, and the parent where it is new, with as few calls as the interface allows."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(tracking_uri=uri)
    experiment = _find_experiment(client, database)
    end = int(request["end"] * 1000)
    start = end - int(request["seconds"] * 1000)
    parent = _find_parent(client, experiment, request, start)
    tags = {**request["tags"], "mlflow.parentRunId": parent, KEY_TAG: request["key"]}
    run = client.create_run(experiment, start_time=start, run_name=request["name"], tags=tags).info.run_id
    history = request["history"]
    last = max((step for step, _ in history), default=0)
    curves = [Metric(name, value, end, step) for step, row in history for name, value in row.items()]
    # One millisecond later than the curves: MLflow shows the latest value, and this is the one that counts.
    final = [
        Metric(name, value, end + 1, last)
        for name, value in {**request["metrics"], "seconds": request["seconds"]}.items()
    ]
    _log(client, run, curves + final, request["params"])
    _log(client, parent, [Metric(name, value, end, 0) for name, value in request["parent_metrics"].items()], {})
    client.set_terminated(run, "FINISHED", end)
    client.set_terminated(parent, "FINISHED", end)
    for picture in request["pictures"]:
        if Path(picture).is_dir():
            client.log_artifacts(run, picture, Path(picture).name)
        else:
            client.log_artifact(run, picture)


def _find_experiment(client: Any, database: Path | None) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return client.create_experiment(EXPERIMENT, _artifacts_beside(database) if database else None)
    if experiment.lifecycle_stage == "deleted":
        number = experiment.experiment_id
        raise TrackingError(
            f"experiment '{EXPERIMENT}' is deleted there; mlflow experiments restore --experiment-id {number}"
        )
    return experiment.experiment_id


def _find_parent(client: Any, experiment: str, request: dict[str, Any], start: int) -> str:
    key = request["key"]
    found = client.search_runs(
        [experiment], f"tags.`{KEY_TAG}` = '{key}' AND tags.`lesionlab.level` = 'parent'", max_results=1
    )
    if found:
        return found[0].info.run_id
    tags = {**request["parent_tags"], KEY_TAG: key, "lesionlab.level": "parent"}
    parent = client.create_run(experiment, start_time=start, run_name=key, tags=tags).info.run_id
    _log(client, parent, [], request["parent_params"])
    return parent


def _log(client: Any, run: str, metrics: Sequence[Any], params: Mapping[str, str]) -> None:
    """Metrics and params in batches as large as MLflow takes: 1000 and 100."""
    from mlflow.entities import Param

    entries = [Param(name, value) for name, value in params.items()]
    for first in range(0, len(entries), 100):
        client.log_batch(run, params=entries[first : first + 100])
    for first in range(0, len(metrics), 1000):
        client.log_batch(run, metrics=metrics[first : first + 1000])


if __name__ == "__main__":
    sys.exit(_main())
