"""Attention that is taught: where lesions lie on the cells of a map, and what training makes of it."""

from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_networks import BATCH, tiny_architecture, tiny_inputs, tiny_task, training_params

from lesionlab.data.crops import lesion_cells
from lesionlab.data.weights import fetch_weights
from lesionlab.errors import InputError
from lesionlab.models.backbones import find_backbone, preprocess
from lesionlab.models.networks import build_network, freeze, prefix_of, with_attention
from lesionlab.training import resume
from lesionlab.training.augmentation import augment, draw_augmentation
from lesionlab.training.fit import fit
from lesionlab.training.lesions import Attention, Lesions
from lesionlab.training.prefix import PLAIN
from lesionlab.training.run import teach_attention

SIZE = 96  # a map of 3 x 3 cells
ARCHITECTURE = tiny_architecture("mobilenet_0.25", image_size=SIZE, pooling="attention", dense=0, dropout=0.0)
TAUGHT = {
    "training__lesion_attention": 1.0, "finetune__epochs": 4, "finetune__keep": "last", "finetune__learning_rate": 3e-3,
}  # fmt: skip


def scenes(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise with a bright square in one of the four corners' cells, whose colour tells the class; masks; labels."""
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(40, 90, (count, SIZE, SIZE, 3)), np.arange(count) % 2
    masks = np.zeros((count, SIZE, SIZE), "uint8")
    for number, (down, across) in enumerate(rng.integers(0, 2, (count, 2)) * 60):
        images[number, down + 4 : down + 32, across + 4 : across + 32, labels[number]] += 150
        masks[number, down + 4 : down + 32, across + 4 : across + 32] = 255
    return images.astype("uint8"), masks, labels


def read_plain(covered: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    rows = np.arange(len(covered))
    return Lesions(covered, shape, training_params().augment, 1, rows).read(rows, np.full(len(rows), PLAIN))


@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_shares_of_any_map_sum_to_one_where_there_is_lesion(side, rows, columns, seed):
    covered = np.random.default_rng(seed).integers(1, 256, (3, side, side)).astype("uint8")
    covered[0], covered[1] = 0, 255
    shares, weights = read_plain(covered, (rows, columns))
    assert shares.shape == (3, rows * columns)
    assert shares.dtype == weights.dtype == np.float32
    np.testing.assert_allclose(weights, [0, 1.5, 1.5], rtol=1e-6, err_msg="their mean is 1")
    assert not shares[0].any()
    np.testing.assert_allclose(shares[1], 1 / (rows * columns), rtol=1e-5)
    np.testing.assert_allclose(shares.sum(axis=1), [0, 1, 1], rtol=1e-5)


def test_a_lesion_across_two_cells_is_shared_by_what_lies_in_each():
    covered = np.zeros((1, 4, 4), "uint8")
    covered[0, 0, 1:] = 255  # of 4 columns the second; the third and the fourth are the other half
    shares, _ = read_plain(covered, (2, 2))
    np.testing.assert_allclose(shares, [[1 / 3, 2 / 3, 0, 0]], rtol=1e-6)
    shares, _ = read_plain(covered, (1, 3))  # thirds hold 4/3 columns each
    np.testing.assert_allclose(shares, [[1 / 9, 4 / 9, 4 / 9]], rtol=1e-6)


def test_lesions_move_as_their_crops_do():
    """Half of each crop's pixels are lesion, or none: what is left of them is that of the augmented picture."""
    _, masks, _ = scenes(12)
    settings = training_params(augment__rotation=0.2, augment__zoom=0.3, augment__vertical_flip=True).augment
    settings = settings.model_copy(update={"brightness": 0.0, "contrast": 0.0, "horizontal_flip": True})
    lesions = Lesions(lesion_cells(masks), (3, 3), settings, 7, np.arange(len(masks)))
    rows, versions = np.array([3, 8, 0, 11]), np.array([0, 5, 5, PLAIN])
    shares, weights = lesions.read(rows, versions)
    assert weights.tolist() == [1] * 4
    for row, version, found in zip(rows, versions, shares, strict=True):
        picture = np.repeat(masks[row][None, ..., None], 3, axis=-1)
        if version != PLAIN:
            picture = augment(picture, draw_augmentation(settings, 7, version, len(masks))[row : row + 1])
        cells = np.asarray(picture[0, ..., 0], float).reshape(3, 32, 3, 32).mean(axis=(1, 3)).ravel()
        np.testing.assert_allclose(found, cells / cells.sum(), atol=0.03)
    assert np.abs(shares[1] - read_plain(lesion_cells(masks), (3, 3))[0][8]).max() > 0.05


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights that see something, from the stage that fetches them."""
    folder = tmp_path_factory.mktemp("weights")
    fetch_weights(find_backbone("mobilenet_0.25"), "bundled", folder, None)
    return folder


def train_taught(weights: Path, blocks: int = 1, lesions: bool = True, cache=None, states=None, **changes: object):
    """A network of attention through `fit`, as the finetune stage does it: the network and its Fit."""
    images, masks, labels = scenes(40)
    params = training_params(**TAUGHT | changes)
    network = build_network(ARCHITECTURE, params.seed, weights)
    boundary = ARCHITECTURE.boundary(blocks)
    suffix = freeze(network, boundary)
    prefix = prefix_of(network, boundary)
    inputs = tiny_inputs(images, ARCHITECTURE.preprocessing, params, prefix=prefix, cache=cache)
    where = Lesions(lesion_cells(masks), (3, 3), params.augment, params.seed, np.arange(32))
    attention = Attention(with_attention(network, boundary), where) if lesions else None
    result = fit(
        suffix, inputs, tiny_task(labels, 32), params.finetune, params.training, stage="finetune", seed=params.seed,
        copies=2, states=states, attention=attention,
    )  # fmt: skip
    return network, result


def attention_on_lesions(network: keras.Model) -> float:
    """Share of attention that lies on lesions of crops that nobody trained on."""
    images, masks, _ = scenes(BATCH, seed=1)
    attention = keras.Model(network.input, network.get_layer("head_attention").output)
    weights = np.asarray(attention.predict_on_batch(preprocess(images, ARCHITECTURE.preprocessing)))
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    return float((weights * (read_plain(lesion_cells(masks), (3, 3))[0] > 0)).sum(axis=1).mean())


def test_attention_learns_where_lesions_are_and_only_where_it_is_taught(tmp_path, weights):
    taught, result = train_taught(weights, cache=tmp_path, finetune__epochs=12)
    loss = result.history["attention_loss"]
    assert loss.iloc[-1] < 0.5 * loss.iloc[0]
    untaught, other = train_taught(weights, cache=tmp_path, finetune__epochs=12, lesions=False)
    assert "attention_loss" not in other.history
    assert attention_on_lesions(taught) > attention_on_lesions(untaught) + 0.3


@pytest.mark.parametrize("blocks", [0, 1])
def test_taught_networks_have_the_same_bits_with_and_without_the_cache(tmp_path, weights, blocks):
    (cached, result), (other, other_result) = (
        train_taught(weights, blocks, cache=tmp_path),
        train_taught(weights, blocks),
    )
    for a, b in zip(cached.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert result.history.equals(other_result.history)
    assert list(result.history)[:4] == ["epoch", "loss", "accuracy", "attention_loss"]
    assert np.isfinite(result.history.to_numpy()).all()


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(resume, "SECONDS_BETWEEN_STATES", 0.0)
    expected, expected_result = train_taught(weights)
    read, steps = Lesions.read, []

    def dies(self, rows, versions):
        steps.append(len(steps))
        if len(steps) == 10:  # in the third epoch of four steps each
            raise KeyboardInterrupt
        return read(self, rows, versions)

    monkeypatch.setattr(Lesions, "read", dies)
    with pytest.raises(KeyboardInterrupt):
        train_taught(weights, states=tmp_path)
    network, result = train_taught(weights, states=tmp_path)
    assert len(steps) == 10 + 2 * 4
    for a, b in zip(network.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert result.history.equals(expected_result.history)


def test_masks_of_validation_crops_are_never_read(weights, monkeypatch):
    read, seen = Lesions.read, set()

    def noted(self, rows, versions):
        seen.update(rows.tolist())
        return read(self, rows, versions)

    monkeypatch.setattr(Lesions, "read", noted)
    train_taught(weights, finetune__epochs=1)
    assert seen == set(range(32))


def test_what_cannot_be_taught_is_refused(tmp_path):
    how = tmp_path, tiny_task(np.arange(6) % 2, 3), training_params().augment, 1
    plain, attending = (build_network(each, 1) for each in (tiny_architecture("mobilenet_0.25"), ARCHITECTURE))
    with pytest.raises(InputError, match=r"this head has none; set transfer\.pooling to attention"):
        teach_attention(plain, None, *how)
    with pytest.raises(InputError, match=r"lesions\.npy: not found, since the data set has no masks"):
        teach_attention(attending, None, *how)
    covered = np.zeros((6, 12, 12), "uint8")
    covered[4] = 9  # of a validation crop
    np.save(tmp_path / "lesions.npy", covered)
    with pytest.raises(InputError, match=r"no training crop holds lesion; set crop\.mask_threshold in params"):
        teach_attention(attending, None, *how)
    covered[1] = 9
    np.save(tmp_path / "lesions.npy", covered)
    assert teach_attention(attending, None, *how).lesions.shape == (3, 3)
    with pytest.raises(ValueError, match="mixup mixes crops whose lesions lie in different places"):
        training_params(training__mixup=0.4, training__lesion_attention=1.0)
