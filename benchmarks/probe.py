"""probe: how much a linear classifier reads from the frozen features of mobilenet_0.25.

reads   data/crops, data/split.csv (groups never cross its folds), weight files
writes  benchmarks/probe.json  accuracy and AUC of each set of weights, mean and deviation over the folds

Features are averaged over the picture, standardised on the training folds and classified by logistic regression
with a fixed C; every fold is the test fold once. Nothing is chosen by these figures.
"""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from typer import Option

from lesionlab.data.weights import BUNDLED, BUNDLED_BACKBONE
from lesionlab.errors import InputError
from lesionlab.files import file_digest, read_images, read_index, read_split, write_json
from lesionlab.models.backbones import Backbone, find_backbone, preprocess
from lesionlab.stage import run
from lesionlab.training.backend import environment, start_keras

if TYPE_CHECKING:
    import keras

REGULARISATION = 0.1  # C of the logistic regression
BATCH = 256
LABELS = ("background", "polyp")


def load_backbone(backbone: Backbone, weights: str, size: int, seed: int) -> "keras.Model":
    """The network with the weights 'bundled', 'none' (random by `seed`) or those of a file.

    Raises InputError when the file is missing or belongs to another network.
    """
    import keras

    keras.utils.set_random_seed(seed)
    network = backbone.build(size)
    if weights == "none":
        return network
    path = BUNDLED if weights == "bundled" else Path(weights)
    if not path.is_file():
        raise InputError(f"--weights {weights}: neither bundled, none nor a file")
    try:
        network.load_weights(path)
    except (ValueError, OSError) as error:
        raise InputError(f"--weights {weights}: not weights of {backbone.name} ({error})") from None
    return network


def pooled_features(network: "keras.Model", images: np.ndarray, backbone: Backbone) -> np.ndarray:
    """Feature maps averaged over the picture: (n, size, size, 3) uint8 to (n, channels) float32."""
    parts = []
    for start in range(0, len(images), BATCH):
        batch = preprocess(images[start : start + BATCH], backbone.preprocessing)
        parts.append(np.asarray(network(batch, training=False)).mean(axis=(1, 2)))
    return np.concatenate(parts)


def probe(features: np.ndarray, positive: np.ndarray, fold: np.ndarray) -> dict[str, dict[str, float]]:
    """Mean and sample deviation over the folds of a linear classifier's accuracy and AUC, both in [0, 1].

    features: (n, channels). positive: (n,) bool. fold: (n,) number of the fold in which a row is tested.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    figures = {"accuracy": [], "auc": []}
    for number in np.unique(fold):
        test = fold == number
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=REGULARISATION, max_iter=2000))
        score = classifier.fit(features[~test], positive[~test]).decision_function(features[test])
        figures["accuracy"].append(np.mean((score > 0) == positive[test]))
        figures["auc"].append(roc_auc_score(positive[test], score))
    return {
        key: {"mean": float(np.mean(values)), "deviation": float(np.std(values, ddof=1))}
        for key, values in figures.items()
    }


def main(
    crops: Annotated[Path, Option(help="folder of the crop stage")],
    split: Annotated[Path, Option(help="CSV of the split stage")],
    weights: Annotated[list[str], Option(help="bundled, none or a weight file; may be repeated")],
    dataset: Annotated[str | None, Option(help="name of the data set, for the record")] = None,
    out: Annotated[Path, Option(help="JSON file to write")] = Path("benchmarks/probe.json"),
    seed: Annotated[int, Option(help="of the random weights")] = 42,
    threads: Annotated[int, Option(help="threads of TensorFlow")] = 2,
) -> None:
    """Probe each set of weights and write the record. Raises InputError for unusable inputs."""
    start_keras(threads)  # before anything that imports Keras
    table = read_split(split, read_index(crops))
    if sorted(table["label"].unique()) != sorted(LABELS):
        raise InputError(f"{crops / 'index.csv'}: the probe needs the labels {' and '.join(LABELS)}")
    images = read_images(crops)
    positive, fold = (table["label"] == "polyp").to_numpy(), table["fold"].to_numpy()
    backbone = find_backbone(BUNDLED_BACKBONE)
    results = {}
    for name in weights:
        network = load_backbone(backbone, name, images.shape[1], seed)
        path = {"bundled": BUNDLED, "none": None}.get(name, Path(name))
        figures = probe(pooled_features(network, images, backbone), positive, fold)
        results[Path(name).name] = {"sha256": path and file_digest(path), **figures}
        line = ", ".join(f"{key} {value['mean']:.3f} ± {value['deviation']:.3f}" for key, value in figures.items())
        print(f"{name}: {line}")
    command = [word if not Path(word).is_absolute() else Path(word).name for word in sys.argv[1:]]
    record = {
        "protocol": "linear probe: average-pooled features, standardised, logistic regression, grouped folds",
        "backbone": backbone.name,
        "regularisation": REGULARISATION,
        "crops": {
            "dataset": dataset,
            "count": len(table),
            "polyp": int(positive.sum()),
            "frames": int(table["frame"].nunique()),
            "size": images.shape[1],
            "sha256": file_digest(crops / "images.npy"),
        },
        "folds": int(table["fold"].nunique()),
        "seed": seed,
        "command": shlex.join(["python", "-m", "benchmarks.probe", *command]),
        "environment": environment(threads),
        "weights": results,
    }
    write_json(out, record)


if __name__ == "__main__":
    run(main, __doc__, stage=False)
