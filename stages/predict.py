"""predict: what a model says of the validation and test crops, for the summary of a study.

reads   data/crops, data/split.csv, a model
writes  a CSV                id, subset, group, label, probability_<class>: the mean over evaluate.tta views
params  training.batch_size, training.threads, evaluate.tta
"""

from pathlib import Path
from typing import Annotated

from typer import Option

from lesionlab.params import read_params
from lesionlab.stage import run


def main(
    crops: Annotated[Path, Option(help="folder of the crop stage")],
    split: Annotated[Path, Option(help="CSV of the split stage")],
    model: Annotated[Path, Option(help="folder of the model")],
    predictions: Annotated[Path, Option(help="CSV file to write")],
) -> None:
    from lesionlab.training.backend import start_keras

    params = read_params()
    start_keras(params.training.threads)  # before anything that imports Keras
    from lesionlab.evaluation.predictions import average_views, predict_crops
    from lesionlab.files import read_images, read_index, read_split
    from lesionlab.models.saved import load_classifier
    from lesionlab.studies.predictions import SUBSETS, write_predictions

    index = read_split(split, read_index(crops))
    index = index[index["subset"].isin(SUBSETS)]
    classifier = load_classifier(model)
    seen = classifier, read_images(crops), index.index.to_numpy(), params.training.batch_size
    probabilities = average_views(*seen, max(1, params.evaluate.tta), predict_crops(*seen).logits)
    write_predictions(predictions, index, probabilities, classifier.description.architecture.classes)


if __name__ == "__main__":
    run(main, __doc__)
