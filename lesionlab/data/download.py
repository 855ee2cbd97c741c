"""Getting files: from a mirror, a URL or a user's own folder; checked, and whole or not at all.

Downloads are kept in .lesionlab/downloads, outside what DVC deletes before a stage runs, so that a second run and
other work trees take them from there. Where each file came from is said on stderr.
"""

import filecmp
import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit

from lesionlab.data.cards import Card, ChengMat, Npz, PhantomLayout, Source, card_path
from lesionlab.data.unpack import Limits, archive_kind, is_residue, is_web_page, named_as_archive, unpack
from lesionlab.errors import InputError
from lesionlab.files import file_digest, from_root, repository_root, whole_file, whole_folder, write_json
from lesionlab.params import DownloadParams
from lesionlab.progress import progress

USER_AGENT = "lesionlab"
TIMEOUT_S = (15, 60)  # for a connection, and for the next bytes
RETRY_PAUSE_S = 2.0
_ABSENT = (403, 404, 410)  # object stores answer 403 for what is not there
_PASSING = (429, 500, 502, 503, 504)
_CHUNK = 1 << 16
_ARCHIVE_DEPTH = 3  # archives within each other; one that holds itself has no end
_IMAGES_BY_HAND = "or give the images themselves: -S download.source=FOLDER_OR_ARCHIVE"


@dataclass(frozen=True)
class Fetched:
    """A file on this machine. origin: its URL, or 'mirror'; verified: a published checksum was compared."""

    path: Path
    origin: str
    verified: bool


class _UnreachableError(Exception):
    """A URL that gave nothing: why, and whether its server says that there is no such file."""

    def __init__(self, reason: str, absent: bool) -> None:
        super().__init__(reason)
        self.absent = absent


def download_images(card: Card, settings: DownloadParams, seed: int, folder: Path) -> None:
    """Fill `folder` with a data set's files, unpacked, and SOURCES.json: what each was and its SHA-256.

    Archives in a folder or an archive are unpacked where they lie, except what the card says not to unpack.
    What is no image file (.mat, .npz) is decoded to PNG files and a table, see lesionlab/data/convert.py.

    `settings.source` (a folder, an archive, a file or a URL) stands in for the card's sources. What has a URL is looked
    for in `settings.mirror` (a folder or URL prefix) first. A URL that ends in a file name of the card's sources or
    alternatives is checked as they are. A phantom is drawn with `seed`. SOURCES.json holds no time and no path of this
    machine, and a verified file's URL wherever it came from: the same files, the same bytes.

    Raises InputError when a file cannot be had, is not what the card says, or cannot be unpacked; `folder` is then
    as it was before.
    """
    print(f"{card.title}; licence: {card.licence}; {card.homepage}", file=sys.stderr)
    if isinstance(card.layout, PhantomLayout):
        if settings.source is not None:
            raise InputError(
                f"download.source is '{settings.source}', but the data set {card.name} is drawn, not read; choose "
                " the card that describes your files (-S dataset=NAME), or leave download.source null"
            )
        from lesionlab.data.phantom import draw_phantom

        with whole_folder(folder) as partial:
            draw_phantom(card.layout, seed, partial)
            _write_sources(partial, card, [])
        return
    if settings.source is None and not card.sources:
        raise InputError(_how_to_obtain(card))
    kept_whole = {source.file for source in (*card.sources, *card.alternatives) if not source.unpack}
    with whole_folder(folder) as partial:
        if settings.source is None:
            records = [_add_source(source, settings.mirror, card, partial) for source in card.sources]
        elif _is_url(settings.source):
            records = [_add_source(_source_at(settings.source, card), settings.mirror, card, partial)]
        else:
            records = [_add_local(from_root(settings.source), folder, partial, kept_whole)]
            print(
                f"{settings.source}: read as it is now; DVC knows it by name alone, so after changes there run again "
                "with --force",
                file=sys.stderr,
            )
        _unpack_within(partial, kept_whole, sum(record["bytes"] for record in records))
        if isinstance(card.layout, ChengMat | Npz):
            from lesionlab.data.convert import convert

            convert(card, partial)
        _write_sources(partial, card, records)


