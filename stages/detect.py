"""detect: train a detector, look for lesions in whole frames; boxes, heat maps, FROC.

reads   models/finetune, data/raw, data/crops/index.csv, data/split.csv, metrics/split.json, datasets/<dataset>.yaml
writes  models/detector       the head of a dense detector and detector.json, with the threshold
        data/detections.csv   frame, x, y, width, height, score, lesion (0: false positive), nearest, iou on test frames
        metrics/detect.json   figures at the threshold chosen on validation frames, by size of lesion; FROC, AP
        plots/froc.csv        sensitivity against false positives a frame, with its interval
        pictures/detections/  FROC, and overlays of the best, the median and the worst frames
params  dataset, seed, crop.mask_threshold, crop.min_lesion_area, training.batch_size, training.threads,
        evaluate.resamples, detect

On your own pictures, without masks and without DVC:
        python -m stages.detect --model models/finetune --frames my_folder --out found/
reads   models/detector, for lesions; without it each window is cut out and classified
writes  found/detections.csv, found/heatmaps/, found/overlays/
or, for tissue, where every part of a picture is of one of the classes,
        found/tiles.csv       file, x, y, width, height, class, probability, probability_<class>
        found/classmaps/      each picture, the class of its tiles and how probable it is
        found/probabilities/  <picture>/<class>.png, 255 is probability 1
The card of the model's data set says which (detect: windows or tiles); --map overrules it.
"""

from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from lesionlab.errors import InputError
from lesionlab.params import read_params
from lesionlab.stage import run


def main(
    model: Annotated[Path, Option(help="folder of the model")],
    frames: Annotated[Path | None, Option(help="your own pictures: a folder of them")] = None,
    out: Annotated[Path | None, Option(help="your own pictures: folder to write, in place of an earlier run's")] = None,
    kind: Annotated[
        Literal["auto", "lesions", "tiles"],
        Option("--map", help="your own pictures: what to look for; auto: as the card of the model's data set says"),
    ] = "auto",
    threshold: Annotated[float | None, Option(help="your own pictures, lesions: lowest score of a box")] = None,
    tile: Annotated[
        int | None,
        Option(
            min=8,
            help="your own pictures, tiles: side in pixels of the picture, of what a training image showed; else the "
            "card's tile or the network's image size, which is printed",
        ),
    ] = None,
    stride: Annotated[
        float | None,
        Option(min=0.05, max=1, help="your own pictures, tiles: step in parts of a tile; 1 (each pixel once) if none"),
    ] = None,
    raw: Annotated[Path | None, Option(help="folder that the download stage filled")] = None,
    crops: Annotated[Path | None, Option(help="folder of the crop stage")] = None,
    split: Annotated[Path | None, Option(help="CSV of the split stage")] = None,
    proof: Annotated[Path | None, Option(help="JSON of the split stage")] = None,
    detector: Annotated[Path, Option(help="folder of the detector: written; your own pictures, lesions: read")] = Path(
        "models/detector"
    ),
    detections: Annotated[Path | None, Option(help="CSV file to write")] = None,
    metrics: Annotated[Path | None, Option(help="JSON file to write")] = None,
    froc: Annotated[Path | None, Option(help="CSV file to write")] = None,
    pictures: Annotated[Path | None, Option(help="folder to write overlays to")] = None,
) -> None:
    from lesionlab import tracking
    from lesionlab.training.backend import start_keras

    params = read_params()
    if frames is None:
        tracking.prepare()
    start_keras(params.training.threads)  # before anything that imports Keras
    from lesionlab.data.cards import read_card
    from lesionlab.detection.folder import detect_folder
    from lesionlab.detection.run import Paths, run_detection

    if frames is not None and out is not None:
        options = {"kind": kind, "detector": detector, "threshold": threshold, "tile": tile, "stride": stride}
        detect_folder(model, frames, out, params, **options)
        return
    paths = (raw, crops, split, proof, detector, detections, metrics, froc, pictures)
    if frames is not None or out is not None or None in paths:
        raise InputError(
            "detect: give --frames and --out for your own pictures, or all of --raw, --crops, --split, --proof, "
            "--detections, --metrics, --froc and --pictures"
        )
    run_detection(Paths(model, *paths), read_card(params.dataset), params)


if __name__ == "__main__":
    run(main, __doc__)
