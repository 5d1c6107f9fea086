"""Pictures: the right pixels in the right colours, and nothing that makes the drawing fail."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from skd_core.boxes import Boxes2D, Boxes3D
from skd_core.camera import Camera
from skd_core.errors import UserError
from skd_core.visualize import (
    COLORS,
    RGB,
    TRUTH_COLOR,
    add_caption,
    color_of,
    draw_bev,
    draw_boxes2d,
    draw_boxes3d,
    stack,
    strip,
    view_size,
    write_image,
)

CAMERA = Camera(torch.tensor([[200.0, 0, 200, 0], [0, 200, 100, 0], [0, 0, 1, 0]], dtype=torch.float64), 400, 200)
RED = (255, 0, 0)


def box(x: float = 0, y: float = 0, z: float = 10, yaw: float = 0, label: str = "Car", **more: torch.Tensor) -> Boxes3D:
    return Boxes3D(torch.tensor([[x, y, z]]), torch.tensor([[4.0, 2, 1.6]]), torch.tensor([yaw]), (label,), **more)


def black(height: int = 200, width: int = 400) -> RGB:
    return np.zeros((height, width, 3), np.uint8)


def where(image: RGB, color: tuple[int, int, int], tolerance: int = 140) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels of about that colour; lines are smoothed."""
    return np.nonzero(np.abs(image.astype(int) - color).max(-1) < tolerance)


def test_a_3d_box_is_drawn_where_it_projects_to() -> None:
    drawn = draw_boxes3d(black(), box(), CAMERA, color=RED, text=False)
    rows, columns = where(drawn, RED)
    x1, y1, x2, y2 = box().project(CAMERA).xyxy[0].tolist()
    assert (columns.min(), columns.max()) == (pytest.approx(x1, abs=1.5), pytest.approx(x2, abs=1.5))
    assert (rows.min(), rows.max()) == (pytest.approx(y1, abs=1.5), pytest.approx(y2, abs=1.5))


def test_the_front_is_crossed() -> None:
    def seen(image: RGB, x: float, y: float, z: float) -> bool:
        u, v = (int(i) for i in CAMERA.project(torch.tensor([[x, y, z]], dtype=torch.float64))[0])
        return bool(image[v - 1 : v + 2, u - 1 : u + 2].max() > 100)

    # the centre of the near face, z = 8, and of the far face, z = 12; heading towards the camera, and away from it
    for yaw, near_is_front in ((math.pi / 2, True), (-math.pi / 2, False)):
        drawn = draw_boxes3d(black(), box(x=1.5, y=0.6, yaw=yaw), CAMERA, color=RED, text=False)
        assert seen(drawn, 1.5, 0.6, 8) == near_is_front
        assert seen(drawn, 1.5, 0.6, 12) != near_is_front


def test_the_given_image_stays_as_it_is() -> None:
    image = black()
    draw_boxes3d(image, box(), CAMERA)
    draw_boxes2d(image, Boxes2D(torch.tensor([[1.0, 1, 50, 50]]), ("Car",)))
    assert not image.any()


@pytest.mark.parametrize("z", [1.0, 0.0, -1.0, 1.9])
def test_a_box_the_camera_stands_in_or_beside_is_cut(z: float) -> None:
    drawn = draw_boxes3d(black(), box(x=2.5, z=z, yaw=0.3), CAMERA, color=RED, text=False)
    assert drawn.shape == (200, 400, 3)
    rows, columns = where(drawn, RED)
    if len(columns):  # what is right of the camera's axis must not appear left of it
        assert columns.min() > 200


@pytest.mark.parametrize(
    "boxes",
    [
        Boxes3D.empty(),
        box(z=-10),
        box(x=math.nan),
        box(z=math.inf),
        box(x=1e12, z=0.2),
        box(x=-1e9, y=1e9, z=0.1),
    ],
)
def test_what_cannot_be_seen_draws_nothing(boxes: Boxes3D) -> None:
    assert not draw_boxes3d(black(), boxes, CAMERA, text=False).any()
    draw_boxes3d(black(), boxes, CAMERA)
    draw_bev(boxes, boxes, CAMERA)


