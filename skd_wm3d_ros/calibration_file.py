"""A calibration file in the place of camera_info, for cameras that publish none."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import message_filters
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from skd_core.camera import Camera
from skd_core.errors import UserError
from skd_core.yaml_files import read_yaml

NOMINAL = (1242, 375)  # size of KITTI's images, to look at a calibration that holds none
UNKNOWN = (1, 1)  # size of an image that cannot be decoded: it will be rejected for that


class CalibrationFile:
    """Makes the camera_info of each image of a camera, with the image's header.

    Args:
        path: of the file, see :meth:`skd_core.camera.Camera.from_file`.
        rectified: whether the images are; others need a ROS calibration with K and D.

    Raises:
        UserError: an unreadable or malformed file, or one without what such images need.
    """

    def __init__(self, path: str | Path, rectified: bool = True) -> None:
        self.path = str(Path(path).expanduser())
        self._info = _rectified(self.path) if rectified else _raw(self.path)

    def __call__(self, image: Image | CompressedImage) -> CameraInfo:
        """The camera_info of an image; of its size where the file holds none."""
        info = self._info
        made = CameraInfo(
            header=image.header,
            width=info.width,
            height=info.height,
            distortion_model=info.distortion_model,
            d=info.d,
            k=info.k,
            r=info.r,
            p=info.p,
        )
        if not info.width:
            made.width, made.height = size_of(image)
        return made


class CalibrationSource(message_filters.SimpleFilter):
    """In the place of a subscription to camera_info: one for each image of a filter."""

    sub = None

    def __init__(self, calibration: CalibrationFile) -> None:
        super().__init__()
        self._calibration = calibration

    def getTopic(self) -> str:
        """What messages about the calibration name."""
        return self._calibration.path

    def follow(self, images: message_filters.SimpleFilter) -> None:
        """Make one for each image from here on, after what is registered already."""
        images.registerCallback(lambda image: self.signalMessage(self._calibration(image)))


def size_of(image: Image | CompressedImage) -> tuple[int, int]:
    """Width and height in pixels; of a compressed image from its first bytes."""
    if isinstance(image, Image):
        return image.width or UNKNOWN[0], image.height or UNKNOWN[1]
    try:
        with PillowImage.open(io.BytesIO(image.data), formats=("JPEG", "PNG")) as picture:
            return picture.size
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, PillowImage.DecompressionBombError):
        return UNKNOWN


def _rectified(path: str) -> CameraInfo:
    try:
        camera, size = Camera.from_file(path), None
    except UserError as error:
        try:
            camera, size = Camera.from_file(path, *NOMINAL), (0, 0)  # KITTI's files hold no size
        except UserError:
            raise error from None
    width, height = size or (camera.width, camera.height)
    return CameraInfo(
        width=width,
        height=height,
        k=camera.K.flatten().tolist(),
        r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        p=camera.P.flatten().tolist(),
    )


def _raw(path: str) -> CameraInfo:
    content: Any = read_yaml(path, first=True)
    fields = content if isinstance(content, Mapping) else {}

    def numbers(*names: str) -> list[float]:
        value: Any = next((fields[name] for name in names if fields.get(name) is not None), [])
        return [float(number) for number in (value["data"] if isinstance(value, Mapping) else value)]

    try:
        return CameraInfo(
            width=int(fields["image_width"] if "image_width" in fields else fields["width"]),
            height=int(fields["image_height"] if "image_height" in fields else fields["height"]),
            distortion_model=str(fields.get("distortion_model") or "plumb_bob"),
            d=numbers("d", "D", "distortion_coefficients"),
            k=numbers("k", "K", "camera_matrix"),
        )
    except (AssertionError, KeyError, TypeError, ValueError, OverflowError):
        raise UserError(
            f"{path}: holds no size, K and D as a ROS calibration does, which raw images need; "
            "rectify them and set image_is_rectified"
        ) from None
