"""Readers: what a folder of files becomes, layout by layout, and how images and masks are decoded."""

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import CARD, ROOT

from lesionlab.data.cards import Card, read_card
from lesionlab.data.readers import Boxes, BrokenImageError, read_frames, read_mask, read_rgb
from lesionlab.errors import InputError

MASK_PAIRS = {"kind": "mask-pairs", "folders": [["images", "masks"]]}


def make_card(layout: dict, groups: object = "near-duplicates", classes: tuple = ("background", "polyp")) -> Card:
    return Card.model_validate(CARD | {"layout": layout, "groups": groups, "classes": list(classes)})


def repository_card(name: str, monkeypatch) -> Card:
    with monkeypatch.context() as patch:
        patch.chdir(ROOT)
        return read_card(name)


def add_image(path: Path, pixels: np.ndarray | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 10, 3), 90, "uint8") if pixels is None else pixels).save(path, **options)
    return path


def add_pair(raw: Path, name: str, folders: tuple[str, str] = ("images", "masks")) -> None:
    add_image(raw / folders[0] / name)
    add_image(raw / folders[1] / name, np.zeros((8, 10), "uint8"))


def refusal(card: Card, raw: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_frames(card, raw)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Decoding


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_lossless_files_are_read_as_they_are(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype("uint8")
    read = read_rgb(add_image(tmp_path / f"a.{suffix}", pixels))
    assert read.dtype == np.uint8
    assert np.array_equal(read, pixels)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    white = Image.new("RGB", (7, 9), "white").convert(mode)
    suffix = "tif" if mode == "CMYK" else "png"
    white.save(tmp_path / f"a.{suffix}")
    assert np.array_equal(read_rgb(tmp_path / f"a.{suffix}"), np.full((9, 7, 3), 255))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_greyscale_is_windowed_not_clipped(tmp_path, suffix):
    ramp = np.linspace(1000, 3000, 64 * 64).reshape(64, 64)
    read = read_rgb(add_image(tmp_path / f"a.{suffix}", ramp.astype("uint16")))
    assert read.shape == (64, 64, 3)
    assert (read[..., 0] == read[..., 1]).all()
    assert (read[..., 0] == read[..., 2]).all()
    low, high = np.percentile(ramp, (0.5, 99.5))
    assert abs(read[..., 0] - np.clip((ramp - low) / (high - low) * 255, 0, 255)).max() < 1.5
    assert read.min() == 0
    assert read.max() == 255


def png_of_16_bits(colour: int, channels: int) -> bytes:
    """A grey level of 40,000 in 3 rows of 4 pixels, of a PNG's colour type; Pillow writes none with more channels."""
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", 4, 3, 16, colour, 0, 0, 0),
        b"IDAT": zlib.compress((b"\0" + np.full((4, channels), 40_000, ">u2").tobytes()) * 3),
        b"IEND": b"",
    }
    parts = [
        struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff_of_16_bits(planes: int) -> bytes:
    """The same in RGB, without compression; planes: 1 for channels of a pixel beside each other, 3 for one by one."""
    start, plane = 8 + 2 + 10 * 12 + 4, 4 * 3 * 2
    many = {258: start, 273: start + 6, 279: start + 18}  # where the values of a tag lie that has three
    entries = [(256, 4), (257, 3), (258, None), (259, 1), (262, 2), (273, start + 30), (277, 3), (278, 3)]
    entries += [(279, 3 * plane), (284, 1 if planes == 1 else 2)]
    ifd = b""
    for tag, value in entries:
        listed = tag == 258 or (tag in many and planes == 3)
        wide = tag in (273, 279)
        ifd += struct.pack("<HHII", tag, 4 if wide else 3, 3 if listed else 1, many[tag] if listed else value)
    values = struct.pack("<3H", 16, 16, 16) + struct.pack("<3I", *(start + 30 + n * plane for n in range(3)))
    values += struct.pack("<3I", plane, plane, plane)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return head + ifd + bytes(4) + values + np.full(36, 40_000, "<u2").tobytes()


@pytest.mark.parametrize(
    "content",
    [png_of_16_bits(2, 3), png_of_16_bits(4, 2), png_of_16_bits(6, 4), tiff_of_16_bits(1), tiff_of_16_bits(3)],
    ids=["png rgb", "png grey and alpha", "png rgba", "tiff", "tiff in planes"],
)
def test_channels_of_16_bits_are_refused_not_clipped(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with Image.open(path) as image:
        assert (image.size, image.mode[:3]) == ((4, 3), "RGB")
    with pytest.raises(InputError) as caught:
        read_rgb(path)
    assert str(caught.value) == f"{path}: has 16 bits a channel; save it as 16-bit grey or 8-bit RGB"
    assert not isinstance(caught.value, BrokenImageError), "crop.skip_broken would leave such frames out"


def test_grey_of_16_bits_and_a_bmp_of_16_bits_a_pixel_are_read(tmp_path):
    (tmp_path / "a.png").write_bytes(png_of_16_bits(0, 1))
    assert read_rgb(tmp_path / "a.png").shape == (3, 4, 3)
    masks = struct.pack("<3I", 0xF800, 0x7E0, 0x1F)
    header = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 16, 3, 4, 0, 0, 0, 0)
    pixels = struct.pack("<HH", 0xF800, 0x1F)
    (tmp_path / "b.bmp").write_bytes(struct.pack("<2sIHHI", b"BM", 70, 0, 0, 66) + header + masks + pixels)
    with Image.open(tmp_path / "b.bmp") as image:
        assert image.tile[0].args[0] == "BGR;16"
    assert read_rgb(tmp_path / "b.bmp").tolist() == [[[255, 0, 0], [0, 0, 255]]]


def test_a_flat_16_bit_image_is_black(tmp_path):
    assert read_rgb(add_image(tmp_path / "a.png", np.full((4, 4), 4000, "uint16"))).max() == 0


def test_float_images_are_windowed(tmp_path):
    ramp = np.linspace(-1, 1, 400, dtype="float32").reshape(20, 20)
    read = read_rgb(add_image(tmp_path / "a.tif", ramp))[..., 0]
    assert (read[0, 0], read[-1, -1]) == (0, 255)
    assert (np.diff(read.ravel().astype(int)) >= 0).all()


def test_a_photograph_is_turned_as_its_exif_says(tmp_path):
    pixels = np.zeros((4, 6, 3), "uint8")
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right
    read = read_rgb(add_image(tmp_path / "a.png", pixels, exif=exif))
    assert read.shape == (6, 4, 3)
    assert np.argwhere(read[..., 0] == 255).tolist() == [[0, 3]]


NOISE = np.random.default_rng(1).integers(0, 256, (24, 24, 3)).astype("uint8")


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(NOISE).save(stream, kind)
    return stream.getvalue()


ENCODED = {kind: encoded(kind) for kind in ("PNG", "JPEG", "TIFF", "BMP", "WEBP")}


@given(st.sampled_from(sorted(ENCODED)), st.floats(0, 0.95))
def test_a_truncated_image_is_broken_wherever_it_ends(kind, share):
    content = ENCODED[kind][: int(share * len(ENCODED[kind]))]
    stream = io.BytesIO(content)
    with pytest.raises(BrokenImageError, match=r"cannot be read as an image .*; replace or remove"):
        read_rgb(stream)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"II*\x00\x08\x00\x00\x00", b"BM", b"\xff\xd8"]),
)
def test_what_is_no_image_is_broken(content, start):
    with pytest.raises(BrokenImageError):
        read_rgb(io.BytesIO(start + content))


