"""Tables of the report: figures with their intervals from JSON and CSV, as text."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lesionlab.files import read_table

COLUMNS_WIDE = 6  # of a matrix of figures with intervals, beside the row's name
ROWS_LONG = 48  # of a table; the file holds the others
# Files of points, which pictures show.
POINTS = re.compile(r"^(roc|pr|confusion|predictions|reliability|risk_coverage|froc)(_|$)")
LABELS = {"model", "reference", "metric", "measure", "column"}  # columns that hold names of the program
TITLES = {
    "figures": "All metrics",
    "comparison": "Paired differences on the same test crops",
    "calibration": "Calibration",
    "uncertainty": "Uncertainty",
    "subgroups": "Subgroups",
    "by_size": "By lesion size",
    "froc": "Sensitivity at false positives a frame (FROC)",
    "operating": "At the threshold chosen on validation frames",
}


@dataclass(frozen=True)
class Table:
    """A table of texts. source: the file that holds its figures; note: what a reader must know of it."""

    title: str
    header: list[str]
    rows: list[list[str]]
    source: str
    note: str = ""


def words(key: str) -> str:
    """A key as a reader wants it: `roc_auc` is 'ROC AUC'."""
    text = key.replace("_", " ")
    for name in ("auc", "roc", "pr", "froc", "ece", "aurc", "iou", "f1", "sha256", "md5"):
        text = re.sub(rf"\b{name}\b", name.upper(), text)
    return text


def number(value: object) -> str:
    """A figure as text: three decimals, or two digits where it is smaller; what is not known is a dash."""
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if value.is_integer() and abs(value) >= 10:
            return f"{value:.0f}"
        return f"{value:.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:.1e}"
    if isinstance(value, list | tuple):
        return ", ".join(map(number, value)) or "none"
    return str(value)


def is_figure(value: object) -> bool:
    """Whether a part of a metrics file is a figure with its interval."""
    return isinstance(value, dict) and {"value", "low", "high"} <= value.keys()


def figure(value: object) -> str:
    """A value, with its 95 % interval where it has one: '0.962 [0.931, 0.986]'."""
    if not is_figure(value):
        return number(value)
    parts = [value[name] for name in ("value", "low", "high")]
    if parts[1] is None or pd.isna(parts[1]):
        return number(parts[0])
    if max(map(abs, parts)) < 0.001:
        texts = [number(part) for part in parts]
    else:  # as many decimals on both sides of the interval
        texts = [f"{part:.3f}" if round(part, 3) else "0.000" for part in parts]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"


def json_tables(content: dict, source: str, title: str = "", skip: tuple[str, ...] = ()) -> list[Table]:
    """Everything in a metrics file: its plain values, then a table for each nested part.

    A part whose members are parts themselves (models, subsets, methods) is one matrix, a row a member.
    """
    plain = {key: value for key, value in content.items() if not isinstance(value, dict) or is_figure(value)}
    nested = {key: value for key, value in content.items() if key not in plain and key not in skip}
    plain = {key: value for key, value in plain.items() if key not in skip}
    tables = [Table(title, ["", ""], [[words(k), figure(v)] for k, v in plain.items()], source)] if plain else []
    alike = {key: value for key, value in nested.items() if any(map(is_figure, value.values()))}
    if len(alike) > 1:
        tables += matrices(alike, source, title)
        nested = {key: value for key, value in nested.items() if key not in alike}
    for key, value in nested.items():
        name = TITLES.get(key, words(key))
        below = f"{title}: {name[0].lower()}{name[1:]}" if title else name.capitalize()
        members = [part for part in value.values() if isinstance(part, dict) and not is_figure(part)]
        if value and len(members) == len(value):
            tables += matrices({name: _flat(part) for name, part in value.items()}, source, below)
        elif value:
            tables.append(Table(below, ["", ""], [[words(k), figure(v)] for k, v in _flat(value).items()], source))
    return tables


def matrices(members: dict[str, dict], source: str, title: str) -> list[Table]:
    """A row a member and a column a key, as several tables where there are many keys."""
    keys = list(dict.fromkeys(key for part in members.values() for key in part))
    tables = []
    wide = math.ceil(len(keys) / math.ceil(len(keys) / COLUMNS_WIDE)) if keys else 1
    for start in range(0, len(keys), wide):
        chosen = keys[start : start + wide]
        rows = [
            [words(name), *(figure(part[key]) if key in part else "" for key in chosen)]
            for name, part in members.items()
            if any(key in part for key in chosen)
        ]
        tables.append(Table(title if start == 0 else f"{title} (continued)", ["", *map(words, chosen)], rows, source))
    return tables


def _flat(content: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in content.items():
        if isinstance(value, dict) and not is_figure(value):
            flat |= _flat(value, f"{prefix}{key} ")
        else:
            flat[prefix + key] = value
    return flat


def csv_table(path: Path) -> Table:
    """A CSV file as a table: value, low and high in one column, and metrics of one row side by side."""
    table = read_table(path, ())
    for name in table.columns:
        # Blanks make a column of figures text.
        converted = pd.to_numeric(table[name], errors="coerce").convert_dtypes()
        if (converted.notna() | (table[name].astype(str) == "")).all() and converted.notna().any():
            table[name] = converted
    title = TITLES.get(path.stem, words(path.stem).capitalize())
    for name in ("value", "difference"):
        if {name, "low", "high"} <= set(table.columns):
            parts = zip(table[name], table["low"], table["high"], strict=True)
            table[name] = [figure({"value": value, "low": low, "high": high}) for value, low, high in parts]
            table = table.drop(columns=["low", "high"])
    table = table.astype("object").map(_cell)
    for name in LABELS & set(table.columns):
        table[name] = table[name].map(words)
    notes = [note for note in table.get("note", pd.Series(dtype=object)).unique() if note]
    if len(notes) == 1 and len(table) > 1:
        table = table.drop(columns="note")
    if {"metric", "value"} <= set(table.columns) and len(table):
        keys = [name for name in table.columns if name not in ("metric", "value")]
        wide = table.pivot_table(index=keys, columns="metric", values="value", aggfunc="first", sort=False)
        table = wide[list(dict.fromkeys(table["metric"]))].reset_index()
    shown = table.head(ROWS_LONG)
    left_out = [f"{len(shown)} of {len(table)} rows"] if len(shown) < len(table) else []
    note = "; ".join([*left_out, *(notes if "note" not in table else [])])
    rows = shown.fillna("").to_numpy().tolist()
    return Table(title, [words(str(name)) for name in table.columns], rows, path.as_posix(), note)


def _cell(value: object) -> str:
    if value is pd.NA or value == "":
        return ""
    return number(value.item() if hasattr(value, "item") else value)


def read_metrics(path: Path) -> dict | None:
    """A metrics file; None where it is absent or not whole, which the report then says."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
