"""Class activation maps, their agreement with masks, and occlusion, against figures worked out by hand."""

from dataclasses import replace
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy.stats import spearmanr
from tiny_networks import BATCH, SIZE, lively, tiny_architecture, tiny_crops

from lesionlab.data.crops import content_box, fit_whole, lesion_boxes
from lesionlab.data.readers import read_frames, read_mask, read_rgb
from lesionlab.errors import InputError
from lesionlab.explanation import cam
from lesionlab.explanation.agreement import group_bootstrap, pointing_game, random_maps, rank_correlation, share_inside
from lesionlab.explanation.occlusion import fall_map, occlusion
from lesionlab.explanation.pictures import Example, draw_examples, draw_frames
from lesionlab.explanation.run import Case, choose_cases, choose_layers, example_frames, measure, summarise
from lesionlab.explanation.windows import LesionWindows, evenly, lesion_windows_of
from lesionlab.models.backbones import preprocess
from lesionlab.models.networks import ATTENTION_MAP, build_network
from lesionlab.models.saved import Classifier, Description

CONVOLUTION = np.array([[1.0, -1.0]], "float32")  # two channels of one: the picture, and its negative
FLAT = np.arange(16, dtype="float32").reshape(8, 2) / 8
WEIGHTS = {"average": np.array([[1.0, 3.0], [2.0, -1.0]], "float32"), "flatten": FLAT}
BIASES = np.array([0.5, -0.25], "float32")
PICTURE = np.array([[[1.0], [2.0]], [[-4.0], [0.0]]], "float32")[None]
# What the convolution makes of the picture: (2, 2, 2).
ACTIVATIONS = np.array([[[1, 0], [2, 0]], [[0, 4], [0, 0]]], "float32")


def hand_made(pooling: str) -> keras.Model:
    """A rectified 1x1 convolution, a pooling, two logits; every weight known."""
    inputs = keras.Input((2, 2, 1))
    x = keras.layers.Conv2D(2, 1, activation="relu", use_bias=False, name="seen")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x) if pooling == "average" else keras.layers.Flatten()(x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="logits")(x))
    model.get_layer("seen").set_weights([CONVOLUTION.reshape(1, 1, 1, 2)])
    model.get_layer("logits").set_weights([WEIGHTS[pooling], BIASES])
    return model


@pytest.mark.parametrize("target", [0, 1])
def test_with_average_pooling_both_methods_give_the_map_worked_out_by_hand(target):
    """Of two classes the log odds are the difference of the logits: each cell's gradient is that of the weights / 4."""
    [(activations, gradients)] = cam.activations_and_gradients(
        hand_made("average"), ["seen"], PICTURE, np.array([target])
    )
    np.testing.assert_array_equal(activations[0], ACTIVATIONS)
    favour = WEIGHTS["average"][:, target] - WEIGHTS["average"][:, 1 - target]
    np.testing.assert_allclose(gradients[0], np.broadcast_to(favour / 4, (2, 2, 2)), rtol=1e-6)
    expected = {1: [[0.5, 1.0], [0, 0]], 0: [[0, 0], [3.0, 0]]}[target]
    for method in cam.METHODS:
        np.testing.assert_allclose(cam.class_activation_map(method, activations, gradients)[0], expected, rtol=1e-6)


def test_behind_a_flattening_gradcam_takes_the_mean_gradient_and_hirescam_the_cell_s_own():
    [(activations, gradients)] = cam.activations_and_gradients(hand_made("flatten"), ["seen"], PICTURE, np.array([1]))
    own = (FLAT[:, 1] - FLAT[:, 0]).reshape(2, 2, 2)
    np.testing.assert_allclose(gradients[0], own, rtol=1e-6)
    np.testing.assert_allclose(
        cam.class_activation_map("hirescam", activations, gradients)[0], np.maximum((ACTIVATIONS * own).sum(-1), 0)
    )
    mean = own.mean(axis=(0, 1))
    np.testing.assert_allclose(
        cam.class_activation_map("gradcam", activations, gradients)[0], np.maximum((ACTIVATIONS * mean).sum(-1), 0)
    )


@pytest.mark.parametrize("pooling", ["average", "flatten"])
def test_gradient_times_activation_sums_to_the_log_odds_without_biases(pooling):
    """Draelos & Carin 2020: what makes HiResCAM faithful at the last layer."""
    model = hand_made(pooling)
    [(activations, gradients)] = cam.activations_and_gradients(model, ["seen"], PICTURE, np.array([1]))
    logits = np.asarray(model(PICTURE))[0]
    without_biases = (logits[1] - BIASES[1]) - (logits[0] - BIASES[0])
    assert (activations * gradients).sum() == pytest.approx(without_biases, rel=1e-5)


