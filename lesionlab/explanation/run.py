"""What the fine-tuned network looked at: heat on test crops and frames, and its agreement with lesion masks."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from lesionlab import tracking
from lesionlab.data.cards import Card
from lesionlab.data.crops import content_box
from lesionlab.data.readers import Frame, frames_by_subset, read_mask, read_rgb
from lesionlab.detection.windows import cut_windows
from lesionlab.errors import InputError
from lesionlab.explanation import agreement
from lesionlab.explanation.cam import METHODS, Method, attends, class_activation_maps, enlarge, rectified_layers
from lesionlab.explanation.pictures import Example, draw_agreement, draw_examples, draw_frames
from lesionlab.explanation.windows import COLUMNS, LesionWindows, cut_mask, evenly, lesion_windows_of
from lesionlab.files import (
    file_digest,
    read_images,
    read_index,
    read_json,
    read_split,
    whole_folder,
    write_json,
    write_table,
)
from lesionlab.models.networks import ATTENTION_MAP, build_network
from lesionlab.models.saved import Classifier, load_classifier
from lesionlab.params import Params
from lesionlab.seeds import derive_seed, generator

RANDOM_NETWORKS = 3  # whose weights are drawn again: one draw may favour the centre or the border by chance
FRAME_WINDOW, FRAME_STRIDE = 0.4, 0.25  # windows on whole frames: side in parts of the frame, step in parts of a window
FIGURES = ("share_inside", "pointing")
ATTENTION_NOTE = "\nattention: what the head weighs each place with, whatever the class"
WINDOW = ("x", "y", "width", "height")  # columns of the index: where a crop lies in its frame


@dataclass(frozen=True)
class Paths:
    """What the explain stage reads (model, raw, crops, split, proof) and writes (metrics, table, pictures)."""

    model: Path
    raw: Path
    crops: Path
    split: Path
    proof: Path
    metrics: Path
    table: Path
    pictures: Path


@dataclass(frozen=True)
class Case:
    """A test crop that is shown. row: in the index and the images. target: number of the class that is explained."""

    row: int
    target: int
    title: str  # two lines: the class explained and its probability; the crop's class


def run_explanation(paths: Paths, card: Card, params: Params) -> None:
    """Choose each method's layer on validation windows, measure and draw on the test subset, write everything.

    Data sets without masks get pictures alone, at the last layer.
    """
    started = time.perf_counter()
    settings, batch_size = params.explain, params.training.batch_size
    classifier = load_classifier(paths.model)
    index = read_split(paths.split, read_index(paths.crops))
    by_subset = frames_by_subset(card, paths.raw, index)
    frames = [frame for members in by_subset.values() for frame in members]
    windows = {}
    for subset in ("val", "test"):
        members = [frame for frame in by_subset.get(subset, []) if frame.mask is not None]
        windows[subset] = lesion_windows_of(
            evenly(members, settings.crops), card.classes, params.crop, settings.context,
            classifier.description.architecture.image_size, params.seed, f"explain, {subset}",
        ).thinned(settings.crops)  # fmt: skip
    layers = rectified_layers(classifier.model) if settings.layer == "auto" else [settings.layer]
    chosen, validation = choose_layers(classifier, layers, windows["val"], batch_size)
    proof = read_json(paths.proof)
    metrics = {
        "subset": "test",
        "protocol": proof["protocol"],
        "group_disjoint": proof["group_disjoint"],
        "grouped_by": proof["grouped_by"],
        "seed": params.seed,
        "context": settings.context,
        "lesions": len(windows["test"].table),
        "groups": windows["test"].table["group"].nunique(),
    }
    table = measure(classifier, chosen, windows["test"], batch_size, params.seed)
    figures = {}
    if len(table):
        figures = summarise(table, params.evaluate.resamples, params.seed)
        metrics["lesion_share"] = float(windows["test"].lesion.mean())
        for method, layer in chosen.items():
            metrics[method] = {"layer": layer, "validation_share_inside": validation[method, layer], **figures[method]}
    else:
        metrics |= {method: {"layer": layer} for method, layer in chosen.items()}
    with whole_folder(paths.pictures) as pictures:
        test = np.flatnonzero(index["subset"] == "test")
        images = read_images(paths.crops)
        cases = choose_cases(classifier, index, test, images, params)
        blocks = example_crops(classifier, chosen, cases, index, frames, images, params)
        note = (
            f"{card.name}, test crops, {paths.model.name}; heat: evidence for the class named first, scaled to each "
            f"map's maximum; outline: lesion{ATTENTION_NOTE * attends(classifier.model)}"
        )
        draw_examples(pictures / "crops.png", blocks, note)
        blocks = example_frames(classifier, chosen, cases, index, frames, params)
        if any(blocks.values()):
            note = (
                f"{card.name}, test frames of such crops (white square), {paths.model.name}; blue outline: lesion\n"
                f"heat: evidence for {card.classes[-1]}, the mean of windows over each pixel, weighted by their "
                f"probability; scaled to each map's maximum{ATTENTION_NOTE * attends(classifier.model)}"
            )
            draw_frames(pictures / "frames.png", blocks, note)
        if figures:
            title = f"{card.name}: {metrics['lesions']} lesions of {metrics['groups']} test groups; 95 % intervals"
            draw_agreement(pictures / "agreement.png", figures, title)
    write_table(paths.table, table)
    write_json(paths.metrics, metrics)
    tracking.log_stage(
        "explain",
        params={"seed": params.seed, "dataset": params.dataset, "explain": settings.model_dump()},
        history=None,
        metrics=figures,
        pictures=[paths.pictures],
        tags={"lesionlab.data": file_digest(paths.split), "lesionlab.protocol": proof["protocol"]},
        seconds=time.perf_counter() - started,
    )


def choose_layers(
    classifier: Classifier, layers: list[str], windows: LesionWindows, batch_size: int
) -> tuple[dict[Method, str], dict[tuple[Method, str], float]]:
    """Each method's layer: the one with the largest share of heat inside lesions; and all shares.

    windows: of the validation subset. Without any, the last layer. Attention, where the head has it, is at one layer.
    """
    if ATTENTION_MAP in layers:
        raise InputError(
            "params.yaml: explain.layer head_attention_map is what attention is read at, which is shown beside the "
            "others: set auto, or the layer of theirs"
        )
    fixed = {"attention": ATTENTION_MAP} if attends(classifier.model) else {}
    if not len(windows.images):
        return dict.fromkeys(METHODS, layers[-1]) | fixed, {}
    layers = [*layers, *fixed.values()]
    maps = class_activation_maps(classifier, layers, windows.images, _targets(classifier, windows), batch_size, "layer")
    size = windows.images.shape[1]
    shares = {
        key: float(agreement.share_inside(enlarge(cells, size), windows.lesion).mean()) for key, cells in maps.items()
    }
    best = {method: max((key for key in shares if key[0] == method), key=shares.get)[1] for method in METHODS}
    return best | fixed, shares


def measure(
    classifier: Classifier, layers: dict[Method, str], windows: LesionWindows, batch_size: int, seed: int
) -> pd.DataFrame:
    """Agreement of heat and lesion, a row a window and method: the network, randomised networks, a random map.

    Columns: method, those of the windows, lesion_share (part of the window that is lesion), probability (of the
    target class); share_inside and pointing, the same with randomised_ (mean over networks) and random_ before them,
    and similarity: rank correlation with the randomised networks' maps. A map that does not depend on what was learnt
    does as well without it. Source of that check: Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018.
    """
    count, size, lesion = len(windows.images), windows.images.shape[1], windows.lesion
    columns = [*FIGURES, *(f"{kind}_{name}" for kind in ("randomised", "random") for name in FIGURES), "similarity"]
    if not count:
        return pd.DataFrame(columns=["method", *COLUMNS, "lesion_share", "probability", *columns])
    targets, names = _targets(classifier, windows), sorted(set(layers.values()))
    probability = classifier.predict(windows.images, np.arange(count), batch_size, "explain")[np.arange(count), targets]

    def maps_of(network: Classifier, desc: str) -> dict[tuple[Method, str], np.ndarray]:
        return class_activation_maps(network, names, windows.images, targets, batch_size, desc)

    trained = maps_of(classifier, "explain")
    architecture = classifier.description.architecture
    randomised = [
        maps_of(Classifier(classifier.description, build_network(architecture, drawn)), "explain, randomised")
        for drawn in (derive_seed(seed, "explain", "randomised", k) for k in range(RANDOM_NETWORKS))
    ]
    tables = []
    for method, layer in layers.items():
        cells = trained[method, layer]
        noise = agreement.random_maps(count, cells.shape[1:], generator(seed, "explain", "random", layer))
        controls = [maps[method, layer] for maps in randomised]
        table = windows.table.assign(lesion_share=lesion.mean(axis=(1, 2)), probability=probability)
        table.insert(0, "method", method)
        for prefix, kinds in {"": [cells], "randomised_": controls, "random_": [noise]}.items():
            heats = [enlarge(kind, size) for kind in kinds]
            table[f"{prefix}share_inside"] = np.mean([agreement.share_inside(h, lesion) for h in heats], axis=0)
            table[f"{prefix}pointing"] = np.mean([agreement.pointing_game(h, lesion) for h in heats], axis=0)
        table["similarity"] = np.mean([agreement.rank_correlation(cells, control) for control in controls], axis=0)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def summarise(table: pd.DataFrame, resamples: int, seed: int) -> dict[str, dict]:
    """For each method every figure of `measure` as value, low, high, and times_random: share over the random map's."""
    start = list(table.columns).index(FIGURES[0])
    ratios = {
        "times_random": ("share_inside", "random_share_inside"),
        "times_randomised": ("share_inside", "randomised_share_inside"),
    }
    return {
        method: agreement.group_bootstrap(rows[table.columns[start:]], rows["group"], ratios, resamples, seed)
        for method, rows in table.groupby("method", sort=False)
    }


