"""Dataset cards: datasets/<name>.yaml says where a data set is from, how it is read, and who must stay together."""

import re
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import Discriminator, Field, PositiveInt, Tag, model_validator

from lesionlab.errors import InputError
from lesionlab.params import (
    AugmentParams,
    BaselineParams,
    Count,
    ModelParams,
    PositiveFloat,
    Section,
    SplitParams,
    TransferParams,
    read_yaml,
)

Chosen = TypeVar("Chosen", bound=Section)
Subset = Literal["train", "val", "test"]
SUBSETS: tuple[Subset, ...] = get_args(Subset)
# Columns that a card cannot add to the crops' index, beside its own: what the split adds, and the derived subgroup.
DERIVED_COLUMNS = ("digest", "lesion_size")
GROUP_RULES = ("column", "pattern", "ranges", "runs")


class Source(Section):
    """One file of the release. Unknown sizes and checksums are left out and recorded at the first download."""

    file: Annotated[str, Field(pattern=r"^[^./\\][^/\\]*$")]
    url: Annotated[str, Field(pattern="^https?://[^/]")]
    bytes: PositiveInt | None = None
    md5: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    checksum_from: str | None = None
    unpack: bool = True


class MaskPairs(Section):
    """Images in one folder, masks of the same stem in another; the first pair of folders that exists is read."""

    kind: Literal["mask-pairs"]
    folders: list[tuple[str, str]]
    mask_suffix: str = ""


class ClassFolders(Section):
    """`<subset>/<class folder>/<image>`; `folders` names the class of each folder, `subsets` that of each subset.

    Capitals do not matter in either. Folders in `ignore` are not read; images in any other folder are an error.
    """

    kind: Literal["class-folders"]
    folders: dict[str, str] | None = None
    subsets: dict[str, Subset] | None = None
    ignore: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _folders_differ_by_more_than_capitals(self) -> "ClassFolders":
        for part in (self.folders, self.subsets):
            meaning: dict[str, str] = {}
            for name, given in (part or {}).items():
                if meaning.setdefault(name.casefold(), given) != given:
                    raise ValueError(f"'{name}' and a folder that differs from it in capitals alone mean two things")
        return self


class Table(Section):
    """A CSV with a row an image; the keys name its columns, paths are relative to the CSV.

    Images have a label, or a mask from which lesions are cut out, or both: then the whole image is of the class, and
    the mask says where it is to be seen. The column `subset` holds train, val, test or nothing; `fold` a number.

    box: in place of a mask, columns of a lesion's left, top, width and height in pixels. Further rows of an image are
    further boxes of it; cells that are all empty say that it holds no lesion.
    columns: further ones that go into the crops' index as text, for `evaluate.subgroups`; cells may be empty.
    """

    kind: Literal["table"]
    file: str
    image: str
    label: str | None = None
    mask: str | None = None
    box: tuple[str, str, str, str] | None = None
    subset: str | None = None
    fold: str | None = None
    columns: tuple[Annotated[str, Field(min_length=1)], ...] = ()

    @model_validator(mode="after")
    def _columns_fit(self) -> "Table":
        if self.label is None and self.mask is None and self.box is None:
            raise ValueError("takes label (a class an image), mask or box (lesions are cut out), or label and one more")
        if self.mask is not None and self.box is not None:
            raise ValueError("takes mask (an image file) or box (columns of pixels), not both")
        if self.box is not None and len(set(self.box)) < len(self.box):
            raise ValueError(f"box: {list(self.box)} names a column twice; name those of left, top, width and height")
        if self.subset is not None and self.fold is not None:
            raise ValueError("takes subset (train, val, test) or fold (numbers), not both")
        if len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns: {list(self.columns)} names one twice")
        from lesionlab.files import INDEX_COLUMNS, SPLIT_COLUMNS  # not above: --help must be quick

        for column in self.columns:
            if column in (*INDEX_COLUMNS, *SPLIT_COLUMNS, *DERIVED_COLUMNS):
                raise ValueError(
                    f"columns: '{column}' is the name of a column that the program writes itself; rename it in "
                    f"{self.file}"
                )
        return self


