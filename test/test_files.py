"""Files are written whole or not at all, never over an input, by one command at a time; what is damaged is named."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from skd_core.errors import UserError
from skd_core.files import (
    check_file,
    check_outputs,
    finite,
    fresh_folder,
    keep_inputs,
    lock_folder,
    make_folder,
    read_bytes,
    read_text,
    write_atomic,
)
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


# -- what is no regular file, and what is read -------------------------------------------------------------------------
def fifo(path: Path) -> None:
    os.mkfifo(path)


def socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


NO_FILES: dict[str, Callable[[Path], None]] = {
    "pipe": fifo,
    "socket": socket,
    "folder": Path.mkdir,
    "link to a device": lambda path: path.symlink_to("/dev/null"),
    "link to a link to a device": lambda path: path.symlink_to("/dev/stdin" if os.path.exists("/dev/stdin") else "/"),
    "link to itself": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_regular_file_is_never_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out.json"
    if kind == "link to a link to a device" and os.path.isfile("/dev/stdin"):
        pytest.skip("standard input is a file here")
    NO_FILES[kind](path)
    before = os.lstat(path)
    for write in (check_file, lambda p: check_outputs([p]), lambda p: write_atomic(p, "x")):
        with pytest.raises(UserError, match=r"out\.json: cannot write: "):
            write(path)
    assert os.lstat(path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.parametrize("path", ["/dev/null", "", ".", "/", "..", "x" * 300, "/dev/null/x", "/nowhere/x", "/dev/fd/1"])
def test_places_where_no_file_can_be_written_are_named(tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError, match="cannot write: "), contextlib.chdir(tmp_path):
        check_file(Path(path))


def test_a_name_as_long_as_the_file_system_takes_is_written(tmp_path: Path) -> None:
    write_atomic(tmp_path / ("x" * 255), "long")
    assert [p.name for p in tmp_path.iterdir()] == ["x" * 255]


def test_a_link_to_a_file_is_replaced_and_the_file_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("file")
    write_atomic(tmp_path / "link", "theirs")
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "link").read_text() == "theirs"


def test_an_input_is_known_by_whatever_name(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    image = tree / "a.png"
    image.write_text("pixels")
    (tmp_path / "linked").symlink_to(tree)
    (tmp_path / "soft.png").symlink_to(image)
    os.link(image, tmp_path / "hard.png")
    names = [image, tmp_path / "linked/a.png", tmp_path / "soft.png", tmp_path / "hard.png", tree / "../tree/a.png"]
    for output in names:
        for given in names:
            with pytest.raises(UserError, match="would write over an input"):
                keep_inputs([output], [None, given])
    keep_inputs([tree / "b.png", tmp_path / "tree.png"], names)  # new files beside it
    (tree / "b.png").write_text("of an earlier run")
    keep_inputs([tree / "b.png"], names)
    for folder in (tree, tmp_path / "linked", tmp_path):  # that would be replaced as a whole
        with pytest.raises(UserError, match="would write over an input"):
            keep_inputs([folder], [image])
    (tree / "inner").mkdir()
    keep_inputs([tree / "inner"], names)


# -- whole or not at all -----------------------------------------------------------------------------------------------
def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path: Path, full_disk: Callable[[int], None]) -> None:
    for durable in (False, True):
        write_atomic(tmp_path / "a", "old", durable)
        full_disk(1000)
        with pytest.raises(UserError, match=r"a: cannot write: File too large"):
            write_atomic(tmp_path / "a", "x" * 2000, durable)
        full_disk(100_000)
        assert (tmp_path / "a").read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_must_not_be_lost_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("sync"), sync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b))[1])
    write_atomic(tmp_path / "a", "x", durable=True)
    assert calls == ["sync", "replace", "sync"]


def fail_in(folder: Path, error: Exception) -> None:
    folder.mkdir()
    (folder / "half").touch()
    raise error


def test_a_fresh_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with fresh_folder(out) as fresh:
        fresh.mkdir()
        (fresh / "a").write_text("1")
        assert not out.exists()
    with pytest.raises(KeyError), fresh_folder(out) as fresh:
        fail_in(fresh, KeyError())
    problem = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "input"))
    with pytest.raises(OSError, match="input"), fresh_folder(out) as fresh:  # not of what is written here
        fail_in(fresh, problem)
    with pytest.raises(UserError, match=r"^\S+/out/b: cannot write: No space"), fresh_folder(out) as fresh:
        fail_in(fresh, OSError(errno.ENOSPC, "No space left on device", str(fresh / "b")))
    assert (out / "a").read_text() == "1"
    with fresh_folder(out) as fresh:
        fresh.mkdir()
        (fresh / "b").write_text("2")
    assert [p.name for p in out.iterdir()] == ["b"]
    with fresh_folder(out):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("open_one", [lock_folder, fresh_folder])
def test_folders_closed_to_the_user_are_named(open_one: Callable[..., contextlib.AbstractContextManager]) -> None:
    with pytest.raises(UserError, match=r"^/proc/"), open_one(Path("/proc/skd/out")):
        pass


# -- one command at a time ---------------------------------------------------------------------------------------------
@pytest.fixture(params=["folders lock", "files lock"])
def locking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a local file system, and as on NFS, which locks files that are open for writing alone."""
    whole = fcntl.flock

    def flock(descriptor: int, how: int) -> None:
        if request.param == "files lock" and stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, "Bad file descriptor")
        whole(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("locking")
def test_a_second_command_in_a_folder_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with lock_folder(out), pytest.raises(UserError, match=r"out: another command is writing there"), lock_folder(out):
        pass
    with fresh_folder(out) as fresh:
        fresh.mkdir()
        for other in (fresh_folder, lock_folder) if out.exists() else (fresh_folder,):
            with pytest.raises(UserError, match=r"out: another command is"), other(out):
                pass
    with lock_folder(out):
        (out / "a").touch()
        with pytest.raises(UserError, match=r"out: another command is writing there"), fresh_folder(out):
            pass
    with lock_folder(tmp_path / "a"), lock_folder(tmp_path / "b"), fresh_folder(tmp_path / "c"):
        pass
    with lock_folder(out), fresh_folder(out / "inner") as fresh:
        fresh.mkdir()
    assert not list(tmp_path.rglob(".*.tmp"))


def test_a_lock_that_leaves_nothing_leaves_no_folder(tmp_path: Path) -> None:
    with lock_folder(tmp_path / "new"):
        pass
    (tmp_path / "old").mkdir()
    with lock_folder(tmp_path / "old"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


HOLDER = """
import sys, time
from pathlib import Path
from skd_core.files import fresh_folder, lock_folder, replacing
out = Path(sys.argv[1])
with lock_folder(out), replacing(out / "file") as temporary, fresh_folder(out / "folder") as fresh:
    temporary.write_text("half")
    fresh.mkdir()
    print("there", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_command_leaves_blocks_nobody_and_goes(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        with pytest.raises(UserError, match="another command"), lock_folder(tmp_path):
            pass
        make_folder(tmp_path)
        assert len(list(tmp_path.iterdir())) == 2  # what is under way stays
        process.send_signal(signal.SIGKILL)
    with lock_folder(tmp_path):
        assert list(tmp_path.iterdir()) == []
    with fresh_folder(tmp_path / "folder") as fresh:
        fresh.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


FORKER = """
import os, sys, time
from pathlib import Path
from skd_core.files import lock_folder
with lock_folder(Path(sys.argv[1])):
    if os.fork() == 0:
        print("there", flush=True)
        os._exit(len(sys.stdin.read()))
    time.sleep(60)
"""


def test_a_forked_process_holds_no_lock(tmp_path: Path) -> None:
    """A loader's worker may outlive the training that was killed."""
    command = [sys.executable, "-c", FORKER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        with lock_folder(tmp_path):
            pass