def choose_cases(
    classifier: Classifier, index: pd.DataFrame, rows: np.ndarray, images: np.ndarray, params: Params
) -> dict[str, list[Case]]:
    """Test crops that the network got right, got wrong (the surest first), and was least sure of, by kind.

    rows: of the test subset in `index` and `images`; at most `explain.crops` are looked at, drawn at random.
    """
    settings, batch_size = params.explain, params.training.batch_size
    classes = classifier.description.architecture.classes
    rng = generator(params.seed, "explain", "examples")
    rows = np.sort(rng.choice(rows, min(settings.crops, len(rows)), replace=False))
    probabilities = classifier.predict(images, rows, batch_size, "explain crops")
    labels = index["label"].iloc[rows].map({name: k for k, name in enumerate(classes)}).to_numpy()
    threshold = classifier.description.threshold
    if threshold is None:
        predicted = probabilities.argmax(axis=1)
        ordered = np.sort(probabilities, axis=1)
        margin = ordered[:, -1] - ordered[:, -2]
    else:
        predicted = (probabilities[:, -1] >= threshold).astype(int)
        margin = np.abs(probabilities[:, -1] - threshold)
    # Of two classes the lesion is explained, also where it was not called: what speaks for it.
    targets = np.full(len(rows), len(classes) - 1) if len(classes) == 2 else predicted
    right, wrong = np.flatnonzero(predicted == labels), np.flatnonzero(predicted != labels)
    # Where the lesion is explained, correct cases are lesions: a map of background shows where there is none.
    shown = right[labels[right] == targets[right]]
    surest_wrong = wrong[np.argsort(-margin[wrong], kind="stable")][: settings.examples]
    nearest = np.setdiff1d(np.argsort(margin, kind="stable"), surest_wrong, assume_unique=True)
    chosen = {
        "correct, drawn at random": rng.permutation(shown)[: settings.examples],
        "wrong, the surest first": surest_wrong,
        "uncertain: of the others, those called by the smallest margin": nearest[: settings.examples],
    }
    return {
        kind: [
            Case(
                int(rows[k]),
                int(targets[k]),
                f"{classes[targets[k]]} {probabilities[k, targets[k]]:.2f}\nis {classes[labels[k]]}",
            )
            for k in members
        ]
        for kind, members in chosen.items()
    }


