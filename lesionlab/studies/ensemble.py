"""ensemble: the mean of several models' probabilities, its gain over one of them, and what their disagreement tells.

Source: Lakshminarayanan et al., Simple and Scalable Predictive Uncertainty Estimation, NeurIPS 2017.
"""

from collections.abc import Callable
from dataclasses import dataclass
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
from lesionlab.studies.tables import Paths, Summary, count_crops, count_tests, interval, mean_sd, provenance

SHOWN = ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "roc_auc", "log_loss", "aurc")
RANKINGS = dict(zip(("entropy", "mutual information"), SERIES_COLOURS, strict=False))


class Study(Section):
    """studies/ensemble/params.yaml."""

    seeds: Annotated[list[Count], Field(min_length=2)]
    folds: Annotated[list[Count], Field(min_length=1)]
    set: dict[str, Any]


@dataclass(frozen=True)
class Fold:
    """What the members said of one fold's crops, in the order of the study's seeds, and their mean."""

    number: int
    members: list[Predictions]
    joint: Predictions


def summarise(study: Study, params: Params, paths: Paths) -> Summary:
    """A row a member, their mean figures, the ensemble's, and the gain: ensemble less mean member, paired.

    One fold: with intervals. Several: mean and standard deviation over them.
    """
    folds = [_fold(paths, number, study.seeds, params) for number in study.folds]
    table, shown = _one_fold(folds[0], study.seeds, params) if len(folds) == 1 else _over_folds(folds, study.seeds)
    origin = provenance([paths.metrics / f"finetune_{seed}-{n}.json" for seed in study.seeds for n in study.folds])
    tests = [fold.joint for fold in folds]
    spread = (
        f"{count_crops(tests)}, [95 % interval, bootstrap over groups, the same draws for all rows]"
        if len(folds) == 1
        else f"Mean ± standard deviation of {count_tests(tests)}, {count_crops(tests)}"
    )
    information = np.concatenate([_information(fold) for fold in folds])
    wrong = np.concatenate([fold.joint.test.wrong for fold in folds])
    notes = [
        f"{spread}; {params.dataset}, {origin}. aurc: area under the risk-coverage curve of the entropy, lower is "
        "better; a random order gives the error rate. Gain is ensemble less mean member.",
        f"Mutual information of the members: {_mean(information[wrong])} nats where the ensemble is wrong, "
        f"{_mean(information[~wrong])} where it is right.",
    ]
    gain = table.set_index("model").loc["gain"]
    headline = {f"gain_{name}": float(gain[name]) for name in SHOWN}
    title, said = f"Ensemble of {len(study.seeds)}", crops_table(folds)
    return Summary(title, table, shown, notes, draw(wrong, said["entropy"].to_numpy(), information), headline, said)


def _fold(paths: Paths, number: int, seeds: list[int], params: Params) -> Fold:
    sensitivity = params.training.sensitivity
    files = [paths.predictions / f"finetune_{seed}-{number}.csv" for seed in seeds]
    members = [read_predictions(file, sensitivity=sensitivity) for file in files]
    return Fold(number, members, mean_of(members, sensitivity))


def _one_fold(fold: Fold, seeds: list[int], params: Params) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each row's figures with the ends of their intervals, and the same as texts."""
    how = {"groups": fold.joint.test.groups, "resamples": params.evaluate.resamples, "seed": params.seed}
    named = {name: resample(figures, **how) for name, figures in _rows(fold, seeds).items()}
    named["gain"] = named["ensemble"].minus(named["mean member"])
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
    return table, shown


def _over_folds(folds: list[Fold], seeds: list[int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each row's mean figures and their standard deviations (n - 1) over folds, and the same as texts."""
    rows, texts = [], []
    cells: dict[str, list[dict[str, float]]] = {}
    for fold in folds:
        every_crop_once = np.ones((1, len(fold.joint.ids)))
        for name, figures in _rows(fold, seeds).items():
            cells.setdefault(name, []).append({key: float(value[0]) for key, value in figures(every_crop_once).items()})
    tables = {name: pd.DataFrame(values) for name, values in cells.items()}
    tables["gain"] = tables["ensemble"] - tables["mean member"]
    for model, values in tables.items():
        figures = {name: values[name].mean() for name in SHOWN}
        rows.append({"model": model} | figures | {f"{name}_sd": values[name].std() for name in SHOWN})
        shown = {name.replace("_", " "): mean_sd(values[name], signed=model == "gain") for name in SHOWN}
        texts.append({"model": model} | shown)
    return pd.DataFrame(rows), pd.DataFrame(texts)


def _rows(fold: Fold, seeds: list[int]) -> dict[str, Callable[[np.ndarray], dict[str, np.ndarray]]]:
    """Of each row but the gain a function of the fold's crop weights."""
    members = [_figures(member.test) for member in fold.members]
    named = {f"member, seed {seed}": figures for seed, figures in zip(seeds, members, strict=True)}
    return named | {"mean member": _mean_of_figures(members), "ensemble": _figures(fold.joint.test)}


def _information(fold: Fold) -> np.ndarray:
    return mutual_information(np.stack([member.test.probabilities for member in fold.members]))


def crops_table(folds: list[Fold]) -> pd.DataFrame:
    """A row a test crop and fold.

    fold, id, label, predicted, p_<class>, entropy of the mean, mutual_information of the members.
    """
    tables = []
    for fold in folds:
        scores, names = fold.joint.test, np.array(fold.joint.classes)
        table = pd.DataFrame({"fold": fold.number, "id": fold.joint.ids, "label": names[scores.labels]})
        table["predicted"] = names[scores.predicted]
        for number, name in enumerate(names):
            table[f"p_{name}"] = scores.probabilities[:, number]
        tables.append(table.assign(entropy=entropy(scores.probabilities), mutual_information=_information(fold)))
    return pd.concat(tables, ignore_index=True)


def draw(wrong: np.ndarray, uncertainty: np.ndarray, information: np.ndarray) -> plt.Figure:
    """Error of the ensemble among the crops that are kept when the least sure ones are handed to a person.

    Of each test crop: whether the ensemble is wrong, the entropy of the mean, the members' mutual information.
    """
    figure, axis = plt.subplots(figsize=(6, 4))
    for (name, colour), ranking in zip(RANKINGS.items(), (uncertainty, information), strict=True):
        curve = risk_coverage(wrong, ranking)
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
