"""The head of a dense detector: it learns on training frames which windows have their centre in a lesion."""

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np
from PIL import Image
from sklearn.preprocessing import StandardScaler

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
CHUNK = 4096  # windows whose features are held in full precision at once
# Windows are drawn as they come, so that scores are their probabilities.
UNWEIGHTED = {
    "class_weights": False, "label_smoothing": 0.0, "sensitivity": None, "dtype": "float32", "prefix_cache": False,
    "prefix_cache_gib": 1.0, "cache_dtype": "float32",
}  # fmt: skip
CLASSES = ("no lesion at the centre", "lesion")


@dataclass(frozen=True)
class Windows:
    """Windows of frames. features: (n, channels) float16. labels: (n,) 1 where the centre lies in a lesion.

    A batch holds features less `mean`, divided by `scale`: (channels,) each.
    """

    features: np.ndarray
    labels: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    batch_size: int = BATCH

    def prepare(self, rows: np.ndarray, versions: list[int], desc: str) -> None:
        """Nothing is left to compute."""

    def read(self, rows: np.ndarray, versions: np.ndarray) -> np.ndarray:
        """Features of some windows: (len(rows), channels) float32."""
        return (self.features[rows] - self.mean) / self.scale


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
    features, labels, numbers = draw_windows([*train, *val], backbone, params)
    taught, held = np.flatnonzero(numbers < len(train)), np.flatnonzero(numbers >= len(train))
    if not labels[taught].any():
        raise InputError(
            f"detect: no window of {len(train)} training frames has its centre in a lesion; lower detect.stride or "
            "set detect.mode=windows"
        )
    mean, scale = level_scale(features[: len(taught)], backbone.levels)
    head, settings = build_head(sum(backbone.levels), params.seed), params.detect
    fitted = fit(
        head,
        Windows(features, labels, mean, scale),
        Task(labels, taught, held, len(CLASSES)),
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
    fold_scale(head, mean, scale)
    return head, fitted


def level_scale(features: np.ndarray, levels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of each feature, and one standard deviation for all features of a resolution: (channels,) each, float32.

    features: (n, channels), those of each resolution side by side, so many as `levels` says. A standard deviation of
    its own for each feature would make much of those that hardly change.
    """
    scaler = StandardScaler()
    for begin in range(0, len(features), CHUNK):
        scaler.partial_fit(features[begin : begin + CHUNK])
    ends = np.cumsum(levels)[:-1]
    spreads = [np.sqrt(part.mean()) or 1.0 for part in np.split(scaler.var_, ends)]
    return scaler.mean_.astype("float32"), np.repeat(spreads, levels).astype("float32")


def fold_scale(head: keras.Model, mean: np.ndarray, scale: np.ndarray) -> None:
    """Let a head that learned on features less `mean`, divided by `scale`, read the features themselves."""
    first = head.get_layer("head_dense")
    kernel, bias = first.get_weights()
    kernel = kernel / scale[:, None]
    first.set_weights([kernel, bias - mean @ kernel])


def draw_windows(
    frames: Sequence[Frame], backbone: DenseBackbone, params: Params
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At most `detect.windows_per_frame` windows of each frame, of all sizes; those on specks are left out.

    Returns features (n, channels) float16, labels (n,) 1 where the centre lies in a lesion, and numbers (n,) of the
    frames.
    """
    most = params.detect.windows_per_frame
    features = np.empty((len(frames) * most, sum(backbone.levels)), "float16")
    labels, numbers = [np.zeros(0, int)], [np.zeros(0, int)]
    end = 0
    for number, frame in enumerate(progress(frames, desc="detect, windows to learn from", unit="frame")):
        pixels = read_rgb(frame.image)
        mask = read_mask(frame.mask, params.crop.mask_threshold, pixels.shape[1::-1], frame.image)
        lesions, _ = lesion_boxes(mask, params.crop.min_lesion_area)
        image, content = Image.fromarray(pixels), content_box(pixels)
        parts = [backbone.features(image, content, size) for size in params.detect.window_sizes]
        found = found_lesion(np.concatenate([boxes for boxes, _ in parts]), lesions, mask)
        known = np.flatnonzero(found != IGNORED)
        rng = generator(params.seed, "detect", "windows", frame.name)
        chosen = np.sort(rng.permutation(known)[:most])
        begin, end = end, end + len(chosen)
        features[begin:end] = np.concatenate([part for _, part in parts])[chosen]
        labels.append((found[chosen] > 0).astype(int))
        numbers.append(np.full(len(chosen), number))
    return features[:end], np.concatenate(labels), np.concatenate(numbers)
