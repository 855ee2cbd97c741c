"""Pictures of the evaluation: curves, calibration, subgroups, confusion matrices, the worst mistakes."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.metrics import ConfusionMatrixDisplay, precision_recall_curve, roc_curve

from lesionlab.evaluation.controls import CONTROLS
from lesionlab.evaluation.metrics import Scores
from lesionlab.evaluation.subgroups import LESION_SIZE
from lesionlab.pictures import model_colour, save_contact_sheet, save_figure

CURVE_POINTS = 400  # at most, in a CSV
MOST_LEVELS = 15  # subgroups in a picture: those with most crops
MARKERS = "osD^vP*X"  # a shape a model beside its colour


def roc_points(scores: Scores) -> pd.DataFrame:
    """ROC curve: false_positive_rate, true_positive_rate, threshold; for more than two classes the micro-average."""
    false_positive_rate, true_positive_rate, thresholds = roc_curve(*_binary(scores))
    table = pd.DataFrame({"false_positive_rate": false_positive_rate, "true_positive_rate": true_positive_rate})
    return thin(table.assign(threshold=np.minimum(thresholds, 1.0)))


def pr_points(scores: Scores) -> pd.DataFrame:
    """Precision-recall curve: recall, precision, threshold; for more than two classes the micro-average."""
    precision, recall, thresholds = precision_recall_curve(*_binary(scores))
    return thin(pd.DataFrame({"recall": recall, "precision": precision, "threshold": np.append(thresholds, 1.0)}))


def averaged(classes: int) -> str:
    """What a curve of more than two classes is, and the area beside it, which is not the curve's own."""
    return "curve: micro-average; area: mean over classes, one against the rest" if classes > 2 else ""


def draw_roc(path: Path, curves: dict[str, pd.DataFrame], titles: dict[str, str], classes: int = 2) -> None:
    """ROC curves. titles: text of each model in the legend."""
    figure, axis = plt.subplots(figsize=(5.4, 5))
    for model, table in curves.items():
        _line(axis, table["false_positive_rate"], table["true_positive_rate"], model, titles[model])
    axis.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1, label="chance")
    axis.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axis.set_title(averaged(classes), fontsize=9)
    _finish(figure, axis, path, "lower right")


