"""Losses: hand-worked values, gradients, and the edges of their domain."""

import math

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from skd_core.boxes import Boxes3D, at_border
from skd_core.losses.depth_map import DepthMapLoss
from skd_core.losses.detection_2d import Detection2DLoss, ignore_mask, render_heatmap
from skd_core.losses.dimension import DimensionLoss
from skd_core.losses.distillation import (
    MARGIN,
    TAU,
    WEIGHT,
    DistillationLoss,
    certainty,
    laplace_divergence,
    soft_margin,
)
from skd_core.losses.object_depth import ObjectDepthLoss
from skd_core.losses.points import PointsLoss
from skd_core.losses.projection import ProjectionLoss
from skd_core.losses.supervised import SupervisedLoss
from skd_core.losses.yaw import YawLoss, yaw_error
from skd_core.models.decode import Prediction3D, decode_3d
from skd_core.models.heads import Maps2D, Raw3D

NAN = math.nan
SQRT2 = math.sqrt(2)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def learnable(shape: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()


def raw(n: int, seed: int = 0) -> Raw3D:
    """Generic outputs of a 3D head that take gradients."""
    parts = [learnable((n, k), seed + k, 0.5) for k in (3, 2, 3, 2)]
    depth = torch.stack([parts[0][:, 0], -1 - parts[0][:, 1].abs(), parts[0][:, 2] - 3], -1)
    return Raw3D(depth, parts[1], parts[2], parts[3] + double(0.5, 1.0), torch.zeros(n, 2, dtype=torch.float64))


BOXES = torch.tensor([[40.0, 20, 80, 44], [90, 24, 150, 50], [60, 30, 66, 40]], dtype=torch.float64)
PRIOR = torch.tensor([[3.88, 1.63, 1.53]] * 3, dtype=torch.float64)


def predict(outputs: Raw3D, detach_yaw: bool = False) -> Prediction3D:
    camera = tiny.kitti_camera(tiny.WIDTH, tiny.HEIGHT)
    P = camera.P.expand(len(outputs.depth), 3, 4)
    n = len(outputs.depth)
    return decode_3d(outputs, BOXES[:n], P, PRIOR[:n], torch.zeros(n, dtype=torch.bool), detach_yaw=detach_yaw)


# -- L_2D --------------------------------------------------------------------------------------------------------------
SHAPE = (2, 2, 8, 12)  # B, C, H, W: an image of 48 x 32 pixels


def maps(seed: int | None = None, **logits: float) -> Maps2D:
    B, C, H, W = SHAPE
    if seed is not None:
        return Maps2D(learnable(SHAPE, seed), learnable((B, 2, H, W), seed + 1), learnable((B, 2, H, W), seed + 2))
    heat = torch.full(SHAPE, logits.get("heat", 0.0), requires_grad=True)
    return Maps2D(heat, torch.zeros(B, 2, H, W, requires_grad=True), torch.zeros(B, 2, H, W, requires_grad=True))


def no_boxes() -> tuple[Tensor, Tensor]:
    return torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)


def test_heatmap_peaks_at_the_2d_center() -> None:
    box = torch.tensor([[8.0, 4, 28, 16]])  # centre (18, 10), cell (4, 2)
    heat = render_heatmap(box, torch.tensor([1]), torch.tensor([0]), SHAPE)
    assert heat.shape == SHAPE
    assert heat[0, 1, 2, 4] == 1.0
    assert (heat == 1).sum() == 1
    assert heat[0, 0].max() == 0
    assert heat[1].max() == 0
    # sd = .54 / 6 x (5, 3) cells, at least .3: one cell to the right exp(-1 / 2 / .45^2)
    assert heat[0, 1, 2, 5].item() == pytest.approx(math.exp(-0.5 / 0.45**2), rel=1e-5)
    assert heat[0, 1, 3, 4].item() == pytest.approx(math.exp(-0.5 / 0.3**2), rel=1e-5)


def test_heatmap_takes_the_larger_where_objects_overlap() -> None:
    boxes = torch.tensor([[0.0, 0, 40, 28], [4, 4, 44, 32]])
    classes, index = torch.tensor([0, 0]), torch.tensor([1, 1])
    both = render_heatmap(boxes, classes, index, SHAPE)
    each = [render_heatmap(boxes[i : i + 1], classes[:1], index[:1], SHAPE) for i in range(2)]
    assert torch.equal(both, torch.maximum(*each))
    assert both.max() <= 1


def test_heatmap_of_nothing_and_of_a_pixel() -> None:
    boxes, none = no_boxes()
    assert render_heatmap(boxes, none, none, SHAPE).abs().sum() == 0
    pixel = torch.tensor([[20.0, 12, 21, 13]])
    heat = render_heatmap(pixel, torch.tensor([0]), torch.tensor([0]), SHAPE)
    assert heat[0, 0, 3, 5] == 1
    assert heat.isfinite().all()


def test_heatmap_of_a_box_at_the_image_corner() -> None:
    box = torch.tensor([[44.0, 28, 48, 32]])
    heat = render_heatmap(box, torch.tensor([0]), torch.tensor([1]), SHAPE)
    assert heat[1, 0, 7, 11] == 1


