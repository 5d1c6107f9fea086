"""Networks and decoding: the formulas (method: Decoding) solved backwards by hand, shapes, empty batches, inference."""

import math

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from skd_core.boxes import at_border, box_corners
from skd_core.camera import Camera, project
from skd_core.config import ModelConfig
from skd_core.errors import UserError
from skd_core.models.backbone import STRIDE, Backbone, roi_features
from skd_core.models.decode import decode_2d, decode_3d, half_extent
from skd_core.models.heads import MIN_LOG_SIGMA, Head3D, Maps2D, Raw3D, roi_rays
from skd_core.models.student import Rois, Student, condition_channels
from skd_core.models.teacher import DepthMap, Teacher, depth_to_points

CAMERA = tiny.kitti_camera()
PRIOR = torch.tensor([3.88, 1.63, 1.53], dtype=torch.float64)  # of a car, l w h


def small(**changes: object) -> ModelConfig:
    return ModelConfig.model_validate(tiny.make_config("x").model.model_dump() | changes)


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    return Student(small()).eval()


# -- decoding a box ----------------------------------------------------------------------------------------------------
def test_decode_by_hand() -> None:
    """A car straight ahead seen from behind, with round numbers.

    f = 700, box 100 px high: the prior's height puts it at 700 x 1.53 / 100 = 10.71 m, and e = l / 2 = 1.94 m is added.
    """
    P = torch.tensor([[700.0, 0, 600, 0], [0, 700, 180, 0], [0, 0, 1, 0]])[None]
    box = torch.tensor([[550.0, 130, 650, 230]])
    raw = Raw3D(torch.zeros(1, 3), torch.zeros(1, 2), torch.zeros(1, 3), torch.tensor([[-2.0, 0]]), torch.zeros(1, 2))
    found = decode_3d(raw, box, P, PRIOR[None].float(), torch.tensor([False]))
    assert found.log_z.exp().item() == pytest.approx(700 * 1.53 / 100 + 3.88 / 2, rel=1e-6)
    assert found.center[0].tolist() == pytest.approx([0, 0, 12.65], abs=1e-4)
    assert found.size[0].tolist() == pytest.approx([3.88, 1.63, 1.53])
    assert abs(found.yaw.item()) == pytest.approx(math.pi / 2)
    assert found.center_uv.tolist() == [[0.5, 0.5]]


def test_depth_correction_and_size_are_bounded() -> None:
    box = torch.tensor([[550.0, 130, 650, 230]])
    P = CAMERA.P.float()[None]
    for sign in (-1, 1):
        raw = Raw3D(
            torch.full((1, 3), sign * 50.0), torch.zeros(1, 2), torch.full((1, 3), sign * 50.0),
            torch.tensor([[1.0, 0]]), torch.zeros(1, 2),
        )  # fmt: skip
        found = decode_3d(raw, box, P, PRIOR[None].float(), torch.tensor([False]))
        assert (found.size / PRIOR).tolist()[0] == pytest.approx([math.exp(sign * 0.25)] * 3, rel=1e-5)
        ray = math.atan2(600 - CAMERA.cx, CAMERA.fx)
        e = half_extent(found.size, torch.tensor([ray])).item()
        geometric = CAMERA.fy * found.size[0, 2].item() / 100 + e
        assert found.log_z.item() == pytest.approx(math.log(geometric) + sign * 0.3, rel=1e-5)


cars = st.tuples(
    st.floats(-12, 12), st.floats(-0.5, 1.5), st.floats(8, 60), st.floats(-math.pi, math.pi),
    st.floats(-0.2, 0.2), st.floats(-0.2, 0.2), st.floats(-0.2, 0.2),
)  # fmt: skip


