"""Releases that are no image files become PNG files and frames.csv, once, at the download.

So that all later stages know one way to decode an image (`readers.read_rgb`), and DVC hashes what they really read.
No grey level is lost: 16-bit slices stay 16-bit, and are windowed when they are read.
"""

import re
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from PIL import Image

from lesionlab.data.cards import SUBSETS, Card, ChengMat, Npz
from lesionlab.data.readers import FRAMES_TABLE
from lesionlab.errors import InputError
from lesionlab.files import write_table
from lesionlab.progress import progress

CHENG_LABELS = {1: "meningioma", 2: "glioma", 3: "pituitary"}
CHENG_FOLDS = "cvind.mat"
PNG_LEVEL = 4  # of compression: on slices of 16 bits a third of the time of Pillow's 6, and as small


def convert(card: Card, folder: Path) -> None:
    """Replace a release's .mat or .npz files in `folder` by images/, masks/ and frames.csv, as the layout says.

    A folder without such files is left as it is: it may be a copy in another of the card's layouts.
    Raises InputError naming the file that is damaged or not as the release has it.
    """
    if isinstance(card.layout, ChengMat):
        convert_cheng(folder)
    elif isinstance(card.layout, Npz):
        convert_npz(folder, card.classes)


def convert_cheng(folder: Path) -> None:
    """The figshare brain tumours: <k>.mat (MATLAB 7.3) and the folds of cvind.mat.

    Writes images/<k>.png (grey, 16 bits; negative values of a slice are shifted to 0), masks/<k>.png (0 and 255) and
    frames.csv: image, mask, label, patient, fold. Arrays of an HDF5 file are transposed against MATLAB's.
    Raises InputError when a file is not as described in the release's README, when cvind.mat does not fit, or when a
    folder images/ or masks/ is there.
    Source: README of https://doi.org/10.6084/m9.figshare.1512427.
    """
    found = [path for path in sorted(folder.rglob("*.mat")) if re.fullmatch("[0-9]+", path.stem)]
    if not found:
        return
    files = {int(path.stem): path for path in found}
    if len(files) < len(found):
        raise InputError(
            f"{len(found)} .mat files, but only {len(files)} numbers: some are there twice; keep one of each"
        )
    folds = _cheng_folds(folder, max(files))
    for name in ("images", "masks"):
        _make_new(folder / name, ".mat")
    rows = []
    for number, path in progress(sorted(files.items()), desc="decoding .mat", unit=" files"):
        image, mask, label, patient = _cheng_slice(path)
        _save(folder / f"images/{number}.png", (image - min(0, int(image.min()))).astype("uint16"))
        _save(folder / f"masks/{number}.png", np.where(mask, 255, 0).astype("uint8"))
        rows.append((f"images/{number}.png", f"masks/{number}.png", label, patient, folds[number - 1]))
        path.unlink()
    write_table(folder / FRAMES_TABLE, pd.DataFrame(rows, columns=["image", "mask", "label", "patient", "fold"]))


def _cheng_slice(path: Path) -> tuple[np.ndarray, np.ndarray, str, str]:
    """Image (height, width) int32, mask (height, width) bool, label and patient of one .mat file."""
    try:
        with h5py.File(path) as file:
            data = file["cjdata"]
            image = data["image"][()].T.astype("int32")
            mask = data["tumorMask"][()].T > 0
            number = int(data["label"][()].item())
            patient = "".join(map(chr, data["PID"][()].ravel()))
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path.name}: not a slice of the release (MATLAB 7.3 with cjdata: label, PID, image, tumorMask): {error}; "
            "download it again"
        ) from None
    if image.ndim != 2 or image.shape != mask.shape or number not in CHENG_LABELS:
        raise InputError(
            f"{path.name}: image {image.shape}, tumorMask {mask.shape}, label {number}: two equal sizes and label 1, 2 "
            "or 3 are wanted; download it again"
        )
    return image, mask, CHENG_LABELS[number], patient


def _cheng_folds(folder: Path, slices: int) -> np.ndarray:
    """The fold of each slice, counted from 1.mat on: (n,) int, 1..5."""
    path = next(iter(sorted(folder.rglob(CHENG_FOLDS))), None)
    if path is None:
        raise InputError(f"{CHENG_FOLDS} is missing: the release's folds; put it beside the other files")
    try:
        with h5py.File(path) as file:
            folds = file["cvind"][()].ravel().astype(int)
    except (OSError, KeyError, ValueError, AttributeError) as error:
        raise InputError(f"{CHENG_FOLDS}: not the release's file of folds ({error}); download it again") from None
    if len(folds) < slices or folds.min() < 1:
        raise InputError(
            f"{CHENG_FOLDS}: {len(folds)} folds from {folds.min()} on for slice {slices}; get the release's"
        )
    path.unlink()
    return folds


def convert_npz(folder: Path, classes: list[str]) -> None:
    """A MedMNIST file: <subset>_images (n, side, side[, 3]) uint8 and <subset>_labels (n, 1) of train, val, test.

    Writes images/<subset>/<row>.png and frames.csv: image, label (name of the class), subset.
    Raises InputError when there are two files, or one whose arrays are not as described, or a folder images/.
    Source: medmnist/dataset.py of https://github.com/MedMNIST/MedMNIST.
    """
    files = sorted(folder.rglob("*.npz"))
    if not files:
        return
    if len(files) > 1:
        raise InputError(f"{files[0].name} and {files[1].name}: one .npz file is read; take the others out")
    path = files[0]
    _make_new(folder / "images", ".npz")
    rows = []
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for subset in SUBSETS:
                images, labels = arrays[f"{subset}_images"], arrays[f"{subset}_labels"]
                _check_npz(path.name, subset, images, labels, len(classes))
                (folder / "images" / subset).mkdir()
                for row, image in enumerate(progress(images, desc=f"decoding {path.name}, {subset}", unit=" images")):
                    name = f"images/{subset}/{row:06d}.png"
                    _save(folder / name, image)
                    rows.append((name, classes[int(labels[row, 0])], subset))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path.name}: not a MedMNIST file, or damaged ({error}); download it again") from None
    write_table(folder / FRAMES_TABLE, pd.DataFrame(rows, columns=["image", "label", "subset"]))
    path.unlink()


def _check_npz(name: str, subset: str, images: np.ndarray, labels: np.ndarray, classes: int) -> None:
    grey_or_rgb = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
    if not grey_or_rgb or images.dtype != np.uint8 or labels.shape != (len(images), 1):
        raise InputError(
            f"{name}: {subset}_images {images.shape} {images.dtype} and {subset}_labels {labels.shape}; uint8 images "
            "(n, height, width) or (n, height, width, 3) and labels (n, 1) are read"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise InputError(
            f"{name}: {subset}_labels from {labels.min()} to {labels.max()}, but the card names {classes} classes"
        )


def _make_new(folder: Path, suffix: str) -> None:
    if folder.exists():
        raise InputError(
            f"{folder.name}/ lies beside the release's {suffix} files, which are decoded into a folder of this name; "
            "give the release's files alone"
        )
    folder.mkdir()


def _save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path, compress_level=PNG_LEVEL)
