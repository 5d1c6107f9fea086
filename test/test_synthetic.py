"""The rendered street scenes: their geometry, their labels, their depth maps, and the data set on disk."""

from __future__ import annotations

import hashlib
import math
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from skd_core import cli
from skd_core.boxes import rotation_matrix
from skd_core.data.kitti import read_objects
from skd_core.errors import UserError
from skd_core.supervision.depth import check_kind
from skd_core.synthetic import (
    DepthNoise,
    RenderedFrame,
    SynthConfig,
    estimate_depth,
    meshes,
    render_frame,
    write_dataset,
)
from skd_core.synthetic.objects import CAR_SHAPES, SIZE_PRIORS, Thing, Wardrobe
from skd_core.synthetic.render import generator, render_scene
from skd_core.synthetic.world import NOWHERE, Ground, Lens, Light, Road, Scene

LAYOUTS = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "kitti_layouts" / "label_2"
SMALL = SynthConfig(320, 96)
CAR_SIZE = np.array([3.9, 1.6, 1.5])


def car(x: float, z: float, heading: float = 0.0, family: str = "sedan", lift: float = 0.0) -> Thing:
    """A car at (x, z) before the camera; heading 0 drives away from it."""
    return Thing("Car", meshes.car(family), CAR_SIZE, z, x, heading, np.full((8, 3), 0.3), 7, lift)


def scene(*things: Thing) -> Scene:
    """Things on an endless flat road under an overcast sky, the camera 1.65 m above the origin."""
    road = Road(50.0, 2.0, 0.0, 3.0, 0.3, NOWHERE, 5.0, zebra=False, grass=True, seed=1)
    light = Light((0.0, -1.0, 0.0), 0.1, 1.0, 500.0, 0.5, (0.7, 0.7, 0.7), (0.6, 0.6, 0.6))
    return Scene(
        list(things), road, Ground(1.65, 0.0, 0.0, 0.0, 0.1), light, Lens((1.0, 1.0, 1.0), 0.1, 2.0), speed=10.0
    )


def render(*things: Thing, config: SynthConfig | None = None, time: float = 0.0) -> RenderedFrame:
    return render_scene(config or SynthConfig(), scene(*things), generator(0), time)


def points_in_box(frame: RenderedFrame, index: int) -> np.ndarray:
    """Object ``index``'s pixels in its box's own axes, shape (M, 3), metres from the volume centre."""
    v, u = np.nonzero(frame.object_ids == index)
    uv = torch.tensor(np.stack([u + 0.5, v + 0.5], -1))
    xyz = frame.camera.unproject(uv, torch.tensor(frame.depth_true[v, u]))
    boxes = frame.boxes3d
    return ((xyz - boxes.center[index]) @ rotation_matrix(boxes.yaw)[index]).numpy()


# -- geometry ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", sorted(meshes.CAR_PROFILES) + sorted(meshes.VAN_PROFILES))
def test_a_body_touches_all_six_faces_of_its_box_and_is_symmetric(family: str) -> None:
    size = np.array([4.4, 1.7, 1.6])
    vertices = meshes.car(family).fit(size)
    np.testing.assert_allclose(vertices.min(0), -size / 2, atol=1e-12)
    np.testing.assert_allclose(vertices.max(0), size / 2, atol=1e-12)
    mirrored = vertices * [1, -1, 1]
    distances = np.linalg.norm(vertices[:, None] - mirrored[None], axis=-1).min(1)
    assert distances.max() < 1e-9


@pytest.mark.parametrize(
    "template",
    [meshes.truck(k) for k in ("box truck", "flatbed", "tram", "trailer")]
    + [meshes.pedestrian(k, k == 1) for k in range(4)]
    + [meshes.cyclist(k) for k in range(4)],
)
def test_other_road_users_touch_all_six_faces(template: meshes.Template) -> None:
    size = np.array([1.1, 0.8, 1.7])
    vertices = template.fit(size)
    np.testing.assert_allclose([vertices.min(0), vertices.max(0)], [-size / 2, size / 2], atol=1e-12)


def test_wheels_stay_round_on_a_longer_car() -> None:
    template = meshes.car("sedan")
    wheel = np.flatnonzero(np.abs(template.offset).sum(1) > 0)[:14]  # one tyre's outer ring
    for length in (3.0, 5.0):
        vertices = (template.base * [length, 1.7, 1.5] + template.offset)[wheel]
        spread = vertices.max(0) - vertices.min(0)
        assert spread[0] == pytest.approx(0.62, abs=1e-6)
        assert spread[2] == pytest.approx(spread[0], abs=0.02)  # 14 corners: not quite a circle


