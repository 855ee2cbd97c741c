"""Look at a frame once: the backbone runs over the whole frame, and each window is the means of its cells."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import keras
import numpy as np
from PIL import Image

from lesionlab.data.crops import Box
from lesionlab.detection.looks import Look
from lesionlab.errors import InputError
from lesionlab.models.backbones import find_backbone, preprocess
from lesionlab.models.networks import network_of
from lesionlab.models.saved import Classifier, pad_batch

# Frames in one pass, always: some processors convolve one frame at half the speed of two, and a convolution may round
# differently in a pass of another size.
FRAMES_A_PASS = 2
FRAMES_TOGETHER = 8  # in memory at once, so that those of one size find each other
PHASES = tuple(product((0, 1), repeat=2))  # the rows and columns from which a layer of stride 2 can start


@dataclass(frozen=True)
class DenseBackbone:
    """The backbone of a classifier as a fully convolutional network: features of each window of a grid, together.

    stride: largest step between windows, in parts of a window. The grid's step in pixels of the reduced frame is the
    backbone's stride (32), halved as often as `stride` asks (`fragments`).
    A window's features are the mean of the backbone's last map over it, then the mean of what the last layer of stride
    2 reads. They differ from those of windows cut out one by one, those of the last map the more the fewer cells a
    window has: a convolution at a window's edge sees the frame there instead of zeros. So a head must be trained on
    features of this kind.
    Source: Sermanet et al., OverFeat, ICLR 2014; two resolutions as in Liu et al., SSD, ECCV 2016.
    """

    classifier: Classifier
    stride: float

    def __post_init__(self):
        if self.classifier.description.architecture.backbone is None:
            raise InputError(
                "detect: mode dense needs a model with a backbone; set detect.mode=windows for the small CNN"
            )

    @cached_property
    def _cells(self) -> int:
        """Side of a window in cells of the backbone's feature map."""
        architecture = self.classifier.description.architecture
        return self.classifier.model.get_layer(find_backbone(architecture.backbone).block_ends[-1]).output.shape[1]

    @cached_property
    def _strided(self) -> int:
        """How many layers of stride 2 the backbone has."""
        return len(halving_inputs(self.classifier.model))

    @cached_property
    def _halvings(self) -> int:
        """How many of the last of them must take every row and column."""
        wanted = self.stride * self.classifier.description.architecture.image_size
        return min(max(0, int(np.ceil(np.log2(2**self._strided / wanted)))), self._strided)

    @cached_property
    def model(self) -> keras.Model:
        """(n, height, width, 3) preprocessed to (fragments * n, rows, columns, channels), weights shared by value."""
        base = find_backbone(self.classifier.description.architecture.backbone).build(None)
        for layer in base.layers:
            if layer.weights:
                layer.set_weights(self.classifier.model.get_layer(layer.name).get_weights())
        before = halving_inputs(base)[-1]
        means = [
            keras.layers.AveragePooling2D(self._cells, strides=1)(base.output),
            keras.layers.AveragePooling2D(2 * self._cells, strides=2)(before),  # twice as many cells, every second one
        ]
        return fragments(keras.Model(base.input, keras.layers.Concatenate()(means), name="dense"), self._halvings)

    @property
    def levels(self) -> tuple[int, int]:
        """How many of a window's features are of the last map, and of what the last layer of stride 2 reads."""
        network = self.classifier.model
        last = network.get_layer(find_backbone(self.classifier.description.architecture.backbone).block_ends[-1])
        return last.output.shape[-1], halving_inputs(network)[-1].shape[-1]

    def classifier_logits(self, features: keras.KerasTensor) -> keras.KerasTensor | None:
        """What the classifier's own head says of windows: (n, channels) features to (n, classes) calibrated logits.

        Its layers are frozen and its dropout is left out. None where its head does not read the mean of the last map
        (`head_filters`, or another `pooling`).
        """
        description = self.classifier.description
        architecture = description.architecture
        if architecture.head_filters or architecture.pooling != "average":
            return None
        layers = self.classifier.model.layers
        begin = next(number for number, layer in enumerate(layers) if layer.name == "head_pool") + 1
        x = features[:, : self.levels[0]]
        for layer in layers[begin:]:
            layer.trainable = False
            if not isinstance(layer, keras.layers.Dropout):
                x = layer(x)
        return keras.layers.Rescaling(1 / description.temperature, name="temperature")(x)

    def features(self, images: Sequence[Image.Image], contents: Sequence[Box], fraction: float) -> list[Look]:
        """Windows of one size of each frame: boxes (n, 4) in pixels of the frame, and features (n, channels).

        fraction: a window's side in parts of the content's shorter side. Frames that are reduced to one size are seen
        together; what is seen of a frame does not depend on the others.
        """
        groups = defaultdict(list)
        for number, content in enumerate(contents):
            groups[self._reduced_size(content, fraction)].append(number)
        looks = {}
        for reduced, members in groups.items():
            for begin in range(0, len(members), FRAMES_A_PASS):
                part = members[begin : begin + FRAMES_A_PASS]
                maps = self._maps([images[number] for number in part], [contents[number] for number in part], reduced)
                looks |= {n: self._windows(found, contents[n], reduced) for n, found in zip(part, maps, strict=True)}
        return [looks[number] for number in range(len(images))]

    def _reduced_size(self, content: Box, fraction: float) -> tuple[int, int]:
        """Columns and rows of a frame of which a window is as large as a crop."""
        _, _, width, height = content
        size, step = self.classifier.description.architecture.image_size, 2**self._strided
        scale = size / (fraction * min(width, height))
        # Whole steps, so that every layer pads as it does in a crop.
        least = int(np.ceil(size / step))
        columns, rows = (max(least, round(length * scale / step)) * step for length in (width, height))
        return columns, rows

    def _maps(self, images: list[Image.Image], contents: list[Box], reduced: tuple[int, int]) -> np.ndarray:
        """One pass over frames: (n, fragments, rows, columns, channels)."""
        pixels = [
            np.asarray(image.resize(reduced, Image.Resampling.BILINEAR, box=(x, y, x + width, y + height)))
            for image, (x, y, width, height) in zip(images, contents, strict=True)
        ]
        inputs = preprocess(np.stack(pixels), self.classifier.description.architecture.preprocessing)
        maps = np.asarray(self.model.predict_on_batch(pad_batch(inputs, FRAMES_A_PASS)))
        return maps.reshape(-1, FRAMES_A_PASS, *maps.shape[1:]).swapaxes(0, 1)[: len(images)]

    def _windows(self, maps: np.ndarray, content: Box, reduced: tuple[int, int]) -> Look:
        """The windows of the (fragments, rows, columns, channels) of a frame that lie within it."""
        x, y, width, height = content
        size, step = self.classifier.description.architecture.image_size, 2**self._strided
        down, across = np.mgrid[: maps.shape[1], : maps.shape[2]] * step
        top, left = np.array(fragment_offsets(self._strided, self._halvings)).T[:, :, None, None]
        corners = np.stack([(across + left).ravel(), (down + top).ravel()], axis=1)
        inside = (corners + size <= reduced).all(axis=1)
        to_frame = np.array([width, height]) / reduced
        corners = (corners[inside] * to_frame + (x, y)).round().astype(int)
        sides = np.broadcast_to((size * to_frame).round().astype(int), corners.shape)
        return np.concatenate([corners, sides], axis=1), maps.reshape(-1, maps.shape[-1])[inside]


