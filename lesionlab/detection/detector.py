"""A detector: what scores the windows of a frame, which boxes are left of them, and the folder that holds it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from PIL import Image
from pydantic import ValidationError

from lesionlab.data.crops import Box
from lesionlab.detection.boxes import suppress
from lesionlab.detection.dense import FRAMES_TOGETHER, DenseBackbone
from lesionlab.detection.head import build_head
from lesionlab.detection.looks import Look, LookAt, Looks, Seen, look_at_each
from lesionlab.detection.windows import cut_windows
from lesionlab.errors import InputError
from lesionlab.files import file_digest, read_json, whole_folder, write_json
from lesionlab.models.networks import softmax
from lesionlab.models.saved import Classifier
from lesionlab.params import DetectParams, Section

LOWEST_SCORE = 0.02  # boxes below it are not kept: they lie far beyond any false-positive rate of interest
DETECTOR_FILE = "detector.json"
HEAD_FILE = "head.weights.h5"


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
    """Looks for lesions in whole frames: first what each window shows, then how probable a lesion in it is.

    judge: what n windows show to the probability of a lesion, (n,). together: how many frames are looked at at a time.
    head: of a dense detector; None where windows are cut out one by one.
    """

    look: LookAt
    judge: Callable[[np.ndarray], np.ndarray]
    settings: DetectParams
    together: int
    head: keras.Model | None = None

    def windows(
        self, frames: Sequence[tuple[str, Path]], seen: Looks | None = None
    ) -> Iterator[tuple[Seen, np.ndarray, np.ndarray]]:
        """Of each frame (its name and file), in order: the frame, all windows (n, 4), and scores (n,) in [0, 1].

        Windows are x, y, width, height in pixels. seen: frames that were looked at before.
        """
        for frame in look_at_each(frames, self.look, self.settings.window_sizes, self.together, seen):
            boxes, shown = zip(*frame.looks, strict=True)
            yield frame, np.concatenate(boxes), np.concatenate([self.judge(part) for part in shown])

    def suppressed(self, windows: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (n, 4) that are left of all windows, and scores (n,), best first."""
        kept = suppress(windows, scores, self.settings.overlap)
        kept = kept[scores[kept] >= LOWEST_SCORE]
        return windows[kept], scores[kept]


def windows_detector(classifier: Classifier, settings: DetectParams, batch_size: int) -> Detector:
    """Each window is cut out and classified: the score is the probability of any class but the first (background)."""
    size = classifier.description.architecture.image_size

    def look(images: Sequence[Image.Image], contents: Sequence[Box], fraction: float) -> list[Look]:
        return [cut_windows(*frame, fraction, settings.stride, size) for frame in zip(images, contents, strict=True)]

    def judge(windows: np.ndarray) -> np.ndarray:
        starts = range(0, len(windows), batch_size)
        logits = [classifier.logits(windows[start : start + batch_size], batch_size) for start in starts]
        return 1 - softmax(np.concatenate(logits), classifier.description.temperature)[:, 0]

    return Detector(look, judge, settings, together=1)  # pixels of all windows of several frames would be many


def dense_detector(backbone: DenseBackbone, head: keras.Model, settings: DetectParams) -> Detector:
    """The backbone looks at a frame once for each size; the score is the head's, that a lesion is at the centre."""

    def judge(features: np.ndarray) -> np.ndarray:
        return softmax(np.asarray(head.predict_on_batch(features)))[:, 1]

    return Detector(backbone.features, judge, settings, FRAMES_TOGETHER, head)


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
