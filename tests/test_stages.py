"""The real stages on a small project, from crops to detections: what they write, and that they write it again."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny import DATASET, ROOT, change_params, run_stage, small_params, write_card, write_yaml_file
from tiny_networks import SIZE, lively, tiny_architecture

import benchmarks.detection
import stages.baseline
import stages.crop
import stages.detect
import stages.download
import stages.evaluate
import stages.explain
import stages.finetune
import stages.split
import stages.transfer
from lesionlab.data.crops import content_box
from lesionlab.data.readers import read_rgb
from lesionlab.errors import InputError
from lesionlab.evaluation.predictions import predict_crops
from lesionlab.files import file_digest, read_json
from lesionlab.models.backbones import find_backbone
from lesionlab.models.networks import ATTENTION_MAP, build_network, softmax
from lesionlab.models.saved import load_classifier
from lesionlab.params import read_params
from lesionlab.training.run import Paths, run_training
from lesionlab.training.threshold import choose_threshold, fit_temperature

STAGES = ("download", "crop", "split", "baseline", "transfer", "finetune", "evaluate", "detect", "explain")
MODELS = ("baseline", "transfer", "finetune")
FIGURES = ("accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1", "roc_auc", "pr_auc")
HEADLINES = (*FIGURES, "ece", "ece_before_scaling", "aurc", "aurc_gain", "error_at_90_coverage")
CONTROLS = ("control_mean_colour", "control_colour_histogram")
ROWS = (*MODELS, "ensemble", *(f"{name}_tta" for name in MODELS), *CONTROLS)
EPOCHS = {"baseline": 2, "transfer": 6, "finetune": 3}
CHANGES = {
    "model.weights": "some.weights.h5", "transfer.learning_rate": 0.01, "detect.window_sizes": [0.5, 0.8],
    "detect.false_positives": 4.0, **{f"{name}.epochs": epochs for name, epochs in EPOCHS.items()},
}  # fmt: skip
SPLIT = {"crops": Path("data/crops"), "split": Path("data/split.csv"), "proof": Path("metrics/split.json")}


def train_stage(name: str, **arguments: Path) -> None:
    outs = {"model": f"models/{name}", "metrics": f"metrics/{name}.json", "history": f"plots/{name}.csv"}
    outs = {key: Path(value) for key, value in outs.items()}
    getattr(stages, name).main(**SPLIT, **arguments, **outs)


def detect() -> None:
    paths = {"detections": "data/detections.csv", "metrics": "metrics/detect.json"}
    paths |= {"detector": "models/detector", "froc": "plots/froc.csv", "pictures": "pictures/detections"}
    paths = {key: Path(value) for key, value in paths.items()}
    stages.detect.main(model=Path("models/finetune"), raw=Path("data/raw"), **SPLIT, **paths)


def explain() -> None:
    outs = {"metrics": "metrics/explain.json", "table": "plots/explain.csv", "pictures": "pictures/explain"}
    outs = {key: Path(value) for key, value in outs.items()}
    stages.explain.main(model=Path("models/finetune"), raw=Path("data/raw"), **SPLIT, **outs)


def run_to_evaluate() -> None:
    """The stages from crop to evaluate with the paths of dvc.yaml, in this process."""
    crops = {"crops": Path("data/crops")}
    stages.crop.main(raw=Path("data/raw"), **crops, metrics=Path("metrics/crop.json"), sheet=Path("pictures/crops.png"))
    stages.split.main(**crops, split=Path("data/split.csv"), metrics=Path("metrics/split.json"))
    stages.download.main("weights", out=Path("data/weights"))
    train_stage("baseline")
    train_stage("transfer", weights=Path("data/weights"))
    train_stage("finetune", start=Path("models/transfer"))
    models = [Path("models") / name for name in MODELS]
    outs = {"plots": Path("plots/evaluate"), "pictures": Path("pictures/evaluate")}
    stages.evaluate.main(**SPLIT, model=models, metrics=Path("metrics/evaluate.json"), **outs)


def outputs(project: Path) -> dict[str, str]:
    """Checksum of every file that a stage wrote."""
    folders = ("data/crops", "data/weights", "models", "metrics", "plots", "pictures")
    files = [path for folder in folders for path in (project / folder).rglob("*") if path.is_file()]
    files += [project / "data" / "split.csv", *project.glob("data/detections.csv")]
    return {path.relative_to(project).as_posix(): file_digest(path) for path in files}


@pytest.fixture(scope="module")
def tracked() -> dict[str, dict]:
    """What each stage gave to the tracking, which itself is tested elsewhere."""
    return {}


@pytest.fixture(scope="module")
def environment(tracked):
    """A function that makes a folder the working directory and DVC's root."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lesionlab.tracking.log_stage", lambda stage, **given: tracked.__setitem__(stage, given))

        def enter(folder: Path) -> None:
            patch.chdir(folder)
            patch.setenv("DVC_ROOT", str(folder))
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")

        yield enter