def test_an_image_that_unpacks_to_too_much_is_broken(tmp_path, monkeypatch):
    path = add_image(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    with pytest.raises(BrokenImageError, match=re.escape(f"{path}: cannot be read")):
        read_rgb(path)


def test_rgb_and_greyscale_masks_agree(tmp_path):
    grey = np.random.default_rng(2).integers(0, 256, (8, 10)).astype("uint8")
    red = np.zeros((8, 10, 3), "uint8")
    red[..., 0] = grey
    expected = grey > 127
    variants = {"grey": grey, "rgb": np.repeat(grey[..., None], 3, axis=2), "red": red}
    for name, pixels in variants.items():
        path = add_image(tmp_path / f"{name}.png", pixels)
        assert np.array_equal(read_mask(path, 127, (10, 8), Path("image.png")), expected), name


def test_noise_of_jpeg_masks_is_thresholded(tmp_path):
    true = np.zeros((64, 64), bool)
    true[19:45, 13:38] = True  # across the 8x8 blocks of JPEG
    path = add_image(tmp_path / "mask.jpg", np.where(true, 255, 0).astype("uint8"), quality=75)
    assert len(np.unique(np.asarray(Image.open(path)))) > 2  # lossy indeed
    assert np.array_equal(read_mask(path, 127, (64, 64), Path("image.jpg")), true)


def test_the_threshold_itself_is_not_lesion(tmp_path):
    path = add_image(tmp_path / "mask.png", np.array([[127, 128]], "uint8"))
    assert read_mask(path, 127, (2, 1), Path("i")).tolist() == [[False, True]]


def test_a_mask_of_another_size_names_both(tmp_path):
    path = add_image(tmp_path / "m.png", np.zeros((8, 10), "uint8"))
    with pytest.raises(InputError) as caught:
        read_mask(path, 127, (8, 10), Path("images/m.jpg"))
    assert str(caught.value).startswith(f"{path}: mask is 10x8 pixels but images/m.jpg is 8x10; both must have")
    assert not isinstance(caught.value, BrokenImageError)


# mask-pairs


def test_pairs_are_found_by_stem_with_suffixes_in_any_case(tmp_path):
    add_image(tmp_path / "images" / "b [1].v2.JPG")
    add_image(tmp_path / "masks" / "b [1].v2.png", np.zeros((8, 10), "uint8"))
    add_pair(tmp_path, "a 1.png")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    frames = read_frames(make_card(MASK_PAIRS), tmp_path)
    assert [frame.name for frame in frames] == ["images/a 1.png", "images/b [1].v2.JPG"]
    assert frames[1].mask == tmp_path / "masks" / "b [1].v2.png"
    assert {(frame.label, frame.group, frame.official) for frame in frames} == {(None, "", "")}


@pytest.mark.parametrize("top", ["", "release", "release 1.0/[data]"])
def test_pair_folders_may_lie_deeper(tmp_path, top):
    add_pair(tmp_path / top, "a.png")
    (frame,) = read_frames(make_card(MASK_PAIRS), tmp_path)
    assert frame.image == tmp_path / top / "images" / "a.png"
    assert frame.mask == tmp_path / top / "masks" / "a.png"


def test_pair_folders_are_names_not_patterns(tmp_path):
    layout = MASK_PAIRS | {"folders": [["images [a]", "masks (b)"]]}
    add_pair(tmp_path, "1.png", ("images [a]", "masks (b)"))
    assert [frame.name for frame in read_frames(make_card(layout), tmp_path)] == ["images [a]/1.png"]


def test_no_image_is_left_out_for_its_suffix(tmp_path):
    pixels = np.full((8, 10, 3), 90, "uint8")
    for name in ("a.JPE", "b.jfif", "c.jpeg", "d.webp"):
        path = add_image(tmp_path / "images" / name, pixels, format="WEBP" if name == "d.webp" else "JPEG")
        assert abs(read_rgb(path).astype(int) - 90).max() <= 1
        add_image(tmp_path / "masks" / f"{path.stem}.png", np.zeros((8, 10), "uint8"))
    frames = read_frames(make_card(MASK_PAIRS), tmp_path)
    assert [frame.image.name for frame in frames] == ["a.JPE", "b.jfif", "c.jpeg", "d.webp"]


def test_a_suffix_of_masks_is_taken_off(tmp_path):
    add_image(tmp_path / "images" / "7.png")
    mask = add_image(tmp_path / "masks" / "7_mask.png", np.zeros((8, 10), "uint8"))
    (frame,) = read_frames(make_card(MASK_PAIRS | {"mask_suffix": "_mask"}), tmp_path)
    assert frame.mask == mask


def test_an_image_without_mask_and_a_mask_without_image_are_errors(tmp_path):
    add_pair(tmp_path, "a.png")
    lonely = add_image(tmp_path / "images" / "b.png")
    expected = f"{lonely}: image without mask; add {tmp_path}/masks/b (.png, .jpg"
    assert refusal(make_card(MASK_PAIRS), tmp_path).startswith(expected)
    lonely.unlink()
    lonely = add_image(tmp_path / "masks" / "c.png")
    expected = f"{lonely}: mask without image; add {tmp_path}/images/c (.png, .jpg"
    assert refusal(make_card(MASK_PAIRS), tmp_path).startswith(expected)


def test_two_images_of_one_name_are_an_error(tmp_path):
    add_pair(tmp_path, "a.png")
    add_image(tmp_path / "images" / "a.jpg")
    expected = f"{tmp_path}/images/a.png: a.jpg has the same name up to the suffix; keep one of them"
    assert refusal(make_card(MASK_PAIRS), tmp_path) == expected


def test_wrong_folders_name_the_expected_ones(tmp_path):
    add_pair(tmp_path, "a.png", ("frames", "labels"))
    expected = f"{tmp_path}: expected the folders images/ and masks/; check download.source"
    assert refusal(make_card(MASK_PAIRS), tmp_path) == expected
    assert refusal(make_card(MASK_PAIRS), tmp_path / "nowhere").endswith("not found; run dvc repro download@images")


def test_empty_folders_are_an_error(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    assert refusal(make_card(MASK_PAIRS), tmp_path).startswith(f"{tmp_path}: no image found that datasets/tiny-")


# Group rules


def test_groups_by_pattern(tmp_path):
    for name in ("patient1_a.png", "patient1_b.png", "patient23_a.png"):
        add_pair(tmp_path, name)
    card = make_card(MASK_PAIRS, {"pattern": r"(patient\d+)_"})
    assert [frame.group for frame in read_frames(card, tmp_path)] == ["patient1", "patient1", "patient23"]
    card = make_card(MASK_PAIRS, {"pattern": r"t(\d)\d*_(.)"})
    assert [frame.group for frame in read_frames(card, tmp_path)] == ["1-a", "1-b", "2-a"]
    card = make_card(MASK_PAIRS, {"pattern": r"t\d"})
    assert [frame.group for frame in read_frames(card, tmp_path)] == ["t1", "t1", "t2"]


def test_a_name_that_no_rule_holds_is_an_error(tmp_path):
    add_pair(tmp_path, "x9.png")
    refused = refusal(make_card(MASK_PAIRS, {"pattern": "p([0-9])"}), tmp_path)
    assert refused == "datasets/tiny-phantom.yaml: groups.pattern 'p([0-9])' does not match images/x9.png"
    refused = refusal(make_card(MASK_PAIRS, {"ranges": [[1, 8, "a"]]}), tmp_path)
    assert refused == "datasets/tiny-phantom.yaml: no range of groups.ranges holds images/x9.png"


# CVC-ClinicDB and Kvasir-SEG in miniature


CVC_LAYOUTS = {
    "release": (("CVC-ClinicDB/Original", "CVC-ClinicDB/Ground Truth"), "tif"),
    "release, flat": (("Original", "Ground Truth"), "tif"),
    "png": (("PNG/Original", "PNG/Ground Truth"), "png"),
    "tif": (("archive/TIF/Original", "archive/TIF/Ground Truth"), "tif"),
}
CVC_NUMBERS = {1: "1", 25: "1", 26: "2", 104: "6", 200: "10", 205: "10", 206: "11", 612: "29"}


@pytest.mark.parametrize("layout", CVC_LAYOUTS)
def test_cvc_clinicdb_reads_the_same_in_every_layout(tmp_path, monkeypatch, layout):
    folders, suffix = CVC_LAYOUTS[layout]
    for number in CVC_NUMBERS:
        pixels = np.full((8, 10, 3), number % 250, "uint8")
        add_image(tmp_path / folders[0] / f"{number}.{suffix}", pixels)
        add_image(tmp_path / folders[1] / f"{number}.{suffix}", np.full((8, 10), 255, "uint8"))
    frames = read_frames(repository_card("cvc-clinicdb", monkeypatch), tmp_path)
    assert {int(frame.image.stem): frame.group for frame in frames} == CVC_NUMBERS
    for frame in frames:
        assert read_rgb(frame.image)[0, 0, 0] == int(frame.image.stem) % 250
        assert read_mask(frame.mask, 127, (10, 8), frame.image).all()


def test_the_kaggle_copy_of_cvc_clinicdb_is_read_once(tmp_path, monkeypatch):
    for kind in ("PNG", "TIF"):
        for number in (1, 30):
            add_pair(tmp_path, f"{number}.{kind.lower()}", (f"{kind}/Original", f"{kind}/Ground Truth"))
    frames = read_frames(repository_card("cvc-clinicdb", monkeypatch), tmp_path)
    assert [frame.name for frame in frames] == ["PNG/Original/1.png", "PNG/Original/30.png"]


def test_the_table_of_kaggles_copy_of_cvc_clinicdb_says_whose_a_frame_is(tmp_path, monkeypatch):
    lines = ["frame_id,sequence_id,png_image_path,png_mask_path,tif_image_path,tif_mask_path"]
    for number, sequence in {1: 1, 25: 1, 30: 7}.items():
        paths = []
        for kind in ("PNG", "TIF"):
            folders = f"{kind}/Original", f"{kind}/Ground Truth"
            add_pair(tmp_path / "archive", f"{number}.{kind.lower()}", folders)
            paths += [f"{folder}/{number}.{kind.lower()}" for folder in folders]
        lines.append(",".join([str(number), str(sequence), *paths]))
    (tmp_path / "archive" / "metadata.csv").write_text("\n".join(lines) + "\n")
    frames = read_frames(repository_card("cvc-clinicdb", monkeypatch), tmp_path)
    groups = {frame.name.removeprefix("archive/"): frame.group for frame in frames}
    assert groups == {"PNG/Original/1.png": "1", "PNG/Original/25.png": "1", "PNG/Original/30.png": "7"}


def test_a_frame_number_outside_of_cvc_clinicdb_is_an_error(tmp_path, monkeypatch):
    add_pair(tmp_path, "613.tif", ("Original", "Ground Truth"))
    refused = refusal(repository_card("cvc-clinicdb", monkeypatch), tmp_path)
    assert refused == "datasets/cvc-clinicdb.yaml: no range of groups.ranges holds Original/613.tif"


def test_kvasir_seg_in_miniature(tmp_path, monkeypatch):
    names = ["cju0qkwl35piu0993l0dewei2", "cju0qoxqj9q6s0835b43399p4"]
    for name in names:
        add_pair(tmp_path / "Kvasir-SEG", f"{name}.jpg")
    (tmp_path / "Kvasir-SEG" / "kavsir_bboxes.json").write_text("{}")
    frames = read_frames(repository_card("kvasir-seg", monkeypatch), tmp_path)
    assert [frame.name for frame in frames] == [f"Kvasir-SEG/images/{name}.jpg" for name in names]
    assert {frame.group for frame in frames} == {""}


# class-folders


def test_class_folders_with_awkward_names(tmp_path):
    names = {
        "lung [scc]/a b.png": "lung [scc]",
        "lung [scc]/deep/er/x.PNG": "lung [scc]",
        "st. 1 (early)/c.1.JPeG": "st. 1 (early)",
        "st. 1 (early)/d.TIF": "st. 1 (early)",
    }
    for name in names:
        add_image(tmp_path / name)
    add_image(tmp_path / "other" / "e.png")
    add_image(tmp_path / "__MACOSX" / "lung [scc]" / "a b.png")
    add_image(tmp_path / "lung [scc]" / "._a b.png")
    add_image(tmp_path / "lung [scc]" / ".hidden.png")
    add_image(tmp_path / "lung [scc]" / ".ipynb_checkpoints" / "a b-checkpoint.png")
    (tmp_path / "lung [scc]" / "folder.png").mkdir()
    layout = {"kind": "class-folders", "ignore": ["Other"]}
    card = make_card(layout, classes=("lung [scc]", "st. 1 (early)"))
    frames = read_frames(card, tmp_path)
    assert {frame.name: frame.label for frame in frames} == names
    assert {frame.mask for frame in frames} == {None}


X_RAYS = {
    "kind": "class-folders",
    "folders": {"NORMAL": "healthy", "bacteria": "ill", "virus": "ill"},
    "subsets": {"train": "train", "valid": "val", "test": "test"},
}


def test_folders_may_be_called_otherwise_and_subsets_are_the_published_split(tmp_path):
    names = {
        "chest_xray/train/NORMAL/1.jpeg": ("healthy", "train"),
        "chest_xray/valid/bacteria/2.jpeg": ("ill", "val"),
        "chest_xray/test/virus/3.jpeg": ("ill", "test"),
    }
    for name in names:
        add_image(tmp_path / name)
    card = make_card(X_RAYS, "none", ("healthy", "ill"))
    frames = read_frames(card, tmp_path)
    assert {frame.name: (frame.label, frame.official) for frame in frames} == names
    stray = add_image(tmp_path / "chest_xray/extra/virus/4.jpeg")
    expected = f"{stray}: lies in none of the folders train, valid, test of the published split, as others do; name"
    assert refusal(card, tmp_path).startswith(expected)


def test_without_any_of_the_subset_folders_there_is_no_published_split(tmp_path):
    for name in ("NORMAL/1.jpeg", "extra/virus/2.jpeg"):
        add_image(tmp_path / name)
    frames = read_frames(make_card(X_RAYS, "none", ("healthy", "ill")), tmp_path)
    assert [(frame.label, frame.official) for frame in frames] == [("healthy", ""), ("ill", "")]


def test_images_of_a_folder_that_the_card_does_not_name_are_an_error(tmp_path):
    for name in ("NORMAL/1.jpeg", "virus/2.jpeg", "Fungus/3.jpeg", "Fungus/4.jpeg", "5.jpeg"):
        add_image(tmp_path / name)
    refused = refusal(make_card(X_RAYS, "none", ("healthy", "ill")), tmp_path)
    assert refused.startswith(f"{tmp_path}: its images (3 here and in other such folders) have no class in datasets/")
    (tmp_path / "5.jpeg").unlink()
    refused = refusal(make_card(X_RAYS, "none", ("healthy", "ill")), tmp_path)
    assert refused.startswith(f"{tmp_path}/Fungus: its images (2 here")
    assert refused.endswith("name the folder in layout.folders, or in layout.ignore to leave it out")
    frames = read_frames(make_card(X_RAYS | {"ignore": ["fungus"]}, "none", ("healthy", "ill")), tmp_path)
    assert [frame.name for frame in frames] == ["NORMAL/1.jpeg", "virus/2.jpeg"]


@pytest.mark.parametrize("second", ["chest_xray/chest_xray", "chest_xray", "copy [2] of all"])
def test_a_second_copy_of_a_release_is_read_once(tmp_path, second):
    """Only what is the same byte for byte: equal names in two folders of patients are two images."""
    for number, name in enumerate(("train/NORMAL/1.jpeg", "train/virus/1.jpeg", "test/virus/1.jpeg")):
        for top in ("", second):
            add_image(tmp_path / top / name, np.full((8, 10, 3), 20 * number, "uint8"))
    add_image(tmp_path / second / "test" / "virus" / "9.jpeg")
    add_image(tmp_path / "other" / "train" / "NORMAL" / "1.jpeg", np.full((8, 10, 3), 200, "uint8"))
    frames = read_frames(make_card(X_RAYS, "none", ("healthy", "ill")), tmp_path)
    assert len(frames) == 5
    assert sorted(read_rgb(frame.image)[0, 0, 0].item() for frame in frames) == [0, 20, 40, 90, 200]


@pytest.mark.parametrize("second", ["train/train/virus", "train/new/train/virus", "train/virus/virus", "train/b/virus"])
def test_a_second_copy_within_a_folder_of_the_release_is_read_once(tmp_path, second):
    names = ("train/NORMAL/1.jpeg", "train/virus/1.jpeg", "valid/virus/1.jpeg", "test/virus/1.jpeg", f"{second}/1.jpeg")
    for name in names:
        add_image(tmp_path / name)
    add_image(tmp_path / second / "2.jpeg")
    frames = read_frames(make_card(X_RAYS, "none", ("healthy", "ill")), tmp_path)
    read = [(frame.official, frame.label, frame.image.name) for frame in frames]
    assert sorted(read) == [
        ("test", "ill", "1.jpeg"), ("train", "healthy", "1.jpeg"), ("train", "ill", "1.jpeg"),
        ("train", "ill", "2.jpeg"), ("val", "ill", "1.jpeg"),
    ]  # fmt: skip


def test_folders_of_one_published_subset_are_not_copies_of_each_other(tmp_path):
    """As of the chest X-rays, whose validation films are training films again."""
    for name in ("train/NORMAL/1.jpeg", "val/NORMAL/1.jpeg", "test/virus/2.jpeg"):
        add_image(tmp_path / name)
    layout = X_RAYS | {"subsets": {"train": "train", "val": "train", "test": "test"}}
    frames = read_frames(make_card(layout, "none", ("healthy", "ill")), tmp_path)
    assert [frame.official for frame in frames] == ["test", "train", "train"]


def test_equal_files_of_two_patients_are_no_copies_of_each_other(tmp_path):
    for patient in ("p1", "p2"):
        add_image(tmp_path / f"train/{patient}/NORMAL/1.jpeg")
        add_image(tmp_path / f"again/train/{patient}/NORMAL/1.jpeg")
    add_image(tmp_path / "test/p3/virus/1.jpeg")
    frames = read_frames(make_card(X_RAYS, {"pattern": r"/(p\d)/"}, ("healthy", "ill")), tmp_path)
    assert sorted(frame.group for frame in frames) == ["p1", "p2", "p3"]


def test_capitals_of_folders_do_not_matter(tmp_path):
    for name in ("Train/normal/1.JPG", "TEST/Bacteria/2.Png", "VALID/VIRUS/3.jpeg"):
        add_image(tmp_path / name)
    frames = read_frames(make_card(X_RAYS, "none", ("healthy", "ill")), tmp_path)
    assert [(frame.label, frame.official) for frame in frames] == [
        ("ill", "test"),
        ("healthy", "train"),
        ("ill", "val"),
    ]


def test_a_class_without_an_image_is_an_error(tmp_path):
    add_image(tmp_path / "ill" / "1.png")
    card = make_card({"kind": "class-folders"}, "none", ("healthy", "ill"))
    expected = f"{tmp_path}: class 'healthy' of datasets/tiny-phantom.yaml has no image; add images, or correct"
    assert refusal(card, tmp_path).startswith(expected)


# Releases of class folders in miniature: path -> class, group, published subset

LUNG = "large.cell.carcinoma"
SQUAMOUS = "squamous.cell.carcinoma"
RELEASES = {
    "nct-crc-he": {
        f"{top}/{tissue}/{tissue}-{letters}.tif": (tissue, "", subset)
        for tissue in ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
        for top, letters, subset in (
            ("NCT-CRC-HE-100K/NCT-CRC-HE-100K", "AAFLHTLQ", "train"),
            ("CRC-VAL-HE-7K", "TCGA-AA", "test"),
        )
    },
    "kather-2016": {
        f"Kather_texture_2016_image_tiles_5000/{folder}/1DB_CRC-Prim-HE-{code}.tif_Row_151_Col_1.tif": (
            label, code[:2], "",
        )
        for folder, label, code in (
            ("01_TUMOR", "tumour", "02_003b"),
            ("02_STROMA", "stroma", "10"),
            ("03_COMPLEX", "complex stroma", "02"),
            ("04_LYMPHO", "lymphocytes", "04c"),
            ("05_DEBRIS", "debris", "05"),
            ("06_MUCOSA", "mucosa", "06"),
            ("07_ADIPOSE", "adipose", "07"),
        )
    },
    "brain-mri-kaggle": {
        "Training/glioma/Tr-gl_0010.jpg": ("glioma", "", "train"),
        "Training/meningioma/Tr-me_0010.jpg": ("meningioma", "", "train"),
        "Training/notumor/Tr-no_0010.jpg": ("no tumour", "", "train"),
        "Testing/pituitary/Te-pi_0010.jpg": ("pituitary", "", "test"),
    },
    "brain-mri-kaggle, Bhuvaji et al.": {
        "Training/glioma_tumor/gg (1).jpg": ("glioma", "", "train"),
        "Training/meningioma_tumor/m (1).jpg": ("meningioma", "", "train"),
        "Training/no_tumor/1.jpg": ("no tumour", "", "train"),
        "Testing/pituitary_tumor/image(1).jpg": ("pituitary", "", "test"),
    },
    "iq-oth-nccd": {
        f"The IQ-OTHNCCD lung cancer dataset/The IQ-OTHNCCD lung cancer dataset/{kind} cases/{kind} case (1).jpg": (
            label, "", "",
        )
        for kind, label in (("Bengin", "benign"), ("Malignant", "malignant"), ("Normal", "normal"))
    },
    "chest-ct": {
        "Data/train/adenocarcinoma_left.lower.lobe_T2_N0_M0_Ib/000005 (3).png": ("adenocarcinoma", "", "train"),
        f"Data/valid/{LUNG}_left.hilum_T2_N2_M0_IIIa/000108 (3).png": ("large-cell carcinoma", "", "val"),
        f"Data/test/{LUNG}/000108 (3).png": ("large-cell carcinoma", "", "test"),
        f"Data/train/{SQUAMOUS}_left.hilum_T1_N2_M0_IIIa/000005.png": ("squamous-cell carcinoma", "", "train"),
        f"Data/test/{SQUAMOUS}/000111.png": ("squamous-cell carcinoma", "", "test"),
        "Data/test/adenocarcinoma/000108.png": ("adenocarcinoma", "", "test"),
        "Data/train/normal/6 - Copy (2) - Copy.png": ("normal", "", "train"),
        "Data/valid/normal/6 - Copy (2).jpg": ("normal", "", "val"),
        "Data/test/normal/11 (2).png": ("normal", "", "test"),
    },
    "chest-xray": {
        "chest_xray/train/NORMAL/IM-0115-0001.jpeg": ("normal", "IM-0115", "train"),
        "chest_xray/train/NORMAL/IM-0429-0001-0002.jpeg": ("normal", "IM-0429", "train"),
        "chest_xray/val/NORMAL/NORMAL2-IM-0115-0001.jpeg": ("normal", "IM-0115", "train"),
        "chest_xray/train/PNEUMONIA/person1_bacteria_1.jpeg": ("pneumonia", "1-bacteria", "train"),
        "chest_xray/train/PNEUMONIA/person1_bacteria_2.jpeg": ("pneumonia", "1-bacteria", "train"),
        "chest_xray/test/PNEUMONIA/person1_virus_6.jpeg": ("pneumonia", "1-virus", "test"),
        "chest_xray/test/PNEUMONIA/person1000_virus_1681.jpeg": ("pneumonia", "1000-virus", "test"),
        "chest_xray/test/NORMAL/NORMAL-10-1.jpeg": ("normal", "NORMAL-10", "test"),
    },
}  # fmt: skip


@pytest.mark.parametrize("release", RELEASES)
def test_releases_of_class_folders_in_miniature(tmp_path, monkeypatch, release):
    for number, name in enumerate(RELEASES[release]):
        add_image(tmp_path / name, np.full((8, 10, 3), number, "uint8"))
    add_image(tmp_path / "__MACOSX" / "chest_xray" / "train" / "NORMAL" / "._IM-0115-0001.jpeg")
    (tmp_path / ".DS_Store").write_text("macOS")
    if release == "iq-oth-nccd":
        add_image(tmp_path / "Test cases" / "000019_01_01_001.jpg")
    if release == "chest-xray":
        add_image(tmp_path / "CellData" / "OCT" / "train" / "NORMAL" / "NORMAL-1001666-1.jpeg")
        add_image(tmp_path / "OCT2017" / "test" / "CNV" / "CNV-1016042-1.jpeg")
    if release == "kather-2016":
        tile = "11FD4_CRC-Prim-HE-06_005.tif_Row_5851_Col_6901.tif"
        add_image(tmp_path / "Kather_texture_2016_image_tiles_5000" / "08_EMPTY" / tile)
    frames = read_frames(repository_card(release.split(",")[0], monkeypatch), tmp_path)
    assert {frame.name: (frame.label, frame.group, frame.official) for frame in frames} == RELEASES[release]


def test_tiles_without_colour_normalization_stand_in_for_the_others_and_never_beside_them(tmp_path, monkeypatch):
    for tissue in ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM"):
        for top in ("NCT-CRC-HE-100K-NONORM", "CRC-VAL-HE-7K"):
            add_image(tmp_path / top / tissue / f"{tissue}-{top[0]}.tif")
    card = repository_card("nct-crc-he", monkeypatch)
    assert [frame.official for frame in read_frames(card, tmp_path)] == ["test"] * 9 + ["train"] * 9
    add_image(tmp_path / "NCT-CRC-HE-100K" / "ADI" / "ADI-N.tif")
    refused = refusal(card, tmp_path)
    for top, others in (
        ("NCT-CRC-HE-100K-NONORM", "NCT-CRC-HE-100K, CRC-VAL-HE-7K"),
        ("NCT-CRC-HE-100K", "NCT-CRC-HE-100K-NONORM, CRC-VAL-HE-7K"),
    ):
        assert f"{tmp_path}/{top}/ADI/ADI-N.tif: lies in none of the folders {others} of the published split" in refused
    assert refused.endswith("or take it out")


def test_lc25000_takes_its_groups_from_the_published_clusters(tmp_path, monkeypatch):
    top = "lung_colon_image_set"
    names = [
        f"{top}/colon_image_sets/colon_aca/colonca1.jpeg", f"{top}/colon_image_sets/colon_n/colonn1.jpeg",
        f"{top}/lung_image_sets/lung_aca/lungaca1.jpeg", f"{top}/lung_image_sets/lung_n/lungn1.jpeg",
        f"{top}/lung_image_sets/lung_scc/lungscc5000.jpeg",
    ]  # fmt: skip
    for name in names:
        add_image(tmp_path / name)
    refused = refusal(repository_card("lc25000", monkeypatch), tmp_path)
    assert f"{tmp_path}: no lc25000_image_groups.csv, which groups.file in datasets/lc25000.yaml names; or " in refused
    columns = ("stem", "filename", "label", "tissue", "local_cluster_label", "group_id")
    rows = [(Path(n).stem, Path(n).name, Path(n).parent.name, "lung", k, f"g{k}") for k, n in enumerate(names)]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "lc25000_image_groups.csv", index=False)
    frames = read_frames(repository_card("lc25000", monkeypatch), tmp_path)
    classes = ["colon_aca", "colon_n", "lung_aca", "lung_n", "lung_scc"]
    expected = [(name, label, f"g{k}") for k, (name, label) in enumerate(zip(names, classes, strict=True))]
    assert [(frame.name, frame.label, frame.group) for frame in frames] == expected


def test_the_reduced_copy_of_lc25000_is_read_by_its_own_table(tmp_path, monkeypatch):
    classes = ["lung_n", "lung_n", "colon_aca", "colon_n", "lung_aca", "lung_scc"]
    rows = [{"image": f"images/{k}.jpg", "class": name, "cluster": f"c{k // 2}"} for k, name in enumerate(classes)]
    for entry in rows:
        add_image(tmp_path / entry["image"])
    pd.DataFrame(rows).to_csv(tmp_path / "index.csv", index=False)
    frames = read_frames(repository_card("lc25000", monkeypatch), tmp_path)
    assert [(frame.label, frame.group) for frame in frames] == [(row["class"], row["cluster"]) for row in rows]


def test_the_copy_of_the_brain_tumours_groups_slices_that_follow_each_other(tmp_path, monkeypatch):
    """A new group where class or fold changes; masks where the windows' card cuts them out."""
    kinds = [("glioma", 1), ("glioma", 1), ("glioma", 2), ("meningioma", 2), ("pituitary", 2)]
    rows = [
        {"index": k, "image": f"images/{k}.jpg", "class": label, "fold": fold, "mask": f"masks/{k}.png"}
        for k, (label, fold) in enumerate(kinds, start=1)
    ]
    for entry in rows:
        add_image(tmp_path / entry["image"])
        add_image(tmp_path / entry["mask"])
    pd.DataFrame(rows).to_csv(tmp_path / "metadata.csv", index=False)
    for name in ("brain-tumor-cheng", "brain-tumor-cheng-windows"):
        frames = read_frames(repository_card(name, monkeypatch), tmp_path)
        assert pd.factorize(np.array([frame.group for frame in frames]))[0].tolist() == [0, 0, 1, 2, 3]
        assert [frame.official for frame in frames] == ["1", "1", "2", "2", "2"]
        windows = name.endswith("windows")
        assert [frame.label for frame in frames] == ([None] * 5 if windows else [label for label, _ in kinds])
        assert all(frame.mask is not None for frame in frames)


def test_the_kaggle_copy_of_the_chest_x_rays_is_read_once(tmp_path, monkeypatch):
    names = RELEASES["chest-xray"]
    for number, name in enumerate(names):
        for top in ("", "chest_xray"):
            add_image(tmp_path / top / name, np.full((8, 10, 3), number, "uint8"))
    frames = read_frames(repository_card("chest-xray", monkeypatch), tmp_path)
    assert [frame.image.name for frame in frames] == [Path(name).name for name in sorted(names)]
    assert len(frames) == len(names)


# table


TABLE = {"kind": "table", "file": "index.csv", "image": "path", "label": "diagnosis", "subset": "split"}


def add_table(folder: Path, rows: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(folder / "index.csv", index=False)
    for row in rows:
        for kind in ("path", "mask"):
            if row.get(kind):
                add_image(folder / row[kind])


def row(path: str, diagnosis: str, patient: str, split: str = "") -> dict:
    return {"path": path, "diagnosis": diagnosis, "patient": patient, "split": split}


ROWS = [row("b/2.png", "1", "007", "test"), row("b/1 x.png", "0", "NA", "train"), row("a.png", "1", "007")]


def test_a_table_gives_labels_groups_and_the_published_split(tmp_path):
    add_table(tmp_path / "release", ROWS)
    frames = read_frames(make_card(TABLE, {"column": "patient"}, ("0", "1")), tmp_path)
    assert [(f.name, f.label, f.group, f.official) for f in frames] == [
        ("release/a.png", "1", "007", ""),
        ("release/b/1 x.png", "0", "NA", "train"),
        ("release/b/2.png", "1", "007", "test"),
    ]
    assert [f.group for f in frames] == ["007", "NA", "007"]
    assert frames[0].image == tmp_path / "release" / "a.png"


def test_further_columns_of_a_table_are_kept_as_text_and_may_be_empty(tmp_path):
    cells = [("north", "007"), (" ", "NA"), ("", "1.50")]
    add_table(tmp_path, [row | {"centre": c, "scanner": s} for row, (c, s) in zip(ROWS, cells, strict=True)])
    card = make_card(TABLE | {"columns": ["centre", "scanner"]}, {"column": "patient"}, ("0", "1"))
    frames = read_frames(card, tmp_path)
    assert {f.name: f.further for f in frames} == {
        "b/2.png": {"centre": "north", "scanner": "007"},
        "b/1 x.png": {"centre": "", "scanner": "NA"},
        "a.png": {"centre": "", "scanner": "1.50"},
    }
    card = make_card(TABLE | {"columns": ["centre", "vendor"]}, {"column": "patient"}, ("0", "1"))
    columns = "path, diagnosis, patient, split, centre, scanner"
    assert refusal(card, tmp_path) == f"{tmp_path}/index.csv: column 'vendor' is missing (has: {columns})"


def test_a_table_of_masks(tmp_path):
    rows = [
        {"path": "1.png", "mask": "m/1.png", "sequence": "s1"},
        {"path": "2.png", "mask": "m/2.png", "sequence": "s2"},
    ]
    add_table(tmp_path, rows)
    layout = {"kind": "table", "file": "index.csv", "image": "path", "mask": "mask"}
    frames = read_frames(make_card(layout, {"column": "sequence"}), tmp_path)
    assert [(f.name, f.mask, f.label, f.group) for f in frames] == [
        ("1.png", tmp_path / "m/1.png", None, "s1"),
        ("2.png", tmp_path / "m/2.png", None, "s2"),
    ]
    add_table(tmp_path, [*rows, {"path": "3.png", "mask": "", "sequence": "s2"}])
    refused = refusal(make_card(layout, {"column": "sequence"}), tmp_path)
    assert refused.startswith(f"{tmp_path}/index.csv: 3.png has no mask in column 'mask'; name a mask")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [*ROWS, row("c.png", "2", "1")],
            "index.csv: label '2' of c.png is not in classes of datasets/tiny-phantom.yaml",
        ),
        (
            [*ROWS, row("c.png", "1", "1", "valid")],
            "index.csv: subset 'valid' of c.png in column 'split' is none of train",
        ),
        ([*ROWS, ROWS[0]], "b/2.png is listed twice; keep one row for each image"),
        ([row("a.png", "1", "1")], "class '0' of datasets/tiny-phantom.yaml has no image"),
        ([{"path": "a.png", "diagnosis": "1"}], "column 'patient' is missing (has: path, diagnosis)"),
        ([*ROWS, row("../out.png", "1", "1")], "/../out.png, which is outside of "),
    ],
)
def test_a_wrong_table_names_the_row_and_the_remedy(tmp_path, rows, message):
    raw = tmp_path / "raw"
    add_table(raw, rows)
    assert message in refusal(make_card(TABLE, {"column": "patient"}, ("0", "1")), raw)


