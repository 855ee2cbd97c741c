"""Classifiers in code: the small CNN, and a head on a backbone, each one flat functional model that ends in logits."""

from pathlib import Path

import keras
import numpy as np
from scipy import special

from lesionlab.errors import InputError
from lesionlab.files import read_json
from lesionlab.models.backbones import Preprocessing, find_backbone
from lesionlab.params import Pooling, Section
from lesionlab.seeds import derive_seed

HEAD_CONVOLUTION = "head_conv"  # with a number: the convolutions of a head
NEW_NORMALIZATION = "new_norm"  # with a number: normalization that has no statistics yet, and so must train
# Of a normalization that trains. Those of Keras and of keras.applications, 0.99 and 0.999, leave the statistics behind
# for hundreds or thousands of steps, longer than small sets train.
MOMENTUM = 0.9
ATTENTION_MAP = "head_attention_map"  # where attention pools: a number for each cell, (n, rows, columns, 1)
ATTENTION_SCORES = "head_attention_scores"  # the same in one row, (n, rows * columns), before the softmax
ATTENTION_REDUCTION = 8  # channels of a block for each unit of its attention's middle layer


class Architecture(Section):
    """What to build. backbone None: the small CNN; otherwise a head on that backbone.

    filters, batch_normalization, attention: of the small CNN. head_filters: of convolutions in front of the head's
    pooling. dense: units of the head's hidden layer, 0 for none. image_size: pixels.
    """

    backbone: str | None
    filters: tuple[int, ...] = ()
    batch_normalization: bool = False
    attention: bool = False
    head_filters: tuple[int, ...] = ()
    pooling: Pooling = "average"
    dense: int
    dropout: float
    image_size: int
    classes: list[str]

    @property
    def preprocessing(self) -> Preprocessing:
        """How pixels become the network's input."""
        return "tf" if self.backbone is None else find_backbone(self.backbone).preprocessing

    def boundary(self, unfrozen_blocks: int) -> str | None:
        """Name of the layer at which the frozen part ends; None where nothing is frozen."""
        return None if self.backbone is None else find_backbone(self.backbone).boundary(unfrozen_blocks)


def network_of(inputs: keras.KerasTensor, outputs: keras.KerasTensor | list, name: str | None = None) -> keras.Model:
    """A functional model that XLA never compiles, which Keras would do on a GPU: it rounds in other places."""
    model = keras.Model(inputs, outputs, name=name)
    model.jit_compile = False
    return model


def build_network(architecture: Architecture, seed: int, weights: Path | None = None) -> keras.Model:
    """(n, size, size, 3) preprocessed float32 to (n, classes) logits.

    weights: folder of the weights stage for the backbone. New layers are drawn from `seed`. No activation is read by
    more than two layers: TensorFlow adds three gradients in the order in which they happen to be ready, which rounds
    in other places from run to run.
    Raises InputError when the weights do not fit the backbone.
    """
    keras.utils.set_random_seed(derive_seed(seed, "build"))
    if architecture.backbone is None:
        return _small_cnn(architecture)
    backbone = find_backbone(architecture.backbone)
    base = backbone.build(architecture.image_size)
    if weights is not None:
        load_backbone_weights(base, weights, architecture.backbone)
    x = base.output
    for number, filters in enumerate(architecture.head_filters, start=1):
        x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"{HEAD_CONVOLUTION}{number}")(x)
    if architecture.pooling == "average":
        x = keras.layers.GlobalAveragePooling2D(name="head_pool")(x)
    elif architecture.pooling == "attention":
        x = _attention_pooling(x)
    else:
        x = keras.layers.Flatten(name="head_flatten")(x)
    return network_of(base.input, _head(x, architecture), architecture.backbone)


def load_backbone_weights(base: keras.Model, folder: Path, backbone: str) -> None:
    """Load what the weights stage fetched; weights `none` leave the network as it was drawn.

    Raises InputError when the file belongs to another network.
    """
    described = read_json(folder / "weights.json")
    if described["backbone"] != backbone:
        raise InputError(f"{folder}: holds weights of {described['backbone']}, not {backbone}; run dvc repro")
    if described["file"] is None:
        return
    path = folder / described["file"]
    try:
        base.load_weights(path)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{path}: these are not weights of {backbone} without its top ({reason}); "
            "set model.weights or model.backbone so that they belong together"
        ) from None


def freeze(model: keras.Model, boundary: str | None, *, normalization: bool = False) -> keras.Model:
    """Freeze all layers up to `boundary` and, unless `normalization`, every BatchNormalization of the backbone.

    Returns the suffix: the part that trains, from the boundary's activation (or the input) to the logits, sharing its
    layers with `model`. A frozen BatchNormalization uses its moving statistics in training too.
    normalization: behind the boundary it trains, and its statistics become those of the crops.
    """
    frozen = _up_to(model, boundary)
    for layer in model.layers:
        layer.trainable = layer not in frozen
        if isinstance(layer, keras.layers.BatchNormalization) and not layer.name.startswith(NEW_NORMALIZATION):
            layer.trainable &= normalization
            if layer.trainable:
                layer.momentum = MOMENTUM
    if boundary is None:
        return model
    return network_of(model.get_layer(boundary).output, model.output, "suffix")


