"""Studies: their dvc.yaml against the code, what a summary makes of cells, and one study as a user runs it."""

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from scipy.stats import entropy
from sklearn.metrics import log_loss
from test_dvc_yaml import HARMLESS, HARMLESS_TO, ROOT, declared, imported_by_stage, params_line
from tiny import DATASET, read_yaml_file, small_params, write_card, write_yaml_file

from lesionlab.data.cards import read_card, resolve_split
from lesionlab.errors import InputError
from lesionlab.evaluation.metrics import Scores
from lesionlab.params import Overlay, Params, read_params, read_yaml
from lesionlab.pictures import MODEL_COLOURS, OTHER_COLOUR, SERIES_COLOURS
from lesionlab.studies import blockwise, ensemble, external, leakage, schemas, variants
from lesionlab.studies.figures import GAIN, cell_intervals, cell_points
from lesionlab.studies.predictions import mean_of, point_metrics, read_predictions, write_predictions
from lesionlab.studies.tables import Paths, decided, markdown_table, mean_sd, write_summary
from lesionlab.training.threshold import choose_threshold

SCALARS = {"seed", "dataset"}  # always in a study's `set`, so the repository's value never counts


def stages() -> list[tuple[str, str, dict]]:
    """Study, stage and entry of every stage; of `foreach` stages what is below `do`.

    `external` reads two data sets, so other params: it has tests of its own.
    """
    found = []
    for path in (ROOT / "studies" / study / "dvc.yaml" for study in schemas.SCHEMAS if study != "external"):
        for name, entry in read_yaml_file(path)["stages"].items():
            found.append((path.parent.name, name, entry.get("do", entry)))
    return found


def script_of(entry: dict) -> str:
    words = entry["cmd"].split()
    assert words[:2] == ["python", "-m"]
    return words[2].removeprefix("stages.")


def items_of(entry: dict) -> tuple[str, ...]:
    """The pipeline's stages that run the same script: for a download of images, of weights or of each."""
    script, what = script_of(entry), entry["cmd"].split()[3]
    if script != "download":
        return (script,)
    return tuple(f"download@{kind}" for kind in ("images", "weights") if what in (kind, "${key}"))


def test_every_study_has_a_summary():
    assert {path.parent.name for path in (ROOT / "studies").glob("*/dvc.yaml")} == set(schemas.SCHEMAS)


