"""blockwise: accuracy against the number of unfrozen blocks, with the spread of folds; validation chooses each depth.

Source of the procedure: block-wise fine-tuning, doi 10.1016/j.compmedimag.2019.05.001.
"""

from typing import Annotated, Any

import matplotlib.pyplot as plt
import pandas as pd
from pydantic import Field, PositiveInt

from lesionlab.files import read_json
from lesionlab.params import Count, Params, Section
from lesionlab.pictures import SERIES_COLOURS
from lesionlab.studies.figures import GAIN, GAIN_NOTE, cell_points
from lesionlab.studies.predictions import point_metrics, read_predictions
from lesionlab.studies.tables import Paths, Summary, count_tests, mean_sd, provenance

CHOICE = "val_accuracy"  # what chooses the depth
SHOWN = ("val_accuracy", "accuracy", "balanced_accuracy", "f1", "roc_auc", GAIN)


class Study(Section):
    """studies/blockwise/params.yaml."""

    folds: Annotated[list[Count], Field(min_length=1)]
    blocks: Annotated[list[PositiveInt], Field(min_length=1)]
    set: dict[str, Any]


def summarise(study: Study, params: Params, paths: Paths) -> Summary:
    """Mean and standard deviation over folds at each depth; 0 unfrozen blocks is the new head alone."""
    cells = pd.DataFrame([_cell(paths, fold, blocks, params) for blocks in (0, *study.blocks) for fold in study.folds])
    table, best = aggregate(cells), choose_depths(cells)
    shown = pd.DataFrame({"unfrozen blocks": table["blocks"]})
    for name in SHOWN:
        shown[name.replace("_", " ")] = [mean_sd(values) for _, values in cells.groupby("blocks")[name]]
    shown["trained parameters"] = [f"{count:,}" for count in table["trained_parameters"]]
    origin = provenance([paths.metrics / f"0-{fold}.json" for fold in study.folds])
    tests = [read_predictions(paths.predictions / f"0-{fold}.csv") for fold in study.folds]
    depths = ", ".join(map(str, best["blocks"]))
    notes = [
        f"Mean ± standard deviation of {count_tests(tests)}; {params.dataset}, {origin}. {GAIN_NOTE}",
        f"Of each fold its own validation accuracy chooses the number of unfrozen blocks ({depths}): test accuracy "
        f"{mean_sd(best['accuracy'])}. That of all folds together would choose by crops that test in another fold.",
    ]
    headline = {name: float(best[name].mean()) for name in SHOWN} | {"blocks": depths}
    return Summary("Block-wise fine-tuning", table, shown, notes, draw(cells, best), headline)


def aggregate(cells: pd.DataFrame) -> pd.DataFrame:
    """A row a depth: blocks, folds, mean and sd (n - 1) of every figure over folds, trained_parameters.

    cells: a row a fold and depth, columns fold, blocks, trained_parameters and figures.
    """
    grouped = cells.groupby("blocks")
    figures = [name for name in cells if name not in ("fold", "blocks", "trained_parameters")]
    table = grouped[figures].agg(["mean", "std"])
    table.columns = [f"{name}_{'sd' if kind == 'std' else kind}" for name, kind in table.columns]
    table.insert(0, "folds", grouped.size())
    table["trained_parameters"] = grouped["trained_parameters"].first()
    return table.reset_index()


def choose_depths(cells: pd.DataFrame) -> pd.DataFrame:
    """Of each fold the row of highest validation accuracy, of equal ones the least deep; test figures choose nothing.

    A fold's own: the validation crops of one are test crops of another, which must not choose its depth.
    """
    ordered = cells.sort_values(["fold", "blocks"], ignore_index=True)
    return ordered.loc[ordered.groupby("fold")[CHOICE].idxmax()].reset_index(drop=True)


def draw(cells: pd.DataFrame, best: pd.DataFrame) -> plt.Figure:
    """Accuracy by depth: a dot a fold, the mean as a line, one standard deviation as a band; best: chosen rows."""
    figure, axis = plt.subplots(figsize=(6, 4))
    test, validation = SERIES_COLOURS[:2]
    series = {"val_accuracy": ("validation", validation, "--"), "accuracy": ("test", test, "-")}
    for name, (label, colour, line) in series.items():
        grouped = cells.groupby("blocks")[name]
        mean, deviation = grouped.mean(), grouped.std().fillna(0)
        axis.fill_between(mean.index, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)
        axis.plot(mean.index, mean, line, color=colour, label=f"{label}, mean ± sd of folds", linewidth=1.8)
    axis.plot(cells["blocks"], cells["accuracy"], ".", color=test, markersize=5, label="test, one fold")
    chosen = {"markerfacecolor": "none", "markersize": 9, "label": "chosen by the fold's validation"}
    axis.plot(best["blocks"], best["accuracy"], "o", color=test, **chosen)
    axis.set(xlabel="unfrozen blocks (0: the head alone)", ylabel="accuracy", xticks=sorted(cells["blocks"].unique()))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def _cell(paths: Paths, fold: int, blocks: int, params: Params) -> dict[str, float]:
    trained = read_json(paths.metrics / f"{blocks}-{fold}.json")
    predictions = read_predictions(paths.predictions / f"{blocks}-{fold}.csv", sensitivity=params.training.sensitivity)
    validation = {f"val_{name}": value for name, value in point_metrics(predictions.val).items() if name == "accuracy"}
    return {
        "fold": fold,
        "blocks": blocks,
        "trained_parameters": trained["trained_parameters"],
        **validation,
        **cell_points(predictions.test),
    }
