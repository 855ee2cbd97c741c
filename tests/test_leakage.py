"""The study `leakage`: with labels drawn by group the pipeline's own network learns nothing but who is who."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny import DATASET, read_yaml_file, small_params, write_card, write_yaml_file
from tiny_networks import SIZE

import stages.crop
import stages.download
import stages.predict
import stages.split
import stages.transfer
from lesionlab.files import write_table
from lesionlab.params import Overlay, Params, overlaid
from lesionlab.studies.leakage import summarise
from lesionlab.studies.schemas import Leakage
from lesionlab.studies.tables import Paths

GROUPS, FRAMES = 40, 12  # in three folds four frames of a group train under `random`
FOLDS = [0, 1, 2]
PROTOCOLS = ["random", "group"]
CHANGES = {
    "model.weights": "bundled", "split.near_duplicate_bits": 0, "split.folds": len(FOLDS), "training.batch_size": 32,
    "transfer.augment": False, "transfer.dense": 64, "transfer.dropout": 0.0, "transfer.epochs": 20,
    "transfer.patience": 20, "transfer.learning_rate": 0.01,
}  # fmt: skip


def draw_groups(folder: Path) -> None:
    """Frames of GROUPS groups, each with a colour and stripes of its own, which lie elsewhere in every frame."""
    rng = np.random.default_rng(1)
    rows = []
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    for group in range(GROUPS):
        colour, angle, waves = rng.uniform(50, 220, 3), rng.uniform(0, np.pi), rng.uniform(1, 5)
        for frame in range(FRAMES):
            across = (x * np.cos(angle) + y * np.sin(angle)) * waves + rng.uniform()
            pixels = colour + 25 * np.sin(2 * np.pi * across)[..., None] + rng.normal(0, 4, (SIZE, SIZE, 3))
            name = f"g{group:02d}f{frame}.png"
            Image.fromarray(pixels.clip(30, 255).astype("uint8")).save(folder / name)
            rows.append((name, "ab"[frame % 2], f"g{group:02d}"))
    write_table(folder / "frames.csv", pd.DataFrame(rows, columns=["image", "label", "group"]))


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A working directory with such frames, cropped, and the bundled weights."""
    (tmp_path / "data" / "raw").mkdir(parents=True)
    draw_groups(tmp_path / "data" / "raw")
    write_yaml_file(tmp_path / "params.yaml", small_params(CHANGES))
    layout = {"kind": "table", "file": "frames.csv", "image": "image", "label": "label"}
    write_card(tmp_path, DATASET, layout=layout, classes=["a", "b"], groups={"column": "group"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr("lesionlab.tracking.log_stage", lambda *_, **__: None)
    stages.crop.main(Path("data/raw"), Path("crops"), Path("metrics/crop.json"), Path("crops.png"))
    stages.download.main("weights", out=Path("weights"))
    return tmp_path


def run_cell(protocol: str, fold: int) -> None:
    """The stages of a cell of studies/leakage/dvc.yaml with shuffled labels."""
    key = f"{protocol}-true-{fold}"
    table, proof, model = Path(f"split_{key}.csv"), Path(f"metrics/split_{key}.json"), Path(f"models/0-{key}")
    given = (f"split.protocol={protocol}", "split.shuffle_labels=true", f"split.test_fold={fold}")
    with overlaid(Overlay(None, None, given)):
        stages.split.main(Path("crops"), table, proof)
        outs = (model, Path(f"metrics/0-{key}.json"), Path(f"plots/0-{key}.csv"))
        stages.transfer.main(Path("crops"), table, proof, Path("weights"), *outs)
        stages.predict.main(Path("crops"), table, model, Path(f"predictions/0-{key}.csv"))


@pytest.mark.slow
def test_shuffled_labels_fall_to_chance_under_group_and_not_under_random(project):
    for protocol, fold in itertools.product(PROTOCOLS, FOLDS):
        run_cell(protocol, fold)
    names = ("metrics", "predictions", "table.csv", "table.md", "figure.png", "headline.json")
    study = Leakage(protocols=PROTOCOLS, shuffle=["true"], folds=FOLDS, blocks=[], set={})
    params = Params.model_validate(read_yaml_file(project / "params.yaml"))
    table = summarise(study, params, Paths(*map(Path, names))).table.set_index("protocol")
    for protocol, fold in itertools.product(PROTOCOLS, FOLDS):  # every network could learn its training crops
        assert pd.read_csv(f"plots/0-{protocol}-true-{fold}.csv")["loss"].iloc[-1] < 0.3
    # Measured: 0.896 and 0.490; with seeds 1 to 3 0.88 to 0.92 and 0.42 to 0.67. A network that guesses one label for
    # each group is right in half of 40 groups, each tested once: 0.5 with a standard deviation of 0.08.
    assert table.loc["random", "balanced_accuracy"] > 0.8
    assert abs(table.loc["group", "balanced_accuracy"] - 0.5) < 0.2
