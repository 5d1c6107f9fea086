"""Files and folders: written whole or not at all, never over an input, by one command at a time; and read in order.

What is under way has a name of the form ``.skd_core.*.tmp`` beside its place and is locked by its writer. A lock ends
with its process, so what a killed one has left is known by its being unlocked, and removed by the next command that
writes there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from skd_core.errors import UserError

TEMPORARY = ".skd_core.{}.tmp"
LOCK = ".skd_core.lock"
"""In a folder on a file system that locks no folders, such as NFS."""
TEXT_LIMIT = 64 << 20
"""Bytes of the longest text that is read at once: labels, calibrations, settings, tables."""

_held: set[int] = set()


# -- one file ----------------------------------------------------------------------------------------------------------
def write_atomic(path: str | Path, content: str | bytes, durable: bool = False) -> None:
    """Write a file under a temporary name in the same folder, then move it into place; see :func:`replacing`."""
    with replacing(path, durable) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: str | Path, durable: bool = False) -> Iterator[Path]:
    """The path of a temporary file that takes the place of ``path`` when the block ends well, and vanishes when not.

    Args:
        durable: have it on the disk before the old file goes, so that a power cut leaves one of the two.

    Raises:
        UserError: see :func:`check_file`; or the disk is full.
    """
    path = Path(path)
    check_file(path)
    temporary, lock = None, None
    try:
        temporary, lock = _begin_file(path.parent)
        yield temporary
        if durable:
            _flush(temporary)
        os.replace(temporary, path)
        if durable:
            _flush(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot write: {error.strerror or error}") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if lock is not None:
            _unlock(lock)


def check_file(path: Path) -> None:
    """Refuse a place where no file can be written, before anything is computed for it.

    Raises:
        UserError: what is there is no regular file (a folder, a device, a pipe, or a link to such), or the folder is
            missing or not writable.
    """
    try:
        problem = _problem(path)
    except OSError as error:
        problem = error.strerror
    if problem is not None:
        raise UserError(f"{path}: cannot write: {problem}")


def _problem(path: Path) -> str | None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:  # or a link to nothing
        mode = stat.S_IFREG
    if stat.S_ISDIR(mode):
        return "it is a folder"
    if not stat.S_ISREG(mode):
        return "it is no regular file, but a device, a pipe or a socket"
    if path.is_symlink() and path.parent.resolve().parts[1:2] in (("dev",), ("proc",)):  # /dev/stdout
        return "it is a link to an open file"
    path.parent.stat()
    return None if os.access(path.parent, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)


def check_outputs(outputs: Iterable[Path | None], inputs: Iterable[Path | None] = ()) -> None:
    """Refuse files that could not or must not be written, when a command starts; sweep their folders.

    Args:
        outputs: files to be written; None is left out.
        inputs: what is read, see :func:`keep_inputs`.

    Raises:
        UserError: see :func:`check_file` and :func:`keep_inputs`.
    """
    wanted = [path for path in outputs if path is not None]
    for path in wanted:
        check_file(path)
    for folder in {path.parent for path in wanted}:
        sweep(folder)
    keep_inputs(wanted, inputs)


def keep_inputs(outputs: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Refuse to write over what is read, by whatever name: links, linked folders and mounts count as what they are.

    Args:
        outputs: files or folders; those that are not there yet can write over nothing.
        inputs: files or folders; None is left out.

    Raises:
        UserError: an output is an input, or a folder that holds one.
    """
    there: dict[tuple[int, int], Path] = {}
    for output in outputs:
        with contextlib.suppress(OSError):
            there.setdefault(_identity(output), output)
    if not there:
        return
    known = functools.cache(lambda path: _identity(Path(path)))
    for given in inputs:
        if given is None:
            continue
        with contextlib.suppress(OSError):
            real = given.resolve()
            places = [given, real, *(str(parent) for parent in real.parents)]
            over = next((there[key] for place in places if (key := known(str(place))) in there), None)
            if over is not None:
                raise UserError(f"{over}: would write over an input, {given}; choose another output")


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