def write_backbone(path: Path) -> None:
    """Random weights whose features tell windows apart."""
    architecture = tiny_architecture("mobilenet_0.25")
    network = lively(build_network(architecture, 1), architecture)
    base = find_backbone("mobilenet_0.25").build(SIZE)
    for layer in base.layers:
        layer.set_weights(network.get_layer(layer.name).get_weights())
    base.save_weights(path)


@pytest.fixture(scope="module")
def project(tmp_path_factory, drawn_phantom, environment) -> Path:
    """The small project after all stages."""
    folder = tmp_path_factory.mktemp("pipeline")
    write_yaml_file(folder / "params.yaml", small_params(CHANGES))
    write_backbone(folder / "some.weights.h5")
    write_card(folder, DATASET)
    (folder / "data").mkdir()
    (folder / "data" / "raw").symlink_to(drawn_phantom)
    environment(folder)
    run_to_evaluate()
    detect()
    explain()
    return folder


@pytest.fixture(autouse=True)
def inside(request, environment):
    """Every test on the project runs in it."""
    for name in ("project", "three_classes"):
        if name in request.fixturenames:
            environment(request.getfixturevalue(name))


@pytest.mark.slow
def test_every_promised_file_is_there(project):
    files = set(outputs(project))
    for name in MODELS:
        assert {f"models/{name}/model.json", f"models/{name}/model.weights.h5"} <= files
        assert {f"metrics/{name}.json", f"plots/{name}.csv"} <= files
        kinds = ("roc", "pr", "confusion", "reliability", "reliability_unscaled", "risk_coverage", "predictions")
        assert {f"plots/evaluate/{kind}_{name}.csv" for kind in kinds} <= files
        assert f"pictures/evaluate/worst_{name}.png" in files
    assert {f"data/crops/{name}" for name in ("images.npy", "index.csv", "thumbnails.npy", "reading.json")} <= files
    assert {"data/split.csv", "pictures/crops.png"} <= files
    drawn = ("roc", "pr", "confusion", "calibration", "risk_coverage", "subgroups_lesion_size")
    assert {f"pictures/evaluate/{name}.png" for name in drawn} <= files
    tables = ("figures", "comparison", "calibration", "uncertainty", "subgroups")
    assert {f"plots/evaluate/{name}.csv" for name in tables} <= files
    assert {"plots/froc.csv", "pictures/detections/froc.png", "data/detections.csv"} <= files
    overlays = sorted(path.name.split("_")[0] for path in (project / "pictures" / "detections").glob("*_*.png"))
    assert overlays == ["best", "median", "worst"]
    assert {f"pictures/explain/{name}.png" for name in ("crops", "frames", "agreement")} <= files
    assert {"metrics/explain.json", "plots/explain.csv"} <= files
    assert not [path for path in project.rglob("*") if "partial" in path.name]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_training_stage_writes_what_it_learnt(project, name):
    metrics, history = read_json(Path(f"metrics/{name}.json")), pd.read_csv(f"plots/{name}.csv")
    split = pd.read_csv("data/split.csv")
    assert len(history) == metrics["epochs"] == EPOCHS[name]
    best = history.iloc[metrics["kept_epoch"]]
    assert best["val_loss"] == history["val_loss"].min()
    assert metrics["validation"]["loss"] == pytest.approx(best["val_loss"], rel=1e-5)
    assert metrics["validation"]["accuracy"] == pytest.approx(best["val_accuracy"], rel=1e-5)
    assert metrics["validation"]["auc"] == pytest.approx(best["val_auc"], rel=1e-5)
    assert metrics["validation"]["crops"] == (split["subset"] == "val").sum()
    assert (metrics["protocol"], metrics["group_disjoint"], metrics["seed"]) == ("group", True, 42)
    assert 0 < metrics["trained_parameters"] <= metrics["parameters"]


@pytest.mark.slow
def test_the_frozen_part_of_the_backbone_is_the_same_in_transfer_and_finetune(project):
    transfer, finetune = (load_classifier(Path("models") / name) for name in ("transfer", "finetune"))
    changed = {
        layer.name
        for layer in transfer.model.layers
        for a, b in zip(layer.get_weights(), finetune.model.get_layer(layer.name).get_weights(), strict=True)
        if not np.array_equal(a, b)
    } - {"head_dropout"}
    names = [layer.name for layer in transfer.model.layers]
    boundary = names.index("conv_pw_11_relu")
    assert {"conv_dw_12", "conv_pw_13", "head_dense", "logits"} <= changed
    assert all(names.index(name) > boundary and not name.endswith("_bn") for name in changed)
    trained = {name: read_json(Path(f"metrics/{name}.json"))["trained_parameters"] for name in MODELS}
    assert trained["transfer"] == 256 * 8 + 8 + 8 * 2 + 2
    assert trained["finetune"] == trained["transfer"] + 9 * 128 + 128 * 256 + 9 * 256 + 256 * 256
    assert (transfer.description.unfrozen_blocks, finetune.description.unfrozen_blocks) == (0, 1)