class ChengMat(Section):
    """The MATLAB files of the figshare brain tumours; the download makes PNG files and frames.csv of them.

    labels: the class of a slice is that of its tumour; false: windows with and without tumour are cut from slices.
    """

    kind: Literal["cheng-mat"]
    labels: bool = True


class Npz(Section):
    """A MedMNIST file: arrays <subset>_images, <subset>_labels; the download makes PNG files and frames.csv of it.

    Label k is the card's class k, counted from 0.
    """

    kind: Literal["npz"]


class PhantomLayout(Section):
    """Frames that this program draws. white_balance: gains of red, green and blue, to imitate another camera."""

    kind: Literal["phantom"]
    sequences: PositiveInt
    frames_per_sequence: PositiveInt
    width: Annotated[int, Field(ge=64)]
    height: Annotated[int, Field(ge=64)]
    lesion_free: Annotated[float, Field(ge=0, lt=1)]
    white_balance: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (1.0, 1.0, 1.0)


class GroupRule(Section):
    """Who must stay together: a column of a table, a pattern on the image's path, ranges of frame numbers, or runs.

    column: of the layout's table; or of the CSV `file`, whose column `key` holds the images' names without suffix.
    runs: rows of the layout's table that follow each other and have the same values in these columns.
    """

    column: str | None = None
    file: str | None = None
    key: str | None = None
    pattern: str | None = None
    ranges: list[tuple[int, int, str | int]] | None = None
    runs: Annotated[list[str], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_rule(self) -> "GroupRule":
        given = [name for name in GROUP_RULES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "takes exactly one of column, pattern, ranges, runs, or is the word none or near-duplicates"
            )
        if (self.file is None) != (self.key is None) or (self.file is not None and self.column is None):
            raise ValueError("file (a CSV), key (its column of image names) and column belong together")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern {self.pattern!r} is not a regular expression: {error}") from None
        return self


# Tells which of the two a user meant, so that one of them, not both, says what is wrong.
Groups = Annotated[
    Annotated[GroupRule, Tag("GroupRule")] | Annotated[Literal["none", "near-duplicates"], Tag("word")],
    Discriminator(lambda given: "GroupRule" if isinstance(given, dict | GroupRule) else "word"),
]


Layout = Annotated[
    MaskPairs | ClassFolders | Table | ChengMat | Npz | PhantomLayout,
    Field(discriminator="kind"),
]


class Reading(Section):
    """One way that the files of a data set lie, and who must stay together when they lie so."""

    layout: Layout
    groups: Groups

    @property
    def whole_images(self) -> bool:
        """Whether the class is that of the whole image, rather than of windows that a mask decides."""
        layout = self.layout
        if isinstance(layout, Table):
            return layout.label is not None
        if isinstance(layout, ChengMat):
            return layout.labels
        return isinstance(layout, ClassFolders | Npz)

    @property
    def rule(self) -> str:
        """What tells who must stay together: column, pattern, ranges, runs, near-duplicates or none."""
        if isinstance(self.groups, str):
            return self.groups
        return next(name for name in GROUP_RULES if getattr(self.groups, name) is not None)

    @property
    def described(self) -> str:
        """Layout and group rule in a few words."""
        if isinstance(self.groups, str):
            return f"layout {self.layout.kind}, groups {self.groups}"
        column = f" {self.groups.column}" if self.rule == "column" else ""
        return f"layout {self.layout.kind}, groups by {self.rule}{column}"


class Recommended(Section):
    """What `auto` in params.yaml's `model` section means for this data set."""

    backbone: str
    weights: str
    image_size: Annotated[int, Field(ge=32, le=1024)]


class RecommendedSplit(Section):
    """What `auto` in params.yaml's `split` section means for this data set.

    folds: how many; where the release numbers folds, as many as those. validation_per_class: as in params.yaml.
    near_duplicate_bits: perceptual hashes that differ in at most this many of 64 bits are one picture. Video frames
    need 6; between slices or films, which all look alike, even 2 join pictures of different patients: 0 where patients
    are known, 2 where they are not and groups are better too large than too small. drop_duplicates: as in params.yaml.
    """

    protocol: Literal["group", "official"] = "group"
    folds: Annotated[int, Field(ge=3)] = 5
    near_duplicate_bits: Annotated[int, Field(ge=0, le=16)] = 6
    validation_per_class: PositiveInt | None = None
    drop_duplicates: bool = False


class RecommendedCnn(Section):
    """What `auto` in params.yaml's `baseline` section means for this data set: what its study's own network has."""

    attention: bool = False


class RecommendedHead(Section):
    """What `auto` in params.yaml's `transfer` section means for this data set."""

    dense: Count = 128


class RecommendedAugmentation(Section):
    """What `auto` in params.yaml's `augment` section means for this data set.

    copies, rotation: as in params.yaml. Flips and turns are those after which an image is still one that could have
    been taken: a film is never upside down, and mirrored its heart is on the wrong side; a frame has no upper edge.
    """

    copies: Count = 4
    horizontal_flip: bool = True
    vertical_flip: bool = True
    rotation: Annotated[float, Field(ge=0, le=0.5)] = 0.25


class Card(Section):
    """A data set: where from, how read, who must stay together.

    alternatives: further files of the publisher; one that `download.source` names by URL is checked as it says here.
    shares_images_with: data sets that hold some of the same images, so that none of them tests what another trained;
    its own name where one card reads several versions that do.
    tile: side in pixels of the images of the original release, for maps of larger pictures (`detect: tiles`).
    """

    name: str
    title: str
    homepage: str
    licence: str
    citation: str
    notes: tuple[str, ...] = ()
    shares_images_with: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()
    alternatives: tuple[Source, ...] = ()
    obtain: str | None = None
    layout: Layout
    classes: Annotated[list[str], Field(min_length=2)]
    groups: Groups
    copies: tuple[Reading, ...] = ()
    detect: Literal["windows", "tiles", "none"] | None = None
    tile: Annotated[int, Field(ge=16)] | None = None
    recommended: Recommended
    split: RecommendedSplit = RecommendedSplit()
    augment: RecommendedAugmentation = RecommendedAugmentation()
    baseline: RecommendedCnn = RecommendedCnn()
    transfer: RecommendedHead = RecommendedHead()

    @model_validator(mode="after")
    def _parts_fit_each_other(self) -> "Card":
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes: {self.classes} names one twice")
        if len(set(self.shares_images_with)) < len(self.shares_images_with):
            raise ValueError(f"shares_images_with: {list(self.shares_images_with)} names one twice")
        for reading in self.readings:
            layout, groups = reading.layout, reading.groups
            if isinstance(layout, ClassFolders):
                for folder, label in (layout.folders or {}).items():
                    if label not in self.classes:
                        raise ValueError(
                            f"layout.folders: '{folder}' is of class '{label}', not in classes {self.classes}"
                        )
            if not reading.whole_images and len(self.classes) != 2:
                raise ValueError(
                    f"classes: {self.classes} must be two with masks or boxes: without lesion first, with lesion last"
                )
            if reading.whole_images != self.whole_images:
                raise ValueError("copies: give labels where layout does, or cut windows where layout does")
            if isinstance(groups, GroupRule):
                name = "column" if groups.column is not None and groups.file is None else "runs"
                columns = getattr(groups, name)
                if columns is not None and not isinstance(layout, Table | ChengMat | Npz | PhantomLayout):
                    raise ValueError(f"groups.{name} needs the layout table, but layout.kind is {layout.kind}")
        if self.detect is not None and (self.detect == "windows") == self.whole_images:
            wanted = "none or tiles" if self.whole_images else "windows"
            raise ValueError(f"detect: '{self.detect}' does not fit the layout; it takes {wanted}")
        if (self.tile is not None) != (self.detect == "tiles"):
            raise ValueError("tile: the side of an image of the release in pixels, with detect: tiles and only then")
        return self

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The release's layout, then those of copies that circulate: the first that fits a folder is read."""
        return (Reading(layout=self.layout, groups=self.groups), *self.copies)

    @property
    def whole_images(self) -> bool:
        """Whether the class is that of the whole image, rather than of windows that a mask decides."""
        return self.readings[0].whole_images

    @property
    def detection(self) -> Literal["windows", "tiles", "none"]:
        """Whether windows are slid over its frames, over larger pictures of the same kind (tiles), or never."""
        return self.detect or ("none" if self.whole_images else "windows")


def grouped_by(rule: str) -> Literal["card", "runs", "near-duplicates"]:
    """Who is kept apart where the files were read by `Reading.rule`.

    card: patients, sequences or tiles that the data set names. runs: rows that follow each other and are alike; a
    patient can have several. near-duplicates: pictures that look alike, whosoever's they are.
    """
    if rule in ("none", "near-duplicates"):
        return "near-duplicates"
    return "runs" if rule == "runs" else "card"


def card_path(dataset: str) -> Path:
    """The card's file."""
    return Path("datasets") / f"{dataset}.yaml"


def read_card(dataset: str) -> Card:
    """Read and check datasets/<dataset>.yaml. Raises InputError naming the file and the key."""
    path = card_path(dataset)
    if not path.exists():
        raise InputError(f"{path}: no such card; `dataset` in params.yaml may be one of: {_known_cards()}")
    card = read_yaml(path, Card)
    if card.name != dataset:
        raise InputError(f"{path}: name is '{card.name}', must be '{dataset}' as the file is called")
    return card


def check_apart(training: str, testing: str) -> None:
    """Whether all of one data set may test what another trained.

    Raises InputError naming both cards when either says that they share images.
    """
    for one, other in ((training, testing), (testing, training)):
        if other in read_card(one).shares_images_with:
            raise InputError(
                f"{card_path(training)} and {card_path(testing)} share images (shares_images_with in "
                f"{card_path(one)}), so that neither tests what the other trained; choose another external data set"
            )


def _known_cards() -> str:
    return ", ".join(sorted(path.stem for path in Path("datasets").glob("*.yaml")))


def resolve_model(model: ModelParams, card: Card) -> Recommended:
    """The network of this run: what params.yaml says, and for `auto` what the card recommends.

    A card's weights belong to its backbone: where another one is chosen, `auto` weights are ImageNet's.
    """
    recommended = card.recommended
    backbone = recommended.backbone if model.backbone == "auto" else model.backbone
    automatic = recommended.weights if backbone == recommended.backbone else "imagenet"
    return Recommended(
        backbone=backbone,
        weights=automatic if model.weights == "auto" else model.weights,
        image_size=recommended.image_size if model.image_size == "auto" else model.image_size,
    )


def resolve_split(split: SplitParams, card: Card) -> SplitParams:
    """The split of this run: what params.yaml says, and for `auto` what the card recommends.

    What the card says of drop_duplicates is of its published split: other protocols keep near-duplicates together, or
    are there to show what sharing them flatters.
    Raises InputError when the card recommends fewer folds than test_fold needs.
    """
    resolved = _resolved(split, card.split)
    if split.drop_duplicates == "auto" and resolved.protocol != "official":
        resolved = resolved.model_copy(update={"drop_duplicates": False})
    if resolved.test_fold >= resolved.folds:
        raise InputError(
            f"params.yaml: split: test_fold {resolved.test_fold} must be below folds ({resolved.folds}, which "
            f"{card_path(card.name)} recommends); lower it or set split.folds"
        )
    return resolved


def resolve_augmentation(augment: AugmentParams, card: Card) -> AugmentParams:
    """The augmentation of this run: what params.yaml says, and for `auto` what the card recommends."""
    return _resolved(augment, card.augment)


def resolve_baseline(baseline: BaselineParams, card: Card) -> BaselineParams:
    """The small CNN of this run and its training: what params.yaml says, and for `auto` what the card recommends."""
    return _resolved(baseline, card.baseline)


def resolve_transfer(transfer: TransferParams, card: Card) -> TransferParams:
    """The head of this run and its training: what params.yaml says, and for `auto` what the card recommends."""
    return _resolved(transfer, card.transfer)


def _resolved(section: Chosen, recommended: Section) -> Chosen:
    """A section of params.yaml with the keys that are `auto` as they are in `recommended`."""
    says = recommended.model_dump()
    return section.model_copy(update={name: value for name, value in says.items() if getattr(section, name) == "auto"})
