"""Camera: one projection matrix and an image size, which always change together.

Image coordinates are continuous: pixel column ``i`` covers ``[i, i + 1)``, its centre is ``i + 0.5``. So a resize is
``u' = s u`` (method: Networks; ``P' = diag(sx, sy, 1) P`` [peer]), a flip ``u' = W - u``, a crop ``u' = u - x0``, and
``roi_align(..., aligned=True)`` samples where we mean. Calibrations are taken as they are; KITTI's and OpenCV's put
pixel centres on whole numbers, half a pixel away, which is far below the noise of a 2D box.

The camera frame is the optical one of REP 103: x right, y down, z forward, metres.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skd_core.calibration import Calibration, read_calibration, read_kitti
from skd_core.errors import UserError
from skd_core.notes import warn_once

MIDDLE = ((0.3, 0.7), (0.25, 0.75))
"""Where a principal point is expected, in units of the image's width and height."""

FISHEYE = ("equidistant", "fisheye")
"""Distortion models with r = f * theta: no pinhole even where D is 0."""


def project(P: Tensor, xyz: Tensor) -> Tensor:
    """Project points to the image.

    Args:
        P: shape (..., 3, 4), projection matrices; leading dimensions broadcast against those of ``xyz``.
        xyz: shape (..., N, 3), points in the camera frame, metres.

    Returns:
        shape (..., N, 2), pixels (u, v). Meaningless where a point lies behind the image plane.
    """
    P = P.to(xyz)
    uvw = xyz @ P[..., :3].transpose(-1, -2) + P[..., None, :, 3]
    return uvw[..., :2] / uvw[..., 2:]


def unproject(P: Tensor, uv: Tensor, z: Tensor) -> Tensor:
    """Points of given depth that project to given pixels: the inverse of :func:`project` for any P.

    For KITTI's P this is ``x = ((u - cx) z - P[0,3]) / fx`` [peer] (method: Decoding), with P[2,3] honoured too.

    Args:
        P: shape (..., 3, 4).
        uv: shape (..., N, 2), pixels.
        z: shape (..., N), depth along the optical axis, metres.

    Returns:
        shape (..., N, 3), points in the camera frame, metres.
    """
    P = P.to(uv)[..., None, :, :]
    u, v = uv.unbind(-1)
    w = P[..., 2, 2] * z + P[..., 2, 3]  # homogeneous scale, but for its x and y parts
    a, b = P[..., 0, 0] - u * P[..., 2, 0], P[..., 0, 1] - u * P[..., 2, 1]
    c, d = P[..., 1, 0] - v * P[..., 2, 0], P[..., 1, 1] - v * P[..., 2, 1]
    r = u * w - P[..., 0, 2] * z - P[..., 0, 3]
    s = v * w - P[..., 1, 2] * z - P[..., 1, 3]
    det = a * d - b * c
    return torch.stack([(d * r - b * s) / det, (a * s - c * r) / det, z.expand_as(u)], -1)


def from_center(P: Tensor, xyz: Tensor) -> Tensor:
    """Points as the camera sees them: in its own optical frame, whose origin is the optical centre and not P's.

    ``X_own = X + K^-1 P[:, 3]`` as ``P = K [I | offset]``; the same points where P holds no offset.

    Args:
        P: shape (..., 3, 4), with a last row of 0 0 1 t.
        xyz: shape (..., 3), points in the frame from which P projects, metres.

    Returns:
        shape (..., 3), metres; its last is z + t.
    """
    P = P.to(xyz)
    nowhere = torch.zeros_like(P[..., None, :2, 3])
    return xyz - unproject(P, nowhere, -P[..., None, 2, 3])[..., 0, :]  # the optical centre is where w = z + t = 0


