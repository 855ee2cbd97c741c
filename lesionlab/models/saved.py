"""The saved-model format: model.json says what to build, model.weights.h5 holds the numbers. Nothing is unpickled."""

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from pydantic import ValidationError

from lesionlab.errors import InputError
from lesionlab.files import file_digest, read_json, whole_folder, write_json
from lesionlab.models.backbones import preprocess
from lesionlab.models.networks import Architecture, build_network, softmax
from lesionlab.params import Section
from lesionlab.progress import progress

MODEL_FILE = "model.json"
WEIGHTS_FILE = "model.weights.h5"


class Description(Section):
    """model.json.

    threshold: score of the positive (last) class from which a crop of a two-class problem is called positive,
    chosen on validation crops. temperature divides the logits before the softmax that gives scores, fitted on
    validation crops. weights_sha256: of model.weights.h5.
    """

    architecture: Architecture
    stage: str
    dataset: str
    protocol: str
    seed: int
    unfrozen_blocks: int | None
    blocks: list[str]
    threshold: float | None
    temperature: float = 1.0
    environment: dict[str, str | int]
    weights_sha256: str = ""


@dataclass(frozen=True)
class Classifier:
    """A network with what is needed to use it on pixels."""

    description: Description
    model: keras.Model

    def predict(self, images: np.ndarray, rows: np.ndarray, batch_size: int, desc: str = "predict") -> np.ndarray:
        """Class probabilities of chosen crops: (len(rows), classes) float64.

        images: (n, size, size, 3) uint8 RGB, may be memory-mapped.
        """
        logits = []
        for start in progress(range(0, len(rows), batch_size), desc=desc, unit="batch", leave=False):
            logits.append(self.logits(images[rows[start : start + batch_size]], batch_size))
        classes = len(self.description.architecture.classes)
        return softmax(np.concatenate([np.zeros((0, classes)), *logits]), self.description.temperature)

    def logits(self, images: np.ndarray, batch_size: int) -> np.ndarray:
        """Logits of at most `batch_size` images, computed at exactly that batch size: nothing is traced twice."""
        inputs = preprocess(pad_batch(images, batch_size), self.description.architecture.preprocessing)
        return np.asarray(self.model.predict_on_batch(inputs))[: len(images)]


def pad_batch(batch: np.ndarray, batch_size: int) -> np.ndarray:
    """Repeat the last row until there are `batch_size`: one shape for every batch, the last one too."""
    missing = batch_size - len(batch)
    return np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing > 0 else batch


def save_classifier(folder: Path, classifier: Classifier) -> None:
    """Write both files, whole or not at all; the same weights give the same bytes."""
    with whole_folder(folder) as temporary:
        # A model that was compiled would save its optimizer's state too, three times the bytes.
        model = classifier.model
        keras.Model(model.input, model.output, name=model.name).save_weights(temporary / WEIGHTS_FILE)
        content = classifier.description.model_dump()
        content["weights_sha256"] = file_digest(temporary / WEIGHTS_FILE)
        write_json(temporary / MODEL_FILE, content, digits=17)  # a rounded threshold may cross a score


def load_classifier(folder: Path) -> Classifier:
    """Build the network again and load its weights.

    Raises InputError when a file is missing, was changed, or describes something this program does not build.
    """
    path = folder / MODEL_FILE
    try:
        description = Description.model_validate(read_json(path))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise InputError(f"{path}: {where}: {problem['msg']}; was it written by this version?") from None
    weights = folder / WEIGHTS_FILE
    if not weights.exists():
        raise InputError(f"{weights}: not found; run dvc repro {description.stage}")
    if file_digest(weights) != description.weights_sha256:
        raise InputError(f"{weights}: checksum differs from {path}; the file was changed or is not whole")
    model = build_network(description.architecture, seed=0)
    try:
        model.load_weights(weights)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{weights}: does not fit the network that {path} describes ({reason})") from None
    return Classifier(description, model)
