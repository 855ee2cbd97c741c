"""The brain tumours through the stages, from the release in miniature to boxes: masks feed crop, detect and explain."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import ROOT, change_params, read_yaml_file, small_params, write_yaml_file
from tiny_cheng import tumour, write_cvind, write_mat

import stages.crop
import stages.detect
import stages.download
import stages.explain
import stages.split
import stages.transfer
from lesionlab.data.cards import read_card
from lesionlab.data.crops import lesion_boxes
from lesionlab.data.readers import read_frames, read_mask
from lesionlab.files import read_json

WHOLE, WINDOWS = "brain-tumor-cheng", "brain-tumor-cheng-windows"
SIDE = 128
# Number: class, patient, side, fold. Two slices of each of ten patients, two patients a fold.
SLICES = {number: (number % 3 + 1, f"p{(number + 1) // 2}", SIDE, (number + 3) // 4) for number in range(1, 21)}
SPLIT = {"crops": Path("data/crops"), "split": Path("data/split.csv"), "proof": Path("metrics/split.json")}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Both cards of the repository, and the release decoded by the download stage."""
    folder = tmp_path_factory.mktemp("tumours")
    rng = np.random.default_rng(6)
    for number in SLICES:
        coarse = rng.integers(100, 900, (16, 16))  # no two slices are alike, as near-duplicates would be
        image = (np.kron(coarse, np.ones((8, 8))) + 400 * tumour(number, SIDE)[1]).astype("int16")
        write_mat(folder / "release" / f"{number}.mat", number, SLICES, image=image.T)
    write_cvind(folder / "release" / "cvind.mat", [fold for *_, fold in SLICES.values()])
    changes = {"dataset": WINDOWS, "download.source": "release", "split.folds": 5, "detect.max_frames": None}
    write_yaml_file(folder / "params.yaml", small_params(changes))
    (folder / "datasets").mkdir()
    for name in (WHOLE, WINDOWS):
        shutil.copyfile(ROOT / "datasets" / f"{name}.yaml", folder / "datasets" / f"{name}.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lesionlab.tracking.log_stage", lambda stage, **given: None)
        patch.chdir(folder)
        patch.setenv("DVC_ROOT", str(folder))
        stages.download.main("images", out=Path("data/raw"))
        yield folder


def crop_and_split() -> None:
    sheet, crops = Path("pictures/crops.png"), {"crops": SPLIT["crops"]}
    stages.crop.main(raw=Path("data/raw"), **crops, metrics=Path("metrics/crop.json"), sheet=sheet)
    stages.split.main(**crops, split=SPLIT["split"], metrics=SPLIT["proof"])


def detect() -> dict:
    outs = {"detections": "data/detections.csv", "metrics": "metrics/detect.json", "detector": "models/detector"}
    outs = {key: Path(value) for key, value in (outs | {"froc": "froc.csv", "pictures": "pictures/found"}).items()}
    stages.detect.main(model=Path("models/transfer"), raw=Path("data/raw"), **SPLIT, **outs)
    return read_json(outs["metrics"])


def test_frames_masks_and_lesion_boxes_are_those_of_the_release(project):
    frames = read_frames(read_card(WINDOWS), Path("data/raw"))
    assert len(frames) == len(SLICES)
    for frame in frames:
        number = int(Path(frame.name).stem)
        assert (frame.label, frame.group, frame.official) == (None, SLICES[number][1], str(SLICES[number][3]))
        mask = read_mask(frame.mask, 127, (SIDE, SIDE), frame.image)
        np.testing.assert_array_equal(mask, tumour(number, SIDE)[1])
        rows, columns = np.nonzero(mask)
        (box,) = lesion_boxes(mask, 0.001)[1]
        assert box == (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)


