"""A detector: what scores the windows of a frame, which boxes are left of them, and the folder that holds it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import keras
import numpy as np
from PIL import Image
from pydantic import ValidationError

from lesionlab.data.crops import Box, content_box
from lesionlab.detection.boxes import suppress
from lesionlab.detection.dense import DenseBackbone
from lesionlab.detection.head import build_head
from lesionlab.detection.windows import heat_map, score_windows
from lesionlab.errors import InputError
from lesionlab.files import file_digest, read_json, whole_folder, write_json
from lesionlab.models.networks import softmax
from lesionlab.models.saved import Classifier
from lesionlab.params import DetectParams, Section

LOWEST_SCORE = 0.02  # boxes below it are not kept: they lie far beyond any false-positive rate of interest
DETECTOR_FILE = "detector.json"
HEAD_FILE = "head.weights.h5"
# Windows of one size of a frame: boxes (n, 4) x, y, width, height in pixels, and the probability of a lesion (n,).
Scorer = Callable[[Image.Image, Box, float], tuple[np.ndarray, np.ndarray]]


class Description(Section):
    """detector.json.

    model_sha256: of the model.json of the classifier that the detector belongs to. threshold: lowest score of a box,
    chosen on validation frames. settings: `detect` of params.yaml, with which it was made. weights_sha256: of the head
    of a dense detector.
    """

    model_sha256: str
    dataset: str
    protocol: str
    seed: int
    threshold: float
    settings: DetectParams
    weights_sha256: str | None


@dataclass(frozen=True)
class Detector:
    """Looks for lesions in whole frames. head: of a dense detector; None where windows are cut out one by one."""

    score: Scorer
    settings: DetectParams
    head: keras.Model | None = None

    def boxes(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes (n, 4) after suppression, scores (n,) in [0, 1], best first, and the heat map (height, width).

        pixels: (height, width, 3) uint8 RGB.
        """
        image, content = Image.fromarray(pixels), content_box(pixels)
        parts = [self.score(image, content, size) for size in self.settings.window_sizes]
        windows, scores = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        heat = heat_map(windows, scores, pixels.shape[:2])
        kept = suppress(windows, scores, self.settings.overlap)
        kept = kept[scores[kept] >= LOWEST_SCORE]
        return windows[kept], scores[kept], heat


def windows_detector(classifier: Classifier, settings: DetectParams, batch_size: int) -> Detector:
    """Each window is cut out and classified: the score is the probability of any class but the first (background)."""
    score = partial(score_windows, stride=settings.stride, classifier=classifier, batch_size=batch_size)
    return Detector(score, settings)


def dense_detector(backbone: DenseBackbone, head: keras.Model, settings: DetectParams) -> Detector:
    """The backbone looks at a frame once for each size; the score is the head's, that a lesion is at the centre."""

    def score(image: Image.Image, content: Box, fraction: float) -> tuple[np.ndarray, np.ndarray]:
        boxes, features = backbone.features(image, content, fraction)
        return boxes, softmax(np.asarray(head.predict_on_batch(features)))[:, 1]

    return Detector(score, settings, head)


def save_detector(folder: Path, detector: Detector, description: Description) -> None:
    """Write a detector, whole or not at all."""
    with whole_folder(folder) as temporary:
        digest = None
        if detector.head is not None:
            # Without the optimizer's state, which a compiled model would save too.
            keras.Model(detector.head.input, detector.head.output, name="head").save_weights(temporary / HEAD_FILE)
            digest = file_digest(temporary / HEAD_FILE)
        content = description.model_copy(update={"weights_sha256": digest}).model_dump()
        write_json(temporary / DETECTOR_FILE, content, digits=17)  # a rounded threshold may cross a score


def read_description(folder: Path) -> Description | None:
    """What a detector's folder says; None where it holds none (classes of whole images have none).

    Raises InputError when it is not what this program writes.
    """
    path = folder / DETECTOR_FILE
    if not path.exists():
        return None
    try:
        return Description.model_validate(read_json(path))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise InputError(f"{path}: {where}: {problem['msg']}; was it written by this version?") from None


def load_detector(folder: Path, description: Description, classifier: Classifier, batch_size: int) -> Detector:
    """The detector of a folder. Raises InputError when its head is missing, was changed or does not fit."""
    settings = description.settings
    if settings.mode == "windows":
        return windows_detector(classifier, settings, batch_size)
    weights = folder / HEAD_FILE
    if not weights.exists() or file_digest(weights) != description.weights_sha256:
        raise InputError(f"{weights}: is missing or was changed since {folder / DETECTOR_FILE}; run dvc repro detect")
    backbone = DenseBackbone(classifier, settings.stride)
    head = build_head(backbone, seed=0)
    try:
        head.load_weights(weights)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{weights}: does not fit the classifier ({reason}); run dvc repro detect") from None
    return dense_detector(backbone, head, settings)
