"""Dataset cards: those of this repository, the template, and what a wrong card is told."""

import copy
import math
import re

import pytest
from tiny import CARD, ROOT, changed, write_card, write_yaml_file

from lesionlab.data.cards import (
    Card,
    ChengMat,
    ClassFolders,
    GroupRule,
    MaskPairs,
    Npz,
    Recommended,
    RecommendedAugmentation,
    RecommendedHead,
    RecommendedSplit,
    Source,
    Table,
    grouped_by,
    read_card,
    resolve_augmentation,
    resolve_baseline,
    resolve_split,
    resolve_transfer,
)
from lesionlab.errors import InputError
from lesionlab.models.backbones import find_backbone
from lesionlab.params import read_params

TEMPLATE = ROOT / "docs" / "card-template.yaml"
CARDS = sorted(path.stem for path in (ROOT / "datasets").glob("*.yaml"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(folder, changes: dict) -> str:
    write_yaml_file(folder / "datasets" / "mine.yaml", changed(copy.deepcopy(CARD) | {"name": "mine"}, changes))
    with pytest.raises(InputError) as caught:
        read_card("mine")
    return str(caught.value)


@pytest.mark.parametrize("dataset", CARDS)
def test_every_card_of_the_repository_is_accepted(dataset, monkeypatch):
    monkeypatch.chdir(ROOT)
    card = read_card(dataset)
    assert card.name == dataset
    assert card.licence
    assert card.citation
    assert set(card.shares_images_with) <= set(CARDS)


PUBLIC = {
    "brain-mri-kaggle", "brain-tumor-cheng", "brain-tumor-cheng-windows", "chest-ct", "chest-xray", "cvc-clinicdb",
    "iq-oth-nccd", "kather-2016", "kvasir-seg", "lc25000", "nct-crc-he", "pneumoniamnist",
}  # fmt: skip


def test_every_system_has_its_cards():
    assert set(CARDS) == PUBLIC | {"phantom", "phantom-external"}


@pytest.mark.parametrize("dataset", sorted(PUBLIC))
def test_a_card_says_how_files_are_had_and_who_vouches_for_a_checksum(dataset, monkeypatch):
    monkeypatch.chdir(ROOT)
    card = read_card(dataset)
    assert card.sources or card.obtain
    for source in (*card.sources, *card.alternatives):
        assert source.checksum_from
        assert source.md5 or source.sha256 or "checksum are unknown; they are recorded" in source.checksum_from
        assert source.bytes or re.search(r"size (is|and checksum are) unknown", source.checksum_from)
    if not card.sources:
        assert "checksum are unknown; they are recorded at the first download" in " ".join(card.obtain.split())
    if not all(source.md5 or source.sha256 for source in card.sources) or not card.sources:
        assert "account" in card.obtain
        assert "-S download.source=FOLDER" in card.obtain
        assert "outside data/raw" in card.obtain
    assert card.notes
    assert find_backbone(card.recommended.backbone).name == card.recommended.backbone
    assert re.search(r"leak|too good|near-duplicate", " ".join(card.notes))


@pytest.mark.parametrize(
    ("dataset", "copies", "train", "val"),
    [("nct-crc-he", 0, 80_000, 20_000), ("nct-crc-he", 4, 80_000, 20_000), ("lc25000", 4, 15_000, 5_000)],
)
def test_the_cache_that_a_card_announces_follows_from_params_and_shapes(dataset, copies, train, val, monkeypatch):
    monkeypatch.chdir(ROOT)
    card, params = read_card(dataset), read_params()
    notes = " ".join(card.notes)
    assert params.training.cache_dtype == "float32"
    assert resolve_augmentation(params.augment, card).copies == (0 if dataset == "nct-crc-he" else 4)
    assert f"{train:,} training tiles" in " ".join(notes.split())
    assert f"{val:,} validation tiles" in " ".join(notes.split())
    for stage, shape in {"transfer": (7, 7, 2048), "finetune": (14, 14, 1024)}.items():
        assert f"{(train * copies + val) * math.prod(shape) * 4 / 2**30:.0f} GiB in {stage}" in notes


def test_cvc_clinicdb_has_29_sequences_of_612_frames_without_gap_or_overlap(monkeypatch):
    monkeypatch.chdir(ROOT)
    [numbered] = read_card("cvc-clinicdb").copies
    ranges = numbered.groups.ranges
    numbers = [number for first, last, _ in ranges for number in range(first, last + 1)]
    assert numbers == list(range(1, 613))
    assert [group for _, _, group in ranges] == list(range(1, 30))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"licens": "x"}, "unknown key 'licens'; did you mean 'licence'?"),
        ({"layout.widht": 3}, "unknown key 'layout.widht'; did you mean 'width'?"),
        ({"groups": {"colum": "x"}}, "unknown key 'groups.colum'; did you mean 'column'?"),
        ({"sources": [{"file": "a", "url": "http://x/a", "sha265": "b"}]}, "unknown key 'sources.0.sha265'; did you"),
        ({"recommended.backbon": "x"}, "unknown key 'recommended.backbon'; did you mean 'backbone'?"),
        ({"groups": "patients"}, "groups: Input should be 'none' or 'near-duplicates' (is: 'patients')"),
        ({"groups": {}}, "groups: takes exactly one of column, pattern, ranges, runs, or is the word"),
        ({"groups": {"column": "a", "pattern": "b"}}, "groups: takes exactly one of column, pattern, ranges"),
        ({"groups": {"column": "a", "file": "b.csv"}}, "groups: file (a CSV), key (its column of image names) and"),
        ({"groups": {"pattern": "("}}, "groups: pattern '(' is not a regular expression: missing )"),
        ({"groups": {"ranges": [[1, 2]]}}, "key 'groups.ranges.0.2' is missing"),
        ({"layout": {"kind": "masks"}}, "layout: Input tag 'masks' found using 'kind' does not match any of"),
        (
            {"layout": {"kind": "class-folders", "subsets": {"a": "valid"}}, "groups": "none"},
            "layout.subsets.a: Input should be 'train', 'val' or 'test' (is: 'valid')",
        ),
        (
            {"layout": {"kind": "class-folders", "folders": {"NORMAL": "normal"}}, "groups": "none"},
            "layout.folders: 'NORMAL' is of class 'normal', not in classes ['background', 'polyp']",
        ),
        (
            {"layout": {"kind": "class-folders"}},
            "groups.column needs the layout table, but layout.kind is class-folders",
        ),
        ({"layout": {"kind": "table", "file": "x", "image": "y"}}, "layout: takes label (a class an image), mask"),
        (
            {"layout": {"kind": "table", "file": "x", "image": "y", "mask": "m", "box": ["a", "b", "c", "d"]}},
            "layout: takes mask (an image file) or box (columns of pixels), not both",
        ),
        (
            {"layout": {"kind": "table", "file": "x", "image": "y", "box": ["a", "b", "a", "d"]}},
            "layout: box: ['a', 'b', 'a', 'd'] names a column twice; name those of left, top, width and height",
        ),
        (
            {"layout": {"kind": "table", "file": "x", "image": "y", "box": ["a", "b", "c"]}},
            "key 'layout.box.3' is missing",
        ),
        (
            {"layout": {"kind": "table", "file": "x", "image": "y", "mask": "m", "subset": "s", "fold": "f"}},
            "layout: takes subset (train, val, test) or fold (numbers), not both",
        ),
        (
            {"layout": {"kind": "table", "file": "x.csv", "image": "y", "mask": "m", "columns": ["centre", "width"]}},
            "layout: columns: 'width' is the name of a column that the program writes itself; rename it in x.csv",
        ),
        (
            {"layout": {"kind": "table", "file": "x.csv", "image": "y", "mask": "m", "columns": ["a", "a"]}},
            "layout: columns: ['a', 'a'] names one twice",
        ),
        (
            {"layout": {"kind": "class-folders", "folders": {"a": "background", "A": "polyp"}}, "groups": "none"},
            "layout: 'a' and a folder that differs from it in capitals alone mean two things",
        ),
        (
            {"copies": [{"layout": {"kind": "class-folders"}, "groups": "none"}]},
            "copies: give labels where layout does",
        ),
        ({"tile": 224}, "tile: the side of an image of the release in pixels, with detect: tiles and only then"),
        ({"detect": "none"}, "detect: 'none' does not fit the layout; it takes windows"),
        (
            {"layout": {"kind": "class-folders"}, "groups": "none", "detect": "windows"},
            "detect: 'windows' does not fit the layout; it takes none or tiles",
        ),
        ({"classes": ["a", "b", "c"]}, "classes: ['a', 'b', 'c'] must be two with masks"),
        ({"classes": ["a", "a"]}, "classes: ['a', 'a'] names one twice"),
        ({"classes": ["a"]}, "classes: List should have at least 2 items"),
        ({"shares_images_with": ["mine", "mine"]}, "shares_images_with: ['mine', 'mine'] names one twice"),
    ],
)
def test_one_line_names_card_key_and_remedy(folder, changes, message):
    refused = refusal(folder, changes)
    assert refused.startswith(f"datasets/mine.yaml: {message}")
    assert "\n" not in refused