def example_crops(
    classifier: Classifier,
    layers: dict[Method, str],
    cases: dict[str, list[Case]],
    index: pd.DataFrame,
    frames: list[Frame],
    images: np.ndarray,
    params: Params,
) -> dict[str, list[Example]]:
    """The crops of the cases with their heat, by kind."""
    by_name = {frame.name: frame for frame in frames}
    blocks = {}
    for kind, members in cases.items():
        pixels = np.asarray(images[[case.row for case in members]])
        targets = np.array([case.target for case in members], dtype=int)
        maps = class_activation_maps(
            classifier, sorted(set(layers.values())), pixels, targets, params.training.batch_size, "explain crops"
        )
        heat = {method: enlarge(maps[method, layer], pixels.shape[1]) for method, layer in layers.items()}
        blocks[kind] = [
            Example(
                case.title,
                pixels[position],
                _mask_of_crop(by_name[index["frame"].iloc[case.row]], index.iloc[case.row], pixels.shape[1], params),
                {method: maps[position] for method, maps in heat.items()},
            )
            for position, case in enumerate(members)
        ]
    return blocks


def example_frames(
    classifier: Classifier,
    layers: dict[Method, str],
    cases: dict[str, list[Case]],
    index: pd.DataFrame,
    frames: list[Frame],
    params: Params,
) -> dict[str, list[Example]]:
    """Whole frames of the first cases of each kind, at most `explain.frames`, each frame once a kind.

    Frames that have a class themselves are left out: their crop is the whole.
    """
    by_name = {frame.name: frame for frame in frames if frame.label is None}
    blocks: dict[str, list[Example]] = {}
    for kind, members in cases.items():
        first: dict[str, Case] = {}
        for case in members:
            first.setdefault(index["frame"].iloc[case.row], case)
        blocks[kind] = [
            replace(
                explain_frame(classifier, layers, by_name[name], params),
                title="\n".join([name, ", ".join(case.title.splitlines())]),
                window=tuple(int(index[side].iloc[case.row]) for side in WINDOW),
            )
            for name, case in [pair for pair in first.items() if pair[0] in by_name][: params.explain.frames]
        ]
    return blocks


