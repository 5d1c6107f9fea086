"""Boxes: axes, corners, angles, mirror images and what they look like in the image."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from skd_core.boxes import (
    CORNER_SIGNS,
    EDGES,
    TENSORS,
    Boxes2D,
    Boxes3D,
    at_border,
    project_boxes,
    rotation_matrix,
    wrap_angle,
    yaw_to_alpha,
)
from skd_core.camera import Camera
from skd_core.data.kitti import read_objects

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}")

P2 = [721.5377, 0, 609.5593, 44.85728, 0, 721.5377, 172.854, 0.2163791, 0, 0, 1, 0.002745884]
KITTI = Camera(torch.tensor(P2, dtype=torch.float64).reshape(3, 4), 1242, 375)


def doubles(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def floats(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_subnormal=False)


@st.composite
def boxes3d(draw: st.DrawFn) -> Boxes3D:
    """Boxes in front of the camera, as large as things on a street."""
    row = st.tuples(
        *(floats(-20, 20), floats(-3, 3), floats(12, 80)),
        *(floats(0.3, 10), floats(0.3, 3), floats(0.3, 4)),
        floats(-2 * math.pi, 2 * math.pi),
    )
    rows = doubles(*draw(st.lists(row, min_size=1, max_size=6)))
    return Boxes3D(rows[:, :3], rows[:, 3:6], rows[:, 6], ("Car",) * len(rows))


# -- axes -------------------------------------------------------------------------------------------------------------
def test_corners_of_a_hand_worked_box() -> None:
    # 4 m long, 2 m wide, 1 m high, 10 m ahead, yaw 0: forward is the camera's +x, left its +z (away), up its -y.
    box = Boxes3D(doubles([0, 0, 10]), doubles([4, 2, 1]), doubles(0), ("Car",))
    bottom = [[2, 0.5, 11], [2, 0.5, 9], [-2, 0.5, 9], [-2, 0.5, 11]]  # front-left, front-right, rear-right, rear-left
    top = [[x, -0.5, z] for x, _, z in bottom]
    torch.testing.assert_close(box.corners[0], doubles(*bottom, *top))


def test_yaw_turns_the_front_towards_the_camera() -> None:
    # yaw 90 degrees: the heading goes from +x to -z, towards the camera; its left is then +x
    box = Boxes3D(doubles([0, 0, 10]), doubles([4, 2, 1]), doubles(math.pi / 2), ("Car",))
    torch.testing.assert_close(box.corners[0, 0], doubles(1, 0.5, 8))
    torch.testing.assert_close(box.corners[0, 6], doubles(-1, -0.5, 12))


def test_edges_join_corners_that_differ_in_one_axis() -> None:
    lengths = [(CORNER_SIGNS[a] != CORNER_SIGNS[b]).sum().item() for a, b in EDGES]
    assert lengths == [1] * 12
    assert len({frozenset(edge) for edge in EDGES}) == 12


@given(boxes3d())
def test_corners_have_the_box_s_centre_and_size(boxes: Boxes3D) -> None:
    corners = boxes.corners
    torch.testing.assert_close(corners.mean(1), boxes.center, rtol=0, atol=1e-9)
    edges = torch.stack(
        [corners[:, 0] - corners[:, 3], corners[:, 0] - corners[:, 1], corners[:, 4] - corners[:, 0]], 1
    )
    torch.testing.assert_close(edges.norm(dim=-1), boxes.size, rtol=0, atol=1e-9)
    assert bool((corners[:, :4, 1] > corners[:, 4:, 1]).all())  # y is down: the bottom has the larger y


@given(floats(-20, 20))
def test_rotation_matrix_is_a_rotation_about_the_vertical(yaw: float) -> None:
    R = rotation_matrix(doubles(yaw))[0]
    torch.testing.assert_close(R @ R.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert float(torch.linalg.det(R)) == pytest.approx(1)
    assert R[:, 0].tolist() == pytest.approx([math.cos(yaw), 0, -math.sin(yaw)])  # heading, as the diagram says
    assert R[:, 2].tolist() == [0, -1, 0]  # up


def test_footprint_seen_from_above() -> None:
    box = Boxes3D(doubles([1, 2, 30]), doubles([4, 2, 1]), doubles(0.3), ("Car",))
    assert box.bev.tolist() == [[1, 30, 4, 2, 0.3]]


# -- angles -----------------------------------------------------------------------------------------------------------
@given(floats(-50, 50))
def test_wrap_angle(angle: float) -> None:
    wrapped = float(wrap_angle(doubles(angle)))
    assert -math.pi <= wrapped <= math.pi
    assert math.isclose(math.cos(wrapped), math.cos(angle), abs_tol=1e-12)
    assert math.isclose(math.sin(wrapped), math.sin(angle), abs_tol=1e-12)


def test_alpha_of_a_hand_worked_box() -> None:
    # 45 degrees to the right, heading along the viewing ray's right-hand normal: seen as at yaw 0 straight ahead
    alpha = yaw_to_alpha(doubles(math.pi / 4), doubles([10, 0, 10]))
    assert float(alpha) == pytest.approx(0)


@given(boxes3d())
def test_alpha_and_yaw_are_inverse(boxes: Boxes3D) -> None:
    alpha = yaw_to_alpha(boxes.yaw, boxes.center)
    difference = wrap_angle(alpha + torch.atan2(boxes.center[..., 0], boxes.center[..., 2]) - boxes.yaw)
    assert float(difference.abs().max()) < 1e-12
    torch.testing.assert_close(alpha, boxes.alpha)


def rotate(q: Tensor, v: Tensor) -> Tensor:
    """v turned by unit quaternions (x, y, z, w), by the textbook formula."""
    axis, w = q[:, :3], q[:, 3:]
    t = 2 * torch.cross(axis, v.expand_as(axis), dim=-1)
    return v + w * t + torch.cross(axis, t, dim=-1)


@given(boxes3d())
def test_quaternion_is_the_rotation_matrix(boxes: Boxes3D) -> None:
    q, R = boxes.quaternion, rotation_matrix(boxes.yaw)
    torch.testing.assert_close(q.norm(dim=-1), torch.ones(len(q), dtype=torch.float64))
    assert bool((q[:, 3] >= 0).all())
    for axis in range(3):
        unit = torch.eye(3, dtype=torch.float64)[axis]
        torch.testing.assert_close(rotate(q, unit), R[:, :, axis], rtol=0, atol=1e-12)
    assert float(wrap_angle(Boxes3D.yaw_from_quaternion(q) - boxes.yaw).abs().max()) < 1e-12


def test_quaternion_with_the_other_sign_is_the_same_yaw() -> None:
    q = Boxes3D(doubles([0, 0, 9]), doubles([4, 2, 1]), doubles(1.2), ("Car",)).quaternion
    assert float(Boxes3D.yaw_from_quaternion(-q)) == pytest.approx(1.2)


# -- KITTI ------------------------------------------------------------------------------------------------------------
def test_kitti_s_location_is_the_bottom() -> None:
    boxes = Boxes3D.from_kitti(doubles([1, 1.7, 20]), doubles([1.5, 1.6, 3.9]), doubles(0.1), ["Car"])
    torch.testing.assert_close(boxes.center, doubles([1, 0.95, 20]))
    torch.testing.assert_close(boxes.size, doubles([3.9, 1.6, 1.5]))  # l, w, h
    torch.testing.assert_close(boxes.bottom, doubles([1, 1.7, 20]))
    torch.testing.assert_close(boxes.corners[0, :4, 1], doubles(1.7, 1.7, 1.7, 1.7))


@given(boxes3d())
def test_kitti_round_trip(boxes: Boxes3D) -> None:
    again = Boxes3D.from_kitti(boxes.bottom, boxes.dimensions_hwl, boxes.yaw, boxes.labels)
    torch.testing.assert_close(again.center, boxes.center, rtol=0, atol=1e-12)
    assert again.size.equal(boxes.size)


@needs_data
def test_real_2d_labels_are_the_projected_3d_labels() -> None:
    """KITTI's 2D boxes are projections of its 3D boxes, mean IoU .975 over the training set."""
    ious, alphas = [], []
    root = DATA / "kitti_dev" / "training"
    for path in sorted((root / "label_2").glob("*.txt")):
        objects = read_objects(path)
        cars = objects[objects.is_class(["Car"]) & (objects.truncated < 0.1)]
        # labels were made on the full image, some of which is cut off in the copy at hand
        camera = Camera.from_kitti(root / "calib" / path.name, 1242, 375)
        boxes = cars.boxes3d()
        ious += box_iou(boxes.project(camera).xyxy, boxes.xyxy).diagonal().tolist()
        alphas += wrap_angle(boxes.alpha - torch.from_numpy(cars.alpha)).abs().tolist()
    assert len(ious) > 40
    assert sum(ious) / len(ious) > 0.97
    assert max(alphas) < 0.03  # two decimals, and the centre of the camera is 6 cm from that of P2


