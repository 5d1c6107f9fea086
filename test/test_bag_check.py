"""Bags that would hang or fill the memory are refused before they are opened."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny import kitti_camera

from skd_core.data.bag import Frame, read_frames, write_frames
from skd_core.data.bag_check import check_storage
from skd_core.errors import UserError

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT "


def written(folder: Path, storage: str) -> Path:
    image = np.zeros((64, 160, 3), np.uint8)
    frames = [Frame(image, kitti_camera(160, 64), stamp) for stamp in (10**9, 2 * 10**9)]
    write_frames(folder / storage, frames, storage=storage)
    return folder / storage


def endless(path: Path, name: str) -> None:
    """The table becomes a view without end, with the same columns."""
    with sqlite3.connect(path) as database:
        columns = [row[1] for row in database.execute(f"PRAGMA table_info({name})")]
        database.execute(f"DROP TABLE {name}")
        body = ", ".join(f"i AS {column}" for column in columns)
        database.execute(f"CREATE VIEW {name} AS {ENDLESS} {body} FROM n")
    database.close()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["messages", "topics"])
def test_a_view_without_end_is_refused(tmp_path: Path, name: str) -> None:
    bag = written(tmp_path, "sqlite3")
    check_storage(bag)
    assert len(list(read_frames(bag))) == 2
    file = next(bag.glob("*.db3"))
    endless(file, name)
    for path in (bag, file):
        with pytest.raises(UserError, match=f"holds a view '{name}'"):
            list(read_frames(path))
    (bag / "metadata.yaml").unlink()
    with pytest.raises(UserError, match=f"holds a view '{name}'"):
        list(read_frames(bag))


@pytest.mark.parametrize(
    ("name", "pack", "said"),
    [
        ("x.mcap.gz", gzip.compress, "x.mcap.gz is compressed with gzip; unpack it with gunzip"),
        ("x.db3.bz2", bz2.compress, "compressed with bzip2"),
        ("x.mcap.xz", lzma.compress, "compressed with xz"),
        ("x.mcap.lz4", lambda data: b"\x04\x22\x4d\x18" + data, "compressed with lz4"),
        ("x.mcap", gzip.compress, "x.mcap is compressed with gzip"),
        ("x.db3", bytes, "x.db3 is an MCAP file; name it .mcap"),
        ("x.bag", lambda data: b"#ROSBAG V2.0\n" + data, "a ROS 1 bag; convert it with rosbags-convert"),
    ],
)
@pytest.mark.parametrize("in_folder", [True, False])
def test_what_is_no_rosbag2_is_called_by_its_name(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes], said: str, in_folder: bool
) -> None:
    content = next(written(tmp_path, "mcap").glob("*.mcap")).read_bytes()
    folder = tmp_path / "bag"
    folder.mkdir()
    (folder / name).write_bytes(pack(content))
    with pytest.raises(UserError, match=f"cannot be read as a rosbag2 bag .*{said}"):
        list(read_frames(folder if in_folder else folder / name))


def test_a_damaged_file_is_not_called_another(tmp_path: Path) -> None:
    (tmp_path / "x.mcap").write_bytes(b"\x89MCAP0\r\n" + bytes(40))
    with pytest.raises(UserError, match="cannot be read as a rosbag2 bag") as caught:
        list(read_frames(tmp_path / "x.mcap"))
    assert "name it" not in str(caught.value)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["metadata.yaml", "storage", "beside.mcap", "elsewhere"])
def test_a_pipe_in_a_bag_is_refused(tmp_path: Path, name: str) -> None:
    bag = written(tmp_path, "mcap")
    path = bag / name
    if name == "storage":
        path = next(bag.glob("*.mcap"))
    if name == "elsewhere":
        path = tmp_path / "pipe"
        content = yaml.safe_load((bag / "metadata.yaml").read_text())
        content["rosbag2_bagfile_information"]["relative_file_paths"] = ["../pipe"]
        (bag / "metadata.yaml").write_text(yaml.safe_dump(content))
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(UserError, match="is a pipe or a device"):
        list(read_frames(bag))


@pytest.mark.parametrize(
    "text", ["[" * 10**5, "a: 2001-99-99\nb: [", "null", "7", "rosbag2_bagfile_information: 7",
             "rosbag2_bagfile_information: {relative_file_paths: [7, null, {}]}", "a: &a [*a]"],
)  # fmt: skip
def test_metadata_that_is_none_is_a_user_error_or_read_past(tmp_path: Path, text: str) -> None:
    bag = written(tmp_path, "mcap")
    (bag / "metadata.yaml").write_text(text)
    try:
        frames = list(read_frames(bag))
    except UserError as error:
        said = str(error)
    else:
        said = f"{bag} {len(frames)}"
    assert str(bag) in said
    shutil.rmtree(bag)


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0", b"\xff" * 5000])
def test_a_damaged_database_is_named_as_before(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.db3"
    path.write_bytes(content)
    check_storage(path)
    with pytest.raises(UserError, match=r"a\.db3: cannot be read as a rosbag2 bag"):
        list(read_frames(path))
