"""The node as a process, over DDS, through what a vehicle does to it: every encoding, every malformed message, cameras
that die, clocks that jump, transitions and parameters while frames come.

One process serves all tests of one camera; each leaves it active with its parameters as they were.
"""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch
from ros_harness import (
    ACTIVATE,
    CLEANUP,
    CONFIGURE,
    DEACTIVATE,
    FRAME_ID,
    HEIGHT,
    MALFORMED_COMPRESSED,
    MALFORMED_IMAGES,
    MALFORMED_INFOS,
    NEGATIVE_STAMPS,
    RELIABLE,
    WIDTH,
    DetectorProcess,
    Rig,
    camera,
    camera_info,
    changed,
    compressed,
    encoded,
    image_message,
    picture,
)  # fmt: skip
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Header
from vision_msgs.msg import Detection3DArray

from skd_core.data.ros_detections import boxes_from_detections
from skd_core.data.ros_messages import camera_from_info
from skd_core.inference.detector import Detector
from skd_wm3d_ros.decoding import Decoder

pytestmark = pytest.mark.usefixtures("ros")

BAYER = [f"bayer_{pattern}{bits}" for pattern in ("rggb", "bggr", "gbrg", "grbg") for bits in (8, 16)]
ENCODINGS = [
    "rgb8", "bgr8", "rgba8", "bgra8", "mono8", "mono16", *BAYER, "yuv422", "yuv422_yuy2", "rgb16", "bgr16",
]  # fmt: skip
PERIOD = 0.05  # seconds between two diagnostics
SECOND = 1_000_000_000
PARTS = ("frames answered", "frames rejected", "frames dropped for newer ones", "frames in work")


@pytest.fixture(scope="module")
def detectors():
    torch.set_num_threads(1)
    return Detector.random(seed=0), Detector.random(seed=1)