@given(st.lists(cars, min_size=1, max_size=4), st.booleans(), st.booleans())
def test_a_box_encoded_by_hand_is_decoded_again(boxes: list[tuple[float, ...]], cut: bool, direction: bool) -> None:
    """KITTI's camera, whose fourth column is not zero; RoIs a little off the true 2D boxes, as jitter makes them."""
    x, y, z, yaw, *log_size = torch.tensor(boxes, dtype=torch.float64).unbind(-1)
    center = torch.stack([x, y, z], -1)
    size = PRIOR * torch.stack(log_size, -1).exp()
    uv = project(CAMERA.P, box_corners(center, size, yaw))
    tight = torch.cat([uv.amin(1), uv.amax(1)], -1)
    wh = (tight[:, 2:] - tight[:, :2]).repeat(1, 2)
    roi = tight + wh * torch.tensor([-0.04, 0.03, 0.05, -0.02], dtype=torch.float64)
    cuts = torch.full((len(boxes),), cut)
    raw = tiny.encode(center, size, yaw, roi, CAMERA, PRIOR, cuts)
    P = CAMERA.P.expand(len(boxes), 3, 4)
    found = decode_3d(raw, roi, P, PRIOR.expand(len(boxes), 3), cuts, use_direction=direction)
    possible = raw.depth[:, 0].isfinite()  # the geometric depth is within a factor exp(.3) of the truth
    assert cut or possible.all()
    assert torch.allclose(found.center, center, atol=1e-4)
    assert torch.allclose(found.size, size, atol=1e-4)
    assert torch.allclose(found.log_z.exp(), z + CAMERA.P[2, 3], atol=1e-4)  # from the optical centre
    turn = found.yaw - yaw
    if direction:
        assert torch.allclose(torch.cos(turn), torch.ones_like(turn), atol=1e-7)
    else:
        assert torch.allclose(torch.cos(2 * turn), torch.ones_like(turn), atol=1e-6)
        assert (found.alpha.abs() <= math.pi / 2 + 1e-9).all()
    # and it projects to where it came from
    assert torch.allclose(found.project(P), tight, atol=2e-2)


def test_center_offset_is_what_lies_between_surface_and_center() -> None:
    raw = Raw3D(torch.zeros(1, 3), torch.zeros(1, 2), torch.zeros(1, 3), torch.tensor([[1.0, 0.3]]), torch.zeros(1, 2))
    box, P = torch.tensor([[700.0, 130, 800, 190]]), CAMERA.P.float()[None]
    args = (raw, box, P, PRIOR[None].float(), torch.tensor([False]))
    with_offset, without = decode_3d(*args), decode_3d(*args, center_offset=False)
    assert without.log_z.exp().item() == pytest.approx(CAMERA.fy * 1.53 / 60, rel=1e-5)
    e = (with_offset.log_z.exp() - without.log_z.exp()).item()
    assert e == pytest.approx(half_extent(PRIOR[None], with_offset.yaw.double()).item(), rel=1e-2)


def test_half_extent() -> None:
    """l/2 seen from behind (yaw 90 degrees), w/2 seen from the side, the corner in between."""
    yaw = torch.tensor([math.pi / 2, 0.0, math.pi / 4, -math.pi / 4])
    e = half_extent(torch.tensor([[4.0, 2, 1]]).expand(4, 3), yaw)
    assert e.tolist() == pytest.approx([2, 1, 3 / math.sqrt(2), 3 / math.sqrt(2)])
    corners = box_corners(torch.zeros(4, 3), torch.tensor([[4.0, 2, 1]]).expand(4, 3), yaw)
    assert torch.allclose(e, corners[..., 2].amax(-1), atol=1e-6)  # what boxes.py calls the far end


def cut(boxes: Tensor, height: float) -> Tensor:
    return at_border(boxes, 1242.0, height)[:, [1, 3]].any(-1)


def test_cut_boxes_touch_top_or_bottom() -> None:
    boxes = torch.tensor([[0.0, 10, 50, 60], [10, 2, 50, 60], [10, 10, 50, 98], [0, 10, 160, 50]])
    rois = tiny.make_rois(boxes, tiny.kitti_camera(160, 100))
    assert rois.cut_vertically.tolist() == [False, True, True, False]
    assert rois.cut.tolist() == [[True, False, False, False], [False, True, False, False], [False, False, False, True],
                                 [True, False, True, False]]  # fmt: skip