def test_the_gradient_of_three_classes_is_that_of_the_log_odds():
    """Against differences: log(p / (1 - p)) changes by the gradient times a small step of the activation."""
    rng = np.random.default_rng(3)
    inputs = keras.Input((2, 2, 2))
    seen = keras.layers.Activation("relu", name="seen")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(seen)))
    picture = rng.uniform(0.5, 1, (1, 2, 2, 2)).astype("float32")

    def log_odds(pixels: np.ndarray) -> float:
        scores = np.asarray(model(pixels), dtype="float64")[0]
        shares = np.exp(scores) / np.exp(scores).sum()
        return np.log(shares[2] / (1 - shares[2]))

    [(_, gradients)] = cam.activations_and_gradients(model, ["seen"], picture, np.array([2]))
    for cell in np.ndindex(2, 2, 2):
        step = np.zeros_like(picture)
        step[0][cell] = 1e-2
        slope = (log_odds(picture + step) - log_odds(picture - step)) / 2e-2
        assert gradients[0][cell] == pytest.approx(slope, abs=2e-3)


@pytest.mark.parametrize(
    ("backbone", "layers"),
    [
        (None, ["conv1", "conv2"]),
        ("vgg16", ["block3_conv3", "block4_conv3", "block5_conv3"]),
        ("resnet50", ["conv3_block4_out", "conv4_block6_out", "conv5_block3_out"]),
        ("mobilenet_0.25", ["conv_pw_5_relu", "conv_pw_11_relu", "conv_pw_13_relu"]),
        ("mobilenetv2_0.35", ["block_6_expand_relu", "block_13_expand_relu", "out_relu"]),
    ],
)
def test_the_layers_to_choose_from_are_the_last_rectified_ones_of_a_resolution(backbone, layers):
    model = build_network(tiny_architecture(backbone, image_size=64), seed=0)
    assert cam.rectified_layers(model) == layers


def test_a_network_without_convolutions_is_refused():
    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)), name="flat")
    with pytest.raises(InputError, match="flat has no rectified convolution"):
        cam.rectified_layers(model)


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setattr("keras.backend.backend", lambda: "jax")
    with pytest.raises(InputError, match="Keras runs on jax; set KERAS_BACKEND=tensorflow"):
        cam.activations_and_gradients(None, [], PICTURE, np.array([1]))


def network_with(**changes: object) -> Classifier:
    architecture = tiny_architecture("mobilenet_0.25", image_size=64, **changes)
    description = Description(
        architecture=architecture, stage="finetune", dataset="none", protocol="group", seed=1, unfrozen_blocks=1,
        blocks=[], threshold=0.5, environment={},
    )  # fmt: skip
    return Classifier(description, lively(build_network(architecture, 1), architecture))


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return network_with()


def test_maps_do_not_depend_on_the_batch(classifier):
    images, labels = tiny_crops(5, size=64)
    layers = cam.rectified_layers(classifier.model)
    together, singly = (
        cam.class_activation_maps(classifier, layers, images, labels, batch_size, "test") for batch_size in (BATCH, 1)
    )
    assert set(together) == {(method, layer) for method in cam.METHODS for layer in layers}
    for key, maps in together.items():
        side = classifier.model.get_layer(key[1]).output.shape[1]
        assert maps.shape == (5, side, side)
        assert maps.min() >= 0
        np.testing.assert_allclose(maps, singly[key], rtol=1e-3, atol=1e-5)


def test_a_layer_without_a_map_is_named_with_those_that_have_one(classifier):
    for name in ("no_such_layer", "head_dense"):
        with pytest.raises(InputError, match=rf"explain\.layer '{name}' is no layer of .*conv_pw_13_relu"):
            cam.class_activation_maps(classifier, [name], *tiny_crops(1, size=64), 1, "test")


def test_enlarging_keeps_places_and_levels():
    maps = np.zeros((2, 4, 4), "float32")
    maps[0] = 3
    maps[1, 1, 2] = 8
    large = cam.enlarge(maps, 64)
    np.testing.assert_allclose(large[0], 3)
    rows, columns = np.nonzero(large[1] == large[1].max())
    assert (rows.mean(), columns.mean()) == (23.5, 39.5)  # the middle of the cell: 1.5 * 16 and 2.5 * 16
    assert large[1].sum() == pytest.approx(8 * 16 * 16, rel=1e-3)


