"""Archives by strangers: what comes out, and what is refused in which words."""

import bz2
import gzip
import io
import lzma
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from lesionlab.data import unpack as module
from lesionlab.data.unpack import Limits, archive_kind, unpack
from lesionlab.errors import InputError

SMALL = Limits(ratio=10, floor=1000, size=1 << 20, members=5)


def make_zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as bundle:
        for name, content in files.items():
            bundle.writestr(zipfile.ZipInfo(name), content, compression)
    return path


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as bundle:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            bundle.addfile(member, io.BytesIO(content))
    return path


def make_link_tar(path: Path, kind: bytes, target: str) -> Path:
    with tarfile.open(path, "w") as bundle:
        member = tarfile.TarInfo("images/link")
        member.type, member.linkname = kind, target
        bundle.addfile(member)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


FILES = {"set one/images/a b.png": b"image", "set one/masks/a b.png": b"mask", "read me.txt": b""}


@pytest.mark.parametrize(
    ("name", "mode"), [("x.zip", None), ("x.tar", "w"), ("x.tar.gz", "w:gz"), ("x.tgz", "w:gz"), ("x.tar.bz2", "w:bz2"),
                       ("x.tar.xz", "w:xz")]
)  # fmt: skip
def test_unpacks_names_with_spaces_and_leaves_out_residue(tmp_path, name, mode):
    residue = {"__MACOSX/set one/._a b.png": b"r", "set one/.DS_Store": b"r", "set one/images/._a b.png": b"r"}
    everything = {**FILES, **residue}
    archive = tmp_path / name
    make_zip(archive, everything) if mode is None else make_tar(archive, everything, mode)
    assert unpack(archive, tmp_path / "out") == 3
    assert contents(tmp_path / "out") == FILES


def test_archives_inside_stay_as_they_are(tmp_path):
    inner = make_zip(tmp_path / "inner.zip", {"a.mat": b"1"}).read_bytes()
    unpack(make_zip(tmp_path / "outer.zip", {"part/inner.zip": inner}), tmp_path / "out")
    assert contents(tmp_path / "out") == {"part/inner.zip": inner}


def test_a_windows_zip_has_folders(tmp_path):
    unpack(make_zip(tmp_path / "x.zip", {"images\\": b"", "images\\a.png": b"1"}), tmp_path / "out")
    assert contents(tmp_path / "out") == {"images/a.png": b"1"}


def test_two_archives_share_a_folder_but_no_name(tmp_path):
    unpack(make_zip(tmp_path / "1.zip", {"images/a.png": b"1"}), tmp_path / "out")
    unpack(make_zip(tmp_path / "2.zip", {"images/b.png": b"2"}), tmp_path / "out")
    assert contents(tmp_path / "out") == {"images/a.png": b"1", "images/b.png": b"2"}
    with pytest.raises(InputError, match=r"3\.zip: 'images/a\.png' is there already"):
        unpack(make_zip(tmp_path / "3.zip", {"images/a.png": b"3"}), tmp_path / "out")
    assert (tmp_path / "out/images/a.png").read_bytes() == b"1"


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("../outside.txt", "a path out of the folder"),
        ("images/../../outside.txt", "a path out of the folder"),
        ("..\\outside.txt", "a path out of the folder"),
        ("/tmp/outside.txt", "an absolute path"),
        ("C:\\outside.txt", "an absolute path"),
        ("a\nb", "a name that no file should have"),
        ("n" * 256, "a name that no file should have"),
    ],
)
def test_names_that_leave_the_folder_are_refused(tmp_path, make, name, what):
    archive = make(tmp_path / ("x.zip" if make is make_zip else "x.tar"), {name: b"evil"})
    with pytest.raises(InputError, match=what) as caught:
        unpack(archive, tmp_path / "deep/out")
    assert str(archive) in str(caught.value)
    assert contents(tmp_path / "deep") == {}
    assert not (tmp_path / "outside.txt").exists()