def test_an_unknown_data_set_lists_the_known_ones(folder):
    write_card(folder, "one")
    write_card(folder, "two")
    with pytest.raises(InputError) as caught:
        read_card("three")
    known = "`dataset` in params.yaml may be one of: one, two"
    assert str(caught.value) == f"datasets/three.yaml: no such card; {known}"


def test_a_card_is_called_as_its_file(folder):
    write_yaml_file(folder / "datasets" / "mine.yaml", CARD)
    with pytest.raises(InputError, match=r"datasets/mine\.yaml: name is 'tiny-phantom', must be 'mine'"):
        read_card("mine")


def commented(key: str) -> list[str]:
    """The blocks of the template that begin with `# <key>:`, without their comment signs."""
    blocks, block = [], None
    for line in TEMPLATE.read_text().splitlines():
        if line.startswith(f"# {key}:"):
            block = [line[2:]]
            blocks.append(block)
        elif block is not None and line.startswith("#   "):
            block.append(line[2:])
        else:
            block = None
    return ["\n".join(block) + "\n" for block in blocks]


def replaced(text: str, key: str, block: str) -> str:
    """A card's text with the block of `key` replaced."""
    active = re.search(rf"^{key}:.*\n(?:[ ].*\n)*", text, re.MULTILINE)
    return text[: active.start()] + block + text[active.end() :]