# ---- agreement


@given(
    arrays("float32", (3, 4, 5), elements=st.floats(0, 10, width=32)),
    arrays("float32", (3, 4, 5), elements=st.sampled_from([0.0, 0.25, 1.0])),
)
def test_share_and_pointing_are_those_of_a_loop(heat, lesion):
    shares, points = share_inside(heat, lesion), pointing_game(heat, lesion)
    for one, mask, share, point in zip(heat, lesion, shares, points, strict=True):
        total = float(one.sum(dtype="float64"))
        inside = sum(float(one[cell]) * float(mask[cell]) for cell in np.ndindex(4, 5))
        assert share == pytest.approx(inside / total if total else 0, abs=1e-9)
        hottest = np.unravel_index(one.argmax(), one.shape)
        assert point == (total > 0 and mask[hottest] >= 0.5)


def test_a_random_map_s_share_is_the_lesion_s_and_a_perfect_map_s_is_one():
    lesion = np.zeros((400, 32, 32), "float32")
    lesion[:, 4:20, 8:16] = 1
    noise = cam.enlarge(random_maps(400, (4, 4), np.random.default_rng(0)), 32)
    assert share_inside(noise, lesion).mean() == pytest.approx(lesion.mean(), abs=0.01)
    assert share_inside(lesion, lesion).tolist() == [1.0] * 400
    assert pointing_game(lesion, lesion).all()
    assert not pointing_game(np.zeros_like(lesion), lesion).any()


def test_rank_correlation_is_scipy_s_and_none_with_a_constant_map():
    rng = np.random.default_rng(5)
    first, second = rng.integers(0, 5, (2, 6, 4, 4)).astype("float32")
    second[0] = 1
    found = rank_correlation(first, second)
    assert found[0] == 0
    expected = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(first[1:], second[1:], strict=True)]
    np.testing.assert_allclose(found[1:], expected, atol=1e-9)


def test_intervals_are_those_of_drawing_groups():
    rng = np.random.default_rng(7)
    groups = pd.Series([f"g{k}" for k in range(12) for _ in range(k % 3 + 1)])
    values = pd.DataFrame({"share": rng.uniform(0.4, 0.6, len(groups)), "control": rng.uniform(0.1, 0.3, len(groups))})
    figures = group_bootstrap(values, groups, {"times": ("share", "control")}, resamples=4000, seed=1)
    members = [np.flatnonzero(groups == name) for name in groups.unique()]
    drawn = [np.concatenate([members[k] for k in rng.integers(0, 12, 12)]) for _ in range(4000)]
    share, control = (np.array([values[name].to_numpy()[rows].mean() for rows in drawn]) for name in values)
    for name, plain, distribution in (
        ("share", values["share"].mean(), share),
        ("times", values["share"].mean() / values["control"].mean(), share / control),
    ):
        assert figures[name]["value"] == pytest.approx(plain)
        low, high = np.percentile(distribution, (2.5, 97.5))
        tolerance = 0.1 * (high - low)
        assert figures[name]["low"] == pytest.approx(low, abs=tolerance)
        assert figures[name]["high"] == pytest.approx(high, abs=tolerance)


def test_one_group_has_no_interval_and_no_heat_no_ratio():
    values = pd.DataFrame({"share": [0.5, 0.7], "control": [0.0, 0.0]})
    figures = group_bootstrap(values, pd.Series(["a", "a"]), {"times": ("share", "control")}, resamples=100, seed=1)
    assert figures["share"] == {"value": pytest.approx(0.6), "low": None, "high": None}
    assert "times" not in figures


# ---- windows


