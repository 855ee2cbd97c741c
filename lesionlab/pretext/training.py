"""How the backbone learns from generated pictures: every label at once, read at four depths."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context

import keras
import numpy as np
import tensorflow as tf

from lesionlab.models.backbones import Backbone, preprocess
from lesionlab.pretext.pictures import MAP_SIZE, MAPS, MATERIALS, OBJECTS, SCALARS, Pictures, draw_chunk
from lesionlab.progress import progress
from lesionlab.seeds import derive_seed, generator

SIZE = 64
CHUNK = 256
DEPTHS = ("conv_pw_3_relu", "conv_pw_5_relu", "conv_pw_11_relu", "conv_pw_13_relu")  # 16, 8, 4 and 2 cells a side
DEPTH_WEIGHTS = (0.5, 0.5, 0.5, 1.0)
LOSS_WEIGHTS = {"object": 1.0, "surface": 0.5, "covering": 0.5, "mask": 3.0, "relief": 3.0, "scalars": 1.0}
WEIGHT_DECAY = 1e-4
WARM_UP = 0.02  # part of all steps
_BANK = np.array(
    [
        [[0, 0, 0], [0, 16, 0], [0, 0, 0]],
        [[1, 2, 1], [2, 4, 2], [1, 2, 1]],
        [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]],
        [[-1, -2, -1], [0, 0, 0], [1, 2, 1]],
        [[-1, -2, -1], [-2, 12, -2], [-1, -2, -1]],
    ],
    dtype="float32",
)
_BANK /= np.sqrt((_BANK**2).sum((1, 2), keepdims=True))


def make_pictures(count: int, seed: int, subset: str, workers: int) -> Pictures:
    """Draw `count` pictures of SIZE pixels in `workers` processes; the bytes do not depend on `workers`."""
    sizes = [min(CHUNK, count - start) for start in range(0, count, CHUNK)]
    jobs = (repeat(seed), repeat(subset), range(len(sizes)), sizes, repeat(SIZE))
    options = {"desc": f"draw {subset}", "total": len(sizes), "unit": "chunk"}
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            chunks = list(progress(pool.map(draw_chunk, *jobs), **options))
    else:
        chunks = list(progress(map(draw_chunk, *jobs), **options))
    return Pictures(
        *(np.concatenate([getattr(chunk, field) for chunk in chunks]) for field in Pictures.__dataclass_fields__)
    )


def start_weights(network: keras.Model, seed: int) -> None:
    """Random weights with which a narrow MobileNet learns at once, where Keras's keep it on a plateau for long.

    Depthwise kernels are a smoothing, an edge or a Laplacian filter or the identity, plus noise, so that shapes pass
    through thirteen of them; pointwise kernels are He-normal.
    """
    rng = generator(seed, "pretext", "weights")
    for variable in network.trainable_variables:
        if not variable.path.endswith("kernel"):
            continue
        height, _, channels, filters = shape = tuple(variable.shape)
        if height == 1:
            kernel = rng.normal(0, np.sqrt(2 / channels), shape)
        else:
            chosen = rng.choice(len(_BANK), (channels, filters), p=[0.4, 0.15, 0.15, 0.15, 0.15])
            kernel = _BANK[chosen].transpose(2, 3, 0, 1) + rng.normal(0, 1 / 6, shape)
            if channels == 3:  # the first convolution mixes colours
                kernel *= rng.normal(0, 0.7, (1, 1, channels, filters))
        variable.assign(kernel)


def add_heads(network: keras.Model, seed: int) -> keras.Model:
    """The network with linear heads at DEPTHS; its output is one dict a depth, in the order of DEPTHS.

    Class and scalar heads read averaged features. Maps are read cell by cell at the first three depths, and from the
    averaged features at the last, which must therefore hold where things are.
    """
    keras.utils.set_random_seed(derive_seed(seed, "pretext", "heads"))
    outputs = []
    for depth in DEPTHS:
        features = network.get_layer(depth).output
        pooled = keras.layers.GlobalAveragePooling2D()(features)
        cells = features.shape[1]
        if depth == DEPTHS[-1]:
            maps = keras.layers.Dense(MAP_SIZE**2 * len(MAPS))(pooled)
        elif cells > MAP_SIZE:
            maps = keras.layers.Conv2D(len(MAPS), 1)(keras.layers.AveragePooling2D(cells // MAP_SIZE)(features))
        else:
            maps = keras.layers.Conv2D((MAP_SIZE // cells) ** 2 * len(MAPS), 1)(features)
        outputs.append(
            {
                "object": keras.layers.Dense(len(OBJECTS))(pooled),
                "surface": keras.layers.Dense(MATERIALS)(pooled),
                "covering": keras.layers.Dense(MATERIALS + 1)(pooled),
                "maps": maps,
                "scalars": keras.layers.Dense(len(SCALARS))(pooled),
            }
        )
    return keras.Model(network.input, outputs)


def _loss(outputs: dict, classes: tf.Tensor, maps: tf.Tensor, scalars: tf.Tensor) -> tf.Tensor:
    read = outputs["maps"]
    if read.shape.rank == 4 and read.shape[1] < MAP_SIZE:
        read = tf.nn.depth_to_space(read, MAP_SIZE // read.shape[1])
    read = tf.reshape(read, (-1, MAP_SIZE, MAP_SIZE, len(MAPS)))
    losses = {
        key: tf.nn.sparse_softmax_cross_entropy_with_logits(labels=classes[:, column], logits=outputs[key])
        for column, key in enumerate(("object", "surface", "covering"))
    }
    losses["mask"] = tf.nn.sigmoid_cross_entropy_with_logits(labels=maps[..., 0], logits=read[..., 0])
    losses["relief"] = tf.square(maps[..., 1:] - read[..., 1:])
    losses["scalars"] = tf.square(scalars - outputs["scalars"])
    return tf.add_n([LOSS_WEIGHTS[key] * tf.reduce_mean(value) for key, value in losses.items()])


def _batches(pictures: Pictures, batch_size: int, seed: int, epoch: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Full batches in random order, each mirrored and turned at random together with its maps."""
    rng = generator(seed, "pretext", "order", epoch)
    order = rng.permutation(len(pictures.images))
    for start in range(0, len(order) - batch_size + 1, batch_size):
        rows = np.sort(order[start : start + batch_size])
        grids = [pictures.images[rows], pictures.maps[rows]]
        upside_down, mirrored, turned = rng.random(3) < 0.5
        if upside_down:
            grids = [grid[:, ::-1] for grid in grids]
        if mirrored:
            grids = [grid[:, :, ::-1] for grid in grids]
        if turned:
            grids = [grid.transpose(0, 2, 1, 3) for grid in grids]
        images, maps = (np.ascontiguousarray(grid, dtype="float32") for grid in grids)
        yield images, pictures.classes[rows], maps, pictures.scalars[rows].astype("float32")