@pytest.mark.slow
def test_windows_of_the_tumours_go_through_crop_detect_and_explain(project):
    crop_and_split()
    index = pd.read_csv("data/crops/index.csv")
    assert set(index["label"]) == {"background", "tumour"}
    assert set(index["frame"]) == {f"images/{number}.png" for number in SLICES}
    stages.download.main("weights", out=Path("data/weights"))
    outs = {"model": "models/transfer", "metrics": "metrics/transfer.json", "history": "plots/transfer.csv"}
    stages.transfer.main(**SPLIT, weights=Path("data/weights"), **{key: Path(value) for key, value in outs.items()})
    metrics = detect()
    split = index.assign(subset=pd.read_csv("data/split.csv")["subset"])
    test = split[split["subset"] == "test"]
    assert metrics["frames"] == metrics["lesions"] == test["frame"].nunique() > 0
    assert (metrics["group_disjoint"], metrics["lesion_free_frames"]) == (True, 0)
    detections = pd.read_csv("data/detections.csv")
    assert len(detections)
    assert set(detections["frame"]) <= set(test["frame"])
    assert (detections[["x", "y"]].to_numpy() + detections[["width", "height"]].to_numpy()).max() <= SIDE
    assert len(list(Path("pictures/found").glob("best_*.png"))) == 1
    outs = {"metrics": "metrics/explain.json", "table": "plots/explain.csv", "pictures": "pictures/explain"}
    outs = {key: Path(value) for key, value in outs.items()}
    stages.explain.main(model=Path("models/transfer"), raw=Path("data/raw"), **SPLIT, **outs)
    assert read_json(outs["metrics"])["lesions"] == test["frame"].nunique()


def test_the_card_of_whole_slices_names_that_of_windows(project):
    change_params(project, {"dataset": WHOLE})
    try:
        crop_and_split()
        metrics = detect()
    finally:
        change_params(project, {"dataset": WINDOWS})
    assert metrics["applicable"] is False
    assert metrics["reason"] == (
        f"{WHOLE} has one class a whole image: windows within an image have none; datasets/{WINDOWS}.yaml cuts windows "
        f"from the same images: dvc exp run -S dataset={WINDOWS}"
    )


@pytest.mark.parametrize(
    ("groups", "rule", "grouped_by", "disjoint"),
    [
        (None, "runs", "runs", True),
        ({"column": "patient"}, "column", "card", True),
        ("near-duplicates", "near-duplicates", "near-duplicates", True),
        ("none", "none", "near-duplicates", False),
    ],
    ids=["runs", "column", "near-duplicates", "none"],
)
def test_metrics_say_who_is_kept_apart_in_the_copy_that_was_read(
    project, monkeypatch, tmp_path, groups, rule, grouped_by, disjoint
):
    """A copy of the slices whose table names no patient (runs), and what else a card may say of it."""
    table = pd.DataFrame([(f"images/{n}.png", p, fold) for n, (_, p, _, fold) in SLICES.items()])
    table = table.set_axis(["image", "patient", "fold"], axis=1)
    names = dict(enumerate(read_card(WHOLE).classes, start=1))
    table["class"] = [names[label] for label, *_ in SLICES.values()]
    table["mask"] = table["image"].str.replace("images", "masks")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(project / "data" / "raw", "raw", ignore=lambda _, found: [f for f in found if f.endswith(".csv")])
    table.drop(columns="patient" if groups is None else []).to_csv("raw/metadata.csv", index=False)
    write_yaml_file(Path("params.yaml"), small_params({"dataset": WHOLE, "split.folds": 5}))
    card = read_yaml_file(ROOT / "datasets" / f"{WHOLE}.yaml")
    if groups is not None:
        card["copies"][0]["groups"] = groups
    Path("datasets").mkdir()
    write_yaml_file(Path("datasets") / f"{WHOLE}.yaml", card)
    crops = {"crops": Path("crops")}
    stages.crop.main(raw=Path("raw"), **crops, metrics=Path("crop.json"), sheet=Path("crops.png"))
    stages.split.main(**crops, split=Path("split.csv"), metrics=Path("split.json"))
    assert read_json(Path("crops/reading.json")) == {"layout": "table", "groups": rule}
    split = read_json(Path("split.json"))
    assert (split["grouped_by"], split["group_disjoint"]) == (grouped_by, disjoint)
