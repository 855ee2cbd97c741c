"""Perceptual hashes: 64 bits that are nearly the same for pictures that look nearly the same."""

import imagehash
from PIL import Image

HASH_BITS = 64


def perceptual_hash(grey: Image.Image, digest: str) -> str:
    """The hash of a grey picture as 16 hexadecimal digits: imagehash's phash, or `digest`, where that one says nothing.

    digest: of the pixels, as many digits. Half of the bits of a phash say that a frequency is above the median. Where
    other than half of them are set, frequencies are equal to it: the picture is featureless (blank glass, a black
    frame), and its phash that of any other such picture. By the digest only identical ones are alike.
    """
    found = str(imagehash.phash(grey))
    return found if int(found, 16).bit_count() == HASH_BITS // 2 else digest
