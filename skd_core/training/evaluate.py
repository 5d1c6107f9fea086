"""The student on a validation set. Its 3D labels are read to report, never to learn."""

from __future__ import annotations

import torch
from torch import Tensor

from skd_core.boxes import Boxes3D
from skd_core.camera import Camera
from skd_core.data.kitti import KittiDataset
from skd_core.data.nuscenes import NuScenesDataset
from skd_core.data.transforms import network_camera, scale_pixels
from skd_core.models.student import to_boxes3d
from skd_core.training.module import TeacherStudent


def predict_dataset(
    model: TeacherStudent,
    dataset: KittiDataset | NuScenesDataset,
    device: torch.device,
    focal: tuple[float, float],
    *,
    teacher: bool = False,
    threshold: float = 0.05,
    batch_size: int = 8,
) -> list[Boxes3D]:
    """Detections for every frame by the student or the teacher, in the full image's pixels, as `predict` finds them.

    Args:
        focal: (fx, fy) of the network's input, pixels.
        threshold: minimum score, as `predict`'s.
        batch_size: neighbouring frames of one size, at most, that are predicted together.
    """
    model.eval()
    network = model.depth_guided() if teacher else model.student
    classes = model.config.model.classes
    results: list[Boxes3D] = []
    waiting: list[tuple[Camera, Camera, Tensor]] = []  # the image's camera, the network's, its pixels

    def flush() -> None:
        images = torch.stack([pixels for _, _, pixels in waiting]).to(device)
        P = torch.stack([camera.P for _, camera, _ in waiting]).to(device, torch.float32)
        heat = threshold**2  # a score is at most the root of the heat
        for (whole, small, _), found in zip(waiting, network.detect(images, P, min_heat=heat), strict=True):
            boxes = to_boxes3d(found, classes, whole.width / small.width, whole.height / small.height)
            results.append(boxes[boxes.scores >= threshold])
        waiting.clear()

    for index in range(len(dataset)):
        sample = dataset[index]
        small = network_camera(sample.camera, focal, model.config.model.snap_size)
        pixels = scale_pixels(sample.image, small.width, small.height)
        if waiting and (len(waiting) == batch_size or waiting[0][2].shape != pixels.shape):
            flush()
        waiting.append((sample.camera, small, pixels))
    if waiting:
        flush()
    return results
