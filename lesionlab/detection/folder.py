"""A folder of somebody's own pictures, without masks and without DVC: lesions in them, or maps of their tiles."""

from pathlib import Path
from typing import Literal

import pandas as pd
from PIL import Image

from lesionlab.data.cards import Card, card_path, read_card
from lesionlab.data.readers import IMAGE_SUFFIXES, images_in, read_rgb, shorter_side
from lesionlab.data.unpack import is_residue
from lesionlab.detection.boxes import boxes_table
from lesionlab.detection.detector import Detector, load_detector, read_description, windows_detector
from lesionlab.detection.pictures import draw_class_map, draw_overlay
from lesionlab.detection.tiles import classify_tiles, map_names, save_maps, tiles_table
from lesionlab.detection.windows import heat_map
from lesionlab.errors import InputError
from lesionlab.files import file_digest, whole_folder, write_table
from lesionlab.models.saved import MODEL_FILE, Classifier, load_classifier
from lesionlab.params import Params
from lesionlab.progress import progress

# What a run writes, by its table: `out` is replaced as a whole, so nothing else may be in it.
WRITTEN = {
    "detections.csv": {"detections.csv", "heatmaps", "overlays"},
    "tiles.csv": {"tiles.csv", "classmaps", "probabilities"},
}


def detect_folder(
    model: Path,
    frames: Path,
    out: Path,
    params: Params,
    *,
    kind: Literal["auto", "lesions", "tiles"] = "auto",
    detector: Path,
    threshold: float | None = None,
    tile: int | None = None,
    stride: float | None = None,
) -> None:
    """Write into `out` what a model sees in every picture of a folder, whole or not at all.

    kind: lesions (`find_lesions`), tiles (`map_tiles`), or auto: as the card of the model's data set says. detector
    (its folder), threshold: of lesions. tile, stride: of tiles.
    Raises InputError when the folder holds no picture or one cannot be read, when `out` holds what is not of an earlier
    run, when parts of a picture have no class, and for options of the other kind.
    """
    pictures = _pictures_of(frames)
    _check_replaceable(out, frames)
    classifier = load_classifier(model)
    dataset = classifier.description.dataset
    card = read_card(dataset) if card_path(dataset).exists() else None
    if kind == "auto":
        kind = _kind_of(card, model, dataset)
    if kind == "lesions":
        if tile is not None or stride is not None:
            raise InputError(
                "detect: --tile and --stride belong to tile maps; the windows that look for lesions are those of "
                "params.yaml (detect.window_sizes, detect.stride) when dvc repro last made the detector"
            )
        find_lesions(*_detector(detector, model, classifier, params, threshold), pictures, out)
    else:
        if threshold is not None:
            raise InputError("detect: --threshold belongs to lesions; a tile is of its most probable class")
        map_tiles(classifier, pictures, out, params, tile or default_tile(classifier, card), stride or 1.0)


def _pictures_of(frames: Path) -> list[Path]:
    if not frames.is_dir():
        raise InputError(f"{frames}: no such folder; --frames takes a folder of pictures")
    pictures = images_in(frames)
    if not pictures:
        raise InputError(f"{frames}: holds no picture ({', '.join(IMAGE_SUFFIXES)})")
    by_stem: dict[str, Path] = {}
    for path in pictures:
        other = by_stem.setdefault(path.stem.casefold(), path)
        if other != path:
            raise InputError(f"{frames}: the maps of {other.name} and {path.name} would have one name; rename one")
    return pictures


def _check_replaceable(out: Path, frames: Path) -> None:
    """Writing `out` deletes what is there: that must be of an earlier run, and never the pictures themselves."""
    if frames.resolve().is_relative_to(out.resolve()):
        raise InputError(f"--out {out}: holds the pictures of --frames {frames} and would be replaced; name another")
    if out.is_symlink():
        raise InputError(f"--out {out}: is a link, which cannot be replaced as a whole; name the folder itself")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; name a folder")
    present = {path.name for path in out.iterdir() if not is_residue(path.name)} if out.exists() else set()
    if not present or any(table in present and present <= names for table, names in WRITTEN.items()):
        return
    # The pipeline's data/ holds a detections.csv too: the table alone does not tell an earlier run.
    other = min(present.difference(*WRITTEN.values()), default=min(present))
    runs = " or ".join(f"{table} and its pictures" for table in WRITTEN)
    raise InputError(
        f"--out {out}: holds other files ({other}) and would be replaced; name a new folder, or an earlier run's, in "
        f"which nothing but {runs} is"
    )


def _kind_of(card: Card | None, model: Path, dataset: str) -> Literal["lesions", "tiles"]:
    """What the card of a model's data set says; where the class is that of a whole image, its parts have none."""
    if card is None:
        raise InputError(
            f"{model}: was trained on '{dataset}', whose card {card_path(dataset)} is not here; say --map lesions "
            "(the first class is background) or --map tiles (every part of a picture is of one of the classes)"
        )
    if card.detection == "none":
        raise InputError(
            f"{model}: was trained on '{dataset}', and {card_path(dataset)} gives whole images a class, so parts of a "
            "picture have none; python -m lesionlab.explanation.occlusion shows what matters within one. Where your "
            "pictures are larger than the images and made of such tiles: --map tiles, or `detect: tiles` in the card"
        )
    return "lesions" if card.detection == "windows" else "tiles"