def test_a_table_that_names_a_missing_file_or_is_missing_itself(tmp_path):
    card = make_card(TABLE, {"column": "patient"}, ("0", "1"))
    refused = refusal(card, tmp_path)
    assert refused == f"{tmp_path}: no index.csv, which layout.file in datasets/tiny-phantom.yaml names"
    add_table(tmp_path, ROWS)
    (tmp_path / "a.png").unlink()
    expected = f"{tmp_path}/index.csv: names {tmp_path}/a.png, which does not exist; add it, or take the row out"
    assert refusal(card, tmp_path) == expected


def test_a_table_of_links_into_a_cache_keeps_its_names(tmp_path):
    raw = tmp_path / "raw"
    add_table(raw, ROWS)
    cached = tmp_path / "cache" / "0123"
    cached.parent.mkdir()
    (raw / "a.png").rename(cached)
    (raw / "a.png").symlink_to(cached)
    frames = read_frames(make_card(TABLE, {"column": "patient"}, ("0", "1")), raw)
    assert [frame.name for frame in frames] == ["a.png", "b/1 x.png", "b/2.png"]


def test_a_table_of_labels_and_masks_keeps_both(tmp_path):
    rows = [
        {"path": "1.png", "mask": "m/1.png", "diagnosis": "1", "part": "3", "patient": "a"},
        {"path": "2.png", "mask": "", "diagnosis": "0", "part": "", "patient": "b"},
    ]
    add_table(tmp_path, rows)
    layout = TABLE | {"mask": "mask", "subset": None, "fold": "part"}
    card = make_card(layout, {"column": "patient"}, ("0", "1"))
    frames = read_frames(card, tmp_path)
    assert [(f.label, f.mask, f.official) for f in frames] == [("1", tmp_path / "m/1.png", "3"), ("0", None, "")]
    assert (card.whole_images, card.detection) == (True, "none")
    add_table(tmp_path, [rows[0] | {"part": "3.0"}])
    refused = refusal(card, tmp_path)
    assert refused.startswith(f"{tmp_path}/index.csv: fold '3.0' of 1.png in column 'part' is no number")


