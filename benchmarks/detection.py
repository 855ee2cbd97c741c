"""detection: every window from one pass over the frame, against the same windows cut out and classified.

    python -m benchmarks.detection --model models/finetune     recall and precision of both ways on the test frames
    python -m benchmarks.detection --model ... --confirm 64 --confirm 128    what to set detect.confirm to

`rows` are the lines of `make bench` about time. The floor is the ratio of counted multiply-adds.
"""

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from typer import Option

from benchmarks.rows import Row
from lesionlab.files import write_json
from lesionlab.params import Params, read_params
from lesionlab.progress import progress
from lesionlab.seeds import generator
from lesionlab.stage import run
from lesionlab.training.backend import start_keras

if TYPE_CHECKING:
    import keras

    from lesionlab.data.readers import Frame
    from lesionlab.models.saved import Classifier

ROUNDS, THREADS = 3, 2
FRAME, WINDOW, BATCH = 320, 64, 32  # pixels a side, and windows that are classified at once
# What is compared on real frames. unconfirmed: the dense map's own scores, without classifying its best windows again.
WAYS = {"windows": {"mode": "windows"}, "dense": {"mode": "dense"}, "unconfirmed": {"mode": "dense", "confirm": 0}}
STEPS = {16: 9, 8: 28}  # pixels between windows, and the ratio to show


def rows(seed: int, frame: int = FRAME, rounds: int = ROUNDS) -> list[Row]:
    """VGG16 with random weights on a frame of noise, `frame` pixels a side: windows of 64 px every 16 and 8 px.

    The notes say what is left of a ratio when `detect.confirm` windows of the map are cut out and classified again.
    """
    start_keras(THREADS)  # before anything that imports Keras
    from PIL import Image

    from lesionlab.data.crops import cut
    from lesionlab.detection.dense import dense_classifier
    from lesionlab.detection.windows import cut_windows
    from lesionlab.models.backbones import preprocess
    from lesionlab.models.networks import Architecture, build_network
    from lesionlab.models.saved import Classifier, Description

    architecture = Architecture(
        backbone="vgg16", dense=128, dropout=0.0, image_size=WINDOW, classes=["background", "polyp"]
    )
    description = Description(
        architecture=architecture, stage="transfer", dataset="noise", protocol="none", seed=seed, unfrozen_blocks=0,
        blocks=[], threshold=None, environment={},
    )  # fmt: skip
    classifier = Classifier(description, build_network(architecture, seed))
    pixels = generator(seed, "bench", "detection").integers(0, 256, (frame, frame, 3), dtype="uint8")
    image, content = Image.fromarray(pixels), (0, 0, frame, frame)

    def plain(step: int) -> np.ndarray:
        _, windows = cut_windows(image, content, WINDOW / frame, step / WINDOW, WINDOW)
        return classifier.model.predict(preprocess(windows, "caffe"), batch_size=BATCH, verbose=0)

    def confirm(boxes: np.ndarray) -> None:
        crops = np.stack([cut(image, tuple(box), WINDOW) for box in boxes])
        for start in range(0, len(crops), BATCH):
            classifier.logits(crops[start : start + BATCH], BATCH)

    confirmed = read_params().detect.confirm
    dense = {step: dense_classifier(classifier, step / WINDOW) for step in STEPS}
    found = {step: len(way.score(image, content, WINDOW / frame)[0]) for step, way in dense.items()}  # and warm up
    classifier.model.predict(preprocess(np.zeros((BATCH, WINDOW, WINDOW, 3), "uint8"), "caffe"), verbose=0)
    confirm(np.array([[0, 0, WINDOW, WINDOW]]))
    seconds = {(step, way): [] for step in STEPS for way in ("plain", "ours", "both")}
    for _ in progress(range(rounds), desc="bench, detection", unit="round"):
        for step in STEPS:
            started = time.perf_counter()
            windows = len(plain(step))
            seconds[step, "plain"].append(time.perf_counter() - started)
            started = time.perf_counter()
            boxes, _ = dense[step].score(image, content, WINDOW / frame)
            seconds[step, "ours"].append(time.perf_counter() - started)
            if confirmed:
                confirm(boxes[:confirmed])
            seconds[step, "both"].append(time.perf_counter() - started)
            if windows != found[step]:
                raise RuntimeError(f"{windows} windows were cut but the dense map has {found[step]}")
    result = []
    for step, at_least in STEPS.items():
        took, ours, both = (statistics.median(seconds[step, way]) for way in ("plain", "ours", "both"))
        counted = found[step] * multiply_adds(WINDOW, 0) / multiply_adds(frame, int(np.log2(32 / step)))
        name = f"detect dense, stride {step}, VGG16, {WINDOW} px windows"
        note = f"{found[step]} windows of a frame of {frame} px; the map alone: with the {confirmed} windows of "
        note += f"detect.confirm the ratio is {took / both:.1f}"
        result.append(Row(name, took, ours, took / ours, counted, at_least, note=note))
    return result


