"""Image, camera, boxes and depth move together: what is seen at a pixel stays what projects to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou

from skd_core.boxes import Boxes2D, Boxes3D
from skd_core.camera import Camera
from skd_core.data.kitti import KittiDataset
from skd_core.data.sample import Sample
from skd_core.data.transforms import crop, flip, jitter_colors, resize, resize_depth, resize_image

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}")

CAMERA = Camera(torch.tensor([[150.0, 0, 70, 9], [0, 160, 40, 0.3], [0, 0, 1, 0.01]], dtype=torch.float64), 150, 90)


def truth() -> Boxes3D:
    center = torch.tensor([[0.0, 1, 15], [-3, 0.5, 12], [4, 1, 25]], dtype=torch.float64)
    size = torch.tensor([[4.0, 1.6, 1.5], [0.8, 0.6, 1.8], [4.2, 1.7, 1.6]], dtype=torch.float64)
    boxes = Boxes3D(center, size, torch.tensor([0.3, -1.2, 2.5], dtype=torch.float64), ("Car", "Pedestrian", "Car"))
    return replace(boxes, xyxy=boxes.project(CAMERA).xyxy)


def make_sample() -> Sample:
    """A smooth picture whose depth map and 2D boxes are those of its camera and 3D boxes."""
    v, u = torch.meshgrid(torch.arange(90.0), torch.arange(150.0), indexing="ij")
    image = torch.stack([u, v * 2, 128 + 60 * torch.sin(u / 20)]).to(torch.uint8)
    depth = 5 + u * 0.1 + v * 0.05
    depth[:10] = 0
    boxes3d = truth()
    ignore = Boxes2D(torch.tensor([[5.0, 5, 25, 15]], dtype=torch.float64), ("DontCare",))
    return Sample("a", image, CAMERA, Boxes2D(boxes3d.xyxy, boxes3d.labels), ignore, depth, boxes3d)


def check_boxes(sample: Sample) -> None:
    """The 2D boxes, of both kinds, are the projections of the 3D boxes in the sample's own camera."""
    assert sample.boxes3d is not None
    projected = sample.boxes3d.project(sample.camera).xyxy
    torch.testing.assert_close(sample.boxes2d.xyxy, projected, rtol=0, atol=1e-6)
    torch.testing.assert_close(sample.boxes3d.xyxy, projected, rtol=0, atol=1e-6)
    assert sample.boxes2d.labels == sample.boxes3d.labels


