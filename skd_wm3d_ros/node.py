"""The detector as a managed (lifecycle) node.

Subscribes ``image``, ``camera_info`` and, with boxes_from: topic, ``detections_2d``; publishes ``~/detections``,
``~/label_info`` and, if they have subscribers, ``~/markers``, ``~/debug_image`` (raw and compressed), ``~/bev_image``,
``~/latency/...`` and what parameters switch on. The executor's thread only receives; a worker decodes, infers and
publishes.
"""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_msgs.msg import Header

from skd_core.errors import UserError
from skd_core.inference.detector import Detector
from skd_wm3d_ros import messages, optional_outputs, parameters
from skd_wm3d_ros.box_input import Frame
from skd_wm3d_ros.box_sources import BoxSource, make_source
from skd_wm3d_ros.calibration_file import CalibrationFile
from skd_wm3d_ros.decoding import Decoder
from skd_wm3d_ros.diagnostics import ERROR, OK, WARN, to_diagnostics
from skd_wm3d_ros.fallback import RobustDetector
from skd_wm3d_ros.inputs import CameraInput
from skd_wm3d_ros.markers import MarkerMemory
from skd_wm3d_ros.outputs import Outputs
from skd_wm3d_ros.pipeline import WARNING_PERIOD, Pipeline
from skd_wm3d_ros.tracking import Tracker
from skd_wm3d_ros.transforms import FrameLookup
from skd_wm3d_ros.transitions import reported
from skd_wm3d_ros.worker import LatestWorker

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
MAX_STAMP_AHEAD = 1.0  # seconds that a stamp may be ahead of the clock: two machines' clocks differ a little
STOP_TIMEOUT = 10.0  # seconds that a deactivation waits for the frame in work
END_TIMEOUT = 0.5  # seconds that a shutdown waits for it, before the thread is left behind

LoadDetector = Callable[[str, str, str], Detector]


