"""A folder of somebody's own pictures, without masks and without DVC."""

from pathlib import Path

import pandas as pd
from PIL import Image

from lesionlab.data.readers import IMAGE_SUFFIXES, read_rgb
from lesionlab.detection.boxes import boxes_table
from lesionlab.detection.pictures import draw_overlay
from lesionlab.detection.run import Detector
from lesionlab.errors import InputError
from lesionlab.files import file_digest, read_json, whole_folder, write_table
from lesionlab.models.saved import MODEL_FILE, Classifier, load_classifier
from lesionlab.params import Params
from lesionlab.progress import progress


def detect_folder(model: Path, frames: Path, out: Path, params: Params, metrics: Path, threshold: float | None) -> None:
    """Boxes, heat maps and overlays of every picture in a folder, without masks and without DVC.

    out: folder for detections.csv, heatmaps/ (greyscale PNG, 255 is probability 1) and overlays/.
    threshold: lowest score of a box; None: the one that the detect stage chose for this very model and recorded in
    `metrics`, or else the model's crop threshold, which is said.
    Raises InputError when the folder holds no picture or one cannot be read.
    """
    if not frames.is_dir():
        raise InputError(f"{frames}: no such folder; --frames takes a folder of pictures")
    pictures = sorted(path for path in frames.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not pictures:
        raise InputError(f"{frames}: holds no picture ({', '.join(IMAGE_SUFFIXES)})")
    classifier = load_classifier(model)
    detector = Detector(classifier, params.detect, params.training.batch_size)
    if threshold is None:
        threshold = _recorded_threshold(metrics, model, classifier)
    tables = []
    with whole_folder(out) as folder:
        for path in progress(pictures, desc="detect", unit="frame"):
            pixels = read_rgb(path)
            boxes, scores, heat = detector.boxes(pixels)
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


def _recorded_threshold(metrics: Path, model: Path, classifier: Classifier) -> float:
    if metrics.exists():
        recorded = read_json(metrics)
        if recorded.get("model_sha256") == file_digest(model / MODEL_FILE):
            print(f"threshold {recorded['threshold']:.3f}: chosen on validation frames ({metrics})")
            return recorded["threshold"]
    threshold = _crop_threshold(classifier)
    print(f"threshold {threshold:.3f}: the model's for crops, as {metrics} holds none for it (or give --threshold)")
    return threshold


def _crop_threshold(classifier: Classifier) -> float:
    """The model's own operating point for crops; even odds where it has more than two classes."""
    threshold = classifier.description.threshold
    return 0.5 if threshold is None else threshold
