"""Calibration files of every kind and spelling give one and the same camera; of any other text comes only UserError."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skd_core import notes
from skd_core.calibration import read_calibration
from skd_core.camera import Camera
from skd_core.data.folder import ImageFolder
from skd_core.data.ros_messages import camera_from_info, undistortion_maps
from skd_core.errors import UserError

P2 = [371.8, 0, 314.1, 4.5, 0, 371.4, 88.5, -0.25, 0, 0, 1, 0.0027]
OTHER = [1.0, 0, 2, 0, 0, 3, 4, 0, 0, 0, 1, 0]
K = [371.8, 0, 314.1, 0, 371.4, 88.5, 0, 0, 1]
KP = [371.8, 0, 314.1, 0, 0, 371.4, 88.5, 0, 0, 0, 1, 0]
D = [-0.05, 0.02, 0.001, -0.001, 0.0]
SIZE = (640, 192)


@pytest.fixture(autouse=True)
def nothing_said_yet() -> None:
    notes._said.clear()


def text_of(values: list[float], spelling: str = "{}", between: str = " ") -> str:
    return between.join(spelling.format(value) for value in values)


def write(folder: Path, text: str | bytes, name: str = "camera.dat") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# -- KITTI ------------------------------------------------------------------------------------------------------------
LINE = text_of(P2)
KITTI_SPELLINGS = {
    "plain": f"P0: {text_of(OTHER)}\nP2: {LINE}\nR0_rect: 1 0 0 0 1 0 0 0 1\n",
    "leading blank": f" P2: {LINE}\n",
    "leading tab": f"\tP2:\t{text_of(P2, '{}', chr(9))}\n",
    "blank before the colon": f"P2 : {LINE}\n",
    "no colon": f"P2 {LINE}\n",
    "scientific": f"P2: {text_of(P2, '{:.12e}')}\n",
    "capital E and plus": f"P2: {text_of(P2, '{:+.12E}')}\n",
    "many blanks": f"P2:   {text_of(P2, '{}', '    ')}   \n",
    "commas": f"P2: {text_of(P2, '{}', ', ')}\n",
    "brackets": f"P2: [{text_of(P2, '{}', ', ')}]\n",
    "CRLF": f"P0: {text_of(OTHER)}\r\nP2: {LINE}\r\nP3: x\r\n",
    "old Mac": f"P0: {text_of(OTHER)}\rP2: {LINE}\r",
    "BOM": f"\ufeffP2: {LINE}\n",
    "comments": f"# P2: {text_of(OTHER)}\n# of 2011_09_26\nP2: {LINE} # left colour\n",
    "raw": f"calib_time: 09-Jan-2012 14:00:15\ncorner_dist: 9.95e-02\nP_rect_00: {text_of(OTHER)}\nP_rect_02: {LINE}\n",
    "raw with its size": f"S_rect_02: 6.400000e+02 1.920000e+02\nP_rect_02: {LINE}\nS_rect_03: 9 9\n",
    "lower case": f"p2: {LINE}\n",
    "no end of line": f"P2: {LINE}",
    "only P0": f"P0: {LINE}\nTr_velo_to_cam_0: 0 0 0\n",
    "only P_rect_00": f"P_rect_00: {LINE}\n",
}


@pytest.mark.parametrize("name", KITTI_SPELLINGS)
def test_spellings_of_kitti(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, KITTI_SPELLINGS[name])
    camera = Camera.from_file(path, *SIZE)
    assert camera.P.flatten().tolist() == P2
    assert (camera.width, camera.height) == SIZE
    if not name.startswith("only"):
        assert Camera.from_kitti(path, *SIZE).P.flatten().tolist() == P2


def test_a_missing_p2_is_named_and_another_can_be_chosen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, f"P0: {text_of(OTHER)}\nP1: {LINE}\n", "calib.txt")
    with pytest.raises(UserError, match=r"no line 'P2:'; it has P0, P1: choose \S*calib.txt:P0 or \S*calib.txt:P1"):
        Camera.from_file(path, *SIZE)
    for name in ("P1", "p1", "P_rect_01"):
        assert Camera.from_file(f"{path}:{name}", *SIZE).P.flatten().tolist() == P2
    with pytest.raises(UserError, match="no line 'P3:'; it has P0, P1"):
        Camera.from_file(f"{path}:P3", *SIZE)
    with pytest.raises(UserError, match="no line 'P2:'; it has P0, P1"):
        Camera.from_kitti(path, *SIZE)
    assert not caplog.records
    Camera.from_file(write(tmp_path, KITTI_SPELLINGS["only P0"]), *SIZE)
    assert "has no P2; P0, the only camera in it, is taken" in caplog.text


def test_a_line_that_is_there_twice_and_differs(tmp_path: Path) -> None:
    same = write(tmp_path, f"P2: {LINE}\nP_rect_02:  {LINE}\n")
    assert read_calibration(same).p == tuple(P2)
    other = write(tmp_path, f"P2: {LINE}\nP3: x\nP2: {text_of(OTHER)}\n", "other.txt")
    with pytest.raises(UserError, match=r"other.txt:3: P2 differs from line 1"):
        read_calibration(other)


def test_a_size_in_a_raw_calibration_must_agree(tmp_path: Path) -> None:
    path = write(tmp_path, KITTI_SPELLINGS["raw with its size"])
    assert Camera.from_file(path).width == 640
    with pytest.raises(UserError, match="is for 640x192 images, but the image is 4032x3024"):
        Camera.from_file(path, 4032, 3024)


@pytest.mark.parametrize("size", [(4032, 3024), (1242, 720), (2484, 750), (621, 188), (640, 480), (1920, 1080)])
def test_a_calibration_of_another_resolution_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, size: tuple[int, int]
) -> None:
    """KITTI's holds no size: its principal point says for what it was made."""
    kitti = [721.5377, 0, 609.5593, 44.85728, 0, 721.5377, 172.854, 0.2163791, 0, 0, 1, 0.002745884]
    path = write(tmp_path, f"P2: {text_of(kitti)}\n")
    for right in ((1242, 375), (1224, 370), (1248, 384)):
        Camera.from_file(path, *right)
    assert not caplog.records
    for _ in range(2):
        Camera.from_file(path, *size)
    assert len(caplog.records) == 1
    assert f"principal point (610, 173) is far from the middle of the {size[0]}x{size[1]} image" in caplog.text