@pytest.mark.slow
def test_evaluation_is_on_the_test_subset_with_intervals(project):
    metrics = read_json(Path("metrics/evaluate.json"))
    index, split = pd.read_csv("data/crops/index.csv"), pd.read_csv("data/split.csv")
    test = index[split["subset"] == "test"]
    assert (metrics["subset"], metrics["crops"], metrics["groups"]) == ("test", len(test), test["group"].nunique())
    for name in MODELS:
        assert tuple(metrics[name]) == HEADLINES
        on_validation = metrics["validation"][name]["accuracy"]
        assert on_validation["low"] <= on_validation["value"] <= on_validation["high"]
        trained = read_json(Path(f"metrics/{name}.json"))["validation"]["accuracy"]
        assert on_validation["value"] == pytest.approx(trained, abs=1e-6)
        for key in FIGURES:
            figure = metrics[name][key]
            assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
        confusion = pd.read_csv(f"plots/evaluate/confusion_{name}.csv")
        assert confusion["actual"].tolist() == test["label"].tolist()
        agree = (confusion["actual"] == confusion["predicted"]).mean()
        assert metrics[name]["accuracy"]["value"] == pytest.approx(agree, abs=1e-6)
        roc = pd.read_csv(f"plots/evaluate/roc_{name}.csv")
        area = np.trapezoid(roc["true_positive_rate"], roc["false_positive_rate"])
        assert metrics[name]["roc_auc"]["value"] == pytest.approx(area, abs=1e-4)


@pytest.mark.slow
def test_the_threshold_in_model_json_is_the_one_that_evaluation_uses(project):
    index, split = pd.read_csv("data/crops/index.csv"), pd.read_csv("data/split.csv")
    rows = np.flatnonzero(split["subset"] == "test")
    classifier = load_classifier(Path("models/finetune"))
    probabilities = classifier.predict(np.load("data/crops/images.npy"), rows, 16)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    called = probabilities[:, 1] >= classifier.description.threshold
    confusion = pd.read_csv("plots/evaluate/confusion_finetune.csv")
    assert confusion["predicted"].tolist() == np.where(called, "polyp", "background").tolist()
    accuracy = (called == (index["label"][rows] == "polyp")).mean()
    figure = read_json(Path("metrics/evaluate.json"))["finetune"]["accuracy"]["value"]
    assert figure == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_temperature_and_threshold_are_those_that_validation_crops_give(project, name):
    index, split = pd.read_csv("data/crops/index.csv"), pd.read_csv("data/split.csv")
    rows = np.flatnonzero(split["subset"] == "val")
    labels = (index["label"][rows] == "polyp").to_numpy().astype(int)
    classifier = load_classifier(Path("models") / name)
    logits = predict_crops(classifier, np.load("data/crops/images.npy"), rows, 16).logits
    temperature = classifier.description.temperature
    assert temperature == pytest.approx(fit_temperature(labels, logits), rel=1e-3)
    expected = choose_threshold(labels, softmax(logits, temperature)[:, 1])
    assert classifier.description.threshold == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_every_row_of_the_table_has_every_metric(project):
    figures = pd.read_csv("plots/evaluate/figures.csv")
    assert tuple(figures["model"].unique()) == ROWS
    metrics = read_json(Path("metrics/evaluate.json"))
    for name in CONTROLS:
        assert tuple(metrics[name]) == ("accuracy", "balanced_accuracy", "roc_auc")
    for model, rows in figures.groupby("model"):
        assert {*FIGURES, "ece", "brier", "log_loss", "aurc"} <= set(rows["metric"])
        for metric, figure in metrics.get(model, {}).items():
            value = rows.set_index("metric").loc[metric, "value"]
            assert figure["value"] == pytest.approx(value, abs=1e-5)
    assert metrics["warning"] is None or metrics["warning"].startswith("control_")