@pytest.mark.parametrize(
    ("study", "name", "entry"), stages(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_deps_are_what_a_stage_imports(study, name, entry):
    items = items_of(entry)
    deps = {dep for dep in entry["deps"] if "${" not in dep and dep != "lesionlab/pretext/bundled"}
    running = set().union(*(imported_by_stage(item) - HARMLESS_TO.get(item, set()) for item in items)) - HARMLESS
    extra = {"lesionlab/seeds.py"} if len(items) == 2 else set()  # of images alone
    missing = {
        file
        for file in running - extra
        if not any(Path(file).is_relative_to(dep) for dep in deps) and not file.endswith("__init__.py")
    }
    assert missing == set()
    for dep in deps:
        assert (ROOT / dep).exists(), dep
        assert any(Path(file).is_relative_to(dep) for file in running), dep


@pytest.mark.parametrize(
    ("study", "name", "entry"), stages(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_params_are_those_of_the_pipelines_stage_from_both_files(study, name, entry):
    script = script_of(entry)
    if script == "download":
        items = items_of(entry)
        each = set.intersection(*map(declared, items)) | {"card"}
        wanted = each | ({"${item.section}"} if len(items) == 2 else set())
    elif (ROOT / "dvc.yaml").read_text().count(f"\n  {script}:\n"):
        wanted = declared(script)
    else:
        wanted = set(params_line(script).split(", "))
    plain = {key for key in entry["params"] if isinstance(key, str)}
    files = {file: keys for part in entry["params"] if isinstance(part, dict) for file, keys in part.items()}
    own = set(files.pop("${study}/params.yaml"))
    assert ("card" in wanted) == ("datasets/${set.dataset}.yaml" in files)
    wanted -= {"card"}
    assert plain | {"dataset"} >= wanted - {"dataset"} == plain - {"dataset"}
    known = read_yaml_file(ROOT / "studies" / study / "params.yaml")
    laid_over = {key.removeprefix("set.") for key in own if key.startswith("set.")}
    for key in wanted | ({"dataset"} & laid_over):
        assert key in laid_over or key.split(".")[0] in laid_over, f"set.{key} is not declared"
    for key in own:
        part = known
        for step in key.split("."):
            assert "${" in step or step in part, f"{key} is not in params.yaml"
            part = None if "${" in step else part[step]
            if part is None:
                break
    assert "--study ${study}/params.yaml" in entry["cmd"]


@pytest.mark.parametrize("study", schemas.SCHEMAS)
def test_a_studys_params_are_accepted(study, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = Path("studies") / study / "params.yaml"
    content = read_yaml(path, schemas.SCHEMAS[study])
    assert set(content.set) >= SCALARS
    for cell in (None, *(f"{group}.{name}" for group in ("cnns", "backbones") for name in getattr(content, group, {}))):
        assert read_params(overlay=Overlay(path, cell)).dataset == "phantom"
    assert read_yaml_file(ROOT / "studies" / study / "dvc.yaml")["vars"] == [{"study": f"studies/{study}"}]


@pytest.mark.parametrize("study", [study for study in schemas.SCHEMAS if study != "leakage"])
def test_a_study_of_another_data_set_takes_its_published_split(study, monkeypatch):
    monkeypatch.chdir(ROOT)
    path, card = Path("studies") / study / "params.yaml", read_card("brain-tumor-cheng")
    split = resolve_split(read_params(overlay=Overlay(path, None, (f"dataset={card.name}",))).split, card)
    assert (split.protocol, split.folds, split.near_duplicate_bits) == ("official", 5, 0)
    given = ("split.protocol=group", "split.folds=3", "split.validation_per_class=60")
    split = resolve_split(read_params(overlay=Overlay(path, None, given)).split, card)
    assert (split.protocol, split.folds, split.validation_per_class) == ("group", 3, 60)


# Predictions


def cell(path: Path, scores: np.ndarray, seed: int = 0, count: int = 60, **proof: object) -> None:
    """Files of a cell: `count` validation and as many test crops of ten groups each, probability of b from `scores`."""
    rng = np.random.default_rng(seed)
    index = pd.DataFrame({"id": range(2 * count), "subset": ["val"] * count + ["test"] * count})
    index["group"] = [f"{subset}{number % 10}" for number, subset in enumerate(index["subset"])]
    index["label"] = np.where(labels(count), "b", "a")
    positive = np.clip(scores + rng.normal(0, 1e-6, 2 * count), 0, 1)
    write_predictions(path / "predictions.csv", index, np.stack([1 - positive, positive], axis=1), ["a", "b"])


def labels(count: int = 60) -> np.ndarray:
    return np.tile(np.arange(count) % 3 == 0, 2)


def noisy(seed: int, spread: float, count: int = 60) -> np.ndarray:
    drawn = 0.5 + 0.2 * (2.0 * labels(count) - 1) + np.random.default_rng(seed).normal(0, spread, 2 * count)
    return np.clip(drawn, 0.01, 0.99)


def shift_ids(paths: Paths, names: list[str], by: int, *subsets: str) -> None:
    """Let cells speak of other crops than those of the first, be it of some subsets alone."""
    for name in names:
        path = paths.predictions / f"{name}.csv"
        table = pd.read_csv(path)
        moved = table["subset"].isin(subsets or ("val", "test"))
        table.assign(id=table["id"] + by * moved).to_csv(path, index=False)


def place(paths: Paths, name: str, scores: np.ndarray, **trained: object) -> None:
    cell(paths.predictions, scores)
    (paths.predictions / "predictions.csv").rename(paths.predictions / f"{name}.csv")
    record = {
        "protocol": "group",
        "group_disjoint": True,
        "grouped_by": "card",
        "labels": "true",
        "seed": 1,
        "parameters": 10,
    }
    record |= {"trained_parameters": 5, "validation": {"loss": 0.5, "accuracy": 0.8}}
    (paths.metrics / f"{name}.json").write_text(json.dumps(record | trained))


@pytest.fixture
def paths(tmp_path) -> Paths:
    for name in ("metrics", "predictions"):
        (tmp_path / name).mkdir()
    files = ("table.csv", "table.md", "figure.png", "headline.json")
    return Paths(tmp_path / "metrics", tmp_path / "predictions", *(tmp_path / name for name in files))


@pytest.fixture
def params() -> Params:
    return Params.model_validate(small_params({"evaluate.resamples": 400}))


def written(paths: Paths, summary) -> tuple[pd.DataFrame, str, dict]:
    write_summary(paths, summary)
    assert paths.figure.stat().st_size > 5000
    return pd.read_csv(paths.table), paths.markdown.read_text(), json.loads(paths.headline.read_text())


def test_predictions_come_back_with_the_threshold_of_validation(tmp_path):
    cell(tmp_path, np.where(labels(), 0.3, 0.1))
    read = read_predictions(tmp_path / "predictions.csv")
    assert read.classes == ["a", "b"]
    assert 0.1 < read.test.threshold < 0.3
    assert (read.test.predicted == read.test.labels).all()
    assert read.ids.tolist() == list(range(60, 120))
    assert set(read.val.groups) == {f"val{number}" for number in range(10)}


def test_the_mean_of_members_is_of_probabilities(tmp_path):
    members = []
    for seed in range(3):
        cell(tmp_path, noisy(seed, 0.3))
        members.append(read_predictions(tmp_path / "predictions.csv"))
    joint = mean_of(members)
    expected = sum(member.test.probabilities for member in members) / 3
    np.testing.assert_allclose(joint.test.probabilities, expected)
    other = pd.read_csv(tmp_path / "predictions.csv").assign(id=lambda table: table["id"] + 1)
    other.to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(InputError, match="members predict other crops or classes"):
        mean_of([*members, read_predictions(tmp_path / "other.csv")])


# Figures of a cell


def test_the_gain_over_a_random_order_is_that_of_the_curve_by_hand():
    sure_first = Scores(
        np.array([0, 0, 0, 1]), np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]]), np.arange(4), 0.5
    )
    assert cell_points(sure_first)[GAIN] == pytest.approx(1 / 4 - (0 + 0 + 0 + 1 / 4) / 4)
    sure_last = Scores(np.array([1, 0, 0, 0]), sure_first.probabilities, np.arange(4), 0.5)
    assert cell_points(sure_last)[GAIN] == pytest.approx(1 / 4 - (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    row = cell_intervals(sure_first, resamples=200, seed=1).loc[GAIN]
    assert row["low"] <= row["value"] == cell_points(sure_first)[GAIN] <= row["high"]


# Summaries


def test_blockwise_chooses_the_depth_on_validation_alone(paths, params):
    right, wrong = np.where(labels(), 0.9, 0.1), np.where(labels(), 0.1, 0.9)
    for fold in (0, 1):
        mixed = np.r_[right[:60], wrong[60:]]  # best on validation, worst on test
        place(paths, f"0-{fold}", np.r_[noisy(fold, 0.5)[:60], right[60:]])
        place(paths, f"1-{fold}", mixed, trained_parameters=1234)
    study = schemas.Blockwise(folds=[0, 1], blocks=[1], set={})
    table, text, headline = written(paths, blockwise.summarise(study, params, paths))
    assert headline["blocks"] == "1, 1"
    assert headline["val_accuracy"] == 1.0
    assert headline["accuracy"] == 0.0
    assert table["blocks"].tolist() == [0, 1]
    assert table["accuracy_mean"].tolist() == [1.0, 0.0]
    assert "| 1 | 1.000 ± 0.000 | 0.000 ± 0.000 |" in text
    assert table["aurc_gain_mean"].tolist() == [0.0, 0.0]  # all right, or all wrong: no order is better
    assert "above 0 is better than random" in text
    assert "1,234" in text
    assert "protocol group (group-disjoint), seed 1" in text
    assert "2 validation folds on 1 test subset" in text  # the crops of both folds have the same ids
    assert "another fold" not in text
    shift_ids(paths, ["0-1", "1-1"], 1000)
    _, text, _ = written(paths, blockwise.summarise(study, params, paths))
    assert "Mean ± standard deviation of 2 test folds" in text
    assert "That of all folds together would choose by crops that test in another fold." in text


def test_blockwise_of_one_fold_has_intervals(paths, params):
    for blocks in (0, 1):
        place(paths, f"{blocks}-0", noisy(blocks, 0.3))
    study = schemas.Blockwise(folds=[0], blocks=[1], set={})
    table, text, headline = written(paths, blockwise.summarise(study, params, paths))
    for _, row in table.iterrows():
        said = read_predictions(paths.predictions / f"{row['blocks']:.0f}-0.csv")
        for prefix, scores in (("val_", said.val), ("", said.test)):
            expected = cell_intervals(scores, params.evaluate.resamples, params.seed).loc["accuracy"]
            found = [row[f"{prefix}accuracy_{end}"] for end in ("mean", "low", "high")]
            assert found == pytest.approx(expected[["value", "low", "high"]].tolist(), abs=1e-5)
            assert f"{found[0]:.3f} [{found[1]:.3f}, {found[2]:.3f}]" in text
    assert "60 test crops of 10 groups, [95 % interval, bootstrap over groups]" in text
    assert f"Validation accuracy chooses {headline['blocks']} unfrozen blocks: test accuracy" in text
    assert "another fold" not in text
    assert "±" not in text


def test_the_band_of_one_fold_is_at_its_depth_whatever_the_order(paths, params):
    for blocks in (0, 1, 2):
        place(paths, f"{blocks}-0", noisy(blocks, 0.2 + 0.2 * blocks))
    study = schemas.Blockwise(folds=[0], blocks=[2, 1], set={})
    summary = blockwise.summarise(study, params, paths)
    table = summary.table.set_index("blocks")
    for name, band in zip(("val_accuracy", "accuracy"), summary.figure.axes[0].collections, strict=True):
        drawn = {tuple(corner) for corner in band.get_paths()[0].vertices.round(6).tolist()}
        ends = {(depth, round(table.loc[depth, f"{name}_{end}"], 6)) for depth in (0, 1, 2) for end in ("low", "high")}
        assert ends <= drawn
    plt.close(summary.figure)


def test_aggregates_are_mean_and_sample_deviation():
    cells = pd.DataFrame({"fold": [0, 1, 2], "blocks": 1, "trained_parameters": 7, "val_accuracy": [0.5, 0.6, 1.0]})
    row = blockwise.aggregate(cells).iloc[0]
    assert row["val_accuracy_mean"] == pytest.approx(0.7)
    assert row["val_accuracy_sd"] == pytest.approx(np.sqrt((0.04 + 0.01 + 0.09) / 2))
    assert mean_sd(cells["val_accuracy"]) == "0.700 ± 0.265"
    assert mean_sd(pd.Series([0.5])) == "0.500"


def test_each_fold_chooses_its_depth_and_of_equal_ones_the_least_deep():
    """Together the folds would choose one block, partly by crops that test in another of them."""
    rows = [(0, 0, 0.8), (1, 0, 0.9), (2, 0, 0.9), (0, 1, 0.5), (1, 1, 0.8), (2, 1, 0.7), (0, 2, 0.9), (1, 2, 0.7)]
    cells = pd.DataFrame(rows, columns=["blocks", "fold", "val_accuracy"])
    best = blockwise.choose_depths(cells)
    assert best[["fold", "blocks"]].to_numpy().tolist() == [[0, 1], [1, 1], [2, 0]]


@pytest.mark.parametrize("folds", [[0], [0, 1]])
def test_the_leak_is_random_less_group(paths, params, folds):
    right, names = np.where(labels(), 0.9, 0.1), []
    for fold in folds:
        for protocol, shuffled in (("random", "false"), ("random", "true"), ("group", "false"), ("group", "true")):
            scores = right if protocol == "random" else noisy(fold, 0.4)
            proof = {"protocol": protocol, "labels": "shuffled" if shuffled == "true" else "true"}
            proof |= {"group_disjoint": protocol == "group"}
            names.append(f"0-{protocol}-{shuffled}-{fold}")
            place(paths, names[-1], scores, **proof)
    study = schemas.Leakage(protocols=["random", "group"], shuffle=["false", "true"], folds=folds, blocks=[], set={})
    table, text, headline = written(paths, leakage.summarise(study, params, paths))
    table = table.set_index(["protocol", "labels"])
    assert len(table) == 5
    assert table.loc[("random", "true"), "accuracy"] == 1.0
    assert "protocols random (NOT group-disjoint) and group (group-disjoint), seed" in text
    group = table.loc[("group", "true"), "accuracy"]
    assert 0.3 < group < 0.95
    assert headline["leak_accuracy"] == pytest.approx(1 - group, abs=1e-5)
    leaked = table.loc[("random - group", "true")]
    for end in ("", "_low", "_high") if len(folds) == 1 else ("", "_sd"):
        assert headline[f"leak_accuracy{end}"] == pytest.approx(leaked[f"accuracy{end}"], abs=1e-5)
    assert leaked[["crops", "aurc_gain"]].isna().all()
    row = table.loc[("group", "true")]
    if len(folds) == 1:
        assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
        assert "bootstrap over groups" in text
        # Under random all is right in every draw, so the interval is that of group alone, turned round.
        assert leaked["accuracy_low"] == pytest.approx(1 - row["accuracy_high"], abs=1e-5)
        assert leaked["accuracy_high"] == pytest.approx(1 - row["accuracy_low"], abs=1e-5)
        assert f"accuracy {leaked['accuracy']:+.3f} [{leaked['accuracy_low']:+.3f}, " in text
        assert "as independent" in text
    else:
        assert row[["accuracy_low", "accuracy_high"]].isna().all()
        assert row["accuracy_sd"] > 0
        assert leaked["accuracy_sd"] == pytest.approx(row["accuracy_sd"], abs=1e-5)  # random: 1 in each fold
        assert leaked[["accuracy_low", "accuracy_high"]].isna().all()
        assert "mean ± standard deviation of 2 validation folds on 1 test subset;" in text
        shift_ids(paths, [name for name in names if name.startswith("0-random") and name.endswith("-1")], 1000)
        _, text, _ = written(paths, leakage.summarise(study, params, paths))
        assert "of 2 test folds (random) and 2 validation folds on 1 test subset (group);" in text
        shift_ids(paths, [name for name in names if name.startswith("0-group") and name.endswith("-1")], 1000)
        _, text, _ = written(paths, leakage.summarise(study, params, paths))
        assert "mean ± standard deviation of 2 test folds;" in text
    assert "Chance is a balanced accuracy of 0.500." in text
    assert table.loc[("random", "true"), "aurc_gain"] == 0
    cells = [read_predictions(paths.predictions / f"0-group-false-{fold}.csv").test for fold in folds]
    assert row["aurc_gain"] == pytest.approx(np.mean([cell_points(scores)[GAIN] for scores in cells]), abs=1e-5)
    assert "| aurc gain |" in text


@pytest.mark.parametrize("apart", ["group", "official"])
def test_the_leak_is_what_frames_drawn_singly_add_to_groups_or_published_folds(apart):
    rows = [
        (0, "random", "true", 0.9),
        (0, "random", "shuffled", 0.7),
        (0, apart, "true", 0.8),
        (0, apart, "shuffled", 0.5),
    ]
    table = pd.DataFrame(rows, columns=["blocks", "protocol", "labels", "accuracy"]).assign(fold=0)
    for name in leakage.LEAKED:
        table[name] = table["accuracy"]
        table[f"{name}_low"], table[f"{name}_high"] = table[name] - 0.03, table[name] + 0.04
    found = leakage.leak(table).iloc[0]
    assert found["protocol"] == f"random - {apart}"
    ends = found[["accuracy", "accuracy_low", "accuracy_high"]].tolist()
    assert ends == pytest.approx([0.1, 0.05, 0.15])  # 0.03 and 0.04 at right angles
    assert leakage.leak(table[table["protocol"] == "random"]).empty


def test_variants_are_rows_with_size_seconds_and_intervals(paths, params):
    for name, spread, loss in (("dense", 0.6, 0.7), ("backbone", 0.1, 0.2)):
        place(paths, name, noisy(1, spread), validation={"loss": loss, "accuracy": 0.8})
        (paths.metrics / f"{name}_seconds.json").write_text(json.dumps({"seconds": 12.3}))
    study = schemas.Variants(cnns={"dense": {}}, backbones={"backbone": {}}, set={})
    table, text, headline = written(paths, variants.summarise(study, params, paths))
    assert table["model"].tolist() == ["dense", "backbone"]
    assert table["seconds"].tolist() == [12.3, 12.3]
    assert headline["model"] == "backbone"
    for name in variants.SHOWN:
        assert (table[f"{name}_low"] <= table[name]).all()
        assert (table[name] <= table[f"{name}_high"]).all()
    assert table["loss"].iloc[1] < table["loss"].iloc[0]
    test = read_predictions(paths.predictions / "dense.csv").test
    assert table["loss"].iloc[0] == pytest.approx(log_loss(test.labels, test.probabilities), abs=1e-5)
    others = cell_intervals(test, 400, params.seed).loc["accuracy"]
    assert (table["accuracy_low"].iloc[0], table["accuracy_high"].iloc[0]) == pytest.approx(
        (others["low"], others["high"])
    )
    row = table.iloc[0]
    assert f"| {row['loss']:.3f} [{row['loss_low']:.3f}, {row['loss_high']:.3f}] |" in text
    assert "Lowest validation loss: backbone" in text
    assert "seed 1, mean of 2 views of a crop, threshold at the largest Youden index on validation crops. Sec" in text
    val = read_predictions(paths.predictions / "dense.csv").val
    accuracy = point_metrics(val)["accuracy"]
    assert table["val_accuracy"].iloc[0] == pytest.approx(accuracy, abs=1e-5), "decided as test crops are"
    assert table["val_loss"].iloc[0] == pytest.approx(log_loss(val.labels, val.probabilities), abs=1e-5)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"cnns": {"none": None}}, "cnns.none: Input should be a valid dictionary"),
        ({"backbones": {"views": {"evaluate": {"tta": 8}}}}, "backbones.views: nothing reads 'evaluate' of a single"),
        ({"backbones": {"deep": {"finetune": {"unfrozen_blocks": 2}}}}, "backbones.deep: nothing reads 'finetune'"),
        ({"cnns": {"other": {"model": {"backbone": "vgg16"}}}}, "cnns.other: nothing reads 'model' of a single cell"),
        ({"cnns": {"sure": {"training": {"sensitivity": 0.9}}}}, "cnns.sure: say set.training.sensitivity"),
    ],
)
def test_what_nothing_reads_of_a_variant_is_refused(tmp_path, cells, message):
    write_yaml_file(tmp_path / "params.yaml", {"cnns": {}, "backbones": {}, "set": {}} | cells)
    with pytest.raises(InputError, match=re.escape(message)):
        read_yaml(tmp_path / "params.yaml", schemas.Variants)


