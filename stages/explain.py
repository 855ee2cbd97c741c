"""explain: what the fine-tuned network looked at, in pictures and, where masks are at hand, in figures.

reads   models/finetune, data/raw, data/crops, data/split.csv, metrics/split.json, datasets/<dataset>.yaml
writes  metrics/explain.json   share of heat inside lesions and pointing game, with intervals and both controls
        plots/explain.csv      the same, a row a lesion and method
        pictures/explain/      heat on crops and frames; the figures
params  dataset, seed, crop, training.batch_size, training.threads, evaluate.resamples, explain

The maps of the small CNN: the stage's command in dvc.yaml with --model models/baseline and other files to write.

One picture of your own, by occlusion:
        python -m lesionlab.explanation.occlusion --model models/finetune --image file.jpg --out found.png
"""

from pathlib import Path
from typing import Annotated

from typer import Option

from lesionlab.params import read_params
from lesionlab.stage import run


def main(
    model: Annotated[Path, Option(help="folder of the model")],
    raw: Annotated[Path, Option(help="folder that the download stage filled")],
    crops: Annotated[Path, Option(help="folder of the crop stage")],
    split: Annotated[Path, Option(help="CSV of the split stage")],
    proof: Annotated[Path, Option(help="JSON of the split stage")],
    metrics: Annotated[Path, Option(help="JSON file to write")],
    table: Annotated[Path, Option(help="CSV file to write")],
    pictures: Annotated[Path, Option(help="folder to write pictures to")],
) -> None:
    from lesionlab import tracking
    from lesionlab.training.backend import start_keras

    params = read_params()
    tracking.prepare()
    start_keras(params.training.threads)  # before anything that imports Keras
    from lesionlab.data.cards import read_card
    from lesionlab.explanation.run import Paths, run_explanation

    run_explanation(Paths(model, raw, crops, split, proof, metrics, table, pictures), read_card(params.dataset), params)


if __name__ == "__main__":
    run(main, __doc__)