@pytest.mark.parametrize("frame", range(4))
def test_every_pixel_of_an_object_lies_inside_its_box(frame: int) -> None:
    rendered = render_frame(SynthConfig(shapes="all"), 11, frame)
    assert len(rendered.boxes3d) > 0
    for i in range(len(rendered.boxes3d)):
        points = points_in_box(rendered, i)
        assert len(points) > 0
        assert np.abs(points / (0.5 * rendered.boxes3d.size[i].numpy() + 0.005)).max() <= 1


@pytest.mark.parametrize("frame", range(4))
def test_pixels_lie_inside_the_projected_box(frame: int) -> None:
    rendered = render_frame(SMALL, 12, frame)
    projected = rendered.boxes3d.project(rendered.camera).xyxy
    torch.testing.assert_close(projected, rendered.boxes2d.xyxy)
    for i, (x1, y1, x2, y2) in enumerate(projected.tolist()):
        v, u = np.nonzero(rendered.object_ids == i)
        assert u.min() + 0.5 >= x1
        assert u.max() + 0.5 <= x2
        assert v.min() + 0.5 >= y1
        assert v.max() + 0.5 <= y2


@pytest.mark.parametrize("heading", np.linspace(-math.pi, math.pi, 7)[:-1])
def test_tight_and_amodal_boxes_of_a_lone_car_agree(heading: float) -> None:
    tight = render(car(1.5, 12.0, heading), config=SynthConfig(boxes="tight")).boxes2d.xyxy[0]
    amodal = render(car(1.5, 12.0, heading)).boxes2d.xyxy[0]
    assert (tight[:2] - amodal[:2]).min() >= -0.5
    assert (tight[2:] - amodal[2:]).max() <= 0.5
    area = float((tight[2:] - tight[:2]).prod() / (amodal[2:] - amodal[:2]).prod())
    assert area > 0.80


def test_a_car_straight_ahead_by_hand() -> None:
    """Camera 1.65 m up; a 1.6 m wide car seen from behind, its rear face at 20 - 3.9/2 = 18.05 m."""
    frame = render(car(0.0, 20.0))
    fx, fy = frame.camera.fx, frame.camera.fy
    box, y = frame.boxes2d.xyxy[0], frame.boxes3d.center[0, 1]
    assert float(frame.boxes3d.yaw[0]) == pytest.approx(-math.pi / 2)  # drives away: heading (0, 0, 1)
    assert float(y) == pytest.approx(1.65 - 0.75)
    assert float(box[2] - box[0]) == pytest.approx(1.6 * fx / (18.05 + 0.002745884), rel=1e-6)
    assert float(box[3] - frame.camera.cy) == pytest.approx((1.65 * fy) / 18.05, abs=0.1)
    depths = frame.depth_true[frame.object_ids == 0]
    assert 18.05 <= depths.min() < 18.2
    assert depths.max() <= 21.95


def test_ground_and_sky_depth_by_hand() -> None:
    frame = render()
    row = 150
    expected = 1.65 * frame.camera.fy / (row + 0.5 - frame.camera.cy)
    assert frame.depth_true[row, 300] == pytest.approx(expected, rel=5e-3)  # P's fourth column shifts it slightly
    v, u = np.mgrid[120:192:7, 0:640:31]
    uv = torch.tensor(np.stack([u + 0.5, v + 0.5], -1).reshape(-1, 2), dtype=torch.float64)
    points = frame.camera.unproject(uv, torch.tensor(frame.depth_true[v, u].reshape(-1)))
    torch.testing.assert_close(points[:, 1], torch.full_like(points[:, 1], 1.65), atol=1e-6, rtol=0)
    assert (frame.depth_true[:20] == 0).all()
    assert (frame.depth[:20] == 0).all()


def test_heading_is_visible() -> None:
    """The same place, driving away or towards the camera: another picture, yaw half a turn apart."""
    away, towards = render(car(0.0, 10.0)), render(car(0.0, 10.0, math.pi))
    assert abs(float(away.boxes3d.yaw[0] - towards.boxes3d.yaw[0])) == pytest.approx(math.pi)
    both = (away.object_ids == 0) & (towards.object_ids == 0)
    red = lambda f: (f.image[..., 0].astype(int) - f.image[..., 2])[both]  # noqa: E731
    assert (red(away) > 60).sum() > 20  # tail lamps
    assert (red(towards) > 60).sum() == 0