BOX = {"kind": "table", "file": "index.csv", "image": "path", "box": ["left", "top", "wide", "high"]}


def box_row(path: str, *cells: object, patient: str = "p", **further: str) -> dict:
    """A row of a table of boxes; no cells: no lesion."""
    return {"path": path, "patient": patient} | dict(zip(BOX["box"], cells or ("",) * 4, strict=True)) | further


def test_a_table_of_boxes_has_a_row_a_box(tmp_path):
    """Rows of one image need not follow each other, and edges between pixels are rounded."""
    rows = [
        box_row("2.png", 1, 2, 3, 4),
        box_row("1.png", "", " ", "", "", patient="q"),
        box_row("3.png", 0, 0, 10, 8),
        box_row("2.png", "6.4", "0.0", "2.2", "2.6"),
    ]
    add_table(tmp_path / "release", rows)
    frames = read_frames(make_card(BOX, {"column": "patient"}), tmp_path)
    table = tmp_path / "release" / "index.csv"
    assert [(f.name, f.label, f.group, f.mask) for f in frames] == [
        ("release/1.png", None, "q", Boxes(table, ())),
        ("release/2.png", None, "p", Boxes(table, ((1, 2, 3, 4), (6, 0, 3, 3)))),
        ("release/3.png", None, "p", Boxes(table, ((0, 0, 10, 8),))),
    ]
    none, two, full = (read_mask(frame.mask, 127, (10, 8), frame.image) for frame in frames)
    expected = np.zeros((8, 10), bool)
    expected[2:6, 1:4] = expected[0:3, 6:9] = True
    assert two.dtype == bool
    np.testing.assert_array_equal(two, expected)
    assert (none.any(), full.all()) == (False, True)


