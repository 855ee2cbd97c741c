"""From frames to crops: margins off, windows around lesions and beside them, all of one size."""

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage

from lesionlab.data.cards import Card, card_path
from lesionlab.data.hashes import perceptual_hash
from lesionlab.data.readers import BrokenImageError, Frame, brightest, darkest, find_frames, read_mask, read_rgb
from lesionlab.data.thumbnails import SIDE, thumbnail
from lesionlab.errors import InputError
from lesionlab.files import INDEX_COLUMNS, LESIONS, read_images, whole_folder, write_json, write_table
from lesionlab.params import CropParams
from lesionlab.progress import progress
from lesionlab.seeds import generator

Box = tuple[int, int, int, int]
MARGIN_LEVEL = 24  # a pixel whose brightest channel is darker belongs to the black margin
MARGIN_SHARE = 0.08  # a row or column with fewer bright pixels than this is margin
HIGHLIGHT_LEVEL = 225  # a pixel whose darkest channel is brighter is a specular highlight
CANDIDATES = 400  # windows drawn to find the negatives of one frame
SMALLEST_WINDOW = 16  # pixels
LESION_CELL = 8  # pixels of a crop on a side of a cell of its lesions: cells of the backbones' last maps have 32
SHEET_COLUMNS = 12
SHEET_LINES = 10
MOST_WORKERS = 8
FEWEST_FOR_PROCESSES = 256  # frames; starting the processes takes as long as cropping about that many
PART = 8  # frames handed to a process at once
IN_FLIGHT = 3  # parts that wait for each process
MOST_AHEAD = 24  # parts that are begun or done, but not yet given out


@dataclass(frozen=True)
class FrameCrops:
    """The crops of one frame: images (n, size, size, 3) uint8, one row of the index each, and the frame's thumbnail.

    lesions: (n, cells, cells) uint8, the part of each cell that a mask covers, in 255ths. 0 without a mask, and in
    windows beside lesions, which may hold the edge of one (`crop.max_overlap`).
    """

    images: np.ndarray
    lesions: np.ndarray
    rows: list[dict]
    thumbnail: np.ndarray


def content_box(image: np.ndarray) -> Box:
    """The part of an RGB image inside its black margins: (x, y, width, height) in pixels."""
    bright = brightest(image) > MARGIN_LEVEL
    rows = np.flatnonzero(bright.mean(axis=1) > MARGIN_SHARE)
    columns = np.flatnonzero(bright.mean(axis=0) > MARGIN_SHARE)
    if not len(rows) or not len(columns):
        return 0, 0, image.shape[1], image.shape[0]
    return (
        int(columns[0]),
        int(rows[0]),
        int(columns[-1] - columns[0] + 1),
        int(rows[-1] - rows[0] + 1),
    )


def lesion_boxes(mask: np.ndarray, min_area: float) -> tuple[np.ndarray, list[Box]]:
    """Connected components (8 neighbours) of a bool mask, without those below `min_area` of the frame.

    Returns the label image (0 background, 1..n lesions in the order of the boxes) and the boxes (x, y, width, height).
    """
    labels = np.zeros(mask.shape, dtype="int32")
    lines, across = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(lines):
        return labels, []
    # A mask is black for the most part: only the box that holds all lesions is searched.
    top, left = int(lines[0]), int(across[0])
    inside = np.s_[top : lines[-1] + 1, left : across[-1] + 1]
    found, count = ndimage.label(mask[inside], structure=np.ones((3, 3)))
    areas = np.bincount(found[mask[inside]], minlength=count + 1)
    keep = [i for i in range(1, count + 1) if areas[i] >= min_area * mask.size]
    if len(keep) < count:
        renumber = np.zeros(count + 1, dtype="int32")
        renumber[keep] = np.arange(1, len(keep) + 1)
        found = renumber[found]
    labels[inside] = found
    boxes = [
        (left + columns.start, top + rows.start, columns.stop - columns.start, rows.stop - rows.start)
        for rows, columns in ndimage.find_objects(found)
    ]
    return labels, boxes


