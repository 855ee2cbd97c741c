"""params.yaml: what each key means, its unit and its limits; the one reader of it."""

import contextlib
import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
Pooling = Literal["average", "flatten", "attention"]  # of a head on a backbone


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
    """Which crops train, validate and test; `auto` is what the card says."""

    protocol: Literal["auto", "group", "random", "official", "external"]
    folds: Literal["auto"] | Annotated[int, Field(ge=3)]
    test_fold: Count
    near_duplicate_bits: Literal["auto"] | Annotated[int, Field(ge=0, le=16)]
    official_validation: bool
    validation_per_class: Literal["auto"] | PositiveInt | None
    drop_duplicates: Literal["auto"] | bool
    shuffle_labels: bool

    @model_validator(mode="after")
    def _test_fold_exists(self) -> "SplitParams":
        if self.folds != "auto" and self.test_fold >= self.folds:
            raise ValueError(f"test_fold {self.test_fold} must be below folds ({self.folds})")
        return self


class TrainingParams(Section):
    """What the three training stages share."""

    batch_size: PositiveInt
    class_weights: bool
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    mixup: Annotated[float, Field(ge=0)]
    lesion_attention: Annotated[float, Field(ge=0)]
    sensitivity: Annotated[float, Field(gt=0, le=1)] | None
    dtype: Literal["auto", "float32", "mixed_bfloat16"]
    prefix_cache: bool
    prefix_cache_gib: PositiveFloat
    cache_dtype: Literal["float32", "float16", "bfloat16"]
    threads: PositiveInt

    @model_validator(mode="after")
    def _lesions_are_not_mixed(self) -> "TrainingParams":
        if self.mixup and self.lesion_attention:
            raise ValueError("mixup mixes crops whose lesions lie in different places; set it or lesion_attention to 0")
        return self


class AugmentParams(Section):
    """Random changes of a training crop; `auto` is what the card says."""

    copies: Literal["auto"] | Count
    horizontal_flip: Literal["auto"] | bool
    vertical_flip: Literal["auto"] | bool
    rotation: Literal["auto"] | Annotated[float, Field(ge=0, le=0.5)]
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
    keep: Literal["best", "last"]


class BaselineParams(FitParams):
    """The small CNN from scratch: convolutions, the first strided, each followed by a pooling; without: dense alone.

    `auto` is what the card says.
    """

    filters: Annotated[list[PositiveInt], Field(max_length=5)]
    batch_normalization: bool
    attention: Literal["auto"] | bool
    dense: PositiveInt
    dropout: Annotated[float, Field(ge=0, lt=1)]


class TransferParams(FitParams):
    """The new head on a frozen backbone; `auto` is what the card says."""

    head_filters: list[PositiveInt]
    pooling: Pooling
    dense: Literal["auto"] | Count
    dropout: Annotated[float, Field(ge=0, lt=1)]


class FinetuneParams(FitParams):
    """Training on with the last blocks unfrozen."""

    unfrozen_blocks: Annotated[int, Field(ge=1, le=5)]  # every backbone has five
    batch_normalization: Literal["frozen", "trained"]


class EvaluateParams(Section):
    """Metrics on the test subset."""

    resamples: Annotated[int, Field(ge=100)]
    worst: Count
    subgroups: list[str]
    ensemble: list[Literal["baseline", "transfer", "finetune"]]
    mc_dropout: Count
    refer_rate: Annotated[float, Field(ge=0, lt=1)]
    tta: Annotated[int, Field(ge=0, le=8)]


class DetectParams(Section):
    """Windows slid over whole frames."""

    mode: Literal["dense", "windows"]
    window_sizes: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)]
    stride: Annotated[float, Field(gt=0, le=1)]
    training_frames: PositiveInt | None
    windows_per_frame: PositiveInt
    epochs: PositiveInt
    learning_rate: PositiveFloat
    overlap: Fraction
    false_positives: PositiveFloat
    max_frames: PositiveInt | None
    overlays: Count


class ExplainParams(Section):
    """Class activation maps of the fine-tuned network."""

    layer: str
    crops: PositiveInt
    context: Annotated[float, Field(ge=0, le=4)]
    examples: PositiveInt
    frames: Count


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
    explain: ExplainParams


def read_yaml(path: Path, schema: type[Section]) -> Section:
    """Read a YAML 1.2 file (1e-05 is a number, as DVC writes it) and hold it against `schema`.

    Raises InputError naming the file, the key, what is wrong and, for a misspelt key, the likely one.
    """
    return _validate(_load_yaml(path.read_text, str(path)), schema, lambda _: str(path))


