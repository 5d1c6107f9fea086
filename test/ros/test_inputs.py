"""Decoding, undistortion, pairing and loss, each without a network and most without a node."""

from __future__ import annotations

import array
import time

import cv2
import numpy as np
import pytest
import rclpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ros_harness import (
    HEIGHT,
    MALFORMED_COMPRESSED,
    MALFORMED_IMAGES,
    MALFORMED_INFOS,
    NEGATIVE_STAMPS,
    RELIABLE,
    TIMEOUT,
    WIDTH,
    camera_info,
    changed,
    compressed,
    image_message,
    picture,
)  # fmt: skip
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from skd_wm3d_ros.decoding import Decoder
from skd_wm3d_ros.inputs import CAMERA_INFO_WAIT, CAMERA_TIMEOUT, LATCHED_AFTER, CameraInput
from skd_wm3d_ros.message_loss import LossMeter
from skd_wm3d_ros.qos import latched_qos
from skd_wm3d_ros.rejection import Rejection

K = np.array([[100.0, 0, 79.5], [0, 100, 59.5], [0, 0, 1]])


def decode(image, info=None, rectified=True):
    return Decoder("/image", "/camera_info", rectified)(image, info or camera_info())


# -- encodings --------------------------------------------------------------------------------------------------------
def grey_message(encoding, value=100, width=WIDTH, height=HEIGHT):
    """An image of one grey value in any encoding."""
    if encoding.startswith("yuv422") or encoding in ("uyvy", "yuyv"):
        y_first = encoding in ("yuv422_yuy2", "yuyv")
        luma = round(16 + value * 219 / 255)
        pixels = np.full((height, width, 2), 128, np.uint8)
        pixels[..., 0 if y_first else 1] = luma
    elif encoding.endswith("16"):
        shape = (height, width) if encoding.startswith(("mono", "bayer")) else (height, width, 3)
        pixels = np.full(shape, value * 257, np.uint16)
    else:
        channels = {"mono8": 1, "8UC1": 1, "rgba8": 4, "bgra8": 4, "8UC4": 4}.get(encoding, 3)
        channels = 1 if encoding.startswith("bayer") else channels
        pixels = np.full((height, width) if channels == 1 else (height, width, channels), value, np.uint8)
    return image_message(pixels, encoding)


BAYER = [f"bayer_{p}{b}" for p in ("rggb", "bggr", "gbrg", "grbg") for b in (8, 16)]
ENCODINGS = [
    "rgb8", "bgr8", "rgba8", "bgra8", "mono8", "mono16", "rgb16", "bgr16", *BAYER, "yuv422", "yuv422_yuy2", "8UC1",
    "8UC3", "8UC4",
]  # fmt: skip


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_becomes_rgb(encoding):
    pixels, _ = decode(grey_message(encoding))
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - 100).max() <= 1


@pytest.mark.parametrize(("encoding", "order"), [("rgb8", [0, 1, 2]), ("bgr8", [2, 1, 0]), ("8UC3", [2, 1, 0])])
@pytest.mark.parametrize("padding", [0, 1, 7, 12])
def test_channel_order_and_padding_of_any_size(encoding, order, padding):
    pixels = picture(1)
    rows = np.ascontiguousarray(pixels[..., order]).reshape(HEIGHT, -1)
    rows = np.hstack([rows, np.full((HEIGHT, padding), 77, np.uint8)])
    message = Image(
        height=HEIGHT, width=WIDTH, encoding=encoding, step=rows.shape[1], data=array.array("B", rows.tobytes())
    )
    np.testing.assert_array_equal(decode(message)[0], pixels)


def test_big_endian_16_bit():
    message = image_message(np.full((HEIGHT, WIDTH), 100 * 257, ">u2"), "mono16")
    message.is_bigendian = 1
    assert np.abs(decode(message)[0].astype(int) - 100).max() <= 1


