"""Random changes of a crop, drawn a row at a time so that any version of any crop can be made again alone."""

import keras
import numpy as np

from lesionlab.params import AugmentParams
from lesionlab.seeds import generator


def draw_augmentation(params: AugmentParams, seed: int, version: int, count: int) -> np.ndarray:
    """Parameters of version `version` of `count` crops: (count, 6) float64.

    Columns: horizontal and vertical sign (1 or -1), angle (radians), zoom factor, brightness (grey levels to add),
    contrast factor. Row i depends on (seed, version, i) only.
    """
    uniform = generator(seed, "augment", version).random((count, 6))
    centred = 2 * uniform - 1
    return np.stack(
        [
            np.where((uniform[:, 0] < 0.5) & params.horizontal_flip, -1.0, 1.0),
            np.where((uniform[:, 1] < 0.5) & params.vertical_flip, -1.0, 1.0),
            centred[:, 2] * params.rotation * 2 * np.pi,
            1 + centred[:, 3] * params.zoom,
            centred[:, 4] * params.brightness * 255,
            1 + centred[:, 5] * params.contrast,
        ],
        axis=1,
    )


def augment(images: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Apply drawn parameters: (n, size, size, 3) RGB in [0, 255] to the same as float32.

    Contrast scales about the image's mean; values are clipped to [0, 255].
    """
    moved = move(images, drawn)
    brightness, contrast = drawn.T[4:]
    mean = moved.mean(axis=(1, 2, 3), keepdims=True)
    scale = contrast.astype("float32")[:, None, None, None]
    shift = brightness.astype("float32")[:, None, None, None]
    return np.clip((moved - mean) * scale + mean + shift, 0, 255)


def move(images: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """What of drawn parameters moves pixels: (n, size, size, channels) to the same as float32.

    Flips, rotation and zoom are one affine map about the centre, interpolated once; what comes from outside is
    reflected. Images of another size, and masks, move alike.
    """
    flip_x, flip_y, angle, zoom = drawn.T[:4]
    centre = (images.shape[1] - 1) / 2
    cosine, sine = np.cos(angle) * zoom, np.sin(angle) * zoom
    a0, a1, b0, b1 = cosine * flip_x, -sine * flip_y, sine * flip_x, cosine * flip_y
    a2, b2 = centre - centre * (a0 + a1), centre - centre * (b0 + b1)
    zero = np.zeros_like(a0)
    transforms = np.stack([a0, a1, a2, b0, b1, b2, zero, zero], axis=1).astype("float32")
    pixels = np.asarray(images, dtype="float32")
    return keras.ops.convert_to_numpy(
        keras.ops.image.affine_transform(
            pixels, transforms, interpolation="bilinear", fill_mode="reflect", data_format="channels_last"
        )
    )
