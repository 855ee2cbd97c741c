"""Each model on the test subset: metrics with intervals, comparison, calibration, uncertainty, subgroups, pictures."""

import re
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from lesionlab import tracking
from lesionlab.errors import InputError
from lesionlab.evaluation import candidates, pictures
from lesionlab.evaluation.calibration import reliability
from lesionlab.evaluation.candidates import Candidate, Crops
from lesionlab.evaluation.comparison import COMPARED, compare
from lesionlab.evaluation.controls import CONTROLS, warn_of_controls
from lesionlab.evaluation.metrics import Figures, classification_metrics, resample
from lesionlab.evaluation.subgroups import subgroup_columns, subgroup_levels, subgroup_table
from lesionlab.evaluation.uncertainty import (
    decision_uncertainty,
    referral_metrics,
    referral_threshold,
    risk_coverage,
    selective_metrics,
)
from lesionlab.files import file_digest, read_json, whole_folder, write_json, write_table
from lesionlab.params import EvaluateParams

ENSEMBLE = "ensemble"
CHANCE = "chance"  # a row of what one gets without looking
VALIDATION = "validation"  # a part of the metrics, not a row
# Of all that plots/evaluate/figures.csv holds, what metrics/evaluate.json repeats for `dvc metrics diff`.
CLASSIFICATION = ("accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1", "roc_auc", "pr_auc")
HEADLINES = (*CLASSIFICATION, "ece", "ece_before_scaling", "aurc", "aurc_gain", "error_at_90_coverage")
CONTROL_HEADLINES = ("accuracy", "balanced_accuracy", "roc_auc")


@dataclass(frozen=True)
class Paths:
    """What the evaluate stage reads (crops, split, proof, models) and writes (metrics, plots as CSV, pictures).

    members: models of the ensemble that are no rows of their own; none: those that evaluate.ensemble names.
    """

    crops: Path
    split: Path
    proof: Path
    models: list[Path]
    members: list[Path]
    metrics: Path
    plots: Path
    pictures: Path


def run_evaluation(
    paths: Paths, params: EvaluateParams, *, batch_size: int, sensitivity: float | None, seed: int
) -> dict:
    """Evaluate every model on the same test crops, write everything, and return what metrics/evaluate.json holds.

    The test subset chooses nothing: thresholds and temperatures come from validation. sensitivity: what thresholds
    that are chosen here must reach there; None for the largest Youden index.
    """
    started = time.perf_counter()
    crops = candidates.read_crops(paths.crops, paths.split)
    columns = subgroup_columns(crops.index, params.subgroups)
    levels = {column: subgroup_levels(crops.index, column) for column in columns}
    found, pairs, classes = _candidates(paths, crops, params, batch_size, sensitivity, seed)
    figures = {name: candidate.figures(params.resamples, seed) for name, candidate in found.items()}
    networks = {name: candidate for name, candidate in found.items() if candidate.uncalibrated is not None}
    best = candidates.best_on_validation({name: found[name] for name in networks if name != ENSEMBLE})
    scores = {name: candidate.test for name, candidate in found.items()}
    comparison = compare([*pairs, *((best, control) for control in CONTROLS)], scores, figures)
    rows = crops.rows("test")
    tables = {
        "figures": pd.concat([figure.table().assign(model=name) for name, figure in figures.items()])[
            ["model", "metric", "value", "low", "high"]
        ],
        "comparison": comparison,
        "calibration": calibration_table(networks, figures),
        "uncertainty": uncertainty_table(networks, params, seed),
        "subgroups": subgroup_table(
            {name: candidate.test for name, candidate in networks.items()},
            {column: names.iloc[rows] for column, names in levels.items()},
            classes, params.resamples, seed,
        ),
    }  # fmt: skip
    tables |= curves(networks, found)
    tables |= predictions(networks, crops, classes, params.refer_rate)
    proof = read_json(paths.proof)
    metrics = describe(figures, comparison, warn_of_controls(best, figures), proof, crops, params.resamples, seed)
    metrics[VALIDATION] = validation_accuracy(networks, params.resamples, seed)
    write_json(paths.metrics, metrics)
    with whole_folder(paths.plots) as folder:
        for name, table in tables.items():
            write_table(folder / f"{name}.csv", table)
    _draw(paths, tables, figures, found, networks, crops, classes, params.worst)
    tracking.log_stage(
        "evaluate",
        params={"seed": seed, "evaluate": params.model_dump()},
        history=None,
        metrics={model: metrics[model] for model in figures},
        pictures=[paths.pictures],
        tags={"lesionlab.data": file_digest(paths.split), "lesionlab.protocol": proof["protocol"]},
        seconds=time.perf_counter() - started,
    )
    return metrics


