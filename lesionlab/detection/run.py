"""Detection on the frames of the test subset, and on a folder of somebody's own pictures."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from lesionlab.data.cards import Card
from lesionlab.data.crops import lesion_boxes
from lesionlab.data.readers import IMAGE_SUFFIXES, Frame, read_frames, read_mask, read_rgb
from lesionlab.detection import froc
from lesionlab.detection.boxes import boxes_table, found_lesion, suppress
from lesionlab.detection.pictures import draw_froc, draw_overlay
from lesionlab.detection.windows import heat_map, score_frame
from lesionlab.errors import InputError
from lesionlab.files import (
    file_digest,
    read_index,
    read_json,
    read_split,
    whole_folder,
    write_json,
    write_table,
)
from lesionlab.models.saved import MODEL_FILE, Classifier, load_classifier
from lesionlab.params import DetectParams, Params
from lesionlab.progress import progress

LOWEST_SCORE = 0.02  # boxes below it are not kept: they lie far beyond any false-positive rate of interest


@dataclass(frozen=True)
class Paths:
    """What the detect stage reads (model, raw, crops, split, proof) and writes (detections, metrics, plots)."""

    model: Path
    raw: Path
    crops: Path
    split: Path
    proof: Path
    detections: Path
    metrics: Path
    plots: Path


def detect_boxes(pixels: np.ndarray, classifier: Classifier, params: DetectParams, batch_size: int) -> tuple:
    """Boxes of one frame after suppression, and its heat map.

    pixels: (height, width, 3) uint8 RGB. Returns boxes (n, 4) x, y, width, height in pixels, scores (n,) in [0, 1],
    best first, and the heat map (height, width) in [0, 1].
    """
    windows, probabilities = score_frame(pixels, classifier, params, batch_size)
    heat = heat_map(windows, probabilities, pixels.shape[:2])
    centres = windows[:, :2] + windows[:, 2:] // 2
    # A window alone may be a fold; one whose surroundings agree is a lesion.
    scores = (probabilities * heat[centres[:, 1], centres[:, 0]]) ** 0.5
    kept = suppress(windows, scores, params.overlap)
    kept = kept[scores[kept] >= LOWEST_SCORE]
    return windows[kept], scores[kept], heat


def run_detection(paths: Paths, card: Card, params: Params) -> None:
    """Detect on validation frames to choose the threshold, then on test frames; write everything.

    Where frames have no masks only boxes, maps and counts are written, at the model's crop threshold.
    """
    classifier = load_classifier(paths.model)
    frames = frames_of_subsets(paths, card, params)
    settings, batch_size = params.detect, params.training.batch_size
    found = {
        name: detect_frames(members, classifier, params, f"detect, {name} frames") for name, members in frames.items()
    }
    boxes, listed = found["test"]
    proof = read_json(paths.proof)
    metrics = {
        "subset": "test",
        "protocol": proof["protocol"],
        "group_disjoint": proof["group_disjoint"],
        "seed": params.seed,
        "model_sha256": file_digest(paths.model / MODEL_FILE),
        "frames": len(listed),
    }
    with whole_folder(paths.plots) as plots:
        if not listed["lesions"].isna().any():
            rate = settings.false_positives
            threshold = operating_threshold(*found["val"], rate, paths.model)
            curve = froc.froc_curve(boxes, listed)
            write_table(plots / "froc.csv", curve)
            draw_froc(plots / "froc.png", curve, rate, f"{params.dataset}, {len(listed)} test frames")
            at_rates = froc.sensitivity_at(curve)
            metrics |= {
                "lesions": int(listed["lesions"].sum()),
                "threshold": threshold,
                "operating": froc.operating_metrics(
                    boxes, listed, threshold, resamples=params.evaluate.resamples, seed=params.seed
                ),
                "froc": {f"{row.false_positives_per_frame:g}": row.sensitivity for row in at_rates.itertuples()},
            }
        else:
            threshold = classifier.description.threshold
            metrics |= {"threshold": threshold, "boxes": int((boxes["score"] >= threshold).sum())}
        chosen = overlay_frames(boxes, listed, threshold, settings.overlays)
        by_name = {frame.name: frame for frame in frames["test"]}
        for number, (kind, name) in enumerate(chosen):
            file = plots / f"{kind}_{number:02d}.png"
            _draw(file, by_name[name], boxes, threshold, classifier, params, batch_size, kind)
    write_table(paths.detections, boxes)
    write_json(paths.metrics, metrics)


def frames_of_subsets(paths: Paths, card: Card, params: Params) -> dict[str, list[Frame]]:
    """Validation and test frames, at most `detect.max_frames` of each, evenly taken."""
    index = read_split(paths.split, read_index(paths.crops))
    subset_of = index.drop_duplicates("frame").set_index("frame")["subset"]
    frames = [frame for frame in read_frames(card, paths.raw) if frame.name in subset_of.index]
    chosen = {}
    for name in ("val", "test"):
        members = [frame for frame in frames if subset_of[frame.name] == name]
        limit = min(params.detect.max_frames or len(members), len(members))
        chosen[name] = [members[k] for k in np.linspace(0, len(members) - 1, limit).round().astype(int)]
    return chosen


def detect_frames(
    frames: Iterable[Frame], classifier: Classifier, params: Params, desc: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Boxes (frame, x, y, width, height, score, lesion) and frames (frame, group, lesions; NaN without mask)."""
    tables, listed = [], []
    for frame in progress(list(frames), desc=desc, unit="frame"):
        pixels = read_rgb(frame.image)
        boxes, scores, _ = detect_boxes(pixels, classifier, params.detect, params.training.batch_size)
        table = boxes_table(frame.name, boxes, scores)
        count = np.nan
        if frame.mask is not None:
            mask = read_mask(frame.mask, params.crop.mask_threshold, pixels.shape[1::-1], frame.image)
            lesions, components = lesion_boxes(mask, params.crop.min_lesion_area)
            table["lesion"] = found_lesion(boxes, lesions, mask)
            count = len(components)
        tables.append(table)
        listed.append((frame.name, frame.group or frame.name, count))
    return pd.concat(tables, ignore_index=True), pd.DataFrame(listed, columns=["frame", "group", "lesions"])


