"""MDN, the monocular student: the whole of what runs at inference (method: Networks).

image (B, 3, H, W) -> backbone, neck -> F_G (B, C_g, H/4, W/4) -> 2D heads -> RoIs -> 3D head -> boxes
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image

from skd_core.boxes import MIN_SIDE, Boxes3D, at_border
from skd_core.config import ModelConfig
from skd_core.models.backbone import Backbone, roi_features
from skd_core.models.decode import Prediction3D, decode_2d, decode_3d
from skd_core.models.heads import MIN_LOG_SIGMA, Head3D, Heads2D, Maps2D, Raw3D, one_hot_maps, roi_rays
from skd_core.priors import prior_sizes

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's RGB in [0, 1]: what timm backbones expect."""


NMS_IOU = 0.6
"""2D boxes of a class that overlap by more are one object [peer]: a large object may have several peaks."""

SCORE_SCALE = 0.1
"""By how much sigma_z, the relative deviation of depth, exceeds its floor where certainty is 1/e [ours]. A plain
heat x exp(-sigma_z) would hardly sort by certainty, sigma_z being about .1."""


@dataclass
class Rois:
    """Regions of interest of a batch.

    Attributes:
        batch_index: shape (N,), long, the image of each.
        boxes: shape (N, 4), pixels of the network's input.
        classes: shape (N,), long.
        P: shape (N, 3, 4), camera of each one's image at the network's input size.
        size: shape (N, 2), width and height of each one's image without padding, pixels.
    """

    batch_index: Tensor
    boxes: Tensor
    classes: Tensor
    P: Tensor
    size: Tensor

    @property
    def cut(self) -> Tensor:
        """shape (N, 4), bool: the image border cuts the box at its left, top, right, bottom edge."""
        return at_border(self.boxes, self.size[:, 0], self.size[:, 1])

    @property
    def cut_vertically(self) -> Tensor:
        """shape (N,), bool: the border cuts the box at top or bottom, so that its height means nothing."""
        return self.cut[:, 1::2].any(-1)

    def conditions(self, config: ModelConfig) -> Tensor:
        """shape (N, :func:`condition_channels`, R, R): what both 3D heads are told besides features.

        Rays, one-hot class and, with ``border_flags``, which edges the image border cuts [ours].
        """
        R = config.roi_size
        parts = [roi_rays(self.boxes, self.P, R), one_hot_maps(self.classes, len(config.classes), R)]
        if config.border_flags:
            parts.append(self.cut.to(self.boxes)[:, :, None, None].expand(-1, -1, R, R))
        return torch.cat(parts, 1)


def condition_channels(config: ModelConfig) -> int:
    """Channels of :meth:`Rois.conditions`."""
    return 2 + len(config.classes) + 4 * config.border_flags


