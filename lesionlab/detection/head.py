"""The head of a dense detector: it learns on training frames which windows have their centre in a lesion."""

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np
from PIL import Image

from lesionlab.data.crops import content_box, lesion_boxes
from lesionlab.data.readers import Frame, read_mask, read_rgb
from lesionlab.detection.boxes import IGNORED, found_lesion
from lesionlab.detection.dense import DenseBackbone
from lesionlab.errors import InputError
from lesionlab.params import FitParams, Params, TrainingParams
from lesionlab.progress import progress
from lesionlab.seeds import derive_seed, generator
from lesionlab.training.fit import Fit, Task, fit

HIDDEN, DROPOUT = 128, 0.3
BATCH = 256  # windows a step
# Windows are drawn as they come, so that scores are their probabilities.
UNWEIGHTED = {
    "class_weights": False, "label_smoothing": 0.0, "sensitivity": None, "dtype": "float32", "prefix_cache": False,
    "prefix_cache_gib": 1.0, "cache_dtype": "float32",
}  # fmt: skip
CLASSES = ("no lesion at the centre", "lesion")


@dataclass(frozen=True)
class Windows:
    """Windows of frames. features: (n, channels) float16. labels: (n,) 1 where the centre lies in a lesion."""

    features: np.ndarray
    labels: np.ndarray
    batch_size: int = BATCH

    def prepare(self, rows: np.ndarray, versions: list[int], desc: str) -> None:
        """Nothing is left to compute."""

    def read(self, rows: np.ndarray, versions: np.ndarray) -> np.ndarray:
        """Features of some windows: (len(rows), channels) float32."""
        return self.features[rows].astype("float32")


def build_head(channels: int, seed: int) -> keras.Model:
    """(n, channels) features to (n, 2) logits."""
    keras.utils.set_random_seed(derive_seed(seed, "detect", "build"))
    inputs = keras.Input((channels,), name="features")
    x = keras.layers.Dense(HIDDEN, activation="relu", name="head_dense")(inputs)
    x = keras.layers.Dropout(DROPOUT, name="head_dropout")(x)
    return keras.Model(inputs, keras.layers.Dense(len(CLASSES), dtype="float32", name="logits")(x), name="head")


def train_head(
    backbone: DenseBackbone, train: Sequence[Frame], val: Sequence[Frame], params: Params
) -> tuple[keras.Model, Fit]:
    """A head trained on windows of training frames; those of validation frames only show how it fares.

    Its last epoch is kept. Raises InputError when no window's centre lies in a lesion.
    """
    windows = [
        draw_windows(frames, backbone, params, f"detect, windows of {name} frames")
        for name, frames in (("training", train), ("validation", val))
    ]
    if not windows[0].labels.any():
        raise InputError(
            f"detect: no window of {len(train)} training frames has its centre in a lesion; lower detect.stride or "
            "set detect.mode=windows"
        )
    ends = [len(part.labels) for part in windows]
    rows = np.arange(sum(ends))
    merged = Windows(*(np.concatenate([getattr(part, name) for part in windows]) for name in ("features", "labels")))
    head, settings = build_head(backbone.channels, params.seed), params.detect
    fitted = fit(
        head,
        merged,
        Task(merged.labels, rows[: ends[0]], rows[ends[0] :], len(CLASSES)),
        FitParams(
            augment=False,
            epochs=settings.epochs,
            patience=settings.epochs,
            learning_rate=settings.learning_rate,
            schedule="cosine",
            keep="last",
        ),
        TrainingParams(**UNWEIGHTED, batch_size=BATCH, threads=params.training.threads),
        stage="detect",
        seed=params.seed,
        copies=0,
    )
    return head, fitted


def draw_windows(frames: Sequence[Frame], backbone: DenseBackbone, params: Params, desc: str) -> Windows:
    """At most `detect.windows_per_frame` windows of each frame, of all sizes; those on specks are left out."""
    features, labels = [np.zeros((0, backbone.channels), "float16")], [np.zeros(0, int)]
    for frame in progress(frames, desc=desc, unit="frame"):
        pixels = read_rgb(frame.image)
        mask = read_mask(frame.mask, params.crop.mask_threshold, pixels.shape[1::-1], frame.image)
        lesions, _ = lesion_boxes(mask, params.crop.min_lesion_area)
        image, content = Image.fromarray(pixels), content_box(pixels)
        parts = [backbone.features(image, content, size) for size in params.detect.window_sizes]
        found = found_lesion(np.concatenate([boxes for boxes, _ in parts]), lesions, mask)
        known = np.flatnonzero(found != IGNORED)
        rng = generator(params.seed, "detect", "windows", frame.name)
        chosen = np.sort(rng.permutation(known)[: params.detect.windows_per_frame])
        features.append(np.concatenate([part for _, part in parts])[chosen].astype("float16"))
        labels.append((found[chosen] > 0).astype(int))
    return Windows(np.concatenate(features), np.concatenate(labels))
