"""ensemble: the mean of several models' probabilities, its gain over one of them, and what their disagreement tells.

Source: Lakshminarayanan et al., Simple and Scalable Predictive Uncertainty Estimation, NeurIPS 2017.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from lesionlab.errors import InputError
from lesionlab.evaluation.metrics import Scores, classification_metrics, resample
from lesionlab.evaluation.uncertainty import entropy, mutual_information, risk_coverage, selective_metrics
from lesionlab.params import Params
from lesionlab.pictures import SERIES_COLOURS
from lesionlab.studies.predictions import Predictions, mean_of, out_of_fold, read_predictions
from lesionlab.studies.schemas import Ensemble
from lesionlab.studies.tables import Paths, Summary, count_crops, decided, interval, mean_sd, provenance, tests_differ

SHOWN = ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "roc_auc", "log_loss", "aurc")
RANKINGS = dict(zip(("entropy", "mutual information"), SERIES_COLOURS, strict=False))


@dataclass(frozen=True)
class Part:
    """What members, by name, said of the same test crops, and their mean. fold: its number, -1 for all of them."""

    fold: int
    members: dict[str, Predictions]
    joint: Predictions


def summarise(study: Ensemble, params: Params, paths: Paths) -> Summary:
    """A row a member, their mean figures, the ensemble's, and the gain: ensemble less mean member, paired.

    Of one test subset: with intervals. Of folds that test other crops each: mean and standard deviation over them.
    """
    parts = _parts(study, params, paths)
    single = len(parts) == 1
    table, shown = _one_test(parts[0], params) if single else _over_folds(parts)
    origin = provenance([paths.metrics / f"finetune_{seed}-{n}.json" for seed in study.seeds for n in study.folds])
    tests = [part.joint for part in parts]
    spread = (
        f"{count_crops(tests)}, [95 % interval, bootstrap over groups, the same draws for all rows]"
        if single
        else f"Mean ± standard deviation of {len(parts)} test folds, {count_crops(tests)}"
    )
    information = np.concatenate([_information(part) for part in parts])
    wrong = np.concatenate([part.joint.test.wrong for part in parts])
    notes = [
        f"{spread}; {params.dataset}, {origin} of the members, {params.seed} of split{' and intervals' * single}"
        f"{decided(params, len(tests[0].classes))}. aurc: area under the risk-coverage curve of the entropy, lower is "
        "better; a random order gives the error rate. Gain is ensemble less mean member.",
        f"Mutual information of the members: {_mean(information[wrong])} nats where the ensemble is wrong, "
        f"{_mean(information[~wrong])} where it is right.",
    ]
    if single and len(study.folds) > 1:
        notes.append(
            f"Each of {len(study.folds)} folds of what does not test validated members that trained on the others: the "
            f"ensemble's threshold is chosen on all {len(tests[0].val_ids)} crops, each as those members see it."
        )
    gain = table.set_index("model").loc["gain"]
    headline = {f"gain_{name}": float(gain[name]) for name in SHOWN}
    title, said = f"Ensemble of {len(parts[0].members)}", crops_table(parts)
    return Summary(title, table, shown, notes, draw(wrong, said["entropy"].to_numpy(), information), headline, said)


def _parts(study: Ensemble, params: Params, paths: Paths) -> list[Part]:
    """A part a fold; where folds share a published test subset and differ in validation alone, one of all members."""
    sensitivity, parts = params.training.sensitivity, []
    for fold in study.folds:
        files = {f"seed {seed}": paths.predictions / f"finetune_{seed}-{fold}.csv" for seed in study.seeds}
        members = {name: read_predictions(file, sensitivity=sensitivity) for name, file in files.items()}
        parts.append(Part(fold, members, mean_of(list(members.values()), sensitivity)))
    if len(parts) == 1:
        return parts
    if not tests_differ([part.joint for part in parts]):
        named = {f"{name}, fold {part.fold}": said for part in parts for name, said in part.members.items()}
        return [Part(-1, named, out_of_fold([part.joint for part in parts], sensitivity))]
    if len(study.seeds) == 1:
        raise InputError("ensemble: each fold tests other crops, so that one seed is one member; give several seeds")
    return parts


def _one_test(part: Part, params: Params) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each row's figures with the ends of their intervals, and the same as texts."""
    how = {"groups": part.joint.test.groups, "resamples": params.evaluate.resamples, "seed": params.seed}
    named = {name: resample(figures, **how) for name, figures in _rows(part).items()}
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


def _over_folds(parts: list[Part]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each row's mean figures and their standard deviations (n - 1) over folds, and the same as texts."""
    rows, texts = [], []
    cells: dict[str, list[dict[str, float]]] = {}
    for part in parts:
        every_crop_once = np.ones((1, len(part.joint.ids)))
        for name, figures in _rows(part).items():
            cells.setdefault(name, []).append({key: float(value[0]) for key, value in figures(every_crop_once).items()})
    tables = {name: pd.DataFrame(values) for name, values in cells.items()}
    tables["gain"] = tables["ensemble"] - tables["mean member"]
    for model, values in tables.items():
        figures = {name: values[name].mean() for name in SHOWN}
        rows.append({"model": model} | figures | {f"{name}_sd": values[name].std() for name in SHOWN})
        shown = {name.replace("_", " "): mean_sd(values[name], signed=model == "gain") for name in SHOWN}
        texts.append({"model": model} | shown)
    return pd.DataFrame(rows), pd.DataFrame(texts)


def _rows(part: Part) -> dict[str, Callable[[np.ndarray], dict[str, np.ndarray]]]:
    """Of each row but the gain a function of the test crops' weights."""
    named = {f"member, {name}": _figures(member.test) for name, member in part.members.items()}
    return named | {"mean member": _mean_of_figures(list(named.values())), "ensemble": _figures(part.joint.test)}


def _information(part: Part) -> np.ndarray:
    return mutual_information(np.stack([member.test.probabilities for member in part.members.values()]))


def crops_table(parts: list[Part]) -> pd.DataFrame:
    """A row a test crop and part.

    fold, id, label, predicted, p_<class>, entropy of the mean, mutual_information of the members.
    """
    tables = []
    for part in parts:
        scores, names = part.joint.test, np.array(part.joint.classes)
        table = pd.DataFrame({"fold": part.fold, "id": part.joint.ids, "label": names[scores.labels]})
        table["predicted"] = names[scores.predicted]
        for number, name in enumerate(names):
            table[f"p_{name}"] = scores.probabilities[:, number]
        tables.append(table.assign(entropy=entropy(scores.probabilities), mutual_information=_information(part)))
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