def read_text(folder, text: str) -> Card:
    path = folder / "datasets" / "my-frames.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return read_card("my-frames")


def test_the_template_is_a_card_as_it_stands_and_none_of_the_data_sets(folder):
    card = read_text(folder, TEMPLATE.read_text())
    assert card.layout == MaskPairs(kind="mask-pairs", folders=[("images", "masks")])
    assert card.groups.pattern == r"(patient\d+)_"
    assert TEMPLATE.stem not in CARDS


def test_every_layout_of_the_template_is_accepted(folder):
    layouts = [
        read_text(folder, replaced(TEMPLATE.read_text(), "layout", block)).layout for block in commented("layout")
    ]
    assert [type(layout) for layout in layouts] == [ClassFolders, Table, Npz, ChengMat]
    assert layouts[0].ignore == ("unsorted",)
    assert layouts[0].folders["polyps (2020)"] == "polyp"
    assert layouts[0].subsets == {"train": "train", "validation": "val", "test": "test"}
    assert (layouts[1].label, layouts[1].mask, layouts[1].subset) == ("diagnosis", None, "split")
    assert layouts[1].columns == ("centre", "scanner")


def test_every_group_rule_of_the_template_is_accepted(folder):
    table = commented("layout")[1]
    rules = []
    for block in commented("groups"):
        text = replaced(TEMPLATE.read_text(), "groups", block)
        of_table = "runs" in block or ("column" in block and "file" not in block)
        rules.append(read_text(folder, replaced(text, "layout", table) if of_table else text).groups)
    assert rules[0].column == "patient"
    assert (rules[1].file, rules[1].key, rules[1].column) == ("patients.csv", "stem", "patient")
    assert rules[2].ranges == [(1, 25, "first sequence"), (26, 50, "second sequence")]
    assert rules[3].runs == ["diagnosis", "fold"]
    assert rules[4] == "near-duplicates"


def test_the_copies_of_the_template_are_accepted(folder):
    text = replaced(TEMPLATE.read_text(), "layout", commented("layout")[0])
    card = read_text(folder, text + commented("copies")[0])
    assert [reading.layout.kind for reading in card.readings] == ["class-folders", "table"]
    assert card.readings[1].groups.column == "patient"


def test_the_alternatives_of_the_template_are_accepted(folder):
    (source,) = read_text(folder, TEMPLATE.read_text() + commented("alternatives")[0]).alternatives
    assert (source.file, source.bytes, source.sha256) == ("my-frames-large.zip", None, None)
    assert source.md5


def test_the_template_explains_every_key():
    text = TEMPLATE.read_text()
    explained = set(re.findall(r"\b([a-z_0-9]+):", text))
    for model in (
        Card,
        Source,
        MaskPairs,
        ClassFolders,
        Table,
        ChengMat,
        Npz,
        GroupRule,
        Recommended,
        RecommendedAugmentation,
        RecommendedHead,
        RecommendedSplit,
    ):
        assert not set(model.model_fields) - explained


def test_auto_in_the_split_is_what_the_card_says_and_the_rest_is_kept():
    params = read_params(ROOT / "params.yaml").split
    says = {"protocol": "official", "folds": 7, "near_duplicate_bits": 0, "validation_per_class": 150}
    says |= {"drop_duplicates": True}
    card = Card.model_validate(CARD | {"split": says})
    assert resolve_split(params, card).model_dump() == params.model_dump() | says
    for per_class in (None, 20):
        given = {"protocol": "random", "folds": 3, "near_duplicate_bits": 3, "validation_per_class": per_class}
        chosen = params.model_copy(update=given | {"drop_duplicates": False})
        assert resolve_split(chosen, card) == chosen
    silent = {"protocol": "group", "folds": 5, "near_duplicate_bits": 6, "validation_per_class": None}
    silent |= {"drop_duplicates": False}
    for protocol, dropped in (("official", True), ("group", False), ("random", False)):
        asked = params.model_copy(update={"protocol": protocol, "drop_duplicates": "auto"})
        assert resolve_split(asked, card).drop_duplicates is dropped
    assert resolve_split(params, Card.model_validate(CARD)).model_dump() == params.model_dump() | silent