def test_focal_loss_by_hand() -> None:
    """One object, all logits 0: p = 1/2. -[(1-p)^2 log p] at the peak, -[(1-y)^4 p^2 log(1-p)] elsewhere."""
    box, zero = torch.tensor([[8.0, 4, 28, 16]]), torch.tensor([0])
    target = render_heatmap(box, zero, zero, SHAPE)
    terms = Detection2DLoss()(maps(), box, zero, zero, *no_boxes())
    expected = 0.25 * math.log(2) * (1 + ((1 - target) ** 4).sum().item())
    assert terms["heatmap"].item() == pytest.approx(expected, rel=1e-5)
    # centre (18, 10) lies at (.5, .5) of cell (4, 2); size 5 x 3 cells, sd .45 x .3. From the cells on either side it
    # lies at -.5 and 1.5
    gx, gy = math.exp(-0.5 / 0.45**2), math.exp(-0.5 / 0.3**2)
    expected = sum((0.5 + g * (0.5 + 1.5)) / (1 + 2 * g) for g in (gx, gy))
    assert terms["offset_2d"].item() == pytest.approx(expected)
    assert terms["size_2d"].item() == pytest.approx(math.log(5) + math.log(3))


def test_perfect_2d_outputs_cost_nothing() -> None:
    box, zero = torch.tensor([[8.0, 4, 28, 16]]), torch.tensor([0])
    target = render_heatmap(box, zero, zero, SHAPE)
    perfect = maps()
    logits = torch.where(target == 1, 30.0, -30.0)
    offset, size = torch.zeros_like(perfect.offset), torch.zeros_like(perfect.size)
    offset[0, 0, :, 3:6], offset[0, 1, 1:4] = torch.tensor([1.5, 0.5, -0.5]), torch.tensor([[1.5], [0.5], [-0.5]])
    size[0, :, 1:4, 3:6] = torch.tensor([5.0, 3.0]).log()[:, None, None]
    terms = Detection2DLoss()(Maps2D(logits, offset, size), box, zero, zero, *no_boxes())
    assert sum(terms.values()).item() == pytest.approx(0, abs=1e-5)


def test_offset_and_size_are_learnt_around_the_peak_and_inside_the_image() -> None:
    boxes, two = torch.tensor([[0.0, 0, 6, 6], [47, 8, 48, 10]]), torch.tensor([0, 0])
    logits = maps()
    terms = Detection2DLoss()(logits, boxes, two, torch.tensor([0, 1]), *no_boxes())
    (terms["offset_2d"] + terms["size_2d"]).backward()
    gradient = logits.size.grad
    assert gradient is not None
    assert (gradient[0, :, :2, :2] != 0).all()  # what of the 3x3 cells the image holds
    assert (gradient[0] != 0).sum() == 2 * 4
    assert gradient[0, 0].abs().sum().item() == pytest.approx(1.0)  # each object counts once
    assert gradient[1, 0].abs().sum().item() == pytest.approx(1.0)
    assert gradient[0, 0, 0, 0].abs() > gradient[0, 0, 0, 1].abs()


def test_no_objects_teach_only_negatives() -> None:
    logits = maps()
    terms = Detection2DLoss()(logits, *no_boxes(), no_boxes()[1], *no_boxes())
    B, C, H, W = SHAPE
    assert terms["heatmap"].item() == pytest.approx(0.25 * math.log(2) * B * C * H * W, rel=1e-5)
    assert terms["offset_2d"] == terms["size_2d"] == 0
    terms["heatmap"].backward()
    assert logits.heatmap.grad is not None
    assert (logits.heatmap.grad > 0).all()  # every cell, every class: down


def test_no_negative_is_learnt_in_ignored_regions() -> None:
    region = torch.tensor([[16.0, 8, 32, 24]])  # cells x 4..7, y 2..5 of image 1
    assert ignore_mask(region, torch.tensor([1]), SHAPE).sum() == 2 * 8 * 12 - 16
    logits = maps()
    terms = Detection2DLoss()(logits, *no_boxes(), no_boxes()[1], region, torch.tensor([1]))
    terms["heatmap"].backward()
    gradient = logits.heatmap.grad
    assert gradient is not None
    assert gradient[1, :, 2:6, 4:8].abs().max() == 0
    assert (gradient[0] > 0).all()
    assert (gradient[1, :, :2] > 0).all()


def test_an_object_inside_an_ignored_region_is_still_learnt() -> None:
    box, index = torch.tensor([[16.0, 8, 28, 20]]), torch.tensor([1])
    logits = maps()
    region = torch.tensor([[0.0, 0, 48, 32]])
    Detection2DLoss()(logits, box, torch.tensor([0]), index, region, index)["heatmap"].backward()
    gradient = logits.heatmap.grad
    assert gradient is not None
    assert gradient[1, 0, 3, 5] < 0
    assert (gradient[1] != 0).sum() == 1


def test_extreme_logits_stay_finite() -> None:
    box, zero = torch.tensor([[8.0, 4, 28, 16]]), torch.tensor([0])
    for value in (-1e4, 1e4):
        logits = maps(heat=value)
        loss = Detection2DLoss()(logits, box, zero, zero, *no_boxes())["heatmap"]
        loss.backward()
        assert loss.isfinite()
        assert logits.heatmap.grad is not None
        assert logits.heatmap.grad.isfinite().all()


