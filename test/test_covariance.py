"""How sure a pose is: by hand, against errors that are drawn, and there and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from test_detector import camera, picture

from skd_core.boxes import Boxes3D
from skd_core.covariance import LATERAL_FRACTION, TILT_STD, YAW_STD, pose_covariance, with_covariance
from skd_core.inference.calibration import UNMEASURED_FLIP, Calibration
from skd_core.inference.detector import Detector
from skd_core.supervision.lift import lift
from skd_core.visualize import draw_bev, draw_boxes3d

MEASURED = {"depth_scale": 2.0, "lateral_std": 0.03, "vertical_std": 0.02, "yaw_std": 0.4, "flip": 0.5, "count": 50}


def one(center: tuple[float, float, float] = (3.0, 0.0, 4.0), **more: float) -> Boxes3D:
    """A box; more: its fields, each a number, ``across_std`` the pair (sideways, upwards)."""
    fields = {name: torch.tensor([value], dtype=torch.float64) for name, value in more.items()}
    place = torch.tensor([center], dtype=torch.float64)
    return Boxes3D(place, torch.ones(1, 3).double(), torch.zeros(1).double(), ("Car",), **fields)


def test_three_axes_by_hand() -> None:
    """At (3, 0, 4) along the ray .8 * 5/4 = 1 m, sideways .3 m, upwards .2 m."""
    C = pose_covariance(one(depth_std=0.8, across_std=(0.3, 0.2)))[0].numpy()  # type: ignore[arg-type]
    ray, side = np.array([0.6, 0, 0.8]), np.array([0.8, 0, -0.6])
    assert ray @ C[:3, :3] @ ray == pytest.approx(1.0)
    assert side @ C[:3, :3] @ side == pytest.approx(0.09)
    assert C[1, 1] == pytest.approx(0.04)
    assert ray @ C[:3, :3] @ side == pytest.approx(0, abs=1e-12)
    assert C[0, 2] == pytest.approx(0.6 * 0.8 * (1 - 0.09))


@pytest.mark.parametrize(
    ("odds", "variance"), [(0.0, 0.09), (0.5, 0.09 + math.pi**2 / 2), (0.1, 0.09 + 0.1 * math.pi**2)]
)
def test_the_variance_of_yaw_includes_the_flip(odds: float, variance: float) -> None:
    C = pose_covariance(one(yaw_std=0.3, flip_odds=odds))[0]
    assert float(C[4, 4]) == pytest.approx(variance)
    assert float(C[3, 3]) == float(C[5, 5]) == pytest.approx(TILT_STD**2)


def test_the_variance_is_that_of_errors_that_are_drawn() -> None:
    rng = np.random.default_rng(0)
    errors = rng.normal(0, 0.3, 200_000) + math.pi * rng.choice(
        [-1, 0, 0, 1], 200_000
    )  # off by half a turn: half of them
    assert float(pose_covariance(one(yaw_std=0.3, flip_odds=0.5))[0, 4, 4]) == pytest.approx(errors.var(), rel=0.01)


def test_what_is_unknown_takes_the_constants() -> None:
    C = pose_covariance(one())[0].numpy()
    assert C[1, 1] == pytest.approx((LATERAL_FRACTION * 5) ** 2)
    assert C[4, 4] == pytest.approx(YAW_STD**2)
    assert pytest.approx(math.pi / math.sqrt(12)) == YAW_STD  # of a line of which nothing is known


spread = st.floats(0.01, 20) | st.just(math.nan)


@settings(max_examples=60, deadline=None)
@given(
    center=st.tuples(st.floats(-40, 40), st.floats(-4, 4), st.floats(0.5, 150)),
    values=st.tuples(spread, spread, spread, st.floats(0.06, 1.5) | st.just(math.nan)),
    odds=st.sampled_from([0.0, 0.5]),
)
def test_covariances_are_sound_and_go_there_and_back(
    center: tuple[float, float, float], values: tuple[float, float, float, float], odds: float
) -> None:
    depth, sideways, upwards, yaw = values
    boxes = one(center, depth_std=depth, across_std=(sideways, upwards), yaw_std=yaw, flip_odds=odds)  # type: ignore[arg-type]
    C = pose_covariance(boxes)
    torch.testing.assert_close(C, C.mT)
    assert np.linalg.eigvalsh(C[0].numpy()).min() > 0
    back = with_covariance(one(center), C)
    torch.testing.assert_close(pose_covariance(back), C, rtol=1e-6, atol=1e-9)
    assert bool(back.heading_known) == (odds == 0)
    if not math.isnan(depth):
        assert float(back.depth_std) == pytest.approx(depth, rel=1e-6)


def test_an_all_zero_covariance_is_an_unknown_one() -> None:
    back = with_covariance(one(), torch.zeros(1, 6, 6).double())
    assert bool(back.depth_std.isnan().all() & back.across_std.isnan().all() & back.yaw_std.isnan().all())


def test_eigenvalues_do_not_depend_on_where_the_object_stands() -> None:
    """Turning the scene about the camera's y axis turns the covariance with it."""
    turn = Rotation.from_euler("y", 0.7).as_matrix()
    at = np.array([2.0, 1.0, 20.0])
    depth = 1.5
    there = turn @ at
    # the same error along the ray: s_z |c| / z
    a = one(tuple(at), depth_std=depth, across_std=(0.3, 0.1))  # type: ignore[arg-type]
    b = one(tuple(there), depth_std=depth * there[2] / at[2], across_std=(0.3, 0.1))  # type: ignore[arg-type]
    np.testing.assert_allclose(
        turn @ pose_covariance(a)[0, :3, :3].numpy() @ turn.T, pose_covariance(b)[0, :3, :3].numpy(), atol=1e-9
    )


