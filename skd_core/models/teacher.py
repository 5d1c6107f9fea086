"""DSN, the depth-guided teacher: depth head, fusion and its own 3D head on the shared features (method: Networks).

In training it shares the student's backbone, neck and 2D heads. It needs nothing but the image, since its depth map is
its own depth head's, so it can also be deployed: :class:`DepthGuidedNetwork`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skd_core.config import ModelConfig
from skd_core.geometry import geometric_depth, half_extent
from skd_core.models.backbone import STRIDE, conv_bn_relu, roi_features, set_bias
from skd_core.models.decode import Prediction3D
from skd_core.models.heads import Head3D, Raw3D
from skd_core.models.student import Rois, Student, condition_channels

MIN_DEPTH, MAX_DEPTH = 1.0, 80.0
GEOMETRY = 4  # channels: X, Y, Z of the predicted depth, and its log ratio to the geometric depth


@dataclass
class DepthMap:
    """The teacher's depth at stride 4.

    Attributes:
        log_depth: shape (B, H, W), log of metres, not clamped.
        log_sigma: shape (B, H, W), s_p, log of the relative standard deviation.
        features: shape (B, C_d, H, W), F_D.
    """

    log_depth: Tensor
    log_sigma: Tensor
    features: Tensor


class Teacher(nn.Module):
    """DSN without what it shares with the student."""

    prior: Tensor
    scale: Tensor

    def __init__(self, config: ModelConfig, prior: Tensor) -> None:
        super().__init__()
        self.config = config
        channels, conditions = config.neck_channels, condition_channels(config)
        self.depth_features = nn.Sequential(  # D of the paper's Eq. 1, our layers
            conv_bn_relu(channels, config.depth_channels), conv_bn_relu(config.depth_channels, channels)
        )
        self.depth_output = nn.Conv2d(channels, 2, 1)
        nn.init.normal_(self.depth_output.weight, std=0.01)
        set_bias(self.depth_output, [-math.log(20.0), -1.0])
        fused = 2 * channels + GEOMETRY + conditions
        self.fusion = nn.Sequential(conv_bn_relu(fused, 128, 1), nn.Conv2d(128, 2 * channels, 3, padding=1))
        self.head_3d = Head3D(channels + conditions, config.head_channels)
        self.register_buffer("prior", prior, persistent=False)
        self.register_buffer("scale", torch.tensor([40.0, 5.0, 80.0]).view(3, 1, 1), persistent=False)  # of X, Y, Z

    def depth_map(self, features: Tensor, P: Tensor) -> DepthMap:
        """F_G (B, C_g, H, W) -> D_p = exp(-o) with its scale, and F_D.

        With ``model.focal`` D_p = exp(-o) f_y / focal [ours]: what looks the same through a longer lens is farther.

        Args:
            P: shape (B, 3, 4), cameras of the network's input.
        """
        depth_features = self.depth_features(features)
        o, s = self.depth_output(depth_features).float().unbind(1)
        if self.config.focal is not None:
            o = o - torch.log(P[:, 1, 1] / self.config.focal)[:, None, None].to(o)
        return DepthMap(-o, s.clamp(-4, 2), depth_features)

    def boxes_raw(self, features: Tensor, depth: DepthMap, P: Tensor, rois: Rois) -> Raw3D:
        """F_G, depth and RoIs -> raw 3D outputs, to be decoded as the student's are.

        Args:
            P: shape (B, 3, 4), cameras of the network's input.
        """
        raw: Raw3D = self.head_3d(self.head_input(features, depth, P, rois))
        return raw

    def head_input(self, features: Tensor, depth: DepthMap, P: Tensor, rois: Rois) -> Tensor:
        """shape (N, C_g + conditions, R, R): the fused F_A in the RoIs, and the additional inputs of the 3D head."""
        size = self.config.roi_size
        z = depth.log_depth.detach().clamp(math.log(MIN_DEPTH), math.log(MAX_DEPTH)).exp()  # (B, H, W)
        pooled = roi_features(torch.cat([features, depth.features], 1), rois.batch_index, rois.boxes, size)
        xyz = roi_features(depth_to_points(z, P), rois.batch_index, rois.boxes, size).float()  # (N, 3, R, R)
        ratio = (xyz[:, 2].clamp(min=MIN_DEPTH) / self.geometric_depth(rois)[:, None, None]).log().clamp(-1, 1)
        geometry = torch.cat([xyz / self.scale, 2 * ratio[:, None]], 1)
        conditions = rois.conditions(self.config)
        shift, gain = self._fuse(torch.cat([pooled, geometry, conditions], 1))
        image_features = pooled[:, : self.config.neck_channels]
        fused = image_features * (1 + torch.tanh(gain)) + shift  # F_A
        return torch.cat([fused, conditions], 1)

    def _fuse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        channels = self.config.neck_channels
        if len(x) == 0:  # batch norm cannot take none
            empty = x[:, :channels] + 0 * x.sum()
            return empty, empty
        shift, gain = self.fusion(x).split(channels, 1)
        return shift, gain

    def geometric_depth(self, rois: Rois) -> Tensor:
        """shape (N,), metres: ``f_y H / h2d + e`` of an average box of the class seen from behind."""
        prior = self.prior[rois.classes]
        height = (rois.boxes[:, 3] - rois.boxes[:, 1]).clamp(min=1.0)
        sideways = torch.full_like(height, 0.5 * math.pi)
        return geometric_depth(rois.P[:, 1, 1], prior[:, 2], height, half_extent(prior, sideways))


class DepthGuidedNetwork(Student):
    """DSN as a network of its own, with the student's interface: for measuring, exporting and deploying the teacher."""

    network = "dsn"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        del self.head_3d
        self.teacher = Teacher(config, self.prior)

    @classmethod
    def of(cls, student: Student, teacher: Teacher) -> DepthGuidedNetwork:
        """From the parts that are trained together; they are shared, not copied. No random number is drawn."""
        with torch.random.fork_rng(devices=[]):  # of the weights that are replaced
            whole = cls(student.config)
        whole.backbone, whole.heads_2d, whole.teacher = student.backbone, student.heads_2d, teacher
        return whole.to(student.mean.device).train(student.training)

    def boxes_3d(self, features: Tensor, P: Tensor, rois: Rois, detach_yaw: bool = False) -> Prediction3D:
        """F_G, cameras and RoIs -> 3D boxes, see :meth:`Student.boxes_3d`."""
        raw = self.teacher.boxes_raw(features, self.teacher.depth_map(features, P), P, rois)
        return self.decode(raw, rois, detach_yaw)


def depth_to_points(depth: Tensor, P: Tensor) -> Tensor:
    """Points of a depth map at stride 4: (B, H, W) metres and (B, 3, 4) -> (B, 3, H, W) metres.

    They are in the camera's own frame, as a depth map is: what P holds of a baseline says nothing of what is seen.
    """
    B, H, W = depth.shape
    u = (torch.arange(W, device=depth.device) + 0.5) * STRIDE
    v = (torch.arange(H, device=depth.device) + 0.5) * STRIDE
    P = P[:, :, :, None, None].to(depth)
    x = (u - P[:, 0, 2]) * depth / P[:, 0, 0]
    y = (v[:, None] - P[:, 1, 2]) * depth / P[:, 1, 1]
    return torch.stack([x, y, depth], 1)
