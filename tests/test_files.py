"""Files that stages exchange: whole or not at all, stable bytes, and errors that say which stage to run."""

import errno
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lesionlab import files
from lesionlab.errors import InputError
from lesionlab.files import (
    INDEX_COLUMNS,
    STALE_SECONDS,
    from_root,
    read_images,
    read_index,
    read_json,
    read_split,
    read_table,
    repository_root,
    whole_file,
    whole_folder,
    write_json,
    write_table,
)


class Interrupted(BaseException):  # as KeyboardInterrupt is: no `except Exception` sees it
    pass


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def write_half_a_file(path: Path) -> None:
    with whole_file(path) as partial:
        partial.write_text("half")
        raise Interrupted


def write_half_a_folder(path: Path) -> None:
    with whole_folder(path) as partial:
        (partial / "a").write_text("half")
        raise Interrupted


def test_a_file_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "below" / "a.txt"
    with whole_file(target) as partial:
        partial.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert names(target.parent) == {"a.txt"}


def test_what_killed_processes_left_is_deleted_a_day_later(tmp_path):
    old = [tmp_path / ".a.txt.7.partial", tmp_path / ".a.txt.8.partial"]
    others = [tmp_path / ".a.txt.9.partial", tmp_path / ".b.txt.7.partial"]
    old[0].mkdir()
    (old[0] / "image").touch()
    for path in (old[1], *others):
        path.touch()
    day_ago = time.time() - STALE_SECONDS - 60
    for path in (*old, others[1]):
        os.utime(path, (day_ago, day_ago))
    with whole_file(tmp_path / "a.txt") as partial:
        partial.write_text("whole")
    assert names(tmp_path) == {"a.txt", *(path.name for path in others)}


def test_an_interrupted_file_leaves_the_old_content_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(Interrupted):
        write_half_a_file(target)
    assert target.read_text() == "old"
    assert names(tmp_path) == {"a.txt"}


def test_an_interrupted_new_file_is_not_there(tmp_path):
    with pytest.raises(Interrupted):
        write_half_a_file(tmp_path / "a.txt")
    assert names(tmp_path) == set()


def test_a_folder_replaces_all_of_the_old_one(tmp_path):
    target = tmp_path / "crops"
    target.mkdir()
    (target / "stale").write_text("old")
    with whole_folder(target) as partial:
        (partial / "a").write_text("new")
        assert names(target) == {"stale"}
    assert names(target) == {"a"}
    assert names(tmp_path) == {"crops"}
    assert target.stat().st_mode & 0o777 == 0o755


def test_an_interrupted_folder_leaves_the_old_content_and_nothing_else(tmp_path):
    target = tmp_path / "crops"
    target.mkdir()
    (target / "a").write_text("old")
    with pytest.raises(Interrupted):
        write_half_a_folder(target)
    assert (target / "a").read_text() == "old"
    assert names(target) == {"a"}
    assert names(tmp_path) == {"crops"}


def test_an_interrupted_new_folder_is_not_there(tmp_path):
    with pytest.raises(Interrupted):
        write_half_a_folder(tmp_path / "crops")
    assert names(tmp_path) == set()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk without space")
