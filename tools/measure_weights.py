"""What docs/benchmarks.md says of the weights beside AP: `python tools/measure_weights.py DATA DRIVE [WEIGHTS]`.

DATA: a KITTI tree with true labels (`skd_core synth ...`). DRIVE: image_02, calib.txt and lidar_depth (KITTI's 16-bit
PNG, metres x 256) of a drive without labels. Prints, for each class, how well depth_std tells the depth error, and
precision, recall and F1 by threshold; then how far the drive's cars are from the LiDAR's points inside them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torchvision.ops import box_iou
from tqdm import tqdm

from skd_core.boxes import Boxes3D
from skd_core.data.folder import ImageFolder
from skd_core.data.kitti import read_objects
from skd_core.data.sample import read_depth
from skd_core.evaluation.kitti import MAX_OCCLUSION, MAX_TRUNCATION, MIN_HEIGHT
from skd_core.inference.detector import Detector
from skd_core.models.decode import half_extent

FRAMES = 160
MIN_IOU = 0.6
MODERATE_HEIGHT, MODERATE_OCCLUSION, MODERATE_TRUNCATION = (
    MIN_HEIGHT[1],
    MAX_OCCLUSION[1],
    MAX_TRUNCATION[1],
)  # "moderate"
THRESHOLDS = np.arange(0.2, 0.75, 0.05)
LIDAR_SCORE, LIDAR_POINTS, LIDAR_FAR = 0.5, 15, 12.0
K = 0.9  # share of half_extent from the median of the visible surface to the centre


def match(found: Boxes3D, truth: Boxes3D) -> dict[int, int]:
    """Detection -> label: in order of score the free label of greatest 2D IoU, from MIN_IOU on."""
    pairs: dict[int, int] = {}
    for i, overlaps in enumerate(box_iou(found.xyxy.double(), truth.xyxy.double())):
        free = [j for j in overlaps.argsort(descending=True).tolist() if j not in pairs.values()]
        if free and overlaps[free[0]] >= MIN_IOU:
            pairs[i] = free[0]
    return pairs


def held_out(detector: Detector, root: Path) -> None:
    """Print calibration of depth_std (at the default threshold) and F1 by threshold (of moderate labels)."""
    training = root / "training"
    images = ImageFolder(training / "image_2", training / "calib")
    errors: dict[str, list[tuple[float, float]]] = {name: [] for name in detector.classes}
    hits: dict[str, list[tuple[float, bool]]] = {name: [] for name in detector.classes}  # score, true
    wanted = dict.fromkeys(detector.classes, 0)
    for index in tqdm(range(min(FRAMES, len(images))), unit="image"):
        sample = images[index]
        found = detector.predict(sample.image.permute(1, 2, 0).numpy(), sample.camera, float(THRESHOLDS[0]))
        lines = read_objects(training / "label_2" / f"{sample.name}.txt")
        for name in detector.classes:
            own = lines[lines.is_class([name])]
            truth, boxes = own.boxes3d(), found[[label == name for label in found.labels]]
            heights = own.xyxy[:, 3] - own.xyxy[:, 1]
            moderate = heights >= MODERATE_HEIGHT
            moderate &= (own.occluded <= MODERATE_OCCLUSION) & (own.truncated <= MODERATE_TRUNCATION)
            wanted[name] += int(moderate.sum())
            pairs = match(boxes, truth)
            for i, score in enumerate(boxes.scores.tolist()):
                if i not in pairs:
                    if boxes.xyxy[i, 3] - boxes.xyxy[i, 1] >= MODERATE_HEIGHT:
                        hits[name].append((score, False))
                    continue
                if moderate[pairs[i]]:
                    hits[name].append((score, True))
                if score >= detector.threshold:
                    off = abs(float(boxes.center[i, 2]) - float(truth.center[pairs[i], 2]))
                    errors[name].append((off, float(boxes.depth_std[i])))
    print("depth_std (a Laplace distribution has .757 within one, mean |error| / std .707):")
    for name, pairs_of in errors.items():
        off, std = np.array(pairs_of).reshape(-1, 2).T
        within, ratio = np.mean(off < std), np.mean(off / std)
        print(f"  {name}: {len(off)} found, {within:.3f} within one, mean |error| / std {ratio:.3f}")
    print("precision / recall / F1 by threshold (found = 2D IoU of at least .6):")
    for name in detector.classes:
        score, true = np.array(hits[name], dtype=float).reshape(-1, 2).T
        row = []
        for threshold in THRESHOLDS:
            kept = true[score >= threshold]
            precision, recall = kept.mean() if len(kept) else 0.0, kept.sum() / max(wanted[name], 1)
            f1 = 2 * precision * recall / max(precision + recall, 1e-9)
            row.append(f"{threshold:.2f} {precision:.2f}/{recall:.2f}/{f1:.2f}")
        print(f"  {name}: " + ", ".join(row))


def on_lidar(detector: Detector, drive: Path) -> Iterator[tuple[float, float]]:
    """(relative error of depth, LiDAR's depth of the centre) of every car that has enough points.

    Points count in the middle half of the 2D box's width and the lower half of its height without the last tenth:
    windows let the LiDAR through, and below the car is road.
    """
    folder, count = ImageFolder(drive / "image_02", drive / "calib.txt"), 0
    for sample in tqdm(folder, total=len(folder), unit="image"):
        boxes = detector.predict(sample.image.permute(1, 2, 0).numpy(), sample.camera)
        count += len(boxes)
        depth = read_depth(drive / "lidar_depth" / f"{sample.name}.png").numpy()
        for i, (x1, y1, x2, y2) in enumerate(boxes.xyxy.tolist()):
            if boxes.labels[i] != "Car" or boxes.scores[i] < LIDAR_SCORE:
                continue
            columns = slice(max(round(0.75 * x1 + 0.25 * x2), 0), round(0.25 * x1 + 0.75 * x2))
            rows = slice(max(round(0.5 * y1 + 0.5 * y2), 0), round(0.1 * y1 + 0.9 * y2))
            points = depth[rows, columns]
            points = points[points > 0]
            if len(points) >= LIDAR_POINTS:
                z = float(np.median(points)) + K * float(half_extent(boxes.size[i : i + 1], boxes.yaw[i : i + 1]))
                yield float(boxes.center[i, 2]) / z - 1, z
    print(f"{drive.name}: {count} detections in {len(folder)} frames")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        raise SystemExit(__doc__)
    torch.set_num_threads(1)
    detector = Detector.load(sys.argv[3] if len(sys.argv) == 4 else "default").uncalibrated()
    held_out(detector, Path(sys.argv[1]))
    cars = np.array(list(on_lidar(detector, Path(sys.argv[2])))).reshape(-1, 2)
    for what, chosen in (("nearer", cars[:, 1] < LIDAR_FAR), ("farther", cars[:, 1] >= LIDAR_FAR)):
        error = cars[chosen, 0]
        if len(error):
            quartiles = np.percentile(100 * error, (25, 50, 75))
            print(f"  {what} than {LIDAR_FAR:g} m: {len(error)} cars, depth error {quartiles.round(1)} % (quartiles)")