def fetch(source: Source, mirror: str | None, otherwise: str) -> Fetched:
    """Get one file: a checked earlier download, else the mirror, else the official URL.

    mirror: a folder (relative to the repository's root) or URL prefix that may hold `source.file`.
    otherwise: what else a user without internet can do; ends the message.
    Raises InputError when it cannot be reached, when the mirror itself cannot, and when size or checksum differ.
    """
    verified = bool(source.sha256 or source.md5)
    if verified and _earlier(_kept_at(source, source.url), source):
        return Fetched(_kept_at(source, source.url), source.url, verified)
    if mirror is not None:
        found = _from_mirror(source, mirror)
        if found is not None:
            return Fetched(found, source.url if verified else "mirror", verified)
        print(f"download.mirror {mirror} has no '{source.file}': trying {source.url}", file=sys.stderr)
    try:
        return Fetched(_from_url(source.url, source), source.url, verified)
    except _UnreachableError as error:
        raise InputError(
            f"{source.url} cannot be fetched ({error}); get '{source.file}' another way, put it in a folder and run "
            f"again with -S download.mirror=FOLDER, {otherwise}"
        ) from None


def check_file(path: Path, source: Source, where: str) -> None:
    """Hold a file against its card's size and checksums; `where` is how a message calls it.

    Raises InputError naming what was found and what the card wants.
    """
    import pooch

    size = path.stat().st_size
    remedy = "it is damaged, incomplete or another version: replace it, or correct the card if the release changed"
    if source.bytes is not None and size != source.bytes:
        raise InputError(f"{where}: {source.file} has {size} bytes, but must have {source.bytes}; {remedy}")
    for algorithm in ("sha256", "md5"):
        wanted = getattr(source, algorithm)
        if wanted is not None and (found := pooch.file_hash(str(path), alg=algorithm)) != wanted:
            raise InputError(f"{where}: {source.file} has {algorithm} {found}, but must have {wanted}; {remedy}")


def _from_mirror(source: Source, mirror: str) -> Path | None:
    if _is_url(mirror):
        url = f"{mirror.rstrip('/')}/{quote(source.file)}"
        try:
            return _from_url(url, source)
        except _UnreachableError as error:
            if error.absent:
                return None
            raise InputError(
                f"download.mirror: {url} cannot be fetched ({error}); correct download.mirror, or set it to null to "
                f"fetch {source.url}"
            ) from None
    folder = from_root(mirror)
    if not folder.is_dir():
        raise InputError(f"download.mirror: {folder} is not a folder; correct it, or set it to null")
    path = folder / source.file
    if not path.is_file():
        return None
    check_file(path, source, f"download.mirror: {path}")
    print(f"{source.file}: from the mirror, {path}", file=sys.stderr)
    return path


def _from_url(url: str, source: Source) -> Path:
    kept = _kept_at(source, url)
    if _earlier(kept, source):
        return kept
    print(f"{source.file}: fetching {url}", file=sys.stderr)
    with whole_file(kept) as partial:
        _get(url, partial, source)
        with partial.open("rb") as stream:
            start = stream.read(512)
        if is_web_page(start) and not source.file.lower().endswith((".html", ".htm")):
            raise InputError(
                f"{url} answered with a web page (a login, a licence to accept?) instead of {source.file}; fetch it "
                "in a browser, put it in a folder and run again with -S download.mirror=FOLDER"
            )
        check_file(partial, source, url)
    return kept


def _get(url: str, path: Path, source: Source) -> None:
    import requests
    from pooch import HTTPDownloader

    for attempt in (1, 2):
        with progress(total=source.bytes or 1, desc=source.file, unit="B", unit_scale=True) as bar:
            downloader = HTTPDownloader(
                progressbar=bar,
                chunk_size=_CHUNK,
                timeout=TIMEOUT_S,
                headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
            )
            try:
                downloader(url, str(path), None)
                return
            except requests.RequestException as error:
                status = getattr(error.response, "status_code", None)
                reason = _reason(error, url)
                if attempt == 2 or (status is not None and status not in _PASSING):
                    raise _UnreachableError(reason, absent=status in _ABSENT) from None
        print(f"{url}: {reason}; once more", file=sys.stderr)
        time.sleep(RETRY_PAUSE_S)


