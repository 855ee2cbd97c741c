"""Rows of `make bench` about data: cropping in two processes against a Pillow loop, and ten times the crops."""

import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw
from scipy import ndimage

from benchmarks.rows import Row
from lesionlab.data.cards import Card, resolve_split
from lesionlab.data.crops import MARGIN_LEVEL, crop_all, crop_frames
from lesionlab.data.readers import Frame, read_frames
from lesionlab.data.splits import assign_folds, crop_digests, describe_split
from lesionlab.data.thumbnails import by_subset, describe_likeness
from lesionlab.files import read_images, read_thumbnails, write_table
from lesionlab.params import CropParams, Params, read_params
from lesionlab.progress import progress
from lesionlab.seeds import generator

ROUNDS = 3
WORKERS = 2
FRAMES, SIDE, SIZE = 1000, 352, 96  # frames, their side and that of a crop in pixels, as of Kvasir-SEG
MANY, FEW = 100_000, 10_000  # crops
MANY_ROUNDS = 3
SMALL_SIDE, SMALL_SIZE = 64, 32
CLASSES = ["background", "polyp"]
CARD = Card.model_validate({
    "name": "generated", "title": "Blotches with an ellipse each", "homepage": "benchmarks/crops.py",
    "licence": "none", "citation": "none",
    "layout": {"kind": "table", "file": "frames.csv", "image": "image", "mask": "mask"},
    "classes": CLASSES, "groups": {"column": "group"},
    "recommended": {"backbone": "mobilenet_0.25", "weights": "none", "image_size": SMALL_SIZE},
})  # fmt: skip


def rows(seed: int, frames: int = FRAMES, many: int = MANY, few: int = FEW) -> list[Row]:
    """Both rows; fewer frames and crops only to try it out."""
    return [_speed(seed, frames), _growth(seed, many, few)]


def draw_frames(folder: Path, count: int, side: int, seed: int, suffix: str) -> None:
    """`count` frames of blotches with one ellipse as lesion, eight of a group: image, mask (PNG) and frames.csv."""
    draw = partial(_draw_frame, folder=folder, side=side, seed=seed, suffix=suffix)
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        drawn = pool.map(draw, range(count), chunksize=64)
        table = list(progress(drawn, desc="bench, frames", unit="frame", total=count))
    write_table(folder / "frames.csv", pd.DataFrame(table, columns=["image", "mask", "group"]))


def _draw_frame(number: int, folder: Path, side: int, seed: int, suffix: str) -> tuple[str, str, str]:
    """Files of image and mask, and the group."""
    rng = generator(seed, "bench", "frame", number)
    blotches = Image.fromarray(rng.integers(40, 255, (9, 9, 3), dtype="uint8"))
    image, mask = blotches.resize((side, side), Image.Resampling.BICUBIC), Image.new("L", (side, side))
    x, y = rng.uniform(0.3, 0.7, 2) * side
    width, height = rng.uniform(0.08, 0.2, 2) * side
    box = (x - width, y - height, x + width, y + height)
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    ImageDraw.Draw(image).ellipse(box, fill=tuple(rng.integers(60, 200, 3).tolist()))
    names = f"{number:06d}{suffix}", f"{number:06d}_mask.png"
    image.save(folder / names[0])
    mask.save(folder / names[1])
    return *names, f"g{number // 8:05d}"


def pillow_loop(frames: list[Frame], params: CropParams, size: int, seed: int) -> int:
    """Crops as tutorials cut them: a frame, a window and a try after the other. Returns how many.

    A third of its time goes into `max(axis=2)`, which NumPy does slowly and tutorials do all the same. Thumbnails,
    checksums and windows on highlights are ours alone.
    """
    rng = np.random.default_rng(seed)
    count = 0
    for frame in frames:
        image = Image.open(frame.image).convert("RGB")
        mask = np.asarray(Image.open(frame.mask).convert("L")) > params.mask_threshold
        bright = np.asarray(image).max(axis=2) > MARGIN_LEVEL
        rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
        left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
        windows, sides = [], []
        for lines, across in ndimage.find_objects(labels):
            longer = max(lines.stop - lines.start, across.stop - across.start) * (1 + params.context)
            for _ in range(params.positives_per_lesion):
                side = min(longer * np.exp(rng.uniform(-params.scale_jitter, params.scale_jitter)), right - left)
                shift = rng.uniform(-params.jitter, params.jitter, 2) * side
                x = (across.start + across.stop) / 2 + shift[0] - side / 2
                y = (lines.start + lines.stop) / 2 + shift[1] - side / 2
                windows.append((np.clip(x, left, right - side), np.clip(y, top, bottom - side), side))
                sides.append(side)
        taken = 0
        for _ in range(400):
            side = rng.choice(sides) * rng.uniform(0.3, 1)
            x, y = rng.uniform(left, right - side), rng.uniform(top, bottom - side)
            part = np.s_[int(y) : int(y + side), int(x) : int(x + side)]
            if mask[part].mean() <= params.max_overlap and 1 - bright[part].mean() <= params.max_black:
                windows.append((x, y, side))
                taken += 1
            if taken == params.negatives_per_frame:
                break
        pieces = [
            np.asarray(image.crop((int(x), int(y), int(x + side), int(y + side))).resize((size, size), Image.BILINEAR))
            for x, y, side in windows
        ]
        imagehash.phash(image)
        count += len(np.stack(pieces))
    return count