# -- folders -----------------------------------------------------------------------------------------------------------
def make_folder(folder: Path) -> None:
    """Make a folder for results, and those above it; what killed commands have left in it goes.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot make this folder: {error.strerror}") from None
    sweep(folder)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Make a folder and keep other commands out of it; it goes again where the block leaves it empty.

    Raises:
        UserError: it cannot be made, or another command is writing there.
    """
    new = not folder.exists()
    make_folder(folder)
    try:
        lock = _lock(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot open this folder: {error.strerror}") from None
    if lock is None:
        raise UserError(f"{folder}: another command is writing there; wait until it has ended, or name another folder")
    try:
        yield
    finally:
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        _unlock(lock)


@contextlib.contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """A place to make a folder in, which takes the place of ``folder`` when the block ends well, and vanishes when not.

    Where the block makes nothing there, ``folder`` is removed. Other commands are kept out of it meanwhile.

    Raises:
        UserError: another command is making or filling it, or the disk is full or closed to the user.
    """
    make_folder(folder.parent)
    work = folder.parent / TEMPORARY.format(hashlib.sha256(folder.name.encode()).hexdigest()[:12])
    with contextlib.ExitStack() as stack:
        try:
            lock = _begin_folder(work)
        except OSError as error:
            raise UserError(f"{folder}: cannot make this folder: {error.strerror}") from None
        if lock is None:
            raise UserError(f"{folder}: another command is making it; wait until it has ended, or name another folder")
        stack.callback(_unlock, lock)
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        if folder.is_dir():
            stack.enter_context(lock_folder(folder))
        fresh, old = work / folder.name, work / TEMPORARY.format("old")
        try:
            yield fresh
            os.sync()
            if folder.exists():
                os.replace(folder, old)
            if fresh.exists():
                os.replace(fresh, folder)
        except OSError as error:
            place = str(error.filename or fresh)
            if not place.startswith(str(work)):
                raise
            raise UserError(f"{place.replace(str(fresh), str(folder))}: cannot write: {error.strerror}") from None
        finally:
            if old.exists() and not folder.exists() and fresh.exists():
                os.replace(old, folder)


def sweep(folder: Path) -> None:
    """Remove what killed commands have left in a folder: our temporary files that nobody has locked."""
    for path in folder.glob(TEMPORARY.format("*")):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            lock = _lock(path)
            if lock is not None:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                _unlock(lock)


def _begin_file(folder: Path) -> tuple[Path, int]:
    """A new temporary file and the descriptor that holds its lock."""
    while True:
        path = folder / TEMPORARY.format(secrets.token_hex(6))
        lock = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks: it is not swept either
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists():  # nobody has swept it before it was locked
            _held.add(lock)
            return path, lock
        os.close(lock)


def _begin_folder(path: Path) -> int | None:
    """Make an empty temporary folder and lock it; None where another process holds it."""
    while True:
        path.mkdir(exist_ok=True)
        lock = _lock(path)
        if lock is None:
            return None
        if path.exists() and os.fstat(lock).st_ino in (path.stat().st_ino, _inode(path / LOCK)):
            for left in path.iterdir():
                if left.name != LOCK:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            return lock
        _unlock(lock)


def _inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock of a file or folder until it is closed; None where another one holds it."""
    lock = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        if error.errno == errno.EWOULDBLOCK:
            return None
        if not path.is_dir() or path.name == LOCK:
            raise
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as second:
            os.close(lock)
            if second.errno == errno.EWOULDBLOCK:
                return None
            raise
    _held.add(lock)
    return lock


def _unlock(lock: int) -> None:
    _held.discard(lock)
    with contextlib.suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_UN)  # at once, also where a process that was just forked has not let go yet
    os.close(lock)


def _let_go() -> None:
    """A forked process holds no lock: it may outlive the one that took it."""
    for lock in _held:
        os.close(lock)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def _flush(path: Path) -> None:
    """Have a file's content, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- reading and content -----------------------------------------------------------------------------------------------
def check_regular(path: str | Path, limit: int, kind: str = "file") -> None:
    """Check, without opening it, that a file can be read whole: a pipe would block, a huge sparse file fill the memory.

    Args:
        path: the file.
        limit: most bytes that it may have.
        kind: what to call it in an error: "camera file", "image".

    Raises:
        UserError: missing, a folder, a pipe or a device, or longer than ``limit``.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{path}: cannot read {kind}: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{path}: cannot read {kind}: Is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: cannot read {kind}: not a regular file (a pipe, a device or a socket)")
    if status.st_size > limit:
        raise UserError(f"{path}: cannot read {kind}: {status.st_size} bytes, more than the {limit} that one may have")


def read_bytes(path: str | Path, limit: int = TEXT_LIMIT, kind: str = "file") -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
        UserError: see :func:`check_regular`; or the file cannot be read.
    """
    check_regular(path, limit, kind)
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot read {kind}: {error.strerror}") from None
    if len(content) > limit:
        raise UserError(f"{path}: cannot read {kind}: grows while it is read, beyond {limit} bytes")
    return content


def read_text(path: str | Path, limit: int = TEXT_LIMIT, kind: str = "file") -> str:
    """The text of a regular UTF-8 file of at most ``limit`` bytes, without a byte order mark; line ends become ``\\n``.

    Raises:
        UserError: see :func:`read_bytes`; or not text in UTF-8.
    """
    try:
        text = read_bytes(path, limit, kind).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: cannot read {kind}: not a text file") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def finite(value: Any) -> Any:
    """The same with None for numbers that are not finite, in dicts however deep: JSON has no word for them."""
    if isinstance(value, dict):
        return {str(name): finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def natural_order(path: Path) -> list[tuple[int, str]]:
    """Sorting key of a file's name that compares digits as numbers: bag_2 before bag_10."""
    return [(int(word), "") if word.isdecimal() else (-1, word) for word in re.split(r"(\d+)", path.name)]
