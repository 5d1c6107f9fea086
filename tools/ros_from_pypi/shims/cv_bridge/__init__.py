"""ROS image messages to numpy arrays and back, for machines without a ROS distribution.

The calls this project makes of ROS 2's `cv_bridge`, with the same names, arguments and documented behaviour.
`tools/ros_from_pypi/install.py` installs it only where the real package is absent. One difference on purpose: row
padding (`step`) is honoured whatever its size; the real package needs it to be a multiple of the pixel's size.
"""

from __future__ import annotations

import array
import re
import sys
from typing import Any

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

__all__ = ["CvBridge", "CvBridgeError"]

_DEPTHS = {
    "8U": "uint8",
    "8S": "int8",
    "16U": "uint16",
    "16S": "int16",
    "32S": "int32",
    "32F": "float32",
    "64F": "float64",
}
_CHANNELS = {"mono": 1, "bgr": 3, "rgb": 3, "bgra": 4, "rgba": 4}
# OpenCV names a Bayer pattern by its second row: ROS's RGGB is OpenCV's BayerBG.
_OPENCV_BAYER = {"bayer_rggb": "BayerBG", "bayer_bggr": "BayerRG", "bayer_gbrg": "BayerGR", "bayer_grbg": "BayerGB"}
_OPENCV_YUV = {"yuv422": "UYVY", "uyvy": "UYVY", "yuv422_yuy2": "YUY2", "yuyv": "YUY2"}


class CvBridgeError(TypeError):
    """A conversion that is not possible."""


def _colour(encoding: str) -> str | None:
    """An encoding's colour layout without its depth (`mono`, `bgr`, `bayer_rggb` ...); None for `8UC3` and the like."""
    if encoding in _OPENCV_YUV:
        return encoding
    layout = re.fullmatch(r"(.*?)(?:8|16)", encoding)
    return layout[1] if layout and (layout[1] in _CHANNELS or layout[1] in _OPENCV_BAYER) else None


def _conversion_code(source: str, target: str) -> int:
    """OpenCV's `COLOR_<source>2<target>` for two colour layouts."""
    to = "GRAY" if target == "mono" else target.upper()
    if source in _OPENCV_YUV:
        name = f"COLOR_YUV2{to}_{_OPENCV_YUV[source]}"
    elif source in _OPENCV_BAYER:
        name = f"COLOR_{_OPENCV_BAYER[source]}2{to}"
    else:
        name = f"COLOR_{'GRAY' if source == 'mono' else source.upper()}2{to}"
    code = getattr(cv2, name, None)
    # OpenCV has Bayer-to-RGBA codes; cv_bridge offers mono, rgb and bgr only.
    if code is None or (source in _OPENCV_BAYER and target not in ("mono", "rgb", "bgr")):
        raise CvBridgeError(f"no conversion from [{source}] to [{target}]")
    return int(code)


