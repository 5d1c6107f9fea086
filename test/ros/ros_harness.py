"""A detector node in a process of its own, and the test's side of the conversation with it."""

from __future__ import annotations

import array
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection3DArray

from skd_core.camera import Camera

WIDTH, HEIGHT = 320, 96
FRAME_ID = "front_camera_optical_frame"
TIMEOUT = 120.0  # seconds: generous, a slow machine must not fail a test
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
    return Camera(np.array(camera_info().p).reshape(3, 4), WIDTH, HEIGHT)  # type: ignore[arg-type]


def picture(seed: int) -> np.ndarray:
    """Smooth random colours, shape (96, 320, 3), so that each seed gives the network something else to see."""
    coarse = np.random.default_rng(seed).integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(16, 0).repeat(16, 1))


def image_message(pixels: np.ndarray, encoding: str = "rgb8") -> Image:
    height, width = pixels.shape[:2]
    data = array.array("B", np.ascontiguousarray(pixels).tobytes())
    return Image(height=height, width=width, encoding=encoding, step=len(data) // height, data=data)


class DetectorProcess:
    """``python -m skd_wm3d_ros.detector_node`` with parameters; its output goes to a file."""

    def __init__(self, log: Path, *arguments: str, **parameters: object) -> None:
        self.log = log
        ros = [part for name, value in parameters.items() for part in ("-p", f"{name}:={value}")]
        command = [sys.executable, "-m", "skd_wm3d_ros.detector_node", "--ros-args", *ros, *arguments]
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
    """Publishes camera frames and receives what the node says about them."""

    def __init__(self, qos: QoSProfile = BEST_EFFORT) -> None:
        self.node: Node = rclpy.create_node("rig")
        self.images = self.node.create_publisher(Image, "image", qos)
        self.compressed = self.node.create_publisher(CompressedImage, "image/compressed", qos)
        self.infos = self.node.create_publisher(CameraInfo, "camera_info", qos)
        self.answers: dict[int, Detection3DArray] = {}
        self.diagnostics: list[Any] = []
        self.node.create_subscription(Detection3DArray, "/detector/detections", self._answer, RELIABLE)
        self.node.create_subscription(
            DiagnosticArray, "/diagnostics", lambda m: self.diagnostics.extend(m.status), RELIABLE
        )
        self._stamp = 1_000_000_000

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
