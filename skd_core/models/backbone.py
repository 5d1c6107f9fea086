"""Shared backbone and neck: image -> F_G, the features that student and teacher have in common (method: Networks)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from skd_core.config import PLAIN_NAME
from skd_core.errors import UserError

STRIDE = 4
"""Pixels of the network's input per cell of F_G."""


def conv_bn_relu(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    """Convolution that keeps the size, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(True)
    )


def set_bias(layer: nn.Conv2d | nn.Linear, values: Sequence[float]) -> None:
    """Where a layer's outputs start."""
    assert layer.bias is not None
    with torch.no_grad():
        layer.bias.copy_(torch.tensor(values))


class Neck(nn.Module):
    """Top-down pyramid that ends at stride 4 (feature pyramid network [peer])."""

    def __init__(self, inputs: Sequence[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in inputs)
        self.smooth = nn.ModuleList(conv_bn_relu(channels, channels) for _ in inputs[:-1])

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features from fine to coarse, (B, C_i, H_i, W_i) -> (B, channels, H_0, W_0)."""
        x: Tensor = self.lateral[-1](features[-1])
        for i in range(len(features) - 2, -1, -1):
            up = F.interpolate(x, size=features[i].shape[-2:], mode="bilinear", align_corners=False)
            x = self.smooth[i](self.lateral[i](features[i]) + up)
        return x


class Backbone(nn.Module):
    """Any timm model with ``features_only`` and a neck to stride 4.

    Args:
        name: timm's name of the model, "dla34" by default in the KITTI config [paper].
        channels: of F_G.

    Raises:
        UserError: timm does not know the name, or the model gives no features at stride 4. Nothing is ever fetched:
            names of a hub or of a folder are not timm's.
    """

    def __init__(self, name: str, channels: int) -> None:
        super().__init__()
        try:
            if not (PLAIN_NAME.fullmatch(name) and timm.is_model(name)):
                raise RuntimeError("timm has no model of this name")
            self.body = timm.create_model(name, features_only=True, pretrained=False)
        except (RuntimeError, AttributeError, TypeError) as error:
            similar = timm.list_models(f"*{name[:4]}*")[:5]
            raise UserError(
                f"model.backbone '{name}' is not a timm feature backbone ({error}); similar: {similar}"
            ) from None
        info: Any = self.body.feature_info
        reductions, widths = info.reduction(), info.channels()
        self.levels = [i for i, r in enumerate(reductions) if r >= STRIDE]
        if not self.levels or reductions[self.levels[0]] != STRIDE:
            raise UserError(f"model.backbone '{name}' has features at strides {reductions}; stride {STRIDE} is needed")
        self.multiple = max(reductions)
        self.neck = Neck([widths[i] for i in self.levels], channels)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), normalised -> F_G (B, channels, ceil(H/4), ceil(W/4)); any H and W."""
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))
        features = self.body(images)
        fused: Tensor = self.neck([features[i] for i in self.levels])
        return fused[..., : -(-height // STRIDE), : -(-width // STRIDE)]


def roi_features(features: Tensor, batch_index: Tensor, boxes: Tensor, size: int) -> Tensor:
    """RoIAlign on F_G.

    Args:
        features: shape (B, C, H/4, W/4).
        batch_index: shape (N,), which image each box lies in.
        boxes: shape (N, 4), pixels of the network's input.
        size: bins per side, 7.

    Returns:
        shape (N, C, size, size), float32: half precision would round the boxes to whole pixels.
    """
    rois = torch.cat([batch_index[:, None].to(boxes), boxes], 1).float()
    pooled: Tensor = roi_align(features.float(), rois, size, spatial_scale=1 / STRIDE, sampling_ratio=2, aligned=True)
    return pooled
