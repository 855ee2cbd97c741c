"""What is compared: each network, their ensemble, networks averaged over views, and the colour controls."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from lesionlab.errors import InputError
from lesionlab.evaluation.calibration import calibration_metrics
from lesionlab.evaluation.controls import control_probabilities
from lesionlab.evaluation.metrics import Figures, Scores, classification_metrics, resample
from lesionlab.evaluation.predictions import average_views, predict_crops
from lesionlab.evaluation.uncertainty import decision_uncertainty, entropy, mutual_information, selective_metrics
from lesionlab.files import read_images, read_index, read_split
from lesionlab.models.networks import softmax
from lesionlab.models.saved import Classifier, load_classifier
from lesionlab.params import EvaluateParams
from lesionlab.training.threshold import choose_threshold, fit_temperature


@dataclass(frozen=True)
class Crops:
    """The crops of a split. images: (n, size, size, 3) uint8, memory-mapped. index: n rows, with fold and subset."""

    images: np.ndarray
    index: pd.DataFrame

    def rows(self, subset: str) -> np.ndarray:
        """Row numbers of train, val or test."""
        return np.flatnonzero(self.index["subset"] == subset)

    def labels(self, classes: list[str]) -> np.ndarray:
        """(n,) class numbers."""
        return self.index["label"].map({name: number for number, name in enumerate(classes)}).to_numpy()


@dataclass(frozen=True)
class Candidate:
    """A row of the table.

    test: scores by which it is judged. validation: scores by which anything about it is chosen; None where it takes
    what was chosen for another. uncalibrated: on test crops with all temperatures 1; None where there is none to set.
    members: (m, n, classes) probabilities on test crops of passes with dropout or of the members of an ensemble.
    temperature: what its logits are divided by; None where there is none to set.
    """

    test: Scores
    validation: Scores | None = None
    uncalibrated: Scores | None = None
    members: np.ndarray | None = None
    temperature: float | None = None

    @property
    def entropy(self) -> np.ndarray:
        """(n,) predictive entropy, of the mean of the members where there are any."""
        return entropy(self.test.probabilities if self.members is None else self.members.mean(axis=0))

    @property
    def mutual_information(self) -> np.ndarray:
        """(n,) disagreement of the members; NaN where there are none."""
        return np.full(len(self.test.labels), np.nan) if self.members is None else mutual_information(self.members)

    def metrics(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Every metric under each row of weights: (resamples, n) to a dictionary of (resamples,) arrays."""
        result = classification_metrics(self.test, weights) | calibration_metrics(self.test, weights)
        result |= selective_metrics(self.test.wrong, decision_uncertainty(self.test), weights)
        if self.uncalibrated is not None:
            before = calibration_metrics(self.uncalibrated, weights)
            result |= {f"{name}_before_scaling": value for name, value in before.items()}
        return result

    def figures(self, resamples: int, seed: int) -> Figures:
        """Every metric with its bootstrap distribution over the groups of the test crops."""
        return resample(self.metrics, self.test.groups, resamples, seed)


def read_crops(crops: Path, split: Path) -> Crops:
    """Images and index of the crops with their subsets. Raises InputError when the files do not belong together."""
    return Crops(read_images(crops), read_split(split, read_index(crops)))


def load_models(folders: list[Path], crops: Crops) -> tuple[dict[Path, Classifier], list[str]]:
    """The classifiers and their classes.

    Raises InputError when classes differ or the crops have others.
    """
    models = {folder: load_classifier(folder) for folder in folders}
    classes = models[folders[0]].description.architecture.classes
    for folder, classifier in models.items():
        own = classifier.description.architecture.classes
        if own != classes:
            raise InputError(f"{folder}: classes {own} differ from the other models' {classes}; run dvc repro")
    unknown = sorted(set(crops.index["label"]) - set(classes))
    if unknown:
        raise InputError(f"{folders[0]}: knows no class '{unknown[0]}' (knows {', '.join(classes)}); run dvc repro")
    return models, classes


