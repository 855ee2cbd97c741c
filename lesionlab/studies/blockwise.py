"""blockwise: accuracy against the number of unfrozen blocks, with the spread of folds; validation chooses the depth.

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
from lesionlab.studies.tables import Paths, Summary, mean_sd, provenance

CHOICE = "val_accuracy"  # what chooses the depth, as mean over folds
SHOWN = ("val_accuracy", "accuracy", "balanced_accuracy", "f1", "roc_auc", GAIN)


class Study(Section):
    """studies/blockwise/params.yaml."""

    folds: Annotated[list[Count], Field(min_length=1)]
    blocks: Annotated[list[PositiveInt], Field(min_length=1)]
    set: dict[str, Any]


def summarise(study: Study, params: Params, paths: Paths) -> Summary:
    """Mean and standard deviation over folds at each depth; 0 unfrozen blocks is the new head alone."""
    cells = pd.DataFrame([_cell(paths, fold, blocks, params) for blocks in (0, *study.blocks) for fold in study.folds])
    table = aggregate(cells)
    best = choose_depth(table)
    shown = pd.DataFrame({"unfrozen blocks": table["blocks"]})
    for name in SHOWN:
        shown[name.replace("_", " ")] = [mean_sd(values) for _, values in cells.groupby("blocks")[name]]
    shown["trained parameters"] = [f"{count:,}" for count in table["trained_parameters"]]
    figures = table.set_index("blocks").loc[best]
    origin = provenance([paths.metrics / f"0-{fold}.json" for fold in study.folds])
    notes = [
        f"Mean ± standard deviation of {len(study.folds)} test folds; {params.dataset}, {origin}. {GAIN_NOTE}",
        f"Validation accuracy chooses {best} unfrozen blocks: "
        f"test accuracy {mean_sd(cells.loc[cells['blocks'] == best, 'accuracy'])}.",
    ]
    headline = {name: float(figures[f"{name}_mean"]) for name in SHOWN} | {"blocks": best}
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


def choose_depth(table: pd.DataFrame) -> int:
    """The depth of highest mean validation accuracy, of equal ones the least deep; test figures choose nothing."""
    return int(table.loc[table[f"{CHOICE}_mean"].idxmax(), "blocks"])


def draw(cells: pd.DataFrame, best: int) -> plt.Figure:
    """Accuracy by depth: a dot a fold, the mean as a line, one standard deviation as a band."""
    figure, axis = plt.subplots(figsize=(6, 4))
    test, validation = SERIES_COLOURS[:2]
    series = {"val_accuracy": ("validation", validation, "--"), "accuracy": ("test", test, "-")}
    for name, (label, colour, line) in series.items():
        grouped = cells.groupby("blocks")[name]
        mean, deviation = grouped.mean(), grouped.std().fillna(0)
        axis.fill_between(mean.index, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)
        axis.plot(mean.index, mean, line, color=colour, label=f"{label}, mean ± sd of folds", linewidth=1.8)
    axis.plot(cells["blocks"], cells["accuracy"], ".", color=test, markersize=5, label="test, one fold")
    axis.axvline(best, color="#999999", linestyle=":", label="chosen on validation")
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