# -- ROS, OpenCV, Kalibr: K only, K and P -----------------------------------------------------------------------------
def opencv(kind: str, **fields: object) -> str:
    """What cv2.FileStorage itself writes."""
    storage = cv2.FileStorage(f".{kind}", cv2.FileStorage_WRITE + cv2.FileStorage_MEMORY)
    for name, value in fields.items():
        storage.write(name, np.array(value, np.float64) if isinstance(value, list) else value)
    return str(storage.releaseAndGetString())


MATRIX = [K[:3], K[3:6], K[6:]]
FILESTORAGE = {"image_width": 640, "image_height": 192, "camera_matrix": MATRIX, "distortion_coefficients": [[0.0] * 5]}
OST = f"""\
# made by camera_calibration
image_width: 640
image_height: 192
camera_name: narrow_stereo
camera_matrix:
  rows: 3
  cols: 3
  data: {K}
distortion_model: plumb_bob
distortion_coefficients: {{rows: 1, cols: 5, data: {D}}}
rectification_matrix: {{rows: 3, cols: 3, data: [1, 0, 0, 0, 1, 0, 0, 0, 1]}}
projection_matrix:
  rows: 3
  cols: 4
  data: {KP}
"""
CAMERA_INFO = f"""\
header:
  stamp: {{sec: 1, nanosec: 2}}
  frame_id: cam
height: 192
width: 640
distortion_model: plumb_bob
d: {D}
k: {K}
r: [1, 0, 0, 0, 1, 0, 0, 0, 1]
p:
{"".join(f"- {value}{chr(10)}" for value in KP)}binning_x: 0
binning_y: 0
roi: {{x_offset: 0, y_offset: 0, height: 0, width: 0, do_rectify: false}}
"""
KALIBR = """\
cam0:
  cam_overlaps: []
  camera_model: pinhole
  distortion_coeffs: [0, 0, 0, 0]
  distortion_model: radtan
  intrinsics: [371.8, 371.4, 314.1, 88.5]
  resolution: [640, 192]
  rostopic: /cam0/image_raw
"""
HAND = """\
%YAML:1.0
---
camera_matrix: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ 3.718e+02, 0., 3.141e2, 0., 371.4,
       8.85E1, 0., 0., 1. ]
image_width: 640
image_height: 192
"""
SPELLINGS = {
    "ost.yaml": OST,
    "ost.yaml in CRLF": OST.replace("\n", "\r\n"),
    "ost.yaml with BOM": "\ufeff" + OST,
    "ost.yaml with tabs": OST.replace("  rows", "\trows").replace("  cols: ", "\tcols:\t").replace("  data", "\tdata"),
    "ost.yaml with block lists": yaml.safe_dump(yaml.safe_load(OST), default_flow_style=False),
    "ost.yaml in flow style": yaml.safe_dump(yaml.safe_load(OST), default_flow_style=True),
    "ost.yaml as JSON": json.dumps(yaml.safe_load(OST)),
    "ost.yaml as indented JSON": json.dumps(yaml.safe_load(OST), indent="\t"),
    "camera_info": CAMERA_INFO,
    "camera_info echoed twice": CAMERA_INFO + "---\n" + CAMERA_INFO.replace("sec: 1", "sec: 7") + "---\n",
    "ROS 1 upper case": CAMERA_INFO.replace("\nd:", "\nD:").replace("\nk:", "\nK:").replace("\np:", "\nP:"),
    "OpenCV YAML": opencv("yml", **FILESTORAGE),
    "OpenCV XML": opencv("xml", **FILESTORAGE),
    "OpenCV JSON": opencv("json", **FILESTORAGE),
    "OpenCV XML with comments": opencv("xml", **FILESTORAGE).replace("<image_width>", "<!-- px -->\n<image_width>"),
    "OpenCV YAML by hand": HAND,
    "OpenCV YAML with comments": HAND.replace("rows: 3\n", "rows: 3 # three\n").replace("---\n", "---\n# mine\n"),
    "OpenCV YAML in CRLF with BOM": "\ufeff" + HAND.replace("\n", "\r\n"),
    "old OpenCV names": HAND.replace("camera_matrix", "Camera_Matrix").replace("image_w", "image_W"),
    "cameraMatrix": HAND.replace("camera_matrix", "cameraMatrix").replace("image_width", "imageWidth"),
    "K in rows": f"K: {MATRIX}\nimage_size: [640, 192]\n",
    "fx fy cx cy": "intrinsics: [371.8, 371.4, 314.1, 88.5]\nresolution: [640, 192]\n",
    "Kalibr": KALIBR,
    "Kalibr in flow style": yaml.safe_dump(yaml.safe_load(KALIBR), default_flow_style=True),
    "nested": "left:\n" + "".join(f"  {line}\n" for line in OST.splitlines()),
    "YAML 1.2": "%YAML 1.2\n---\n" + OST,
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings_of_the_others(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, SPELLINGS[name])
    for camera in (Camera.from_file(path), Camera.from_file(path, *SIZE)):
        assert camera.P.flatten().tolist() == pytest.approx(KP, abs=1e-9)
        assert (camera.width, camera.height) == SIZE
    with pytest.raises(UserError, match=r"camera.dat.*: is for 640x192 images, but the image is 641x192"):
        Camera.from_file(path, 641, 192)


@pytest.mark.parametrize("name", ["OpenCV YAML", "OpenCV XML", "OpenCV JSON"])
def test_without_a_resolution_the_images_counts(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    fields = {key: value for key, value in FILESTORAGE.items() if not key.startswith("image")}
    path = write(tmp_path, opencv({"YAML": "yml", "XML": "xml", "JSON": "json"}[name[7:]], **fields))
    assert Camera.from_file(path, *SIZE).P.flatten().tolist() == KP
    with pytest.raises(UserError, match="this OpenCV FileStorage calibration holds no image size"):
        Camera.from_file(path)
    assert not caplog.records
    Camera.from_file(path, 1280, 720)
    assert "far from the middle of the 1280x720 image" in caplog.text


TWO = {
    "Kalibr": KALIBR + KALIBR.replace("cam0", "cam1").replace("371.8", "99.0"),
    "OpenCV stereo": opencv("yml", M1=MATRIX, D1=[[0.0] * 5], M2=[[99.0, *K[1:3]], *MATRIX[1:]], D2=[[0.0] * 5],
                            image_size=[640, 192]),
    "OpenCV left and right": opencv(
        "xml", left_camera_matrix=MATRIX, camera_matrix_right=[[99.0, *K[1:3]], *MATRIX[1:]], image_size=[640, 192]
    ),
    "ROS names with a slash": OST.replace("narrow_stereo", "n/left")
    + "---\n" + OST.replace("narrow_stereo", "n/right").replace("371.8", "99.0"),
    "two names": OST + "---\n" + OST.replace("narrow_stereo", "wide").replace("371.8", "99.0"),
    "left and right": f"left: {{K: {K}, width: 640, height: 192}}\n"
                      f"right: {{K: {[99.0, *K[1:]]}, width: 640, height: 192}}",
    "a list": f"cameras:\n- {{camera_name: a, K: {K}, width: 640, height: 192}}\n"
              f"- {{camera_name: b, K: {[99.0, *K[1:]]}, width: 640, height: 192}}\n",
}  # fmt: skip
NAMES = {
    "OpenCV left and right": ("left", "right"), "ROS names with a slash": ("n/left", "n/right"),
    "Kalibr": ("cam0", "cam1"), "OpenCV stereo": ("1", "2"), "two names": ("narrow_stereo", "wide"),
    "left and right": ("left", "right"), "a list": ("a", "b"),
}  # fmt: skip


@pytest.mark.parametrize("name", TWO)
def test_one_camera_of_several_is_chosen_by_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, TWO[name])
    first, second = NAMES[name]
    with pytest.raises(UserError, match=rf"holds 2 cameras: choose \S*camera.dat:{first} or \S*camera.dat:{second}"):
        Camera.from_file(path)
    assert Camera.from_file(f"{path}:{first}").fx == 371.8
    assert Camera.from_file(f"{path}:{second}").fx == 99
    with pytest.raises(UserError, match=f"no camera 'third'; it has {first}, {second}"):
        Camera.from_file(f"{path}:third")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            HAND + f"distortion_coefficients: {D}\n",
            "OpenCV FileStorage calibration has distortion, and no P .*: rect",
        ),
        (KALIBR.replace("[0, 0, 0, 0]", "[0.1, 0, 0, 0]"), "Kalibr calibration has distortion"),
        (KALIBR.replace("radtan", "equidistant"), "Kalibr calibration has distortion"),
        (KALIBR.replace("pinhole", "omni"), "cam0: camera model 'omni' is not a pinhole"),
        (OST.replace("371.8, ", "", 1), "K must be 9 numbers, got 8"),
        (OST.replace("371.8", "many"), "must be a list of numbers .*many"),
        (OST.replace("640", "-640"), "must be whole numbers"),
        (OST.replace("640", "1e400"), "must be whole numbers"),
        (OST + "image_width: 640\n", "'image_width' is there twice"),
        ("resolution: [640]\nK: " + str(K), "the image size must be two numbers"),
        (
            "<opencv_storage><camera_matrix>",
            "neither a KITTI calibration .* nor a camera file of ROS",
        ),
        (
            "# oST version 5.0 parameters\n\n[image]\n\nwidth\n640\n\nheight\n480\n\n[narrow_stereo]\n\ncamera matrix\n"
            "500 0 320\n0 500 240\n0 0 1\n",
            "INI file of camera_calibration .*give the ost.yaml",
        ),
        ("{" * 5000, "neither a KITTI calibration"),
        ("[" * 100_000, "neither a KITTI calibration"),
        ("a: 2001-99-99\nb: " + "9" * 6000, "neither a KITTI calibration"),
        ("\0", "neither a KITTI calibration"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Camera.from_file(write(tmp_path, text), *SIZE)
    assert len(str(caught.value).splitlines()) == 1


def test_an_alias_bomb_is_no_camera(tmp_path: Path) -> None:
    bomb = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    for text in (bomb, bomb + "K: *a29\nwidth: 1\nheight: 1\n", bomb + "width: *a29\n"):
        with pytest.raises(UserError):
            Camera.from_file(write(tmp_path, text), *SIZE)


def test_what_is_no_regular_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "sparse.yaml", "wb") as file:
        file.truncate(1 << 40)
    for name, message in (("pipe", "not a regular file"), ("sparse.yaml", "more than the"), (".", "Is a directory")):
        with pytest.raises(UserError, match=f"cannot read camera file: .*{message}"):
            Camera.from_file(tmp_path / name, *SIZE)