def _to_depth(image: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Change the number type as OpenCV's `convertTo` does: 8 <-> 16 bit rescaled, integers rounded and saturated."""
    if image.dtype == dtype:
        return image
    scale = {(1, 2): 65535 / 255, (2, 1): 255 / 65535}.get((image.dtype.itemsize, dtype.itemsize), 1.0)
    scaled = image * np.float64(scale)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        scaled = np.clip(np.rint(scaled), limits.min, limits.max)
    return scaled.astype(dtype)


class CvBridge:
    """Converts `sensor_msgs/Image` and `CompressedImage` messages to numpy arrays and back."""

    def encoding_to_dtype_with_channels(self, encoding: str) -> tuple[str, int]:
        """`"bgr8"` -> `("uint8", 3)`. Raises `CvBridgeError` for an encoding unknown to ROS."""
        generic = re.fullmatch(r"(8U|8S|16U|16S|32S|32F|64F)(?:C([0-9]+))?", encoding)
        if generic:
            return _DEPTHS[generic[1]], int(generic[2] or 1)
        colour = _colour(encoding)
        if colour is None:
            raise CvBridgeError(f"unknown image encoding [{encoding}]")
        if colour in _OPENCV_YUV:
            return "uint8", 2
        return ("uint16" if encoding.endswith("16") else "uint8"), _CHANNELS.get(colour, 1)

    def imgmsg_to_cv2(self, img_msg: Image, desired_encoding: str = "passthrough") -> np.ndarray:
        """The image as an array of shape (height, width) or (height, width, channels), in this machine's byte order.

        `desired_encoding` is a ROS encoding, or `passthrough` for the message's own. Raises `CvBridgeError` where the
        encoding is unknown, the conversion does not exist or the data do not fit height, width and step.
        """
        name, channels = self.encoding_to_dtype_with_channels(img_msg.encoding)
        dtype = np.dtype(name).newbyteorder(">" if img_msg.is_bigendian else "<")
        height, width, step = img_msg.height, img_msg.width, img_msg.step
        row = width * channels * dtype.itemsize
        data = np.frombuffer(bytes(img_msg.data) if isinstance(img_msg.data, list) else img_msg.data, dtype=np.uint8)
        if step < row or data.size < height * step:
            raise CvBridgeError(
                f"malformed image: {width}x{height} {img_msg.encoding} needs step >= {row} and step * height bytes, "
                f"but step is {step} and there are {data.size} bytes"
            )
        rows = np.ascontiguousarray(data[: height * step].reshape(height, step)[:, :row])
        image = rows.view(dtype).reshape((height, width) if channels == 1 else (height, width, channels))
        return self._convert(image.astype(name, copy=False), img_msg.encoding, desired_encoding)

    def compressed_imgmsg_to_cv2(
        self, cmprs_img_msg: CompressedImage, desired_encoding: str = "passthrough"
    ) -> np.ndarray:
        """The decoded JPEG, PNG ...: `passthrough` as stored, in OpenCV's channel order (mono, BGR or BGRA).

        Raises `CvBridgeError` where the data cannot be decoded or converted.
        """
        data = np.frombuffer(bytes(cmprs_img_msg.data), dtype=np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
        if image is None:
            raise CvBridgeError(
                f"cannot decode a compressed image of {data.size} bytes with format [{cmprs_img_msg.format}]"
            )
        layout = {2: "mono", 3: "bgr" if image.shape[-1] == 3 else "bgra"}[image.ndim]
        return self._convert(image, f"{layout}{image.dtype.itemsize * 8}", desired_encoding)

    def cv2_to_imgmsg(self, cvim: np.ndarray, encoding: str = "passthrough", header: Header | None = None) -> Image:
        """An `Image` message from an array; `passthrough` names the encoding after the array's type (`8UC3`).

        Raises `TypeError` for what is no array and `CvBridgeError` where array and encoding do not fit.
        """
        channels = self._channels(cvim)
        own = f"{dict(map(reversed, _DEPTHS.items())).get(cvim.dtype.name)}C{channels}"
        if encoding != "passthrough" and self.encoding_to_dtype_with_channels(encoding) != (cvim.dtype.name, channels):
            raise CvBridgeError(f"[{encoding}] does not fit an image of type {own}")
        order = cvim.dtype.byteorder
        message = Image(
            height=cvim.shape[0],
            width=cvim.shape[1],
            encoding=own if encoding == "passthrough" else encoding,
            is_bigendian=order == ">" or (order == "=" and sys.byteorder == "big"),
            step=cvim.shape[1] * channels * cvim.dtype.itemsize,
            data=array.array("B", cvim.tobytes()),
        )
        if header is not None:
            message.header = header
        return message

    def cv2_to_compressed_imgmsg(self, cvim: np.ndarray, dst_format: str = "jpg") -> CompressedImage:
        """A `CompressedImage` from an array in OpenCV's channel order; `dst_format` is a file suffix OpenCV writes."""
        self._channels(cvim)
        try:
            _, encoded = cv2.imencode(f".{dst_format}", cvim)
        except cv2.error as error:
            raise CvBridgeError(f"cannot encode an image of shape {cvim.shape} as [{dst_format}]: {error}") from error
        return CompressedImage(format=dst_format, data=array.array("B", encoded.tobytes()))

    def _convert(self, image: np.ndarray, source: str, target: str) -> np.ndarray:
        if target in ("passthrough", source):
            return image
        dtype, channels = self.encoding_to_dtype_with_channels(target)
        colour, target_colour = _colour(source), _colour(target)
        if colour is None and target_colour is not None:
            raise CvBridgeError(f"[{source}] says nothing about colour, so it cannot become [{target}]")
        if target_colour is None:
            if self.encoding_to_dtype_with_channels(source)[1] != channels:
                raise CvBridgeError(f"[{source}] and [{target}] differ in their number of channels")
        elif colour != target_colour:
            image = cv2.cvtColor(image, _conversion_code(str(colour), target_colour))
        return _to_depth(image, np.dtype(dtype))

    @staticmethod
    def _channels(cvim: Any) -> int:
        if not isinstance(cvim, np.ndarray):
            raise TypeError(f"an image must be a numpy array, not {type(cvim).__name__}")
        if cvim.ndim not in (2, 3) or cvim.dtype.name not in _DEPTHS.values():
            raise CvBridgeError(f"not an image: an array of shape {cvim.shape} and type {cvim.dtype}")
        return 1 if cvim.ndim == 2 else int(cvim.shape[2])
