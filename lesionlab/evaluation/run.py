"""Each model on the test subset: metrics with intervals, curves, confusion matrices, the worst mistakes."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lesionlab import tracking
from lesionlab.errors import InputError
from lesionlab.evaluation import pictures
from lesionlab.evaluation.metrics import Scores, with_intervals
from lesionlab.files import (
    file_digest,
    read_images,
    read_index,
    read_json,
    read_split,
    whole_folder,
    write_json,
    write_table,
)
from lesionlab.models.saved import Classifier, load_classifier
from lesionlab.params import EvaluateParams


@dataclass(frozen=True)
class Paths:
    """What the evaluate stage reads (crops, split, proof, models) and writes (metrics, plots as CSV, pictures)."""

    crops: Path
    split: Path
    proof: Path
    models: list[Path]
    metrics: Path
    plots: Path
    pictures: Path


def run_evaluation(paths: Paths, params: EvaluateParams, *, batch_size: int, seed: int) -> pd.DataFrame:
    """Evaluate every model on the same test crops, write everything, and return the table of figures.

    The test subset chooses nothing: each threshold comes from model.json, where validation put it.
    """
    started = time.perf_counter()
    index = read_split(paths.split, read_index(paths.crops))
    images = read_images(paths.crops)
    rows = np.flatnonzero(index["subset"] == "test")
    test = index.iloc[rows]
    scores: dict[str, Scores] = {}
    classes: list[str] = []
    for folder in paths.models:
        classifier = load_classifier(folder)
        classes = _same_classes(classes, classifier, folder)
        unknown = sorted(set(test["label"]) - set(classes))
        if unknown:
            raise InputError(f"{folder}: knows no class '{unknown[0]}' (knows {', '.join(classes)}); run dvc repro")
        labels = test["label"].map({name: k for k, name in enumerate(classes)}).to_numpy()
        probabilities = classifier.predict(images, rows, batch_size, desc=f"evaluate {folder.name}")
        scores[folder.name] = Scores(labels, probabilities, test["group"].to_numpy(), classifier.description.threshold)
    tables = {name: with_intervals(score, params.resamples, seed) for name, score in scores.items()}
    proof = read_json(paths.proof)
    metrics = describe(tables, test, proof, seed, params.resamples)
    write_json(paths.metrics, metrics)
    curves = {
        "roc": {model: pictures.roc_points(score) for model, score in scores.items()},
        "pr": {model: pictures.pr_points(score) for model, score in scores.items()},
    }
    _write_plots(paths.plots, curves, scores, classes)
    _draw_pictures(paths.pictures, curves, scores, tables, np.asarray(images[rows]), classes, params.worst)
    tracking.log_stage(
        "evaluate",
        params={"seed": seed, "evaluate": params.model_dump()},
        history=None,
        metrics={model: metrics[model] for model in tables},
        pictures=[paths.pictures],
        tags={"lesionlab.data": file_digest(paths.split), "lesionlab.protocol": proof["protocol"]},
        seconds=time.perf_counter() - started,
    )
    return pd.concat([table.assign(model=name) for name, table in tables.items()])


def describe(tables: dict[str, pd.DataFrame], test: pd.DataFrame, proof: dict, seed: int, resamples: int) -> dict:
    """metrics/evaluate.json: protocol, seed, size of the test subset; each metric as value, low, high."""
    figures = {
        model: {row.metric: {"value": row.value, "low": row.low, "high": row.high} for row in table.itertuples()}
        for model, table in tables.items()
    }
    return {
        "subset": "test",
        "protocol": proof["protocol"],
        "group_disjoint": proof["group_disjoint"],
        "labels": proof["labels"],
        "seed": seed,
        "resamples": resamples,
        "crops": len(test),
        "groups": test["group"].nunique(),
        **figures,
    }


def _same_classes(classes: list[str], classifier: Classifier, folder: Path) -> list[str]:
    own = classifier.description.architecture.classes
    if classes and own != classes:
        raise InputError(f"{folder}: classes {own} differ from the other models' {classes}; run dvc repro")
    return own


def _write_plots(
    folder: Path, curves: dict[str, dict[str, pd.DataFrame]], scores: dict[str, Scores], classes: list[str]
) -> None:
    names = np.array(classes)
    with whole_folder(folder) as temporary:
        for kind, points in curves.items():
            for model, table in points.items():
                write_table(temporary / f"{kind}_{model}.csv", table)
        for model, score in scores.items():
            table = pd.DataFrame({"actual": names[score.labels], "predicted": names[score.predicted]})
            write_table(temporary / f"confusion_{model}.csv", table)


def _draw_pictures(
    folder: Path,
    curves: dict[str, dict[str, pd.DataFrame]],
    scores: dict[str, Scores],
    tables: dict[str, pd.DataFrame],
    images: np.ndarray,
    classes: list[str],
    worst: int,
) -> None:
    axes = {
        "roc": ("false_positive_rate", "true_positive_rate", "roc_auc"),
        "pr": ("recall", "precision", "pr_auc"),
    }
    with whole_folder(folder) as temporary:
        for kind, (x, y, area) in axes.items():
            titles = {model: _legend(model, table, area) for model, table in tables.items()}
            pictures.draw_curves(temporary / f"{kind}.png", curves[kind], x, y, titles)
        for model, score in scores.items():
            pictures.draw_worst(temporary / f"worst_{model}.png", score, images, classes, worst)
        pictures.draw_confusion(temporary / "confusion.png", scores, classes)


def _legend(model: str, table: pd.DataFrame, area: str) -> str:
    row = table.set_index("metric").loc[area]
    return f"{model}: {area.replace('_', ' ').upper()} {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