@dataclass
class Detections:
    """What the student finds: by ``detect`` in one image, best first; by ``place`` for each box that is given.

    Attributes:
        boxes: shape (K, 4), pixels of the network's input, clipped to the image.
        scores: shape (K,), in [0, 1], see :func:`joint_score`.
        classes: shape (K,), long.
        boxes3d: K decoded boxes.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    boxes3d: Prediction3D

    def __getitem__(self, index: Tensor | slice) -> Detections:
        """Those at an index, mask or slice."""
        return Detections(self.boxes[index], self.scores[index], self.classes[index], select(self.boxes3d, index))


class Student(nn.Module):
    """MDN."""

    network = "mdn"
    mean: Tensor
    std: Tensor
    prior: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone, config.neck_channels)
        self.heads_2d = Heads2D(config.neck_channels, len(config.classes))
        self.head_3d = Head3D(config.neck_channels + condition_channels(config), config.head_channels)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("prior", prior_sizes(config.classes), persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """uint8 or float images in 0..255, (B, 3, H, W) -> F_G (B, C_g, H/4, W/4)."""
        pixels = images.to(self.mean.dtype).contiguous(memory_format=torch.channels_last)
        features: Tensor = self.backbone((pixels - self.mean) / self.std)
        return features

    def maps_2d(self, features: Tensor) -> Maps2D:
        """F_G -> heatmap, offset, size maps."""
        maps: Maps2D = self.heads_2d(features)
        return maps

    def boxes_3d(self, features: Tensor, P: Tensor, rois: Rois, detach_yaw: bool = False) -> Prediction3D:
        """F_G and RoIs -> 3D boxes.

        Args:
            features: shape (B, C_g, H/4, W/4).
            P: shape (B, 3, 4), cameras of the images; only a network with a depth map needs them.
            rois: of these images.
            detach_yaw: as in :func:`skd_core.models.decode.decode_3d`.
        """
        return self.decode(self.head_3d(self.head_input(features, rois)), rois, detach_yaw)

    def head_input(self, features: Tensor, rois: Rois) -> Tensor:
        """shape (N, C_g + conditions, R, R): F_G in the RoIs, and the additional inputs of the 3D head."""
        pooled = roi_features(features, rois.batch_index, rois.boxes, self.config.roi_size)
        return torch.cat([pooled, rois.conditions(self.config)], 1)

    def decode(self, raw: Raw3D, rois: Rois, detach_yaw: bool = False) -> Prediction3D:
        """Raw outputs of a 3D head (the student's or the teacher's) -> boxes."""
        return decode_3d(
            raw,
            rois.boxes,
            rois.P,
            self.prior[rois.classes],
            rois.cut_vertically,
            detach_yaw=detach_yaw,
            use_direction=self.config.direction,
            center_offset=self.config.center_offset,
            center_range=self.config.center_range,
            focal=self.config.focal,
        )

    @torch.no_grad()
    def detect(
        self,
        images: Tensor,
        P: Tensor,
        limit: int = 50,
        min_heat: float = 0.0,
    ) -> list[Detections]:
        """Inference.

        Args:
            images: shape (B, 3, H, W), 0..255.
            P: shape (B, 3, 4), cameras at this size.
            limit: most boxes per image.
            min_heat: the 3D head runs only on peaks above it. A threshold is a score everywhere else, and a score is
                at most the root of the heat: ask for its square, and for the score afterwards.
        """
        features = self.features(images)
        boxes, heat, classes, image = self._peaks(features, images, limit)
        kept = distinct(boxes, heat, image * len(self.config.classes) + classes, min_heat)
        boxes, heat, classes, index = (part[kept] for part in (boxes, heat, classes, image))
        rois = _rois_of(images, P, index, boxes, classes)
        found = self._detections(features, P, rois, heat)
        result = []
        for b in range(len(images)):
            at = (index == b).nonzero()[:, 0]
            result.append(found[at[found.scores[at].argsort(descending=True)]])
        return result

    @torch.no_grad()
    def detect_all(self, images: Tensor, P: Tensor, limit: int = 50) -> tuple[Detections, Tensor]:
        """Every peak with its 3D box, weak and doubled ones too: what :meth:`detect` chooses from.

        All shapes depend on the input's alone, and nothing waits for the device, so that a CUDA graph can hold it.

        Args:
            images, P, limit: as of :meth:`detect`.

        Returns:
            detections in the order of heat, image by image, and shape (N,), their heat.
        """
        features = self.features(images)
        boxes, heat, classes, image = self._peaks(features, images, limit)
        return self._detections(features, P, _rois_of(images, P, image, boxes, classes), heat), heat

    def _peaks(self, features: Tensor, images: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes (N, 4) clipped to the images, heat, classes, and the image of each peak; N = B min(limit, cells)."""
        boxes, heat, classes = decode_2d(self.maps_2d(features), limit)
        height, width = images.shape[-2:]
        boxes = clip_boxes_to_image(boxes, (height, width))
        image = torch.arange(len(images), device=boxes.device)[:, None].expand_as(heat)
        return boxes.flatten(0, 1), heat.flatten(), classes.flatten(), image.flatten()

    @torch.no_grad()
    def place(
        self, images: Tensor, P: Tensor, index: Tensor, boxes: Tensor, classes: Tensor, scores: Tensor
    ) -> Detections:
        """The 3D head on 2D boxes from outside: one answer for each, in their order; no NMS, no limit.

        Args:
            images: shape (B, 3, H, W), 0..255.
            P: shape (B, 3, 4), cameras at this size.
            index: shape (N,), long, the image of each box.
            boxes: shape (N, 4), pixels of these images, inside of them, with sides above ``MIN_SIDE``.
            classes: shape (N,), long.
            scores: shape (N,), of the 2D boxes, in [0, 1]; they stand where ``detect`` has the heat.
        """
        rois = _rois_of(images, P, index, boxes, classes)
        return self._detections(self.features(images), P, rois, scores)

    def _detections(self, features: Tensor, P: Tensor, rois: Rois, scores: Tensor) -> Detections:
        """F_G, cameras, RoIs and their 2D scores -> detections in the order of the RoIs."""
        found = self.boxes_3d(features, P, rois)
        return Detections(rois.boxes, joint_score(scores, found.log_sigma), rois.classes, found)


