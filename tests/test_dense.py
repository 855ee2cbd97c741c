"""Dense maps: the features of every window of a grid, each against the same window looked at alone."""

import keras
import numpy as np
import pytest
from PIL import Image
from tiny_networks import CLASSES, SIZE, THREADS, lively, tiny_architecture, tiny_crops

from lesionlab.detection.dense import FRAMES_A_PASS, DenseBackbone, fragment_offsets, fragments, halving_inputs
from lesionlab.errors import InputError
from lesionlab.models.backbones import find_backbone, preprocess
from lesionlab.models.networks import build_network
from lesionlab.models.saved import Classifier, Description
from lesionlab.training.backend import environment

SMALL = "mobilenetv2_0.35"
LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ("mobilenet_0.25", "vgg16", "resnet50")]


def classifier_of(backbone: str | None, **changes: object) -> Classifier:
    architecture = tiny_architecture(backbone, **changes)
    description = Description(
        architecture=architecture, stage="transfer", dataset="tiny", protocol="group", seed=1, unfrozen_blocks=0,
        blocks=[], threshold=0.5, environment=environment(THREADS),
    )  # fmt: skip
    return Classifier(description, lively(build_network(architecture, seed=1), architecture))


def noise(height: int, width: int) -> np.ndarray:
    """Blotches of all sizes, (height, width, 3) uint8."""
    rng = np.random.default_rng(3)
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype="uint8")).resize((width, height)))
        for cells in (3, 11, 40)
    ]
    return np.mean(layers, axis=0).astype("uint8")


def unpadded_network() -> tuple[keras.Model, int]:
    """A pooling, a sum of two strided convolutions and a strided depthwise one, all without padding.

    Returns it and the side of the window that gives one cell: no window sees an edge.
    """
    keras.utils.set_random_seed(7)
    layers = keras.layers
    x = inputs = keras.Input((None, None, 2), name="pixels")
    x = layers.Conv2D(4, 3, activation="relu", name="a")(x)
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.Conv2D(5, 3, activation="relu", name="b")(x)
    x = layers.Add()([layers.Conv2D(5, 3, strides=2, name=name)(x) for name in ("c", "shortcut")])
    x = layers.DepthwiseConv2D(3, strides=2, activation="relu", name="d")(x)
    x = layers.Conv2D(3, 2, name="e")(x)
    side = 2
    for kernel, stride in ((3, 2), (3, 2), (3, 1), (2, 2), (3, 1)):
        side = (side - 1) * stride + kernel
    return keras.Model(inputs, x), side


@pytest.mark.parametrize("halvings", [0, 1, 2, 3])
def test_every_fragment_holds_what_the_network_gives_for_that_window_alone(halvings):
    network, side = unpadded_network()
    image = np.random.default_rng(1).normal(size=(1, 64, 72, 2)).astype("float32")
    result = np.asarray(fragments(network, halvings)(image))
    offsets = fragment_offsets(3, halvings)
    assert len(result) == len(offsets) == 4**halvings
    seen = set()
    for fragment, (top, left) in zip(result, offsets, strict=True):
        for row, column in np.ndindex(fragment.shape[:2]):
            y, x = top + 8 * row, left + 8 * column
            if y + side <= 64 and x + side <= 72:
                alone = np.asarray(network(image[:, y : y + side, x : x + side]))
                assert alone.shape[1:3] == (1, 1)
                np.testing.assert_allclose(fragment[row, column], alone[0, 0, 0], atol=1e-5)
                seen.add((y, x))
    step = 8 // 2**halvings
    expected = {(y, x) for y in range(0, 64 - side + 1, step) for x in range(0, 72 - side + 1, step)}
    assert seen == expected
    assert len(expected) > 4


@pytest.mark.parametrize("backbone", [SMALL, *LARGE])
def test_the_layers_of_stride_two_are_found(backbone):
    """Five of them, each read before its padding, and none inside a branch."""
    base = find_backbone(backbone).build(None)
    inputs = halving_inputs(base)
    assert len(inputs) == 5
    heights = [keras.Model(base.input, tensor).compute_output_shape((1, 64, 64, 3))[1] for tensor in inputs]
    assert heights == [64, 32, 16, 8, 4]