# -- in the image -----------------------------------------------------------------------------------------------------
def test_projection_of_a_hand_worked_box() -> None:
    camera = Camera(doubles([100, 0, 50, 0], [0, 100, 40, 0], [0, 0, 1, 0]), 100, 80)
    box = Boxes3D(doubles([0, 0, 10]), doubles([4, 2, 1]), doubles(0), ("Car",))
    # the near face at z = 9 is the widest: 50 +- 100 * 2 / 9, 40 +- 100 * .5 / 9
    expected = [50 - 200 / 9, 40 - 50 / 9, 50 + 200 / 9, 40 + 50 / 9]
    assert box.project(camera).xyxy.tolist() == [pytest.approx(expected)]


@given(boxes3d())
def test_flip_commutes_with_projection(boxes: Boxes3D) -> None:
    one = boxes.flip().project(KITTI.flip()).xyxy
    other = boxes.project(KITTI).flip(KITTI.width).xyxy
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@given(boxes3d(), st.integers(50, 2000), st.integers(50, 2000))
def test_resize_commutes_with_projection(boxes: Boxes3D, width: int, height: int) -> None:
    one = boxes.project(KITTI.resize(width, height)).xyxy
    other = boxes.project(KITTI).scale(width / KITTI.width, height / KITTI.height).xyxy
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@given(boxes3d(), st.integers(0, 600), st.integers(0, 200))
def test_crop_commutes_with_projection(boxes: Boxes3D, x0: int, y0: int) -> None:
    one = boxes.project(KITTI.crop(x0, y0, 500, 150)).xyxy
    other = boxes.project(KITTI).crop(x0, y0).clip(500, 150).xyxy
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@given(boxes3d())
def test_flip_twice_is_the_identity(boxes: Boxes3D) -> None:
    twice = boxes.flip().flip()
    assert twice.center.equal(boxes.center)
    assert float(wrap_angle(twice.yaw - boxes.yaw).abs().max()) < 1e-12
    two = boxes.project(KITTI)
    torch.testing.assert_close(two.flip(1242).flip(1242).xyxy, two.xyxy, rtol=0, atol=1e-9)


