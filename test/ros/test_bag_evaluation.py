"""The live node on a recording: the same boxes as offline, for every frame."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from skd_core.boxes import Boxes3D
from skd_core.data.bag import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    BagWriter,
    CameraTopics,
    read_detections,
    read_frames,
    typestore,
)
from skd_core.inference.detector import Detector
from skd_wm3d_ros.tools import bag_evaluation, demo
from skd_wm3d_ros.tools.bag_evaluation import compare, largest_difference, main
from skd_wm3d_ros.tools.demo import NodeOptions

TOPICS = CameraTopics("/camera/image", "/camera/camera_info")


def test_live_and_offline_detections_are_the_same(tmp_path):
    weights = tmp_path / "tiny.safetensors"
    Detector.random().save(weights)
    command = [sys.executable, "-m", "skd_wm3d_ros.tools.bag_evaluation", str(demo.DEMO_BAG), "--weights", str(weights)]
    command += ["--threshold", "0", "--lossless", "--check", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    assert "live and offline: 14 frames, identical" in done.stdout
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert (scores["frames"], scores["dropped"]) == (14, 0)

    # and without the evaluation's own comparison
    detector = Detector.load(weights, "cpu")
    live = list(read_detections(tmp_path / "out" / "live", classes=detector.classes))
    assert sum(len(boxes) for _, _, boxes in live) > 14
    for frame, (stamp, frame_id, boxes) in zip(read_frames(demo.DEMO_BAG), live, strict=True):
        assert (stamp, frame_id) == (frame.stamp, frame.frame_id)
        expected = detector.predict(frame.image, frame.camera.centred(), 0.0)  # in the frame that the header names
        assert boxes.labels == expected.labels
        torch.testing.assert_close(boxes.center, expected.center.double(), rtol=0, atol=1e-5)
        torch.testing.assert_close(boxes.size, expected.size.double(), rtol=0, atol=1e-5)


def write_raw_bag(path: Path) -> None:
    """Three frames of the demo as JPEG, under a camera_info with distortion and with P unlike K."""
    types = {name.rsplit("/", 1)[1]: kind for name, kind in typestore().types.items()}
    with BagWriter(path) as bag:
        for frame in itertools.islice(read_frames(demo.DEMO_BAG), 3):
            header = types["Header"](types["Time"](frame.stamp // 10**9, frame.stamp % 10**9), frame.frame_id)
            height, width = frame.image.shape[:2]
            info = types["CameraInfo"](
                header=header, height=height, width=width, distortion_model="plumb_bob",
                d=np.array([-0.25, 0.05, 1e-3, 0, 0]), k=frame.camera.K.numpy().flatten(), r=np.eye(3).flatten(),
                p=(frame.camera.P.numpy() * [[0.9], [0.9], [1]]).flatten(), binning_x=0, binning_y=0,
                roi=types["RegionOfInterest"](0, 0, 0, 0, False),
            )  # fmt: skip
            jpeg = cv2.imencode(".jpg", frame.image[..., ::-1])[1].reshape(-1)
            bag.write("/front/camera_info", CAMERA_INFO, info, frame.stamp)
            image = types["CompressedImage"](header, "jpeg", jpeg)
            bag.write("/front/image_raw/compressed", COMPRESSED_IMAGE, image, frame.stamp)


def test_raw_compressed_images_are_the_same_live_and_offline(tmp_path):
    """With the bundled weights: both decode, both undistort, and that matters."""
    write_raw_bag(tmp_path / "bag")
    command = [sys.executable, "-m", "skd_wm3d_ros.tools.bag_evaluation", str(tmp_path / "bag"), "--lossless"]
    command += ["--check", "--raw-images", "--threshold", "0.1", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    assert "live and offline: 3 frames, identical" in done.stdout
    topics = CameraTopics("/front/image_raw/compressed", "/front/camera_info", compressed=True)
    for rectified, different in ((False, 0), (True, 3)):
        options = NodeOptions("default", "cpu", 0.1, rectified=rectified)
        found = compare(tmp_path / "bag", tmp_path / "out" / "live", options, topics)
        assert (found.frames, found.different) == (3, different)
    assert sum(len(boxes) for _, _, boxes in read_detections(tmp_path / "out" / "live")) > 3


def test_differences_are_seen():
    one = Boxes3D(torch.tensor([[1.0, 2, 20]]), torch.ones(1, 3), torch.tensor([math.pi - 1e-7]), ("Car",))
    assert largest_difference(one, one) == 0
    turned = replace(one, yaw=torch.tensor([1e-7 - math.pi]))  # the same heading, the other side of the cut
    assert largest_difference(one, turned) < 1e-6
    assert largest_difference(one, replace(one, center=one.center + 0.25)) == 0.25
    assert largest_difference(one, replace(one, labels=("Van",))) == math.inf
    assert largest_difference(one, Boxes3D.empty()) == math.inf
    assert largest_difference(Boxes3D.empty(), Boxes3D.empty()) == 0


def test_who_plays(monkeypatch, tmp_path):
    """`ros2 bag play` where there is one and the bag is whole; ours where each answer is waited for."""
    waiting = demo.player_command(tmp_path, TOPICS, None, "/detector/detections")
    assert waiting[1:3] == ["-m", "skd_wm3d_ros.tools.bag_player"]
    assert waiting[-2:] == ["--lossless", "/detector/detections"]
    (tmp_path / "metadata.yaml").touch()
    for spec, ros2, whole in [
        (None, None, True),
        (object(), None, True),
        (None, "/bin/ros2", True),
        (1, "ros2", False),
    ]:
        monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name, spec=spec: spec)
        monkeypatch.setattr(demo.shutil, "which", lambda name, ros2=ros2: ros2)
        bag = tmp_path if whole else tmp_path / "no_metadata"
        command = demo.player_command(bag, TOPICS, 2.0, "/x")
        assert (command[1:3], command[-2:]) == (["-m", "skd_wm3d_ros.tools.bag_player"], ["--rate", "2.0"])
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(demo.shutil, "which", lambda name: "/bin/ros2")
    command = demo.player_command(tmp_path, TOPICS, 2.0, "/x")
    assert command[:4] == ["ros2", "bag", "play", str(tmp_path)]
    assert command[command.index("--topics") + 1 :][:2] == [TOPICS.image, TOPICS.camera_info]


@pytest.mark.parametrize(("parity", "status"), [((3, 0, 0.0), 0), ((3, 1, 0.5), 1), ((0, 0, 0.0), 1)])
def test_the_exit_status_is_what_was_found(monkeypatch, tmp_path, parity, status):
    """Nothing compared is no agreement."""
    for name in ("find_camera", "evaluate_live", "print_scores"):
        monkeypatch.setattr(bag_evaluation, name, lambda *args, **kwargs: None)
    monkeypatch.setattr(bag_evaluation, "compare", lambda *args: bag_evaluation.Parity(*parity))
    assert main([str(tmp_path), "--check"]) == status


def test_wrong_input_ends_with_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err == f"bag_evaluation: error: {tmp_path / 'nothing'}: no such bag folder\n"
    assert main([str(demo.DEMO_BAG), "--weights", str(tmp_path / "none")]) == 2
    assert "no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(demo.DEMO_BAG), "--rate", "0"])
