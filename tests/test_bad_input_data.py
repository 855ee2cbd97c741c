"""Bad input to download, crop and split: one line that names file or key and the remedy, and nothing half made."""

import builtins
import errno
import importlib
import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny import CARD, DATASET, change_params, crop_stage, run_stage, split_stage, write_card

from lesionlab.files import read_images, read_index
from lesionlab.stage import run

CROP = ("--raw", "data/raw", "--crops", "data/crops", "--metrics", "metrics/crop.json", "--sheet", "pictures/crops.png")
SPLIT = ("--crops", "data/crops", "--split", "data/split.csv", "--metrics", "metrics/split.json")
DOWNLOAD = ("images", "--out", "data/fetched")


@pytest.fixture
def start(tiny_project, monkeypatch):
    """Run a stage in this process; returns its error line, or None when it ended well."""

    def started(name: str, *arguments: str) -> str | None:
        stage = importlib.import_module(f"stages.{name}")
        monkeypatch.setattr(sys, "argv", [f"stages.{name}", *arguments])
        with pytest.raises(SystemExit) as caught:
            run(stage.main, stage.__doc__)
        if caught.value.code in (0, None):
            return None
        line = caught.value.code  # Python writes a text to stderr and exits with 1
        assert isinstance(line, str)
        assert line.startswith("error: ")
        assert "\n" not in line
        return line.removeprefix("error: ")

    return started


def present() -> set[str]:
    """What the stages left: all files but the raw ones and the inputs."""
    inputs = ("data/raw/", "datasets/", "params.yaml", "given/")
    found = {path.as_posix() for path in Path().rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith(inputs)}


CROPS = {f"data/crops/{name}" for name in ("images.npy", "index.csv", "lesions.npy", "thumbnails.npy", "reading.json")}
CROP_OUTPUTS = CROPS | {"metrics/crop.json", "pictures/crops.png"}
IMAGE = Path("data/raw/images/s003_f01.png")
MASK = Path("data/raw/masks/s003_f01.png")


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def as_mask_pairs() -> None:
    """The project's card as that of a plain folder of pairs."""
    layout = {"kind": "mask-pairs", "folders": [["images", "masks"]]}
    write_card(Path(), DATASET, layout=layout, groups={"pattern": "(s[0-9]+)_"})
    Path("data/raw/frames.csv").unlink()


def as_class_folders(images: dict[str, int]) -> None:
    """The project's raw folder as class folders with so many images each, every image its own group."""
    write_card(Path(), DATASET, layout={"kind": "class-folders"}, classes=list(images), groups="none")
    frames = sorted(Path("data/raw/images").iterdir())
    for name, count in images.items():
        (Path("data/raw") / name).mkdir()
        for _ in range(count):
            shutil.move(frames.pop(), Path("data/raw") / name)
    shutil.rmtree("data/raw/images")
    shutil.rmtree("data/raw/masks")


# As a user sees it: the command, its output and its status


def one_line(process) -> str:
    assert process.returncode == 1
    assert process.stdout == ""
    assert "Traceback" not in process.stderr
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert process.stderr.splitlines()[-1] == errors[0]
    return errors[0].removeprefix("error: ")


def test_crop_by_command_tells_of_a_truncated_image(tiny_project):
    truncate(IMAGE)
    line = one_line(crop_stage())
    assert line.startswith(f"{IMAGE}: cannot be read as an image (")
    assert line.endswith("replace or remove the file, or leave it out with crop.skip_broken=true")
    assert present() == set()


def test_split_by_command_tells_of_a_misspelt_key(tiny_project):
    change_params(tiny_project, {"split.protocoll": "group"})
    assert one_line(split_stage()) == "params.yaml: unknown key 'split.protocoll'; did you mean 'protocol'?"
    assert present() == set()


def test_download_by_command_tells_of_an_unknown_data_set(tiny_project):
    change_params(tiny_project, {"dataset": "kvasir"})
    line = one_line(run_stage("download", *DOWNLOAD))
    known = "`dataset` in params.yaml may be one of: tiny-phantom"
    assert line == f"datasets/kvasir.yaml: no such card; {known}"
    assert present() == set()


# The raw files


def test_good_input_gives_all_outputs(start):
    assert start("crop", *CROP) is None
    assert present() == CROP_OUTPUTS
    assert start("split", *SPLIT) is None
    assert present() == CROP_OUTPUTS | {"data/split.csv", "metrics/split.json"}
    split = json.loads(Path("metrics/split.json").read_text())
    assert split["group_disjoint"] is True
    assert 0 < split["proof"].pop("highest_correlation_train_test") < 0.99
    assert set(split["proof"].values()) == {0}


@pytest.mark.parametrize("path", [IMAGE, MASK])
def test_a_truncated_file(start, path):
    truncate(path)
    line = start("crop", *CROP)
    assert line.startswith(f"{path}: cannot be read as an image (")
    assert "crop.skip_broken=true" in line
    assert present() == set()


