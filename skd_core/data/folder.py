"""Images without labels: files and folders, all of one camera."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset

from skd_core.boxes import Boxes2D
from skd_core.calibration import Calibration, read_calibration, split_choice
from skd_core.camera import of_calibration
from skd_core.data.ros_messages import Maps, undistort, undistortion_maps
from skd_core.data.sample import Sample, read_image
from skd_core.errors import UserError
from skd_core.files import natural_order

CAMERA_SUFFIXES = (".txt", ".yaml", ".yml", ".json", ".xml")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


class ImageFolder(Dataset[Sample]):
    """Images as samples without labels, in the order of their file names (2 before 10).

    Attributes:
        paths: the image files.
        names: their names without folder and suffix, each of them once.
        cameras: the calibration file of each.
        chosen: the name of the camera in it, None for the usual one.

    Args:
        images: image files and folders of images (not searched deeper).
        camera: calibration file of all images, see :meth:`skd_core.camera.Camera.from_file`, or a folder with one for
            each, NAME.txt or NAME.yaml, as KITTI has it; ``PATH:P0`` for one camera of several. A calibration without
            image size, as KITTI's, is taken to be for these images; any other must agree with their size.
        rectified: without, images are undistorted with the calibration's K and D, as the node does where
            ``image_is_rectified`` is false; then K is their camera.

    Raises:
        UserError: a path is missing, there is no image, or two images have the same name.
    """

    def __init__(self, images: str | Path | Sequence[str | Path], camera: str | Path, rectified: bool = True) -> None:
        self.rectified = rectified
        self._maps: tuple[tuple[Calibration, tuple[int, int]], Maps | None] | None = None  # of the last image
        self.paths = image_files(images)
        self.names = [path.stem for path in self.paths]
        found = [camera_file(Path(camera), name) for name in self.names]
        self.cameras, self.chosen = [file for file, _ in found], [chosen for _, chosen in found]

    def __len__(self) -> int:
        return len(self.paths)

    def files(self, index: int) -> dict[str, Path]:
        """What a sample is read from: "image" and "calib"."""
        return {"image": self.paths[index], "calib": self.cameras[index]}

    def __getitem__(self, index: int) -> Sample:
        """Read one image.

        Raises:
            UserError: unreadable image or calibration, or a calibration for images of another size.
        """
        path = self.paths[index]
        image = read_image(path)
        size = (image.shape[2], image.shape[1])
        calibration = read_calibration(self.cameras[index], self.chosen[index])
        camera = of_calibration(calibration, size, self.rectified)
        if not self.rectified:
            if self._maps is None or self._maps[0] != (calibration, size):
                self._maps = (calibration, size), undistortion_maps(calibration, camera, calibration.source)
            pixels = undistort(image.permute(1, 2, 0).numpy(), self._maps[1])
            image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        return Sample(self.names[index], image, camera, Boxes2D.empty(), Boxes2D.empty())


def image_files(images: str | Path | Sequence[str | Path]) -> list[Path]:
    """The image files among files and folders (not searched deeper), in the order of their names (2 before 10).

    Raises:
        UserError: a path is missing, there is no image, or two images have the same name.
    """
    given = [Path(images)] if isinstance(images, (str, Path)) else [Path(path) for path in images]
    found = (path for entry in given for path in _images_at(entry))
    paths = sorted(found, key=lambda path: (natural_order(path), str(path)))
    if not paths:
        raise UserError(f"{' '.join(map(str, given)) or 'images'}: no images ({' '.join(IMAGE_SUFFIXES)})")
    by_name: dict[str, Path] = {}
    for path in paths:
        other = by_name.setdefault(path.stem, path)
        if other is not path:
            raise UserError(f"{path}: same name as {other}; their results would overwrite each other")
    return paths


def camera_file(camera: Path, name: str) -> tuple[Path, str | None]:
    """The calibration of an image, the file itself or the one of that name in a folder; and which camera of it.

    Raises:
        UserError: there is none.
    """
    path, chosen = split_choice(camera)
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"{path}: no such camera file")
        return path, chosen
    for suffix in CAMERA_SUFFIXES:
        if (path / f"{name}{suffix}").exists():
            return path / f"{name}{suffix}", chosen
    raise UserError(f"{path}: no calibration for image {name} (NAME{' or '.join(CAMERA_SUFFIXES)})")


def _images_at(path: Path) -> list[Path]:
    if path.is_dir():
        return [file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
    if not path.exists():
        raise UserError(f"{path}: no such image or folder")
    return [path]
