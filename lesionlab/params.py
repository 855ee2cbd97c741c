"""params.yaml: what each key means, its unit and its limits; the one reader of it."""

import difflib
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from lesionlab.errors import InputError

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A part of a YAML file in which a key that nobody reads is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DownloadParams(Section):
    """Where the raw images come from when not from the card's sources."""

    source: str | None
    mirror: str | None


class ModelParams(Section):
    """The network; `auto` is what the card recommends."""

    backbone: str
    weights: str
    image_size: Literal["auto"] | Annotated[int, Field(ge=32, le=1024)]


class CropParams(Section):
    """How windows are cut; lengths in parts of the lesion, the window or the frame, as params.yaml says."""

    context: Annotated[float, Field(ge=0, le=4)]
    jitter: Annotated[float, Field(ge=0, le=0.5)]
    scale_jitter: Annotated[float, Field(ge=0, le=1)]
    positives_per_lesion: PositiveInt
    negatives_per_frame: Count
    hard_fraction: Fraction
    max_overlap: Fraction
    max_black: Fraction
    min_lesion_area: Fraction
    mask_threshold: Annotated[int, Field(ge=0, le=254)]
    whole_image: Literal["pad", "squash"]
    skip_broken: bool


class SplitParams(Section):
    """Which crops train, validate and test."""

    protocol: Literal["group", "random", "official"]
    folds: Annotated[int, Field(ge=3)]
    test_fold: Count
    near_duplicate_bits: Annotated[int, Field(ge=0, le=16)]

    @model_validator(mode="after")
    def _test_fold_exists(self) -> "SplitParams":
        if self.test_fold >= self.folds:
            raise ValueError(f"test_fold {self.test_fold} must be below folds ({self.folds})")
        return self


class TrainingParams(Section):
    """What the three training stages share."""

    batch_size: PositiveInt
    class_weights: bool
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    prefix_cache: bool
    prefix_cache_gib: PositiveFloat
    threads: PositiveInt


class AugmentParams(Section):
    """Random changes of a training crop."""

    copies: Count
    horizontal_flip: bool
    vertical_flip: bool
    rotation: Annotated[float, Field(ge=0, le=0.5)]
    zoom: Annotated[float, Field(ge=0, lt=1)]
    brightness: Fraction
    contrast: Fraction


class FitParams(Section):
    """One run of training."""

    augment: bool
    epochs: PositiveInt
    patience: PositiveInt
    learning_rate: PositiveFloat
    schedule: Literal["constant", "cosine"]


class BaselineParams(FitParams):
    """The small CNN from scratch: two or three convolutions, the first strided, each followed by a pooling."""

    filters: Annotated[list[PositiveInt], Field(min_length=2, max_length=3)]
    dense: PositiveInt
    dropout: Annotated[float, Field(ge=0, lt=1)]


class TransferParams(FitParams):
    """The new head on a frozen backbone."""

    pooling: Literal["average", "flatten"]
    dense: Count
    dropout: Annotated[float, Field(ge=0, lt=1)]


class FinetuneParams(FitParams):
    """Training on with the last blocks unfrozen."""

    unfrozen_blocks: PositiveInt


class EvaluateParams(Section):
    """Metrics on the test subset."""

    resamples: Annotated[int, Field(ge=100)]
    worst: Count


class DetectParams(Section):
    """Windows slid over whole frames."""

    mode: Literal["dense", "windows"]
    window_sizes: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)]
    stride: Annotated[float, Field(gt=0, le=1)]
    overlap: Fraction
    false_positives: PositiveFloat
    max_frames: PositiveInt | None
    overlays: Count


class Params(Section):
    """The whole of params.yaml."""

    seed: Count
    dataset: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    download: DownloadParams
    model: ModelParams
    crop: CropParams
    split: SplitParams
    training: TrainingParams
    augment: AugmentParams
    baseline: BaselineParams
    transfer: TransferParams
    finetune: FinetuneParams
    evaluate: EvaluateParams
    detect: DetectParams


def read_yaml(path: Path, schema: type[Section]) -> Section:
    """Read a YAML 1.2 file (1e-05 is a number, as DVC writes it) and hold it against `schema`.

    Raises InputError naming the file, the key, what is wrong and, for a misspelt key, the likely one.
    """
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: not found") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        lines = _describe(error.errors(), schema)
        raise InputError("\n       ".join(f"{path}: {line}" for line in lines)) from None


def read_params(path: Path = Path("params.yaml")) -> Params:
    """The hyperparameters of this run. Raises InputError when a key is missing, unknown or out of its limits."""
    if not path.exists():
        raise InputError(f"{path}: not found in {Path.cwd()}; run stages from the repository's root")
    return read_yaml(path, Params)


def _describe(problems: list[dict], schema: type[BaseModel]) -> list[str]:
    """One line a place in the file; what a union of types says about one place is joined by 'or'."""
    lines: dict[str, list[str]] = {}
    for problem in problems:
        where, _ = _place(schema, problem["loc"])
        if problem["type"] == "extra_forbidden":
            _, known = _place(schema, problem["loc"][:-1])
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
            lines.setdefault(f"unknown key '{where}'; {hint}", [])
        elif problem["type"] == "missing":
            lines.setdefault(f"key '{where}' is missing", [])
        else:
            message = problem["msg"].removeprefix("Value error, ")
            given = problem["input"]
            shown = "" if isinstance(given, dict) else f" (is: {given!r})"
            lines.setdefault(f"{where}: " if where else "", []).append(message + shown)
    return [start + " or ".join(messages) for start, messages in lines.items()]


def _place(schema: type[BaseModel], location: tuple) -> tuple[str, list[str]]:
    """What a user would call a problem's place, and the keys known there.

    Pydantic's location also holds the tag of each union that it went through; no user wrote those.
    """
    names, here = [], [schema]
    for part in location:
        models = [kind for kind in here if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if len(here) > 1:
            here = [kind for kind in models if _tag(kind) == part] or here[:1]
            continue
        names.append(str(part))
        if models:
            field = models[0].model_fields.get(part)
            here = _choices(field.annotation) if field else [object]
        else:
            inner = [kind for kind in get_args(here[0]) if kind is not Ellipsis]
            here = _choices(inner[-1]) if inner else [object]
    models = [kind for kind in here if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return ".".join(names), [name for model in models for name in model.model_fields]


def _choices(annotation: object) -> list:
    """The types that an annotation allows, None aside."""
    if get_origin(annotation) is Annotated:
        return _choices(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for member in get_args(annotation) for kind in _choices(member) if kind is not NoneType]
    return [annotation]


def _tag(model: type[BaseModel]) -> str:
    """What tells a model from the others of its union: its `kind`, or else its class name."""
    kind = model.model_fields.get("kind")
    return get_args(kind.annotation)[0] if kind else model.__name__