def test_nothing_overflows_on_hopeless_boxes() -> None:
    """Boxes of no height, outputs far out: finite boxes and gradients."""
    boxes = torch.tensor([[50.0, 50, 50, 50], [50, 50, 50.5, 50.2], [0, 0, 1242, 375], [600, 170, 620, 176]])
    parts = [torch.randn(4, k, generator=torch.Generator().manual_seed(k)) * 100 for k in (3, 2, 3, 2, 2)]
    parts = [p.requires_grad_() for p in parts]
    found = decode_3d(
        Raw3D(*parts), boxes, CAMERA.P.float().expand(4, 3, 4), PRIOR.float().expand(4, 3), cut(boxes, 375.0)
    )
    total = found.project(CAMERA.P.float().expand(4, 3, 4)).sum() + found.center.sum() + found.yaw.sum()
    total.backward()
    assert all(value.isfinite().all() for value in vars(found).values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in parts)
    assert (found.log_z.exp() >= 0.5 - 1e-5).all()
    assert (found.log_z.exp() <= 200 * 1.00001).all()


def test_decode_of_nothing() -> None:
    raw = Raw3D(*(torch.zeros(0, k) for k in (3, 2, 3, 2, 2)))
    found = decode_3d(raw, torch.zeros(0, 4), torch.zeros(0, 3, 4), torch.zeros(0, 3), torch.zeros(0, dtype=torch.bool))
    assert found.center.shape == (0, 3)
    assert found.project(torch.zeros(0, 3, 4)).shape == (0, 4)


# -- decoding 2D peaks -------------------------------------------------------------------------------------------------
def peaks_map() -> Maps2D:
    """Two classes on 10 x 16 cells: a car of 24 x 12 px at (22, 14), a pedestrian of 8 x 20 px at (50.4, 25.2)."""
    heat = torch.full((1, 2, 10, 16), -6.0)
    heat[0, 0, 3, 5], heat[0, 0, 3, 6] = 2.0, 1.0  # the second is no peak
    heat[0, 1, 6, 12] = 0.5
    offset, size = torch.zeros(1, 2, 10, 16), torch.zeros(1, 2, 10, 16)
    offset[0, :, 3, 5] = torch.tensor([0.5, 0.5])
    offset[0, :, 6, 12] = torch.tensor([0.6, 0.3])
    size[0, :, 3, 5] = torch.tensor([6.0, 3]).log()
    size[0, :, 6, 12] = torch.tensor([2.0, 5]).log()
    return Maps2D(heat, offset, size)


def test_peaks_become_boxes() -> None:
    boxes, scores, classes = decode_2d(peaks_map(), 2)
    assert classes.tolist() == [[0, 1]]
    assert scores[0].tolist() == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-0.5))])
    assert boxes[0, 0].tolist() == pytest.approx([10, 8, 34, 20])
    assert boxes[0, 1].tolist() == pytest.approx([46.4, 15.2, 54.4, 35.2], abs=1e-4)


def test_neighbours_of_a_peak_are_suppressed() -> None:
    _, scores, _ = decode_2d(peaks_map(), 50)
    assert scores.shape == (1, 50)
    assert (scores[0].diff() <= 0).all()
    assert (scores[0] > 0.6).sum() == 2


def test_more_peaks_asked_for_than_there_are_cells() -> None:
    boxes, scores, classes = decode_2d(
        Maps2D(torch.randn(3, 1, 2, 2), torch.zeros(3, 2, 2, 2), torch.zeros(3, 2, 2, 2)), 50
    )
    assert boxes.shape == (3, 4, 4)
    assert scores.shape == classes.shape == (3, 4)


# -- backbone and pooling ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(64, 160), (61, 157), (33, 35), (96, 320), (4, 4)])
def test_backbone_takes_any_image_size(student: Student, size: tuple[int, int]) -> None:
    with torch.no_grad():
        features = student.features(torch.zeros(2, 3, *size, dtype=torch.uint8))
    assert features.shape == (2, 8, math.ceil(size[0] / STRIDE), math.ceil(size[1] / STRIDE))
    assert features.isfinite().all()


def test_backbones_that_do_not_serve_are_named() -> None:
    with pytest.raises(UserError, match=r"resnet1.*similar"):
        Backbone("resnet1", 8)
    with pytest.raises(UserError, match=r"vit_tiny_patch16_224.*stride"):
        Backbone("vit_tiny_patch16_224", 8)


