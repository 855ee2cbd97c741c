"""Heads on backbones: what is frozen, that the parts are the whole, and which weight files fit."""

import shutil
from collections import Counter

import keras
import numpy as np
import pytest
from scipy import special
from tiny_networks import SIZE, lively, save_official, tiny_architecture, tiny_crops

from lesionlab.errors import InputError
from lesionlab.files import write_json
from lesionlab.models.backbones import find_backbone, preprocess
from lesionlab.models.networks import (
    ATTENTION_REDUCTION,
    build_network,
    freeze,
    load_backbone_weights,
    prefix_of,
    softmax,
    with_attention,
)
from lesionlab.models.saved import pad_batch

FLAT = ("vgg16", "vgg19", "mobilenetv2_0.35", "mobilenet_0.25", pytest.param("resnet50", marks=pytest.mark.slow))


def inputs_for(backbone: str, count: int = 6) -> np.ndarray:
    return preprocess(tiny_crops(count)[0], find_backbone(backbone).preprocessing)


def weights_folder(folder, model: keras.Model, backbone: str, file: str = "weights.h5"):
    """A folder as the weights stage writes it, with a file of the format that `file` ends in."""
    folder.mkdir(parents=True)
    model.save_weights(folder / "x.weights.h5") if file.endswith(".weights.h5") else save_official(model, folder / file)
    if file.endswith(".weights.h5"):
        (folder / "x.weights.h5").rename(folder / file)
    write_json(folder / "weights.json", {"backbone": backbone, "file": file})
    return folder


def scrambled(backbone: str, seed: int = 3) -> keras.Model:
    """The backbone with every weight drawn, moving statistics too (positive variances)."""
    base = find_backbone(backbone).build(SIZE)
    rng = np.random.default_rng(seed)
    base.set_weights([rng.uniform(0.05, 0.2, weight.shape).astype("float32") for weight in base.get_weights()])
    return base


@pytest.mark.parametrize("backbone", FLAT)
def test_the_network_is_flat_and_ends_in_logits(backbone):
    network = build_network(tiny_architecture(backbone), seed=1)
    assert not any(isinstance(layer, keras.Model) for layer in network.layers)
    assert network.output_shape == (None, 2)
    assert network.layers[-1].activation is keras.activations.linear
    probabilities = softmax(network.predict_on_batch(inputs_for(backbone)))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)


@pytest.mark.parametrize("backbone", [None, "mobilenet_0.25"])
def test_xla_compiles_no_network(backbone):
    """Keras would have it on a GPU, where model.json would say otherwise."""
    network = build_network(tiny_architecture(backbone), seed=1)
    parts = [network]
    if backbone:
        boundary = find_backbone(backbone).boundary(1)
        parts += [prefix_of(network, boundary), freeze(network, boundary)]
    assert [part.jit_compile for part in parts] == [False] * len(parts)


@pytest.mark.parametrize("backbone", [None, "vgg16", "resnet50", "mobilenet_0.25", "mobilenetv2_0.35"])
@pytest.mark.parametrize("changes", [{}, {"attention": True}, {"pooling": "attention"}, {"head_filters": (4,)}])
def test_no_activation_has_more_than_two_readers(backbone, changes):
    """Of three gradients the order of the sum is chance, and with it the last bits of what is learnt."""
    network = build_network(tiny_architecture(backbone, image_size=64, **changes), seed=1)
    outputs = [network.output]
    if backbone and changes.get("pooling") == "attention":
        outputs = with_attention(network, None).outputs  # each is read by a loss
    readers = Counter(id(tensor) for tensor in outputs)
    for layer in network.layers[1:]:
        readers.update(id(tensor) for tensor in (layer.input if isinstance(layer.input, list) else [layer.input]))
    assert set(readers) >= {id(layer.output) for layer in network.layers}
    assert max(readers.values()) <= 2