def operating_threshold(boxes: pd.DataFrame, frames: pd.DataFrame, rate: float, model: Path) -> float:
    """Score that gives the highest sensitivity on validation frames at no more than `rate` false positives a frame."""
    score = froc.sensitivity_at(froc.froc_curve(boxes, frames), (rate,))["score"].iloc[0]
    if not np.isfinite(score):
        raise InputError(
            f"{model}: no threshold gives at most {rate} false positives a frame on validation frames; "
            "raise detect.false_positives"
        )
    return float(score)


def overlay_frames(boxes: pd.DataFrame, frames: pd.DataFrame, threshold: float, count: int) -> list[tuple[str, str]]:
    """Which frames to draw: a third each of the best, the median and the worst, as (kind, frame).

    A frame is the better the more of its lesions are found and the fewer false positives it has.
    """
    admitted = boxes[boxes["score"] >= threshold]
    if "lesion" in boxes:
        hits = admitted[admitted["lesion"] > 0].drop_duplicates(["frame", "lesion"]).groupby("frame").size()
        false = admitted[admitted["lesion"] == 0].groupby("frame").size()
        missed = frames.set_index("frame")["lesions"].sub(hits, fill_value=0)
        grade = missed.add(false, fill_value=0)
    else:
        grade = pd.Series(0.0, index=frames["frame"])
    # Between frames of one grade, the surer one is the better.
    grade = grade - admitted.groupby("frame")["score"].max().reindex(grade.index).fillna(0)
    names = grade.sort_values(kind="stable").index.to_list()
    third = min(max(count // 3, 0), len(names) // 3)
    middle = len(names) // 2 - third // 2
    starts = {"best": 0, "median": middle, "worst": len(names) - third}
    return [(kind, name) for kind, start in starts.items() for name in names[start : start + third]]


def _draw(
    path: Path,
    frame: Frame,
    boxes: pd.DataFrame,
    threshold: float,
    classifier: Classifier,
    params: Params,
    batch_size: int,
    kind: str,
) -> None:
    pixels = read_rgb(frame.image)
    _, _, heat = detect_boxes(pixels, classifier, params.detect, batch_size)
    mask = None
    if frame.mask is not None:
        mask = read_mask(frame.mask, params.crop.mask_threshold, pixels.shape[1::-1], frame.image)
    shown = boxes[(boxes["frame"] == frame.name) & (boxes["score"] >= threshold)]
    draw_overlay(path, pixels, heat, shown, mask, f"{kind}: {frame.name}")


def detect_folder(model: Path, frames: Path, out: Path, params: Params, threshold: float | None) -> None:
    """Boxes, heat maps and overlays of every picture in a folder, without masks and without DVC.

    out: folder for detections.csv, heatmaps/ (greyscale PNG, 255 is probability 1) and overlays/.
    Raises InputError when the folder holds no picture or one cannot be read.
    """
    if not frames.is_dir():
        raise InputError(f"{frames}: no such folder; --frames takes a folder of pictures")
    pictures = sorted(path for path in frames.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not pictures:
        raise InputError(f"{frames}: holds no picture ({', '.join(IMAGE_SUFFIXES)})")
    classifier = load_classifier(model)
    threshold = classifier.description.threshold if threshold is None else threshold
    tables = []
    with whole_folder(out) as folder:
        for path in progress(pictures, desc="detect", unit="frame"):
            pixels = read_rgb(path)
            boxes, scores, heat = detect_boxes(pixels, classifier, params.detect, params.training.batch_size)
            table = boxes_table(path.name, boxes, scores)
            table = table[table["score"] >= threshold]
            tables.append(table)
            (folder / "heatmaps").mkdir(exist_ok=True)
            Image.fromarray((heat * 255).round().astype("uint8")).save(folder / "heatmaps" / f"{path.stem}.png")
            title = f"{path.name}: {len(table)} box(es) at {threshold:.2f} or more"
            draw_overlay(folder / "overlays" / f"{path.stem}.png", pixels, heat, table, None, title)
        result = pd.concat(tables, ignore_index=True)
        write_table(folder / "detections.csv", result)
    print(f"{len(result)} boxes on {len(pictures)} frames (threshold {threshold:.3f}): {out}")
