"""The RViz configuration: the displays of rviz/detector.rviz, for each camera with its own topics."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from skd_wm3d_ros.cameras import transport_topic
from skd_wm3d_ros.launching import absolute

IMAGE = "image"  # topic of the camera's own image in the file; the other topics there are the node's


@dataclass(frozen=True)
class View:
    """Topics of one camera.

    Attributes:
        namespace: of its node, with a slash first.
        image: topic of its image, as the node subscribes to it.
        camera_info: topic of its calibration.
        frame: the target_frame of its detections; "" = the camera's own frame.
    """

    namespace: str
    image: str
    camera_info: str
    frame: str = ""

    @property
    def detections(self) -> str:
        return absolute(self.namespace, "detector/detections")


def view(namespace: str, topics: Mapping[str, str], parameters: Mapping[str, Any]) -> View:
    """What RViz must know of a node.

    Args:
        namespace: of the node, with a slash first.
        topics: what "image" and "camera_info" are remapped to.
        parameters: of the node, as far as they are known.
    """
    transport = str(parameters.get("image_transport") or "raw")
    return View(
        namespace,
        transport_topic(absolute(namespace, topics.get("image", IMAGE)), transport),
        absolute(namespace, topics.get("camera_info", "camera_info")),
        str(parameters.get("target_frame") or ""),
    )


def configuration(file: str | Path, views: Sequence[View]) -> str:
    """Text of an RViz configuration with full topic names: what does not depend on a camera once, the rest for each.

    Args:
        file: the configuration for one camera.
        views: the cameras; the displays of several are in one group for each.
    """
    content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    manager = content["Visualization Manager"]
    common = [display for display in manager["Displays"] if "Topic" not in display]
    own = [display for display in manager["Displays"] if "Topic" in display]
    groups = [[_of_camera(display, view) for display in own] for view in views]
    if len(views) == 1:
        manager["Displays"] = common + groups[0]
    else:
        names = [view.namespace.strip("/") or "/" for view in views]
        manager["Displays"] = common + [
            {"Class": "rviz_common/Group", "Name": name, "Enabled": True, "Displays": group}
            for name, group in zip(names, groups, strict=True)
        ]
    return yaml.safe_dump(content, sort_keys=False)


def _of_camera(display: Mapping[str, Any], view: View) -> dict[str, Any]:
    display = copy.deepcopy(dict(display))
    topic = display["Topic"]["Value"]
    display["Topic"]["Value"] = view.image if topic == IMAGE else absolute(view.namespace, topic)
    return display
