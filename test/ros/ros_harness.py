"""A detector node in a process of its own, and the test's side of the conversation with it."""

from __future__ import annotations

import array
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection2D, Detection2DArray, Detection3DArray, ObjectHypothesisWithPose

from skd_core.camera import Camera
from skd_wm3d_ros.node import DetectorNode, LoadDetector

WIDTH, HEIGHT = 320, 96
FRAME_ID = "front_camera_optical_frame"
TIMEOUT = 300.0  # seconds: generous, a slow machine must not fail a test
RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
BEST_EFFORT = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)

CONFIGURE = Transition.TRANSITION_CONFIGURE
ACTIVATE = Transition.TRANSITION_ACTIVATE
DEACTIVATE = Transition.TRANSITION_DEACTIVATE
CLEANUP = Transition.TRANSITION_CLEANUP


def camera_info() -> CameraInfo:
    """A calibrated camera with a baseline term in P, as KITTI's."""
    k = [180.0, 0.0, 158.5, 0.0, 181.0, 47.25, 0.0, 0.0, 1.0]
    p = [180.0, 0.0, 158.5, 11.25, 0.0, 181.0, 47.25, 0.5, 0.0, 0.0, 1.0, 0.0]
    r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    return CameraInfo(height=HEIGHT, width=WIDTH, distortion_model="plumb_bob", d=[0.0] * 5, k=k, r=r, p=p)


def camera() -> Camera:
    """That camera in its own optical frame, which the header names."""
    return Camera(np.array(camera_info().p).reshape(3, 4), WIDTH, HEIGHT).centred()  # type: ignore[arg-type]


def picture(seed: int) -> np.ndarray:
    """Smooth random colours, shape (96, 320, 3), so that each seed gives the network something else to see."""
    coarse = np.random.default_rng(seed).integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(16, 0).repeat(16, 1))