def test_near_boxes_cover_far_ones() -> None:
    center, size = torch.tensor([[0.0, 0, 6], [0, 0, 60]]), torch.tensor([[4.0, 2, 1.6], [100, 2, 1.6]])
    both = Boxes3D(center, size, torch.zeros(2), ("Car", "Pedestrian"))  # the far one is long, its edges cross the near
    near = draw_boxes3d(black(), both[:1], CAMERA, text=False)
    for order in ([0, 1], [1, 0]):
        drawn = draw_boxes3d(black(), both[order], CAMERA, text=False)
        assert len(where(drawn, COLORS["pedestrian"], 60)[0]) > 50
        at = where(near, COLORS["car"], 60)
        assert np.abs(drawn[at].astype(int) - COLORS["car"]).max() < 80


def test_text_has_class_score_and_distance_on_the_class_s_colour() -> None:
    plain = draw_boxes3d(black(), box(), CAMERA, text=False)
    labelled = draw_boxes3d(black(), box(), CAMERA)
    scored = draw_boxes3d(black(), box(scores=torch.tensor([0.5])), CAMERA)
    ground = [int((image == COLORS["car"]).all(-1).sum()) for image in (plain, labelled, scored)]
    assert ground[0] + 200 < ground[1] < ground[2]  # the score makes the text longer


def test_text_stays_inside_the_image_and_off_other_text() -> None:
    corner = Boxes2D(torch.tensor([[-50.0, -50, 30, 30], [390, 190, 500, 300]]), ("Pedestrian", "Car"))
    drawn = draw_boxes2d(black(), corner)
    assert (drawn[:40] == COLORS["pedestrian"]).all(-1).sum() > 200
    assert (drawn[150:] == COLORS["car"]).all(-1).sum() > 200
    alone = draw_boxes2d(black(), Boxes2D(torch.tensor([[100.0, 100, 200, 150]]), ("Car",)))
    shadowed = draw_boxes2d(black(), Boxes2D(torch.tensor([[100.0, 100, 200, 150]] * 2), ("Car", "Car")))
    assert np.array_equal(alone, shadowed)
    draw_boxes2d(
        black(5, 5), Boxes2D(torch.tensor([[1.0, 1, 4, 4]]), ("construction_vehicle",))
    )  # larger than the image


def test_a_2d_box_is_drawn_at_its_edges() -> None:
    boxes = Boxes2D(torch.tensor([[50.0, 40, 120, 90], [math.nan] * 4]), ("Car", "Car"))
    rows, columns = where(draw_boxes2d(black(), boxes, color=RED, text=False), RED)
    assert (columns.min(), columns.max()) == (pytest.approx(50, abs=1), pytest.approx(120, abs=1))
    assert (rows.min(), rows.max()) == (pytest.approx(40, abs=1), pytest.approx(90, abs=1))


