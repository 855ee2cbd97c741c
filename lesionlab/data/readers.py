"""From a folder of raw files to a list of frames, as the card says how it is laid out."""

import filecmp
import glob
import math
import os
import re
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE

from lesionlab.data.cards import (
    SUBSETS,
    Card,
    ChengMat,
    ClassFolders,
    GroupRule,
    Layout,
    MaskPairs,
    Npz,
    PhantomLayout,
    Reading,
    Table,
    card_path,
)
from lesionlab.data.unpack import is_residue
from lesionlab.errors import InputError
from lesionlab.files import read_table

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".webp")
_UNREADABLE = (
    OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError, EOFError, struct.error
)  # fmt: skip
FRAMES_TABLE = "frames.csv"  # which the program writes itself where it draws or decodes the frames


class BrokenImageError(InputError):
    """An image file that cannot be decoded; the only kind of error that crop.skip_broken leaves out."""


class OtherLayoutError(InputError):
    """A folder that does not lie as a layout says, so that the card's next one is tried."""


@dataclass(frozen=True)
class Boxes:
    """Lesions of one frame that a table gives as boxes: x, y, width, height in pixels. Without any: no lesion.

    file: the table. Where boxes touch or overlap, they are one lesion, as they would be in a mask.
    """

    file: Path
    boxes: tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True)
class Frame:
    """One raw image.

    name: path below the raw folder, with forward slashes. label: its class, where the whole image has one. mask: its
    lesions, as an image file or as boxes that `read_mask` fills; with a label it says where the class is to be seen,
    without one windows are cut around the lesions. group: who it must stay with ("" under the rules `none` and
    `near-duplicates`: itself). official: subset of the published split or number of the published fold, as text; ""
    where there is none. further: cells of the columns that the card's layout adds to the crops' index, "" where they
    are empty.
    """

    name: str
    image: Path
    mask: Path | Boxes | None
    label: str | None
    group: str
    official: str
    further: dict[str, str] = field(default_factory=dict)


def read_frames(card: Card, raw: Path) -> list[Frame]:
    """All frames of a data set, sorted by name. Raises InputError as `find_frames` does."""
    return find_frames(card, raw)[0]


def find_frames(card: Card, raw: Path) -> tuple[list[Frame], Reading]:
    """All frames of a data set, sorted by name, and the first of the card's layouts that the folder fits.

    Raises InputError when the folder does not look as the card says: an image without mask or a mask without
    image, a class without an image, an image of no class, a missing column, a name that the group rule does not match.
    """
    if not raw.is_dir():
        raise InputError(f"{raw}: not found; run dvc repro download@images")
    frames, reading = _read_as_it_lies(card, raw)
    frames = sorted(frames, key=lambda frame: frame.name)
    for first, second in pairwise(frames):
        if first.name == second.name:
            raise InputError(f"{raw}: {first.name} is listed twice; keep one row for each image")
    if card.whole_images:
        present = {frame.label for frame in frames}
        for name in card.classes:
            if name not in present:
                raise InputError(
                    f"{raw}: class '{name}' of {card_path(card.name)} has no image; add images, or correct classes "
                    "and layout in the card"
                )
    return frames, reading


def _read_as_it_lies(card: Card, raw: Path) -> tuple[list[Frame], Reading]:
    readers = {MaskPairs: _read_mask_pairs, ClassFolders: _read_class_folders, Table: _read_table}
    refusals = []
    for reading in card.readings:
        layout = _on_disk(reading.layout)
        try:
            frames = readers[type(layout)](card, Reading(layout=layout, groups=reading.groups), raw)
        except OtherLayoutError as error:
            refusals.append(str(error))
            continue
        if frames:
            if reading != card.readings[0]:
                print(f"{raw}: read by another layout of {card_path(card.name)} ({reading.described})", file=sys.stderr)
            return frames, reading
        described = f"that {card_path(card.name)} describes (layout {reading.layout.kind})"
        refusals.append(f"{raw}: no image found {described}")
    if len(refusals) == 1:
        raise InputError(refusals[0])
    raise InputError(f"{raw}: lies as none of the layouts of {card_path(card.name)}: {'; or '.join(refusals)}")


