"""Look at a frame once: the backbone runs over the whole frame, the head over its feature map."""

from dataclasses import dataclass
from functools import cached_property

import keras
import numpy as np
from PIL import Image

from lesionlab.data.crops import Box
from lesionlab.errors import InputError
from lesionlab.models.backbones import find_backbone, preprocess
from lesionlab.models.networks import HEAD_CONVOLUTION
from lesionlab.models.saved import Classifier


@dataclass(frozen=True)
class DenseClassifier:
    """A classifier as a fully convolutional network: one score for each window of a grid, computed together.

    The grid's step is the backbone's stride, 32 pixels at the classifier's scale; finer grids are stitched from
    shifted passes. Source: Sermanet et al., OverFeat, ICLR 2014; Long et al., CVPR 2015 (shift and stitch).
    Scores differ a little from those of windows cut out one by one: a convolution at a window's edge sees the frame
    there instead of zeros. Thresholds must be chosen on scores of the same kind.
    """

    classifier: Classifier

    @cached_property
    def stride(self) -> int:
        """Pixels of the reduced frame between two cells of the feature map."""
        size = self.classifier.description.architecture.image_size
        return size // self._feature_size

    @cached_property
    def _feature_size(self) -> int:
        architecture = self.classifier.description.architecture
        end = find_backbone(architecture.backbone).block_ends[-1]
        return self.classifier.model.get_layer(end).output.shape[1]

    @cached_property
    def model(self) -> keras.Model:
        """(1, height, width, 3) preprocessed to (1, rows, columns, classes) logits, weights shared by value."""
        architecture, model = self.classifier.description.architecture, self.classifier.model
        base = find_backbone(architecture.backbone).build(None)
        for layer in base.layers:
            if layer.weights:
                layer.set_weights(model.get_layer(layer.name).get_weights())
        x, cells = base.output, self._feature_size
        for layer in model.layers:
            if layer.name.startswith(HEAD_CONVOLUTION):
                x = layer(x)
        first = "head_dense" if architecture.dense else "logits"
        if architecture.pooling == "average":
            x = keras.layers.AveragePooling2D(cells, strides=1)(x)
        else:  # a dense layer on a flattened window is a convolution with a window's kernel
            x = _as_convolution(model.get_layer(first), cells)(x)
        for name in ("head_dense", "logits"):
            if any(layer.name == name for layer in model.layers) and not (
                architecture.pooling == "flatten" and name == first
            ):
                x = model.get_layer(name)(x)
        return keras.Model(base.input, x, name="dense")

    def score(self, image: Image.Image, content: Box, fraction: float, stride: float) -> tuple[np.ndarray, np.ndarray]:
        """Windows of one size: boxes (n, 4) x, y, width, height in pixels of the frame, and logits (n, classes).

        fraction: a window's side in parts of the content's shorter side. stride: largest step in parts of the side.
        """
        x, y, width, height = content
        size, step = self.classifier.description.architecture.image_size, self.stride
        scale = size / (fraction * min(width, height))
        # Whole strides, so that every layer pads as it does in a crop.
        columns = max(size, round(width * scale / step) * step)
        rows = max(size, round(height * scale / step) * step)
        shifts = max(1, int(np.ceil(step / (stride * size))))
        offsets = [step * k // shifts for k in range(shifts)]
        margin = step if shifts > 1 else 0
        reduced = image.resize((columns, rows), Image.Resampling.BILINEAR, box=(x, y, x + width, y + height))
        pixels = np.pad(np.asarray(reduced), ((0, margin), (0, margin), (0, 0)), mode="edge")
        inputs = preprocess(pixels[None], self.classifier.description.architecture.preprocessing)
        boxes, logits = [], []
        for top in offsets:
            for left in offsets:
                part = inputs[:, top : top + rows, left : left + columns]
                result = np.asarray(self.model.predict_on_batch(part))[0]
                down, across = np.mgrid[: result.shape[0], : result.shape[1]] * step
                corners = np.stack([across.ravel() + left, down.ravel() + top], axis=1)
                inside = (corners[:, 0] + size <= columns) & (corners[:, 1] + size <= rows)
                boxes.append(corners[inside])
                logits.append(result.reshape(-1, result.shape[-1])[inside])
        to_frame = np.array([width / columns, height / rows])
        corners = (np.concatenate(boxes) * to_frame + (x, y)).round().astype(int)
        sides = np.broadcast_to((size * to_frame).round().astype(int), corners.shape)
        return np.concatenate([corners, sides], axis=1), np.concatenate(logits)


def _as_convolution(dense: keras.layers.Dense, cells: int) -> keras.layers.Layer:
    kernel, bias = dense.get_weights()
    channels = len(kernel) // cells**2
    layer = keras.layers.Conv2D(len(bias), cells, activation=dense.activation, name=f"{dense.name}_convolution")
    layer.build((None, None, None, channels))
    layer.set_weights([kernel.reshape(cells, cells, channels, -1), bias])
    return layer


def dense_classifier(classifier: Classifier) -> DenseClassifier:
    """Raises InputError for a model without a backbone: the small CNN flattens its whole crop."""
    if classifier.description.architecture.backbone is None:
        raise InputError("detect: mode dense needs a model with a backbone; set detect.mode=windows for the small CNN")
    return DenseClassifier(classifier)
