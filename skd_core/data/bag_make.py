"""Data sets as rosbag2 bags: one frame after the other, with the true boxes where there are any.

=========================== ==================================== ====================================================
topic                       type                                 what
=========================== ==================================== ====================================================
<camera>/image              sensor_msgs/Image (rgb8)             pixels as they are
<camera>/camera_info        sensor_msgs/CameraInfo               P as it is
<camera>/ground_truth       vision_msgs/Detection3DArray         labelled boxes, for RViz and any other tool
<camera>/ground_truth_kitti std_msgs/String                      KITTI only: the lines of the label file. They hold what
                                                                 the other cannot say (2D boxes, truncation, occlusion,
                                                                 DontCare), so that AP is that of the folder
=========================== ==================================== ====================================================

<camera> is /camera; for nuScenes /cam_front and so on. All messages of a frame have its stamp.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from skd_core.boxes import Boxes3D
from skd_core.data.bag import BagWriter, Frame
from skd_core.data.folder import ImageFolder
from skd_core.data.kitti import KittiDataset, read_objects
from skd_core.data.nuscenes import NuScenesDataset
from skd_core.data.sample import Sample
from skd_core.errors import UserError
from skd_core.files import keep_inputs

FIRST_STAMP = 1_000_000_000_000_000_000
"""Of data sets that do not say when their images were taken, nanoseconds."""
GROUND_TRUTH, GROUND_TRUTH_KITTI = "ground_truth", "ground_truth_kitti"


@dataclass(frozen=True)
class _Entry:
    namespace: str
    frame: Frame
    truth: Boxes3D | None = None
    truth_text: str | None = None


@dataclass(frozen=True)
class BagOptions:
    """What :func:`make_bag` may be told.

    Attributes:
        split: of KITTI or nuScenes; all frames without.
        camera: calibration file of a folder's images, see :meth:`skd_core.camera.Camera.from_file`.
        rate: frames per second of sets without times.
        storage: "mcap" or "sqlite3".
        version: nuScenes' version, if there is more than one.
        overwrite: replace a bag.
    """

    split: str | None = None
    camera: Path | None = None
    rate: float = 10.0
    storage: str = "mcap"
    version: str | None = None
    overwrite: bool = False


def make_bag(kind: str, source: Path, out: Path, options: BagOptions | None = None) -> int:
    """Write a data set as a bag.

    Args:
        kind: "kitti", "folder" or "nuscenes".
        source: its root, or the folder of images.

    Returns:
        number of images.

    Raises:
        UserError: wrong source (see the data sets), or an option that is missing or does not fit.
    """
    options = options or BagOptions()
    split, camera, rate, storage = options.split, options.camera, options.rate, options.storage
    if storage not in ("mcap", "sqlite3"):
        raise UserError(f"--storage {storage}: must be mcap or sqlite3")
    if not rate > 0:
        raise UserError(f"--rate {rate:g}: must be positive")
    keep_inputs([out], [source, camera])
    if (kind == "folder") != (camera is not None):
        raise UserError("bag-make: --camera FILE goes with folder, and only with it; other sets have calibrations")
    if kind == "kitti":
        kitti = KittiDataset(source, split)
        count, entries = len(kitti), _kitti(kitti, rate)
    elif kind == "folder" and camera is not None:
        folder = ImageFolder(source, camera)
        count, entries = len(folder), (_Entry("/camera", frame) for frame in folder_frames(folder, rate))
    elif kind == "nuscenes":
        nuscenes = NuScenesDataset(source, split, with_3d=True, version=options.version)
        count, entries = len(nuscenes), _nuscenes(nuscenes)
    else:
        raise UserError(f"'{kind}': must be kitti, folder or nuscenes")
    with BagWriter(out, storage, options.overwrite) as bag:
        for entry in tqdm(entries, total=count, unit="image", disable=count < 10):
            frame, namespace = entry.frame, entry.namespace
            bag.write_frame(frame, f"{namespace}/image", f"{namespace}/camera_info")
            if entry.truth is not None:
                truth = entry.truth.moved(frame.camera.offset)  # into the frame that the header names
                bag.write_detections(f"{namespace}/{GROUND_TRUTH}", truth, frame.stamp, frame.frame_id)
            if entry.truth_text is not None:
                bag.write_text(f"{namespace}/{GROUND_TRUTH_KITTI}", entry.truth_text, frame.stamp)
    return count


def folder_frames(dataset: ImageFolder, rate: float) -> Iterator[Frame]:
    """Images of a folder as frames of one camera, ``rate`` a second."""
    for index in range(len(dataset)):
        yield _frame(dataset[index], FIRST_STAMP + round(index * 1e9 / rate))


def _frame(sample: Sample, stamp: int, frame_id: str = "camera_optical_frame") -> Frame:
    return Frame(sample.image.permute(1, 2, 0).numpy(), sample.camera, stamp, frame_id)


def _kitti(dataset: KittiDataset, rate: float) -> Iterator[_Entry]:
    for index in range(len(dataset)):
        label = dataset.files(index)["label"]
        frame = _frame(dataset[index], FIRST_STAMP + round(index * 1e9 / rate))
        yield _Entry("/camera", frame, read_objects(label).boxes3d(), label.read_text(encoding="utf-8-sig"))


def _nuscenes(dataset: NuScenesDataset) -> Iterator[_Entry]:
    """File names end in the camera and the time of exposure in microseconds: ``..__CAM_FRONT__1532402927612460``."""
    for index in range(len(dataset)):
        sample = dataset[index]
        _, _, rest = sample.name.partition("__")
        camera, _, microseconds = rest.partition("__")
        if not microseconds.isdecimal():
            raise UserError(f"{sample.name}: a nuScenes image is named LOG__CAMERA__MICROSECONDS")
        frame = _frame(sample, 1000 * int(microseconds), camera)
        yield _Entry(f"/{camera.lower()}", frame, sample.boxes3d)
