"""Poses and their covariance in another frame. tf2_ros is imported only where a target frame is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time as TimeMessage
from numpy.typing import NDArray
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time
from scipy.spatial.transform import Rotation

from skd_core.errors import UserError
from skd_wm3d_ros.rejection import Rejection

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Transform:
    """A rigid motion from one frame to another: ``q = R p + t``.

    Attributes:
        quaternion: (x, y, z, w), of unit length.
        translation: (x, y, z), metres.
    """

    quaternion: tuple[float, float, float, float]
    translation: tuple[float, float, float]

    @staticmethod
    def from_message(message: Any) -> Transform:
        """From a geometry_msgs/Transform.

        Raises:
            ValueError: the quaternion is zero or holds NaN.
        """
        q = np.array([getattr(message.rotation, axis) for axis in "xyzw"])
        t = tuple(float(getattr(message.translation, axis)) for axis in "xyz")
        norm = np.linalg.norm(q)
        if not (norm > 0.5 and np.isfinite([*q, *t]).all()):
            raise ValueError(f"no rotation: quaternion {q.tolist()}, translation {t}")
        return Transform(tuple((q / norm).tolist()), t)  # type: ignore[arg-type]

    @property
    def rotation(self) -> Array:
        """shape (3, 3), R."""
        return Rotation.from_quat(self.quaternion).as_matrix()

    def points(self, xyz: Array) -> Array:
        """Points, shape (..., 3), in the new frame."""
        if self is IDENTITY:
            return xyz
        return xyz @ self.rotation.T + np.array(self.translation)

    def orientations(self, xyzw: Array) -> Array:
        """Orientations as quaternions, shape (N, 4), in the new frame: the product of both rotations."""
        if self is IDENTITY or not len(xyzw):
            return xyzw
        return (Rotation.from_quat(self.quaternion) * Rotation.from_quat(xyzw)).as_quat()

    def covariances(self, covariance: Array) -> Array:
        """Covariances of (x, y, z, rotX, rotY, rotZ), shape (N, 6, 6), about the new frame's axes: ``B C B^T`` with
        B = diag(R, R), as rotations are about fixed axes."""
        if self is IDENTITY:
            return covariance
        B = np.kron(np.eye(2), self.rotation)
        return B @ covariance @ B.T


IDENTITY = Transform((0.0, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0))


class FrameLookup:
    """Looks up transforms to one target frame, always at the stamp of the image and never the latest.

    Args:
        node: receives /tf and /tf_static; its executor must run while another thread waits here.
        target: the frame to transform to.
        buffer: a tf2_ros.Buffer; one with a listener is made if it is None.

    Raises:
        UserError: tf2_ros is not installed.
    """

    def __init__(self, node: Node, target: str, buffer: Any = None) -> None:
        self.target = target
        self._listener: Any = None
        if buffer is None:
            try:
                from tf2_ros import Buffer, TransformListener
            except ImportError as error:
                raise UserError(
                    f"target_frame '{target}' needs tf2_ros ({error}): sudo apt install ros-$ROS_DISTRO-tf2-ros-py, "
                    "or leave target_frame empty"
                ) from None
            buffer = Buffer()
            self._listener = TransformListener(buffer, node)
        self._buffer = buffer

    def __call__(self, frame: str, stamp: TimeMessage, timeout: float) -> Transform:
        """The transform from ``frame`` at ``stamp``; waits for it for at most ``timeout`` seconds.

        Raises:
            Rejection: there is none.
        """
        try:
            found = self._buffer.lookup_transform(
                self.target, frame, Time.from_msg(stamp), timeout=Duration(seconds=timeout)
            )
            return Transform.from_message(found.transform)
        except Exception as error:  # tf2's own types, which only exist where tf2_ros is installed
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise Rejection(
                "transform", f"no transform from '{frame}' to '{self.target}' at the image's stamp: {reason}"
            ) from None

    def forget(self) -> None:
        """Drop what moves, for time went back: tf2 refuses transforms older than the ten seconds that it keeps."""
        self._buffer.clear()

    def destroy(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.unregister()
            self._listener = None
