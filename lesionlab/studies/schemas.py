"""What studies/<name>/params.yaml may hold, beside what `set` lays over the repository's params.yaml."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from lesionlab.params import Count, Overlay, Section, read_yaml

# What a cell of `variants` may change: all share crops and split, and are decided and measured alike.
OF_A_CNN = {"seed", "training", "augment", "baseline"}
OF_A_BACKBONE = {"seed", "training", "augment", "model", "transfer"}


class Blockwise(Section):
    """studies/blockwise/params.yaml."""

    folds: Annotated[list[Count], Field(min_length=1)]
    blocks: Annotated[list[PositiveInt], Field(min_length=1)]
    set: dict[str, Any]


class Ensemble(Section):
    """studies/ensemble/params.yaml."""

    seeds: Annotated[list[Count], Field(min_length=1)]
    folds: Annotated[list[Count], Field(min_length=1)]
    set: dict[str, Any]

    @model_validator(mode="after")
    def _several_members(self) -> "Ensemble":
        if len(self.seeds) * len(self.folds) < 2:
            raise ValueError("one seed and one fold are one member; give several seeds, or folds that only validate")
        return self


class External(Section):
    """studies/external/params.yaml."""

    set: dict[str, Any]
    external: dict[str, Any]


class Leakage(Section):
    """studies/leakage/params.yaml."""

    protocols: Annotated[list[Literal["random", "group", "official"]], Field(min_length=1)]
    shuffle: Annotated[list[Literal["true", "false"]], Field(min_length=1)]
    folds: Annotated[list[Count], Field(min_length=1)]
    blocks: list[PositiveInt]
    set: dict[str, Any]


class Variants(Section):
    """studies/variants/params.yaml: names, and what each lays over params.yaml."""

    cnns: dict[str, dict[str, Any]]
    backbones: dict[str, dict[str, Any]]
    set: dict[str, Any]

    @model_validator(mode="after")
    def _cells_change_what_is_read(self) -> "Variants":
        for kind, cells, known in (("cnns", self.cnns, OF_A_CNN), ("backbones", self.backbones, OF_A_BACKBONE)):
            for name, cell in cells.items():
                if unread := sorted(cell.keys() - known):
                    raise ValueError(
                        f"{kind}.{name}: nothing reads '{unread[0]}' of a single cell (it may hold "
                        f"{', '.join(sorted(known))}); say set.{unread[0]} for all"
                    )
                training = cell.get("training")
                if isinstance(training, Mapping) and "sensitivity" in training:
                    raise ValueError(f"{kind}.{name}: say set.training.sensitivity: all cells are decided alike")
        return self


SCHEMAS: dict[str, type[Section]] = {
    "blockwise": Blockwise,
    "ensemble": Ensemble,
    "external": External,
    "leakage": Leakage,
    "variants": Variants,
}


def check_study(overlay: Overlay) -> None:
    """Raise InputError where a study's file holds what it may not, before its first cell runs and not after its last.

    A study in a folder of another name is checked where its kind is said, by the stage summarise.
    """
    if overlay.study is None:
        return
    overlay.layers()  # what is wrong with these it says more clearly
    if schema := SCHEMAS.get(overlay.study.parent.name):
        read_yaml(overlay.study, schema)