@pytest.mark.slow
def test_models_are_compared_on_the_same_crops(project):
    comparison = pd.read_csv("plots/evaluate/comparison.csv")
    pairs = list(dict.fromkeys(zip(comparison["model"], comparison["reference"], strict=True)))
    assert pairs[:5] == [
        ("transfer", "baseline"), ("finetune", "baseline"), ("finetune", "transfer"),
        ("ensemble", "transfer"), ("ensemble", "finetune"),
    ]  # fmt: skip
    assert pairs[5:8] == [(f"{name}_tta", name) for name in MODELS]
    assert [reference for _, reference in pairs[8:]] == list(CONTROLS)
    values = pd.read_csv("plots/evaluate/figures.csv").set_index(["model", "metric"])["value"]
    for row in comparison.itertuples():
        expected = values[row.model, row.metric] - values[row.reference, row.metric]
        assert row.difference == pytest.approx(expected, abs=1e-5)
        assert row.low <= row.difference + 1e-6
        assert row.difference <= row.high + 1e-6
    predicted = {name: pd.read_csv(f"plots/evaluate/predictions_{name}.csv") for name in ("transfer", "finetune")}
    right = {name: table["predicted"] == table["label"] for name, table in predicted.items()}
    row = comparison.query("model == 'finetune' and reference == 'transfer' and metric == 'accuracy'").iloc[0]
    assert row["model_right"] == (right["finetune"] & ~right["transfer"]).sum()
    assert row["reference_right"] == (right["transfer"] & ~right["finetune"]).sum()


@pytest.mark.slow
def test_predictions_say_how_sure_a_model_is(project):
    tables = {name: pd.read_csv(f"plots/evaluate/predictions_{name}.csv") for name in (*MODELS, "ensemble")}
    for name, table in tables.items():
        assert table["id"].tolist() == np.flatnonzero(pd.read_csv("data/split.csv")["subset"] == "test").tolist()
        np.testing.assert_allclose(table["p_background"] + table["p_polyp"], 1, atol=1e-5)
        called = np.where(table["predicted"] == "polyp", table["p_polyp"], table["p_background"])
        np.testing.assert_allclose(table["uncertainty"], 1 - called, atol=1e-5)
        assert table["mutual_information"].between(0, np.log(2)).all()
        assert table["mutual_information"].gt(0).any(), name
        assert (table["mutual_information"] <= table["entropy"] + 1e-6).all()
        referred = table["uncertainty"][table["referred"] == 1]
        assert referred.min() > table["uncertainty"][table["referred"] == 0].max() if len(referred) else True
    mean = (tables["transfer"]["p_polyp"] + tables["finetune"]["p_polyp"]) / 2
    calibration = pd.read_csv("plots/evaluate/calibration.csv").query("model == 'ensemble' and scaled")
    odds = (mean / (1 - mean)) ** (1 / calibration["temperature"].iloc[0])
    np.testing.assert_allclose(tables["ensemble"]["p_polyp"], odds / (1 + odds), atol=1e-4)


@pytest.mark.slow
def test_members_by_command_make_the_ensemble(project, tmp_path):
    outs = {"metrics": tmp_path / "mine.json", "plots": tmp_path / "plots", "pictures": tmp_path / "pictures"}
    members = [Path("models/transfer"), Path("models/finetune")]
    stages.evaluate.main(**SPLIT, model=[Path("models/baseline")], member=members, **outs)
    mine, whole = read_json(outs["metrics"]), read_json(Path("metrics/evaluate.json"))
    assert mine["ensemble"] == whole["ensemble"]
    assert "finetune" not in mine
    stages.evaluate.main(**SPLIT, model=[Path("models/baseline")], **outs)
    assert "ensemble" not in read_json(outs["metrics"])
    with pytest.raises(InputError, match="finetune, finetune: folders must have names of their own"):
        stages.evaluate.main(**SPLIT, model=[Path("models/finetune"), tmp_path / "finetune"], **outs)


@pytest.mark.slow
def test_a_subgroup_that_is_no_column_is_an_error(project, tmp_path):
    change_params(project, {"evaluate.subgroups": ["scanner"]})
    outs = {"metrics": tmp_path / "mine.json", "plots": tmp_path / "plots", "pictures": tmp_path / "pictures"}
    with pytest.raises(InputError, match=r"evaluate\.subgroups: 'scanner' is no column .* lesion_size, id, label"):
        stages.evaluate.main(**SPLIT, model=[Path("models/baseline")], **outs)
    change_params(project, {"evaluate.subgroups": ["lesion_size"]})


