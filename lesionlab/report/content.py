"""The sections of the report, each from the files that a stage wrote; what is absent is said in one line."""

import hashlib
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from ruamel.yaml import YAML

from lesionlab.data.cards import Card, read_card
from lesionlab.data.thumbnails import likeness
from lesionlab.errors import InputError
from lesionlab.evaluation.table import kept_apart
from lesionlab.files import read_table
from lesionlab.pictures import MODEL_COLOURS, model_colour, save_figure
from lesionlab.report.tables import (
    POINTS,
    Table,
    csv_table,
    figure,
    is_figure,
    json_tables,
    matrices,
    read_metrics,
    words,
)

PACKAGES = ("dvc", "keras", "tensorflow", "numpy", "scipy", "scikit-learn", "pandas", "pillow", "h5py", "matplotlib")
CAPTIONS = {
    "crops": "Crops of each class, drawn at random",
    "learning": "Loss on validation crops after each epoch",
    "roc": "ROC on test crops, area with 95 % interval",
    "pr": "Precision and recall on test crops",
    "confusion": "Test crops by actual and predicted class",
    "calibration": "Reliability: predicted probability against observed frequency, before and after scaling",
    "reliability": "Reliability: predicted probability against observed frequency",
    "risk_coverage": "Error of the test crops that remain when the least certain are handed to a person",
    "froc": "FROC on test frames: sensitivity against false positives a frame",
    "agreement": "Heat and lesion masks: the trained network against both controls",
    "frames": "Whole test frames of crops that the network got right, got wrong and was least sure of, and their heat",
}  # fmt: skip
KINDS = {"worst": "The surest mistakes of", "subgroups": "Subgroups by", "confusion": "Test crops by class:"}
SECTION_OF_PICTURE = {
    "calibration": r"calibration|reliability",
    "uncertainty": r"risk_coverage|uncertainty|entropy|mutual",
    "subgroups": r"subgroup",
    "comparison": r"comparison|difference",
}

KEPT_APART = {
    "card": "Groups (patients, sequences, source tiles: what the card names) are kept apart by the split.",
    "runs": (
        "Runs of like images are kept apart by the split; nobody says whose they are, and a patient can have several."
    ),
    "near-duplicates": (
        "Pictures that look alike are kept apart by the split; nobody says whose they are, so patients may not be."
    ),
}