def test_what_was_cropped_before_stays_when_a_later_run_fails(start):
    assert start("crop", *CROP) is None
    before = {name: Path(name).read_bytes() for name in present()}
    truncate(IMAGE)
    assert start("crop", *CROP).startswith(f"{IMAGE}: cannot be read")
    assert {name: Path(name).read_bytes() for name in present()} == before


def test_broken_images_are_skipped_when_asked_and_listed(start):
    change_params(Path(), {"crop.skip_broken": True})
    truncate(IMAGE)
    truncate(Path("data/raw/masks/s000_f00.png"))
    Path("data/raw/images/s005_f00.png").write_text("no image")
    assert start("crop", *CROP) is None
    metrics = json.loads(Path("metrics/crop.json").read_text())
    assert metrics["skipped"] == 3
    assert metrics["skipped_frames"] == [f"images/{name}.png" for name in ("s000_f00", "s003_f01", "s005_f00")]
    assert metrics["frames"] == 21
    index, images = read_index(Path("data/crops")), read_images(Path("data/crops"))
    assert len(index) == len(images) == metrics["crops"]
    assert not set(index["frame"]) & set(metrics["skipped_frames"])
    assert all(image.std() > 0 for image in images)


def test_a_mask_of_another_size_names_both_and_is_never_skipped(start):
    Image.new("L", (48, 40)).save(MASK)
    for skip in (False, True):
        change_params(Path(), {"crop.skip_broken": skip})
        line = start("crop", *CROP)
        assert line.startswith(f"{MASK}: mask is 48x40 pixels but {IMAGE} is 96x80; both must have the same size")
        assert present() == set()


def test_an_image_without_mask(start):
    as_mask_pairs()
    MASK.unlink()
    line = start("crop", *CROP)
    assert line.startswith(f"{IMAGE}: image without mask; add data/raw/masks/s003_f01 (")
    assert present() == set()


def test_a_mask_without_image(start):
    as_mask_pairs()
    IMAGE.unlink()
    line = start("crop", *CROP)
    assert line.startswith(f"{MASK}: mask without image; add data/raw/images/s003_f01 (")
    assert present() == set()


def test_a_phantom_file_that_is_gone(start):
    MASK.unlink()
    line = start("crop", *CROP)
    assert line == f"data/raw/frames.csv: names {MASK}, which does not exist; add it, or take the row out"
    assert present() == set()


def test_no_raw_folder(start):
    shutil.rmtree("data/raw")
    assert start("crop", *CROP) == "data/raw: not found; run dvc repro download@images"
    assert present() == set()


def test_an_empty_class_of_masks(start):
    for path in Path("data/raw/masks").iterdir():
        Image.new("L", (96, 80)).save(path)
    line = start("crop", *CROP)
    assert line.startswith("data/raw: no crop of class 'polyp'; check the masks or boxes, datasets/tiny-phantom.yaml ")
    assert present() == set()


def test_an_empty_class_of_folders(start):
    as_class_folders({"well": 12, "ill": 0})
    line = start("crop", *CROP)
    assert line.startswith("data/raw: class 'ill' of datasets/tiny-phantom.yaml has no image; add images, or correct")
    assert present() == set()


def test_a_class_with_fewer_groups_than_folds(start):
    as_class_folders({"well": 12, "ill": 2})
    assert start("crop", *CROP) is None
    line = start("split", *SPLIT)
    assert line == "split: class 'ill' has 2 group(s), fewer than split.folds (3); lower split.folds or add data"
    assert present() == CROP_OUTPUTS - {"data/crops/lesions.npy"}, "class folders have no masks"


def test_official_without_a_published_split(start):
    assert start("crop", *CROP) is None
    change_params(Path(), {"split.protocol": "official"})
    assert start("split", *SPLIT).startswith(
        "params.yaml: split.protocol is official, but the data set has no official"
    )
    assert present() == CROP_OUTPUTS


def test_split_without_crops(start):
    line = start("split", *SPLIT)
    assert line == "data/crops/index.csv: not found; run the stage that writes it (dvc repro)"
    assert present() == set()


# Keys and cards


@pytest.mark.parametrize(
    ("stage", "arguments"),
    [("download", DOWNLOAD), ("crop", CROP), ("split", SPLIT)],
    ids=["download", "crop", "split"],
)
def test_every_stage_tells_of_a_misspelt_key_of_params_and_card(start, stage, arguments):
    write_card(Path(), DATASET, licens="x")
    if stage != "split":  # split reads the crops before the card
        line = start(stage, *arguments)
        assert line == "datasets/tiny-phantom.yaml: unknown key 'licens'; did you mean 'licence'?"
    change_params(Path(), {"crop.jiter": 0.1})
    assert start(stage, *arguments) == "params.yaml: unknown key 'crop.jiter'; did you mean 'jitter'?"
    assert present() == set()


