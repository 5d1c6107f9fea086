"""Locks of files and folders that are being written, and the removal of what killed commands have left.

What is under way has a name of the form ``.skd_core.*.tmp`` beside its place and is locked by its writer. A lock ends
with its process, so what a killed one has left is known by its being unlocked, and removed by the next command that
writes there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from pathlib import Path

TEMPORARY = ".skd_core.{}.tmp"
LOCK = ".skd_core.lock"
"""In a folder on a file system that locks no folders, such as NFS."""
_held: set[int] = set()


def acquire(path: Path) -> int | None:
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


def release(lock: int) -> None:
    """Let a lock go and close its descriptor."""
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


def sweep(folder: Path) -> None:
    """Remove what killed commands have left in a folder: our temporary files that no process has locked."""
    for path in folder.glob(TEMPORARY.format("*")):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            lock = acquire(path)
            if lock is not None:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                release(lock)


def begin_file(folder: Path) -> tuple[Path, int]:
    """A new temporary file and the descriptor that holds its lock."""
    while True:
        path = folder / TEMPORARY.format(secrets.token_hex(6))
        lock = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks: it is not swept either
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists():  # not removed by another process before it was locked
            _held.add(lock)
            return path, lock
        os.close(lock)


def begin_folder(path: Path) -> int | None:
    """Make an empty temporary folder and lock it; None where another process holds it."""
    while True:
        path.mkdir(exist_ok=True)
        lock = acquire(path)
        if lock is None:
            return None
        if path.exists() and os.fstat(lock).st_ino in (path.stat().st_ino, _inode(path / LOCK)):
            for left in path.iterdir():
                if left.name != LOCK:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            return lock
        release(lock)


def _inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None