def test_camera_follows_kitti_without_distortion() -> None:
    for width, height in ((640, 192), (1242, 375), (320, 96), (512, 512), (1280, 384)):
        camera = SynthConfig(width, height).camera
        assert camera.fx / camera.fy == pytest.approx(1, abs=0.005)
        baseline = (
            float(camera.P[0, 3]) - camera.cx * float(camera.P[2, 3])
        ) / camera.fx  # metres, to the frame's origin
        assert baseline == pytest.approx((44.85728 - 609.5593 * 0.002745884) / 721.5377, rel=1e-9)
    torch.testing.assert_close(
        SynthConfig(1242, 375).camera.P[0], torch.tensor([721.5377, 0, 609.5593, 44.85728], dtype=torch.float64)
    )


# -- labels -----------------------------------------------------------------------------------------------------------
def test_the_nearer_car_hides_the_farther() -> None:
    near, far = car(0.0, 12.0), car(0.9, 24.0)
    frame, alone = render(near, far), render(far)
    by_depth = np.argsort(frame.boxes3d.center[:, 2].numpy())
    assert frame.visible[by_depth[0]] == 1.0
    assert frame.occlusion[by_depth[0]] == 0
    assert 0.1 < frame.visible[by_depth[1]] < 0.8
    assert frame.occlusion[by_depth[1]] > 0
    assert alone.visible[0] == 1.0
    shown = (frame.object_ids == by_depth[1]).sum() / (alone.object_ids == 0).sum()
    assert frame.visible[by_depth[1]] == pytest.approx(shown)


def test_a_hidden_object_becomes_dont_care() -> None:
    van = car(0.0, 8.0, family="panel van")
    van.label, van.size = "Van", np.array([5.0, 1.9, 2.3])
    frame = render(van, car(0.0, 40.0))
    assert frame.boxes3d.labels == ("Van",)
    assert frame.dont_care.labels == ("DontCare",)


def test_smooth_normals_leave_flat_faces_flat() -> None:
    building = meshes.prop("building")
    flat = np.cross(
        *(building.base[building.faces][:, [1, 2]] - building.base[building.faces][:, :1]).transpose(1, 0, 2)
    )
    flat /= np.linalg.norm(flat, axis=-1, keepdims=True)
    unit = building.normals / np.linalg.norm(building.normals, axis=-1, keepdims=True)
    np.testing.assert_allclose(np.abs(np.einsum("fcx,fx->fc", unit, flat)), 1, atol=1e-12)
    assert np.linalg.norm(meshes.car("sedan").normals, axis=-1).min() > 0


def test_order_of_things_does_not_matter() -> None:
    a, b = render(car(0.0, 12.0), car(0.9, 24.0)), render(car(0.9, 24.0), car(0.0, 12.0))
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.depth_true, b.depth_true)


def test_truncation_grows_towards_the_border() -> None:
    values = [float(render(car(x, 8.0)).truncation[0]) for x in (0.0, 5.0, 6.0, 7.0)]
    assert values[0] == 0.0
    assert values == sorted(values)
    assert values[2] > 0
    # A far car centred on the ray of the left border is half outside.
    camera = SynthConfig().camera
    x = float(
        camera.unproject(torch.tensor([[0.0, 90.0]], dtype=torch.float64), torch.tensor([60.0], dtype=torch.float64))[
            0, 0
        ]
    )
    assert render(car(x, 60.0, heading=math.pi / 2)).truncation[0] == pytest.approx(0.5, abs=0.05)


def test_things_behind_the_camera_are_not_labelled() -> None:
    assert len(render(car(0.0, -10.0)).boxes3d) == 0
    assert len(render(car(40.0, 10.0)).boxes3d) == 0


def test_a_car_beside_the_camera_is_clipped_at_the_near_plane() -> None:
    frame = render(car(2.2, 1.5))
    assert frame.depth_true[frame.depth_true > 0].min() >= 0.2
    assert np.isfinite(frame.boxes2d.xyxy.numpy()).all()
    assert (frame.truncation > 0.5).all()