def test_a_full_disk_is_told_with_the_name_of_the_output(tmp_path):
    target = tmp_path / "split.csv"
    target.write_text("old")
    (tmp_path / f".split.csv.{os.getpid()}.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        write_table(target, pd.DataFrame({"id": range(10)}))
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(target)
    assert target.read_text() == "old"
    assert names(tmp_path) == {"split.csv"}


def test_json_has_rounded_floats_plain_numbers_and_the_order_given(tmp_path):
    content = {"b": np.float32(1 / 3), "a": [np.int64(2), (True, None)], 3: {"x": 2 / 3}}
    write_json(tmp_path / "m.json", content)
    text = (tmp_path / "m.json").read_text()
    assert json.loads(text) == {"b": 0.333333, "a": [2, [True, None]], "3": {"x": 0.666667}}
    assert list(json.loads(text)) == ["b", "a", "3"]
    assert text.endswith("}\n")


def test_json_refuses_not_a_number_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.json"
    write_json(path, {"accuracy": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"accuracy": float("nan")})
    assert read_json(path) == {"accuracy": 0.5}
    assert names(tmp_path) == {"m.json"}


def test_json_that_is_missing_or_broken_names_the_file(tmp_path):
    path = tmp_path / "m.json"
    with pytest.raises(InputError, match=re.escape(f"{path}: not found; run the stage that writes it (dvc repro)")):
        read_json(path)
    path.write_text('{"accuracy": 0.')
    with pytest.raises(InputError, match=re.escape(f"{path}: not valid JSON (") + ".*run the stage"):
        read_json(path)


def test_tables_have_stable_bytes_and_text_stays_text(tmp_path):
    path = tmp_path / "t.csv"
    table = pd.DataFrame({"group": ["007", "NA", ""], "value": [1 / 3, 1e-9, 2.0], "n": [1, 2, 3]})
    write_table(path, table)
    assert path.read_bytes() == b"group,value,n\n007,0.333333,1\nNA,1e-09,2\n,2,3\n"
    again = read_table(path, ("group", "value", "n"), text=("group",))
    assert again["group"].tolist() == ["007", "NA", ""]
    assert again["n"].tolist() == [1, 2, 3]


def test_a_table_without_a_column_names_it_and_what_is_there(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("id,label\n1,a\n")
    with pytest.raises(InputError, match=re.escape(f"{path}: column 'patient' is missing (has: id, label)")):
        read_table(path, ("id", "patient"))


@pytest.mark.parametrize("content", [b"", b'a,b\n1,2\n1,2,3\n"', b"\xff\xfe\x00a"])
def test_a_broken_table_names_the_file(tmp_path, content):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(f"{path}: not a readable CSV table (")):
        read_table(path, ("a",))


def index_of(count: int) -> pd.DataFrame:
    columns = {name: ["1"] * count for name in INDEX_COLUMNS}
    return pd.DataFrame(columns | {"id": range(count), "hash": ["00000000000000ff"] * count})


def test_the_index_keeps_hashes_and_groups_as_text(tmp_path):
    write_table(tmp_path / "index.csv", index_of(2))
    index = read_index(tmp_path)
    assert index["hash"].tolist() == ["00000000000000ff"] * 2
    assert index["group"].tolist() == ["1", "1"]
    assert index["x"].tolist() == [1, 1]


def test_a_split_of_other_crops_is_refused(tmp_path):
    path = tmp_path / "split.csv"
    write_table(path, pd.DataFrame({"id": range(3), "fold": [0, 1, 2], "subset": ["test", "val", "train"]}))
    assert read_split(path, index_of(3))["subset"].tolist() == ["test", "val", "train"]
    for other in (index_of(4), index_of(3).assign(id=[0, 2, 1])):
        with pytest.raises(InputError, match=r"split\.csv: has other crops than index\.csv; run dvc repro split"):
            read_split(path, other)


def test_labels_of_the_split_count_where_it_has_them(tmp_path):
    path = tmp_path / "split.csv"
    table = pd.DataFrame({"id": range(3), "fold": 0, "subset": "train"})
    write_table(path, table)
    assert read_split(path, index_of(3))["label"].tolist() == index_of(3)["label"].tolist()
    write_table(path, table.assign(label=["007", "b", "b"]))
    assert read_split(path, index_of(3))["label"].tolist() == ["007", "b", "b"]


def test_groups_of_the_split_count_where_it_has_them(tmp_path):
    path = tmp_path / "split.csv"
    write_table(path, pd.DataFrame({"id": range(3), "fold": 0, "subset": "train", "group": ["01", "01", "b"]}))
    assert read_split(path, index_of(3))["group"].tolist() == ["01", "01", "b"]


def test_images_that_are_missing_or_broken_name_the_file(tmp_path):
    with pytest.raises(InputError, match=r"images\.npy: not found; run the stage that writes it \(dvc repro crop\)"):
        read_images(tmp_path)
    np.save(tmp_path / "images.npy", np.zeros((4, 8, 8, 3), "uint8"))
    whole = (tmp_path / "images.npy").read_bytes()
    for broken in (whole[:-10], b"no array", b""):
        (tmp_path / "images.npy").write_bytes(broken)
        with pytest.raises(InputError, match=r"images\.npy: not a NumPy array .*dvc repro --force crop"):
            read_images(tmp_path)


def test_relative_paths_are_relative_to_the_repositorys_root(monkeypatch, tmp_path):
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert repository_root() == Path(files.__file__).parent.parent
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir("/")
    assert from_root("shared/data") == tmp_path.resolve() / "shared/data"
    assert from_root("/elsewhere") == Path("/elsewhere")
