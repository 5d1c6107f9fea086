"""KITTI object files: labels, results, and the standard folder tree.

One line of a label file has 15 columns, one of a result file 16::

    0     1          2         3      4..7             8..10    11..13        14          15
    type  truncated  occluded  alpha  x1 y1 x2 y2 px   h w l m  x y z m       rotation_y  score
                                                                bottom centre

Labels may have more columns, as some exporters write (a score, a track): they are ignored. Training reads columns 0 and
4..7 only (:func:`read_boxes2d`): no 3D label can reach it, and labels of 2D boxes alone (8 columns) will do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from skd_core.boxes import Boxes2D, Boxes3D
from skd_core.camera import Camera
from skd_core.data.folder import IMAGE_SUFFIXES
from skd_core.data.sample import Sample, black_image, read_depth, read_image
from skd_core.errors import UserError
from skd_core.files import read_text, write_atomic

Floats = npt.NDArray[np.float64]
BOX_COLUMNS, LABEL_COLUMNS, RESULT_COLUMNS = 8, 15, 16
UNKNOWN_3D = "-1 -1 -1 -1000 -1000 -1000 -10"
"""h w l, x y z and rotation_y where nothing is known of them."""


@dataclass(eq=False)
class KittiObjects:
    """The lines of one label or result file, column by column, in KITTI's own units and axes; all float64.

    Attributes:
        type: N class names, "DontCare" among them.
        truncated: shape (N,), share outside the image in labels (-1 where unknown).
        occluded: shape (N,), 0 none, 1 part, 2 large, 3 unknown (-1 in results).
        alpha: shape (N,), observation angle, radians (-10 where unknown).
        xyxy: shape (N, 4), pixels.
        dimensions: shape (N, 3), (h, w, l), metres (-1 where unknown).
        location: shape (N, 3), centre of the bottom face in the camera frame, metres (-1000 where unknown).
        rotation_y: shape (N,), radians (-10 where unknown).
        score: shape (N,), ones for labels; any range in results, as the file has it.
    """

    type: list[str]
    truncated: Floats
    occluded: Floats
    alpha: Floats
    xyxy: Floats
    dimensions: Floats
    location: Floats
    rotation_y: Floats
    score: Floats

    def __len__(self) -> int:
        return len(self.type)

    def __getitem__(self, index: npt.ArrayLike | slice) -> KittiObjects:
        """Lines by a boolean mask, indices or a slice."""
        if not isinstance(index, slice):
            index = np.asarray(index)
            index = index if index.size else index.astype(np.intp)
        picked = np.arange(len(self))[index].reshape(-1)
        columns = (getattr(self, f.name)[picked] for f in fields(self)[1:])
        return KittiObjects([self.type[i] for i in picked], *columns)

    def is_class(self, classes: Iterable[str]) -> npt.NDArray[np.bool_]:
        """shape (N,), which lines are of the given classes."""
        wanted = set(classes)
        return np.array([name in wanted for name in self.type], dtype=bool)

    def boxes2d(self, classes: Iterable[str] | None = None) -> Boxes2D:
        """The 2D boxes (float64) of the given classes; of all lines, "DontCare" too, without."""
        chosen = self if classes is None else self[self.is_class(classes)]
        return Boxes2D(torch.from_numpy(chosen.xyxy.copy()), tuple(chosen.type), torch.from_numpy(chosen.score.copy()))

    def boxes3d(self, classes: Iterable[str] | None = None) -> Boxes3D:
        """The 3D boxes (float64) of the given classes; of all lines but "DontCare", which has none, without."""
        chosen = self[~self.is_class(["DontCare"]) if classes is None else self.is_class(classes)]
        return Boxes3D.from_kitti(
            torch.from_numpy(chosen.location),
            torch.from_numpy(chosen.dimensions),
            torch.from_numpy(chosen.rotation_y),
            chosen.type,
            scores=torch.from_numpy(chosen.score),
            xyxy=torch.from_numpy(chosen.xyxy),
        )


def read_objects(path: str | Path, results: bool = False, with_3d: bool = True) -> KittiObjects:
    """Read a label file (15 columns or more) or a result file (16 columns, the last one the score).

    Blank lines, CRLF and trailing spaces are fine, and so is an empty file (no objects). Columns of labels beyond the
    15th are not looked at.

    Args:
        results: whether it is a result file.
        with_3d: without it, labels of 2D boxes alone (8 columns) do; what they lack is unknown.

    Raises:
        UserError: unreadable file; a line with another number of columns, a value that is no finite number, or, in
            labels, a 2D box with x2 < x1 or y2 < y1 (detectors clip boxes outside the image to such ones; they count
            as any miss). The message starts with ``path:line:``.
    """
    width = RESULT_COLUMNS if results else LABEL_COLUMNS
    lines = _read_lines(path)
    rows: list[list[float]] = []
    try:
        for line in lines:
            words = line if results else line[:LABEL_COLUMNS]
            if not results and not with_3d and len(words) == BOX_COLUMNS:
                words = [*words, *UNKNOWN_3D.split()]
            rows.append([float(value) for value in words[1:]])
        table = np.array(rows, dtype=np.float64).reshape(len(rows), width - 1)
        valid = bool(np.isfinite(table).all() and (results or (table[:, 5:7] >= table[:, 3:5]).all()))
    except ValueError:
        valid = False
    if not valid:
        raise _explain(path, width, range(1, width))
    return KittiObjects(
        type=[line[0] for line in lines],
        truncated=table[:, 0],
        occluded=table[:, 1],
        alpha=table[:, 2],
        xyxy=table[:, 3:7],
        dimensions=table[:, 7:10],
        location=table[:, 10:13],
        rotation_y=table[:, 13],
        score=table[:, 14] if results else np.ones(len(lines)),
    )


def read_boxes2d(path: str | Path) -> Boxes2D:
    """Read only the class names and 2D boxes (float64) of a label file: all that weakly supervised training may see.

    Every other column stays unread; the last ones may be missing.

    Raises:
        UserError: unreadable file, fewer than 8 columns, or an invalid 2D box. The message starts with ``path:line:``.
    """
    lines = _read_lines(path)
    try:
        xyxy = np.array([[float(value) for value in line[4:8]] for line in lines]).reshape(len(lines), 4)
        valid = bool(np.isfinite(xyxy).all() and (xyxy[:, 2:] >= xyxy[:, :2]).all())
    except ValueError:
        valid = False
    if not valid:
        raise _explain(path, None, range(4, 8))
    return Boxes2D(torch.from_numpy(xyxy), tuple(line[0] for line in lines))


def read_given_boxes2d(path: str | Path) -> Boxes2D:
    """Read the 2D boxes (float32) of a label file, or of a result file (16 columns) with its scores; no "DontCare".

    Raises:
        UserError: as :func:`read_boxes2d` and, for a file with a line of 16 columns, :func:`read_objects`; boxes or
            scores that cannot be, see :meth:`skd_core.boxes.Boxes2D.check`.
    """
    scored = any(len(line) == RESULT_COLUMNS for line in _read_lines(path))
    boxes = read_objects(path, results=True).boxes2d() if scored else read_boxes2d(path)
    boxes = boxes[[label != "DontCare" for label in boxes.labels]].to(torch.float32)
    try:
        boxes.check()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return boxes


def write_results(path: str | Path, boxes: Boxes3D) -> None:
    """Write detections as a KITTI result file that reads back to the same float64 values.

    Truncation and occlusion are written as -1 and the location as the centre of the bottom face, computed in float64.
    Where ``boxes.xyxy`` is unknown (NaN), project the boxes first: the format has no word for it.

    Raises:
        UserError: a value is not finite, or a class name is empty or holds a space.
    """
    exact = boxes.to("cpu", torch.float64)
    alpha, yaw, scores = (column[:, None] for column in (exact.alpha, exact.yaw, exact.scores))
    table = torch.cat([alpha, exact.xyxy, exact.dimensions_hwl, exact.bottom, yaw, scores], -1).detach()
    lines = []
    for label, row in zip(boxes.labels, table.tolist(), strict=True):
        if len(label.split()) != 1 or label != label.strip():
            raise UserError(f"{path}: class name {label!r} cannot be written: KITTI names are one word")
        lines.append(f"{label} -1 -1 {' '.join(map(repr, row))}\n")
    if not bool(table.isfinite().all()):
        row_number = int((~table.isfinite()).any(-1).nonzero()[0])
        raise UserError(f"{path}: detection {row_number} holds NaN or infinity: {lines[row_number].strip()}")
    write_atomic(path, "".join(lines))


class KittiDataset(Dataset[Sample]):
    """The standard KITTI object tree.

    2D boxes are clipped to the image; what lies outside of it altogether is left out.

    ::

        root/training/image_2/000003.png   or .jpg
        root/training/calib/000003.txt
        root/training/label_2/000003.txt
        root/training/<depth_dir>/000003.png   or .npy, only if asked for
        root/ImageSets/train.txt   one name per line, only if a split is asked for

    Args:
        root: the folder that holds ``training``.
        split: name of a file in ``ImageSets``; None takes every image there is.
        classes: the classes to learn; objects of all others become :attr:`Sample.ignore`.
        depth_dir: folder of depth maps, relative to ``root/training`` or absolute.
        with_3d: read the 3D labels too, for evaluation. Without it they are not even parsed.
        labels: without them ``label_2`` is not read, no frame has 2D boxes, and ``with_3d`` has no effect.

    Raises:
        UserError: a folder, a split or a frame's file is missing, or there are no frames; found when the data set is
            made. A malformed file is named when its frame is read.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        classes: Sequence[str] = ("Car", "Pedestrian", "Cyclist"),
        depth_dir: str | None = None,
        with_3d: bool = False,
        *,
        labels: bool = True,
    ) -> None:
        self.root, self.classes, self.with_3d = Path(root), tuple(classes), with_3d and labels
        training = self.root / "training"
        self._images = _files_by_name(training / "image_2", IMAGE_SUFFIXES)
        self._calibs = _files_by_name(training / "calib", (".txt",))
        self._labels = _files_by_name(training / "label_2", (".txt",)) if labels else None
        self._depths = None if depth_dir is None else _files_by_name(training / depth_dir, (".png", ".npy"))
        self.names = sorted(self._images) if split is None else read_split(self.root / "ImageSets", split)
        if not self.names:
            place = training / "image_2" if split is None else self.root / "ImageSets" / f"{split}.txt"
            raise UserError(f"{place}: no frames")
        found = {"image_2": self._images, "calib": self._calibs, "label_2": self._labels, depth_dir: self._depths}
        for folder, files in found.items():
            if folder is None or files is None:
                continue
            missing = [name for name in self.names if name not in files]
            if missing:
                raise UserError(
                    f"{training / folder}: {len(missing)} of {len(self.names)} frames have no file, first {missing[0]}"
                )

    def __len__(self) -> int:
        return len(self.names)

    def files(self, index: int) -> dict[str, Path]:
        """The files of a frame: "image", "calib", "label", and "depth" where there is one.

        "label" is named without ``labels`` too, whether or not it exists: nothing may be written over it.
        """
        name = self.names[index]
        kinds = {"image": self._images, "calib": self._calibs, "label": self._labels, "depth": self._depths}
        unread = {"label": self.root / "training" / "label_2" / f"{name}.txt"}
        return unread | {kind: paths[name] for kind, paths in kinds.items() if paths is not None}

    def __getitem__(self, index: int) -> Sample:
        """Read one frame.

        Raises:
            UserError: a file is malformed; the message names it and the line.
        """
        return self._sample(index, read_image(self._images[self.names[index]]))

    def without_picture(self, index: int) -> Sample:
        """The same with a black image of the right size, which takes no memory: its pixels are not read."""
        return self._sample(index, black_image(self._images[self.names[index]]))

    def _sample(self, index: int, image: Tensor) -> Sample:
        name = self.names[index]
        camera = Camera.from_kitti(self._calibs[name], image.shape[2], image.shape[1])
        label = None if self._labels is None else self._labels[name]
        objects = read_objects(label) if self.with_3d and label is not None else None
        if objects is not None:
            boxes2d = objects.boxes2d()
        else:
            boxes2d = Boxes2D.empty() if label is None else read_boxes2d(label)
        boxes2d = boxes2d.to(torch.float32).clip(camera.width, camera.height)
        inside = (boxes2d.xyxy[:, 2:] > boxes2d.xyxy[:, :2]).all(-1)
        wanted = torch.tensor([label in self.classes for label in boxes2d.labels], dtype=torch.bool)
        depth = None
        if self._depths is not None:
            depth = read_depth(self._depths[name])
            if depth.shape != image.shape[1:]:
                height, width = depth.shape
                raise UserError(
                    f"{self._depths[name]}: depth is {width}x{height}, the image {camera.width}x{camera.height}"
                )
        boxes3d = None
        if objects is not None:
            boxes3d = objects[(wanted & inside).numpy()].boxes3d().to(torch.float32)
            boxes3d.xyxy = boxes2d.xyxy[wanted & inside]
        return Sample(name, image, camera, boxes2d[wanted & inside], boxes2d[~wanted & inside], depth, boxes3d)


