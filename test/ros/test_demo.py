"""The demo: player process, node process, pictures and a bag."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import cv2
import pytest
import rclpy
from builtin_interfaces.msg import Time
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_harness import camera, picture
from std_msgs.msg import Header
from vision_msgs.msg import Detection3DArray

from skd_core.data.bag import CameraTopics, Frame, read_detections, write_frames
from skd_core.inference.detector import Detector
from skd_wm3d_ros.tools.demo import FIRST_FRAMES, FRAMES_SHOWN, Answer, Collector, main, report

FRAMES = 3


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    Detector.random(seed=0).save(path)
    return path


def demo(*arguments):
    command = [sys.executable, "-m", "skd_wm3d_ros.tools.demo", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert "Traceback" not in done.stderr
    return done


def test_bag_to_table_pictures_and_bag(weights, tmp_path):
    stamps = [7_000_000_000 + i * 100_000_000 for i in range(FRAMES)]
    write_frames(tmp_path / "in", [Frame(picture(i), camera(), stamp, "front") for i, stamp in enumerate(stamps)])
    out = tmp_path / "out"
    done = demo("--bag", tmp_path / "in", "--weights", weights, "--threshold", "0", "--out", out)
    assert done.returncode == 0, done.stderr
    assert f"{FRAMES} frames, " in done.stdout
    latency = re.search(r"median latency (\d+) ms", done.stdout)
    assert latency is not None  # "nan" would mean that no image was seen
    assert int(latency[1]) > 0
    found = list(read_detections(out / "bag"))
    assert [(stamp, frame) for stamp, frame, _ in found] == [(stamp, "front") for stamp in stamps]
    expected = Detector.load(weights, "cpu").predict(picture(1), camera(), 0.0)
    assert len(found[1][2]) == len(expected) > 0
    assert abs(found[1][2].center - expected.center).max() < 1e-3
    rows = [line for line in done.stdout.splitlines() if line.startswith("    1  ")]
    assert f"{expected.center[0, 2]:.1f}" in rows[0]
    height, width = cv2.imread(str(out / "frames.png")).shape[:2]
    assert height >= FRAMES * 96
    assert width > 320
    assert cv2.imread(str(out / "bev.png")).shape[:2] == (800, 800)


def test_no_answer_is_lost_on_a_collector_that_gets_no_time(ros):
    """On a busy machine the player and the node run ahead of it."""
    node = rclpy.create_node("collector_test")
    collector = Collector(node, CameraTopics("image", "camera_info"), "~/detections")
    keep_all = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
    publisher = node.create_publisher(Detection3DArray, "~/detections", keep_all)
    deadline = time.monotonic() + 30
    while publisher.get_subscription_count() < 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    for second in range(40):
        publisher.publish(Detection3DArray(header=Header(stamp=Time(sec=second))))
    while len(collector.answers) < 40 and time.monotonic() < deadline:
        rclpy.spin_once(node, timeout_sec=0.1)
    assert [answer.stamp for answer in collector.answers] == [second * 10**9 for second in range(40)]
    node.destroy_node()


def test_folder_of_pictures_with_a_camera_file(weights, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(2):
        cv2.imwrite(str(folder / f"{i}.png"), picture(i))
    numbers = " ".join(str(v) for v in camera().P.flatten().tolist())
    (tmp_path / "calib.txt").write_text(f"P2: {numbers}\n")
    done = demo("--images", folder, "--camera", tmp_path / "calib.txt", "--weights", weights, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "2 frames, 0 detections" in done.stdout  # untrained: nothing reaches the default threshold
    assert [len(boxes) for _, _, boxes in read_detections(tmp_path / "out" / "bag")] == [0, 0]


def test_missing_weights_end_with_one_line(tmp_path):
    write_frames(tmp_path / "in", [Frame(picture(0), camera(), 1)])
    done = demo("--bag", tmp_path / "in", "--weights", tmp_path / "none.safetensors", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("demo: error: the detector node is not ready")
    assert "none.safetensors" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_wrong_input_ends_with_one_line(tmp_path, capsys):
    assert main(["--bag", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"demo: error: {tmp_path / 'nothing'}: no such bag folder\n"
    (tmp_path / "empty").mkdir()
    assert main(["--images", str(tmp_path / "empty"), "--camera", "none.txt", "--out", str(tmp_path / "out")]) == 2
    assert "no images" in capsys.readouterr().err
    cv2.imwrite(str(tmp_path / "empty" / "0.png"), picture(0))
    assert main(["--images", str(tmp_path / "empty"), "--camera", "none.txt", "--out", str(tmp_path / "out")]) == 2
    assert "none.txt: no such camera file" in capsys.readouterr().err


def test_of_many_frames_the_first_are_listed_and_all_are_summed_up(tmp_path, capsys):
    stamps = [1_000_000_000 + i * 100_000_000 for i in range(FRAMES_SHOWN + 5)]
    write_frames(tmp_path / "in", [Frame(picture(0), camera(), stamp, "front") for stamp in stamps])
    boxes = Detector.random(seed=0).predict(picture(0), camera(), 0.0)[:2]
    answers = [Answer(stamp, b"", boxes, stamp + 10**7, 0.01) for stamp in stamps]
    report(tmp_path / "in", answers, tmp_path, "trained on rendered scenes only")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * FIRST_FRAMES + 4
    assert lines[-4].startswith(f"... and {len(stamps) - FIRST_FRAMES} more frames")
    assert lines[-3].startswith(f"{len(stamps)} frames, {2 * len(stamps)} detections (")
    assert lines[-2] == "trained on rendered scenes only"
    assert cv2.imread(str(tmp_path / "bev.png")).shape[:2] == (822, 800)