def lesion_windows(boxes: list[Box], content: Box, params: CropParams, rng: np.random.Generator) -> list[Box]:
    """Square windows around lesions, shifted and scaled at random, inside the content box: (x, y, side, side)."""
    centres, sides = [], []
    for x, y, width, height in boxes:
        for _ in range(params.positives_per_lesion):
            scale = np.exp(rng.uniform(-params.scale_jitter, params.scale_jitter))
            sides.append(max(width, height) * (1 + params.context) * scale)
            shift = rng.uniform(-params.jitter, params.jitter, 2) * sides[-1]
            centres.append(np.array([x + width / 2, y + height / 2]) + shift)
    if not sides:
        return []
    return [tuple(window) for window in _windows_inside(np.array(centres), np.array(sides), content).tolist()]


def background_windows(
    image: np.ndarray,
    lesions: np.ndarray,
    boxes: list[Box],
    content: Box,
    params: CropParams,
    rng: np.random.Generator,
) -> list[Box]:
    """Square windows without lesion, sized like windows around lesions where they fit: (x, y, side, side).

    image: (height, width, 3) uint8. lesions: label image of `lesion_boxes`, specks included as 0.
    A window is taken when lesion covers at most `max_overlap` of it, it holds at most that part of any one lesion,
    and at most `max_black` of it is black margin. `hard_fraction` of them lie beside a lesion or on a highlight.
    """
    wanted = params.negatives_per_frame
    short = min(content[2:])
    if boxes:
        lesion_side = np.array([max(w, h) for _, _, w, h in boxes], dtype=float) * (1 + params.context)
        sides = rng.choice(lesion_side, CANDIDATES)
        sides *= np.exp(rng.uniform(-params.scale_jitter, params.scale_jitter, CANDIDATES))
        # Beside a large lesion only smaller windows fit: each further candidate is a little smaller.
        sides *= np.linspace(1.0, 0.3, CANDIDATES)
    else:
        sides = short * np.exp(rng.uniform(np.log(0.2), np.log(0.8), CANDIDATES))
    hard = np.arange(CANDIDATES) % 100 < 100 * params.hard_fraction
    centres = np.where(
        hard[:, None],
        _hard_centres(image, boxes, sides, content, rng),
        np.array(content[:2]) + rng.uniform(0, 1, (CANDIDATES, 2)) * np.array(content[2:]),
    )
    windows = _windows_inside(centres, sides, content)
    covered = [_cover(lesions == i, windows, box) for i, box in enumerate(boxes, start=1)]
    allowed = _share(_cover(brightest(image) <= MARGIN_LEVEL, windows), windows) <= params.max_black
    if covered:
        allowed &= _share(np.sum(covered, axis=0), windows) <= params.max_overlap
        for i, inside in enumerate(covered, start=1):
            allowed &= inside <= params.max_overlap * np.count_nonzero(lesions == i)
    chosen: list[int] = []
    for kind, count in ((True, round(wanted * params.hard_fraction)), (False, wanted)):
        chosen += list(np.flatnonzero(allowed & (hard == kind))[: max(0, min(count, wanted - len(chosen)))])
    return [tuple(map(int, windows[i])) for i in chosen]


def _hard_centres(
    image: np.ndarray, boxes: list[Box], sides: np.ndarray, content: Box, rng: np.random.Generator
) -> np.ndarray:
    """Centres beside a lesion (even rows) or on a highlight (odd rows); anywhere when there is neither: (n, 2) x, y."""
    count = len(sides)
    anywhere = np.array(content[:2]) + rng.uniform(0, 1, (count, 2)) * np.array(content[2:])
    beside = anywhere
    if boxes:
        box = np.array(boxes, dtype=float)[rng.integers(len(boxes), size=count)]
        angle = rng.uniform(0, 2 * np.pi, count)
        direction = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        direction /= np.abs(direction).max(axis=1, keepdims=True)
        reach = (box[:, 2:] + sides[:, None]) / 2 * rng.uniform(0.9, 1.2, (count, 1))
        beside = box[:, :2] + box[:, 2:] / 2 + direction * reach
    rows, columns = np.nonzero(darkest(image) > HIGHLIGHT_LEVEL)
    on_highlight = beside
    if len(rows):
        pick = rng.integers(len(rows), size=count)
        on_highlight = np.stack([columns[pick], rows[pick]], axis=1).astype(float)
    return np.where((np.arange(count) % 2 == 0)[:, None], beside, on_highlight)