def test_a_table_of_labels_and_boxes_keeps_both(tmp_path):
    layout = BOX | {"label": "diagnosis", "subset": "split", "columns": ["centre"]}
    ill = {"diagnosis": "1", "split": "test", "centre": "north"}
    rows = [box_row("1.png", 1, 2, 3, 4, **ill), box_row("1.png", 5, 2, 3, 4, **ill)]
    rows.append(box_row("2.png", diagnosis="0", split="train", centre=""))
    add_table(tmp_path, rows)
    card = make_card(layout, {"column": "patient"}, ("0", "1"))
    frames = read_frames(card, tmp_path)
    assert [(f.label, len(f.mask.boxes), f.official, f.further) for f in frames] == [
        ("1", 2, "test", {"centre": "north"}),
        ("0", 0, "train", {"centre": ""}),
    ]
    assert (card.whole_images, card.detection) == (True, "none")
    for column, other in (("diagnosis", "0"), ("split", "train"), ("centre", "south")):
        add_table(tmp_path, [rows[0], rows[1] | {column: other}, rows[2]])
        expected = f"the rows of 1.png differ in column '{column}' ('{rows[1][column]}' and '{other}'); boxes of one"
        assert refusal(card, tmp_path).startswith(f"{tmp_path}/index.csv: {expected}")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([box_row("1.png", 1, "2 px", 3, 4)], "1.png has '2 px' in column 'top', which is no number of pixels; c"),
        ([box_row("1.png", 1, 2, "nan", 4)], "1.png has 'nan' in column 'wide', which is no number of pixels; correct"),
        ([box_row("1.png", 1, 2, "", 4)], "1.png has '' in column 'wide', which is no number of pixels; correct it"),
        ([box_row("1.png", 1, 2, 3, 0)], "1.png has a box of width 3 and height 0; correct it (a pixel at least), or"),
        ([box_row("1.png", 1, 2, -3, 4)], "1.png has a box of width -3 and height 4; correct it (a pixel at least)"),
        (
            [box_row("1.png", 1, 2, 3, 4), box_row("1.png", 1, 2, 3, 4, patient="q")],
            "the rows of 1.png differ in their group ('p' and 'q'); boxes of one image share it: correct the rows",
        ),
        (
            [box_row("1.png", 1, 2, 3, 4), box_row("1.png")],
            "1.png has 2 rows but boxes in 1; keep one row where there is no lesion, and one for each box where",
        ),
        ([box_row("1.png"), box_row("1.png")], "1.png has 2 rows but boxes in 0; keep one row where there is"),
        ([{"path": "1.png", "patient": "p"}], "column 'left' is missing (has: path, patient)"),
    ],
)
def test_a_wrong_table_of_boxes_names_the_row_and_the_remedy(tmp_path, rows, message):
    add_table(tmp_path, rows)
    refused = refusal(make_card(BOX, {"column": "patient"}), tmp_path)
    assert refused.startswith(f"{tmp_path}/index.csv: {message}")


