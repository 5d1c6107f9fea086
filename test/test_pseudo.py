"""Pseudo-targets: on rendered frames, where the truth is known, and piece by piece by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray

from skd_core.boxes import Boxes2D
from skd_core.data.sample import Sample
from skd_core.data.transforms import flip, resize
from skd_core.priors import prior_of
from skd_core.supervision.pseudo import (
    POINTS,
    PseudoTargets,
    back_project,
    box_depth,
    fit_ground,
    fuse,
    nearest_mode,
    pseudo_targets,
    scale_factor,
)
from skd_core.synthetic import DepthNoise, SynthConfig, render_frame

Floats = NDArray[np.float64]
CAR = prior_of("Car")
CAMERA = tiny.kitti_camera(640, 192)
P = CAMERA.P.numpy()
FRAMES = range(14)


def easy_cars(number: int, noise: float = 0.0) -> tuple[Sample, torch.Tensor]:
    """A rendered frame and which of its cars are near, whole and not hidden."""
    sample = tiny.rendered_sample(number, noise)
    frame = render_frame(SynthConfig(640, 192, depth_noise=DepthNoise(noise)), 5, number)
    keep = torch.tensor([name in tiny.CLASSES for name in frame.boxes2d.labels])
    assert sample.boxes3d is not None
    cars = torch.tensor([name == "Car" for name in sample.boxes3d.labels])
    seen = torch.tensor(frame.occlusion)[keep] == 0
    whole = torch.tensor(frame.truncation)[keep] == 0
    return sample, cars & seen & whole & (sample.boxes3d.center[:, 2] < 30)


@pytest.fixture(scope="module")
def scenes() -> list[tuple[Sample, torch.Tensor]]:
    return [easy_cars(n) for n in FRAMES]


def gather(scenes: list[tuple[Sample, torch.Tensor]], **options: bool) -> dict[str, torch.Tensor]:
    """Truth and targets of all easy cars."""
    rows: dict[str, list[torch.Tensor]] = {"z": [], "true_z": [], "alpha": [], "true_alpha": [], "q": []}
    for sample, easy in scenes:
        targets, truth = pseudo_targets(sample, **options), sample.boxes3d
        assert truth is not None
        for name, value in zip(
            rows, (targets.z, truth.center[:, 2], targets.alpha, truth.alpha, targets.alpha_weight), strict=True
        ):
            rows[name].append(value[easy])
    return {name: torch.cat(parts) for name, parts in rows.items()}


# -- against the truth -------------------------------------------------------------------------------------------------
def test_true_depth_places_cars_within_a_few_percent(scenes: list[tuple[Sample, torch.Tensor]]) -> None:
    found = gather(scenes)
    known = found["z"].isfinite()
    assert len(known) >= 15
    assert known.float().mean() > 0.9
    error = found["z"][known] / found["true_z"][known] - 1
    assert error.abs().median() < 0.04
    assert error.abs().quantile(0.9) < 0.10
    assert error.median().abs() < 0.025  # the way from the surface to the centre is neither forgotten nor doubled


def test_true_depth_turns_cars_within_a_few_degrees(scenes: list[tuple[Sample, torch.Tensor]]) -> None:
    found = gather(scenes)
    sure = found["q"] > 0.5
    assert sure.float().mean() > 0.5
    error = tiny.degrees_modulo_pi(found["alpha"], found["true_alpha"])
    assert error[sure].median() < 3
    assert error[sure].quantile(0.9) < 10
    assert (found["q"] >= 0).all()
    assert (found["q"] <= 1).all()


def test_no_yaw_for_a_footprint_without_a_direction(scenes: list[tuple[Sample, torch.Tensor]]) -> None:
    for sample, _ in scenes:
        walking = torch.tensor([name == "Pedestrian" for name in sample.boxes2d.labels])
        assert (pseudo_targets(sample).alpha_weight[walking] == 0).all()


def test_without_the_centre_offset_targets_stay_at_the_surface(scenes: list[tuple[Sample, torch.Tensor]]) -> None:
    centre, surface = gather(scenes), gather(scenes, center_offset=False)
    known = centre["z"].isfinite() & surface["z"].isfinite()
    gap = (centre["z"] - surface["z"])[known]
    assert (gap > 0.5).all()  # half a width is the least
    assert (gap < 2.3).all()  # half a diagonal the most
    assert torch.equal(centre["alpha"], surface["alpha"])


def test_noisy_depth_is_as_good_as_its_noise() -> None:
    found = gather([easy_cars(n, 0.06) for n in FRAMES])
    known = found["z"].isfinite()
    assert known.float().mean() > 0.85
    assert (found["z"][known] / found["true_z"][known] - 1).abs().median() < 0.07


def test_points_lie_on_the_visible_surface(scenes: list[tuple[Sample, torch.Tensor]]) -> None:
    """In the frame of their box, scaled to the fused depth: near its footprint, most of them on the near faces."""
    for sample, easy in scenes:
        targets, truth = pseudo_targets(sample), sample.boxes3d
        assert truth is not None
        for i in easy.nonzero()[:, 0].tolist():
            points = targets.points[i]
            known = points.isfinite().all(-1)
            if not known.any():
                continue
            assert known.sum() >= 15
            distance = (points[known] - truth.center[i, [0, 2]]).norm(dim=-1)
            reach = 0.5 * truth.size[i, :2].norm()
            assert (distance < 1.3 * reach + 0.1 * truth.center[i, 2]).float().mean() > 0.9
            assert points[known, 1].median() < truth.center[i, 2]  # in front of the centre


def test_mirrored_scene_mirrored_targets(scenes: list[tuple[Sample, torch.Tensor]]) -> None:
    gaps_z, gaps_alpha = [], []
    for sample, easy in scenes:
        a, b = pseudo_targets(sample).flip(), pseudo_targets(flip(sample))
        gaps_z.append((a.z / b.z - 1).abs()[easy])
        gaps_alpha.append(tiny.degrees_modulo_pi(a.alpha, b.alpha)[easy & (a.alpha_weight > 0.5)])
    # rounding to pixels is not symmetric: nearly the same, not the same bits
    assert torch.cat(gaps_z).nanquantile(0.9) < 0.02
    assert torch.cat(gaps_alpha).nanquantile(0.9) < 3


def test_targets_are_metric_whatever_the_image_size(scenes: list[tuple[Sample, torch.Tensor]]) -> None:
    gaps = []
    for sample, easy in scenes:
        full, half = pseudo_targets(sample), pseudo_targets(resize(sample, 400, 140))
        gaps.append((full.z / half.z - 1).abs()[easy])
    assert torch.cat(gaps).nanmedian() < 0.03


def test_a_wrong_scale_of_the_whole_map_is_half_corrected() -> None:
    """Where at least three objects tell, depth 15 % short comes out less short (method: Pseudo-targets, Scale)."""
    crowded = [(s, e) for s, e in (easy_cars(n) for n in FRAMES) if int(e.sum()) >= 3]
    assert crowded
    right = gather(crowded)
    short = gather([(replace(s, depth=0.85 * s.depth), e) for s, e in crowded if s.depth is not None])
    known = right["z"].isfinite() & short["z"].isfinite()
    ratio = (short["z"] / right["z"])[known].median()
    assert 0.88 < ratio < 0.99


# -- what is missing ---------------------------------------------------------------------------------------------------
def is_nothing(targets: PseudoTargets, count: int) -> bool:
    return (
        len(targets.z) == len(targets.alpha) == len(targets.points) == count
        and bool(targets.z.isnan().all())
        and bool((targets.alpha_weight == 0).all())
        and bool(targets.points.isnan().all())
    )


def test_no_depth_no_targets() -> None:
    sample, _ = easy_cars(0)
    n = len(sample.boxes2d)
    assert n > 0
    assert is_nothing(pseudo_targets(replace(sample, depth=None)), n)
    assert is_nothing(PseudoTargets.none(3), 3)


@pytest.mark.parametrize("hole", [0.0, math.nan, -1.0])
def test_unknown_depth_gives_no_depth_targets(hole: float) -> None:
    sample, _ = easy_cars(0)
    assert sample.depth is not None
    targets = pseudo_targets(replace(sample, depth=torch.full_like(sample.depth, hole)))
    assert targets.z.isnan().all()
    assert targets.points.isnan().all()
    assert targets.alpha_weight.isfinite().all()


@pytest.mark.parametrize("hole", [0.0, math.nan])
def test_holes_in_the_map_are_not_points(hole: float) -> None:
    sample, easy = easy_cars(0)
    assert sample.depth is not None
    depth = sample.depth.clone()
    depth[:, ::3] = hole
    whole, holed = pseudo_targets(sample), pseudo_targets(replace(sample, depth=depth))
    known = whole.z.isfinite() & holed.z.isfinite() & easy
    assert known.any()
    assert torch.allclose(whole.z[known], holed.z[known], rtol=0.03)
    points = holed.points[holed.points.isfinite()]
    assert (points.abs() < 300).all()


def test_no_objects() -> None:
    sample, _ = easy_cars(0)
    empty = replace(sample, boxes2d=Boxes2D.empty(), boxes3d=None, full_xyxy=None, hidden=None)
    targets = pseudo_targets(empty)
    assert targets.points.shape == (0, POINTS, 2)


def test_boxes_too_small_or_at_the_border_do_no_harm() -> None:
    sample, _ = easy_cars(0)
    odd = torch.tensor(
        [[10.0, 50, 10.5, 50.4], [0, 0, 640, 192], [600, 0, 640, 192], [0, 90, 3, 95], [300, 100, 301, 150]]
    )
    targets = pseudo_targets(
        replace(sample, boxes2d=Boxes2D(odd, ("Car",) * 5), boxes3d=None, full_xyxy=None, hidden=None)
    )
    assert targets.z[[0, 3]].isnan().all()
    known = targets.z[targets.z.isfinite()]
    assert (known > 0).all()
    assert targets.alpha_weight.isfinite().all()
    assert (targets.alpha_weight <= 1).all()


def test_flip_of_targets_by_hand() -> None:
    targets = PseudoTargets.none(1)
    targets.z[0], targets.alpha[0], targets.alpha_weight[0] = 12, 0.4, 0.8
    targets.points[0, 0] = torch.tensor([2.0, 11])
    mirrored = targets.flip()
    assert (mirrored.z[0], mirrored.alpha[0], mirrored.alpha_weight[0]) == (12, pytest.approx(-0.4), pytest.approx(0.8))
    assert mirrored.points[0, 0].tolist() == [-2, 11]
    assert mirrored.flip().points[0, 0].tolist() == [2, 11]


# -- piece by piece ----------------------------------------------------------------------------------------------------
def plane_depth(a: float, b: float, c: float) -> Floats:
    """The depth map of the plane y = a x + b z + c; 0 where it is not seen or farther than 80 m."""
    u, v = np.meshgrid(np.arange(640) + 0.5, np.arange(192) + 0.5)
    # y = ((v - cy) z - ty) / fy and x = ((u - cx) z - tx) / fx: linear in z
    slope = (v - P[1, 2]) / P[1, 1] - a * (u - P[0, 2]) / P[0, 0] - b
    z = (c + P[1, 3] / P[1, 1] - a * P[0, 3] / P[0, 0]) / np.where(slope > 1e-6, slope, np.inf)
    return np.where((z > 0) & (z < 80), z, 0.0)


@pytest.mark.parametrize("plane", [(0.0, 0.0, 1.65), (0.03, -0.02, 1.5), (-0.01, 0.03, 1.8)])
def test_ground_of_a_known_plane(plane: tuple[float, float, float]) -> None:
    found = fit_ground(plane_depth(*plane), np.zeros((0, 4)), P)
    assert found is not None
    assert found == pytest.approx(plane, abs=0.01)


def test_ground_ignores_objects_and_walls() -> None:
    depth = plane_depth(0.0, 0.0, 1.65)
    depth[:, 500:] = np.where(depth[:, 500:] > 0, np.minimum(depth[:, 500:], 9.0), 9.0)  # a wall
    boxes = np.array([[100.0, 80, 300, 192]])
    depth[80:, 100:300] = 6.0
    found = fit_ground(depth, boxes, P)
    assert found is not None
    assert found == pytest.approx((0, 0, 1.65), abs=0.05)


def test_ground_that_is_not_seen() -> None:
    assert fit_ground(np.zeros((192, 640)), np.zeros((0, 4)), P) is None
    assert fit_ground(plane_depth(0.0, 0.0, 1.65), np.array([[0.0, 0, 640, 192]]), P) is None


def test_back_projection() -> None:
    columns, rows = np.array([10, 400]), np.array([5, 100, 150])
    depth = np.array([[4.0, 5], [20, 0], [9, 40]])
    points = back_project(depth, P, columns, rows)
    assert points.shape == (3, 2, 3)
    assert np.isnan(points[1, 1]).all()
    uv = CAMERA.project(torch.from_numpy(points[0, 0])[None])[0]
    assert uv.tolist() == pytest.approx([10.5, 5.5], abs=0.2)  # P[2,3] is 3 mm
    assert points[2, 1, 2] == 40


def layers(*parts: tuple[float, int], spread: float = 0.01) -> Floats:
    """Points at depths, with counts."""
    rng = np.random.default_rng(0)
    z = np.concatenate([z * np.exp(spread * rng.standard_normal(n)) for z, n in parts])
    return np.stack([rng.uniform(-1, 1, len(z)), np.zeros(len(z)), z], -1)


def test_nearest_mode_of_two_layers() -> None:
    found = nearest_mode(layers((12, 300), (25, 700)), 3.0)
    assert len(found) == 300
    assert found[:, 2].max() < 13
    # a few pixels of something in front are not the object
    found = nearest_mode(layers((5, 40), (12, 300), (25, 300)), 3.0)
    assert found[:, 2].min() > 10
    assert found[:, 2].max() < 14
    # nothing holds a quarter: the densest
    found = nearest_mode(layers((5, 20), (8, 20), (12, 24), (18, 20), (27, 20), (40, 20)), 1.0)
    assert np.median(found[:, 2]) == pytest.approx(12, rel=0.05)


def test_nearest_mode_keeps_what_is_within_reach() -> None:
    points = layers((10, 200), (12.5, 200), spread=0.001)
    assert len(nearest_mode(points, 1.0)) == 200
    assert len(nearest_mode(points, 4.0)) == 400


def test_scale_factor() -> None:
    assert scale_factor([1.2, 1.2]) == 1  # too few
    assert scale_factor([1.2, 1.2, 1.2]) == pytest.approx(1.1)  # half of it
    assert scale_factor([1.0, 1.1, 9.0]) == pytest.approx(1.05)  # the median
    assert scale_factor([5.0] * 4) == pytest.approx(1.125)
    assert scale_factor([0.1] * 4) == pytest.approx(0.9)


def test_fuse_by_hand() -> None:
    """Equal errors: weights 1 / z^2; a depth that is certain prevails."""
    assert fuse(10, 0.05, 10, 0.3) == pytest.approx(10)
    assert fuse(10, 0.05, 20, 0.05) == pytest.approx((10 / 100 + 20 / 400) / (1 / 100 + 1 / 400))
    assert fuse(10, 1e-6, 20, 0.1) == pytest.approx(10, rel=1e-6)


def test_geometric_depth_by_hand() -> None:
    """f H / h2d + e: 100 px of a car's 1.53 m."""
    box = np.array([300.0, 50, 360, 150])
    assert box_depth(box, CAR, P, 1.0) == pytest.approx(P[1, 1] * 1.53 / 100 + 1)
    # without e: its mean over all yaws, (l + w) / pi
    yaws = np.linspace(0, math.pi, 20001)
    mean = np.mean(0.5 * (3.88 * np.abs(np.sin(yaws)) + 1.63 * np.abs(np.cos(yaws))))
    assert box_depth(box, CAR, P) == pytest.approx(P[1, 1] * 1.53 / 100 + mean, rel=1e-4)