# -- from above -------------------------------------------------------------------------------------------------------
def test_a_box_from_above_is_ahead_and_to_its_side() -> None:
    def middle(x: float, z: float) -> tuple[float, float]:
        empty = draw_bev(Boxes3D.empty(), range_m=50, size=(400, 416))
        drawn = draw_bev(box(x=x, z=z), range_m=50, size=(400, 416))
        rows, columns = np.nonzero((drawn != empty).any(-1)[:390])  # above the legend
        return (columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2

    # 8 pixels per metre, camera at column 200, row 400
    assert middle(0, 25) == pytest.approx((200, 200), abs=1)
    assert middle(10, 25) == pytest.approx((280, 200), abs=1)
    assert middle(-10, 40) == pytest.approx((120, 80), abs=1)


def test_the_heading_is_a_line_to_the_front() -> None:
    # yaw 0 points right: the line from the centre to the front lies in the right half of the box
    drawn = draw_bev(box(z=20), range_m=25, size=(416, 416))
    scale, row = 16, 400 - 20 * 16
    ahead, behind = drawn[row - 1 : row + 1, 208 + scale], drawn[row - 1 : row + 1, 208 - scale]
    assert int(ahead.max()) > int(behind.max()) + 60


def test_truth_field_of_view_and_uncertainty_are_drawn() -> None:
    bare = draw_bev(box())
    assert len(where(bare, TRUTH_COLOR, 60)[0]) == 0
    assert len(where(draw_bev(box(), truth=box(x=5)), TRUTH_COLOR, 60)[0]) > 40
    assert (draw_bev(box(), camera=CAMERA) != bare).any(-1).sum() > 200
    unsure = draw_bev(box(z=30, depth_std=torch.tensor([5.0])), range_m=60, size=(480, 480))
    rows, _ = np.nonzero((unsure != draw_bev(box(z=30), range_m=60, size=(480, 480))).any(-1)[:, :300])  # no legend
    scale = 480 / (1.04 * 60)
    assert rows.max() - rows.min() == pytest.approx(10 * scale, abs=3)


def test_a_bird_s_eye_view_needs_a_range() -> None:
    with pytest.raises(UserError, match=r"range must be positive.* got 0 m"):
        draw_bev(box(), range_m=0)
    with pytest.raises(UserError, match="0x10"):
        draw_bev(box(), size=(0, 10))
    for reach in (1e9, math.inf, math.nan, -1):
        with pytest.raises(UserError, match="range must be positive and at most 1000 m"):
            draw_bev(box(), range_m=reach)
    with pytest.raises(UserError, match="4032x3024"):
        draw_bev(box(), size=(4032, 3024))
    assert draw_bev(box(), range_m=1000).shape == (480, 480, 3)


def test_the_view_beside_an_image_is_of_a_bounded_size() -> None:
    assert [view_size(height) for height in (40, 375, 3024)] == [(240, 240), (375, 375), (1000, 1000)]


def test_the_legend_names_classes_and_what_else_is_drawn() -> None:
    boxes = box(depth_std=torch.tensor([1.0]))
    corner = np.s_[380:, 300:]
    bare = draw_bev(Boxes3D.empty())[corner]
    assert (draw_bev(box(), range_m=200)[corner] != bare).any()
    assert len(where(draw_bev(boxes)[corner], color_of(boxes.labels[0]), 60)[0]) > 10
    assert len(where(draw_bev(boxes, truth=box(x=40, z=300))[corner], TRUTH_COLOR, 60)[0]) > 10


def test_a_caption_stands_below_the_picture() -> None:
    image = np.full((60, 300, 3), 77, np.uint8)
    assert add_caption(image, "") is image
    drawn = add_caption(image, "rendered scenes only")
    assert drawn.shape == (82, 300, 3)
    assert (drawn[:60] == image).all()
    assert len(np.unique(drawn[60:])) > 3


# -- putting together -------------------------------------------------------------------------------------------------
def test_stack_and_strip() -> None:
    image, bev = black() + 10, black(100, 150) + 20
    side = stack(image, bev)
    assert side.shape == (200, 400 + 150, 3)
    assert side[0, 0].tolist() == [10] * 3
    assert side[99, -1].tolist() == [20] * 3
    assert side[100:, 400:].max() == 0
    tall = strip([image, bev, image], gap=6)
    assert tall.shape == (200 + 6 + 100 + 6 + 200, 400, 3)
    assert tall[200:206].max() == 0
    assert tall[206:306, 150:].max() == 0
    assert tall[-1, -1].tolist() == [10] * 3
    with pytest.raises(UserError, match="no images"):
        strip([])


def test_written_pictures_keep_their_colours(tmp_path: Path) -> None:
    image = black()
    image[:, :200] = RED
    write_image(tmp_path / "a.png", image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), image)
    write_image(tmp_path / "a.jpg", image)
    assert np.asarray(Image.open(tmp_path / "a.jpg"))[5, 5].tolist() == pytest.approx([255, 0, 0], abs=4)
    for name in ("a.xyz", "a"):
        with pytest.raises(UserError, match=r"use \.png or \.jpg"):
            write_image(tmp_path / name, image)
    with pytest.raises(UserError, match="cannot write: No such file"):
        write_image(tmp_path / "gone" / "a.png", image)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jpg", "a.png"]


def test_wrong_arrays_are_refused() -> None:
    with pytest.raises(UserError, match="image is 300x200, its camera for 400x200"):
        draw_boxes3d(black(200, 300), box(), CAMERA)
    with pytest.raises(ValueError, match="uint8 RGB"):
        draw_boxes2d(np.zeros((5, 5, 3), np.float32), Boxes2D.empty())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="uint8 RGB"):
        draw_boxes2d(np.zeros((5, 5), np.uint8), Boxes2D.empty())


def test_colours_are_stable_and_told_apart() -> None:
    assert color_of("Car") == color_of("car") == COLORS["car"]
    assert color_of("tram") == color_of("Tram") != color_of("barrier")
    assert all(96 <= channel <= 223 for channel in color_of("anything at all"))


def test_opencv_is_not_loaded_before_it_is_needed() -> None:
    code = "import sys, skd_core.visualize; sys.exit('cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0