def draw_pr(path: Path, curves: dict[str, pd.DataFrame], titles: dict[str, str], classes: int = 2) -> None:
    """Precision-recall curves. titles: text of each model in the legend."""
    figure, axis = plt.subplots(figsize=(5.4, 5))
    for model, table in curves.items():
        _line(axis, table["recall"], table["precision"], model, titles[model])
    axis.set(xlabel="recall", ylabel="precision", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axis.set_title(averaged(classes), fontsize=9)
    _finish(figure, axis, path, "lower left")


def draw_reliability(path: Path, panels: dict[str, tuple[dict[str, pd.DataFrame], dict[str, str]]]) -> None:
    """Reliability diagrams side by side: accuracy against confidence; a dot's area grows with its number of crops.

    panels: for each title the tables of `reliability` and the text of each model in the legend.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 5), sharey=True, squeeze=False)
    lowest = min(table["confidence"].min() for tables, _ in panels.values() for table in tables.values())
    for axis, (title, (tables, legend)) in zip(axes[0], panels.items(), strict=True):
        axis.plot([lowest, 1], [lowest, 1], color="#999999", linestyle=":", linewidth=1, label="perfectly calibrated")
        for model, table in tables.items():
            axis.plot(table["confidence"], table["accuracy"], color=model_colour(model), linewidth=0.8, alpha=0.7)
            area = 4 + 250 * table["crops"] / table["crops"].sum()
            dots = {"color": model_colour(model), "alpha": 0.8, "linewidths": 0, "zorder": 3}
            axis.scatter(table["confidence"], table["accuracy"], s=area, **dots)
            axis.plot([], [], "o", color=model_colour(model), label=legend[model])
        axis.set(title=title, xlabel="confidence (probability of the most probable class)", ylim=(-0.02, 1.02))
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right", fontsize=8, title="area of a dot: crops", title_fontsize=8)
    axes[0, 0].set_ylabel("accuracy (part that is right)")
    figure.tight_layout()
    save_figure(figure, path)


def draw_risk_coverage(
    path: Path, curves: dict[str, pd.DataFrame], errors: dict[str, float], titles: dict[str, str]
) -> None:
    """Error among the surest crops against their part of all; dotted, a random order of the same model.

    errors: error rate of each model, where its dotted line lies. titles: text of each model in the legend.
    """
    figure, axis = plt.subplots(figsize=(5.4, 4.6))
    for model, table in curves.items():
        _line(axis, table["coverage"], table["risk"], model, titles[model])
        axis.axhline(errors[model], color=model_colour(model), linestyle=":", linewidth=1)
    axis.set(xlabel="coverage (part of the crops that is kept)", ylabel="error among the kept crops", xlim=(0, 1.01))
    axis.set_ylim(bottom=0, top=max(0.02, 1.6 * max(errors.values())))
    axis.plot([], [], color="#777777", linestyle=":", linewidth=1, label="random order of the same model")
    _finish(figure, axis, path, "upper left")


def draw_subgroups(path: Path, table: pd.DataFrame, column: str) -> None:
    """Forest plot: a panel a metric, a line a subgroup, a marker with its 95 % interval a model.

    table: rows of `subgroup_table` of one column; of more than MOST_LEVELS subgroups those with most crops are drawn.
    """
    sizes = table.drop_duplicates("level").set_index("level")[["crops", "groups"]]
    largest = set(sizes["crops"].sort_values(ascending=False, kind="stable").index[:MOST_LEVELS])
    levels = [level for level in sizes.index if level in largest]
    models, metrics = list(table["model"].unique()), list(table["metric"].unique())
    step = 0.8 / len(models)
    height = 1.4 + 0.2 * len(levels) * (len(models) + 1)
    figure, axes = plt.subplots(1, len(metrics), figsize=(2.9 * len(metrics), height), sharey=True, squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        for number, model in enumerate(models):
            rows = table[(table["metric"] == metric) & (table["model"] == model)].set_index("level").loc[levels]
            places = np.arange(len(levels)) + (number - (len(models) - 1) / 2) * step
            axis.hlines(places, rows["low"], rows["high"], color=model_colour(model), linewidth=1.6)
            marker = MARKERS[number % len(MARKERS)]
            axis.plot(rows["value"], places, marker, color=model_colour(model), markersize=5, label=model)
        axis.set(title=metric.replace("roc_auc", "AUC"), xlim=(-0.02, 1.02))
        for line in np.arange(len(levels) - 1) + 0.5:
            axis.axhline(line, color="#cccccc", linewidth=0.8)
        axis.grid(alpha=0.3, axis="x")
    names = [f"{row.Index}\ncrops {row.crops}, groups {row.groups}" for row in sizes.loc[levels].itertuples()]
    axes[0, 0].set_yticks(np.arange(len(levels)), names)
    axes[0, 0].set_ylim(len(levels) - 0.5, -0.5)
    unit = f"{column} (side of the window in its frame, pixels)" if column == LESION_SIZE else column
    left_out = len(sizes) - len(levels)
    note = f"; the {len(levels)} largest of {len(sizes)} subgroups" if left_out else ""
    figure.suptitle(f"by {unit}; bars: 95 % interval{note}", fontsize=10)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0.5 / height, 1, 1))
    figure.legend(handles, labels, loc="lower center", ncols=len(models), fontsize=8)
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
        axis.set_title(model, color=model_colour(model))
    figure.tight_layout()
    save_figure(figure, path)


def draw_worst(
    path: Path, scores: Scores, images: np.ndarray, rows: np.ndarray, classes: list[str], count: int
) -> None:
    """Contact sheet of the mistakes that the model was surest of, a block for each kind of mistake.

    images: (all, size, size, 3) uint8, may be memory-mapped. rows: where among them the crops of `scores` are.
    """
    wrong = np.flatnonzero(scores.wrong)
    confidence = scores.probabilities[np.arange(len(scores.labels)), scores.predicted]
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    blocks = []
    for actual in range(len(classes)):
        chosen = wrong[scores.labels[wrong] == actual]
        if len(chosen):
            called = ", ".join(sorted({classes[k] for k in scores.predicted[chosen]}))
            blocks.append((f"{classes[actual]}, called {called} (surest first)", np.asarray(images[rows[chosen]])))
    if not blocks:
        blocks = [("no mistakes on the test subset", np.full((1, *images.shape[1:]), 255, dtype="uint8"))]
    save_contact_sheet(path, blocks, columns=8)


def _line(axis: plt.Axes, x: pd.Series, y: pd.Series, model: str, title: str) -> None:
    style = "--" if model in CONTROLS else "-"
    axis.plot(x, y, color=model_colour(model), linestyle=style, linewidth=1.8, label=title)


def _finish(figure: plt.Figure, axis: plt.Axes, path: Path, legend: str) -> None:
    axis.grid(alpha=0.3)
    axis.legend(loc=legend, fontsize=7.5)
    save_figure(figure, path)


def _binary(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    classes = scores.probabilities.shape[1]
    if classes == 2:
        return scores.labels, scores.probabilities[:, 1]
    return np.eye(classes)[scores.labels].ravel(), scores.probabilities.ravel()


def thin(table: pd.DataFrame) -> pd.DataFrame:
    """At most CURVE_POINTS rows of a curve, the first and the last among them."""
    if len(table) <= CURVE_POINTS:
        return table
    return table.iloc[np.unique(np.linspace(0, len(table) - 1, CURVE_POINTS).round().astype(int))]
