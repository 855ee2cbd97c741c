"""Backbones of keras.applications as blocks, with the preprocessing and weight files that belong to each.

Every backbone has five blocks, one a resolution, so that `unfrozen_blocks` means the same depth everywhere; in
networks with skip connections each block ends after its last addition, never inside a branch.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from lesionlab.errors import InputError

if TYPE_CHECKING:
    import keras

Preprocessing = Literal["caffe", "tf"]
IMAGENET_URL = "https://storage.googleapis.com/tensorflow/keras-applications/"
_CAFFE_MEAN_BGR = np.array([103.939, 116.779, 123.68], dtype="float32")


@dataclass(frozen=True)
class Backbone:
    """A convolutional network without its top.

    name: as in params.yaml, with the width multiplier where it is not 1 (`mobilenet_0.25`).
    block_ends: name of the layer that ends each block, from input to output.
    imagenet_file, imagenet_md5: the official weights below IMAGENET_URL, and their MD5 as keras.applications
        publishes it (None where it publishes none).
    Source: https://keras.io/api/applications/
    """

    name: str
    application: str
    block_ends: tuple[str, ...]
    preprocessing: Preprocessing
    imagenet_file: str
    imagenet_md5: str | None
    alpha: float | None = None

    @property
    def imagenet_url(self) -> str:
        """Where the official weights are."""
        return IMAGENET_URL + self.imagenet_file

    def build(self, image_size: int | None) -> "keras.Model":
        """The network with random weights: (n, size, size, 3) preprocessed float32 to a feature map.

        image_size None takes frames of any height and width.
        """
        import keras

        options = {} if self.alpha is None else {"alpha": self.alpha}
        application = getattr(keras.applications, self.application)
        # Named, because Keras numbers nameless inputs through a process and weight files hold layer names.
        inputs = keras.Input((image_size, image_size, 3), name="pixels")
        base = application(include_top=False, weights=None, input_tensor=inputs, **options)
        # Keras keeps the input as a list of one there, and would warn at every call with an array.
        return keras.Model(inputs, base.output, name=base.name)

    def boundary(self, unfrozen_blocks: int) -> str | None:
        """Name of the layer that ends the frozen part when the last `unfrozen_blocks` blocks train.

        None when nothing is frozen. Raises InputError when there are fewer blocks.
        """
        if unfrozen_blocks > len(self.block_ends):
            raise InputError(
                f"params.yaml: finetune.unfrozen_blocks is {unfrozen_blocks}, "
                f"but {self.name} has {len(self.block_ends)} blocks"
            )
        frozen = len(self.block_ends) - unfrozen_blocks
        return self.block_ends[frozen - 1] if frozen else None


_VGG = tuple(f"block{i}_pool" for i in range(1, 6))
_RESNET50 = (
    "conv1_relu", "conv2_block3_out", "conv3_block4_out", "conv4_block6_out", "conv5_block3_out",
)  # fmt: skip
_MOBILENET = ("conv_pw_1_relu", "conv_pw_3_relu", "conv_pw_5_relu", "conv_pw_11_relu", "conv_pw_13_relu")
_MOBILENETV2 = ("expanded_conv_project_BN", "block_2_add", "block_5_add", "block_12_add", "out_relu")
_FIXED = {
    "vgg16": Backbone(
        "vgg16", "VGG16", _VGG, "caffe",
        "vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5", "6d6bbae143d832006294945121d1f1fc",
    ),
    "vgg19": Backbone(
        "vgg19", "VGG19", _VGG, "caffe",
        "vgg19/vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5", "253f8cb515780f3b799900260a226db6",
    ),
    "resnet50": Backbone(
        "resnet50", "ResNet50", _RESNET50, "caffe",
        "resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5", "4d473c1dd8becc155b73f8504c6f6626",
    ),
}  # fmt: skip
_MOBILENET_ALPHAS = {"1.0": "1_0", "0.75": "7_5", "0.5": "5_0", "0.25": "2_5"}
_MOBILENETV2_ALPHAS = ("0.35", "0.5", "0.75", "1.0", "1.3", "1.4")
KNOWN = (
    *_FIXED,
    *("mobilenet" + ("" if a == "1.0" else f"_{a}") for a in _MOBILENET_ALPHAS),
    *("mobilenetv2" + ("" if a == "1.0" else f"_{a}") for a in _MOBILENETV2_ALPHAS),
)


def find_backbone(name: str) -> Backbone:
    """The backbone that params.yaml or a card names. Raises InputError when there is none of that name."""
    if name not in KNOWN:
        raise InputError(f"model.backbone '{name}' is unknown; known: auto, {', '.join(KNOWN)}")
    if name in _FIXED:
        return _FIXED[name]
    family, alpha = re.fullmatch(r"(mobilenet(?:v2)?)(?:_([\d.]+))?", name).groups()
    alpha = alpha or "1.0"
    if family == "mobilenet":
        file = f"mobilenet/mobilenet_{_MOBILENET_ALPHAS[alpha]}_224_tf_no_top.h5"
        return Backbone(name, "MobileNet", _MOBILENET, "tf", file, None, float(alpha))
    file = f"mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_224_no_top.h5"
    return Backbone(name, "MobileNetV2", _MOBILENETV2, "tf", file, None, float(alpha))


def preprocess(images: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """RGB in [0, 255] (n, height, width, 3) to the float32 that the backbone was trained on.

    tf: x / 127.5 - 1. caffe: BGR minus the ImageNet mean, not scaled.
    """
    images = np.asarray(images, dtype="float32")
    if preprocessing == "tf":
        return images / np.float32(127.5) - np.float32(1)
    return images[..., ::-1] - _CAFFE_MEAN_BGR
