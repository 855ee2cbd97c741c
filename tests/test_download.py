"""Downloads against a server on this machine: what arrives, what is refused, and what a user is told."""

import ast
import dataclasses
import hashlib
import importlib.util
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
import types
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import ValidationError

from lesionlab.data import download as module
from lesionlab.data import weights as weights_module
from lesionlab.data.cards import Card, Recommended, Source, read_card, resolve_model
from lesionlab.data.download import download_images, fetch
from lesionlab.data.unpack import Limits
from lesionlab.data.weights import fetch_weights
from lesionlab.errors import InputError
from lesionlab.models.backbones import KNOWN, find_backbone
from lesionlab.params import DownloadParams, ModelParams
from stages import download as stage

ROOT = Path(__file__).parent.parent
OTHERWISE = "or do without it"
HDF5 = b"\x89HDF\r\n\x1a\n" + bytes(100)


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as bundle:
        for name, content in files.items():
            bundle.writestr(zipfile.ZipInfo(name), content)
    return stream.getvalue()


FILES = {"My set/images/1 a.png": b"image", "My set/masks/1 a.png": b"mask"}
ARCHIVE = zipped(FILES)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


class Server(ThreadingHTTPServer):
    """Answers with `files[path]`; a number is a status, a list is answered item by item. Notes every request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests, self.agents = {}, [], set()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Say nothing: clients that hang up are what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        self.server.agents.add(self.headers["User-Agent"])
        answer = self.server.files.get(self.path, 404)
        if isinstance(answer, list):
            answer = answer.pop(0)
        if isinstance(answer, int):
            self.send_error(answer)
            return
        if answer == b"slow":
            time.sleep(1)
            return
        self.send_response(200)
        cut = answer.startswith(b"CUT")
        self.send_header("Content-Length", str(len(answer) + (1000 if cut else 0)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """A repository of its own, so that nothing is kept in the real one."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(module, "RETRY_PAUSE_S", 0.0)
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "data" / "raw"


def make_card(*sources: Source, **changes: object) -> Card:
    return Card(
        **{
            "name": "my-set",
            "title": "My set",
            "homepage": "https://example.org/my-set",
            "licence": "CC BY 4.0",
            "citation": "none",
            "sources": list(sources),
            "layout": {"kind": "mask-pairs", "folders": [("images", "masks")]},
            "classes": ["background", "polyp"],
            "groups": "none",
            "recommended": {"backbone": "vgg16", "weights": "imagenet", "image_size": 96},
            **changes,
        }
    )


def settings(source: object = None, mirror: object = None) -> DownloadParams:
    return DownloadParams(source=source and str(source), mirror=mirror and str(mirror))


def contents(folder: Path) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    found.pop("SOURCES.json", None)
    return found


def sources(folder: Path) -> list[dict]:
    return json.loads((folder / "SOURCES.json").read_text())["sources"]


def nothing_written(out: Path, root: Path) -> bool:
    kept = [path for path in (root / ".lesionlab").rglob("*") if path.is_file()]
    beside = list(out.parent.iterdir()) if out.parent.exists() else []
    return not kept and not beside


def refused_url() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/set.zip"


# --- the card's sources


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_good_download_is_unpacked_and_recorded(server, out, algorithm):
    server.files["/my%20set.zip"] = ARCHIVE
    checksum = {"sha256": sha256(ARCHIVE), "md5": md5(ARCHIVE)}[algorithm]
    url = f"{server.url}/my%20set.zip"
    source = Source(file="my set.zip", url=url, bytes=len(ARCHIVE), **{algorithm: checksum})
    download_images(make_card(source), settings(), 42, out)
    assert contents(out) == FILES
    assert json.loads((out / "SOURCES.json").read_text()) == {
        "dataset": "my-set",
        "sources": [
            {"file": "my set.zip", "url": url, "bytes": len(ARCHIVE), "sha256": sha256(ARCHIVE), "verified": True}
        ],
    }
    assert server.agents == {"lesionlab"}


def test_without_a_checksum_the_sha256_is_recorded_as_unverified(server, out, capsys):
    server.files["/set.zip"] = ARCHIVE
    download_images(make_card(Source(file="set.zip", url=f"{server.url}/set.zip")), settings(), 42, out)
    assert sources(out)[0]["sha256"] == sha256(ARCHIVE)
    assert sources(out)[0]["verified"] is False
    said = capsys.readouterr().err
    assert "set.zip: no checksum of it is known" in said
    assert "My set; licence: CC BY 4.0; https://example.org/my-set" in said


