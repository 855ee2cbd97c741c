"""A small project for tests: params.yaml with small values, a small phantom, and stages run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
DATASET = "tiny-phantom"
SMALL = {
    "dataset": DATASET,
    "model.backbone": "mobilenet_0.25",
    "model.weights": "none",
    "model.image_size": 32,
    "crop.positives_per_lesion": 1,
    "crop.negatives_per_frame": 2,
    "split.folds": 3,
    "training.batch_size": 16,
    "augment.copies": 1,
    "augment.horizontal_flip": True,
    "augment.vertical_flip": True,
    "augment.rotation": 0.25,
    "baseline.filters": [4, 8],
    "baseline.dense": 8,
    "baseline.epochs": 1,
    "transfer.dense": 8,
    "transfer.epochs": 1,
    "finetune.epochs": 1,
    "evaluate.resamples": 100,
    "evaluate.worst": 4,
    "evaluate.mc_dropout": 3,
    "evaluate.tta": 2,
    "detect.window_sizes": [0.5],
    "detect.max_frames": 4,
    "detect.overlays": 3,
    "explain.crops": 12,
    "explain.examples": 2,
    "explain.frames": 1,
}
LAYOUT = {"kind": "phantom", "sequences": 12, "frames_per_sequence": 2, "width": 96, "height": 80, "lesion_free": 0.2}
CARD = {
    "name": DATASET,
    "title": "A few small phantom frames",
    "homepage": "lesionlab/data/phantom.py",
    "licence": "Apache-2.0 (generated images)",
    "citation": "none",
    "layout": LAYOUT,
    "classes": ["background", "polyp"],
    "groups": {"column": "sequence"},
    "recommended": {"backbone": "mobilenet_0.25", "weights": "none", "image_size": 32},
}


def read_yaml_file(path: Path) -> dict:
    return YAML(typ="safe", pure=True).load(path.read_text())


def write_yaml_file(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    with path.open("w") as stream:
        yaml.dump(content, stream)


def small_params(changes: dict | None = None) -> dict:
    """The repository's params.yaml as a dictionary, with the values of SMALL and `changes` ("crop.jitter": 0.2)."""
    return changed(read_yaml_file(ROOT / "params.yaml"), SMALL | (changes or {}))


def changed(content: dict, changes: dict) -> dict:
    """`content` with dotted keys set; a key that is not there is added."""
    for key, value in changes.items():
        *sections, name = key.split(".")
        part = content
        for section in sections:
            part = part[section]
        part[name] = value
    return content


def change_params(project: Path, changes: dict) -> None:
    """Set keys of a project's params.yaml: `change_params(project, {"crop.jitter": 0.2})`."""
    path = project / "params.yaml"
    write_yaml_file(path, changed(read_yaml_file(path), changes))


def write_card(project: Path, dataset: str, **changes: object) -> None:
    """Write datasets/<dataset>.yaml: CARD with keys replaced."""
    write_yaml_file(project / "datasets" / f"{dataset}.yaml", CARD | {"name": dataset} | changes)


def run_stage(name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Run `python -m stages.<name> <arguments>` in the working directory; its output is text."""
    return subprocess.run(
        [sys.executable, "-m", f"stages.{name}", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def crop_stage(**environment: str) -> subprocess.CompletedProcess:
    """Run the crop stage with the paths of dvc.yaml."""
    paths = ("--raw", "data/raw", "--crops", "data/crops", "--metrics", "metrics/crop.json")
    return run_stage("crop", *paths, "--sheet", "pictures/crops.png", **environment)


def split_stage(**environment: str) -> subprocess.CompletedProcess:
    """Run the split stage with the paths of dvc.yaml."""
    paths = ("--crops", "data/crops", "--split", "data/split.csv", "--metrics", "metrics/split.json")
    return run_stage("split", *paths, **environment)