@pytest.mark.parametrize(
    ("pooling", "dense", "width"), [("average", 0, 256), ("flatten", 0, 256), ("average", 5, 5), ("attention", 0, 512)]
)
def test_the_head_is_what_params_say(pooling, dense, width):
    architecture = tiny_architecture(
        "mobilenet_0.25", pooling=pooling, dense=dense, dropout=0.0, classes=["a", "b", "c"]
    )
    network = build_network(architecture, seed=1)
    assert network.get_layer("logits").kernel.shape == (width, 3)
    assert not any(isinstance(layer, keras.layers.Dropout) for layer in network.layers)


def test_the_small_cnn_is_what_params_say():
    network = build_network(tiny_architecture(None, filters=(4, 8, 16), dense=8), seed=1)
    convolutions = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [layer.filters for layer in convolutions] == [4, 8, 16]
    strided_then_three_poolings = SIZE // 16
    assert network.get_layer("head_dense").kernel.shape == (strided_then_three_poolings**2 * 16, 8)


def test_without_convolutions_the_small_cnn_is_dense_layers_on_pixels():
    network = build_network(tiny_architecture(None, filters=(), dense=8), seed=1)
    assert [layer.name for layer in network.layers] == [
        "pixels",
        "head_flatten",
        "head_dense",
        "head_dropout",
        "logits",
    ]
    assert network.get_layer("head_dense").kernel.shape == (SIZE * SIZE * 3, 8)