def distinct(boxes: Tensor, heat: Tensor, group: Tensor, min_heat: float) -> Tensor:
    """Which peaks are objects: above a heat, larger than a pixel, one of those of a group that overlap.

    Args:
        boxes: shape (N, 4), pixels; heat: shape (N,); group: shape (N,), long, such as the class.

    Returns:
        indexes, shape (M,), by heat, best first.
    """
    size = boxes[:, 2:] - boxes[:, :2]
    kept = ((heat > min_heat) & (size.amin(-1) > MIN_SIDE)).nonzero()[:, 0]
    return kept[batched_nms(boxes[kept].float(), heat[kept], group[kept], NMS_IOU)]


def _rois_of(images: Tensor, P: Tensor, index: Tensor, boxes: Tensor, classes: Tensor) -> Rois:
    height, width = images.shape[-2:]
    size = torch.stack([boxes.new_full((len(index),), side) for side in (width, height)], -1)
    return Rois(index, boxes, classes, P[index].to(boxes), size)


def joint_score(score_2d: Tensor, log_sigma: Tensor) -> Tensor:
    """shape (N,), in [0, 1]: geometric mean of a 2D score and of certainty exp((.03 - sigma_z) / .1) [ours].

    Args:
        score_2d: shape (N,), in [0, 1], the heat of own boxes or the score of boxes from outside.
        log_sigma: shape (N,), log of the depth's relative standard deviation.
    """
    excess = torch.exp(log_sigma) - math.exp(MIN_LOG_SIGMA)
    return torch.sqrt(score_2d * torch.exp(-excess.clamp(min=0) / SCORE_SCALE))


def select(boxes: Prediction3D, index: Tensor | slice) -> Prediction3D:
    """The predictions at an index, mask or slice."""
    return Prediction3D(**{name: value[index] for name, value in vars(boxes).items()})


def to_boxes3d(found: Detections, classes: tuple[str, ...], sx: float = 1.0, sy: float = 1.0) -> Boxes3D:
    """The student's detections as boxes on the CPU; sx, sy bring network pixels back to the image's.

    Yaw counts as known modulo pi here; how sure it is and the rest is said by
    :class:`skd_core.inference.calibration.Calibration`.
    """
    boxes = found.boxes3d
    z = torch.exp(boxes.log_z)
    return Boxes3D(
        boxes.center,
        boxes.size,
        boxes.yaw,
        tuple(classes[c] for c in found.classes.tolist()),
        found.scores.clamp(0, 1),
        found.boxes * found.boxes.new_tensor([sx, sy, sx, sy]),
        z * torch.exp(boxes.log_sigma),
        flip_odds=torch.full_like(z, 0.5),
    ).to("cpu")