# -- the detector's boxes ----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.random()


def test_uncalibrated_weights_know_no_heading(detector: Detector) -> None:
    boxes = detector.predict(picture(), camera(), 0.0)
    assert len(boxes)
    assert not bool(boxes.heading_known.any())
    assert bool(boxes.yaw_std.isnan().all() & boxes.across_std.isnan().all())
    assert bool((pose_covariance(boxes)[:, 4, 4] > math.pi**2 / 2).all())


def test_boxes_carry_what_was_measured_of_their_class(detector: Detector) -> None:
    before = detector.predict(picture(), camera(), 0.0)
    told = Detector(detector.student, detector.metadata | {"calibration": {"Pedestrian": MEASURED}}, "cpu")
    boxes = told.predict(picture(), camera(), 0.0)
    assert boxes.labels == before.labels
    at = torch.tensor([label == "Pedestrian" for label in boxes.labels])
    assert bool(at.any()), "seed"
    assert bool((~at).any()), "seed"
    torch.testing.assert_close(boxes.depth_std, torch.where(at, 2 * before.depth_std, before.depth_std))
    distance = boxes.center.norm(dim=1)
    torch.testing.assert_close(boxes.across_std[at], distance[at, None] * torch.tensor([0.03, 0.02]))
    assert bool((boxes.yaw_std[at] == torch.tensor(0.4)).all())
    assert bool(boxes.yaw_std[~at].isnan().all() & boxes.across_std[~at].isnan().all())
    assert torch.equal(boxes.scores, before.scores)  # the network's own spread makes them
    bare = told.uncalibrated().predict(picture(), camera(), 0.0)
    assert torch.equal(bare.depth_std, before.depth_std)


def test_placed_boxes_carry_it_too(detector: Detector) -> None:
    told = Detector(detector.student, detector.metadata | {"calibration": {"Car": MEASURED}}, "cpu")
    given = told.predict(picture(), camera(), 0.0).project(camera())
    boxes, _ = told.place(picture(), camera(), given)
    assert bool((boxes.yaw_std.isnan() == torch.tensor([label != "Car" for label in boxes.labels])).all())
    assert not bool(boxes.heading_known.any())


def test_a_trained_direction_flips_as_often_as_was_measured() -> None:
    measured = MEASURED | {"flip": 0.04}
    row = Calibration.of(("Car", "Van"), {"Car": measured}, heading_known=True).table
    assert row[:, 4].tolist() == pytest.approx([0.04, UNMEASURED_FLIP])
    row = Calibration.of(("Car", "Van"), {"Car": measured}, heading_known=False).table
    assert row[:, 4].tolist() == [0.5, 0.5]  # whatever a file says


def test_lifted_boxes_know_no_heading() -> None:
    found = lift(one((0.0, 1.0, 20.0)).project(camera()), camera())
    assert len(found) == 1
    assert not bool(found.heading_known)


# -- pictures ----------------------------------------------------------------------------------------------------------
def test_pictures_mark_no_front_where_none_is_known() -> None:
    known, unknown = (one((0.0, 0.0, 20.0), flip_odds=odds) for odds in (0.0, 0.5))
    view = camera()
    image = np.zeros((view.height, view.width, 3), np.uint8)
    crossed, plain = (draw_boxes3d(image, boxes, view, text=False) for boxes in (known, unknown))
    assert int((plain > 0).sum()) <= int((crossed > 0).sum())
    arrow, line = (draw_bev(boxes, range_m=25, size=(416, 416)) for boxes in (known, unknown))
    row, half = 400 - 20 * 16, slice(201, 207)  # behind the centre of a box of 1 m, 16 px: yaw 0 points right
    assert int(line[row - 1 : row + 1, half].max()) > int(arrow[row - 1 : row + 1, half].max()) + 60
