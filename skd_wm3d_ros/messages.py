"""Boxes to ROS messages. Frames, axes and covariance order are decided here and nowhere else.

Boxes come in the camera's optical frame (x right, y down, z forward) and leave in it, or in a target frame. A box's
own axes are ROS's: x forward (length), y left (width), z up (height); ``size = (l, w, h)``; the pose is the centre of
the volume.
"""

from __future__ import annotations

import array
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from builtin_interfaces.msg import Duration
from cv_bridge import CvBridge
from geometry_msgs.msg import Point, Pose, Quaternion, Vector3
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import ColorRGBA, Header
from vision_msgs.msg import (
    Detection3D,
    Detection3DArray,
    LabelInfo,
    ObjectHypothesisWithPose,
    VisionClass,
)
from visualization_msgs.msg import Marker, MarkerArray

from skd_core.boxes import EDGES, Boxes3D
from skd_core.covariance import pose_covariance
from skd_core.visualize import color_of
from skd_wm3d_ros.transforms import IDENTITY, Transform

LINE_WIDTH, TEXT_HEIGHT = 0.06, 0.5  # metres


def to_detections(
    boxes: Boxes3D, header: Header, transform: Transform = IDENTITY, ids: Sequence[str] = ()
) -> Detection3DArray:
    """Boxes as a Detection3DArray; every detection carries the array's header.

    Args:
        boxes: finite boxes in the camera frame.
        header: the image's stamp, and the frame that ``transform`` leads to.
        transform: from the camera frame; pose and covariance are both turned.
        ids: track ids, "" where unknown; none at all without tracking.
    """
    rows = zip(
        transform.points(boxes.center.double().numpy()).tolist(),
        boxes.size.tolist(),
        transform.orientations(Boxes3D.quaternion_from_yaw(boxes.yaw.double()).numpy()).tolist(),
        boxes.labels,
        boxes.scores.tolist(),
        transform.covariances(pose_covariance(boxes).numpy()).reshape(-1, 36),
        ids or [""] * len(boxes),
        strict=True,
    )
    array_message = Detection3DArray(header=header)
    for (x, y, z), (length, width, height), (qx, qy, qz, qw), label, score, covariance, track in rows:
        # filled in place: rclpy's constructors make every default even where a value is given, twice the time
        detection, result = Detection3D(), ObjectHypothesisWithPose()
        pose, size = detection.bbox.center, detection.bbox.size
        position, orientation = pose.position, pose.orientation
        position.x, position.y, position.z = x, y, z
        orientation.x, orientation.y, orientation.z, orientation.w = qx, qy, qz, qw
        size.x, size.y, size.z = length, width, height
        result.hypothesis.class_id, result.hypothesis.score = label.lower(), min(max(score, 0.0), 1.0)
        result.pose.pose, result.pose.covariance = pose, covariance
        detection.header, detection.results, detection.id = header, [result], track
        array_message.detections.append(detection)
    return array_message


def to_markers(
    boxes: Boxes3D,
    header: Header,
    lifetime: float,
    transform: Transform = IDENTITY,
    ids: Sequence[str] = (),
    camera: str = "",
) -> MarkerArray:
    """Boxes for RViz: outline, heading and text, to be added; :mod:`skd_wm3d_ros.markers` deletes what is gone.

    The heading is an arrow to the front, or, where yaw is known modulo pi only, a line from end to end.

    Args:
        boxes, header, transform, ids: as in :func:`to_detections`.
        lifetime: seconds after which RViz removes them if nothing newer comes.
        camera: what the namespaces begin with, so that cameras can share a display; the header's frame_id if empty.
    """
    boxes = boxes.to(torch.float64)
    camera = camera or header.frame_id
    above = boxes.center.clone()
    above[:, 1] = boxes.corners[..., 1].amin(-1) - TEXT_HEIGHT  # y points down
    duration = Duration(sec=int(lifetime), nanosec=int(lifetime % 1 * 1e9))
    pose = Pose(orientation=Quaternion(w=1.0))
    rows = zip(
        boxes.labels,
        boxes.scores.tolist(),
        boxes.center[:, [0, 2]].norm(dim=-1).tolist(),
        transform.points(boxes.center.numpy()).tolist(),
        transform.points(above.numpy()).tolist(),
        transform.points(boxes.corners.numpy()).tolist(),
        ids or [""] * len(boxes),
        boxes.heading_known.tolist(),
        strict=True,
    )
    markers: list[Marker] = []
    for index, (label, score, distance, center, top, corners, track, known) in enumerate(rows):
        r, g, b = (channel / 255 for channel in color_of(label))
        points = [Point(x=x, y=y, z=z) for x, y, z in corners]
        middle, front = Point(x=center[0], y=center[1], z=center[2]), _mean([corners[i] for i in (0, 1, 4, 5)])
        heading = (Marker.ARROW, Vector3(x=2 * LINE_WIDTH, y=4 * LINE_WIDTH, z=4 * LINE_WIDTH), [middle, front])
        if not known:
            rear = _mean([corners[i] for i in (2, 3, 6, 7)])
            heading = (Marker.LINE_LIST, Vector3(x=LINE_WIDTH), [rear, front])
        common = {
            "header": header,
            "id": index,
            "action": Marker.ADD,
            "lifetime": duration,
            "color": ColorRGBA(r=r, g=g, b=b, a=1.0),
        }
        number = f" #{track}" if track else ""
        markers += [
            Marker(
                **common,
                ns=f"{camera}/box",
                type=Marker.LINE_LIST,
                pose=pose,
                scale=Vector3(x=LINE_WIDTH),
                points=[points[i] for edge in EDGES for i in edge],
            ),
            Marker(
                **common,
                ns=f"{camera}/heading",
                type=heading[0],
                pose=pose,
                scale=heading[1],
                points=heading[2],
            ),
            Marker(
                **common,
                ns=f"{camera}/text",
                type=Marker.TEXT_VIEW_FACING,
                pose=Pose(position=Point(x=top[0], y=top[1], z=top[2]), orientation=Quaternion(w=1.0)),
                scale=Vector3(z=TEXT_HEIGHT),
                text=f"{label.lower()}{number} {score:.2f} {distance:.1f} m",
            ),
        ]
    return MarkerArray(markers=markers)


def to_label_info(classes: Sequence[str], threshold: float, header: Header) -> LabelInfo:
    """What the class_id texts of the detections can be; numbered as in the network."""
    class_map = [VisionClass(class_id=i, class_name=name.lower()) for i, name in enumerate(classes)]
    return LabelInfo(header=header, class_map=class_map, threshold=threshold)


def to_image(image: NDArray[np.uint8], header: Header) -> Image:
    """An RGB picture, shape (H, W, 3), as a message."""
    message: Image = CvBridge().cv2_to_imgmsg(np.ascontiguousarray(image), "rgb8", header)
    return message


def to_compressed(image: NDArray[np.uint8], header: Header) -> CompressedImage:
    """An RGB picture, shape (H, W, 3), as a JPEG message."""
    encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    return CompressedImage(header=header, format="rgb8; jpeg compressed bgr8", data=array.array("B", encoded.tobytes()))


def _mean(points: Sequence[Sequence[float]]) -> Point:
    x, y, z = np.mean(points, axis=0).tolist()
    return Point(x=x, y=y, z=z)
