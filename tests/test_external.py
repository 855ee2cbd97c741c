"""The study `external`: a data set that only tests, what the two share, and the study as a user runs it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import test_dvc_yaml as rules
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from test_splits import indexes, make_index, protocol
from tiny import DATASET, LAYOUT, ROOT, crop_stage, read_yaml_file, run_stage, small_params, write_card, write_yaml_file

from lesionlab.data.cards import check_apart
from lesionlab.data.splits import describe_external, external_split, near_other
from lesionlab.errors import InputError
from lesionlab.studies.figures import difference, flat
from lesionlab.studies.predictions import read_predictions, write_predictions
from lesionlab.studies.schemas import External

STUDY = ROOT / "studies" / "external"
PHANTOMS = ("phantom", "phantom-external")
PARAMS = protocol("external", near_duplicate_bits=4)
DROPPING = protocol("external", near_duplicate_bits=4, drop_duplicates=True)


def describe(index: pd.DataFrame, table: pd.DataFrame, training: pd.DataFrame, datasets=PHANTOMS) -> dict:
    return describe_external(index, table, training, PARAMS, datasets=datasets, seed=42)


# The split


@given(indexes(), indexes(), st.integers(0, 10))
def test_frames_near_another_data_set_are_those_of_a_comparison_of_all(index, other, bits):
    found = near_other(index, other, bits)
    hashes = [int(text, 16) for text in other["hash"]]
    expected = [min((int(text, 16) ^ known).bit_count() for known in hashes) <= bits for text in index["hash"]]
    assert found.tolist() == expected


def test_every_crop_of_an_external_data_set_tests():
    index, training = make_index(5, seed=1), make_index(7, seed=2)
    table = external_split(index, training, PARAMS)
    assert table["id"].tolist() == index["id"].tolist()
    assert (set(table["subset"]), set(table["fold"])) == ({"test"}, {-1})
    description = describe(index, table, training)
    assert (description["protocol"], description["group_disjoint"], description["labels"]) == ("external", True, "true")
    assert description["subsets"]["test"] == {
        "crops": 30, "frames": 10, "groups": 5, "classes": {"background": 20, "polyp": 10},
    }  # fmt: skip
    assert description["subsets"]["train"]["crops"] == description["subsets"]["val"]["crops"] == 0
    assert (description["trained_on"], description["training_frames_compared"]) == ("phantom", 14)
    assert description["frames_near_training_frames"] == 0
    assert set(description["proof"].values()) == {0}


def test_two_parts_of_one_data_set_are_not_called_group_disjoint():
    index, training = make_index(5, seed=1), make_index(7, seed=2)
    table = external_split(index, training, PARAMS)
    assert describe(index, table, training, datasets=("phantom", "phantom"))["group_disjoint"] is False


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("chest-xray", "pneumoniamnist"),
        ("brain-tumor-cheng", "brain-mri-kaggle"),
        ("brain-tumor-cheng-windows", "brain-mri-kaggle"),
        ("brain-tumor-cheng", "brain-tumor-cheng-windows"),
        ("brain-mri-kaggle", "brain-mri-kaggle"),
    ],
)
def test_data_sets_that_share_images_do_not_test_each_other(monkeypatch, one, other):
    monkeypatch.chdir(ROOT)
    for datasets in ((one, other), (other, one)):
        cards = " and ".join(f"datasets/{name}.yaml" for name in datasets)
        with pytest.raises(InputError) as caught:
            check_apart(*datasets)
        assert str(caught.value) == (
            f"{cards} share images (shares_images_with in datasets/{datasets[0]}.yaml), so that neither tests what the "
            "other trained; choose another external data set"
        )


def test_one_card_that_says_so_is_enough(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_card(tmp_path, "one")
    write_card(tmp_path, "other", shares_images_with=["one"])
    for datasets in (("one", "other"), ("other", "one")):
        with pytest.raises(InputError, match=r"share images \(shares_images_with in datasets/other\.yaml\)"):
            check_apart(*datasets)
    check_apart("other", "other")


@pytest.fixture
def overlapping() -> tuple[pd.DataFrame, pd.DataFrame]:
    """An external index and one that trains; frame g1f0 of the first is four bits from one of the second."""
    index, training = make_index(5, seed=1), make_index(7, seed=2)
    near = f"{int(training['hash'].iloc[30], 16) ^ 0b1111:016x}"
    return index.assign(hash=index["hash"].where(index["frame"] != "g1f0", near)), training


def test_a_frame_that_the_other_data_set_holds_too_is_refused(overlapping):
    with pytest.raises(InputError) as caught:
        external_split(*overlapping, PARAMS)
    assert str(caught.value) == (
        "split: 1 of 10 frames (first: g1f0) are near-duplicates of frames of the data set that trains; leave them out "
        "with split.drop_duplicates: true, or if they only look alike lower split.near_duplicate_bits (4), both of the "
        "external data set"
    )
    assert set(external_split(*overlapping, protocol("external", near_duplicate_bits=3))["subset"]) == {"test"}


def test_a_frame_that_the_other_data_set_holds_too_is_left_out_and_counted(overlapping):
    index, training = overlapping
    table = external_split(index, training, DROPPING)
    assert (table["subset"] == "none").tolist() == (index["frame"] == "g1f0").tolist()
    description = describe(index, table, training)
    assert description["frames_near_training_frames"] == 1
    assert description["proof"]["near_duplicates_of_training_frames"] == 0
    assert (description["group_disjoint"], description["duplicates"]["crops_in_no_subset"]) == (True, 3)
    kept = describe(index, table.assign(subset="test"), training)
    assert (kept["group_disjoint"], kept["proof"]["near_duplicates_of_training_frames"]) == (False, 1)


def test_a_data_set_is_no_external_test_of_itself():
    index = make_index(5)
    with pytest.raises(InputError, match="every crop of class 'background' repeats one of the data set that trains"):
        external_split(index, index, DROPPING)


def test_other_classes_are_refused():
    index, training = make_index(5, seed=1), make_index(7, seed=2)
    training["label"] = training["label"].replace("polyp", "adenoma")
    with pytest.raises(InputError, match="has the classes background, polyp, the one that trains has adenoma, back"):
        external_split(index, training, PARAMS)


def test_protocol_and_crops_that_trained_go_together(tiny_project):
    assert crop_stage().returncode == 0
    paths = ("--crops", "data/crops", "--split", "data/split.csv", "--metrics", "metrics/split.json")
    together = "split.protocol external and the option --training go together"
    assert together in run_stage("split", *paths, "--set", "split.protocol=external").stderr
    assert together in run_stage("split", *paths, "--training", "data/crops").stderr
    np.save("data/crops/images.npy", np.load("data/crops/images.npy")[:, :16, :16])
    Path("data/crops").rename("data/small")
    assert crop_stage().returncode == 0
    ended = run_stage("split", *paths, "--training", "data/small", "--set", "split.protocol=external")
    assert ended.stderr.strip() == "error: data/crops: crops are 32 px, data/small has 16; set model.image_size"
    assert not Path("data/split.csv").exists()


# The summary


def test_the_threshold_is_that_of_the_validation_of_the_data_set_that_trained(tmp_path):
    own = pd.DataFrame({"id": range(8), "subset": ["train", "val", "val", "val", "val", "test", "test", "none"]})
    own = own.assign(group="g", label=["a", "a", "a", "b", "b", "a", "b", "a"])
    scores = np.array([0.5, 0.1, 0.3, 0.6, 0.9, 0.2, 0.8, 0.5])
    write_predictions(tmp_path / "own.csv", own, np.stack([1 - scores, scores], axis=1), ["a", "b"])
    other = pd.DataFrame({"id": [5, 6, 7], "subset": "test", "group": ["x", "y", "y"], "label": ["b", "a", "b"]})
    scores = np.array([0.44, 0.46, 0.99])
    write_predictions(tmp_path / "other.csv", other, np.stack([1 - scores, scores], axis=1), ["a", "b"])
    said = read_predictions(tmp_path / "other.csv", validation=tmp_path / "own.csv")
    assert said.test.threshold == pytest.approx(0.45)  # half-way between 0.3 and 0.6
    assert (said.ids.tolist(), said.test.groups.tolist()) == ([5, 6, 7], ["x", "y", "y"])
    assert (said.test.labels.tolist(), said.test.predicted.tolist()) == ([1, 0, 1], [0, 1, 1])
    assert said.val.labels.tolist() == [0, 0, 1, 1]


def test_the_interval_of_a_drop_is_that_published_for_two_proportions():
    """With Wilson's intervals of each proportion it is method 10 of Newcombe, Statistics in Medicine 17:873-890, 1998.

    56 of 70 against 48 of 80, from that paper's table II: 0.0524 to 0.3339.
    """
    tables = []
    for hits, count in ((56, 70), (48, 80)):
        ends = binomtest(hits, count).proportion_ci(method="wilson")
        tables.append(
            pd.DataFrame({"value": [hits / count], "low": [ends.low], "high": [ends.high]}, index=["accuracy"])
        )
    found = flat(difference(*tables))
    assert {name: round(value, 4) for name, value in found.items()} == {
        "accuracy": 0.2, "accuracy_low": 0.0524, "accuracy_high": 0.3339,
    }  # fmt: skip


# studies/external/dvc.yaml

STAGES = {
    "download@images": "download@images", "download@weights": "download@weights",
    "download_external": "download@images", "crop": "crop", "crop_external": "crop", "split": "split",
    "split_external": "split", "transfer": "transfer", "finetune": "finetune", "predict": "predict",
    "summarise": "summarise",
}  # fmt: skip


@pytest.fixture
def entry(monkeypatch):
    """A function that returns a stage of the study's dvc.yaml."""
    content = read_yaml_file(STUDY / "dvc.yaml")
    monkeypatch.setattr(rules, "pipeline", lambda: content)
    assert {stage.partition("@")[0] for stage in STAGES} == set(content["stages"])
    return rules.stage_entry


