"""Camera: projection and its inverse, what moves with the image, and where calibrations come from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from skd_core.camera import Camera, project, unproject
from skd_core.errors import UserError

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}")

P2 = [721.5377, 0, 609.5593, 44.85728, 0, 721.5377, 172.854, 0.2163791, 0, 0, 1, 0.002745884]
KITTI = Camera(torch.tensor(P2, dtype=torch.float64).reshape(3, 4), 1242, 375)


def floats(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_subnormal=False)


@st.composite
def cameras(draw: st.DrawFn) -> Camera:
    """Rectified cameras with skew and a last column, as a stereo rig's right camera has."""
    width, height = draw(st.integers(16, 2000)), draw(st.integers(16, 1200))
    fx, fy = draw(floats(100, 3000)), draw(floats(100, 3000))
    cx, cy = draw(floats(0, width)), draw(floats(0, height))
    column = [draw(floats(-500, 500)), draw(floats(-50, 50)), draw(floats(-0.1, 0.1))]
    rows = [[fx, draw(floats(-5, 5)), cx, column[0]], [0, fy, cy, column[1]], [0, 0, 1, column[2]]]
    return Camera(torch.tensor(rows, dtype=torch.float64), width, height)


@st.composite
def points(draw: st.DrawFn, max_count: int = 8) -> Tensor:
    one = st.tuples(floats(-40, 40), floats(-5, 5), floats(0.5, 100))
    return torch.tensor(draw(st.lists(one, min_size=1, max_size=max_count)), dtype=torch.float64)


# -- the camera's own frame -------------------------------------------------------------------------------------------
def test_the_right_camera_of_a_stereo_pair_is_b_to_the_right() -> None:
    P = torch.tensor([[500.0, 0, 320, -60], [0, 500, 240, 0], [0, 0, 1, 0]], dtype=torch.float64)  # B = 60 / 500
    right = Camera(P, 640, 480)
    assert right.offset.tolist() == pytest.approx([-0.12, 0, 0], abs=1e-15)
    assert right.centred().P.tolist() == [[500, 0, 320, 0], [0, 500, 240, 0], [0, 0, 1, 0]]
    assert (right.centred().width, right.centred().height) == (640, 480)


@given(cameras(), points(), floats(0.2, 3), st.integers(-20, 20))
def test_the_own_frame_sees_what_the_camera_sees(camera: Camera, xyz: Tensor, scale: float, x0: int) -> None:
    own = camera.centred()
    assert own.offset.tolist() == [0, 0, 0]
    torch.testing.assert_close(own.project(xyz + camera.offset), camera.project(xyz), rtol=1e-7, atol=1e-6)
    for changed in (camera.crop(x0, 3, 40, 30), camera.resize(math.ceil(64 * scale), 48)):  # it is no matter of pixels
        torch.testing.assert_close(changed.offset, camera.offset, rtol=1e-9, atol=1e-9)


# -- projection -------------------------------------------------------------------------------------------------------
def test_projection_of_a_hand_worked_point() -> None:
    # u = (721.5377 * 2 + 609.5593 * 10 + 44.85728) / (10 + 0.002745884), v likewise with y = 1
    u = (1443.0754 + 6095.593 + 44.85728) / 10.002745884
    v = (721.5377 + 1728.54 + 0.2163791) / 10.002745884
    uv = KITTI.project(torch.tensor([[2.0, 1.0, 10.0]], dtype=torch.float64))
    assert uv.tolist() == [pytest.approx([u, v], abs=1e-9)]


def test_unproject_is_the_formula_of_the_method_where_the_last_row_is_plain() -> None:
    P = KITTI.P.clone()
    P[2, 3] = 0
    uv, z = torch.tensor([[700.0, 200.0]], dtype=torch.float64), torch.tensor([20.0], dtype=torch.float64)
    x = ((700 - 609.5593) * 20 - 44.85728) / 721.5377
    y = ((200 - 172.854) * 20 - 0.2163791) / 721.5377
    assert unproject(P, uv, z).tolist() == [pytest.approx([x, y, 20.0], abs=1e-12)]


@given(cameras(), points())
def test_unproject_inverts_project(camera: Camera, xyz: Tensor) -> None:
    back = camera.unproject(camera.project(xyz), xyz[:, 2])
    torch.testing.assert_close(back, xyz, rtol=1e-9, atol=1e-8)


