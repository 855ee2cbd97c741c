"""What a network says of crops: logits, passes with dropout, views turned and mirrored."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lesionlab.models.backbones import preprocess
from lesionlab.models.networks import network_of, softmax
from lesionlab.models.saved import Classifier, pad_batch
from lesionlab.progress import progress
from lesionlab.seeds import generator

DROPOUT_LAYER = "head_dropout"
VIEWS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (  # of (n, size, size, 3): the symmetries of a square
    lambda x: x,
    lambda x: x[:, :, ::-1],
    lambda x: x[:, ::-1],
    lambda x: x[:, ::-1, ::-1],
    lambda x: x.transpose(0, 2, 1, 3),
    lambda x: np.rot90(x, 1, axes=(1, 2)),
    lambda x: np.rot90(x, 3, axes=(1, 2)),
    lambda x: x.transpose(0, 2, 1, 3)[:, ::-1, ::-1],
)


@dataclass(frozen=True)
class Predictions:
    """Of the same crops: logits (n, classes); probabilities of each pass with dropout (passes, n, classes).

    passes is None where the network has no dropout or none were asked for.
    """

    logits: np.ndarray
    passes: np.ndarray | None


def predict_crops(
    classifier: Classifier,
    images: np.ndarray,
    rows: np.ndarray,
    batch_size: int,
    *,
    view: int = 0,
    passes: int = 0,
    seed: int = 0,
    desc: str = "predict",
) -> Predictions:
    """Logits of chosen crops, and Monte-Carlo dropout: `passes` draws of the head's dropout.

    images: (n, size, size, 3) uint8 RGB, may be memory-mapped. view: number in VIEWS.
    Everything up to the dropout is computed once a crop; only the last layer is repeated. Each pass of each crop has
    a mask of its own, drawn from `seed`. Source: Gal & Ghahramani, Dropout as a Bayesian Approximation, ICML 2016.
    """
    model, description = classifier.model, classifier.description
    dropout = next((layer for layer in model.layers if layer.name == DROPOUT_LAYER), None) if passes else None
    network = model if dropout is None else network_of(model.input, [dropout.input, model.output])
    logits, drawn = [], []
    for start in progress(range(0, len(rows), batch_size), desc=desc, unit="batch", leave=False):
        batch = rows[start : start + batch_size]
        pixels = np.ascontiguousarray(VIEWS[view](images[batch]))
        # The batch size at which the network was trained: nothing is traced twice.
        inputs = preprocess(pad_batch(pixels, batch_size), description.architecture.preprocessing)
        outputs = network.predict_on_batch(inputs)
        if dropout is None:
            logits.append(np.asarray(outputs, dtype="float64")[: len(batch)])
            continue
        features, plain = (np.asarray(output, dtype="float32")[: len(batch)] for output in outputs)
        logits.append(plain.astype("float64"))
        rng = generator(seed, "evaluate", "dropout", start)
        masks = rng.random((passes, *features.shape), dtype="float32") >= dropout.rate
        kernel, bias = model.get_layer("logits").get_weights()
        drawn.append(features * masks / (1 - dropout.rate) @ kernel + bias)
    whole = np.concatenate(logits) if logits else np.zeros((0, len(description.architecture.classes)))
    if not drawn:
        return Predictions(whole, None)
    noisy = np.concatenate(drawn, axis=1)
    flat = softmax(noisy.reshape(-1, noisy.shape[-1]), description.temperature)
    return Predictions(whole, flat.reshape(noisy.shape))


def average_views(
    classifier: Classifier, images: np.ndarray, rows: np.ndarray, batch_size: int, views: int, first: np.ndarray
) -> np.ndarray:
    """Test-time augmentation: mean probabilities over the first `views` of VIEWS: (n, classes).

    first: logits of the first view, the crops as they are, which are known already.
    """
    total = softmax(first, classifier.description.temperature)
    for view in range(1, views):
        desc = f"evaluate view {view + 1} of {views}"
        seen = predict_crops(classifier, images, rows, batch_size, view=view, desc=desc)
        total = total + softmax(seen.logits, classifier.description.temperature)
    return total / views