@pytest.mark.slow
def test_detections_lie_in_test_frames(project):
    boxes, metrics = pd.read_csv("data/detections.csv"), read_json(Path("metrics/detect.json"))
    index, split = pd.read_csv("data/crops/index.csv"), pd.read_csv("data/split.csv")
    assert set(boxes["frame"]) <= set(index["frame"][split["subset"] == "test"])
    assert len(boxes) > 0
    assert boxes["score"].between(0, 1).all()
    for frame, found in boxes.groupby("frame"):
        left, top, width, height = content_box(read_rgb(Path("data/raw") / frame))
        assert (found["x"] >= left).all()
        assert (found["y"] >= top).all()
        assert (found["x"] + found["width"] <= left + width + 1).all()
        assert (found["y"] + found["height"] <= top + height + 1).all()
    assert metrics["frames"] == 4
    detector = read_json(Path("models/detector/detector.json"))
    assert detector["model_sha256"] == file_digest(Path("models/finetune/model.json"))
    assert detector["weights_sha256"] == file_digest(Path("models/detector/head.weights.h5"))
    assert (metrics["mode"], metrics["threshold"]) == ("dense", pytest.approx(detector["threshold"], abs=1e-6))
    assert list(metrics["froc"]) == ["0.125", "0.25", "0.5", "1", "2", "4", "8"]
    rates = [figure["value"] for figure in metrics["froc"].values()]
    assert rates == sorted(rates)
    for section in ("operating", "froc", "average_precision", "sensitivity_by_size"):
        for figure in metrics[section].values():
            assert figure["low"] <= figure["value"] <= figure["high"]
    assert set(metrics["average_precision"]) == {"centre", "iou_0.5"}
    assert sum(figure["lesions"] for figure in metrics["sensitivity_by_size"].values()) == metrics["lesions"]
    assert metrics["size_limits"]["medium_from"] <= metrics["size_limits"]["large_from"]
    band = pd.read_csv("plots/froc.csv")
    assert list(band) == ["score", "false_positives_per_frame", "sensitivity", "low", "high"]
    admitted = boxes[boxes["score"] >= metrics["threshold"] - 1e-6]
    false = (admitted["lesion"] == 0).sum() / metrics["frames"]
    assert metrics["operating"]["false_positives_per_frame"]["value"] == pytest.approx(false)
    hits = admitted[admitted["lesion"] > 0].drop_duplicates(["frame", "lesion"])
    assert metrics["operating"]["recall"]["value"] == pytest.approx(len(hits) / metrics["lesions"], abs=1e-6)


@pytest.mark.slow
def test_the_explanation_measures_test_lesions_and_says_what_its_table_says(project):
    table, metrics = pd.read_csv("plots/explain.csv"), read_json(Path("metrics/explain.json"))
    index, split = pd.read_csv("data/crops/index.csv"), pd.read_csv("data/split.csv")
    assert set(table["frame"]) <= set(index["frame"][split["subset"] == "test"])
    assert (table.groupby("method").size() == metrics["lesions"]).all()
    for method, rows in table.groupby("method"):
        figures = metrics[method]
        assert figures["layer"] in ("conv_pw_3_relu", "conv_pw_5_relu", "conv_pw_11_relu")
        for name in ("share_inside", "pointing", "random_share_inside", "randomised_pointing"):
            assert figures[name]["value"] == pytest.approx(rows[name].mean(), abs=1e-5)
            assert 0 <= figures[name]["low"] <= figures[name]["value"] <= figures[name]["high"] <= 1
        ratio = rows["share_inside"].mean() / rows["random_share_inside"].mean()
        assert figures["times_random"]["value"] == pytest.approx(ratio, rel=1e-4)
    assert metrics["lesion_share"] == pytest.approx(table["lesion_share"].mean(), abs=1e-5)


@pytest.mark.slow
def test_occlusion_of_one_picture(project, tmp_path):
    source = sorted((project / "data" / "raw" / "images").rglob("*.png"))[0]
    out = tmp_path / "found" / "map.png"
    options = ("--box", "8", "10", "40", "50", "--class", "polyp", "--patch", "0.5")
    paths = ("--model", "models/finetune", "--image", source, "--out", out)
    ended = subprocess.run(
        [sys.executable, "-m", "lesionlab.explanation.occlusion", *paths, *options],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    table = pd.read_csv(out.with_suffix(".csv"))
    assert list(table.columns) == ["x", "y", "width", "height", "probability", "fall"]
    assert (table["x"].min(), table["y"].min()) == (8, 10)
    assert ((table["x"] + table["width"]).max(), (table["y"] + table["height"]).max()) == (48, 60)
    assert table["probability"].between(0, 1).all()
    assert np.asarray(Image.open(out)).ndim == 3


@pytest.mark.slow
def test_stages_are_tracked(project, tracked):
    assert set(tracked) == {*MODELS, "evaluate", "detect", "explain"}
    for name in MODELS:
        given = tracked[name]
        assert given["metrics"]["validation.accuracy"] == pytest.approx(
            read_json(Path(f"metrics/{name}.json"))["validation"]["accuracy"], abs=1e-6
        )
        assert given["params"][name]["epochs"] == EPOCHS[name]
        assert file_digest(Path("data/split.csv")) in given["tags"].values()
        assert list(given["history"]["epoch"]) == list(range(EPOCHS[name]))


@pytest.mark.slow
def test_the_same_bytes_when_run_again(project):
    """From cold and from warm caches, in one process or another."""
    before = outputs(project)
    assert len(before) > 30
    run_to_evaluate()
    detect()
    explain()
    assert outputs(project) == before
    arguments = [part for name, path in SPLIT.items() for part in (f"--{name}", path)]
    outs = ("--model", "models/finetune", "--metrics", "metrics/finetune.json", "--history", "plots/finetune.csv")
    ended = run_stage("finetune", *arguments, "--start", "models/transfer", *outs, DVC_ROOT=str(project / "elsewhere"))
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"^finetune: validation accuracy 0\.\d{4}, AUC [01]\.\d{4} at epoch \d of 3", ended.stdout)
    assert outputs(project) == before