def test_windows_hold_their_lesion_anywhere_and_masks_lie_on_it(drawn_phantom, tiny_card, tiny_params):
    frames = read_frames(tiny_card, drawn_phantom)
    windows = lesion_windows_of(frames, tiny_card.classes, tiny_params.crop, 1.0, SIZE, 42, "test")
    assert windows.images.shape == (len(windows.table), SIZE, SIZE, 3)
    by_name, places, lesions = {frame.name: frame for frame in frames}, [], 0
    for frame in frames:
        pixels = read_rgb(frame.image)
        _, boxes = lesion_boxes(read_mask(frame.mask, 127, pixels.shape[1::-1], frame.image), 0.001)
        lesions += len(boxes)
    assert len(windows.table) == lesions
    for row, cut in zip(windows.table.itertuples(), windows.lesion, strict=True):
        frame = by_name[row.frame]
        mask = read_mask(frame.mask, 127, (96, 80), frame.image)
        part = mask[row.y : row.y + row.height, row.x : row.x + row.width]
        assert cut.mean() == pytest.approx(part.mean(), abs=0.03)
        assert cut.max() > 0.9
        rows, columns = np.nonzero(cut > 0.5)
        places.append((rows.mean() / SIZE, columns.mean() / SIZE))
    assert (windows.table["label"] == "polyp").all()
    assert np.std(places, axis=0).min() > 0.05  # not always in the middle
    wide = lesion_windows_of(frames, tiny_card.classes, tiny_params.crop, 0.25, SIZE, 42, "test")
    assert windows.lesion.mean() < 0.8 * wide.lesion.mean()


def test_of_a_labelled_frame_with_a_mask_the_whole_is_explained(drawn_phantom, tiny_card, tiny_params):
    """As the crop stage takes it: padded to a square; the label is the class to explain."""
    frames = [replace(frame, label="background") for frame in read_frames(tiny_card, drawn_phantom)]
    windows = lesion_windows_of(frames, tiny_card.classes, tiny_params.crop, 1.0, SIZE, 42, "test")
    assert (windows.table["label"] == "background").all()
    assert windows.table["frame"].is_unique
    for row, crop, cut in zip(windows.table.itertuples(), windows.images, windows.lesion, strict=True):
        frame = next(frame for frame in frames if frame.name == row.frame)
        pixels = read_rgb(frame.image)
        whole = fit_whole(Image.fromarray(pixels), content_box(pixels), SIZE, tiny_params.crop.whole_image)
        np.testing.assert_array_equal(crop, whole)
        mask = read_mask(frame.mask, 127, (96, 80), frame.image)[row.y : row.y + row.height, row.x : row.x + row.width]
        square = max(mask.shape) ** 2
        assert cut.mean() == pytest.approx(mask.sum() / square, abs=0.02)


def test_evenly_takes_the_first_the_last_and_no_more():
    assert evenly(list(range(10)), 4) == [0, 3, 6, 9]
    assert evenly([1, 2], 5) == [1, 2]
    assert evenly([], 5) == []


# ---- the whole


def bright_squares(count: int) -> LesionWindows:
    """Noise with a bright square somewhere, which is the lesion."""
    rng = np.random.default_rng(2)
    images = rng.integers(0, 60, (count, 64, 64, 3)).astype("uint8")
    lesion = np.zeros((count, 64, 64), "float32")
    for k in range(count):
        y, x = rng.integers(0, 40, 2)
        images[k, y : y + 24, x : x + 24] = 230
        lesion[k, y : y + 24, x : x + 24] = 1
    table = pd.DataFrame({"frame": [f"f{k}" for k in range(count)], "group": [f"g{k // 2}" for k in range(count)]})
    return LesionWindows(images, lesion, table.assign(label="polyp", x=0, y=0, width=64, height=64))


def brightness(classifier: Classifier) -> Classifier:
    """Instead of the network, one convolution that answers to brightness."""
    inputs = keras.Input((64, 64, 3))
    layer = keras.layers.Conv2D(1, 8, strides=8, activation="relu", name="bright")
    pooled = keras.layers.GlobalAveragePooling2D()(layer(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, use_bias=False, name="logits")(pooled))
    layer.set_weights([np.full((8, 8, 3, 1), 1 / 192, "float32"), np.zeros(1, "float32")])
    model.get_layer("logits").set_weights([np.array([[-4.0, 4.0]], "float32")])
    return Classifier(classifier.description, model)


def test_a_network_that_looks_at_the_lesion_beats_both_controls(classifier):
    windows = bright_squares(16)
    network = brightness(classifier)
    chosen, shares = choose_layers(network, ["bright"], windows, BATCH)
    assert chosen == {"gradcam": "bright", "hirescam": "bright"}
    assert shares["gradcam", "bright"] > 0.8
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lesionlab.explanation.run.build_network", lambda *_: _deaf(network.model))
        table = measure(network, chosen, windows, BATCH, seed=1)
    figures = summarise(table, 200, seed=1)["gradcam"]
    assert figures["share_inside"]["value"] == pytest.approx(shares["gradcam", "bright"])
    assert figures["pointing"]["value"] == 1
    assert figures["random_share_inside"]["value"] == pytest.approx(windows.lesion.mean(), abs=0.05)
    assert figures["randomised_share_inside"]["value"] == 0
    assert figures["times_random"]["low"] > 4
    assert "times_randomised" not in figures
    assert len(table) == 2 * 16
    assert table["lesion_share"].mean() == pytest.approx(24 * 24 / 64 / 64)