def find_lesions(detector: Detector, threshold: float, pictures: list[Path], out: Path) -> None:
    """Boxes, heat maps and overlays.

    out: folder for detections.csv, heatmaps/ (greyscale PNG, 255 is probability 1) and overlays/.
    threshold: lowest score of a box.
    """
    tables = []
    with whole_folder(out) as folder:
        (folder / "heatmaps").mkdir()
        looked = detector.windows([(path.name, path) for path in pictures])
        bar = progress(looked, desc="detect", unit="frame", total=len(pictures))
        for path, (seen, windows, scores) in zip(pictures, bar, strict=True):
            heat = heat_map(windows, scores, seen.shape)
            table = boxes_table(path.name, *detector.suppressed(windows, scores))
            table = table[table["score"] >= threshold]
            tables.append(table)
            Image.fromarray((heat * 255).round().astype("uint8")).save(folder / "heatmaps" / f"{path.stem}.png")
            title = f"{path.name}: {len(table)} box(es) at {threshold:.2f} or more"
            draw_overlay(folder / "overlays" / f"{path.stem}.png", seen.pixels, heat, table, None, title)
        result = pd.concat(tables, ignore_index=True)
        write_table(folder / "detections.csv", result)
    print(f"{len(result)} boxes on {len(pictures)} frames (threshold {threshold:.3f}): {out}")


def map_tiles(
    classifier: Classifier, pictures: list[Path], out: Path, params: Params, tile: int, stride: float
) -> None:
    """Lay each picture out in tiles, each of its most probable class.

    out: folder for tiles.csv (`tiles_table`), classmaps/ (the picture and its map) and probabilities/ (greyscale PNG
    <stem>/<class>.png, 255 is probability 1). tile: side in pixels. stride: step in parts of it; where tiles overlap a
    map holds their mean.
    Raises InputError when a picture is smaller than a tile, or two classes would have one file name.
    """
    classes, tables = classifier.description.architecture.classes, []
    names = map_names(classes)
    for path in pictures:
        side = shorter_side(path)
        if side < tile:
            raise InputError(
                f"{path}: its shorter side of {side} pixels is smaller than a tile of {tile}; --tile PIXELS says how "
                "many a training image would cover here"
            )
    with whole_folder(out) as folder:
        for path in progress(pictures, desc="detect", unit="picture"):
            pixels = read_rgb(path)
            boxes, probabilities = classify_tiles(pixels, classifier, tile, stride, params.training.batch_size)
            tables.append(tiles_table(path.name, boxes, probabilities, classes))
            maps = folder / "probabilities" / path.stem
            maps.mkdir(parents=True)
            called, highest = save_maps([maps / name for name in names], boxes, probabilities, pixels.shape[:2])
            title = f"{path.name}: {len(boxes)} tiles of {tile} pixels"
            draw_class_map(folder / "classmaps" / f"{path.stem}.png", pixels, called, highest, classes, title)
        result = pd.concat(tables, ignore_index=True)
        write_table(folder / "tiles.csv", result)
    print(f"{len(result)} tiles on {len(pictures)} pictures: {out}")
    for name, count in result["class"].value_counts().reindex(classes, fill_value=0).items():
        print(f"  {name}: {count} ({count / len(result):.1%})")


def default_tile(classifier: Classifier, card: Card | None) -> int:
    """Side in pixels of what a training image showed: an image of the card's release, else what the network takes.

    Neither knows pictures of another magnification; what is taken is printed.
    """
    if card is None or card.tile is None:
        tile, source = classifier.description.architecture.image_size, "the network's image size"
    else:
        tile, source = card.tile, f"tile of {card_path(card.name)}"
    print(f"tile of {tile} pixels: {source}; a tile must show as much as a training image did, else give --tile")
    return tile


def _detector(
    folder: Path, model: Path, classifier: Classifier, params: Params, threshold: float | None
) -> tuple[Detector, float]:
    """The detector that the detect stage made for this very model, and the lowest score of a box.

    Where there is none, windows are cut out and classified, and the threshold is the model's for crops. Which of the
    two it is, is printed.
    """
    description = read_description(folder)
    if description is not None and description.model_sha256 == file_digest(model / MODEL_FILE):
        detector = load_detector(folder, description, classifier, params.training.batch_size)
        origin, own = f"chosen on validation frames ({folder})", description.threshold
    else:
        print(f"{folder} is not of {model}: each window is cut out and classified, which takes longer")
        detector = windows_detector(classifier, params.detect, params.training.batch_size)
        origin, own = "the model's for crops (or give --threshold)", _crop_threshold(classifier)
    if threshold is None:
        print(f"threshold {own:.3f}: {origin}")
    return detector, own if threshold is None else threshold


def _crop_threshold(classifier: Classifier) -> float:
    """The model's own operating point for crops; even odds where it has more than two classes."""
    threshold = classifier.description.threshold
    return 0.5 if threshold is None else threshold