@dataclass(frozen=True)
class Text:
    """A paragraph. warning: set off from the rest."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture file with what it shows."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Section:
    """A titled part of the page. anchor: its name in links."""

    anchor: str
    title: str
    parts: list[Text | Table | Picture]


def build_sections(out: Path) -> list[Section]:
    """All sections in order, from the working directory. out: folder for pictures that only the report draws."""
    params, card = _params(), _card()
    evaluated = read_metrics(Path("metrics/evaluate.json"))
    return [
        Section("summary", "Summary", _summary(evaluated, card)),
        Section("data", "Data set", _data_set(card)),
        Section("split", "Split", _split()),
        Section("training", "Training", _training(out)),
        Section("models", "Models on the test subset", _models(evaluated)),
        Section("comparison", "Comparison", _evaluation_part("comparison", drawn=False)),
        Section("calibration", "Calibration", _evaluation_part("calibration")),
        Section("uncertainty", "Uncertainty", _evaluation_part("uncertainty")),
        Section("subgroups", "Subgroups", _evaluation_part("subgroups")),
        Section("explanation", "Explanation", _explanation()),
        Section("detection", "Detection", _detection()),
        Section("studies", "Studies", _studies()),
        Section("card", "Model card", _model_card(card, evaluated)),
        Section("parameters", "Parameters", _parameters(params)),
        Section("record", "Hashes and versions", _record()),
    ]


def _absent(path: str, stage: str) -> Text:
    return Text(f"{path} is absent or not readable: run dvc repro {stage}.")


def _params() -> dict | None:
    try:
        return YAML(typ="safe", pure=True).load(Path("params.yaml").read_text())
    except (OSError, ValueError):
        return None


def _card() -> Card | None:
    try:
        return read_card(_params()["dataset"])
    except (InputError, TypeError, KeyError):
        return None


def _summary(evaluated: dict | None, card: Card | None) -> list:
    parts = [Text("Not a medical device. Figures are for research and teaching; they are no ground for any treatment.")]
    parts += [Text(text, warning=True) for text in stale_stages()]
    if evaluated is None:
        return [*parts, _absent("metrics/evaluate.json", "evaluate")]
    parts.append(
        Text(
            f"{card.title if card else 'Data set unknown'}. {evaluated['crops']} test crops of {evaluated['groups']} "
            f"groups; protocol {evaluated['protocol']}: {kept_apart(evaluated)}; seed {evaluated['seed']}. In "
            "brackets: 95 % intervals, bootstrap over groups.",
            warning=not evaluated["group_disjoint"],
        )
    )
    if evaluated.get("warning"):
        parts.append(Text(str(evaluated["warning"]), warning=True))
    headlines = ("accuracy", "roc_auc")
    rows = {name: {key: part[key] for key in headlines if key in part} for name, part in models_of(evaluated).items()}
    parts += matrices(rows, "metrics/evaluate.json", "Models in short")
    detected = read_metrics(Path("metrics/detect.json")) or {}
    operating = detected.get("operating", {})
    if {"recall", "false_positives_per_frame"} <= operating.keys():
        parts.append(
            Text(
                f"Detection on {detected['frames']} test frames: recall {figure(operating['recall'])} at "
                f"{figure(operating['false_positives_per_frame'])} false positives a frame."
            )
        )
    heat = (read_metrics(Path("metrics/explain.json")) or {}).get("gradcam", {})
    if {"share_inside", "times_random"} <= heat.keys():
        parts.append(
            Text(
                f"Of Grad-CAM's heat {figure(heat['share_inside'])} lies inside the lesion, "
                f"{figure(heat['times_random'])} times as much as of a random map's."
            )
        )
    return parts


def models_of(evaluated: dict) -> dict[str, dict]:
    """The parts of metrics/evaluate.json that are models: those with an accuracy."""
    return {
        name: part for name, part in evaluated.items() if isinstance(part, dict) and is_figure(part.get("accuracy"))
    }


def _data_set(card: Card | None) -> list:
    parts = []
    if card is None:
        parts.append(Text("The data set's card (datasets/<dataset>.yaml) is absent or not readable."))
    else:
        rows = {
            "title": card.title, "homepage": card.homepage, "licence": card.licence, "citation": card.citation,
            "classes": card.classes, "groups": card.groups if isinstance(card.groups, str) else _rule(card),
        }  # fmt: skip
        source = f"datasets/{card.name}.yaml"
        parts += [Table("Card", ["", ""], [[words(k), figure(v)] for k, v in rows.items()], source)]
        parts += [Text(note) for note in card.notes]
    cropped = read_metrics(Path("metrics/crop.json"))
    parts += json_tables(cropped, "metrics/crop.json", "Crops") if cropped else [_absent("metrics/crop.json", "crop")]
    sheet = Path("pictures/crops.png")
    return [*parts, *_pictures(sheet.parent, "crop", needed=sheet, recursive=False)]


def _rule(card: Card) -> str:
    """The group rule as the card has it."""
    rule = card.groups.model_dump(exclude_none=True)
    return "; ".join(
        f"{key}: {value if isinstance(value, str) else f'{len(value)} entries'}" for key, value in rule.items()
    )


def _split() -> list:
    split = read_metrics(Path("metrics/split.json"))
    if split is None:
        return [_absent("metrics/split.json", "split")]
    proof = split.get("proof", {})
    shared = [words(name) for name, count in proof.items() if count and isinstance(count, int)]
    text = "Proof: nothing counted below is shared between subsets." if not shared else f"Shared: {', '.join(shared)}."
    alike = [Text(f"Of frames: {likeness(proof)}.")] if "alike_pairs_across_subsets" in proof else []
    return [Text(text, warning=bool(shared)), *alike, *json_tables(split, "metrics/split.json", "Split")]


def _training(out: Path) -> list:
    histories = {}
    for path in sorted(Path("plots").glob("*.csv")):
        table = read_table(path, ())
        if {"epoch", "val_loss"} <= set(table.columns) and len(table):
            histories[path.stem] = table
    if not histories:
        return [Text("No learning curve in plots/: run dvc repro finetune.")]
    order = _in_order(histories)
    picture = out / "pictures" / "learning.png"
    draw_learning(picture, {name: histories[name] for name in order})
    parts = [Picture(picture, CAPTIONS["learning"])]
    found = {name: read_metrics(Path(f"metrics/{name}.json")) for name in order}
    rows = {
        name: {**{f"validation_{k}": v for k, v in content.get("validation", {}).items()}}
        | {key: value for key, value in content.items() if "parameters" in key or "epoch" in key}
        for name, content in found.items()
        if content
    }
    return [*parts, *matrices(rows, "metrics/<model>.json", "Figures on validation crops, which chose the epoch")]


def _in_order(models: Iterable[str]) -> list[str]:
    """Models as the pipeline makes them, then others."""
    known = list(MODEL_COLOURS)
    return sorted(models, key=lambda name: (known.index(name) if name in known else len(known), name))


def draw_learning(path: Path, histories: dict[str, pd.DataFrame]) -> None:
    """Validation loss and accuracy of each model, epoch by epoch, in the model's colour."""
    figure_, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axis, (column, label) in zip(
        axes, {"val_loss": "validation loss", "val_accuracy": "validation accuracy"}.items(), strict=True
    ):
        for name, table in histories.items():
            if column in table:
                axis.plot(
                    table["epoch"], table[column], color=model_colour(name), label=name, marker=".", linewidth=1.5
                )
        axis.set(xlabel="epoch", ylabel=label)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    save_figure(figure_, path)