def test_roi_features_sample_where_the_camera_says() -> None:
    """On features that hold their own image coordinates, RoIAlign returns the coordinates of its bins."""
    v, u = torch.meshgrid(torch.arange(16.0), torch.arange(40.0), indexing="ij")
    features = torch.stack([(u + 0.5) * STRIDE, (v + 0.5) * STRIDE])[None]
    boxes = torch.tensor([[21.0, 9, 93, 45]])
    pooled = roi_features(features, torch.zeros(1, dtype=torch.long), boxes, 4)
    assert pooled[0, 0, 0].tolist() == pytest.approx([30, 48, 66, 84])
    assert pooled[0, 1, :, 0].tolist() == pytest.approx([13.5, 22.5, 31.5, 40.5])
    P = CAMERA.P.float()[None]
    rays = roi_rays(boxes, P, 4)
    assert torch.allclose(rays[0, 0], (pooled[0, 0] - CAMERA.cx) / CAMERA.fx, atol=1e-6)
    assert torch.allclose(rays[0, 1], (pooled[0, 1] - CAMERA.cy) / CAMERA.fy, atol=1e-6)


def test_half_precision_features_do_not_round_the_rois() -> None:
    features = torch.linspace(0, 1, 320).expand(1, 1, 96, 320)
    boxes = torch.tensor([[1001.3, 100, 1030.7, 200]])
    index = torch.zeros(1, dtype=torch.long)
    exact, half = (roi_features(f, index, boxes, 7) for f in (features, features.to(torch.bfloat16).float()))
    rounded = roi_features(features.to(torch.bfloat16), index, boxes, 7)
    assert torch.equal(rounded, half)
    assert (rounded - exact).abs().max() < 0.005  # bfloat16 would move the box by up to 4 pixels: .003 each


def test_roi_of_the_second_image() -> None:
    features = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    boxes = torch.tensor([[4.0, 4, 20, 20], [4, 4, 20, 20]])
    pooled = roi_features(features, torch.tensor([1, 0]), boxes, 2)
    assert pooled[0].min() == 1
    assert pooled[1].max() == 0


# -- heads -------------------------------------------------------------------------------------------------------------
def test_head_3d_takes_none_and_one_in_training() -> None:
    head = Head3D(5, 8).train()
    for n in (0, 1):
        raw = head(torch.randn(n, 5, 3, 3, requires_grad=True))
        assert [len(value) for value in vars(raw).values()] == [n] * 5
        sum(value.sum() for value in vars(raw).values()).backward()


def test_log_sigma_is_floored_and_a_share_of_depth() -> None:
    head = Head3D(4, 8).eval()
    head.fcs["depth"].weight.data.normal_(std=100)
    scale = head(torch.randn(200, 4, 3, 3)).depth[:, 1]
    assert scale.min() >= MIN_LOG_SIGMA - 1e-6
    assert scale.max() <= 0
    assert math.exp(MIN_LOG_SIGMA) == pytest.approx(0.03)


def test_untrained_head_starts_at_the_prior() -> None:
    """Sizes at the prior, the geometric depth uncorrected, the centre in the middle of the box, seen from behind."""
    head = Head3D(4, 8).eval()
    for fc in head.fcs.values():
        fc.weight.data.zero_()
    raw = head(torch.randn(1, 4, 3, 3))
    box = torch.tensor([[550.0, 130, 650, 230]])
    found = decode_3d(raw, box, CAMERA.P.float()[None], PRIOR[None].float(), torch.tensor([False]))
    assert found.size[0].tolist() == pytest.approx(PRIOR.tolist())
    assert found.center_uv.tolist() == [[0.5, 0.5]]
    assert abs(found.alpha.item()) == pytest.approx(math.pi / 2)
    assert found.log_z.exp().item() == pytest.approx(CAMERA.fy * 1.53 / 100 + 1.94, rel=1e-2)


# -- student -----------------------------------------------------------------------------------------------------------
def image(n: int = 1, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, 3, tiny.HEIGHT, tiny.WIDTH), generator=torch.Generator().manual_seed(seed)).byte()


def cameras(n: int = 1) -> Tensor:
    return tiny.kitti_camera(tiny.WIDTH, tiny.HEIGHT).P.float().expand(n, 3, 4)


def test_student_is_all_that_runs_at_inference(student: Student) -> None:
    parts = {name.split(".")[0] for name, _ in student.named_parameters()}
    assert parts == {"backbone", "heads_2d", "head_3d"}
    teacher = Teacher(small(), student.prior)
    ours = {id(p) for p in student.parameters()}
    assert not any(id(p) in ours for p in teacher.parameters())  # what they share is called, not owned, by the teacher