@pytest.mark.parametrize("checked", [True, False])
def test_the_second_call_uses_the_kept_file_and_writes_the_same_bytes(server, out, capsys, checked):
    server.files["/set.zip"] = ARCHIVE
    source = Source(file="set.zip", url=f"{server.url}/set.zip", sha256=sha256(ARCHIVE) if checked else None)
    download_images(make_card(source), settings(), 42, out)
    first = (out / "SOURCES.json").read_bytes()
    download_images(make_card(source), settings(), 42, out)
    assert server.requests == ["/set.zip"]
    assert (out / "SOURCES.json").read_bytes() == first
    assert "set.zip: downloaded earlier" in capsys.readouterr().err


def test_a_kept_file_that_changed_is_fetched_again(server, out, root, capsys):
    server.files["/set.zip"] = ARCHIVE
    source = Source(file="set.zip", url=f"{server.url}/set.zip", sha256=sha256(ARCHIVE))
    download_images(make_card(source), settings(), 42, out)
    (root / ".lesionlab/downloads" / sha256(ARCHIVE) / "set.zip").write_bytes(b"rot")
    download_images(make_card(source), settings(), 42, out)
    assert contents(out) == FILES
    assert len(server.requests) == 2
    assert "deleted" in capsys.readouterr().err


def test_several_sources_meet_in_one_folder_and_some_stay_packed(server, out):
    second, table = zipped({"My set/images/2.png": b"2"}), b"id,label\n"
    server.files |= {"/1.zip": ARCHIVE, "/2.zip": second, "/3.zip": ARCHIVE, "/labels.csv": table}
    made = [Source(file=name[1:], url=server.url + name, unpack=name != "/3.zip") for name in server.files]
    download_images(make_card(*made), settings(), 42, out)
    assert contents(out) == {**FILES, "My set/images/2.png": b"2", "labels.csv": table, "3.zip": ARCHIVE}
    assert [record["file"] for record in sources(out)] == ["1.zip", "2.zip", "3.zip", "labels.csv"]


def test_a_wrong_checksum_names_both_sums_and_keeps_nothing(server, out, root):
    server.files["/set.zip"] = ARCHIVE
    for wrong in ({"sha256": "0" * 64}, {"md5": "0" * 32}):
        algorithm, wanted = next(iter(wrong.items()))
        found = {"sha256": sha256, "md5": md5}[algorithm](ARCHIVE)
        card = make_card(Source(file="set.zip", url=f"{server.url}/set.zip", **wrong))
        with pytest.raises(InputError) as caught:
            download_images(card, settings(), 42, out)
        assert f"/set.zip: set.zip has {algorithm} {found}, but must have {wanted}" in str(caught.value)
        assert nothing_written(out, root)


def test_a_wrong_size_is_refused(server, out, root):
    server.files["/set.zip"] = ARCHIVE
    with pytest.raises(InputError, match=rf"set\.zip has {len(ARCHIVE)} bytes, but must have 7"):
        download_images(make_card(Source(file="set.zip", url=f"{server.url}/set.zip", bytes=7)), settings(), 42, out)
    assert nothing_written(out, root)


def test_what_was_there_stays_when_a_download_fails(server, out):
    out.mkdir(parents=True)
    (out / "old.png").write_bytes(b"old")
    server.files["/1.zip"] = ARCHIVE
    made = [Source(file=name, url=f"{server.url}/{name}") for name in ("1.zip", "2.zip")]
    with pytest.raises(InputError, match="HTTP status 404"):
        download_images(make_card(*made), settings(), 42, out)
    assert contents(out) == {"old.png": b"old"}
    assert list(out.parent.iterdir()) == [out]


def test_a_damaged_archive_keeps_nothing_and_names_the_file_to_delete(server, out, root):
    server.files["/set.zip"] = ARCHIVE[:-30]
    with pytest.raises(InputError, match="delete it and download it again") as caught:
        download_images(make_card(Source(file="set.zip", url=f"{server.url}/set.zip")), settings(), 42, out)
    (kept,) = (root / ".lesionlab").rglob("set.zip")
    assert str(kept) in str(caught.value)
    assert list(out.parent.iterdir()) == []


def test_a_web_page_in_place_of_an_archive_is_told(server, out, root):
    server.files["/set.zip"] = b"<!DOCTYPE html><title>Please log in</title>"
    with pytest.raises(InputError, match=r"answered with a web page .* instead of set\.zip"):
        download_images(make_card(Source(file="set.zip", url=f"{server.url}/set.zip")), settings(), 42, out)
    assert nothing_written(out, root)


# --- no answer