def _models(evaluated: dict | None) -> list:
    other = re.compile("|".join(SECTION_OF_PICTURE.values()))
    pictures = _pictures(Path("pictures/evaluate"), "evaluate", skip=other)
    if evaluated is None:
        return [_absent("metrics/evaluate.json", "evaluate"), *pictures]
    source = "metrics/evaluate.json"
    parts = matrices(models_of(evaluated), source, "Metrics with 95 % intervals")
    own = {*models_of(evaluated), "comparison", "warning"}
    rest = {key: value for key, value in evaluated.items() if key not in own}
    parts += json_tables(rest, source, "How they were measured")
    parts += [
        csv_table(path)
        for path in sorted(Path("plots/evaluate").glob("*.csv"))
        if not POINTS.match(path.stem) and not other.search(path.stem) and path.stem != "figures"
    ]
    return [*parts, *pictures]


def _evaluation_part(name: str, *, drawn: bool = True) -> list:
    """A section of what the evaluate stage wrote as CSV and pictures under names that belong to it.

    drawn: the stage draws pictures of it, so that their absence is said.
    """
    wanted = re.compile(SECTION_OF_PICTURE[name])
    files = [
        path
        for path in sorted(Path("plots/evaluate").glob("*.csv"))
        if wanted.search(path.stem) and not POINTS.match(path.stem)
    ]
    folder = Path("pictures/evaluate")
    parts = [table for table in map(csv_table, files) if table.rows]
    parts += _pictures(folder, "evaluate", only=wanted) if drawn or folder.is_dir() else []
    return parts or [Text(f"The evaluate stage wrote nothing about {name}.")]