def multiply_adds(size: int, halvings: int) -> float:
    """Multiply-adds of VGG16 without its top on `size` pixels a side, its last `halvings` poolings at stride 1."""
    from lesionlab.models.backbones import find_backbone

    total = 0.0
    network: keras.Model = find_backbone("vgg16").build(size)
    strides = int(np.log2(32))
    for layer in network.layers:
        if hasattr(layer, "kernel"):
            _, rows, columns, _ = layer.output.shape
            poolings = int(np.log2(size // rows))
            phases = 4 ** max(0, poolings - (strides - halvings))
            total += phases * rows * columns * np.prod(layer.kernel.shape)
    return float(total)


def main(
    model: Annotated[Path, Option(help="folder of the model")],
    raw: Annotated[Path, Option(help="folder that the download stage filled")] = Path("data/raw"),
    crops: Annotated[Path, Option(help="folder of the crop stage")] = Path("data/crops"),
    split: Annotated[Path, Option(help="CSV of the split stage")] = Path("data/split.csv"),
    proof: Annotated[Path, Option(help="JSON of the split stage")] = Path("metrics/split.json"),
    out: Annotated[Path | None, Option(help="JSON file to write the figures to, with intervals")] = None,
    confirm: Annotated[
        list[int] | None, Option(help="compare numbers for detect.confirm instead, on the validation frames alone")
    ] = None,
) -> None:
    """Print recall and precision of both ways, each at the threshold that its own validation scores gave."""
    params = read_params()
    start_keras(params.training.threads)  # before anything that imports Keras
    from lesionlab.data.cards import read_card
    from lesionlab.detection.run import Paths, frames_of_subsets
    from lesionlab.models.saved import load_classifier

    nowhere = Path()
    paths = Paths(model, raw, crops, split, proof, nowhere, nowhere, nowhere, nowhere)
    frames = frames_of_subsets(paths, read_card(params.dataset), params)
    classifier, rate = load_classifier(model), params.detect.false_positives
    if confirm:
        for number in confirm:
            recall = validation_recall(number, classifier, frames["val"], params)
            print(f"confirm {number}: recall {recall:.3f} at {rate:g} false positives a frame of {len(frames['val'])}")
        return
    ways = {name: describe_way(name, changes, classifier, frames, params) for name, changes in WAYS.items()}
    print(f"{'':<12}{'threshold':>10}{'recall':>10}{'precision':>11}{'FP a frame':>12}{'recall at ' + f'{rate:g}':>14}")
    for mode, found in ways.items():
        columns = ("recall", "precision", "false_positives_per_frame")
        recall, precision, false = (found.get(name, {}).get("value", float("nan")) for name in columns)
        print(
            f"{mode:<12}{found['threshold']:>10.4f}{recall:>10.3f}{precision:>11.3f}{false:>12.3f}"
            f"{found['recall_at_rate']:>14.3f}"
        )
    if out is not None:
        write_json(out, {"frames": len(frames["test"]), "seed": params.seed, "ways": ways})


def validation_recall(confirm: int, classifier: "Classifier", frames: list["Frame"], params: Params) -> float:
    """Recall on validation frames at `detect.false_positives` a frame, with so many windows confirmed."""
    from lesionlab.detection.froc import froc_curve, sensitivity_at
    from lesionlab.detection.run import Detector, detect_frames

    settings = params.detect.model_copy(update={"mode": "dense", "confirm": confirm})
    detector = Detector(classifier, settings, params.training.batch_size)
    found = detect_frames(frames, detector, params, f"confirm {confirm}, val")
    curve = froc_curve(found.boxes, found.frames)
    return float(sensitivity_at(curve, (params.detect.false_positives,))["sensitivity"].iloc[0])


def describe_way(
    name: str, changes: dict[str, object], classifier: "Classifier", frames: dict[str, list["Frame"]], params: Params
) -> dict:
    """Recall, precision and false positives a frame on test frames with intervals; its threshold from validation."""
    from lesionlab.detection.froc import froc_curve, operating_metrics, sensitivity_at
    from lesionlab.detection.run import Detector, detect_frames, operating_threshold

    rate, settings = params.detect.false_positives, params.detect.model_copy(update=changes)
    detector = Detector(classifier, settings, params.training.batch_size)
    found = {part: detect_frames(members, detector, params, f"{name}, {part}") for part, members in frames.items()}
    threshold = operating_threshold(found["val"].boxes, found["val"].frames, rate)
    test, how = found["test"], {"resamples": params.evaluate.resamples, "seed": params.seed}
    at_rate = sensitivity_at(froc_curve(test.boxes, test.frames), (rate,))["sensitivity"].iloc[0]
    figures = operating_metrics(test.boxes, test.frames, threshold, **how)
    return {"threshold": threshold, "recall_at_rate": float(at_rate), **figures}


if __name__ == "__main__":
    run(main, __doc__)
