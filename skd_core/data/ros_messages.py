"""ROS message fields to and from the project's types, by attribute access only: no ROS and no bag library is imported.

The node (rclpy's message classes) and the bag reader (rosbags' dataclasses) share these, so that a frame means the same
in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from skd_core.camera import FISHEYE, Camera
from skd_core.data.decoding import MAX_IMAGE_PIXELS, decode_picture, decode_pixels
from skd_core.errors import UserError

Maps = tuple[NDArray[Any], NDArray[Any]]
"""What :func:`cv2.remap` takes: where in the raw image each pixel comes from."""

DISTORTION_MODELS = {
    "plumb_bob": (4, 5),
    "rational_polynomial": (8, 12, 14),
    "equidistant": (4,),
    "fisheye": (4,),
}
"""Distortion models of sensor_msgs/CameraInfo and the lengths of their D; zeros behind the last one say nothing."""


def stamp_nanoseconds(header: Any) -> int:
    """Time stamp of a std_msgs/Header in nanoseconds."""
    return int(header.stamp.sec) * 1_000_000_000 + int(header.stamp.nanosec)


def camera_from_info(info: Any, name: str = "camera_info", rectified: bool = True) -> Camera:
    """The pinhole camera of a sensor_msgs/CameraInfo, after its ROI and binning.

    Args:
        info: the message.
        name: what to call it in an error.
        rectified: True: P, of the rectified image; False: K, of the raw image once it is undistorted
            (:func:`undistortion_maps`).

    Raises:
        UserError: uncalibrated (K[0] = 0) or unusable; the message begins with ``name``.
    """
    if info.k[0] == 0:
        raise UserError(f"{name}: uncalibrated (K[0] = 0); calibrate the camera or publish its calibration")
    for key in ("k", "p", "d"):
        if not np.isfinite(np.asarray(getattr(info, key), np.float64)).all():
            raise UserError(f"{name}: {key.upper()} holds NaN or infinity; check the calibration")
    if rectified and info.p[0] == 0 and is_distorted(info):
        raise UserError(f"{name}: has distortion but no P; rectify the images first or set image_is_rectified to false")
    roi = {key: getattr(info.roi, key) for key in ("x_offset", "y_offset", "width", "height")}
    names = ("width", "height", "k", "binning_x", "binning_y", *(("p", "d") if rectified else ()))
    return Camera.from_ros({key: getattr(info, key) for key in names} | {"roi": roi}, name)


def is_distorted(info: Any) -> bool:
    """Whether a CameraInfo tells of distortion in the raw image; a fisheye has it with D = 0 too."""
    return bool(np.any(info.d)) or info.distortion_model in FISHEYE


def undistortion_maps(info: Any, camera: Camera, name: str = "camera_info") -> Maps | None:
    """Maps for ``cv2.remap`` from the raw image of a CameraInfo to the undistorted one; None without distortion.

    The new image has the same K and the same orientation (no R), so it stays in the frame of the raw image. What
    barrel distortion brings in from beyond the field of view of K is lost, what lies outside the raw image is black.

    Args:
        info: the message; its D is dimensionless, so ROI and binning do not change it.
        camera: what :func:`camera_from_info` made of it with ``rectified=False``.
        name: what to call it in an error.

    Raises:
        UserError: an unknown distortion model, one with a wrong number of coefficients, or numbers that cannot be.
    """
    model, D = info.distortion_model, np.asarray(info.d, np.float64)
    if not is_distorted(info):
        return None
    if model not in DISTORTION_MODELS:
        said = " ".join(model.split())
        raise UserError(f"{name}: distortion_model '{said}' is not one of {', '.join(DISTORTION_MODELS)}")
    D = _fitting(D, DISTORTION_MODELS[model])
    if len(D) not in DISTORTION_MODELS[model]:
        lengths = " or ".join(map(str, DISTORTION_MODELS[model]))
        raise UserError(f"{name}: distortion_model '{model}' needs {lengths} coefficients in D, got {len(D)}")
    K, size = camera.K.numpy(), (camera.width, camera.height)
    if camera.width * camera.height > MAX_IMAGE_PIXELS:
        raise UserError(
            f"{name}: {camera.width}x{camera.height} pixels, more than the {MAX_IMAGE_PIXELS} that are read"
        )
    make_maps = cv2.fisheye.initUndistortRectifyMap if model in FISHEYE else cv2.initUndistortRectifyMap
    try:
        return make_maps(K, D, np.eye(3), K, size, cv2.CV_16SC2)
    except cv2.error:
        raise UserError(f"{name}: the image cannot be undistorted with this K and D; check the calibration") from None


def _fitting(D: NDArray[np.float64], lengths: Sequence[int]) -> NDArray[np.float64]:
    """D of the least length of a model that holds all its coefficients but the zeros at the end; else as it is.

    Drivers send plumb_bob with 8 and rational_polynomial with 14, the rest being zeros; a D that is too short for its
    model is a mistake and stays one.
    """
    used = int(np.flatnonzero(D)[-1]) + 1 if D.any() else 0
    return next((D[:length] for length in lengths if used <= length <= len(D)), D)


def undistort(image: NDArray[np.uint8], maps: Maps | None) -> NDArray[np.uint8]:
    """An image, shape (H, W, 3), without distortion: as it is where :func:`undistortion_maps` gave None."""
    return image if maps is None else cv2.remap(image, *maps, cv2.INTER_LINEAR).astype(np.uint8, copy=False)


def decode_raw(image: Any, name: str = "image") -> NDArray[np.uint8]:
    """A sensor_msgs/Image as RGB, shape (H, W, 3); see :func:`skd_core.data.decoding.decode_pixels`.

    Raises:
        UserError: an encoding that is not read, or bytes that do not fit size and step.
    """
    size, big_endian = (image.width, image.height), bool(getattr(image, "is_bigendian", False))
    return decode_pixels(image.data, image.encoding, size, image.step, big_endian, name)


def decode_compressed(image: Any, name: str = "image") -> NDArray[np.uint8]:
    """A sensor_msgs/CompressedImage as RGB, shape (H, W, 3); see :func:`skd_core.data.decoding.decode_picture`.

    Raises:
        UserError: the data is no complete picture.
    """
    return decode_picture(image.data, image.format, name)