def failure(url: str, file: str = "set.zip") -> str:
    with pytest.raises(InputError) as caught:
        fetch(Source(file=file, url=url, sha256="0" * 64), None, OTHERWISE)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{url} cannot be fetched (")
    assert message.endswith(
        f"get '{file}' another way, put it in a folder and run again with -S download.mirror=FOLDER, {OTHERWISE}"
    )
    return message


@pytest.mark.parametrize(("status", "tries"), [(403, 1), (404, 1), (500, 2), (503, 2)])
def test_a_status_is_told_and_only_passing_ones_are_tried_again(server, out, root, status, tries):
    server.files["/set.zip"] = status
    assert f"HTTP status {status}" in failure(f"{server.url}/set.zip")
    assert len(server.requests) == tries
    assert nothing_written(out, root)


def test_a_refused_connection_is_told(out, root):
    url = refused_url()
    assert f"no connection to {url.split('/')[2]}; is this machine offline?" in failure(url)
    assert nothing_written(out, root)


def test_an_unknown_host_is_told(monkeypatch):
    def no_name(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)
    assert "no connection to set.invalid; is this machine offline?" in failure("http://set.invalid/set.zip")


def test_a_server_that_does_not_answer_is_told(server, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_S", (0.1, 0.1))
    server.files["/set.zip"] = b"slow"
    assert "does not answer in time" in failure(f"{server.url}/set.zip")


def test_a_truncated_body_is_told_and_not_kept(server, out, root):
    server.files["/set.zip"] = b"CUT" + ARCHIVE
    assert "the connection broke before the file was whole" in failure(f"{server.url}/set.zip")
    assert len(server.requests) == 2
    assert nothing_written(out, root)


def test_a_second_try_may_succeed(server, capsys):
    server.files["/set.zip"] = [b"CUT", ARCHIVE]
    fetched = fetch(Source(file="set.zip", url=f"{server.url}/set.zip", sha256=sha256(ARCHIVE)), None, OTHERWISE)
    assert fetched.path.read_bytes() == ARCHIVE
    assert "; once more" in capsys.readouterr().err


def test_offline_with_a_card_that_says_how_to_obtain(out):
    card = make_card(Source(file="set.zip", url=refused_url()), obtain="Ask the authors by mail.")
    with pytest.raises(InputError, match=r"-S download\.source=FOLDER_OR_ARCHIVE\. Ask the authors by mail\.$"):
        download_images(card, settings(), 42, out)


def test_a_card_without_sources_says_how_to_obtain(out):
    card = make_card(obtain="Make an account at https://example.org and download set.rar.")
    with pytest.raises(InputError) as caught:
        download_images(card, settings(), 42, out)
    for wanted in ("datasets/my-set.yaml", "Make an account at https://example.org", "-S download.source="):
        assert wanted in str(caught.value)
    with pytest.raises(InputError, match=r"its card names no file to download; see https://example.org/my-set"):
        download_images(make_card(), settings(), 42, out)
    card = make_card(obtain="Ask, and run with -S download.source=FOLDER.")
    with pytest.raises(InputError, match=r"by this program: Ask, and run with -S download\.source=FOLDER\.$"):
        download_images(card, settings(), 42, out)


# --- the mirror


def test_a_mirror_folder_comes_first_and_the_record_is_the_same(server, out, tmp_path, root):
    server.files["/set.zip"] = ARCHIVE
    source = Source(file="set.zip", url=f"{server.url}/set.zip", sha256=sha256(ARCHIVE))
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/set.zip").write_bytes(ARCHIVE)
    download_images(make_card(source), settings(mirror=tmp_path / "mirror"), 42, out)
    assert contents(out) == FILES
    assert server.requests == []
    from_mirror = (out / "SOURCES.json").read_bytes()
    download_images(make_card(source), settings(), 42, out)
    assert server.requests == ["/set.zip"]
    assert (out / "SOURCES.json").read_bytes() == from_mirror
    assert str(tmp_path).encode() not in from_mirror


def test_a_relative_mirror_is_below_the_root_and_unverified_files_say_mirror(out, root):
    (root / "files").mkdir()
    (root / "files/set.zip").write_bytes(ARCHIVE)
    download_images(make_card(Source(file="set.zip", url=refused_url())), settings(mirror="files"), 42, out)
    record = {"file": "set.zip", "url": "mirror", "bytes": len(ARCHIVE), "sha256": sha256(ARCHIVE), "verified": False}
    assert sources(out) == [record]


def test_a_mirror_url_comes_first(server, out):
    server.files["/mirror/my%20set.zip"] = ARCHIVE
    source = Source(file="my set.zip", url=refused_url(), sha256=sha256(ARCHIVE))
    download_images(make_card(source), settings(mirror=f"{server.url}/mirror/"), 42, out)
    assert contents(out) == FILES
    assert server.requests == ["/mirror/my%20set.zip"]


@pytest.mark.parametrize("kind", ["folder", "url"])
def test_a_mirror_without_the_file_is_said_before_going_to_the_url(server, out, tmp_path, capsys, kind):
    server.files["/set.zip"] = ARCHIVE
    (tmp_path / "mirror").mkdir()
    mirror = tmp_path / "mirror" if kind == "folder" else f"{server.url}/mirror"
    source = Source(file="set.zip", url=f"{server.url}/set.zip", sha256=sha256(ARCHIVE))
    download_images(make_card(source), settings(mirror=mirror), 42, out)
    assert contents(out) == FILES
    assert f"download.mirror {mirror} has no 'set.zip': trying {server.url}/set.zip" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["folder", "url"])
def test_a_mirror_with_a_wrong_file_is_an_error_and_the_url_is_not_tried(server, out, root, tmp_path, kind):
    server.files |= {"/set.zip": ARCHIVE, "/mirror/set.zip": b"other"}
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/set.zip").write_bytes(b"other")
    mirror = tmp_path / "mirror" if kind == "folder" else f"{server.url}/mirror"
    source = Source(file="set.zip", url=f"{server.url}/set.zip", sha256=sha256(ARCHIVE))
    with pytest.raises(InputError) as caught:
        download_images(make_card(source), settings(mirror=mirror), 42, out)
    for wanted in (f"{mirror}/set.zip", sha256(b"other"), sha256(ARCHIVE)):
        assert wanted in str(caught.value)
    assert "/set.zip" not in server.requests
    assert nothing_written(out, root)


def test_a_mirror_that_cannot_be_reached_is_an_error_and_the_url_is_not_tried(server, out, tmp_path):
    server.files["/set.zip"] = ARCHIVE
    card = make_card(Source(file="set.zip", url=f"{server.url}/set.zip"))
    with pytest.raises(InputError, match=r"download\.mirror: .*/mirror/set\.zip cannot be fetched \(no connection"):
        download_images(card, settings(mirror=refused_url().replace("set.zip", "mirror")), 42, out)
    with pytest.raises(InputError, match=r"download\.mirror: .*absent is not a folder"):
        download_images(card, settings(mirror=tmp_path / "absent"), 42, out)
    with pytest.raises(InputError, match="only http and https"):
        download_images(card, settings(mirror="s3://bucket/files"), 42, out)
    assert server.requests == []


# --- a source of one's own


def test_a_folder_is_copied_without_residue(out, tmp_path):
    given = tmp_path / "my images"
    (given / "polyp").mkdir(parents=True)
    (given / "polyp/a b.png").write_bytes(b"1")
    (given / "polyp/._a b.png").write_bytes(b"r")
    (given / ".DS_Store").write_bytes(b"r")
    (given / "linked").symlink_to(given / "polyp")
    with pytest.raises(InputError, match="is a link to a folder that is copied already"):
        download_images(make_card(), settings(given), 42, out)
    (given / "linked").unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "c.png").write_bytes(b"33")
    (given / "linked").symlink_to(elsewhere)
    download_images(make_card(), settings(given), 42, out)
    assert contents(out) == {"polyp/a b.png": b"1", "linked/c.png": b"33"}
    assert not any(path.is_symlink() for path in out.rglob("*"))
    listing = f"{sha256(b'33')}  linked/c.png\n{sha256(b'1')}  polyp/a b.png\n".encode()
    assert sources(out) == [
        {"file": ".", "url": "download.source", "files": 2, "bytes": 3, "sha256": sha256(listing), "verified": False}
    ]
    assert str(tmp_path) not in (out / "SOURCES.json").read_text()


