"""blockwise: accuracy against the number of unfrozen blocks, with its spread; validation chooses each fold's depth.

Source of the procedure: block-wise fine-tuning, doi 10.1016/j.compmedimag.2019.05.001.
"""

from functools import partial

import matplotlib.pyplot as plt
import pandas as pd

from lesionlab.evaluation.metrics import Scores
from lesionlab.files import read_json
from lesionlab.params import Params
from lesionlab.pictures import SERIES_COLOURS
from lesionlab.studies.figures import GAIN, GAIN_NOTE, cell_intervals, cell_points, flat
from lesionlab.studies.predictions import read_predictions
from lesionlab.studies.schemas import Blockwise
from lesionlab.studies.tables import (
    Paths,
    Summary,
    count_crops,
    count_tests,
    decided,
    interval,
    mean_sd,
    provenance,
    tests_differ,
)

CHOICE = "val_accuracy"  # what chooses the depth
SHOWN = ("val_accuracy", "accuracy", "balanced_accuracy", "f1", "roc_auc", GAIN)


def summarise(study: Blockwise, params: Params, paths: Paths) -> Summary:
    """Mean and standard deviation over folds at each depth, of one fold intervals; 0 blocks is the new head alone."""
    single = len(study.folds) == 1
    places = [(fold, blocks) for blocks in (0, *study.blocks) for fold in study.folds]
    cells = pd.DataFrame([_cell(paths, fold, blocks, params, intervals=single) for fold, blocks in places])
    table, best = aggregate(cells), choose_depths(cells)
    shown = pd.DataFrame({"unfrozen blocks": table["blocks"]})
    for name in SHOWN:
        folds = cells.groupby("blocks")[[column for column in cells if column.startswith(name)]]
        shown[name.replace("_", " ")] = [
            interval(rows.iloc[0], name) if single else mean_sd(rows[name]) for _, rows in folds
        ]
    shown["trained parameters"] = [f"{count:,}" for count in table["trained_parameters"]]
    origin = provenance([paths.metrics / f"0-{fold}.json" for fold in study.folds])
    tests = [read_predictions(paths.predictions / f"0-{fold}.csv") for fold in study.folds]
    spread = f"Mean ± standard deviation of {count_tests(tests)}"
    if single:
        spread = f"{count_crops(tests)}, [95 % interval, bootstrap over groups]"
    origin += decided(params, len(tests[0].classes))
    notes = [f"{spread}; {params.dataset}, {origin}. {GAIN_NOTE}", _choice(best, several_tests=tests_differ(tests))]
    headline = {name: float(best[name].mean()) for name in SHOWN} | {"blocks": ", ".join(map(str, best["blocks"]))}
    return Summary("Block-wise fine-tuning", table, shown, notes, draw(cells, best), headline)


def aggregate(cells: pd.DataFrame) -> pd.DataFrame:
    """A row a depth: blocks, folds, mean and sd (n - 1) of every figure over folds, trained_parameters.

    cells: a row a fold and depth, columns fold, blocks, trained_parameters and figures; of one fold <figure>_low and
    _high too, which the table then has.
    """
    grouped = cells.groupby("blocks")
    ends = [name for name in cells if name.endswith(("_low", "_high"))]
    figures = [name for name in cells if name not in ("fold", "blocks", "trained_parameters", *ends)]
    table = grouped[figures].agg(["mean", "std"])
    table.columns = [f"{name}_{'sd' if kind == 'std' else kind}" for name, kind in table.columns]
    table.insert(0, "folds", grouped.size())
    table[["trained_parameters", *ends]] = grouped[["trained_parameters", *ends]].first()
    return table.reset_index()


def choose_depths(cells: pd.DataFrame) -> pd.DataFrame:
    """Of each fold the row of highest validation accuracy, of equal ones the least deep; test figures choose nothing.

    A fold's own: the validation crops of one are test crops of another, which must not choose its depth.
    """
    ordered = cells.sort_values(["fold", "blocks"], ignore_index=True)
    return ordered.loc[ordered.groupby("fold")[CHOICE].idxmax()].reset_index(drop=True)


def _choice(best: pd.DataFrame, *, several_tests: bool) -> str:
    """A sentence: which depths validation chose, and the test accuracy there. best: of `choose_depths`."""
    depths = ", ".join(map(str, best["blocks"]))
    if len(best) == 1:
        found = interval(best.iloc[0], "accuracy")
        return f"Validation accuracy chooses {depths} unfrozen blocks: test accuracy {found}."
    why = " That of all folds together would choose by crops that test in another fold." if several_tests else ""
    return (
        f"Of each fold its own validation accuracy chooses the number of unfrozen blocks ({depths}): test accuracy "
        f"{mean_sd(best['accuracy'])}.{why}"
    )


def draw(cells: pd.DataFrame, best: pd.DataFrame) -> plt.Figure:
    """Accuracy by depth: a dot a fold, the mean as a line, its spread as a band; best: chosen rows.

    The band is one standard deviation, or of one fold the 95 % interval.
    """
    figure, axis = plt.subplots(figsize=(6, 4))
    single = cells["fold"].nunique() == 1
    test, validation = SERIES_COLOURS[:2]
    series = {"val_accuracy": ("validation", validation, "--"), "accuracy": ("test", test, "-")}
    for name, (label, colour, line) in series.items():
        grouped = cells.groupby("blocks")[name]
        mean, low, high = grouped.mean(), grouped.mean() - grouped.std(), grouped.mean() + grouped.std()
        if single:
            low, high = (cells.groupby("blocks")[f"{name}_{end}"].first() for end in ("low", "high"))
        axis.fill_between(mean.index, low, high, color=colour, alpha=0.15, linewidth=0)
        spread = "95 % interval" if single else "mean ± sd of folds"
        axis.plot(mean.index, mean, line, color=colour, label=f"{label}, {spread}", linewidth=1.8)
    if not single:
        axis.plot(cells["blocks"], cells["accuracy"], ".", color=test, markersize=5, label="test, one fold")
    chosen = {"markerfacecolor": "none", "markersize": 9, "label": "chosen by the fold's validation"}
    axis.plot(best["blocks"], best["accuracy"], "o", color=test, **chosen)
    axis.set(xlabel="unfrozen blocks (0: the head alone)", ylabel="accuracy", xticks=sorted(cells["blocks"].unique()))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def _cell(paths: Paths, fold: int, blocks: int, params: Params, *, intervals: bool) -> dict[str, float]:
    trained = read_json(paths.metrics / f"{blocks}-{fold}.json")
    predictions = read_predictions(paths.predictions / f"{blocks}-{fold}.csv", sensitivity=params.training.sensitivity)
    figures = partial(_with_intervals, params=params) if intervals else cell_points
    validation = figures(predictions.val)
    return {
        "fold": fold,
        "blocks": blocks,
        "trained_parameters": trained["trained_parameters"],
        **{f"val_{name}": value for name, value in validation.items() if name.startswith("accuracy")},
        **figures(predictions.test),
    }


def _with_intervals(scores: Scores, params: Params) -> dict[str, float]:
    return flat(cell_intervals(scores, params.evaluate.resamples, params.seed))