@pytest.mark.parametrize(
    ("changes", "classes", "said"),
    [
        ({"evaluate.tta": 0}, 3, ""),
        ({"evaluate.tta": 0}, 2, ", threshold at the largest Youden index on validation crops"),
        ({"evaluate.tta": 2}, 3, ", mean of 2 views of a crop"),
        (
            {"evaluate.tta": 8, "training.sensitivity": 0.95},
            2,
            ", mean of 8 views of a crop, threshold that reaches sensitivity 0.95 on validation crops",
        ),
    ],
)
def test_a_caption_says_how_a_class_was_decided(changes, classes, said):
    assert decided(Params.model_validate(small_params(changes)), classes) == said


def test_external_figures_have_a_gain_over_a_random_order_and_no_drop_of_it(paths, params):
    for model in external.MODELS:
        for test, spread in (("internal", 0.2), ("external", 0.4)):
            place(paths, f"{model}-{test}", noisy(3, spread))
        shutil.copy(paths.metrics / f"{model}-internal.json", paths.metrics / f"{model}.json")
    proof = {"protocol": "external", "group_disjoint": True, "grouped_by": "card", "labels": "true", "seed": 1}
    proof |= {"subsets": {"test": {"frames": 60}}, "duplicates": {"crops_in_no_subset": 0}}
    proof |= {"frames_near_training_frames": 0, "near_duplicate_bits": 4, "training_frames_compared": 60}
    (paths.metrics / "split_external.json").write_text(json.dumps(proof))
    params = params.model_copy(update={"dataset": "phantom"})
    study = schemas.External(set={}, external={"dataset": "other"})
    table, text, headline = written(paths, external.summarise(study, params, paths))
    for _, row in table.iterrows():
        if row["test"] == "drop":
            assert np.isnan(row["aurc_gain"])
        else:
            own, said = (paths.predictions / f"{row['model']}-{test}.csv" for test in ("internal", row["test"]))
            scores = read_predictions(said, validation=own if row["test"] == "external" else None).test
            assert row["aurc_gain"] == pytest.approx(cell_points(scores)["aurc_gain"], abs=1e-5)
            assert 0 < row["aurc_gain_low"] < row["aurc_gain"] < row["aurc_gain_high"]
    assert headline["external_finetune_aurc_gain"] > 0
    assert "drop_finetune_aurc_gain" not in headline
    assert {"drop_finetune_accuracy", "internal_transfer_aurc_gain"} <= set(headline)
    assert "nan" not in text


