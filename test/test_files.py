"""Files are written whole or not at all, and what is damaged is named."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from skd_core.errors import UserError
from skd_core.files import finite, make_folder, read_bytes, read_text, write_atomic
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


def test_what_cannot_be_read_whole_is_named_and_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 42)
    for path, message in [
        (tmp_path / "gone", r"gone: cannot read thing: No such file"),
        (tmp_path, r"cannot read thing: Is a directory"),
        (tmp_path / "pipe", r"pipe: cannot read thing: not a regular file"),
        (Path("/dev/zero"), r"/dev/zero: cannot read thing: not a regular file"),
        (tmp_path / "sparse", rf"sparse: cannot read thing: {1 << 42} bytes, more than the \d+ that one may have"),
        (tmp_path / "a\0b", r"cannot read thing: embedded null"),
        (tmp_path / ("x" * 300), r"cannot read thing: File name too long"),
    ]:
        for read in (read_bytes, read_text):
            with pytest.raises(UserError, match=message):
                read(path, kind="thing")


def test_text_is_read_without_its_mark_and_with_plain_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffé\r\nb\rc\n".encode())
    assert read_text(path) == "é\nb\nc\n"
    assert read_bytes(path, 11) == path.read_bytes()
    with pytest.raises(UserError, match="11 bytes, more than the 9 that"):
        read_bytes(path, 9)
    path.write_bytes(b"\xff\xfeP")
    with pytest.raises(UserError, match=r"a.txt: cannot read label file: not a text file"):
        read_text(path, kind="label file")
