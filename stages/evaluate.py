"""evaluate: the three models, their ensemble and colour controls on the test subset, with intervals.

reads   data/crops, data/split.csv, metrics/split.json, models/baseline, models/transfer, models/finetune
writes  metrics/evaluate.json   headline metrics as value, low, high (95 %, bootstrap over groups); chance;
                                comparison; warning
        plots/evaluate/         as CSV: figures, comparison, calibration, uncertainty, subgroups; for each model
                                roc, pr, confusion, reliability, risk_coverage, predictions (a row a test crop)
        pictures/evaluate/      the same to look at, and the worst mistakes
params  seed, training.batch_size, training.threads, training.sensitivity, evaluate
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
    member: Annotated[
        list[Path] | None, Option(help="folder of a model of the ensemble, instead of those that params.yaml names")
    ] = None,
) -> None:
    from lesionlab import tracking
    from lesionlab.training.backend import start_keras

    params = read_params()
    tracking.prepare()
    start_keras(params.training.threads)  # before anything that imports Keras
    from lesionlab.evaluation.run import Paths, run_evaluation
    from lesionlab.evaluation.table import evaluation_table
    from lesionlab.files import read_table

    paths = Paths(crops, split, proof, model, member or [], metrics, plots, pictures)
    written = run_evaluation(
        paths,
        params.evaluate,
        batch_size=params.training.batch_size,
        sensitivity=params.training.sensitivity,
        seed=params.seed,
    )
    print("\n".join(evaluation_table(written, read_table(plots / "subgroups.csv", ("model", "column", "level")))))


if __name__ == "__main__":
    run(main, __doc__)