def test_split_tells_of_a_misspelt_key_of_the_card(start):
    assert start("crop", *CROP) is None
    write_card(Path(), DATASET, layout=CARD["layout"] | {"sequence": 3})
    line = start("split", *SPLIT)
    assert line == "datasets/tiny-phantom.yaml: unknown key 'layout.sequence'; did you mean 'sequences'?"
    assert present() == CROP_OUTPUTS


def test_a_source_that_does_not_exist(start):
    as_mask_pairs()
    change_params(Path(), {"download.source": "given/frames"})
    line = start("download", *DOWNLOAD)
    assert line.startswith(f"download.source: {Path.cwd()}/given/frames does not exist; name a folder")
    assert present() == set()


def test_a_source_with_a_damaged_archive(start):
    as_mask_pairs()
    change_params(Path(), {"download.source": "given/frames.zip"})
    Path("given").mkdir()
    shutil.make_archive("given/frames", "zip", "data/raw")
    archive = Path("given/frames.zip")
    archive.write_bytes(archive.read_bytes()[:-100])
    assert start("download", *DOWNLOAD).startswith(f"{Path.cwd()}/given/frames.zip: damaged (")
    assert present() == set()


# No space left on the device


@pytest.fixture
def fill_disk(monkeypatch):
    """Let what is written to files with `part` in their name go to /dev/full, where every write fails."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, a disk without space")
    real = io.open

    def fill(part: str) -> None:
        def opened(file, mode="r", *arguments, **options):
            if isinstance(file, str | os.PathLike) and set(mode) & set("wxa+") and part in Path(file).name:
                file, mode = "/dev/full", mode.replace("x", "w")
            return real(file, mode, *arguments, **options)

        monkeypatch.setattr(io, "open", opened)
        monkeypatch.setattr(builtins, "open", opened)

    return fill


def full(name: str) -> str:
    return f"{name}: no space left; free some (dvc gc --workspace shows how) and run again"


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("images.npy", "data/crops"),
        ("lesions.npy", "data/crops"),
        ("thumbnails.npy", "data/crops"),
        ("index.csv", "data/crops/index.csv"),
    ],
)
def test_a_full_disk_while_crops_are_written(start, fill_disk, part, named):
    fill_disk(part)
    assert start("crop", *CROP) == full(named)
    assert present() == set()


def test_a_full_disk_while_metrics_of_crops_are_written(start, fill_disk):
    fill_disk("crop.json")
    assert start("crop", *CROP) == full("metrics/crop.json")
    assert present() == CROPS
    assert len(read_images(Path("data/crops"))) == len(read_index(Path("data/crops")))


def test_a_full_disk_while_the_sheet_is_written(start, fill_disk):
    fill_disk("crops.png")
    assert start("crop", *CROP) == full("pictures/crops.png")
    assert "pictures/crops.png" not in present()


@pytest.mark.parametrize(("part", "left"), [("split.csv", set()), ("split.json", {"data/split.csv"})])
def test_a_full_disk_while_the_split_is_written(start, fill_disk, part, left):
    assert start("crop", *CROP) is None
    fill_disk(part)
    name = {"split.csv": "data/split.csv", "split.json": "metrics/split.json"}[part]
    assert start("split", *SPLIT) == full(name)
    assert present() == CROP_OUTPUTS | left


def test_a_full_disk_while_the_phantom_is_drawn(start, fill_disk):
    fill_disk("s004_f01.png")
    assert start("download", *DOWNLOAD) == full("data/fetched")
    assert present() == set()


def test_a_full_disk_while_a_folder_is_copied_names_the_copy(start, monkeypatch):
    as_mask_pairs()
    shutil.copytree("data/raw", "given/frames")
    change_params(Path(), {"download.source": "given/frames"})

    def fail(*arguments) -> None:  # as the kernel's copy does, of which shutil then names source and copy
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("sendfile", "copy_file_range"):
        monkeypatch.setattr(os, name, fail, raising=False)
    line = start("download", *DOWNLOAD)
    assert line == full("data/fetched/images/s000_f00.png")
    assert present() == set()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_of_a_copy_that_fails_the_second_file_is_named(monkeypatch, number):
    def main() -> None:
        raise OSError(number, "full", "given/a.png", None, "data/raw/a.png")

    monkeypatch.setattr(sys, "argv", ["copy"])
    with pytest.raises(SystemExit) as caught:
        run(main, "copy")
    assert caught.value.code == f"error: {full('data/raw/a.png')}"


def test_other_errors_of_the_system_are_not_hidden(start):
    Path("data/crops").write_text("a file where a folder should be")
    with pytest.raises(NotADirectoryError):
        start("crop", *CROP)