@pytest.mark.parametrize("shapes", ["train", "heldout", "all"])
@pytest.mark.parametrize("label", sorted(SIZE_PRIORS))
def test_sizes_follow_the_priors(label: str, shapes: str) -> None:
    wardrobe = Wardrobe(generator(4), shapes)  # type: ignore[arg-type]
    sizes = np.array([wardrobe.road_user(label)[1] for _ in range(3000)])
    mean, sd = (np.array(v) for v in SIZE_PRIORS[label])
    assert np.abs((sizes.mean(0) - mean) / sd).max() < 0.12
    assert np.abs(sizes.std(0) / sd - 1).max() < 0.12
    assert sizes.min() > 0


def test_held_out_shapes_are_others() -> None:
    assert not set(CAR_SHAPES["train"]) & set(CAR_SHAPES["heldout"])
    draw = lambda shapes: {id(Wardrobe(generator(k), shapes).road_user("Car")[0]) for k in range(60)}  # noqa: E731
    train, heldout = draw("train"), draw("heldout")
    assert len(train) == 4
    assert len(heldout) == 4
    assert not train & heldout


def test_a_set_holds_all_classes_yaws_and_ranges() -> None:
    frames = [render_frame(SMALL, 5, k) for k in range(40)]
    labels = {label for f in frames for label in f.boxes3d.labels}
    assert labels == set(SIZE_PRIORS)
    yaw = torch.cat([f.boxes3d.yaw for f in frames]).numpy()
    assert (np.histogram(yaw, 8, (-math.pi, math.pi))[0] > 0).all()
    z = torch.cat([f.boxes3d.center[:, 2] for f in frames]).numpy()
    assert np.quantile(z, 0.05) < 12
    assert np.quantile(z, 0.95) > 45
    assert {0, 1, 2} <= {int(o) for f in frames for o in f.occlusion}
    assert any((f.truncation > 0.1).any() for f in frames)


# -- the simulated depth estimator -----------------------------------------------
def log_error(depth: float, noise: DepthNoise, repeats: int = 60, visible: float | None = None) -> np.ndarray:
    """log(estimate / true) of a constant map, shape (repeats, 48, 160)."""
    true, rng = np.full((48, 160), depth), generator(1)
    ids = np.full(true.shape, -1 if visible is None else 0, np.int32)
    share = np.array([] if visible is None else [visible])
    return np.stack([np.log(estimate_depth(true, ids, share, noise, rng) / true) for _ in range(repeats)])


@pytest.mark.parametrize("level", [0.03, 0.06, 0.12])
def test_depth_noise_has_the_level_asked_for(level: float) -> None:
    errors = log_error(20.0, DepthNoise(level), 300, visible=1.0)
    assert float(np.sqrt(np.square(errors).mean())) == pytest.approx(level, rel=0.15)
    assert abs(float(errors.mean())) < 0.2 * level


def test_depth_noise_is_smooth_and_shared_by_the_image() -> None:
    errors = log_error(20.0, DepthNoise(0.06))
    assert errors.mean((1, 2)).std() > errors.std((1, 2)).mean()  # most of it is one scale per image
    assert np.abs(np.diff(errors, axis=2)).max() < 0.02


def test_depth_noise_grows_with_range_and_under_occlusion() -> None:
    spread = lambda z, visible=None: float(log_error(z, DepthNoise(0.06, image_share=0.0), 200, visible).std())  # noqa: E731
    assert spread(60.0) > 1.3 * spread(10.0)
    assert spread(20.0, 0.2) > 1.3 * spread(20.0, 1.0)


def test_depth_bleeds_over_outlines_only() -> None:
    true = np.full((32, 64), 40.0)
    true[:, 32:] = 10.0
    estimate = estimate_depth(true, np.full(true.shape, -1, np.int32), np.zeros(0), DepthNoise(1e-9), generator(0))
    assert np.allclose(estimate[:, :31], 40, rtol=1e-6)
    assert np.allclose(estimate[:, 33:], 10, rtol=1e-6)
    assert ((estimate[:, 31:33] > 10.5) & (estimate[:, 31:33] < 39.5)).all()


def test_no_noise_is_the_true_depth() -> None:
    frame = render_frame(SynthConfig(320, 96, depth_noise=DepthNoise(0.0)), 3, 0)
    np.testing.assert_array_equal(frame.depth, frame.depth_true)


def test_the_level_changes_nothing_but_the_estimate() -> None:
    a, b = (render_frame(SynthConfig(320, 96, depth_noise=DepthNoise(level)), 3, 1) for level in (0.0, 0.2))
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.depth_true, b.depth_true)
    assert ((a.depth == 0) == (b.depth == 0)).all()
    assert not np.allclose(a.depth, b.depth)