class DetectorNode(LifecycleNode):
    """See the module.

    Args:
        load: weights, device and precision -> a detector; another one only for tests and measurements.
        tf_buffer: a tf2_ros.Buffer to use in place of an own one.
        options: keyword arguments of :class:`rclpy.node.Node`.
    """

    def __init__(self, load: LoadDetector = Detector.load, tf_buffer: Any = None, **options: Any) -> None:
        super().__init__("detector", **options)
        self.add_on_set_parameters_callback(parameters.check)
        for spec in parameters.PARAMETERS:
            parameters.declare(self, spec)
        self._load, self._tf_buffer = load, tf_buffer
        self.detector: RobustDetector | None = None
        self._outputs: Outputs | None = None
        self._input: CameraInput | None = None
        self._lookup: FrameLookup | None = None
        self._tracker, self._markers = Tracker(), MarkerMemory()
        self._boxes: BoxSource | None = None  # while configured
        self._pipeline: Pipeline | None = None  # while active, with its worker
        self._worker: LatestWorker[Frame] | None = None
        self._failure = self._camera_frame = ""
        # steady time: a dead camera or a stopped simulation must show
        self._diagnostics = self.create_publisher(
            DiagnosticArray,
            "/diagnostics",
            1,
            event_callbacks=PublisherEventCallbacks(use_default_callbacks=False),
        )
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(self._value("diagnostics_period"), self._publish_diagnostics, clock=steady)
        self.add_pre_set_parameters_callback(functools.partial(parameters.numbers_for_floats, self))
        self.add_post_set_parameters_callback(self._parameters_set)

    def autostart(self) -> bool:
        """Configure and activate; False where one of them fails."""
        return bool(self.trigger_configure() == SUCCESS and self.trigger_activate() == SUCCESS)

    def fail(self, message: str) -> None:
        """Log why a transition failed, and show it in the diagnostics until one succeeds."""
        self._failure = message
        self.get_logger().error(message)

    def close(self, timeout: float = END_TIMEOUT) -> bool:
        """Stop and destroy the node; False where an inference did not end in time and its thread was left behind."""
        stopped = self._stop(timeout)
        if not stopped:
            self._abandon()
        try:
            self.trigger_shutdown()
        except RuntimeError:  # a signal came in the middle of a transition, or it is shut down already
            self._free()
        self.destroy_node()
        return stopped

    def destroy_node(self) -> None:
        """Also let go of the state machine: as long as it holds the node's handle, the node stays in the ROS graph."""
        super().destroy_node()
        self._state_machine.destroy_when_not_in_use()

    # -- lifecycle ----------------------------------------------------------------------------------------------------
    @reported
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the weights and run once; FAILURE, with the path in the log, where that is not possible."""
        path, precision = self._value("model"), self._value("precision")

        def load(device: str) -> Detector:
            detector = self._load(path, device, precision)
            detector.warmup()
            return detector

        started = time.monotonic()
        try:
            self.detector = RobustDetector(
                load, self._value("device"), self._value("cpu_fallback"), self.get_logger().error
            )
            self._boxes = make_source(self, self.detector.detector)
            parameters.declare_class_thresholds(self, self.detector.detector.classes)
            optional = optional_outputs.wanted(self)
        except (UserError, RuntimeError, OSError) as error:  # RuntimeError: what CUDA raises
            self.detector = self._boxes = None
            self.fail(f"cannot configure: {error}")
            return FAILURE
        self._failure = ""
        self._outputs = Outputs(self, optional)
        detector = self.detector.detector
        self.get_logger().info(
            f"weights '{path}' on {detector.device} ({detector.backend}, {detector.precision}), "
            f"classes {', '.join(detector.classes)}, "
            f"ready in {time.monotonic() - started:.1f} s"
        )
        if unknown := parameters.unknown(self):
            self.get_logger().warning(unknown)
        return super().on_configure(state)

    @reported
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and start the worker."""
        assert self.detector is not None
        assert self._outputs is not None
        assert self._boxes is not None
        target, rectified = self._value("target_frame"), self._value("image_is_rectified")
        try:
            file = self._value("calibration")
            calibration = CalibrationFile(file, rectified) if file else None
            self._lookup = FrameLookup(self, target, self._tf_buffer) if target else None
            self._boxes.activate(self, self._take, self._reject)
        except UserError as error:
            self._stop(0.0)
            self.fail(f"cannot activate: {error}")
            return FAILURE
        result = super().on_activate(state)
        self._failure = ""
        self._tracker.restart()
        self._input = CameraInput(
            self,
            self._boxes.feed,
            self._value("image_transport"),
            self._value("sync_slop"),
            self._value("use_latest_camera_info"),
            self._value("camera_info_wait"),
            calibration=calibration,
        )
        topics = self._input.image_topic, self._input.camera_info_topic
        self._pipeline = Pipeline(
            self,
            detector=self.detector,
            boxes=self._boxes,
            outputs=self._outputs,
            decode=Decoder(*topics, rectified),
            lookup=self._lookup,
            tracker=self._tracker if self._value("tracking") else None,
            markers=self._markers,
        )
        self._worker = LatestWorker(self._pipeline.process, self._period)
        self._publish_label_info()
        self.get_logger().info(f"listening to {topics[0]} and {topics[1]}")
        return result

    @reported
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and finish the frame in work; the model stays loaded."""
        if not self._stop(STOP_TIMEOUT):
            self.get_logger().error(f"inference is still running after {STOP_TIMEOUT:.0f} s, so the node stays active")
            return FAILURE
        return super().on_deactivate(state)

    @reported
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model and its memory."""
        self._free()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop from any state."""
        if not self._stop(END_TIMEOUT):
            self._abandon()
        self._free()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After an exception in a transition: back to unconfigured."""
        if not self._stop(STOP_TIMEOUT):
            self._abandon()
        self._free()
        return SUCCESS

    def _publish_label_info(self) -> None:
        assert self.detector is not None
        assert self._outputs is not None
        header = Header(stamp=self.get_clock().now().to_msg())
        detector = self.detector.detector
        threshold = parameters.score_threshold(self, detector.threshold)
        self._outputs.publish("label_info", messages.to_label_info(detector.classes, threshold, header))

    def _parameters_set(self, changed: list[Parameter]) -> None:
        if self._input is not None and any(parameter.name == "score_threshold" for parameter in changed):
            self._publish_label_info()

    def _take(self, frame: Frame) -> None:
        if (worker := self._worker) is not None:  # else it has just been stopped
            worker.put(frame)

    # -- the rest ---------------------------------------------------------------------------------------------------
    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _period(self) -> float:
        rate = self._value("max_rate_hz")
        return 1.0 / rate if rate > 0 else 0.0

    def _reject(self, kind: str, reason: str) -> None:
        if (pipeline := self._pipeline) is not None:
            pipeline.reject(kind, reason)

    def _stop(self, timeout: float) -> bool:
        """False, with nothing changed, where an inference does not end in time."""
        if self._worker is not None and not self._worker.stop(timeout):
            return False
        self._abandon()
        return True

    def _abandon(self) -> None:
        """Unsubscribe and detach the worker. A thread that hangs in a frame keeps its objects, the model too, until it
        returns; its result is discarded."""
        worker, self._worker = self._worker, None
        pipeline, self._pipeline = self._pipeline, None
        if worker is not None and pipeline is not None:
            pipeline.cut()
            worker.abandon()
        boxes, camera, lookup = self._boxes, self._input, self._lookup
        self._input = self._lookup = None
        if boxes is not None:
            boxes.deactivate()
        if camera is not None:
            camera.destroy()
        if lookup is not None:
            lookup.destroy()

    def _free(self) -> None:
        if self._outputs is not None:
            self._outputs.destroy()
            self._outputs = None
        self.detector = self._boxes = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _problems(self) -> Iterator[tuple[bytes, str]]:
        """Level and line of each thing that is wrong."""
        if self._failure:
            yield ERROR, self._failure
        if self._worker is not None and (busy := self._worker.busy()) > self._value("stuck_after"):
            yield ERROR, f"inference is stuck: one frame has taken {busy:.0f} s; restart the node, check the GPU"
        if self._input is None or self._pipeline is None:
            return
        for source in (self._input, self._boxes):
            if source is not None and (problem := source.problem()) is not None:
                self.get_logger().warning(problem, throttle_duration_sec=WARNING_PERIOD, skip_first=True)
                yield WARN, problem
        if (problems := self._pipeline.statistics.problem()) is not None:
            yield problems
        if (ahead := self._pipeline.ahead) > MAX_STAMP_AHEAD:
            text = f"the images' stamps are {ahead:.1f} s ahead of this node's clock, their age is not known"
            yield WARN, f"{text}: publish /clock or leave use_sim_time, or set the machines' clocks"
        if self.detector is not None and self.detector.fallen_back:
            yield WARN, f"runs on the CPU, the GPU failed: {self.detector.fallen_back}"
        if self._pipeline.unlike:
            yield WARN, self._pipeline.unlike
        if self._outputs is not None and self._outputs.qos_problem:
            yield WARN, self._outputs.qos_problem

    def _publish_diagnostics(self) -> None:
        pipeline = self._pipeline
        state = "unconfigured" if self.detector is None else "inactive" if pipeline is None else "active"
        values = {"state": state}
        if self._outputs is not None:
            self._outputs.look()
        if self.detector is not None:
            detector = self.detector.detector
            values |= {"device": str(detector.device), "precision": detector.precision} | detector.calibration.values()
            values["backend"] = detector.backend + (f" ({detector.slow_because})" if detector.slow_because else "")
            if self.detector.fallen_back:
                values["CPU fallback"] = self.detector.fallen_back
        if pipeline is not None and self._input is not None and self._worker is not None and self._boxes is not None:
            self._camera_frame = pipeline.camera_frame
            self._input.look()
            self._boxes.look()
            in_work = self._worker.waiting()  # before the counts, which it must not exceed
            values |= self._input.values() | self._boxes.values() | pipeline.statistics.values()
            values |= {"frames dropped for newer ones": str(self._worker.dropped), "frames in work": str(in_work)}
            values |= {"camera": pipeline.unlike or "like the training camera"} if pipeline.judged else {}
        problems = sorted(self._problems(), key=lambda problem: problem[0], reverse=True)
        level, message = problems[0] if problems else (OK, state)
        values |= {f"also wrong ({number})": text for number, (_, text) in enumerate(problems[1:], 1)}
        name = f"{self.get_fully_qualified_name()}: detector"
        stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(to_diagnostics(name, self._camera_frame, level, message, values, stamp))