def test_an_ensemble_of_equal_members_gains_nothing(paths, params):
    for seed in (1, 2):
        place(paths, f"finetune_{seed}-0", noisy(7, 0.3), seed=seed)
    table, text, headline = written(
        paths, ensemble.summarise(schemas.Ensemble(seeds=[1, 2], folds=[0], set={}), params, paths)
    )
    gain = table.set_index("model").loc["gain"]
    for name in ensemble.SHOWN:
        assert headline[f"gain_{name}"] == 0
        assert (gain[f"{name}_low"], gain[f"{name}_high"]) == (0, 0)
    assert "0.0000 nats" in text


def test_an_ensemble_says_of_each_crop_how_its_members_disagree(paths, params):
    said = {seed: noisy(seed, 0.35) for seed in (1, 2)}
    for seed, scores in said.items():
        place(paths, f"finetune_{seed}-0", scores)
    paths = replace(paths, crops=paths.table.with_name("predictions_ensemble.csv"))
    written(paths, ensemble.summarise(schemas.Ensemble(seeds=[1, 2], folds=[0], set={}), params, paths))
    table = pd.read_csv(paths.crops)
    positive = np.stack(list(said.values()))[:, 60:]
    mean = positive.mean(axis=0)
    assert table["id"].tolist() == list(range(60, 120))
    assert table["label"].tolist() == np.where(labels()[60:], "b", "a").tolist()
    np.testing.assert_allclose(table["p_b"], mean, atol=1e-5)
    np.testing.assert_allclose(table["entropy"], entropy([1 - mean, mean]), atol=1e-4)
    each = entropy([1 - positive, positive]).mean(axis=0)
    np.testing.assert_allclose(table["mutual_information"], entropy([1 - mean, mean]) - each, atol=1e-4)


