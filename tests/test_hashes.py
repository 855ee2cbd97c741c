"""Perceptual hashes: of featureless pictures they would say nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lesionlab.data.hashes import perceptual_hash

DIGEST = "0123456789abcdef"


def blurred(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12), dtype="uint8")
    return Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("level", [0, 1, 100, 254, 255])
def test_a_featureless_picture_has_its_digest(level):
    assert perceptual_hash(Image.new("L", (64, 64), level), DIGEST) == DIGEST


@settings(max_examples=50)
@given(st.integers(0, 10_000))
def test_of_a_picture_half_of_the_bits_are_set_and_a_smaller_copy_has_nearly_the_same(seed):
    picture = blurred(seed)
    whole, smaller = (int(perceptual_hash(one, DIGEST), 16) for one in (picture, picture.resize((72, 72))))
    assert whole.bit_count() == 32
    assert (whole ^ smaller).bit_count() <= 6