@pytest.mark.parametrize("box", [(-1, 0, 4, 4), (0, -1, 4, 4), (7, 0, 4, 4), (0, 5, 4, 4)])
def test_a_box_outside_of_its_image_names_both(tmp_path, box):
    add_table(tmp_path, [box_row("1.png", 0, 0, 10, 8), box_row("1.png", *box)])
    (frame,) = read_frames(make_card(BOX, {"column": "patient"}), tmp_path)
    x, y, _, _ = box
    with pytest.raises(InputError) as caught:
        read_mask(frame.mask, 127, (10, 8), frame.image)
    assert str(caught.value) == (
        f"{tmp_path}/index.csv: box x {x}, y {y}, width 4, height 4 reaches outside of {tmp_path}/1.png, which is "
        "10x8 pixels; correct the row, or take it out"
    )


def test_rows_that_follow_each_other_and_agree_are_a_run(tmp_path):
    kinds = [("0", "1"), ("0", "1"), ("0", "2"), ("1", "2"), ("1", "2"), ("0", "1")]
    rows = [{"path": f"{n}.png", "diagnosis": d, "fold": f} for n, (d, f) in enumerate(kinds)]
    add_table(tmp_path, rows)
    layout = {"kind": "table", "file": "index.csv", "image": "path", "label": "diagnosis"}
    frames = read_frames(make_card(layout, {"runs": ["diagnosis", "fold"]}, ("0", "1")), tmp_path)
    assert [frame.group for frame in frames] == ["1", "1", "2", "3", "3", "4"]