def test_detection_2d_gradient() -> None:
    boxes = torch.tensor([[8.0, 4, 28, 16], [30, 20, 31, 21]])
    classes = index = torch.tensor([0, 1])
    generic = maps(seed=3)

    def loss(heat: Tensor, offset: Tensor, size: Tensor) -> Tensor:
        terms = Detection2DLoss()(Maps2D(heat, offset, size), boxes, classes, index, *no_boxes())
        return sum(terms.values(), torch.zeros(()))

    # the heads' outputs are brought to float32 inside: finite differences along one direction, not gradcheck
    parts = (generic.heatmap, generic.offset, generic.size)
    gradients = torch.autograd.grad(loss(*parts), parts)
    direction = [torch.sign(g) for g in gradients]
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    step = 1e-3
    ahead = loss(*(p + step * d for p, d in zip(parts, direction, strict=True)))
    behind = loss(*(p - step * d for p, d in zip(parts, direction, strict=True)))
    assert ((ahead - behind) / (2 * step)).item() == pytest.approx(float(slope), rel=0.01)


# -- L_depth -----------------------------------------------------------------------------------------------------------
def test_depth_map_by_hand() -> None:
    """Two pixels of one image: log error log 2 at weight 1 and s = 0; exact at weight 5 and s = -1."""
    loss = DepthMapLoss()(
        torch.tensor([[[math.log(20), math.log(10)]]]), torch.tensor([[[0.0, -1]]]),
        torch.tensor([[[10.0, 10]]]), torch.tensor([[[0.0, 1]]]),
    )  # fmt: skip
    assert loss.item() == pytest.approx((SQRT2 * math.log(2) + 5 * -1) / 6, rel=1e-5)


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf, 0.0, -3.0, 0.5, 1.0, 80.0, 250.0])
def test_depth_pixels_without_target_take_no_part(bad: float) -> None:
    log_depth = torch.full((1, 2, 2), 2.0, requires_grad=True)
    log_sigma = torch.zeros(1, 2, 2, requires_grad=True)
    target, heat = torch.tensor([[[10.0, 20], [30, bad]]]), torch.zeros(1, 2, 2)
    loss = DepthMapLoss()(log_depth, log_sigma, target, heat)
    loss.backward()
    known = DepthMapLoss()(log_depth[:, :1], log_sigma[:, :1], target[:, :1], heat[:, :1])
    third = DepthMapLoss()(log_depth[:, 1:, :1], log_sigma[:, 1:, :1], target[:, 1:, :1], heat[:, 1:, :1])
    assert loss.item() == pytest.approx((2 * known.item() + third.item()) / 3, rel=1e-5)
    for value in (log_depth, log_sigma):
        assert value.grad is not None
        assert value.grad.isfinite().all()
        assert value.grad[0, 1, 1] == 0
        assert (value.grad[0].flatten()[:3] != 0).all()


def test_no_depth_at_all_costs_nothing() -> None:
    log_depth = torch.zeros(2, 3, 3, requires_grad=True)
    loss = DepthMapLoss()(log_depth, torch.zeros(2, 3, 3), torch.full((2, 3, 3), NAN), torch.zeros(2, 3, 3))
    loss.backward()
    assert loss == 0
    assert log_depth.grad is not None
    assert log_depth.grad.abs().max() == 0


def test_depth_map_gradient() -> None:
    target, heat = 5 + 20 * torch.rand(2, 3, 4, dtype=torch.float64), torch.rand(2, 3, 4, dtype=torch.float64)
    assert gradcheck(lambda d, s: DepthMapLoss()(d, s, target, heat), (learnable((2, 3, 4)), learnable((2, 3, 4), 1)))


# -- L_proj ------------------------------------------------------------------------------------------------------------
def projection_loss(projected: Tensor, box: Tensor, side: float = 1.0) -> Tensor:
    return ProjectionLoss()(projected, box, at_border(box, 160, 64), double(side).expand(len(box)))


def test_projection_onto_the_box_costs_nothing() -> None:
    assert projection_loss(BOXES, BOXES).abs().max() < 1e-5


def test_projection_by_hand() -> None:
    """Moved right by half its width: left and right edges .5 off, GIoU = IoU - gap / hull = 1/3."""
    box = double(40, 20, 80, 44)[None]
    moved = box + double(20, 0, 20, 0)
    smooth = 0.5 - 0.025  # SmoothL1 with beta .05
    assert projection_loss(moved, box).item() == pytest.approx(2 * smooth / 4 + 2 / 3, rel=1e-4)
    # a pedestrian's left and right edges weigh .25
    assert projection_loss(moved, box, 0.25).item() == pytest.approx(0.25 * 2 * smooth / 4 + 2 / 3, rel=1e-4)
    # its top and bottom weigh 1 as ever
    lower = box + double(0, 12, 0, 12)
    assert projection_loss(lower, box, 0.25).item() == pytest.approx(2 * smooth / 4 + 2 / 3, rel=1e-4)


