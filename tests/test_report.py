"""The report: figures come from the files, the page stands alone, absent files are said."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny import DATASET, ROOT, small_params, write_card, write_yaml_file

from lesionlab.errors import InputError
from lesionlab.files import file_digest, write_json, write_table
from lesionlab.report import tables
from lesionlab.report.__main__ import main
from lesionlab.report.content import caption, stale_stages
from lesionlab.report.tables import csv_table, figure, json_tables, number

VOID = {"meta", "img", "br", "link", "input", "hr"}
MODELS = ("baseline", "transfer", "finetune")
SECTIONS = [
    "summary", "data", "split", "training", "models", "comparison", "calibration", "uncertainty", "subgroups",
    "explanation", "detection", "studies", "card", "parameters", "record",
]  # fmt: skip


class Page(HTMLParser):
    """What a browser would see: tables by caption, pictures, links, and tags that are not closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.loads, self.links, self.sections, self.warnings = [], [], [], [], []
        self.tables, self.pictures, self.text, self.text_of = {}, [], "", {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "a":
            self.links.append(attributes["href"])
        else:
            self.loads += [attributes[name] for name in ("src", "href", "srcset", "data") if name in attributes]
        if tag == "img":
            assert attributes["alt"]
            self.pictures.append(attributes["src"])
        if tag == "section":
            self.sections.append(attributes["id"])
            self.text_of[attributes["id"]] = ""
        if tag == "table":
            self.rows = []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "p" and attributes.get("class") == "warning":
            self.warnings.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "section" in self.open:
            self.text_of[self.sections[-1]] += data
        if "caption" in self.open and "small" not in self.open:
            self.tables[data.strip()] = self.rows
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if self.open and self.open[-1] == "p" and self.warnings and not self.warnings[-1]:
            self.warnings[-1] = data


def interval(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def write_picture(path: Path, side: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(1).integers(0, 255, (side, side, 3)).astype("uint8")
    Image.fromarray(noise).save(path)


EVALUATED = {
    "subset": "test", "protocol": "group", "group_disjoint": True, "grouped_by": "card", "seed": 42, "resamples": 100,
    "crops": 57, "groups": 7, "warning": None,
    **{
        name: {
            metric: interval(0.8123 + k / 100 + j / 1000, 0.7 + k / 100, 0.9 + k / 100)
            for j, metric in enumerate(("accuracy", "balanced_accuracy", "precision", "recall", "f1", "roc_auc", "ece"))
        }
        for k, name in enumerate((*MODELS, "control_mean_colour"))
    },
    "comparison": {"finetune_minus_baseline": {"accuracy": interval(0.02, -0.01, 0.05), "mcnemar_p": 0.25}},
}  # fmt: skip
DETECTED = {
    "subset": "test", "frames": 9, "lesions": 11, "threshold": 0.61234,
    "operating": {"recall": interval(0.5432, 0.4, 0.6), "false_positives_per_frame": interval(1.25, 1.0, 1.5)},
    "froc": {"0.125": 0.1111, "1": 0.5555}, "average_precision": interval(0.4321, 0.4, 0.5),
}  # fmt: skip
EXPLAINED = {
    "subset": "test", "lesions": 11, "context": 1.0,
    "gradcam": {"layer": "out_relu", "share_inside": interval(0.4444, 0.4, 0.5), "pointing": interval(0.6, None, None),
                "times_random": interval(2.345, 2.0, 2.6)},
    "hirescam": {"layer": "out_relu", "share_inside": interval(0.3, 0.2, 0.4), "pointing": interval(0.7, 0.6, 0.8)},
}  # fmt: skip
SPLIT = {
    "protocol": "group", "proof": {"groups_in_two_subsets": 0},
    "subsets": {name: {"crops": n, "classes": {"polyp": n // 2}} for name, n in (("train", 40), ("test", 20))},
}  # fmt: skip


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A work tree with small files as the stages write them."""
    folder = tmp_path / "lesion lab"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_yaml_file(folder / "params.yaml", small_params())
    write_card(folder, DATASET, title="Frames <of> ours & others", licence="CC | BY")
    for name, content in {
        "evaluate": EVALUATED, "detect": DETECTED, "explain": EXPLAINED, "split": SPLIT,
        "crop": {"frames": 12, "crops": 60, "skipped_frames": []},
        "baseline": {"validation": {"accuracy": 0.7071, "loss": 0.5}, "kept_epoch": 3, "parameters": 1234},
    }.items():  # fmt: skip
        write_json(Path(f"metrics/{name}.json"), content)
    for name in MODELS:
        write_table(
            Path(f"plots/{name}.csv"), pd.DataFrame({"epoch": [0, 1], "val_loss": [1, 0.5], "val_accuracy": 0.7})
        )
        write_json(Path(f"models/{name}/model.json"), {"stage": name, "threshold": 0.5, "environment": {"keras": "3"}})
    comparison = pd.DataFrame(
        [
            ("finetune", "control_colour", "accuracy", 0.0212, -0.0001, 0.05, "McNemar", 0.0317, "trust the interval"),
            ("finetune", "control_colour", "roc_auc", 0.0005, -0.0009, 0.0003, "", np.nan, ""),
        ],
        columns=["model", "reference", "metric", "difference", "low", "high", "test", "p_value", "note"],
    )
    write_table(Path("plots/evaluate/comparison.csv"), comparison)
    subgroups = pd.DataFrame(
        [("baseline", "group", level, crops, metric, value, low, high, note)
         for level, crops, low, high, note in (("a", 12, 0.1, 0.9, "few"), ("b", 5, np.nan, np.nan, "one group"))
         for metric, value in (("accuracy", 0.6543), ("recall", 0.7654))],
        columns=["model", "column", "level", "crops", "metric", "value", "low", "high", "note"],
    )  # fmt: skip
    write_table(Path("plots/evaluate/subgroups.csv"), subgroups)
    write_table(Path("plots/evaluate/roc_finetune.csv"), pd.DataFrame({"threshold": [0.123456]}))
    for name in ("crops", "evaluate/roc", "evaluate/calibration", "evaluate/worst_finetune", "explain/crops"):
        write_picture(Path(f"pictures/{name}.png"))
    for name in ("froc", "best_00", "worst_01"):
        write_picture(Path(f"pictures/detections/{name}.png"))
    write_picture(Path("pictures/evaluate/new_idea.png"), side=200)
    return folder


def page() -> Page:
    main()
    return Page(Path("report/report.html").read_text())


def matrix(table: list[list[str]]) -> dict[tuple[str, str], str]:
    """Cells by name of row and column."""
    header, *rows = table
    return {(row[0], name): cell for row in rows for name, cell in zip(header[1:], row[1:], strict=True)}


def test_the_page_has_every_section_and_stands_alone(project):
    found = page()
    assert found.sections == SECTIONS
    assert set(found.links) == {f"#{name}" for name in SECTIONS}
    assert found.loads == found.pictures
    assert all(source.startswith("data:image/") for source in found.loads)
    html = Path("report/report.html").read_text()
    assert "<script" not in html
    assert "<link" not in html
    assert "@import" not in html
    assert "url(" not in html
    assert "Frames <of> ours & others" in found.text
    assert "Not a medical device" in found.text


def test_pictures_are_those_of_the_stages(project):
    """All of them, known names and new ones; large ones are packed more tightly, of the same size."""
    found = page()
    drawn = len(list(Path("pictures").rglob("*.png"))) + 1  # and the learning curves
    assert len(found.pictures) == drawn
    sizes = []
    for source in found.pictures:
        content = base64.b64decode(source.partition(";base64,")[2], validate=True)
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            assert f"data:image/{image.format.lower()};" in source
            sizes.append(image.size)
    assert sizes.count((8, 8)) == drawn - 2
    assert (200, 200) in sizes
    assert "New idea (new_idea.png)" in found.text


def test_every_figure_of_the_models_is_the_file_s(project):
    found = page()
    tables_of_models = [rows for title, rows in found.tables.items() if title.startswith("Metrics with 95 % intervals")]
    cells = {key: cell for rows in tables_of_models for key, cell in matrix(rows).items()}
    evaluated = json.loads(Path("metrics/evaluate.json").read_text())
    expected = {
        (name.replace("_", " "), tables.words(metric)): f"{part['value']:.3f} [{part['low']:.3f}, {part['high']:.3f}]"
        for name in (*MODELS, "control_mean_colour")
        for metric, part in evaluated[name].items()
    }
    assert cells == expected
    short = matrix(found.tables["Models in short"])
    assert short["finetune", "ROC AUC"] == cells["finetune", "ROC AUC"]


def test_figures_of_the_other_stages_are_the_files_too(project):
    found = page()
    heat = matrix(found.tables["Heat and lesions"])
    assert heat["gradcam", "share inside"] == "0.444 [0.400, 0.500]"
    assert "heat 0.444 [0.400, 0.500] lies inside the lesion, 2.345 [2.000, 2.600] times as much" in found.text
    assert heat["gradcam", "pointing"] == "0.600"  # without an interval
    assert dict(found.tables["Detection: sensitivity at false positives a frame (FROC)"][0:]) == {
        "0.125": "0.111", "1": "0.555",
    }  # fmt: skip
    assert ["average precision", "0.432 [0.400, 0.500]"] in found.tables["Detection"]
    assert matrix(found.tables["Split: subsets"])["train", "classes polyp"] == "20"
    validation = matrix(found.tables["Figures on validation crops, which chose the epoch"])
    assert validation["baseline", "validation accuracy"] == "0.707"
    compared = found.tables["Paired differences on the same test crops"]
    assert compared == [
        ["model", "reference", "metric", "difference", "test", "p value"],
        ["finetune", "control colour", "accuracy", "0.021 [0.000, 0.050]", "McNemar", "0.032"],
        ["finetune", "control colour", "ROC AUC", "5.0e-04 [-9.0e-04, 3.0e-04]", "", ""],
    ]
    header, *rows = found.tables["Subgroups"]
    assert header == ["model", "column", "level", "crops", "note", "accuracy", "recall"]
    assert rows == [
        ["baseline", "group", "a", "12", "few", "0.654 [0.100, 0.900]", "0.765 [0.100, 0.900]"],
        ["baseline", "group", "b", "5", "one group", "0.654", "0.765"],
    ]
    assert "note" not in found.tables["Paired differences on the same test crops"][0]
    assert "(plots/evaluate/comparison.csv; trust the interval)" in found.text
    assert "0.123" not in found.text  # points of curves are drawn, not listed
    assert ["evaluate.resamples", "100"] in found.tables["params.yaml"]


def test_markdown_says_the_same_and_links_the_pictures_where_they_lie(project):
    found, text = page(), Path("report/report.md").read_text()
    for rows in found.tables.values():
        for row in rows:
            assert "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" in text
    targets = re.findall(r"^!\[[^\]]+\]\(([^)]+)\)$", text, re.MULTILINE)
    assert len(targets) == len(found.pictures)
    assert all((Path("report") / target).is_file() for target in targets)
    for line in text.splitlines():
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line)
            assert len(cells) >= 4
    assert re.findall(r"^## (.*)$", text, re.MULTILINE)[-1] == "Hashes and versions"


def test_the_same_bytes_when_made_again(project):
    def digests() -> dict[str, str]:
        main()
        return {path.name: file_digest(path) for path in Path("report").rglob("*") if path.is_file()}

    assert digests() == digests()


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("metrics", {"models": "metrics/evaluate.json is absent"}),
        ("plots", {"comparison": "The evaluate stage wrote nothing about comparison."}),
        (
            "pictures",
            {
                "data": "pictures/crops.png is absent or not readable: run dvc repro crop.",
                **dict.fromkeys(
                    ("models", "calibration", "uncertainty", "subgroups"),
                    "pictures/evaluate is absent or not readable: run dvc repro evaluate.",
                ),
                "explanation": "pictures/explain is absent or not readable: run dvc repro explain.",
                "detection": "pictures/detections is absent or not readable: run dvc repro detect.",
            },
        ),
        ("models", {"card": "models/<model>/model.json is absent"}),
        ("datasets", {"data": "card (datasets/<dataset>.yaml) is absent"}),
    ],
)
def test_a_folder_that_is_absent_is_said_and_stops_nothing(project, folder, said):
    shutil.rmtree(folder)
    found = page()
    assert found.sections == SECTIONS
    for section, line in said.items():
        assert line in found.text_of[section]
    assert "absent" not in found.text_of["comparison"]
    of_stages, learning = folder != "pictures", folder != "plots"
    assert len(found.pictures) == len(list(Path("pictures").rglob("*.png"))) * of_stages + learning


def test_a_folder_in_which_a_stage_had_nothing_to_draw_is_not_called_absent(project):
    """Of whole images nothing is detected; the crops' sheet is missed beside other pictures."""
    shutil.rmtree("pictures/detections")
    Path("pictures/detections").mkdir()
    Path("pictures/crops.png").unlink()
    found = page()
    assert "absent" not in found.text_of["detection"]
    assert "pictures/crops.png is absent" in found.text_of["data"]


def test_without_any_stage_each_section_is_a_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"params\.yaml: not found in .*; run from the repository's root"):
        main()
    write_yaml_file(tmp_path / "params.yaml", small_params())
    found = page()
    assert found.sections == SECTIONS
    assert found.pictures == []
    for stage in ("crop", "split", "evaluate", "explain", "detect"):
        assert f"metrics/{stage}.json is absent or not readable: run dvc repro {stage}." in found.text
    Path("metrics").mkdir()
    Path("metrics/detect.json").write_text("{")
    assert "metrics/detect.json is absent or not readable" in page().text


def test_a_table_without_rows_is_nothing(project):
    path = Path("plots/evaluate/subgroups.csv")
    write_table(path, pd.read_csv(path).head(0))
    found = page()
    assert "Subgroups" not in found.tables
    assert "The evaluate stage wrote nothing about subgroups." in found.text


def test_shared_groups_and_a_warning_of_the_evaluation_stand_out(project):
    assert page().warnings == []
    write_json(Path("metrics/evaluate.json"), EVALUATED | {"group_disjoint": False, "warning": "Colour does as well."})
    write_json(Path("metrics/split.json"), SPLIT | {"proof": {"groups_in_two_subsets": 3}})
    warnings = page().warnings
    assert any("NOT group-disjoint" in text for text in warnings)
    assert "Colour does as well." in warnings
    assert "Shared: groups in two subsets." in warnings
    proof = {"groups_in_two_subsets": 0, "alike_pairs_across_subsets": 2, "highest_correlation_train_test": 0.9951}
    write_json(Path("metrics/split.json"), SPLIT | {"proof": proof})
    assert "Shared: alike pairs across subsets." in page().warnings
    assert "Of frames: 2 pairs of thumbnails across subsets correlate at 0.99 or more" in page().text
    write_json(Path("metrics/split.json"), SPLIT | {"proof": dict.fromkeys(proof) | {"groups_in_two_subsets": 0}})
    found = page()
    assert "Of frames: thumbnails not compared: more than 100,000,000 pairs of frames across subsets." in found.text
    assert ["alike pairs across subsets", "–"] in found.tables["Split: proof"]


def test_figures_of_other_parameters_or_an_edited_file_are_told(project):
    params = small_params()
    recorded = {"evaluate.resamples": params["evaluate"]["resamples"], "crop": {"jitter": params["crop"]["jitter"]}}
    out = {"path": "metrics/evaluate.json", "md5": file_digest(Path("metrics/evaluate.json"), "md5"), "size": 12345}
    stage = {"params": {"params.yaml": recorded}, "outs": [out]}
    write_yaml_file(Path("dvc.lock"), {"schema": "2.0", "stages": {"evaluate": stage}})
    assert stale_stages() == []
    assert ["evaluate", "metrics/evaluate.json", out["md5"], "12\u2009345"] in page().tables["Outputs"]
    recorded["crop"]["jitter"] = 0.25
    write_yaml_file(Path("dvc.lock"), {"schema": "2.0", "stages": {"evaluate": stage}})
    write_json(Path("metrics/evaluate.json"), EVALUATED | {"crops": 58})
    assert page().warnings == [
        "Stage evaluate ran with other parameters (crop.jitter): run dvc repro.",
        "metrics/evaluate.json is not what stage evaluate recorded in dvc.lock: run dvc repro.",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.9621, "0.962"), (1.0, "1.000"), (0.00012, "1.2e-04"), (1500.0, "1500"), (7, "7"), (None, "–"), (True, "yes"),
     (float("nan"), "–"), ([], "none"), (["a", "b"], "a, b"), (-0.0101, "-0.010")],
)  # fmt: skip
def test_figures_as_text(value, text):
    assert number(value) == text


def test_a_long_table_says_how_much_it_leaves_out(tmp_path):
    write_table(tmp_path / "ids.csv", pd.DataFrame({"id": range(100), "score": 0.5}))
    table = csv_table(tmp_path / "ids.csv")
    assert len(table.rows) == tables.ROWS_LONG
    assert table.note == f"{tables.ROWS_LONG} of 100 rows"
    assert table.rows[1] == ["1", "0.500"]


def test_nothing_of_a_metrics_file_is_left_out():
    content = {
        "a": 1,
        "b": {"c": 0.5, "d": {"e": 2}},
        "f": interval(0.3, 0.2, 0.4),
        "g": {"x": {"n": 1}, "y": {"n": 5}},
    }
    cells = {cell for table in json_tables(content, "file") for row in table.rows for cell in row[1:]}
    assert cells == {"1", "0.500", "2", figure(content["f"]), "5"}


def test_captions_of_known_and_unknown_names():
    assert caption(Path("pictures/evaluate/worst_finetune.png")) == "The surest mistakes of finetune"
    assert caption(Path("pictures/detections/worst_07.png")).startswith("One of the worst test frames")
    assert caption(Path("pictures/evaluate/subgroups_group.png")) == "Subgroups by group"
    assert caption(Path("pictures/evaluate/roc_of_all.png")) == "Roc of all"


def test_the_command_is_quick_to_help(project):
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lesionlab.report", "--help"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 0
    assert "report.html" in ended.stdout
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in ended.stderr.splitlines()}
    assert not {"keras", "matplotlib", "pandas", "jinja2"} & loaded