def test_new_batch_normalization_trains_and_a_backbones_does_not():
    architecture = tiny_architecture(None, batch_normalization=True)
    suffix = freeze(build_network(architecture, seed=1), architecture.boundary(0))
    normalising = [layer for layer in suffix.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(normalising) == 2
    before = [layer.moving_mean.numpy().copy() for layer in normalising]
    suffix(preprocess(tiny_crops(6)[0], architecture.preprocessing), training=True)
    assert all((layer.moving_mean.numpy() != mean).any() for layer, mean in zip(normalising, before, strict=True))
    assert {id(layer.gamma) for layer in normalising} <= {id(weight) for weight in suffix.trainable_weights}
    names = [layer.name for layer in suffix.layers]
    assert names.index("conv1") < names.index("new_norm1") < names.index("relu1") < names.index("pool1")
    assert suffix.get_layer("conv1").activation is keras.activations.linear


def gates_of(network: keras.Model, number: int) -> keras.Model:
    """What a block's attention multiplies its channels by, and what it multiplies, and the product."""
    attention = network.get_layer(f"attention{number}")
    return keras.Model(network.input, [*attention.input, attention.output])


@pytest.mark.parametrize("batch_normalization", [False, True])
def test_attention_multiplies_channels_by_gates_that_all_channels_decide(batch_normalization):
    architecture = tiny_architecture(
        None, filters=(4, 24), attention=True, batch_normalization=batch_normalization, dense=8
    )
    network = build_network(architecture, seed=1)
    inputs = preprocess(tiny_crops(6)[0], architecture.preprocessing)
    names = [layer.name for layer in network.layers]
    for number, (channels, units) in enumerate(((4, 1), (24, 24 // ATTENTION_REDUCTION)), start=1):
        before = f"relu{number}" if batch_normalization else f"conv{number}"
        assert names.index(before) < names.index(f"attention{number}") < names.index(f"pool{number}")
        reduce, gate = (network.get_layer(f"attention{number}_{name}") for name in ("reduce", "gate"))
        assert (reduce.kernel.shape, gate.kernel.shape) == ((channels, units), (units, channels))
        shown, gates, product = gates_of(network, number).predict_on_batch(inputs)
        assert gates.shape == (6, 1, 1, channels)
        assert 0 < gates.min() < gates.max() < 1
        np.testing.assert_allclose(product, shown * gates, rtol=1e-6)
        middle = np.maximum(shown.mean(axis=(1, 2)) @ reduce.kernel.numpy() + reduce.bias.numpy(), 0)
        expected = special.expit(middle @ gate.kernel.numpy() + gate.bias.numpy())
        np.testing.assert_allclose(gates[:, 0, 0], expected, rtol=1e-4)


def test_attention_changes_what_the_small_cnn_says_and_its_gates_train():
    plain, attentive = (
        build_network(tiny_architecture(None, attention=attention), seed=1) for attention in (False, True)
    )
    for layer in plain.layers:
        attentive.get_layer(layer.name).set_weights(layer.get_weights())
    inputs = preprocess(tiny_crops(6)[0], "tf")
    assert np.abs(plain.predict_on_batch(inputs) - attentive.predict_on_batch(inputs)).min() > 0
    gates = attentive.get_layer("attention1_gate")
    suffix = freeze(attentive, None)
    assert {id(gates.kernel), id(gates.bias)} <= {id(weight) for weight in suffix.trainable_weights}
    gates.set_weights([np.zeros_like(weight) for weight in gates.get_weights()])
    _, opened, _ = gates_of(attentive, 1).predict_on_batch(inputs)
    np.testing.assert_array_equal(opened, 0.5)


SUMS = {"conv1": 28.59079, "conv2": 34.33606, "head_dense": 108.56805, "logits": 4.907619}  # of absolute weights


def test_without_attention_the_small_cnn_is_as_it_was_before_there_was_any():
    """SUMS were written down then: a layer that is built between the old ones would draw from their seed."""
    network = build_network(tiny_architecture(None), seed=1)
    names = ["pixels", "conv1", "pool1", "conv2", "pool2", "head_flatten", "head_dense", "head_dropout", "logits"]
    assert [layer.name for layer in network.layers] == names
    assert "attention" not in " ".join(weight.path for weight in network.weights)
    drawn = {name: float(np.abs(network.get_layer(name).kernel).sum()) for name in SUMS}
    assert drawn == pytest.approx(SUMS, rel=1e-5)


def test_a_head_may_hold_convolutions():
    architecture = tiny_architecture("mobilenet_0.25", head_filters=(6, 5), dense=0)
    network = build_network(architecture, seed=1)
    freeze(network, architecture.boundary(0))
    assert network.get_layer("head_conv1").kernel.shape == (3, 3, 256, 6)
    assert network.get_layer("logits").kernel.shape == (5, 2)
    trained = {layer.name for layer in network.layers if layer.trainable_weights}
    assert trained == {"head_conv1", "head_conv2", "logits"}


def test_new_layers_follow_from_the_seed():
    architecture = tiny_architecture("mobilenet_0.25")
    first, again, other = (build_network(architecture, seed) for seed in (1, 1, 2))
    for a, b in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first.get_layer("logits").kernel, other.get_layer("logits").kernel)


@pytest.mark.parametrize("backbone", ["vgg16", "vgg19", "mobilenetv2_0.35", "mobilenet_0.25"])
def test_exactly_the_blocks_behind_the_boundary_train(backbone):
    architecture = tiny_architecture(backbone)
    ends = find_backbone(backbone).block_ends
    for blocks in range(6):
        network = build_network(architecture, seed=1)
        boundary = architecture.boundary(blocks)
        suffix = freeze(network, boundary)
        names = [layer.name for layer in network.layers]
        first = 0 if blocks == 5 else names.index(ends[4 - blocks]) + 1
        for number, layer in enumerate(network.layers):
            normalises = isinstance(layer, keras.layers.BatchNormalization)
            assert layer.trainable == (number >= first and not normalises), (blocks, layer.name)
        expected = [
            weight
            for layer in network.layers[first:]
            if not isinstance(layer, keras.layers.BatchNormalization)
            for weight in layer.weights
            if "seed" not in weight.path
        ]
        assert {id(weight) for weight in suffix.trainable_weights} == {id(weight) for weight in expected}
        assert {id(weight) for weight in network.trainable_weights} == {id(weight) for weight in expected}


def test_freezing_again_with_more_blocks_unfreezes_them():
    network = build_network(tiny_architecture("mobilenetv2_0.35"), seed=1)
    counts = []
    for blocks in (0, 2, 1):
        freeze(network, tiny_architecture("mobilenetv2_0.35").boundary(blocks))
        counts.append(len(network.trainable_weights))
    assert counts[0] == 4
    assert counts[0] < counts[2] < counts[1]


@pytest.mark.parametrize("backbone", FLAT)
@pytest.mark.parametrize("blocks", [0, 2])
def test_prefix_and_suffix_are_the_whole_network_bit_for_bit(backbone, blocks):
    architecture = tiny_architecture(backbone)
    network = build_network(architecture, seed=4)
    boundary = architecture.boundary(blocks)
    suffix = freeze(network, boundary)
    inputs = inputs_for(backbone)
    composed = suffix.predict_on_batch(prefix_of(network, boundary).predict_on_batch(inputs))
    whole = network.predict_on_batch(inputs)
    assert np.ptp(whole, axis=0).max() > 0
    np.testing.assert_array_equal(composed, whole)


@pytest.mark.parametrize("backbone", ["mobilenet_0.25", pytest.param("mobilenetv2_0.35", marks=pytest.mark.slow)])
def test_training_moves_the_unfrozen_weights_and_no_other(backbone):
    architecture = tiny_architecture(backbone, dense=0)
    network = lively(build_network(architecture, seed=1), architecture)
    freeze(network, architecture.boundary(2))
    trained = {id(weight) for weight in network.trainable_weights}
    before = [np.array(weight) for weight in network.weights]
    network.compile(keras.optimizers.Adam(1e-3), keras.losses.CategoricalCrossentropy(from_logits=True))
    images, labels = tiny_crops(8)
    inputs = preprocess(images, architecture.preprocessing)
    for _ in range(2):
        network.train_on_batch(inputs, np.eye(2)[labels])
    for old, weight in zip(before, network.weights, strict=True):
        if "seed" not in weight.path:
            assert np.array_equal(old, weight) == (id(weight) not in trained), weight.path
    statistics = [weight for weight in network.weights if "moving" in weight.path]
    assert len(statistics) > 50


@pytest.mark.parametrize("backbone", ["mobilenet_0.25", pytest.param("mobilenetv2_0.35", marks=pytest.mark.slow)])
def test_normalization_that_trains_takes_the_statistics_of_the_crops_behind_the_boundary_alone(backbone):
    architecture = tiny_architecture(backbone, dense=0)
    network = lively(build_network(architecture, seed=1), architecture)
    boundary = architecture.boundary(2)
    suffix, frozen = freeze(network, boundary, normalization=True), prefix_of(network, boundary).layers
    before = {layer.name: np.array(layer.moving_mean) for layer in normalizations(network)}
    suffix.compile(keras.optimizers.Adam(1e-3), keras.losses.CategoricalCrossentropy(from_logits=True))
    images, labels = tiny_crops(8)
    inputs = prefix_of(network, boundary).predict_on_batch(preprocess(images, architecture.preprocessing))
    suffix.train_on_batch(inputs, np.eye(2)[labels])
    moved = {layer.name for layer in normalizations(network) if (before[layer.name] != layer.moving_mean).any()}
    assert moved == {layer.name for layer in normalizations(network) if layer not in frozen}
    assert len(moved) > 4
    freeze(network, boundary)  # what is trained on from there is as the settings of that run say
    assert not any(layer.trainable for layer in normalizations(network))


def normalizations(network: keras.Model) -> list[keras.Layer]:
    return [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]


@pytest.mark.parametrize(
    "backbone", ["vgg16", "vgg19", "mobilenet_0.25", pytest.param("resnet50", marks=pytest.mark.slow)]
)
def test_weight_files_in_the_official_format_load(tmp_path, backbone):
    source = scrambled(backbone)
    folder = weights_folder(tmp_path / "weights", source, backbone, "official_notop.h5")
    base = find_backbone(backbone).build(SIZE)
    load_backbone_weights(base, folder, backbone)
    for wanted, weight in zip(source.get_weights(), base.get_weights(), strict=True):
        np.testing.assert_array_equal(wanted, weight)


@pytest.mark.parametrize("file", ["official_notop.h5", "mine.weights.h5"])
def test_build_network_starts_from_the_weight_file(tmp_path, file):
    source = scrambled("mobilenet_0.25")
    folder = weights_folder(tmp_path / "weights", source, "mobilenet_0.25", file)
    network = build_network(tiny_architecture("mobilenet_0.25"), seed=1, weights=folder)
    for layer in source.layers:
        for wanted, weight in zip(layer.get_weights(), network.get_layer(layer.name).get_weights(), strict=True):
            np.testing.assert_array_equal(wanted, weight)


def test_weights_none_leave_the_network_as_drawn(tmp_path):
    write_json(tmp_path / "weights.json", {"backbone": "mobilenet_0.25", "file": None})
    with_folder = build_network(tiny_architecture("mobilenet_0.25"), seed=1, weights=tmp_path)
    without = build_network(tiny_architecture("mobilenet_0.25"), seed=1)
    for a, b in zip(with_folder.get_weights(), without.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("file", ["official_notop.h5", "mine.weights.h5"])
@pytest.mark.parametrize(
    ("of", "loaded_into"),
    [("mobilenet_0.25", "mobilenet_0.5"), ("mobilenet_0.25", "mobilenetv2_0.35"), ("mobilenetv2_0.35", "vgg16")],
)
def test_weights_of_another_network_are_refused(tmp_path, of, loaded_into, file):
    """The file lies: weights.json names the wanted backbone, the weights are another's."""
    folder = weights_folder(tmp_path / "weights", find_backbone(of).build(SIZE), loaded_into, file)
    with pytest.raises(InputError) as caught:
        load_backbone_weights(find_backbone(loaded_into).build(SIZE), folder, loaded_into)
    message = str(caught.value)
    assert message.startswith(f"{folder / file}: these are not weights of {loaded_into} without its top")
    assert message.endswith("set model.weights or model.backbone so that they belong together")
    assert "\n" not in message


def test_weights_stage_of_another_backbone_is_refused(tmp_path):
    folder = weights_folder(tmp_path / "weights", find_backbone("mobilenet_0.25").build(SIZE), "mobilenet_0.25")
    with pytest.raises(InputError, match=r"holds weights of mobilenet_0\.25, not vgg16; run dvc repro"):
        build_network(tiny_architecture("vgg16"), seed=1, weights=folder)


@pytest.mark.parametrize("damage", ["missing", "cut", "text"])
def test_a_missing_or_damaged_weight_file_is_refused(tmp_path, damage):
    folder = weights_folder(tmp_path / "weights", find_backbone("mobilenet_0.25").build(SIZE), "mobilenet_0.25")
    path = folder / "weights.h5"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_text("not HDF5")
    with pytest.raises(InputError, match=r"weights\.h5: these are not weights of mobilenet_0\.25"):
        build_network(tiny_architecture("mobilenet_0.25"), seed=1, weights=folder)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match=r"weights\.json: not found"):
        build_network(tiny_architecture("mobilenet_0.25"), seed=1, weights=folder)


def test_softmax_is_that_of_the_definition_and_does_not_overflow():
    logits = np.array([[0.0, np.log(3)], [1000.0, 1000.0], [-1000.0, 1000.0]])
    np.testing.assert_allclose(softmax(logits), [[0.25, 0.75], [0.5, 0.5], [0.0, 1.0]])
    np.testing.assert_allclose(softmax(logits[:1], temperature=2.0)[0, 1], np.sqrt(3) / (1 + np.sqrt(3)))


def test_a_batch_is_padded_with_its_last_row():
    batch = np.arange(6).reshape(3, 2)
    np.testing.assert_array_equal(pad_batch(batch, 5), [[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]])
    assert pad_batch(batch, 3) is batch