def frames_by_subset(card: Card, raw: Path, index: pd.DataFrame) -> dict[str, list[Frame]]:
    """The frames that gave a crop, by subset, each in the group that it has there.

    index: with the column subset, as `read_split` gives it.
    """
    place = index.drop_duplicates("frame").set_index("frame")
    subset_of, group_of = place["subset"].to_dict(), place["group"].to_dict()
    found: dict[str, list[Frame]] = {}
    for frame in read_frames(card, raw):
        if frame.name in subset_of:
            found.setdefault(subset_of[frame.name], []).append(replace(frame, group=group_of[frame.name]))
    return found


def _on_disk(layout: Layout) -> Layout:
    """How the frames lie after the download, which draws a phantom and decodes what is no image file."""
    written = {"kind": "table", "file": FRAMES_TABLE, "image": "image"}
    if isinstance(layout, PhantomLayout):
        return Table(**written, mask="mask")
    if isinstance(layout, ChengMat):
        return Table(**written, label="label" if layout.labels else None, mask="mask", fold="fold")
    if isinstance(layout, Npz):
        return Table(**written, label="label", subset="subset")
    return layout


def read_rgb(path: Path) -> np.ndarray:
    """Decode an image to (height, width, 3) uint8 RGB; greyscale of 16 bits is windowed between its percentiles.

    Pillow is the one decoder of this project: decoders differ by up to six grey levels on the same JPEG.
    Raises BrokenImageError when the file is truncated, not an image or too large for Pillow's limit; InputError when it
    has several channels of 16 bits, of which Pillow would keep eight.
    """
    return _decode(path, ("RGB",))


def _decode(path: Path, modes: tuple[str, ...]) -> np.ndarray:
    """As `read_rgb`; an image in one of Pillow's `modes` as it is: (height, width) in mode L."""
    try:
        with Image.open(path) as image:
            windowed = image.mode.startswith("I") or image.mode == "F"
            if not windowed and _has_16_bits_a_channel(image):
                raise InputError(f"{path}: has 16 bits a channel; save it as 16-bit grey or 8-bit RGB")
            ImageOps.exif_transpose(image, in_place=True)
            if windowed:
                return np.repeat(_window(np.asarray(image, dtype="float32"))[..., None], 3, axis=2)
            return np.asarray(image if image.mode in modes else image.convert("RGB"))
    except _UNREADABLE as error:
        raise _broken(path, error) from None


def _has_16_bits_a_channel(image: Image.Image) -> bool:
    """Whether an image that is not loaded yet is stored so: by the tag of a TIFF, else by Pillow's raw mode."""
    if BITSPERSAMPLE in getattr(image, "tag_v2", {}):
        return max(image.tag_v2[BITSPERSAMPLE]) == 16
    stored = image.tile[0].args if image.tile else None
    raw_mode = stored[0] if isinstance(stored, tuple) and stored else stored
    return isinstance(raw_mode, str) and ";16" in raw_mode and raw_mode != "BGR;16"  # a BMP of 16 bits a pixel


def shorter_side(path: Path) -> int:
    """Pixels of an image's shorter side, by its header alone; turning it, as `read_rgb` may, does not change it.

    Raises BrokenImageError when the file is not an image or too large for Pillow's limit.
    """
    try:
        with Image.open(path) as image:
            return min(image.size)
    except _UNREADABLE as error:
        raise _broken(path, error) from None


def _broken(path: Path, error: Exception) -> BrokenImageError:
    return BrokenImageError(f"{path}: cannot be read as an image ({error}); replace or remove the file")


def brightest(image: np.ndarray) -> np.ndarray:
    """The highest channel of each pixel, (height, width, 3) to (height, width); `max(axis=2)` is 30 times slower."""
    return np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])


def darkest(image: np.ndarray) -> np.ndarray:
    """The lowest channel of each pixel: (height, width, 3) to (height, width)."""
    return np.minimum(np.minimum(image[..., 0], image[..., 1]), image[..., 2])