@given(cameras(), points(), st.lists(floats(-3, 3), min_size=4, max_size=4))
def test_project_inverts_unproject_for_any_matrix(camera: Camera, xyz: Tensor, tilt: list[float]) -> None:
    P = camera.P.clone()
    P[1, 0], P[2, 0], P[2, 1], P[2, 2] = tilt[0], tilt[1] * 1e-3, tilt[2] * 1e-3, 1 + 0.1 * tilt[3]
    uv, z = xyz[:, :2] * 10, xyz[:, 2]
    torch.testing.assert_close(project(P, unproject(P, uv, z)), uv, rtol=1e-7, atol=1e-6)


def test_projection_broadcasts_over_a_batch_of_cameras() -> None:
    cameras = torch.stack([KITTI.P, KITTI.flip().P, KITTI.resize(640, 192).P])
    xyz = torch.rand(3, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    together = project(cameras, xyz)
    assert together.shape == (3, 5, 2)
    for i in range(3):
        torch.testing.assert_close(together[i], project(cameras[i], xyz[i]))
    torch.testing.assert_close(unproject(cameras, together, xyz[..., 2]), xyz)


def test_gradient_of_unproject_reaches_pixels_and_depth() -> None:
    uv = torch.tensor([[650.0, 190.0]], dtype=torch.float64, requires_grad=True)
    z = torch.tensor([15.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: unproject(KITTI.P, a, b), (uv, z))


# -- what happens to the image happens to P ---------------------------------------------------------------------------
@given(cameras(), points(), st.integers(8, 2000), st.integers(8, 2000))
def test_resize_commutes_with_projection(camera: Camera, xyz: Tensor, width: int, height: int) -> None:
    resized = camera.resize(width, height)
    scale = torch.tensor([width / camera.width, height / camera.height], dtype=torch.float64)
    assert (resized.width, resized.height) == (width, height)
    torch.testing.assert_close(resized.project(xyz), camera.project(xyz) * scale, rtol=1e-9, atol=1e-6)


@given(cameras(), points(), st.integers(-300, 300), st.integers(-300, 300))
def test_crop_commutes_with_projection(camera: Camera, xyz: Tensor, x0: int, y0: int) -> None:
    moved = camera.crop(x0, y0, 77, 55)
    assert (moved.width, moved.height) == (77, 55)
    shifted = camera.project(xyz) - torch.tensor([x0, y0], dtype=torch.float64)
    torch.testing.assert_close(moved.project(xyz), shifted, rtol=1e-9, atol=1e-6)


@given(cameras(), points())
def test_flip_commutes_with_projection(camera: Camera, xyz: Tensor) -> None:
    mirrored = xyz * torch.tensor([-1.0, 1, 1], dtype=torch.float64)
    uv = camera.project(xyz)
    expected = torch.stack([camera.width - uv[:, 0], uv[:, 1]], -1)
    torch.testing.assert_close(camera.flip().project(mirrored), expected, rtol=1e-9, atol=1e-6)


@given(cameras())
def test_flip_twice_and_resize_back_are_the_identity(camera: Camera) -> None:
    twice = camera.flip().flip()
    torch.testing.assert_close(twice.P, camera.P, rtol=1e-12, atol=1e-9)
    back = camera.resize(333, 111).resize(camera.width, camera.height)
    torch.testing.assert_close(back.P, camera.P, rtol=1e-12, atol=1e-9)
    assert (back.width, back.height) == (twice.width, twice.height) == (camera.width, camera.height)


def test_flip_moves_the_last_column_too() -> None:
    # u' = W - u = (W w - fx x - cx z - t) / w with x' = -x: the last column is W P[2,3] - P[0,3]
    flipped = KITTI.flip()
    assert flipped.fx == KITTI.fx > 0
    assert flipped.cx == pytest.approx(1242 - 609.5593)
    assert float(flipped.P[0, 3]) == pytest.approx(1242 * 0.002745884 - 44.85728)


def test_resize_scales_the_two_focal_lengths_apart() -> None:
    small = KITTI.resize(621, 125)
    assert small.fx == pytest.approx(721.5377 / 2)
    assert small.fy == pytest.approx(721.5377 / 3)
    assert float(small.P[0, 3]) == pytest.approx(44.85728 / 2)
    assert float(small.P[2, 3]) == pytest.approx(0.002745884)


def test_field_of_view() -> None:
    camera = Camera(torch.tensor([[100.0, 0, 100, 0], [0, 100, 50, 0], [0, 0, 1, 0]]), 200, 100)
    assert camera.hfov_degrees == pytest.approx(90)
    assert repr(camera) == "Camera(200x100, fx=100.0, fy=100.0, cx=100.0, cy=50.0, hfov=90 deg)"


# -- what is no camera ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda P: P[:, :3], r"must be 3x4, got \(3, 3\)"),
        (lambda P: P * math.nan, "NaN or infinity"),
        (lambda P: P * math.inf, "NaN or infinity"),
        (lambda P: P * 0, "focal lengths must be positive, got fx=0 fy=0"),
        (lambda P: -P, "focal lengths must be positive"),
        (lambda P: 2 * P, "last row must be 0 0 1 t, got 0 0 2"),
    ],
)
def test_a_bad_matrix_is_refused(change: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Camera(change(KITTI.P), 10, 10)  # type: ignore[operator]


@pytest.mark.parametrize("size", [(0, 10), (10, -1)])
def test_a_bad_size_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=f"size must be positive, got {size[0]}x{size[1]}"):
        Camera(KITTI.P, *size)


