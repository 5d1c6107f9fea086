"""The student on a validation set. Its 3D labels are read to report, never to learn."""

from __future__ import annotations

import torch

from skd_core.boxes import Boxes3D
from skd_core.data.kitti import KittiDataset
from skd_core.data.nuscenes import NuScenesDataset
from skd_core.data.transforms import resize
from skd_core.models.student import to_boxes3d
from skd_core.training.module import TeacherStudent


def predict_dataset(
    model: TeacherStudent,
    dataset: KittiDataset | NuScenesDataset,
    device: torch.device,
    teacher: bool = False,
    threshold: float = 0.05,
    batch_size: int = 8,
) -> list[Boxes3D]:
    """Detections for every frame by the student or the teacher, at the training size, in the full image's pixels."""
    model.eval()
    classes, (width, height) = model.config.model.classes, model.config.model.input_size
    results = []
    for first in range(0, len(dataset), batch_size):
        samples = [dataset[i] for i in range(first, min(first + batch_size, len(dataset)))]
        small = [resize(s, width, height) for s in samples]
        images = torch.stack([s.image for s in small]).to(device)
        P = torch.stack([s.camera.P for s in small]).to(device, torch.float32)
        for sample, found in zip(samples, model.detect(images, P, threshold, teacher), strict=True):
            camera = sample.camera
            results.append(to_boxes3d(found, classes, camera.width / width, camera.height / height))
    return results