def _deaf(model: keras.Model) -> keras.Model:
    copy = keras.models.clone_model(model)
    copy.set_weights([np.zeros_like(weights) for weights in model.get_weights()])
    return copy


def test_hiding_what_the_network_looks_at_costs_most(classifier):
    windows = bright_squares(1)
    table = occlusion(brightness(classifier), windows.images[0], 1, patch=0.25, stride=0.5, batch_size=BATCH)
    rows, columns = (axis.mean() for axis in np.nonzero(windows.lesion[0]))
    best = table.loc[table["fall"].idxmax()]
    assert abs(best["x"] + 8 - columns) <= 8
    assert abs(best["y"] + 8 - rows) <= 8
    assert best["fall"] > 0.1
    heat = fall_map(table, 64)
    assert share_inside(np.maximum(heat, 0)[None], windows.lesion)[0] > 0.5
    # Every pixel is hidden at least once: squares reach the far edges.
    assert ((table["x"] + table["width"]).max(), (table["y"] + table["height"]).max()) == (64, 64)


def test_the_fall_is_that_of_the_log_odds(classifier):
    network, crop = brightness(classifier), bright_squares(1).images[0]
    table = occlusion(network, crop, 1, patch=1.0, stride=1.0, batch_size=BATCH)
    hidden = np.broadcast_to(crop.mean(axis=(0, 1)).round(), crop.shape).astype("uint8")
    before, after = network.predict(np.stack([crop, hidden]), np.arange(2), 2)[:, 1]
    expected = np.log(before / (1 - before)) - np.log(after / (1 - after))
    assert len(table) == 1
    assert table["probability"][0] == pytest.approx(after, abs=1e-6)
    assert table["fall"][0] == pytest.approx(expected, abs=1e-4)


# ---- cases


PROBABILITIES = [0.9, 0.55, 0.02, 0.97, 0.4, 0.6]  # of the lesion
LABELS = ["polyp", "polyp", "polyp", "background", "background", "background"]


def test_cases_are_right_wrong_by_sureness_and_uncertain(classifier, tiny_params, monkeypatch):
    """Two a kind, threshold 0.5; the crops of other subsets are not looked at."""
    monkeypatch.setattr(
        Classifier, "predict", lambda _, images, rows, *__: np.column_stack([1 - images[rows], images[rows]])
    )
    index = pd.DataFrame({"label": ["polyp", *LABELS]})
    images, rows = np.array([0.5, *PROBABILITIES]), np.arange(1, 7)
    correct, wrong, uncertain = choose_cases(classifier, index, rows, images, tiny_params).values()
    assert {case.row for case in correct} == {1, 2}
    assert [case.row for case in wrong] == [3, 4]
    assert [case.row for case in uncertain] == [2, 5]
    assert [case.title for case in wrong] == ["polyp 0.02\nis polyp", "polyp 0.97\nis background"]
    assert {case.target for case in (*correct, *wrong, *uncertain)} == {1}


def seen_frames(monkeypatch) -> list[str]:
    """Names of the frames that are explained, instead of explaining them."""
    seen = []

    def explain_frame(_, __, frame, ___):
        seen.append(frame.name)
        return Example(frame.name, np.zeros((4, 6, 3), "uint8"), None, {})

    monkeypatch.setattr("lesionlab.explanation.run.explain_frame", explain_frame)
    return seen


