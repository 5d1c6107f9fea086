"""Frames, truth and detections as a recording for the rerun viewer (https://rerun.io); needs the extra [rerun]."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skd_core.boxes import Boxes3D
from skd_core.errors import UserError
from skd_core.evaluation.show import View
from skd_core.files import make_folder, replacing
from skd_core.visualize import TRUTH_COLOR, color_of

JPEG_QUALITY = 90


def write_recording(path: Path, found: Iterator[View]) -> int:
    """Write views as a recording, atomically: images under a pinhole camera, boxes in the camera's frame.

    The timelines are "frame" and, where the source knows the stamps, "stamp".

    Returns:
        number of frames.

    Raises:
        UserError: rerun-sdk is not installed, or the file cannot be written.
    """
    rr = _import_rerun()
    recording = rr.RecordingStream("skd_core", send_properties=False)
    count = 0
    make_folder(path.parent)
    try:
        with replacing(path) as temporary:
            recording.save(temporary, default_blueprint=_layout())
            recording.log("/", rr.ViewCoordinates.RDF, static=True)  # x right, y down, z forward
            for view in found:
                _log(rr, recording, view)
                count += 1
            recording.flush()
            recording.disconnect()
    except RuntimeError as error:  # rerun's own
        raise UserError(f"{path}: cannot write a recording: {error}") from None
    return count


def _log(rr: Any, recording: Any, view: View) -> None:
    recording.set_time("frame", sequence=view.number)
    if view.stamp is not None:
        recording.set_time("stamp", timestamp=np.datetime64(view.stamp, "ns"))
    camera = view.camera
    K, place = camera.P[:, :3], -camera.offset  # of KITTI's left colour camera, 6 cm beside its frame's origin
    recording.log("camera", rr.Transform3D(translation=place.numpy()))
    recording.log(
        "camera",
        rr.Pinhole(
            image_from_camera=K.numpy(), resolution=[camera.width, camera.height], camera_xyz=rr.ViewCoordinates.RDF
        ),
    )
    recording.log("camera/image", rr.Image(view.image).compress(jpeg_quality=JPEG_QUALITY))
    for name, boxes, color in (("truth", view.truth, TRUTH_COLOR), ("detections", view.found, None)):
        if boxes is not None:
            recording.log(name, _boxes(rr, boxes, color))


def _boxes(rr: Any, boxes: Boxes3D, color: tuple[int, int, int] | None) -> Any:
    """Our boxes' axes are rerun's: x length, y width, z height; quaternions (x, y, z, w)."""
    exact = boxes.to("cpu", torch.float64)
    scores = [""] * len(boxes) if color else [f" {score:.2f}" for score in exact.scores.tolist()]
    return rr.Boxes3D(
        centers=exact.center.numpy(),
        half_sizes=0.5 * exact.size.numpy(),
        quaternions=exact.quaternion.numpy(),
        colors=[color or color_of(label) for label in boxes.labels],
        labels=[f"{label}{score}" for label, score in zip(boxes.labels, scores, strict=True)],
        show_labels=True,
    )


def _layout() -> Any:
    """The image beside the space."""
    from rerun import blueprint

    return blueprint.Horizontal(
        blueprint.Spatial2DView(origin="/camera/image", contents=["/camera/image", "/truth", "/detections"]),
        blueprint.Spatial3DView(origin="/"),
        column_shares=[3, 2],
    )


def _import_rerun() -> Any:
    try:
        import rerun
    except ImportError as error:  # of its pyarrow too, where that wants another numpy
        raise UserError(
            f"--rerun needs rerun-sdk ({error}): pip install 'rerun-sdk>=0.23', with numpy below 2 also 'pyarrow<21'"
        ) from None
    return rerun
