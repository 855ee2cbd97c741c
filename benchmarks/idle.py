"""Row of `make bench` about runs with nothing to do: `dvc repro` on this pipeline, against DVC alone.

DVC alone is the same graph of stages with each command behind `true #`, so that nothing of this repository can take
part, and DVC fills in as many templates. In both, outputs of a few bytes stand for the real ones and are recorded as
made; no stage runs.
"""

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.rows import Row
from lesionlab.files import repository_root
from lesionlab.progress import progress

ROUNDS = 5
NAME = "dvc repro with nothing to do, against the same stages without our commands"


def rows(seed: int) -> list[Row]:
    """The one row. seed: nothing is drawn."""
    with tempfile.TemporaryDirectory() as top:
        ours, alone = (Path(top) / name for name in ("ours", "alone"))
        for folder in (ours, alone):
            copy_of_the_repository(folder, only_dvc=folder == alone)
        took: dict[Path, list[float]] = {ours: [], alone: []}
        for _ in progress(range(ROUNDS), desc="bench, nothing to do", unit="round"):
            for folder, seconds in took.items():
                seconds.append(seconds_of_repro(folder))
    plain, own = statistics.median(took[alone]), statistics.median(took[ours])
    note = "seconds of the process; floor: of no command that runs in either"
    return [Row(NAME, plain, own, own / plain, 1.0, None, at_most=1.1, note=note)]


def copy_of_the_repository(folder: Path, *, only_dvc: bool) -> None:
    """The files that Git tracks, with every stage of dvc.yaml recorded as made; only_dvc: commands do nothing."""
    root = repository_root()
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, folder / name)
    shutil.rmtree(folder / ".dvc")
    if only_dvc:
        for path in (folder / "dvc.yaml", *folder.glob("studies/*/dvc.yaml")):
            content = yaml.safe_load(path.read_text())
            for stage in content["stages"].values():
                entry = stage.get("do", stage)
                entry["cmd"] = f"true # {entry['cmd']}"
            path.write_text(yaml.safe_dump(content, sort_keys=False))
    _dvc(folder, "init", "--no-scm", "--quiet")
    (folder / "dvc.lock").unlink()
    from dvc.repo import Repo

    with Repo(folder) as repo:
        stages = [stage for stage in repo.index.stages if Path(stage.path).parent == folder]
        # The longest first: a file in a folder, which a stage reads, says that the output is a folder.
        paths = {Path(item.fs_path) for stage in stages for item in (*stage.deps, *stage.outs)}
        for path in sorted(paths, key=lambda path: -len(path.parts)):
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{path.name}\n")
    _dvc(folder, "commit", "--force", "--quiet", "dvc.yaml")


def seconds_of_repro(folder: Path) -> float:
    """Raises RuntimeError when a stage ran all the same."""
    started = time.perf_counter()
    said = _dvc(folder, "repro")
    seconds = time.perf_counter() - started
    if "Running stage" in said or "up to date" not in said:
        raise RuntimeError(f"dvc repro had something to do: {said}")
    return seconds


def _dvc(folder: Path, *arguments: str) -> str:
    quiet = os.environ | {"DVC_NO_ANALYTICS": "true"}
    return subprocess.run(["dvc", *arguments], cwd=folder, env=quiet, check=True, capture_output=True, text=True).stdout
