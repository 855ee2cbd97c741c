"""variants: networks compared on one split, from dense layers on pixels to backbones with two heads."""

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from lesionlab.evaluation.calibration import calibration_metrics
from lesionlab.evaluation.metrics import Scores, resample
from lesionlab.files import read_json
from lesionlab.params import Params
from lesionlab.pictures import SERIES_COLOURS
from lesionlab.studies.figures import GAIN, GAIN_NOTE, cell_metrics, flat
from lesionlab.studies.predictions import read_predictions
from lesionlab.studies.schemas import Variants
from lesionlab.studies.tables import Paths, Summary, decided, interval, provenance

SHOWN = ("loss", "accuracy", "precision", "recall", "f1", "roc_auc", GAIN)
DRAWN = dict(zip(("accuracy", "f1"), SERIES_COLOURS, strict=False))


def summarise(study: Variants, params: Params, paths: Paths) -> Summary:
    """A row a model: size, seconds, validation loss and accuracy; loss and figures on test crops with intervals."""
    table = pd.DataFrame([_row(name, params, paths) for name in (*study.cnns, *study.backbones)])
    best = table.loc[table["val_loss"].idxmin()]
    shown = table[["model"]].copy()
    shown["parameters"] = [f"{count:,}" for count in table["parameters"]]
    shown["trained"] = [f"{count:,}" for count in table["trained_parameters"]]
    shown["seconds"] = [f"{value:.0f}" for value in table["seconds"]]
    for name in ("val_loss", "val_accuracy"):
        shown[name.replace("_", " ")] = [f"{value:.3f}" for value in table[name]]
    for name in SHOWN:
        shown[name.replace("_", " ")] = [interval(row, name) for _, row in table.iterrows()]
    classes = int(table["classes"].iloc[0])
    origin = provenance([paths.metrics / f"{name}.json" for name in table["model"]])
    notes = [
        f"{table['crops'].iloc[0]} test crops of {table['groups'].iloc[0]} groups, [95 % interval, bootstrap over "
        f"groups]; {params.dataset}, {origin}{decided(params, classes)}. Seconds are of training with its start; "
        f"activations that an earlier cell computed are used again. {GAIN_NOTE}",
        f"Lowest validation loss: {best['model']}, with test accuracy {interval(best, 'accuracy')} and "
        f"F1 {interval(best, 'f1')}.",
    ]
    headline = {"model": best["model"]} | {name: float(best[name]) for name in SHOWN}
    return Summary("Variants", table, shown, notes, draw(table), headline)


def draw(table: pd.DataFrame) -> plt.Figure:
    """Accuracy and F1 of each model with their intervals."""
    figure, axis = plt.subplots(figsize=(7, 0.4 * len(table) + 1.4))
    places = np.arange(len(table))
    for shift, (name, colour) in zip((-0.13, 0.13), DRAWN.items(), strict=True):
        value = table[name]
        spread = [value - table[f"{name}_low"], table[f"{name}_high"] - value]
        label = name.replace("f1", "F1")
        axis.errorbar(value, places + shift, xerr=spread, fmt="o", color=colour, capsize=3, markersize=5, label=label)
    axis.set_yticks(places, table["model"])
    axis.invert_yaxis()
    axis.set(xlabel="on test crops, with 95 % interval")
    axis.grid(alpha=0.3, axis="x")
    axis.legend(fontsize=8)
    return figure


def _row(name: str, params: Params, paths: Paths) -> dict[str, float]:
    trained = read_json(paths.metrics / f"{name}.json")
    predictions = read_predictions(paths.predictions / f"{name}.csv", sensitivity=params.training.sensitivity)
    test = predictions.test
    validation = _figures(predictions.val, np.ones((1, len(predictions.val.labels))))  # decided as test crops are
    figures = resample(partial(_figures, test), test.groups, params.evaluate.resamples, params.seed).table()
    return {
        "model": name,
        "parameters": trained["parameters"],
        "trained_parameters": trained["trained_parameters"],
        "seconds": read_json(paths.metrics / f"{name}_seconds.json")["seconds"],
        "val_loss": float(validation["loss"][0]),
        "val_accuracy": float(validation["accuracy"][0]),
        "classes": len(predictions.classes),
        "crops": len(test.labels),
        "groups": len(np.unique(test.groups)),
        **flat(figures.set_index("metric").loc[[*SHOWN]]),
    }


def _figures(scores: Scores, weights: np.ndarray) -> dict[str, np.ndarray]:
    """`cell_metrics` and the loss under each row of weights."""
    return cell_metrics(scores, weights) | {"loss": calibration_metrics(scores, weights)["log_loss"]}
