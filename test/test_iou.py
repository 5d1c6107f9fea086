"""Oriented IoU against shapely, hand-worked numbers, and the inputs that break corner-sorting implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import Polygon
from torch import Tensor

from skd_core.boxes import Boxes3D
from skd_core.errors import UserError
from skd_core.iou import bev_giou, bev_intersection, bev_iou, giou_3d, iou_3d

FUNCTIONS = [(bev_iou, 5), (bev_giou, 5), (iou_3d, 7), (giou_3d, 7)]


def random_bev(count: int, seed: int, spread: float = 3.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    u = torch.rand(count, 5, generator=g, dtype=torch.float64)
    low = torch.tensor([-spread, -spread, 0.2, 0.2, -4.0], dtype=torch.float64)
    high = torch.tensor([spread, spread, 5.0, 3.0, 4.0], dtype=torch.float64)
    return low + u * (high - low)


def random_3d(count: int, seed: int) -> Tensor:
    bev = random_bev(count, seed)
    g = torch.Generator().manual_seed(seed + 1000)
    y_h = torch.rand(count, 2, generator=g, dtype=torch.float64) + torch.tensor([-0.5, 0.5])
    return torch.stack([bev[:, 0], y_h[:, 0], bev[:, 1], bev[:, 2], bev[:, 3], y_h[:, 1], bev[:, 4]], -1)


def polygon(box: Tensor) -> Polygon:
    """The footprint through Boxes3D, so that the sign of yaw is the project's and not this test's."""
    x, z, length, width, yaw = box.double()
    center, size = torch.stack([x, x.new_zeros(()), z]), torch.stack([length, width, x.new_ones(())])
    return Polygon(Boxes3D(center[None], size[None], yaw[None], ("Car",)).corners[0, :4, [0, 2]].numpy())


def expected_bev(a: Tensor, b: Tensor) -> tuple[float, float]:
    p, q = polygon(a), polygon(b)
    inter = p.intersection(q).area
    union = p.area + q.area - inter
    hull = p.union(q).convex_hull.area
    return inter / union, inter / union - (hull - union) / hull


def expected(a: Tensor, b: Tensor) -> tuple[np.ndarray, np.ndarray]:
    pairs = [expected_bev(p, q) for p, q in zip(a, b, strict=True)]
    return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_random_boxes_agree_with_shapely(dtype: torch.dtype, tolerance: float) -> None:
    a, b = random_bev(3000, 0, spread=2.0), random_bev(3000, 1, spread=2.0)
    iou, giou = expected(a, b)
    assert (iou > 0.1).sum() > 500
    np.testing.assert_allclose(bev_iou(a.to(dtype), b.to(dtype), aligned=True), iou, atol=tolerance)
    np.testing.assert_allclose(bev_giou(a.to(dtype), b.to(dtype), aligned=True), giou, atol=tolerance)


ANGLES = st.one_of(
    st.floats(-7, 7),
    st.sampled_from([k * math.pi / 4 for k in range(-8, 9)]),
    st.builds(lambda k, e: k * math.pi / 2 + e, st.integers(-4, 4), st.sampled_from([1e-5, 1e-7, 1e-9, 1e-12, -1e-15])),
)
COORDINATES = st.one_of(st.floats(-4, 4), st.integers(-4, 4).map(lambda i: 0.5 * i))
SIZES = st.one_of(st.floats(0.05, 20), st.sampled_from([0.5, 1.0, 2.0, 4.0]))
BEV = st.tuples(COORDINATES, COORDINATES, SIZES, SIZES, ANGLES).map(lambda box: torch.tensor(box, dtype=torch.float64))


@settings(max_examples=300, deadline=None)
@given(BEV, BEV)
def test_aligned_edges_and_shared_corners_agree_with_shapely(a: Tensor, b: Tensor) -> None:
    iou, giou = expected_bev(a, b)
    assert bev_iou(a[None], b[None]).item() == pytest.approx(iou, abs=1e-9)
    assert bev_giou(a[None], b[None]).item() == pytest.approx(giou, abs=1e-9)
    assert bev_iou(a[None].float(), b[None].float()).item() == pytest.approx(iou, abs=1e-4)
    assert bev_giou(a[None].float(), b[None].float()).item() == pytest.approx(giou, abs=1e-4)


def test_octagon() -> None:
    """A unit square on itself turned by 45 degrees: the common part is a regular octagon of area 2 (sqrt 2 - 1)."""
    a = torch.tensor([[3.0, 5.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[3.0, 5.0, 1.0, 1.0, math.pi / 4]], dtype=torch.float64)
    octagon = 2 * (math.sqrt(2) - 1)
    assert bev_intersection(a, b).item() == pytest.approx(octagon, abs=1e-14)
    assert bev_iou(a, b).item() == pytest.approx(octagon / (2 - octagon), abs=1e-14)


def test_yaw_turns_clockwise_seen_from_above() -> None:
    """Heading (cos yaw, -sin yaw) in (x, z): at yaw 45 degrees a long thin box reaches (+1, -1), not (+1, +1)."""
    thin = torch.tensor([[0.0, 0.0, 4.0, 0.2, math.pi / 4]])
    spots = torch.tensor([[1.0, -1.0, 0.05, 0.05, 0.0], [1.0, 1.0, 0.05, 0.05, 0.0]])
    assert (bev_iou(thin, spots)[0] > 0).tolist() == [True, False]


def test_volumes_by_hand() -> None:
    """Half a length apart and half a height apart: common volume 1/4, joint hull 1.5 lengths x 1.5 heights."""
    a = torch.tensor([[0.0, 0.0, 10.0, 4.0, 2.0, 2.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[2.0, 1.0, 10.0, 4.0, 2.0, 2.0, 0.0]], dtype=torch.float64)
    assert iou_3d(a, b).item() == pytest.approx(0.25 / 1.75, abs=1e-14)
    assert giou_3d(a, b).item() == pytest.approx(0.25 / 1.75 - (2.25 - 1.75) / 2.25, abs=1e-14)
    above = a + torch.tensor([0, -2.5, 0, 0, 0, 0, 0], dtype=torch.float64)
    assert iou_3d(a, above).item() == 0
    assert giou_3d(a, above).item() == pytest.approx(-(2.25 - 2.0) / 2.25, abs=1e-14)


def test_volumes_agree_with_footprint_times_height() -> None:
    a, b = random_3d(500, 2), random_3d(500, 3)
    columns = [0, 2, 3, 4, 6]
    top = torch.maximum(a[:, 1] - a[:, 5] / 2, b[:, 1] - b[:, 5] / 2)
    bottom = torch.minimum(a[:, 1] + a[:, 5] / 2, b[:, 1] + b[:, 5] / 2)
    areas = [polygon(p).intersection(polygon(q)).area for p, q in zip(a[:, columns], b[:, columns], strict=True)]
    inter = torch.tensor(areas, dtype=torch.float64) * (bottom - top).clamp(min=0)
    wanted = inter / (a[:, 3:6].prod(-1) + b[:, 3:6].prod(-1) - inter)
    torch.testing.assert_close(iou_3d(a, b, aligned=True), wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1e4, 1e5])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_identical_boxes(dtype: torch.dtype, offset: float, scale: float) -> None:
    a = random_3d(200, 4)
    a[:, :6] *= scale
    a[:, [0, 2]] += offset
    a = a.to(dtype)
    for function, width in FUNCTIONS:
        boxes = a if width == 7 else a[:, [0, 2, 3, 4, 6]]
        torch.testing.assert_close(function(boxes, boxes, aligned=True), torch.ones(200, dtype=dtype))
        half_turn = boxes.clone()
        half_turn[:, -1] += math.pi
        torch.testing.assert_close(
            function(boxes, half_turn, aligned=True), torch.ones(200, dtype=dtype), atol=2e-5, rtol=0
        )


def test_touching_boxes_have_nothing_in_common() -> None:
    a = torch.tensor([[0.0, 0.0, 4.0, 2.0, 0.0]], dtype=torch.float64)
    edge = torch.tensor([[4.0, 0.0, 4.0, 2.0, 0.0]], dtype=torch.float64)
    corner = torch.tensor([[4.0, 2.0, 4.0, 2.0, 0.0]], dtype=torch.float64)
    assert bev_iou(a, torch.cat([edge, corner])).tolist() == [[0.0, 0.0]]
    assert bev_giou(a, edge).item() == pytest.approx(0, abs=1e-15)  # hull = union
    assert bev_giou(a, corner).item() == pytest.approx(-8 / 24, abs=1e-15)  # a hexagon of 32 - 8 around 16


def test_contained_box() -> None:
    outer, inner = torch.tensor([[0.0, 0.0, 4.0, 4.0, 0.0]]), torch.tensor([[0.3, -0.2, 1.0, 1.0, 0.7]])
    assert bev_iou(outer, inner).item() == pytest.approx(1 / 16)
    assert bev_iou(inner, outer).item() == pytest.approx(1 / 16)
    assert bev_giou(inner, outer).item() == pytest.approx(1 / 16)


@pytest.mark.parametrize("turn", [1e-3, 1e-5, 1e-7, 1e-9, 1e-12, 1e-15])
@pytest.mark.parametrize("quarter", range(4))
def test_nearly_parallel_boxes(turn: float, quarter: int) -> None:
    a = random_bev(50, 5)
    b = a + torch.tensor([0.1, 0.0, 0.0, 0.0, turn + quarter * math.pi / 2], dtype=torch.float64)
    iou, giou = expected(a, b)
    np.testing.assert_allclose(bev_iou(a, b, aligned=True), iou, atol=1e-12)
    np.testing.assert_allclose(bev_giou(a, b, aligned=True), giou, atol=1e-12)


def test_a_millimetre_box_is_as_exact_as_a_bus() -> None:
    a, b = random_bev(200, 6), random_bev(200, 7)
    big = bev_iou(a, b, aligned=True)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 5e-6)):
        small = [torch.cat([boxes[:, :4] * 1e-3, boxes[:, 4:]], -1).to(dtype) for boxes in (a, b)]
        torch.testing.assert_close(bev_iou(*small, aligned=True).double(), big, atol=tolerance, rtol=0)


@pytest.mark.parametrize("offset", [1e4, 1e5])
def test_far_from_the_origin_float32_loses_only_what_its_input_lost(offset: float) -> None:
    a, b = random_bev(300, 8), random_bev(300, 9)
    shift = torch.tensor([offset, -offset, 0, 0, 0], dtype=torch.float64)
    a32, b32 = (a + shift).float(), (b + shift).float()
    near_a, near_b = a32.double() - shift, b32.double() - shift  # what the rounded numbers say, near the origin
    for function in (bev_iou, bev_giou):
        wanted = function(near_a, near_b, aligned=True)
        torch.testing.assert_close(function(a32, b32, aligned=True).double(), wanted, atol=1e-5, rtol=0)


def test_far_apart_boxes() -> None:
    a = torch.tensor([[0.0, 0.0, 4.0, 2.0, 0.3]])
    b = torch.tensor([[1e5, 3e4, 4.0, 2.0, 1.0]])
    assert bev_iou(a, b).item() == 0
    assert -1 < bev_giou(a, b).item() < -0.999


@settings(max_examples=100, deadline=None)
@given(BEV, BEV, st.floats(-100, 100), st.floats(-7, 7), st.floats(0.1, 10))
def test_moving_turning_and_scaling_the_world_changes_nothing(
    a: Tensor, b: Tensor, shift: float, turn: float, scale: float
) -> None:
    def move(box: Tensor) -> Tensor:
        x, z, length, width, yaw = box
        c, s = math.cos(turn), math.sin(turn)  # rotation about y takes (x, z) to (x c + z s, -x s + z c)
        return torch.stack([x * c + z * s + shift, -x * s + z * c - shift, length, width, yaw + turn]) * torch.tensor(
            [scale] * 4 + [1.0], dtype=torch.float64
        )

    for function in (bev_iou, bev_giou):
        here = function(a[None], b[None]).item()
        assert function(b[None], a[None]).item() == pytest.approx(here, abs=1e-9)
        assert function(move(a)[None], move(b)[None]).item() == pytest.approx(here, abs=1e-9)
        assert -1 < here <= 1 + 1e-12


def test_pairwise_is_aligned_for_every_pair() -> None:
    a, b = random_3d(6, 10), random_3d(9, 11)
    for function, width in FUNCTIONS:
        p, q = (a, b) if width == 7 else (a[:, [0, 2, 3, 4, 6]], b[:, [0, 2, 3, 4, 6]])
        whole = function(p, q)
        assert whole.shape == (6, 9)
        rows = function(p.repeat_interleave(9, 0), q.repeat(6, 1), aligned=True).reshape(6, 9)
        torch.testing.assert_close(whole, rows, atol=1e-15, rtol=0)


@pytest.mark.parametrize("function", [bev_iou, bev_intersection, bev_giou])
def test_many_pairs_are_taken_in_pieces(function, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    a, b = random_bev(23, 1), random_bev(23, 2)

    def values() -> list[Tensor]:
        return [
            function(a, b, aligned=True),
            function(a, b),
            function(a[:3], b),
            function(a, b[:3]),
            function(a, b[:0]),
        ]

    at_once = values()
    for pairs in (1, 7, 23, 60):
        monkeypatch.setattr("skd_core.iou.PAIRS_AT_ONCE", pairs)
        for whole, joined in zip(at_once, values(), strict=True):
            torch.testing.assert_close(joined, whole, atol=1e-15, rtol=0)


def test_giou_orders_boxes_that_do_not_overlap() -> None:
    a = torch.tensor([[0.0, 0.0, 4.0, 2.0, 0.0]])
    b = torch.tensor([[10.0 * k, 0.0, 4.0, 2.0, 0.4] for k in range(1, 5)])
    assert (bev_giou(a, b)[0].diff() < 0).all()


@pytest.mark.parametrize(("function", "width"), FUNCTIONS)
def test_gradients_at_generic_positions(function, width: int) -> None:  # type: ignore[no-untyped-def]
    a, b = random_3d(40, 12), random_3d(40, 13)
    b[:, [0, 2]] = a[:, [0, 2]] + 0.4 * (b[:, [0, 2]] - a[:, [0, 2]])  # most overlap, some do not
    columns = [0, 1, 2, 3, 4, 5, 6] if width == 7 else [0, 2, 3, 4, 6]
    a, b = a[:, columns].requires_grad_(), b[:, columns].requires_grad_()
    assert torch.autograd.gradcheck(lambda p, q: function(p, q, aligned=True), (a, b), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("yaw", [0.0, 0.3, math.pi / 2])
def test_gradient_between_parallel_boxes(yaw: float) -> None:
    """Axis-parallel edges are where a careless division loses the gradient; none of these is a kink of the IoU."""
    a = torch.tensor([[0.2, 0.1, 4.0, 2.0, yaw]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([[0.9, 0.5, 3.8, 1.7, yaw]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: bev_iou(p, b), a, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("function", "width"), FUNCTIONS)
def test_gradients_are_finite_at_degenerate_positions(function, width: int, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    base = torch.tensor([1.0, 0.5, 20.0, 4.0, 2.0, 1.5, 0.3], dtype=torch.float64)
    changes = torch.zeros(12, 7, dtype=torch.float64)
    changes[1, 6], changes[2, 6], changes[3, 6] = 1e-9, math.pi, math.pi / 2
    changes[4, 0], changes[5, 2] = 1e-12, 1e5
    changes[6, 0], changes[6, 2] = 4 * math.cos(0.3), -4 * math.sin(0.3)  # touching
    changes[7, 1] = 1.5  # one on the other
    changes[8, 3:6] = torch.tensor([-3.999, -1.999, -1.499])  # 1 mm inside
    changes[9, 3] = 1e4
    changes[10, 6], changes[11, 6] = 1e-30, 100 * math.pi
    columns = [0, 1, 2, 3, 4, 5, 6] if width == 7 else [0, 2, 3, 4, 6]
    a = (base + changes)[:, columns].to(dtype).requires_grad_()
    b = base.expand(12, 7)[:, columns].to(dtype).clone().requires_grad_()
    function(a, b, aligned=True).sum().backward()
    for gradient in (a.grad, b.grad):
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 1e4  # metres or radians on a box of 1 mm: 1/h at most


def test_descending_the_loss_brings_the_boxes_together() -> None:
    target = torch.tensor([[0.0, 0.0, 4.0, 1.8, 0.0]], dtype=torch.float64)
    box = torch.tensor([[5.0, 3.0, 3.0, 1.0, 0.4]], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([box], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        loss = 1 - bev_giou(box, target).sum()
        loss.backward()
        optimizer.step()
    assert bev_iou(box, target).item() > 0.9


@pytest.mark.parametrize(("column", "value"), [(2, 0.0), (3, -1.0), (2, math.nan), (0, math.inf), (4, math.nan)])
def test_impossible_boxes_are_named(column: int, value: float) -> None:
    a, b = random_bev(4, 14), random_bev(4, 15)
    b[2, column] = value
    for function in (bev_iou, bev_giou, bev_intersection):
        with pytest.raises(UserError, match=r"box 2 of b needs finite values and sizes above 0 \(.*\), got \("):
            function(a, b)
    volumes = random_3d(4, 16)
    volumes[1, 5] = 0
    with pytest.raises(UserError, match="box 1 of a"):
        iou_3d(volumes, volumes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("function", "width"), FUNCTIONS)
def test_values_are_named_or_give_a_number(function, width: int, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    """From what a dtype can barely hold up: none is refused that a sensor could see, and none gives NaN."""
    columns = [0, 1, 2, 3, 4, 5, 6] if width == 7 else [0, 2, 3, 4, 6]
    taken = []
    for size in (10.0**k for k in range(-36, 37, 3)):
        for at in (1.0, 1e6, 1e30):
            box = torch.tensor([[at, 0.5, 20, size, 0.5 * size, 0.3 * size, 0.1]], dtype=dtype)[:, columns]
            try:
                function(box, box)
            except UserError:
                assert size < 1e-8 or max(size, at) > 1e8
            else:
                taken.append(box)
    boxes = torch.cat(taken)
    found = function(boxes, boxes)
    assert found.shape[0] >= 10
    assert found.isfinite().all()
    assert found.abs().max() <= 1 + 1e-5


def test_values_out_of_range_are_named() -> None:
    limits = r"sizes above 0 \(in float32 at least 1e-09, all at most 1e\+09\), got"
    for wrong in ([1, 20, 1e-30, 1e-30, 0], [1e20, 20, 4, 2, 0]):
        with pytest.raises(UserError, match=limits):
            bev_iou(torch.tensor([wrong]), torch.tensor([wrong]))
    smallest = torch.tensor([[1, 20, 1e-9, 1e-9, 0]])
    assert bev_iou(smallest, smallest).item() == 1


def test_wrong_shapes_and_types_are_named() -> None:
    a = random_bev(3, 17)
    with pytest.raises(UserError, match=r"shape \(3, 5\); needed is \(N, 7\)"):
        iou_3d(a, a)
    with pytest.raises(UserError, match="float16"):
        bev_iou(a.half(), a.half())
    with pytest.raises(UserError, match="make them alike"):
        bev_iou(a, a.float())
    with pytest.raises(UserError, match="equally many, got 3 and 2"):
        bev_iou(a, a[:2], aligned=True)


def test_no_boxes() -> None:
    none, some = random_bev(0, 0), random_bev(3, 18)
    assert bev_iou(none, some).shape == (0, 3)
    assert bev_giou(some, none).shape == (3, 0)
    assert bev_iou(none, none, aligned=True).shape == (0,)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_agrees_with_cpu() -> None:
    a, b = random_3d(50, 19), random_3d(60, 20)
    for function, width in FUNCTIONS:
        p, q = (a, b) if width == 7 else (a[:, [0, 2, 3, 4, 6]], b[:, [0, 2, 3, 4, 6]])
        torch.testing.assert_close(function(p.cuda(), q.cuda()).cpu(), function(p, q), atol=1e-12, rtol=0)