def read_mask(given: Path | Boxes, threshold: int, size: tuple[int, int], image: Path) -> np.ndarray:
    """The mask of a frame, (height, width) bool: grey level above `threshold` in its file, or its boxes filled.

    size: (width, height) of the image that it belongs to. Raises InputError when the file has another, or when a box
    reaches outside of it.
    """
    if isinstance(given, Boxes):
        return _filled(given, size, image)
    pixels = _decode(given, ("RGB", "L"))
    mask = (pixels if pixels.ndim == 2 else brightest(pixels)) > threshold
    if mask.shape[::-1] != size:
        raise InputError(
            f"{given}: mask is {mask.shape[1]}x{mask.shape[0]} pixels but {image} is {size[0]}x{size[1]}; "
            "both must have the same size: export the mask again, or take both files out"
        )
    return mask


def _filled(given: Boxes, size: tuple[int, int], image: Path) -> np.ndarray:
    mask = np.zeros(size[::-1], bool)
    for x, y, width, height in given.boxes:
        if x < 0 or y < 0 or x + width > size[0] or y + height > size[1]:
            raise InputError(
                f"{given.file}: box x {x}, y {y}, width {width}, height {height} reaches outside of {image}, which is "
                f"{size[0]}x{size[1]} pixels; correct the row, or take it out"
            )
        mask[y : y + height, x : x + width] = True
    return mask


def _window(grey: np.ndarray) -> np.ndarray:
    low, high = np.percentile(grey, (0.5, 99.5))
    return np.clip((grey - low) / max(high - low, 1e-6) * 255, 0, 255).astype("uint8")


def _read_mask_pairs(card: Card, reading: Reading, raw: Path) -> list[Frame]:
    layout = reading.layout
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
    group_of = _groups(card, reading, raw)
    return [
        Frame(name, path, mask_of[stem], None, group_of(name), "")
        for stem, path in image_of.items()
        for name in [path.relative_to(raw).as_posix()]
    ]


