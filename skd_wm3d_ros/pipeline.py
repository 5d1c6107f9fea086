"""The processing of a frame, from its messages to the published outputs, in the worker's thread."""

from __future__ import annotations

import functools
import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Float64, Header

from skd_core.boxes import Boxes3D
from skd_core.camera import Camera
from skd_core.covariance import pose_covariance
from skd_core.data.ros_messages import stamp_nanoseconds
from skd_core.visualize import draw_bev, draw_boxes3d
from skd_wm3d_ros import messages, parameters, postprocess
from skd_wm3d_ros.box_input import Frame
from skd_wm3d_ros.box_sources import BoxSource
from skd_wm3d_ros.camera_check import differences_from_training
from skd_wm3d_ros.decoding import Decoder
from skd_wm3d_ros.diagnostics import STAGES, Statistics
from skd_wm3d_ros.fallback import RobustDetector
from skd_wm3d_ros.markers import MarkerMemory
from skd_wm3d_ros.optional_outputs import OPTIONAL, About
from skd_wm3d_ros.order import FrameOrder
from skd_wm3d_ros.outputs import Outputs
from skd_wm3d_ros.rejection import Rejection
from skd_wm3d_ros.tracking import Tracker
from skd_wm3d_ros.transforms import IDENTITY, FrameLookup, Transform

WARNING_PERIOD = 10.0  # seconds between equal complaints in the log
BEV_RANGE = 60.0  # metres that the bird's-eye view reaches ahead where max_range sets no other