def test_detect_orders_scores_and_keeps_them_in_0_1(student: Student) -> None:
    found = student.detect(image(2), cameras(2))
    assert len(found) == 2
    for detections in found:
        n = len(detections.scores)
        assert 0 < n <= 50
        assert (detections.scores.diff() <= 0).all()
        assert (detections.scores >= 0).all()
        assert (detections.scores <= 1).all()
        assert detections.boxes.shape == (n, 4)
        assert detections.boxes3d.center.shape == (n, 3)
        assert (detections.boxes >= 0).all()
        assert (detections.boxes[:, 2] <= tiny.WIDTH).all()
        assert (detections.boxes[:, 3] <= tiny.HEIGHT).all()


def test_score_is_heat_times_certainty_of_depth(student: Student) -> None:
    one = student.detect(image(), cameras(), limit=1)[0]
    _, heat, _ = decode_2d(student.maps_2d(student.features(image())), 1)
    expected = torch.sqrt(heat[0] * torch.exp((0.03 - torch.exp(one.boxes3d.log_sigma)) / 0.1))
    assert one.scores.item() == pytest.approx(expected.item(), rel=1e-5)


def test_images_of_a_batch_do_not_mix(student: Student) -> None:
    images, P = torch.cat([image(seed=1), image(seed=2)]), cameras(2)
    both = student.detect(images, P, limit=10)
    for i in range(2):
        alone = student.detect(images[i : i + 1], P[i : i + 1], limit=10)[0]
        assert torch.allclose(both[i].boxes, alone.boxes, atol=1e-3)
        assert torch.allclose(both[i].boxes3d.center, alone.boxes3d.center, atol=1e-3)


def test_nothing_passes_a_high_threshold(student: Student) -> None:
    found = student.detect(image(2), cameras(2), min_heat=1.0)
    assert [len(f.scores) for f in found] == [0, 0]
    assert found[0].boxes3d.center.shape == (0, 3)


def test_state_rebuilds_the_student(student: Student) -> None:
    again = Student(student.config).eval()
    again.load_state_dict(student.state_dict())
    a, b = (s.detect(image(), cameras())[0] for s in (student, again))
    assert torch.equal(a.boxes3d.center, b.boxes3d.center)
    assert torch.equal(a.scores, b.scores)


def test_classes_choose_the_prior(student: Student) -> None:
    boxes = torch.tensor([[40.0, 20, 80, 44]] * 3)
    rois = tiny.make_rois(boxes, tiny.kitti_camera(tiny.WIDTH, tiny.HEIGHT), torch.tensor([0, 1, 2]))
    with torch.no_grad():
        found = student.boxes_3d(student.features(image()), rois.P[:1], rois)
    assert torch.allclose(found.size, student.prior, rtol=0.3)
    assert found.size[0, 0] > 2 * found.size[1, 0]


def test_mirrored_outputs_give_the_mirrored_box() -> None:
    """Flip: image, camera and 2D boxes mirrored, the centre's share 1 - u, yaw a -> -a (mod pi): x -> -x."""
    generator = torch.Generator().manual_seed(4)
    raw = Raw3D(*(torch.randn(5, k, generator=generator, dtype=torch.float64) for k in (3, 2, 3, 2, 2)))
    boxes = torch.tensor([[100.0, 120, 220, 190], [600, 150, 700, 200], [0, 100, 90, 260], [1100, 100, 1242, 300],
                          [500, 160, 540, 180]], dtype=torch.float64)  # fmt: skip
    flipped = torch.stack([1242 - boxes[:, 2], boxes[:, 1], 1242 - boxes[:, 0], boxes[:, 3]], -1)
    sign = torch.tensor([-1.0, 1], dtype=torch.float64)
    mirrored = Raw3D(raw.depth, raw.center * sign, raw.size, raw.yaw * sign.flip(0), raw.direction)
    prior, at_edge = PRIOR.expand(5, 3), cut(boxes, 375.0)
    a = decode_3d(raw, boxes, CAMERA.P.expand(5, 3, 4), prior, at_edge)
    b = decode_3d(mirrored, flipped, CAMERA.flip().P.expand(5, 3, 4), prior, at_edge)
    assert torch.allclose(b.center, a.center * torch.tensor([-1.0, 1, 1], dtype=torch.float64), atol=1e-9)
    assert torch.allclose(b.size, a.size)
    assert torch.allclose(torch.cos(2 * (b.yaw + a.yaw)), torch.ones(5, dtype=torch.float64), atol=1e-9)


