"""Releases that are no image files: the MATLAB files of the brain tumours and MedMNIST arrays."""

import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny import ROOT
from tiny_cheng import SLICES, tumour, write_cvind, write_mat

from lesionlab.data.cards import Card, Source, read_card
from lesionlab.data.convert import convert_cheng, convert_npz
from lesionlab.data.crops import crop_frame
from lesionlab.data.download import download_images
from lesionlab.data.readers import read_frames, read_mask, read_rgb
from lesionlab.errors import InputError
from lesionlab.files import file_digest
from lesionlab.params import DownloadParams


@pytest.fixture
def repository_card(monkeypatch):
    def read(name: str) -> Card:
        with monkeypatch.context() as patch:
            patch.chdir(ROOT)
            return read_card(name)

    return read


def download(card: Card, source: Path, out: Path) -> None:
    download_images(card, DownloadParams(source=str(source), mirror=None), 42, out)


# The MATLAB files


@pytest.fixture
def release(tmp_path) -> Path:
    """The release in miniature: two archives of .mat files, the folds, the README."""
    folder = tmp_path / "release"
    for number in SLICES:
        write_mat(tmp_path / "mat" / f"{number}.mat", number)
    write_cvind(folder / "cvind.mat")
    (folder / "README 2024.txt").write_text("five-fold cross-validation indices")
    for name, numbers in (("brainTumorDataPublic_1-3", (1, 2, 3)), ("brainTumorDataPublic_4-5", (4, 5))):
        with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as bundle:
            for number in numbers:
                bundle.write(tmp_path / "mat" / f"{number}.mat", f"{number}.mat")
    return folder


def zipped(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder.parent / "1512427"), "zip", folder))


@pytest.mark.parametrize("how", ["folder of archives", "archive of archives", "folder of .mat"])
def test_the_brain_tumour_release_becomes_16_bit_slices_with_masks_patients_and_folds(
    tmp_path, release, repository_card, how
):
    source = {"folder of archives": release, "archive of archives": zipped(release)}.get(how)
    if source is None:
        source = tmp_path / "mat"
        write_cvind(source / "cvind.mat")
    raw = tmp_path / "raw"
    card = repository_card("brain-tumor-cheng")
    download(card, source, raw)
    assert not list(raw.rglob("*.mat")) + list(raw.rglob("*.zip"))
    frames = read_frames(card, raw)
    names = {1: "meningioma", 2: "glioma", 3: "pituitary"}
    expected = [
        (f"images/{k}.png", names[label], patient, str(fold)) for k, (label, patient, _, fold) in SLICES.items()
    ]
    assert [(frame.name, frame.label, frame.group, frame.official) for frame in frames] == expected
    for frame, (number, (_, _, side, _)) in zip(frames, SLICES.items(), strict=True):
        image, mask = tumour(number, side)
        with Image.open(frame.image) as stored:
            assert np.array_equal(np.asarray(stored), image)
        assert np.array_equal(read_mask(frame.mask, 127, (side, side), frame.image), mask)
        seen = read_rgb(frame.image)[..., 0].astype(int)
        assert (seen.min(), seen.max()) == (0, 255)
        assert seen[0, -1] > seen[-1, 0]  # columns count more than rows: not transposed


def test_the_files_that_the_card_lists_are_decoded_too(tmp_path, release, repository_card):
    card = repository_card("brain-tumor-cheng")
    names = ("brainTumorDataPublic_1-3.zip", "brainTumorDataPublic_4-5.zip", "cvind.mat")
    sources = tuple(Source(file=name, url=f"https://example.org/{name}") for name in names)
    mirrored = DownloadParams(source=None, mirror=str(release))
    download_images(card.model_copy(update={"sources": sources}), mirrored, 42, tmp_path / "raw")
    frames = read_frames(card, tmp_path / "raw")
    assert [(frame.group, frame.official) for frame in frames] == [(p, str(f)) for _, p, _, f in SLICES.values()]
    recorded = json.loads((tmp_path / "raw" / "SOURCES.json").read_text())["sources"]
    assert [(source["file"], source["sha256"]) for source in recorded] == [
        (name, file_digest(release / name)) for name in names
    ]