TRANSFORMS: dict[str, Callable[[Sample], Sample]] = {
    "resize up": lambda s: resize(s, 300, 270),
    "resize down": lambda s: resize(s, 75, 30),
    "crop": lambda s: crop(s, 13, 7, 101, 61, min_visible=0),
    "crop with a border": lambda s: crop(s, -20, -9, 200, 120, min_visible=0),
    "flip": flip,
    "all": lambda s: flip(crop(resize(s, 200, 120), 30, 10, 150, 100, min_visible=0)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_boxes_follow_the_camera(name: str) -> None:
    check_boxes(TRANSFORMS[name](make_sample()))


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("xyz", [(-2.0, 0.4, 12.0), (1.7, -1.1, 14.0), (0.0, 0.0, 20.0)])
def test_a_point_is_seen_where_it_projects_to(name: str, xyz: tuple[float, float, float]) -> None:
    """A light painted at a point's projection is, after the change, at its projection in the changed camera."""
    sample = make_sample()
    point = torch.tensor([xyz], dtype=torch.float64)
    u, v = (float(x) for x in sample.camera.project(point)[0])
    rows, columns = torch.arange(90.0) + 0.5, torch.arange(150.0) + 0.5  # pixel centres
    blob = torch.exp(-((columns[None] - u) ** 2 + (rows[:, None] - v) ** 2) / (2 * 4**2))
    sample.image = (255 * blob).to(torch.uint8).expand(3, -1, -1)
    changed = TRANSFORMS[name](sample)
    if "flip" in name or name == "all":
        point = point * torch.tensor([-1.0, 1, 1], dtype=torch.float64)
    weight = changed.image[0].double()
    height, width = weight.shape
    seen_u = float((weight * (torch.arange(width) + 0.5)).sum() / weight.sum())
    seen_v = float((weight * (torch.arange(height)[:, None] + 0.5)).sum() / weight.sum())
    expected = changed.camera.project(point)[0].tolist()
    assert [seen_u, seen_v] == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_depth_follows_and_keeps_its_values(name: str) -> None:
    sample = make_sample()
    changed = TRANSFORMS[name](sample)
    assert changed.depth is not None
    assert sample.depth is not None
    assert changed.depth.shape == changed.image.shape[1:]
    assert set(changed.depth.unique().tolist()) <= set(sample.depth.unique().tolist()) | {0.0}
    # the picture's red channel is the column u, so depth = 5 + .1 u + .05 v must hold wherever both are known
    known = changed.depth > 0
    red, green = changed.image[0].double(), changed.image[1].double() / 2
    error = (changed.depth - (5 + red * 0.1 + green * 0.05)).abs()[known]
    assert float(error.max()) < 0.25


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_given_sample_stays_as_it_is(name: str) -> None:
    sample, untouched = make_sample(), make_sample()
    TRANSFORMS[name](sample)
    assert sample.image.equal(untouched.image)
    assert sample.camera.P.equal(untouched.camera.P)
    assert sample.boxes2d.xyxy.equal(untouched.boxes2d.xyxy)
    assert sample.ignore.xyxy.equal(untouched.ignore.xyxy)
    assert sample.depth is not None
    assert untouched.depth is not None
    assert sample.depth.equal(untouched.depth)
    assert sample.boxes3d is not None
    assert sample.boxes3d.center.equal(truth().center)


def test_flip_twice_is_the_identity() -> None:
    sample = make_sample()
    twice = flip(flip(sample))
    assert twice.image.equal(sample.image)
    torch.testing.assert_close(twice.camera.P, sample.camera.P, rtol=0, atol=1e-9)
    torch.testing.assert_close(twice.boxes2d.xyxy, sample.boxes2d.xyxy, rtol=0, atol=1e-9)
    torch.testing.assert_close(twice.ignore.xyxy, sample.ignore.xyxy, rtol=0, atol=1e-9)
    assert twice.depth is not None
    assert sample.depth is not None
    assert twice.depth.equal(sample.depth)
    assert twice.boxes3d is not None
    torch.testing.assert_close(twice.boxes3d.corners, truth().corners, rtol=0, atol=1e-9)


def test_transforms_of_a_sample_with_nothing_but_an_image() -> None:
    made = make_sample()
    sample = Sample(made.name, made.image, made.camera, Boxes2D.empty(), Boxes2D.empty())
    for transform in TRANSFORMS.values():
        changed = transform(sample)
        assert len(changed.boxes2d) == len(changed.ignore) == 0
        assert changed.depth is None
        assert changed.boxes3d is None


# -- resize -----------------------------------------------------------------------------------------------------------
def test_resize_is_antialiased() -> None:
    checkers = ((torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255).to(torch.uint8).expand(3, -1, -1)
    small = resize_image(checkers, 16, 16)
    assert small.dtype == torch.uint8
    assert int((small.int() - 128).abs().max()) <= 2  # without antialiasing some pixels would be black or white


def test_resize_agrees_with_pillow() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 150, 3), np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    for width, height in ((75, 45), (64, 90), (300, 200)):
        theirs = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)).astype(int)
        ours = resize_image(image, width, height).permute(1, 2, 0).numpy()
        assert np.abs(ours - theirs).max() <= 1


