"""One training or test example, and the readers of the two kinds of picture it holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from skd_core.boxes import Boxes2D, Boxes3D, at_border
from skd_core.camera import Camera
from skd_core.data.decoding import PICTURE_FORMATS, check_size, from_opencv, incomplete, note_orientation
from skd_core.errors import UserError
from skd_core.files import check_regular

NOTE = "depth.json"
"""In a folder of depth maps: what made them, and their kind."""
FILE_LIMIT = 1 << 30
"""Bytes of the largest picture or depth map."""

_PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, MemoryError,
    RuntimeError, Image.DecompressionBombError,
)  # fmt: skip
"""What malformed bytes lead to."""


@dataclass(eq=False)
class Sample:
    """An image and what is known about it. Image, camera, boxes and depth always change together (transforms.py).

    Attributes:
        name: what results are filed under ("000003").
        image: shape (3, H, W), uint8, RGB.
        camera: of this very image, H and W included.
        boxes2d: objects of the classes to learn, float32 pixels: the training truth.
        ignore: regions where no negative is learnt: "DontCare", other classes, objects cut down to too little.
        depth: shape (H, W), float32 metres along the optical axis, 0 = unknown; None without a depth source.
        boxes3d: 3D truth of the objects in ``boxes2d``, in the same order; to evaluate, and for supervised training.
        full_xyxy: shape (N, 4), the boxes of ``boxes2d`` as the label has them, in this image's pixels: a crop clips
            ``boxes2d`` and leaves these whole, so that they may reach beyond the image.
        hidden: shape (N, 4), bool, which edges (left, top, right, bottom) of ``full_xyxy`` are not the object's own,
            since the border of the picture that was labelled or, in a tight box, a nearer object cuts it there.
    """

    name: str
    image: Tensor
    camera: Camera
    boxes2d: Boxes2D
    ignore: Boxes2D
    depth: Tensor | None = None
    boxes3d: Boxes3D | None = None
    full_xyxy: Tensor = field(default=None)  # type: ignore[assignment]
    hidden: Tensor = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.full_xyxy is None:
            self.full_xyxy = self.boxes2d.xyxy
        if self.hidden is None:
            self.hidden = at_border(self.full_xyxy, self.camera.width, self.camera.height)
        size = (self.camera.height, self.camera.width)
        if self.image.shape != (3, *size) or self.image.dtype != torch.uint8:
            got = f"{tuple(self.image.shape)} {self.image.dtype}"
            raise ValueError(f"{self.name}: image must be uint8 of shape {(3, *size)}, as its camera says, got {got}")
        if self.depth is not None and self.depth.shape != size:
            raise ValueError(f"{self.name}: depth must have the image's shape {size}, got {tuple(self.depth.shape)}")
        shapes = {"full_xyxy": self.full_xyxy.shape, "hidden": self.hidden.shape}
        if any(shape != (len(self.boxes2d), 4) for shape in shapes.values()):
            raise ValueError(
                f"{self.name}: full_xyxy and hidden must have shape {(len(self.boxes2d), 4)}, got {shapes}"
            )
        if self.boxes3d is not None and self.boxes3d.labels != self.boxes2d.labels:
            raise ValueError(f"{self.name}: boxes3d and boxes2d must be the same objects in the same order")


def read_image(path: str | Path) -> Tensor:
    """Read a picture as shape (3, H, W), uint8, RGB.

    Grey images get three equal channels, transparency is dropped, 16 bits become 8, see
    :func:`skd_core.data.decoding.to_8_bits`. An EXIF rotation is not applied, but warned of: the calibration belongs to
    the pixels as they are stored.

    Raises:
        UserError: missing, truncated, no picture, no regular file, or too large.
    """
    check_regular(path, FILE_LIMIT, "image")
    try:
        with Image.open(path, formats=PICTURE_FORMATS) as picture:
            check_size(picture, path)
            note_orientation(picture, path)
            content = Path(path).read_bytes() if picture.format in ("JPEG", "PNG") else b""
            if (kind := incomplete(content)) is not None:  # of one that is filled up behind the cut, Pillow makes grey
                raise UserError(f"{path}: cannot read image: incomplete {kind} of {len(content)} bytes")
            raw_modes = [tile[3] if isinstance(tile[3], str) else (tile[3] or ("",))[0] for tile in picture.tile]
            picture.load()
            pixels = np.asarray(picture) if picture.mode.startswith(("I", "F")) else None
            if pixels is None and any("16" in str(raw) for raw in raw_modes):  # Pillow would keep the upper byte only
                pixels = cv2.imdecode(np.frombuffer(content or Path(path).read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
            if pixels is None:
                pixels = np.array(picture.convert("RGB"))
            elif pixels.dtype.kind in "iu" and pixels.dtype != np.uint8:  # some as 32 bits, or high byte first
                pixels = from_opencv(pixels.clip(0, 65535).astype(np.uint16), name=str(path))
            else:
                pixels = from_opencv(pixels, name=str(path))
    except UserError:
        raise
    except (*_PILLOW_ERRORS, cv2.error) as error:
        raise UserError(f"{path}: cannot read image: {_reason(error)}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of an image, by its head alone.

    Raises:
        UserError: as :func:`read_image`.
    """
    try:
        with Image.open(path) as picture:
            return picture.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        height, width = read_image(path).shape[1:]  # says what is wrong
        return width, height


def black_image(path: Path) -> Tensor:
    """Shape (3, H, W), uint8: black of a picture's size, in one byte of memory.

    Raises:
        UserError: as :func:`picture_size`.
    """
    width, height = picture_size(path)
    return torch.zeros(1, dtype=torch.uint8).expand(3, height, width)


def read_depth(path: str | Path) -> Tensor:
    """Read a depth map as shape (H, W), float32, metres, 0 = unknown.

    Args:
        path: a uint16 PNG of metres x 256 (KITTI's depth format), or an ``.npy`` of metres. In the latter whatever is
            not finite and positive is unknown.

    Raises:
        UserError: missing or truncated file, no regular file, or neither of the two formats.
    """
    check_regular(path, FILE_LIMIT, "depth map")
    try:
        if Path(path).suffix == ".npy":
            metres = np.load(path, mmap_mode="r", allow_pickle=False)  # a forged shape then takes no memory
        else:
            with Image.open(path, formats=PICTURE_FORMATS) as picture:
                check_size(picture, path)
                if not picture.mode.startswith("I"):
                    raise UserError(f"{path}: depth must be a 16-bit grey PNG (metres x 256), got mode {picture.mode}")
                metres = np.asarray(picture, dtype=np.float32) / 256
    except UserError:
        raise
    except _PILLOW_ERRORS as error:
        raise UserError(f"{path}: cannot read depth map: {_reason(error)}") from None
    if metres.ndim != 2 or metres.dtype.kind not in "fiu":
        raise UserError(f"{path}: depth must be a 2D array of numbers, got {metres.dtype} of shape {metres.shape}")
    metres = metres.astype(np.float32)
    return torch.from_numpy(np.where(np.isfinite(metres) & (metres > 0), metres, np.float32(0)))


def _reason(error: Exception) -> str:
    """One line, without the path that Pillow and the system repeat."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if text.startswith("cannot identify image file"):
        return "not an image"
    return text.splitlines()[0] if text else type(error).__name__
