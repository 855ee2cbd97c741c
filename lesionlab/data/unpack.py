"""Unpacking archives that a stranger made: zip, tar and rar, without links, escapes or bombs."""

import bz2
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from lesionlab.errors import InputError
from lesionlab.progress import progress

Kind = Literal["zip", "tar", "rar"]

_SUFFIXES = {
    ".zip": "zip", ".rar": "rar", ".tar": "tar", ".tgz": "tar", ".tbz2": "tar", ".txz": "tar",
    ".tar.gz": "tar", ".tar.bz2": "tar", ".tar.xz": "tar",
}  # fmt: skip
# Zip files by their bytes, but files of their own to those who made them.
_KEPT_WHOLE = {".npz", ".keras", ".xlsx", ".docx", ".pptx", ".ods", ".odt", ".pt", ".pth"}
_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_RAR_MAGIC = b"Rar!\x1a\x07"
_DECOMPRESSORS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_RESIDUE = ("__MACOSX", ".DS_Store")
_CHUNK = 1 << 20
_LINK, _SPECIAL = "a link", "a special file (device or pipe)"
_BY_HAND = "unpack it by hand, into a folder without it, and run again with -S download.source=FOLDER"
_DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, struct.error, ValueError,
    NotImplementedError,
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to, counted while it is unpacked: what its headers say is not believed.

    `floor` bytes are always allowed, beyond that `ratio` times the archive's size, and at most `size` bytes.
    """

    ratio: float = 100
    floor: int = 64 << 20
    size: int = 256 << 30
    members: int = 1_000_000


@dataclass
class _Budget:
    archive: Path
    limits: Limits
    bytes_left: int = field(init=False)
    members_left: int = field(init=False)

    def __post_init__(self) -> None:
        allowed = max(self.limits.floor, int(self.limits.ratio * self.archive.stat().st_size))
        self.bytes_left = min(allowed, self.limits.size)
        self.members_left = self.limits.members

    def spend(self, count: int) -> None:
        self.bytes_left -= count
        self.afford()

    def spend_member(self) -> None:
        self.members_left -= 1
        self.afford()

    def afford(self, size: int = 0, members: int = 0) -> None:
        if size > self.bytes_left:
            raise InputError(
                f"{self.archive}: unpacks to far more than an archive of {self.archive.stat().st_size} bytes "
                f"should (a decompression bomb?); if you trust it, {_BY_HAND}"
            )
        if members > self.members_left:
            raise InputError(
                f"{self.archive}: holds more than {self.limits.members} entries; if you trust it, {_BY_HAND}"
            )


def archive_kind(path: Path) -> Kind | None:
    """What kind of archive a file is by its first bytes; None for files kept whole (.npz, .mat, .csv, ...).

    Raises InputError when the name promises an archive that the bytes are not: damaged, or a web page that was
    saved in its place.
    """
    name = path.name.lower()
    promised = next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix)), None)
    with path.open("rb") as stream:
        start = stream.read(512)
    if start.startswith(_ZIP_MAGIC):
        return None if path.suffix.lower() in _KEPT_WHOLE else "zip"
    if start.startswith(_RAR_MAGIC):
        return "rar"
    if _opener(start) is not None:
        with _damage_named(path), _decompressed(path) as stream:
            start = stream.read(512)
    if start[257:262] == b"ustar" or (promised == "tar" and len(start) == 512):
        return "tar"
    if promised is not None:
        what = "a web page, not an archive" if is_web_page(start) else f"damaged, or not a {promised} archive"
        raise InputError(f"{path}: {what}; delete it and download it again")
    return None


def named_as_archive(path: Path) -> bool:
    """Whether a file's name is that of an archive, or has no suffix: others are zip files by their bytes alone."""
    return not path.suffix or path.name.lower().endswith(tuple(_SUFFIXES))


def is_web_page(start: bytes) -> bool:
    """Whether a file that begins so is HTML, as servers send when they want a login or have a bad day."""
    return start.lstrip()[:100].lower().startswith((b"<!doctype html", b"<html"))


def unpack(archive: Path, folder: Path, limits: Limits | None = None) -> int:
    """Unpack a zip, tar (plain, gz, bz2, xz) or rar into `folder`; archives inside it stay as they are.

    Only plain files come out: macOS residue (__MACOSX, .DS_Store, ._*) and empty folders are left out. `folder`
    may hold files of other archives, but none of the same name. After an error `folder` holds a part: call this
    inside `whole_folder`.

    Returns the number of files.
    Raises InputError when the archive is damaged, encrypted, empty or no archive; when a member has an absolute
    name, leaves the folder, is a link or a device, or is there twice; when it unpacks to more than `limits`
    allow; and for a rar when no program on PATH unpacks it.
    """
    kind = archive_kind(archive)
    if kind is None:
        raise InputError(f"{archive}: not a zip, tar or rar archive")
    budget = _Budget(archive, limits or Limits())
    folder.mkdir(parents=True, exist_ok=True)
    with _damage_named(archive):
        files = {"zip": _unpack_zip, "tar": _unpack_tar, "rar": _unpack_rar}[kind](archive, folder, budget)
    if files == 0:
        raise InputError(f"{archive}: holds no files; delete it and download it again")
    return files


