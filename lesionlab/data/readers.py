"""From a folder of raw files to a list of frames, as the card says how it is laid out."""

import glob
import os
import re
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError

from lesionlab.data.cards import SUBSETS, Card, ClassFolders, GroupRule, MaskPairs, PhantomLayout, Table, card_path
from lesionlab.errors import InputError
from lesionlab.files import read_table

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_UNREADABLE = (
    OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError, EOFError, struct.error
)  # fmt: skip
PHANTOM_TABLE = Table(kind="table", file="frames.csv", image="image", mask="mask")


class BrokenImageError(InputError):
    """An image file that cannot be decoded; the only kind of error that crop.skip_broken leaves out."""


@dataclass(frozen=True)
class Frame:
    """One raw image.

    name: path below the raw folder, with forward slashes. mask: its lesion mask; label: its class where the whole
    image has one. group: who it must stay with ("" under the rules `none` and `near-duplicates`: itself).
    official: subset of the published split, "" where there is none.
    """

    name: str
    image: Path
    mask: Path | None
    label: str | None
    group: str
    official: str


def read_frames(card: Card, raw: Path) -> list[Frame]:
    """All frames of a data set, sorted by name.

    Raises InputError when the folder does not look as the card says: an image without mask or a mask without
    image, a class without an image, a missing column, a name that the group rule does not match.
    """
    if not raw.is_dir():
        raise InputError(f"{raw}: not found; run dvc repro download@images")
    layout = PHANTOM_TABLE if isinstance(card.layout, PhantomLayout) else card.layout
    readers = {MaskPairs: _read_mask_pairs, ClassFolders: _read_class_folders, Table: _read_table}
    frames = sorted(readers[type(layout)](card, layout, raw), key=lambda frame: frame.name)
    if not frames:
        raise InputError(f"{raw}: no image found that {card_path(card.name)} describes (layout {layout.kind})")
    for first, second in pairwise(frames):
        if first.name == second.name:
            raise InputError(f"{raw}: {first.name} is listed twice; keep one row for each image")
    if frames[0].mask is None:
        present = {frame.label for frame in frames}
        for name in card.classes:
            if name not in present:
                raise InputError(
                    f"{raw}: class '{name}' of {card_path(card.name)} has no image; add images, or correct classes "
                    "and layout in the card"
                )
    return frames


def read_rgb(path: Path) -> np.ndarray:
    """Decode an image to (height, width, 3) uint8 RGB; greyscale of 16 bits is windowed between its percentiles.

    Pillow is the one decoder of this project: decoders differ by up to six grey levels on the same JPEG.
    Raises BrokenImageError when the file is truncated, not an image or too large for Pillow's limit.
    """
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I") or image.mode == "F":
                return np.repeat(_window(np.asarray(image, dtype="float32"))[..., None], 3, axis=2)
            return np.asarray(image.convert("RGB"))
    except _UNREADABLE as error:
        raise BrokenImageError(
            f"{path}: cannot be read as an image ({error}); replace the file, or leave it out with "
            "crop.skip_broken=true"
        ) from None


def brightest(image: np.ndarray) -> np.ndarray:
    """The highest channel of each pixel, (height, width, 3) to (height, width); `max(axis=2)` is 30 times slower."""
    return np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])


def darkest(image: np.ndarray) -> np.ndarray:
    """The lowest channel of each pixel: (height, width, 3) to (height, width)."""
    return np.minimum(np.minimum(image[..., 0], image[..., 1]), image[..., 2])


def read_mask(path: Path, threshold: int, size: tuple[int, int], image: Path) -> np.ndarray:
    """Decode a mask to (height, width) bool: grey level above `threshold`.

    size: (width, height) of the image that it belongs to. Raises InputError when the mask has another.
    """
    mask = brightest(read_rgb(path)) > threshold
    if mask.shape[::-1] != size:
        raise InputError(
            f"{path}: mask is {mask.shape[1]}x{mask.shape[0]} pixels but {image} is {size[0]}x{size[1]}; "
            "both must have the same size: export the mask again, or take both files out"
        )
    return mask


def _window(grey: np.ndarray) -> np.ndarray:
    low, high = np.percentile(grey, (0.5, 99.5))
    return np.clip((grey - low) / max(high - low, 1e-6) * 255, 0, 255).astype("uint8")


def _read_mask_pairs(card: Card, layout: MaskPairs, raw: Path) -> list[Frame]:
    images, masks = _find_pair_folders(layout, raw)
    image_of = _by_stem(images, "")
    mask_of = _by_stem(masks, layout.mask_suffix)
    kinds = ", ".join(IMAGE_SUFFIXES)
    for stem in sorted(image_of.keys() ^ mask_of.keys()):
        if stem in image_of:
            raise InputError(
                f"{image_of[stem]}: image without mask; add {masks / stem}{layout.mask_suffix} ({kinds}; black where "
                "there is no lesion), or take the image out"
            )
        raise InputError(f"{mask_of[stem]}: mask without image; add {images / stem} ({kinds}), or take the mask out")
    return [
        Frame(name, path, mask_of[stem], None, _group(card, name), "")
        for stem, path in image_of.items()
        for name in [path.relative_to(raw).as_posix()]
    ]


