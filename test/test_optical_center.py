"""What P holds of a baseline says where its frame begins, not what is seen: depth and heading count from the camera."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from skd_core.boxes import Boxes2D, Boxes3D
from skd_core.camera import Camera, from_center
from skd_core.data.sample import Sample
from skd_core.losses.supervised import SupervisedLoss
from skd_core.models.decode import decode_3d
from skd_core.models.heads import Raw3D
from skd_core.models.teacher import depth_to_points
from skd_core.priors import prior_sizes
from skd_core.supervision.lift import lift
from skd_core.supervision.pseudo import pseudo_targets
from skd_core.supervision.target_report import measure

SIZE = (640, 192)
OWN = tiny.kitti_camera(*SIZE).centred()
BASELINES = st.tuples(*[st.floats(-2, 2)] * 3)


def beside(offset: tuple[float, float, float]) -> Camera:
    """OWN, with a P that projects from a frame whose origin is ``-offset`` from the camera."""
    column = OWN.K @ torch.tensor(offset, dtype=torch.float64)
    return Camera(torch.cat([OWN.K, column[:, None]], 1), *SIZE)


@given(BASELINES, st.floats(-0.3, 0.3))
@settings(max_examples=25)
def test_the_optical_centre_of_any_p(offset: tuple[float, float, float], skew: float) -> None:
    K = OWN.K.clone()
    K[0, 1] = skew * K[0, 0]
    t = torch.tensor(offset, dtype=torch.float64)
    P = torch.cat([K, (K @ t)[:, None]], 1)
    xyz = torch.tensor([[0.0, 0, 0], [1, 2, 30]], dtype=torch.float64)
    torch.testing.assert_close(from_center(P, xyz), xyz + t)
    torch.testing.assert_close(from_center(P.expand(2, 3, 4), xyz), xyz + t)
    torch.testing.assert_close(Camera(P, *SIZE).offset, t)


@given(BASELINES)
@settings(max_examples=10)
def test_the_same_picture_is_the_same_box(offset: tuple[float, float, float]) -> None:
    torch.manual_seed(0)
    camera, t = beside(offset), torch.tensor(offset, dtype=torch.float64)
    boxes = torch.tensor([[300.0, 80, 360, 120], [20, 90, 120, 150], [560, 90, 636, 150]], dtype=torch.float64)
    prior, cut = prior_sizes(["Car"] * 3).double(), torch.tensor([False, False, True])
    widths = {"depth": 3, "center": 2, "size": 3, "yaw": 2, "direction": 2}
    raw = Raw3D(**{name: torch.randn(3, width, dtype=torch.float64) for name, width in widths.items()})
    own, other = (decode_3d(raw, boxes, c.P.expand(3, 3, 4), prior, cut) for c in (OWN, camera))
    torch.testing.assert_close(other.center + t, own.center)
    for name in ("size", "yaw", "log_z", "alpha"):
        torch.testing.assert_close(getattr(other, name), getattr(own, name))
    depth = 5 + torch.rand(1, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(depth_to_points(depth, camera.P[None]), depth_to_points(depth, OWN.P[None]))

    found = Boxes2D(boxes.float(), ("Car", "Pedestrian", "Cyclist"))
    lifted, expected = lift(found, camera), lift(found, OWN)
    torch.testing.assert_close(lifted.center.double() + t, expected.center.double(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(lifted.yaw, expected.yaw)
    torch.testing.assert_close(lifted.depth_std, expected.depth_std)


@given(BASELINES)
@settings(max_examples=10)
def test_a_true_box_is_what_its_decoded_self_is_held_against(offset: tuple[float, float, float]) -> None:
    camera = beside(offset)
    seen = torch.tensor([[1.0, 1, 14], [-5, 1, 9]], dtype=torch.float64)
    size, yaw = prior_sizes(["Car"] * 2).double(), torch.tensor([0.3, 1.2]).double()
    truth = Boxes3D(seen - camera.offset, size, yaw, ("Car",) * 2)
    rois, cut = tiny.boxes_around(truth.center, size, yaw, camera), torch.tensor([False, False])
    P = camera.P.expand(2, 3, 4)
    raw = tiny.encode(truth.center, size, yaw, rois, camera, size, cut)
    raw = replace(raw, direction=20 * raw.direction, yaw=raw.yaw / 1.7)
    terms = SupervisedLoss()(decode_3d(raw, rois, P, size, cut, use_direction=True), truth, rois, P)
    floor = terms.pop("depth")
    torch.testing.assert_close(floor, torch.full_like(floor, float(floor[0])))  # no error: the deviation's term alone
    for name, value in terms.items():
        assert value.abs().max() < 1e-6, name
    wrong = replace(truth, center=truth.center * torch.tensor([1, 1, 1.2]))
    worse = SupervisedLoss()(decode_3d(raw, rois, P, size, cut), wrong, rois, P)["depth"]
    assert (worse > floor + 0.1).all()


def sample_beside(sample: Sample, camera: Camera) -> Sample:
    assert sample.boxes3d is not None
    own = sample.boxes3d.moved(sample.camera.offset)
    return replace(sample, camera=camera, boxes3d=own.moved(-camera.offset))


@pytest.mark.parametrize("offset", [(-0.54, 0.0, 0.0), (1.5, -0.3, 0.8)])
def test_pseudo_targets_are_as_seen_from_the_camera(offset: tuple[float, float, float]) -> None:
    rendered = tiny.rendered_sample(3)
    own, other = sample_beside(rendered, OWN), sample_beside(rendered, beside(offset))
    expected, found = pseudo_targets(own), pseudo_targets(other)
    assert expected.z.isfinite().any()
    for name in ("z", "alpha", "alpha_weight"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), equal_nan=True)
    shift = torch.tensor(offset)[[0, 2]]
    torch.testing.assert_close(found.points + shift, expected.points, equal_nan=True)
    one, two = measure([(own, expected)]), measure([(other, found)])
    assert (abs(one.distance - two.distance) < 1e-3).all()
    assert not (abs(one.yaw_error - two.yaw_error) > 1e-3).any()


def test_the_right_camera_sees_heading_from_where_it_stands() -> None:
    """By hand: 5 m ahead of a camera 0.5 m to the right, a car that it sees lengthwise heads straight ahead."""
    camera = beside((-0.5, 0.0, 0.0))
    center: Tensor = torch.tensor([[0.5, 1.0, 5.0]], dtype=torch.float64)
    truth = Boxes3D(center, prior_sizes(["Car"]).double(), torch.tensor([math.pi / 2]).double(), ("Car",))
    assert from_center(camera.P, center)[0].tolist() == pytest.approx([0, 1, 5])
    lifted = lift(truth.project(camera), camera)
    assert math.degrees(abs(float(lifted.yaw[0]) - math.pi / 2)) < 3
    assert float(lifted.center[0, 0]) == pytest.approx(0.5, abs=0.05)
