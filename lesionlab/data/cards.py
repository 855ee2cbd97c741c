"""Dataset cards: datasets/<name>.yaml says where a data set is from, how it is read, and who must stay together."""

import re
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Discriminator, Field, PositiveInt, Tag, model_validator

from lesionlab.errors import InputError
from lesionlab.params import ModelParams, Section, read_yaml

Subset = Literal["train", "val", "test"]
SUBSETS: tuple[Subset, ...] = get_args(Subset)


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
    """`<subset>/<class folder>/<image>`; `folders` names the class of each folder, `subsets` that of each subset."""

    kind: Literal["class-folders"]
    folders: dict[str, str] | None = None
    subsets: dict[str, Subset] | None = None


class Table(Section):
    """A CSV with a row an image; the keys name its columns, paths are relative to the CSV.

    Images have a label each or a mask each. The column `subset` holds train, val, test or nothing.
    """

    kind: Literal["table"]
    file: str
    image: str
    label: str | None = None
    mask: str | None = None
    subset: str | None = None

    @model_validator(mode="after")
    def _label_or_mask(self) -> "Table":
        if (self.label is None) == (self.mask is None):
            raise ValueError("takes exactly one of label (a class an image) and mask (lesions are cut out)")
        return self


class PhantomLayout(Section):
    """Frames that this program draws."""

    kind: Literal["phantom"]
    sequences: PositiveInt
    frames_per_sequence: PositiveInt
    width: Annotated[int, Field(ge=64)]
    height: Annotated[int, Field(ge=64)]
    lesion_free: Annotated[float, Field(ge=0, lt=1)]


class GroupRule(Section):
    """Who must stay together: a column of the table, a pattern on the image's path, or ranges of frame numbers."""

    column: str | None = None
    pattern: str | None = None
    ranges: list[tuple[int, int, str | int]] | None = None

    @model_validator(mode="after")
    def _one_rule(self) -> "GroupRule":
        given = [name for name in ("column", "pattern", "ranges") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("takes exactly one of column, pattern, ranges, or is the word none or near-duplicates")
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


class Recommended(Section):
    """What `auto` in params.yaml's `model` section means for this data set."""

    backbone: str
    weights: str
    image_size: Annotated[int, Field(ge=32, le=1024)]


class Card(Section):
    """A data set: where from, how read, who must stay together."""

    name: str
    title: str
    homepage: str
    licence: str
    citation: str
    notes: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()
    obtain: str | None = None
    layout: Annotated[MaskPairs | ClassFolders | Table | PhantomLayout, Field(discriminator="kind")]
    classes: Annotated[list[str], Field(min_length=2)]
    groups: Groups
    recommended: Recommended

    @model_validator(mode="after")
    def _parts_fit_each_other(self) -> "Card":
        layout = self.layout
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes: {self.classes} names one twice")
        if isinstance(layout, ClassFolders):
            for folder, label in (layout.folders or {}).items():
                if label not in self.classes:
                    raise ValueError(f"layout.folders: '{folder}' is of class '{label}', not in classes {self.classes}")
        elif not (isinstance(layout, Table) and layout.label) and len(self.classes) != 2:
            raise ValueError(f"classes: {self.classes} must be two with masks: without lesion first, with lesion last")
        column = isinstance(self.groups, GroupRule) and self.groups.column is not None
        if column and not isinstance(layout, Table | PhantomLayout):
            raise ValueError(f"groups.column needs the layout table, but layout.kind is {layout.kind}")
        return self

    @property
    def group_disjoint(self) -> bool:
        """Whether a split by this card's groups may be called group-disjoint."""
        return self.groups != "none"


def card_path(dataset: str) -> Path:
    """The card's file."""
    return Path("datasets") / f"{dataset}.yaml"


def read_card(dataset: str) -> Card:
    """Read and check datasets/<dataset>.yaml. Raises InputError naming the file and the key."""
    path = card_path(dataset)
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise InputError(f"{path}: no such card; `dataset` in params.yaml may be one of: {known}")
    card = read_yaml(path, Card)
    if card.name != dataset:
        raise InputError(f"{path}: name is '{card.name}', must be '{dataset}' as the file is called")
    return card


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
