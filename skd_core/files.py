"""Files and folders: written whole or not at all, never over an input, by one command at a time; and read in order.

What is under way has a temporary name and is locked, see :mod:`skd_core.locks`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import math
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from skd_core.errors import UserError
from skd_core.locks import TEMPORARY, acquire, begin_file, begin_folder, release, sweep

TEXT_LIMIT = 64 << 20
"""Bytes of the longest text that is read at once: labels, calibrations, settings, tables."""


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
        temporary, lock = begin_file(path.parent)
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
            release(lock)


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
        return "it is not a regular file, but a device, a pipe or a socket"
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
        UserError: one file twice; see :func:`check_file` and :func:`keep_inputs`.
    """
    wanted = [path for path in outputs if path is not None]
    real = [os.path.realpath(path) for path in wanted]
    if len(set(real)) < len(real):
        twice = next(path for path, place in zip(wanted, real, strict=True) if real.count(place) > 1)
        raise UserError(f"{twice}: named for two outputs; give each its own file")
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


def files_of(*sources: Path | None) -> Iterator[Path]:
    """What is read of sources, for :func:`keep_inputs`: a file itself, the files of a folder, a KITTI tree, a bag.

    Pictures and JSON beside a bag, and JSON in any other folder, are no input: an earlier run may have put them there.
    """
    for source in sources:
        if source is None or not source.is_dir():
            yield from [] if source is None else [source]
        elif (source / "training").is_dir():
            folders = (*(source / "training" / part for part in ("image_2", "calib", "label_2")), source / "ImageSets")
            yield from (path for folder in folders if folder.is_dir() for path in folder.iterdir())
        else:
            results = {".json", ".png"} if (source / "metadata.yaml").exists() else {".json"}
            yield from (path for path in source.iterdir() if path.suffix not in results)


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
        lock = acquire(folder)
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
        release(lock)


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
            lock = begin_folder(work)
        except OSError as error:
            raise UserError(f"{folder}: cannot make this folder: {error.strerror}") from None
        if lock is None:
            raise UserError(f"{folder}: another command is making it; wait until it has ended, or name another folder")
        stack.callback(release, lock)
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
            if not place.startswith(str(work)) or isinstance(error, BrokenPipeError):
                raise
            raise UserError(f"{place.replace(str(fresh), str(folder))}: cannot write: {error.strerror}") from None
        finally:
            if old.exists() and not folder.exists() and fresh.exists():
                os.replace(old, folder)


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
