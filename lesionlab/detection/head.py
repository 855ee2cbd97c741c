"""The head of a dense detector: it learns on training frames which windows have their centre in a lesion.

It starts as the classifier's own head where that one reads the mean of the last map, and learns what to add to its
logits. Source: He et al., Deep residual learning, CVPR 2016.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np
from sklearn.preprocessing import StandardScaler

from lesionlab.data.crops import lesion_boxes
from lesionlab.data.readers import Frame, read_mask
from lesionlab.detection.boxes import NO_LESION, found_lesion
from lesionlab.detection.dense import FRAMES_TOGETHER, DenseBackbone
from lesionlab.detection.looks import Looks, look_at_each
from lesionlab.errors import InputError
from lesionlab.models.networks import network_of
from lesionlab.params import FitParams, Params, TrainingParams
from lesionlab.progress import progress
from lesionlab.seeds import derive_seed, generator
from lesionlab.training.fit import Fit, Task, fit

HIDDEN, DROPOUT = 128, 0.3
LESION_WINDOWS = 16  # drawn of each lesion, whatever its size: recall counts lesions, and a large one has many windows
BATCH = 256  # windows a step
CHUNK = 4096  # windows whose features are held in full precision at once
UNWEIGHTED = {
    "class_weights": False, "label_smoothing": 0.0, "mixup": 0.0, "lesion_attention": 0.0, "sensitivity": None,
    "dtype": "float32", "prefix_cache": False, "prefix_cache_gib": 1.0, "cache_dtype": "float32",
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


def build_head(backbone: DenseBackbone, seed: int) -> keras.Model:
    """(n, channels) features to (n, 2) logits, which are those of the classifier until the head is trained."""
    keras.utils.set_random_seed(derive_seed(seed, "detect", "build"))
    inputs = keras.Input((sum(backbone.levels),), name="features")
    # Not trained: `scale_to` sets it.
    scaled = keras.layers.BatchNormalization(center=False, scale=False, epsilon=1e-6, trainable=False, name="map_scale")
    x = keras.layers.Dense(HIDDEN, activation="relu", name="map_dense")(scaled(inputs))
    x = keras.layers.Dropout(DROPOUT, name="map_dropout")(x)
    learned = keras.layers.Dense(len(CLASSES), kernel_initializer="zeros", dtype="float32", name="map_logits")(x)
    known = backbone.classifier_logits(inputs)
    outputs = learned if known is None else keras.layers.Add(name="sum")([learned, known])
    return network_of(inputs, outputs, "head")


def train_head(
    backbone: DenseBackbone, train: Sequence[Frame], val: Sequence[Frame], params: Params, seen: Looks
) -> tuple[keras.Model, Fit]:
    """A head trained on windows of training frames; those of validation frames only show how it fares.

    Its last epoch is kept. seen: keeps what is asked of it for the search that follows.
    Raises InputError when no window's centre lies in a lesion.
    """
    features, labels, numbers = draw_windows([*train, *val], backbone, params, seen)
    taught, held = np.flatnonzero(numbers < len(train)), np.flatnonzero(numbers >= len(train))
    if not labels[taught].any():
        raise InputError(
            f"detect: no window of {len(train)} training frames has its centre in a lesion; lower detect.stride or "
            "set detect.mode=windows"
        )
    head, settings = build_head(backbone, params.seed), params.detect
    scale_to(head, *level_scale(features[: len(taught)], backbone.levels))
    fitted = fit(
        head,
        Windows(features, labels),
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


def scale_to(head: keras.Model, mean: np.ndarray, scale: np.ndarray) -> None:
    """Let what the head learns read features less `mean`, divided by `scale`: (channels,) each."""
    head.get_layer("map_scale").set_weights([mean, scale**2])


def draw_windows(
    frames: Sequence[Frame], backbone: DenseBackbone, params: Params, seen: Looks
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At most `detect.windows_per_frame` windows of each frame, of all sizes (`choose_windows`).

    Returns features (n, channels) float16, labels (n,) 1 where the centre lies in a lesion, and numbers (n,) of the
    frames. seen: is given what all windows of each frame show.
    """
    most = params.detect.windows_per_frame
    features = np.empty((len(frames) * most, sum(backbone.levels)), "float16")
    labels, numbers = [np.zeros(0, int)], [np.zeros(0, int)]
    end = 0
    looked = look_at_each(
        [(frame.name, frame.image) for frame in frames],
        backbone.features,
        params.detect.window_sizes,
        FRAMES_TOGETHER,
    )
    bar = progress(looked, desc="detect, windows to learn from", unit="frame", total=len(frames))
    for number, (frame, at_frame) in enumerate(zip(frames, bar, strict=True)):
        mask = read_mask(frame.mask, params.crop.mask_threshold, at_frame.shape[::-1], frame.image)
        lesions, _ = lesion_boxes(mask, params.crop.min_lesion_area)
        seen.keep(frame.name, at_frame)
        found = found_lesion(np.concatenate([boxes for boxes, _ in at_frame.looks]), lesions, mask)
        chosen = choose_windows(found, most, generator(params.seed, "detect", "windows", frame.name))
        begin, end = end, end + len(chosen)
        features[begin:end] = np.concatenate([part for _, part in at_frame.looks])[chosen]
        labels.append((found[chosen] > 0).astype(int))
        numbers.append(np.full(len(chosen), number))
    return features[:end], np.concatenate(labels), np.concatenate(numbers)


def choose_windows(found: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Row numbers of at most `most` windows, in order: LESION_WINDOWS of each lesion, the others beside lesions.

    found: as `found_lesion` gives it; windows on specks are left out. A lesion with fewer windows has them repeated;
    many lesions have fewer each, so that no more than half of the windows lie on lesions.
    """
    lesions = np.unique(found[found > NO_LESION])
    each = max(1, min(LESION_WINDOWS, most // (2 * max(1, len(lesions)))))
    inside = [np.resize(rng.permutation(np.flatnonzero(found == lesion)), each) for lesion in lesions]
    inside = np.concatenate([np.zeros(0, int), *inside])[:most]
    beside = rng.permutation(np.flatnonzero(found == NO_LESION))[: most - len(inside)]
    return np.sort(np.concatenate([inside, beside]))
