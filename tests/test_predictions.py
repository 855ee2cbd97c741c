"""Predictions for the evaluation: logits, dropout passes and views of small networks."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import small_params, write_yaml_file
from tiny_networks import BATCH, SIZE, THREADS, tiny_architecture, tiny_crops

import stages.predict
from lesionlab.evaluation.predictions import VIEWS, average_views, predict_crops
from lesionlab.files import INDEX_COLUMNS, write_table
from lesionlab.models.networks import build_network, softmax
from lesionlab.models.saved import Classifier, Description, save_classifier
from lesionlab.training.backend import environment


def a_classifier(**changes: object) -> Classifier:
    architecture = tiny_architecture(None, **changes)
    description = Description(
        architecture=architecture, stage="baseline", dataset="tiny", protocol="group", seed=1, unfrozen_blocks=None,
        blocks=[], threshold=0.5, temperature=1.7, environment=environment(THREADS),
    )  # fmt: skip
    return Classifier(description, build_network(architecture, 1))


IMAGES, _ = tiny_crops(20)
ROWS = np.array([3, 4, 7, 8, 9, 11, 13, 14, 15, 16, 19])


@pytest.mark.parametrize("passes", [0, 4])
def test_the_logits_are_those_of_the_classifier(passes):
    classifier = a_classifier()
    found = predict_crops(classifier, IMAGES, ROWS, BATCH, passes=passes)
    assert (found.passes is None) == (passes == 0)
    expected = classifier.predict(IMAGES, ROWS, BATCH)
    np.testing.assert_allclose(softmax(found.logits, 1.7), expected, atol=1e-6)


def test_passes_are_what_keras_gives_on_average():
    """The mean and spread over many passes against the network itself in training mode."""
    classifier = a_classifier(dropout=0.5)
    found = predict_crops(classifier, IMAGES, ROWS, BATCH, passes=3000, seed=1)
    assert found.passes.shape == (3000, len(ROWS), 2)
    inputs = IMAGES[ROWS].astype("float32") / 127.5 - 1
    drawn = np.stack([softmax(np.asarray(classifier.model(inputs, training=True)), 1.7) for _ in range(600)])
    spread = drawn.std(axis=0)
    assert spread.max() > 0.01
    np.testing.assert_allclose(found.passes.mean(axis=0), drawn.mean(axis=0), atol=0.25 * spread.max())
    np.testing.assert_allclose(found.passes.std(axis=0), spread, rtol=0.15)


def test_the_seed_decides_the_passes():
    classifier = a_classifier()
    first, again, other = (
        predict_crops(classifier, IMAGES, ROWS, BATCH, passes=3, seed=seed).passes for seed in (1, 1, 2)
    )
    assert (first == again).all()
    assert (first != other).any()
    assert (first[0] != first[1]).any()


def test_a_network_without_dropout_has_no_passes():
    assert predict_crops(a_classifier(dropout=0.0), IMAGES, ROWS, BATCH, passes=5).passes is None


def test_the_views_are_the_eight_symmetries_of_a_square():
    image = np.arange(SIZE * SIZE * 3).reshape(1, SIZE, SIZE, 3)
    views = {view(image).tobytes() for view in VIEWS}
    assert len(views) == 8
    assert views == {
        np.rot90(flip, turn, axes=(1, 2)).tobytes() for flip in (image, image[:, ::-1]) for turn in range(4)
    }
    assert (VIEWS[0](image) == image).all()


def test_averaged_views_are_the_mean_over_turned_crops():
    classifier = a_classifier()
    plain = predict_crops(classifier, IMAGES, ROWS, BATCH).logits
    found = average_views(classifier, IMAGES, ROWS, BATCH, 3, plain)
    turned = [IMAGES, IMAGES[:, :, ::-1], IMAGES[:, ::-1]]
    expected = np.mean([classifier.predict(np.ascontiguousarray(view), ROWS, BATCH) for view in turned], axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_eight_views_do_not_care_how_a_crop_is_turned():
    classifier = a_classifier()
    results = []
    for images in (IMAGES, np.ascontiguousarray(np.rot90(IMAGES, 1, axes=(1, 2)))):
        plain = predict_crops(classifier, images, ROWS, BATCH).logits
        results.append(average_views(classifier, images, ROWS, BATCH, 8, plain))
    np.testing.assert_allclose(*results, atol=1e-5)


@pytest.mark.parametrize("views", [0, 2])
def test_the_predict_stage_averages_as_many_views_as_asked_for(tmp_path, monkeypatch, views):
    """Of validation and test crops alike, so that a threshold belongs to what it is applied to."""
    classifier = a_classifier()
    images, rows = np.ascontiguousarray(IMAGES), np.array([0, 1, 2, 4, 5])
    index = pd.DataFrame(dict.fromkeys(INDEX_COLUMNS, 0), index=range(len(images)))
    index = index.assign(id=index.index, label=classifier.description.architecture.classes[0], group="g")
    subsets = np.full(len(images), "train", dtype=object)
    subsets[rows] = ["val", "test", "test", "val", "test"]
    monkeypatch.chdir(tmp_path)
    Path("crops").mkdir()
    np.save("crops/images.npy", images)
    write_table(Path("crops/index.csv"), index)
    write_table(Path("split.csv"), index[["id"]].assign(fold=0, subset=subsets))
    save_classifier(Path("model"), classifier)
    write_yaml_file(Path("params.yaml"), small_params({"evaluate.tta": views}))
    stages.predict.main(Path("crops"), Path("split.csv"), Path("model"), Path("said.csv"))
    said = pd.read_csv("said.csv")
    assert said["id"].tolist() == rows.tolist()
    seen = [images, images[:, :, ::-1]][: max(1, views)]
    expected = np.mean([classifier.predict(np.ascontiguousarray(one), rows, BATCH) for one in seen], axis=0)
    np.testing.assert_allclose(said.filter(like="probability_"), expected, atol=2e-6)
    assert np.ptp([classifier.predict(one, rows, BATCH) for one in (images, images[:, :, ::-1])], axis=0).max() > 1e-4