def _candidates(
    paths: Paths, crops: Crops, params: EvaluateParams, batch_size: int, sensitivity: float | None, seed: int
) -> tuple[dict[str, Candidate], list[tuple[str, str]], list[str]]:
    """All rows of the table, the pairs of them that are compared, and the classes."""
    given = [folder.name for folder in paths.models]
    reserved = (ENSEMBLE, CHANCE, *CONTROLS, VALIDATION)
    if len(set(given)) < len(given) or set(reserved) & set(given):
        raise InputError(
            f"--model: {', '.join(given)}: folders must have names of their own, other than {', '.join(reserved)}"
        )
    models, classes = candidates.load_models(list(dict.fromkeys([*paths.models, *paths.members])), crops)
    evaluate = partial(candidates.network, crops=crops, params=params, batch_size=batch_size, seed=seed)
    found, averaged = {}, {}
    for folder in paths.models:
        own, *views = evaluate(folder.name, models[folder]).items()
        found |= dict([own])
        averaged |= dict(views)
    names = list(found)
    pairs = [(later, earlier) for number, later in enumerate(names) for earlier in names[:number]]
    members = {name: found[name] for name in params.ensemble if name in found}
    if paths.members:
        plain = params.model_copy(update={"mc_dropout": 0, "tta": 0})
        members = {str(path): evaluate(path.name, models[path], params=plain)[path.name] for path in paths.members}
    if len(members) > 1:
        found[ENSEMBLE] = candidates.ensemble(list(members.values()), sensitivity)
        pairs += [(ENSEMBLE, name) for name in members if name in found]
    pairs += [(name, name.removesuffix("_tta")) for name in averaged]
    return found | averaged | candidates.controls(crops, classes, sensitivity), pairs, classes


def describe(
    figures: dict[str, Figures],
    comparison: pd.DataFrame,
    warning: str | None,
    proof: dict,
    crops: Crops,
    resamples: int,
    seed: int,
) -> dict:
    """metrics/evaluate.json: protocol, seed, size of the test subset; headline metrics as value, low, high."""
    test = crops.index.iloc[crops.rows("test")]
    content = {
        "subset": "test",
        "protocol": proof["protocol"],
        "group_disjoint": proof["group_disjoint"],
        "grouped_by": proof["grouped_by"],
        "labels": proof["labels"],
        "seed": seed,
        "resamples": resamples,
        "crops": len(test),
        "groups": test["group"].nunique(),
    }
    for name, figure in figures.items():
        table = figure.table().set_index("metric")
        wanted = CONTROL_HEADLINES if name in CONTROLS else [metric for metric in HEADLINES if metric in table.index]
        content[name] = {metric: _figure(table.loc[metric], "value") for metric in wanted}
    content[CHANCE] = chance(test["label"], crops.index["label"].nunique())
    content["comparison"] = {
        f"{model}_minus_{reference}": {
            **{row["metric"]: _figure(row, "difference") for _, row in rows.iterrows() if row["metric"] in COMPARED},
            "mcnemar_p": _number(rows.loc[rows["metric"] == "accuracy", "p_value"].iloc[0]),
            "delong_p": _number(rows.loc[rows["metric"] == "roc_auc", "p_value"].iloc[0]),
        }
        for (model, reference), rows in comparison.groupby(["model", "reference"], sort=False)
        if reference not in CONTROLS
    }
    content["warning"] = warning
    return content