@pytest.mark.slow
@pytest.mark.parametrize(("detector", "cut_out"), [("models/detector", False), ("nowhere", True)])
def test_detection_on_ones_own_pictures(project, tmp_path, capsys, detector, cut_out):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    sources = sorted((project / "data" / "raw" / "images").rglob("*.png"))[:2]
    for number, source in enumerate(sources):
        Image.open(source).save(pictures / f"{number}.jpg")
    (pictures / "notes.txt").write_text("no picture")
    given = {"model": Path("models/finetune"), "frames": pictures, "detector": Path(detector)}
    stages.detect.main(**given, out=tmp_path / "found", threshold=0.0)
    said = "nowhere is not of models/finetune: each window is cut out and classified"
    assert (said in capsys.readouterr().out) == cut_out
    boxes = pd.read_csv(tmp_path / "found" / "detections.csv")
    assert set(boxes["frame"]) == {"0.jpg", "1.jpg"}
    assert boxes["score"].between(0, 1).all()
    for name in ("0", "1"):
        heat = np.asarray(Image.open(tmp_path / "found" / "heatmaps" / f"{name}.png"))
        assert heat.shape == (80, 96)
        assert heat.max() > 0
        assert np.asarray(Image.open(tmp_path / "found" / "overlays" / f"{name}.png")).ndim == 3
    stages.detect.main(**given, out=tmp_path / "none", threshold=1.0)
    assert len(pd.read_csv(tmp_path / "none" / "detections.csv")) == 0
    stages.detect.main(**given, out=tmp_path / "own")
    source = "models/finetune/model.json" if cut_out else "models/detector/detector.json"
    own = read_json(Path(source))["threshold"]
    assert f"threshold {own:.3f}: " in capsys.readouterr().out
    kept = pd.read_csv(tmp_path / "own" / "detections.csv")
    assert len(kept) == (boxes["score"] >= own).sum()


@pytest.mark.slow
def test_a_detector_finds_on_its_own_what_the_stage_found(project, tmp_path):
    """Loaded again, on the test frames themselves."""
    expected = pd.read_csv("data/detections.csv")
    frame = expected["frame"].iloc[0]
    (tmp_path / "pictures").mkdir()
    Image.open(Path("data/raw") / frame).save(tmp_path / "pictures" / "frame.png")
    stages.detect.main(
        model=Path("models/finetune"), frames=tmp_path / "pictures", out=tmp_path / "found", threshold=0.0
    )
    found = pd.read_csv(tmp_path / "found" / "detections.csv")
    columns = ["x", "y", "width", "height", "score"]
    np.testing.assert_allclose(found[columns], expected.loc[expected["frame"] == frame, columns], atol=1e-6)


@pytest.mark.slow
def test_a_changed_head_is_refused(project, tmp_path):
    folder = tmp_path / "detector"
    shutil.copytree("models/detector", folder)
    with (folder / "head.weights.h5").open("ab") as file:
        file.write(b" ")
    with pytest.raises(InputError, match=r"head\.weights\.h5: is missing or was changed since .*run dvc repro detect"):
        stages.detect.main(
            model=Path("models/finetune"), frames=Path("data/raw/images"), out=tmp_path / "out", detector=folder
        )


@pytest.mark.slow
def test_windows_can_be_cut_out_instead(project, tmp_path):
    """Its detector has no head."""
    change_params(project, {"detect.mode": "windows"})
    try:
        outs = {name: tmp_path / name for name in ("detector", "detections", "metrics", "froc", "pictures")}
        stages.detect.main(model=Path("models/finetune"), raw=Path("data/raw"), **SPLIT, **outs)
        detector = read_json(tmp_path / "detector" / "detector.json")
        assert (detector["settings"]["mode"], detector["weights_sha256"]) == ("windows", None)
        assert [path.name for path in (tmp_path / "detector").iterdir()] == ["detector.json"]
        assert read_json(tmp_path / "metrics")["mode"] == "windows"
    finally:
        change_params(project, {"detect.mode": "dense"})


@pytest.mark.slow
def test_dense_maps_can_be_held_against_windows(project, capsys):
    """`dense` gives what the stage found."""
    benchmarks.detection.main(model=Path("models/finetune"))
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["threshold", "recall", "precision"]
    windows, dense = (line.split() for line in lines)
    metrics = read_json(Path("metrics/detect.json"))
    assert (windows[0], dense[0]) == ("windows", "dense")
    assert float(dense[1]) == pytest.approx(metrics["threshold"], abs=1e-4)
    assert float(dense[2]) == pytest.approx(metrics["operating"]["recall"]["value"], abs=1e-3)


