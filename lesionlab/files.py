"""How stages exchange files: whole or not at all, and the same bytes from the same content."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from lesionlab.errors import InputError

STALE_SECONDS = 24 * 3600  # no stage takes so long: what is older, of temporary files, is of a process that was killed


def repository_root() -> Path:
    """The repository's root, also where DVC runs a copy of the work tree (`--temp`, queue workers).

    DVC names it in DVC_ROOT; without DVC it is the folder that holds this package.
    """
    return Path(os.environ.get("DVC_ROOT") or Path(__file__).parent.parent).resolve()


def from_root(path: str | Path) -> Path:
    """A path that a user wrote in params.yaml: relative ones are relative to the repository's root."""
    return repository_root() / Path(path).expanduser()


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it becomes `path` when the block ends well, else it is deleted."""
    _make_parent(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with _full_disk_names(path, temporary):
            yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it replaces `path` when the block ends well, else it is deleted."""
    _make_parent(path)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        temporary.chmod(0o755)
        with _full_disk_names(path, temporary):
            yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make_parent(path: Path) -> None:
    """Make the folder that `path` lies in, without what processes that were killed left there for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with contextlib.suppress(FileNotFoundError):  # another process deletes it too
            if time.time() - left.lstat().st_mtime > STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() and not left.is_symlink() else left.unlink()


@contextlib.contextmanager
def _full_disk_names(path: Path, temporary: Path) -> Iterator[None]:
    """Let a write that fails for want of space name the output: it knows no name, or one in `temporary`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            for name in ("filename", "filename2"):
                given = getattr(error, name)
                if given is not None:
                    setattr(error, name, str(given).replace(str(temporary), str(path)))
            error.filename = error.filename or str(path)
        raise


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal checksum of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def write_json(path: Path, content: dict, digits: int = 6) -> None:
    """Write metrics or a model's description: floats rounded to `digits`, keys in the order given."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, float):
            return round(value, digits)
        return value

    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(plain(content), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict:
    """Read what `write_json` wrote. Raises InputError when the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: not found; run the stage that writes it (dvc repro)") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON ({error}); run the stage that writes it again") from None


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, floats with six significant digits so that the bytes are stable."""
    with whole_file(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")


def read_table(path: Path, columns: tuple[str, ...], text: tuple[str, ...] = ()) -> pd.DataFrame:
    """Read a CSV that must have `columns`; those named in `text` are read as text and never as missing.

    Raises InputError naming the file and the missing column.
    """
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(text, str), keep_default_na=False, na_values={})
    except FileNotFoundError:
        raise InputError(f"{path}: not found; run the stage that writes it (dvc repro)") from None
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable CSV table ({error})") from None
    for column in columns:
        if column not in table:
            raise InputError(f"{path}: column '{column}' is missing (has: {', '.join(map(str, table.columns))})")
    return table


INDEX_COLUMNS = ("id", "label", "group", "frame", "x", "y", "width", "height", "official", "hash", "frame_digest")
LESIONS = "lesions.npy"  # beside images.npy, where any frame has a mask
SPLIT_COLUMNS = ("id", "fold", "subset")


def read_index(crops: Path) -> pd.DataFrame:
    """The table of crops, one row an image of `images.npy`, in the same order.

    Columns that a card adds to those of INDEX_COLUMNS are text.
    """
    path, text = crops / "index.csv", ("label", "group", "frame", "official", "hash", "frame_digest")
    table = read_table(path, INDEX_COLUMNS, text=text)
    further = tuple(name for name in table if name not in INDEX_COLUMNS)
    return read_table(path, INDEX_COLUMNS, text=(*text, *further)) if further else table


def read_images(crops: Path) -> np.ndarray:
    """The crops, memory-mapped: (n, size, size, 3) uint8 RGB."""
    return _read_array(crops / "images.npy")


def read_lesions(crops: Path) -> np.ndarray:
    """Where lesions lie in the crops, from masks: (n, cells, cells) uint8, the covered part of each cell in 255ths.

    Raises InputError where the data set has no masks.
    """
    path = crops / LESIONS
    if not path.exists():
        raise InputError(
            f"{path}: not found, since the data set has no masks; set training.lesion_attention to 0 in params.yaml "
            "(with masks: run dvc repro crop)"
        )
    return _read_array(path)


def read_thumbnails(crops: Path, index: pd.DataFrame) -> np.ndarray:
    """A small grey picture of each frame, in the order in which the index names them: (frames, side, side) uint8.

    Raises InputError when there are more or fewer than frames.
    """
    path = crops / "thumbnails.npy"
    thumbnails = _read_array(path)
    if len(thumbnails) != index["frame"].nunique():
        raise InputError(f"{path}: has other frames than index.csv; run dvc repro --force crop")
    return thumbnails


def _read_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise InputError(f"{path}: not found; run the stage that writes it (dvc repro crop)") from None
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: not a NumPy array ({error}); run dvc repro --force crop") from None


def read_split(path: Path, index: pd.DataFrame) -> pd.DataFrame:
    """`index` with the columns fold and subset of a split table, and its label and group where it has them.

    Raises InputError when they do not belong together.
    """
    split = read_table(path, SPLIT_COLUMNS, text=("subset", "label", "group"))
    if len(split) != len(index) or (split["id"].to_numpy() != index["id"].to_numpy()).any():
        raise InputError(f"{path}: has other crops than index.csv; run dvc repro split")
    return index.assign(**{name: split[name].to_numpy() for name in split if name != "id"})
