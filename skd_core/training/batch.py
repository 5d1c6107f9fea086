"""Training batches: augmented samples of any size become tensors of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from skd_core.boxes import Boxes3D
from skd_core.data.sample import Sample
from skd_core.models.backbone import STRIDE
from skd_core.models.student import Rois
from skd_core.supervision.pseudo import PseudoTargets

Item = tuple[Sample, PseudoTargets, Tensor, bool]
"""An augmented sample, its pseudo-targets, its jittered boxes, and whether it teaches 3D."""


@dataclass
class Batch:
    """B images with N objects in all.

    Attributes:
        images: shape (B, 3, H, W), uint8.
        P: shape (B, 3, 4), cameras at this size.
        boxes: shape (N, 4), 2D boxes of the labels, clipped to the image, pixels.
        full_boxes: shape (N, 4), the same boxes where a crop has not clipped them; hidden: shape (N, 4), bool, their
            edges that are not the object's own. Both as in :class:`skd_core.data.sample.Sample`.
        in_3d: shape (N,), bool, objects of sets that teach 3D.
        rois: the same objects with jittered ground-truth boxes, see ``method.roi_source``.
        ignore: shape (M, 4), regions where no negative is learnt; ignore_index: shape (M,), their images.
        depth: shape (B, H, W), metres, 0 = unknown; all 0 without a depth source.
        pseudo: N pseudo-targets.
        truth: N true boxes, NaN of sets that give none; None unless a set gives some and training is supervised.
        names: of the B images.
        has_depth: whether ``depth_target`` knows any; all_in_3d: whether all objects are ``in_3d``. They are known
            before the batch goes to a GPU: asking it would make the step wait.
    """

    images: Tensor
    P: Tensor
    boxes: Tensor
    full_boxes: Tensor
    hidden: Tensor
    in_3d: Tensor
    rois: Rois
    ignore: Tensor
    ignore_index: Tensor
    depth: Tensor
    pseudo: PseudoTargets
    truth: Boxes3D | None
    names: tuple[str, ...]
    has_depth: bool = True
    all_in_3d: bool = False

    def to(self, device: torch.device) -> Batch:
        """All tensors on a device; from pinned memory, without waiting for the copy."""
        return self._each(lambda part: part.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """In page-locked memory, from which a GPU copies by itself; the DataLoader calls it where it is told to pin."""
        return self._each(lambda part: part.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same with every tensor changed."""

        def changed(part: object) -> object:
            if isinstance(part, Tensor):
                return change(part)
            if isinstance(part, (Rois, PseudoTargets, Boxes3D)):
                return replace(part, **{k: changed(v) for k, v in vars(part).items()})  # type: ignore[arg-type]
            return part

        return Batch(**{name: changed(part) for name, part in vars(self).items()})  # type: ignore[arg-type]

    @property
    def depth_target(self) -> Tensor:
        """shape (B, ceil(H/4), ceil(W/4)), metres, 0 = unknown: ``depth`` at the stride of the features."""
        return self.depth[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]

    @property
    def hidden_vertically(self) -> Tensor:
        """shape (N,), bool: the top or the bottom of the box is not the object's own, so its height means nothing."""
        return self.hidden[:, [1, 3]].any(-1)

    def only(self, keep: Tensor) -> Batch:
        """The same images with some of the objects, for the 3D heads and their losses; keep: shape (N,), bool."""
        if bool(keep.all()):
            return self
        names = ("boxes", "full_boxes", "hidden", "in_3d")
        rois = Rois(**{name: value[keep] for name, value in vars(self.rois).items()})
        truth = None if self.truth is None else self.truth[keep]
        parts = {name: getattr(self, name)[keep] for name in names}
        return replace(self, **parts, rois=rois, pseudo=self.pseudo[keep], truth=truth)

    def with_rois(self, *boxes: Tensor) -> Batch:
        """The same images, each object repeated once per set of RoI boxes: first all with the first set, and so on.

        For the 3D heads and their losses only: the 2D losses would count each object several times.

        Args:
            boxes: each of shape (N, 4), pixels.
        """

        def repeated(part: Any) -> Any:
            return type(part)(**{name: torch.cat([value] * len(boxes)) for name, value in vars(part).items()})

        return replace(
            self,
            boxes=torch.cat([self.boxes] * len(boxes)),
            full_boxes=torch.cat([self.full_boxes] * len(boxes)),
            hidden=torch.cat([self.hidden] * len(boxes)),
            in_3d=torch.cat([self.in_3d] * len(boxes)),
            rois=replace(repeated(self.rois), boxes=torch.cat(boxes)),
            pseudo=repeated(self.pseudo),
            truth=None,
        )


def collate(items: list[Item], classes: tuple[str, ...]) -> Batch:
    """Items -> batch; smaller images are padded with black on the right and below."""
    samples = [item[0] for item in items]
    counts = torch.tensor([len(s.boxes2d) for s in samples])
    batch_index = torch.arange(len(items)).repeat_interleave(counts)
    P = torch.stack([s.camera.P for s in samples]).float()
    sizes = torch.tensor([[s.camera.width, s.camera.height] for s in samples])
    width, height = sizes.amax(0).tolist()

    def padded(pixels: Tensor) -> Tensor:
        if pixels.shape[-2:] == (height, width):
            return pixels
        return F.pad(pixels, (0, width - pixels.shape[-1], 0, height - pixels.shape[-2]))

    rois = Rois(
        batch_index,
        torch.cat([jittered for _, _, jittered, _ in items]),
        torch.tensor([classes.index(name) for s in samples for name in s.boxes2d.labels], dtype=torch.long),
        P[batch_index],
        sizes[batch_index].float(),
    )
    ignore = [s.ignore.xyxy.float() for s in samples]
    truth = None
    if any(s.boxes3d is not None for s in samples):
        parts = [_unknown(s.boxes2d.labels) if s.boxes3d is None else s.boxes3d for s in samples]
        truth = Boxes3D(
            torch.cat([b.center for b in parts]).float(),
            torch.cat([b.size for b in parts]).float(),
            torch.cat([b.yaw for b in parts]).float(),
            tuple(label for b in parts for label in b.labels),
        )
    in_3d = torch.tensor([in_3d for *_, in_3d in items])[batch_index]
    depths = [padded(torch.zeros(s.image.shape[1:]) if s.depth is None else s.depth) for s in samples]
    batch = Batch(
        images=torch.stack([padded(s.image) for s in samples]),
        P=P,
        boxes=torch.cat([s.boxes2d.clip(s.camera.width, s.camera.height).xyxy.float() for s in samples]),
        full_boxes=torch.cat([s.full_xyxy.float() for s in samples]),
        hidden=torch.cat([s.hidden for s in samples]),
        in_3d=in_3d,
        rois=rois,
        ignore=torch.cat(ignore),
        ignore_index=torch.arange(len(items)).repeat_interleave(torch.tensor([len(i) for i in ignore])),
        depth=torch.stack(depths),
        pseudo=PseudoTargets(**{k: torch.cat([getattr(item[1], k) for item in items]) for k in vars(items[0][1])}),
        truth=truth,
        names=tuple(s.name for s in samples),
        all_in_3d=bool(in_3d.all()),
    )
    batch.has_depth = bool((batch.depth_target > 0).any())
    return batch


def _unknown(labels: tuple[str, ...]) -> Boxes3D:
    """Boxes of which nothing is known."""
    nowhere = torch.full((len(labels), 3), torch.nan)
    return Boxes3D(nowhere, nowhere, nowhere[:, 0], labels)
