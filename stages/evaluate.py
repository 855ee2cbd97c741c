"""evaluate: the three models on the test subset, with intervals.

reads   data/crops, data/split.csv, metrics/split.json, models/baseline, models/transfer, models/finetune
writes  metrics/evaluate.json   each metric as value, low, high (95 %, bootstrap over groups)
        plots/evaluate/         ROC, PR and confusion data as CSV
        pictures/evaluate/      the same to look at, and the worst mistakes
params  seed, training.batch_size, training.threads, evaluate
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
    model: Annotated[list[Path], Option(help="folder of a model; may be given several times")],
    metrics: Annotated[Path, Option(help="JSON file to write")],
    plots: Annotated[Path, Option(help="folder to write CSV files to")],
    pictures: Annotated[Path, Option(help="folder to write pictures to")],
) -> None:
    from lesionlab.training.backend import start_keras

    params = read_params()
    start_keras(params.training.threads)  # before anything that imports Keras
    from lesionlab.evaluation.run import Paths, run_evaluation

    paths = Paths(crops, split, proof, model, metrics, plots, pictures)
    run_evaluation(paths, params.evaluate, batch_size=params.training.batch_size, seed=params.seed)


if __name__ == "__main__":
    run(main, __doc__)
