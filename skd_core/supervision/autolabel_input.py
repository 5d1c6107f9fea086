"""Inputs of autolabel: folders of images, KITTI trees, bags."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skd_core.camera import Camera
from skd_core.data.bag import read_frames
from skd_core.data.bag_reader import is_storage_file
from skd_core.data.folder import ImageFolder
from skd_core.data.kitti import read_split
from skd_core.data.sample import FILE_LIMIT
from skd_core.errors import UserError
from skd_core.files import check_regular


@dataclass(frozen=True)
class Frame:
    """One image to label.

    Attributes:
        name: what its label file is called.
        digest: SHA-256 of the image and its camera, of their files or, from a bag, of pixels and P.
        image: SHA-256 of the image alone.
        path: the image's file; None for one from a bag.
        read: gives the image, shape (H, W, 3), uint8, RGB, and its camera.
    """

    name: str
    digest: str
    image: str
    path: Path | None
    read: Callable[[], tuple[NDArray[np.uint8], Camera]]


@dataclass(frozen=True)
class Source:
    """Where frames come from.

    Attributes:
        frames: of one pass over it.
        total: how many; None where only reading tells.
        labels: folder of the source's own label files; None if it has none.
    """

    frames: Iterator[Frame]
    total: int | None = None
    labels: Path | None = None


def open_source(
    source: Path,
    camera: Path | None = None,
    split: str | None = None,
    image_topic: str | None = None,
    rectified: bool = True,
) -> Source:
    """The frames of a KITTI tree, a folder of images, an image or a bag.

    Args:
        source: a folder with ``training/image_2`` is a KITTI tree; one with storage files is a bag.
        camera: calibration file or folder of NAME.txt, see :class:`skd_core.data.folder.ImageFolder`; a tree and a bag
            bring their own.
        split: a name in a tree's ImageSets.
        image_topic: of a bag with several cameras; rectified: see :func:`skd_core.data.bag.read_frames`.

    Raises:
        UserError: nothing there that can be labelled, images without a camera, or a split without a tree.
    """
    tree = source / "training"
    is_tree = (tree / "image_2").is_dir()
    if split is not None and not is_tree:
        raise UserError(f"{source}: has no splits: no KITTI tree (training/image_2)")
    if _is_bag(source):
        if camera is not None:
            raise UserError(f"{source}: a bag brings its camera_info; leave --camera out")
        return Source(_bag_frames(source, image_topic, rectified))
    if camera is None and not is_tree:
        raise UserError(f"{source}: images without a camera; pass --camera, a calibration file or a folder of NAME.txt")
    images = ImageFolder(tree / "image_2" if is_tree else source, camera or tree / "calib")
    chosen = list(range(len(images)))
    if split is not None:
        number_of = {name: number for number, name in enumerate(images.names)}
        names = read_split(source / "ImageSets", split)
        missing = [name for name in names if name not in number_of]
        if missing:
            raise UserError(f"{source}: split {split}: {len(missing)} frames have no image, first {missing[0]}")
        chosen = [number_of[name] for name in names]
    spaced = [images.paths[number] for number in chosen if len(images.names[number].split()) != 1]
    if spaced:
        raise UserError(f"{spaced[0]}: splits and lists of boxes hold names without spaces; rename the image")
    labels = tree / "label_2" if is_tree and (tree / "label_2").is_dir() else None
    return Source(_image_frames(images, chosen), len(chosen), labels)


def _is_bag(path: Path) -> bool:
    if path.is_dir():
        return (path / "metadata.yaml").is_file() or any(is_storage_file(file) for file in path.iterdir())
    return is_storage_file(path)


def _image_frames(images: ImageFolder, chosen: Sequence[int]) -> Iterator[Frame]:
    for number in chosen:
        path = images.paths[number]
        try:
            check_regular(path, FILE_LIMIT, "image")
            content = path.read_bytes()
            digest = hashlib.sha256(content + images.cameras[number].read_bytes())
            digest.update((images.chosen[number] or "").encode())
        except OSError as error:
            raise UserError(f"{path}: cannot read it or its camera's file: {error.strerror}") from None
        image = hashlib.sha256(content).hexdigest()
        yield Frame(images.names[number], digest.hexdigest(), image, path, functools.partial(_read, images, number))


def _read(images: ImageFolder, number: int) -> tuple[NDArray[np.uint8], Camera]:
    sample = images[number]
    return np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy()), sample.camera


def _bag_frames(bag: Path, image_topic: str | None, rectified: bool) -> Iterator[Frame]:
    for number, frame in enumerate(read_frames(bag, image_topic, rectified=rectified)):
        pixels = np.ascontiguousarray(frame.image)
        words = repr((pixels.shape, frame.camera.P.tolist()))
        content = pixels.tobytes()
        digest, image = (hashlib.sha256(part).hexdigest() for part in (words.encode() + content, content))
        yield Frame(f"{number:06d}", digest, image, None, functools.partial(_same, pixels, frame.camera))


def _same(image: NDArray[np.uint8], camera: Camera) -> tuple[NDArray[np.uint8], Camera]:
    return image, camera
