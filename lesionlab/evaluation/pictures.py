"""Pictures of the evaluation: curves, confusion matrices, the worst mistakes."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.metrics import ConfusionMatrixDisplay, precision_recall_curve, roc_curve

from lesionlab.evaluation.metrics import Scores
from lesionlab.pictures import MODEL_COLOURS, save_contact_sheet, save_figure

OTHER_COLOUR = "black"  # of a model that the pipeline does not name
CURVE_POINTS = 400  # at most, in a CSV


def roc_points(scores: Scores) -> pd.DataFrame:
    """ROC curve: false_positive_rate, true_positive_rate, threshold; for more than two classes the micro-average."""
    false_positive_rate, true_positive_rate, thresholds = roc_curve(*_binary(scores))
    table = pd.DataFrame({"false_positive_rate": false_positive_rate, "true_positive_rate": true_positive_rate})
    return _thin(table.assign(threshold=np.minimum(thresholds, 1.0)))


def pr_points(scores: Scores) -> pd.DataFrame:
    """Precision-recall curve: recall, precision, threshold; for more than two classes the micro-average."""
    precision, recall, thresholds = precision_recall_curve(*_binary(scores))
    return _thin(pd.DataFrame({"recall": recall, "precision": precision, "threshold": np.append(thresholds, 1.0)}))


def draw_curves(path: Path, curves: dict[str, pd.DataFrame], x: str, y: str, titles: dict[str, str]) -> None:
    """One curve a model, in the model's colour. titles: text of each model in the legend."""
    figure, axis = plt.subplots(figsize=(5, 4.6))
    for model, table in curves.items():
        axis.plot(table[x], table[y], color=MODEL_COLOURS.get(model, OTHER_COLOUR), label=titles[model], linewidth=1.8)
    if x == "false_positive_rate":
        axis.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1, label="chance")
    axis.set(xlabel=x.replace("_", " "), ylabel=y.replace("_", " "), xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axis.grid(alpha=0.3)
    axis.legend(loc="lower left" if y == "precision" else "lower right", fontsize=8)
    save_figure(figure, path)


def draw_confusion(path: Path, scores: dict[str, Scores], classes: list[str]) -> None:
    """A confusion matrix a model: number of crops, actual class down, predicted class across."""
    side = max(3.0, 0.6 * len(classes) + 1.5)
    figure, axes = plt.subplots(1, len(scores), figsize=(side * len(scores), side), squeeze=False)
    for axis, (model, score) in zip(axes[0], scores.items(), strict=True):
        ConfusionMatrixDisplay.from_predictions(
            score.labels, score.predicted, labels=np.arange(len(classes)), display_labels=classes,
            ax=axis, colorbar=False, cmap="Blues", xticks_rotation=0 if len(classes) == 2 else 60,
        )  # fmt: skip
        axis.set_title(model, color=MODEL_COLOURS.get(model, OTHER_COLOUR))
    figure.tight_layout()
    save_figure(figure, path)


def draw_worst(path: Path, scores: Scores, images: np.ndarray, classes: list[str], count: int) -> None:
    """Contact sheet of the mistakes that the model was surest of, a block for each kind of mistake.

    images: (n, size, size, 3) uint8, the crops of `scores`.
    """
    wrong = np.flatnonzero(scores.predicted != scores.labels)
    confidence = scores.probabilities[np.arange(len(scores.labels)), scores.predicted]
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    blocks = []
    for actual in range(len(classes)):
        chosen = wrong[scores.labels[wrong] == actual]
        if len(chosen):
            called = ", ".join(sorted({classes[k] for k in scores.predicted[chosen]}))
            blocks.append((f"{classes[actual]}, called {called} (surest first)", images[chosen]))
    if not blocks:
        blocks = [("no mistakes on the test subset", np.full((1, *images.shape[1:]), 255, dtype="uint8"))]
    save_contact_sheet(path, blocks, columns=8)


def _binary(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    classes = scores.probabilities.shape[1]
    if classes == 2:
        return scores.labels, scores.probabilities[:, 1]
    return np.eye(classes)[scores.labels].ravel(), scores.probabilities.ravel()


def _thin(table: pd.DataFrame) -> pd.DataFrame:
    if len(table) <= CURVE_POINTS:
        return table
    return table.iloc[np.unique(np.linspace(0, len(table) - 1, CURVE_POINTS).round().astype(int))]
