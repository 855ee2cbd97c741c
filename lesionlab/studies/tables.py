"""Tables and pictures that studies share."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from lesionlab.evaluation.table import kept_apart
from lesionlab.files import read_json, whole_file, write_json, write_table
from lesionlab.params import Params
from lesionlab.pictures import save_figure
from lesionlab.studies.predictions import Predictions


@dataclass(frozen=True)
class Paths:
    """The folders that a summary reads (metrics and predictions of the cells) and the files that it writes.

    crops: for studies that say something of each test crop.
    """

    metrics: Path
    predictions: Path
    table: Path
    markdown: Path
    figure: Path
    headline: Path
    crops: Path | None = None


@dataclass(frozen=True)
class Summary:
    """What a study found.

    table: numbers. shown: the same for readers, texts. notes: sentences below the table. headline: the few figures by
    which experiments are compared. crops: a row a test crop, where a study says something of each.
    """

    title: str
    table: pd.DataFrame
    shown: pd.DataFrame
    notes: list[str]
    figure: plt.Figure
    headline: dict[str, float | int | str]
    crops: pd.DataFrame | None = None


def write_summary(paths: Paths, summary: Summary) -> str:
    """Write everything; returns the Markdown."""
    lines = [f"# {summary.title}", "", *markdown_table(summary.shown), "", *summary.notes]
    text = "\n".join(lines) + "\n"
    write_table(paths.table, summary.table)
    with whole_file(paths.markdown) as temporary:
        temporary.write_text(text)
    save_figure(summary.figure, paths.figure)
    write_json(paths.headline, summary.headline)
    if paths.crops is not None and summary.crops is not None:
        write_table(paths.crops, summary.crops)
    return text


def markdown_table(table: pd.DataFrame) -> list[str]:
    """Lines of a Markdown table."""
    rows = [list(table.columns), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    return [f"| {' | '.join(row)} |" for row in rows]


def mean_sd(values: pd.Series, *, signed: bool = False) -> str:
    """`0.948 ± 0.011`: mean and standard deviation (n - 1) of folds; one fold has no deviation. Signed: differences."""
    return f"{values.mean():{'+' if signed else ''}.3f}" + (f" ± {values.std():.3f}" if len(values) > 1 else "")


def count_tests(folds: list[Predictions]) -> str:
    """How many tests several folds are: with a published test subset they differ in validation alone."""
    return f"{len(folds)} test folds" if tests_differ(folds) else f"{len(folds)} validation folds on 1 test subset"


def count_crops(folds: list[Predictions]) -> str:
    """Test crops of one or several folds, one that tests in two of them counted once, and groups."""
    ids = np.unique(np.concatenate([fold.ids for fold in folds]))
    groups = np.unique(np.concatenate([fold.test.groups for fold in folds]))
    return f"{len(ids)} test crops of {len(groups)} groups"


def tests_differ(folds: list[Predictions]) -> bool:
    """Whether several folds test other crops each."""
    return len({tuple(fold.ids) for fold in folds}) > 1


def interval(row: pd.Series, name: str, *, signed: bool = False) -> str:
    """`0.948 [0.931, 0.961]` of the columns <name>, <name>_low and <name>_high; signed for differences."""
    sign = "+" if signed else ""
    return f"{row[name]:{sign}.3f} [{row[f'{name}_low']:{sign}.3f}, {row[f'{name}_high']:{sign}.3f}]"


def decided(params: Params, classes: int) -> str:
    """How a class was decided, as the end of a sentence: views that are averaged, for two classes the threshold."""
    views = f", mean of {params.evaluate.tta} views of a crop" if params.evaluate.tta > 1 else ""
    if classes != 2:
        return views
    sensitivity = params.training.sensitivity
    rule = "at the largest Youden index" if sensitivity is None else f"that reaches sensitivity {sensitivity:g}"
    return f"{views}, threshold {rule} on validation crops"


def provenance(metrics: list[Path]) -> str:
    """Protocol, whether groups are kept apart in all cells, labels and seed, as the cells' metrics say."""
    cells = [read_json(path) for path in metrics]
    protocols = " and ".join(sorted({cell["protocol"] for cell in cells}))
    seeds = ", ".join(map(str, sorted({cell["seed"] for cell in cells})))
    shuffled = ", labels shuffled" if any(cell["labels"] == "shuffled" for cell in cells) else ""
    apart = " and ".join(sorted({kept_apart(cell) for cell in cells}))
    return f"protocol {protocols} ({apart}){shuffled}, seed {seeds}"