def test_an_ensemble_of_independent_members_gains(paths, params):
    for seed in range(6):
        place(paths, f"finetune_{seed}-0", noisy(seed, 0.35), seed=seed)
    study = schemas.Ensemble(seeds=list(range(6)), folds=[0], set={})
    table, _, headline = written(paths, ensemble.summarise(study, params, paths))
    table = table.set_index("model")
    assert headline["gain_roc_auc"] > 0.05
    assert table.loc["gain", "roc_auc_low"] > 0
    members = table.loc[[f"member, seed {seed}" for seed in range(6)]]
    for name in ensemble.SHOWN:
        assert table.loc["mean member", name] == pytest.approx(members[name].mean(), rel=1e-4)
        difference = table.loc["ensemble", name] - table.loc["mean member", name]
        assert table.loc["gain", name] == pytest.approx(difference, abs=1e-5)


def test_members_that_validated_on_other_crops_have_no_mean(paths):
    for name in ("one", "two"):
        place(paths, name, noisy(3, 0.3))
    table = pd.read_csv(paths.predictions / "two.csv")
    val = table["subset"] == "val"
    table.loc[val, "id"] = table.loc[val, "id"].to_numpy()[::-1]
    table.to_csv(paths.predictions / "two.csv", index=False)
    with pytest.raises(InputError, match="other crops or classes"):
        mean_of([read_predictions(paths.predictions / f"{name}.csv") for name in ("one", "two")])


