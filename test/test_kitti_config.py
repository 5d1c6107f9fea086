"""config/train/kitti.yaml, the full method at full size, from end to end on a few real frames."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from skd_core import Detector
from skd_core.config import load_config
from skd_core.data.kitti import KittiDataset
from skd_core.priors import prior_of
from skd_core.training.trainer import Trainer

REPOSITORY = Path(__file__).resolve().parents[1]
DEV = REPOSITORY.parent / "shared" / "data" / "kitti_dev"
FRAMES = 4


def write_depth(root: Path, frames: list[str]) -> None:
    """What an estimator might say: a flat road, and each labelled object at the distance its height tells."""
    (root / "training" / "depth").mkdir()
    dataset = KittiDataset(root, "train", ("Car", "Pedestrian", "Cyclist"))
    for i, name in enumerate(frames):
        sample = dataset[i]
        f, cy = float(sample.camera.fy), float(sample.camera.cy)
        rows = np.arange(sample.camera.height) + 0.5 - cy
        road = np.where(rows > 0, f * 1.65 / np.maximum(rows, 1e-3), 80).clip(2, 80)
        depth = np.repeat(road[:, None], sample.camera.width, 1)
        boxes = sample.boxes2d.xyxy.tolist()
        far_to_near = sorted(zip(boxes, sample.boxes2d.labels, strict=True), key=lambda pair: pair[0][3] - pair[0][1])
        for (x1, y1, x2, y2), label in far_to_near:
            depth[int(y1) : int(y2), int(x1) : int(x2)] = f * prior_of(label).size[0] / (y2 - y1)
        Image.fromarray((256 * depth).astype(np.uint16)).save(root / "training" / "depth" / f"{name}.png")


@pytest.mark.slow
@pytest.mark.skipif(not DEV.is_dir(), reason=f"no real data at {DEV}")
def test_kittis_config_trains_evaluates_and_exports(tmp_path: Path) -> None:
    root = tmp_path / "kitti"
    (root / "training").mkdir(parents=True)
    for folder in ("image_2", "calib", "label_2"):
        (root / "training" / folder).symlink_to(DEV / "training" / folder)
    frames = (DEV / "ImageSets" / "dev.txt").read_text().split()[:FRAMES]
    (root / "ImageSets").mkdir()
    for split in ("train", "val"):
        (root / "ImageSets" / f"{split}.txt").write_text("\n".join(frames))
    write_depth(root, frames)
    here = [f"data.{split}.root={root}" for split in ("train", "val")]
    small = ["schedule.epochs=1", "schedule.batch_size=2", "data.workers=0"]
    config = load_config(REPOSITORY / "config" / "train" / "kitti.yaml", here + small)
    assert config.model.backbone == "dla34"
    assert config.model.input_size == (1280, 384)

    torch.manual_seed(0)
    assert Trainer(config, tmp_path / "run", "cpu").fit()
    (report,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    taught = {"student/projection", "student/distillation", "teacher/depth_map", "teacher/points"}
    assert taught <= report.keys()
    assert "teacher/feedback" not in report  # GTM is off by default
    assert {"student", "teacher"} == report["val"].keys()
    detector = Detector.load(tmp_path / "run" / "student.safetensors", "cpu")
    sample = KittiDataset(root, "val", ("Car",))[0]
    detector.predict(sample.image.permute(1, 2, 0).numpy(), sample.camera, 0.0)