def _unpack_zip(archive: Path, folder: Path, budget: _Budget) -> int:
    files = 0
    with zipfile.ZipFile(archive) as bundle:
        for member in _progress(bundle.infolist(), archive):
            budget.spend_member()
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refused(archive, member.filename, _LINK if kind == stat.S_IFLNK else _SPECIAL)
            name = _safe_name(archive, member.filename)
            if name is None or member.filename.endswith(("/", "\\")):
                continue
            if member.flag_bits & 0x1:
                raise InputError(f"{archive}: '{name}' is encrypted; {_BY_HAND}")
            try:
                stream = bundle.open(member)
            except NotImplementedError:
                method = zipfile.compressor_names.get(member.compress_type, member.compress_type)
                raise InputError(
                    f"{archive}: '{name}' is compressed by a method that Python cannot read ({method}); {_BY_HAND}"
                ) from None
            with stream:
                _write(archive, folder, name, stream, budget)
            files += 1
    return files


class _Member(tarfile.TarInfo):
    """A header that must be whole: `tarfile` takes a broken one, after the first, for the archive's end."""

    @classmethod
    def fromtarfile(cls, bundle: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(bundle)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"ends too early: {error}") from None


class _Counted(io.RawIOBase):
    """A decompressed stream whose every byte is paid for, headers included."""

    def __init__(self, stream: BinaryIO, budget: _Budget) -> None:
        self.stream, self.budget = stream, budget

    def read(self, size: int = -1) -> bytes:
        chunk = self.stream.read(min(size, _CHUNK) if size >= 0 else _CHUNK)
        self.budget.spend(len(chunk))
        return chunk


def _unpack_tar(archive: Path, folder: Path, budget: _Budget) -> int:
    files = 0
    sparse = _Budget(archive, budget.limits)  # a sparse file is larger than what it takes in the stream
    with _decompressed(archive) as stream:
        counted = _Counted(stream, budget)
        with tarfile.open(fileobj=counted, mode="r|", tarinfo=_Member) as bundle:
            for member in _progress(bundle, archive):
                budget.spend_member()
                name = _safe_name(archive, member.name)
                if not (member.isreg() or member.isdir()):
                    link = member.islnk() or member.issym()
                    raise _refused(archive, member.name, _LINK if link else _SPECIAL)
                if name is None or member.isdir():
                    continue
                tarfile.data_filter(member, str(folder))
                with bundle.extractfile(member) as content:
                    _write(archive, folder, name, content, sparse if member.issparse() else None)
                files += 1
        while counted.read():  # to the end, where gzip and xz keep their checksums
            pass
    return files


# By how strictly they check what they unpack: bsdtar lets some damage pass. 7z is told the format, or else it would
# look for another archive inside when it is built without RAR.
_RAR_TOOLS = {
    "unrar": lambda archive, out: ["x", "-idq", "-o-", "-p-", "--", archive, out + os.sep],
    "unar": lambda archive, out: ["-quiet", "-no-directory", "-output-directory", out, archive],
    "7zz": lambda archive, out: ["x", "-bd", "-y", "-p-", _rar_type(archive), "-o" + out, "--", archive],
    "7z": lambda archive, out: ["x", "-bd", "-y", "-p-", _rar_type(archive), "-o" + out, "--", archive],
    "bsdtar": lambda archive, out: ["-x", "-f", archive, "-C", out, "--no-same-owner"],
}
_RAR_POLL_S = 0.5


def _unpack_rar(archive: Path, folder: Path, budget: _Budget) -> int:
    tools = {name: path for name in _RAR_TOOLS if (path := shutil.which(name))}
    if not tools:
        raise InputError(
            f"{archive}: no program that unpacks RAR is on PATH (unrar, unar, 7z or bsdtar); install one (Debian, "
            f"Ubuntu: apt install unar, or libarchive-tools for bsdtar; macOS: brew install unar), or {_BY_HAND}"
        )
    failures = []
    for name, program in tools.items():
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".rar.", suffix=".partial") as empty:
            command = [program, *_RAR_TOOLS[name](str(archive.resolve()), empty)]
            failure = _run_rar_tool(command, Path(empty), archive, budget)
            if failure is None:
                return _adopt(archive, Path(empty), folder, budget)
        failures.append(f"{name}: {failure}")
        print(f"{archive.name}: {failures[-1]}", file=sys.stderr)
    raise InputError(
        f"{archive}: cannot be unpacked ({'; '.join(failures)}): damaged, encrypted or too new for the program; "
        f"delete it and download it again, or {_BY_HAND}"
    )