def test_a_slice_of_a_class_is_one_crop_and_its_windows_are_another_card(
    tmp_path, release, repository_card, tiny_params
):
    whole, windows = repository_card("brain-tumor-cheng"), repository_card("brain-tumor-cheng-windows")
    assert (whole.sources, whole.detection, windows.detection) == (windows.sources, "none", "windows")
    crops = {}
    for card in (whole, windows):
        download(card, release, tmp_path / card.name)
        frame = read_frames(card, tmp_path / card.name)[0]
        assert frame.mask is not None
        crops[card.name] = crop_frame(frame, card.classes, tiny_params.crop, 32, 42)
    assert [row["label"] for row in crops["brain-tumor-cheng"].rows] == ["meningioma"]
    assert crops["brain-tumor-cheng"].rows[0]["official"] == "3"
    assert [row["label"] for row in crops["brain-tumor-cheng-windows"].rows] == ["tumour", "background", "background"]
    assert {row["group"] for crop in crops.values() for row in crop.rows} == {"100360"}


def test_converting_again_gives_the_same_bytes(tmp_path, release, repository_card):
    card = repository_card("brain-tumor-cheng")
    contents = []
    for name in ("first", "second"):
        download(card, release, tmp_path / name)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        contents.append({path.relative_to(tmp_path / name): path.read_bytes() for path in files})
    assert contents[0] == contents[1]
    assert json.loads(contents[0][Path("SOURCES.json")])["sources"][0]["files"] == 4


def test_negative_grey_levels_are_shifted_not_wrapped(tmp_path):
    image = np.arange(-300, 100, dtype="int16").reshape(20, 20)
    write_mat(tmp_path / "1.mat", 1, image=image.T, tumorMask=np.ones((20, 20), "uint8"))
    write_cvind(tmp_path / "cvind.mat")
    convert_cheng(tmp_path)
    with Image.open(tmp_path / "images" / "1.png") as stored:
        assert np.array_equal(np.asarray(stored), image.astype(int) + 300)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tumorMask": None}, r"3\.mat: not a slice of the release .*tumorMask.*download it again"),
        (
            {"tumorMask": np.ones((4, 4), "uint8")},
            r"3\.mat: image \(512, 512\), tumorMask \(4, 4\), label 2: two equal",
        ),
        ({"label": np.array([[4.0]])}, r"3\.mat: .* label 4: .*label 1, 2 or 3 are wanted; download it again"),
    ],
)
def test_a_slice_that_is_not_as_described_is_named(tmp_path, changes, message):
    write_mat(tmp_path / "3.mat", 3, **changes)
    write_cvind(tmp_path / "cvind.mat")
    with pytest.raises(InputError, match=message):
        convert_cheng(tmp_path)


