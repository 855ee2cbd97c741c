"""Blocks, boundaries and preprocessing of every backbone that params.yaml may name."""

import importlib
import inspect

import numpy as np
import pytest
import tiny_networks  # noqa: F401  (starts Keras with a stage's threads)
from keras.applications import mobilenet, mobilenet_v2, resnet, vgg16, vgg19

from lesionlab.errors import InputError
from lesionlab.models.backbones import KNOWN, find_backbone, preprocess

FAMILIES = ("vgg16", "vgg19", "resnet50", "mobilenet_0.25", "mobilenetv2_0.35")


@pytest.mark.parametrize("name", FAMILIES)
def test_block_ends_are_layers_from_input_to_output(name):
    backbone = find_backbone(name)
    model = backbone.build(32)
    places = [[layer.name for layer in model.layers].index(end) for end in backbone.block_ends]
    assert len(places) == 5
    assert places == sorted(set(places))
    assert places[-1] == len(model.layers) - 1
    sides = [model.get_layer(end).output.shape[1] for end in backbone.block_ends]
    assert sides == sorted(sides, reverse=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_skip_connection_crosses_the_end_of_a_block(name):
    """Every layer behind a block's end gets what is before it through that end alone."""
    backbone = find_backbone(name)
    model = backbone.build(32)
    place = {layer.name: number for number, layer in enumerate(model.layers)}
    for end in backbone.block_ends:
        for layer in model.layers[place[end] + 1 :]:
            for node in layer._inbound_nodes:
                sources = [tensor._keras_history.operation.name for tensor in node.input_tensors]
                assert all(place[source] >= place[end] for source in sources), (end, layer.name)


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_backbone_has_five_boundaries(name):
    backbone = find_backbone(name)
    assert backbone.name == name
    assert backbone.boundary(0) == backbone.block_ends[4]
    assert [backbone.boundary(k) for k in range(1, 5)] == list(backbone.block_ends[3::-1])
    assert backbone.boundary(5) is None


def test_more_blocks_than_the_backbone_has_name_the_key():
    with pytest.raises(InputError, match=r"finetune\.unfrozen_blocks is 6, but vgg16 has 5 blocks"):
        find_backbone("vgg16").boundary(6)


@pytest.mark.parametrize("name", ["vgg", "VGG16", "mobilenet_0.3", "mobilenetv2_0.25", "resnet50_0.5", ""])
def test_an_unknown_backbone_names_the_key_and_the_known_ones(name):
    with pytest.raises(InputError, match=r"model\.backbone '.*' is unknown; known: .*vgg16.*mobilenetv2") as caught:
        find_backbone(name)
    assert f"'{name}'" in str(caught.value)


def test_the_width_of_a_mobilenet_is_in_its_name():
    widths = {name: find_backbone(name).build(32).output.shape[-1] for name in ("mobilenet_0.25", "mobilenet_0.5")}
    assert widths == {"mobilenet_0.25": 256, "mobilenet_0.5": 512}
    assert find_backbone("mobilenet").alpha == 1.0
    assert find_backbone("mobilenetv2_1.4").alpha == 1.4


def test_official_files_are_named_as_keras_names_them():
    files = {name: find_backbone(name).imagenet_file for name in KNOWN}
    assert len(set(files.values())) == len(KNOWN)
    assert files["mobilenet_0.25"] == "mobilenet/mobilenet_2_5_224_tf_no_top.h5"
    assert (
        files["mobilenetv2_0.35"] == "mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_224_no_top.h5"
    )
    for name in ("vgg16", "vgg19"):
        backbone = find_backbone(name)
        published = importlib.import_module(f"keras.src.applications.{name}")
        assert backbone.imagenet_url == published.WEIGHTS_PATH_NO_TOP
        assert f'"{backbone.imagenet_md5}"' in inspect.getsource(published)
    published = importlib.import_module("keras.src.applications.resnet")
    assert find_backbone("resnet50").imagenet_md5 == published.WEIGHTS_HASHES["resnet50"][1]


@pytest.mark.parametrize(
    ("name", "module"),
    [("vgg16", vgg16), ("vgg19", vgg19), ("resnet50", resnet), ("mobilenet", mobilenet), ("mobilenetv2", mobilenet_v2)],
)
def test_preprocessing_is_that_of_keras_applications(name, module):
    images = np.random.default_rng(1).integers(0, 256, (3, 9, 7, 3)).astype("uint8")
    ours = preprocess(images, find_backbone(name).preprocessing)
    theirs = module.preprocess_input(images.astype("float32"))
    assert ours.dtype == np.float32
    assert ours.shape == images.shape
    np.testing.assert_array_equal(ours, theirs)


def test_preprocessing_leaves_its_input_alone():
    images = np.full((1, 4, 4, 3), 100, dtype="float32")
    preprocess(images, "caffe")
    preprocess(images, "tf")
    assert (images == 100).all()