def _windows_inside(centres: np.ndarray, sides: np.ndarray, content: Box) -> np.ndarray:
    """The square windows nearest to the wanted ones that lie inside `content`: (n, 4) int x, y, side, side."""
    x, y, width, height = content
    short = min(width, height)
    side = np.clip(sides, min(SMALLEST_WINDOW, short), short).round().astype(int)
    left = np.clip((centres[:, 0] - side / 2).round().astype(int), x, x + width - side)
    top = np.clip((centres[:, 1] - side / 2).round().astype(int), y, y + height - side)
    return np.stack([left, top, side, side], axis=1)


def _cover(mask: np.ndarray, windows: np.ndarray, inside: Box | None = None) -> np.ndarray:
    """Number of True pixels of `mask` in each window, by an integral image; `inside`: a box that holds them all."""
    left, top, width, height = inside or (0, 0, mask.shape[1], mask.shape[0])
    mask = mask[top : top + height, left : left + width]
    if not mask.any():
        return np.zeros(len(windows), dtype="int32")
    total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), dtype="int32")
    np.cumsum(mask, axis=0, out=total[1:, 1:])
    np.cumsum(total, axis=1, out=total)
    first = np.clip(windows[:, :2] - (left, top), 0, (width, height)).T
    last = np.clip(windows[:, :2] + windows[:, 2:] - (left, top), 0, (width, height)).T
    return total[last[1], last[0]] - total[first[1], last[0]] - total[last[1], first[0]] + total[first[1], first[0]]


def _share(pixels: np.ndarray, windows: np.ndarray) -> np.ndarray:
    return pixels / (windows[:, 2] * windows[:, 3])


def cut(image: Image.Image, window: Box, size: int) -> np.ndarray:
    """One window of a Pillow image as (size, size, 3) uint8, of a grey one (size, size), reduced with antialiasing."""
    x, y, width, height = window
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=(x, y, x + width, y + height)))


