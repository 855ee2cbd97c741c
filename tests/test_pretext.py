import json

import numpy as np
import pytest

from lesionlab.data.weights import BUNDLED, BUNDLED_BACKBONE
from lesionlab.errors import InputError
from lesionlab.files import file_digest, read_json
from lesionlab.models.backbones import find_backbone
from lesionlab.pretext.pictures import MAP_SIZE, MAPS, MATERIALS, OBJECTS, SCALARS, draw_pictures
from lesionlab.seeds import generator

RECORD = BUNDLED.with_name(f"{BUNDLED_BACKBONE}.json")


def draw(seed=3, count=48):
    return draw_pictures(generator(seed, "test"), count, 64)


def test_pictures_have_the_documented_shapes_and_ranges():
    pictures = draw()
    assert pictures.images.shape == (48, 64, 64, 3)
    assert pictures.images.dtype == np.uint8
    assert pictures.maps.shape == (48, MAP_SIZE, MAP_SIZE, len(MAPS))
    assert pictures.scalars.shape == (48, len(SCALARS))
    assert np.isfinite(pictures.maps).all()
    assert np.isfinite(pictures.scalars).all()
    assert set(pictures.classes[:, 0]) <= set(range(len(OBJECTS)))
    assert pictures.classes[:, 1].max() < MATERIALS
    assert 60 < pictures.images.mean() < 190


def test_the_mask_is_where_the_object_is():
    pictures = draw(count=256)
    without = pictures.classes[:, 0] == 0
    mask = pictures.maps[..., MAPS.index("mask")].astype("float32")
    assert without.any()
    assert (mask[without] == 0).all()
    assert (pictures.classes[without, 2] == MATERIALS).all()
    assert mask[~without].max((1, 2)).min() > 0.2
    assert mask[~without][:, 2:6, 2:6].mean() > 2 * mask[~without][:, 0].mean()


def test_the_same_seed_draws_the_same_pictures_and_another_seed_others():
    first, second, other = draw(), draw(), draw(seed=4)
    for field in ("images", "classes", "maps", "scalars"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))
    assert (first.images != other.images).mean() > 0.5


def test_pictures_do_not_depend_on_the_number_of_processes():
    from lesionlab.pretext.training import CHUNK, make_pictures

    one, two = (make_pictures(CHUNK + 32, 5, "test", workers) for workers in (1, 2))
    assert one.images.shape[0] == CHUNK + 32
    np.testing.assert_array_equal(one.images, two.images)
    np.testing.assert_array_equal(one.maps, two.maps)


@pytest.mark.slow
def test_the_command_writes_the_same_bytes_twice_and_records_them(tmp_path):
    from lesionlab.pretext.__main__ import main

    settings = {"pictures": 64, "epochs": 1, "batch_size": 32, "learning_rate": 0.01, "seed": 7, "threads": 2}
    files = [tmp_path / folder / "small.weights.h5" for folder in ("first", "second")]
    for file in files:
        main(file, **settings)
    assert files[0].read_bytes() == files[1].read_bytes()
    record = read_json(tmp_path / "first" / "small.json")
    assert record["sha256"] == file_digest(files[0])
    assert record["seed"] == 7
    assert "--pictures 64 --epochs 1 --batch-size 32" in record["command"]
    assert {path.name for path in files[0].parent.iterdir()} == {"small.weights.h5", "small.json"}
    network = find_backbone(BUNDLED_BACKBONE).build(96)
    before = network.get_weights()
    network.load_weights(files[0])
    assert any((a != b).any() for a, b in zip(before, network.get_weights(), strict=True))


def test_a_batch_larger_than_the_pictures_is_refused(tmp_path):
    from lesionlab.pretext.__main__ import main

    with pytest.raises(InputError, match="only 8 pictures"):
        main(tmp_path / "x.weights.h5", pictures=8, batch_size=64)
    with pytest.raises(InputError, match=r"must end in \.weights\.h5"):
        main(tmp_path / "x.h5")
    assert list(tmp_path.iterdir()) == []


def test_the_bundled_file_is_the_recorded_one():
    record = json.loads(RECORD.read_text())
    assert file_digest(BUNDLED) == record["sha256"]
    assert BUNDLED.stat().st_size < 1_500_000
    assert record["command"].startswith("python -m lesionlab.pretext --out")
    assert record["backbone"] == BUNDLED_BACKBONE
    assert record["held_out"]["object"] > 0.6
    assert record["held_out"]["mask"] > 0.6


def test_the_bundled_weights_load_and_describe_pictures():
    backbone = find_backbone(BUNDLED_BACKBONE)
    network = backbone.build(96)
    network.load_weights(BUNDLED)
    noise = generator(1, "test").uniform(-1, 1, (4, 96, 96, 3)).astype("float32")
    features = np.asarray(network(noise, training=False)).mean((1, 2))
    assert np.isfinite(features).all()
    assert (features.std(0) > 0).mean() > 0.5  # few units are dead


def test_the_probe_measures_what_a_linear_classifier_can_read():
    from benchmarks.probe import probe

    rng = generator(2, "test")
    positive, fold = np.arange(200) % 2 == 0, np.arange(200) // 40
    features = rng.normal(size=(200, 5))
    blind = probe(features, positive, fold)
    assert 0.35 < blind["auc"]["mean"] < 0.65
    features[:, 3] += 10 * positive
    assert probe(features, positive, fold)["auc"] == {"mean": 1.0, "deviation": 0.0}
