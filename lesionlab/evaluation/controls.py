"""Cheap controls: how far does a linear model get that sees colours alone, neither shape nor texture?"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lesionlab.evaluation.metrics import Figures
from lesionlab.progress import progress

CHUNK = 256  # crops in memory at once
LEVELS = 4  # of each colour channel in the histogram: 64 bins
MARGIN = 0.02  # of balanced accuracy: a control that may be this near comes close


def mean_colour(images: np.ndarray) -> np.ndarray:
    """(n, size, size, 3) uint8 RGB to (n, 3): mean of each channel, in grey levels."""
    return images.mean(axis=(1, 2), dtype="float64")


def colour_histogram(images: np.ndarray) -> np.ndarray:
    """(n, size, size, 3) uint8 RGB to (n, 64): part of the pixels in each cell of a 4 x 4 x 4 grid of colours."""
    levels = images.reshape(len(images), -1, 3) // (256 // LEVELS)
    cells = (levels[..., 0].astype("int64") * LEVELS + levels[..., 1]) * LEVELS + levels[..., 2]
    cells += np.arange(len(images))[:, None] * LEVELS**3
    counts = np.bincount(cells.ravel(), minlength=len(images) * LEVELS**3)
    return counts.reshape(len(images), -1) / levels.shape[1]


CONTROLS = {"control_mean_colour": mean_colour, "control_colour_histogram": colour_histogram}


def control_probabilities(
    images: np.ndarray, labels: np.ndarray, train: np.ndarray, others: list[np.ndarray], classes: int
) -> dict[str, list[np.ndarray]]:
    """Class probabilities that a logistic regression on each control's features gives: (len(rows), classes) each.

    images: (n, size, size, 3) uint8, may be memory-mapped. labels: (n,). train: rows to fit on, classes weighted alike.
    others: rows to predict, an array a subset. A class that no training crop has gets probability 0.
    """
    rows = [train, *others]
    parts = {name: [[] for _ in rows] for name in CONTROLS}
    todo = [(number, start) for number, chosen in enumerate(rows) for start in range(0, len(chosen), CHUNK)]
    for number, start in progress(todo, desc="evaluate colour controls", unit="batch", leave=False):
        pixels = np.asarray(images[rows[number][start : start + CHUNK]])
        for name, features in CONTROLS.items():
            parts[name][number].append(features(pixels))
    result = {}
    for name in CONTROLS:
        fitted, *predicted = map(np.concatenate, parts[name])
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))
        model.fit(fitted, labels[train])
        result[name] = [np.zeros((len(part), classes)) for part in predicted]
        for target, part in zip(result[name], predicted, strict=True):
            target[:, model.classes_] = model.predict_proba(part)
    return result


def warn_of_controls(best: str, figures: dict[str, Figures]) -> str | None:
    """One sentence a control whose balanced accuracy may be within MARGIN of the network's; None where none is.

    best: the network that was best on validation. The paired interval decides: a network that is not shown to be
    better than a mean colour has not been shown to see anything else.
    """
    sentences = []
    for control in CONTROLS:
        row = figures[best].minus(figures[control]).table().set_index("metric").loc["balanced_accuracy"]
        if np.isnan(row["low"]):
            sentences.append(f"{control} is not shown to be worse than {best}: test crops of too few groups or classes")
        elif row["low"] <= MARGIN:
            sentences.append(
                f"{control} comes close to {best}: balanced accuracy lower by {row['value']:.3f} "
                f"[{row['low']:.3f}, {row['high']:.3f}]"
            )
    return "; ".join(sentences) or None
