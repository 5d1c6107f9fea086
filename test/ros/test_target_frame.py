"""Poses and covariances in another frame, against numbers worked by hand and against sampled points."""

from __future__ import annotations

import builtins
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Transform as TransformMessage
from std_msgs.msg import Header

from skd_core.boxes import Boxes3D
from skd_core.errors import UserError
from skd_wm3d_ros import messages
from skd_wm3d_ros.rejection import Rejection
from skd_wm3d_ros.transforms import IDENTITY, FrameLookup, Transform

HALF = math.sqrt(0.5)
# of a camera that looks forward, 1.5 m above base_link: its z is base_link's x, its x is -y, its y is -z
OPTICAL_TO_BASE = Transform((-0.5, 0.5, -0.5, 0.5), (1.0, 0.0, 1.5))


def matrix(q):
    """Rotation matrix of a message's quaternion, by Rodrigues' formula: another way than the code's."""
    v, w = np.array([q.x, q.y, q.z]), q.w
    cross = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross


def test_axes_of_the_usual_camera_by_hand():
    np.testing.assert_allclose(OPTICAL_TO_BASE.rotation, [[0, 0, 1], [-1, 0, 0], [0, -1, 0]], atol=1e-12)
    np.testing.assert_allclose(OPTICAL_TO_BASE.points(np.array([2.0, 1.5, 10.0])), [11, -2, 0])


def test_a_car_ahead_by_hand():
    """2 m to the right, 10 m ahead, on the ground, driving away: x forward, z up, no rotation but none at all."""
    car = Boxes3D(
        torch.tensor([[2.0, 0.75, 10]]), torch.tensor([[4.0, 1.6, 1.5]]), torch.tensor([-math.pi / 2]), ("Car",),
        depth_std=torch.tensor([1.0]),
    )  # fmt: skip
    out = Header(stamp=Time(sec=3), frame_id="base_link")
    array = messages.to_detections(car, out, OPTICAL_TO_BASE)
    detection = array.detections[0]
    pose = detection.bbox.center
    np.testing.assert_allclose([pose.position.x, pose.position.y, pose.position.z], [11, -2, 0.75], atol=1e-6)
    q = pose.orientation
    np.testing.assert_allclose(np.abs([q.x, q.y, q.z, q.w]), [0, 0, 0, 1], atol=1e-6)
    assert detection.header == array.header == out
    size = detection.bbox.size
    np.testing.assert_allclose([size.x, size.y, size.z], [4, 1.6, 1.5], atol=1e-6)  # turning changes no size


def test_covariance_turns_with_the_pose_by_hand():
    """The depth, z of the camera, is x of base_link; the yaw, about the camera's y, is about base_link's z."""
    covariance = np.diag([1.0, 2.0, 3.0, 0.1, 0.2, 0.3])[None]
    covariance[0, 0, 2] = covariance[0, 2, 0] = 0.5  # x and z of the camera
    turned = OPTICAL_TO_BASE.covariances(covariance)[0]
    np.testing.assert_allclose(np.diag(turned), [3, 1, 2, 0.3, 0.1, 0.2], atol=1e-12)
    np.testing.assert_allclose(turned[0, 1], -0.5, atol=1e-12)  # base x = camera z, base y = -camera x
    np.testing.assert_allclose(turned[:3, 3:], 0, atol=1e-12)


def test_covariance_of_sampled_points():
    rng = np.random.default_rng(0)
    q = rng.normal(size=4)
    transform = Transform(tuple(q / np.linalg.norm(q)), (4.0, 5.0, 6.0))
    root = rng.normal(size=(3, 3))
    points = rng.normal(size=(200_000, 3)) @ root.T
    covariance = np.zeros((1, 6, 6))
    covariance[0, :3, :3] = root @ root.T
    np.testing.assert_allclose(
        np.cov(transform.points(points).T), transform.covariances(covariance)[0, :3, :3], rtol=0.05, atol=0.05
    )