def with_attention(model: keras.Model, boundary: str | None) -> keras.Model:
    """The part behind `boundary` once more, sharing its layers, with two outputs: logits and attention's scores.

    Raises InputError where the head has no attention.
    """
    try:
        scores = model.get_layer(ATTENTION_SCORES).output
    except ValueError:
        raise InputError(
            "params.yaml: training.lesion_attention teaches attention, and this head has none; set transfer.pooling to "
            "attention, or training.lesion_attention to 0"
        ) from None
    inputs = model.input if boundary is None else model.get_layer(boundary).output
    return network_of(inputs, [model.output, scores], "with_attention")


def prefix_of(model: keras.Model, boundary: str) -> keras.Model:
    """The frozen part: from the input to the boundary's activation."""
    return network_of(model.input, model.get_layer(boundary).output, "prefix")


def in_float32(model: keras.Model, architecture: Architecture) -> keras.Model:
    """The same network and weights, computed in float32 whatever `model` was trained in: what saving it gives."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        copy = build_network(architecture, seed=0)
    finally:
        keras.config.set_dtype_policy(policy)
    copy.set_weights(model.get_weights())
    return copy


def _up_to(model: keras.Model, boundary: str | None) -> set[keras.Layer]:
    return set() if boundary is None else set(prefix_of(model, boundary).layers)


def _small_cnn(architecture: Architecture) -> keras.Model:
    size = architecture.image_size
    inputs = keras.Input((size, size, 3), name="pixels")
    x = inputs
    for number, filters in enumerate(architecture.filters, start=1):
        # The first convolution halves the resolution: full-size maps cost most of the time.
        kernel, strides = (5, 2) if number == 1 else (3, 1)
        activation = None if architecture.batch_normalization else "relu"
        layer = keras.layers.Conv2D(
            filters, kernel, strides, padding="same", activation=activation, name=f"conv{number}"
        )
        x = layer(x)
        if architecture.batch_normalization:
            x = keras.layers.BatchNormalization(momentum=MOMENTUM, name=f"{NEW_NORMALIZATION}{number}")(x)
            x = keras.layers.ReLU(name=f"relu{number}")(x)
        if architecture.attention:
            x = _channel_attention(x, number)
        x = keras.layers.MaxPooling2D(name=f"pool{number}")(x)
    x = keras.layers.Flatten(name="head_flatten")(x)
    return network_of(inputs, _head(x, architecture), "small_cnn")


def _attention_pooling(x: keras.KerasTensor) -> keras.KerasTensor:
    """A map's mean beside a weighted mean of its cells, whose weights a 1x1 convolution and a softmax find.

    (n, rows, columns, channels) to (n, 2 * channels). Source: Ilse, Tomczak, Welling: Attention-based Deep Multiple
    Instance Learning, ICML 2018, https://arxiv.org/abs/1802.04712, with one linear layer in place of two. The mean
    stays beside it, since what surrounds a lesion tells classes apart too. No more than two layers read one map: see
    `build_network`.
    """
    rows, columns, channels = x.shape[1:]
    scores = keras.layers.Conv2D(1, 1, dtype="float32", name=ATTENTION_MAP)(x)
    scores = keras.layers.Flatten(dtype="float32", name=ATTENTION_SCORES)(scores)
    weights = keras.layers.Softmax(dtype="float32", name="head_attention")(scores)
    cells = keras.layers.Reshape((rows * columns, channels), name="head_map")(x)
    mean = keras.layers.GlobalAveragePooling1D(name="head_mean")(cells)
    attended = keras.layers.Dot(axes=1, name="head_attended")([weights, cells])
    return keras.layers.Concatenate(name="head_pool")([mean, attended])


def _channel_attention(x: keras.KerasTensor, number: int) -> keras.KerasTensor:
    """Squeeze and excitation: each channel of a map times a gate in (0, 1) that the means of all channels decide.

    Source: Hu, Shen, Sun: Squeeze-and-Excitation Networks, CVPR 2018. There the middle layer has a unit for 16
    channels, in networks whose layers have 64 and more; here they have fewer, so ATTENTION_REDUCTION is half of that.
    """
    channels = x.shape[-1]
    name = f"attention{number}"
    gate = keras.layers.GlobalAveragePooling2D(name=f"{name}_squeeze")(x)
    units = max(1, channels // ATTENTION_REDUCTION)
    gate = keras.layers.Dense(units, activation="relu", name=f"{name}_reduce")(gate)
    gate = keras.layers.Dense(channels, activation="sigmoid", name=f"{name}_gate")(gate)
    gate = keras.layers.Reshape((1, 1, channels), name=f"{name}_shape")(gate)
    return keras.layers.Multiply(name=name)([x, gate])


def _head(x: keras.KerasTensor, architecture: Architecture) -> keras.KerasTensor:
    if architecture.dense:
        x = keras.layers.Dense(architecture.dense, activation="relu", name="head_dense")(x)
    if architecture.dropout:
        x = keras.layers.Dropout(architecture.dropout, name="head_dropout")(x)
    return keras.layers.Dense(len(architecture.classes), dtype="float32", name="logits")(x)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """(n, classes) logits to probabilities, in float64."""
    return special.softmax(np.asarray(logits, dtype="float64") / temperature, axis=1)