def explain_frame(classifier: Classifier, layers: dict[Method, str], frame: Frame, params: Params) -> Example:
    """A whole frame with, at each pixel, the mean heat of the windows over it: evidence for the last class.

    Each window's heat is weighted by its probability of that class: every window has some evidence for it.
    """
    pixels = read_rgb(frame.image)
    size = classifier.description.architecture.image_size
    content = content_box(pixels)
    boxes, crops = cut_windows(Image.fromarray(pixels), content, FRAME_WINDOW, FRAME_STRIDE, size)
    targets = np.full(len(crops), len(classifier.description.architecture.classes) - 1)
    maps = class_activation_maps(
        classifier, sorted(set(layers.values())), crops, targets, params.training.batch_size, "explain frame"
    )
    rows = np.arange(len(crops))
    weights = classifier.predict(crops, rows, params.training.batch_size, "explain frame")[:, -1]
    side = int(boxes[0, 2])
    count = np.zeros(pixels.shape[:2])
    for x, y, _, _ in boxes:
        count[y : y + side, x : x + side] += 1
    heat = {}
    for method, layer in layers.items():
        total = np.zeros(pixels.shape[:2])
        weighted = enlarge(maps[method, layer], side) * weights[:, None, None]
        for (x, y, _, _), part in zip(boxes, weighted, strict=True):
            total[y : y + side, x : x + side] += part
        heat[method] = total / np.maximum(count, 1)
    mask = None
    if frame.mask is not None:
        mask = read_mask(frame.mask, params.crop.mask_threshold, pixels.shape[1::-1], frame.image)
    return Example(frame.name, pixels, mask, heat)


def _mask_of_crop(frame: Frame, row: pd.Series, size: int, params: Params) -> np.ndarray | None:
    """The lesion in a crop of the crop stage, (size, size); None for a frame without a mask."""
    if frame.mask is None:
        return None
    pixels = read_rgb(frame.image)
    mask = read_mask(frame.mask, params.crop.mask_threshold, pixels.shape[1::-1], frame.image)
    window = None if frame.label is not None else tuple(int(row[name]) for name in WINDOW)
    return cut_mask(mask, content_box(pixels), window, size, params.crop.whole_image)


def _targets(classifier: Classifier, windows: LesionWindows) -> np.ndarray:
    """The class number of each window's lesion."""
    return windows.table["label"].map(classifier.description.architecture.classes.index).to_numpy()
