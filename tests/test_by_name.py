"""Data sets that are not at hand, by their names alone: releases in miniature through crop and split."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import ROOT, changed, read_yaml_file, write_yaml_file

import stages.crop
import stages.split
from lesionlab.data.cards import read_card
from lesionlab.files import read_json

TISSUES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
SLIDES = {"07_ADIPOSE": ("03", "04", "05", "06", "07", "10"), "08_EMPTY": ("06", "10")}  # of the others all ten
TEXTURES = (
    "01_TUMOR", "02_STROMA", "03_COMPLEX", "04_LYMPHO", "05_DEBRIS", "06_MUCOSA", "07_ADIPOSE", "08_EMPTY",
)  # fmt: skip
TEN = [f"{number:02}" for number in range(1, 11)]
MINIATURES = {
    "nct-crc-he": [
        *(f"NCT-CRC-HE-100K/{name}/{name}-AAAA{letter}.tif" for name in TISSUES for letter in "ABCDEFGHIJ"),
        *(f"CRC-VAL-HE-7K/{name}/{name}-TCGA-{letter}.tif" for name in TISSUES for letter in "ABC"),
    ],
    "kather-2016": [
        f"Kather_texture_2016_image_tiles_5000/{folder}/{number:X}_CRC-Prim-HE-{slide}_005.tif_Row_1_Col_{number}51.tif"
        for folder in TEXTURES
        for number, slide in enumerate(SLIDES.get(folder, TEN) * 2)
    ],
    "brain-mri-kaggle": [
        f"{subset}/{name}/{subset[:2]}-{name[:2]}_{number:04}.jpg"
        for subset in ("Training", "Testing")
        for name in ("glioma", "meningioma", "notumor", "pituitary")
        for number in range(8)
    ],
    "iq-oth-nccd": [
        f"The IQ-OTHNCCD lung cancer dataset/{folder}/{folder[:-1]} ({number}).jpg"
        for folder in ("Bengin cases", "Malignant cases", "Normal cases")
        for number in range(1, 11)
    ],
}


@pytest.mark.parametrize("dataset", MINIATURES)
def test_a_release_is_cropped_and_split_by_its_name_alone(tmp_path, monkeypatch, dataset):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(3)
    for name in MINIATURES[dataset]:
        path = Path("data/raw") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(40, 256, (8, 8, 3), dtype="uint8")  # no two are alike, as near-duplicates would be
        Image.fromarray(np.kron(coarse, np.ones((8, 8, 1), "uint8"))).save(path)
    params = read_yaml_file(ROOT / "params.yaml")
    write_yaml_file(Path("params.yaml"), changed(params, {"dataset": dataset, "model.image_size": 32}))
    shutil.copytree(ROOT / "datasets", "datasets")
    crops = {"crops": Path("data/crops")}
    stages.crop.main(raw=Path("data/raw"), **crops, metrics=Path("crop.json"), sheet=Path("crops.png"))
    stages.split.main(**crops, split=Path("data/split.csv"), metrics=Path("split.json"))
    split, card = read_json(Path("split.json")), read_card(dataset)
    for subset in ("train", "val", "test"):
        assert set(split["subsets"][subset]["classes"]) == set(card.classes)
    assert split["group_disjoint"] is (dataset != "nct-crc-he")
    if card.split.protocol == "official":
        assert split["subsets"]["test"]["crops"] == sum(name.startswith("CRC-VAL") for name in MINIATURES[dataset])