@pytest.mark.parametrize(
    ("box", "edge"),
    [((0, 20, 80, 44), 0), ((40, 0, 80, 44), 1), ((90, 20, 160, 44), 2), ((40, 20, 80, 64), 3), ((2.9, 20, 80, 44), 0)],
)
def test_cut_edges_say_nothing_and_projections_are_clipped(box: tuple[float, ...], edge: int) -> None:
    label = double(*box)[None]
    beyond = label.clone()
    beyond[0, edge] += -50 if edge < 2 else 50  # the box goes on outside of the image
    beyond.requires_grad_()
    loss = projection_loss(beyond, label)
    limit = 1e-3 if box[0] != 2.9 else 0.05
    assert loss.item() == pytest.approx(0, abs=limit)
    loss.sum().backward()
    assert beyond.grad is not None
    assert beyond.grad[0, edge] == 0


def test_a_projection_must_reach_a_hidden_edge_and_may_go_beyond() -> None:
    """A tight box whose right edge is the outline of a nearer object."""
    box, hidden = double(40, 20, 80, 44)[None], torch.tensor([[False, False, True, False]])
    cost = [ProjectionLoss()(double(40, 20, x2, 44)[None], box, hidden, double(1)).item() for x2 in (60, 80, 120)]
    assert cost[1] == pytest.approx(0, abs=1e-6)
    assert cost[2] == pytest.approx(0, abs=1e-6)
    assert cost[0] == pytest.approx(0.5, abs=1e-4)  # 1 - GIoU alone, no term of the edge itself


def test_a_crop_leaves_the_whole_box_to_learn_from() -> None:
    """The whole box reaches beyond the image and no edge is hidden: falling short of it costs."""
    whole, hidden = double(-60, 20, 40, 44)[None], torch.zeros(1, 4, dtype=torch.bool)
    assert ProjectionLoss()(whole, whole, hidden, double(1)).item() == pytest.approx(0, abs=1e-6)
    assert ProjectionLoss()(double(0, 20, 40, 44)[None], whole, hidden, double(1)).item() > 0.6


def test_one_pixel_boxes_have_bounded_gradients() -> None:
    pixel = double(60, 30, 60.5, 30.5)[None]
    projected = double(50, 20, 70, 40)[None].requires_grad_()
    loss = projection_loss(projected, pixel)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert projected.grad is not None
    assert projected.grad.abs().max() <= 1  # sizes below a pixel count as one


def test_projection_outside_the_image_is_finite() -> None:
    outside = double(500, 20, 600, 44)[None].requires_grad_()
    loss = projection_loss(outside, BOXES[:1])
    loss.sum().backward()
    assert loss.isfinite().all()
    assert outside.grad is not None
    assert outside.grad.isfinite().all()


def test_all_edges_cut() -> None:
    full = double(0, 0, 160, 64)[None]
    assert projection_loss(full + double(-9, -9, 9, 9), full).item() == pytest.approx(0, abs=1e-5)


