"""finetune: train on from the transfer model with the last blocks of its backbone unfrozen.

reads   data/crops, data/split.csv, metrics/split.json, models/transfer
writes  models/finetune/         model.json, model.weights.h5
        metrics/finetune.json    validation figures at the best epoch
        plots/finetune.csv       a row an epoch
params  dataset, seed, training, augment, finetune
"""

from pathlib import Path
from typing import Annotated

from typer import Option

from lesionlab.params import read_params
from lesionlab.stage import run


def main(
    crops: Annotated[Path, Option(help="folder of the crop stage")],
    split: Annotated[Path, Option(help="CSV of the split stage")],
    proof: Annotated[Path, Option(help="JSON of the split stage")],
    start: Annotated[Path, Option(help="model to train on from: models/transfer")],
    model: Annotated[Path, Option(help="folder to write the model to")],
    metrics: Annotated[Path, Option(help="JSON file to write")],
    history: Annotated[Path, Option(help="CSV file to write, a row an epoch")],
) -> None:
    from lesionlab import tracking
    from lesionlab.training.backend import start_keras

    params = read_params()
    tracking.prepare()
    start_keras(params.training.threads, params.training.dtype)  # before anything that imports Keras
    from lesionlab.models.saved import load_classifier
    from lesionlab.training.run import Paths, run_training

    settings = params.finetune
    transfer = load_classifier(start)
    architecture = transfer.description.architecture
    paths = Paths(crops, split, proof, model, metrics, history)
    blocks, normalization = settings.unfrozen_blocks, settings.batch_normalization == "trained"
    network = transfer.model
    run_training("finetune", network, architecture, blocks, settings, params, paths, normalization=normalization)


if __name__ == "__main__":
    run(main, __doc__)
