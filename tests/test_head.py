"""The head of a dense detector: what it learns from, and that it learns it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_dense import SMALL, classifier_of
from tiny import small_params

from lesionlab.data.crops import Box
from lesionlab.data.readers import Frame
from lesionlab.detection.dense import DenseBackbone
from lesionlab.detection.head import build_head, draw_windows, fold_scale, level_scale, train_head
from lesionlab.detection.windows import window_grid
from lesionlab.errors import InputError
from lesionlab.params import Params

SIDE = 96


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
    drawn, labels, _ = draw_windows(frames[:1], backbone, settings)
    image = Image.open(frames[0].image)
    boxes, features = zip(*(backbone.features(image, (0, 0, SIDE, SIDE), size) for size in (0.5, 0.8)), strict=True)
    centres = np.concatenate(boxes)[:, :2] + np.concatenate(boxes)[:, 2:] / 2
    mask = np.asarray(Image.open(frames[0].mask)) > 0
    expected = [mask[int(y), int(x)] for x, y in centres]
    assert labels.tolist() == expected
    assert 0 < labels.mean() < 1
    np.testing.assert_allclose(drawn, np.concatenate(features), rtol=1e-3, atol=1e-3)


def test_so_many_windows_are_drawn_of_each_frame_and_the_same_ones_again(frames, backbone):
    several, again, alone = (
        draw_windows(chosen, backbone, params(windows_per_frame=7)) for chosen in (frames[:2], frames[:2], frames[1:2])
    )
    features, labels, numbers = several
    assert len(labels) == 14
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


def test_a_folded_head_says_of_features_what_it_said_of_scaled_ones():
    rng = np.random.default_rng(2)
    features, mean, scale = rng.normal(5, 3, (9, 4)), rng.normal(5, 1, 4), rng.uniform(0.1, 9, 4)
    head = build_head(4, seed=1)
    expected = head.predict_on_batch((features - mean) / scale)
    fold_scale(head, mean, scale)
    np.testing.assert_allclose(head.predict_on_batch(features), expected, rtol=1e-4, atol=1e-4)


class Brightness:
    """In place of a backbone: a window's features are the mean colours of its middle."""

    levels = (3,)

    def features(self, image: Image.Image, content: Box, fraction: float) -> tuple[np.ndarray, np.ndarray]:
        side, corners = window_grid(content, fraction, 0.25)
        middles = [
            np.asarray(image.crop((x + side // 3, y + side // 3, x + side // 2, y + side // 2))) for x, y in corners
        ]
        return np.column_stack([corners, np.full((len(corners), 2), side)]), np.stack(middles).mean(axis=(1, 2)) / 255


def test_the_head_learns_to_tell_windows_on_a_lesion(frames):
    backbone, settings = Brightness(), params(epochs=60, learning_rate=0.01)
    head, fitted = train_head(backbone, frames[:18], frames[18:], settings)
    assert fitted.kept_epoch == 59
    assert fitted.history["val_auc"].iloc[-1] > 0.9
    np.testing.assert_allclose(fitted.val_probabilities.sum(axis=1), 1, rtol=1e-5)
    again, _ = train_head(backbone, frames[:18], frames[18:], settings)
    for weight, other in zip(head.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, other)


def test_frames_without_lesions_teach_nothing(tmp_path, backbone):
    Image.fromarray(np.zeros((SIDE, SIDE, 3), "uint8")).save(tmp_path / "frame.png")
    Image.fromarray(np.zeros((SIDE, SIDE), "uint8")).save(tmp_path / "mask.png")
    frame = Frame("frame.png", Path(tmp_path / "frame.png"), Path(tmp_path / "mask.png"), None, "", "")
    with pytest.raises(InputError, match="no window of 1 training frames has its centre in a lesion"):
        train_head(backbone, [frame], [frame], params())
