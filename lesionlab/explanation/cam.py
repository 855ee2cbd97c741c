"""Class activation maps, Grad-CAM and HiResCAM, at a layer of a flat functional network; and its attention."""

from typing import Literal

import keras
import numpy as np
from PIL import Image
from scipy import special

from lesionlab.errors import InputError
from lesionlab.models.backbones import preprocess
from lesionlab.models.networks import ATTENTION_MAP
from lesionlab.models.saved import Classifier
from lesionlab.progress import progress

Method = Literal["gradcam", "hirescam", "attention"]
METHODS: tuple[Method, ...] = ("gradcam", "hirescam")  # of every network, at any layer
# Of an automatic choice, the coarsest: the further from the head, the less a map says of the class. At 96 pixels the
# maps of a MobileNetV2 are 3, 6 and 12 cells a side, and a lesion about a third of a window.
RESOLUTIONS = 3


def rectified_layers(model: keras.Model) -> list[str]:
    """The last rectified activation at each of the three coarsest resolutions, the finest first.

    The last of them is what Selvaraju et al. call the last convolutional layer. Layers that narrow a map to one cell
    hold no place and are left out. Raises InputError for a network without such a layer.
    """
    last = {}
    for layer in model.layers:
        shape = layer.output.shape if isinstance(layer.output, keras.KerasTensor) else ()
        if len(shape) == 4 and shape[1] > 1 and _rectifies(layer):
            last[shape[1]] = layer.name
    if not last:
        raise InputError(f"explanation: {model.name} has no rectified convolution, so no map to explain it with")
    return list(last.values())[-RESOLUTIONS:]


def _rectifies(layer: keras.Layer) -> bool:
    rectifiers = (keras.activations.relu, keras.activations.relu6)
    return isinstance(layer, keras.layers.ReLU) or getattr(layer, "activation", None) in rectifiers


def activations_and_gradients(
    model: keras.Model, layers: list[str], inputs: np.ndarray, targets: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Activations of each layer and the gradient of the log odds of each image's target class with respect to them.

    The logits of a softmax hold an arbitrary constant, their odds do not: with two classes the log odds are the
    difference of the logits, and what speaks against the other class counts as evidence.
    inputs: (n, size, size, 3) preprocessed. targets: (n,) class numbers. Two (n, rows, columns, channels) a layer.
    Raises InputError where Keras does not run on TensorFlow, the one backend this is tested on.
    """
    if keras.backend.backend() != "tensorflow":
        raise InputError(
            f"explanation: gradients are taken with TensorFlow, but Keras runs on {keras.backend.backend()}; "
            "set KERAS_BACKEND=tensorflow"
        )
    import tensorflow as tf

    tapped = keras.Model(model.inputs[0], [*(model.get_layer(name).output for name in layers), model.output])
    with tf.GradientTape() as tape:
        pixels = tf.convert_to_tensor(inputs)
        tape.watch(pixels)
        *activations, logits = tapped(pixels, training=False)
        target = tf.one_hot(targets, logits.shape[1], on_value=True, off_value=False)
        others = tf.reduce_logsumexp(tf.where(target, -np.inf, logits), axis=1)
        score = tf.reduce_sum(tf.gather(logits, targets, batch_dims=1) - others)
    gradients = tape.gradient(score, activations)
    return [(a.numpy(), g.numpy()) for a, g in zip(activations, gradients, strict=True)]


def attends(model: keras.Model) -> bool:
    """Whether the head pools by attention, which is a map of its own."""
    return any(layer.name == ATTENTION_MAP for layer in model.layers)


def class_activation_map(method: Method, activations: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """Evidence for the class at each cell of the layer, never negative: (n, rows, columns).

    gradcam: channels weighted by their mean gradient. Source: Selvaraju et al., Grad-CAM, ICCV 2017.
    hirescam: gradient times activation, cell by cell. At a layer that only a pooling and a linear layer follow, its
    sum before rectifying is, of two classes, the log odds without the biases.
    Source: Draelos & Carin, Use HiResCAM instead of Grad-CAM, arXiv:2011.08891, 2020.
    attention: what the head weighs cells with, whatever the class; activations are its scores.
    """
    if method == "attention":
        scores = activations[..., 0]
        return special.softmax(scores, axis=(1, 2)).astype(scores.dtype)
    if method == "gradcam":
        gradients = gradients.mean(axis=(1, 2), keepdims=True)
    return np.maximum((activations * gradients).sum(axis=-1), 0)


def class_activation_maps(
    classifier: Classifier, layers: list[str], images: np.ndarray, targets: np.ndarray, batch_size: int, desc: str
) -> dict[tuple[Method, str], np.ndarray]:
    """Maps of METHODS at every layer: (n, rows, columns) float32, in the units of the log odds; at ATTENTION_MAP, the
    attention, whose cells sum to 1.

    images: (n, size, size, 3) uint8 RGB. targets: (n,) class numbers to explain.
    Raises InputError for a layer that the network does not have, or one without a map.
    """
    for name in layers:
        _check_layer(classifier.model, name)
    methods = {layer: ("attention",) if layer == ATTENTION_MAP else METHODS for layer in layers}
    parts = {(method, layer): [] for layer in layers for method in methods[layer]}
    for start in progress(range(0, len(images), batch_size), desc=desc, unit="batch", leave=False):
        chosen = slice(start, start + batch_size)
        inputs = preprocess(images[chosen], classifier.description.architecture.preprocessing)
        taken = activations_and_gradients(classifier.model, layers, inputs, targets[chosen])
        for layer, (activations, gradients) in zip(layers, taken, strict=True):
            for method in methods[layer]:
                parts[method, layer].append(class_activation_map(method, activations, gradients))
    return {key: np.concatenate(maps) for key, maps in parts.items()}


def _check_layer(model: keras.Model, name: str) -> None:
    with_map = [
        layer.name
        for layer in model.layers
        if isinstance(layer.output, keras.KerasTensor) and len(layer.output.shape) == 4
    ]
    if name not in with_map:
        raise InputError(
            f"params.yaml: explain.layer '{name}' is no layer of {model.name} with a map; "
            f"auto, or one of: {', '.join(with_map[1:])}"
        )


def enlarge(maps: np.ndarray, size: int) -> np.ndarray:
    """Maps (n, rows, columns) to (n, size, size), bilinear between the centres of cells."""
    resized = [
        Image.fromarray(np.asarray(cells, dtype="float32")).resize((size, size), Image.Resampling.BILINEAR)
        for cells in maps
    ]
    return np.stack([np.asarray(image) for image in resized]) if resized else np.zeros((0, size, size), "float32")