@pytest.mark.slow
def test_copies_are_drawn_from_at_every_depth(project, monkeypatch):
    """Also with nothing frozen, and so nothing cached: depths are compared on like crops. The small CNN has none."""
    drawn = []

    def stop_at_fit(*_: object, copies: int, **__: object) -> None:
        drawn.append(copies)
        raise InterruptedError

    monkeypatch.setattr("lesionlab.training.run.fit", stop_at_fit)
    params = read_params()
    names = ("data/crops", "data/split.csv", "metrics/split.json", "none", "none", "none")
    paths = Paths(*map(Path, names))
    for name, blocks in (("transfer", 1), ("transfer", 5), ("baseline", 0)):
        classifier = load_classifier(Path("models") / name)
        with pytest.raises(InterruptedError):
            run_training(
                name, classifier.model, classifier.description.architecture, blocks, params.finetune, params, paths
            )
    assert drawn == [params.augment.copies, params.augment.copies, 0]
    assert params.augment.copies > 0


@pytest.mark.slow
def test_detect_says_which_arguments_belong_together(project, tmp_path):
    model = Path("models/finetune")
    with pytest.raises(InputError, match="give --frames and --out for your own pictures, or all of --raw"):
        stages.detect.main(model=model, frames=tmp_path)
    with pytest.raises(InputError, match="no such folder; --frames takes a folder of pictures"):
        stages.detect.main(model=model, frames=tmp_path / "nowhere", out=tmp_path / "out")
    (tmp_path / "._broken.png").touch()  # which macOS leaves beside files on foreign disks
    with pytest.raises(InputError, match="holds no picture"):
        stages.detect.main(model=model, frames=tmp_path, out=tmp_path / "out")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputError, match=r"broken\.png: cannot be read as an image"):
        stages.detect.main(model=model, frames=tmp_path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_attention_that_masks_teach_goes_through_all_stages(tmp_path, drawn_phantom, environment):
    changes = {
        "model.image_size": 64, "model.weights": "bundled", "transfer.pooling": "attention",
        "training.lesion_attention": 1.0, "crop.negatives_per_frame": 1,
    }  # fmt: skip
    write_yaml_file(tmp_path / "params.yaml", small_params(CHANGES | changes))
    write_card(tmp_path, DATASET)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "raw").symlink_to(drawn_phantom)
    environment(tmp_path)
    run_to_evaluate()
    taught = {name: "attention_loss" in pd.read_csv(f"plots/{name}.csv") for name in MODELS}
    assert taught == {"baseline": False, "transfer": True, "finetune": True}
    assert load_classifier(Path("models/finetune")).description.architecture.pooling == "attention"
    assert set(read_json(Path("metrics/evaluate.json"))) >= {*MODELS, "ensemble"}
    detect()
    assert read_json(Path("metrics/detect.json"))["subset"] == "test"
    explain()
    explained = read_json(Path("metrics/explain.json"))
    assert explained["attention"]["layer"] == ATTENTION_MAP
    assert 0 < explained["attention"]["share_inside"]["value"] < 1
    write_yaml_file(tmp_path / "params.yaml", small_params(CHANGES | changes | {"transfer.pooling": "average"}))
    with pytest.raises(InputError, match=r"this head has none; set transfer\.pooling to attention"):
        train_stage("transfer", weights=Path("data/weights"))


@pytest.fixture(scope="module")
def three_classes(tmp_path_factory, environment) -> Path:
    """Twelve whole images of each of three colours, without masks or groups, after all stages up to evaluate."""
    folder = tmp_path_factory.mktemp("three")
    rng = np.random.default_rng(1)
    for number, name in enumerate(("left", "middle", "right")):
        (folder / "data" / "raw" / name).mkdir(parents=True)
        for picture in range(12):
            coarse = rng.integers(40, 160, (6, 7, 3)).astype("uint8")
            coarse[..., number] += 80
            image = Image.fromarray(coarse).resize((70, 60), Image.Resampling.BICUBIC)
            image.save(folder / "data" / "raw" / name / f"{picture}.png")
    changes = {"dataset": "three", "baseline.epochs": 6, "baseline.learning_rate": 0.003}
    write_yaml_file(folder / "params.yaml", small_params(changes))
    write_card(
        folder, "three", layout={"kind": "class-folders"}, classes=["left", "middle", "right"], groups="none"
    )  # fmt: skip
    environment(folder)
    run_to_evaluate()
    return folder