@pytest.mark.parametrize(
    ("kind", "target", "what"),
    [
        (tarfile.SYMTYPE, "/etc/passwd", "a link"),
        (tarfile.SYMTYPE, "a.png", "a link"),
        (tarfile.LNKTYPE, "../../x", "a link"),
        (tarfile.FIFOTYPE, "", "a special file"),
        (tarfile.CHRTYPE, "", "a special file"),
    ],
)
def test_links_and_devices_in_tar_are_refused(tmp_path, kind, target, what):
    with pytest.raises(InputError, match=f"'images/link' is {what}"):
        unpack(make_link_tar(tmp_path / "x.tar", kind, target), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_link_in_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as bundle:
        member = zipfile.ZipInfo("link")
        member.external_attr = 0o120777 << 16
        bundle.writestr(member, "/etc")
        bundle.writestr("link/passwd", "evil")
    with pytest.raises(InputError, match="'link' is a link"):
        unpack(tmp_path / "x.zip", tmp_path / "out")


def test_an_encrypted_zip_says_so(tmp_path):
    archive = make_zip(tmp_path / "x.zip", {"a.png": b"1234"})
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x03\x04") + 6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(InputError, match=r"'a\.png' is encrypted; unpack it by hand, .*download\.source"):
        unpack(archive, tmp_path / "out")


def test_an_unknown_compression_says_so(tmp_path):
    archive = make_zip(tmp_path / "x.zip", {"a.png": b"1234"})
    content = bytearray(archive.read_bytes())
    for magic, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        content[content.index(magic) + offset] = 9
    archive.write_bytes(content)
    with pytest.raises(InputError, match=r"Python cannot read \(deflate64\); unpack it by hand"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz", "x.tar.bz2", "x.tar.xz"])
def test_a_bomb_is_stopped_while_it_unpacks(tmp_path, name):
    zeros = {"a": bytes(900_000)}
    archive = tmp_path / name
    make_zip(archive, zeros) if name == "x.zip" else make_tar(archive, zeros, f"w:{archive.suffix[1:]}")
    with pytest.raises(InputError, match=r"unpacks to far more than an archive of .* bytes should"):
        unpack(archive, tmp_path / "out", SMALL)
    assert sum(len(content) for content in contents(tmp_path / "out").values()) <= 100_000


def test_a_zip_that_lies_about_its_sizes_is_stopped(tmp_path):
    archive = make_zip(tmp_path / "x.zip", {"a": bytes(900_000)})
    content = archive.read_bytes().replace((900_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    archive.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged|unpacks to far more"):
        unpack(archive, tmp_path / "out", SMALL)
    assert sum(len(content) for content in contents(tmp_path / "out").values()) <= 1000


def test_headers_of_a_tar_count_too(tmp_path):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as bundle:
        member = tarfile.TarInfo("a")
        member.pax_headers = {"comment": "0" * 900_000}
        bundle.addfile(member)
    with pytest.raises(InputError, match="unpacks to far more"):
        unpack(tmp_path / "x.tar.gz", tmp_path / "out", SMALL)


def test_a_sparse_tar_counts_what_it_writes(tmp_path):
    header = tarfile.TarInfo("a")
    header.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[386:482] = bytes(96)
    block[386:410] = b"00000000000\0" + b"00000000000\0"
    block[483:495] = b"77777777777\0"  # eight gigabytes of nothing
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "x.tar").write_bytes(bytes(block) + bytes(1024))
    with pytest.raises(InputError, match="unpacks to far more"):
        unpack(tmp_path / "x.tar", tmp_path / "out", SMALL)


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_too_many_entries_are_refused(tmp_path, make):
    archive = make(tmp_path / ("x.zip" if make is make_zip else "x.tar"), {f"{i}": b"" for i in range(6)})
    with pytest.raises(InputError, match="holds more than 5 entries"):
        unpack(archive, tmp_path / "out", Limits(members=5))
    assert unpack(archive, tmp_path / "again", Limits(members=6)) == 6


def noise(size: int) -> bytes:
    return b"".join((i * 2654435761 % 2**32).to_bytes(4, "little") for i in range(size // 4))


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tar.bz2", "x.tar.xz"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_truncated_archive_names_the_file_and_the_remedy(tmp_path, name, part):
    files = {"a.png": noise(8000), "b.png": noise(9000), "c.png": noise(10000)}
    archive = tmp_path / name
    make_zip(archive, files) if name == "x.zip" else make_tar(
        archive, files, f"w:{archive.suffix[1:]}".replace("tar", "")
    )
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * part) // 512 * 512])
    with pytest.raises(InputError, match="delete it and download it again") as caught:
        unpack(archive, tmp_path / "out")
    assert str(archive) in str(caught.value)


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz", "x.tar.bz2", "x.tar.xz"])
def test_a_changed_byte_is_noticed(tmp_path, name):
    archive = tmp_path / name
    files = {"a.png": noise(20000)}
    make_zip(archive, files) if name == "x.zip" else make_tar(archive, files, f"w:{archive.suffix[1:]}")
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged .*delete it and download it again"):
        unpack(archive, tmp_path / "out")


def test_an_empty_archive_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no files"):
        unpack(make_zip(tmp_path / "x.zip", {".DS_Store": b"r"}), tmp_path / "out")


def test_kinds_are_told_by_bytes_not_by_names(tmp_path):
    def kind(name: str, content: bytes) -> str | None:
        (tmp_path / name).write_bytes(content)
        return archive_kind(tmp_path / name)

    zipped = make_zip(tmp_path / "z.zip", {"a": b"1"}).read_bytes()
    tarred = make_tar(tmp_path / "t.tar", {"a": b"1"}).read_bytes()
    assert kind("file_downloaded", zipped) == "zip"
    assert kind("file_downloaded", gzip.compress(tarred)) == "tar"
    assert kind("file_downloaded", bz2.compress(tarred)) == "tar"
    assert kind("file_downloaded", lzma.compress(tarred)) == "tar"
    assert kind("really.zip", b"Rar!\x1a\x07\x01\x00") == "rar"
    assert kind("pathmnist.npz", zipped) is None
    assert kind("labels.csv", b"id,label\n") is None
    assert kind("volume.nii.gz", gzip.compress(b"n" * 1000)) is None
    with pytest.raises(InputError, match=r"data\.zip: damaged, or not a zip archive; delete it"):
        kind("data.zip", b"nothing of the sort")
    with pytest.raises(InputError, match=r"data\.zip: a web page, not an archive"):
        kind("data.zip", b"\n<!DOCTYPE html><title>Log in</title>")
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(InputError, match=r"notes\.txt: not a zip, tar or rar archive"):
        unpack(tmp_path / "notes.txt", tmp_path / "out")


@pytest.fixture
def rar(tmp_path, monkeypatch):
    """A rar and an empty PATH; `rar.tool(name, body)` puts a program there that gets the folder as `out`."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(module, "_RAR_POLL_S", 0.02)
    archive = tmp_path / "CVC ClinicDB.rar"
    archive.write_bytes(b"Rar!\x1a\x07\x01\x00" + bytes(100))

    def tool(name: str, body: str, folder_at: str = "sys.argv[-1]") -> None:
        script = programs / name
        start = f"#!{sys.executable}\nimport os, pathlib, sys, time\nout = pathlib.Path({folder_at})\n"
        script.write_text(start + body)
        script.chmod(0o755)

    archive_and_tool = type("Rar", (), {"archive": archive, "tool": staticmethod(tool), "out": tmp_path / "data/out"})
    archive_and_tool.out.parent.mkdir()
    return archive_and_tool


GOOD = """
for name in ("Original/1.tif", "Ground Truth/1.tif", ".DS_Store"):
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text(name)
"""


@pytest.mark.parametrize(
    ("name", "folder_at"),
    [
        ("unrar", "sys.argv[-1]"),
        ("unar", "sys.argv[sys.argv.index('-output-directory') + 1]"),
        ("7z", "next(a[2:] for a in sys.argv if a.startswith('-o'))"),
        ("7zz", "next(a[2:] for a in sys.argv if a.startswith('-o'))"),
        ("bsdtar", "sys.argv[sys.argv.index('-C') + 1]"),
    ],
)
def test_a_rar_is_unpacked_by_the_program_that_is_there(rar, name, folder_at):
    rar.tool(name, f"assert {str(rar.archive)!r} in sys.argv\n" + GOOD, folder_at)
    assert unpack(rar.archive, rar.out) == 2
    assert contents(rar.out) == {"Ground Truth/1.tif": b"Ground Truth/1.tif", "Original/1.tif": b"Original/1.tif"}
    assert [path.name for path in rar.out.parent.iterdir()] == ["out"]


def test_without_a_program_the_message_says_what_to_install(rar):
    with pytest.raises(InputError) as caught:
        unpack(rar.archive, rar.out)
    for wanted in ("unrar, unar, 7z or bsdtar", "apt install unar", "libarchive-tools", "download.source=FOLDER"):
        assert wanted in str(caught.value)


def test_a_program_that_fails_is_named_and_the_next_one_tried(rar, capsys):
    rar.tool("unrar", "(out / 'half.tif').write_text('half'); print('checksum error'); sys.exit(3)")
    with pytest.raises(InputError, match=r"cannot be unpacked \(unrar: exit status 3, checksum error\)"):
        unpack(rar.archive, rar.out)
    rar.tool("bsdtar", GOOD, "sys.argv[sys.argv.index('-C') + 1]")
    assert unpack(rar.archive, rar.out) == 2
    assert "unrar: exit status 3, checksum error" in capsys.readouterr().err
    assert not (rar.out / "half.tif").exists()


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("(out / 'link').symlink_to('/etc')", "'link' is a link"),
        ("(out / 'a').write_text('a'); os.link(out / 'a', out / 'b')", "is a link"),
        ("os.mkfifo(out / 'pipe')", "'pipe' is a special file"),
        ("(out / 'a').write_bytes(bytes(5000))", "unpacks to far more"),
        ("[(out / str(i)).touch() for i in range(6)]", "holds more than 5 entries"),
        ("(out / 'a').write_bytes(bytes(5000)); time.sleep(60)", "unpacks to far more"),
        ("pass", "holds no files"),
    ],
)
def test_what_a_program_unpacked_is_looked_through(rar, body, what):
    rar.tool("unrar", body)
    with pytest.raises(InputError, match=what):
        unpack(rar.archive, rar.out, SMALL)
    assert contents(rar.out) == {}
    assert [path.name for path in rar.out.parent.iterdir()] == ["out"]
