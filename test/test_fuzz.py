"""Any content of a file is read or named in a UserError: recordings, camera_info, calibrations, labels, records."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import kitti_camera

from skd_core.camera import Camera
from skd_core.data.bag import Frame, read_frames, write_frames
from skd_core.data.kitti import read_objects
from skd_core.errors import UserError
from skd_core.training.records import read_records

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
odd = st.sampled_from(
    [None, True, -1, 0, 10**400, 1e308, float("nan"), float("inf"), "", "x", "9" * 4400, [], {}, [[]]]
)
json_like = st.recursive(
    odd | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def fault(work: Callable[[], object]) -> str:
    """The message of a UserError, "" without one; anything else fails the test."""
    try:
        work()
    except UserError as error:
        return str(error) or "empty"
    return ""


@pytest.fixture(scope="module", params=["mcap", "sqlite3"])
def recording(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    folder = tmp_path_factory.mktemp("bag") / request.param
    image = np.zeros((16, 32, 3), np.uint8)
    write_frames(folder, [Frame(image, kitti_camera(32, 16), n * 10**9) for n in (1, 2)], storage=request.param)
    file = next(path for path in folder.iterdir() if path.suffix in (".mcap", ".db3"))
    return file.suffix, file.read_bytes()


@pytest.mark.timeout(300)
@quick
@given(data=st.data())
def test_any_damage_to_a_recording(recording, tmp_path, data) -> None:
    suffix, whole = recording
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        patch = data.draw(st.binary(min_size=1, max_size=9))
        content[at : at + len(patch)] = patch
    path = tmp_path / f"a{suffix}"
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]))
    logging.disable(logging.WARNING)
    try:
        fault(lambda: list(read_frames(path, problems=[])))
    finally:
        logging.disable(logging.NOTSET)


numbers = st.lists(st.floats() | odd, min_size=9, max_size=12)
info = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("width", "height", "image_width", "binning_x", "binning_y", "distortion_model"), json_like),
        **dict.fromkeys(
            ("p", "k", "d", "P", "K", "D"), json_like | st.lists(st.floats() | odd, min_size=9, max_size=12)
        ),
        "roi": json_like
        | st.fixed_dictionaries({}, optional=dict.fromkeys(("x_offset", "width", "height"), json_like)),
    },
)


@settings(max_examples=200, deadline=None)
@given(info)
def test_any_camera_info(fields: dict[str, Any]) -> None:
    said = fault(lambda: Camera.from_ros(fields, "topic"))
    assert said == "" or "topic" in said


COLUMNS = ["Car", "0.00", "1e308", "nan", "-1", "inf", "9" * 400, "x", "", "\0", "P2:", ":"]
words = st.lists(st.sampled_from(COLUMNS), max_size=18)


@settings(quick, max_examples=100)
@given(lines=st.lists(words.map(" ".join), max_size=4))
def test_any_lines_of_labels_calibrations_and_records(tmp_path, lines) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    for read in (read_objects, read_records, lambda path: Camera.from_file(path, 640, 480)):
        said = fault(lambda read=read: read(path))
        assert said == "" or str(path) in said
