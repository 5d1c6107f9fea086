"""The detector as a managed (lifecycle) node.

Subscribes ``image`` and ``camera_info``; publishes ``~/detections``, ``~/label_info`` and, where someone listens,
``~/markers`` and ``~/debug_image``. The executor's thread only receives; a worker decodes, infers and publishes.
"""

from __future__ import annotations

import functools
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_policy_name_from_kind
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection3DArray, LabelInfo
from visualization_msgs.msg import MarkerArray

from skd_core.errors import UserError
from skd_core.inference.detector import Detector
from skd_core.visualize import draw_boxes3d
from skd_wm3d_ros import messages, parameters
from skd_wm3d_ros.decoding import Decoder, Rejection
from skd_wm3d_ros.diagnostics import Statistics, to_diagnostics
from skd_wm3d_ros.inputs import CameraInput
from skd_wm3d_ros.worker import LatestWorker

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
DIAGNOSTICS_PERIOD = 1.0  # seconds
WARNING_PERIOD = 10.0  # seconds between equal complaints in the log
STOP_TIMEOUT = 10.0  # seconds that a deactivation waits for the frame in work

OUTPUT_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
HEAVY_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
LATCHED_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


Transition = Callable[["DetectorNode", LifecycleState], TransitionCallbackReturn]


