"""The head of a dense detector: what it learns from, and that it learns it."""

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_dense import SMALL, classifier_of
from tiny import small_params

from lesionlab.data.crops import Box
from lesionlab.data.readers import Frame
from lesionlab.detection.boxes import IGNORED
from lesionlab.detection.dense import DenseBackbone
from lesionlab.detection.head import (
    LESION_WINDOWS,
    build_head,
    choose_windows,
    draw_windows,
    level_scale,
    scale_to,
    train_head,
)
from lesionlab.detection.looks import Look, Looks
from lesionlab.detection.windows import window_grid
from lesionlab.errors import InputError
from lesionlab.models.networks import softmax
from lesionlab.params import Params

SIDE = 96
NOTHING_KEPT = Looks(Path(), ())


def params(**changes: object) -> Params:
    return Params.model_validate(small_params({f"detect.{name}": value for name, value in changes.items()}))


@pytest.fixture(scope="module")
def backbone() -> DenseBackbone:
    return DenseBackbone(classifier_of(SMALL), 0.5)


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> list[Frame]:
    """Dark frames with one bright square each, and a speck in the corner of the mask."""
    folder, rng, result = tmp_path_factory.mktemp("frames"), np.random.default_rng(5), []
    for number in range(24):
        pixels = rng.integers(30, 60, (SIDE, SIDE, 3)).astype("uint8")
        mask = np.zeros((SIDE, SIDE), "uint8")
        top, left = rng.integers(8, 48, 2)
        mask[top : top + 36, left : left + 36] = 255
        pixels[mask > 0] += 150
        mask[-1, -1] = 255
        image, lesion = folder / f"{number}.png", folder / f"{number}_mask.png"
        Image.fromarray(pixels).save(image)
        Image.fromarray(mask).save(lesion)
        result.append(Frame(image.name, image, lesion, None, str(number), ""))
    return result


def test_a_window_is_a_lesions_where_its_centre_lies_in_one(frames, backbone):
    """Every window drawn, each held against the mask."""
    settings = params(window_sizes=[0.5, 0.8], windows_per_frame=1000)
    drawn, labels, _ = draw_windows(frames[:1], backbone, settings, NOTHING_KEPT)
    image = Image.open(frames[0].image)
    looks = [backbone.features([image], [(0, 0, SIDE, SIDE)], size)[0] for size in (0.5, 0.8)]
    boxes, features = zip(*looks, strict=True)
    centres = np.concatenate(boxes)[:, :2] + np.concatenate(boxes)[:, 2:] / 2
    mask = np.asarray(Image.open(frames[0].mask)) > 0
    expected = np.array([mask[int(y), int(x)] for x, y in centres])
    assert labels.sum() == LESION_WINDOWS  # some of them more than once: this lesion has fewer
    assert (labels == 0).sum() == (~expected).sum()
    far = np.abs(drawn[:, None].astype("float64") - np.concatenate(features)).max(axis=2)
    np.testing.assert_array_equal(labels, expected[far.argmin(axis=1)])
    assert far.min(axis=1).max() < 2e-3


@given(st.lists(st.integers(IGNORED, 12), min_size=1, max_size=200), st.integers(8, 300), st.integers(0, 99))
def test_each_lesion_has_as_many_windows_whatever_its_size(found, most, seed):
    found = np.array(found)
    chosen = choose_windows(found, most, np.random.default_rng(seed))
    assert len(chosen) <= most
    assert (np.diff(chosen) >= 0).all()
    counts = np.bincount(found[chosen], minlength=13)  # raises where a window on a speck was taken
    lesions = np.unique(found[found > 0])
    if 2 * len(lesions) <= most:
        assert len(set(counts[lesions])) <= 1
        assert counts[lesions].sum() <= most / 2
        assert all(0 < count <= LESION_WINDOWS for count in counts[lesions])
    beside = chosen[found[chosen] == 0]
    assert len(beside) == len(set(beside)) == min((found == 0).sum(), most - counts[1:].sum())


def test_so_many_windows_are_drawn_of_each_frame_and_the_same_ones_again(frames, backbone):
    several, again, alone = (
        draw_windows(chosen, backbone, params(windows_per_frame=7), NOTHING_KEPT)
        for chosen in (frames[:2], frames[:2], frames[1:2])
    )
    features, labels, numbers = several
    assert len(labels) == 14
    assert labels.tolist() != [0] * 14
    assert numbers.tolist() == [0] * 7 + [1] * 7
    np.testing.assert_array_equal(features, again[0])
    np.testing.assert_array_equal(features[7:], alone[0])  # whatever the other frames are


