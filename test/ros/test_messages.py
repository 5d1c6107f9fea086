"""Boxes to messages and back: axes, covariance order, headers, markers."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import torch
from builtin_interfaces.msg import Time
from std_msgs.msg import Header
from vision_msgs.msg import Detection3DArray
from visualization_msgs.msg import Marker, MarkerArray

from skd_core.boxes import Boxes3D
from skd_core.covariance import DEPTH_FRACTION, LATERAL_FRACTION, TILT_STD, YAW_STD, pose_covariance
from skd_core.data.bag import DETECTIONS, typestore
from skd_core.data.ros_detections import boxes_from_detections
from skd_wm3d_ros import messages
from skd_wm3d_ros.markers import MarkerMemory
from skd_wm3d_ros.postprocess import finite
from skd_wm3d_ros.transforms import IDENTITY, Transform

HEADER = Header(stamp=Time(sec=17, nanosec=250), frame_id="front")


def some_boxes(n: int = 40, seed: int = 0) -> Boxes3D:
    g = torch.Generator().manual_seed(seed)
    center = torch.rand(n, 3, generator=g) * torch.tensor([40.0, 4, 60]) + torch.tensor([-20.0, -2, 2])
    size = torch.rand(n, 3, generator=g) * 4 + 0.3
    yaw = (torch.rand(n, generator=g) * 2 - 1) * math.pi
    scores, depth_std = torch.rand(n, generator=g), torch.rand(n, generator=g) * 5 + 0.01
    across = torch.rand(n, 2, generator=g) + 0.01
    return Boxes3D(
        center, size, yaw, ("Car", "Pedestrian") * (n // 2), scores, depth_std=depth_std, across_std=across,
        yaw_std=torch.rand(n, generator=g) + 0.1, flip_odds=torch.tensor([0.0, 0.5]).repeat(n // 2),
    )  # fmt: skip


def test_round_trip():
    boxes = some_boxes()
    back = boxes_from_detections(messages.to_detections(boxes, HEADER), ["Car", "Pedestrian"])
    assert torch.equal(back.center, boxes.center.double())
    assert torch.equal(back.size, boxes.size.double())
    assert torch.equal(back.scores, boxes.scores.double())
    assert back.labels == boxes.labels
    torch.testing.assert_close(back.yaw, boxes.yaw.double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(back.depth_std, boxes.depth_std.double(), atol=1e-9, rtol=1e-9)
    assert torch.equal(back.heading_known, boxes.heading_known)
    torch.testing.assert_close(pose_covariance(back), pose_covariance(boxes), atol=1e-9, rtol=1e-6)


def test_bag_reader_understands_the_same_bytes():
    """rosbags' classes and rclpy's read one message alike, so bags and the node agree."""
    from rclpy.serialization import serialize_message

    message = messages.to_detections(some_boxes(), HEADER)
    from_bag = typestore().deserialize_cdr(serialize_message(message), DETECTIONS)
    ours, theirs = boxes_from_detections(message), boxes_from_detections(from_bag)
    assert torch.equal(ours.center, theirs.center)
    assert torch.equal(ours.depth_std, theirs.depth_std)
    assert ours.labels == theirs.labels


def test_axes_of_a_car_seen_from_behind():
    """Driving away (heading = camera z): forward is z, left is -x, up is -y; size is (l, w, h)."""
    car = Boxes3D(torch.tensor([[2.0, 1, 10]]), torch.tensor([[4.0, 1.6, 1.5]]), torch.tensor([-math.pi / 2]), ("Car",))
    detection = messages.to_detections(car, HEADER).detections[0]
    q = detection.bbox.center.orientation
    x, y, z, w = q.x, q.y, q.z, q.w
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    np.testing.assert_allclose(rotation[:, 0], [0, 0, 1], atol=1e-7)  # forward
    np.testing.assert_allclose(rotation[:, 1], [-1, 0, 0], atol=1e-7)  # left
    np.testing.assert_allclose(rotation[:, 2], [0, -1, 0], atol=1e-7)  # up
    size = detection.bbox.size
    np.testing.assert_allclose([size.x, size.y, size.z], [4, 1.6, 1.5], atol=1e-7)
    assert (detection.bbox.center.position.x, detection.bbox.center.position.y) == (2, 1)


def test_every_detection_is_complete():
    boxes = some_boxes()
    array = messages.to_detections(boxes, HEADER)
    assert array.header == HEADER
    for detection in array.detections:
        assert detection.header == HEADER
        assert detection.id == ""
        assert len(detection.results) == 1
        result = detection.results[0]
        assert result.hypothesis.class_id in ("car", "pedestrian")
        assert 0 <= result.hypothesis.score <= 1
        assert result.pose.pose == detection.bbox.center


def test_covariance_by_hand():
    """At (3, 0, 4) with 0.8 m of depth: along the ray 0.8 * 5/4 = 1 m, across it 1 % of 5 m."""
    boxes = Boxes3D(
        torch.tensor([[3.0, 0, 4]]), torch.ones(1, 3), torch.zeros(1), ("Car",), depth_std=torch.tensor([0.8])
    )
    pose = messages.to_detections(boxes, HEADER).detections[0].results[0].pose
    covariance = pose.covariance.reshape(6, 6)
    ray, across = np.array([0.6, 0, 0.8]), np.array([0.8, 0, -0.6])
    lateral = (LATERAL_FRACTION * 5) ** 2
    np.testing.assert_allclose(ray @ covariance[:3, :3] @ ray, 1.0, rtol=1e-6)
    np.testing.assert_allclose(across @ covariance[:3, :3] @ across, lateral, rtol=1e-6)
    np.testing.assert_allclose(covariance[1, 1], lateral, rtol=1e-6)  # y is across the ray here
    np.testing.assert_allclose(covariance[0, 2], 0.6 * 0.8 * (1 - lateral), rtol=1e-6)
    # yaw is the rotation about the camera's y axis: row-major (x, y, z, rotX, rotY, rotZ), entry 4
    np.testing.assert_allclose(np.diag(covariance)[3:], np.array([TILT_STD, YAW_STD, TILT_STD]) ** 2)
    assert YAW_STD > TILT_STD


def test_covariance_is_symmetric_and_positive_definite():
    boxes = some_boxes()
    boxes.depth_std[::3] = math.nan  # unknown: the documented default
    for detection, std in zip(messages.to_detections(boxes, HEADER).detections, boxes.depth_std.tolist(), strict=True):
        covariance = detection.results[0].pose.covariance.reshape(6, 6)
        np.testing.assert_allclose(covariance, covariance.T)
        assert np.linalg.eigvalsh(covariance).min() > 0
        if math.isnan(std):
            assert covariance[2, 2] >= (DEPTH_FRACTION * detection.bbox.center.position.z) ** 2


def test_nothing_found_is_an_empty_array():
    array = messages.to_detections(Boxes3D.empty(), HEADER)
    assert isinstance(array, Detection3DArray)
    assert array.header == HEADER
    assert not array.detections
    assert len(boxes_from_detections(array)) == 0


def test_boxes_with_nan_are_left_out():
    boxes = some_boxes(4)
    boxes.center[1, 2] = math.nan
    boxes.size[2, 0] = math.inf
    assert torch.equal(finite(boxes).center, boxes.center[[0, 3]])


def test_markers():
    boxes = some_boxes(2).to(torch.float64)
    markers = messages.to_markers(boxes, HEADER, lifetime=0.25).markers
    assert all(m.action == Marker.ADD for m in markers)
    assert all(m.header == HEADER for m in markers)
    assert all((m.lifetime.sec, m.lifetime.nanosec) == (0, 250_000_000) for m in markers)
    kinds = {(m.ns, m.type) for m in markers if m.id == 0}
    assert kinds == {
        ("front/box", Marker.LINE_LIST), ("front/heading", Marker.ARROW), ("front/text", Marker.TEXT_VIEW_FACING)
    }  # fmt: skip
    assert len({(m.ns, m.id) for m in markers}) == 6  # nothing overwrites anything
    first, second = (m for m in markers if m.ns == "front/box")
    assert len(first.points) == 24  # 12 edges
    corners = boxes.corners[0]
    ends = torch.tensor([[p.x, p.y, p.z] for p in first.points], dtype=torch.float64)
    assert torch.cdist(ends, corners).min(1).values.max() < 1e-12
    assert first.color != second.color  # by class
    assert first.color.a > 0
    arrow = next(m for m in markers if m.ns == "front/heading")
    assert [arrow.points[0].x, arrow.points[0].y, arrow.points[0].z] == boxes.center[0].tolist()
    heading = np.array([arrow.points[1].x - arrow.points[0].x, arrow.points[1].z - arrow.points[0].z])
    yaw = float(boxes.yaw[0])
    np.testing.assert_allclose(heading / np.linalg.norm(heading), [math.cos(yaw), -math.sin(yaw)], atol=1e-5)
    assert all(m.pose.orientation.w == 1 for m in markers)


def test_a_yaw_known_modulo_pi_is_a_line_and_not_an_arrow():
    """Cars and pedestrians alike; the line goes through the centre and does not tell one end from the other."""
    boxes = some_boxes(4).to(torch.float64)
    boxes.flip_odds[:] = 0.5
    turned = replace(boxes, yaw=boxes.yaw + math.pi)
    for label, there, back in zip(boxes.labels, *(headings(b) for b in (boxes, turned)), strict=True):
        assert there.type == back.type == Marker.LINE_LIST, label
        ends, swapped = (np.array([[p.x, p.y, p.z] for p in marker.points]) for marker in (there, back))
        np.testing.assert_allclose(ends, swapped[::-1], atol=1e-9)
        np.testing.assert_allclose(ends.mean(0), boxes.center[there.id], atol=1e-9)
        np.testing.assert_allclose(np.linalg.norm(ends[1] - ends[0]), boxes.size[there.id, 0], rtol=1e-9)
    boxes.flip_odds[:] = 0.04
    assert {marker.type for marker in headings(boxes)} == {Marker.ARROW}


def headings(boxes):
    return [m for m in messages.to_markers(boxes, HEADER, 0.5).markers if m.ns == "front/heading"]


def test_the_covariance_of_a_yaw_known_modulo_pi_says_so_in_every_frame():
    """Where nothing is known of the front, the deviation is 127 degrees, of cars and pedestrians alike; in base_link
    the same stands at the rotation about z."""
    boxes = some_boxes(4)
    boxes.flip_odds[:], boxes.yaw_std[:] = 0.5, torch.tensor([0.1, 0.9, 0.1, 0.9])
    expected = np.array([0.01, 0.81, 0.01, 0.81]) + math.pi**2 / 2
    optical_to_base = Transform((-0.5, 0.5, -0.5, 0.5), (1.0, 0.0, 1.5))
    for transform, axis in ((IDENTITY, 4), (optical_to_base, 5)):
        array = messages.to_detections(boxes, HEADER, transform)
        covariances = [d.results[0].pose.covariance.reshape(6, 6) for d in array.detections]
        assert {d.results[0].hypothesis.class_id for d in array.detections} == {"car", "pedestrian"}
        np.testing.assert_allclose([c[axis, axis] for c in covariances], expected, rtol=1e-6)
        for c, before in zip(covariances, pose_covariance(boxes).numpy(), strict=True):
            np.testing.assert_allclose(np.linalg.eigvalsh(c), np.linalg.eigvalsh(before), rtol=1e-6, atol=1e-9)


class Display:
    """What RViz shows: markers by namespace and id, whoever published them."""

    def __init__(self):
        self.shown = {}

    def take(self, array):
        keys = [(m.ns, m.id) for m in array.markers]
        assert len(set(keys)) == len(keys)  # RViz complains of two in one array
        for marker in array.markers:
            assert marker.action in (Marker.ADD, Marker.DELETE)  # never DELETEALL
            if marker.action == Marker.ADD:
                self.shown[marker.ns, marker.id] = marker
            else:
                self.shown.pop((marker.ns, marker.id), None)

    def of(self, camera):
        return {key for key in self.shown if key[0].startswith(f"{camera}/")}


def names(boxes, camera):
    return {(m.ns, m.id) for m in messages.to_markers(boxes, HEADER, 0.5, camera=camera).markers}


def test_markers_that_are_gone_are_deleted_and_no_other_camera_s():
    """Two cameras with random numbers of boxes in one display: it always shows just the newest of each."""
    display, rng = Display(), np.random.default_rng(0)
    memories = {camera: MarkerMemory() for camera in ("front", "rear")}
    newest = {camera: Boxes3D.empty() for camera in memories}
    for _ in range(60):
        camera = rng.choice(list(memories))
        newest[camera] = some_boxes(2 * int(rng.integers(0, 4)))
        markers = messages.to_markers(newest[camera], HEADER, 0.5, camera=camera)
        display.take(memories[camera].update(markers, HEADER, 0.5))
        for each, boxes in newest.items():
            assert display.of(each) == names(boxes, each)


def test_a_deletion_that_was_lost_comes_again():
    display, memory = Display(), MarkerMemory()
    for boxes, lost in ((some_boxes(4), False), (some_boxes(2), True), (some_boxes(2), False)):
        array = memory.update(messages.to_markers(boxes, HEADER, 0.5, camera="front"), HEADER, 0.5)
        if not lost:
            display.take(array)
    assert display.of("front") == names(some_boxes(2), "front")


def test_markers_are_forgotten_once_rviz_has_removed_them(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    memory = MarkerMemory()
    memory.update(messages.to_markers(some_boxes(4), HEADER, 0.5), HEADER, 0.5)
    now[0] += 0.4
    (gone,) = {m.action for m in memory.update(MarkerArray(), HEADER, 0.5).markers}
    assert gone == Marker.DELETE
    now[0] += 0.2
    assert not memory.update(MarkerArray(), HEADER, 0.5).markers
    assert len(memory) == 0


def test_label_info():
    info = messages.to_label_info(("Car", "Pedestrian"), 0.25, HEADER)
    assert [(c.class_id, c.class_name) for c in info.class_map] == [(0, "car"), (1, "pedestrian")]
    assert info.threshold == 0.25


def test_image_message():
    pixels = np.random.default_rng(0).integers(0, 255, (7, 5, 3), dtype=np.uint8)
    message = messages.to_image(pixels, HEADER)
    assert (message.height, message.width, message.step, message.encoding) == (7, 5, 15, "rgb8")
    assert bytes(message.data) == pixels.tobytes()
    assert message.header == HEADER