# -- sequences and layouts -----------------------------------------------
def test_a_drive_moves_the_world_past_the_camera() -> None:
    parked, lead = car(3.0, 30.0), car(0.0, 20.0)
    lead.speed = 10.0  # the ego's
    for time, z in ((0.0, 30.0), (0.5, 25.0), (1.0, 20.0)):
        boxes = render(parked, lead, time=time).boxes3d
        np.testing.assert_allclose(sorted(boxes.center[:, 2].tolist()), sorted([z, 20.0]), atol=1e-9)


def test_a_walker_stops_where_its_way_ends() -> None:
    walker = car(0.0, 20.0, math.pi / 2)
    walker.speed, walker.reach = 1.0, 3.0
    assert [walker.at(time)[1] for time in (1.0, 3.0, 9.0)] == pytest.approx([1.0, 3.0, 3.0])


def test_nothing_is_in_the_way_of_a_drive() -> None:
    """Over a whole drive no road user comes closer than 1.5 m ahead in the ego's lane."""
    for frame in range(0, 600, 15):
        boxes = render_frame(SynthConfig(64, 32, sequence=True), 6, frame).boxes3d
        near = boxes.center[:, 0].abs() < 1.0
        assert (boxes.center[near, 2] - 0.5 * boxes.size[near, 0] > 1.5).all()


def test_a_turning_car_turns() -> None:
    thing = car(0.0, 20.0)
    thing.speed, thing.turn = 5.0, 0.4
    s, t, heading = thing.at(1.0)
    radius = 5.0 / 0.4
    assert heading == pytest.approx(0.4)
    assert (s - 20.0, t) == (
        pytest.approx(radius * math.sin(0.4), abs=0.05),
        pytest.approx(radius * (1 - math.cos(0.4)), abs=0.05),
    )


def test_consecutive_frames_show_the_same_street() -> None:
    config = SynthConfig(320, 96, sequence=True)
    a, b, other = render_frame(config, 2, 10), render_frame(config, 2, 11), render_frame(config, 3, 11)
    change = lambda p, q: float(np.abs(p.image.astype(int) - q.image).mean())  # noqa: E731
    assert change(a, b) < 0.5 * change(b, other)
    with pytest.raises(UserError, match="drive has 600 frames"):
        render_frame(config, 2, 600)


LABELS = """Car 0.00 0 1.0 0 0 1 1 1.52 1.61 3.91 -2.5 1.70 14.2 1.57
DontCare -1 -1 -10 0 0 1 1 -1 -1 -1 -1000 -1000 -1000 -10
Pedestrian 0.00 0 1.0 0 0 1 1 1.80 0.60 0.90 3.1 1.62 11.0 -0.3
Truck 0.00 0 1.0 0 0 1 1 3.2 2.5 8.0 1.0 1.55 41.0 -1.5
"""


def test_layouts_put_objects_where_the_labels_have_them(tmp_path: Path) -> None:
    (tmp_path / "000007.txt").write_text(LABELS)
    frame = render_frame(SynthConfig(layouts=tmp_path), 0, 0)
    boxes = frame.boxes3d
    assert sorted(boxes.labels) == ["Car", "Pedestrian", "Truck"]
    i = boxes.labels.index("Car")
    np.testing.assert_allclose(boxes.bottom[i], [-2.5, 1.70, 14.2], atol=1e-12)
    np.testing.assert_allclose(boxes.dimensions_hwl[i], [1.52, 1.61, 3.91], atol=1e-12)
    assert float(boxes.yaw[i]) == pytest.approx(1.57, abs=1e-9)


def test_every_layout_is_used_once_a_round(tmp_path: Path) -> None:
    for k in range(5):
        (tmp_path / f"{k}.txt").write_text(f"Car 0 0 0 0 0 1 1 1.5 1.6 3.9 0 1.65 {10 + 5 * k} 0\n")
    config = SynthConfig(320, 96, layouts=tmp_path)
    depths = [round(float(render_frame(config, 0, n).boxes3d.center[0, 2])) for n in range(10)]
    assert sorted(depths[:5]) == sorted(depths[5:]) == [10, 15, 20, 25, 30]
    assert depths[:5] != depths[5:]


@pytest.mark.skipif(not LAYOUTS.is_dir(), reason=f"no real KITTI labels at {LAYOUTS}")
def test_real_layouts_render() -> None:
    config = SynthConfig(320, 96, layouts=LAYOUTS)
    frames = [render_frame(config, 1, n) for n in range(25)]
    assert sum(len(f.boxes3d) for f in frames) > 50
    for frame in frames:
        for i in range(len(frame.boxes3d)):
            points = points_in_box(frame, i)
            assert np.abs(points / (0.5 * frame.boxes3d.size[i].numpy() + 0.005)).max() <= 1