def test_projection_of_nothing() -> None:
    assert projection_loss(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


def test_projection_gradient() -> None:
    projected = (BOXES + learnable((3, 4), scale=3).detach()).requires_grad_()
    assert gradcheck(lambda b: projection_loss(b, BOXES, 0.5), (projected,))


def projection_of_prediction(outputs: Raw3D, detach_yaw: bool) -> Tensor:
    P = tiny.kitti_camera(tiny.WIDTH, tiny.HEIGHT).P.expand(3, 3, 4)
    return projection_loss(predict(outputs, detach_yaw).project(P), BOXES).sum()


def test_projection_reaches_yaw_only_if_asked() -> None:
    for detach in (True, False):
        outputs = raw(3)
        outputs.yaw.retain_grad()
        outputs.center.retain_grad()
        projection_of_prediction(outputs, detach).backward()
        assert outputs.center.grad is not None
        assert outputs.center.grad.abs().max() > 0
        if detach:
            assert outputs.yaw.grad is None or outputs.yaw.grad.abs().max() == 0
        else:
            assert outputs.yaw.grad is not None
            assert outputs.yaw.grad.abs().max() > 1e-4


def test_projection_teaches_through_the_decoder() -> None:
    """Finite differences of L_proj from the raw outputs through the decoding (method: Decoding) and the corners."""
    parts = [p.detach().requires_grad_() for p in vars(raw(3)).values()]

    def loss(*values: Tensor) -> Tensor:
        return projection_of_prediction(Raw3D(*values), False)

    # the ray's direction is detached on purpose: differences along outputs that do not move the centre sideways
    gradients = torch.autograd.grad(loss(*parts), parts, allow_unused=True)
    for which, column in ((0, 0), (2, 0), (2, 2), (3, 0), (3, 1)):
        ahead, behind = ([p.detach().clone() for p in parts] for _ in range(2))
        ahead[which][:, column] += 1e-6
        behind[which][:, column] -= 1e-6
        slope = (loss(*ahead) - loss(*behind)) / 2e-6
        gradient = gradients[which]
        assert gradient is not None
        # depth moves the centre along its ray, but for the few centimetres of P's fourth column
        assert gradient[:, column].sum().item() == pytest.approx(slope.item(), rel=0.02, abs=1e-5), (which, column)


# -- L_dim -------------------------------------------------------------------------------------------------------------
def test_dimension_by_hand() -> None:
    prior, tolerance = double(4, 2, 1.5)[None], double(0.1, 0.05, 0.1)[None]
    assert DimensionLoss()(prior, prior, tolerance).item() == 0
    within = prior * torch.exp(double(0.099, -0.049, 0.099))
    assert DimensionLoss()(within, prior, tolerance).item() == 0
    beyond = prior * torch.exp(double(0.2, -0.05, -0.3))  # 2 - 1, 1 - 1, 3 - 1
    assert DimensionLoss()(beyond, prior, tolerance).item() == pytest.approx(3)


def test_dimension_gradient() -> None:
    size = double(5, 3, 1.0)[None].requires_grad_()
    prior, tolerance = double(4, 2, 1.5)[None], double(0.1, 0.05, 0.1)[None]
    assert gradcheck(lambda s: DimensionLoss()(s, prior, tolerance), (size,))
    assert DimensionLoss()(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0,)


# -- L_z ---------------------------------------------------------------------------------------------------------------
def test_object_depth_by_hand() -> None:
    loss = ObjectDepthLoss()(double(10, 10).log(), double(0.1, 1).log(), double(11, 10))
    assert loss.tolist() == pytest.approx([SQRT2 * math.log(1.1) / 0.1 + math.log(0.1), 0.0])


def test_object_depth_is_least_at_the_right_scale() -> None:
    """For errors of a Laplace distribution of scale b the best d2 is log of sqrt2 b: log of its standard deviation."""
    errors = torch.distributions.Laplace(0.0, 0.08).sample((20000,)).double()
    scales = torch.linspace(-4, -0.5, 701, dtype=torch.float64)
    z = torch.full_like(errors, 20.0)
    losses = [ObjectDepthLoss()(z.log() + errors, s.expand_as(z), z).mean() for s in scales]
    best = scales[int(torch.stack(losses).argmin())].exp()
    assert best.item() == pytest.approx(SQRT2 * errors.abs().mean().item(), rel=0.01)
    assert best.item() == pytest.approx(errors.std().item(), rel=0.05)


@pytest.mark.parametrize("bad", [NAN, math.inf, 0.0, -5.0])
def test_boxes_without_depth_target_take_no_part(bad: float) -> None:
    log_z, log_sigma = learnable((3,)), learnable((3,), 1)
    loss = ObjectDepthLoss()(log_z, log_sigma, double(10, bad, 30))
    loss.sum().backward()
    assert loss[1] == 0
    for value in (log_z, log_sigma):
        assert value.grad is not None
        assert value.grad[1] == 0
        assert value.grad.isfinite().all()
        assert (value.grad[[0, 2]] != 0).all()


def test_object_depth_gradient() -> None:
    target = double(10, 20, 30)
    assert gradcheck(lambda z, s: ObjectDepthLoss()(z, s, target), (learnable((3,)), learnable((3,), 1)))
    assert ObjectDepthLoss()(torch.zeros(0), torch.zeros(0), torch.zeros(0)).shape == (0,)


# -- L_yaw -------------------------------------------------------------------------------------------------------------
def unit(angle: Tensor) -> Tensor:
    """shape (N, 2), the yaw vector of an observation angle."""
    return torch.stack([torch.cos(2 * angle), torch.sin(2 * angle)], -1)


def test_yaw_by_hand() -> None:
    target = double(0.4, 0.4, 0.4, 0.4)
    alpha = double(0.4, 0.4 + math.pi, 0.4 + math.pi / 2, -0.4)
    loss = YawLoss()(unit(alpha), target, double(1, 1, 0.5, 1))
    opposite, mirror = math.cos(0.8) + math.sin(0.8), math.sin(0.8)  # mean |t - t*|: 2 (|c| + |s|) / 2 and 2 |s| / 2
    assert loss.tolist() == pytest.approx([0, 0, 0.5 * opposite, mirror], abs=1e-12)  # mod pi; not its mirror
    # the length counts too: t = 0, of no direction at all, is half as wrong as the opposite
    assert YawLoss()(torch.zeros(1, 2).double(), target[:1], double(1)).item() == pytest.approx(opposite / 2)


def test_yaw_keeps_its_slope_near_the_target() -> None:
    """A tenth of the error costs a tenth; 1 - cos would cost a hundredth, and hardly pull."""
    loss = YawLoss()(unit(double(0.401, 0.41)), double(0.4, 0.4), double(1, 1))
    assert (loss[0] / loss[1]).item() == pytest.approx(0.1, rel=0.05)


def test_yaw_without_target() -> None:
    vector = learnable((3, 2))
    loss = YawLoss()(vector, double(NAN, 0.3, 0.3), double(1.0, 0.0, 1.0))
    loss.sum().backward()
    assert loss[:2].tolist() == [0, 0]
    assert vector.grad is not None
    assert vector.grad[:2].abs().max() == 0
    assert vector.grad[2].abs().min() > 0
    assert vector.grad.isfinite().all()
    assert yaw_error(double(0.1, 0.1), double(NAN, 0.3), double(1.0, 0.0)).tolist() == [0, 0]


def test_yaw_gradient() -> None:
    assert gradcheck(lambda t: YawLoss()(t, double(0.1, 1, -1), double(1, 0.5, 0.2)), (learnable((3, 2)),))


def test_yaw_error_by_hand() -> None:
    """E3: blind to front and back and to the vector's length, 2 q where a is a quarter turn off."""
    alpha = double(0.4, 0.4 + math.pi, 0.4 + math.pi / 2, -0.4)
    error = yaw_error(alpha, double(0.4, 0.4, 0.4, 0.4), double(1, 1, 0.5, 1))
    assert error.tolist() == pytest.approx([0, 0, 0.5 * 2, 1 - math.cos(1.6)], abs=1e-12)


# -- L_points ----------------------------------------------------------------------------------------------------------
SIZE = double(4, 2, 1.5)[None]


def rectangle(center: tuple[float, float], yaw: float, length: float = 4.0, width: float = 2.0, n: int = 10) -> Tensor:
    """shape (1, 2n, 2), points on the rear and on the left side of a footprint; axes as boxes.py draws them."""
    t = torch.linspace(-0.5, 0.5, n, dtype=torch.float64)
    local = torch.cat([torch.stack([torch.full_like(t, -0.5), t], -1), torch.stack([t, torch.full_like(t, 0.5)], -1)])
    forward, left = local[:, :1] * length, local[:, 1:] * width
    x = forward * math.cos(yaw) + left * math.sin(yaw)
    z = -forward * math.sin(yaw) + left * math.cos(yaw)
    return (torch.cat([x, z], -1) + double(*center))[None]


@pytest.mark.parametrize("yaw", [0.0, 0.7, -1.2, math.pi / 2, 2.5])
def test_points_on_the_edges_cost_next_to_nothing(yaw: float) -> None:
    points, center, turned = rectangle((3, 20), yaw), double(3, 1, 20)[None], double(yaw)
    assert PointsLoss()(center, SIZE, turned, points).item() < 2e-3
    assert PointsLoss()(center, SIZE, turned + math.pi, points).item() < 2e-3  # front and rear look alike
    moved = [PointsLoss()(center + double(0, 0, d), SIZE, turned, points).item() for d in (0.2, 0.5, 1.0, 3.0)]
    assert moved == sorted(moved)
    assert moved[0] > 0.02
    assert PointsLoss()(center, SIZE, turned + 0.3, points).item() > 0.1


def test_points_by_hand() -> None:
    """One point. Inside, .3 m from the nearest edge: .3. Beside the box by .5 m: .5 + .5. Off a corner: 5 + 3 + 4."""
    center, yaw = double(0, 0, 0)[None], double(0.0)
    for place, cost in (((0.5, 0.7), 0.3), ((0.0, 1.5), 1.0), ((5.0, 5.0), 12.0), ((-2.5, 0.0), 1.0)):
        assert PointsLoss()(center, SIZE, yaw, double(*place)[None, None]).item() == pytest.approx(cost, abs=1e-3)


def test_a_dense_side_does_not_drown_the_other() -> None:
    """A hundred points at one place count as one point there."""
    center, yaw = double(0, 0, 0)[None], double(0.0)
    few = double(0, 1.5, 3.0, 0).reshape(1, 2, 2)
    many = torch.cat([double(0, 1.5).expand(1, 100, 2), few[:, 1:]], 1)
    assert PointsLoss()(center, SIZE, yaw, many).item() == pytest.approx(PointsLoss()(center, SIZE, yaw, few).item())


def test_padding_and_absence_of_points() -> None:
    center, yaw = double(0.3, 0, 0.2)[None].requires_grad_(), double(0.0)
    points = rectangle((0, 0), 0.0)
    padded = torch.cat([points, points.new_full((1, 30, 2), NAN)], 1)
    same = PointsLoss()(center, SIZE, yaw, points)
    loss = PointsLoss()(center, SIZE, yaw, padded)
    assert loss.item() == pytest.approx(same.item())
    none = PointsLoss()(center, SIZE, yaw, points.new_full((1, 5, 2), NAN))
    (loss + none).sum().backward()
    assert none.item() == 0
    assert center.grad is not None
    assert center.grad.isfinite().all()
    assert PointsLoss()(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0), torch.zeros(0, 4, 2)).shape == (0,)