def test_it_can_take_the_place_of_a_camera_info(tmp_path: Path) -> None:
    """For recordings without one: K and D for raw images, P for rectified ones."""
    found = read_calibration(write(tmp_path, OST))
    assert camera_from_info(found, "f").P.flatten().tolist() == KP
    raw = camera_from_info(found, "f", rectified=False)
    assert raw.K.flatten().tolist() == K
    assert undistortion_maps(found, raw) is not None


@pytest.mark.parametrize("model", ["radtan", "equidistant"])
def test_raw_images_are_undistorted_with_k_and_d(tmp_path: Path, model: str) -> None:
    """A spot in the raw image is found where the pinhole camera with K sees it, as cv2 computes for one point."""
    text = KALIBR.replace("radtan", model).replace("[0, 0, 0, 0]", "[-0.2, 0.05, 0.001, -0.002]")
    pixels = np.zeros((192, 640, 3), np.uint8)
    cv2.circle(pixels, (500, 150), 4, (255, 255, 255), -1)
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    sample = ImageFolder(tmp_path / "a.png", write(tmp_path, text), rectified=False)[0]
    assert sample.camera.P.flatten().tolist() == KP
    points, matrix, d = np.array([[[500.0, 150.0]]]), np.array(MATRIX), np.array([-0.2, 0.05, 0.001, -0.002])
    undistort = cv2.fisheye.undistortPoints if model == "equidistant" else cv2.undistortPoints
    expected = undistort(points, matrix, d, P=matrix)[0, 0]
    rows, columns = np.nonzero(sample.image[0].numpy() > 100)
    assert [columns.mean(), rows.mean()] == pytest.approx(expected, abs=1)
    assert np.abs(expected - [500, 150]).max() > 5
    with pytest.raises(UserError, match="has no K of raw images"):
        ImageFolder(tmp_path / "a.png", write(tmp_path, f"P2: {LINE}"), rectified=False)[0]


