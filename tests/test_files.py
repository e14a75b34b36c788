from __future__ import annotations

import errno
import hashlib
import json
import os

import numpy as np
import pytest

from scbraid.errors import DataError
from scbraid.files import atomic_path, read_json, sha256_file, write_json


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_complete_and_alone(tmp_path):
    target = tmp_path / "deep" / "table.tsv"
    with atomic_path(target) as partial:
        assert partial.parent == target.parent
        assert partial.suffix == ".tsv"
        partial.write_text("done")
        assert not target.exists()
    assert target.read_text() == "done"
    assert names(target.parent) == ["table.tsv"]


@pytest.mark.parametrize("name", ["scores.minmax.tsv", "matrix.mtx.gz", "a.h5ad"])
def test_suffixes_that_writers_look_at_are_kept(tmp_path, name):
    with atomic_path(tmp_path / name) as partial:
        assert partial.name.endswith("".join((tmp_path / name).suffixes))
        partial.write_text("x")
    assert names(tmp_path) == [name]


def test_an_older_file_survives_a_failure(tmp_path):
    target = tmp_path / "a.json"
    target.write_text("old")

    def write():
        with atomic_path(target) as partial:
            partial.write_text("half")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_an_older_file_is_replaced(tmp_path):
    target = tmp_path / "a.json"
    target.write_text("a much longer text than the new one")
    write_json(target, [1])
    assert json.loads(target.read_text()) == [1]


def test_new_files_have_the_usual_permissions(tmp_path):
    usual = tmp_path / "usual"
    usual.write_text("")
    write_json(tmp_path / "ours", {})
    assert (tmp_path / "ours").stat().st_mode == usual.stat().st_mode


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EDQUOT, "the disk quota is used up; free some space"),
        (errno.EROFS, "the file system is read-only; choose a results folder"),
        (errno.EACCES, "permission is denied; choose a results folder"),
    ],
)
def test_a_folder_that_cannot_be_written_is_named(tmp_path, number, words):
    with pytest.raises(DataError) as caught, atomic_path(tmp_path / "a.json"):
        raise OSError(number, os.strerror(number))
    message = str(caught.value)
    assert message.startswith(f"cannot write a.json in {tmp_path}: {words}")
    assert names(tmp_path) == []


def test_other_errors_of_the_system_pass_through(tmp_path):
    with pytest.raises(IsADirectoryError), atomic_path(tmp_path / "a"):
        raise IsADirectoryError(errno.EISDIR, "is a directory")


def test_two_writers_do_not_meet(tmp_path):
    with atomic_path(tmp_path / "a") as first, atomic_path(tmp_path / "a") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a").read_text() == "first"  # the outer block ends last
    assert names(tmp_path) == ["a"]


def test_json_keeps_order_letters_and_numpy_values(tmp_path):
    content = {"z": 1, "a": "µ", "n": np.int64(3), "x": np.float64(0.5), "v": np.arange(2)}
    write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text("utf-8")
    assert "µ" in text
    assert text.endswith("}\n")
    found = read_json(tmp_path / "a.json")
    assert list(found) == list(content)
    assert found == {"z": 1, "a": "µ", "n": 3, "x": 0.5, "v": [0, 1]}


def test_what_json_cannot_hold_is_named_and_leaves_nothing(tmp_path):
    with pytest.raises(TypeError, match="set cannot be written as JSON"):
        write_json(tmp_path / "a.json", {"a": {1, 2}})
    assert names(tmp_path) == []


def test_broken_json_names_the_file(tmp_path):
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(DataError, match=r"a\.json is not valid JSON .*remove it and run again"):
        read_json(tmp_path / "a.json")


def test_digest(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 1_000)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"abc" * 1_000).hexdigest()
