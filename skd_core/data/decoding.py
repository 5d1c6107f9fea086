"""Every picture to RGB, once: raw bytes as sensor_msgs/Image has them, and compressed ones; for the node and for bags.

The conversions are those of ROS 2's cv_bridge [peer: vision_opencv], which a test compares them with, and the format
texts those of image_transport [peer: image_transport_plugins]. Beyond cv_bridge, rows may be padded by any number of
bytes, and NV12 and NV21 are read. No ROS is imported.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skd_core.errors import UserError
from skd_core.notes import warn_once

Pixels = NDArray[Any]
RGB = NDArray[np.uint8]

PICTURE_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP", "PPM", "JPEG2000")
"""What Pillow may open: no format that starts a program or reads other files, such as EPS."""
MAX_IMAGE_PIXELS = 150_000_000
"""Of one picture: what a forged header asks for beyond would only fill the memory."""
DEPTHS = (8, 10, 12, 14, 16)
"""Bits of which cameras fill a 16-bit picture, counted from below."""

_ORDERS = {"mono": None, "rgb": None, "bgr": cv2.COLOR_BGR2RGB, "rgba": cv2.COLOR_RGBA2RGB, "bgra": cv2.COLOR_BGRA2RGB}
_CHANNELS = {"mono": 1, "rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4}
_BAYER = {
    "bayer_rggb": cv2.COLOR_BayerRGGB2RGB,
    "bayer_bggr": cv2.COLOR_BayerBGGR2RGB,
    "bayer_gbrg": cv2.COLOR_BayerGBRG2RGB,
    "bayer_grbg": cv2.COLOR_BayerGRBG2RGB,
}
_YUV422 = {
    "yuv422": cv2.COLOR_YUV2RGB_UYVY,
    "uyvy": cv2.COLOR_YUV2RGB_UYVY,
    "yuv422_yuy2": cv2.COLOR_YUV2RGB_YUY2,
    "yuyv": cv2.COLOR_YUV2RGB_YUY2,
}
_YUV420 = {"nv12": cv2.COLOR_YUV2RGB_NV12, "nv21": cv2.COLOR_YUV2RGB_NV21}
_OPENCV_NAMES = {
    "8UC1": "mono8", "8UC3": "bgr8", "8UC4": "bgra8", "16UC1": "mono16", "16UC3": "bgr16", "16UC4": "bgra16",
}  # fmt: skip
"""OpenCV's names, which say nothing about colour, as the order that OpenCV keeps."""

ENCODINGS = (
    *(f"{order}{bits}" for order in (*_ORDERS, *_BAYER) for bits in (8, 16)), *_OPENCV_NAMES, *_YUV422, *_YUV420,
)  # fmt: skip
"""The encodings of sensor_msgs/Image that are read."""


class EncodingError(UserError):
    """A picture in an encoding that is not read, as opposed to one that is malformed."""


def decode_pixels(
    data: Any, encoding: str, size: tuple[int, int], step: int, big_endian: bool = False, name: str = "image"
) -> RGB:
    """The bytes of an uncompressed picture as RGB, shape (H, W, 3).

    Args:
        data: bytes, an array of bytes or a list of numbers; what lies behind the last row is ignored.
        encoding: one of :data:`ENCODINGS`.
        size: (width, height) in pixels.
        step: bytes from one row to the next, padding included; of NV12 and NV21, in both planes.
        big_endian: of 16-bit encodings, whether the high byte comes first.
        name: what to call the picture in an error.

    Raises:
        EncodingError: an encoding that is not read, or not in this size.
        UserError: bytes that do not fit size and step.
    """
    if encoding not in ENCODINGS:
        said = " ".join(encoding.split())
        raise EncodingError(f"{name}: encoding '{said}' cannot be decoded: it is not one of {', '.join(ENCODINGS)}")
    rows = np.frombuffer(bytes(data) if isinstance(data, list) else data, np.uint8)
    width, height = size
    if encoding in _YUV420:
        return _from_yuv420(rows, encoding, size, step, name)
    layout, dtype = _layout(encoding, big_endian)
    channels = 2 if layout in _YUV422 else _CHANNELS.get(layout, 1)
    row = width * channels * dtype.itemsize
    if width <= 0 or height <= 0 or step < row or len(rows) < height * step:
        raise _size_error(name, len(rows), size, encoding, step)
    tight = np.ascontiguousarray(rows[: height * step].reshape(height, step)[:, :row])
    pixels = tight.view(dtype).reshape((height, width) if channels == 1 else (height, width, channels))
    return _to_rgb(pixels.astype(dtype.newbyteorder("="), copy=False), layout, name)