def halving_inputs(model: keras.Model) -> list[keras.KerasTensor]:
    """What the layers of stride 2 of a network read, from input to output; before the padding that belongs to one."""
    found: dict[str, keras.KerasTensor] = {}
    for layer in model.layers:
        if getattr(layer, "strides", (1, 1)) == (2, 2):
            source = layer.input._keras_history.operation
            tensor = source.input if isinstance(source, keras.layers.ZeroPadding2D) else layer.input
            found[tensor._keras_history.operation.name] = tensor  # a shortcut beside it reads the same
    return list(found.values())


def fragments(model: keras.Model, halvings: int) -> keras.Model:
    """A convolutional network whose last `halvings` layers of stride 2 start at every row and column.

    model: (n, height, width, channels) to (n, rows, columns, features), height and width even at each of these layers.
    The result gives (4**halvings * n, rows, columns, features), n fragments for each of `fragment_offsets`: what is
    before such a layer is computed once, it and what follows once for each of its four phases. These are the values
    that the layer at stride 1 and dilation in all that follow would give, a fragment holding every second (fourth,
    ...) row and column of them; but no layer changes, whatever kernel, padding or shortcut it has.
    Cells that reach beyond the lower or right edge see zeros there.
    Source: Giusti et al., Fast image scanning with deep max-pooling convolutional neural networks, ICIP 2013; Yu and
    Koltun, Multi-scale context aggregation by dilated convolutions, ICLR 2016.
    """
    cuts = halving_inputs(model)
    begin = x = model.input
    for cut in cuts[len(cuts) - halvings :]:
        if cut is not begin:
            x = keras.Model(begin, cut)(x)
        x, begin = _phases(x), cut
    return network_of(model.input, keras.Model(begin, model.output)(x))


def fragment_offsets(total: int, halvings: int) -> list[tuple[int, int]]:
    """Where each of the `fragments` of a network of stride 2**total begins: y, x in pixels of its input."""
    offsets = [(0, 0)]
    for halving in range(total - halvings, total):
        offsets = [(y + down * 2**halving, x + right * 2**halving) for down, right in PHASES for y, x in offsets]
    return offsets


def _phases(x: keras.KerasTensor) -> keras.KerasTensor:
    padded = keras.ops.pad(x, [[0, 0], [0, 1], [0, 1], [0, 0]])
    parts = {0: slice(0, -1), 1: slice(1, None)}
    return keras.ops.concatenate([padded[:, parts[down], parts[right]] for down, right in PHASES], axis=0)