def _by_stem(folder: Path, suffix: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _images_in(folder):
        stem = path.stem.removesuffix(suffix)
        if stem in found:
            raise InputError(f"{path}: {found[stem].name} has the same name up to the suffix; keep one of them")
        found[stem] = path
    return found


def _find_pair_folders(layout: MaskPairs, raw: Path) -> tuple[Path, Path]:
    for top in ("", "*/", "*/*/"):
        for images, masks in layout.folders:
            for folder in sorted(raw.glob(top + glob.escape(images))):
                base = folder.parents[len(Path(images).parts) - 1]
                if folder.is_dir() and (base / masks).is_dir():
                    return folder, base / masks
    wanted = " or ".join(f"{images}/ and {masks}/" for images, masks in layout.folders)
    raise InputError(f"{raw}: expected the folders {wanted}; check download.source")


def _read_class_folders(card: Card, layout: ClassFolders, raw: Path) -> list[Frame]:
    class_of = layout.folders or {name: name for name in card.classes}
    subsets = layout.subsets or {}
    frames = []
    for path in _images_in(raw, recursive=True):
        parts = path.relative_to(raw).parts[:-1]
        label = next((class_of[part] for part in parts if part in class_of), None)
        if label is not None:
            name = path.relative_to(raw).as_posix()
            official = next((subsets[part] for part in parts if part in subsets), "")
            frames.append(Frame(name, path, None, label, _group(card, name), official))
    return frames


def _read_table(card: Card, layout: Table, raw: Path) -> list[Frame]:
    file = next(iter(sorted(raw.glob(f"**/{glob.escape(layout.file)}"))), None)
    if file is None:
        raise InputError(f"{raw}: no {layout.file}, which layout.file in {card_path(card.name)} names")
    column_of_group = card.groups.column if isinstance(card.groups, GroupRule) else None
    wanted = [layout.image, layout.label, layout.mask, column_of_group, layout.subset]
    columns = tuple(column for column in wanted if column is not None)
    table = read_table(file, columns, text=columns)
    frames = []
    for row in table.to_dict("records"):
        path = file.parent / row[layout.image]
        mask = file.parent / row[layout.mask] if layout.mask and row[layout.mask] else None
        if layout.mask and mask is None:
            raise InputError(
                f"{file}: {row[layout.image]} has no mask in column '{layout.mask}'; name a mask (black where there "
                "is no lesion), or take the row out"
            )
        for needed in filter(None, (path, mask)):
            if not needed.is_file():
                raise InputError(f"{file}: names {needed}, which does not exist; add it, or take the row out")
            if _name_below(raw, needed).startswith(("../", "/")):
                raise InputError(f"{file}: names {needed}, which is outside of {raw}; move it there")
        label = row[layout.label] if layout.label else None
        if label is not None and label not in card.classes:
            raise InputError(
                f"{file}: label '{label}' of {row[layout.image]} is not in classes of {card_path(card.name)} "
                f"({', '.join(card.classes)})"
            )
        name = _name_below(raw, path)
        group = row[column_of_group] if column_of_group else _group(card, name)
        official = row[layout.subset] if layout.subset else ""
        if official and official not in SUBSETS:
            raise InputError(
                f"{file}: subset '{official}' of {row[layout.image]} in column '{layout.subset}' is none of "
                f"{', '.join(SUBSETS)}; rename it"
            )
        frames.append(Frame(name, path, mask, label, group, official))
    return frames


def _name_below(raw: Path, path: Path) -> str:
    """A file's path below `raw`, by its words alone: files may be links into DVC's cache."""
    return Path(os.path.relpath(path, raw)).as_posix()


def _images_in(folder: Path, recursive: bool = False) -> list[Path]:
    found = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(
        path
        for path in found
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _group(card: Card, name: str) -> str:
    rule = card.groups
    if not isinstance(rule, GroupRule):
        return ""
    if rule.pattern is not None:
        match = re.search(rule.pattern, name)
        if match is None:
            raise InputError(f"{card_path(card.name)}: groups.pattern {rule.pattern!r} does not match {name}")
        return "-".join(part for part in match.groups() if part is not None) or match.group()
    if rule.ranges is not None:
        number = re.search(r"\d+", Path(name).stem)
        for first, last, group in rule.ranges:
            if number is not None and first <= int(number.group()) <= last:
                return str(group)
        raise InputError(f"{card_path(card.name)}: no range of groups.ranges holds {name}")
    raise InputError(f"{card_path(card.name)}: groups.column needs the layout table")


def frames_table(frames: list[Frame]) -> pd.DataFrame:
    """Frames as a table: frame, image, mask (paths; mask None where there is none), label, group, official."""
    rows = [(f.name, f.image, f.mask, f.label, f.group, f.official) for f in frames]
    return pd.DataFrame(rows, columns=["frame", "image", "mask", "label", "group", "official"])
