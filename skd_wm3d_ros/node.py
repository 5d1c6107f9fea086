"""The detector as a managed (lifecycle) node.

Subscribes ``image``, ``camera_info`` and, if told to, ``detections_2d``; publishes ``~/detections``, ``~/label_info``
and, where someone listens, ``~/markers``, ``~/debug_image`` (raw and compressed), ``~/bev_image`` and
``~/latency/...``. The executor's thread only receives; a worker decodes, infers and publishes.
"""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from diagnostic_msgs.msg import DiagnosticArray
from numpy.typing import NDArray
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Float64, Header

from skd_core.boxes import Boxes3D, pose_covariance
from skd_core.camera import Camera
from skd_core.data.ros_messages import stamp_nanoseconds
from skd_core.errors import UserError
from skd_core.inference.detector import Detector
from skd_core.visualize import draw_bev, draw_boxes3d
from skd_wm3d_ros import messages, parameters, postprocess
from skd_wm3d_ros.box_input import Frame
from skd_wm3d_ros.box_sources import BoxSource, make_source
from skd_wm3d_ros.camera_check import unlike_training
from skd_wm3d_ros.decoding import Decoder
from skd_wm3d_ros.diagnostics import ERROR, OK, STAGES, WARN, Statistics, to_diagnostics
from skd_wm3d_ros.fallback import RobustDetector
from skd_wm3d_ros.inputs import CameraInput
from skd_wm3d_ros.order import FrameOrder
from skd_wm3d_ros.outputs import Outputs
from skd_wm3d_ros.rejection import Rejection
from skd_wm3d_ros.tracking import Tracker
from skd_wm3d_ros.transforms import IDENTITY, FrameLookup, Transform
from skd_wm3d_ros.transitions import reported
from skd_wm3d_ros.worker import LatestWorker

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
WARNING_PERIOD = 10.0  # seconds between equal complaints in the log
BEV_RANGE = 60.0  # metres that the bird's-eye view reaches ahead where max_range sets no other
MOST_AHEAD = 1.0  # seconds that a stamp may be ahead of the clock: two machines' clocks differ a little
STOP_TIMEOUT = 10.0  # seconds that a deactivation waits for the frame in work

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
        self._decode: Decoder | None = None
        self._lookup: FrameLookup | None = None
        self._tracker, self._tracking = Tracker(), False
        self._boxes: BoxSource | None = None  # while configured
        self._worker: LatestWorker[Frame] | None = None
        self._order, self._statistics = FrameOrder(), Statistics()
        self._failure = self._unlike = ""
        self._ahead = 0.0  # seconds that the last image's stamp was ahead of this node's clock
        self._camera_frame = ""
        self._judged: Camera | None = None  # the camera that was compared with the training camera
        # steady time: a dead camera or a stopped simulation must show
        self._diagnostics = self.create_publisher(
            DiagnosticArray,
            "/diagnostics",
            1,
            event_callbacks=PublisherEventCallbacks(use_default_callbacks=False),
        )
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(self._value("diagnostics_period"), self._publish_diagnostics, clock=steady)
        self.add_post_set_parameters_callback(self._parameters_set)

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
        except (UserError, RuntimeError, OSError) as error:  # RuntimeError: what CUDA raises
            self.detector = self._boxes = None
            self.fail(f"cannot configure: {error}")
            return FAILURE
        self._failure = ""
        self._outputs = Outputs(self)
        detector = self.detector.detector
        self.get_logger().info(
            f"weights '{path}' on {detector.device} ({detector.precision}), classes {', '.join(detector.classes)}, "
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
        try:
            target = self._value("target_frame")
            self._lookup = FrameLookup(self, target, self._tf_buffer) if target else None
            self._boxes.activate(self, self._take, self._reject)
        except UserError as error:
            self._stop(0.0)
            self.fail(f"cannot activate: {error}")
            return FAILURE
        result = super().on_activate(state)
        self._failure, self._statistics, self._order = "", Statistics(), FrameOrder()
        self._tracking = self._value("tracking")
        self._tracker.restart()
        self._judged, self._unlike, self._ahead = None, "", 0.0
        self._worker = LatestWorker(self._process, self._period)
        self._input = CameraInput(
            self,
            self._boxes.feed,
            self._value("image_transport"),
            self._value("sync_slop"),
            self._value("use_latest_camera_info"),
        )
        rectified = self._value("image_is_rectified")
        self._decode = Decoder(self._input.image_topic, self._input.camera_info_topic, rectified)
        self._publish_label_info()
        self.get_logger().info(f"listening to {self._input.image_topic} and {self._input.camera_info_topic}")
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
        if self._stop(timeout=0.5):
            self._free()
        self._unsubscribe()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After an exception in a transition: back to unconfigured."""
        self._stop(STOP_TIMEOUT)
        self._unsubscribe()
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

    # -- frames (worker thread) -------------------------------------------------------------------------------------
    def _process(self, frame: Frame) -> None:
        try:
            self._detect(frame)
        except Rejection as rejection:
            self._reject(rejection.kind, str(rejection))
        except Exception as error:  # the node must outlive whatever one frame does to it
            self._reject("inference", f"frame skipped: {type(error).__name__}: {error}")

    def _detect(self, frame: Frame) -> None:
        assert self.detector is not None
        assert self._boxes is not None
        assert self._decode is not None
        image, detector = frame.image, self.detector.detector
        if self._order.admit(stamp_nanoseconds(image.header)) and self._lookup is not None:
            self._lookup.forget()
        self._check_age(image)
        times = [time.perf_counter()]
        picture, camera = self._decode(image, frame.info)
        self._judge(camera)
        times.append(time.perf_counter())
        thresholds = parameters.thresholds(self, detector.classes, detector.threshold)
        boxes2d = self._boxes.find(frame, picture)
        boxes = self.detector.predict(picture, camera, min(thresholds.values()), boxes2d)
        boxes = postprocess.select(
            postprocess.finite(boxes), thresholds, self._value("max_range"), self._value("nms_iou")
        )
        times.append(time.perf_counter())
        self._publish(image.header, picture, camera, boxes)
        times.append(time.perf_counter())
        seconds = (times[1] - times[0], times[2] - times[1], times[3] - times[2], self._age(image.header))
        self._statistics.answer(image.encoding if isinstance(image, Image) else image.format, seconds)
        self._publish_latencies(seconds)

    def _publish(self, header: Header, picture: NDArray[np.uint8], camera: Camera, boxes: Boxes3D) -> None:
        assert self._outputs is not None
        offer = self._outputs.offer
        self._camera_frame, transform, out = header.frame_id, IDENTITY, header
        if self._lookup is not None:
            transform = self._lookup(header.frame_id, header.stamp, self._value("transform_timeout"))
            out = Header(stamp=header.stamp, frame_id=self._lookup.target)
        ids = self._track(header, boxes, transform)
        self._outputs.publish("detections", messages.to_detections(boxes, out, transform, ids))
        lifetime = self._value("marker_lifetime")
        offer("markers", lambda: messages.to_markers(boxes, out, lifetime, transform, ids, header.frame_id))
        drawn = functools.cache(lambda: draw_boxes3d(picture, boxes, camera))
        offer("debug_image", lambda: messages.to_image(drawn(), header))
        offer("debug_image/compressed", lambda: messages.to_compressed(drawn(), header))
        reach = self._value("max_range") or BEV_RANGE
        offer("bev_image", lambda: messages.to_image(draw_bev(boxes, camera=camera, range_m=reach), header))

    def _publish_latencies(self, seconds: tuple[float, ...]) -> None:
        assert self._outputs is not None
        for stage, value in zip(STAGES, seconds, strict=True):
            self._outputs.offer(f"latency/{stage}_ms", functools.partial(Float64, data=1000 * value))

    def _track(self, header: Header, boxes: Boxes3D, transform: Transform) -> list[str]:
        """Ids of the boxes; the ground is the target frame's x-y plane, or the camera's x-z plane without one."""
        if not self._tracking:
            return []
        ground = [0, 2] if self._lookup is None else [0, 1]
        positions = transform.points(boxes.center.double().numpy())[:, ground]
        covariances = transform.covariances(pose_covariance(boxes).numpy())
        stamp = stamp_nanoseconds(header) / 1e9
        return self._tracker.update(stamp, positions, covariances[:, ground][:, :, ground], boxes.labels)

    def _check_age(self, image: Image | CompressedImage) -> None:
        limit, age = self._value("max_age_ms"), self._age(image.header)
        self._ahead = max(-age, 0.0)
        if 0 < limit < 1000 * age:
            raise Rejection("stale", f"the frame was {1000 * age:.0f} ms old, max_age_ms is {limit:.0f}")

    def _age(self, header: Header) -> float:
        return float(self.get_clock().now().nanoseconds - stamp_nanoseconds(header)) / 1e9

    def _period(self) -> float:
        rate = self._value("max_rate_hz")
        return 1.0 / rate if rate > 0 else 0.0

    def _judge(self, camera: Camera) -> None:
        """Say once for each camera in what it is unlike the training camera."""
        assert self.detector is not None
        if camera is self._judged:
            return
        self._judged = camera
        detector = self.detector.detector
        findings = unlike_training(detector.metadata, detector.student.config.input_size, camera)
        self._unlike = f"camera unlike the training camera: {'; '.join(findings)}" if findings else ""
        if findings:
            self.get_logger().warning(f"{self._unlike}; boxes may be wrong, train on images like these")

    def _reject(self, kind: str, reason: str) -> None:
        self._statistics.reject(kind, reason)
        self.get_logger().warning(reason, throttle_duration_sec=WARNING_PERIOD)

    # -- the rest ---------------------------------------------------------------------------------------------------
    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _stop(self, timeout: float) -> bool:
        """False, and all goes on as before, where an inference does not end in time."""
        if self._worker is not None:
            if not self._worker.stop(timeout):
                return False
            self._worker = None
        self._unsubscribe()
        if self._lookup is not None:
            self._lookup.destroy()
            self._lookup = None
        return True

    def _unsubscribe(self) -> None:
        if self._boxes is not None:
            self._boxes.deactivate()
        if self._input is not None:
            self._input.destroy()
            self._input = None

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
        if self._input is None:
            return
        for source in (self._input, self._boxes):
            if source is not None and (problem := source.problem()) is not None:
                self.get_logger().warning(problem, throttle_duration_sec=WARNING_PERIOD, skip_first=True)
                yield WARN, problem
        if (problems := self._statistics.problem()) is not None:
            yield problems
        if self._ahead > MOST_AHEAD:
            ahead = f"the images' stamps are {self._ahead:.1f} s ahead of this node's clock, their age is not known"
            yield WARN, f"{ahead}: publish /clock or leave use_sim_time, or set the machines' clocks"
        if self.detector is not None and self.detector.fallen_back:
            yield WARN, f"runs on the CPU, the GPU failed: {self.detector.fallen_back}"
        if self._unlike:
            yield WARN, self._unlike
        if self._outputs is not None and self._outputs.qos_problem:
            yield WARN, self._outputs.qos_problem

    def _publish_diagnostics(self) -> None:
        state = "unconfigured" if self.detector is None else "inactive" if self._input is None else "active"
        values = {"state": state}
        if self._outputs is not None:
            self._outputs.look()
        if self.detector is not None:
            detector = self.detector.detector
            values |= {"device": str(detector.device), "precision": detector.precision}
            if self.detector.fallen_back:
                values["CPU fallback"] = self.detector.fallen_back
        if self._input is not None and self._worker is not None and self._boxes is not None:
            self._input.look()
            self._boxes.look()
            in_work = self._worker.waiting()  # before the counts, which it must not exceed
            values |= self._input.values() | self._boxes.values() | self._statistics.values()
            values |= {"frames dropped for newer ones": str(self._worker.dropped), "frames in work": str(in_work)}
            values |= {"camera": self._unlike or "like the training camera"} if self._judged is not None else {}
        problems = sorted(self._problems(), key=lambda problem: problem[0], reverse=True)
        level, message = problems[0] if problems else (OK, state)
        values |= {f"also wrong ({number})": text for number, (_, text) in enumerate(problems[1:], 1)}
        name = f"{self.get_fully_qualified_name()}: detector"
        stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(to_diagnostics(name, self._camera_frame, level, message, values, stamp))
