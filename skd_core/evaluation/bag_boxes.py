"""2D boxes from outside for the frames of a recording."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from skd_core.boxes import Boxes2D
from skd_core.data.bag import CameraTopics, Frame
from skd_core.data.box_files import BoxFolder
from skd_core.errors import UserError
from skd_core.evaluation.bag_pairing import Images, files_of_images
from skd_core.inference.outside import detector_source


def frame_boxes(
    bag: Path,
    camera: CameraTopics,
    boxes: Path | None = None,
    detector: str | None = None,
    tiles: int = 0,
    classes: Sequence[str] = (),
) -> Callable[[Frame], Boxes2D] | None:
    """The 2D boxes of each frame; None where neither files nor a detector are given.

    Args:
        boxes: folder of KITTI files, one for each image of the recording, see
            :func:`skd_core.evaluation.bag_pairing.files_of_images`, in natural order (2 before 10).
        detector, tiles, classes: see :func:`skd_core.inference.outside.open_source`.

    Raises:
        UserError: both are given; files that cannot be told to frames; a frame that has none.
    """
    if boxes is not None and detector is not None:
        raise UserError("give --boxes or --detector, not both")
    if detector is not None:
        network = detector_source(detector, tiles, classes)
        return lambda frame: network(frame.image)
    if boxes is None:
        return None
    folder = BoxFolder(boxes)
    names = files_of_images(Images.read(bag, camera.image), boxes, folder.names, [])

    def read(frame: Frame) -> Boxes2D:
        if frame.number not in names:
            raise UserError(f"{folder.folder}: no file for the image of stamp {frame.stamp}")
        return folder.read(names[frame.number])

    return read