def test_points_gradient() -> None:
    points = torch.cat([rectangle((3.1, 20.2), 0.5), rectangle((0.2, 9.1), -1.0)])
    center = double(3, 1, 20.3, 0, 1, 9).reshape(2, 3).requires_grad_()
    size, yaw = SIZE.repeat(2, 1).requires_grad_(), double(0.55, -1.1).requires_grad_()
    assert gradcheck(lambda c, s, y: PointsLoss()(c, s, y, points), (center, size, yaw))


# -- L_UAD -------------------------------------------------------------------------------------------------------------
def test_soft_margin() -> None:
    """Nothing below the margin, linear above, tau log 2 at it."""
    d = double(0.0, 0.02, 0.5)
    value = soft_margin(d, 0.02)
    assert value[0].item() == pytest.approx(TAU * math.log1p(math.exp(-2)), rel=1e-6)
    assert value[1].item() == pytest.approx(TAU * math.log(2))
    assert value[2].item() == pytest.approx(0.48, abs=1e-6)
    distance = torch.linspace(0, 0.3, 50, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(soft_margin(distance, 0.05).sum(), distance)
    assert (slope.diff() >= 0).all()
    assert slope[0] < 0.01
    assert slope[-1] > 0.99


def test_margins_and_weights_are_the_methods() -> None:
    assert list(MARGIN.values()) == [0.02, 0.02, 0.03, 0.05]
    assert list(WEIGHT.values()) == [0.5, 0.5, 0.5, 1]


@given(st.lists(st.tuples(st.floats(-3.5, 0), st.floats(0, 1)), min_size=1, max_size=30))
def test_certainty_is_bounded_and_about_one(teacher: list[tuple[float, float]]) -> None:
    log_sigma, overlap = torch.tensor(teacher, dtype=torch.float64).unbind(-1)
    c = certainty(log_sigma, overlap)
    assert (c >= 0.2).all()
    assert (c <= 3).all()
    if (c > 0.2).all() and (c < 3).all():
        assert c.mean().item() == pytest.approx(1)
    # what is less certain counts less
    b = log_sigma.exp() + 0.5 * (1 - overlap)
    order = b.argsort()
    assert (c[order].diff() <= 1e-12).all()


def test_certainty_by_hand() -> None:
    """b = .1, .2 and .3 with median .2: exp(-.5), exp(-1), exp(-1.5), over their mean."""
    c = certainty(double(0.1, 0.2, 0.2).log(), double(1, 1, 0.8))
    expected = torch.exp(-double(0.5, 1, 1.5))
    assert torch.allclose(c, expected / expected.mean())
    assert torch.allclose(certainty(double(0.1, 0.1).log(), double(0.5, 0.5)), double(1, 1))
    assert certainty(torch.zeros(0), torch.zeros(0)).shape == (0,)


def test_certainty_spreads_whatever_the_unit() -> None:
    """exp(-b) of small b would be nearly constant; over the median it is not."""
    c = certainty(double(0.03, 0.04, 0.05, 0.2).log(), torch.ones(4, dtype=torch.float64))
    assert c[0] / c[-1] > 5


def other(prediction: Prediction3D, **changes: Tensor) -> Prediction3D:
    return Prediction3D(**(vars(prediction) | changes))


def test_distillation_l1_by_hand() -> None:
    student = predict(raw(2))
    teacher = other(
        student, log_z=student.log_z + 0.3, center_uv=student.center_uv + double(0.1, 0.2),
        size=student.size * math.exp(0.06), yaw_vector=student.yaw_vector + double(0.4, 0.0),
    )  # fmt: skip
    overlap = torch.ones(2, dtype=torch.float64)
    loss = DistillationLoss("l1")(student, teacher, overlap)
    expected = 0.3 + 0.5 * 0.1 + 0.5 * 0.2 + 0.5 * 0.06 + 0.2
    assert loss.tolist() == pytest.approx([expected] * 2)
    assert DistillationLoss("l1")(student, teacher, overlap, yaw=False).tolist() == pytest.approx([expected - 0.2] * 2)
    # above the margins UAD is L1 less the margins, c = 1 where all are equally certain, and depth is a divergence
    alike = torch.full_like(teacher.log_sigma, -2.0)
    student, teacher = other(student, log_sigma=alike), other(teacher, log_sigma=alike)
    free = 0.5 * 0.02 + 0.5 * 0.02 + 0.5 * 0.03 + 0.5 * 0.05  # the second entry of t agrees
    ratio = 0.3 / (math.exp(-2) / SQRT2)
    depth = ratio + math.exp(-ratio) - 1
    loss = DistillationLoss("uad")(student, teacher, overlap)
    assert loss.tolist() == pytest.approx([expected - 0.3 - free + depth] * 2, abs=2e-3)


def test_agreement_within_the_margins_costs_next_to_nothing() -> None:
    student = predict(raw(3))
    overlap = torch.ones(3, dtype=torch.float64)
    assert DistillationLoss("l1")(student, student, overlap).abs().max() == 0
    assert DistillationLoss("uad")(student, student, overlap).max() < 0.02


@pytest.mark.parametrize("kind", ["l1", "uad"])
def test_the_teacher_takes_no_gradient(kind: str) -> None:
    student_raw, teacher_raw = raw(3), raw(3, seed=20)
    for outputs in (student_raw, teacher_raw):
        for part in (outputs.depth, outputs.center, outputs.size, outputs.yaw):
            part.retain_grad()
    overlap = double(0.9, 0.5, 0.1).requires_grad_()
    loss = DistillationLoss(kind)(predict(student_raw), predict(teacher_raw), overlap)  # type: ignore[arg-type]
    loss.sum().backward()
    for name in ("depth", "center", "size", "yaw"):
        assert getattr(teacher_raw, name).grad is None, name
        assert getattr(student_raw, name).grad.abs().max() > 0, name
    assert overlap.grad is None


def test_raw_yaw_vectors_are_matched_even_with_yaw_detached() -> None:
    student_raw = raw(3)
    student_raw.yaw.retain_grad()
    overlap = torch.ones(3, dtype=torch.float64)
    DistillationLoss("uad")(predict(student_raw, True), predict(raw(3, 20), True), overlap).sum().backward()
    assert student_raw.yaw.grad is not None
    assert student_raw.yaw.grad.abs().max() > 0


@given(st.floats(-0.5, 0.5), st.floats(-3.5, 0), st.floats(-3.5, 0))
@settings(max_examples=30, deadline=None)
def test_divergence_is_the_integral_over_the_teachers_distribution(shift: float, ours: float, theirs: float) -> None:
    """Both are Laplace distributions of log z with these standard deviations; integrated numerically."""
    student, teacher = predict(raw(1)), predict(raw(1))
    teacher = other(teacher, log_sigma=double(theirs))
    student = other(student, log_z=teacher.log_z.detach() + shift, log_sigma=double(ours))
    b_t, b_s = math.exp(theirs) / SQRT2, math.exp(ours) / SQRT2
    x = torch.linspace(-40 * b_t, 40 * b_t, 400_001, dtype=torch.float64)
    log_p = -x.abs() / b_t - math.log(2 * b_t)
    log_q = -(x - shift).abs() / b_s - math.log(2 * b_s)
    expected = torch.trapezoid(log_p.exp() * (log_p - log_q), x)
    assert laplace_divergence(student, teacher).item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)


