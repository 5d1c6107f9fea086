"""Files are written whole or not at all, and what is damaged is named."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from skd_core.errors import UserError
from skd_core.files import finite, make_folder, write_atomic
from skd_core.training.records import read_run


def test_writing_replaces_whole_files_and_leaves_nothing_behind(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.txt", "old")
    write_atomic(tmp_path / "a.txt", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "new"
    with pytest.raises(UserError, match=r"a.txt: cannot write: No such file"):
        write_atomic(tmp_path / "missing" / "a.txt", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder: cannot write"):
        write_atomic(tmp_path / "folder", "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "folder"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/x: cannot make this folder"):
        make_folder(tmp_path / "file" / "x")


def test_json_gets_none_for_what_it_has_no_word_for() -> None:
    value = {"a": math.nan, 1: {"b": -math.inf, "c": 2.5}, "d": "nan", "e": None, "f": 3}
    assert json.loads(json.dumps(finite(value), allow_nan=False)) == {
        "a": None, "1": {"b": None, "c": 2.5}, "d": "nan", "e": None, "f": 3,
    }  # fmt: skip


def test_runs_that_are_none_are_named(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    with pytest.raises(UserError, match="no such file"):
        read_run(tmp_path)
    for text, message in [
        (b"", "no records yet"),
        (b"x\n{}\n", ":1: no JSON"),
        (b"[1]\n", ":1: no record"),
        (b"\xff\n", "not a text file"),
    ]:
        file.write_bytes(text)
        with pytest.raises(UserError, match=message):
            read_run(tmp_path)
    file.write_bytes(b'{"step": 1}\n{"step": 2}\n{"st')  # cut while it was written
    assert read_run(tmp_path) == read_run(file) == [{"step": 1}, {"step": 2}]