def _speed(seed: int, count: int) -> Row:
    params = read_params().crop
    plain, ours = [], []
    with tempfile.TemporaryDirectory() as folder:
        draw_frames(Path(folder), count, SIDE, seed, ".jpg")
        frames = read_frames(CARD, Path(folder))
        for _ in progress(range(ROUNDS), desc="bench, crop", unit="round"):
            started = time.perf_counter()
            cut = pillow_loop(frames, params, SIZE, seed)
            plain.append(cut / (time.perf_counter() - started))
            started = time.perf_counter()
            cut = sum(len(crops.rows) for _, crops in crop_frames(frames, CLASSES, params, SIZE, seed, WORKERS))
            ours.append(cut / (time.perf_counter() - started))
    # Of crops, not of frames: the two find a few windows more or less. Two cores do the same work in half the time.
    per_frame = params.positives_per_lesion + params.negatives_per_frame
    slow, fast = statistics.median(plain) / per_frame, statistics.median(ours) / per_frame
    name = "crop, frames a second on two cores against a Pillow loop"
    note = f"{count} frames of {SIDE} px; frames a second, the start of the second process included; "
    note += "a third of the loop is max(axis=2); floor: frames that one core decodes, of the loop and of ours"
    return Row(name, slow, fast, fast / slow, count / -(-count // WORKERS), 1.7, note=note)


def _growth(seed: int, many: int, few: int) -> Row:
    params = read_params()
    crops_a_frame = params.crop.positives_per_lesion + params.crop.negatives_per_frame
    times: dict[int, list[float]] = {few: [], many: []}
    hashed: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as top:
        for count in (few, many):
            raw = Path(top) / str(count) / "raw"
            raw.mkdir(parents=True)
            draw_frames(raw, count // crops_a_frame, SMALL_SIDE, seed, ".png")
        for number in progress(range(MANY_ROUNDS), desc="bench, crops", unit="round"):
            for count, measured in times.items():
                milliseconds, hashed[count] = _time_and_bytes_a_crop(Path(top) / str(count), params, seed, number)
                measured.append(milliseconds)
    little, much = (statistics.median(times[count]) for count in (few, many))
    name = f"{many:,} generated crops: crop, split and DVC hashing"
    note = f"milliseconds a crop: plain at {few:,} crops, ours at {many:,}; {SMALL_SIZE} px; floor: bytes hashed a crop"
    return Row(name, little, much, much / little, hashed[many] / hashed[few], None, at_most=1.3, note=note)


def _time_and_bytes_a_crop(folder: Path, params: Params, seed: int, number: int) -> tuple[float, float]:
    """Crop and split the frames in `folder`/raw, and let DVC hash them and what came of them.

    Returns milliseconds, and bytes that DVC hashed, both a crop.
    """
    from dvc.repo import Repo

    work = folder / f"round_{number}"
    work.mkdir()
    repo = Repo.init(str(work), no_scm=True)
    (folder / "raw").rename(work / "raw")
    started = time.perf_counter()
    index, _ = crop_all(work / "raw", work / "crops", CARD, params.crop, SMALL_SIZE, seed)
    index = index.assign(digest=crop_digests(read_images(work / "crops")))
    split = resolve_split(params.split, CARD)
    table = assign_folds(index, split, seed)
    describe_split(index, table, split, grouped=True, seed=seed)
    describe_likeness(by_subset(index, table["subset"], read_thumbnails(work / "crops", index)))
    write_table(work / "split.csv", table)
    repo.add([str(work / name) for name in ("raw", "crops", "split.csv")], no_commit=True)
    seconds = time.perf_counter() - started
    repo.close()
    parts = [path for name in ("raw", "crops", "split.csv") for path in (work / name, *(work / name).rglob("*"))]
    size = sum(path.stat().st_size for path in parts if path.is_file())
    (work / "raw").rename(folder / "raw")
    return 1000 * seconds / len(index), size / len(index)