def test_divergence_pulls_by_certainty_and_teaches_it() -> None:
    teacher = predict(raw(3))
    sigma = double(0.05, 0.1, 0.2)
    teacher = other(teacher, log_sigma=sigma.log())
    assert laplace_divergence(teacher, teacher).abs().max() < 1e-12
    log_z = (teacher.log_z + 0.05).detach().requires_grad_()
    student = other(teacher, log_z=log_z, log_sigma=double(0.1, 0.1, 0.1).log())
    (pull,) = torch.autograd.grad(laplace_divergence(student, teacher).sum(), log_z)
    b, ours = sigma / SQRT2, 0.1 / SQRT2
    assert torch.allclose(pull, (1 - torch.exp(-0.05 / b)) / ours)
    assert (pull.diff() < 0).all()  # a teacher less sure pulls less
    best = (SQRT2 * (0.05 + b * torch.exp(-0.05 / b))).log().requires_grad_()
    student = other(student, log_z=log_z.detach(), log_sigma=best)
    (slope,) = torch.autograd.grad(laplace_divergence(student, teacher).sum(), best)
    assert slope.abs().max() < 1e-9
    assert (best.exp() > sigma).all()


def test_distillation_gradient() -> None:
    teacher = predict(raw(3, 20))
    overlap = double(0.9, 0.5, 0.7)
    parts = [p.detach() for p in vars(raw(3)).values()]

    def loss(depth: Tensor, size: Tensor, yaw: Tensor) -> Tensor:
        student = predict(Raw3D(depth, parts[1], size, yaw, parts[4]))
        return DistillationLoss("uad")(student, teacher, overlap)

    assert gradcheck(loss, tuple(parts[i].clone().requires_grad_() for i in (0, 2, 3)))


