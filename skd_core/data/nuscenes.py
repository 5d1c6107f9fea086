"""nuScenes v1.0-*: the camera images of every key frame as single samples, read through the devkit.

::

    root/samples/CAM_FRONT/*.jpg   and the other five cameras
    root/maps/*.png                the devkit asks for them
    root/v1.0-trainval/*.json      13 tables; v1.0-mini and v1.0-test likewise
    root/<depth_dir>/NAME.png      or .npy, only if asked for; NAME is that of the image file

**2D boxes.** nuScenes has no 2D boxes drawn by hand. Ours are what the devkit's own export makes of the 3D labels: the
convex hull of the projected corners in front of the camera, cut by the image. So "weak" supervision is in quotes here:
the boxes are those of a perfect 2D annotator who also knows what is hidden.

**Yaw.** nuScenes boxes stand upright in the world, its cameras do not stand quite upright in it (a degree or two, from
mounting, braking and road). Our boxes turn about the camera's y axis only; they take the yaw whose rotation is nearest
to the true one, and the tilt that remains is not representable. 2D boxes are made before that.

**Frames.** global (metres on the map, z up) <- ego (at the image's own time) <- camera (optical). Annotations are
global, size is (w, l, h), rotation a quaternion (w, x, y, z) from the box's own axes, which are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.utils.data import Dataset

from skd_core.boxes import CORNER_SIGNS, Boxes2D, Boxes3D
from skd_core.camera import Camera, project
from skd_core.data.nuscenes_tables import find_version, load_tables, samples_of, tables_fit
from skd_core.data.sample import Sample, black_image, read_depth, read_image
from skd_core.errors import UserError

CLASSES = (
    "car", "truck", "bus", "trailer", "construction_vehicle", "pedestrian", "motorcycle", "bicycle", "traffic_cone",
    "barrier",
)  # fmt: skip
"""The ten classes of the detection task."""

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")

UNKNOWN_VISIBILITY = 4
"""Of the few annotations without one: taken as visible."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a key frame and where its camera was.

    Attributes:
        name: the image file's name without suffix; unique over all cameras.
        sample_token: of the key frame, which six images share.
        image: the file.
        camera: of this image.
        rotation: shape (4,), float64, quaternion (w, x, y, z) from the camera's to the global frame.
        translation: shape (3,), float64, the camera's place in the global frame, metres.
    """

    name: str
    sample_token: str
    image: Path
    camera: Camera
    rotation: Tensor
    translation: Tensor


@dataclass(eq=False)
class Annotations:
    """Objects in the global frame.

    Attributes:
        translation: shape (N, 3), volume centres, metres; float64 like the others.
        size: shape (N, 3), (w, l, h), metres: the order of nuScenes' files.
        rotation: shape (N, 4), quaternions (w, x, y, z) from the boxes' own axes.
        labels: N classes of the detection task; of objects outside of it nuScenes' category ("animal").
        visibility: shape (N,), 1 to 4: share of the object that the cameras see, in bins up to 40, 60, 80, 100 %.
    """

    translation: Tensor
    size: Tensor
    rotation: Tensor
    labels: tuple[str, ...]
    visibility: Tensor

    def in_camera(self, frame: Frame) -> tuple[Boxes3D, Tensor]:
        """As boxes in a camera's frame, with the nearest yaw, and their exact corners, shape (N, 8, 3)."""
        to_camera = rotation_matrices(frame.rotation).transpose(-1, -2)
        rotation = to_camera @ rotation_matrices(self.rotation)
        center = (self.translation - frame.translation) @ to_camera.transpose(-1, -2)
        size = self.size[:, [1, 0, 2]]
        corners = (0.5 * size[:, None] * CORNER_SIGNS) @ rotation.transpose(-1, -2) + center[:, None]
        return Boxes3D(center, size, nearest_yaw(rotation), self.labels), corners