def test_an_ensemble_over_folds_has_their_mean_and_deviation(paths, params):
    cells = {(seed, fold): f"finetune_{seed}-{fold}" for seed in (1, 2) for fold in (0, 2)}
    for (seed, fold), name in cells.items():
        place(paths, name, noisy(10 * seed + fold, 0.35))
    shift_ids(paths, [cells[seed, 2] for seed in (1, 2)], 1000)
    paths = replace(paths, crops=paths.table.with_name("predictions_ensemble.csv"))
    study = schemas.Ensemble(seeds=[1, 2], folds=[0, 2], set={})
    table, text, headline = written(paths, ensemble.summarise(study, params, paths))
    table = table.set_index("model")
    said = {key: read_predictions(paths.predictions / f"{name}.csv") for key, name in cells.items()}
    joint = [mean_of([said[1, fold], said[2, fold]]) for fold in (0, 2)]
    wanted = {
        "member, seed 1": [point_metrics(said[1, fold].test)["accuracy"] for fold in (0, 2)],
        "ensemble": [point_metrics(fold.test)["accuracy"] for fold in joint],
    }
    for model, values in wanted.items():
        assert table.loc[model, "accuracy"] == pytest.approx(np.mean(values), abs=1e-5)
        assert table.loc[model, "accuracy_sd"] == pytest.approx(np.std(values, ddof=1), abs=1e-5)
    gain = table.loc["ensemble", "roc_auc"] - table.loc["mean member", "roc_auc"]
    assert headline["gain_roc_auc"] == pytest.approx(gain, abs=1e-5)
    assert "Mean ± standard deviation of 2 test folds, 120 test crops of 10 groups" in text
    row = table.loc["gain"]
    assert f"| gain | {row['accuracy']:+.3f} ± {row['accuracy_sd']:.3f} |" in text
    crops = pd.read_csv(paths.crops)
    assert crops["fold"].tolist() == [0] * 60 + [2] * 60
    assert crops["id"].tolist() == [*range(60, 120), *range(1060, 1120)]
    positive = np.concatenate([fold.test.probabilities[:, 1] for fold in joint])
    np.testing.assert_allclose(crops["p_b"], positive, atol=1e-5)


