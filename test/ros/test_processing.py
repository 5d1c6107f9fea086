"""What happens to boxes, frames and devices between the input and the output, without ROS processes."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from skd_core.boxes import Boxes3D
from skd_core.camera import Camera
from skd_core.errors import UserError
from skd_core.inference.detector import Detector
from skd_wm3d_ros.camera_check import differences_from_training
from skd_wm3d_ros.diagnostics import ERROR, RECENT, WARN, Statistics
from skd_wm3d_ros.fallback import RobustDetector, is_device_failure
from skd_wm3d_ros.order import FrameOrder
from skd_wm3d_ros.postprocess import finite, select
from skd_wm3d_ros.rejection import Rejection
from skd_wm3d_ros.worker import LatestWorker


def boxes(*rows):
    """(label, score, x, z)"""
    labels, scores, x, z = zip(*rows, strict=True)
    center = torch.stack(
        [torch.tensor(x, dtype=torch.float), torch.ones(len(x)), torch.tensor(z, dtype=torch.float)], 1
    )
    size = torch.tensor([4.0, 2.0, 1.5]).expand(len(x), 3)
    return Boxes3D(center, size, torch.zeros(len(x)), labels, torch.tensor(scores))


# -- boxes ------------------------------------------------------------------------------------------------------------
def test_thresholds_by_class():
    found = boxes(("Car", 0.5, 0, 10), ("Car", 0.3, 9, 10), ("Pedestrian", 0.3, 5, 10), ("Other", 0.1, 5, 30))
    kept = select(found, {"Car": 0.4, "Pedestrian": 0.2})
    assert list(zip(kept.labels, kept.scores.tolist(), strict=True)) == [
        ("Car", 0.5), ("Pedestrian", pytest.approx(0.3)), ("Other", pytest.approx(0.1))
    ]  # fmt: skip


def test_range_is_along_the_ground():
    found = boxes(("Car", 0.5, 3, 4), ("Car", 0.5, -6, 8), ("Car", 0.5, 0, 10.1))
    assert select(found, {}, max_range=10).center[:, 0].tolist() == [3, -6]
    assert len(select(found, {}, max_range=0)) == 3


def test_overlapping_boxes_of_one_class():
    """2 m apart along their 4 m: IoU 1/3."""
    found = boxes(("Car", 0.9, 0, 10), ("Car", 0.8, 2, 10), ("Pedestrian", 0.7, 0, 10), ("Car", 0.6, 4, 10))
    assert select(found, {}, nms_iou=0.34).scores.tolist() == found.scores.tolist()
    # the third car overlaps only with the second, which is gone
    assert select(found, {}, nms_iou=0.32).scores.tolist() == found.scores[[0, 2, 3]].tolist()
    assert len(select(found, {}, nms_iou=1.0)) == 4


def test_boxes_without_volume_or_place_are_left_out():
    found = boxes(*[("Car", 0.5, i * 9.0, 10.0) for i in range(4)])
    found.size = found.size.clone()
    found.size[1, 2], found.center[2, 0] = 0.0, float("nan")
    assert finite(found).center[:, 0].tolist() == [0, 27]
    assert len(select(Boxes3D.empty(), {"Car": 0.1}, 50, 0.5)) == 0


# -- frames -----------------------------------------------------------------------------------------------------------
SECOND = 1_000_000_000


def test_no_frame_twice_and_in_order():
    order = FrameOrder()
    assert not order.admit(10 * SECOND)
    with pytest.raises(Rejection, match="two images with the stamp") as caught:
        order.admit(10 * SECOND)
    assert caught.value.kind == "repeated"
    assert not order.admit(11 * SECOND)
    with pytest.raises(Rejection, match="came after") as caught:
        order.admit(11 * SECOND - 1)
    assert caught.value.kind == "late"
    assert order.admit(5 * SECOND)  # a bag begins again
    assert not order.admit(5 * SECOND + 1)


def test_a_frame_without_a_stamp_is_blamed_for_that_alone():
    order = FrameOrder()
    order.admit(10 * SECOND)
    for _ in range(3):
        with pytest.raises(Rejection, match=r"stamp is 0: .* does not set header\.stamp") as caught:
            order.admit(0)
        assert caught.value.kind == "stamp"
    assert not order.admit(11 * SECOND)  # time did not go back


def test_a_frame_sent_again_on_purpose_counts(monkeypatch):
    order = FrameOrder()
    order.admit(SECOND)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 5)
    order.admit(SECOND)


def test_rate_limit_takes_the_newest():
    done, period = [], 0.2
    arrived = threading.Semaphore(0)
    worker = LatestWorker(lambda item: (done.append((item, time.monotonic())), arrived.release()), lambda: period)
    worker.put(1)
    assert arrived.acquire(timeout=30)
    for item in (2, 3, 4):  # within the period
        worker.put(item)
    assert arrived.acquire(timeout=30)
    assert worker.stop(30)
    assert [item for item, _ in done] == [1, 4]
    assert done[1][1] - done[0][1] >= 0.99 * period
    assert worker.dropped == 2


def test_a_new_period_holds_at_once():
    period, done = [3600.0], threading.Semaphore(0)
    worker = LatestWorker(lambda item: done.release(), lambda: period[0])
    worker.put(1)
    assert done.acquire(timeout=30)
    worker.put(2)
    period[0] = 0.0
    worker.put(3)
    assert done.acquire(timeout=30)
    assert worker.stop(30)


def test_a_stop_that_fails_changes_nothing():
    go_on, begun, done = threading.Event(), threading.Event(), []
    worker = LatestWorker(lambda item: (begun.set(), go_on.wait(30), done.append(item)))
    worker.put(0)
    assert begun.wait(30)
    assert not worker.stop(0.01)
    worker.put(1)
    go_on.set()
    while len(done) < 2:
        time.sleep(0.001)
    assert worker.stop(30)
    assert worker.stop(30)  # again
    assert done == [0, 1]


def test_every_item_is_done_dropped_or_waiting():
    go_on, begun = threading.Event(), threading.Event()
    worker = LatestWorker(lambda item: (begun.set(), go_on.wait(30)))
    worker.put(0)
    assert begun.wait(30)
    assert worker.busy() > 0
    for item in range(1, 6):
        worker.put(item)
    assert (worker.dropped, worker.waiting()) == (4, 2)
    go_on.set()
    assert worker.stop(30)
    assert worker.waiting() == 0
    assert worker.busy() == 0


# -- diagnostics ------------------------------------------------------------------------------------------------------
def test_the_state_of_the_frames_is_that_of_the_last_seconds(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    statistics = Statistics()
    assert statistics.problem() is None
    statistics.reject("transform", "no transform yet")
    assert statistics.problem() == (ERROR, "no transform yet")
    for _ in range(3):
        statistics.answer("rgb8", (0.0,) * 4)
    assert statistics.problem() == (WARN, "1 of 4 frames rejected, the last: no transform yet")
    now[0] += RECENT + 1
    assert statistics.problem() is None  # it is long ago
    statistics.answer("rgb8", (0.0,) * 4)
    assert statistics.problem() is None
    now[0] += RECENT + 1
    for _ in range(5):
        statistics.reject("calibration", "K[0] is 0")
    assert statistics.problem() == (ERROR, "K[0] is 0")  # nothing is answered any more
    now[0] += 2 * RECENT
    assert statistics.problem() == (ERROR, "K[0] is 0")  # the last one still counts
    assert statistics.values()["frames rejected"] == "6"  # the counts are since activation


# -- devices ----------------------------------------------------------------------------------------------------------
class Failing:
    """A detector whose GPU fails at the n-th prediction."""

    def __init__(self, device, error=None, after=1):
        self.device, self.precision, self._error, self._left = torch.device(device), "fp16", error, after

    def predict(self, image, camera, threshold, boxes2d=None):
        self._left -= 1
        if self._error is not None and self._left < 0:
            raise self._error
        return self.device.type


def robust(error, fallback=True, after=1, at_load=False):
    loads, said = [], []

    def load(device):
        loads.append(device)
        if at_load and device != "cpu":
            raise error
        return Failing(device, None if device == "cpu" else error, after)

    return RobustDetector(load, "cuda:1", fallback, said.append), loads, said


FAILURES = [torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("CUDA error: device lost\nmore")]


@pytest.mark.parametrize("error", FAILURES, ids=["memory", "lost"])
def test_gpu_failure_goes_on_on_the_cpu_with_the_same_frame(error):
    detector, loads, said = robust(error)
    assert [detector.predict(None, None, 0.0) for _ in range(4)] == ["cuda", "cpu", "cpu", "cpu"]
    assert loads == ["cuda:1", "cpu"]
    assert len(said) == 1
    assert str(error).splitlines()[0] in said[0]
    assert "more" not in said[0]
    assert detector.fallen_back


def test_gpu_failure_while_loading():
    detector, loads, said = robust(FAILURES[0], at_load=True)
    assert detector.predict(None, None, 0.0) == "cpu"
    assert (loads, len(said)) == (["cuda:1", "cpu"], 1)


def test_without_fallback_the_failure_is_told():
    detector, _, _ = robust(FAILURES[0], fallback=False, after=0)
    with pytest.raises(torch.OutOfMemoryError):
        detector.predict(None, None, 0.0)
    with pytest.raises(torch.OutOfMemoryError):
        robust(FAILURES[0], fallback=False, at_load=True)


def test_a_bad_frame_is_not_the_gpu_s_fault():
    detector, loads, _ = robust(RuntimeError("shape mismatch"), after=0)
    with pytest.raises(RuntimeError, match="shape"):
        detector.predict(None, None, 0.0)
    assert loads == ["cuda:1"]
    assert not is_device_failure(ValueError("CUDA"))


def test_precision():
    detector = Detector.random(0)
    camera = Camera(torch.tensor([[186.0, 0, 160, 0], [0, 186, 48, 0], [0, 0, 1, 0]]), 320, 96)
    image = np.random.default_rng(0).integers(0, 255, (96, 320, 3), dtype=np.uint8)
    full = detector.predict(image, camera, 0.0)
    for precision, close in (("fp16", 1e-3), ("bf16", 1e-2)):
        less = Detector(detector.student, detector.metadata, "cpu", precision).predict(image, camera, 0.0)
        assert less.center.dtype == torch.float32
        difference = (less.scores[:10].sort().values - full.scores[:10].sort().values).abs().max()
        assert 0 < difference < close
    assert Detector(detector.student, detector.metadata, "cpu", "auto").precision == "fp32"
    with pytest.raises(UserError, match="precision 'int4': use auto, fp32, fp16, bf16"):
        Detector(detector.student, detector.metadata, "cpu", "int4")


# -- cameras ----------------------------------------------------------------------------------------------------------
METADATA, INPUT = {"focal": [720.0, 720.0]}, (1280, 384)


def camera(fx=720.0, width=1280, height=384, cy=None, fy=None):
    cy = height / 2 if cy is None else cy
    return Camera(torch.tensor([[fx, 0, width / 2, 0], [0, fy or fx, cy, 0], [0, 0, 1, 0]]), width, height)


@pytest.mark.parametrize(
    ("unlike", "said"),
    [
        (camera(), []),
        (camera(360, 640, 192), []),  # half the resolution of the same view
        (camera(721, 1242, 375, cy=172), []),  # KITTI
        (camera(240, 427, 128), ["focal"]),  # three times magnified
        (camera(2160, 3840, 1152), []),  # a finer image of the same view
        (camera(4320, 7680, 2304), ["focal"]),
        (camera(720, 2400, 384), ["size"]),  # fisheye-wide
        (camera(720, 1280, 960, cy=480), ["size"]),
        (camera(720, 400, 384), ["size"]),
        (camera(cy=40), ["horizon"]),  # looks down
        (camera(cy=350), ["horizon"]),
        (camera(200, 1280, 384, cy=380), ["focal", "size", "horizon"]),
    ],
)
def test_cameras_unlike_the_training_camera(unlike, said):
    assert [
        finding.partition(" ")[0].rstrip(":") for finding in differences_from_training(METADATA, INPUT, unlike)
    ] == said