class NuScenesDataset(Dataset[Sample]):
    """Key frames' images, one sample each: by scene, time, then camera.

    Objects that are hardly visible (see ``min_visibility``) and those whose centre is not in front of the camera become
    :attr:`Sample.ignore`, and so do those of other classes.

    Attributes:
        names: of the images, see :class:`Frame`.
        sample_tokens: of the key frames, each once.

    Args:
        root: the folder that holds ``samples`` and ``v1.0-*``.
        split: "train", "val", "test", "mini_train", "mini_val", or one of the version's ``splits.json``; None takes all
            scenes.
        classes: the classes to learn, of :data:`CLASSES`.
        depth_dir: folder of depth maps, relative to ``root`` or absolute.
        with_3d: also give the 3D boxes, for evaluation.
        version: "v1.0-trainval"; may be left out where there is only one.
        min_visibility: 1 to 4, the minimum :attr:`Annotations.visibility` of an object to learn. 2 leaves out what is
            mostly hidden, as somebody drawing boxes would.
        cameras: those of :data:`CAMERAS` to take; the others need not be there.
        needs_images: False: the images are not looked for, and only :meth:`frame` can be asked.

    Raises:
        UserError: the devkit is not installed; a folder, table, split, image or depth map is missing; a class is
            unknown. A malformed file is named when its frame is read.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        classes: Sequence[str] = CLASSES,
        *,
        depth_dir: str | None = None,
        with_3d: bool = False,
        version: str | None = None,
        min_visibility: int = 2,
        cameras: Sequence[str] = CAMERAS,
        needs_images: bool = True,
    ) -> None:
        unknown = [name for name in classes if name not in CLASSES]
        if unknown:
            raise UserError(f"'{unknown[0]}' is not a nuScenes class; they are {', '.join(CLASSES)}")
        self.root, self.split, self.classes, self.with_3d = Path(root), split, tuple(classes), with_3d
        self.min_visibility, self.cameras = min_visibility, parse_cameras(cameras)
        self.version = find_version(self.root) if version is None else version
        tables = load_tables(self.root, self.version)
        with tables_fit(self.root / self.version):
            self._read(tables)
        if needs_images:
            self._check_files("images", self._images)
        self._depths = None
        if depth_dir is not None:
            folder = self.root / depth_dir
            there = {path.stem: path for suffix in ("png", "npy") for path in folder.glob(f"*.{suffix}")}
            self._depths = [there.get(name, folder / f"{name}.png") for name in self.names]
            self._check_files("depth maps", self._depths)

    def _read(self, tables: Any) -> None:
        """Keep what the samples need, and let go of the tables."""
        samples = samples_of(tables, self.split)
        self.sample_tokens = [sample["token"] for sample in samples]
        self._annotations = _collect_annotations(tables, samples)
        records = [tables.get("sample_data", s["data"][c]) for s in samples for c in self.cameras if c in s["data"]]
        if not records:
            which = "camera images" if self.cameras == CAMERAS else f"images of {', '.join(self.cameras)}"
            raise UserError(f"{self.root / self.version}: no {which} in split '{self.split}'")
        self._tokens = [record["sample_token"] for record in records]
        self._images = [self.root / record["filename"] for record in records]
        self._sizes = [(int(record["width"]), int(record["height"])) for record in records]
        self.names = [image.stem for image in self._images]
        sensors = [tables.get("calibrated_sensor", record["calibrated_sensor_token"]) for record in records]
        egos = [tables.get("ego_pose", record["ego_pose_token"]) for record in records]
        self._K = _doubles([sensor["camera_intrinsic"] for sensor in sensors])
        ego_rotation = _doubles([ego["rotation"] for ego in egos])
        self._rotation = multiply(ego_rotation, _doubles([sensor["rotation"] for sensor in sensors]))
        mounted = _doubles([sensor["translation"] for sensor in sensors])[..., None]
        self._translation = (rotation_matrices(ego_rotation) @ mounted)[..., 0]
        self._translation += _doubles([ego["translation"] for ego in egos])

    def _check_files(self, what: str, paths: Sequence[Path]) -> None:
        missing = [path for path in paths if not path.is_file()]
        if missing:
            others = ", ".join(c for c in self.cameras if any(f"/{c}/" in str(path) for path in missing))
            cure = f" (of {others}); --cameras takes those that are there" if what == "images" and others else ""
            raise UserError(f"{missing[0]}: no such file; {len(missing)} of {len(paths)} {what} are missing{cure}")

    def __len__(self) -> int:
        return len(self.names)

    def files(self, index: int) -> dict[str, Path]:
        """What a sample is read from: "image", the tables "calib" and "label", and "depth" where there is one."""
        version = self.root / self.version
        files = {"calib": version / "calibrated_sensor.json", "label": version / "sample_annotation.json"}
        files["image"] = self._images[index]
        return files if self._depths is None else files | {"depth": self._depths[index]}

    def frame(self, index: int) -> Frame:
        """Which image this is and where it was taken; reads no file.

        Raises:
            UserError: the intrinsics are no camera's.
        """
        P = torch.cat([self._K[index], torch.zeros(3, 1, dtype=torch.float64)], 1)
        try:
            camera = Camera(P, *self._sizes[index])
        except UserError as error:
            raise UserError(f"{self._images[index]}: {error}") from None
        return Frame(
            self.names[index], self._tokens[index], self._images[index], camera, self._rotation[index],
            self._translation[index],
        )  # fmt: skip

    def __getitem__(self, index: int) -> Sample:
        """Read one image.

        Raises:
            UserError: the image or depth map is malformed or not of the size that the tables say.
        """
        return self._sample(index, read_image(self.frame(index).image))

    def without_picture(self, index: int) -> Sample:
        """The same with a black image of the right size, which takes no memory: its pixels are not read."""
        return self._sample(index, black_image(self.frame(index).image))

    def _sample(self, index: int, image: Tensor) -> Sample:
        frame = self.frame(index)
        _check_size(frame.image, image.shape[1:], frame.camera)
        depth = None
        if self._depths is not None:
            depth = read_depth(self._depths[index])
            _check_size(self._depths[index], depth.shape, frame.camera)

        annotations = self._annotations[frame.sample_token]
        boxes3d, corners = annotations.in_camera(frame)
        xyxy = image_boxes(corners, frame.camera)
        seen = xyxy.isfinite().all(-1)
        listed = torch.tensor([label in self.classes for label in annotations.labels], dtype=torch.bool)
        wanted = listed & (annotations.visibility >= self.min_visibility) & (boxes3d.center[:, 2] > 0)
        boxes3d.xyxy = xyxy
        boxes3d = boxes3d.to(torch.float32)
        boxes2d = Boxes2D(boxes3d.xyxy, boxes3d.labels)
        learnt = boxes3d[seen & wanted] if self.with_3d else None
        return Sample(frame.name, image, frame.camera, boxes2d[seen & wanted], boxes2d[seen & ~wanted], depth, learnt)


def parse_cameras(names: Sequence[str]) -> tuple[str, ...]:
    """Names of nuScenes' cameras, whatever their case, in the order of :data:`CAMERAS`.

    Raises:
        UserError: none, or one that is none of them.
    """
    wanted = [name.strip().upper() for name in names]
    unknown = [name for name in wanted if name not in CAMERAS]
    if unknown or not wanted:
        said = f"'{unknown[0]}' is not a nuScenes camera" if unknown else "no camera is named"
        raise UserError(f"{said}; they are {', '.join(CAMERAS)}")
    return tuple(name for name in CAMERAS if name in wanted)


def _collect_annotations(tables: Any, samples: Sequence[dict[str, Any]]) -> dict[str, Annotations]:
    """By sample token."""
    from nuscenes.eval.detection.utils import category_to_detection_name

    found = {}
    for sample in samples:
        records = [tables.get("sample_annotation", token) for token in sample["anns"]]
        found[sample["token"]] = Annotations(
            _doubles([record["translation"] for record in records]).reshape(-1, 3),
            _doubles([record["size"] for record in records]).reshape(-1, 3),
            _doubles([record["rotation"] for record in records]).reshape(-1, 4),
            tuple(category_to_detection_name(r["category_name"]) or str(r["category_name"]) for r in records),
            torch.tensor([int(r["visibility_token"] or UNKNOWN_VISIBILITY) for r in records], dtype=torch.long),
        )
    return found


def image_boxes(corners: Tensor, camera: Camera) -> Tensor:
    """2D boxes as the devkit exports them: around the part that the image shows of the hull of the projected corners.

    Corners behind the image plane are left out, so that the box of an object beside the camera is a rough one.

    Args:
        corners: shape (N, 8, 3), camera frame, metres.

    Returns:
        shape (N, 4), float64, pixels; NaN where the image shows nothing of the object.
    """
    from shapely import MultiPoint, box

    canvas = box(0, 0, camera.width, camera.height)
    boxes = torch.full((len(corners), 4), torch.nan, dtype=torch.float64)
    for i in (corners[..., 2] > 0).any(-1).nonzero()[:, 0].tolist():
        uv = project(camera.P, corners[i][corners[i, :, 2] > 0])
        shown = MultiPoint(uv.tolist()).convex_hull.intersection(canvas)
        if shown.area > 0:
            boxes[i] = boxes.new_tensor(shown.bounds)
    return boxes


def rotation_matrices(quaternions: Tensor) -> Tensor:
    """Of quaternions (w, x, y, z) of any length: shape (4,) -> (3, 3), or (N, 4) -> (N, 3, 3); float64."""
    return torch.from_numpy(_rotation(quaternions).as_matrix())


def multiply(p: Tensor, q: Tensor) -> Tensor:
    """Quaternion product, shapes (4,) or (N, 4), (w, x, y, z): the rotation q, then p; of unit length, float64."""
    return torch.from_numpy((_rotation(p) * _rotation(q)).as_quat()).roll(1, -1)


def _rotation(quaternions: Tensor) -> Rotation:
    return Rotation.from_quat(quaternions.detach().roll(-1, -1).numpy())  # scipy's are (x, y, z, w)


def nearest_yaw(rotation: Tensor) -> Tensor:
    """The yaw whose rotation is nearest, by the angle between them, to one from a box's own axes to the camera frame.

    It maximises the trace of ``R(yaw)^T R``, and R(yaw) has columns (c, 0, -s), (s, 0, c), (0, -1, 0) [ours].

    Args:
        rotation: shape (..., 3, 3).

    Returns:
        shape (...), radians.
    """
    return torch.atan2(rotation[..., 0, 1] - rotation[..., 2, 0], rotation[..., 0, 0] + rotation[..., 2, 1])


def _check_size(path: Path, shape: Sequence[int], camera: Camera) -> None:
    if tuple(shape) != (camera.height, camera.width):
        raise UserError(f"{path}: is {shape[1]}x{shape[0]}, but nuScenes' table says {camera.width}x{camera.height}")


def _doubles(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)