class Pipeline:
    """Decodes, infers and publishes. A later activation has another one: nothing of an earlier frame reaches it.

    Args:
        node: for parameters, clock and log.
        detector, boxes, outputs, decode: of the node's configuration and its camera.
        lookup: to the target frame; None = boxes stay in the camera's.
        tracker: gives ids; None = no tracking.
        markers: what RViz shows of this node.

    Attributes:
        statistics: what became of the frames.
        camera_frame: the last image's frame_id.
        judged: whether a camera has been compared with the training camera.
        unlike: in what it is unlike it, one line; "" = in nothing.
        ahead: seconds that the last image's stamp was ahead of the node's clock.
    """

    def __init__(
        self,
        node: Node,
        *,
        detector: RobustDetector,
        boxes: BoxSource,
        outputs: Outputs,
        decode: Decoder,
        lookup: FrameLookup | None,
        tracker: Tracker | None,
        markers: MarkerMemory,
    ) -> None:
        self._node, self._detector, self._boxes, self._outputs = node, detector, boxes, outputs
        self._decode, self._lookup, self._tracker, self._markers = decode, lookup, tracker, markers
        self._order, self.statistics = FrameOrder(), Statistics()
        self.camera_frame = self.unlike = ""
        self.ahead = 0.0
        self._judged: Camera | None = None
        self._cut = False
        self._speaking = threading.Lock()  # held while something is published

    @property
    def judged(self) -> bool:
        return self._judged is not None

    def cut(self) -> None:
        """Publish and log nothing from now on, whatever a thread that hangs in a frame still comes back with."""
        with self._speaking:
            self._cut = True

    def process(self, frame: Frame) -> None:
        """Answer a frame, or count why not; never raises."""
        try:
            if self._value("lazy") and not self._cut and not self._outputs.subscriber_count():
                self.statistics.leave_out()
            else:
                self._detect(frame)
        except Rejection as rejection:
            self.reject(rejection.kind, str(rejection))
        except Exception as error:  # the node must outlive whatever one frame does to it
            self.reject("inference", f"frame skipped: {type(error).__name__}: {error}")

    def reject(self, kind: str, reason: str) -> None:
        """Count a frame that is not answered, and say why."""
        if not self._cut:
            self.statistics.reject(kind, reason)
            self._node.get_logger().warning(reason, throttle_duration_sec=WARNING_PERIOD)

    def _detect(self, frame: Frame) -> None:
        image, detector = frame.image, self._detector.detector
        if self._order.admit(stamp_nanoseconds(image.header)) and self._lookup is not None:
            self._lookup.forget()
        self._check_age(image)
        times = [time.perf_counter()]
        picture, camera = self._decode(image, frame.info)
        self._judge(camera)
        times.append(time.perf_counter())
        thresholds = parameters.thresholds(self._node, detector.classes, detector.threshold)
        boxes2d = self._boxes.find(frame, picture)
        boxes = self._detector.predict(picture, camera, min(thresholds.values()), boxes2d)
        boxes = postprocess.select(
            postprocess.finite(boxes), thresholds, self._value("max_range"), self._value("nms_iou")
        )
        times.append(time.perf_counter())
        transform, header = self._transform(image.header)
        with self._speaking:
            if self._cut:
                return
            self._publish(image.header, header, transform, picture, camera, boxes)
            times.append(time.perf_counter())
            seconds = (times[1] - times[0], times[2] - times[1], times[3] - times[2], self._age(image.header))
            self.statistics.answer(image.encoding if isinstance(image, Image) else image.format, seconds)
            self._publish_latencies(seconds)

    def _transform(self, header: Header) -> tuple[Transform, Header]:
        """From the image's frame to the one that is published, and the header of what is."""
        self.camera_frame = header.frame_id
        if self._lookup is None:
            return IDENTITY, header
        transform = self._lookup(header.frame_id, header.stamp, self._value("transform_timeout"))
        return transform, Header(stamp=header.stamp, frame_id=self._lookup.target)

    def _publish(
        self,
        header: Header,
        out: Header,
        transform: Transform,
        picture: NDArray[np.uint8],
        camera: Camera,
        boxes: Boxes3D,
    ) -> None:
        offer = self._outputs.offer
        ids = self._track(header, boxes, transform)
        detections = messages.to_detections(boxes, out, transform, ids)
        self._outputs.publish("detections", detections)
        lifetime = self._value("marker_lifetime")
        name = f"{self._node.get_namespace().strip('/')}/{header.frame_id}".lstrip("/")
        markers = functools.partial(messages.to_markers, boxes, out, lifetime, transform, ids, name)
        offer("markers", lambda: self._markers.update(markers(), out, lifetime))
        about = About(name, lifetime, bool(self._detector.detector.metadata.get("heading_known", False)))
        for output, module in self._outputs.optional.items():
            offer(output, functools.partial(OPTIONAL[output].convert, detections, module, about))
        drawn = functools.cache(lambda: draw_boxes3d(picture, boxes, camera))
        offer("debug_image", lambda: messages.to_image(drawn(), header))
        offer("debug_image/compressed", lambda: messages.to_compressed(drawn(), header))
        reach = self._value("max_range") or BEV_RANGE
        offer("bev_image", lambda: messages.to_image(draw_bev(boxes, camera=camera, range_m=reach), header))

    def _publish_latencies(self, seconds: tuple[float, ...]) -> None:
        for stage, value in zip(STAGES, seconds, strict=True):
            self._outputs.offer(f"latency/{stage}_ms", functools.partial(Float64, data=1000 * value))

    def _track(self, header: Header, boxes: Boxes3D, transform: Transform) -> list[str]:
        """Ids of the boxes; the ground is the target frame's x-y plane, or the camera's x-z plane without one."""
        if self._tracker is None:
            return []
        ground = [0, 2] if self._lookup is None else [0, 1]
        positions = transform.points(boxes.center.double().numpy())[:, ground]
        covariances = transform.covariances(pose_covariance(boxes).numpy())
        stamp = stamp_nanoseconds(header) / 1e9
        return self._tracker.update(stamp, positions, covariances[:, ground][:, :, ground], boxes.labels)

    def _check_age(self, image: Image | CompressedImage) -> None:
        limit, age = self._value("max_age_ms"), self._age(image.header)
        self.ahead = max(-age, 0.0)
        if 0 < limit < 1000 * age:
            raise Rejection("stale", f"the frame was {1000 * age:.0f} ms old, max_age_ms is {limit:.0f}")

    def _age(self, header: Header) -> float:
        return float(self._node.get_clock().now().nanoseconds - stamp_nanoseconds(header)) / 1e9

    def _judge(self, camera: Camera) -> None:
        """Say once for each camera in what it is unlike the training camera."""
        if camera is self._judged:
            return
        self._judged = camera
        detector = self._detector.detector
        findings = differences_from_training(detector.metadata, detector.config.input_size, camera)
        self.unlike = f"camera unlike the training camera: {'; '.join(findings)}" if findings else ""
        if findings:
            self._node.get_logger().warning(f"{self.unlike}; boxes may be wrong, train on images like these")

    def _value(self, name: str) -> Any:
        return self._node.get_parameter(name).value