def validation_accuracy(networks: dict[str, Candidate], resamples: int, seed: int) -> dict[str, dict]:
    """Accuracy on validation crops by the most probable class, as training reports it, with its interval.

    Epoch, temperature, threshold and often the settings were chosen there, so it flatters.
    """
    found = {}
    for name, candidate in networks.items():
        scores = replace(candidate.validation, threshold=None)
        figures = resample(partial(classification_metrics, scores), scores.groups, resamples, seed)
        found[name] = {"accuracy": _figure(figures.table().set_index("metric").loc["accuracy"], "value")}
    return found


def chance(labels: pd.Series, classes: int) -> dict[str, dict[str, float | None]]:
    """Figures of calling every test crop the most frequent class, without an interval."""
    values = {"accuracy": labels.value_counts(normalize=True).max(), "balanced_accuracy": 1 / classes, "roc_auc": 0.5}
    return {name: {"value": float(value), "low": None, "high": None} for name, value in values.items()}


def calibration_table(networks: dict[str, Candidate], figures: dict[str, Figures]) -> pd.DataFrame:
    """A row a model, state and metric: model, temperature, scaled (false: all temperatures 1), metric, value, ..."""
    rows = []
    for name, candidate in networks.items():
        table = figures[name].table().set_index("metric")
        for scaled in (False, True):
            for metric in ("ece", "ece_adaptive", "brier", "log_loss"):
                row = table.loc[metric if scaled else f"{metric}_before_scaling"]
                temperature = candidate.temperature if scaled else 1.0
                rows.append({"model": name, "temperature": temperature, "scaled": scaled, "metric": metric, **row})
    return pd.DataFrame(rows)


def uncertainty_table(networks: dict[str, Candidate], params: EvaluateParams, seed: int) -> pd.DataFrame:
    """A row a model, measure and metric: model, measure, metric, value, low, high (95 %, bootstrap over groups).

    Measures: decision (1 - probability of the called class), entropy, mutual_information where there are members; of
    each the risk-coverage figures. `decision` has the referral's figures too.
    """
    parts = []
    for name, candidate in networks.items():
        wrong, groups = candidate.test.wrong, candidate.test.groups
        measures = {"decision": decision_uncertainty(candidate.test), "entropy": candidate.entropy}
        if candidate.members is not None:
            measures["mutual_information"] = candidate.mutual_information
        functions = [(key, partial(selective_metrics, wrong, value)) for key, value in measures.items()]
        referred = measures["decision"] > referral_threshold(candidate.validation, params.refer_rate)
        functions.append(("decision", referral_metrics(wrong, referred)))
        for measure, function in functions:
            table = resample(function, groups, params.resamples, seed).table()
            parts.append(table.assign(model=name, measure=measure))
    return pd.concat(parts)[["model", "measure", "metric", "value", "low", "high"]]


def curves(networks: dict[str, Candidate], found: dict[str, Candidate]) -> dict[str, pd.DataFrame]:
    """Points of ROC and precision-recall of all rows; reliability and risk-coverage of the networks."""
    tables = {f"roc_{name}": pictures.roc_points(candidate.test) for name, candidate in found.items()}
    tables |= {f"pr_{name}": pictures.pr_points(candidate.test) for name, candidate in found.items()}
    for name, candidate in networks.items():
        tables[f"reliability_{name}"] = reliability(candidate.test)
        tables[f"reliability_unscaled_{name}"] = reliability(candidate.uncalibrated)
        curve = risk_coverage(candidate.test.wrong, decision_uncertainty(candidate.test))
        tables[f"risk_coverage_{name}"] = pictures.thin(curve)
    return tables


