"""Small things that the tests of the learning code share: a rendered data set, a config, cameras and boxes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skd_core.boxes import Boxes2D, box_corners
from skd_core.camera import Camera, project
from skd_core.config import TrainConfig
from skd_core.data.sample import Sample
from skd_core.inference.detector import Detector
from skd_core.models.heads import Raw3D
from skd_core.models.student import Rois
from skd_core.synthetic import DepthNoise, SynthConfig, render_frame, write_dataset

torch.set_num_threads(1)  # bit-exact comparisons, and other tests run beside these

WIDTH, HEIGHT = 160, 64
CLASSES = ("Car", "Pedestrian", "Cyclist")


def make_dataset(root: Path, frames: int = 6, seed: int = 11) -> Path:
    """Rendered frames in the KITTI layout, with estimated depth."""
    write_dataset(root, SynthConfig(WIDTH, HEIGHT), frames, seed)
    return root


def make_config(root: Path | str, **sections: dict[str, Any]) -> TrainConfig:
    """A run of two epochs of two steps in which every loss takes part from the first step on."""
    raw: dict[str, Any] = {
        "model": {
            "backbone": "mobilenetv3_small_050", "neck_channels": 8, "head_channels": 8, "depth_channels": 8,
            "roi_size": 3, "input_size": [WIDTH, HEIGHT],
        },
        "data": {"train": {"root": str(root)}, "depth_dir": "depth"},
        "method": {"modulation": True},
        "schedule": {
            "epochs": 2, "batch_size": 3, "warmup_epochs": 0.5, "start_3d": [0, 0], "start_distillation": [0, 0],
            "eval_every": 1,
        },
    }  # fmt: skip
    top = {name: sections.pop(name) for name in list(sections) if not isinstance(sections[name], dict)}
    for name, section in sections.items():
        raw[name] = raw.get(name, {}) | section
    return TrainConfig.model_validate(raw | top)


def kitti_camera(width: int = 1242, height: int = 375) -> Camera:
    """KITTI's, whose fourth column is not zero, scaled to width x height."""
    P = torch.tensor(
        [[721.5377, 0, 609.5593, 44.85728], [0, 721.5377, 172.854, 0.2163791], [0, 0, 1, 0.002745884]],
        dtype=torch.float64,
    )
    return Camera(P, 1242, 375).resize(width, height)


def make_rois(boxes: Tensor, camera: Camera, classes: Tensor | None = None) -> Rois:
    """RoIs of one image."""
    n = len(boxes)
    return Rois(
        torch.zeros(n, dtype=torch.long),
        boxes,
        torch.zeros(n, dtype=torch.long) if classes is None else classes,
        camera.P.to(boxes).expand(n, 3, 4),
        boxes.new_tensor([camera.width, camera.height]).expand(n, 2),
    )


def encode(center: Tensor, size: Tensor, yaw: Tensor, roi: Tensor, camera: Camera, prior: Tensor, cut: Tensor) -> Raw3D:
    """The outputs of a 3D head that decode to given boxes: the formulas (method: Decoding) solved for the outputs.

    Args:
        center, size, prior: shape (N, 3); yaw: shape (N,); roi: shape (N, 4); cut: shape (N,), bool.
    """
    P = camera.P.to(center)
    uv = project(P, center)
    share = (uv - roi[:, :2]) / (roi[:, 2:] - roi[:, :2])
    x, _, z = (center + camera.offset.to(center)).unbind(-1)  # as seen from the optical centre
    alpha = yaw - torch.atan2(x, z)
    ry = alpha + torch.atan2(uv[:, 0] - P[0, 2], P[0, 0])
    e = 0.5 * (size[:, 0] * ry.sin().abs() + size[:, 1] * ry.cos().abs())
    geometric = P[1, 1] * size[:, 2] / (roi[:, 3] - roi[:, 1]) + e
    correction = torch.atanh((z / geometric).log() / 0.3)
    depth = torch.stack([torch.where(cut, 0.0, correction), torch.full_like(yaw, -2.0), -z.log()], -1)
    vector = torch.stack([torch.cos(2 * alpha), torch.sin(2 * alpha)], -1)
    turned = torch.cos(alpha) < 0
    direction = torch.stack([~turned, turned], -1).to(center)
    return Raw3D(depth, torch.logit(share), torch.atanh((size / prior).log() / 0.25), 1.7 * vector, direction)


def boxes_around(center: Tensor, size: Tensor, yaw: Tensor, camera: Camera) -> Tensor:
    """shape (N, 4), the 2D boxes of 3D boxes by their corners' definition, clipped to the image."""
    uv = project(camera.P.to(center), box_corners(center, size, yaw))
    return Boxes2D(torch.cat([uv.amin(1), uv.amax(1)], -1), ("Car",) * len(yaw)).clip(camera.width, camera.height).xyxy


def rendered_sample(number: int, noise: float = 0.0, seed: int = 5, size: tuple[int, int] = (640, 192)) -> Sample:
    """A rendered frame as training reads it, with 3D truth."""
    config = SynthConfig(*size, depth_noise=DepthNoise(noise))
    frame = render_frame(config, seed, number)
    keep = torch.tensor([name in CLASSES for name in frame.boxes2d.labels], dtype=torch.bool)
    return Sample(
        str(number), torch.from_numpy(frame.image).permute(2, 0, 1).contiguous(), frame.camera,
        frame.boxes2d.to(torch.float32)[keep], frame.dont_care.to(torch.float32),
        torch.from_numpy(frame.depth).float(), frame.boxes3d.to(torch.float32)[keep],
    )  # fmt: skip


def spread_detector() -> Detector:
    """Untrained, with a last layer that tells places apart, so that scores spread."""
    found = Detector.random(3)
    with torch.no_grad():
        layer = found.student.heads_2d.heatmap[-1]
        torch.manual_seed(1)
        layer.weight.normal_(std=0.5)  # type: ignore[operator, union-attr]
        layer.bias.fill_(-1.0)  # type: ignore[operator, union-attr]
    return found


def plain_sample(width: int, height: int, boxes: Tensor) -> Sample:
    """A grey picture with cars at given 2D boxes, shape (N, 4), pixels."""
    image = torch.full((3, height, width), 100, dtype=torch.uint8)
    cars = Boxes2D(boxes, ("Car",) * len(boxes))
    return Sample("plain", image, kitti_camera(width, height), cars, Boxes2D.empty())


def degrees_modulo_pi(a: Tensor, b: Tensor) -> Tensor:
    """Distance of two angles that are known modulo pi, in degrees."""
    return torch.rad2deg((torch.remainder(a - b + 0.5 * math.pi, math.pi) - 0.5 * math.pi).abs())