@pytest.mark.parametrize("backbone", [SMALL, *LARGE])
@pytest.mark.parametrize(("stride", "shift"), [(0.5, (16, 0)), (0.25, (8, 24))])
def test_a_fragment_is_a_pass_over_the_shifted_frame(backbone, stride, shift):
    """Shift and stitch (Long et al., CVPR 2015), far from the frame's edges: the windows of 32 pixels in the middle."""
    classifier, side = classifier_of(backbone), 640
    frame = noise(side + 32, side + 32)
    down, right = shift

    def middle(top: int, left: int, stride: float) -> np.ndarray:
        image = Image.fromarray(frame[top : top + side, left : left + side])
        [(boxes, features)] = DenseBackbone(classifier, stride).features([image], [(0, 0, side, side)], SIZE / side)
        at = (boxes[:, :2] == (320 + right - left, 320 + down - top)).all(axis=1)
        assert at.sum() == 1
        assert (boxes[:, 2:] == SIZE).all()
        assert features.std(axis=0).max() > 0.01 * np.abs(features).max()  # places differ by more than is allowed below
        return features[at][0]

    expected = middle(down, right, 1.0)
    found = middle(0, 0, stride)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("backbone", [SMALL, *LARGE])
@pytest.mark.parametrize(
    "changes",
    [{"pooling": "average"}, {"pooling": "flatten"}, {"pooling": "attention"}, {"dense": 0}, {"head_filters": (6,)}],
)
def test_on_a_frame_of_one_window_the_features_are_those_of_the_crop(backbone, changes):
    """Whatever the classifier's own head is."""
    classifier = classifier_of(backbone, image_size=64, **changes)
    frame = tiny_crops(1, size=64)[0]
    model, architecture = classifier.model, classifier.description.architecture
    ends = [model.get_layer(find_backbone(backbone).block_ends[-1]).output, halving_inputs(model)[-1]]
    maps = keras.Model(model.input, ends)(preprocess(frame, architecture.preprocessing))
    alone = np.concatenate([np.mean(part, axis=(1, 2)) for part in maps], axis=1)
    for stride in (1.0, 0.25):
        dense = DenseBackbone(classifier, stride)
        [(boxes, features)] = dense.features([Image.fromarray(frame[0])], [(0, 0, 64, 64)], 1.0)
        assert boxes.tolist() == [[0, 0, 64, 64]]
        np.testing.assert_allclose(features, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("stride", "step"), [(1.0, 32), (0.5, 16), (0.25, 8), (0.2, 4), (0.01, 1)])
def test_windows_lie_on_a_grid_as_fine_as_asked_for(stride, step):
    """A content box away from the corner, its sides no whole number of strides."""
    content = (7, 11, 150, 120)
    backbone = DenseBackbone(classifier_of("mobilenet_0.25"), stride)
    [(boxes, features)] = backbone.features([Image.fromarray(noise(140, 160))], [content], SIZE / 120)
    assert features.shape == (len(boxes), sum(backbone.levels))
    reduced = (160, 128)  # the nearest whole strides of 32 pixels
    assert len(boxes) == np.prod([(length - SIZE) // step + 1 for length in reduced])
    for axis in (0, 1):
        scale = content[2 + axis] / reduced[axis]
        places = content[axis] + scale * np.arange(0, reduced[axis] - SIZE + 1, step)
        assert set(boxes[:, axis]) == set(places.round().astype(int))


@pytest.mark.parametrize("backbone", [SMALL, *LARGE])
def test_what_is_seen_of_a_frame_does_not_depend_on_the_others(backbone):
    """Frames of two sizes, more of one than a pass takes and an odd number of both: each alone gives the same bits."""
    dense = DenseBackbone(classifier_of(backbone), 0.5)
    pixels = noise(120, 160)
    frames = [np.roll(pixels, 9 * number, axis=1)[:, : 160 - 40 * (number % 2)] for number in range(6)]
    images = [Image.fromarray(frame) for frame in [*frames, pixels[::-1]]]
    contents = [(0, 0, *image.size) for image in images]
    passes = []
    network = dense.model.predict_on_batch
    dense.model.predict_on_batch = lambda batch: passes.append(len(batch)) or network(batch)
    together = dense.features(images, contents, SIZE / 120)
    assert passes == [FRAMES_A_PASS] * 4  # 4 frames of 160 pixels, 3 of 120
    for image, content, (boxes, features) in zip(images, contents, together, strict=True):
        [(alone_boxes, alone)] = dense.features([image], [content], SIZE / 120)
        np.testing.assert_array_equal(boxes, alone_boxes)
        np.testing.assert_array_equal(features, alone)
    assert len({features.tobytes() for _, features in together}) == len(images)


def test_the_small_cnn_has_no_dense_way():
    with pytest.raises(InputError, match=r"set detect\.mode=windows"):
        DenseBackbone(classifier_of(None, filters=(4,), classes=CLASSES), 0.5)