def predictions(
    networks: dict[str, Candidate], crops: Crops, classes: list[str], refer_rate: float
) -> dict[str, pd.DataFrame]:
    """A row a test crop: id, label, predicted, p_<class>, entropy, mutual_information, uncertainty, referred.

    And, for DVC's confusion matrix, actual and predicted class alone.
    """
    tables, names = {}, np.array(classes)
    for name, candidate in networks.items():
        scores, uncertainty = candidate.test, decision_uncertainty(candidate.test)
        columns = {"id": crops.index["id"].to_numpy()[crops.rows("test")], "label": names[scores.labels]}
        columns["predicted"] = names[scores.predicted]
        columns |= {f"p_{label}": scores.probabilities[:, number] for number, label in enumerate(classes)}
        columns |= {"entropy": candidate.entropy, "mutual_information": candidate.mutual_information}
        columns |= {"uncertainty": uncertainty}
        columns["referred"] = (uncertainty > referral_threshold(candidate.validation, refer_rate)).astype(int)
        tables[f"predictions_{name}"] = pd.DataFrame(columns)
        tables[f"confusion_{name}"] = pd.DataFrame({"actual": columns["label"], "predicted": columns["predicted"]})
    return tables


def _draw(
    paths: Paths,
    tables: dict[str, pd.DataFrame],
    figures: dict[str, Figures],
    found: dict[str, Candidate],
    networks: dict[str, Candidate],
    crops: Crops,
    classes: list[str],
    worst: int,
) -> None:
    values = {name: figure.table().set_index("metric") for name, figure in figures.items()}
    shown = [name for name in found if name in networks or name in CONTROLS]

    def titled(names: list[str], metric: str, word: str) -> dict[str, str]:
        rows = {name: values[name].loc[metric] for name in names}
        return {name: f"{name}: {word} {r['value']:.3f} [{r['low']:.3f}, {r['high']:.3f}]" for name, r in rows.items()}

    def points(kind: str, names: list[str]) -> dict[str, pd.DataFrame]:
        return {name: tables[f"{kind}_{name}"] for name in names}

    with whole_folder(paths.pictures) as folder:
        pictures.draw_roc(folder / "roc.png", points("roc", shown), titled(shown, "roc_auc", "AUC"), len(classes))
        pictures.draw_pr(folder / "pr.png", points("pr", shown), titled(shown, "pr_auc", "AP"), len(classes))
        pictures.draw_reliability(
            folder / "calibration.png",
            {
                "temperature 1": (
                    points("reliability_unscaled", list(networks)),
                    titled(list(networks), "ece_before_scaling", "ECE"),
                ),
                "temperature fitted on validation": (
                    points("reliability", list(networks)),
                    titled(list(networks), "ece", "ECE"),
                ),
            },
        )
        errors = {name: values[name].loc["aurc_random", "value"] for name in networks}
        pictures.draw_risk_coverage(
            folder / "risk_coverage.png",
            points("risk_coverage", list(networks)), errors, titled(list(networks), "aurc", "area"),
        )  # fmt: skip
        for column, table in tables["subgroups"].groupby("column", sort=False):
            name = re.sub(r"[^\w.-]", "_", str(column))  # a card's column may be called anything
            pictures.draw_subgroups(folder / f"subgroups_{name}.png", table, str(column))
        rows = crops.rows("test")
        for folder_of_model in paths.models:
            model = folder_of_model.name
            sheet = folder / f"worst_{model}.png"
            pictures.draw_worst(sheet, networks[model].test, crops.images, rows, classes, worst)
        pictures.draw_confusion(folder / "confusion.png", {name: c.test for name, c in networks.items()}, classes)


def _figure(row: pd.Series, value: str) -> dict[str, float | None]:
    return {"value": _number(row[value]), "low": _number(row["low"]), "high": _number(row["high"])}


def _number(value: float) -> float | None:
    """JSON has no NaN: a figure that is not defined is null."""
    return None if pd.isna(value) else float(value)
