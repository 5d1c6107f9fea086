"""A calibration file used instead of camera_info, for cameras that publish none."""

from __future__ import annotations

import io
from pathlib import Path

import message_filters
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, RegionOfInterest

from skd_core.calibration import Calibration, read_calibration
from skd_core.camera import Camera
from skd_core.data.ros_messages import camera_from_info, undistortion_maps
from skd_core.errors import UserError

UNKNOWN = (1, 1)  # size of an image that cannot be decoded: it will be rejected for that


class CalibrationFile:
    """Makes the camera_info of each image of a camera, with the image's header.

    Args:
        path: of the file, or ``FILE:NAME``, of any kind in :mod:`skd_core.calibration`.
        rectified: whether the images are: P is taken; of others K and D.

    Raises:
        UserError: an unreadable or malformed file, or one without what such images need.
    """

    def __init__(self, path: str | Path, rectified: bool = True) -> None:
        self.path = str(Path(path).expanduser())
        found = read_calibration(self.path)
        self._sized = found.width > 0 and found.height > 0
        size = (found.width, found.height) if self._sized else _likely_size(found)
        self._info = _rectified(self.path, None if self._sized else size) if rectified else _raw(found, size)
        self._size = size

    def __call__(self, image: Image | CompressedImage) -> CameraInfo:
        """The camera_info of an image; of its size where the file holds none."""
        info = self._info
        size = (info.width, info.height) if self._sized else size_of(image)
        if size not in (self._size, UNKNOWN) and not self._sized:
            self._size = size
            matrix = [*info.p] if info.p[0] else [*info.k[:3], 0.0, *info.k[3:6], 0.0, *info.k[6:], 0.0]
            Camera.from_ros({"width": size[0], "height": size[1], "p": matrix}, self.path).check_center(self.path)
        return CameraInfo(
            header=image.header,
            width=size[0],
            height=size[1],
            distortion_model=info.distortion_model,
            d=info.d,
            k=info.k,
            r=info.r,
            p=info.p,
            binning_x=info.binning_x,
            binning_y=info.binning_y,
            roi=info.roi,
        )


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


def _likely_size(found: Calibration) -> tuple[int, int]:
    """Of images whose principal point is in the middle, where the file does not say."""
    cx, cy = (found.p[2], found.p[6]) if found.p[0] else (found.k[2], found.k[5])
    return max(round(2 * cx), 1), max(round(2 * cy), 1)


def _rectified(path: str, size: tuple[int, int] | None) -> CameraInfo:
    camera = Camera.from_file(path, *(size or (None, None)))
    return CameraInfo(
        width=camera.width,
        height=camera.height,
        k=camera.K.flatten().tolist(),
        r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        p=camera.P.flatten().tolist(),
    )


def _raw(found: Calibration, size: tuple[int, int]) -> CameraInfo:
    if found.k[0] == 0:
        raise UserError(
            f"{found.source}: this {found.kind} calibration has no K and D, which raw images need; rectify them and "
            "set image_is_rectified"
        )
    info = CameraInfo(
        width=size[0],
        height=size[1],
        distortion_model=found.distortion_model,
        d=list(found.d),
        k=list(found.k),
        binning_x=found.binning_x,
        binning_y=found.binning_y,
        roi=RegionOfInterest(**vars(found.roi)),
    )
    undistortion_maps(info, camera_from_info(info, found.source, rectified=False), found.source)  # fails now or never
    return info
