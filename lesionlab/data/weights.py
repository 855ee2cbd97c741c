"""Getting and checking the weight file that a backbone starts from (without Keras)."""

import shutil
from pathlib import Path, PurePosixPath

from lesionlab.data.cards import Source
from lesionlab.data.download import fetch
from lesionlab.errors import InputError
from lesionlab.files import file_digest, from_root, whole_folder, write_json
from lesionlab.models.backbones import Backbone

BUNDLED_BACKBONE = "mobilenet_0.25"
BUNDLED = Path(__file__).parent.parent / "pretext" / "bundled" / f"{BUNDLED_BACKBONE}.weights.h5"
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


def fetch_weights(backbone: Backbone, weights: str, folder: Path, mirror: str | None) -> None:
    """Fill `folder` with the weight file and weights.json: backbone, weights, file, sha256, verified.

    weights: 'imagenet' (the official file of keras.applications, from `mirror` where it is there), 'bundled' (made
    by this project), 'none' (random: `file` and `sha256` are null) or the path of an HDF5 file, relative to the
    repository's root. verified: a checksum that somebody published was compared. weights.json holds no path.

    Raises InputError when the file does not exist, cannot be fetched, is not HDF5 or differs from its checksum;
    `folder` is then as it was before.
    """
    verified = False
    if weights == "none":
        path = None
    elif weights == "imagenet":
        name = PurePosixPath(backbone.imagenet_file).name
        source = Source(file=name, url=backbone.imagenet_url, md5=backbone.imagenet_md5)
        fetched = fetch(source, mirror, "or name the file itself: -S model.weights=PATH")
        path, verified = fetched.path, fetched.verified
    elif weights == "bundled":
        path = _bundled(backbone)
    else:
        path = from_root(weights)
        if not path.is_file():
            raise InputError(
                f"params.yaml: model.weights '{weights}' is neither auto, imagenet, bundled, none nor a file "
                f"(looked for {path})"
            )
        weights = path.name
    if path is not None and not _is_hdf5(path):
        raise InputError(
            f"{path}: not an HDF5 weight file (or damaged); delete it and get it again, or name another with "
            "-S model.weights=PATH"
        )
    with whole_folder(folder) as partial:
        if path is not None:
            shutil.copyfile(path, partial / path.name)
        record = {
            "backbone": backbone.name,
            "weights": weights,
            "file": path and path.name,
            "sha256": path and file_digest(partial / path.name),
            "verified": verified,
        }
        write_json(partial / "weights.json", record)


def _bundled(backbone: Backbone) -> Path:
    if backbone.name != BUNDLED_BACKBONE:
        raise InputError(
            f"params.yaml: model.weights 'bundled' belongs to {BUNDLED_BACKBONE} alone, not to {backbone.name}; "
            f"choose -S model.weights=imagenet, none or a path, or -S model.backbone={BUNDLED_BACKBONE}"
        )
    if not BUNDLED.is_file():
        raise InputError(f"{BUNDLED}: missing; restore it with git checkout -- {BUNDLED}")
    return BUNDLED


def _is_hdf5(path: Path) -> bool:
    """Whether a file begins as HDF5, possibly after a user block of 512, 1024 or 2048 bytes."""
    with path.open("rb") as stream:
        start = stream.read(2048 + len(_HDF5_MAGIC))
    return any(start[offset:].startswith(_HDF5_MAGIC) for offset in (0, 512, 1024, 2048))
