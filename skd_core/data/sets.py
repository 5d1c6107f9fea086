"""From a config's data section to the reader of its layout."""

from __future__ import annotations

from collections.abc import Sequence

from skd_core.camera import Camera
from skd_core.config import SetConfig
from skd_core.data.kitti import KittiDataset, read_boxes2d, read_objects
from skd_core.data.nuscenes import NuScenesDataset
from skd_core.data.sample import picture_size
from skd_core.errors import UserError


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


def check_frames(dataset: KittiDataset | NuScenesDataset, with_3d: bool, wanted: Sequence[str] = ()) -> None:
    """Read all labels and calibrations, but no pixels: what is wrong with one is said now, and not when its turn comes.

    Args:
        with_3d: read the 3D labels too. Without it they are not even parsed.
        wanted: classes of which the labels must name one, if they name anything: a set of images without objects is
            fine, one whose classes are spelled otherwise would teach that its objects are background.

    Raises:
        UserError: a file is malformed, the message names it and the line; no label is of a wanted class.
    """
    named: set[str] = set()
    for index in range(len(dataset)):
        if isinstance(dataset, NuScenesDataset):
            dataset.frame(index)
            continue
        files = dataset.files(index)
        label = files["label"]
        named.update(read_objects(label).type if with_3d else read_boxes2d(label).labels)
        Camera.from_kitti(files["calib"], *picture_size(files["image"]))
    named.discard("DontCare")
    if wanted and named and not named & set(wanted):
        names = ", ".join(sorted(named))
        raise UserError(f"{dataset.root}: no 2D box of model.classes ({', '.join(wanted)}); its labels name {names}")