def test_distillation_of_nothing() -> None:
    for kind in ("l1", "uad"):
        empty = predict(raw(0))
        loss = DistillationLoss(kind)(empty, empty, torch.zeros(0, dtype=torch.float64))  # type: ignore[arg-type]
        assert loss.shape == (0,)
        assert loss.sum() == 0


# -- the supervised baseline -----------------------------------------------------------------------------------------
def truth_of(prediction: Prediction3D) -> Boxes3D:
    n = len(prediction.yaw)
    return Boxes3D(prediction.center.detach(), prediction.size.detach(), prediction.yaw.detach(), ("Car",) * n)


def test_supervised_loss_is_least_at_the_truth() -> None:
    prediction = predict(raw(3))
    truth, P = truth_of(prediction), tiny.kitti_camera(tiny.WIDTH, tiny.HEIGHT).P.expand(3, 3, 4)
    unit = other(
        prediction, yaw_vector=prediction.yaw_vector / prediction.yaw_vector.norm(dim=-1, keepdim=True),
        log_sigma=torch.zeros_like(prediction.log_z),
    )  # fmt: skip
    terms = SupervisedLoss()(unit, truth, BOXES, P)
    for name in ("depth", "center", "size", "yaw"):
        assert terms[name].abs().max() < 1e-5, name
    mirrored = other(unit, yaw_vector=unit.yaw_vector * double(1, -1))
    assert SupervisedLoss()(mirrored, truth, BOXES, P)["yaw"].max() > 0.1


def test_supervised_direction_tells_front_from_rear() -> None:
    prediction = predict(raw(3))
    P = tiny.kitti_camera(tiny.WIDTH, tiny.HEIGHT).P.expand(3, 3, 4)
    truth = truth_of(prediction)  # alpha in (-pi/2, pi/2]: direction 0
    turned = Boxes3D(truth.center, truth.size, truth.yaw + math.pi, truth.labels)
    sure = other(prediction, direction=double(9, -9).expand(3, 2))
    assert SupervisedLoss()(sure, truth, BOXES, P)["direction"].max() < 1e-6
    assert SupervisedLoss()(sure, turned, BOXES, P)["direction"].min() > 1
