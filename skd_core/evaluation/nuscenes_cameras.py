"""Visibility in some of nuScenes' cameras: a detector of the front camera is scored on objects in front only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from skd_core.data.nuscenes import Frame, NuScenesDataset, rotation_matrices


class CameraFilter:
    """Keeps the boxes that are visible in some of the cameras.

    Args:
        dataset: of these cameras.
    """

    def __init__(self, dataset: NuScenesDataset) -> None:
        self._frames: dict[str, list[Frame]] = {}
        for index in range(len(dataset)):
            frame = dataset.frame(index)
            self._frames.setdefault(frame.sample_token, []).append(frame)

    def keep(self, boxes: Mapping[str, list[Any]]) -> None:
        """Take away, of the devkit's boxes by sample token, those whose centre is in no image."""
        for token, some in boxes.items():
            frames = self._frames.get(token, [])
            some[:] = [box for box in some if any(_in_image(box.translation, frame) for frame in frames)]


def _in_image(center: Sequence[float], frame: Frame) -> bool:
    """Whether the image shows a point of the global frame."""
    point = (torch.tensor(center, dtype=torch.float64) - frame.translation) @ rotation_matrices(frame.rotation)
    if not point[2] > 0:
        return False
    u, v = frame.camera.project(point[None])[0].tolist()
    return bool(0 <= u < frame.camera.width and 0 <= v < frame.camera.height)
