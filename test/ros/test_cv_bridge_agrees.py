"""What the node and the bags read is what cv_bridge makes of the same message, encoding by encoding."""

from __future__ import annotations

import array
from importlib.metadata import PackageNotFoundError, version

import cv2
import numpy as np
import pytest
from cv_bridge import CvBridge
from sensor_msgs.msg import CompressedImage, Image

from skd_core.data.decoding import ENCODINGS
from skd_core.data.ros_messages import decode_compressed, decode_raw

OPENCV_NAMES = {
    "8UC1": "mono8",
    "8UC3": "bgr8",
    "8UC4": "bgra8",
    "16UC1": "mono16",
    "16UC3": "bgr16",
    "16UC4": "bgra16",
}
"""cv_bridge makes no colours of these; the node takes OpenCV's order."""
SINCE_KILTED = {"uyvy": "yuv422", "yuyv": "yuv422_yuy2"}
"""Newer names of the same bytes, which not every cv_bridge knows."""
WIDTH, HEIGHT = 12, 8


def message(encoding: str, big_endian: bool, padding: int) -> Image:
    """Noise that uses all of its range."""
    _, channels = CvBridge().encoding_to_dtype_with_channels(SINCE_KILTED.get(encoding, encoding))
    size = 2 if "16" in encoding else 1
    rng = np.random.default_rng(3)
    values = rng.integers(0, 256**size, (HEIGHT, WIDTH * channels)).astype(np.uint16)
    values[0, :channels] = 256**size - 1
    kind = np.uint8 if size == 1 else np.dtype(">u2" if big_endian else "<u2")
    rows = values.astype(kind).view(np.uint8).reshape(HEIGHT, -1)
    rows = np.hstack([rows, np.full((HEIGHT, padding * channels * size), 9, np.uint8)])
    data = array.array("B", rows.tobytes())
    return Image(height=HEIGHT, width=WIDTH, encoding=encoding, is_bigendian=big_endian, step=rows.shape[1], data=data)


@pytest.mark.parametrize("padding", [0, 4], ids=["tight", "padded"])
@pytest.mark.parametrize("big_endian", [False, True], ids=["little", "big"])
@pytest.mark.parametrize("encoding", [e for e in ENCODINGS if not e.startswith("nv")])
def test_raw(encoding: str, big_endian: bool, padding: int) -> None:
    ours = message(encoding, big_endian, padding)
    theirs = message(encoding, big_endian, padding)
    theirs.encoding = (OPENCV_NAMES | SINCE_KILTED).get(encoding, encoding)
    expected = CvBridge().imgmsg_to_cv2(theirs, "rgb8")
    assert np.array_equal(decode_raw(ours), expected)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_compressed(suffix: str) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    data = array.array("B", cv2.imencode(suffix, pixels)[1].tobytes())
    compressed = CompressedImage(format=f"bgr8; {suffix[1:]} compressed bgr8", data=data)
    assert np.array_equal(decode_compressed(compressed), CvBridge().compressed_imgmsg_to_cv2(compressed, "rgb8"))


def test_it_was_the_real_cv_bridge() -> None:
    """Fails never: it shows by a skip that the comparison above was with this project's stand-in."""
    try:
        found = version("cv_bridge")
    except PackageNotFoundError:  # as from apt
        found = ""
    if "+skd" in found:
        pytest.skip("the real cv_bridge is not installed: compared with the stand-in of tools/ros_from_pypi")