# -- KITTI files ------------------------------------------------------------------------------------------------------
NUMBERS = " ".join(map(str, P2))


def calibration(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "calib.txt"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("text", [f"P0: {'0 ' * 12}\nP2: {NUMBERS}\nR0_rect: 1\n", f"P2: {NUMBERS}\r\nP3: x\r\n"])
def test_kitti_object_calibration(tmp_path: Path, text: str) -> None:
    camera = Camera.from_kitti(calibration(tmp_path, text), 1242, 375)
    assert camera.P.flatten().tolist() == P2
    assert (camera.width, camera.height) == (1242, 375)


def test_kitti_raw_calibration_and_another_camera(tmp_path: Path) -> None:
    left = NUMBERS.replace("44.85728", "-339.5")
    path = calibration(tmp_path, f"calib_time: 09-Jan-2012\nP_rect_02: {NUMBERS}\nP_rect_03: {left}\n")
    assert Camera.from_kitti(path, 1242, 375).P.flatten().tolist() == P2
    assert Camera.from_file(path, 1242, 375).P.flatten().tolist() == P2
    assert float(Camera.from_kitti(path, 1242, 375, key="P3").P[0, 3]) == -339.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("P0: 1\nP2: 1 2 3\n", r"calib.txt:2: P2 must be 12 numbers, got 3"),
        ("\n\nP2: " + NUMBERS.replace("721.5377", "7,2", 1), r"calib.txt:3: P2 must be a list of numbers .*'7,2'"),
        ("P2: " + NUMBERS.replace("721.5377", "nan", 1), r"calib.txt:1: .*NaN"),
        ("P2: " + "0 " * 12, r"calib.txt:1: .*focal lengths must be positive"),
        ("P0: " + NUMBERS, r"calib.txt: no line 'P2:'"),
        ("", r"calib.txt: no line 'P2:'"),
    ],
)
def test_malformed_kitti_calibration(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Camera.from_kitti(calibration(tmp_path, text), 1242, 375)


def test_unreadable_calibration(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.txt: cannot read camera file: No such file"):
        Camera.from_kitti(tmp_path / "none.txt", 1, 1)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00P2")
    with pytest.raises(UserError, match="not a text file"):
        Camera.from_file(tmp_path / "binary.txt")
    with pytest.raises(UserError, match="cannot read camera file"):
        Camera.from_file(tmp_path)


def test_kitti_calibration_needs_a_size(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no image size"):
        Camera.from_file(calibration(tmp_path, f"P2: {NUMBERS}"))


@needs_data
def test_real_calibrations() -> None:
    camera = Camera.from_file(DATA / "kitti_drive0052" / "calib.txt", 1242, 375)
    assert camera.P.flatten().tolist() == P2
    for path in (DATA / "kitti_dev" / "training" / "calib").glob("*.txt"):
        assert 700 < Camera.from_kitti(path, 1242, 375).fx < 730


# -- ROS --------------------------------------------------------------------------------------------------------------
K = [600.0, 0, 320, 0, 610, 240, 0, 0, 1]
P = [590.0, 0, 322, -30, 0, 600, 242, 0, 0, 0, 1, 0]
CALIBRATION_YAML = f"""\
image_width: 640
image_height: 480
camera_name: left
camera_matrix:
  rows: 3
  cols: 3
  data: {K}
distortion_model: plumb_bob
distortion_coefficients:
  rows: 1
  cols: 5
  data: [-0.3, 0.1, 0, 0, 0]
rectification_matrix:
  rows: 3
  cols: 3
  data: [1, 0, 0, 0, 1, 0, 0, 0, 1]
projection_matrix:
  rows: 3
  cols: 4
  data: {P}
"""


def info(**changes: object) -> dict[str, object]:
    roi = {"x_offset": 0, "y_offset": 0, "height": 0, "width": 0, "do_rectify": False}
    fields = {"height": 480, "width": 640, "distortion_model": "plumb_bob", "d": [0.0] * 5, "k": K, "p": P}
    return {**fields, "binning_x": 0, "binning_y": 0, "roi": roi, **changes}


def test_ros_calibration_yaml(tmp_path: Path) -> None:
    camera = Camera.from_file(calibration(tmp_path, CALIBRATION_YAML))
    assert camera.P.flatten().tolist() == P
    assert (camera.width, camera.height) == (640, 480)
    assert Camera.from_file(tmp_path / "calib.txt", 640, 480).P.equal(camera.P)
    with pytest.raises(UserError, match="is for 640x480 images, but the image is 320x240"):
        Camera.from_file(tmp_path / "calib.txt", 320, 240)


def test_camera_info_yaml_as_ros2_topic_echo_prints_it(tmp_path: Path) -> None:
    echoed = yaml.safe_dump({"header": {"frame_id": "cam"}, **info()}) + "---\n"
    camera = Camera.from_file(calibration(tmp_path, echoed))
    assert camera.P.flatten().tolist() == P


def test_camera_info_without_p_takes_an_undistorted_k_only() -> None:
    assert Camera.from_ros(info(p=[0.0] * 12)).P[:, :3].flatten().tolist() == K
    assert Camera.from_ros(info(p=[])).P[:, 3].tolist() == [0, 0, 0]
    with pytest.raises(UserError, match="rectify the images first"):
        Camera.from_ros(info(p=[0.0] * 12, d=[0.1, 0, 0, 0, 0]))
    with pytest.raises(UserError, match="rectify the images first"):  # r = f * theta is no pinhole, whatever D
        Camera.from_ros(info(p=[0.0] * 12, d=[0.0] * 4, distortion_model="equidistant"))


def test_upper_case_keys() -> None:
    assert Camera.from_ros({"width": 640, "height": 480, "P": P}).P.flatten().tolist() == P


def test_roi_is_subtracted_before_binning_divides() -> None:
    roi = {"x_offset": 100, "y_offset": 50, "width": 401, "height": 300}
    camera = Camera.from_ros(info(roi=roi, binning_x=2, binning_y=3))
    assert (camera.width, camera.height) == (200, 100)
    assert camera.fx == pytest.approx(590 / 2)  # exactly 1/2, although 401 is odd
    assert camera.fy == pytest.approx(600 / 3)
    assert camera.cx == pytest.approx((322 - 100) / 2)
    assert camera.cy == pytest.approx((242 - 50) / 3)
    assert float(camera.P[0, 3]) == pytest.approx(-30 / 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p": [0.0] * 12, "k": [0.0] * 9}, r"front: uncalibrated"),
        ({"p": [], "k": []}, r"front: uncalibrated"),
        ({"p": P[:11]}, r"front: P must be 12 numbers, got 11"),
        ({"p": ["a"] * 12}, r"front: P must be a list of numbers"),
        ({"p": 3}, r"front: P must be a list of numbers"),
        ({"p": [], "k": K[:8]}, r"front: K must be 9 numbers, got 8"),
        ({"p": [math.nan, *P[1:]]}, r"front: camera: P holds NaN"),
        ({"p": [-1.0, *P[1:]]}, r"front: camera: focal lengths must be positive"),
        ({"width": None}, r"front: width, height, roi and binning must be whole numbers"),
        ({"width": 0}, r"front: camera: image size must be positive"),
        ({"roi": 5}, r"front: width, height, roi and binning"),
        ({"binning_x": "two"}, r"front: width, height, roi and binning"),
        ({"binning_x": 1000}, r"front: after binning: camera: image size must be positive"),
    ],
)
def test_malformed_camera_info(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Camera.from_ros(info(**changes), "front")


@pytest.mark.parametrize("text", ["", "just words", "- 1\n- 2\n", "a: [1,\nb: }", "---\n---\n"])
def test_a_file_that_is_no_calibration(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="neither a KITTI calibration") as caught:
        Camera.from_file(calibration(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_yaml_without_size_or_matrix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"calib.txt: uncalibrated"):
        Camera.from_file(calibration(tmp_path, "image_width: 3\n"))
    with pytest.raises(UserError, match=r"calib.txt: this ROS calibration holds no image size"):
        Camera.from_file(calibration(tmp_path, f"P: {P}\n"))
