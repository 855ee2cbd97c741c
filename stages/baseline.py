"""baseline: a small CNN from scratch, to know what the backbone adds.

reads   data/crops, data/split.csv, metrics/split.json, datasets/<dataset>.yaml
writes  models/baseline/         model.json, model.weights.h5
        metrics/baseline.json    validation figures at the best epoch
        plots/baseline.csv       a row an epoch
params  dataset, seed, model.image_size, training, augment, baseline
"""

from pathlib import Path
from typing import Annotated

from typer import Option

from lesionlab.data.cards import read_card, resolve_baseline, resolve_model
from lesionlab.params import read_params
from lesionlab.stage import run


def main(
    crops: Annotated[Path, Option(help="folder of the crop stage")],
    split: Annotated[Path, Option(help="CSV of the split stage")],
    proof: Annotated[Path, Option(help="JSON of the split stage")],
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
    settings = resolve_baseline(params.baseline, card)
    architecture = Architecture(
        backbone=None,
        filters=settings.filters,
        batch_normalization=settings.batch_normalization,
        attention=settings.attention,
        dense=settings.dense,
        dropout=settings.dropout,
        image_size=resolve_model(params.model, card).image_size,
        classes=card.classes,
    )
    network = build_network(architecture, params.seed)
    paths = Paths(crops, split, proof, model, metrics, history)
    run_training("baseline", network, architecture, 0, settings, params, paths)


if __name__ == "__main__":
    run(main, __doc__)