def network(
    name: str, classifier: Classifier, crops: Crops, params: EvaluateParams, batch_size: int, seed: int
) -> dict[str, Candidate]:
    """A network as `name`, and as `<name>_tta` the same averaged over views, where `params.tta` asks for them."""
    description = classifier.description
    labels = crops.labels(description.architecture.classes)
    predict = partial(predict_crops, classifier, crops.images, batch_size=batch_size)
    test, val = crops.rows("test"), crops.rows("val")
    on_test = predict(test, passes=params.mc_dropout, seed=seed, desc=f"evaluate {name}, test")
    on_val = predict(val, desc=f"evaluate {name}, validation")
    groups = crops.index["group"].to_numpy()

    def scores(rows: np.ndarray, probabilities: np.ndarray) -> Scores:
        return Scores(labels[rows], probabilities, groups[rows], description.threshold)

    result = {
        name: Candidate(
            scores(test, softmax(on_test.logits, description.temperature)),
            scores(val, softmax(on_val.logits, description.temperature)),
            scores(test, softmax(on_test.logits)),
            on_test.passes,
            description.temperature,
        )
    }
    if params.tta > 1:
        averaged = average_views(classifier, crops.images, test, batch_size, params.tta, on_test.logits)
        result[f"{name}_tta"] = Candidate(scores(test, averaged))
    return result


def ensemble(members: list[Candidate], sensitivity: float | None = None) -> Candidate:
    """The mean of the members' probabilities, with a temperature and, for two classes, a threshold of its own.

    Both are chosen on validation crops, for a mean of calibrated members is less sure than it should be; sensitivity is
    that which the threshold must reach there, None for the largest Youden index. Sources:
    Lakshminarayanan et al., NeurIPS 2017; Rahaman & Thiery, NeurIPS 2021: calibrate after pooling.
    """
    validation, test = members[0].validation, members[0].test
    on_val = _log_mean([member.validation.probabilities for member in members])
    on_test = np.stack([member.test.probabilities for member in members])
    temperature = fit_temperature(validation.labels, on_val)
    on_val = softmax(on_val, temperature)
    threshold = _threshold(validation.labels, on_val, sensitivity)
    plain = _log_mean([member.uncalibrated.probabilities for member in members])
    return Candidate(
        Scores(test.labels, softmax(_log_mean(on_test), temperature), test.groups, threshold),
        Scores(validation.labels, on_val, validation.groups, threshold),
        Scores(test.labels, softmax(plain), test.groups, threshold),
        on_test,
        temperature,
    )


def controls(crops: Crops, classes: list[str], sensitivity: float | None = None) -> dict[str, Candidate]:
    """Linear models on colours: fitted on training crops, threshold chosen on validation crops, as for a network."""
    labels, groups = crops.labels(classes), crops.index["group"].to_numpy()
    test, val = crops.rows("test"), crops.rows("val")
    result = {}
    found = control_probabilities(crops.images, labels, crops.rows("train"), [val, test], len(classes))
    for name, (on_val, on_test) in found.items():
        threshold = _threshold(labels[val], on_val, sensitivity)
        result[name] = Candidate(
            Scores(labels[test], on_test, groups[test], threshold), Scores(labels[val], on_val, groups[val], threshold)
        )
    return result


def best_on_validation(candidates: dict[str, Candidate]) -> str:
    """The candidate of lowest log loss on validation crops: test crops choose nothing."""

    def loss(name: str) -> float:
        validation = candidates[name].validation
        return float(calibration_metrics(validation, np.ones((1, len(validation.labels))))["log_loss"][0])

    return min(candidates, key=loss)


def _log_mean(probabilities: list[np.ndarray] | np.ndarray) -> np.ndarray:
    """Logarithm of the members' mean probabilities, which serves as logits: (n, classes)."""
    return np.log(np.maximum(np.mean(probabilities, axis=0), np.finfo("float64").tiny))


def _threshold(labels: np.ndarray, probabilities: np.ndarray, sensitivity: float | None) -> float | None:
    return choose_threshold(labels, probabilities[:, 1], sensitivity) if probabilities.shape[1] == 2 else None