def test_auto_in_the_augmentation_is_what_the_card_says_and_the_rest_is_kept():
    params = read_params(ROOT / "params.yaml").augment
    says = {"copies": 0, "horizontal_flip": False, "vertical_flip": False, "rotation": 0.03}
    card = Card.model_validate(CARD | {"augment": says})
    assert resolve_augmentation(params, card).model_dump() == params.model_dump() | says
    chosen = params.model_copy(update={"copies": 2, "horizontal_flip": False, "vertical_flip": True, "rotation": 0.1})
    assert resolve_augmentation(chosen, card) == chosen
    silent = {"copies": 4, "horizontal_flip": True, "vertical_flip": True, "rotation": 0.25}
    assert resolve_augmentation(params, Card.model_validate(CARD)).model_dump() == params.model_dump() | silent


def test_auto_in_the_head_is_what_the_card_says_and_the_rest_is_kept(monkeypatch):
    monkeypatch.chdir(ROOT)
    params = read_params().transfer
    for dataset, dense in (("nct-crc-he", 0), ("kather-2016", 0), ("phantom", 128)):
        assert resolve_transfer(params, read_card(dataset)).model_dump() == params.model_dump() | {"dense": dense}
    chosen = params.model_copy(update={"dense": 7})
    assert resolve_transfer(chosen, read_card("nct-crc-he")) == chosen


def test_the_small_cnn_attends_where_the_study_of_a_card_does(monkeypatch):
    monkeypatch.chdir(ROOT)
    params = read_params().baseline
    for dataset in CARDS:
        attends = dataset in ("brain-mri-kaggle", "chest-ct", "iq-oth-nccd")
        assert resolve_baseline(params, read_card(dataset)).model_dump() == params.model_dump() | {"attention": attends}
    chosen = params.model_copy(update={"attention": False})
    assert resolve_baseline(chosen, read_card("chest-ct")) == chosen


@pytest.mark.parametrize("dataset", sorted(CARDS))
def test_films_and_slices_stay_upright(dataset, monkeypatch):
    monkeypatch.chdir(ROOT)
    augmentation = resolve_augmentation(read_params().augment, read_card(dataset))
    upright = re.search("brain|chest|lung|pneumonia|iq-oth", dataset) is not None
    assert augmentation.vertical_flip is not upright
    assert (augmentation.rotation < 0.05) is upright
    assert augmentation.horizontal_flip is not (dataset in ("chest-xray", "pneumoniamnist"))  # the heart is on the left


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("none", "near-duplicates"),
        ("near-duplicates", "near-duplicates"),
        ({"column": "sequence"}, "card"),
        ({"pattern": r"person\d+"}, "card"),
        ({"runs": ["sequence"]}, "runs"),
    ],
)
def test_a_reading_says_whether_it_knows_who_belongs_together(groups, expected):
    (reading,) = Card.model_validate(CARD | {"groups": groups}).readings
    assert grouped_by(reading.rule) == expected


def test_a_test_fold_beyond_the_cards_folds_is_named():
    params = read_params(ROOT / "params.yaml").split.model_copy(update={"test_fold": 5})
    wanted = "params.yaml: split: test_fold 5 must be below folds (5, which datasets/tiny-phantom.yaml recommends)"
    with pytest.raises(InputError) as caught:
        resolve_split(params, Card.model_validate(CARD))
    assert str(caught.value) == f"{wanted}; lower it or set split.folds"


@pytest.mark.parametrize(
    ("dataset", "protocol", "folds", "bits", "per_class", "drop"),
    [
        ("brain-mri-kaggle", "group", 5, 2, None, False),
        ("brain-tumor-cheng", "official", 5, 0, None, False),
        ("brain-tumor-cheng-windows", "official", 5, 0, None, False),
        ("chest-ct", "official", 5, 2, None, True),
        ("chest-xray", "official", 5, 0, 150, False),
        ("iq-oth-nccd", "group", 5, 2, None, False),
        ("kather-2016", "group", 3, 0, None, False),
        ("phantom", "group", 5, 6, None, False),
    ],
)
def test_the_data_sets_name_alone_gives_the_published_split(
    dataset, protocol, folds, bits, per_class, drop, monkeypatch
):
    monkeypatch.chdir(ROOT)
    split = resolve_split(read_params().split, read_card(dataset))
    found = (split.protocol, split.folds, split.near_duplicate_bits, split.validation_per_class, split.drop_duplicates)
    assert found == (protocol, folds, bits, per_class, drop)
