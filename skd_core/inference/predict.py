"""`skd_core predict`: images in, KITTI result files and annotated pictures out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from skd_core.data.folder import ImageFolder
from skd_core.data.kitti import write_results
from skd_core.files import make_folder
from skd_core.inference.detector import Detector
from skd_core.visualize import draw_bev, draw_boxes3d, stack, write_image


def predict_images(
    images: Sequence[Path], camera: Path, detector: Detector, out: Path, threshold: float | None, draw: bool = True
) -> int:
    """Detect in images of one camera.

    Args:
        images: files and folders; camera: calibration file or folder, see :class:`skd_core.data.folder.ImageFolder`.
        out: gets ``results/NAME.txt`` (KITTI format, full precision) and ``pictures/NAME.png``.
        threshold: least score, None for the weights' own; draw: whether to write pictures.

    Returns:
        the number of detections.

    Raises:
        UserError: unreadable image or camera file, or ``out`` is not a folder.
    """
    folder = ImageFolder(images, camera)
    folder[0]  # before anything is written: does the camera fit?
    for name in ("results", *(["pictures"] if draw else [])):
        make_folder(out / name)
    count = 0
    for sample in tqdm(folder, total=len(folder), unit="image", disable=len(folder) < 10):
        pixels = sample.image.permute(1, 2, 0).numpy()
        boxes = detector.predict(pixels, sample.camera, threshold)
        write_results(out / "results" / f"{sample.name}.txt", boxes)
        if draw:
            bev = draw_bev(boxes, camera=sample.camera, size=(sample.camera.height, sample.camera.height))
            picture = stack(draw_boxes3d(pixels, boxes, sample.camera), bev)
            write_image(out / "pictures" / f"{sample.name}.png", picture)
        count += len(boxes)
    return count