@dataclass(frozen=True, eq=False)
class Camera:
    """A rectified pinhole camera.

    Attributes:
        P: shape (3, 4), float64, projection matrix from the camera frame to pixels, KITTI's P2 or CameraInfo's P.
        width: image width in pixels.
        height: image height in pixels.

    Raises:
        UserError: P is not a finite 3x4 matrix with positive focal lengths, or the size is not positive.
    """

    P: Tensor
    width: int
    height: int

    def __post_init__(self) -> None:
        P = torch.as_tensor(self.P, dtype=torch.float64)
        if P.shape != (3, 4):
            raise UserError(f"camera: P must be 3x4, got {tuple(P.shape)}")
        if not bool(P.isfinite().all()):
            raise UserError("camera: P holds NaN or infinity; check the calibration")
        if not (P[0, 0] > 0 and P[1, 1] > 0):
            raise UserError(f"camera: focal lengths must be positive, got fx={P[0, 0]:g} fy={P[1, 1]:g}; uncalibrated?")
        if not torch.allclose(P[2, :3], P.new_tensor([0, 0, 1])):
            raise UserError(f"camera: P's last row must be 0 0 1 t, got {' '.join(f'{v:g}' for v in P[2].tolist())}")
        if self.width <= 0 or self.height <= 0:
            raise UserError(f"camera: image size must be positive, got {self.width}x{self.height}")
        object.__setattr__(self, "P", P)

    # -- intrinsics -------------------------------------------------------------------------------------------------
    @property
    def K(self) -> Tensor:
        """shape (3, 3), the left part of P."""
        return self.P[:, :3]

    @property
    def fx(self) -> float:
        return float(self.P[0, 0])

    @property
    def fy(self) -> float:
        return float(self.P[1, 1])

    @property
    def cx(self) -> float:
        return float(self.P[0, 2])

    @property
    def cy(self) -> float:
        return float(self.P[1, 2])

    @property
    def offset(self) -> Tensor:
        """shape (3,), float64, metres: what leads from the frame in which P projects to the camera's own optical frame,
        whose origin is the optical centre: ``X_own = X + offset``, as ``P = K [I | offset]``.

        Of the right camera of a stereo pair, whose P holds ``-fx B``, it is (-B, 0, 0); of KITTI's camera 2, 6 cm.
        """
        return from_center(self.P, self.P.new_zeros(3))

    def centred(self) -> Camera:
        """The same camera with P projecting from its own optical frame: the frame that a ROS header names."""
        return Camera(torch.cat([self.K, self.K.new_zeros(3, 1)], 1), self.width, self.height)

    # -- geometry ---------------------------------------------------------------------------------------------------
    def project(self, xyz: Tensor) -> Tensor:
        """(N, 3) metres -> (N, 2) pixels; see :func:`project`."""
        return project(self.P, xyz)

    def unproject(self, uv: Tensor, z: Tensor) -> Tensor:
        """(N, 2) pixels and (N,) depths -> (N, 3) metres; see :func:`unproject`."""
        return unproject(self.P, uv, z)

    def check_center(self, name: object) -> None:
        """Warn of a principal point far from the middle: a calibration of another camera, or of another resolution."""
        across, down = self.cx / self.width, self.cy / self.height
        if not (MIDDLE[0][0] <= across <= MIDDLE[0][1] and MIDDLE[1][0] <= down <= MIDDLE[1][1]):
            warn_once(
                ("center", self.width, self.height, Path(str(name)).parent),
                f"{name}: its principal point ({self.cx:.0f}, {self.cy:.0f}) is far from the middle of the "
                f"{self.width}x{self.height} image: if it is a calibration of another camera or resolution, all "
                "distances are wrong; only for images cut out of larger ones this is right",
            )

    # -- what happens to the image happens to P ------------------------------------------------------------------------
    def crop(self, x0: int, y0: int, width: int, height: int) -> Camera:
        """Camera of the image's window whose top left pixel is (x0, y0); the window may reach outside (padding)."""
        M = torch.tensor([[1, 0, -x0], [0, 1, -y0], [0, 0, 1]], dtype=torch.float64)
        return Camera(M @ self.P, width, height)

    def resize(self, width: int, height: int) -> Camera:
        """Camera of the image scaled to width x height; fx and fy scale apart."""
        M = torch.diag(torch.tensor([width / self.width, height / self.height, 1.0], dtype=torch.float64))
        return Camera(M @ self.P, width, height)

    def flip(self) -> Camera:
        """Camera of the image mirrored left to right, in a world mirrored too (x -> -x), so that fx stays positive."""
        M = torch.tensor([[-1, 0, self.width], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
        N = torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64))
        return Camera(M @ self.P @ N, self.width, self.height)

    # -- where cameras come from --------------------------------------------------------------------------------------
    @staticmethod
    def from_kitti(path: str | Path, width: int, height: int, key: str = "P2") -> Camera:
        """Read one ``P`` line of a KITTI calibration file (object, tracking or raw: ``P2`` or ``P_rect_02``).

        Raises:
            UserError: missing file, missing line, or not 12 numbers; the message names the line.
        """
        return of_calibration(read_kitti(path, key), (width, height))

    @staticmethod
    def from_ros(info: Mapping[str, Any], name: str = "camera_info") -> Camera:
        """From the fields of ``sensor_msgs/CameraInfo`` or of a ROS calibration YAML, for the **rectified** image.

        Takes ``p``/``P``/``projection_matrix`` where it is filled, else K with no distortion. The ROI offset is
        subtracted, then binning divides, as the CameraInfo documentation has it.

        Args:
            info: mapping with width, height and either P or K (lists of 12 or 9, or ``{"data": [...]}``).
            name: what to call it in an error.

        Raises:
            UserError: no usable matrix (K[0] = 0 means uncalibrated), or missing size.
        """
        p = _matrix(f"{name}: P", _entries(info, "p", "P", "projection_matrix"), 3, 4)
        k = _matrix(f"{name}: K", _entries(info, "k", "K", "camera_matrix"), 3, 3)
        if p[0, 0] != 0:
            P = p
        elif k[0, 0] != 0:
            fisheye = info.get("distortion_model") in FISHEYE
            if fisheye or any(_numbers(f"{name}: D", _entries(info, "d", "D", "distortion_coefficients"))):
                raise UserError(f"{name}: has distortion but no P; rectify the images first (image_proc) and give P")
            P = torch.cat([k, k.new_zeros(3, 1)], 1)
        else:
            raise UserError(f"{name}: uncalibrated (K[0] and P[0] are 0 or missing); publish a calibrated camera_info")
        roi = info.get("roi") or {}
        try:
            width, height = (int(info[a] if a in info else info[f"image_{a}"]) for a in ("width", "height"))
            x0, y0, w, h = (int(roi.get(a) or 0) for a in ("x_offset", "y_offset", "width", "height"))
            bx, by = (max(int(info.get(a) or 1), 1) for a in ("binning_x", "binning_y"))
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
            raise UserError(f"{name}: width, height, roi and binning must be whole numbers") from None
        camera = _named(name, P, width, height)
        if w and h:
            camera = camera.crop(x0, y0, w, h)
        if (bx, by) == (1, 1):
            return camera
        binned = torch.diag(P.new_tensor([1 / bx, 1 / by, 1.0])) @ camera.P
        return _named(f"{name}: after binning", binned, camera.width // bx, camera.height // by)

    @staticmethod
    def from_file(
        path: str | Path, width: int | None = None, height: int | None = None, name: str | None = None
    ) -> Camera:
        """From a calibration file of any kind, see :mod:`skd_core.calibration`.

        Args:
            path: the file, or ``FILE:NAME`` for one camera of several.
            width, height: of the image, pixels.
            name: of the camera, where ``path`` does not name it.

        KITTI's files do not hold the image size, so width and height are needed for them, and a principal point far
        from the middle of that size is warned of. Where both the file and the arguments give a size, they must agree.

        Raises:
            UserError: an unreadable or malformed file, one for images of another size, or distortion without P.
        """
        size = None if width is None or height is None else (width, height)
        return of_calibration(read_calibration(path, name), size)

    def __repr__(self) -> str:
        focal = f"fx={self.fx:.1f}, fy={self.fy:.1f}, cx={self.cx:.1f}, cy={self.cy:.1f}"
        return f"Camera({self.width}x{self.height}, {focal}, hfov={self.hfov_degrees:.0f} deg)"

    @property
    def hfov_degrees(self) -> float:
        """Horizontal field of view in degrees."""
        return math.degrees(math.atan(self.cx / self.fx) + math.atan((self.width - self.cx) / self.fx))


def _entries(info: Mapping[str, Any], *keys: str) -> Any:
    """The value under the first key that is there, out of ``{"data": value}`` where it is wrapped; [] without."""
    value: Any = next((info[key] for key in keys if info.get(key) is not None), [])
    return value.get("data", []) if isinstance(value, Mapping) else value


def _numbers(name: str, values: Any) -> list[float]:
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{name} must be a list of numbers ({error})") from None


def _matrix(name: str, values: Any, rows: int, columns: int) -> Tensor:
    """A float64 matrix of a flat list; zeros of an empty one."""
    numbers = _numbers(name, values)
    if len(numbers) not in (0, rows * columns):
        raise UserError(f"{name} must be {rows * columns} numbers, got {len(numbers)}")
    return torch.tensor(numbers or [0.0] * (rows * columns), dtype=torch.float64).reshape(rows, columns)


def _named(name: str, P: Tensor, width: int, height: int) -> Camera:
    """A camera whose errors name where it came from."""
    try:
        return Camera(P, width, height)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def of_calibration(found: Calibration, size: tuple[int, int] | None, rectified: bool = True) -> Camera:
    """The camera of a calibration for images of a size (width, height), which it may not hold itself.

    Args:
        rectified: whether the images are; without, K counts, which they have once they are undistorted, and P does not.

    Raises:
        UserError: no usable matrix, no size or another one, or distortion without P for rectified images.
    """
    name, kitti = found.source, found.kind == "KITTI"
    if not rectified:
        if not found.k[0]:
            raise UserError(
                f"{name}: this {found.kind} calibration has no K of raw images; KITTI's images are rectified"
            )
        found = replace(found, p=(0.0,) * 12, d=(), distortion_model="")
    if not kitti and not found.k[0] and not found.p[0]:
        raise UserError(f"{name}: uncalibrated: no camera matrix in it (or one of zeros); calibrate the camera")
    if not kitti and not found.p[0] and (any(found.d) or found.distortion_model in FISHEYE):
        raise UserError(
            f"{name}: this {found.kind} calibration has distortion, and no P of rectified images: rectify the images "
            "(predict does with --raw-images), or add the projection_matrix"
        )
    sized = found.width > 0 and found.height > 0
    if not sized and size is None:
        raise UserError(f"{name}: this {found.kind} calibration holds no image size; pass width and height")
    width, height = (found.width, found.height) if sized or size is None else size
    if kitti:
        camera = _named(name, torch.tensor(found.p, dtype=torch.float64).reshape(3, 4), width, height)
    else:
        fields = vars(replace(found, width=width, height=height))
        camera = Camera.from_ros(fields | {"roi": vars(found.roi)}, name)
    if sized and size is not None and (camera.width, camera.height) != size:
        raise UserError(f"{name}: is for {camera.width}x{camera.height} images, but the image is {size[0]}x{size[1]}")
    if not sized:
        camera.check_center(name)
    return camera