def test_a_compressed_mosaic_a_padded_jpeg_and_nv12_reach_the_network_in_colour():
    """As the bags' reader has them: both call one decoder (test_decoding.py)."""
    mosaic = np.zeros((HEIGHT, WIDTH), np.uint8)
    mosaic[::2, ::2], mosaic[1::2, 1::2] = 250, 30  # red, blue
    mosaic[::2, 1::2] = mosaic[1::2, ::2] = 100
    message = changed(compressed(mosaic[:, ::-1], ".png"), format="bayer_rggb8; png compressed bayer_rggb8")
    assert (decode(message)[0][2:-2, 2:-2] == [250, 100, 30]).all()

    whole = compressed(picture(1), ".jpg")
    padded = changed(compressed(picture(1), ".jpg"), data=whole.data + array.array("B", bytes(512)))
    np.testing.assert_array_equal(decode(padded)[0], decode(whole)[0])

    planes = np.concatenate([np.full((HEIGHT, WIDTH), 81), np.tile((90, 240), (HEIGHT // 2, WIDTH // 2))])
    data = array.array("B", planes.astype(np.uint8).tobytes())
    red = Image(height=HEIGHT, width=WIDTH, encoding="nv12", step=WIDTH, data=data)
    assert np.abs(decode(red)[0].astype(int) - [255, 0, 0]).max() <= 2


def test_plumb_bob_with_8_numbers_undistorts_as_with_5():
    d = [-0.2, 0.05, 0.001, -0.002, 0.01]
    image = image_message(picture(1))
    short = decode(image, changed(camera_info(), d=d), rectified=False)[0]
    np.testing.assert_array_equal(decode(image, changed(camera_info(), d=[*d, 0, 0, 0]), rectified=False)[0], short)
    assert (short != picture(1)).any()


# -- what is malformed ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("image", "kind", "said"), MALFORMED_IMAGES.values(), ids=MALFORMED_IMAGES)
def test_malformed_images(image, kind, said):
    with pytest.raises(Rejection) as caught:
        decode(image())
    assert caught.value.kind == kind
    assert said in str(caught.value)
    assert "/image" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("image", "said"), MALFORMED_COMPRESSED.values(), ids=MALFORMED_COMPRESSED)
def test_malformed_compressed_images(image, said):
    with pytest.raises(Rejection, match=said) as caught:
        decode(image())
    assert caught.value.kind == "compressed data"


@pytest.mark.parametrize(
    "image",
    [
        lambda: changed(image_message(picture(1)), encoding="32FC1"),
        lambda: image_message(picture(1)[:, :33, :2], "yuv422"),
    ],
)
def test_images_with_two_faults_are_rejected_for_either(image):
    with pytest.raises(Rejection) as caught:
        decode(image())
    assert caught.value.kind in ("encoding", "size")


@pytest.mark.parametrize(("fields", "said"), MALFORMED_INFOS.values(), ids=MALFORMED_INFOS)
def test_malformed_camera_info(fields, said):
    with pytest.raises(Rejection, match=said) as caught:
        decode(image_message(picture(1)), changed(camera_info(), **fields))
    assert caught.value.kind == "calibration"
    assert "/camera_info" in str(caught.value)


@pytest.mark.parametrize(
    ("model", "d", "said"),
    [
        ("fish", [0.1] * 4, "distortion_model 'fish' is not one of plumb_bob"),
        ("equidistant", [], "needs 4 coefficients in D, got 0"),
        ("plumb_bob", [0.1] * 3, "needs 4 or 5 coefficients in D, got 3"),
        ("equidistant", [0.1] * 5, "needs 4 coefficients in D, got 5"),
        ("rational_polynomial", [0.1] * 5, "needs 8 or 12 or 14"),
    ],
)
def test_malformed_distortion(model, d, said):
    info = changed(camera_info(), distortion_model=model, d=d)
    with pytest.raises(Rejection, match=said):
        decode(image_message(picture(1)), info, rectified=False)
    decode(image_message(picture(1)), info)  # of no concern to a rectified image


def test_after_a_bad_camera_info_the_next_good_one_counts():
    decoder = Decoder("/image", "/camera_info")
    for _ in range(2):
        with pytest.raises(Rejection):
            decoder(image_message(picture(1)), changed(camera_info(), k=[0.0] * 9))
        assert decoder(image_message(picture(1)), camera_info())[1].fx == 180


def test_exif_orientation_is_not_applied():
    """The calibration is for the pixels as stored; an upright phone photograph must not be turned under it."""
    plain = cv2.imencode(".jpg", picture(1))[1].tobytes()
    tiff = b"II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x00"
    exif = b"Exif\x00\x00" + tiff
    turned = plain[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + plain[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (WIDTH, HEIGHT, 3)
    assert decode(changed(compressed(picture(1), ".jpg"), data=array.array("B", turned)))[0].shape == (HEIGHT, WIDTH, 3)


# -- raw images -------------------------------------------------------------------------------------------------------
def raw_info(model, d, **fields):
    p = [500.0, 0, 0, -35, 0, 500, 0, 0, 0, 0, 1, 0]  # of a rectified image: must not matter
    return changed(CameraInfo(height=120, width=160, distortion_model=model, d=d, k=K.flatten(), p=p), **fields)


MODELS = [
    ("plumb_bob", [-0.2, 0.05, 0.001, -0.002, 0.0]),
    ("rational_polynomial", [0.3, 0.1, 0.0, 0.0, 0.01, 0.5, 0.15, 0.02]),
    ("equidistant", [0.05, -0.01, 0.002, 0.0]),
    ("equidistant", [0.0] * 4),  # no pinhole: r = f * theta
    ("fisheye", [0.0] * 4),
]
RAYS = np.array([[0.0, 0, 1], [0.4, 0.2, 1], [-0.5, -0.3, 1], [0.3, -0.4, 1]])


def distort(model, d, rays):
    points, zero = rays[:, None], np.zeros(3)
    if model in ("equidistant", "fisheye"):
        return cv2.fisheye.projectPoints(points, zero, zero, K, np.array(d))[0][:, 0]
    return cv2.projectPoints(points, zero, zero, K, np.array(d))[0][:, 0]


def spots(points, width=160, height=120):
    """A black image with a white blob at each point."""
    v, u = np.mgrid[:height, :width]
    bright = sum(np.exp(-((u - x) ** 2 + (v - y) ** 2) / 4) for x, y in points)
    return np.repeat((255 * np.minimum(bright, 1)).astype(np.uint8)[..., None], 3, 2)


def centroid(pixels, u, v, radius=6):
    x0, y0 = round(u) - radius, round(v) - radius
    window = pixels[max(y0, 0) : y0 + 2 * radius + 1, max(x0, 0) : x0 + 2 * radius + 1, 0].astype(float)
    rows, columns = np.mgrid[: window.shape[0], : window.shape[1]]
    assert window.sum() > 500, "nothing there"
    return (
        (columns * window).sum() / window.sum() + max(x0, 0),
        (rows * window).sum() / window.sum() + max(y0, 0),
    )


@pytest.mark.parametrize(("model", "d"), MODELS, ids=[m for m, _ in MODELS])
def test_a_raw_image_becomes_a_pinhole_image_with_its_k(model, d):
    seen = distort(model, d, RAYS)
    assert np.abs(seen - (RAYS @ K.T)[:, :2]).max() > 2, "the test needs distortion that shows"
    pixels, camera = decode(image_message(spots(seen)), raw_info(model, d), rectified=False)
    np.testing.assert_allclose(camera.P.numpy(), np.hstack([K, np.zeros((3, 1))]))
    for ray in RAYS:
        u, v = (K @ ray)[:2]
        np.testing.assert_allclose(centroid(pixels, u, v), (u, v), atol=0.3)


def test_a_raw_image_with_roi_and_binning():
    """D has no unit, so it stays as it is: the window (40, 20) of 80x80, binned by 2, sees each ray where K says."""
    model, d = MODELS[0]
    info = raw_info(model, d, binning_x=2, binning_y=2)
    info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height = 40, 20, 80, 80
    rays = np.array([[0.0, 0, 1], [0.25, 0.2, 1], [-0.3, -0.3, 1]])
    seen = (distort(model, d, rays) - [40, 20]) / 2
    pixels, camera = decode(image_message(spots(seen, 40, 40)), info, rectified=False)
    assert (camera.width, camera.height, camera.fx, camera.cx, camera.cy) == (40, 40, 50, 19.75, 19.75)
    for ray in rays:
        u, v = 50 * ray[0] + 19.75, 50 * ray[1] + 19.75
        np.testing.assert_allclose(centroid(pixels, u, v, 4), (u, v), atol=0.3)


@pytest.mark.parametrize(("model", "d"), [("plumb_bob", 5), ("plumb_bob", 0), ("rational_polynomial", 8), ("", 0)])
def test_a_raw_image_without_distortion_is_left_alone(model, d):
    info = changed(camera_info(), distortion_model=model, d=[0.0] * d)
    pixels, camera = decode(image_message(picture(1)), info, rectified=False)
    np.testing.assert_array_equal(pixels, picture(1))
    assert float(camera.P[0, 3]) == 0  # K's camera, not P's with its baseline


def test_rectified_image_with_roi_and_binning():
    info = changed(camera_info(), width=640, height=192, binning_x=2, binning_y=2)
    info.roi.x_offset, info.roi.width, info.roi.height = 20, 600, 192
    _, camera = decode(image_message(np.zeros((96, 300, 3), np.uint8)), info)
    assert (camera.fx, camera.cx, camera.cy, camera.width) == (90, (158.5 - 20) / 2, 47.25 / 2, 300)


def test_resolution_and_intrinsics_change_while_running():
    decoder = Decoder("/image", "/camera_info", rectified=False)
    small, large = raw_info(*MODELS[0]), raw_info(*MODELS[0], width=320, height=240)
    large.k = (K * [[2, 1, 2], [1, 2, 2], [1, 1, 1]]).flatten()
    for info in (small, large, small):
        pixels, camera = decoder(image_message(np.full((info.height, info.width, 3), 9, np.uint8)), info)
        assert pixels.shape[:2] == (camera.height, camera.width) == (info.height, info.width)
        assert camera.fx == info.k[0]
    with pytest.raises(Rejection, match="160x120, but /camera_info is for 320x240"):
        decoder(image_message(np.zeros((120, 160, 3), np.uint8)), large)


# -- pairing ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def node():
    rclpy.init()
    yield rclpy.create_node("pairing")
    rclpy.try_shutdown()


class Pairing:
    """A CameraInput that is fed by hand, as its subscriptions would."""

    def __init__(self, node, **options):
        self.node, self.pairs = node, []
        self.input = CameraInput(
            node, lambda i, c: self.pairs.append((i.header.stamp.sec, c.header.stamp.sec)), **options
        )

    def image(self, second, frame="camera"):
        self._signal(0, Image(header=header(second, frame)))

    def info(self, second, frame="camera"):
        self._signal(1, CameraInfo(header=header(second, frame)))

    def latched(self, second, frame="camera"):
        self.input._latched_arrived(CameraInfo(header=header(second, frame)))

    def wait_out(self, clock):
        """Let the images that wait have waited long enough, by a clock that the test moves on."""
        clock[0] += CAMERA_INFO_WAIT
        self.input._dispatch_expired()

    def wait(self, condition=None):
        until = time.monotonic() + TIMEOUT
        while not (condition() if condition else self.pairs) and time.monotonic() < until:
            rclpy.spin_once(self.node, timeout_sec=0.05)

    def _signal(self, index, message):
        self.input._sources[index].signalMessage(message)


def header(second, frame):
    message = Header(frame_id=frame)
    message.stamp.sec, message.stamp.nanosec = int(second), round(second % 1 * 1e9)
    return message


@pytest.fixture
def pairing(node):
    made = []

    def make(**options):
        made.append(Pairing(node, **options))
        return made[-1]

    yield make
    for each in made:
        each.input.destroy()


@pytest.mark.parametrize("topic", ["/cam/image", "/cam/image/compressed"])
def test_the_suffix_of_compressed_images_is_put_on_once(node, topic):
    other = rclpy.create_node("remapped", cli_args=["--ros-args", "-r", f"image:={topic}"])
    made = CameraInput(other, lambda image, info: None, transport="compressed")
    assert made.image_topic == made._subscriptions[0].topic_name == "/cam/image/compressed"
    made.destroy()
    other.destroy_node()


@pytest.fixture
def clock(monkeypatch):
    """Monotonic seconds, as a list of one number."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("first", ["image", "info"])
def test_equal_stamps_pair_in_either_order(pairing, first):
    p = pairing()
    for second in (5, 6, 7):
        for kind in (first, "info" if first == "image" else "image"):
            getattr(p, kind)(second)
    assert p.pairs == [(5, 5), (6, 6), (7, 7)]
    assert p.input.counts.pairs_with_latest_info == 0


@pytest.mark.parametrize("pause", [0.1, 2.5, 3600.0])
@pytest.mark.parametrize("first", ["image", "info"])
def test_after_any_pause_an_image_waits_for_its_own_camera_info(pairing, clock, pause, first):
    """Zoom alternates, the camera is slow: the camera_info before is no latched one, whatever its age."""
    p = pairing()
    for second in (5, 6, 7, 8):
        for kind in (first, "info" if first == "image" else "image"):
            getattr(p, kind)(second)
            clock[0] += 0.9 * CAMERA_INFO_WAIT
            p.input._dispatch_expired()
        clock[0] += pause
    assert p.pairs == [(5, 5), (6, 6), (7, 7), (8, 8)]
    assert p.input.counts.pairs_with_latest_info == 0


@pytest.mark.parametrize("use_latest_info", [True, False])
def test_a_camera_info_that_overtakes_another(pairing, use_latest_info):
    """As best effort may bring them: that is no clock set back, and no image loses its own."""
    p = pairing(use_latest_info=use_latest_info)
    for second in (5.9, 6.3, 7.0):
        p.image(second)
    for second in (6.3, 5.9, 7.0):
        p.info(second)
    assert sorted(p.pairs) == [(5, 5), (6, 6), (7, 7)]
    assert p.input.counts.pairs_with_latest_info == 0


def test_a_fast_camera_whose_camera_info_lags(pairing, clock):
    """The next image comes before the camera_info of this one: neither gets the other's."""
    p = pairing()
    p.info(1)
    for second in range(5, 12):
        p.image(second)
        clock[0] += 0.3 * CAMERA_INFO_WAIT
        p.input._dispatch_expired()
        if second > 6:
            p.info(second - 2)
    p.info(10)
    p.info(11)
    assert p.pairs == [(second, second) for second in range(5, 12)]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.floats(0, 0.3), st.floats(-0.04, 0.04), st.booleans()), min_size=1, max_size=12))
def test_images_keep_their_order_and_get_their_own_if_it_comes_in_time(pairing, clock, frames):
    """(seconds until the next frame, camera_info after its image, whether it is lost) in any mixture: every image is
    handed over once, in order, with its own camera_info if that was not lost, and else with one that was there."""
    p, events, now, sent = pairing(), [], 1.0, 0.0
    p.info(1)
    for second, (gap, lag, lost) in enumerate(frames, 5):
        now += gap
        events.append((now, "image", second))
        if not lost:
            sent = max(now + lag, sent)  # a topic keeps its order
            events.append((sent, "info", second))
    clock[0], begin = 1000.0, 1000.0
    for when, kind, second in sorted(events):
        for _ in range(len(p.input._waiting)):  # the timer, each time it is due before
            if p.input._waiting and p.input._waiting[0].due < begin + when:
                clock[0] = p.input._waiting[0].due
                p.input._dispatch_expired()
        clock[0] = begin + when
        getattr(p, kind)(second)
    for _ in events:
        p.wait_out(clock)
    assert [image for image, _ in p.pairs] == list(range(5, 5 + len(frames)))
    for (image, info), (_, _, lost) in zip(p.pairs, frames, strict=True):
        assert info == image or lost
        assert info != image or not lost


def test_an_executor_that_was_held_up_looks_for_the_camera_info_first(pairing, node):
    """Both the end of the wait and the camera_info are there when it goes on."""
    p = pairing()
    p.info(1)
    arrived = []
    other = rclpy.create_node("listener")
    other.create_subscription(CameraInfo, "/camera_info", arrived.append, RELIABLE)
    images, infos = (
        node.create_publisher(Image, "/image", RELIABLE),
        node.create_publisher(CameraInfo, "/camera_info", RELIABLE),
    )

    def seen():
        if not p.input.counts.images:
            images.publish(Image(header=header(50, "camera")))
        return p.input.counts.images

    def there():
        infos.publish(CameraInfo(header=header(50, "camera")))
        rclpy.spin_once(other, timeout_sec=0.05)
        return arrived

    p.wait(seen)
    until = time.monotonic() + TIMEOUT
    while not there() and time.monotonic() < until:
        pass
    time.sleep(2 * CAMERA_INFO_WAIT)
    p.wait()
    assert p.pairs[0] == (50, 50)
    for publisher in (images, infos):
        node.destroy_publisher(publisher)
    other.destroy_node()


def test_latched_camera_info_pairs_after_the_wait(pairing, clock):
    p = pairing()
    p.info(1)
    clock[0] += 2 * LATCHED_AFTER
    for second in (50, 51):
        p.image(second)
        p.wait_out(clock)
    assert p.pairs == [(50, 1), (51, 1)]


def test_latched_camera_info_without_a_wait(pairing):
    """For those who know that their driver latches it."""
    p = pairing(wait=0.0)
    p.info(1)
    p.image(50)
    p.wait()
    assert p.pairs == [(50, 1)]


def test_an_image_that_waits_for_the_first_camera_info_of_all(pairing, clock):
    p = pairing()
    p.image(50)
    p.image(51)
    p.wait_out(clock)
    assert p.pairs == []
    p.info(1)
    p.input._dispatch_expired()
    assert p.pairs == [(51, 1)]


def test_a_latched_publisher_that_starts_anew_brings_its_calibration(pairing, clock):
    p = pairing()
    p.info(1)
    p.latched(1)  # the same on both subscriptions
    assert p.input.counts.infos == 1
    clock[0] += 2 * LATCHED_AFTER
    p.image(50)
    p.wait_out(clock)
    p.latched(2)  # only there: the other subscription is not matched yet when it is published
    clock[0] += 2 * LATCHED_AFTER
    p.image(51)
    p.wait_out(clock)
    assert p.pairs == [(50, 1), (51, 2)]
    assert p.input.counts.infos == 2


def test_a_stream_of_other_stamps_does_not_put_an_image_off(pairing, node):
    """camera_info more often than the grace: the image must not wait for the next image."""
    p = pairing()
    p.info(1)
    p.image(50)
    deadline = time.monotonic() + 30
    for second in range(100, 10_000):
        p.info(second)
        rclpy.spin_once(node, timeout_sec=CAMERA_INFO_WAIT / 10)
        if p.pairs or time.monotonic() > deadline:
            break
    assert [image for image, _ in p.pairs] == [50]


def test_an_old_latched_camera_info_does_not_overrule_a_stream(pairing, clock):
    p = pairing()
    for second in (5, 6):
        clock[0] += 0.1
        p.info(second)
    p.latched(1)
    p.image(7)  # whose camera_info is lost
    p.wait_out(clock)
    assert p.pairs == [(7, 6)]
    clock[0] += 2 * LATCHED_AFTER
    p.image(8)
    p.wait_out(clock)
    assert p.pairs[1:] == [(8, 1)]  # the stream has ended before it came, for all that is known


def test_a_latched_publisher_that_starts_anew_over_dds(pairing):
    """A driver publishes as soon as it is there, before the subscription for streams has found it."""
    p = pairing()
    for second in (1, 2, 3):
        context = rclpy.Context()  # as another process would have
        rclpy.init(context=context)
        driver = rclpy.create_node("driver", context=context)
        latched = driver.create_publisher(CameraInfo, "camera_info", latched_qos())
        latched.publish(CameraInfo(header=header(second, "camera")))

        def taken(second=second):
            p.input.look()
            p.image(50 + p.input.counts.images)
            return p.pairs and p.pairs[-1][1] == second

        p.wait(taken)
        assert p.pairs[-1][1] == second
        driver.destroy_node()
        rclpy.shutdown(context=context)


def test_lost_camera_info_is_waited_for_and_then_replaced(pairing):
    p = pairing()
    p.info(5)
    p.image(6)
    assert p.pairs == []  # its own may still come
    p.wait()
    assert p.pairs == [(6, 5)]
    p.info(6)  # too late
    assert p.pairs == [(6, 5)]
    p.image(7)
    p.info(7)
    assert p.pairs[1:] == [(7, 7)]


def test_camera_info_of_another_frame_is_not_taken(pairing, clock):
    p = pairing()
    p.info(5, "rear")
    p.image(6)
    p.image(7)
    p.wait_out(clock)
    assert p.pairs == []
    assert "frame_ids" in p.input.problem()
    p.info(8, "rear")
    p.image(8)  # equal stamps say enough
    assert p.pairs == [(8, 8)]


def test_without_use_latest_info_every_image_needs_its_own(pairing):
    p = pairing(use_latest_info=False)
    p.info(5)
    for second in (6, 7):
        p.image(second)
    assert p.pairs == []
    assert "sync_slop" in p.input.problem()
    p.info(7)
    assert p.pairs == [(7, 7)]


def test_slop(pairing):
    p = pairing(use_latest_info=False, slop=1.5)
    p.info(5)
    p.image(6)
    p.image(9)
    assert p.pairs == [(6, 5)]


@pytest.mark.parametrize("slop", [0.0, 0.5])
@pytest.mark.parametrize("stamp", NEGATIVE_STAMPS.values(), ids=NEGATIVE_STAMPS)
def test_negative_stamps_are_survived_and_counted(node, pairing, stamp, slop):
    """Over DDS: what a synchronizer raises ends the executor, and with it the node."""
    p = pairing(slop=slop)
    sent = Header(stamp=stamp, frame_id="camera")
    for kind, topic in ((Image, "/image"), (CameraInfo, "/camera_info")):
        publisher, message = node.create_publisher(kind, topic, RELIABLE), kind(header=sent)

        def told(publisher=publisher, message=message, topic=topic):
            publisher.publish(message)
            return f"a message on {topic} has a negative stamp (-1 s)" in (p.input.problem() or "")

        p.wait(told)
        assert told()
        node.destroy_publisher(publisher)
    assert (p.input.counts.images, p.input.counts.infos, p.pairs) == (0, 0, [])
    assert p.input.values()["messages with a negative stamp"] == str(p.input.counts.negative_stamps)
    p.input._latched_arrived(CameraInfo(header=sent))
    p.image(5)
    p.info(5)
    assert p.pairs == [(5, 5)]


def test_it_is_said_which_of_the_two_does_not_come(pairing, clock):
    p = pairing(use_latest_info=False)
    p.image(5)
    p.info(5)
    assert p.input.problem() is None
    clock[0] += CAMERA_TIMEOUT + 1
    assert p.input.problem() == "no frame on /image for 4 s: is the camera's driver alive?"
    p.image(6)
    assert "images arrive on /image but no camera_info on /camera_info for 4 s" in p.input.problem()
    assert "use_latest_camera_info" in p.input.problem()
    p.info(7)
    assert "never agree" in p.input.problem()
    p.info(6)
    assert p.input.problem() is None


def test_a_dead_camera_has_no_rate(pairing, clock):
    p = pairing()
    for second in range(10):
        p.image(second)
    assert p.input.values()["image rate (Hz)"] == "1.0"
    clock[0] += CAMERA_TIMEOUT + 1
    assert p.input.values()["image rate (Hz)"] == "0.0"
    p.image(10)
    assert p.input.values()["image rate (Hz)"] == "1.0"


# -- loss -------------------------------------------------------------------------------------------------------------
MS = 1_000_000


def test_no_loss_where_all_arrive_with_jitter():
    meter, rng = LossMeter(), np.random.default_rng(0)
    for i in range(100):
        meter.image(i * 100 * MS + int(rng.integers(-20, 20)) * MS)
    assert meter.lost() == 0
    assert meter.rate() == pytest.approx(10, rel=0.02)


def test_loss_by_gaps():
    meter, rng = LossMeter(), np.random.default_rng(1)
    arrived = [i for i in range(200) if rng.random() > 0.4]
    for i in arrived:
        meter.image(i * 33 * MS)
    assert meter.lost() == pytest.approx(0.4, abs=0.1)


def test_regular_loss_shows_by_the_camera_info():
    """Two of three images lost, always the same: only camera_info knows."""
    meter = LossMeter()
    for i in range(90):
        meter.info(i * 100 * MS)
        if i % 3 == 0:
            meter.image(i * 100 * MS)
    assert meter.lost() == pytest.approx(2 / 3, abs=0.03)


def test_camera_info_of_its_own_time_does_not_confuse():
    meter = LossMeter()
    for i in range(60):
        meter.info(i * 100 * MS + 3 * MS)
        meter.image(i * 100 * MS)
    assert meter.lost() == 0


def test_loss_after_time_went_back():
    meter = LossMeter()
    for begin in (10**15, 0):
        for i in range(50):
            meter.image(begin + i * 100 * MS)
    assert meter.lost() == 0
    assert meter.rate() == pytest.approx(10)