def decode_picture(data: Any, picture_format: str = "", name: str = "image") -> RGB:
    """A compressed picture (JPEG, PNG, TIFF ...) as RGB, shape (H, W, 3), its pixels in the order they are stored.

    Args:
        data: bytes or an array of bytes; bytes behind the end of a JPEG or PNG are ignored, as some cameras pad.
        picture_format: sensor_msgs/CompressedImage's ``format``, "jpeg" or what image_transport writes, such as
            "bayer_rggb8; png compressed bayer_rggb8": a mosaic, unless the second half says that it was converted to
            grey or colours before it was compressed.
        name: what to call the picture in an error.

    Raises:
        UserError: the data is no complete picture, a depth image, or too large.
    """
    content, picture_format = bytes(data), " ".join(picture_format.split())
    if "compresseddepth" in picture_format.lower():
        raise UserError(f"{name}: format '{picture_format}' is a depth image, not a picture")
    if (kind := incomplete(content)) is not None:  # OpenCV would fill up with grey
        raise UserError(f"{name}: incomplete {kind} of {len(content)} bytes")
    nothing = UserError(f"{name}: {len(content)} bytes of format '{picture_format}' are not a picture")
    try:
        with Image.open(io.BytesIO(content), formats=PICTURE_FORMATS) as header:  # its first bytes only
            check_size(header, name)
            note_orientation(header, name)
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, TypeError, OverflowError, EOFError, KeyError, MemoryError, cv2.error):
        raise nothing from None
    except Image.DecompressionBombError:
        raise UserError(f"{name}: more than {MAX_IMAGE_PIXELS} pixels, more than any supported camera has") from None
    if pixels is None:
        raise nothing
    if pixels.ndim == 3 and "bayer" in picture_format and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]  # a mosaic that was compressed as a colour picture
    return from_opencv(pixels, _stored_layout(picture_format, pixels, name), name)


def from_opencv(pixels: Pixels, layout: str | None = None, name: str = "image") -> RGB:
    """An array as OpenCV reads a file (grey, BGR or BGRA, 8 or 16 bits) as RGB, shape (H, W, 3).

    Args:
        layout: "bayer_rggb" and the like, of a mosaic; None: as the number of channels says.

    Raises:
        UserError: another number type, such as a depth map's, or another number of channels.
    """
    if pixels.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{name}: pixels of type {pixels.dtype} are not a picture of 8 or 16 bits (a depth map?)")
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels not in (1, 3, 4):
        raise UserError(f"{name}: a picture of {channels} channels is neither grey nor colour")
    return _to_rgb(pixels, layout or {1: "mono", 3: "bgr", 4: "bgra"}[channels], name)


def incomplete(content: bytes) -> str | None:
    """ "JPEG" or "PNG" where one begins and its end is missing; padding may follow the end. None otherwise."""
    if content.startswith(b"\xff\xd8"):
        return None if _jpeg_ends(content) else "JPEG"
    if content.startswith(b"\x89PNG"):
        return None if _png_ends(content) else "PNG"
    return None


def check_size(picture: Image.Image, name: object) -> None:
    """Refuse a picture by the size in its header, before its pixels take memory.

    Raises:
        UserError: more than :data:`MAX_IMAGE_PIXELS`.
    """
    if picture.width * picture.height > MAX_IMAGE_PIXELS:
        raise UserError(
            f"{name}: {picture.width}x{picture.height} pixels, more than the {MAX_IMAGE_PIXELS} that are read"
        )


def orientation(picture: Image.Image) -> int:
    """The EXIF orientation of an opened picture: 1 upright as stored, 3 upside down, 6 and 8 on its side; 1 without."""
    if picture.format == "PNG" and "exif" not in picture.info:
        return 1  # else Pillow would decode the whole picture to look behind it
    try:
        found = picture.getexif().get(0x0112, 1)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, RuntimeError):
        return 1  # a damaged note says nothing
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def note_orientation(picture: Image.Image, name: object) -> None:
    """Warn of an EXIF rotation, which is not applied: the calibration belongs to the pixels as they are stored.

    Raises:
        UserError: a TIFF's, which every library here applies while it decodes.
    """
    if (turned := orientation(picture)) != 1:
        if picture.format == "TIFF":
            raise UserError(
                f"{name}: its orientation ({turned}: {_TURNS[turned]}) would turn the picture against its calibration; "
                "save the picture upright, without that tag"
            )
        warn_once(
            ("orientation", turned, os.path.dirname(str(name))),
            f"{name}: its EXIF orientation ({turned}: {_TURNS[turned]}) is not applied: pixels are taken as stored, to "
            "which the calibration must belong; save the picture upright, with a calibration for that, if it does not",
        )


def to_8_bits(pixels: NDArray[np.uint16], name: object) -> RGB:
    """16-bit pixels as 8-bit ones over their full range, rounded, as cv_bridge has it (x 255 / 65535).

    Cameras of 10, 12 or 14 bits often fill the lower bits only, which would come out black; so where the brightest
    pixel stays below 2^14, the smallest of :data:`DEPTHS` above it is taken as the full range, with a warning [ours].
    """
    brightest = int(pixels.max(initial=0))
    bits = next(bits for bits in DEPTHS if brightest < 1 << bits) if brightest else 16
    if bits != 16:
        warn_once(
            ("bits", bits, os.path.dirname(str(name))),
            f"{name}: a 16-bit picture whose brightest pixel is {brightest} of 65535 is taken as one of {bits} bits "
            f"(0 to {(1 << bits) - 1}); publish the full range of 16 bits, or 8 bits, if that is wrong",
        )
    scaled = cv2.convertScaleAbs(pixels, alpha=255 / ((1 << bits) - 1))
    return scaled.reshape(pixels.shape).astype(np.uint8, copy=False)