def test_folds_of_one_test_subset_are_one_ensemble_with_a_threshold_from_all_of_them(paths, params):
    for fold in (0, 1):
        place(paths, f"finetune_1-{fold}", noisy(20 + fold, 0.35))
    study = schemas.Ensemble(seeds=[1], folds=[0, 1], set={})
    with pytest.raises(InputError, match="folds share validation crops"):
        ensemble.summarise(study, params, paths)
    shift_ids(paths, ["finetune_1-1"], 1000, "val")
    paths = replace(paths, crops=paths.table.with_name("predictions_ensemble.csv"))
    table, text, _ = written(paths, ensemble.summarise(study, params, paths))
    table = table.set_index("model")
    said = [read_predictions(paths.predictions / f"finetune_1-{fold}.csv") for fold in (0, 1)]
    labels = np.concatenate([one.val.labels for one in said])
    threshold = choose_threshold(labels, np.concatenate([one.val.probabilities[:, 1] for one in said]))
    mean = np.mean([one.test.probabilities[:, 1] for one in said], axis=0)
    assert threshold not in [one.val.threshold for one in said]
    right = (mean >= threshold) == said[0].test.labels
    assert table.loc["ensemble", "accuracy"] == pytest.approx(right.mean(), abs=1e-5)
    assert table.loc["ensemble", "accuracy_low"] < right.mean() < table.loc["ensemble", "accuracy_high"]
    for fold, one in enumerate(said):
        alone = point_metrics(one.test)["accuracy"]  # at the threshold of its own validation crops
        assert table.loc[f"member, seed 1, fold {fold}", "accuracy"] == pytest.approx(alone, abs=1e-5)
    assert "60 test crops of 10 groups, [95 % interval" in text
    assert "the ensemble's threshold is chosen on all 120 crops" in text
    crops = pd.read_csv(paths.crops)
    assert (set(crops["fold"]), len(crops)) == ({-1}, 60)
    np.testing.assert_allclose(crops["p_b"], mean, atol=1e-5)


def test_one_member_is_no_ensemble(paths, params):
    with pytest.raises(ValidationError, match="one seed and one fold are one member"):
        schemas.Ensemble(seeds=[1], folds=[0], set={})
    for fold in (0, 1):
        place(paths, f"finetune_1-{fold}", noisy(fold, 0.3))
    shift_ids(paths, ["finetune_1-1"], 1000)
    with pytest.raises(InputError, match="each fold tests other crops, so that one seed is one member"):
        ensemble.summarise(schemas.Ensemble(seeds=[1], folds=[0, 1], set={}), params, paths)


def test_a_markdown_table():
    table = pd.DataFrame({"model": ["a", "b"], "accuracy": [1, 2]})
    assert markdown_table(table) == ["| model | accuracy |", "| --- | --- |", "| a | 1 |", "| b | 2 |"]


def test_what_is_no_model_has_no_models_colour():
    drawn = [*leakage.COLOURS.values(), *ensemble.RANKINGS.values(), *variants.DRAWN.values(), *SERIES_COLOURS]
    assert not set(drawn) & {*MODEL_COLOURS.values(), OTHER_COLOUR}


# As a user runs it


def environment() -> dict[str, str]:
    """Of a user who has no settings for DVC, MLflow and Git."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_", "GIT_"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment |= dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"), "test")
    return environment | dict.fromkeys(("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"), "test@example.org")


def run(folder: Path, *command: str) -> str:
    result = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout + result.stderr


def ran(output: str) -> set[str]:
    return {line.split("'")[1].split(":")[-1] for line in output.splitlines() if line.startswith("Running stage")}


def small_study(folder: Path, name: str, **changes: object) -> Path:
    """A committed copy of the repository in which one study is small; returns the study's folder.

    changes: to the study's own keys.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    for path in filter(None, listed.split("\0")):
        if (ROOT / path).is_file() and Path(path).name != "dvc.lock":
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, folder / path)
    write_yaml_file(folder / "params.yaml", small_params())
    write_card(folder, DATASET, split={"folds": 3})
    study = folder / "studies" / name
    content = read_yaml_file(study / "params.yaml") | changes
    content["set"] |= {"dataset": DATASET, "augment": {"copies": 1}}
    for stage in {"baseline", "transfer", "finetune"} & content["set"].keys():
        content["set"][stage] |= {"epochs": 1}
    write_yaml_file(study / "params.yaml", content)
    run(folder, "git", "init", "-q")
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-qm", "small")
    return study


def kill_at_second(stage: str, folder: Path, *command: str) -> list[str]:
    """Run until the second cell of a stage starts, then kill it and all that it started; returns what ran, in order."""
    started = []
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        for line in process.stdout:
            started += ran(line)
            if sum(name.startswith(f"{stage}@") for name in started) == 2:
                break
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, started
    return started