@pytest.mark.parametrize(("stage", "of"), STAGES.items())
def test_every_module_that_runs_is_in_deps(stage, of, entry):
    deps = [Path(dep) for dep in entry(stage)["deps"]]
    harmless = rules.HARMLESS | rules.HARMLESS_TO.get(of, set())
    missing = {
        name
        for name in rules.imported_by_stage(of) - harmless
        if not any(Path(name).is_relative_to(dep) for dep in deps) and not name.endswith("__init__.py")
    }
    assert missing == set()
    assert all((ROOT / dep).exists() for dep in deps if dep.parts[0] in ("lesionlab", "stages"))


def read_by(of: str) -> set[str]:
    """What a stage reads of params.yaml."""
    if of != "summarise":
        return rules.without_leaves_of_sections(rules.read_by(of))
    files = ("stages/summarise.py", "lesionlab/studies/external.py", "lesionlab/studies/tables.py")
    return set().union(*(rules.keys_read_in(rules.syntax(ROOT / file)) for file in files))


@pytest.mark.parametrize(("stage", "of"), STAGES.items())
def test_params_are_what_is_read(stage, of, entry):
    """Of the repository's params.yaml, of the study's `set`, and with --cell external of that mapping and its card."""
    given = entry(stage)
    root = {key for key in given["params"] if isinstance(key, str)}
    files = {name: keys for part in given["params"] if isinstance(part, dict) for name, keys in part.items()}
    study = set(files.pop("${study}/params.yaml"))
    external = "--cell external" in given["cmd"]
    read = read_by(of)
    cards = {f"datasets/${{{'external' if external else 'set'}.dataset}}.yaml"}
    if stage == "split_external":
        cards.add("datasets/${set.dataset}.yaml")  # whether the two share images
    assert set(files) == (cards if "card" in read else set())
    read -= {"card"}
    assert root <= read | {key.partition(".")[0] for key in read}
    assert all({key, key.partition(".")[0]} & root for key in read - {"dataset"})
    settings = read_yaml_file(STUDY / "params.yaml")
    overlaid = {f"set.{key}" for key in read if key.partition(".")[0] in settings["set"]}
    named = {name for name in study if name.startswith("set.")}
    for key in overlaid - {"set.dataset" if external else None}:
        assert {key, key.rpartition(".")[0]} & named, key
    assert all(any(key.startswith(name) for key in overlaid | {"set.dataset"}) for name in named)
    assert {name for name in study if name.startswith("external")} == (
        {"external"} if external else {"external.dataset"} if of == "summarise" else set()
    )


