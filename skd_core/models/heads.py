"""Heads: the 2D heads on F_G and the 3D head on RoIs. Student and teacher have a 3D head each (method: Networks)."""

# B images, N RoIs, C classes, R bins per side of a RoI

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skd_core.models.backbone import conv_bn_relu, set_bias

MIN_LOG_SIGMA = math.log(0.03)
"""Floor of log sigma_z (method: Decoding): below it the Laplace term would dwarf every other gradient."""


@dataclass
class Maps2D:
    """Output of the 2D heads, stride 4.

    Attributes:
        heatmap: shape (B, C, H, W), logits; peaks at the centres of the 2D boxes.
        offset: shape (B, 2, H, W), position of the centre inside its cell, in cells.
        size: shape (B, 2, H, W), log of width and height in cells [ours: depth follows from the *ratio* of heights].
    """

    heatmap: Tensor
    offset: Tensor
    size: Tensor


class Heads2D(nn.Module):
    """CenterNet-like heads [peer] with the peak at the 2D box centre, so that nothing 3D is needed [ours]."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.heatmap = nn.Sequential(conv_bn_relu(channels, channels), peak := nn.Conv2d(channels, classes, 1))
        self.box = nn.Sequential(conv_bn_relu(channels, channels), box := nn.Conv2d(channels, 4, 1))
        set_bias(peak, [-4.6] * classes)  # sigmoid .01: few cells hold an object
        nn.init.zeros_(box.weight)
        set_bias(box, [0.5, 0.5, 2.0, 2.0])

    def forward(self, features: Tensor) -> Maps2D:
        offset, size = self.box(features).split(2, 1)
        return Maps2D(self.heatmap(features), offset, size)


@dataclass
class Raw3D:
    """Output of a 3D head before decoding.

    Attributes:
        depth: shape (N, 3): correction of the geometric depth, log sigma_z (relative), and the free depth that is
            used where the box's height says nothing (it touches the image border).
        center: shape (N, 2), logits of the projected centre's place in the 2D box.
        size: shape (N, 3), deviations from the class prior, order (l, w, h).
        yaw: shape (N, 2), vector t whose direction is (cos 2a, sin 2a), before normalisation.
        direction: shape (N, 2), logits of "a" and "a + pi"; untrained unless labels give it.
    """

    depth: Tensor
    center: Tensor
    size: Tensor
    yaw: Tensor
    direction: Tensor


class Head3D(nn.Module):
    """Per attribute: conv3x3, BN, ReLU, global average, FC (method: Networks) [peer]."""

    OUTPUTS = (("depth", 3), ("center", 2), ("size", 3), ("yaw", 4))

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleDict({name: conv_bn_relu(inputs, channels) for name, _ in self.OUTPUTS})
        fcs = {name: nn.Linear(channels, n) for name, n in self.OUTPUTS}
        for fc in fcs.values():
            nn.init.normal_(fc.weight, std=0.01)
            nn.init.zeros_(fc.bias)
        set_bias(fcs["depth"], [0.0, 0.0, -math.log(8.0)])  # objects cut by the border are near
        set_bias(fcs["yaw"], [-0.1, 0.0, 0.0, 0.0])  # a = +-90 degrees: seen from behind
        self.fcs = nn.ModuleDict(fcs)

    def forward(self, rois: Tensor) -> Raw3D:
        """(N, inputs, R, R) -> :class:`Raw3D`; N may be 0."""
        if len(rois) == 0:
            found = {name: rois.new_zeros(0, n) + rois.sum() for name, n in self.OUTPUTS}
        else:
            found = {name: self.fcs[name](self.convs[name](rois).mean((-2, -1))) for name, _ in self.OUTPUTS}
        return self.outputs([found[name] for name, _ in self.OUTPUTS])

    @staticmethod
    def outputs(values: Sequence[Tensor]) -> Raw3D:
        """What the last layers give, in the order of OUTPUTS -> :class:`Raw3D`."""
        out = {name: value.float() for (name, _), value in zip(Head3D.OUTPUTS, values, strict=True)}
        correction, scale, free = out["depth"].unbind(-1)
        log_sigma = (MIN_LOG_SIGMA + F.softplus(scale + 0.8)).clamp(max=0.0)
        depth = torch.stack([correction, log_sigma, free], -1)
        return Raw3D(depth, out["center"], out["size"], out["yaw"][:, :2], out["yaw"][:, 2:])


def roi_rays(boxes: Tensor, P: Tensor, size: int) -> Tensor:
    """Viewing rays at the bins of RoIs.

    Args:
        boxes: shape (N, 4), pixels; P: shape (N, 3, 4), of the same image.

    Returns:
        shape (N, 2, R, R), ((u - cx)/fx, (v - cy)/fy).
    """
    bins = (torch.arange(size, device=boxes.device, dtype=boxes.dtype) + 0.5) / size
    u = boxes[:, 0, None] + bins * (boxes[:, 2] - boxes[:, 0])[:, None]  # (N, R)
    v = boxes[:, 1, None] + bins * (boxes[:, 3] - boxes[:, 1])[:, None]
    x = (u - P[:, 0, 2, None]) / P[:, 0, 0, None]
    y = (v - P[:, 1, 2, None]) / P[:, 1, 1, None]
    return torch.stack([x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], 1)


def one_hot_maps(classes: Tensor, count: int, size: int) -> Tensor:
    """(N,) class indices -> (N, C, R, R)."""
    return F.one_hot(classes, count).float()[:, :, None, None].expand(-1, -1, size, size)