def test_a_folder_may_not_overlap_the_output(out, tmp_path):
    (out / "images").mkdir(parents=True)
    (out / "images/a.png").write_bytes(b"1")
    for given in (out, out / "images", out.parent):
        with pytest.raises(InputError, match=r"overlaps .* move the images elsewhere"):
            download_images(make_card(), settings(given), 42, out)
    assert contents(out) == {"images/a.png": b"1"}


def test_folders_that_cannot_be_copied_are_named(out, tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    with pytest.raises(InputError, match="given holds no files"):
        download_images(make_card(), settings(given), 42, out)
    (given / "broken").symlink_to(tmp_path / "absent")
    with pytest.raises(InputError, match="given/broken is a broken link or no plain file"):
        download_images(make_card(), settings(given), 42, out)
    with pytest.raises(InputError, match="absent does not exist; name a folder, an archive, a file or a URL"):
        download_images(make_card(), settings(tmp_path / "absent"), 42, out)
    assert not out.exists()


def test_an_archive_is_unpacked_and_a_single_file_copied(out, root):
    (root / "set.zip").write_bytes(ARCHIVE)
    (root / "set.npz").write_bytes(zipped({"images.npy": b"1"}))
    download_images(make_card(), settings("set.zip"), 42, out)
    assert contents(out) == FILES
    assert sources(out)[0] == {
        "file": "set.zip", "url": "download.source", "bytes": len(ARCHIVE), "sha256": sha256(ARCHIVE),
        "verified": False,
    }  # fmt: skip
    download_images(make_card(), settings("set.npz"), 42, out)
    assert contents(out) == {"set.npz": (root / "set.npz").read_bytes()}


def test_archives_in_a_folder_are_unpacked_where_they_lie(out, tmp_path):
    given = tmp_path / "given"
    (given / "deep").mkdir(parents=True)
    kept = {"deep/x.npz": zipped({"x.npy": b"1"}), "deep/1.mat": HDF5, "notes.docx": ARCHIVE, "model.pt": ARCHIVE}
    inner = zipped({"3.png": b"3", "deepest.zip": zipped({"4.png": b"4"})})
    for name, content in {"my set.zip": ARCHIVE, "deep/no suffix": zipped({"2.png": b"2", "i/in.zip": inner})}.items():
        (given / name).write_bytes(content)
    for name, content in kept.items():
        (given / name).write_bytes(content)
    before = contents(given)
    download_images(make_card(), settings(given), 42, out)
    unpacked = {"deep/2.png": b"2", "deep/i/3.png": b"3", "deep/i/4.png": b"4"}
    assert contents(out) == FILES | kept | unpacked
    assert contents(given) == before
    listing = "".join(f"{sha256(before[name])}  {name}\n" for name in sorted(before)).encode()
    assert (sources(out)[0]["files"], sources(out)[0]["sha256"]) == (6, sha256(listing))


def test_archives_in_an_archive_are_unpacked_but_not_without_end(out, root):
    content = zipped({"a.png": b"a"})
    for depth in range(4):
        content = zipped({f"in {depth}.zip": content})
        (root / f"{depth}.zip").write_bytes(content)
    for depth in range(3):
        download_images(make_card(), settings(f"{depth}.zip"), 42, out)
        assert contents(out) == {"a.png": b"a"}
    with pytest.raises(InputError) as caught:
        download_images(make_card(), settings("3.zip"), 42, out)
    assert str(caught.value) == (
        "in 0.zip: an archive in more than 3 others; unpack them by hand and run again with -S download.source=FOLDER"
    )
    assert contents(out) == {"a.png": b"a"}


def test_what_the_card_keeps_packed_stays_so_in_a_folder_and_in_an_archive(out, root):
    card = make_card(Source(file="kept.zip", url=refused_url(), unpack=False))
    (root / "given").mkdir()
    (root / "given/kept.zip").write_bytes(ARCHIVE)
    (root / "outer.zip").write_bytes(zipped({"kept.zip": ARCHIVE}))
    for given in ("given", "outer.zip", "given/kept.zip"):
        download_images(card, settings(given), 42, out)
        assert contents(out) == {"kept.zip": ARCHIVE}


def test_a_bad_archive_among_the_files_is_named_and_nothing_is_written(out, tmp_path, root):
    given = tmp_path / "given"
    (given / "b").mkdir(parents=True)
    evil = zipped({"../../evil.png": b"1"})
    for content, message in {
        evil: f"{given}/b/x.zip: refused, because '../../evil.png' is a path out of the folder; if",
        zipped({"d/in.zip": evil}): "b/d/in.zip: refused, because '../../evil.png' is a path out of the folder; if",
        zipped({"d/in.zip": ARCHIVE[:-9]}): "b/d/in.zip: damaged (File is not a zip file); delete it and download it",
        b"<html>": f"{given}/b/x.zip: a web page, not an archive; delete it and download it again",
    }.items():
        (given / "b/x.zip").write_bytes(content)
        with pytest.raises(InputError) as caught:
            download_images(make_card(), settings(given), 42, out)
        assert str(caught.value).startswith(message)
        assert nothing_written(out, root)


def test_an_archive_beside_what_it_holds_changes_nothing_and_beside_other_content_is_refused(out, tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    (given / "a.zip").write_bytes(zipped({"b.png": b"1", "deep/c.png": b"3"}))
    (given / "b.png").write_bytes(b"1")
    download_images(make_card(), settings(given), 42, out)
    assert contents(out) == {"b.png": b"1", "deep/c.png": b"3"}
    (given / "b.png").write_bytes(b"2")
    with pytest.raises(InputError, match=r"given/a\.zip: 'b\.png' lies beside it with other content; take one of them"):
        download_images(make_card(), settings(given), 42, out)


def test_files_that_are_zips_by_their_bytes_alone_are_copied(out, tmp_path):
    files = {name: zipped({"archive/data.pkl": b"1"}) for name in ("a.bin", "b.bin", "c.xlsb")}
    (tmp_path / "given").mkdir()
    for name, content in files.items():
        (tmp_path / "given" / name).write_bytes(content)
    download_images(make_card(), settings(tmp_path / "given"), 42, out)
    assert contents(out) == files


def test_archives_in_an_archive_share_its_limit(out, root, monkeypatch):
    """Each of the inner ones is within it, together they are not."""
    monkeypatch.setattr(module, "Limits", lambda: Limits(floor=100_000, ratio=0))
    inner = zipped({"zeros.png": bytes(40_000)})
    (root / "outer.zip").write_bytes(zipped({f"{number}/in.zip": inner for number in range(2)}))
    download_images(make_card(), settings("outer.zip"), 42, out)
    assert contents(out) == {f"{number}/zeros.png": bytes(40_000) for number in range(2)}
    (root / "outer.zip").write_bytes(zipped({f"{number}/in.zip": inner for number in range(3)}))
    with pytest.raises(InputError, match=r"^2/in\.zip: .*decompression bomb"):
        download_images(make_card(), settings("outer.zip"), 42, out)


def test_a_url_is_fetched_and_unpacked_and_the_cards_sources_are_not(server, out):
    server.files["/files/8%2Ffile_downloaded?version=2"] = ARCHIVE
    url = f"{server.url}/files/8%2Ffile_downloaded?version=2"
    card = make_card(Source(file="set.zip", url=refused_url()))
    download_images(card, settings(url), 42, out)
    assert contents(out) == FILES
    assert sources(out)[0]["url"] == url
    assert sources(out)[0]["file"] == "8_file_downloaded"


def test_a_url_whose_file_the_card_knows_is_checked(server, out, root):
    known = {"set.zip": ARCHIVE, "set_64.zip": zipped({"images/64.png": b"64"})}
    source, alternative = (
        Source(file=name, url=refused_url(), bytes=len(content), md5=md5(content)) for name, content in known.items()
    )
    card = make_card(source, alternatives=[alternative])
    for name, content in known.items():
        url = f"{server.url}/copy/{name}?download=1"
        server.files[f"/copy/{name}?download=1"] = b"other" + content[5:]
        with pytest.raises(InputError, match=f"{name} has md5 .* but must have {md5(content)}"):
            download_images(card, settings(url), 42, out)
        assert nothing_written(out, root)
    for name, content in known.items():
        url = f"{server.url}/copy/{name}?download=1"
        server.files[f"/copy/{name}?download=1"] = content
        download_images(card, settings(url), 42, out)
        record = {"file": name, "url": url, "bytes": len(content), "sha256": sha256(content), "verified": True}
        assert sources(out) == [record]
    assert contents(out) == {"images/64.png": b"64"}


def test_a_url_that_cannot_be_reached_is_had_from_the_mirror_as_its_message_says(out, tmp_path):
    url = refused_url()
    with pytest.raises(InputError, match=r"put it in a folder and run again with -S download\.mirror=FOLDER"):
        download_images(make_card(), settings(url), 42, out)
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/set.zip").write_bytes(ARCHIVE)
    download_images(make_card(), settings(url, mirror=tmp_path / "mirror"), 42, out)
    assert contents(out) == FILES


@pytest.mark.parametrize("pixels", [64, 128, 224])
def test_every_published_size_of_pneumoniamnist_is_checked(server, out, root, monkeypatch, pixels):
    monkeypatch.chdir(ROOT)
    card, name = read_card("pneumoniamnist"), f"pneumoniamnist_{pixels}.npz"
    published = {source.file: source.md5 for source in card.alternatives}
    server.files[f"/{name}"] = b"another file"
    with pytest.raises(InputError, match=f"{name} has md5 {md5(b'another file')}, but must have {published[name]}"):
        download_images(card, settings(f"{server.url}/{name}"), 42, out)
    assert nothing_written(out, root)


def phantom_card() -> Card:
    layout = {"kind": "phantom", "sequences": 1, "frames_per_sequence": 2, "width": 64, "height": 64}
    return make_card(layout={**layout, "lesion_free": 0})


def test_a_phantom_is_drawn_from_the_seed(out, tmp_path):
    download_images(phantom_card(), settings(), 42, out)
    download_images(phantom_card(), settings(), 42, tmp_path / "again")
    download_images(phantom_card(), settings(), 43, tmp_path / "other")
    assert len(contents(out)) == 5
    assert contents(out) == contents(tmp_path / "again")
    assert contents(out) != contents(tmp_path / "other")
    assert json.loads((out / "SOURCES.json").read_text()) == {"dataset": "my-set", "sources": []}


def test_a_phantom_takes_no_source(out):
    with pytest.raises(InputError, match=r"download\.source is 'x', but the data set my-set is drawn"):
        download_images(phantom_card(), settings("x"), 42, out)


@pytest.mark.parametrize("bad", [{"file": "../x.zip"}, {"file": ".."}, {"file": "/x"}, {"url": "file:///etc/passwd"}])
def test_a_card_cannot_write_or_read_elsewhere(bad):
    with pytest.raises(ValidationError):
        Source(**{"file": "x.zip", "url": "https://example.org/x.zip", **bad})


# --- weights


def weights_json(folder: Path) -> dict:
    return json.loads((folder / "weights.json").read_text())


def official_by_keras(backbone: str) -> tuple[str, str | None]:
    """URL and MD5 that the installed Keras itself would ask for, from the lines that load ImageNet's weights."""
    found = find_backbone(backbone)
    keras = Path(importlib.util.find_spec("keras").submodule_search_locations[0])
    file = {"VGG16": "vgg16", "VGG19": "vgg19", "ResNet50": "resnet", "MobileNet": "mobilenet"}
    source = keras / "src/applications" / f"{file.get(found.application, 'mobilenet_v2')}.py"
    tree = ast.parse(source.read_text())
    constants = [n for n in tree.body if isinstance(n, ast.Assign) and "WEIGHT" in ast.unparse(n.targets[0])]
    (branch,) = (
        n for n in ast.walk(tree)
        if isinstance(n, ast.If) and "get_file" in ast.unparse(n) and "weights == 'imagenet'" in ast.unparse(n.test)
    )  # fmt: skip
    asked = []
    names = {
        "weights": "imagenet", "include_top": False, "rows": 224, "alpha": found.alpha, "weights_name": "resnet50",
        "file_utils": types.SimpleNamespace(get_file=lambda name, url, **kw: asked.append((url, kw.get("file_hash")))),
        "model": types.SimpleNamespace(load_weights=lambda path: None),
    }  # fmt: skip
    lines = ast.Module([*constants, branch], type_ignores=[])
    exec(compile(lines, str(source), "exec"), names)
    (answer,) = asked
    return answer


@pytest.mark.parametrize("backbone", KNOWN)
def test_imagenet_urls_and_checksums_are_those_of_keras(backbone):
    found = find_backbone(backbone)
    assert (found.imagenet_url, found.imagenet_md5) == official_by_keras(backbone)


def test_imagenet_weights_without_a_published_checksum_are_recorded(server, out, monkeypatch):
    monkeypatch.setattr("lesionlab.models.backbones.IMAGENET_URL", f"{server.url}/")
    backbone = find_backbone("mobilenet_0.25")
    server.files[f"/{backbone.imagenet_file}"] = HDF5
    fetch_weights(backbone, "imagenet", out, None)
    assert contents(out).keys() == {"mobilenet_2_5_224_tf_no_top.h5", "weights.json"}
    assert (out / "mobilenet_2_5_224_tf_no_top.h5").read_bytes() == HDF5
    assert weights_json(out) == {
        "backbone": "mobilenet_0.25", "weights": "imagenet", "file": "mobilenet_2_5_224_tf_no_top.h5",
        "sha256": sha256(HDF5), "verified": False,
    }  # fmt: skip


def test_imagenet_weights_are_held_against_keras_md5_wherever_they_come_from(out, tmp_path):
    backbone = find_backbone("vgg16")
    file = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    (tmp_path / file).write_bytes(HDF5)
    with pytest.raises(InputError, match=f"md5 {md5(HDF5)}, but must have 6d6bbae143d832006294945121d1f1fc"):
        fetch_weights(backbone, "imagenet", out, str(tmp_path))
    assert not out.exists()


def test_verified_imagenet_weights_come_from_the_mirror(out, tmp_path):
    backbone = find_backbone("vgg16")
    (tmp_path / Path(backbone.imagenet_file).name).write_bytes(HDF5)
    fetch_weights(dataclasses.replace(backbone, imagenet_md5=md5(HDF5)), "imagenet", out, str(tmp_path))
    assert weights_json(out)["verified"] is True
    assert str(tmp_path) not in (out / "weights.json").read_text()


def test_offline_weights_name_the_file_and_where_to_put_it(out, monkeypatch):
    monkeypatch.setattr("lesionlab.models.backbones.IMAGENET_URL", refused_url().replace("set.zip", ""))
    with pytest.raises(InputError) as caught:
        fetch_weights(find_backbone("vgg19"), "imagenet", out, None)
    for wanted in (
        "get 'vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5'",
        "-S download.mirror=FOLDER",
        "-S model.weights=PATH",
    ):
        assert wanted in str(caught.value)
    assert not out.exists()


def test_bundled_weights_belong_to_one_backbone(out, tmp_path, monkeypatch):
    monkeypatch.setattr(weights_module, "BUNDLED", tmp_path / "mobilenet_0.25.weights.h5")
    with pytest.raises(InputError, match=r"missing; restore it with git checkout"):
        fetch_weights(find_backbone("mobilenet_0.25"), "bundled", out, None)
    (tmp_path / "mobilenet_0.25.weights.h5").write_bytes(HDF5)
    fetch_weights(find_backbone("mobilenet_0.25"), "bundled", out, None)
    assert weights_json(out)["file"] == "mobilenet_0.25.weights.h5"
    assert weights_json(out)["sha256"] == sha256(HDF5)
    with pytest.raises(InputError, match=r"belongs to mobilenet_0\.25 alone, not to vgg16; choose -S model\.weights="):
        fetch_weights(find_backbone("vgg16"), "bundled", out, None)


def test_no_weights_leave_a_record_alone(out):
    fetch_weights(find_backbone("vgg16"), "none", out, None)
    assert contents(out).keys() == {"weights.json"}
    assert weights_json(out) == {
        "backbone": "vgg16", "weights": "none", "file": None, "sha256": None, "verified": False,
    }  # fmt: skip


def test_weights_of_ones_own_are_copied_by_name(out, root):
    (root / "mine").mkdir()
    (root / "mine/polyp.weights.h5").write_bytes(HDF5)
    (root / "mine/text.h5").write_bytes(b"not weights")
    fetch_weights(find_backbone("vgg16"), "mine/polyp.weights.h5", out, None)
    assert (out / "polyp.weights.h5").read_bytes() == HDF5
    assert weights_json(out) == {
        "backbone": "vgg16", "weights": "polyp.weights.h5", "file": "polyp.weights.h5", "sha256": sha256(HDF5),
        "verified": False,
    }  # fmt: skip
    with pytest.raises(InputError, match=r"mine/text\.h5: not an HDF5 weight file"):
        fetch_weights(find_backbone("vgg16"), "mine/text.h5", out, None)
    with pytest.raises(InputError, match=r"model\.weights 'imagenett' is neither auto, imagenet, bundled, none nor"):
        fetch_weights(find_backbone("vgg16"), "imagenett", out, None)
    assert weights_json(out)["file"] == "polyp.weights.h5"


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        (("auto", "auto", "auto"), ("mobilenet_0.25", "bundled", 64)),
        (("vgg16", "auto", "auto"), ("vgg16", "imagenet", 64)),
        (("mobilenet_0.25", "auto", 96), ("mobilenet_0.25", "bundled", 96)),
        (("vgg16", "none", 128), ("vgg16", "none", 128)),
        (("auto", "mine.h5", "auto"), ("mobilenet_0.25", "mine.h5", 64)),
    ],
)
def test_auto_is_what_the_card_recommends(given, resolved):
    card = make_card(recommended={"backbone": "mobilenet_0.25", "weights": "bundled", "image_size": 64})
    names = ("backbone", "weights", "image_size")
    model = ModelParams(**dict(zip(names, given, strict=True)))
    assert resolve_model(model, card) == Recommended(**dict(zip(names, resolved, strict=True)))


