"""Evaluation of a detector per object, on real frames with 3D labels [ours].

AP mixes what is found with where it is put, and its moderate set leaves out what the border cuts. Here every label that
a driver would call visible counts once: found or not, how well the 2D box fits, where the 3D box stands.

- Counted are labels of the kind with occlusion 0 or 1, at least 25 px high, less than half truncated.
- Detections of the kind, best score first, each take the free label (counted or not) that they overlap most, if the 2D
  IoU is above .5.
- Of the others "on nothing" are those that overlap no label of any kind by .3 and do not lie by half in a DontCare
  region; "ill-fitting" those whose best overlap is .3 to .5.
- A label is near if its centre is nearer than 15 m, cut if its 2D box comes within 3 px of the image's border, large if
  that box is at least a third of the image high.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.ops import box_iou

from skd_core.boxes import Boxes3D, at_border
from skd_core.data.kitti import Floats, KittiObjects
from skd_core.evaluation.overlaps import Flags
from skd_core.iou import bev_iou, covered, iou_3d, take_best

MIN_HEIGHT, MAX_OCCLUDED, MAX_TRUNCATED = 25.0, 1, 0.5
FOUND, NOTHING = 0.5, 0.3
"""2D IoU above which a detection has found a label, and below which it has to do with none."""
NEAR, LARGE = 15.0, 1 / 3
COLUMNS = (
    "iou_2d", "bev", "iou_3d", "depth", "yaw", "z", "cut", "large", "score", "spread", "lateral", "vertical", "turned",
)  # fmt: skip
PARTS = ("whole", "cut", "near", "near, whole", "near, cut", "far, whole", "large", "all")


@dataclass(eq=False)
class Tally:
    """What became of the labels and detections of one kind in some frames.

    Attributes:
        rows: shape (N, COLUMNS), one for each counted label: 2D IoU, BEV IoU and 3D IoU with its detection (0 where it
            is missed; NaN in 3D where the label has none), relative depth error and yaw error modulo pi in degrees (NaN
            where missed), the label's depth in metres, whether it is cut and large, the detection's score (-1: missed),
            and of what is found (else NaN) the depth error in units of the detection's depth_std, the error across the
            detection's viewing ray, sideways and upwards, as fractions of its distance, whether front and rear are
            taken for each other.
        nothing: shape (M,), scores of detections on nothing; ill: shape (K,), of ill-fitting ones.
        frames: how many frames.
    """

    rows: Floats
    nothing: Floats
    ill: Floats
    frames: int

    def at(self, threshold: float) -> Tally:
        """The same at a higher minimum score: what lies below is not detected.

        This is exact, since a detection never takes a label from one with a better score.
        """
        rows = self.rows.copy()
        gone = self["score"] < threshold
        rows[gone, :3] = np.where(np.isnan(rows[gone, :3]), np.nan, 0.0)
        rows[gone, 3:5], rows[gone, 8], rows[gone, 9:] = np.nan, -1.0, np.nan
        return Tally(rows, self.nothing[self.nothing >= threshold], self.ill[self.ill >= threshold], self.frames)

    def __getitem__(self, column: str) -> Floats:
        """A column of the rows."""
        values: Floats = self.rows[:, COLUMNS.index(column)]
        return values

    def part(self, name: str) -> Tally:
        """Only the labels of one of PARTS, with all other detections."""
        cut, near = self["cut"] > 0, self["z"] < NEAR
        chosen: dict[str, Flags] = {
            "whole": ~cut,
            "cut": cut,
            "near": near,
            "near, whole": near & ~cut,
            "near, cut": near & cut,
            "far, whole": (self["z"] >= NEAR) & ~cut,
            "large": self["large"] > 0,
            "all": np.ones(len(self.rows), dtype=bool),
        }
        return Tally(self.rows[chosen[name]], self.nothing, self.ill, self.frames)

    def statistics(self) -> dict[str, float]:
        """Shares in [0, 1] and medians of these labels; NaN where there is nothing to tell.

        "depth_error" and "depth_bias" are relative, "yaw_error" in degrees modulo pi; all three over what is found.
        """
        placed = self.rows[np.isfinite(self["bev"])]
        seen = self.rows[np.isfinite(self["depth"])]
        depth, yaw = seen[:, 3], seen[:, 4]
        return {
            "labels": float(len(self.rows)),
            "recall_50": _share(self["iou_2d"] > FOUND),
            "recall_70": _share(self["iou_2d"] > 0.7),
            "bev_50": _share(placed[:, 1] > 0.5),
            "iou_3d_50": _share(placed[:, 2] > 0.5),
            "depth_error": _median(np.abs(depth)),
            "depth_bias": _median(depth),
            "yaw_error": _median(yaw),
        }

    @property
    def on_nothing(self) -> float:
        """Detections on nothing, a frame."""
        return len(self.nothing) / max(self.frames, 1)

    @property
    def ill_fitting(self) -> float:
        """Ill-fitting detections, a frame."""
        return len(self.ill) / max(self.frames, 1)


EMPTY_TALLY = Tally(np.zeros((0, len(COLUMNS))), np.zeros(0), np.zeros(0), 0)
"""Of no frames."""


def join(tallies: Sequence[Tally]) -> Tally:
    """Of several sets of frames, all in one; at least one."""
    rows, nothing, ill = (np.concatenate([getattr(t, name) for t in tallies]) for name in ("rows", "nothing", "ill"))
    return Tally(rows, nothing, ill, sum(t.frames for t in tallies))


def tally_frame(found: Boxes3D, objects: KittiObjects, kind: str, width: int, height: int) -> Tally:
    """The rules of this module for one kind in one frame.

    Args:
        found: detections with 2D boxes and scores, of any kind, in any order; names are compared without case.
        objects: the label file's lines; of these too.
        width, height: of the image, pixels.
    """
    found = found[[label.lower() == kind.lower() for label in found.labels]].to(torch.float64)
    found = found[found.scores.argsort(descending=True, stable=True)]
    types = np.array([name.lower() for name in objects.type], dtype=object)
    same, regions = types == kind.lower(), types == "dontcare"
    xyxy = torch.from_numpy(objects.xyxy).reshape(-1, 4)
    iou = box_iou(found.xyxy, xyxy)  # (detections, labels)
    overlap, taken = iou.numpy(), take_best(iou, np.flatnonzero(same).tolist(), FOUND)
    best = overlap[:, ~regions].max(1, initial=0.0)
    others = np.setdiff1d(np.arange(len(found)), list(taken.values()))
    hidden = covered(found.xyxy, xyxy[regions]).numpy().max(1, initial=0.0) > 0.5
    scores = found.scores.numpy()
    rows = [
        _row(objects, label, found, taken.get(label), overlap, (width, height))
        for label in np.flatnonzero(same & countable(objects)).tolist()
    ]
    return Tally(
        np.array(rows, dtype=np.float64).reshape(-1, len(COLUMNS)),
        scores[others[(best[others] < NOTHING) & ~hidden[others]]],
        scores[others[(best[others] >= NOTHING) & (best[others] <= FOUND)]],
        1,
    )


def countable(objects: KittiObjects) -> Flags:
    """shape (N,), which labels count, if their kind does."""
    height = objects.xyxy[:, 3] - objects.xyxy[:, 1]
    visible = (objects.occluded >= 0) & (objects.occluded <= MAX_OCCLUDED) & (objects.truncated < MAX_TRUNCATED)
    flags: Flags = visible & (height >= MIN_HEIGHT)
    return flags


def _row(
    objects: KittiObjects, label: int, found: Boxes3D, detection: int | None, overlap: Floats, image: tuple[int, int]
) -> list[float]:
    """The columns of a counted label; image: its width and height, pixels."""
    width, height = image
    box = objects.xyxy[label]
    cut = bool(at_border(torch.from_numpy(box)[None], width, height).any())
    truth = objects[[label]].boxes3d([objects.type[label]])
    known = bool((truth.size > 0).all() and truth.center[0, 2] > 0)  # KITTI writes -1 and -1000 for what is unknown
    z = float(truth.center[0, 2]) if known else math.nan
    space = 0.0 if known else math.nan
    row = [0.0, space, space, math.nan, math.nan, z, float(cut), float(box[3] - box[1] >= LARGE * height), -1.0]
    row += [math.nan] * 4
    if detection is None:
        return row
    guess = found[[detection]]
    row[0], row[8] = float(overlap[detection, label]), float(guess.scores[0])
    if known:
        turn = math.remainder(float(guess.yaw[0] - truth.yaw[0]), math.pi)
        a, b = (torch.cat([box.center, box.size, box.yaw[:, None]], -1) for box in (guess, truth))
        row[1:5] = (
            float(bev_iou(guess.bev, truth.bev)),
            float(iou_3d(a, b)),
            float(guess.center[0, 2]) / z - 1,
            abs(math.degrees(turn)),
        )
        row[9:] = _misplaced(guess, truth)
    return row


def _misplaced(guess: Boxes3D, truth: Boxes3D) -> list[float]:
    """The last four columns, of one box of each."""
    off, center = (guess.center - truth.center)[0].numpy(), guess.center[0].numpy()
    distance = max(float(np.linalg.norm(center)), 1e-9)
    level = np.array([center[2], 0.0, -center[0]]) / max(math.hypot(center[0], center[2]), 1e-9)
    upwards = np.cross(center / distance, level)
    turned = abs(math.remainder(float(guess.yaw[0] - truth.yaw[0]), 2 * math.pi)) > math.pi / 2
    spread = float(off[2]) / max(float(guess.depth_std[0]), 1e-9)  # NaN stays NaN
    return [spread, float(off @ level) / distance, float(off @ upwards) / distance, float(turned)]


def _share(flags: Flags) -> float:
    return float(flags.mean()) if len(flags) else math.nan


def _median(values: Floats) -> float:
    return float(np.median(values)) if len(values) else math.nan
