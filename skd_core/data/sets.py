"""From a config's data section to the reader of its layout."""

from __future__ import annotations

from skd_core.camera import Camera
from skd_core.config import SetConfig
from skd_core.data.kitti import KittiDataset, read_boxes2d, read_objects
from skd_core.data.nuscenes import NuScenesDataset
from skd_core.data.sample import picture_size


def build_dataset(
    config: SetConfig, classes: tuple[str, ...], depth_dir: str | None = None, with_3d: bool = False
) -> KittiDataset | NuScenesDataset:
    """The data set that a config names.

    Args:
        classes: to learn; depth_dir: of estimated depth maps; with_3d: also give 3D boxes.

    Raises:
        UserError: see the two data sets.
    """
    if config.kind == "nuscenes":
        return NuScenesDataset(
            config.root, config.split, classes, depth_dir=depth_dir, with_3d=with_3d, version=config.version
        )
    return KittiDataset(config.root, config.split, classes, depth_dir, with_3d)


def check_frames(dataset: KittiDataset | NuScenesDataset, with_3d: bool) -> None:
    """Read all labels and calibrations, but no pixels: what is wrong with one is said now, and not when its turn comes.

    Args:
        with_3d: read the 3D labels too. Without it they are not even parsed.

    Raises:
        UserError: a file is malformed; the message names it and the line.
    """
    for index in range(len(dataset)):
        if isinstance(dataset, NuScenesDataset):
            dataset.frame(index)
            continue
        files = dataset.files(index)
        (read_objects if with_3d else read_boxes2d)(files["label"])
        Camera.from_kitti(files["calib"], *picture_size(files["image"]))