def reported(transition: Transition) -> Transition:
    """Say what a transition raised: rclpy turns it into an ERROR without a word."""

    @functools.wraps(transition)
    def wrapper(self: DetectorNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(self, state)
        except Exception as error:
            self.fail(f"{transition.__name__} failed: {type(error).__name__}: {error}")
            raise

    return wrapper


class DetectorNode(LifecycleNode):
    """See the module; keyword arguments are those of :class:`rclpy.node.Node`."""

    def __init__(self, **options: Any) -> None:
        super().__init__("detector", **options)
        self.add_on_set_parameters_callback(parameters.check)
        for spec in parameters.PARAMETERS:
            parameters.declare(self, spec)
        self.detector: Detector | None = None
        self._outputs: dict[str, Any] = {}
        self._input: CameraInput | None = None
        self._decode: Decoder | None = None
        self._worker: LatestWorker[tuple[Image | CompressedImage, CameraInfo]] | None = None
        self._statistics = Statistics()
        self._failure = ""
        self._camera_frame = ""
        # steady time: a dead camera or a stopped simulation must show
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 1)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(DIAGNOSTICS_PERIOD, self._publish_diagnostics, clock=steady)

    def autostart(self) -> bool:
        """Configure and activate; False where one of them fails."""
        return bool(self.trigger_configure() == SUCCESS and self.trigger_activate() == SUCCESS)

    def fail(self, message: str) -> None:
        """Log why a transition failed, and show it in the diagnostics until one succeeds."""
        self._failure = message
        self.get_logger().error(message)

    def close(self) -> bool:
        """Stop and destroy the node; False, and nothing destroyed, where an inference is still running."""
        if not self._stop(timeout=0.5):
            return False
        try:
            self.trigger_shutdown()
        except RuntimeError:  # a signal came in the middle of a transition, or it is shut down already
            self._free()
        self.destroy_node()
        return True

    # -- lifecycle ----------------------------------------------------------------------------------------------------
    @reported
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the weights and run once; FAILURE, with the path in the log, where that is not possible."""
        path, device = self._value("model"), self._value("device")
        try:
            started = time.monotonic()
            self.detector = Detector.load(path, device)
            self.detector.warmup()
        except (UserError, RuntimeError, OSError) as error:  # RuntimeError: what CUDA raises
            self.detector = None
            self.fail(f"cannot configure: {error}")
            return FAILURE
        self._failure = ""
        self._create_outputs()
        self.get_logger().info(
            f"weights '{path}' on {self.detector.device}, classes {', '.join(self.detector.classes)}, "
            f"ready in {time.monotonic() - started:.1f} s"
        )
        return super().on_configure(state)

    @reported
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and start the worker."""
        result = super().on_activate(state)
        assert self.detector is not None
        self._statistics = Statistics()
        self._worker = LatestWorker(self._process)
        worker = self._worker
        self._input = CameraInput(
            self,
            lambda image, info: worker.put((image, info)),
            self._value("image_transport"),
            self._value("sync_slop"),
            self._value("use_latest_camera_info"),
        )
        rectified = self._value("image_is_rectified")
        self._decode = Decoder(self._input.image_topic, self._input.camera_info_topic, rectified)
        header = Header(stamp=self.get_clock().now().to_msg())
        threshold = self._value("score_threshold")
        self._outputs["label_info"].publish(messages.to_label_info(self.detector.classes, threshold, header))
        self.get_logger().info(f"listening to {self._input.image_topic} and {self._input.camera_info_topic}")
        return result

    @reported
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and finish the frame in work; the model stays loaded."""
        if not self._stop(STOP_TIMEOUT):
            self.get_logger().error(f"inference is still running after {STOP_TIMEOUT:.0f} s, not deactivated")
            return FAILURE
        return super().on_deactivate(state)

    @reported
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model and its memory."""
        self._free()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop from any state."""
        if self._stop(timeout=0.5):
            self._free()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After an exception in a transition: back to unconfigured."""
        self._stop(STOP_TIMEOUT)
        self._free()
        return SUCCESS

    # -- frames (worker thread) -------------------------------------------------------------------------------------
    def _process(self, pair: tuple[Image | CompressedImage, CameraInfo]) -> None:
        image, info = pair
        try:
            self._detect(image, info)
        except Rejection as rejection:
            self._reject(rejection.kind, str(rejection))
        except Exception as error:  # the node must outlive whatever one frame does to it
            self._reject("inference", f"frame skipped: {type(error).__name__}: {error}")

    def _detect(self, image: Image | CompressedImage, info: CameraInfo) -> None:
        assert self.detector is not None
        assert self._decode is not None
        start = time.perf_counter()
        picture, camera = self._decode(image, info)
        decoded = time.perf_counter()
        boxes = self.detector.predict(picture, camera, self._value("score_threshold"))
        boxes = messages.finite(boxes)
        inferred = time.perf_counter()
        self._outputs["detections"].publish(messages.to_detections(boxes, image.header))
        if self._outputs["markers"].get_subscription_count():
            lifetime = self._value("marker_lifetime")
            self._outputs["markers"].publish(messages.to_markers(boxes, image.header, lifetime))
        if self._outputs["debug_image"].get_subscription_count():
            drawn = draw_boxes3d(picture, boxes, camera)
            self._outputs["debug_image"].publish(messages.to_image(drawn, image.header))
        self._camera_frame = image.header.frame_id
        encoding = image.encoding if isinstance(image, Image) else image.format
        self._statistics.answer(encoding, decoded - start, inferred - decoded, time.perf_counter() - inferred)

    def _reject(self, kind: str, reason: str) -> None:
        self._statistics.reject(kind, reason)
        self.get_logger().warning(reason, throttle_duration_sec=WARNING_PERIOD)

    # -- the rest ---------------------------------------------------------------------------------------------------
    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _create_outputs(self) -> None:
        for name, kind, qos in (
            ("detections", Detection3DArray, OUTPUT_QOS),
            ("label_info", LabelInfo, LATCHED_QOS),
            ("markers", MarkerArray, HEAVY_QOS),
            ("debug_image", Image, HEAVY_QOS),
        ):
            topic = f"~/{name}"

            def incompatible(event: Any, topic: str = self.resolve_topic_name(topic)) -> None:
                policy = qos_policy_name_from_kind(event.last_policy_kind)
                self.get_logger().error(
                    f"a subscriber of {topic} asks for an incompatible QoS ({policy}) and receives nothing: "
                    f"set the parameter qos_overrides.{topic}.publisher.{policy.lower()} or change the subscriber"
                )

            self._outputs[name] = self.create_lifecycle_publisher(
                kind,
                topic,
                qos,
                event_callbacks=PublisherEventCallbacks(incompatible_qos=incompatible),
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )

    def _stop(self, timeout: float) -> bool:
        if self._input is not None:
            self._input.destroy()
            self._input = None
        if self._worker is not None:
            if not self._worker.stop(timeout):
                return False
            self._worker = None
        return True

    def _free(self) -> None:
        for publisher in self._outputs.values():
            self.destroy_lifecycle_publisher(publisher)
        self._outputs = {}
        self.detector = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _publish_diagnostics(self) -> None:
        state = "unconfigured" if self.detector is None else "inactive" if self._input is None else "active"
        level, message, values = DiagnosticStatus.OK, state, {"state": state}
        if self._failure:
            level, message = DiagnosticStatus.ERROR, self._failure
        if self.detector is not None:
            values["device"] = str(self.detector.device)
        if self._input is not None and self._worker is not None:
            statistics = self._statistics
            values |= {
                **self._input.values(),
                "frames dropped": str(self._worker.dropped),
                **statistics.values(),
            }
            problem = self._input.problem()
            if problem:
                level, message = DiagnosticStatus.WARN, problem
                self.get_logger().warning(problem, throttle_duration_sec=WARNING_PERIOD, skip_first=True)
            elif statistics.rejected and not statistics.answered:
                level, message = DiagnosticStatus.ERROR, statistics.last_error
            elif statistics.rejected:
                count = statistics.rejected.total()
                level, message = DiagnosticStatus.WARN, f"{count} frames rejected, the last: {statistics.last_error}"
        name = f"{self.get_fully_qualified_name()}: detector"
        stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(to_diagnostics(name, self._camera_frame, level, message, values, stamp))


def run(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; a second signal, as under `ros2 launch`, changes nothing.

    Returns:
        the exit status: 0, or 2 for a parameter that cannot be.
    """
    stop, starting = threading.Event(), True

    def on_signal(number: int, frame: object) -> None:
        if starting and not stop.is_set():
            stop.set()
            raise KeyboardInterrupt  # loading a model takes seconds, do not wait for it
        stop.set()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    node = None
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        node = DetectorNode()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        if node.get_parameter("autostart").value:
            node.autostart()
        starting = False
        while not stop.is_set():
            executor.spin_once(timeout_sec=0.1)
    except ParameterException as error:
        print(f"detector: error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        starting = False
        if node is None or node.close():
            rclpy.try_shutdown()
    return 0


def main() -> None:
    """Entry point. Leaves without unloading Python: with torch in it that takes a second."""
    status = run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