def test_groups_of_another_table_are_joined_by_name(tmp_path):
    names = ("deep/a/1.jpeg", "b/2 x.png")
    for name in names:
        add_image(tmp_path / name)
    (tmp_path / "deep" / "tiles.csv").write_text("stem,tile\n1,NA\n2 x,07\n3,08\n")
    card = make_card({"kind": "class-folders"}, {"column": "tile", "file": "tiles.csv", "key": "stem"}, ("a", "b"))
    assert {frame.name: frame.group for frame in read_frames(card, tmp_path)} == {names[0]: "NA", names[1]: "07"}
    add_image(tmp_path / "b" / "4.png")
    expected = f"{tmp_path}/deep/tiles.csv: column 'stem' has no row for b/4.png; add one, or take it out"
    assert refusal(card, tmp_path) == expected
    (tmp_path / "deep" / "tiles.csv").write_text("stem,tile\n1,NA\n2 x,07\n4,08\n4,08 \n2 x,09\n")
    expected = f"{tmp_path}/deep/tiles.csv: column 'tile' has '07' and '09' for 2 x; keep one of them"
    assert refusal(card, tmp_path) == expected


def test_a_patient_is_the_same_with_blanks_and_an_image_without_one_is_refused(tmp_path):
    """Each image without a patient would count as a patient of its own, and might be one of another."""
    card = make_card(TABLE, {"column": "patient"}, ("0", "1"))
    rows = [row("1.png", "1", "P1"), row("2.png", "0", " P1 "), row("3.png", "0", "P2")]
    add_table(tmp_path, rows)
    assert [frame.group for frame in read_frames(card, tmp_path)] == ["P1", "P1", "P2"]
    add_table(tmp_path, [*rows, row("4.png", "0", " ")])
    assert "4.png has nothing in column 'patient', which says who must stay together" in refusal(card, tmp_path)


