"""Training batches: samples resized once, augmented anew in every epoch, collated.

Every random choice follows from (seed, epoch, index), so that a run resumes exactly where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from skd_core.boxes import Boxes3D
from skd_core.config import AugmentConfig, TrainConfig
from skd_core.data.sample import Sample
from skd_core.data.transforms import flip, jitter_colors, resize
from skd_core.models.student import Rois
from skd_core.supervision.pseudo import PseudoTargets, pseudo_targets
from skd_core.supervision.targets import TargetMaker, share_line

Item = tuple[Sample, PseudoTargets, Tensor]


@dataclass
class Batch:
    """B images with N objects in all.

    Attributes:
        images: shape (B, 3, H, W), uint8.
        P: shape (B, 3, 4), cameras at this size.
        boxes: shape (N, 4), 2D boxes of the labels, clipped to the image, pixels.
        rois: the same objects with jittered boxes; what the 3D heads see unless ``augment.own_boxes`` is set.
        ignore: shape (M, 4), regions where no negative is learnt; ignore_index: shape (M,), their images.
        depth: shape (B, H, W), metres, 0 = unknown; all 0 without a depth source.
        pseudo: N pseudo-targets.
        truth: N true boxes; None unless the run is the supervised rival.
        names: of the B images.
    """

    images: Tensor
    P: Tensor
    boxes: Tensor
    rois: Rois
    ignore: Tensor
    ignore_index: Tensor
    depth: Tensor
    pseudo: PseudoTargets
    truth: Boxes3D | None
    names: tuple[str, ...]

    def to(self, device: torch.device) -> Batch:
        """All tensors on a device."""

        def move(part: object) -> object:
            if isinstance(part, (Tensor, Boxes3D)):
                return part.to(device)
            if isinstance(part, (Rois, PseudoTargets)):
                return type(part)(**{k: v.to(device) for k, v in vars(part).items()})
            return part

        return Batch(**{name: move(part) for name, part in vars(self).items()})  # type: ignore[arg-type]

    def seen_through(self, *boxes: Tensor) -> Batch:
        """The same images, each object once for every set of RoI boxes: all through the first, all through the next.

        For the 3D heads and their losses only: the 2D losses would count an object as often.

        Args:
            boxes: each of shape (N, 4), pixels.
        """

        def repeated(part: Any) -> Any:
            return type(part)(**{name: torch.cat([value] * len(boxes)) for name, value in vars(part).items()})

        return replace(
            self,
            boxes=torch.cat([self.boxes] * len(boxes)),
            rois=replace(repeated(self.rois), boxes=torch.cat(boxes)),
            pseudo=repeated(self.pseudo),
            truth=None,
        )


def jitter_boxes(boxes: Tensor, amount: float, width: int, height: int, generator: torch.Generator) -> Tensor:
    """Move each edge by a normal error of sd ``amount`` x the box's size; edges at the border stay there.

    Args:
        boxes: shape (N, 4), pixels, inside the image.
    """
    size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    bound = boxes.new_tensor([width, height, width, height])
    moved = boxes + amount * size * torch.randn(boxes.shape, generator=generator).clamp(-3, 3)
    moved = torch.minimum(moved.clamp(min=0), bound)
    at_border = (boxes < 1) | (boxes > bound - 1)
    return torch.where(at_border, boxes, moved)


class TrainingSet(Dataset[Item]):
    """Samples at the network's size with their pseudo-targets, augmented.

    Args:
        source: a data set of :class:`Sample`, such as :class:`skd_core.data.kitti.KittiDataset`.
        config: of the run.
    """

    def __init__(self, source: Dataset[Sample], config: TrainConfig) -> None:
        self.source, self.config = source, config
        data = config.data
        self.maker = TargetMaker(data.depth_kind, data.camera_height, config.model.center_offset)
        self.targets: list[PseudoTargets] | None = None  # of all samples, once made
        self.cache: dict[int, tuple[Sample, PseudoTargets]] = {}

    def __len__(self) -> int:
        return len(self.source)  # type: ignore[arg-type]

    @property
    def wants_targets(self) -> bool:
        """Whether the run learns from pseudo-targets, and there is depth to make them of."""
        method = self.config.method
        wanted = (method.teacher or method.direct_targets) and not method.supervised
        return wanted and self.config.data.depth_dir is not None

    def make_targets(self) -> str:
        """Make all pseudo-targets now, or read them where they are kept: workers and epochs then share them.

        Returns:
            one line that says what share of the boxes got one.
        """
        if not self.wants_targets:
            return "pseudo-targets: none, this run does not use any"
        self.targets = self.maker.all(self.source)
        return share_line(self.targets)

    def prepared(self, index: int) -> tuple[Sample, PseudoTargets]:
        """The sample as it is before augmentation, and its pseudo-targets."""
        if index in self.cache:
            return self.cache[index]
        width, height = self.config.model.input_size
        sample = self.maker.metric(self.source[index])
        if self.targets is not None:
            pseudo = self.targets[index]
        elif self.wants_targets:
            pseudo = pseudo_targets(sample, self.config.model.center_offset)
        else:
            pseudo = PseudoTargets.none(len(sample.boxes2d))
        prepared = resize(sample, width, height), pseudo
        if self.config.data.cache:
            self.cache[index] = prepared
        return prepared

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """By (epoch, index): the augmented sample, its pseudo-targets and its jittered boxes."""
        epoch, index = key
        sample, pseudo = self.prepared(index)
        generator = torch.Generator().manual_seed(_mix(self.config.seed, epoch, index))
        augment: AugmentConfig = self.config.augment
        if torch.rand((), generator=generator) < augment.flip:
            sample, pseudo = flip(sample), pseudo.flip()
        if augment.photometric > 0:
            amount = augment.photometric
            sample = jitter_colors(sample, generator, amount, amount, amount)
        camera = sample.camera
        boxes = sample.boxes2d.clip(camera.width, camera.height).xyxy.float()
        return sample, pseudo, jitter_boxes(boxes, augment.box_jitter, camera.width, camera.height, generator)


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index): a permutation that depends on (seed, epoch) alone.

    Every rank draws the same permutation and takes its own share of each global batch; the last, incomplete global
    batch is left out.

    Args:
        count: samples; batch_size: global, over all ranks.
    """

    def __init__(self, count: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch, self.first = 0, 0

    def __len__(self) -> int:
        return max(self.count // self.batch_size, 1)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(_mix(self.seed, self.epoch, -1))
        order = torch.randperm(self.count, generator=generator).tolist()
        for step in range(self.first, len(self)):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield [(self.epoch, index) for index in batch[self.rank :: self.world_size]]


def collate(items: list[Item], classes: tuple[str, ...]) -> Batch:
    """Items of equal size -> batch."""
    samples = [sample for sample, _, _ in items]
    counts = torch.tensor([len(s.boxes2d) for s in samples])
    batch_index = torch.arange(len(items)).repeat_interleave(counts)
    P = torch.stack([s.camera.P for s in samples]).float()
    rois = Rois(
        batch_index,
        torch.cat([jittered for _, _, jittered in items]),
        torch.tensor([classes.index(name) for s in samples for name in s.boxes2d.labels], dtype=torch.long),
        P[batch_index],
        torch.full((len(batch_index),), float(samples[0].camera.height)),
    )
    ignore = [s.ignore.xyxy.float() for s in samples]
    truth = None
    if samples[0].boxes3d is not None:
        parts = [s.boxes3d for s in samples if s.boxes3d is not None]
        truth = Boxes3D(
            torch.cat([b.center for b in parts]).float(),
            torch.cat([b.size for b in parts]).float(),
            torch.cat([b.yaw for b in parts]).float(),
            tuple(label for b in parts for label in b.labels),
        )
    return Batch(
        images=torch.stack([s.image for s in samples]),
        P=P,
        boxes=torch.cat([s.boxes2d.clip(s.camera.width, s.camera.height).xyxy.float() for s in samples]),
        rois=rois,
        ignore=torch.cat(ignore),
        ignore_index=torch.arange(len(items)).repeat_interleave(torch.tensor([len(i) for i in ignore])),
        depth=torch.stack([torch.zeros(s.image.shape[1:]) if s.depth is None else s.depth for s in samples]),
        pseudo=PseudoTargets(**{k: torch.cat([getattr(p, k) for _, p, _ in items]) for k in vars(items[0][1])}),
        truth=truth,
        names=tuple(s.name for s in samples),
    )


def training_loader(dataset: TrainingSet, sampler: EpochSampler, config: TrainConfig) -> DataLoader[Batch]:
    """Batches in the sampler's order."""
    classes = config.model.classes
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=sampler,
        num_workers=config.data.workers,
        collate_fn=lambda items: collate(items, classes),
        generator=torch.Generator(),  # else a resumed run's global stream would be one draw ahead
    )


def _mix(seed: int, epoch: int, index: int) -> int:
    """A seed for one (seed, epoch, index); neighbours give unrelated streams (splitmix64's finaliser)."""
    mask = (1 << 64) - 1
    x = (seed * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9 + (index + 1) * 0x94D049BB133111EB) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return (x ^ (x >> 31)) >> 1
