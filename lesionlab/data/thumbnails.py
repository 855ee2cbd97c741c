"""Small grey pictures of frames."""

import numpy as np
from PIL import Image

SIDE = 16  # pixels


def thumbnail(picture: Image.Image) -> np.ndarray:
    """A grey picture of any size as (SIDE, SIDE) uint8, the mean of what each pixel covers."""
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX))