# Copies that lie otherwise


def test_the_first_layout_that_fits_is_read_and_said_and_an_error_lists_all(tmp_path, capsys):
    copies = [
        {"layout": {"kind": "table", "file": "a.csv", "image": "path", "label": "label"}, "groups": {"column": "case"}},
        {"layout": {"kind": "class-folders"}, "groups": "none"},
    ]
    by_table = {"column": "case", "file": "cases.csv", "key": "stem"}
    content = {"layout": {"kind": "class-folders"}, "groups": by_table, "classes": ["ill", "well"], "copies": copies}
    card = Card.model_validate(CARD | content)
    refused = refusal(card, tmp_path)
    assert refused.startswith(f"{tmp_path}: lies as none of the layouts of datasets/tiny-phantom.yaml: {tmp_path}: no ")
    assert refused.count("; or ") == 2
    for part in ("no cases.csv, which groups.file", "no a.csv, which layout.file", "in folders called ill, well"):
        assert part in refused
    for name in ("ill/1.png", "well/2.png"):
        add_image(tmp_path / name)
    assert [frame.group for frame in read_frames(card, tmp_path)] == ["", ""]
    (tmp_path / "a.csv").write_text("path,label,case\nill/1.png,ill,A\nwell/2.png,well,B\n")
    assert [frame.group for frame in read_frames(card, tmp_path)] == ["A", "B"]
    (tmp_path / "cases.csv").write_text("stem,case\n1,7\n2,8\n")
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path}: read by another layout of datasets/tiny-phantom.yaml (layout class-folders, groups none)",
        f"{tmp_path}: read by another layout of datasets/tiny-phantom.yaml (layout table, groups by column case)",
    ]
    assert [frame.group for frame in read_frames(card, tmp_path)] == ["7", "8"]
    assert capsys.readouterr().err == ""


# The phantom and real data


def test_the_phantom_is_grouped_by_sequence(drawn_phantom, tiny_card):
    frames = read_frames(tiny_card, drawn_phantom)
    assert len(frames) == 24
    assert [frame.group for frame in frames[:3]] == ["s000", "s000", "s001"]
    assert frames[0].name == "images/s000_f00.png"
    assert frames[0].mask == drawn_phantom / "masks" / "s000_f00.png"


@pytest.mark.real
@pytest.mark.parametrize(
    ("dataset", "folder", "frames", "groups"),
    [("kvasir-seg", "Kvasir-SEG", 1000, {""}), ("cvc-clinicdb", "cvc-clinicdb", 609, {str(n) for n in range(1, 30)})],
)
def test_real_folders_are_read(shared_data, monkeypatch, dataset, folder, frames, groups):
    read = read_frames(repository_card(dataset, monkeypatch), shared_data / folder)
    assert len(read) == frames
    assert {frame.group for frame in read} == groups
