"""Open rosbag2 recordings: intact ones through rosbags, damaged ones as far as they can be read.

A recorder that was killed leaves no ``metadata.yaml`` and a file without its end. Then the storage files are opened one
by one: MCAP record by record, sqlite3 row by row, each up to where it breaks. So is the rest of a whole bag in which
something turns out to be damaged. What was lost is logged and collected.

Files (``.mcap.zstd``, ``.db3.zstd``) and messages that ``ros2 bag record`` has compressed are told by themselves, with
and without metadata: files are unpacked into a temporary folder, messages one by one.

Why not a library throughout: ``rosbags.highlevel.AnyReader`` is the reader that is used here for whole bags, and reads
none without its end; ``mcap`` could stream a cut file (30 lines less here), for two more packages on the robot.
"""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from rosbags.interfaces import Connection, ConnectionExtRosbag2, MessageDefinition, MessageDefinitionFormat
from rosbags.rosbag2 import Reader
from rosbags.rosbag2.storage_mcap import decompress

from skd_core.data.bag_check import check_storage, foreign
from skd_core.errors import UserError
from skd_core.files import natural_order
from skd_core.notes import warn_once

try:
    from compression import zstd  # type: ignore[import-not-found, unused-ignore]
except ImportError:  # before Python 3.14
    from backports import zstd

Message = tuple[Connection, int, bytes]
MCAP_MAGIC = b"\x89MCAP0\r\n"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
"""Begins what zstd has compressed; a CDR message begins with 0."""
ZSTD_SUFFIXES = (".zstd", ".zst")
MAX_MESSAGE_BYTES = 1 << 30
"""Bytes that a compressed message may have unpacked."""
CHUNK_BYTES = 1 << 20
MCAP_SCHEMA, MCAP_CHANNEL, MCAP_MESSAGE, MCAP_CHUNK = 0x03, 0x04, 0x05, 0x06


class Storage(Protocol):
    """A whole bag or one of its files."""

    @property
    def connections(self) -> list[Connection]: ...
    def messages(self, connections: Collection[Connection]) -> Iterator[Message]: ...
    def close(self) -> None: ...