def _explanation() -> list:
    explained = read_metrics(Path("metrics/explain.json"))
    pictures = _pictures(Path("pictures/explain"), "explain")
    if explained is None:
        return [_absent("metrics/explain.json", "explain"), *pictures]
    parts = [
        Text(
            "Share of heat inside the lesion and pointing game (hottest pixel in the lesion), on windows re-cut around "
            "test lesions with a wide margin (context, in parts of the lesion's longer side), or on whole images where "
            "the class is the image's. Two controls: a random map of the same resolution, whose share is about the "
            "part that is lesion, and the same network with its weights drawn again; similarity is the rank "
            "correlation with the maps of the latter, near 0 where a map depends on what was learnt. A map shows where "
            "the network found evidence, not that it reasons as a person does."
        )
    ]
    methods = {key: value for key, value in explained.items() if isinstance(value, dict)}
    parts += json_tables(explained, "metrics/explain.json", "How it was measured", skip=tuple(methods))
    parts += matrices(methods, "metrics/explain.json", "Heat and lesions")
    return [*parts, *pictures]


def _detection() -> list:
    detected = read_metrics(Path("metrics/detect.json"))
    pictures = _pictures(Path("pictures/detections"), "detect")
    if detected is None:
        return [_absent("metrics/detect.json", "detect"), *pictures]
    return [*json_tables(detected, "metrics/detect.json", "Detection"), *pictures]


def _studies() -> list:
    files = [path for path in sorted(Path("studies").glob("*/*.csv")) if not POINTS.match(path.stem)]
    tables = [csv_table(path) for path in files]
    named = [
        Table(f"{Path(table.source).parent.name}: {table.title}", table.header, table.rows, table.source, table.note)
        for table in tables
    ]
    return named or [Text("No study has written a table (studies/<name>/*.csv).")]


def _model_card(card: Card | None, evaluated: dict | None) -> list:
    groups = f"{evaluated['groups']} groups of one data set" if evaluated else "one data set"
    if evaluated is None or not evaluated["group_disjoint"]:
        apart = "Groups are not known to be kept apart: the figures may rest on pictures that resemble training ones."
    else:
        apart = KEPT_APART[evaluated["grouped_by"]]
    parts = [
        Text(
            "Intended use: research on methods, teaching, and the comparison of networks under one protocol. Not a "
            "medical device: not for diagnosis, screening, triage or treatment, and approved by no authority."
        ),
        Text(
            f"Limits: measured on {groups}. Other centres, devices, populations and ways of taking pictures were not "
            "seen, and figures there may be much lower. Crops are cut around known lesions and beside them, so their "
            "class balance is not that of patients: precision does not carry over to practice."
        ),
        Text(apart, warning=apart is not KEPT_APART["card"]),
        Text(
            "Thresholds, temperatures, epochs and explanation layers were chosen on validation data, none on test data."
        ),
    ]
    if card is not None:
        parts.append(Text(f"Licence of the data: {card.licence}. Citation: {card.citation}."))
    described = {
        path.parent.name: _leaves(read_metrics(path) or {}) for path in sorted(Path("models").glob("*/model.json"))
    }
    described = {name: described[name] for name in _in_order(described) if described[name]}
    if not described:
        return [*parts, _absent("models/<model>/model.json", "finetune")]
    keys = dict.fromkeys(key for model in described.values() for key in model if not key.startswith("environment."))
    rows = [
        [words(key.removeprefix("architecture.")), *(figure(model.get(key)) for model in described.values())]
        for key in keys
    ]
    return [*parts, Table("Models", ["", *described], rows, "models/<model>/model.json")]


def _parameters(params: dict | None) -> list:
    if params is None:
        return [Text("params.yaml is absent or not readable.")]
    flat = _leaves(params)
    return [
        Table("params.yaml", ["key", "value"], [[key, _literal(value)] for key, value in flat.items()], "params.yaml")
    ]


