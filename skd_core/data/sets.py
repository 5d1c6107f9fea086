"""From a config's data section to the reader of its layout."""

from __future__ import annotations

from skd_core.config import SetConfig
from skd_core.data.kitti import KittiDataset
from skd_core.data.nuscenes import NuScenesDataset


def open_set(
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