# --- the stage


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A work tree with params.yaml and one small phantom card, which is also the repository's root."""
    folder = tmp_path / "project"
    (folder / "datasets").mkdir(parents=True)
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    card = (ROOT / "datasets/phantom.yaml").read_text()
    for old, new in (("sequences: 60", "sequences: 1"), ("width: 256", "width: 64"), ("height: 224", "height: 64")):
        assert old in card
        card = card.replace(old, new)
    (folder / "datasets/phantom.yaml").write_text(card)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DVC_ROOT", str(folder))
    return folder


def test_the_stage_writes_images_and_weights(project, monkeypatch):
    (project / "bundled.h5").write_bytes(HDF5)
    monkeypatch.setattr(weights_module, "BUNDLED", project / "bundled.h5")
    stage.main("images", Path("data/raw"))
    assert sorted(path.name for path in Path("data/raw").iterdir()) == ["SOURCES.json", "frames.csv", "images", "masks"]
    stage.main("weights", Path("data/weights"))
    assert weights_json(Path("data/weights"))["backbone"] == "mobilenet_0.25"
    assert weights_json(Path("data/weights"))["sha256"] == sha256(HDF5)


def test_the_command_fails_in_one_line_and_is_light(project):
    params = (project / "params.yaml").read_text().replace("weights: auto", "weights: absent.h5")
    (project / "params.yaml").write_text(params)
    command = [sys.executable, "-X", "importtime", "-m", "stages.download", "weights", "--out", "data/weights"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert told == [
        "error: params.yaml: model.weights 'absent.h5' is neither auto, imagenet, bundled, none nor a file "
        f"(looked for {project / 'absent.h5'})"
    ]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "lesionlab" in imported
    assert not imported & {"keras", "tensorflow", "mlflow", "dvc", "matplotlib", "scipy"}
    assert not (project / "data/weights").exists()