def test_resize_to_the_same_size_changes_nothing_and_batches_work() -> None:
    images = torch.randint(0, 256, (2, 3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert resize_image(images, 30, 20).equal(images)
    assert resize_image(images, 15, 10)[1].equal(resize_image(images[1], 15, 10))


def test_depth_is_not_mixed_across_an_edge() -> None:
    depth = torch.tensor([[10.0, 10, 50, 50], [10, 10, 50, 0]])
    assert resize_depth(depth, 8, 4).unique().tolist() == [0, 10, 50]
    assert resize_depth(depth, 2, 1).shape == (1, 2)
    # each new pixel takes the old one its centre lies in
    assert resize_depth(depth, 8, 2)[0].tolist() == [10, 10, 10, 10, 50, 50, 50, 50]
    assert resize_depth(torch.arange(6.0)[None], 2, 1).tolist() == [[1, 4]]


def test_ignored_regions_follow() -> None:
    sample = make_sample()  # one region, 5 5 25 15, in an image of 150x90
    assert resize(sample, 300, 270).ignore.xyxy.tolist() == [[10, 15, 50, 45]]
    assert flip(sample).ignore.xyxy.tolist() == [[125, 5, 145, 15]]
    assert crop(sample, 10, 7, 100, 80).ignore.xyxy.tolist() == [[0, 0, 15, 8]]


# -- crop -------------------------------------------------------------------------------------------------------------
def with_boxes(*xyxy: list[float]) -> Sample:
    boxes = Boxes2D(torch.tensor(xyxy), tuple("abcdefg"[: len(xyxy)]), torch.linspace(0.1, 0.9, len(xyxy)))
    return replace(make_sample(), boxes2d=boxes, boxes3d=None, full_xyxy=None, hidden=None)


def test_crop_keeps_ignores_or_drops() -> None:
    sample = with_boxes([10, 10, 30, 30], [40, 10, 60, 30], [42, 10, 62, 30], [120, 10, 140, 30])
    cropped = crop(sample, 0, 0, 45, 90, min_visible=0.25)
    # a whole, b 5/20 visible = kept at exactly the limit, c 3/20 = ignored, d outside = gone
    assert cropped.boxes2d.labels == ("a", "b")
    assert cropped.boxes2d.xyxy.tolist() == [[10, 10, 30, 30], [40, 10, 45, 30]]
    assert cropped.ignore.labels == ("DontCare", "c")
    assert cropped.ignore.xyxy[1].tolist() == [42, 10, 45, 30]
    assert cropped.boxes2d.scores.tolist() == pytest.approx(sample.boxes2d.scores[:2].tolist())


def test_crop_drops_ignored_regions_outside() -> None:
    cropped = crop(with_boxes([100, 10, 120, 30]), 50, 0, 100, 90)
    assert cropped.ignore.labels == ()
    assert cropped.boxes2d.xyxy.tolist() == [[50, 10, 70, 30]]


def test_crop_keeps_the_3d_truth_of_the_same_objects() -> None:
    sample = make_sample()
    cropped = crop(sample, 0, 0, 60, 90)
    assert cropped.boxes3d is not None
    assert cropped.boxes3d.labels == cropped.boxes2d.labels != sample.boxes2d.labels
    check_boxes(cropped)


def test_a_border_is_black_without_depth() -> None:
    sample = make_sample()
    wide = crop(sample, -5, -3, 170, 100)
    assert wide.image.shape == (3, 100, 170)
    assert wide.image[:, 3:93, 5:155].equal(sample.image)
    assert wide.depth is not None
    for pixels in (wide.image, wide.depth):
        assert not pixels[..., :3, :].any()
        assert not pixels[..., 93:, :].any()
        assert not pixels[..., :5].any()
        assert not pixels[..., 155:].any()
    nothing = crop(sample, 500, 0, 20, 20)
    assert not nothing.image.any()
    assert len(nothing.boxes2d) == len(nothing.ignore) == 0


@settings(max_examples=30)
@given(st.integers(-40, 100), st.integers(-40, 60), st.integers(1, 200), st.integers(1, 120))
def test_a_crop_is_a_window(x0: int, y0: int, width: int, height: int) -> None:
    sample = make_sample()
    cropped = crop(sample, x0, y0, width, height)
    for u, v in ((0, 0), (width - 1, height - 1), (width // 2, height // 2)):
        inside = 0 <= u + x0 < 150 and 0 <= v + y0 < 90
        expected = sample.image[:, v + y0, u + x0] if inside else torch.zeros(3, dtype=torch.uint8)
        assert cropped.image[:, v, u].equal(expected)


# -- colours ----------------------------------------------------------------------------------------------------------
def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_colour_jitter_is_seeded_and_touches_the_image_only() -> None:
    sample = make_sample()
    one, same, other = (jitter_colors(sample, seeded(seed)) for seed in (1, 1, 2))
    assert one.image.equal(same.image)
    assert not one.image.equal(other.image)
    assert one.image.dtype == torch.uint8
    assert one.camera is sample.camera
    assert one.boxes2d is sample.boxes2d
    assert one.depth is sample.depth
    assert sample.image.equal(make_sample().image)


def test_colour_jitter_of_no_strength_changes_nothing() -> None:
    sample = make_sample()
    difference = jitter_colors(sample, seeded(0), 0, 0, 0).image.int() - sample.image.int()
    assert int(difference.abs().max()) <= 1


def test_colour_jitter_spreads_over_its_range() -> None:
    grey = replace(make_sample(), image=torch.full((3, 90, 150), 100, dtype=torch.uint8))
    means = [float(jitter_colors(grey, seeded(s), 0.3, 0, 0).image.float().mean()) for s in range(60)]
    assert 70 <= min(means) < 80
    assert 120 < max(means) <= 130


# -- real frames ------------------------------------------------------------------------------------------------------
@needs_data
def test_real_boxes_still_project_to_their_labels_after_all_transforms() -> None:
    """KITTI's 2D labels are projections of its 3D labels to .97 IoU; whatever we do to a frame, that stays."""
    dataset = KittiDataset(DATA / "kitti_dev", "dev", with_3d=True)

    def agreement(sample: Sample) -> list[float]:
        assert sample.boxes3d is not None
        projected = sample.boxes3d.project(sample.camera).xyxy
        return box_iou(projected, sample.boxes2d.xyxy).diagonal()[_cars(sample)].tolist()

    before, after = [], []
    for i in range(0, len(dataset), 4):
        sample = dataset[i]
        before += agreement(sample)
        after += agreement(flip(crop(resize(sample, 960, 256), 10, 5, 940, 251, min_visible=0)))
    assert sum(before) / len(before) > 0.96
    assert sum(after) / len(after) == pytest.approx(sum(before) / len(before), abs=0.01)
    assert math.isclose(len(before), len(after))


def _cars(sample: Sample) -> Tensor:
    return torch.tensor([label == "Car" for label in sample.boxes2d.labels], dtype=torch.bool)