def test_a_slice_of_an_older_matlab_format_or_cut_off_is_named(tmp_path):
    write_cvind(tmp_path / "cvind.mat")
    (tmp_path / "2.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(600))
    with pytest.raises(InputError, match=r"^2\.mat: not a slice of the release"):
        convert_cheng(tmp_path)


def test_folds_that_are_missing_or_too_few_are_an_error(tmp_path):
    write_mat(tmp_path / "5.mat", 5)
    with pytest.raises(InputError, match=r"^cvind\.mat is missing: the release's folds; put it beside"):
        convert_cheng(tmp_path)
    write_cvind(tmp_path / "cvind.mat", [1, 2, 3])
    with pytest.raises(InputError, match=r"^cvind\.mat: 3 folds from 1 on for slice 5; get the release's"):
        convert_cheng(tmp_path)
    (tmp_path / "cvind.mat").write_text("no HDF5")
    with pytest.raises(InputError, match=r"^cvind\.mat: not the release's file of folds"):
        convert_cheng(tmp_path)


@pytest.mark.parametrize("name", ["images", "masks"])
def test_folders_that_slices_would_go_to_are_named(tmp_path, release, repository_card, name):
    (release / name).mkdir()
    (release / name / "1.jpg").write_bytes(b"1")
    with pytest.raises(InputError) as caught:
        download(repository_card("brain-tumor-cheng"), release, tmp_path / "raw")
    assert str(caught.value) == (
        f"{name}/ lies beside the release's .mat files, which are decoded into a folder of this name; give "
        "the release's files alone"
    )


def test_slices_that_are_there_twice_are_an_error(tmp_path):
    for folder in ("a", "b"):
        write_mat(tmp_path / folder / "1.mat", 1)
    with pytest.raises(InputError, match=r"2 \.mat files, but only 1 numbers: some are there twice"):
        convert_cheng(tmp_path)


def test_a_folder_that_is_no_release_and_no_copy_lists_both_layouts(tmp_path, repository_card):
    source = tmp_path / "given"
    source.mkdir()
    (source / "notes.txt").write_text("nothing")
    card = repository_card("brain-tumor-cheng")
    download(card, source, tmp_path / "raw")
    with pytest.raises(InputError, match=r"none of the layouts of .*: .*no frames\.csv.*; or .*no metadata\.csv"):
        read_frames(card, tmp_path / "raw")


# MedMNIST

COUNTS = {"train": 5, "val": 3, "test": 4}


def medmnist(side: int, channels: int, **changes: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(side)
    arrays = {}
    for subset, count in COUNTS.items():
        shape = (count, side, side, channels)[: 4 if channels == 3 else 3]
        arrays[f"{subset}_images"] = rng.integers(0, 256, shape).astype("uint8")
        arrays[f"{subset}_labels"] = (np.arange(count) % 2).astype("uint8")[:, None]
    return arrays | changes


@pytest.mark.parametrize(("side", "channels"), [(28, 1), (28, 3), (64, 1), (224, 3)])
def test_a_medmnist_file_becomes_images_with_labels_and_the_published_split(tmp_path, repository_card, side, channels):
    arrays = medmnist(side, channels)
    source = tmp_path / f"pneumoniamnist_{side}.npz"
    np.savez_compressed(source, **arrays)
    raw = tmp_path / "raw"
    card = repository_card("pneumoniamnist")
    download(card, source, raw)
    assert sorted(path.name for path in raw.iterdir()) == ["SOURCES.json", "frames.csv", "images"]
    frames = read_frames(card, raw)
    assert len(frames) == sum(COUNTS.values())
    for frame in frames:
        row = int(frame.image.stem)
        assert frame.label == ("normal", "pneumonia")[row % 2]
        image = arrays[f"{frame.official}_images"][row]
        assert np.array_equal(read_rgb(frame.image), image if channels == 3 else np.repeat(image[..., None], 3, axis=2))
        assert frame.name == f"images/{frame.official}/{row:06d}.png"
    assert pd.Series([frame.official for frame in frames]).value_counts().to_dict() == COUNTS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"val_images": np.zeros((3, 28, 28))},
            r"val_images \(3, 28, 28\) float64 and val_labels \(3, 1\); uint8 images",
        ),
        ({"val_images": np.zeros((3, 28, 28, 28), "uint8")}, r"val_images \(3, 28, 28, 28\) uint8"),
        ({"val_labels": np.zeros((3, 14), "uint8")}, r"val_labels \(3, 14\)"),
        ({"test_labels": np.full((4, 1), 2, "uint8")}, r"test_labels from 2 to 2, but the card names 2 classes"),
        ({"train_images": np.array([{}])}, r"not a MedMNIST file, or damaged .*download it again"),
    ],
)
def test_arrays_that_are_not_as_described_are_named(tmp_path, changes, message):
    np.savez(tmp_path / "x.npz", **medmnist(28, 1, **changes))
    with pytest.raises(InputError, match=r"^x\.npz: .*" + message):
        convert_npz(tmp_path, ["a", "b"])