def test_the_frames_are_those_of_the_first_cases_of_each_kind(drawn_phantom, tiny_card, tiny_params, monkeypatch):
    seen = seen_frames(monkeypatch)
    frames = read_frames(tiny_card, drawn_phantom)[:3]
    a, b, c = (frame.name for frame in frames)
    index = pd.DataFrame({"frame": [a, a, b, c], "x": [1, 2, 3, 4], "y": 5, "width": 7, "height": 7})
    cases = {"correct": [0, 1, 2, 3], "wrong": [3], "uncertain": []}
    cases = {kind: [Case(row, 1, f"polyp 0.{row}\nis polyp") for row in rows] for kind, rows in cases.items()}
    params = tiny_params.model_copy(update={"explain": tiny_params.explain.model_copy(update={"frames": 2})})
    blocks = example_frames(None, {}, cases, index, frames, params)
    assert seen == [a, b, c]
    assert {kind: [example.window for example in examples] for kind, examples in blocks.items()} == {
        "correct": [(1, 5, 7, 7), (3, 5, 7, 7)], "wrong": [(4, 5, 7, 7)], "uncertain": [],
    }  # fmt: skip
    assert blocks["correct"][1].title == f"{b}\npolyp 0.2, is polyp"
    labelled = [replace(frame, label="polyp") for frame in frames]
    assert not any(example_frames(None, {}, cases, index, labelled, params).values())


def test_attention_is_a_map_of_its_own_beside_the_others():
    network = network_with(pooling="attention")
    assert cam.attends(network.model)
    windows = bright_squares(5)
    layers = cam.rectified_layers(network.model)
    chosen, shares = choose_layers(network, layers, windows, BATCH)
    assert chosen["attention"] == ATTENTION_MAP
    assert {chosen["gradcam"], chosen["hirescam"]} <= set(layers)
    assert set(shares) == {(method, layer) for method in cam.METHODS for layer in layers} | {
        ("attention", ATTENTION_MAP)
    }
    maps = cam.class_activation_maps(network, [ATTENTION_MAP], windows.images, np.ones(5, int), BATCH, "maps")
    [(key, cells)] = maps.items()
    assert key == ("attention", ATTENTION_MAP)
    assert cells.shape == (5, 2, 2)
    np.testing.assert_allclose(cells.sum(axis=(1, 2)), 1, rtol=1e-5)
    weights = keras.Model(network.model.input, network.model.get_layer("head_attention").output)
    inputs = preprocess(windows.images, network.description.architecture.preprocessing)
    np.testing.assert_allclose(cells.reshape(5, -1), weights.predict_on_batch(inputs), rtol=1e-3)
    table = measure(network, chosen, windows, BATCH, seed=1)
    assert list(summarise(table, 200, seed=1)) == ["gradcam", "hirescam", "attention"]
    assert choose_layers(network, layers, bright_squares(0), BATCH)[0]["attention"] == ATTENTION_MAP
    with pytest.raises(InputError, match=r"explain\.layer head_attention_map is what attention is read at"):
        choose_layers(network, [ATTENTION_MAP], windows, BATCH)


def test_the_picture_of_crops_has_a_line_for_each_map(monkeypatch):
    drawn: list[plt.Figure] = []
    monkeypatch.setattr("lesionlab.explanation.pictures.save_figure", lambda figure, _: drawn.append(figure))
    heat = dict.fromkeys((*cam.METHODS, "attention"), np.ones((20, 20)))
    example = Example("polyp 0.9\nis polyp", np.zeros((20, 20, 3), "uint8"), None, heat)
    draw_examples(Path("crops.png"), {"correct": [example], "wrong": []}, "note")
    [figure] = drawn
    [part] = figure.subfigs
    assert [text.get_text() for axis in part.axes for text in axis.texts] == [
        "crop",
        "Grad-CAM",
        "HiResCAM",
        "attention",
    ]
    plt.close(figure)


def test_the_picture_of_frames_names_each_kind_that_has_a_case_and_outlines_its_crop(monkeypatch):
    drawn: list[plt.Figure] = []
    monkeypatch.setattr("lesionlab.explanation.pictures.save_figure", lambda figure, _: drawn.append(figure))
    heat = dict.fromkeys(cam.METHODS, np.ones((40, 60)))
    example = Example("frame\npolyp 0.9, is polyp", np.zeros((40, 60, 3), "uint8"), None, heat, (10, 5, 20, 20))
    draw_frames(Path("frames.png"), {"correct": [example, example], "wrong": [], "uncertain": [example]}, "note")
    [figure] = drawn
    assert [part.get_suptitle() for part in figure.subfigs] == ["correct", "uncertain"]
    assert [len(part.axes) for part in figure.subfigs] == [6, 3]
    for axis, title in zip(figure.subfigs[1].axes, (example.title, "Grad-CAM", "HiResCAM"), strict=True):
        assert axis.get_title() == title
        assert axis.patches[0].get_bbox().bounds == (9.5, 4.5, 20, 20)
    plt.close(figure)
