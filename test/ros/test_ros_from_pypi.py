"""vision_msgs, cv_bridge and message_filters as ROS documents them, wherever they come from: a ROS distribution or
tools/ros_from_pypi."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace

import cv2
import message_filters
import numpy as np
import pytest
import rclpy
from builtin_interfaces.msg import Time
from cv_bridge import CvBridge, CvBridgeError
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header
from vision_msgs.msg import (
    BoundingBox3D,
    Detection2D,
    Detection2DArray,
    Detection3D,
    Detection3DArray,
    LabelInfo,
    ObjectHypothesisWithPose,
    VisionClass,
)

bridge = CvBridge()
rng = np.random.default_rng(0)


def is_ours(package: str) -> bool:
    try:
        return "skd" in version(package)
    except PackageNotFoundError:
        return False


@pytest.fixture
def executor():
    """An executor with its own context, shut down afterwards."""
    context = Context()
    rclpy.init(context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.new_node = lambda name: _add_node(executor, rclpy.create_node(name, context=context))
    yield executor
    for node in list(executor.get_nodes()):
        node.destroy_node()
    executor.shutdown()
    rclpy.try_shutdown(context=context)


def _add_node(executor, node):
    executor.add_node(node)
    return node


def spin_until(executor, done, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        executor.spin_once(timeout_sec=0.05)
    assert done()


# --- vision_msgs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "type_hash"),
    [
        (Detection3DArray, "RIHS01_793f5eab9595ac1c0da07873cc859db42eae51f0ee76056db8562515d830e018"),
        (Detection2DArray, "RIHS01_214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968"),
    ],
)
def test_detections_are_the_very_type_of_the_released_vision_msgs(executor, kind, type_hash):
    node = executor.new_node("type_hash")
    node.create_publisher(kind, "detections", 1)
    spin_until(executor, lambda: node.get_publishers_info_by_topic("detections"))
    (info,) = node.get_publishers_info_by_topic("detections")
    assert str(info.topic_type_hash) == type_hash


def test_detections_and_labels_arrive_with_every_field(executor):
    detection = Detection3D(id="7", bbox=BoundingBox3D(), results=[ObjectHypothesisWithPose()])
    detection.bbox.center.position.z = 12.5
    detection.bbox.size.x = 3.9
    detection.results[0].hypothesis.class_id = "car"
    detection.results[0].hypothesis.score = 0.5
    detection.results[0].pose.covariance[35] = 0.25
    sent = Detection3DArray(header=Header(frame_id="camera"), detections=[detection, Detection3D()])
    labels = LabelInfo(class_map=[VisionClass(class_id=2, class_name="cyclist")], threshold=0.25)
    flat = Detection2D(id="8", results=[ObjectHypothesisWithPose()])
    flat.bbox.center.position.x, flat.bbox.center.theta, flat.bbox.size_y = 3.5, 0.25, 7.0
    boxes = Detection2DArray(header=Header(frame_id="camera"), detections=[flat, Detection2D()])

    node, received = executor.new_node("round_trip"), {}
    publishers = []
    for name, message in (("detections", sent), ("labels", labels), ("boxes", boxes)):
        node.create_subscription(type(message), name, lambda m, name=name: received.__setitem__(name, m), 1)
        publishers.append((node.create_publisher(type(message), name, 1), message))
    spin_until(executor, lambda: all(p.get_subscription_count() for p, _ in publishers))
    for publisher, message in publishers:
        publisher.publish(message)
    spin_until(executor, lambda: len(received) == 3)
    assert received == {"detections": sent, "labels": labels, "boxes": boxes}


# --- cv_bridge -----------------------------------------------------------------------------------------------------


def image_message(array: np.ndarray, encoding: str, padding: int = 0, **fields) -> Image:
    """An Image message of `array` with `padding` bytes of rubbish at the end of each row."""
    rows = array.reshape(array.shape[0], -1).view(np.uint8)
    rows = np.hstack([rows, np.full((len(rows), padding), 0xAB, np.uint8)])
    return Image(
        height=array.shape[0],
        width=array.shape[1],
        encoding=encoding,
        step=rows.shape[1],
        data=rows.tobytes(),
        **fields,
    )


@pytest.mark.parametrize(
    ("encoding", "dtype", "channels"),
    [
        ("rgb8", np.uint8, 3),
        ("bgr8", np.uint8, 3),
        ("rgba8", np.uint8, 4),
        ("bgra8", np.uint8, 4),
        ("mono8", np.uint8, 1),
        ("mono16", np.uint16, 1),
        ("bgr16", np.uint16, 3),
        ("8UC1", np.uint8, 1),
        ("8UC3", np.uint8, 3),
        ("16UC1", np.uint16, 1),
        ("32FC1", np.float32, 1),
        ("64FC2", np.float64, 2),
        ("bayer_rggb8", np.uint8, 1),
        ("bayer_gbrg16", np.uint16, 1),
        ("yuv422", np.uint8, 2),
        ("yuv422_yuy2", np.uint8, 2),
    ],
)
@pytest.mark.parametrize("padded_pixels", [0, 2])
def test_the_pixels_come_out_as_they_went_in(encoding, dtype, channels, padded_pixels):
    shape = (5, 6) if channels == 1 else (5, 6, channels)
    array = rng.integers(0, 256, shape).astype(dtype)
    message = image_message(array, encoding, padded_pixels * channels * array.itemsize)
    image = bridge.imgmsg_to_cv2(message)
    assert image.shape == shape
    assert image.dtype == dtype
    np.testing.assert_array_equal(image, array)


@pytest.mark.skipif(
    not is_ours("cv_bridge"), reason="the real cv_bridge needs step to be a multiple of the pixel's size"
)
def test_row_padding_of_any_size_is_honoured():
    array = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(bridge.imgmsg_to_cv2(image_message(array, "bgr8", 11)), array)
    depth = rng.random((4, 3), dtype=np.float32)
    np.testing.assert_array_equal(bridge.imgmsg_to_cv2(image_message(depth, "32FC1", 2)), depth)


def test_big_endian_data_come_out_in_this_machines_order():
    array = np.array([[1, 256], [4660, 65535]], np.uint16)
    image = bridge.imgmsg_to_cv2(image_message(array.astype(">u2"), "mono16", is_bigendian=1))
    assert image.dtype.isnative
    np.testing.assert_array_equal(image, array)


RED = {"rgb8": [255, 0, 0], "bgr8": [0, 0, 255], "rgba8": [255, 0, 0, 255], "bgra8": [0, 0, 255, 255]}


@pytest.mark.parametrize("source", RED)
@pytest.mark.parametrize("target", [*RED, "mono8"])
def test_red_stays_red(source, target):
    array = np.full((2, 2, len(RED[source])), RED[source], np.uint8)
    image = bridge.imgmsg_to_cv2(image_message(array, source), target)
    expected = 76 if target == "mono8" else RED[target]  # 0.299 * 255
    np.testing.assert_array_equal(image, np.full_like(image, expected))
    assert image.shape == ((2, 2) if target == "mono8" else (2, 2, len(RED[target])))


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_patterns_are_named_from_the_top_left(pattern):
    levels = {"r": 200, "g": 100, "b": 50}
    tile = np.array([levels[c] for c in pattern], np.uint8).reshape(2, 2)
    image = bridge.imgmsg_to_cv2(image_message(np.tile(tile, (4, 4)), f"bayer_{pattern}8"), "rgb8")
    np.testing.assert_array_equal(image[2:-2, 2:-2], np.full((4, 4, 3), [200, 100, 50]))


@pytest.mark.parametrize(
    ("encoding", "pixels"), [("yuv422", [128, 90, 128, 200]), ("yuv422_yuy2", [90, 128, 200, 128])]
)
def test_yuv_without_colour_is_grey(encoding, pixels):
    array = np.array([pixels], np.uint8).reshape(1, 2, 2)  # U and V at 128, Y at 90 and 200
    np.testing.assert_array_equal(bridge.imgmsg_to_cv2(image_message(array, encoding), "mono8"), [[90, 200]])
    rgb = bridge.imgmsg_to_cv2(image_message(array, encoding), "rgb8").astype(int)
    assert np.ptp(rgb, axis=2).max() == 0
    np.testing.assert_array_equal(rgb[0, :, 0], np.rint((np.array([90, 200]) - 16) * 255 / 219))


def test_8_and_16_bit_are_rescaled_and_other_depths_are_not():
    mono16 = image_message(np.array([[0, 257, 65535]], np.uint16), "mono16")
    np.testing.assert_array_equal(bridge.imgmsg_to_cv2(mono16, "mono8"), [[0, 1, 255]])
    bgr8 = image_message(np.array([[[0, 1, 255]]], np.uint8), "bgr8")
    np.testing.assert_array_equal(bridge.imgmsg_to_cv2(bgr8, "rgb16"), [[[65535, 257, 0]]])
    metres = image_message(np.array([[-1.0, 2.5, 3.5, 1e6]], np.float32), "32FC1")
    np.testing.assert_array_equal(bridge.imgmsg_to_cv2(metres, "16UC1"), [[0, 2, 4, 65535]])  # rounded to even, clipped
    millimetres = image_message(np.array([[1500]], np.uint16), "16UC1")
    np.testing.assert_array_equal(bridge.imgmsg_to_cv2(millimetres, "32FC1"), [[1500.0]])


@pytest.mark.parametrize(
    ("encoding", "target"),
    [
        ("bgr9", "passthrough"),
        ("", "bgr8"),
        ("8UC3", "bgr8"),
        ("16UC1", "mono16"),
        ("bgr8", "mono99"),
        ("bgr8", "8UC1"),
    ],
)
def test_conversions_that_make_no_sense_are_errors(encoding, target):
    with pytest.raises(CvBridgeError):
        bridge.imgmsg_to_cv2(image_message(np.zeros((2, 2, 3), np.uint8), encoding), target)


only_ours = pytest.mark.skipif(not is_ours("cv_bridge"), reason="the real cv_bridge takes any step")


@pytest.mark.parametrize(
    "fields", [{"height": 3}, pytest.param({"step": 5}, marks=only_ours), pytest.param({"step": 7}, marks=only_ours)]
)
def test_data_that_do_not_fit_the_size_are_an_error(fields):
    message = image_message(np.zeros((2, 2, 3), np.uint8), "bgr8")
    for name, value in fields.items():
        setattr(message, name, value)
    with pytest.raises((CvBridgeError, TypeError)):
        bridge.imgmsg_to_cv2(message)


@pytest.mark.parametrize(
    ("shape", "dtype", "own"), [((3, 4), "uint8", "8UC1"), ((3, 4, 3), "uint16", "16UC3"), ((3, 4), "float32", "32FC1")]
)
def test_arrays_become_messages(shape, dtype, own):
    array = rng.integers(0, 200, shape).astype(dtype)
    header = Header(frame_id="camera", stamp=Time(sec=3, nanosec=4))
    message = bridge.cv2_to_imgmsg(array, header=header)
    assert (message.height, message.width, message.encoding, message.header) == (3, 4, own, header)
    assert message.step == array[0].nbytes
    assert bytes(message.data) == array.tobytes()
    np.testing.assert_array_equal(bridge.imgmsg_to_cv2(message), array)


def test_an_array_that_is_no_such_image_is_an_error():
    with pytest.raises(CvBridgeError):
        bridge.cv2_to_imgmsg(np.zeros((2, 2), np.uint8), "bgr8")
    with pytest.raises(TypeError):
        bridge.cv2_to_imgmsg([[1, 2]])


def test_every_second_column_is_copied_as_seen():
    array = rng.integers(0, 256, (4, 8, 3), dtype=np.uint8)[:, ::2]  # not contiguous
    np.testing.assert_array_equal(bridge.imgmsg_to_cv2(bridge.cv2_to_imgmsg(array, "rgb8")), array)


def test_compressed_images():
    bgr = np.zeros((32, 16, 3), np.uint8)
    bgr[:16] = (255, 0, 0)
    message = bridge.cv2_to_compressed_imgmsg(bgr, "png")
    assert message.format == "png"
    np.testing.assert_array_equal(bridge.compressed_imgmsg_to_cv2(message), bgr)
    np.testing.assert_array_equal(bridge.compressed_imgmsg_to_cv2(message, "rgb8"), bgr[..., ::-1])
    jpeg = bridge.compressed_imgmsg_to_cv2(bridge.cv2_to_compressed_imgmsg(bgr), "bgr8")
    assert np.abs(jpeg.astype(int) - bgr)[[*range(12), *range(20, 32)]].max() < 8  # JPEG smears colour at the border
    depth = rng.integers(0, 65536, (3, 4), dtype=np.uint16)
    np.testing.assert_array_equal(bridge.compressed_imgmsg_to_cv2(bridge.cv2_to_compressed_imgmsg(depth, "png")), depth)


@pytest.mark.skipif(not is_ours("cv_bridge"), reason="the real cv_bridge takes every compressed image for BGR")
def test_compressed_grey_and_broken_images():
    grey = np.full((4, 4), 90, np.uint8)
    message = CompressedImage(format="png", data=cv2.imencode(".png", grey)[1].tobytes())
    np.testing.assert_array_equal(bridge.compressed_imgmsg_to_cv2(message, "rgb8"), np.full((4, 4, 3), 90))
    for data in (b"", b"no image"):
        with pytest.raises(CvBridgeError, match="cannot decode"):
            bridge.compressed_imgmsg_to_cv2(CompressedImage(format="jpeg", data=data), "bgr8")


# --- message_filters -----------------------------------------------------------------------------------------------


def stamped(seconds: float, name: str = "") -> SimpleNamespace:
    nanoseconds = round(seconds * 1e9)
    stamp = Time(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)
    return SimpleNamespace(header=SimpleNamespace(stamp=stamp), seconds=seconds, name=name)


def pair(make, *arguments):
    """Two inputs, their synchronizer, and the list of (seconds of a, seconds of b) it has put out."""
    a, b, matched = message_filters.SimpleFilter(), message_filters.SimpleFilter(), []
    synchronizer = make([a, b], *arguments)
    synchronizer.registerCallback(lambda first, second: matched.append((first.seconds, second.seconds)))
    return lambda t: a.signalMessage(stamped(t)), lambda t: b.signalMessage(stamped(t)), matched, synchronizer


def test_callbacks_get_the_message_and_their_own_arguments():
    source, calls = message_filters.SimpleFilter(), []
    source.registerCallback(lambda *args: calls.append(args), 1, "two")
    source.registerCallback(lambda *args: calls.append(args))
    source.signalMessage("m")
    assert calls == [("m", 1, "two"), ("m",)]


def test_equal_stamps_are_paired_whatever_the_order():
    a, b, matched, _ = pair(message_filters.TimeSynchronizer, 5)
    a(1.0), a(2.0), b(2.0), b(1.0), b(1.000000001), a(3.0)
    assert matched == [(2.0, 2.0), (1.0, 1.0)]


def test_a_match_is_put_out_once():
    a, b, matched, _ = pair(message_filters.TimeSynchronizer, 5)
    a(1.0), b(1.0), b(1.0), b(1.0)
    assert matched == [(1.0, 1.0)]


def test_beyond_the_queue_the_oldest_stamp_is_dropped():
    a, b, matched, _ = pair(message_filters.TimeSynchronizer, 2)
    a(3.0), a(1.0), a(2.0)  # 1.0 is dropped although it was not the first to come
    b(1.0), b(2.0), b(3.0)
    assert matched == [(2.0, 2.0), (3.0, 3.0)]
    a(0.5), b(0.5)  # there is room again: only b's 1.0 is waiting
    assert matched[2:] == [(0.5, 0.5)]


def test_the_nearest_within_the_slop_is_taken():
    a, b, matched, _ = pair(message_filters.ApproximateTimeSynchronizer, 10, 0.1)
    b(1.00), b(1.08), b(0.95), a(1.06)
    assert matched == [(1.06, 1.08)]
    a(1.01)
    assert matched[1:] == [(1.01, 1.00)]


def test_the_slop_itself_is_too_far():
    a, b, matched, _ = pair(message_filters.ApproximateTimeSynchronizer, 10, 0.5)
    a(1.0), b(1.5)
    assert matched == []
    b(1.499999999)
    assert matched == [(1.0, 1.499999999)]


def test_three_inputs_must_all_lie_within_the_slop():
    sources = [message_filters.SimpleFilter() for _ in range(3)]
    matched = []
    message_filters.ApproximateTimeSynchronizer(sources, 10, 0.1).registerCallback(
        lambda *m: matched.append(tuple(x.seconds for x in m))
    )
    for source, t in zip(sources, (1.00, 1.14, 1.07), strict=True):  # each near the last, but 0.14 s apart
        source.signalMessage(stamped(t))
    assert matched == []
    sources[0].signalMessage(stamped(1.06))
    assert matched == [(1.06, 1.14, 1.07)]


def test_a_used_message_is_not_used_again():
    a, b, matched, _ = pair(message_filters.ApproximateTimeSynchronizer, 10, 0.1)
    a(1.0), b(1.01), b(1.02)
    assert matched == [(1.0, 1.01)]


def test_real_images_and_calibrations_are_paired(executor):
    node, pairs = executor.new_node("pairs"), []
    image = message_filters.Subscriber(node, Image, "image", qos_profile=qos_profile_sensor_data)
    info = message_filters.Subscriber(node, CameraInfo, "camera_info")
    assert image.getTopic() == "image"
    synchronizer = message_filters.TimeSynchronizer([image, info], 5)
    synchronizer.registerCallback(lambda *messages: pairs.append(messages))
    publishers = [node.create_publisher(Image, "image", 5), node.create_publisher(CameraInfo, "camera_info", 5)]
    spin_until(executor, lambda: all(p.get_subscription_count() for p in publishers))
    for second in range(3):
        header = Header(stamp=Time(sec=second), frame_id="camera")
        publishers[0].publish(Image(header=header, height=1, width=1, step=3, encoding="rgb8", data=bytes(3)))
        publishers[1].publish(CameraInfo(header=header, width=1, height=1))
    spin_until(executor, lambda: len(pairs) == 3)
    assert [(type(i), i.header.stamp.sec, type(c), c.header.stamp.sec) for i, c in pairs] == [
        (Image, s, CameraInfo, s) for s in range(3)
    ]


# --- the installer -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not is_ours("vision_msgs"), reason="ROS is not from tools/ros_from_pypi here")
def test_the_installer_finds_everything_present(request):
    script = request.config.rootpath / "tools" / "ros_from_pypi" / "install.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split(": ")[2] for line in done.stdout.splitlines()] == ["present"] * 4
