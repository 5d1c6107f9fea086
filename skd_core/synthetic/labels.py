"""From what is seen of each object to KITTI's labels.

Objects hidden by more than 90 %, or showing fewer pixels than a car 150 m away, become DontCare, as do KITTI's. Visible
share and tight boxes come from the picture; amodal boxes and truncation from the projected 3D box, as in KITTI.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from skd_core.boxes import Boxes2D, Boxes3D, project_boxes
from skd_core.camera import Camera
from skd_core.synthetic.config import SynthConfig
from skd_core.synthetic.mesh import Array

MIN_VISIBLE, MIN_PIXELS = 0.10, 12
"""Least share of an object's own pixels, and least pixels of a 640x192 picture, that a label needs."""
FULLY_VISIBLE, PARTLY_VISIBLE = 0.8, 0.4
"""Least visible shares of KITTI's occlusion levels 0 and 1."""


class Seen(NamedTuple):
    """One rendered object."""

    label: str  # "" = carries none
    centre: Array  # volume centre, camera frame, metres
    size: Array  # (l, w, h), metres
    yaw: float
    solo: int  # pixels it would show alone
    shown: int  # pixels it shows
    tight: NDArray[np.int32]  # (4,), box around the solo pixels


@dataclass(eq=False)
class RenderedFrame:
    """A picture and all that is known about it. The N labelled objects come first in every per-object field.

    Attributes:
        image: shape (H, W, 3), uint8, RGB.
        camera: its camera.
        boxes3d: N boxes, float64; ``xyxy`` holds boxes2d's.
        boxes2d: N boxes, pixels, clipped to the image.
        truncation: shape (N,), 0..1, share of the amodal 2D box outside the image.
        occlusion: shape (N,), KITTI's level: 0 fully, 1 partly, 2 hardly visible (shares .8 and .4 part them).
        visible: shape (N,), pixels shown / pixels the object would show alone in this image.
        dont_care: boxes of objects too hidden or too small to be labelled.
        object_ids: shape (H, W), int32: 0..N-1 labelled object, -1 background, -2 any other object.
        depth_true: shape (H, W), metres along the optical axis, 0 = sky.
        depth: the simulated estimator's map, 0 = sky.
    """

    image: NDArray[np.uint8]
    camera: Camera
    boxes3d: Boxes3D
    boxes2d: Boxes2D
    truncation: Array
    occlusion: NDArray[np.int64]
    visible: Array
    dont_care: Boxes2D
    object_ids: NDArray[np.int32]
    depth_true: Array
    depth: Array


def _area(boxes: Boxes2D) -> Array:
    x1, y1, x2, y2 = boxes.xyxy.numpy().T
    area: Array = (x2 - x1) * (y2 - y1)
    return area


def label_frame(
    config: SynthConfig,
    camera: Camera,
    seen: list[Seen],
    image: NDArray[np.uint8],
    object_ids: NDArray[np.int32],
    depth_true: Array,
    depth: Array,
) -> RenderedFrame:
    """Choose what is labelled, and how; ``object_ids`` (H, W) index ``seen``, -1 = background."""
    inside = [o for o, it in enumerate(seen) if it.label and it.solo > 0]
    objects = [seen[o] for o in inside]
    boxes = Boxes3D(
        torch.tensor(np.array([it.centre for it in objects]).reshape(-1, 3)),
        torch.tensor(np.array([it.size for it in objects]).reshape(-1, 3)),
        torch.tensor([it.yaw for it in objects], dtype=torch.float64),
        tuple(it.label for it in objects),
    )
    whole = Boxes2D(project_boxes(camera.P, boxes.center, boxes.size, boxes.yaw), boxes.labels)
    clipped = whole.clip(camera.width, camera.height)
    truncation = np.clip(1 - _area(clipped) / np.maximum(_area(whole), 1e-9), 0, 1)
    xyxy = clipped.xyxy
    if config.boxes == "tight":
        xyxy = torch.tensor(np.array([it.tight for it in objects]).reshape(-1, 4), dtype=torch.float64)

    shown, solo = np.array([it.shown for it in objects], float), np.array([it.solo for it in objects], float)
    visible = shown / solo
    enough = MIN_PIXELS * config.width * config.height / (640 * 192)
    keep = (visible >= MIN_VISIBLE) & (shown >= enough)
    kept, dropped = np.flatnonzero(keep), np.flatnonzero(~keep)
    new_ids = np.full(len(seen) + 1, -2, np.int32)
    new_ids[-1] = -1  # the background's index in object_ids
    new_ids[np.array(inside, np.int64)[kept]] = np.arange(len(kept))
    labelled = boxes[torch.as_tensor(kept)]
    labelled.xyxy = xyxy[torch.as_tensor(kept)]
    return RenderedFrame(
        image=image,
        camera=camera,
        boxes3d=labelled,
        boxes2d=Boxes2D(labelled.xyxy, labelled.labels),
        truncation=truncation[kept],
        occlusion=np.select([visible[kept] >= FULLY_VISIBLE, visible[kept] >= PARTLY_VISIBLE], [0, 1], 2),
        visible=visible[kept],
        dont_care=Boxes2D(xyxy[torch.as_tensor(dropped)], ("DontCare",) * len(dropped)),
        object_ids=new_ids[object_ids],
        depth_true=depth_true,
        depth=depth,
    )