def image_message(pixels: np.ndarray, encoding: str = "rgb8") -> Image:
    height, width = pixels.shape[:2]
    data = array.array("B", np.ascontiguousarray(pixels).tobytes())
    return Image(height=height, width=width, encoding=encoding, step=len(data) // height, data=data)


def encoded(pixels: np.ndarray, encoding: str) -> Image:
    """An RGB picture in any encoding; what the encoding cannot hold (colour, half of the pixels) is left out."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    if encoding.startswith("yuv422"):
        pixels = np.stack([np.full_like(grey, 128), grey][:: -1 if encoding == "yuv422_yuy2" else 1], -1)
    elif encoding.startswith(("mono", "bayer", "8UC1")):
        pixels = grey
    elif encoding.startswith("rgba"):
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA)
    elif encoding.startswith(("bgra", "8UC4")):
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGRA)
    elif encoding.startswith(("bgr", "8UC3")):
        pixels = pixels[..., ::-1]
    return image_message(pixels.astype(np.uint16) * 257 if encoding.endswith("16") else pixels, encoding)


def compressed(pixels: np.ndarray, suffix: str) -> CompressedImage:
    """An RGB picture as ".jpg" or ".png"."""
    data = cv2.imencode(suffix, pixels[..., ::-1])[1].tobytes()
    return CompressedImage(format=f"bgr8; {suffix[1:]} compressed bgr8", data=array.array("B", data))


def boxes_2d(*rows: tuple[str, float, float, float, float, float]) -> Detection2DArray:
    """Boxes of a 2D detector: (class, score, x1, y1, x2, y2) each."""
    message = Detection2DArray()
    for name, score, x1, y1, x2, y2 in rows:
        detection, result = Detection2D(), ObjectHypothesisWithPose()
        result.hypothesis.class_id, result.hypothesis.score = name, score
        center = detection.bbox.center.position
        center.x, center.y = (x1 + x2) / 2, (y1 + y2) / 2
        detection.bbox.size_x, detection.bbox.size_y = float(x2 - x1), float(y2 - y1)
        detection.results = [result]
        message.detections.append(detection)
    return message


def changed(message: Any, **fields: object) -> Any:
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def half(message: CompressedImage) -> CompressedImage:
    return changed(message, data=message.data[: len(message.data) // 2])


def _whole() -> Image:
    return image_message(picture(1))


MALFORMED_IMAGES: dict[str, tuple[Callable[[], Image], str, str]] = {
    "unknown encoding": (lambda: changed(_whole(), encoding="plasma9"), "encoding", "plasma9"),
    "no encoding": (lambda: changed(_whole(), encoding=""), "encoding", "''"),
    "not an encoding of pictures": (
        lambda: image_message(np.zeros((HEIGHT, WIDTH), np.float32), "32FC1"), "encoding", "32FC1"
    ),
    "too few bytes": (lambda: changed(_whole(), data=array.array("B", bytes(10))), "size", "10 bytes"),
    "no bytes": (lambda: changed(_whole(), data=array.array("B")), "size", "0 bytes"),
    "no height": (lambda: changed(_whole(), height=0), "size", "320x0"),
    "no width": (lambda: changed(_whole(), width=0), "size", "0x96"),
    "no step": (lambda: changed(_whole(), step=0), "size", "step of 0"),
    "short step": (lambda: changed(_whole(), step=3 * WIDTH - 1), "size", "step of 959"),
    "huge": (lambda: changed(_whole(), step=2**32 - 1, height=2**32 - 1), "size", ""),
    "not the camera's size": (lambda: image_message(picture(1)[:, :-16]), "size", "304x96"),
}  # fmt: skip
"""Name -> image, what it is counted under, and what is said of it."""

MALFORMED_COMPRESSED: dict[str, tuple[Callable[[], CompressedImage], str]] = {
    "no bytes": (lambda: CompressedImage(format="jpeg"), "0 bytes"),
    "no picture": (
        lambda: CompressedImage(format="jpeg", data=array.array("B", b"no picture at all")),
        "not a picture",
    ),
    "half a JPEG": (lambda: half(compressed(picture(1), ".jpg")), "incomplete JPEG"),
    "half a PNG": (lambda: half(compressed(picture(1), ".png")), "incomplete PNG"),
}

MALFORMED_INFOS: dict[str, tuple[dict[str, Any], str]] = {
    "K is 0": ({"k": [0.0] * 9}, "uncalibrated"),
    "NaN in K": ({"k": [math.nan] * 9}, "K holds NaN"),
    "infinity in P": ({"p": [math.inf] * 12}, "P holds NaN"),
    "NaN in D": ({"d": [math.nan] * 5}, "D holds NaN"),
    "no height": ({"height": 0}, "size must be positive"),
    "D but no P": ({"p": [0.0] * 12, "d": [0.1] * 5}, "image_is_rectified"),
    "fisheye, no P": ({"p": [0.0] * 12, "d": [0.0] * 4, "distortion_model": "equidistant"}, "image_is_rectified"),
    "negative focal length": ({"p": [-1.0] * 12}, "focal lengths must be positive"),
}
"""Name -> fields of camera_info, and what is said of them; all are counted under "calibration"."""

NEGATIVE_STAMPS = {"negative": Time(sec=-1), "negative seconds": Time(sec=-1, nanosec=4_000_000_000)}
"""Stamps on which rclpy's Time raises; the second is after 0 all the same."""


class DetectorProcess:
    """``python -m skd_wm3d_ros.detector_node`` with options and parameters; its output goes to a file."""

    def __init__(self, log: Path, *arguments: str, options: Sequence[str] = (), **parameters: object) -> None:
        self.log = log
        ros = [part for name, value in parameters.items() for part in ("-p", f"{name}:={value}")]
        command = [sys.executable, "-m", "skd_wm3d_ros.detector_node", *options, "--ros-args", *ros, *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with log.open("wb") as sink:
            self.process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=environment)

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for_output(self, text: str) -> None:
        deadline = time.monotonic() + TIMEOUT
        while text not in self.output():
            assert self.process.poll() is None or text in self.output(), f"the node left:\n{self.output()}"
            assert time.monotonic() < deadline, f"no '{text}' in:\n{self.output()}"
            time.sleep(0.05)

    def interrupt(self, times: int = 1) -> int:
        """SIGINT as many times as wanted; the exit status."""
        for _ in range(times):
            self.process.send_signal(signal.SIGINT)
            time.sleep(0.02)
        return self.process.wait(TIMEOUT)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Rig:
    """Publishes the frames of a camera, in a namespace, and receives what its node says about them."""

    def __init__(self, qos: QoSProfile = BEST_EFFORT, namespace: str = "") -> None:
        self.node: Node = rclpy.create_node("rig", namespace=namespace)
        self._qos = qos
        self.start_camera()
        self.answers: dict[int, Detection3DArray] = {}
        self.diagnostics: list[Any] = []
        self.listen()
        self.node.create_subscription(
            DiagnosticArray, "/diagnostics", lambda m: self.diagnostics.extend(m.status), RELIABLE
        )
        self._stamp = 1_000_000_000

    def listen(self) -> None:
        self.detections = self.node.create_subscription(Detection3DArray, "detector/detections", self._answer, RELIABLE)

    def start_camera(self) -> None:
        self.images = self.node.create_publisher(Image, "image", self._qos)
        self.compressed = self.node.create_publisher(CompressedImage, "image/compressed", self._qos)
        self.infos = self.node.create_publisher(CameraInfo, "camera_info", self._qos)

    def stop_camera(self) -> None:
        for publisher in (self.images, self.compressed, self.infos):
            self.node.destroy_publisher(publisher)

    def close(self) -> None:
        self.node.destroy_node()

    def spin_until(self, condition: Callable[[], Any], what: str, timeout: float = TIMEOUT) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"waited {timeout:.0f} s for {what}"
            rclpy.spin_once(self.node, timeout_sec=0.05)

    def header(self, stamp: int | None = None) -> Header:
        """With the given stamp in nanoseconds, or one that no frame had before."""
        if stamp is None:
            self._stamp += 100_000_003
            stamp = self._stamp
        return Header(stamp=Time(sec=stamp // 1_000_000_000, nanosec=stamp % 1_000_000_000), frame_id=FRAME_ID)

    def send(self, image: Image | CompressedImage, info: CameraInfo | None = None, header: Header | None = None) -> int:
        """Publish a pair (or the image alone, with ``info`` None) once; its stamp."""
        image.header = header or self.header()
        if info is not None:
            info.header = image.header
            self.infos.publish(info)
        (self.images if isinstance(image, Image) else self.compressed).publish(image)
        return image.header.stamp.sec * 1_000_000_000 + image.header.stamp.nanosec

    def ask(self, image: Image | CompressedImage, info: CameraInfo | None = None) -> Detection3DArray:
        """Publish a pair until it is answered: best effort may lose one, and the first may come before discovery."""
        deadline = time.monotonic() + TIMEOUT
        info = info or camera_info()
        while time.monotonic() < deadline:
            stamp = self.send(image, info)
            retry = time.monotonic() + 1.0
            while time.monotonic() < retry:
                rclpy.spin_once(self.node, timeout_sec=0.05)
                if stamp in self.answers:
                    return self.answers[stamp]
        raise AssertionError(f"no detections after {TIMEOUT:.0f} s")

    def wait_for_diagnostic(self, *texts: str) -> Any:
        """The first status from now on whose message or values hold all texts."""
        self.diagnostics.clear()

        def matches() -> list[Any]:
            return [s for s in self.diagnostics if all(t in s.message + str(s.values) for t in texts)]

        self.spin_until(matches, f"a diagnostic with {texts}, last: {[s.message for s in self.diagnostics[-3:]]}")
        return matches()[0]

    def call(self, service: type, name: str, request: Any) -> Any:
        client = self.node.create_client(service, name)
        self.spin_until(client.service_is_ready, name)
        future = client.call_async(request)
        self.spin_until(future.done, f"an answer of {name}")
        self.node.destroy_client(client)
        return future.result()

    def transition(self, number: int) -> bool:
        request = ChangeState.Request(transition=Transition(id=number))
        return bool(self.call(ChangeState, "/detector/change_state", request).success)

    def set(self, **values: object) -> Any:
        parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        request = SetParametersAtomically.Request(parameters=parameters)
        return self.call(SetParametersAtomically, "/detector/set_parameters_atomically", request).result

    def _answer(self, message: Detection3DArray) -> None:
        stamp = message.header.stamp
        self.answers[stamp.sec * 1_000_000_000 + stamp.nanosec] = message


class Nodes:
    """Detector nodes in this process, spun by one thread."""

    def __init__(self, rig: Rig) -> None:
        self._rig, self._nodes, self._stop = rig, [], threading.Event()
        self._executor = SingleThreadedExecutor()
        self._thread = threading.Thread(target=self._spin, daemon=True)

    def start(
        self,
        load: LoadDetector,
        tf_buffer: Any = None,
        activate: bool = True,
        options: dict[str, Any] | None = None,
        **values: object,
    ) -> DetectorNode:
        """A node with these parameters, configured and active unless told otherwise."""
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        node = DetectorNode(load, tf_buffer, parameter_overrides=overrides, **(options or {}))
        self._nodes.append(node)
        if activate:
            assert node.autostart()
        self._executor.add_node(node)
        if not self._thread.is_alive():
            self._thread.start()
        self._rig.diagnostics.clear()
        self._rig.answers.clear()
        return node

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(30)
        for node in self._nodes:
            assert node.close()

    def _spin(self) -> None:
        while not self._stop.is_set():
            self._executor.spin_once(timeout_sec=0.05)
