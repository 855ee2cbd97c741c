"""Detection on the frames of the test subset."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lesionlab import tracking
from lesionlab.data.cards import Card, card_path
from lesionlab.data.crops import lesion_boxes
from lesionlab.data.readers import Frame, frames_by_subset, read_mask, read_rgb
from lesionlab.detection import froc
from lesionlab.detection.boxes import boxes_table, found_lesion, nearest_lesion
from lesionlab.detection.dense import DenseBackbone
from lesionlab.detection.detector import Description, Detector, dense_detector, save_detector, windows_detector
from lesionlab.detection.head import train_head
from lesionlab.detection.looks import Looks, temporary_looks
from lesionlab.detection.pictures import draw_froc, draw_overlay
from lesionlab.detection.windows import heat_map
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
from lesionlab.params import Params
from lesionlab.progress import progress
from lesionlab.training.fit import Fit

EMPTY_CURVE = pd.DataFrame(columns=["score", "false_positives_per_frame", "sensitivity", "low", "high"])


@dataclass(frozen=True)
class Paths:
    """What the detect stage reads (model, raw, crops, split, proof) and writes (the others)."""

    model: Path
    raw: Path
    crops: Path
    split: Path
    proof: Path
    detector: Path
    detections: Path
    metrics: Path
    froc: Path
    pictures: Path


@dataclass(frozen=True)
class Findings:
    """What was found on some frames, and what there was to find.

    boxes: frame, x, y, width, height (pixels), score, lesion (its number in the frame, 0 for none, -1 for a speck),
    nearest (the lesion whose bounding box it overlaps most) and iou (how much).
    frames: frame, group, lesions (their number). lesions: frame, group, lesion, area (part of the frame).
    windows: of each frame all windows (n, 4) and their scores (n,), before suppression.
    """

    boxes: pd.DataFrame
    frames: pd.DataFrame
    lesions: pd.DataFrame
    windows: dict[str, tuple[np.ndarray, np.ndarray]]


def run_detection(paths: Paths, card: Card, params: Params) -> None:
    """Train a detector, choose its threshold on validation frames, detect on test frames; write everything.

    Where the card's classes are those of whole images there is nothing to slide a window over: the outputs are empty,
    and the metrics say so.
    """
    if card.detection != "windows":
        _write_not_applicable(paths, card, params.seed)
        return
    started = time.perf_counter()
    classifier = load_classifier(paths.model)
    frames = frames_of_subsets(paths, card, params)
    settings = params.detect
    detector, fitted, found = train_and_detect(classifier, frames, params)
    boxes, listed = found["test"].boxes, found["test"].frames
    proof = read_json(paths.proof)
    metrics = {
        "subset": "test",
        "protocol": proof["protocol"],
        "group_disjoint": proof["group_disjoint"],
        "grouped_by": proof["grouped_by"],
        "labels": proof["labels"],
        "seed": params.seed,
        "mode": settings.mode,
        "frames": len(listed),
    }
    rate, bootstrap = settings.false_positives, {"resamples": params.evaluate.resamples, "seed": params.seed}
    threshold = operating_threshold(found["val"].boxes, found["val"].frames, rate)
    curve = froc.froc_band(boxes, listed, **bootstrap)
    metrics |= describe_findings(found, threshold, **bootstrap)
    with whole_folder(paths.pictures) as pictures:
        draw_froc(pictures / "froc.png", curve, rate, f"{params.dataset}, {len(listed)} test frames")
        chosen = overlay_frames(boxes, listed, threshold, settings.overlays)
        by_name = {frame.name: frame for frame in frames["test"]}
        for number, (kind, name) in enumerate(chosen):
            file = pictures / f"{kind}_{number:02d}.png"
            _draw(file, by_name[name], found["test"], threshold, params, kind)
    description = Description(
        model_sha256=file_digest(paths.model / MODEL_FILE),
        dataset=params.dataset,
        protocol=proof["protocol"],
        seed=params.seed,
        threshold=threshold,
        settings=settings,
        weights_sha256=None,
    )
    save_detector(paths.detector, detector, description)
    write_table(paths.detections, boxes)
    write_table(paths.froc, curve)
    write_json(paths.metrics, metrics)
    tracking.log_stage(
        "detect",
        params={"seed": params.seed, "dataset": params.dataset, "detect": settings.model_dump()},
        history=None if fitted is None else fitted.history,
        metrics={
            name: metrics.get(name, {}) for name in ("operating", "froc", "average_precision", "sensitivity_by_size")
        },
        pictures=[paths.pictures],
        tags={"lesionlab.data": file_digest(paths.split), "lesionlab.protocol": proof["protocol"]},
        seconds=time.perf_counter() - started,
    )


def _write_not_applicable(paths: Paths, card: Card, seed: int) -> None:
    reason = f"{card.name} has one class a whole image: windows within an image have none"
    if card.detection == "tiles":
        reason += (
            "; for a tile map of larger pictures: python -m stages.detect --model MODEL --frames FOLDER --out FOLDER"
        )
    other = f"{card.name}-windows"  # so is the card called that cuts windows from the same images, where there is one
    if card_path(other).exists():
        reason += f"; {card_path(other)} cuts windows from the same images: dvc exp run -S dataset={other}"
    print(f"detect: not applicable, {reason}")
    proof = read_json(paths.proof)
    for empty in (paths.pictures, paths.detector):
        with whole_folder(empty):
            pass
    write_table(paths.detections, boxes_table("", np.zeros((0, 4), int), np.zeros(0)).assign(lesion=[]))
    write_table(paths.froc, EMPTY_CURVE)
    recorded = {name: proof[name] for name in ("protocol", "group_disjoint", "grouped_by")} | {"seed": seed}
    write_json(paths.metrics, {"applicable": False, "reason": reason, **recorded})


def train_and_detect(
    classifier: Classifier, frames: dict[str, list[Frame]], params: Params
) -> tuple[Detector, Fit | None, dict[str, Findings]]:
    """The detector of `detect.mode`, how its head learned, and what it finds on validation and test frames.

    Each frame is looked at once: what a dense detector's head was shown of validation frames is what is searched.
    Raises InputError for a dense detector of a classifier without a backbone.
    """
    with temporary_looks(frame.name for frame in frames["val"]) as seen:
        detector, fitted = _train_detector(classifier, frames, params, seen)
        found = {
            name: detect_frames(frames[name], detector, params, f"detect, {name}", seen) for name in ("val", "test")
        }
    return detector, fitted, found


def _train_detector(
    classifier: Classifier, frames: dict[str, list[Frame]], params: Params, seen: Looks
) -> tuple[Detector, Fit | None]:
    settings = params.detect
    if settings.mode == "windows":
        return windows_detector(classifier, settings, params.training.batch_size), None
    backbone = DenseBackbone(classifier, settings.stride)
    head, fitted = train_head(backbone, frames["train"], frames["val"], params, seen)
    return dense_detector(backbone, head, settings), fitted


def describe_findings(found: dict[str, Findings], threshold: float, *, resamples: int, seed: int) -> dict:
    """The figures of metrics/detect.json on test frames; validation lesions say what is small and what is large."""
    test, bootstrap = found["test"], {"resamples": resamples, "seed": seed}
    matched = {"centre": froc.found_by_centre(test.boxes), "iou_0.5": froc.found_by_overlap(test.boxes)}
    metrics = {
        "lesions": int(test.frames["lesions"].sum()),
        "lesion_free_frames": int((test.frames["lesions"] == 0).sum()),
        "threshold": threshold,
        "operating": froc.operating_metrics(test.boxes, test.frames, threshold, **bootstrap),
        "average_precision": {
            name: froc.average_precision(test.boxes, test.frames, *rule, **bootstrap) for name, rule in matched.items()
        },
        "froc": froc.froc_figures(test.boxes, test.frames, **bootstrap),
    }
    if len(found["val"].lesions) and len(test.lesions):
        limits = froc.size_limits(found["val"].lesions)
        metrics["size_limits"] = dict(zip(("medium_from", "large_from"), limits, strict=True))
        metrics["sensitivity_by_size"] = froc.sensitivity_by_size(
            test.boxes, test.lesions, limits, threshold, **bootstrap
        )
    return metrics


def frames_of_subsets(paths: Paths, card: Card, params: Params) -> dict[str, list[Frame]]:
    """Frames of each subset, evenly taken: at most `detect.training_frames`, of the others `detect.max_frames`."""
    index = read_split(paths.split, read_index(paths.crops))
    frames = frames_by_subset(card, paths.raw, index)
    limits = {"train": params.detect.training_frames, "val": params.detect.max_frames, "test": params.detect.max_frames}
    chosen = {}
    for name, most in limits.items():
        members = frames.get(name, [])
        limit = min(most or len(members), len(members))
        chosen[name] = [members[k] for k in np.linspace(0, len(members) - 1, limit).round().astype(int)]
    return chosen


def detect_frames(
    frames: Sequence[Frame], detector: Detector, params: Params, desc: str, seen: Looks | None = None
) -> Findings:
    """Look for lesions in frames, and hold what is found against their masks, which cards with windows always give.

    seen: frames that were looked at before.
    """
    tables, listed, lesion_rows, windows = [], [], [], {}
    looked = detector.windows([(frame.name, frame.image) for frame in frames], seen)
    bar = progress(looked, desc=desc, unit="frame", total=len(frames))
    for frame, (at_frame, *scored) in zip(frames, bar, strict=True):
        windows[frame.name] = tuple(scored)
        boxes, scores = detector.suppressed(*scored)
        group = frame.group or frame.name
        mask = read_mask(frame.mask, params.crop.mask_threshold, at_frame.shape[::-1], frame.image)
        lesions, components = lesion_boxes(mask, params.crop.min_lesion_area)
        nearest, overlap = nearest_lesion(boxes, np.array(components, dtype=float).reshape(-1, 4))
        count = len(components)
        areas = np.bincount(lesions.ravel(), minlength=count + 1)[1:] / mask.size
        lesion_rows += [(frame.name, group, number, area) for number, area in enumerate(areas, start=1)]
        table = boxes_table(frame.name, boxes, scores)
        table = table.assign(lesion=found_lesion(boxes, lesions, mask), nearest=nearest, iou=overlap)
        tables.append(table)
        listed.append((frame.name, group, count))
    return Findings(
        pd.concat(tables, ignore_index=True),
        pd.DataFrame(listed, columns=["frame", "group", "lesions"]),
        pd.DataFrame(lesion_rows, columns=["frame", "group", "lesion", "area"]),
        windows,
    )


def operating_threshold(boxes: pd.DataFrame, frames: pd.DataFrame, rate: float) -> float:
    """Score that gives the highest sensitivity on validation frames at no more than `rate` false positives a frame.

    Where no score does, as with a model that gives every window the same, it lies above all scores: no box is admitted.
    """
    score = froc.sensitivity_at(froc.froc_curve(boxes, frames), (rate,))["score"].iloc[0]
    if np.isfinite(score):
        return float(score)
    return float(np.nextafter(boxes["score"].max(), np.inf)) if len(boxes) else 1.0


def overlay_frames(boxes: pd.DataFrame, frames: pd.DataFrame, threshold: float, count: int) -> list[tuple[str, str]]:
    """Which frames to draw: a third each of the best, the median and the worst, as (kind, frame).

    A frame is the better the more of its lesions are found and the fewer false positives it has.
    """
    admitted = boxes[boxes["score"] >= threshold]
    hits = admitted[admitted["lesion"] > 0].drop_duplicates(["frame", "lesion"]).groupby("frame").size()
    false = admitted[admitted["lesion"] == 0].groupby("frame").size()
    missed = frames.set_index("frame")["lesions"].sub(hits, fill_value=0)
    grade = missed.add(false, fill_value=0)
    # Between frames of one grade, the surer one is the better.
    grade = grade - admitted.groupby("frame")["score"].max().reindex(grade.index).fillna(0)
    names = grade.sort_values(kind="stable").index.to_list()
    third = min(max(count // 3, 0), len(names) // 3)
    middle = len(names) // 2 - third // 2
    starts = {"best": 0, "median": middle, "worst": len(names) - third}
    return [(kind, name) for kind, start in starts.items() for name in names[start : start + third]]


def _draw(path: Path, frame: Frame, found: Findings, threshold: float, params: Params, kind: str) -> None:
    pixels = read_rgb(frame.image)
    heat = heat_map(*found.windows[frame.name], pixels.shape[:2])
    mask = read_mask(frame.mask, params.crop.mask_threshold, pixels.shape[1::-1], frame.image)
    shown = found.boxes[(found.boxes["frame"] == frame.name) & (found.boxes["score"] >= threshold)]
    draw_overlay(path, pixels, heat, shown, mask, f"{kind}: {frame.name}")