class BagReader:
    """A recording: its topics and its messages as bytes, in the order of recording.

    Attributes:
        connections: one per topic.
        problems: what could not be read, one line each; grows while messages are read.

    Args:
        path: a bag folder, or a single .mcap or .db3 file, or one of these with .zstd behind.

    Raises:
        UserError: nothing there that can be read as a bag.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.problems: list[str] = []
        self._storages = self._open()
        by_topic: dict[str, Connection] = {}
        for storage in self._storages:
            for connection in storage.connections:
                by_topic.setdefault(connection.topic, connection)
        self.connections = list(by_topic.values())

    def messages(self, connections: Collection[Connection] = ()) -> Iterator[Message]:
        """(connection, time of recording in nanoseconds, CDR) of some topics; of all topics without."""
        by_topic = {c.topic: c for c in connections or self.connections}
        for storage in self._storages:
            own = [c for c in storage.connections if c.topic in by_topic]
            for connection, timestamp, data in self._messages_of(storage, own) if own else ():
                yield by_topic[connection.topic], timestamp, _plain(data)

    def close(self) -> None:
        """Close the files."""
        for storage in self._storages:
            storage.close()

    def note(self, problem: str) -> None:
        """Keep a problem, each once, and log it, once however often the bag is opened."""
        if problem not in self.problems:
            self.problems.append(problem)
            warn_once(problem, problem)

    def _messages_of(self, storage: Storage, own: Collection[Connection]) -> Iterator[Message]:
        """What a storage holds. Where one breaks that was opened as a whole, its files are read again, record by
        record, for what comes after the last message in time."""
        last, at_last = -1, Counter[str]()
        try:
            for message in storage.messages(own):
                connection, timestamp, _ = message
                if timestamp != last:
                    last, at_last = timestamp, Counter()
                at_last[connection.topic] += 1
                yield message
            return
        except Exception as error:  # rosbags passes on what its databases and codecs raise
            whole = isinstance(storage, Reader)
            self.note(f"{self.path}: {'damaged' if whole else 'reading stopped'}: {first_line(error)}")
        if not isinstance(storage, Reader):
            return
        topics = {c.topic for c in own}
        for file in _storage_files(Path(str(storage.path))):
            try:
                with contextlib.closing(self._salvage(self._unpacked(file))) as rest:
                    for message in rest.messages([c for c in rest.connections if c.topic in topics]):
                        connection, timestamp, _ = message
                        if timestamp == last and at_last[connection.topic]:
                            at_last[connection.topic] -= 1
                        elif timestamp >= last:
                            yield message
            except (UserError, OSError, ValueError, struct.error, sqlite3.Error) as error:
                self.note(f"{file}: reading stopped: {first_line(error)}")

    def _open(self) -> list[Storage]:
        if not self.path.exists():
            raise UserError(f"{self.path}: no such bag folder")
        check_storage(self.path)
        if self.path.is_dir() and (self.path / "metadata.yaml").is_file():
            try:
                return [_open_whole(self.path)]
            except Exception as error:  # rosbags passes on what its databases and codecs raise
                reason = first_line(error)
        else:
            reason = "no metadata.yaml" if self.path.is_dir() else ""
        files = _storage_files(self.path)
        if not files:
            reason = foreign(self.path) or reason or "not an .mcap or .db3 file"
            raise UserError(f"{self.path}: cannot be read as a rosbag2 bag ({reason})")
        if reason:
            self.note(f"{self.path}: {reason}; its {len(files)} storage files are read one by one")
        storages, refused = [], []
        for file in files:
            try:
                storages.append(self._open_file(file))
            except (UserError, OSError, ValueError, struct.error, sqlite3.Error) as error:
                refused.append(foreign(file) or first_line(error))
                self.note(f"{file}: left out: {refused[-1]}")
        if not any(storage.connections for storage in storages):
            refused = refused or ["nothing in it is complete"]
            raise UserError(f"{self.path}: cannot be read as a rosbag2 bag ({'; '.join(refused)})")
        return storages

    def _open_file(self, file: Path) -> Storage:
        plain = self._unpacked(file)
        try:
            return _open_whole(plain)
        except Exception as error:  # rosbags passes on what its databases and codecs raise
            storage = self._salvage(plain)
            self.note(f"{file}: damaged ({first_line(error)}); read as far as it goes")
            return storage

    def _salvage(self, file: Path) -> Storage:
        return _SALVAGE[file.suffix](file, self.note)

    def _unpacked(self, file: Path) -> Path:
        """The file itself or, if it is compressed, what it holds, up to where it breaks, in a temporary folder."""
        if file.suffix not in ZSTD_SUFFIXES:
            return file
        plain, damage = _unpack(file, file.stat().st_mtime_ns)
        if damage is not None:
            self.note(f"{file}: compressed with zstd, and damaged ({damage}); read as far as it goes")
        return plain


class CutMcap:
    """An MCAP file without its end: the records that are complete, in the order they were written.

    Raises:
        UserError: not an MCAP file.
    """

    def __init__(self, path: Path, note: Callable[[str], None]) -> None:
        self._path, self._note = path, note
        with path.open("rb") as file:
            if file.read(len(MCAP_MAGIC)) != MCAP_MAGIC:
                raise UserError("does not start like an MCAP file")
        schemas: dict[int, str] = {}
        by_id: dict[int, Connection] = {}
        for code, record in self._records():
            fields = BytesIO(record)
            if code == MCAP_SCHEMA:
                number = _uint(fields, 2)
                schemas[number] = _string(fields)
            elif code == MCAP_CHANNEL:
                number, schema = _uint(fields, 2), _uint(fields, 2)
                by_id[number] = _connection(number, _string(fields), schemas.get(schema, ""), self)
        self.connections = list(by_id.values())

    def messages(self, connections: Collection[Connection]) -> Iterator[Message]:
        by_id = {c.id: c for c in connections}
        for code, record in self._records():
            if code == MCAP_MESSAGE:
                number, _, log_time, _ = struct.unpack_from("<HIQQ", record)
                if number in by_id:
                    yield by_id[number], log_time, record[22:]

    def close(self) -> None:
        """Nothing stays open."""

    def _records(self) -> Iterator[tuple[int, bytes]]:
        """(code, content) of complete records, those inside chunks too."""
        with self._path.open("rb") as file:
            file.seek(len(MCAP_MAGIC))
            for code, record in _records_of(file):
                if code != MCAP_CHUNK:
                    yield code, record
                    continue
                chunk = BytesIO(record)
                _, _, size, crc = struct.unpack("<QQQI", chunk.read(28))
                compression = _string(chunk)
                try:
                    content = decompress(chunk.read(_uint(chunk, 8)), compression, size, crc)
                except Exception as error:  # rosbags passes on what its codecs raise
                    self._note(f"{self._path}: a chunk was skipped: {first_line(error)}")
                    continue
                yield from _records_of(BytesIO(content))


class CutSqlite:
    """A sqlite3 file without its end: the rows before the first that cannot be read.

    Raises:
        sqlite3.Error: not a database, or so damaged that not even the topics can be read.
    """

    def __init__(self, path: Path, note: Callable[[str], None]) -> None:
        self._path, self._note = path, note
        self._database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        self._database.execute("PRAGMA writable_schema=ON")  # or sqlite refuses a file shorter than its header says
        rows = self._database.execute("SELECT id, name, type FROM topics ORDER BY id").fetchall()
        self.connections = [_connection(number, topic, kind, self) for number, topic, kind in rows]

    def messages(self, connections: Collection[Connection]) -> Iterator[Message]:
        by_id = {c.id: c for c in connections}
        try:
            # in the order of rows, which needs no index: the index is the first thing to be lost
            for number, timestamp, data in self._database.execute(
                "SELECT topic_id, timestamp, data FROM messages NOT INDEXED ORDER BY rowid"
            ):
                if number in by_id:
                    yield by_id[number], timestamp, data
        except sqlite3.Error as error:
            self._note(f"{self._path}: reading stopped: {first_line(error)}")

    def close(self) -> None:
        self._database.close()


_SALVAGE: dict[str, Callable[[Path, Callable[[str], None]], Storage]] = {".mcap": CutMcap, ".db3": CutSqlite}


@contextlib.contextmanager
def open_bag(path: str | Path) -> Iterator[BagReader]:
    """A reader of a bag, open for the length of a ``with`` block; see :class:`BagReader`."""
    reader = BagReader(path)
    try:
        yield reader
    finally:
        reader.close()


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def is_storage_file(path: Path) -> bool:
    """Whether a file's name is that of a bag's storage, compressed or not."""
    return (path.with_suffix("") if path.suffix in ZSTD_SUFFIXES else path).suffix in _SALVAGE


def _storage_files(path: Path) -> list[Path]:
    """The storage files of a bag's folder, in their natural order; or the one file."""
    files = sorted(path.iterdir(), key=natural_order) if path.is_dir() else [path]
    return [file for file in files if is_storage_file(file)]


