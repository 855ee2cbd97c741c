"""Tile maps: every tile of a picture made of known patches gets its patch's class, on paper and in the pictures."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny import write_card
from tiny_networks import SIZE, tiny_architecture

import stages.detect
from lesionlab.detection import tiles
from lesionlab.detection.pictures import CLASS_COLOURS, class_colours
from lesionlab.detection.tiles import NO_TILE, classify_tiles, map_names, save_maps
from lesionlab.errors import InputError
from lesionlab.models.networks import build_network
from lesionlab.models.saved import Classifier, Description, load_classifier, save_classifier

CLASSES = ["red stroma", "green", "blue"]
TILE = 40  # pixels: tiles are reduced to the network's SIZE
PATCHES = np.array([[0, 1, 2, 1], [2, 0, 0, 1], [1, 1, 2, 0]])
COLOURS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]], dtype="uint8")


def colour_classifier(classes: list[str] = CLASSES) -> Classifier:
    """Dense layers set by hand: the logit of class k is five times the mean of channel k in [-1, 1]."""
    architecture = tiny_architecture(None, filters=(), dense=0, dropout=0.0, classes=classes)
    network = build_network(architecture, seed=1)
    kernel = np.zeros((SIZE, SIZE, 3, 3), dtype="float32")
    for k in range(3):
        kernel[..., k, k] = 5 / SIZE**2
    network.get_layer("logits").set_weights([kernel.reshape(-1, 3), np.zeros(3)])
    description = Description(
        architecture=architecture, stage="baseline", dataset="tissue", protocol="group", seed=1, unfrozen_blocks=None,
        blocks=[], threshold=None, temperature=2.0, environment={},
    )  # fmt: skip
    return Classifier(description, network)


def patchwork(patches: np.ndarray = PATCHES) -> np.ndarray:
    return COLOURS[patches].repeat(TILE, axis=0).repeat(TILE, axis=1)


def expected_probability() -> float:
    """Of a patch's own class, by hand: temperature 2, channels of 200 and 60."""
    own, other = (np.exp(5 * (value / 127.5 - 1) / 2) for value in (200, 60))
    return own / (own + 2 * other)


def card(project: Path, detect: str, dataset: str = "tissue", **changes: object) -> None:
    layout = {"layout": {"kind": "class-folders"}, "groups": "none", "classes": CLASSES, "detect": detect}
    layout["tile"] = TILE if detect == "tiles" else None
    recommended = {"backbone": "mobilenet_0.25", "weights": "none", "image_size": TILE}
    write_card(project, dataset, **layout | {"recommended": recommended} | changes)


@pytest.fixture
def project(tiny_project) -> Path:
    """The tiny project with a model that knows colours, the card of its data set, and a folder of one patchwork."""
    card(tiny_project, "tiles")
    save_classifier(tiny_project / "model", colour_classifier())
    (tiny_project / "pictures").mkdir()
    Image.fromarray(patchwork()).save(tiny_project / "pictures" / "slide.png")
    return tiny_project


def detect(**options: object) -> None:
    stages.detect.main(**{"model": Path("model"), "frames": Path("pictures"), "out": Path("found")} | options)


def refusal(**options: object) -> str:
    with pytest.raises(InputError) as caught:
        detect(**options)
    return str(caught.value)


def test_each_tile_of_a_grid_gets_the_class_of_its_patch():
    boxes, probabilities = classify_tiles(patchwork(), colour_classifier(), TILE, 1.0, batch_size=5)
    assert boxes.tolist() == [[x * TILE, y * TILE, TILE, TILE] for y in range(3) for x in range(4)]
    np.testing.assert_array_equal(probabilities.argmax(axis=1), PATCHES.ravel())
    np.testing.assert_allclose(probabilities.max(axis=1), expected_probability(), rtol=1e-5)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)