def test_features_of_a_resolution_share_their_scale():
    """Against the definition, in float64; a feature that never changes is no noise afterwards."""
    features = np.random.default_rng(1).normal(3, [0.5, 2, 30, 0, 40], (5000, 5)).astype("float16")
    mean, scale = level_scale(features, (2, 3))
    exact = features.astype("float64")
    np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=1e-5)
    first, second = (np.sqrt(exact[:, part].var(axis=0).mean()) for part in (slice(2), slice(2, 5)))
    np.testing.assert_allclose(scale, [first] * 2 + [second] * 3, rtol=1e-5)
    np.testing.assert_array_equal(level_scale(np.ones((4, 2), "float16"), (1, 1))[1], 1)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_new_head_says_what_the_classifier_says_of_crops(temperature):
    """One window that fills the frame is the crop itself: the same features, the same probability."""
    classifier = classifier_of(SMALL)
    classifier = replace(classifier, description=classifier.description.model_copy(update={"temperature": temperature}))
    pixels = np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype="uint8")
    dense = DenseBackbone(classifier, 1.0)
    [(_, features)] = dense.features([Image.fromarray(pixels)], [(0, 0, 32, 32)], 1.0)
    logits = build_head(dense, seed=1).predict_on_batch(features)
    np.testing.assert_allclose(softmax(logits), classifier.predict(pixels[None], np.arange(1), 1), rtol=1e-3)


def test_a_head_learns_beside_the_classifiers_layers_and_leaves_those_alone(frames):
    classifier = classifier_of(SMALL)
    before = [weight.copy() for weight in classifier.model.get_weights()]
    head, _ = train_head(DenseBackbone(classifier, 0.5), frames[:4], frames[4:6], params(epochs=1), NOTHING_KEPT)
    assert np.abs(head.get_layer("map_logits").get_weights()[0]).max() > 0
    for weight, other in zip(classifier.model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, other)


@pytest.mark.parametrize("change", [{"pooling": "flatten"}, {"pooling": "attention"}, {"head_filters": (8,)}])
def test_a_classifiers_head_that_reads_the_map_itself_is_not_taken_over(change):
    dense = DenseBackbone(classifier_of(SMALL, **change), 0.5)
    logits = build_head(dense, seed=1).predict_on_batch(np.ones((2, sum(dense.levels)), "float32"))
    np.testing.assert_array_equal(logits, 0)


def test_what_a_head_learns_reads_scaled_features():
    head = build_head(Brightness(), seed=1)
    rng = np.random.default_rng(2)
    features, mean, scale = rng.normal(5, 3, (9, 3)), rng.normal(5, 1, 3), rng.uniform(0.1, 9, 3)
    scale_to(head, mean, scale)
    scaled = keras.Model(head.input, head.get_layer("map_scale").output)
    np.testing.assert_allclose(scaled.predict_on_batch(features), (features - mean) / scale, rtol=1e-3, atol=1e-4)


class Brightness:
    """In place of a backbone: a window's features are the mean colours of its middle."""

    levels = (3,)

    def classifier_logits(self, features: keras.KerasTensor) -> None:
        """It has no classifier."""

    def features(self, images: list[Image.Image], contents: list[Box], fraction: float) -> list[Look]:
        return [self.look(*frame, fraction) for frame in zip(images, contents, strict=True)]

    def look(self, image: Image.Image, content: Box, fraction: float) -> Look:
        side, corners = window_grid(content, fraction, 0.25)
        middles = [
            np.asarray(image.crop((x + side // 3, y + side // 3, x + side // 2, y + side // 2))) for x, y in corners
        ]
        return np.column_stack([corners, np.full((len(corners), 2), side)]), np.stack(middles).mean(axis=(1, 2)) / 255


def test_the_head_learns_to_tell_windows_on_a_lesion(frames):
    backbone, settings = Brightness(), params(epochs=60, learning_rate=0.01)
    head, fitted = train_head(backbone, frames[:18], frames[18:], settings, NOTHING_KEPT)
    assert fitted.kept_epoch == 59
    assert fitted.history["val_auc"].iloc[-1] > 0.9
    np.testing.assert_allclose(fitted.val_probabilities.sum(axis=1), 1, rtol=1e-5)
    again, _ = train_head(backbone, frames[:18], frames[18:], settings, NOTHING_KEPT)
    for weight, other in zip(head.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, other)


def test_frames_without_lesions_teach_nothing(tmp_path, backbone):
    Image.fromarray(np.zeros((SIDE, SIDE, 3), "uint8")).save(tmp_path / "frame.png")
    Image.fromarray(np.zeros((SIDE, SIDE), "uint8")).save(tmp_path / "mask.png")
    frame = Frame("frame.png", Path(tmp_path / "frame.png"), Path(tmp_path / "mask.png"), None, "", "")
    with pytest.raises(InputError, match="no window of 1 training frames has its centre in a lesion"):
        train_head(backbone, [frame], [frame], params(), NOTHING_KEPT)