def _by_stem(folder: Path, suffix: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in images_in(folder):
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
    raise OtherLayoutError(f"{raw}: expected the folders {wanted}; check download.source")


def _read_class_folders(card: Card, reading: Reading, raw: Path) -> list[Frame]:
    layout = reading.layout
    class_of = _any_case(layout.folders or {name: name for name in card.classes})
    subset_of = _any_case(layout.subsets or {})
    ignored = _any_case(dict.fromkeys(layout.ignore, True))
    group_of = _groups(card, reading, raw)
    frames, strange, first_of = [], [], {}
    for path in images_in(raw, recursive=True):
        name = path.relative_to(raw).as_posix()
        parts = [part.casefold() for part in Path(name).parts[:-1]]
        if any(part in ignored for part in parts):
            continue
        label = next((class_of[part] for part in parts if part in class_of), None)
        official = next((subset_of[part] for part in parts if part in subset_of), "")
        if label is None:
            strange.append(name)
            continue
        known = [k for k, part in enumerate(parts) if part in class_of or part in subset_of]
        below = "/".join([*dict.fromkeys(parts[k] for k in known), *parts[known[-1] + 1 :], path.name])
        # Some archives hold a second copy of everything, or of one of its folders, one folder deeper.
        group = group_of(name)
        copies = first_of.setdefault((below, group), [])
        if any(filecmp.cmp(path, other, shallow=False) for other in copies):
            continue
        copies.append(path)
        frames.append(Frame(name, path, None, label, group, official))
    if not frames:
        folders = ", ".join(layout.folders or card.classes)
        raise OtherLayoutError(f"{raw}: no image found in folders called {folders}; check download.source")
    if strange:
        folder = Path(strange[0]).parent.as_posix()
        raise InputError(
            f"{raw / folder}: its images ({len(strange)} here and in other such folders) have no class in "
            f"{card_path(card.name)}; name the folder in layout.folders, or in layout.ignore to leave it out"
        )
    outside = [frame for frame in frames if not frame.official]
    if outside and len(outside) < len(frames):
        raise OtherLayoutError(
            f"{raw / outside[0].name}: lies in none of the folders {', '.join(layout.subsets)} of the published split, "
            f"as others do; name its folder in layout.subsets of {card_path(card.name)}, or in layout.ignore, or take "
            "it out"
        )
    return frames


def _any_case(names: dict) -> dict:
    return {name.casefold(): meaning for name, meaning in names.items()}


def _read_table(card: Card, reading: Reading, raw: Path) -> list[Frame]:
    layout, rule = reading.layout, reading.groups
    file = next(iter(sorted(raw.glob(f"**/{glob.escape(layout.file)}"))), None)
    if file is None:
        raise OtherLayoutError(f"{raw}: no {layout.file}, which layout.file in {card_path(card.name)} names")
    column_of_group = rule.column if isinstance(rule, GroupRule) and rule.file is None else None
    runs = rule.runs if isinstance(rule, GroupRule) and rule.runs else []
    lesion = [layout.mask, *(layout.box or ())]
    wanted = [layout.image, layout.label, *lesion, column_of_group, *runs, layout.subset, layout.fold]
    columns = tuple(dict.fromkeys(column for column in [*wanted, *layout.columns] if column is not None))
    table = read_table(file, columns, text=columns)
    if runs:
        changes = (table[runs] != table[runs].shift()).any(axis=1)
        group_of_row = changes.cumsum().astype(str).to_list()
    elif column_of_group:
        group_of_row = _group_cells(table[column_of_group], table[layout.image], file)
    else:
        group_of = _groups(card, reading, raw)
        group_of_row = [group_of(_name_below(raw, file.parent / path)) for path in table[layout.image]]
    frames = []
    for row, group in zip(table.to_dict("records"), group_of_row, strict=True):
        path = file.parent / row[layout.image]
        mask = _mask_of_row(layout, row, file)
        for needed in (path, mask) if isinstance(mask, Path) else (path,):
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
        further = {name: row[name].strip() for name in layout.columns}
        frames.append(Frame(_name_below(raw, path), path, mask, label, group, _official(layout, row, file), further))
    return _with_all_boxes(frames, layout, file) if layout.box else frames


def _mask_of_row(layout: Table, row: dict[str, str], file: Path) -> Path | Boxes | None:
    """Where the lesions of a row's image are; None where a row with a label does not say it."""
    if layout.box:
        return Boxes(file, _box_of_row(layout.box, row, f"{file}: {row[layout.image]}"))
    if layout.mask and row[layout.mask]:
        return file.parent / row[layout.mask]
    if layout.label is None:
        raise InputError(
            f"{file}: {row[layout.image]} has no mask in column '{layout.mask}'; name a mask (black where there "
            "is no lesion), or take the row out"
        )
    return None


def _box_of_row(columns: tuple[str, ...], row: dict[str, str], where: str) -> tuple[tuple[int, int, int, int], ...]:
    """The box of a row in whole pixels, or none where its cells are empty."""
    cells = [row[column].strip() for column in columns]
    if not any(cells):
        return ()
    numbers = []
    for column, cell in zip(columns, cells, strict=True):
        try:
            numbers.append(float(cell))
        except ValueError:
            numbers.append(math.nan)
        if not math.isfinite(numbers[-1]):
            raise InputError(
                f"{where} has '{cell}' in column '{column}', which is no number of pixels; correct it, or leave all "
                f"of {', '.join(columns)} empty where there is no lesion"
            )
    left, top, right, bottom = (round(n) for n in (*numbers[:2], numbers[0] + numbers[2], numbers[1] + numbers[3]))
    if right <= left or bottom <= top:
        raise InputError(
            f"{where} has a box of width {cells[2]} and height {cells[3]}; correct it (a pixel at least), or leave all "
            f"of {', '.join(columns)} empty where there is no lesion"
        )
    return ((left, top, right - left, bottom - top),)


def _with_all_boxes(frames: list[Frame], layout: Table, file: Path) -> list[Frame]:
    """One frame an image, with the boxes of all its rows, which must agree in everything else."""
    rows_of: dict[str, list[Frame]] = {}
    for frame in frames:
        rows_of.setdefault(frame.name, []).append(frame)
    merged = []
    for name, rows in rows_of.items():
        first, boxes = rows[0], tuple(box for row in rows for box in row.mask.boxes)
        for row in rows[1:]:
            for column, (one, other) in _cells_of_image(layout, first, row).items():
                if one != other:
                    raise InputError(
                        f"{file}: the rows of {name} differ in {column} ('{one}' and '{other}'); boxes of one image "
                        "share it: correct the rows"
                    )
        if len(boxes) < len(rows) and len(rows) > 1:
            raise InputError(
                f"{file}: {name} has {len(rows)} rows but boxes in {len(boxes)}; keep one row where there is no "
                "lesion, and one for each box where there are lesions"
            )
        merged.append(replace(first, mask=Boxes(file, boxes)))
    return merged


def _cells_of_image(layout: Table, one: Frame, other: Frame) -> dict[str, tuple[str | None, str | None]]:
    """What two rows say about their image, by what a user would call it."""
    cells = {
        f"column '{layout.label}'": (one.label, other.label),
        f"column '{layout.subset or layout.fold}'": (one.official, other.official),
        "their group": (one.group, other.group),
    }
    return cells | {f"column '{name}'": (one.further[name], other.further[name]) for name in layout.columns}


def _official(layout: Table, row: dict[str, str], file: Path) -> str:
    """The published subset or fold of a row, "" where it has none."""
    if layout.fold is not None:
        fold = row[layout.fold]
        if fold and not re.fullmatch("[0-9]+", fold):
            raise InputError(
                f"{file}: fold '{fold}' of {row[layout.image]} in column '{layout.fold}' is no number; correct it"
            )
        return fold
    official = row[layout.subset] if layout.subset else ""
    if official and official not in SUBSETS:
        raise InputError(
            f"{file}: subset '{official}' of {row[layout.image]} in column '{layout.subset}' is none of "
            f"{', '.join(SUBSETS)}; rename it"
        )
    return official


def _name_below(raw: Path, path: Path) -> str:
    """A file's path below `raw`, by its words alone: files may be links into DVC's cache."""
    return Path(os.path.relpath(path, raw)).as_posix()


def images_in(folder: Path, recursive: bool = False) -> list[Path]:
    """Image files by their names, sorted; hidden files and what operating systems leave behind are none."""
    found = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(
        path
        for path in found
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") or is_residue(part) for part in path.relative_to(folder).parts)
    )


def _groups(card: Card, reading: Reading, raw: Path) -> Callable[[str], str]:
    """What gives the group of an image by its name, for every rule but columns of the layout's own table."""
    rule = reading.groups
    if not isinstance(rule, GroupRule):
        return lambda name: ""
    if rule.pattern is not None:
        return partial(_group_by_pattern, card, rule.pattern)
    if rule.ranges is not None:
        return partial(_group_by_range, card, rule.ranges)
    file = next(iter(sorted(raw.glob(f"**/{glob.escape(rule.file)}"))), None)
    if file is None:
        raise OtherLayoutError(f"{raw}: no {rule.file}, which groups.file in {card_path(card.name)} names")
    table = read_table(file, (rule.key, rule.column), text=(rule.key, rule.column))
    group_of: dict[str, str] = {}
    for key, name in zip(table[rule.key], _group_cells(table[rule.column], table[rule.key], file), strict=True):
        if group_of.setdefault(key, name) != name:
            raise InputError(
                f"{file}: column '{rule.column}' has '{group_of[key]}' and '{name}' for {key}; keep one of them"
            )

    def group(name: str) -> str:
        try:
            return group_of[Path(name).stem]
        except KeyError:
            raise InputError(f"{file}: column '{rule.key}' has no row for {name}; add one, or take it out") from None

    return group


def _group_cells(cells: pd.Series, images: pd.Series, file: Path) -> list[str]:
    """The groups that a column names, without blanks around them.

    Raises InputError at an empty cell: its image would count as a patient of its own, and might be one of another.
    """
    groups = cells.str.strip()
    if (groups == "").any():
        raise InputError(
            f"{file}: {images[groups == ''].iloc[0]} has nothing in column '{cells.name}', which says who must stay "
            "together; fill it in, or take the row out"
        )
    return groups.to_list()


def _group_by_pattern(card: Card, pattern: str, name: str) -> str:
    match = re.search(pattern, name)
    if match is None:
        raise InputError(f"{card_path(card.name)}: groups.pattern {pattern!r} does not match {name}")
    group = "-".join(part for part in match.groups() if part is not None) or match.group()
    if not group:
        raise InputError(f"{card_path(card.name)}: groups.pattern {pattern!r} matches nothing of {name}")
    return group


def _group_by_range(card: Card, ranges: list[tuple[int, int, str | int]], name: str) -> str:
    number = re.search(r"\d+", Path(name).stem)
    for first, last, group in ranges:
        if number is not None and first <= int(number.group()) <= last:
            return str(group)
    raise InputError(f"{card_path(card.name)}: no range of groups.ranges holds {name}")