def _reason(error: Exception, url: str) -> str:
    import requests

    host = urlsplit(url).netloc.rpartition("@")[2]
    if error.response is not None:
        return f"HTTP status {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout) or "timed out" in str(error).lower():
        return f"{host} does not answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return f"the certificate of {host} is not trusted; behind a proxy, name its bundle in REQUESTS_CA_BUNDLE"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy in HTTPS_PROXY refuses the connection"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke before the file was whole"
    if isinstance(error, requests.ConnectionError):
        return f"no connection to {host}; is this machine offline?"
    return f"{type(error).__name__}: {error}"


def _kept_at(source: Source, url: str) -> Path:
    """Where a download is kept: by checksum, or by URL where the card has none."""
    key = source.sha256 or source.md5 or hashlib.sha256(url.encode()).hexdigest()[:16]
    return repository_root() / ".lesionlab" / "downloads" / key / source.file


def _earlier(kept: Path, source: Source) -> bool:
    """Whether an earlier download is there and still whole; one that is not is deleted."""
    if not kept.is_file():
        return False
    try:
        check_file(kept, source, str(kept))
    except InputError as error:
        print(f"{error}; deleted", file=sys.stderr)
        kept.unlink()
        return False
    print(f"{source.file}: downloaded earlier, {kept}", file=sys.stderr)
    return True


def _add_source(source: Source, mirror: str | None, card: Card, folder: Path) -> dict:
    obtain = f". {card.obtain.strip()}" if card.obtain else ""
    fetched = fetch(source, mirror, _IMAGES_BY_HAND + obtain)
    if not fetched.verified:
        print(f"{source.file}: no checksum of it is known; its SHA-256 goes to SOURCES.json", file=sys.stderr)
    _add_file(fetched.path, folder, source.unpack)
    return {
        "file": source.file,
        "url": fetched.origin,
        "bytes": fetched.path.stat().st_size,
        "sha256": source.sha256 or file_digest(fetched.path),
        "verified": fetched.verified,
    }


def _add_local(given: Path, out: Path, folder: Path, kept_whole: set[str]) -> dict:
    """Copy or unpack what `download.source` names; `out` is where `folder` will be."""
    if given.is_dir():
        if given.resolve().is_relative_to(out.resolve()) or out.resolve().is_relative_to(given.resolve()):
            raise InputError(
                f"download.source: {given} overlaps {out}, which this stage writes and DVC deletes; move the images "
                "elsewhere and name that folder"
            )
        return {"file": ".", "url": "download.source", **_copy_folder(given, folder, kept_whole), "verified": False}
    if not given.is_file():
        raise InputError(f"download.source: {given} does not exist; name a folder, an archive, a file or a URL")
    _add_file(given, folder, unpacked=given.name not in kept_whole)
    return {
        "file": given.name,
        "url": "download.source",
        "bytes": given.stat().st_size,
        "sha256": file_digest(given),
        "verified": False,
    }


def _add_file(path: Path, folder: Path, unpacked: bool) -> None:
    if unpacked and archive_kind(path) is not None:
        unpack(path, folder)
        return
    if (folder / path.name).exists():
        raise InputError(f"{path}: '{path.name}' is there already, from another source of the card")
    shutil.copyfile(path, folder / path.name)


def _copy_folder(given: Path, folder: Path, kept_whole: set[str]) -> dict:
    """Copy a folder's files, links followed, macOS residue left out; their number, bytes and common SHA-256.

    Its archives are unpacked in place of a copy, after all others: what lies unpacked beside one already stays.
    """
    digest, total, archives = hashlib.sha256(), 0, []
    names = sorted(_files_below(given))
    if not names:
        raise InputError(f"download.source: {given} holds no files; put the release there, or name another folder")
    for name in progress(names, desc=f"copying {given.name}", unit=" files"):
        path, target = given / name, folder / name
        total += path.stat().st_size
        digest.update(f"{file_digest(path)}  {name}\n".encode(errors="surrogateescape"))
        if _is_packed(path, kept_whole):
            archives.append(name)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    for name in archives:
        _unpack_beside(given / name, (folder / name).parent)
    return {"files": len(names), "bytes": total, "sha256": digest.hexdigest()}


