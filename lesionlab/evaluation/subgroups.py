"""On whom does a model work: metrics by sequence, centre, scanner, size of the lesion."""

import sys
from itertools import pairwise

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from lesionlab.errors import InputError
from lesionlab.evaluation.metrics import Scores, with_intervals
from lesionlab.files import INDEX_COLUMNS

LESION_SIZE = "lesion_size"
UNKNOWN = "unknown"  # the subgroup of crops whose cell is empty
METRICS = ("accuracy", "recall", "specificity", "roc_auc")
FEW_LEVELS = 3  # a numeric column with more values is cut in thirds
FEW_GROUPS = 10  # below it the bootstrap over groups gives rough intervals


def subgroup_columns(index: pd.DataFrame, wanted: list[str]) -> list[str]:
    """`wanted` without `lesion_size` where each crop is a whole image, whose size says nothing of a lesion's.

    What is left out is said on the console.
    """
    if LESION_SIZE not in wanted or not index["frame"].is_unique:
        return wanted
    print(f"evaluate: no subgroups by {LESION_SIZE}: every crop is a whole image, not a lesion", file=sys.stderr)
    return [column for column in wanted if column != LESION_SIZE]


def subgroup_levels(index: pd.DataFrame, column: str) -> pd.Series:
    """The subgroup of every crop: the column's text, the third that a number lies in, or `unknown` for an empty cell.

    index: all crops, not only those of the test subset, so that the thirds are the same for every fold.
    `lesion_size` is derived: the side in pixels of a crop's window in its frame, which is the lesion's longer side
    plus context, give or take the crop stage's jitter; background windows are cut at the sizes of the lesions.
    Raises InputError where there is no such column.
    """
    if column == LESION_SIZE:
        values = index["width"]
    elif column in index:
        values = index[column]
    else:
        known = ", ".join([LESION_SIZE, *index.columns])
        raise InputError(f"params.yaml: evaluate.subgroups: '{column}' is no column of the crops' index (has: {known})")
    filled = values != ""
    numbers = _numbers(values[filled])
    if numbers is None or numbers.nunique() <= FEW_LEVELS:
        return values.astype(str).where(filled, UNKNOWN)
    edges = np.unique(numbers.quantile([0, 1 / 3, 2 / 3, 1]))
    names = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    thirds = pd.cut(numbers, edges, labels=names, include_lowest=True).astype(str)
    names += [] if filled.all() else [UNKNOWN]
    return thirds.reindex(values.index, fill_value=UNKNOWN).astype(pd.CategoricalDtype(names, ordered=True))


def _numbers(values: pd.Series) -> pd.Series | None:
    """The same as numbers, None where a value is none. Of the index's own columns text is a name, digits or not."""
    if is_numeric_dtype(values):
        return values
    numbers = pd.to_numeric(values, errors="coerce")
    return None if values.name in INDEX_COLUMNS or not np.isfinite(numbers).all() else numbers


def subgroup_table(
    scores: dict[str, Scores], levels: dict[str, pd.Series], classes: list[str], resamples: int, seed: int
) -> pd.DataFrame:
    """Metrics of each model on each subgroup of the test crops, with intervals, long.

    levels: for each column the subgroup of every test crop. model, column, level, crops, groups, metric, value, low,
    high (95 %, bootstrap over the subgroup's groups), note. A metric that a subgroup does not define is NaN.
    """
    rows = []
    for column, names in levels.items():
        for level in names.cat.categories if names.dtype == "category" else sorted(names.unique()):
            inside = (names == level).to_numpy()
            if not inside.any():
                continue
            for model, whole in scores.items():
                part = Scores(whole.labels[inside], whole.probabilities[inside], whole.groups[inside], whole.threshold)
                table = _metrics(part, resamples, seed)
                head = {"model": model, "column": column, "level": level, "crops": int(inside.sum())}
                head |= {"groups": len(np.unique(part.groups)), "note": _note(part, classes)}
                rows += [head | row for row in table.to_dict("records")]
    order = ["model", "column", "level", "crops", "groups", "metric", "value", "low", "high", "note"]
    return pd.DataFrame(rows, columns=order)


def _metrics(scores: Scores, resamples: int, seed: int) -> pd.DataFrame:
    table = with_intervals(scores, resamples, seed)
    return table[table["metric"].isin(METRICS)]


def _note(scores: Scores, classes: list[str]) -> str:
    notes = []
    absent = [name for number, name in enumerate(classes) if number not in scores.labels]
    if absent:
        notes.append(f"no crop of class {', '.join(absent)}")
    groups = len(np.unique(scores.groups))
    if groups == 1:
        notes.append("one group: no interval")
    elif groups < FEW_GROUPS:
        notes.append(f"{groups} groups: rough interval")
    return "; ".join(notes)
