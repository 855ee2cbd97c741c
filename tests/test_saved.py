"""The saved-model format: the same model back, the same bytes twice, and nothing that was tampered with."""

import json
import pickle

import h5py
import keras
import numpy as np
import pytest
from tiny_networks import BATCH, CLASSES, SIZE, THREADS, tiny_architecture, tiny_crops

from lesionlab.errors import InputError
from lesionlab.files import file_digest
from lesionlab.models.networks import build_network, softmax
from lesionlab.models.saved import Classifier, Description, load_classifier, save_classifier
from lesionlab.training.backend import environment


def a_classifier(backbone: str | None = "mobilenet_0.25", seed: int = 5, **changes: object) -> Classifier:
    content = {
        "architecture": tiny_architecture(backbone), "stage": "transfer", "dataset": "tiny", "protocol": "group",
        "seed": seed, "unfrozen_blocks": 0, "blocks": [], "threshold": 1 / 3, "environment": environment(THREADS),
    }  # fmt: skip
    description = Description(**content | changes)
    return Classifier(description, build_network(description.architecture, seed))


@pytest.fixture
def saved(tmp_path):
    save_classifier(tmp_path / "model", a_classifier())
    return tmp_path / "model"


def change_json(folder, **changes: object) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("backbone", [None, "mobilenet_0.25", "mobilenetv2_0.35", "vgg16"])
def test_the_same_logits_come_back_bit_for_bit(tmp_path, backbone):
    classifier = a_classifier(backbone)
    save_classifier(tmp_path / "model", classifier)
    loaded = load_classifier(tmp_path / "model")
    images, _ = tiny_crops(BATCH)
    before, after = classifier.logits(images, BATCH), loaded.logits(images, BATCH)
    assert np.ptp(before) > 0
    np.testing.assert_array_equal(before, after)


def test_attention_comes_back_and_a_model_from_before_it_has_none(tmp_path):
    images, _ = tiny_crops(BATCH)
    for attention in (True, False):
        folder = tmp_path / str(attention)
        classifier = a_classifier(architecture=tiny_architecture(None, attention=attention))
        save_classifier(folder, classifier)
        expected = classifier.logits(images, BATCH)
        np.testing.assert_array_equal(load_classifier(folder).logits(images, BATCH), expected)
        architecture = json.loads((folder / "model.json").read_text())["architecture"]
        assert architecture.pop("attention") is attention
        change_json(folder, architecture=architecture)
        if attention:
            with pytest.raises(InputError, match=r"does not fit the network that .* describes"):
                load_classifier(folder)
        else:
            np.testing.assert_array_equal(load_classifier(folder).logits(images, BATCH), expected)


def test_the_description_comes_back(saved):
    description = load_classifier(saved).description
    assert description.architecture == tiny_architecture("mobilenet_0.25")
    assert (description.stage, description.protocol, description.seed) == ("transfer", "group", 5)
    assert description.threshold == 1 / 3
    assert description.weights_sha256 == file_digest(saved / "model.weights.h5")
    assert description.environment["threads"] == THREADS


def test_the_same_weights_give_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        save_classifier(tmp_path / name, a_classifier())
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == ["model.json", "model.weights.h5"]
    for name in files:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_a_trained_model_is_saved_without_its_optimizer(tmp_path):
    classifier = a_classifier(None)
    save_classifier(tmp_path / "drawn", classifier)
    images, labels = tiny_crops(BATCH)
    classifier.model.compile(keras.optimizers.Adam(1e-3), "mse")
    classifier.model.train_on_batch(images / 255, np.eye(2)[labels])
    save_classifier(tmp_path / "trained", classifier)
    names = []
    for folder in ("drawn", "trained"):
        with h5py.File(tmp_path / folder / "model.weights.h5") as file:
            names.append([])
            file.visit(names[-1].append)
    assert names[0] == names[1]
    assert not any("optimizer" in name for name in names[1])
    logits = load_classifier(tmp_path / "trained").logits(images, BATCH)
    np.testing.assert_array_equal(logits, classifier.logits(images, BATCH))


def test_saving_again_replaces_the_model(saved):
    save_classifier(saved, a_classifier(seed=6))
    assert load_classifier(saved).description.seed == 6
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_only_json_and_numbers_are_in_the_files(saved):
    json.loads((saved / "model.json").read_text())
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads((saved / "model.weights.h5").read_bytes())
    kinds = set()
    with h5py.File(saved / "model.weights.h5") as file:
        file.visititems(lambda _, item: kinds.add(item.dtype.kind) if isinstance(item, h5py.Dataset) else None)
    assert kinds <= {"f", "u", "i"}


def test_a_changed_byte_in_the_weights_is_noticed(saved):
    path = saved / "model.weights.h5"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.weights\.h5: checksum differs from .*model\.json"):
        load_classifier(saved)


@pytest.mark.parametrize("name", ["model.json", "model.weights.h5"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(InputError, match=rf"{name}: not found; run"):
        load_classifier(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pickled": "gASV"}, "pickled: Extra inputs are not permitted"),
        ({"threshold": "high"}, "threshold: Input should be a valid number, unable to parse string as a number"),
        ({"architecture": {"backbone": None}}, "architecture.dense: Field required"),
        ({"seed": None}, "seed: Input should be a valid integer"),
    ],
)
def test_a_description_of_another_kind_is_refused(saved, changes, message):
    change_json(saved, **changes)
    with pytest.raises(InputError) as caught:
        load_classifier(saved)
    assert str(caught.value) == f"{saved / 'model.json'}: {message}; was it written by this version?"


def test_model_json_that_is_not_json_is_refused(saved):
    (saved / "model.json").write_text("{")
    with pytest.raises(InputError, match=r"model\.json: not valid JSON"):
        load_classifier(saved)


def test_weights_that_do_not_fit_the_description_are_refused(saved):
    change_json(saved, architecture=tiny_architecture("mobilenet_0.5").model_dump())
    with pytest.raises(InputError, match=r"model\.weights\.h5: does not fit the network that .*model\.json describes"):
        load_classifier(saved)


def test_an_unknown_backbone_in_model_json_is_refused(saved):
    change_json(saved, architecture=tiny_architecture("mobilenet_0.25").model_dump() | {"backbone": "vgg17"})
    with pytest.raises(InputError, match=r"'vgg17' is unknown"):
        load_classifier(saved)


def test_predict_is_the_softmax_of_the_logits_of_the_chosen_rows():
    classifier = a_classifier(temperature=2.0)
    images, _ = tiny_crops(13)
    rows = np.array([12, 0, 3, 4, 5, 6, 7, 8, 9, 1])
    probabilities = classifier.predict(images, rows, BATCH)
    assert probabilities.shape == (10, len(CLASSES))
    assert probabilities.dtype == np.float64
    logits = np.concatenate(
        [classifier.logits(images[rows[:BATCH]], BATCH), classifier.logits(images[rows[BATCH:]], BATCH)]
    )
    np.testing.assert_array_equal(probabilities, softmax(logits, 2.0))
    assert classifier.predict(images, rows[:0], BATCH).shape == (0, 2)


def test_a_crops_prediction_does_not_depend_on_its_neighbours():
    classifier = a_classifier()
    images, _ = tiny_crops(BATCH)
    alone = classifier.logits(images[2:3], BATCH)
    np.testing.assert_array_equal(alone[0], classifier.logits(images, BATCH)[2])
    assert images.shape[1] == SIZE
