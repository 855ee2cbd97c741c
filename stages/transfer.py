"""transfer: a new head on a frozen backbone.

reads   data/crops, data/split.csv, metrics/split.json, data/weights, datasets/<dataset>.yaml
writes  models/transfer/         model.json, model.weights.h5
        metrics/transfer.json    validation figures at the best epoch
        plots/transfer.csv       a row an epoch
params  dataset, seed, model, training, augment, transfer
"""

from pathlib import Path
from typing import Annotated

from typer import Option

from lesionlab.data.cards import read_card, resolve_model, resolve_transfer
from lesionlab.params import read_params
from lesionlab.stage import run


def main(
    crops: Annotated[Path, Option(help="folder of the crop stage")],
    split: Annotated[Path, Option(help="CSV of the split stage")],
    proof: Annotated[Path, Option(help="JSON of the split stage")],
    weights: Annotated[Path, Option(help="folder of the weights stage")],
    model: Annotated[Path, Option(help="folder to write the model to")],
    metrics: Annotated[Path, Option(help="JSON file to write")],
    history: Annotated[Path, Option(help="CSV file to write, a row an epoch")],
) -> None:
    from lesionlab import tracking
    from lesionlab.training.backend import start_keras

    params = read_params()
    tracking.prepare()
    start_keras(params.training.threads, params.training.dtype)  # before anything that imports Keras
    from lesionlab.models.networks import Architecture, build_network
    from lesionlab.training.run import Paths, run_training

    card = read_card(params.dataset)
    chosen = resolve_model(params.model, card)
    settings = resolve_transfer(params.transfer, card)
    architecture = Architecture(
        backbone=chosen.backbone,
        head_filters=settings.head_filters,
        pooling=settings.pooling,
        dense=settings.dense,
        dropout=settings.dropout,
        image_size=chosen.image_size,
        classes=card.classes,
    )
    network = build_network(architecture, params.seed, weights)
    paths = Paths(crops, split, proof, model, metrics, history)
    run_training("transfer", network, architecture, 0, settings, params, paths)


if __name__ == "__main__":
    run(main, __doc__)