def _leaves(content: dict, prefix: str = "") -> dict:
    leaves = {}
    for key, value in content.items():
        if isinstance(value, dict):
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _literal(value: object) -> str:
    """A parameter as it is written, not rounded."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{', '.join(map(_literal, value))}]" if isinstance(value, list) else str(value)


def _lock() -> dict:
    try:
        return YAML(typ="safe", pure=True).load(Path("dvc.lock").read_text())["stages"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def stale_stages() -> list[str]:
    """A line for each stage whose recorded parameters or metrics file are not those of this work tree."""
    current, lines = _leaves(_params() or {}), []
    for stage, entry in _lock().items():
        recorded = _leaves(entry.get("params", {}).get("params.yaml", {}))
        changed = [key for key, value in recorded.items() if key in current and current[key] != value]
        changed += [key for key in recorded if key not in current]
        if changed:
            lines.append(f"Stage {stage} ran with other parameters ({', '.join(sorted(changed))}): run dvc repro.")
        for out in entry.get("outs", []):
            path = Path(out["path"])
            if path.suffix == ".json" and path.is_file() and _md5(path) != out.get("md5"):
                lines.append(f"{path.as_posix()} is not what stage {stage} recorded in dvc.lock: run dvc repro.")
    return lines


def _record() -> list:
    parts = []
    rows = [
        [stage, out["path"], str(out.get("md5", "")), number_of_bytes(out.get("size"))]
        for stage, entry in _lock().items()
        for out in entry.get("outs", [])
    ]
    if rows:
        parts.append(Table("Outputs", ["stage", "output", "MD5", "bytes"], rows, "dvc.lock"))
    else:
        parts.append(Text("dvc.lock is absent or not readable: no stage has been recorded."))
    installed = [["Python", platform.python_version()]]
    for name in PACKAGES:
        try:
            installed.append([name, version(name)])
        except PackageNotFoundError:
            installed.append([name, "not installed"])
    parts.append(Table("Installed here", ["package", "version"], installed, "the environment of this report"))
    for path in sorted(Path("models").glob("*/model.json")):
        environment = (read_metrics(path) or {}).get("environment")
        if environment:
            trained = [[key, str(value)] for key, value in environment.items()]
            parts.append(Table(f"Model {path.parent.name} was trained with", ["", ""], trained, path.as_posix()))
            break
    commit = _git("rev-parse", "HEAD")
    if commit:
        changed = " with changes that are not committed" if _git("status", "--porcelain", "-uno") else ""
        parts.append(Text(f"Git commit {commit}{changed}."))
    return parts


def number_of_bytes(size: int | None) -> str:
    """With thin spaces between thousands."""
    return "" if size is None else f"{size:,}".replace(",", "\u2009")


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _pictures(
    folder: Path,
    stage: str,
    *,
    needed: Path | None = None,
    recursive: bool = True,
    only: re.Pattern | None = None,
    skip: re.Pattern | None = None,
) -> list[Picture | Text]:
    """The pictures below a folder with their captions; first a line where `needed` (else the folder) is absent.

    A folder without a picture is nothing absent: of whole images no lesion is detected.
    """
    needed = needed or folder
    absent = [] if needed.exists() else [_absent(needed.as_posix(), stage)]
    found = folder.rglob("*.png") if recursive else folder.glob("*.png")
    numbered = re.compile(r"_\d+$")  # one of several alike: they come last
    return absent + [
        Picture(path, caption(path))
        for path in sorted(found, key=lambda path: (bool(numbered.search(path.stem)), path.as_posix()))
        if (only is None or only.search(path.stem)) and (skip is None or not skip.search(path.stem))
    ]


def caption(path: Path) -> str:
    """What a picture shows, by its name; of an unknown name, the name's words."""
    if path.parent.name == "explain" and path.stem == "crops":
        return "Test crops that the network got right, got wrong and was least sure of, and their heat"
    if path.stem in CAPTIONS:
        return CAPTIONS[path.stem]
    kind, _, rest = path.stem.partition("_")
    if path.parent.name == "detections" and rest.isdigit():
        return (
            f"One of the {kind} test frames: lesion (blue outline), found (solid), false positive (dashed); right: heat"
        )
    if kind in KINDS and rest:
        return f"{KINDS[kind]} {words(rest)}"
    return words(path.stem).capitalize()