@functools.cache
def _unpack(file: Path, _changed: int) -> tuple[Path, str | None]:
    """What a compressed file holds, and why not all of it; once for all the times that a bag is opened."""
    folder = tempfile.TemporaryDirectory(prefix="skd_bag_")
    _UNPACKED.append(folder)
    plain, damage = Path(folder.name) / file.stem, None
    with file.open("rb") as packed, plain.open("wb") as out:
        try:
            with zstd.open(packed, "rb") as content:
                while piece := content.read(CHUNK_BYTES):
                    out.write(piece)
        except (zstd.ZstdError, EOFError) as error:
            damage = first_line(error)
            if not out.tell():
                raise UserError(f"cannot be unpacked as zstd: {damage}") from None
    return plain, damage


_UNPACKED: list[tempfile.TemporaryDirectory[str]] = []
"""Removed when the process ends."""


def _plain(data: bytes) -> bytes:
    """A message as it was before compression; nothing where it cannot be unpacked, which no reader takes."""
    if bytes(data[: len(ZSTD_MAGIC)]) != ZSTD_MAGIC:
        return data
    unpacker = zstd.ZstdDecompressor()
    try:
        content = unpacker.decompress(data, MAX_MESSAGE_BYTES)
    except zstd.ZstdError:
        return b""
    return content if unpacker.eof else b""


def _open_whole(path: Path) -> Reader:
    reader = Reader(path)
    reader.open()
    return reader


def _connection(number: int, topic: str, msgtype: str, owner: Any) -> Connection:
    nothing = MessageDefinition(MessageDefinitionFormat.NONE, "")
    return Connection(number, topic, msgtype, nothing, "", 0, ConnectionExtRosbag2("cdr", []), owner)


def _records_of(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """MCAP records: a code byte, the length in 8 bytes, the content. Ends at the first that is cut or has no code."""
    while len(head := stream.read(9)) == 9 and head[0]:
        length = int.from_bytes(head[1:], "little")
        left = stream.seek(0, 1)
        if length > stream.seek(0, 2) - left:
            return
        stream.seek(left)
        yield head[0], stream.read(length)


def _uint(stream: BinaryIO, size: int) -> int:
    return int.from_bytes(stream.read(size), "little")


def _string(stream: BinaryIO) -> str:
    return stream.read(_uint(stream, 4)).decode()
