"""A calibration file in the place of camera_info: what is made of it, and the node that is given one."""

from __future__ import annotations

import numpy as np
import pytest
import rclpy
import yaml
from ros_harness import HEIGHT, RELIABLE, WIDTH, Nodes, Rig, camera_info, compressed, image_message, picture
from sensor_msgs.msg import CompressedImage, Image
from test_node import FakeDetector

from skd_core.errors import UserError
from skd_wm3d_ros.calibration_file import CalibrationFile, size_of
from skd_wm3d_ros.cameras import CameraFileError, read_cameras
from skd_wm3d_ros.decoding import Decoder
from skd_wm3d_ros.inputs import CameraInput

P = [100.0, 0.0, 79.5, 0.0, 0.0, 101.0, 59.5, 0.0, 0.0, 0.0, 1.0, 0.0]
K = [90.0, 0.0, 80.0, 0.0, 91.0, 60.0, 0.0, 0.0, 1.0]
D = [-0.2, 0.05, 0.0, 0.0, 0.0]


@pytest.fixture
def kitti(tmp_path):
    (tmp_path / "calib.txt").write_text(f"P0: {' '.join(['0'] * 12)}\nP2: {' '.join(map(str, P))}\n")
    return tmp_path / "calib.txt"


@pytest.fixture
def ros_file(tmp_path):
    content = {
        "image_width": WIDTH,
        "image_height": HEIGHT,
        "camera_name": "front",
        "camera_matrix": {"rows": 3, "cols": 3, "data": K},
        "distortion_model": "plumb_bob",
        "distortion_coefficients": {"rows": 1, "cols": 5, "data": D},
        "projection_matrix": {"rows": 3, "cols": 4, "data": P},
    }
    (tmp_path / "ost.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "ost.yaml"


@pytest.fixture
def camchain(tmp_path):
    camera = {
        "camera_model": "pinhole",
        "distortion_coeffs": D[:4],
        "distortion_model": "radtan",
        "intrinsics": [K[0], K[4], K[2], K[5]],
        "resolution": [WIDTH, HEIGHT],
        "rostopic": "/cam0",
    }
    (tmp_path / "camchain.yaml").write_text(yaml.safe_dump({"cam0": camera, "cam1": camera | {"resolution": [4, 4]}}))
    return f"{tmp_path}/camchain.yaml:cam0"


def camera_of(image, info, rectified=True):
    return Decoder("/image", "FILE", rectified)(image, info)


@pytest.mark.parametrize("name", ["kitti", "ros_file"])
@pytest.mark.parametrize("make", [image_message, lambda pixels: compressed(pixels, ".jpg")])
def test_rectified_images_have_the_file_s_p(request, name, make):
    image = make(picture(1))
    image.header.frame_id = "front_optical"
    info = CalibrationFile(request.getfixturevalue(name))(image)
    assert info.header == image.header
    _, camera = camera_of(image, info)
    assert camera.P.flatten().tolist() == P
    assert (camera.width, camera.height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("name", ["ros_file", "camchain"])
def test_raw_images_are_undistorted_with_k_and_d(request, name):
    image, file = image_message(picture(1)), CalibrationFile(request.getfixturevalue(name), rectified=False)
    pixels, camera = camera_of(image, file(image), rectified=False)
    assert camera.K.flatten().tolist() == K
    info = camera_info()
    info.k, info.d, info.p, info.distortion_model = K, D, [0.0] * 12, "plumb_bob"
    expected, _ = camera_of(image, info, rectified=False)
    np.testing.assert_array_equal(pixels, expected)
    assert (pixels != picture(1)).any()


def test_an_image_of_another_size_than_the_file_s_is_named(ros_file):
    image = image_message(picture(1)[: HEIGHT // 2])
    with pytest.raises(Exception, match=f"/image is {WIDTH}x{HEIGHT // 2}, but FILE is for {WIDTH}x{HEIGHT}"):
        camera_of(image, CalibrationFile(ros_file)(image))


@pytest.mark.parametrize(
    ("text", "rectified"),
    [("hello", True), ("P2: 1 2 3", True), ("{image_width: 4}", True), ("hello", False), ("P2: 1 2 3", False)],
)
def test_a_file_that_is_none_is_named(tmp_path, text, rectified):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=r"c\.yaml") as caught:
        CalibrationFile(tmp_path / "c.yaml", rectified)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UserError, match="nowhere"):
        CalibrationFile("/nowhere/c.yaml", rectified)


def test_raw_images_need_k_and_d(kitti):
    with pytest.raises(UserError, match="K and D"):
        CalibrationFile(kitti, rectified=False)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_size_of_what_is_no_picture(data):
    assert size_of(CompressedImage(data=data)) == (1, 1)
    assert size_of(Image()) == (1, 1)


def test_every_image_finds_the_file_s_camera_info(ros, kitti):
    """Also two images of one stamp, and without waiting."""
    node, pairs = rclpy.create_node("calibrated"), []
    camera = CameraInput(node, lambda image, info: pairs.append((image, info)), calibration=CalibrationFile(kitti))
    try:
        assert camera.camera_info_topic == str(kitti)
        assert camera.problem() == "no image on /image yet"
        assert not node.get_publishers_info_by_topic("/camera_info")
        assert not node.get_subscriptions_info_by_topic("/camera_info")
        for second in (5, 6, 6, 0, 7):
            image = image_message(picture(1))
            image.header.stamp.sec = second
            camera._sources[0].signalMessage(image)
        assert [image.header.stamp.sec for image, _ in pairs] == [5, 6, 6, 0, 7]
        assert all(info.header == image.header for image, info in pairs)
        camera.look()
        assert camera.problem() is None
    finally:
        camera.destroy()
        node.destroy_node()


def test_cameras_with_a_file_need_no_camera_info(tmp_path):
    row = {"name": "front", "image_topic": "/front/image", "parameters": {"calibration": "/c.yaml"}}
    (tmp_path / "cameras.yaml").write_text(yaml.safe_dump({"cameras": [row]}))
    (camera,) = read_cameras(tmp_path / "cameras.yaml")
    assert camera.remappings == [("image", "/front/image")]
    del row["parameters"]
    (tmp_path / "cameras.yaml").write_text(yaml.safe_dump({"cameras": [row]}))
    with pytest.raises(CameraFileError, match="camera_info_topic must be given"):
        read_cameras(tmp_path / "cameras.yaml")


@pytest.fixture
def nodes(ros):
    rig = Rig(RELIABLE)
    made = Nodes(rig)
    yield made, rig
    made.close()
    rig.close()


def answer(rig, image):
    """What the node says of an image that is published without camera_info, again and again until it is answered."""
    stamps = []

    def answered():
        stamps.append(rig.send(image))
        return any(stamp in rig.answers for stamp in stamps)

    rig.spin_until(answered, "detections")
    return next(rig.answers[stamp] for stamp in stamps if stamp in rig.answers)


def test_the_node_needs_no_camera_info(nodes, kitti, ros_file):
    made, rig = nodes
    seen = []

    class Watched(FakeDetector):
        def predict(self, image, camera, threshold, boxes2d=None):
            seen.append(camera)
            return super().predict(image, camera, threshold, boxes2d)

    detector = Watched()
    node = made.start(lambda path, device, precision: detector, calibration=str(kitti))
    assert len(answer(rig, image_message(picture(1))).detections) == 2
    assert seen[-1].P.flatten().tolist() == P
    node.trigger_deactivate()
    seen.clear()
    assert rig.set(calibration=str(ros_file), image_is_rectified=False, image_transport="compressed").successful
    node.trigger_activate()
    answer(rig, compressed(picture(1), ".png"))
    assert seen[-1].K.flatten().tolist() == K


def test_a_file_that_is_none_is_the_node_s_failure(nodes, tmp_path):
    made, rig = nodes
    file = str(tmp_path / "nothing.yaml")
    node = made.start(lambda *_: FakeDetector(), activate=False, calibration=file)
    assert node.trigger_configure().name == "SUCCESS"
    assert node.trigger_activate().name == "FAILURE"
    rig.wait_for_diagnostic("cannot activate", file)