_TURNS = {
    2: "mirrored", 3: "upside down", 4: "upside down, mirrored", 5: "on its side, mirrored", 6: "on its side",
    7: "on its side, mirrored", 8: "on its side",
}  # fmt: skip


def _layout(encoding: str, big_endian: bool) -> tuple[str, np.dtype[Any]]:
    """ "bgr16" -> ("bgr", a 16-bit type)."""
    encoding = _OPENCV_NAMES.get(encoding, encoding)
    if encoding in _YUV422:
        return encoding, np.dtype(np.uint8)
    if encoding.endswith("16"):
        return encoding[:-2], np.dtype(">u2" if big_endian else "<u2")
    return encoding[:-1], np.dtype(np.uint8)


def _to_rgb(pixels: Pixels, layout: str, name: str) -> RGB:
    """Colours first, then the depth, as cv_bridge has it."""
    height, width = pixels.shape[:2]
    if layout in _YUV422 and width % 2:
        raise EncodingError(f"{name}: encoding '{layout}' cannot be decoded: its width must be even, got {width}")
    if layout in _BAYER and min(height, width) < 2:
        raise EncodingError(f"{name}: a Bayer mosaic of {width}x{height} has no colours")
    if layout in _BAYER or layout in _YUV422:
        pixels = cv2.cvtColor(pixels, (_BAYER | _YUV422)[layout])
    elif (code := _ORDERS[layout]) is not None:
        pixels = cv2.cvtColor(pixels, code)
    if pixels.dtype == np.uint16:
        pixels = to_8_bits(pixels, name)
    if pixels.ndim == 2:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    return pixels.astype(np.uint8, copy=False)


def _from_yuv420(data: NDArray[np.uint8], encoding: str, size: tuple[int, int], step: int, name: str) -> RGB:
    """A plane of brightness, then one of half as many rows with the two colours in turn.

    Drivers do not agree on what ``step`` is here; data of just 3/2 bytes a pixel has no padding whatever it says.
    """
    width, height = size
    if width <= 0 or height <= 0 or width % 2 or height % 2:
        raise EncodingError(f"{name}: encoding '{encoding}' cannot be decoded: its size must be even, got {size}")
    if len(data) == width * height * 3 // 2:
        step = width
    if step < width or len(data) < step * height * 3 // 2:
        raise _size_error(name, len(data), size, encoding, step)
    rows = data[: step * height * 3 // 2].reshape(height * 3 // 2, step)[:, :width]
    return cv2.cvtColor(np.ascontiguousarray(rows), _YUV420[encoding]).astype(np.uint8, copy=False)


def _size_error(name: str, length: int, size: tuple[int, int], encoding: str, step: int) -> UserError:
    return UserError(f"{name}: {length} bytes are no {size[0]}x{size[1]} {encoding} image with a step of {step}")


def _stored_layout(picture_format: str, pixels: Pixels, name: str) -> str | None:
    """The Bayer pattern of what is stored in a compressed message; None where it is grey or colour."""
    source, _, rest = (part.strip().lower() for part in picture_format.partition(";"))
    stored = re.search(r"compressed\s+(\S+)", rest)
    pattern = next((word for word in (stored[1] if stored else "", source) if word.startswith("bayer_")), None)
    if pattern is None:
        return None
    if pixels.ndim == 3:
        return None  # its colours were worked out before it was compressed
    if stored and stored[1].startswith(("mono", "bgr", "rgb")):
        warn_once(
            (picture_format, name),
            f"{name}: format '{picture_format}': the publisher made its Bayer image grey, so the colours are lost; "
            "publish PNG, or debayer before compressing",
        )
        return None
    layout = re.sub(r"(8|16)$", "", pattern)
    if layout not in _BAYER:
        raise UserError(f"{name}: format '{picture_format}' has no known Bayer pattern ({', '.join(_BAYER)})")
    return layout


_JPEG_MARKER: Callable[[bytes, int], re.Match[bytes] | None] = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]").search


def _jpeg_ends(content: bytes) -> bool:
    """Whether a JPEG's end marker is there: in its place, not in a preview or among what pads it."""
    at = 2
    while (marker := _JPEG_MARKER(content, at)) is not None:
        code, at = content[marker.start() + 1], marker.end()
        if code == 0xD9:
            return True
        if code not in (0x01, 0xD8):  # all others are followed by their length
            at += max(int.from_bytes(content[at : at + 2], "big"), 2)
    return False


def _png_ends(content: bytes) -> bool:
    """Whether a PNG's last chunk is there."""
    at = 8
    while at + 12 <= len(content):
        if content[at + 4 : at + 8] == b"IEND":
            return True
        at += 12 + int.from_bytes(content[at : at + 4], "big")
    return False