def _files_by_name(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """The files of a folder with one of the suffixes, by their name without it."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; the standard KITTI tree has training/{{image_2,calib,label_2}}")
    return {path.stem: path for path in folder.iterdir() if path.suffix.lower() in suffixes}


def read_split(folder: Path, split: str) -> list[str]:
    """The frame names of ``folder/split.txt``.

    Raises:
        UserError: no such split, a line that is not one name, or a name that is there twice.
    """
    path = folder / f"{split}.txt"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in folder.glob("*.txt"))) or "none"
        raise UserError(f"{path}: no such split; there are: {there}")
    first: dict[str, int] = {}
    for number, line in enumerate(read_text(path, kind="split").splitlines(), 1):
        words = line.split()
        if len(words) > 1:
            raise UserError(f"{path}:{number}: expected one frame name per line, got {line.strip()!r}")
        if words and words[0] in first:
            raise UserError(f"{path}:{number}: frame {words[0]} again, as in line {first[words[0]]}; leave it out")
        first |= dict.fromkeys(words, number)
    return list(first)


def _read_lines(path: str | Path) -> list[list[str]]:
    """The lines of a file that are not blank, split into columns."""
    return [columns for line in read_text(path, kind="label file").splitlines() if (columns := line.split())]


def _explain(path: str | Path, width: int | None, numeric: Sequence[int]) -> UserError:
    """The error for the first malformed line: the slow path, so that reading thousands of good files stays fast."""
    for number, line in enumerate(read_text(path, kind="label file").splitlines(), 1):
        columns = line.split()
        where = f"{path}:{number}"
        if not columns:
            continue
        if width == RESULT_COLUMNS and len(columns) != width:
            hint = " (this looks like a label line)" if len(columns) == LABEL_COLUMNS else ""
            return UserError(f"{where}: expected 16 columns, as a result line has, got {len(columns)}{hint}")
        if width == LABEL_COLUMNS and len(columns) < width:
            hint = " (2D boxes alone; 3D boxes are needed here)" if len(columns) == BOX_COLUMNS else ""
            return UserError(f"{where}: expected 15 columns, as a label line has, got {len(columns)}{hint}")
        if len(columns) <= numeric[-1]:
            return UserError(f"{where}: expected at least {numeric[-1] + 1} columns, got {len(columns)}")
        for i in numeric:
            try:
                finite = np.isfinite(float(columns[i]))
            except ValueError:
                return UserError(f"{where}: column {i + 1} must be a number, got {columns[i]!r}")
            if not finite:
                return UserError(f"{where}: column {i + 1} must be finite, got {columns[i]!r}")
        x1, y1, x2, y2 = map(float, columns[4:8])
        if width != RESULT_COLUMNS and (x2 < x1 or y2 < y1):
            return UserError(f"{where}: 2D box needs x1 <= x2 and y1 <= y2, got {x1:g} {y1:g} {x2:g} {y2:g}")
    return UserError(f"{path}: changed while it was read")