def _run_rar_tool(command: list[str], out: Path, archive: Path, budget: _Budget) -> str | None:
    """Run a program that unpacks into `out`; None, or its exit status and the last lines that it printed."""
    with (
        tempfile.TemporaryFile() as log,
        progress(desc=archive.name, unit="B", unit_scale=True) as bar,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process,
    ):
        try:
            while process.poll() is None:
                size, members = _measure(out)
                bar.update(size - bar.n)
                budget.afford(size, members)
                try:
                    process.wait(_RAR_POLL_S)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if process.poll() is None:
                process.kill()
        if process.returncode == 0:
            return None
        log.seek(0)
        lines = [line.strip() for line in log.read()[-2000:].decode(errors="replace").splitlines()]
        said = " / ".join([line for line in lines if line][-4:])
        return f"exit status {process.returncode}, {said or 'no message'}"


def _rar_type(archive: str) -> str:
    with Path(archive).open("rb") as stream:
        return "-trar5" if stream.read(8).endswith(b"\x01\x00") else "-trar"


def _measure(folder: Path) -> tuple[int, int]:
    size = members = 0
    for parent, folders, files in os.walk(folder):
        members += len(folders) + len(files)
        for name in files:
            try:
                size += Path(parent, name).lstat().st_size
            except FileNotFoundError:  # renamed by the program meanwhile
                continue
    return size, members


def _adopt(archive: Path, unpacked: Path, folder: Path, budget: _Budget) -> int:
    """Move what another program unpacked into `folder`, once every entry proved to be a plain file within."""
    found = []
    for parent, folders, files in os.walk(unpacked):
        for entry in (*folders, *files):
            budget.spend_member()
            path = Path(parent, entry)
            state = path.lstat()
            name = _safe_name(archive, path.relative_to(unpacked).as_posix())
            if stat.S_ISDIR(state.st_mode):
                continue
            if not stat.S_ISREG(state.st_mode) or state.st_nlink > 1:
                link = stat.S_ISLNK(state.st_mode) or state.st_nlink > 1
                raise _refused(archive, str(path.relative_to(unpacked)), _LINK if link else _SPECIAL)
            budget.spend(state.st_size)
            if name is not None:
                found.append((path, name))
    for path, name in found:
        target = _new_file(archive, folder, name)
        path.chmod(0o644)
        path.replace(target)
    return len(found)


def _write(archive: Path, folder: Path, name: PurePosixPath, stream: BinaryIO, budget: _Budget | None) -> None:
    with _new_file(archive, folder, name).open("xb") as target:
        while chunk := stream.read(_CHUNK):
            if budget is not None:
                budget.spend(len(chunk))
            target.write(chunk)


def _new_file(archive: Path, folder: Path, name: PurePosixPath) -> Path:
    target = folder / name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        there = target.exists()
    except (FileExistsError, NotADirectoryError):
        there = True
    if there:
        raise InputError(f"{archive}: '{name}' is there already, twice in this archive or from another one; {_BY_HAND}")
    return target


def _safe_name(archive: Path, name: str) -> PurePosixPath | None:
    """A member's name as a path within the folder, or None for macOS residue and the folder itself."""
    plain = name.replace("\\", "/")
    if plain.startswith("/") or re.match(r"[A-Za-z]:", plain):
        raise _refused(archive, name, "an absolute path")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _refused(archive, name, "a path out of the folder")
    if any(character < " " for character in plain) or any(len(os.fsencode(part)) > 255 for part in parts):
        raise _refused(archive, name, "a name that no file should have")
    if not parts or any(is_residue(part) for part in parts):
        return None
    return PurePosixPath(*parts)


def is_residue(name: str) -> bool:
    """Whether a file or folder is what macOS leaves behind: __MACOSX, .DS_Store, ._*."""
    return name in _RESIDUE or name.startswith("._")


def _refused(archive: Path, name: str, what: str) -> InputError:
    return InputError(f"{archive}: refused, because '{name}' is {what}; if you trust it, {_BY_HAND}")


def _opener(start: bytes) -> Callable | None:
    return next((opener for magic, opener in _DECOMPRESSORS.items() if start.startswith(magic)), None)


@contextmanager
def _decompressed(archive: Path) -> Iterator[BinaryIO]:
    with archive.open("rb") as stream:
        opener = _opener(stream.read(8))
    with opener(archive, "rb") if opener else archive.open("rb") as stream:
        yield stream


@contextmanager
def _damage_named(archive: Path) -> Iterator[None]:
    try:
        yield
    except (*_DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(f"{archive}: damaged ({error}); delete it and download it again") from None


def _progress(members: Iterable, archive: Path) -> Iterable:
    return progress(members, desc=f"unpacking {archive.name}", unit=" files")