def test_a_choice_goes_with_a_folder_and_its_images(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((192, 640, 3), np.uint8))
    (tmp_path / "calib").mkdir()
    write(tmp_path / "calib", f"P0: {text_of(OTHER)}\nP1: {LINE}\n", "a.txt")
    for camera in (f"{tmp_path}/calib:P1", f"{tmp_path}/calib/a.txt:P1"):
        images = ImageFolder(tmp_path / "a.png", camera)
        assert images[0].camera.P.flatten().tolist() == P2
        assert images.files(0)["calib"] == tmp_path / "calib" / "a.txt"
    for suffix in (".yaml", ".yml", ".xml", ".json"):
        (tmp_path / f"c{suffix}").mkdir()
        write(tmp_path / f"c{suffix}", KALIBR, f"a{suffix}")
        assert ImageFolder(tmp_path / "a.png", tmp_path / f"c{suffix}")[0].camera.fx == 371.8


# -- any text ---------------------------------------------------------------------------------------------------------
def outcome(read: Callable[[], Camera]) -> Camera | str:
    """The camera, or the one line that says why there is none; any other error goes through."""
    try:
        return read()
    except UserError as error:
        said = str(error)
    assert len(said.splitlines()) == 1
    return said


WHOLE = [*KITTI_SPELLINGS.values(), *SPELLINGS.values(), *TWO.values(), ""]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(WHOLE),
    st.lists(st.tuples(st.integers(0, 900), st.text(max_size=6) | st.sampled_from(["1e999", "nan", "[", "&a", "*a"]))),
    st.integers(0, 2000),
)
def test_any_text(tmp_path: Path, whole: str, changes: list[tuple[int, str]], keep: int) -> None:
    text = whole[:keep]
    for at, new in changes:
        text = text[:at] + new + text[at + len(new) :]
    path = write(tmp_path, text.encode("utf-8", "surrogatepass"))
    assert isinstance(outcome(lambda: Camera.from_file(path, *SIZE)), Camera | str)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path, data)
    assert isinstance(outcome(lambda: Camera.from_file(path, *SIZE)), Camera | str)