def test_tiles_are_counted_in_pixels_of_the_picture_and_end_with_it():
    """A picture that is no whole number of tiles: the last ones overlap those before, none is stretched."""
    picture = patchwork()[:100, :150]
    boxes, _ = classify_tiles(picture, colour_classifier(), TILE, 1.0, batch_size=5)
    assert sorted(set(boxes[:, 0])) == [0, 37, 73, 110]
    assert sorted(set(boxes[:, 1])) == [0, 30, 60]
    assert (boxes[:, 2:] == TILE).all()
    finer, _ = classify_tiles(picture, colour_classifier(), TILE, 0.5, batch_size=5)
    assert len(np.unique(finer[:, 0])) == 7


def test_black_margins_get_no_tile_and_no_class(tmp_path):
    picture = np.pad(patchwork(), ((0, 0), (25, 0), (0, 0)))
    boxes, probabilities = classify_tiles(picture, colour_classifier(), TILE, 1.0, batch_size=5)
    assert boxes[:, 0].min() == 25
    called, _ = save_maps([tmp_path / f"{k}.png" for k in range(3)], boxes, probabilities, picture.shape[:2])
    assert (called[:, :25] == NO_TILE).all()
    np.testing.assert_array_equal(called[:, 25:], PATCHES.repeat(TILE, axis=0).repeat(TILE, axis=1))


def test_where_tiles_overlap_a_map_is_their_mean(tmp_path):
    boxes = np.array([[0, 0, 4, 4], [2, 0, 4, 4]])
    probabilities = np.array([[0.8, 0.2], [0.4, 0.6]])
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    called, highest = save_maps(paths, boxes, probabilities, (4, 6))
    assert called[0].tolist() == [0, 0, 0, 0, 1, 1]
    np.testing.assert_allclose(highest[0], [0.8, 0.8, 0.6, 0.6, 0.6, 0.6], rtol=1e-6)
    assert np.asarray(Image.open(paths[1]))[0].tolist() == [51, 51, 102, 102, 153, 153]