@given(boxes3d())
def test_flip_mirrors_the_corners(boxes: Boxes3D) -> None:
    mirrored = boxes.corners * doubles(-1, 1, 1)
    left_right = [1, 0, 3, 2, 5, 4, 7, 6]  # what was left is right
    torch.testing.assert_close(boxes.flip().corners, mirrored[:, left_right], rtol=0, atol=1e-9)


def test_flip_moves_the_2d_boxes_only_if_the_width_is_known() -> None:
    xyxy = doubles([10, 20, 30, 40])
    boxes = Boxes3D(doubles([1, 0, 10]), doubles([4, 2, 1]), doubles(0.3), ("Car",), xyxy=xyxy)
    assert boxes.flip(100).xyxy.tolist() == [[70, 20, 90, 40]]
    assert bool(boxes.flip().xyxy.isnan().all())


def test_a_box_beside_the_camera_projects_to_something_finite_with_a_gradient() -> None:
    center = doubles([2, 0, 1]).requires_grad_()
    xyxy = project_boxes(KITTI.P, center, doubles([4, 2, 1]), doubles(0.4))
    xyxy.sum().backward()
    assert bool(xyxy.isfinite().all())
    assert center.grad is not None
    assert bool(center.grad.isfinite().all())
    clipped = Boxes3D(center.detach(), doubles([4, 2, 1]), doubles(0.4), ("Car",)).project(KITTI).xyxy[0]
    assert 0 <= clipped[0] < clipped[2] <= KITTI.width


def test_projection_takes_a_camera_per_box() -> None:
    boxes = Boxes3D(doubles([0, 0, 10], [3, 1, 20]), doubles([4, 2, 1], [4, 2, 1]), doubles(0, 1), ("Car", "Car"))
    other = KITTI.resize(640, 192)
    together = project_boxes(torch.stack([KITTI.P, other.P]), boxes.center, boxes.size, boxes.yaw)
    torch.testing.assert_close(together[1], project_boxes(other.P, boxes.center, boxes.size, boxes.yaw)[1])