def test_orientation_is_the_product_of_the_rotations():
    rng = np.random.default_rng(1)
    q, r = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 4)))
    x, y, z, w = Transform(tuple(q), (0.0, 0.0, 0.0)).orientations(r[None])[0]
    product = matrix(SimpleNamespace(x=x, y=y, z=z, w=w))
    expected = matrix(SimpleNamespace(**dict(zip("xyzw", q, strict=True)))) @ matrix(
        SimpleNamespace(**dict(zip("xyzw", r, strict=True)))
    )
    np.testing.assert_allclose(product, expected, atol=1e-12)


def test_identity_changes_nothing_to_the_bit():
    boxes = Boxes3D(torch.rand(5, 3) + 3, torch.rand(5, 3), torch.rand(5), ("Car",) * 5)
    header = Header(frame_id="camera")
    assert messages.to_detections(boxes, header) == messages.to_detections(boxes, header, IDENTITY)
    np.testing.assert_array_equal(IDENTITY.points(boxes.center.numpy()), boxes.center.numpy())


def test_markers_are_in_the_target_frame_and_named_after_the_camera():
    car = Boxes3D(torch.tensor([[2.0, 0.75, 10]]), torch.tensor([[4.0, 1.6, 1.5]]), torch.zeros(1), ("Car",))
    markers = messages.to_markers(car, Header(frame_id="base_link"), 0.5, OPTICAL_TO_BASE, ["7"], "front").markers
    box, arrow, text = markers
    assert {m.header.frame_id for m in markers} == {"base_link"}
    assert box.ns == "front/box"
    np.testing.assert_allclose(sorted({round(p.z, 6) for p in box.points}), [0, 1.5])  # on the ground, upright
    assert [arrow.points[0].x, arrow.points[0].y, arrow.points[0].z] == pytest.approx([11, -2, 0.75])
    assert text.pose.position.z == pytest.approx(1.5 + messages.TEXT_HEIGHT)  # above the box
    assert text.text == "car #7 1.00 10.2 m"  # sqrt(2^2 + 10^2), from the camera


class Buffer:
    """tf2_ros.Buffer's lookup_transform, for one fixed answer."""

    def __init__(self, answer=None, error=None):
        self.answer, self.error, self.asked = answer, error, []

    def lookup_transform(self, target_frame, source_frame, time, timeout):
        self.asked.append((target_frame, source_frame, time.nanoseconds, timeout.nanoseconds))
        if self.error:
            raise self.error
        return SimpleNamespace(transform=self.answer)


def test_lookup_at_the_image_s_stamp():
    message = TransformMessage()
    message.translation.x, message.rotation.w, message.rotation.z = 2.5, HALF, HALF
    buffer = Buffer(message)
    found = FrameLookup(None, "odom", buffer)("front", Time(sec=7, nanosec=9), 0.25)
    assert buffer.asked == [("odom", "front", 7_000_000_009, 250_000_000)]
    np.testing.assert_allclose(found.points(np.array([1.0, 0, 0])), [2.5, 1, 0], atol=1e-12)


@pytest.mark.parametrize("error", [RuntimeError("extrapolation into the future\nmore"), KeyError("odom")])
def test_a_missing_transform_is_a_rejection(error):
    with pytest.raises(Rejection, match="no transform from 'front' to 'odom' at the image's stamp") as caught:
        FrameLookup(None, "odom", Buffer(error=error))("front", Time(sec=7), 0.0)
    assert caught.value.kind == "transform"
    assert "\n" not in str(caught.value)


def test_a_transform_that_is_none_is_a_rejection():
    message = TransformMessage()
    message.rotation.w = 0.0
    with pytest.raises(Rejection, match="no rotation"):
        FrameLookup(None, "odom", Buffer(message))("front", Time(), 0.0)


def test_without_tf2_ros_the_cure_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("tf2_ros"):
            raise ImportError("No module named 'tf2_ros'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        UserError, match=r"target_frame 'odom' needs tf2_ros .*apt install .*or leave target_frame empty"
    ):
        FrameLookup(None, "odom")
