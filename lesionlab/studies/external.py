"""external: trained on one data set, tested on all of another; what the figures lose on the way.

The operating threshold and the temperature come from the validation crops of the data set that trained.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from lesionlab.evaluation.metrics import Scores
from lesionlab.evaluation.pictures import averaged, roc_points
from lesionlab.files import read_json
from lesionlab.params import Params
from lesionlab.pictures import MODEL_COLOURS
from lesionlab.studies.figures import GAIN, GAIN_NOTE, cell_intervals, difference, flat
from lesionlab.studies.predictions import read_predictions
from lesionlab.studies.schemas import External
from lesionlab.studies.tables import Paths, Summary, decided, interval, provenance

MODELS = ("transfer", "finetune")
LOST = ("accuracy", "balanced_accuracy", "roc_auc", "f1", "recall", "specificity")
SHOWN = (*LOST, GAIN)  # the gain follows the error rate, so its difference is no loss
DRAWN = ("roc_auc", "balanced_accuracy", "accuracy")
STYLES = {"internal": "--", "external": "-"}


def summarise(study: External, params: Params, paths: Paths) -> Summary:
    """Each model's figures on the test subset of its own data set, on the external one, and their difference."""
    proof = read_json(paths.metrics / "split_external.json")
    datasets = {"internal": params.dataset, "external": study.external["dataset"]}
    scores: dict[tuple[str, str], Scores] = {}
    sensitivity = params.training.sensitivity
    rows = []
    for model in MODELS:
        own, other = (paths.predictions / f"{model}-{test}.csv" for test in datasets)
        scores[model, "internal"] = read_predictions(own, sensitivity=sensitivity).test
        scores[model, "external"] = read_predictions(other, own, sensitivity).test
        figures = {}
        for test, dataset in datasets.items():
            said = scores[model, test]
            table = cell_intervals(said, params.evaluate.resamples, params.seed).loc[list(SHOWN)]
            figures[test] = table
            rows.append(
                {"model": model, "test": test, "dataset": dataset, "crops": len(said.labels)}
                | {"groups": len(np.unique(said.groups))}
                | flat(table)
            )
        internal, external = (figures[test].loc[list(LOST)] for test in datasets)
        rows.append({"model": model, "test": "drop"} | flat(difference(internal, external)))
    table = pd.DataFrame(rows).astype({"crops": "Int64", "groups": "Int64"})
    shown = table[["model", "test"]].copy()
    for name in ("crops", "groups"):
        shown[name] = ["" if pd.isna(count) else str(count) for count in table[name]]
    for name in SHOWN:
        shown[name.replace("_", " ")] = [
            interval(row, name, signed=row["test"] == "drop") if name in figures_of(row) else ""
            for _, row in table.iterrows()
        ]
    return Summary(
        "External test",
        table,
        shown,
        notes(datasets, proof, paths, decided(params, classes_of(scores))),
        draw(table, scores, datasets),
        {
            f"{row['test']}_{row['model']}_{name}": float(row[name])
            for _, row in table.iterrows()
            for name in figures_of(row)
        },
    )


def classes_of(scores: dict[tuple[str, str], Scores]) -> int:
    """How many classes the models tell apart."""
    return next(iter(scores.values())).probabilities.shape[1]


def figures_of(row: pd.Series) -> tuple[str, ...]:
    """The figures that a row of the table has."""
    return LOST if row["test"] == "drop" else SHOWN


def notes(datasets: dict[str, str], proof: dict, paths: Paths, how: str) -> list[str]:
    """What was tested on what, under which protocols, and how sure it is that the two share nothing."""
    tested, left_out = proof["subsets"]["test"], proof["duplicates"]["crops_in_no_subset"]
    every = "all" if not left_out else f"all but {left_out} crops that repeat others"
    return [
        f"Trained and validated on {datasets['internal']}, tested on its test subset (internal) and on {every} of "
        f"{datasets['external']} (external: {tested['frames']} frames); drop: internal - external. [95 % interval, "
        "bootstrap over groups of each test set]. Threshold and temperature are those of the internal validation.",
        f"Internal: {provenance([paths.metrics / f'{model}.json' for model in MODELS])}; "
        f"external: {provenance([paths.metrics / 'split_external.json'])}{how}. {GAIN_NOTE}",
        f"{proof['frames_near_training_frames']} external frames are near-duplicates (perceptual hashes within "
        f"{proof['near_duplicate_bits']} of 64 bits) of one of the {proof['training_frames_compared']} frames of "
        f"{datasets['internal']}.",
    ]


def draw(table: pd.DataFrame, scores: dict[tuple[str, str], Scores], datasets: dict[str, str]) -> plt.Figure:
    """ROC of each model on both test sets, with the operating points, beside figures with their intervals."""
    figure, (roc, dots) = plt.subplots(1, 2, figsize=(11, 4.8), width_ratios=(1, 1), layout="constrained")
    rows = table[table["test"] != "drop"].set_index(["model", "test"])
    for (model, test), said in scores.items():
        row, colour = rows.loc[(model, test)], MODEL_COLOURS[model]
        points = roc_points(said)
        label = f"{model}, {test}: AUC {row['roc_auc']:.3f}"
        roc.plot(points["false_positive_rate"], points["true_positive_rate"], STYLES[test], color=colour, label=label)
        if said.threshold is not None:
            roc.plot(1 - row["specificity"], row["recall"], "o", color=colour, fillstyle=_fill(test), markersize=7)
    roc.plot([0, 1], [0, 1], ":", color="#999999", linewidth=1, label="chance")
    roc.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    roc.set_title(averaged(classes_of(scores)) or "ROC; circles: operating points", fontsize=10)
    roc.legend(loc="lower right", fontsize=8)
    shifts = np.linspace(0.27, -0.27, len(rows))
    for shift, ((model, test), row) in zip(shifts, rows.iterrows(), strict=True):
        value, low, high = (np.array([row[f"{name}{end}"] for name in DRAWN], float) for end in ("", "_low", "_high"))
        dots.errorbar(
            value, np.arange(len(DRAWN)) + shift, xerr=[value - low, high - value], fmt="o", capsize=3,
            color=MODEL_COLOURS[model], fillstyle=_fill(test), label=f"{model}, {test} ({datasets[test]})",
        )  # fmt: skip
    dots.set_yticks(range(len(DRAWN)), [name.replace("_", " ").replace("roc auc", "ROC AUC") for name in DRAWN])
    dots.set(xlabel="figure on test crops, with 95 % interval", ylim=(-0.5, len(DRAWN) - 0.5))
    dots.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, fontsize=8)
    for axis in (roc, dots):
        axis.grid(alpha=0.3)
    return figure


def _fill(test: str) -> str:
    return "full" if test == "external" else "none"