@dataclass(frozen=True)
class Overlay:
    """What one cell of a study lays over params.yaml: each layer over the ones before it.

    study: a study's params.yaml; its mapping `set` has keys as params.yaml has them. cell: dotted key of one more such
    mapping in the same file. settings: `key.key=value`, the value in YAML.
    """

    study: Path | None = None
    cell: str | None = None
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What tells this cell from the others of its study."""
        return " ".join(filter(None, (self.cell, *self.settings)))

    def layers(self) -> list[tuple[str, dict]]:
        """Each layer's origin, as errors name it, and its content."""
        found = []
        if self.cell and self.study is None:
            raise InputError(f"--cell {self.cell}: give --study too, the file that holds it")
        if self.study is not None:
            content = _load_yaml(self.study.read_text, str(self.study))
            _require_below_set(content, self.study)
            for key in filter(None, ("set", self.cell)):
                found.append((f"{self.study}: {key}", _mapping_at(content, key, self.study)))
        for setting in self.settings:
            key, equals, text = setting.partition("=")
            if not (key and equals):
                raise InputError(f"--set {setting}: must be KEY=VALUE, for example --set finetune.epochs=3")
            value = _load_yaml(lambda text=text: text, f"--set {setting}")
            for part in reversed(key.split(".")):
                value = {part: value}
            found.append((f"--set {setting}", value))
        return found


_overlay = Overlay()


def current_overlay() -> Overlay:
    """The overlay of this process: empty outside of studies."""
    return _overlay


@contextlib.contextmanager
def overlaid(overlay: Overlay) -> Iterator[None]:
    """Let `read_params` see params.yaml with `overlay` laid over it."""
    global _overlay
    before, _overlay = _overlay, overlay
    try:
        yield
    finally:
        _overlay = before


def read_params(path: Path = Path("params.yaml"), overlay: Overlay | None = None) -> Params:
    """The hyperparameters of this run: the file, overlaid by what the stage's command line says (`lesionlab.stage`).

    overlay: in place of the command line's. Raises InputError when a key is missing, unknown or out of its limits.
    """
    if not path.exists():
        raise InputError(f"{path}: not found in {Path.cwd()}; run stages from the repository's root")
    layers = [(str(path), _load_yaml(path.read_text, str(path))), *(overlay or _overlay).layers()]
    content = {}
    for _, layer in layers:
        content = merge(content, layer)

    def origin(location: tuple) -> str:
        """The last layer that says something there; a missing key is params.yaml's fault."""
        return next((name for name, layer in reversed(layers) if _holds(layer, location)), str(path))

    return _validate(content, Params, origin)


def merge(below: object, above: object) -> object:
    """Nested mappings key by key; anything else is replaced, lists too."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    return {**below, **{key: merge(below[key], value) if key in below else value for key, value in above.items()}}


def _load_yaml(read: Callable[[], str], name: str) -> object:
    try:
        return YAML(typ="safe", pure=True).load(read())
    except FileNotFoundError:
        raise InputError(f"{name}: not found") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None


def _require_below_set(content: object, study: Path) -> None:
    """Raise InputError when a key of params.yaml stands beside `set`, where it would change nothing."""
    misplaced = [key for key in content if key in Params.model_fields] if isinstance(content, Mapping) else []
    if misplaced:
        key = misplaced[0]
        raise InputError(
            f"{study}: '{key}' stands beside 'set', where nothing reads it; say set.{key} instead, also with -S"
        )


def _mapping_at(content: object, key: str, path: Path) -> dict:
    """What a dotted key holds; nothing there is an empty mapping. Raises InputError where it is no mapping."""
    for part in key.split("."):
        if not isinstance(content, Mapping) or part not in content:
            raise InputError(f"{path}: key '{key}' is missing")
        content = content[part]
    if content is not None and not isinstance(content, Mapping):
        raise InputError(f"{path}: {key}: must be a mapping with the keys of params.yaml (is: {content!r})")
    return content or {}


def _holds(content: object, location: tuple) -> bool:
    """Whether a place is in `content`; the end of the location may be a union's tag or a number in a list."""
    for part in location:
        if not isinstance(content, Mapping):
            return True
        if part not in content:
            return False
        content = content[part]
    return True


def _validate(content: object, schema: type[Section], origin: Callable[[tuple], str]) -> Section:
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        lines = _describe(error.errors(), schema, origin)
        raise InputError("\n       ".join(lines)) from None


def _describe(problems: list[dict], schema: type[BaseModel], origin: Callable[[tuple], str]) -> list[str]:
    """One line a place in the file; what a union of types says about one place is joined by 'or'."""
    lines: dict[str, list[str]] = {}
    for problem in problems:
        where, _ = _place(schema, problem["loc"])
        start = f"{origin(problem['loc'])}: "
        if problem["type"] == "extra_forbidden":
            _, known = _place(schema, problem["loc"][:-1])
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
            lines.setdefault(f"{start}unknown key '{where}'; {hint}", [])
        elif problem["type"] == "missing":
            lines.setdefault(f"{start}key '{where}' is missing", [])
        else:
            message = problem["msg"].removeprefix("Value error, ")
            given = problem["input"]
            shown = "" if isinstance(given, dict) else f" (is: {given!r})"
            lines.setdefault(f"{start}{where}: " if where else start, []).append(message + shown)
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
