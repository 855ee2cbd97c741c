"""ensemble: the mean of several models' probabilities, its gain over one of them, and what their disagreement tells.

Source: Lakshminarayanan et al., Simple and Scalable Predictive Uncertainty Estimation, NeurIPS 2017.
"""

from collections.abc import Callable
from typing import Annotated, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from pydantic import Field

from lesionlab.evaluation.metrics import Scores, classification_metrics, resample
from lesionlab.evaluation.uncertainty import entropy, mutual_information, risk_coverage, selective_metrics
from lesionlab.params import Count, Params, Section
from lesionlab.pictures import SERIES_COLOURS
from lesionlab.studies.predictions import Predictions, mean_of, read_predictions
from lesionlab.studies.tables import Paths, Summary, interval, provenance

SHOWN = ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "roc_auc", "log_loss", "aurc")
RANKINGS = dict(zip(("entropy", "mutual information"), SERIES_COLOURS, strict=False))


class Study(Section):
    """studies/ensemble/params.yaml."""

    seeds: Annotated[list[Count], Field(min_length=2)]
    set: dict[str, Any]


def summarise(study: Study, params: Params, paths: Paths) -> Summary:
    """A row a member, their mean figures, the ensemble's, and the gain: ensemble less mean member, paired."""
    sensitivity, files = params.training.sensitivity, [f"finetune_{seed}.csv" for seed in study.seeds]
    members = [read_predictions(paths.predictions / file, sensitivity=sensitivity) for file in files]
    joint = mean_of(members, sensitivity)
    how = {"groups": joint.test.groups, "resamples": params.evaluate.resamples, "seed": params.seed}
    alone = [resample(_figures(member.test), **how) for member in members]
    mean = resample(_mean_of_figures([_figures(member.test) for member in members]), **how)
    together = resample(_figures(joint.test), **how)
    named = {f"member, seed {seed}": figures for seed, figures in zip(study.seeds, alone, strict=True)}
    named |= {"mean member": mean, "ensemble": together, "gain": together.minus(mean)}
    rows = []
    for name, figures in named.items():
        row: dict[str, Any] = {"model": name}
        for figure in figures.table().to_dict("records"):
            row |= {figure["metric"]: figure["value"]}
            row |= {f"{figure['metric']}_{end}": figure[end] for end in ("low", "high")}
        rows.append(row)
    table = pd.DataFrame(rows)
    shown = table[["model"]].copy()
    for name in SHOWN:
        shown[name.replace("_", " ")] = [
            interval(row, name, signed=row["model"] == "gain") for _, row in table.iterrows()
        ]
    origin = provenance([paths.metrics / f"finetune_{seed}.json" for seed in study.seeds])
    information = mutual_information(np.stack([member.test.probabilities for member in members]))
    wrong = joint.test.wrong
    notes = [
        f"{len(joint.ids)} test crops of {len(np.unique(joint.test.groups))} groups, [95 % interval, bootstrap over "
        f"groups, the same draws for all rows]; {params.dataset}, {origin}. aurc: area under the risk-coverage curve "
        "of the entropy, lower is better; a random order gives the error rate. Gain is ensemble less mean member.",
        f"Mutual information of the members: {_mean(information[wrong])} nats where the ensemble is wrong, "
        f"{_mean(information[~wrong])} where it is right.",
    ]
    gain = table.set_index("model").loc["gain"]
    headline = {f"gain_{name}": float(gain[name]) for name in SHOWN}
    title, figure = f"Ensemble of {len(members)}", draw(joint, information)
    return Summary(title, table, shown, notes, figure, headline, crops_table(joint, information))


def crops_table(joint: Predictions, information: np.ndarray) -> pd.DataFrame:
    """A row a test crop: id, label, predicted, p_<class>, entropy of the mean, mutual_information of the members."""
    scores, names = joint.test, np.array(joint.classes)
    table = pd.DataFrame({"id": joint.ids, "label": names[scores.labels], "predicted": names[scores.predicted]})
    probabilities = {f"p_{name}": scores.probabilities[:, number] for number, name in enumerate(joint.classes)}
    return table.assign(**probabilities, entropy=entropy(scores.probabilities), mutual_information=information)


def draw(joint: Predictions, information: np.ndarray) -> plt.Figure:
    """Error of the ensemble among the crops that are kept when the least sure ones are handed to a person."""
    wrong = joint.test.wrong
    figure, axis = plt.subplots(figsize=(6, 4))
    uncertainties = (entropy(joint.test.probabilities), information)
    for (name, colour), uncertainty in zip(RANKINGS.items(), uncertainties, strict=True):
        curve = risk_coverage(wrong, uncertainty)
        axis.plot(curve["coverage"], curve["risk"], color=colour, label=f"by {name}", linewidth=1.8)
    axis.axhline(wrong.mean(), color="#999999", linestyle=":", label="random order")
    axis.set(xlabel="coverage (share of test crops kept)", ylabel="error among them", xlim=(0, 1.01), ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def _figures(scores: Scores) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function of crop weights: classification metrics, log loss, area under the risk-coverage curve."""
    chosen = scores.probabilities[np.arange(len(scores.labels)), scores.labels]
    surprise = -np.log(np.clip(chosen, np.finfo(float).eps, 1))
    wrong, uncertainty = scores.wrong, entropy(scores.probabilities)

    def metrics(weights: np.ndarray) -> dict[str, np.ndarray]:
        figures = classification_metrics(scores, weights)
        figures |= {"log_loss": weights @ surprise / weights.sum(axis=1)}
        figures |= {"aurc": selective_metrics(wrong, uncertainty, weights)["aurc"]}
        return {name: figures[name] for name in SHOWN}

    return metrics


def _mean_of_figures(members: list[Callable]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    def metrics(weights: np.ndarray) -> dict[str, np.ndarray]:
        figures = [member(weights) for member in members]
        return {name: np.mean([one[name] for one in figures], axis=0) for name in SHOWN}

    return metrics


def _mean(values: np.ndarray) -> str:
    return f"{values.mean():.4f}" if len(values) else "no crop"
