"""Test figures of a study's cells: classification metrics and what ranking by certainty gains, with their intervals.

Apart from predictions.py, on which the predict stages depend: another figure makes no model predict again.
"""

from functools import partial

import numpy as np
import pandas as pd

from lesionlab.evaluation.metrics import Scores, classification_metrics, resample
from lesionlab.evaluation.uncertainty import decision_uncertainty, selective_metrics

GAIN = "aurc_gain"
GAIN_NOTE = (
    "Aurc gain: area under the risk-coverage curve of a random order (the error rate) less that of the order by "
    "certainty; above 0 is better than random."
)


def cell_metrics(scores: Scores, weights: np.ndarray) -> dict[str, np.ndarray]:
    """`classification_metrics` and aurc_gain under each row of weights, of the order that the evaluate stage uses."""
    selective = selective_metrics(scores.wrong, decision_uncertainty(scores), weights)
    return classification_metrics(scores, weights) | {GAIN: selective[GAIN]}


def cell_points(scores: Scores) -> dict[str, float]:
    """Each metric of `cell_metrics`, without interval."""
    figures = cell_metrics(scores, np.ones((1, len(scores.labels))))
    return {name: float(value[0]) for name, value in figures.items()}


def cell_intervals(scores: Scores, resamples: int, seed: int) -> pd.DataFrame:
    """Each metric of `cell_metrics` as a row, which is named so: value, low, high (95 %, bootstrap over groups)."""
    return resample(partial(cell_metrics, scores), scores.groups, resamples, seed).table().set_index("metric")


def difference(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """First minus second figures of two test sets: a row a metric, value, low, high.

    first, second: the same columns, with 95 % intervals of estimates taken as independent; wider than it need be where
    the test sets share groups. Source: Zou & Donner, Construction of confidence limits about effect measures,
    Statistics in Medicine 27:1693-1702, 2008, equation for the difference of two independent estimates.
    """
    value = first["value"] - second["value"]
    below = np.hypot(first["value"] - first["low"], second["high"] - second["value"])
    above = np.hypot(first["high"] - first["value"], second["value"] - second["low"])
    return pd.DataFrame({"value": value, "low": value - below, "high": value + above})


def flat(table: pd.DataFrame) -> dict[str, float]:
    """One row for a wide table: <metric>, <metric>_low, <metric>_high of each metric."""
    ends = {"value": "", "low": "_low", "high": "_high"}
    return {f"{name}{end}": row[column] for name, row in table.iterrows() for column, end in ends.items()}
