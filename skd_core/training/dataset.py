"""The training frames of one or several sets, cropped to windows at one focal length and augmented."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from skd_core.config import AugmentConfig, SetConfig, TrainConfig
from skd_core.data.occlusion import covered_share
from skd_core.data.sample import Sample
from skd_core.data.transforms import (
    crop,
    degrade,
    flip,
    ignore_objects,
    jitter_colors,
    network_camera,
    resize,
    visible_share,
)
from skd_core.errors import UserError
from skd_core.supervision.pseudo import PseudoTargets, pseudo_targets
from skd_core.supervision.targets import TargetMaker, share_line
from skd_core.training.batch import Batch, Item, collate
from skd_core.training.cache import SampleCache
from skd_core.training.sampler import mix_seed

MIN_VISIBLE = 0.25
"""Share of a 2D box that a window must leave for the object to be learnt."""

REPETITION = 1_000_003
"""Step between the seeds of the repetitions of a sample within one epoch."""


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


@dataclass
class _Source:
    """One set of the mixture."""

    config: SetConfig
    data: Dataset[Sample]
    maker: TargetMaker
    targets: list[PseudoTargets] | None = None  # of all samples, once made

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Sample:
        return self.maker.read(self.data[index])


class TrainingSet(Dataset[Item]):
    """Samples at the network's focal length with their pseudo-targets, augmented.

    Args:
        sources: data sets of :class:`Sample`, such as :class:`skd_core.data.kitti.KittiDataset`, one for each of
            ``config.data.sets``; or the only one.
        config: of the run.

    Attributes:
        focal: (fx, fy) of the network's input, pixels: ``model.focal``, or what ``model.input_size`` makes of the
            images, by the median; without those of ``only_2d`` sets, whose focal lengths may be uncertain.
    """

    def __init__(self, sources: Dataset[Sample] | Sequence[Dataset[Sample]], config: TrainConfig) -> None:
        self.config = config
        data, several = config.data, sources if isinstance(sources, Sequence) else [sources]
        shared = (data.depth_kind, data.camera_height, config.model.center_offset)
        self.sources = [
            _Source(part, source, TargetMaker(*shared, part.boxes))
            for part, source in zip(data.sets, several, strict=True)
        ]
        self.first = [0, *itertools.accumulate(len(source) for source in self.sources)]  # index of each set's first
        self.cache = SampleCache(len(self), data.workers) if data.cache else None

    def __len__(self) -> int:
        return self.first[-1]

    def locate(self, index: int) -> tuple[_Source, int]:
        """The set that a sample is of, and its index there."""
        which = bisect.bisect_right(self.first, index) - 1
        return self.sources[which], index - self.first[which]

    @cached_property
    def focal(self) -> tuple[float, float]:
        if self.config.model.focal is not None:
            return self.config.model.focal, self.config.model.focal
        width, height = self.config.model.input_size
        trusted = [source for source in self.sources if not source.config.only_2d] or self.sources
        cameras = [source[i].camera for source in trusted for i in range(min(len(source), 200))]
        found = [(c.fx * width / c.width, c.fy * height / c.height) for c in cameras]
        fx, fy = torch.tensor(found).median(0).values.tolist()
        return fx, fy

    @property
    def uses_pseudo_targets(self) -> bool:
        """Whether the run learns from pseudo-targets."""
        method = self.config.method
        return (method.teacher or method.direct_targets) and not method.supervised

    def make_targets(self) -> str:
        """Make all pseudo-targets now, or read them where they are kept: workers and epochs then share them.

        Returns:
            one line a set that says what share of the boxes got one.
        """
        lines = []
        for source in self.sources:
            name = "" if len(self.sources) == 1 else f"{source.config.root}: "
            if not self.uses_pseudo_targets or source.config.depth_dir is None:
                why = "it has no depth maps" if self.uses_pseudo_targets and name else "this run does not use any"
                lines.append(f"{name}pseudo-targets: none, {why}")
                continue
            source.targets = source.maker.all(source.data, self.config.data.workers)
            lines.append(name + share_line(source.targets))
        return "\n".join(lines)

    def prepared(self, index: int) -> tuple[Sample, PseudoTargets]:
        """The sample as it is before augmentation, and its pseudo-targets.

        It has the network's size where that is the same in every epoch, else its own.
        """
        if self.cache is not None and (kept := self.cache.get(index)) is not None:
            return kept
        source, at = self.locate(index)
        sample = source[at]
        if self.config.method.supervised and source.config.teaches_3d(True):
            self._check_truth(sample, source.config.root)
        if source.targets is not None:
            pseudo = source.targets[at]
        elif self.uses_pseudo_targets and source.config.depth_dir is not None:
            pseudo = pseudo_targets(sample, self.config.model.center_offset)
        else:
            pseudo = PseudoTargets.none(len(sample.boxes2d))
        if self.config.model.focal is None:
            camera = network_camera(sample.camera, self.focal, self.config.model.input_size)
            sample = resize(sample, camera.width, camera.height)
        sample, pseudo = self._without_covered(sample, pseudo)
        if self.cache is not None:
            self.cache.put(index, (sample, pseudo))
        return sample, pseudo

    @staticmethod
    def _check_truth(sample: Sample, root: str) -> None:
        """What supervised training learns from must be there: KITTI writes -1 for sizes that are unknown."""
        if sample.boxes3d is None or bool((sample.boxes3d.size > 0).all()):
            return
        first = sample.boxes3d.labels[int((sample.boxes3d.size <= 0).any(-1).nonzero()[0])]
        raise UserError(
            f"{root}: frame {sample.name}: {first} has no 3D label, which method.supervised learns from; "
            "give this set only_2d: true or labels_3d: false, or leave it out"
        )

    def _without_covered(self, sample: Sample, pseudo: PseudoTargets) -> tuple[Sample, PseudoTargets]:
        """Objects of which a nearer one leaves too little to see become regions to ignore."""
        most = self.config.augment.max_covered
        if most == 1:
            return sample, pseudo
        keep = covered_share(sample.boxes2d.xyxy) <= most
        return ignore_objects(sample, ~keep), pseudo[keep]

    def __getitem__(self, key: tuple[int, int, int]) -> Item:
        """By (epoch, index, repetition in this epoch): an augmented sample with its targets and jittered boxes."""
        epoch, index, repetition = key
        sample, pseudo = self.prepared(index)
        generator = torch.Generator().manual_seed(mix_seed(self.config.seed, epoch + REPETITION * repetition, index))
        augment: AugmentConfig = self.config.augment
        if torch.rand((), generator=generator) < augment.flip:
            sample, pseudo = flip(sample), pseudo.flip()
        sample, pseudo = self.window(sample, pseudo, generator)
        if augment.photometric > 0:
            amount = augment.photometric
            sample = jitter_colors(sample, generator, amount, amount, amount)
        if augment.blur or augment.noise or augment.jpeg:
            sample = degrade(sample, generator, augment.blur, augment.noise, augment.jpeg)
        camera = sample.camera
        boxes = sample.boxes2d.clip(camera.width, camera.height).xyxy.float()
        jittered = jitter_boxes(boxes, augment.box_jitter, camera.width, camera.height, generator)
        in_3d = self.locate(index)[0].config.teaches_3d(self.config.method.supervised)
        return sample, pseudo, jittered, in_3d

    def window(self, sample: Sample, pseudo: PseudoTargets, generator: torch.Generator) -> tuple[Sample, PseudoTargets]:
        """What the network sees of an image: at a focal length drawn around its own, a window of ``model.input_size``.

        An image that is smaller than the window stays whole. Pseudo-targets were made of the whole image, so an object
        that the window cuts keeps what the whole of it teaches.
        """
        augment, (W, H) = self.config.augment, self.config.model.input_size
        camera = sample.camera
        if (camera.width, camera.height) == (W, H) and self.config.model.focal is None:
            return sample, pseudo
        low, high = augment.zoom
        zoom = low * (high / low) ** float(torch.rand((), generator=generator))
        scale = (zoom * self.focal[0] / camera.fx, zoom * self.focal[1] / camera.fy)
        width, height = min(camera.width, round(W / scale[0])), min(camera.height, round(H / scale[1]))
        if min(width, height) < 1:
            raise UserError(
                f"{sample.name}: focal length {camera.fx:g}x{camera.fy:g} px for {camera.width}x{camera.height} px: "
                "a window would be less than a pixel; check the calibration"
            )
        x0, y0 = place_window(sample, width, height, augment, generator)
        keep = visible_share(sample, x0, y0, width, height) >= MIN_VISIBLE
        sample = crop(sample, x0, y0, width, height, MIN_VISIBLE)
        sample = resize(sample, min(W, max(32, round(width * scale[0]))), min(H, max(32, round(height * scale[1]))))
        return sample, pseudo[keep]


def place_window(
    sample: Sample, width: int, height: int, augment: AugmentConfig, generator: torch.Generator
) -> tuple[int, int]:
    """Top left pixel of a random window: anywhere, on an object, or so that its edge cuts an object.

    Objects are drawn in proportion to the height of their 2D boxes, so that near ones get their share.
    """
    room = torch.tensor([sample.camera.width - width, sample.camera.height - height])
    draw = torch.rand(6, generator=generator)
    at = draw[:2] * (room + 1)
    boxes = sample.boxes2d.xyxy
    if len(boxes) and draw[2] < max(augment.crop_to_objects, augment.crop_cuts):
        weight = (boxes[:, 3] - boxes[:, 1]).clamp(min=1)
        box = boxes[torch.multinomial(weight.double(), 1, generator=generator)[0]]
        size = torch.tensor([width, height])
        if draw[2] < augment.crop_cuts:
            side, left = int(4 * draw[3]), 0.3 + 0.6 * float(draw[4])  # left, right, left or right again, bottom
            axis = int(side == 3)
            extent = float(box[axis + 2] - box[axis])
            begin, end = float(box[axis + 2]) - left * extent, float(box[axis]) + left * extent - float(size[axis])
            other = 0.5 * float(box[1 - axis] + box[3 - axis]) - float(draw[5]) * float(size[1 - axis])
            at = torch.tensor([0.0, 0.0])
            at[axis], at[1 - axis] = (begin if side in (0, 2) else end), other
            if side == 2 and draw[5] < 0.5:
                at[0] = end
        else:
            at = 0.5 * (box[:2] + box[2:]) - draw[3:5] * size
    x0, y0 = torch.minimum(at.floor().clamp(min=0), room).long().tolist()
    return x0, y0


def training_loader(
    dataset: TrainingSet, sampler: Sampler[list[tuple[int, int, int]]], config: TrainConfig, pin_memory: bool = False
) -> DataLoader[Batch]:
    """Batches in the sampler's order.

    Args:
        pin_memory: for a GPU, see :meth:`skd_core.training.batch.Batch.pin_memory`.
    """
    if config.model.focal is None:
        _ = dataset.focal  # reads images: once here, not once in each worker of each epoch
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=sampler,
        num_workers=config.data.workers,
        collate_fn=partial(collate, classes=config.model.classes),  # a worker that is spawned must be able to pickle it
        pin_memory=pin_memory,
        persistent_workers=config.data.workers > 0,
        generator=torch.Generator(),  # else a resumed run's global stream would be one draw ahead
    )