def test_rois_of_another_camera_give_other_depths(student: Student) -> None:
    """The 3D head is told the camera: twice the focal length, the same features, twice the geometric depth."""
    boxes = torch.tensor([[40.0, 20, 80, 44]])
    camera = tiny.kitti_camera(tiny.WIDTH, tiny.HEIGHT)
    P = camera.P.clone()
    P[0, 0], P[1, 1] = 2 * P[0, 0], 2 * P[1, 1]
    longer = Camera(P, camera.width, camera.height)
    with torch.no_grad():
        features = student.features(image())
        both = (tiny.make_rois(boxes, c) for c in (camera, longer))
        near, far = (student.boxes_3d(features, rois.P, rois).log_z.exp().item() for rois in both)
    assert 1.4 < far / near < 2.2


# -- teacher -----------------------------------------------------------------------------------------------------------
def test_teacher_predicts_raw_outputs_and_depth(student: Student) -> None:
    teacher = Teacher(student.config, student.prior).train()
    features = student.features(image(2))
    depth = teacher.depth_map(features, cameras(2))
    assert depth.log_depth.shape == (2, 16, 40)
    assert depth.features.shape == (2, 8, 16, 40)
    assert depth.log_depth.exp().median().item() == pytest.approx(20, rel=0.2)  # bias -log 20
    for n in (0, 1, 4):
        boxes = torch.tensor([[40.0, 20, 80, 44]]).repeat(n, 1)
        rois = tiny.make_rois(boxes, tiny.kitti_camera(tiny.WIDTH, tiny.HEIGHT))
        raw = teacher.boxes_raw(features, depth, cameras(2), rois)
        assert [len(value) for value in vars(raw).values()] == [n] * 5


def test_teacher_depth_feeds_the_boxes_without_gradient(student: Student) -> None:
    """D_p enters the 3D branch detached: box losses must not bend the depth map."""
    teacher = Teacher(student.config, student.prior).eval()
    features = student.features(image()).detach()
    log_depth = torch.full((1, 16, 40), 2.5, requires_grad=True)
    depth_features = torch.zeros(1, 8, 16, 40, requires_grad=True)
    depth = DepthMap(log_depth, torch.zeros(1, 16, 40), depth_features)
    rois = tiny.make_rois(torch.tensor([[40.0, 20, 80, 44]]), tiny.kitti_camera(tiny.WIDTH, tiny.HEIGHT))
    raw = teacher.boxes_raw(features, depth, cameras(), rois)
    (raw.depth.sum() + raw.yaw.sum() + raw.size.sum()).backward()
    assert log_depth.grad is None
    assert depth_features.grad is not None
    assert depth_features.grad.abs().max() > 0
    nearer = DepthMap(log_depth.detach() - 0.3, depth.log_sigma, depth.features)
    assert not torch.allclose(teacher.boxes_raw(features, nearer, cameras(), rois).depth, raw.depth)


def test_depth_to_points_projects_back() -> None:
    camera = tiny.kitti_camera(tiny.WIDTH, tiny.HEIGHT)
    depth = 5 + 30 * torch.rand(1, 16, 40, dtype=torch.float64)
    points = depth_to_points(depth, camera.P[None])[0].flatten(1).T
    uv = camera.centred().project(points).reshape(16, 40, 2)
    assert torch.allclose(uv[..., 0], (torch.arange(40) + 0.5).double() * 4)
    assert torch.allclose(uv[..., 1], ((torch.arange(16) + 0.5).double() * 4)[:, None])
    assert torch.equal(points[:, 2].reshape(16, 40), depth[0])


def test_teacher_knows_the_geometric_depth(student: Student) -> None:
    teacher = Teacher(student.config, student.prior)
    camera = tiny.kitti_camera(tiny.WIDTH, tiny.HEIGHT)
    rois = tiny.make_rois(torch.tensor([[40.0, 20, 80, 40]]), camera)
    assert teacher.geometric_depth(rois).item() == pytest.approx(camera.fy * 1.53 / 20 + 1.94, rel=1e-4)