def fit_whole(image: Image.Image, content: Box, size: int, whole_image: str) -> np.ndarray:
    """The content of an image as (size, size, 3) uint8, of a grey one (size, size).

    It is squashed, or padded with black to keep its shape.
    """
    if whole_image == "squash":
        return cut(image, content, size)
    x, y, width, height = content
    scale = size / max(width, height)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    reduced = image.resize(inner, Image.Resampling.BILINEAR, box=(x, y, x + width, y + height))
    square = Image.new(image.mode, (size, size))
    square.paste(reduced, ((size - inner[0]) // 2, (size - inner[1]) // 2))
    return np.asarray(square)


def mask_image(mask: np.ndarray) -> Image.Image:
    """A mask (height, width) bool as a grey image, 255 where it is True: what `cut` and `fit_whole` take."""
    return Image.fromarray(mask.astype("uint8") * 255)


def lesion_cells(masks: np.ndarray) -> np.ndarray:
    """Crops of masks, (n, size, size) uint8 grey, reduced to the means of cells: (n, cells, cells) uint8."""
    side = cells_of(masks.shape[1])
    cells = [np.asarray(Image.fromarray(mask).resize((side, side), Image.Resampling.BOX)) for mask in masks]
    return np.stack(cells) if cells else np.zeros((0, side, side), "uint8")


def cells_of(size: int) -> int:
    """Cells on a side of `lesion_cells`."""
    return max(1, size // LESION_CELL)


def frame_digest(pixels: np.ndarray) -> str:
    """A checksum of a frame's decoded pixels: (height, width, 3) uint8 to 16 hexadecimal digits.

    Of the pixels and not of the file, so that lossless copies in other formats have the same; of all of them, black
    margins included.
    """
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels))
    return digest.hexdigest()[:16]


def crop_frame(frame: Frame, classes: list[str], params: CropParams, size: int, seed: int) -> FrameCrops:
    """All crops of one frame; the draw depends on the seed and the frame's name alone.

    Raises InputError when image or mask cannot be read or differ in size, or when a box reaches outside of the image.
    """
    pixels = read_rgb(frame.image)
    image = Image.fromarray(pixels)
    content = content_box(pixels)
    if frame.label is not None:
        windows, labels = [content], [frame.label]
        images = [fit_whole(image, content, size, params.whole_image)]
        masks = np.zeros((1, size, size), "uint8")
        if frame.mask is not None:
            mask = read_mask(frame.mask, params.mask_threshold, image.size, frame.image)
            masks[0] = fit_whole(mask_image(mask), content, size, params.whole_image)
    else:
        mask = read_mask(frame.mask, params.mask_threshold, image.size, frame.image)
        rng = generator(seed, "crop", frame.name)
        lesions, boxes = lesion_boxes(mask, params.min_lesion_area)
        around = lesion_windows(boxes, content, params, rng)
        beside = background_windows(pixels, lesions, boxes, content, params, rng)
        windows = around + beside
        labels = [classes[-1]] * len(around) + [classes[0]] * len(beside)
        images = [cut(image, window, size) for window in windows]
        masks, whole = np.zeros((len(windows), size, size), "uint8"), mask_image(mask)
        for place, window in enumerate(around):
            masks[place] = cut(whole, window, size)
    x, y, width, height = content
    grey = image.crop((x, y, x + width, y + height)).convert("L")
    digest = frame_digest(pixels)
    fingerprint = perceptual_hash(grey, digest)
    rows = [
        {
            "label": label, "group": frame.group or frame.name, "frame": frame.name,
            "x": window[0], "y": window[1], "width": window[2], "height": window[3],
            "official": frame.official, "hash": fingerprint, "frame_digest": digest, **frame.further,
        }
        for window, label in zip(windows, labels, strict=True)
    ]  # fmt: skip
    stacked = np.stack(images) if images else np.zeros((0, size, size, 3), "uint8")
    return FrameCrops(stacked, lesion_cells(masks), rows, thumbnail(grey))


def crop_frames(
    frames: list[Frame], classes: list[str], params: CropParams, size: int, seed: int, workers: int | None = None
) -> Iterator[tuple[Frame, FrameCrops | InputError]]:
    """Crops of each frame, in order; a frame that cannot be read yields its error.

    workers: processes, this one among them; None for one a processor core (at most MOST_WORKERS). What is yielded does
    not depend on it. Processes, because half of a frame's time holds Python's lock. This one crops from the first
    moment, while the others start; few frames are not worth starting them. At most MOST_AHEAD parts are computed
    ahead, so memory does not grow with the number of frames.
    """
    attempt = partial(_attempt, classes=classes, params=params, size=size, seed=seed)
    workers = min(os.cpu_count() or 1, MOST_WORKERS) if workers is None else workers
    if workers == 1 or len(frames) < FEWEST_FOR_PROCESSES:
        yield from ((frame, attempt([frame])[0]) for frame in frames)
        return
    parts = deque(frames[start : start + PART] for start in range(0, len(frames), PART))
    ahead: deque[tuple[list[Frame], Future]] = deque()
    with ProcessPoolExecutor(workers - 1, mp_context=get_context("spawn")) as pool:
        try:
            while parts or ahead:
                waiting = sum(not future.done() for _, future in ahead)
                for _ in range(min(IN_FLIGHT * (workers - 1) - waiting, MOST_AHEAD - len(ahead), len(parts))):
                    ahead.append((part := parts.popleft(), pool.submit(attempt, part)))
                if parts and len(ahead) < MOST_AHEAD and not ahead[0][1].done():
                    own: Future = Future()
                    own.set_result(attempt(part := parts.popleft()))
                    ahead.append((part, own))
                else:
                    part, future = ahead.popleft()
                    yield from zip(part, future.result(), strict=True)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # an error ends the run at once


def _attempt(
    frames: list[Frame], classes: list[str], params: CropParams, size: int, seed: int
) -> list[FrameCrops | InputError]:
    results: list[FrameCrops | InputError] = []
    for frame in frames:
        try:
            results.append(crop_frame(frame, classes, params, size, seed))
        except InputError as error:
            results.append(error)
    return results


def crop_all(
    raw: Path, folder: Path, card: Card, params: CropParams, size: int, seed: int
) -> tuple[pd.DataFrame, list[str]]:
    """Crop every frame below `raw` and write into `folder`, or nothing, what stages/crop.py says.

    Returns the index and the names of the frames that were left out because they cannot be read.
    Raises InputError on a broken frame unless `skip_broken`, and when a class gives no crop.
    """
    frames, reading = find_frames(card, raw)
    skipped = []
    with whole_folder(folder) as temporary:
        rows: list[dict] = []
        masked = any(frame.mask is not None for frame in frames)
        lesions: list[np.ndarray] = []
        thumbnails: list[np.ndarray] = []  # of frames that gave a crop, which alone the index names
        with (temporary / "images.npy").open("wb") as stream:
            _write_header(stream, (0, size, size, 3))
            results = crop_frames(frames, card.classes, params, size, seed)
            for frame, result in progress(results, total=len(frames), desc="crop", unit="frame"):
                if not isinstance(result, InputError):
                    stream.write(result.images.tobytes())
                    lesions += [result.lesions] if masked else []
                    rows += result.rows
                    thumbnails += [result.thumbnail] if result.rows else []
                elif not isinstance(result, BrokenImageError):
                    raise result
                elif params.skip_broken:
                    skipped.append(frame.name)
                else:
                    raise InputError(f"{result}, or leave it out with crop.skip_broken=true") from result
            stream.seek(0)
            _write_header(stream, (len(rows), size, size, 3))
        if masked:
            with (temporary / LESIONS).open("wb") as stream:
                _write_header(stream, (len(rows), cells_of(size), cells_of(size)))
                stream.writelines(lesions)
        with (temporary / "thumbnails.npy").open("wb") as stream:
            _write_header(stream, (len(thumbnails), SIDE, SIDE))
            stream.writelines(thumbnails)
        columns = [*INDEX_COLUMNS, *frames[0].further]
        index = pd.DataFrame(rows, columns=[name for name in columns if name != "id"])
        index.insert(0, "id", np.arange(len(index)))
        for name in card.classes:
            if not (index["label"] == name).any():
                raise InputError(
                    f"{raw}: no crop of class '{name}'; check the masks or boxes, {card_path(card.name)} and the "
                    "section crop of params.yaml"
                )
        write_table(temporary / "index.csv", index)
        write_json(temporary / "reading.json", {"layout": reading.layout.kind, "groups": reading.rule})
    return index, skipped


def _write_header(stream: BinaryIO, shape: tuple[int, ...]) -> None:
    """NumPy pads this header so that the number of rows can grow without moving the data."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)


def describe_crops(index: pd.DataFrame, skipped: list[str]) -> dict:
    """metrics/crop.json: how many frames and crops there are, and what was left out."""
    return {
        "frames": index["frame"].nunique(),
        "crops": len(index),
        "classes": index["label"].value_counts().sort_index().to_dict(),
        "skipped": len(skipped),
        "skipped_frames": skipped,
    }


def draw_sheet(path: Path, folder: Path, index: pd.DataFrame, classes: list[str], seed: int) -> None:
    """A contact sheet: some crops of each class, drawn at random."""
    from lesionlab.pictures import save_contact_sheet  # the processes of `crop_frames` need no matplotlib

    images = read_images(folder)
    rng = generator(seed, "crop", "sheet")
    rows = []
    for name in classes:
        members = index.index[index["label"] == name].to_numpy()
        count = min(len(members), SHEET_COLUMNS * max(1, SHEET_LINES // len(classes)))
        rows.append((f"{name} ({len(members)} crops)", images[np.sort(rng.choice(members, count, replace=False))]))
    save_contact_sheet(path, rows, SHEET_COLUMNS)