def _unpack_within(folder: Path, kept_whole: set[str], packed: int) -> None:
    """Unpack the archives that archives held, each where it lies, until none is left.

    packed: bytes of what was fetched; all that lay in it may unpack to as much as one archive of that size.
    Raises InputError naming one that cannot be unpacked, or that lies in more than `_ARCHIVE_DEPTH` others.
    """
    usual = Limits()
    left = min(max(usual.floor, int(usual.ratio * packed)), usual.size)
    depth = 0
    try:
        while archives := [path for path in sorted(folder.rglob("*")) if _is_packed(path, kept_whole)]:
            depth += 1
            if depth > _ARCHIVE_DEPTH:
                raise InputError(
                    f"{archives[0]}: an archive in more than {_ARCHIVE_DEPTH} others; unpack them by hand and run "
                    "again with -S download.source=FOLDER"
                )
            for path in archives:
                left -= _unpack_beside(path, path.parent, replace(usual, size=left))
                path.unlink()
    except InputError as error:  # the folder is deleted after an error: its name tells a user nothing
        raise InputError(str(error).replace(f"{folder}{os.sep}", "")) from None


def _unpack_beside(archive: Path, folder: Path, limits: Limits | None = None) -> int:
    """Unpack an archive into a folder that may hold some of its files already; returns the bytes that it held.

    Raises InputError when a file of one name lies there with other content.
    """
    total = 0
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as unpacked:
        unpack(archive, Path(unpacked), limits)
        for path in sorted(path for path in Path(unpacked).rglob("*") if path.is_file()):
            name = path.relative_to(unpacked)
            target = folder / name
            total += path.stat().st_size
            if target.is_file() and filecmp.cmp(path, target, shallow=False):
                continue
            if target.exists():
                raise InputError(
                    f"{archive}: '{name.as_posix()}' lies beside it with other content; take one of them out"
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    return total


def _is_packed(path: Path, kept_whole: set[str]) -> bool:
    if not path.is_file() or path.name in kept_whole or not named_as_archive(path):
        return False
    return archive_kind(path) is not None


def _files_below(given: Path) -> list[str]:
    names, walked = [], set()
    for parent, folders, files in os.walk(given, followlinks=True):
        where = Path(parent)
        if where.resolve() in walked:
            raise InputError(f"download.source: {where} is a link to a folder that is copied already; remove it")
        walked.add(where.resolve())
        folders[:] = sorted(name for name in folders if not is_residue(name))
        for name in files:
            if is_residue(name):
                continue
            if not (where / name).is_file():
                raise InputError(f"download.source: {where / name} is a broken link or no plain file; remove it")
            names.append((where / name).relative_to(given).as_posix())
    return names


def _write_sources(folder: Path, card: Card, records: list[dict]) -> None:
    path = folder / "SOURCES.json"
    if path.exists():
        print("SOURCES.json among the files is replaced by this program's own", file=sys.stderr)
    write_json(path, {"dataset": card.name, "sources": records})


def _how_to_obtain(card: Card) -> str:
    how = card.obtain.strip() if card.obtain else f"its card names no file to download; see {card.homepage}"
    then = "" if "-S download.source=" in how else " Then run with -S download.source=FOLDER_OR_ARCHIVE"
    return f"{card_path(card.name)}: {card.title} is not downloaded by this program: {how}{then}"


def _source_at(url: str, card: Card) -> Source:
    """The file at a user's URL, with size and checksums where the card knows its name."""
    name = _file_name(url)
    for known in (*card.sources, *card.alternatives):
        if known.file == name:
            return known.model_copy(update={"url": url})
    return Source(file=name, url=url)


def _file_name(url: str) -> str:
    name = unquote(PurePosixPath(urlsplit(url).path).name)
    return re.sub(r"[/\\]", "_", name).lstrip(".") or "download"


def _is_url(place: str) -> bool:
    """Whether a place is a URL and not a path. Raises InputError for protocols other than http and https."""
    protocol = re.match(r"([a-z0-9+.-]+)://", place, re.IGNORECASE)
    if protocol and protocol[1].lower() not in ("http", "https"):
        raise InputError(f"params.yaml: download: {place}: only http and https URLs are fetched; use a folder")
    return protocol is not None
