"""`skd_core predict` and `skd_core lift`: images in, KITTI result files and annotated pictures out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset
from tqdm import tqdm

from skd_core.boxes import Boxes2D, Boxes3D
from skd_core.data.folder import ImageFolder
from skd_core.data.kitti import KittiDataset, write_results
from skd_core.data.sample import Sample
from skd_core.errors import UserError
from skd_core.files import keep_inputs, lock_folder, make_folder
from skd_core.inference.detector import Detector
from skd_core.inference.origin import domain_warning
from skd_core.inference.outside import Source
from skd_core.supervision.lift import lift, priors_of
from skd_core.visualize import add_caption, draw_bev, draw_boxes3d, stack, view_size, write_image


@dataclass(frozen=True)
class Summary:
    """What was done.

    Attributes:
        images, boxes: their numbers; by_class: boxes by class.
        out: folder of ``results`` and, with pictures, of ``pictures``.
        pictures: whether they were written.
        note: a sentence on the weights, or "".
    """

    images: int
    boxes: int
    by_class: dict[str, int]
    out: Path
    pictures: bool
    note: str = ""

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {name}" for name, count in sorted(self.by_class.items()))
        images = f"{self.images} image{'s' if self.images != 1 else ''}"
        found = f"{self.boxes} detection{'s' if self.boxes != 1 else ''}{f' ({kinds})' if kinds else ''}"
        text = f"{images}, {found}, {f'pictures in {self.out}/pictures, ' if self.pictures else ''}"
        return f"{text}results in {self.out}/results" + (f"\n{self.note}" if self.note else "")


def predict_images(
    images: Sequence[Path],
    camera: Path,
    detector: Detector,
    out: Path,
    threshold: float | None,
    *,
    draw: bool = True,
    source: Source | None = None,
    rectified: bool = True,
) -> Summary:
    """Detect in images of one camera.

    Args:
        images: files and folders; camera: calibration file or folder, see :class:`skd_core.data.folder.ImageFolder`.
        out: gets ``results/NAME.txt`` (KITTI format, full precision) and ``pictures/NAME.png``.
        threshold: minimum score, None for the weights' own; draw: whether to write pictures.
        source: of 2D boxes to place, in the place of the network's own.
        rectified: whether the images are; without, they are undistorted first, and the pictures are of those.

    Returns:
        how many images and detections, and where the results are.

    Raises:
        UserError: unreadable image or camera file, ``out`` is not a folder, or 2D boxes that cannot be placed.
    """

    def find(sample: Sample, pixels: NDArray[np.uint8]) -> Boxes3D:
        given = None if source is None else source.find(sample.name, pixels)
        return detector.predict(pixels, sample.camera, threshold, boxes2d=given)

    note = domain_warning(detector.metadata)
    return _write(
        ImageFolder(images, camera, rectified), find, out, draw, source, check=detector.class_numbers, note=note
    )


def lift_images(
    images: Sequence[Path], camera: Path | None, source: Source, out: Path, split: str | None = None, draw: bool = False
) -> Summary:
    """Place 2D boxes in space without a network, see :mod:`skd_core.supervision.lift`.

    Args:
        images: files and folders with a camera, or one KITTI tree without; split: of the tree.
        source: of the 2D boxes; out, draw: as of :func:`predict_images`.

    Returns:
        how many images and objects, and where the results are.

    Raises:
        UserError: as :func:`predict_images`; a tree with a camera, or images without one.
    """
    tree = len(images) == 1 and (images[0] / "training").is_dir()
    if tree and camera is not None:
        raise UserError(f"{images[0]}: a KITTI tree has its own calibrations; leave out --camera, or name its image_2")
    if not tree and (camera is None or split is not None):
        raise UserError("lift: images need --camera and have no --split; a KITTI tree (with training/) has both itself")
    samples = KittiDataset(images[0], split, labels=False) if camera is None else ImageFolder(images, camera)

    def find(sample: Sample, pixels: NDArray[np.uint8]) -> Boxes3D:
        return lift(source.find(sample.name, pixels), sample.camera)

    return _write(samples, find, out, draw, source, check=lambda boxes: priors_of(boxes.labels))


def _write(
    samples: ImageFolder | KittiDataset,
    find: Callable[[Sample, NDArray[np.uint8]], Boxes3D],
    out: Path,
    draw: bool,
    source: Source | None,
    *,
    check: Callable[[Boxes2D], object],
    note: str = "",
) -> Summary:
    """Result files and pictures of what is found in each sample."""
    samples[0]  # before anything is written: does the camera fit, and are the 2D boxes there?
    read = [path for index in range(len(samples)) for path in samples.files(index).values()]
    if source is not None:
        read += source.files(samples.names, check)
    kinds = {"results": ".txt", **({"pictures": ".png"} if draw else {})}
    keep_inputs((out / kind / f"{name}{end}" for kind, end in kinds.items() for name in samples.names), read)
    with lock_folder(out):
        for kind in kinds:
            make_folder(out / kind)
        return _write_each(samples, find, out, draw, note)


def _write_each(
    samples: ImageFolder | KittiDataset,
    find: Callable[[Sample, NDArray[np.uint8]], Boxes3D],
    out: Path,
    draw: bool,
    note: str,
) -> Summary:
    counts: Counter[str] = Counter()
    for sample in tqdm(_each(samples), total=len(samples), unit="image"):
        pixels = sample.image.permute(1, 2, 0).numpy()
        try:
            boxes = find(sample, pixels)
        except UserError as error:
            raise UserError(f"{sample.name}: {error}") from None
        write_results(out / "results" / f"{sample.name}.txt", boxes)
        if draw:
            bev = draw_bev(boxes, camera=sample.camera, size=view_size(sample.camera.height))
            picture = stack(draw_boxes3d(pixels, boxes, sample.camera), bev)
            write_image(out / "pictures" / f"{sample.name}.png", add_caption(picture, note))
        counts.update(boxes.labels)
    return Summary(len(samples), counts.total(), dict(counts), out, draw, note)


def _each(samples: Dataset[Sample]) -> Iterator[Sample]:
    return (samples[index] for index in range(len(samples)))  # type: ignore[arg-type]