@pytest.mark.slow
def test_a_killed_study_goes_on_with_the_cells_that_are_missing(tmp_path):
    folder = tmp_path / "lesion lab"
    study = small_study(folder, "blockwise", folds=[0], blocks=[1, 2])
    repro = ("dvc", "repro", "studies/blockwise/dvc.yaml")
    *finished, missing = kill_at_second("finetune", folder, *repro)
    done = next(name for name in finished if name.startswith("finetune@")).removeprefix("finetune@")
    assert {f"finetune@{done}", missing} == {"finetune@1-0", "finetune@2-0"}
    weights = study / "models" / done / "model.weights.h5"
    written = weights.stat().st_mtime_ns
    assert not (study / "table.csv").exists()
    again = ran(run(folder, *repro))
    assert {missing, missing.replace("finetune", "predict"), "summarise"} <= again
    assert not again & set(finished)
    assert weights.stat().st_mtime_ns == written
    table = pd.read_csv(study / "table.csv")
    assert table["blocks"].tolist() == [0, 1, 2]
    assert table[["folds", "val_accuracy_mean", "accuracy_mean"]].notna().all(axis=None)


@pytest.mark.slow
def test_a_study_runs_by_experiments_and_only_what_a_change_reaches(tmp_path):
    folder = tmp_path / "lesion lab"
    study = small_study(folder, "blockwise", folds=[0], blocks=[2])
    run(folder, "dvc", "repro", "studies/blockwise/dvc.yaml")
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-qm", "first run")
    first = pd.read_csv(study / "table.csv")
    assert first["blocks"].tolist() == [0, 2]
    assert run(folder, "git", "status", "--porcelain") == ""
    assert ran(run(folder, "dvc", "repro", "studies/blockwise/dvc.yaml")) == set()
    inside = run(study, "dvc", "exp", "run", "-n", "longer", "-S", "set.finetune.epochs=2")
    assert "finetune@2-0" in ran(inside)
    assert ran(inside) <= {"finetune@2-0", "predict@2-0", "summarise"}
    changed = "studies/blockwise/params.yaml:set.finetune.learning_rate=0.01"
    outside = run(folder, "dvc", "exp", "run", "--temp", "-n", "faster", "-S", changed, "studies/blockwise/dvc.yaml")
    assert {"finetune@2-0", "predict@2-0", "summarise"} >= ran(outside) >= {"finetune@2-0"}
    runs = sqlite3.connect(folder / "mlflow.db").execute("select name, count(*) from runs group by name")
    names = dict(runs)
    assert sum(name.startswith("blockwise-") for name in names) == 1
    assert {"longer", "faster", "transfer split.test_fold=0"} <= set(names)
    assert names["finetune split.test_fold=0 finetune.unfrozen_blocks=2"] == 3


def runs_of(folder: Path) -> dict[str, int]:
    """Names of the runs that MLflow recorded, and how often; a cell's run is nested in its study's."""
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as base:
        names = dict(base.execute("select name, count(*) from runs group by name"))
        parents = base.execute("select count(distinct value) from tags where key = 'mlflow.parentRunId'").fetchone()[0]
    return names | {"parents": parents}


@pytest.mark.slow
def test_variants_run_by_experiments_and_may_be_other_backbones(tmp_path):
    given = {"backbone": "mobilenetv2_0.35", "weights": "none"}
    backbones = {"given": {}, "other": {"model": given}, "deep": {"model": {"backbone": "vgg19", "weights": "none"}}}
    study = small_study(tmp_path, "variants", cnns={"dense": {"baseline": {"filters": []}}}, backbones=backbones)
    run(study, "dvc", "exp", "run", "-n", "others", "-S", "set.transfer.dropout=0.1")
    found = {name: json.loads((study / f"models/{name}/model.json").read_text())["architecture"] for name in backbones}
    assert [found[name]["backbone"] for name in backbones] == ["mobilenet_0.25", "mobilenetv2_0.35", "vgg19"]
    assert {found[name]["dropout"] for name in backbones} == {0.1}
    table = pd.read_csv(study / "table.csv")
    assert table["model"].tolist() == ["dense", *sorted(backbones)]
    assert table["trained_parameters"].nunique() == 4
    assert runs_of(tmp_path)["others"] == runs_of(tmp_path)["parents"] == 1


@pytest.mark.slow
def test_an_ensemble_runs_by_experiments(tmp_path):
    study = small_study(tmp_path, "ensemble", seeds=[1], folds=[0])
    refused = subprocess.run(
        ("dvc", "repro", "studies/ensemble/dvc.yaml"), cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert refused.returncode != 0
    assert "one seed and one fold are one member" in refused.stderr
    assert not (study / "data").exists(), "before the first cell"
    run(study, "dvc", "exp", "run", "-n", "two", "-S", "seeds=[1,2]")
    table = pd.read_csv(study / "table.csv")
    assert table["model"].tolist() == ["member, seed 1", "member, seed 2", "mean member", "ensemble", "gain"]
    assert table[["accuracy", "accuracy_low", "accuracy_high"]].notna().all(axis=None)
    assert (study / "figure.png").exists()
    assert runs_of(tmp_path)["two"] == runs_of(tmp_path)["parents"] == 1