def test_what_the_head_of_params_yaml_sets_is_there():
    """-S changes only keys that exist."""
    text = (STUDY / "params.yaml").read_text()
    keys = re.findall(r"-S (\S+)=", text)
    assert len(keys) == 6
    settings = read_yaml_file(STUDY / "params.yaml")
    External.model_validate(settings)
    for key in keys:
        part = settings
        for name in key.split("."):
            part = part[name]


# The study as a user runs it


@pytest.mark.slow
def test_the_study_on_small_phantoms(tmp_path):
    for name in ("stages", "lesionlab"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    study = tmp_path / "studies" / "external"
    study.mkdir(parents=True)
    shutil.copy(STUDY / "dvc.yaml", study)
    write_yaml_file(tmp_path / "params.yaml", small_params())
    write_card(tmp_path, DATASET)
    write_card(tmp_path, "other", layout=LAYOUT | {"width": 128, "white_balance": [0.8, 1.0, 1.2]})
    settings = read_yaml_file(STUDY / "params.yaml")
    settings["set"] = {
        "seed": 42, "dataset": DATASET, "download": {"source": None}, "model": {"image_size": 32}, "crop": {},
        "split": {"protocol": "group"}, "training": {}, "augment": {}, "transfer": {}, "finetune": {}, "evaluate": {},
    }  # fmt: skip
    settings["external"] |= {"dataset": "other"}
    write_yaml_file(study / "params.yaml", settings)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_", "GIT_"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    for folder, command in ((tmp_path, ["dvc", "init", "--no-scm", "-q"]), (study, ["dvc", "repro"])):
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    table = pd.read_csv(study / "table.csv")
    assert table["test"].tolist() == ["internal", "external", "drop"] * 2
    crops = json.loads((study / "metrics" / "crop_external.json").read_text())
    external = table[table["test"] == "external"]
    assert external["crops"].tolist() == [crops["crops"]] * 2
    assert external["groups"].tolist() == [12, 12]
    own = pd.read_csv(study / "data" / "split_internal.csv")
    assert (table[table["test"] == "internal"]["crops"] == (own["subset"] == "test").sum()).all()
    for model, rows in table.groupby("model"):
        figures = rows.set_index("test")["roc_auc"]
        assert figures["drop"] == pytest.approx(figures["internal"] - figures["external"], abs=2e-6), model
    assert (table["roc_auc_low"] <= table["roc_auc"]).all()
    assert (table["roc_auc"] <= table["roc_auc_high"]).all()
    text = (study / "table.md").read_text()
    assert "tested on its test subset (internal) and on all of other" in text
    assert "external: protocol external (group-disjoint), seed 43, " in text
    assert (study / "figure.png").stat().st_size > 10_000
