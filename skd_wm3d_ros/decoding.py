"""Messages of one camera to an RGB picture and its rectified camera. What is malformed is a `Rejection`, never more."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from skd_core.camera import Camera
from skd_core.data.decoding import EncodingError
from skd_core.data.ros_messages import camera_from_info, decode_compressed, decode_raw, undistort, undistortion_maps
from skd_core.errors import UserError
from skd_wm3d_ros.rejection import Rejection


class Decoder:
    """Decodes pairs of messages; what a camera_info means is worked out once and kept until another one comes.

    A raw image (``rectified`` False) is undistorted with K and D to a pinhole image with the same K and the same
    orientation, so that boxes are in the frame that the image's header names; P and R, which belong to a rectified
    image, are not used then. Undistorting the image rather than the boxes keeps what the network sees a pinhole
    image, as in training.

    The camera's P projects from its own optical frame, which the header names, and not from that of the left camera of
    a stereo pair, where CameraInfo's P of the right one holds the baseline.
    """

    def __init__(self, image_topic: str, camera_info_topic: str, rectified: bool = True) -> None:
        self._image_topic, self._camera_info_topic, self._rectified = image_topic, camera_info_topic, rectified
        self._info: CameraInfo | None = None
        self._camera: Camera | None = None
        self._maps: tuple[NDArray[np.generic], NDArray[np.generic]] | None = None

    def __call__(self, image: Image | CompressedImage, info: CameraInfo) -> tuple[NDArray[np.uint8], Camera]:
        """Decode a pair.

        Returns:
            the picture, shape (H, W, 3), RGB, without distortion, and its camera.

        Raises:
            Rejection: malformed or of an unknown encoding, uncalibrated, or the sizes disagree; one line that names
                the topics.
        """
        camera = self._camera_of(info)
        picture = self._picture_of(image)
        if picture.shape[:2] != (camera.height, camera.width):
            raise Rejection(
                "size",
                f"{self._image_topic} is {picture.shape[1]}x{picture.shape[0]}, but {self._camera_info_topic} is for "
                f"{camera.width}x{camera.height} (after ROI and binning)",
            )
        return undistort(picture, self._maps), camera

    def _camera_of(self, info: CameraInfo) -> Camera:
        if self._camera is None or self._info is None or not _same_camera(self._info, info):
            self._camera = None  # also where the new one is no good
            name = f"{self._camera_info_topic} (for {self._image_topic})"
            try:
                camera = camera_from_info(info, name, self._rectified).centred()
                self._maps = None if self._rectified else undistortion_maps(info, camera, name)
            except UserError as error:
                raise Rejection("calibration", str(error)) from None
            self._info, self._camera = info, camera
        return self._camera

    def _picture_of(self, image: Image | CompressedImage) -> NDArray[np.uint8]:
        """The picture as :mod:`skd_core.data.decoding` reads it, in bags too."""
        kind = "compressed data" if isinstance(image, CompressedImage) else "size"
        try:
            if isinstance(image, CompressedImage):
                return decode_compressed(image, self._image_topic)
            return decode_raw(image, self._image_topic)
        except EncodingError as error:
            raise Rejection("encoding", str(error)) from None
        except UserError as error:
            raise Rejection(kind, str(error)) from None


def _same_camera(a: CameraInfo, b: CameraInfo) -> bool:
    """Whether two messages describe the same camera; their headers may differ."""
    names = ("height", "width", "binning_x", "binning_y", "distortion_model", "d", "roi")
    # bytes: comparing arrays of 9 and 12 numbers takes longer than all the rest
    same_matrices = a.k.tobytes() == b.k.tobytes() and a.p.tobytes() == b.p.tobytes()
    return same_matrices and all(getattr(a, name) == getattr(b, name) for name in names)
