"""detection: every window from one pass over the frame, against the same windows cut out and classified.

    python -m benchmarks.detection --model models/finetune     recall and precision of both ways on the test frames

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
WAYS = ("windows", "dense")  # what is compared on real frames
STEPS = {16: 9, 8: 28}  # pixels between windows, and the ratio to show


def rows(seed: int, frame: int = FRAME, rounds: int = ROUNDS) -> list[Row]:
    """VGG16 with random weights on a frame of noise, `frame` pixels a side: windows of 64 px every 16 and 8 px."""
    start_keras(THREADS)  # before anything that imports Keras
    from PIL import Image

    from lesionlab.detection.dense import FRAMES_A_PASS, DenseBackbone
    from lesionlab.detection.detector import dense_detector
    from lesionlab.detection.head import build_head
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
    pixels = generator(seed, "bench", "detection").integers(0, 256, (FRAMES_A_PASS, frame, frame, 3), dtype="uint8")
    images, contents = [Image.fromarray(each) for each in pixels], [(0, 0, frame, frame)] * FRAMES_A_PASS

    def plain(step: int) -> np.ndarray:
        _, windows = cut_windows(images[0], contents[0], WINDOW / frame, step / WINDOW, WINDOW)
        return classifier.model.predict(preprocess(windows, "caffe"), batch_size=BATCH, verbose=0)

    settings, dense = read_params().detect, {}
    for step in STEPS:
        backbone = DenseBackbone(classifier, step / WINDOW)
        dense[step] = dense_detector(backbone, build_head(backbone, seed), settings)

    def look_once(step: int) -> int:
        looks = dense[step].look(images, contents, WINDOW / frame)
        for _, features in looks:
            dense[step].judge(features)
        return len(looks[0][0])

    found = {step: look_once(step) for step in STEPS}  # and warm up
    classifier.model.predict(preprocess(np.zeros((BATCH, WINDOW, WINDOW, 3), "uint8"), "caffe"), verbose=0)
    seconds = {(step, way): [] for step in STEPS for way in ("plain", "ours")}
    for _ in progress(range(rounds), desc="bench, detection", unit="round"):
        for step in STEPS:
            started = time.perf_counter()
            windows = len(plain(step))
            seconds[step, "plain"].append(time.perf_counter() - started)
            started = time.perf_counter()
            look_once(step)
            seconds[step, "ours"].append((time.perf_counter() - started) / len(images))
            if windows != found[step]:
                raise RuntimeError(f"{windows} windows were cut but the dense map has {found[step]}")
    result = []
    for step, at_least in STEPS.items():
        took, ours = (statistics.median(seconds[step, way]) for way in ("plain", "ours"))
        counted = found[step] * multiply_adds(WINDOW, 0) / multiply_adds(frame, int(np.log2(32 / step)))
        name = f"detect dense, stride {step}, VGG16, {WINDOW} px windows"
        note = (
            f"{found[step]} windows of a frame of {frame} px; seconds a frame, ours looks at {len(images)} in a pass; "
            f"a frame without another of its size takes as long as a pass: {took / ours / len(images):.1f}"
        )
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
) -> None:
    """Print recall and precision of both ways, each at the threshold that its own validation scores gave."""
    params = read_params()
    start_keras(params.training.threads)  # before anything that imports Keras
    from lesionlab.data.cards import read_card
    from lesionlab.detection.run import Paths, frames_of_subsets
    from lesionlab.models.saved import load_classifier

    nowhere = Path()
    paths = Paths(model, raw, crops, split, proof, *[nowhere] * 5)
    frames = frames_of_subsets(paths, read_card(params.dataset), params)
    classifier, rate = load_classifier(model), params.detect.false_positives
    ways = {mode: describe_way(mode, classifier, frames, params) for mode in WAYS}
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


def describe_way(mode: str, classifier: "Classifier", frames: dict[str, list["Frame"]], params: Params) -> dict:
    """Recall, precision and false positives a frame on test frames with intervals; its threshold from validation."""
    from lesionlab.detection.froc import froc_curve, operating_metrics, sensitivity_at
    from lesionlab.detection.run import operating_threshold, train_and_detect

    rate = params.detect.false_positives
    params = params.model_copy(update={"detect": params.detect.model_copy(update={"mode": mode})})
    _, _, found = train_and_detect(classifier, frames, params)
    threshold = operating_threshold(found["val"].boxes, found["val"].frames, rate)
    test, how = found["test"], {"resamples": params.evaluate.resamples, "seed": params.seed}
    at_rate = sensitivity_at(froc_curve(test.boxes, test.frames), (rate,))["sensitivity"].iloc[0]
    figures = operating_metrics(test.boxes, test.frames, threshold, **how)
    return {"threshold": threshold, "recall_at_rate": float(at_rate), **figures}


if __name__ == "__main__":
    run(main, __doc__)