@pytest.mark.slow
def test_three_classes_without_masks_go_through_evaluate(three_classes):
    index = pd.read_csv("data/crops/index.csv")
    assert index["label"].value_counts().to_dict() == {"left": 12, "middle": 12, "right": 12}
    metrics = read_json(Path("metrics/evaluate.json"))
    assert metrics["group_disjoint"] is False
    assert metrics["crops"] == 12
    for name in MODELS:
        assert tuple(metrics[name]) == HEADLINES
        for key in FIGURES:
            figure = metrics[name][key]
            assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
        confusion = pd.read_csv(f"plots/evaluate/confusion_{name}.csv")
        assert set(confusion["actual"]) == {"left", "middle", "right"}
        model = read_json(Path(f"models/{name}/model.json"))
        assert model["architecture"]["classes"] == ["left", "middle", "right"]
        assert model["threshold"] is None
    assert metrics["baseline"]["roc_auc"]["value"] > 0.6
    assert pd.read_csv("plots/evaluate/subgroups.csv").empty  # by lesion_size: there is none
    assert not list(Path("pictures/evaluate").glob("subgroups*"))


@pytest.mark.slow
def test_detection_says_that_it_does_not_apply_to_classes_of_whole_images(three_classes):
    detect()
    metrics = read_json(Path("metrics/detect.json"))
    assert metrics == {
        "applicable": False,
        "reason": "three has one class a whole image: windows within an image have none",
        "protocol": "group",
        "group_disjoint": False,
        "grouped_by": "near-duplicates",
        "seed": 42,
    }
    boxes = pd.read_csv("data/detections.csv")
    assert list(boxes) == ["frame", "x", "y", "width", "height", "score", "lesion"]
    assert len(boxes) == len(pd.read_csv("plots/froc.csv")) == 0
    assert list(Path("pictures/detections").iterdir()) == list(Path("models/detector").iterdir()) == []
    with pytest.raises(InputError, match=r"datasets/three\.yaml gives whole images a class, so parts of a"):
        stages.detect.main(model=Path("models/finetune"), frames=Path("data/raw/left"), out=Path("found"))


@pytest.mark.slow
def test_three_classes_without_masks_go_through_explain(three_classes):
    """Pictures alone, at the last layer."""
    explain()
    metrics = read_json(Path("metrics/explain.json"))
    assert metrics["lesions"] == 0
    assert metrics["gradcam"] == metrics["hirescam"] == {"layer": "conv_pw_11_relu"}
    assert len(pd.read_csv("plots/explain.csv")) == 0
    assert [path.name for path in Path("pictures/explain").iterdir()] == ["crops.png"]


@pytest.mark.slow
def test_any_model_can_be_evaluated_by_hand(project, tmp_path):
    """A folder of another name, on the same crops: the same figures."""
    shutil.copytree("models/finetune", tmp_path / "mine")
    outs = {"metrics": tmp_path / "mine.json", "plots": tmp_path / "plots", "pictures": tmp_path / "pictures"}
    stages.evaluate.main(**SPLIT, model=[tmp_path / "mine"], **outs)
    assert read_json(outs["metrics"])["mine"] == read_json(Path("metrics/evaluate.json"))["finetune"]
    assert (outs["plots"] / "roc_mine.csv").read_bytes() == Path("plots/evaluate/roc_finetune.csv").read_bytes()


SLOW = {"keras", "tensorflow", "mlflow", "sklearn", "matplotlib", "pandas", "scipy", "dvc"}  # to import


def python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("stage", STAGES)
def test_help_says_what_a_stage_does_and_loads_nothing_slow(stage):
    """-X importtime lists every module that is imported."""
    ended = python("-X", "importtime", "-m", f"stages.{stage}", "--help")
    assert ended.returncode == 0
    for line in (rf"^ *{stage}: ", r"^ *reads  ", r"^ *writes  ", r"^ *params  "):
        assert re.search(line, ended.stdout, re.MULTILINE), line
    modules = {line.rpartition("|")[2].strip().split(".")[0] for line in ended.stderr.splitlines()}
    assert {"typer", "lesionlab"} <= modules
    assert not SLOW & modules


def test_data_stages_that_ran_have_loaded_neither_keras_nor_mlflow(tiny_project):
    """All three in one fresh process, the download of a local folder."""
    Path("data/raw").rename("mine")
    change_params(tiny_project, {"download.source": "mine"})
    layout = {"kind": "mask-pairs", "folders": [["images", "masks"]]}
    write_card(tiny_project, DATASET, layout=layout, groups={"pattern": "(.+)"})
    code = """
import sys
from pathlib import Path
import stages.crop, stages.download, stages.split
raw, crops, split = Path("data/raw"), Path("data/crops"), Path("data/split.csv")
stages.download.main("images", out=raw)
stages.crop.main(raw, crops, Path("metrics/crop.json"), Path("pictures/crops.png"))
stages.split.main(crops, split, Path("metrics/split.json"))
print("loaded:", sorted({"keras", "tensorflow", "mlflow"} & set(sys.modules)))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "loaded: []"
    assert set(pd.read_csv("data/split.csv")["subset"]) == {"train", "val", "test"}