def test_conditions_hold_rays_and_class() -> None:
    camera = tiny.kitti_camera(tiny.WIDTH, tiny.HEIGHT)
    rois: Rois = tiny.make_rois(torch.tensor([[40.0, 20, 80, 44]] * 2), camera, torch.tensor([2, 0]))
    config = ModelConfig(roi_size=3)
    conditions = rois.conditions(config)
    assert conditions.shape == (2, 5, 3, 3)
    assert condition_channels(config) == 5
    assert conditions[:, 2:, 1, 1].tolist() == [[0, 0, 1], [1, 0, 0]]
    assert conditions[0, 0, 0, 1].item() == pytest.approx((60 - camera.cx) / camera.fx, rel=1e-5)


def test_conditions_tell_which_edges_are_cut() -> None:
    camera = tiny.kitti_camera(tiny.WIDTH, tiny.HEIGHT)
    boxes = torch.tensor([[0.0, 20, 80, tiny.HEIGHT], [40, 20, 80, 44]])
    config = ModelConfig(roi_size=3, border_flags=True)
    flags = tiny.make_rois(boxes, camera).conditions(config)[:, 5:]
    assert flags.shape == (2, 4, 3, 3)
    assert condition_channels(config) == 9
    assert flags[:, :, 1, 1].tolist() == [[1, 0, 0, 1], [0, 0, 0, 0]]


def test_the_centre_of_a_cut_box_may_lie_outside_it() -> None:
    """center_range 2.5: with the same slope at the middle, shares from -.75 to 1.75."""
    box = torch.tensor([[0.0, 120, 100, 190]])
    outputs = [torch.zeros(1, k) for k in (3, 2, 3, 2, 2)]
    for value, lowest, highest in ((50.0, 1.74, 1.75), (-50.0, -0.75, -0.74), (0.0, 0.5, 0.5)):
        outputs[1] = torch.full((1, 2), value)
        raw, P = Raw3D(*outputs), CAMERA.P.float()[None]
        found = decode_3d(raw, box, P, PRIOR.float()[None], torch.tensor([False]), center_range=2.5)
        assert lowest - 1e-6 <= found.center_uv[0, 0].item() <= highest + 1e-6
        uv = project(P[0], found.center)[0]
        assert uv[0].item() == pytest.approx(100 * found.center_uv[0, 0].item(), abs=0.5)


def test_free_depth_scales_with_the_focal_length() -> None:
    """What looks the same through a lens twice as long is twice as far."""
    box, cut_box = torch.tensor([[300.0, 120, 500, 375]]), torch.tensor([True])
    raw = Raw3D(torch.tensor([[0.0, -2, -2]]), *(torch.zeros(1, k) for k in (2, 3, 2, 2)))
    P = CAMERA.P.float()
    longer = P * torch.tensor([[2.0], [2], [1]])
    near, far = (
        decode_3d(raw, box, p[None], PRIOR.float()[None], cut_box, focal=721.5377).log_z.exp().item()
        for p in (P, longer)
    )
    assert near == pytest.approx(math.exp(2), rel=1e-5)
    assert far == pytest.approx(2 * near, rel=1e-5)


def test_overlapping_boxes_of_a_class_are_one_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two peaks on one object leave the hotter one; another class or another image is another object."""
    student = Student(ModelConfig(backbone="mobilenetv3_small_100", neck_channels=8, head_channels=8)).eval()
    boxes = torch.tensor([[10.0, 10, 50, 40], [12, 10, 52, 40], [10, 10, 50, 40], [70, 10, 90, 40]]).repeat(2, 1, 1)
    heat = torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.3, 0.8, 0.7, 0.6]])
    classes = torch.tensor([[0, 0, 1, 0]]).repeat(2, 1)
    monkeypatch.setattr("skd_core.models.student.decode_2d", lambda maps, limit: (boxes, heat, classes))
    P = torch.tensor([[100.0, 0, 64, 0], [0, 100, 32, 0], [0, 0, 1, 0]]).repeat(2, 1, 1)
    first, second = student.detect(torch.zeros(2, 3, 64, 128), P)
    assert sorted(first.boxes[:, 0].tolist()) == [10, 10, 70]
    assert sorted(second.boxes[:, 0].tolist()) == [10, 12, 70]
