"""Changes of an image that move its camera, boxes and depth with it.

Every function returns a new :class:`Sample` and leaves the one given as it is. Pixel coordinates follow
:mod:`skd_core.camera`: continuous, pixel ``i`` covers ``[i, i + 1)``.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from skd_core.boxes import Boxes2D, Boxes3D
from skd_core.camera import Camera
from skd_core.data.sample import Sample
from skd_core.errors import UserError

MAX_PIXELS = 1 << 24
"""Of the network's input: what a wrong calibration asks for beyond would only fill the memory."""


def scale_pixels(image: Tensor, width: int, height: int) -> Tensor:
    """Scale images, antialiased bilinear: the one function of training and inference.

    Args:
        image: shape (..., 3, H, W), uint8.

    Returns:
        shape (..., 3, height, width), float32, in [0, 255]. It is not rounded: libraries differ by a hundredth of a
        grey level, which rounding would turn into a whole one here and there.
    """
    pixels = image.float()
    if image.shape[-2:] == (height, width):
        return pixels
    batch = pixels.reshape(-1, *image.shape[-3:])
    scaled = F.interpolate(batch, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return scaled.reshape(*image.shape[:-2], height, width)


def resize_image(image: Tensor, width: int, height: int) -> Tensor:
    """As :func:`scale_pixels`, rounded: shape (..., 3, H, W), uint8 -> shape (..., 3, height, width), uint8."""
    if image.shape[-2:] == (height, width):
        return image
    return scale_pixels(image, width, height).round_().clamp_(0, 255).to(torch.uint8)


def network_camera(camera: Camera, focal: tuple[float, float], input_size: tuple[int, int] | None) -> Camera:
    """The camera of the network's input: the one resize rule of training, validation and inference.

    The image is scaled so that its focal length is the network's, so a car at a given distance has the same size in
    pixels whatever the camera (virtual focal length [peer: Cube R-CNN]); the network takes any input size.

    Args:
        camera: of the image as it is.
        focal: (fx, fy) of the network's input, pixels.
        input_size: (width, height), or None. An image that comes within 5 % of it is scaled to just that size: KITTI's
            sizes and focal lengths differ a little from drive to drive, and images of equal size make a batch.

    Raises:
        UserError: the focal length is so short that the scaled image would have more than MAX_PIXELS.
    """
    width = max(32, round(camera.width * focal[0] / camera.fx))
    height = max(32, round(camera.height * focal[1] / camera.fy))
    if width * height > MAX_PIXELS:
        raise UserError(
            f"camera: focal length {camera.fx:g}x{camera.fy:g} px for {camera.width}x{camera.height} px: the "
            f"network (focal length {focal[0]:g}x{focal[1]:g}) would see {width}x{height} px; check the calibration"
        )
    if input_size is not None and abs(width / input_size[0] - 1) < 0.05 and abs(height / input_size[1] - 1) < 0.05:
        width, height = input_size
    return camera.resize(width, height)


def resize_depth(depth: Tensor, width: int, height: int) -> Tensor:
    """Scale a depth map, (H, W) -> (height, width), by taking the nearest pixel.

    No value is changed (depth is measured along the axis, whatever the focal length) and none is mixed: between an
    object and what is behind it there is nothing, and 0 means unknown.
    """
    return F.interpolate(depth[None, None], (height, width), mode="nearest-exact")[0, 0]


def resize(sample: Sample, width: int, height: int) -> Sample:
    """The sample at width x height pixels; the aspect ratio may change, fx and fy then differ."""
    sx, sy = width / sample.camera.width, height / sample.camera.height
    return replace(
        sample,
        image=resize_image(sample.image, width, height),
        camera=sample.camera.resize(width, height),
        boxes2d=sample.boxes2d.scale(sx, sy),
        ignore=sample.ignore.scale(sx, sy),
        depth=None if sample.depth is None else resize_depth(sample.depth, width, height),
        boxes3d=_with_xyxy(sample.boxes3d, lambda boxes: boxes.scale(sx, sy)),
        full_xyxy=_full(sample).scale(sx, sy).xyxy,
    )


def crop(sample: Sample, x0: int, y0: int, width: int, height: int, min_visible: float = 0.25) -> Sample:
    """The window of the sample whose top left pixel is (x0, y0).

    The window may reach outside the image, where it is black with unknown depth. 2D boxes are clipped to it. An object
    of which less than ``min_visible`` of the box's area is left moves to ``ignore``; one of which nothing is left goes.
    """
    left, top = max(-x0, 0), max(-y0, 0)
    right = max(x0 + width - sample.camera.width, 0)
    bottom = max(y0 + height - sample.camera.height, 0)

    def window(pixels: Tensor) -> Tensor:
        padded = F.pad(pixels, (left, right, top, bottom)) if left or right or top or bottom else pixels
        return padded[..., y0 + top : y0 + top + height, x0 + left : x0 + left + width].contiguous()

    def move(boxes: Boxes2D) -> Boxes2D:
        return boxes.crop(x0, y0).clip(width, height)

    boxes2d, ignore = move(sample.boxes2d), move(sample.ignore)
    share = visible_share(sample, x0, y0, width, height)
    keep, cut = share >= min_visible, (share > 0) & (share < min_visible)
    boxes3d = _with_xyxy(sample.boxes3d, move)
    return replace(
        sample,
        image=window(sample.image),
        camera=sample.camera.crop(x0, y0, width, height),
        boxes2d=boxes2d[keep],
        ignore=_concatenate(ignore[_area(ignore) > 0], boxes2d[cut]),
        depth=None if sample.depth is None else window(sample.depth),
        boxes3d=None if boxes3d is None else boxes3d[keep],
        full_xyxy=_full(sample).crop(x0, y0).xyxy[keep],
        hidden=sample.hidden[keep],
    )


def visible_share(sample: Sample, x0: int, y0: int, width: int, height: int) -> Tensor:
    """shape (N,), the share of each 2D box's area that lies in a window, see :func:`crop`."""
    left = sample.boxes2d.crop(x0, y0).clip(width, height)
    return _area(left) / _area(sample.boxes2d).clamp(min=1e-6)


def _through_jpeg(image: Tensor, quality: int) -> Tensor:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as picture:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def ignore_objects(sample: Sample, which: Tensor) -> Sample:
    """The sample with some of its objects moved to ``ignore``; which: shape (N,), bool."""
    keep = ~which
    return replace(
        sample,
        boxes2d=sample.boxes2d[keep],
        ignore=_concatenate(sample.ignore, sample.boxes2d[which]),
        boxes3d=None if sample.boxes3d is None else sample.boxes3d[keep],
        full_xyxy=sample.full_xyxy[keep],
        hidden=sample.hidden[keep],
    )


def flip(sample: Sample) -> Sample:
    """The sample mirrored left to right, camera and world too, so that the mirrored image is a true picture."""
    width = sample.camera.width
    return replace(
        sample,
        image=sample.image.flip(-1),
        camera=sample.camera.flip(),
        boxes2d=sample.boxes2d.flip(width),
        ignore=sample.ignore.flip(width),
        depth=None if sample.depth is None else sample.depth.flip(-1),
        boxes3d=None if sample.boxes3d is None else sample.boxes3d.flip(width),
        full_xyxy=_full(sample).flip(width).xyxy,
        hidden=sample.hidden[:, [2, 1, 0, 3]],
    )


def _photometric() -> Any:
    """Imported when first used: inference, which needs this file, waits seconds less for it."""
    from torchvision.transforms.v2 import functional

    return functional


def jitter_colors(
    sample: Sample,
    generator: torch.Generator,
    brightness: float = 0.3,
    contrast: float = 0.3,
    saturation: float = 0.3,
) -> Sample:
    """Change the image's brightness, contrast and saturation by random factors.

    Args:
        sample: only its image changes.
        generator: on the CPU; the same state gives the same image.
        brightness: the factor is drawn from [1 - brightness, 1 + brightness]; contrast and saturation likewise.
    """
    spread = torch.tensor([brightness, contrast, saturation])
    factors = (1 + spread * (2 * torch.rand(3, generator=generator) - 1)).clamp(min=0).tolist()
    photometric = _photometric()
    image: Tensor = photometric.adjust_brightness(sample.image, factors[0])
    image = photometric.adjust_contrast(image, factors[1])
    image = photometric.adjust_saturation(image, factors[2])
    return replace(sample, image=image)


def degrade(
    sample: Sample, generator: torch.Generator, blur: float = 0.0, noise: float = 0.0, jpeg: float = 0.0
) -> Sample:
    """What cheap optics, sensors and transports do to an image: blur, noise, JPEG artefacts.

    Args:
        sample: only its image changes.
        generator: on the CPU; the same state gives the same image.
        blur: probability of a Gaussian blur, sd .3 to 1.2 pixels.
        noise: probability of Gaussian noise, sd 2 to 10 grey levels.
        jpeg: probability of compression, quality 30 to 90.
    """
    chance, strength = torch.rand(3, generator=generator).tolist(), torch.rand(3, generator=generator).tolist()
    image = sample.image
    if chance[0] < blur:
        image = _photometric().gaussian_blur(image, [5, 5], [0.3 + 0.9 * strength[0]])
    if chance[1] < noise:
        spread = (2 + 8 * strength[1]) * torch.randn(image.shape, generator=generator)
        image = (image + spread).round_().clamp_(0, 255).to(torch.uint8)
    if chance[2] < jpeg:
        image = _through_jpeg(image, 30 + round(60 * strength[2]))
    return replace(sample, image=image)


def _full(sample: Sample) -> Boxes2D:
    return Boxes2D(sample.full_xyxy, sample.boxes2d.labels)


def _with_xyxy(boxes: Boxes3D | None, change: Callable[[Boxes2D], Boxes2D]) -> Boxes3D | None:
    """3D boxes, which a change of the image leaves where they are, with their 2D boxes changed."""
    return None if boxes is None else replace(boxes, xyxy=change(Boxes2D(boxes.xyxy, boxes.labels)).xyxy)


def _area(boxes: Boxes2D) -> Tensor:
    """shape (N,), square pixels."""
    return (boxes.xyxy[:, 2] - boxes.xyxy[:, 0]) * (boxes.xyxy[:, 3] - boxes.xyxy[:, 1])


def _concatenate(a: Boxes2D, b: Boxes2D) -> Boxes2D:
    return Boxes2D(torch.cat([a.xyxy, b.xyxy]), a.labels + b.labels, torch.cat([a.scores, b.scores]))