# -- the containers ---------------------------------------------------------------------------------------------------
def test_2d_boxes_move_with_the_image() -> None:
    boxes = Boxes2D(torch.tensor([[10.0, 20, 60, 90]]), ("Car",))
    assert boxes.crop(20, 30).xyxy.tolist() == [[-10, -10, 40, 60]]
    assert boxes.crop(20, 30).clip(30, 40).xyxy.tolist() == [[0, 0, 30, 40]]
    assert boxes.scale(2, 0.5).xyxy.tolist() == [[20, 10, 120, 45]]
    assert boxes.flip(100).xyxy.tolist() == [[40, 20, 90, 90]]
    assert boxes.xyxy.tolist() == [[10, 20, 60, 90]]


def three() -> Boxes3D:
    return Boxes3D(
        torch.arange(9.0).reshape(3, 3), torch.ones(3, 3), torch.arange(3.0), ("a", "b", "c"),
        scores=torch.tensor([0.1, 0.2, 0.3]), depth_std=torch.tensor([1.0, 2, 3]),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("index", "labels"),
    [
        (slice(1, None), ("b", "c")),
        ([2, 0], ("c", "a")),
        (torch.tensor([2]), ("c",)),
        (torch.tensor([True, False, True]), ("a", "c")),
        ([False, True, False], ("b",)),
        ([], ()),
        (torch.zeros(3, dtype=torch.bool), ()),
    ],
)
def test_selection(index: object, labels: tuple[str, ...]) -> None:
    boxes = three()
    picked = boxes[index]  # type: ignore[index]
    assert picked.labels == labels
    rows = ["abc".index(label) for label in labels]
    assert picked.center.tolist() == [boxes.center[i].tolist() for i in rows]
    assert picked.yaw.tolist() == [float(i) for i in rows]
    assert picked.depth_std.tolist() == [float(i + 1) for i in rows]
    two = Boxes2D(boxes.center.new_ones(3, 4), boxes.labels, boxes.scores)[index]  # type: ignore[index]
    assert two.labels == labels
    assert two.scores.tolist() == picked.scores.tolist()


def test_empty_boxes_do_everything() -> None:
    for boxes in (Boxes3D.empty(), three()[[]]):
        assert len(boxes) == 0
        assert boxes.corners.shape == (0, 8, 3)
        assert boxes.quaternion.shape == (0, 4)
        assert boxes.bev.shape == (0, 5)
        assert boxes.bottom.shape == boxes.dimensions_hwl.shape == (0, 3)
        assert boxes.project(KITTI).xyxy.shape == (0, 4)
        assert len(boxes.flip(100)) == len(boxes.to(torch.float64)) == 0
    assert len(Boxes2D.empty().clip(3, 3).flip(3).scale(2, 2).crop(1, 1)) == 0


def test_whole_numbers_become_floating() -> None:
    boxes = Boxes2D(torch.tensor([[0, 0, 10, 20]]), ("Car",)).scale(0.25, 0.25)
    assert boxes.xyxy.tolist() == [[0, 0, 2.5, 5]]
    assert (
        Boxes3D(torch.tensor([[0, 0, 9]]), torch.tensor([[4, 2, 1]]), torch.tensor([0]), ("Car",)).bottom[0, 1] == 0.5
    )


def test_unknown_is_nan_and_scores_are_one() -> None:
    boxes = Boxes3D(torch.zeros(2, 3), torch.ones(2, 3), torch.zeros(2), ("a", "b"))
    assert boxes.scores.tolist() == [1, 1]
    assert bool(boxes.xyxy.isnan().all())
    assert bool(boxes.depth_std.isnan().all())


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="lengths differ"):
        Boxes3D(torch.zeros(2, 3), torch.ones(2, 3), torch.zeros(2), ("a",))
    with pytest.raises(ValueError, match="lengths differ"):
        Boxes2D(torch.zeros(1, 4), ("a",), torch.ones(2))


def test_to_changes_every_tensor() -> None:
    boxes = three().to(torch.float64)
    names = TENSORS
    assert {getattr(boxes, name).dtype for name in names} == {torch.float64}
    assert boxes.labels == ("a", "b", "c")
    assert Boxes2D(torch.zeros(1, 4), ("a",)).to(torch.float64).scores.dtype == torch.float64


def test_edges_at_the_border() -> None:
    """Within 3 px of the image's border; sizes may differ from box to box."""
    boxes = torch.tensor([[2.9, 10, 100, 60], [10, 2, 50, 60], [10, 10, 50, 98], [3, 3, 189, 97]])
    expected = [[True, False, False, False], [False, True, False, False], [False, False, False, True], [False] * 4]
    assert at_border(boxes, 192, 100).tolist() == expected
    sizes = torch.tensor([192.0, 52, 192, 192])
    assert at_border(boxes, sizes, 100)[1].tolist() == [False, True, True, False]