# -- the data set on disk -----------------------------------------------
def digest(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


def test_frames_depend_neither_on_their_number_nor_on_the_workers(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", SMALL, 4, seed=9)
    write_dataset(tmp_path / "b", SMALL, 2, seed=9, workers=2)
    write_dataset(tmp_path / "c", SMALL, 2, seed=10)
    a, b, c = (digest(tmp_path / name) for name in "abc")
    assert len(b) == 2 * 5 + 2
    shared = [name for name in b if name.startswith("training")]
    assert all(a[name] == b[name] for name in shared)
    assert a["training/image_2/000000.png"] != c["training/image_2/000000.png"]
    assert a["training/image_2/000000.png"] != a["training/image_2/000001.png"]


def test_files_say_what_was_rendered(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", SMALL, 2, seed=21)
    training = tmp_path / "set" / "training"
    frame = render_frame(SMALL, 21, 1)
    image = cv2.imread(str(training / "image_2" / "000001.png"))
    np.testing.assert_array_equal(image[..., ::-1], frame.image)
    for name, depth in (("depth", frame.depth), ("depth_true", frame.depth_true)):
        stored = cv2.imread(str(training / name / "000001.png"), cv2.IMREAD_UNCHANGED)
        assert stored.dtype == np.uint16
        np.testing.assert_allclose(stored / 256, depth, atol=0.5 / 256 + 1e-9)
    objects = read_objects(training / "label_2" / "000001.txt")
    boxes = objects.boxes3d(SIZE_PRIORS)
    torch.testing.assert_close(boxes.center.double(), frame.boxes3d.center, atol=1e-5, rtol=1e-6)
    assert boxes.labels == frame.boxes3d.labels
    assert (tmp_path / "set" / "ImageSets" / "all.txt").read_text() == "000000\n000001\n"
    check_kind(training / "depth", "metric")
    with pytest.raises(UserError, match="holds metric depth"):
        check_kind(training / "depth", "relative")
    from skd_core.camera import Camera

    stored_camera = Camera.from_kitti(training / "calib" / "000001.txt", 320, 96)
    torch.testing.assert_close(stored_camera.P, frame.camera.P, atol=0, rtol=0)


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from skd_core.synthetic import writer

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "render_frame", fail)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "set", SMALL, 2, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_an_old_set_is_replaced_only_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "set"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="--overwrite"):
        write_dataset(out, SMALL, 1, seed=0)
    assert (out / "mine.txt").read_text() == "keep"
    with pytest.raises(UserError, match=r"holds more than a data set of this command \(mine.txt\)"):
        write_dataset(out, SMALL, 1, seed=0, overwrite=True)
    assert (out / "mine.txt").read_text() == "keep"
    (out / "mine.txt").unlink()
    write_dataset(out, SMALL, 2, seed=0)
    write_dataset(out, SMALL, 1, seed=0, overwrite=True)
    assert [p.name for p in (out / "training" / "image_2").iterdir()] == ["000000.png"]
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "640"], "--size 640: must be WIDTHxHEIGHT"),
        (["--size", "8x8"], "--size 8x8"),
        (["--frames", "-1"], "--frames"),
        (["--seed", "-1"], "--seed"),
        (["--depth-noise", "-0.1"], "--depth-noise -0.1"),
        (["--depth-noise", "nan"], "--depth-noise: must be a finite number, got nan"),
        (["--boxes", "round"], "--boxes round: must be one of amodal, tight"),
        (["--shapes", "boat"], "--shapes boat: must be one of train, heldout, all"),
        (["--layouts", "/no/such/folder"], "--layouts /no/such/folder: no such folder"),
        (["--layouts", ".", "--sequence"], "exclude each other"),
    ],
)
def test_wrong_options_end_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["skd_core", "synth", str(tmp_path / "set"), "--frames", "1", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    error = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert stop.value.code == 2
    assert len(error) == 1
    assert message in error[0]
    assert not (tmp_path / "set").exists()


def test_a_broken_label_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text(LABELS.splitlines()[0] + "\nCar 0 0 0\n")
    with pytest.raises(UserError, match=r"1\.txt:2: not a KITTI label"):
        render_frame(SynthConfig(layouts=tmp_path), 0, 0)