@pytest.fixture(scope="module")
def weights(detectors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for number, detector in enumerate(detectors):
        detector.save(folder / f"{number}.safetensors")
    return [folder / f"{number}.safetensors" for number in range(len(detectors))]


@pytest.fixture(scope="module")
def process(weights, tmp_path_factory):
    log = tmp_path_factory.mktemp("node") / "detector.log"
    process = DetectorProcess(log, model=weights[0], device="cpu", score_threshold=0.0, diagnostics_period=PERIOD)
    process.wait_for_output("listening to /image and /camera_info")
    yield process
    status = process.interrupt()  # while it has nothing to do: the signal wakes it
    process.kill()
    assert status == 0, process.output()


@pytest.fixture(scope="module")
def shared_rig(process):
    rig = Rig(RELIABLE)
    yield rig
    rig.close()


@pytest.fixture
def rig(shared_rig, process):
    shared_rig.answers.clear()
    yield shared_rig
    assert process.process.poll() is None, process.output()
    assert "Traceback" not in process.output()


def status(rig):
    """The values of the newest status from now on."""
    rig.diagnostics.clear()
    rig.spin_until(lambda: rig.diagnostics, "a status")
    return {value.key: value.value for value in rig.diagnostics[-1].values}


def until_rejected(rig, kind, said, send):
    """Send until one more is counted under the kind, and it is said why."""
    count = f"frames rejected: {kind}"
    before = int(status(rig).get(count, 0))

    def counted():
        send()
        told = [{value.key: value.value for value in s.values} for s in rig.diagnostics]
        return [s for s in told if int(s.get(count, 0)) > before and said in s["last rejection"]]

    rig.spin_until(counted, f"'{count}' beyond {before}, and '{said}'")


def assert_boxes(answer, expected):
    boxes = boxes_from_detections(answer)
    assert len(boxes) == len(expected) > 0
    torch.testing.assert_close(boxes.center, expected.center.double(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(boxes.scores, expected.scores.double(), rtol=1e-4, atol=1e-4)


def reactivate(rig, **values):
    assert rig.transition(DEACTIVATE)
    if values:
        result = rig.set(**values)
        assert result.successful, result.reason
    assert rig.transition(ACTIVATE)


def test_frames_without_a_stamp_are_counted_and_survived(rig):
    until_rejected(
        rig, "stamp", "does not set header.stamp",
        lambda: rig.send(image_message(picture(1)), camera_info(), rig.header(0)),
    )  # fmt: skip
    assert rig.ask(image_message(picture(1))).detections


@pytest.mark.parametrize("stamp", NEGATIVE_STAMPS.values(), ids=NEGATIVE_STAMPS)
def test_negative_stamps_are_counted_and_survived(rig, stamp):
    header = Header(stamp=stamp, frame_id=FRAME_ID)
    rig.diagnostics.clear()

    def told():
        rig.send(image_message(picture(1)), camera_info(), header)
        return [s for s in rig.diagnostics if "has a negative stamp (-1 s)" in s.message]

    rig.spin_until(told, "a diagnostic about the stamp")
    assert rig.ask(image_message(picture(1))).detections


# -- what goes in -----------------------------------------------------------------------------------------------------
def test_every_encoding(rig, detectors):
    """The boxes of each are those of the library for the same picture (whose decoding test_inputs.py looks at)."""
    decode = Decoder("/image", "/camera_info")
    for encoding in ENCODINGS:
        message = encoded(picture(1), encoding)
        pixels, camera = decode(message, camera_info())
        assert_boxes(rig.ask(message), detectors[0].predict(pixels, camera, 0.0))
    counts = {f"frames answered: {encoding}" for encoding in ENCODINGS}
    rig.spin_until(lambda: counts <= set(status(rig)), "the count of each encoding")


def test_big_endian_and_padded_rows(rig, detectors):
    grey = encoded(picture(2), "mono16")
    expected = detectors[0].predict(*Decoder("", "")(grey, camera_info()), 0.0)
    rows = np.frombuffer(grey.data, "<u2").astype(">u2").reshape(HEIGHT, WIDTH)
    padded = np.pad(rows, ((0, 0), (0, 5)))  # 10 bytes after each row
    message = changed(image_message(padded, "mono16"), width=WIDTH, is_bigendian=1)
    assert_boxes(rig.ask(message), expected)


@pytest.mark.parametrize(("image", "kind", "said"), MALFORMED_IMAGES.values(), ids=MALFORMED_IMAGES)
def test_malformed_images_are_counted_and_survived(rig, image, kind, said):
    until_rejected(rig, kind, said, lambda: rig.send(image(), camera_info()))
    assert rig.ask(image_message(picture(1))).detections


@pytest.mark.parametrize(("fields", "said"), MALFORMED_INFOS.values(), ids=MALFORMED_INFOS)
def test_malformed_camera_infos_are_counted_and_survived(rig, fields, said):
    bad = changed(camera_info(), **fields)
    until_rejected(rig, "calibration", said, lambda: rig.send(image_message(picture(1)), bad))
    assert rig.ask(image_message(picture(1))).detections


def test_compressed_images_and_malformed_ones(rig, detectors):
    reactivate(rig, image_transport="compressed")
    decode = Decoder("/image/compressed", "/camera_info")
    for suffix in (".jpg", ".png"):
        message = compressed(picture(3), suffix)
        pixels, camera = decode(message, camera_info())
        assert_boxes(rig.ask(message), detectors[0].predict(pixels, camera, 0.0))
    for image, said in MALFORMED_COMPRESSED.values():
        until_rejected(rig, "compressed data", said, lambda image=image: rig.send(image(), camera_info()))
        assert rig.ask(compressed(picture(3), ".png")).detections
    reactivate(rig, image_transport="raw")


# -- the camera -------------------------------------------------------------------------------------------------------
def test_camera_info_that_comes_late(rig):
    reactivate(rig)  # forgets every camera_info

    def told():
        rig.send(image_message(picture(1)), None)
        return [s for s in rig.diagnostics if "images arrive on /image but no camera_info on /camera_info" in s.message]

    rig.diagnostics.clear()
    rig.spin_until(told, "a diagnostic that names both topics")
    assert not rig.answers
    assert rig.ask(image_message(picture(1))).detections


def test_camera_info_that_changes(rig, detectors):
    """Another resolution, and other intrinsics at the same one, from one frame to the next."""
    small = changed(camera_info(), width=WIDTH // 2, height=HEIGHT // 2)
    small.k[[0, 2, 4, 5]] /= 2
    small.p[[0, 2, 3, 5, 6, 7]] /= 2
    zoomed = camera_info()
    zoomed.k[[0, 4]] *= 1.5
    zoomed.p[[0, 5]] *= 1.5
    pixels = picture(4)
    for info, shown in ((small, np.ascontiguousarray(pixels[::2, ::2])), (zoomed, pixels), (camera_info(), pixels)):
        assert_boxes(
            rig.ask(image_message(shown), info), detectors[0].predict(shown, camera_from_info(info).centred(), 0.0)
        )


@pytest.mark.parametrize("baseline", [0.12, -0.54])
def test_a_right_stereo_camera_in_its_own_frame(rig, detectors, baseline):
    """The header names the camera that took the picture: the same picture means the same boxes, whatever P holds."""
    right = camera_info()
    right.p[[3, 7, 11]] = [-right.p[0] * baseline, 0.0, 0.0]
    alone = changed(camera_info(), p=np.array(right.p) * ([1, 1, 1, 0] * 3))
    boxes = [boxes_from_detections(rig.ask(image_message(picture(1)), info)) for info in (alone, right)]
    torch.testing.assert_close(boxes[1].center, boxes[0].center, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(boxes[1].yaw, boxes[0].yaw, rtol=0, atol=1e-5)
    # the library's are in the left camera's frame, as KITTI has it, and B to the right there
    left = detectors[0].predict(picture(1), camera_from_info(right), 0.0)
    shift = torch.tensor([baseline, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(left.center.double() - shift, boxes[1].center, rtol=1e-4, atol=1e-4)


def test_a_camera_that_dies_and_returns(rig):
    assert rig.ask(image_message(picture(1))).detections
    rig.stop_camera()
    told = rig.wait_for_diagnostic("no frame on /image for", "is the camera's driver alive?")
    assert told.level == b"\x01"
    rig.start_camera()
    assert rig.ask(image_message(picture(1))).detections
    rig.spin_until(lambda: rig.diagnostics and rig.diagnostics[-1].message == "active", "the end of the complaint")


# -- time -------------------------------------------------------------------------------------------------------------
def test_simulated_time_that_jumps_back(rig):
    """A bag played in a loop with --clock: the age of frames is judged by /clock, before and after the jump."""
    clock = rig.node.create_publisher(Clock, "/clock", RELIABLE)
    reactivate(rig, use_sim_time=True, max_age_ms=2000.0)
    for begin in (5000, 1000):
        stamp = begin * SECOND

        def answered():
            nonlocal stamp
            stamp += SECOND // 20
            header = rig.header(stamp)
            clock.publish(Clock(clock=header.stamp))
            rig.send(image_message(picture(1)), camera_info(), header)
            return [s for s in rig.answers if begin * SECOND < s <= stamp]  # noqa: B023

        rig.spin_until(answered, f"an answer at {begin} s")
        old = rig.header((begin - 100) * SECOND)
        until_rejected(rig, "stale", "max_age_ms", lambda: rig.send(image_message(picture(1)), camera_info(), old))  # noqa: B023
    reactivate(rig, use_sim_time=False, max_age_ms=0.0)
    rig.node.destroy_publisher(clock)
    assert rig.ask(image_message(picture(1))).detections


# -- while frames come ------------------------------------------------------------------------------------------------
@pytest.fixture
def load(rig):
    """Frames at 100 Hz while the test talks to the node; afterwards, what arrived is accounted for."""
    timer = rig.node.create_timer(0.01, lambda: rig.send(image_message(picture(1)), camera_info()))
    yield
    rig.node.destroy_timer(timer)
    assert rig.ask(image_message(picture(1))).detections
    rig.spin_until(lambda: status(rig)["frames in work"] == "0", "the end of the work")
    told = status(rig)
    assert int(told["pairs"]) == sum(int(told[part]) for part in PARTS)
    assert list(rig.answers) == sorted(rig.answers)


def test_parameters_change_under_load(rig, load):
    for i in range(30):
        values = {"score_threshold": [0.0, 0.9][i % 2], "max_range": 10.0 * (i % 3), "nms_iou": [1.0, 0.5][i % 2]}
        result = rig.set(**values, max_rate_hz=[0.0, 50.0][i % 2])
        assert result.successful, result.reason
        assert not rig.set(score_threshold=1.5).successful
    assert rig.set(score_threshold=0.0, max_range=0.0, nms_iou=1.0, max_rate_hz=0.0).successful


def test_fifty_activations_under_load(rig, load):
    for _ in range(50):
        assert rig.transition(DEACTIVATE)
        assert rig.transition(ACTIVATE)


def test_other_weights_under_load(rig, load, weights, detectors):
    expected = [detector.predict(picture(1), camera(), 0.0) for detector in detectors]
    assert not torch.allclose(expected[0].center[:5], expected[1].center[:5]), "the test needs weights that differ"
    for path, boxes in ((weights[1], expected[1]), (weights[0], expected[0])):
        assert rig.transition(DEACTIVATE)
        assert rig.transition(CLEANUP)
        assert rig.set(model=str(path)).successful
        assert rig.transition(CONFIGURE)
        assert rig.transition(ACTIVATE)
        assert_boxes(rig.ask(image_message(picture(1))), boxes)


# -- the end ----------------------------------------------------------------------------------------------------------
def test_two_cameras_in_one_process(ros, weights, tmp_path):
    """Each answers for its own camera, one goes on when the other is silent, and SIGTERM ends both."""
    cameras = "".join(
        f"  - {{name: {name}, image_topic: /{name}/image, camera_info_topic: /{name}/camera_info,\n"
        f"     parameters: {{model: {weights[i]}, device: cpu, score_threshold: 0.0, diagnostics_period: {PERIOD}}}}}\n"
        for i, name in enumerate(("front", "rear"))
    )
    (tmp_path / "cameras.yaml").write_text(f"cameras:\n{cameras}")
    process = DetectorProcess(tmp_path / "log", options=["--cameras", str(tmp_path / "cameras.yaml")])
    rigs = [Rig(RELIABLE, name) for name in ("front", "rear")]
    try:
        for name in ("front", "rear"):
            process.wait_for_output(f"listening to /{name}/image and /{name}/camera_info")
        front, rear = (boxes_from_detections(rig.ask(image_message(picture(1)))) for rig in rigs)
        assert not torch.allclose(front.center[:5], rear.center[:5])  # of other weights
        before = len(rigs[1].answers)
        for _ in range(3):
            assert isinstance(rigs[0].ask(image_message(picture(2))), Detection3DArray)
        assert len(rigs[1].answers) == before
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(60) == 0, process.output()
        assert "Traceback" not in process.output()
    finally:
        process.kill()
        for rig in rigs:
            rig.close()