def test_the_files_of_a_tile_map(project, capsys):
    detect()
    found = project / "found"
    files = {path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file()}
    names = ("red-stroma", "green", "blue")
    assert files == {"tiles.csv", "classmaps/slide.png", *(f"probabilities/slide/{name}.png" for name in names)}
    table = pd.read_csv(found / "tiles.csv")
    columns = [f"probability_{name}" for name in CLASSES]
    assert list(table) == ["file", "x", "y", "width", "height", "class", "probability", *columns]
    assert len(table) == PATCHES.size
    assert set(table["file"]) == {"slide.png"}
    assert table["class"].tolist() == [CLASSES[k] for k in PATCHES.ravel()]
    np.testing.assert_allclose(table[columns].sum(axis=1), 1, atol=2e-6)
    np.testing.assert_allclose(table["probability"], expected_probability(), rtol=1e-5)
    maps = [np.asarray(Image.open(found / "probabilities" / "slide" / f"{name}.png")) for name in names]
    assert maps[0].shape == (3 * TILE, 4 * TILE)
    np.testing.assert_array_equal(np.argmax(maps, axis=0)[:: TILE // 2, :: TILE // 2][::2, ::2], PATCHES)
    assert maps[0].max() == round(255 * expected_probability())
    assert abs(np.sum(maps, axis=0, dtype=int) - 255).max() <= 1
    assert np.asarray(Image.open(found / "classmaps" / "slide.png")).ndim == 3
    printed = capsys.readouterr().out
    assert "tile of 40 pixels: tile of datasets/tissue.yaml" in printed
    assert "12 tiles on 1 pictures: found" in printed
    assert "green: 5 (41.7%)" in printed


def test_the_map_is_of_the_model_not_of_params(project):
    """params.yaml names a data set of lesions; the model is of tiles."""
    detect(tile=20, stride=1.0)
    assert len(pd.read_csv(project / "found" / "tiles.csv")) == 4 * PATCHES.size


def test_without_the_card_a_user_says_what_to_look_for(project, capsys):
    (project / "datasets" / "tissue.yaml").unlink()
    message = refusal()
    assert message.startswith("model: was trained on 'tissue', whose card datasets/tissue.yaml is not here; say --map")
    detect(kind="tiles")
    assert f"tile of {SIZE} pixels: the network's image size" in capsys.readouterr().out
    assert len(pd.read_csv(project / "found" / "tiles.csv")) == 4 * 5


def test_classes_of_whole_images_have_no_map_unless_asked_for(project):
    card(project, "none")
    message = refusal()
    assert "datasets/tissue.yaml gives whole images a class, so parts of a picture have none" in message
    assert "--map tiles, or `detect: tiles` in the card" in message
    assert not (project / "found").exists()
    detect(kind="tiles")
    assert (project / "found" / "tiles.csv").exists()


def test_options_of_the_other_kind_are_refused(project):
    assert "--threshold belongs to lesions" in refusal(threshold=0.5)
    assert "--tile and --stride belong to tile maps" in refusal(kind="lesions", tile=20)
    assert "--tile and --stride belong to tile maps" in refusal(kind="lesions", stride=1.0)


def test_a_picture_smaller_than_a_tile_is_refused_before_any_is_looked_at(project, monkeypatch):
    Image.fromarray(patchwork()[:30]).save(project / "pictures" / "strip.png")
    monkeypatch.setattr(tiles, "_cut_alone", lambda *_: pytest.fail("a tile was cut"))
    assert refusal().startswith("pictures/strip.png: its shorter side of 30 pixels is smaller than a tile of 40;")


def test_pictures_whose_maps_would_have_one_name_are_refused(project):
    Image.fromarray(patchwork()).save(project / "pictures" / "slide.tif")
    assert "the maps of slide.png and slide.tif would have one name" in refusal()


def test_an_interrupted_map_leaves_the_former_one_and_nothing_half_written(project, monkeypatch):
    detect()
    found, before = project / "found", (project / "found" / "tiles.csv").read_bytes()
    Image.fromarray(patchwork(PATCHES[::-1])).save(project / "pictures" / "turned.png")
    whole = classify_tiles
    with monkeypatch.context() as patch:
        seen = []

        def interrupted(*given: object) -> tuple:
            seen.append(given)
            if len(seen) == 2:
                raise KeyboardInterrupt
            return whole(*given)

        patch.setattr("lesionlab.detection.folder.classify_tiles", interrupted)
        with pytest.raises(KeyboardInterrupt):
            detect()
    assert (found / "tiles.csv").read_bytes() == before
    assert not list(project.glob(".found*"))
    assert not list(found.rglob("turned*"))
    detect()
    again = pd.read_csv(found / "tiles.csv")
    assert again["file"].value_counts().to_dict() == {"slide.png": 12, "turned.png": 12}
    first = (found / "classmaps" / "slide.png").read_bytes()
    detect()
    assert (found / "classmaps" / "slide.png").read_bytes() == first


def test_only_an_earlier_run_is_replaced(project):
    """The pictures themselves, a folder of something else and a file stay."""
    for out in ("pictures", ".", "pictures/.."):
        assert "holds the pictures of --frames pictures and would be replaced" in refusal(out=Path(out))
    assert "--out datasets: holds other files (tiny-phantom.yaml) and" in refusal(out=Path("datasets"))
    assert "--out params.yaml: is a file" in refusal(out=Path("params.yaml"))
    (project / "link").symlink_to(project / "nowhere")
    assert "--out link: is a link" in refusal(out=Path("link"))
    assert (project / "pictures" / "slide.png").exists()
    (project / "found").mkdir()
    detect()
    detect(tile=20)
    assert len(pd.read_csv(project / "found" / "tiles.csv")) == 4 * PATCHES.size


def test_the_pipeline_s_data_folder_is_no_earlier_run(project):
    """It holds a detections.csv as a run of the lesions kind does, beside what cannot be had again."""
    data = project / "data"
    for name in ("crops/index.csv", "detections.csv", "split.csv"):
        (data / name).parent.mkdir(exist_ok=True)
        (data / name).write_text("id\n")
    before = sorted(data.rglob("*"))
    assert refusal(out=Path("data")).startswith("--out data: holds other files (crops) and would be replaced; name a")
    assert sorted(data.rglob("*")) == before


@pytest.mark.parametrize(
    ("entries", "replaced"),
    [
        ({"detections.csv", "heatmaps", "overlays"}, True),
        ({"tiles.csv", "classmaps", "probabilities", ".DS_Store"}, True),
        ({"tiles.csv", "classmaps", "probabilities", "notes.txt"}, False),
        ({"detections.csv", "heatmaps", "overlays", "tiles.csv"}, False),
        ({"heatmaps", "overlays"}, False),
    ],
)
def test_every_entry_of_a_folder_that_is_replaced_is_a_run_s(project, entries, replaced):
    found = project / "found"
    for name in entries:
        (found / name).mkdir(parents=True)
    if replaced:
        detect()
        assert {path.name for path in found.iterdir()} == {"tiles.csv", "classmaps", "probabilities"}
    else:
        assert "holds other files" in refusal()
        assert {path.name for path in found.iterdir()} == entries


def test_the_maps_are_those_of_the_saved_model(project):
    picture = np.random.default_rng(1).integers(30, 255, (90, 70, 3), dtype="uint8")
    given = classify_tiles(picture, colour_classifier(), TILE, 0.5, batch_size=4)[1]
    read = classify_tiles(picture, load_classifier(Path("model")), TILE, 0.5, batch_size=32)[1]
    np.testing.assert_allclose(read, given, rtol=1e-5)


def test_class_names_become_file_names():
    assert map_names(["TUM", "complex stroma", "a/b+"]) == ["TUM.png", "complex-stroma.png", "a-b+.png"]


@pytest.mark.parametrize("classes", [["a b", "c", "a-b"], ["a/b", "a b"], ["Stroma", "stroma"]])
def test_classes_whose_maps_would_have_one_name_are_refused(classes):
    first, last = classes[0], classes[-1]
    with pytest.raises(InputError, match=f"classes '{first}' and '{last}' would have one file name"):
        map_names(classes)


def test_such_classes_are_refused_before_any_picture_is_looked_at(project, monkeypatch):
    save_classifier(project / "model", colour_classifier(["a b", "green", "a-b"]))
    monkeypatch.setattr("lesionlab.detection.folder.shorter_side", lambda _: pytest.fail("a picture was read"))
    assert "rename one in the data set's card" in refusal()


def test_names_that_meet_at_the_picture_and_the_class_keep_their_maps_apart(project):
    """Picture a of class b_c and picture a_b of class c."""
    save_classifier(project / "model", colour_classifier(["b_c", "c", "other"]))
    (project / "pictures" / "slide.png").rename(project / "pictures" / "a.png")
    Image.fromarray(patchwork(PATCHES[::-1])).save(project / "pictures" / "a_b.png")
    detect()
    found = project / "found" / "probabilities"
    assert len(list(found.rglob("*.png"))) == 6
    for stem, patches, name, number in (("a", PATCHES, "b_c", 0), ("a_b", PATCHES[::-1], "c", 1)):
        called = np.asarray(Image.open(found / stem / f"{name}.png"))[::TILE, ::TILE] > 127
        np.testing.assert_array_equal(called, patches == number)


def test_a_picture_turned_by_its_camera_is_as_large_as_it_is_seen(project):
    """Orientation 6 of EXIF: the map is 120 wide and 160 high, and the shorter side is the same."""
    turned = Image.Exif()
    turned[0x0112] = 6
    (project / "pictures" / "slide.png").unlink()
    for suffix in ("jpg", "tif", "png"):
        path = project / "pictures" / f"turned_{suffix}.{suffix}"
        Image.fromarray(patchwork()).save(path, exif=turned)
    detect(tile=3 * TILE)
    for suffix in ("jpg", "tif", "png"):
        found = np.asarray(Image.open(project / "found" / "probabilities" / f"turned_{suffix}" / "green.png"))
        assert found.shape == (4 * TILE, 3 * TILE)
    assert "its shorter side of 120 pixels is smaller than a tile of 121" in refusal(tile=3 * TILE + 1)


def test_no_two_classes_share_a_colour():
    colours = class_colours(2 * len(CLASS_COLOURS) + 1)
    assert len({tuple(colour) for colour in colours}) == len(colours)
