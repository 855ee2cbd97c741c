"""What a model said of validation and test crops, as a CSV that a study's summary reads."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from lesionlab.errors import InputError
from lesionlab.evaluation.metrics import Scores, classification_metrics
from lesionlab.files import read_table, write_table
from lesionlab.training.threshold import choose_threshold

COLUMNS = ("id", "subset", "group", "label")
PREFIX = "probability_"  # of the columns after those: probability_<class>
SUBSETS = ("val", "test")


@dataclass(frozen=True)
class Predictions:
    """What one model said. With two classes the threshold is validation's.

    ids, val_ids: of the test and the validation crops, to pair models.
    """

    val: Scores
    test: Scores
    ids: np.ndarray
    val_ids: np.ndarray
    classes: list[str]


def write_predictions(path: Path, index: pd.DataFrame, probabilities: np.ndarray, classes: list[str]) -> None:
    """Write a row a crop. index: crops with COLUMNS. probabilities: (n, classes), in the order of `classes`."""
    columns = [f"{PREFIX}{name}" for name in classes]
    table = pd.DataFrame(probabilities, columns=columns, index=index.index)
    write_table(path, pd.concat([index[list(COLUMNS)], table], axis=1))


def read_predictions(path: Path, validation: Path | None = None, sensitivity: float | None = None) -> Predictions:
    """Read what `write_predictions` wrote. Raises InputError when it is missing or lacks a column.

    validation: what the same model said of the data set that trained it, where that of `path` has no validation crops.
    sensitivity: what the threshold of two classes must reach on validation; None: at the largest Youden index.
    """
    table = read_table(path, COLUMNS, text=("subset", "group", "label"))
    if validation is not None:
        trained = read_table(validation, COLUMNS, text=("subset", "group", "label"))
        table = pd.concat([trained[trained["subset"] == "val"], table])
    classes = [name.removeprefix(PREFIX) for name in table if name.startswith(PREFIX)]
    labels = table["label"].map({name: number for number, name in enumerate(classes)}).to_numpy()
    probabilities = table[[f"{PREFIX}{name}" for name in classes]].to_numpy()
    probabilities /= probabilities.sum(axis=1, keepdims=True)  # the CSV holds six digits
    val, test = ((table["subset"] == name).to_numpy() for name in SUBSETS)
    threshold = choose_threshold(labels[val], probabilities[val, 1], sensitivity) if len(classes) == 2 else None
    groups = table["group"].to_numpy()
    parts = [Scores(labels[rows], probabilities[rows], groups[rows], threshold) for rows in (val, test)]
    ids = table["id"].to_numpy()
    return Predictions(*parts, ids[test], ids[val], classes)


def mean_of(members: list[Predictions], sensitivity: float | None = None) -> Predictions:
    """The mean of the members' probabilities, with a threshold of its own.

    Raises InputError when the members saw other crops or classes, be it in validation alone.
    """
    first = members[0]
    for member in members[1:]:
        same = np.array_equal(member.ids, first.ids) and np.array_equal(member.val_ids, first.val_ids)
        if member.classes != first.classes or not same:
            raise InputError("ensemble: members predict other crops or classes; run dvc repro in the study's folder")
    val, test = (np.mean([getattr(member, part).probabilities for member in members], axis=0) for part in SUBSETS)
    threshold = choose_threshold(first.val.labels, val[:, 1], sensitivity) if len(first.classes) == 2 else None
    parts = [
        Scores(one.labels, probabilities, one.groups, threshold)
        for one, probabilities in ((first.val, val), (first.test, test))
    ]
    return Predictions(*parts, first.ids, first.val_ids, first.classes)


def out_of_fold(folds: list[Predictions], sensitivity: float | None = None) -> Predictions:
    """The mean of what folds said of one test subset, with a threshold from all that any of them validated on.

    folds: each said something of validation crops of its own, which train the others.
    Raises InputError when they saw other test crops or classes, or share a validation crop.
    """
    first, val_ids = folds[0], np.concatenate([fold.val_ids for fold in folds])
    if any(fold.classes != first.classes or not np.array_equal(fold.ids, first.ids) for fold in folds):
        raise InputError("ensemble: folds predict other test crops or classes; run dvc repro in the study's folder")
    if len(np.unique(val_ids)) < len(val_ids):
        raise InputError("ensemble: folds share validation crops; run dvc repro in the study's folder")
    labels, val, groups = (
        np.concatenate([getattr(fold.val, name) for fold in folds]) for name in ("labels", "probabilities", "groups")
    )
    test = np.mean([fold.test.probabilities for fold in folds], axis=0)
    threshold = choose_threshold(labels, val[:, 1], sensitivity) if len(first.classes) == 2 else None
    scores = Scores(labels, val, groups, threshold), replace(first.test, probabilities=test, threshold=threshold)
    return Predictions(*scores, first.ids, val_ids, first.classes)


def point_metrics(scores: Scores) -> dict[str, float]:
    """Each metric of `classification_metrics`, without interval."""
    return {
        name: float(value[0])
        for name, value in classification_metrics(scores, np.ones((1, len(scores.labels)))).items()
    }