def test_a_medmnist_file_without_a_subset_damaged_or_there_twice_is_an_error(tmp_path):
    arrays = medmnist(28, 1)
    del arrays["val_labels"]
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=r"^x\.npz: not a MedMNIST file, or damaged .*val_labels"):
        convert_npz(tmp_path, ["a", "b"])
    np.savez(tmp_path / "x.npz", **medmnist(28, 1))
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:-200])
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(InputError, match=r"^x\.npz: not a MedMNIST file, or damaged"):
        convert_npz(tmp_path, ["a", "b"])
    np.savez(tmp_path / "y.npz", **medmnist(28, 1))
    with pytest.raises(InputError, match=r"^x\.npz and y\.npz: one \.npz file is read"):
        convert_npz(tmp_path, ["a", "b"])


def test_a_folder_that_images_would_go_to_is_no_damage(tmp_path, repository_card):
    source = tmp_path / "given"
    (source / "images" / "train").mkdir(parents=True)
    (source / "images" / "train" / "1.png").write_bytes(b"1")
    np.savez(source / "x.npz", **medmnist(28, 1))
    with pytest.raises(
        InputError, match=r"^images/ lies beside the release's \.npz files, .* the release's files alone$"
    ):
        download(repository_card("pneumoniamnist"), source, tmp_path / "raw")


# Reduced copies of the real data: the same cards


@pytest.mark.real
@pytest.mark.parametrize(
    ("dataset", "folder", "labels", "official", "groups"),
    [
        (
            "brain-tumor-cheng", "brain-tumor-cheng", {"meningioma": 708, "glioma": 1426, "pituitary": 930},
            {"1": 570, "2": 655, "3": 562, "4": 613, "5": 664}, 510,
        ),
        (
            "brain-tumor-cheng-windows", "brain-tumor-cheng", {None: 3064},
            {"1": 570, "2": 655, "3": 562, "4": 613, "5": 664}, 510,
        ),
        ("chest-xray", "chest_xray", {"normal": 1575, "pneumonia": 4265}, {"train": 5216, "test": 624}, 3754),
        (
            "lc25000", "lc25000", dict.fromkeys(("colon_aca", "colon_n", "lung_aca", "lung_n", "lung_scc"), 200),
            {"": 1000}, 508,
        ),
        (
            "chest-ct", "chest-ct",
            {"normal": 215, "adenocarcinoma": 338, "large-cell carcinoma": 187, "squamous-cell carcinoma": 260},
            {"train": 613, "val": 72, "test": 315}, 1,
        ),
    ],
)  # fmt: skip
def test_reduced_copies_are_read_by_the_card_of_the_release(
    shared_data, repository_card, dataset, folder, labels, official, groups
):
    frames = read_frames(repository_card(dataset), shared_data / folder)
    counted = pd.DataFrame(frames)
    assert counted["label"].value_counts(dropna=False).rename({np.nan: None}).to_dict() == labels
    assert counted["official"].value_counts().to_dict() == official
    assert counted["group"].nunique() == groups
    assert counted["mask"].notna().all() == dataset.startswith("brain")


@pytest.mark.real
def test_what_the_published_split_of_the_chest_x_rays_may_share(shared_data, repository_card):
    """No child with pneumonia; of the normal ones 94 numbers, all of them once as IM and once as NORMAL2-IM."""
    frames = read_frames(repository_card("chest-xray"), shared_data / "chest_xray")
    groups = {name: {frame.group for frame in frames if frame.official == name} for name in ("train", "test")}
    shared = groups["train"] & groups["test"]
    assert len(shared) == 94
    assert all(group.startswith("IM-") for group in shared)
    apart = {(re.search(r"(?:NORMAL2-)?IM-\d+|person.*", f.image.name)[0], f.official) for f in frames}
    assert len({name for name, _ in apart}) == len(apart)


@pytest.mark.real
def test_pneumoniamnist_is_read_whole(shared_data, repository_card, tmp_path):
    card = repository_card("pneumoniamnist")
    download(card, shared_data / "pneumoniamnist.npz", tmp_path / "raw")
    counted = pd.DataFrame(read_frames(card, tmp_path / "raw")).groupby(["official", "label"]).size().to_dict()
    assert counted[("test", "normal")] == 234
    assert counted[("test", "pneumonia")] == 390
    assert sum(counted.values()) == 5856
    assert sum(count for (subset, _), count in counted.items() if subset == "val") == 524
