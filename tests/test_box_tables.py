"""A data set with boxes in place of masks: crops, detections and explanations are those of masks that are the boxes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_dense import SMALL, classifier_of
from tiny import CARD, small_params

from lesionlab.data.cards import Card
from lesionlab.data.crops import crop_all
from lesionlab.data.readers import Frame, read_frames
from lesionlab.detection.detector import windows_detector
from lesionlab.detection.run import detect_frames, train_and_detect
from lesionlab.errors import InputError
from lesionlab.explanation.windows import lesion_windows_of
from lesionlab.files import read_images
from lesionlab.params import Params

WIDTH, HEIGHT, PATIENTS = 96, 80, 9
LAYOUTS = {"masks": {"mask": "mask"}, "boxes": {"box": ["x", "y", "width", "height"]}}
CARDS = {
    name: Card.model_validate(
        CARD
        | {
            "layout": {"kind": "table", "file": f"{name}.csv", "image": "image", **columns},
            "groups": {"column": "patient"},
        }
    )
    for name, columns in LAYOUTS.items()
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """Frames with a bright box, every third with a second one, every fourth without; a table of masks, one of boxes."""
    folder, rng = tmp_path_factory.mktemp("raw"), np.random.default_rng(8)
    masks, boxes = [], []
    for number in range(2 * PATIENTS):
        pixels = rng.integers(30, 90, (HEIGHT, WIDTH, 3)).astype("uint8")
        mask = np.zeros((HEIGHT, WIDTH), "uint8")
        start = {"image": f"{number:02d}.png", "patient": number // 2}
        places = [] if number % 4 == 3 else [(4, 6), (52, 40)][: 2 if number % 3 == 0 else 1]
        for left, top in places:
            x, y, width, height = left + rng.integers(8), top + rng.integers(8), *rng.integers(20, 32, 2)
            mask[y : y + height, x : x + width] = 255
            boxes.append(start | {"x": x, "y": y, "width": width, "height": height})
        if not places:
            boxes.append(start | dict.fromkeys(LAYOUTS["boxes"]["box"], ""))
        pixels[mask > 0] += 120
        Image.fromarray(pixels).save(folder / start["image"])
        Image.fromarray(mask).save(folder / f"{number:02d}_mask.png")
        masks.append(start | {"mask": f"{number:02d}_mask.png"})
    pd.DataFrame(masks).to_csv(folder / "masks.csv", index=False)
    pd.DataFrame(boxes).to_csv(folder / "boxes.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def frames(raw) -> dict[str, list[Frame]]:
    return {name: read_frames(card, raw) for name, card in CARDS.items()}


def params(**changes: object) -> Params:
    return Params.model_validate(small_params({key.replace("__", "."): value for key, value in changes.items()}))


def test_the_two_tables_are_of_the_same_frames(frames):
    masks, boxes = frames["masks"], frames["boxes"]
    assert [replace(frame, mask=None) for frame in masks] == [replace(frame, mask=None) for frame in boxes]
    assert len(boxes) == 2 * PATIENTS
    assert {len(frame.mask.boxes) for frame in boxes} == {0, 1, 2}


def test_crops_are_the_same(raw, tmp_path):
    for name, card in CARDS.items():
        crop_all(raw, tmp_path / name, card, params().crop, 32, 42)
    for file in ("images.npy", "index.csv", "lesions.npy", "thumbnails.npy"):
        assert (tmp_path / "masks" / file).read_bytes() == (tmp_path / "boxes" / file).read_bytes()
    assert set(pd.read_csv(tmp_path / "boxes" / "index.csv")["label"]) == {"background", "polyp"}
    assert len(read_images(tmp_path / "boxes")) > PATIENTS


def test_a_box_outside_of_its_image_ends_the_crop_stage(raw, tmp_path):
    """It is no broken image, which crop.skip_broken would leave out."""
    table = pd.read_csv(raw / "boxes.csv")
    for image in table["image"]:
        (tmp_path / image).symlink_to(raw / image) if not (tmp_path / image).exists() else None
    table.loc[0, "width"] = WIDTH
    table.to_csv(tmp_path / "boxes.csv", index=False)
    settings = params(crop__skip_broken=True).crop
    with pytest.raises(InputError, match=r"boxes\.csv: box x .*width 96, .* outside of .*00\.png, which is 96x80 pix"):
        crop_all(tmp_path, tmp_path / "crops", CARDS["boxes"], settings, 32, 42)


@pytest.mark.parametrize("mode", ["dense", "windows"])
def test_detections_are_the_same(frames, mode):
    """The head learns from them, the threshold is chosen and the figures are counted on them."""
    settings = params(detect__mode=mode, detect__windows_per_frame=16, detect__epochs=1)
    found = {}
    for name, of in frames.items():
        parts = {"train": of[:10], "val": of[10:14], "test": of[14:]}
        _, _, found[name] = train_and_detect(classifier_of(SMALL), parts, settings)
    for subset in ("val", "test"):
        for part in ("boxes", "frames", "lesions"):
            masks, boxes = (getattr(found[name][subset], part) for name in ("masks", "boxes"))
            pd.testing.assert_frame_equal(masks, boxes)
            assert len(boxes)


def test_a_lesion_is_where_its_box_is(frames):
    detector = windows_detector(classifier_of(SMALL), params().detect, 16)
    found = detect_frames(frames["boxes"], detector, params(), "test")
    expected = [
        (frame.name, width * height / (WIDTH * HEIGHT))
        for frame in frames["boxes"]
        for _, _, width, height in sorted(frame.mask.boxes, key=lambda box: box[1])
    ]
    assert found.lesions["frame"].tolist() == [name for name, _ in expected]
    np.testing.assert_allclose(found.lesions["area"], [area for _, area in expected])


def test_windows_to_explain_are_the_same(frames):
    windows = [
        lesion_windows_of(of, CARDS[name].classes, params().crop, 1.0, 32, 42, "test") for name, of in frames.items()
    ]
    pd.testing.assert_frame_equal(windows[0].table, windows[1].table)
    np.testing.assert_array_equal(windows[0].images, windows[1].images)
    np.testing.assert_array_equal(windows[0].lesion, windows[1].lesion)
    assert len(windows[1].table) == sum(len(frame.mask.boxes) for frame in frames["boxes"])