def fit(
    network: keras.Model, backbone: Backbone, pictures: Pictures, epochs: int, batch_size: int, rate: float, seed: int
) -> keras.Model:
    """Train `network` in place with AdamW and a cosine schedule from `rate`; returns it with its heads."""
    start_weights(network, seed)
    model = add_heads(network, seed)
    steps = len(pictures.images) // batch_size * epochs
    warm_up = max(1, int(WARM_UP * steps))
    schedule = keras.optimizers.schedules.CosineDecay(
        0.05 * rate, max(1, steps - warm_up), warmup_target=rate, warmup_steps=warm_up
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=WEIGHT_DECAY)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])

    @tf.function
    def step(images: tf.Tensor, classes: tf.Tensor, maps: tf.Tensor, scalars: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            outputs = model(images, training=True)
            losses = [_loss(output, classes, maps, scalars) for output in outputs]
            loss = tf.add_n([weight * value for weight, value in zip(DEPTH_WEIGHTS, losses, strict=True)])
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return losses[-1]

    bar = progress(total=steps, desc="train", unit="step")
    for epoch in range(epochs):
        losses = []
        for images, *labels in _batches(pictures, batch_size, seed, epoch):
            loss = step(tf.constant(preprocess(images, backbone.preprocessing)), *map(tf.constant, labels))
            losses.append(loss)
            bar.update()
        bar.set_postfix(epoch=epoch + 1, loss=f"{np.mean(losses):.3f}")
    bar.close()
    return model


def measure(model: keras.Model, backbone: Backbone, pictures: Pictures) -> dict[str, float]:
    """Figures of the deepest heads on pictures that were not trained on.

    object, surface: accuracy in [0, 1]. mask: intersection over union of the object's map at 0.5, in [0, 1].
    height, scalars: explained part of the variance, at most 1.
    """
    parts = []
    for start in range(0, len(pictures.images), CHUNK):
        output = model(preprocess(pictures.images[start : start + CHUNK], backbone.preprocessing), training=False)[-1]
        parts.append({key: np.asarray(value) for key, value in output.items()})
    read = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    maps, scalars = pictures.maps.astype("float32"), pictures.scalars.astype("float32")
    read_maps = read["maps"].reshape(maps.shape)
    found, present = read_maps[..., 0] > 0, maps[..., 0] > 0.5
    missed = np.square(maps[..., 1] - read_maps[..., 1]).mean() / maps[..., 1].var()
    unexplained = np.square(scalars - read["scalars"]).mean(0) / (scalars.var(0) + 1e-6)
    return {
        "object": float((read["object"].argmax(1) == pictures.classes[:, 0]).mean()),
        "surface": float((read["surface"].argmax(1) == pictures.classes[:, 1]).mean()),
        "mask": float((found & present).sum() / max(1, (found | present).sum())),
        "height": float(1 - missed),
        "scalars": float(1 - unexplained.mean()),
    }
