"""Evaluate the live node on a recording: play it, collect ``~/detections``, score them as `skd_core bag-eval` does.

``python -m skd_wm3d_ros.tools.bag_evaluation BAG [--weights W] [--out DIR] [--rate R | --lossless] [--check]``

Played in real time the node drops what it cannot keep up with: such frames are counted and not scored. ``--lossless``
waits for the answer to each image. ``--check`` detects offline too and compares, frame by frame.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from skd_core.boxes import Boxes3D, wrap_angle
from skd_core.data.bag import (
    DETECTIONS,
    BagWriter,
    CameraTopics,
    Frame,
    find_camera,
    read_detections,
    read_frames,
    read_static_transforms,
    typestore,
)
from skd_core.data.ros_detections import boxes_from_detections
from skd_core.errors import UserError
from skd_core.evaluation.bag_eval import DETECTIONS_TOPIC, evaluate_bag, print_scores
from skd_core.evaluation.bag_pairing import Images
from skd_core.inference.detector import Detector
from skd_wm3d_ros.tools.demo import NodeOptions, run

SAME = 1e-4
"""Greatest difference that counts as none: metres, radians, scores; the network's values are float32."""


@dataclass(frozen=True)
class Parity:
    """How live and offline detections compare.

    Attributes:
        frames: that both processed.
        different: of these, with other boxes.
        largest: greatest difference of any number of a box, metres, radians or score.
    """

    frames: int
    different: int
    largest: float


def evaluate_live(bag: Path, out: Path, options: NodeOptions, rate: float | None = None, **more: Any) -> dict[str, Any]:
    """Score what the live node answers.

    Args:
        rate: times real time; None waits for the answer to each image and drops none.
        more: image_topic, camera_info_topic, truth_topic, labels, json_file: see
            :func:`skd_core.evaluation.bag_eval.evaluate_bag`.

    Returns:
        the scores; ``out/live`` is a bag of the node's messages, byte for byte.

    Raises:
        UserError: see :func:`skd_wm3d_ros.tools.demo.run` and ``evaluate_bag``; images share a stamp; the node
            answers in another frame than the images' (``target_frame``), to which the bag's /tf_static has no chain.
    """
    camera = find_camera(bag, more.get("image_topic"), more.get("camera_info_topic"))
    doubt = Images.read(bag, camera.image).doubt()
    if doubt is not None:
        raise UserError(f"{bag}: {doubt}, and the node's answers are matched by stamp; evaluate it with bag-eval")
    detector = Detector.load(options.weights, "cpu")  # what the weights say of themselves
    classes = detector.classes
    answers = run(bag, out, options, camera, rate)
    with BagWriter(out / "live", overwrite=True) as writer:
        for answer in answers:
            writer.write(DETECTIONS_TOPIC, DETECTIONS, answer.cdr, answer.stamp)
    transforms = read_static_transforms(bag)
    by_stamp = {answer.stamp: answer for answer in answers}

    def answered(frame: Frame) -> tuple[Boxes3D, float] | None:
        answer = by_stamp.get(frame.stamp)
        if answer is None:
            return None
        message = typestore().deserialize_cdr(answer.cdr, DETECTIONS)
        boxes = boxes_from_detections(message, classes, to_camera=transforms.into(frame.frame_id))
        return boxes.moved(-frame.camera.offset), answer.latency

    return evaluate_bag(bag, answered, classes, out, rectified=options.rectified, sure=detector.threshold, **more)


def compare(bag: Path, live: Path, options: NodeOptions, camera: CameraTopics) -> Parity:
    """Detect offline in the frames that the node answered, and compare.

    Args:
        live: bag of the node's answers.
    """
    detector = Detector.load(options.weights, options.device)
    (frame_id, *_) = Images.read(bag, camera.image).frames
    into = read_static_transforms(bag).into(frame_id)
    answers = {stamp: boxes for stamp, _, boxes in read_detections(live, DETECTIONS_TOPIC, detector.classes, into)}
    frames, different, largest = 0, 0, 0.0
    for frame in read_frames(bag, camera.image, camera.camera_info, [], options.rectified):
        if frame.stamp not in answers:
            continue
        frames += 1
        offline = detector.predict(frame.image, frame.camera, options.threshold)
        difference = largest_difference(answers[frame.stamp], offline.moved(frame.camera.offset))
        different += difference > SAME
        largest = max(largest, difference)
    return Parity(frames, different, largest)


def largest_difference(a: Boxes3D, b: Boxes3D) -> float:
    """Between two lists of boxes in the same order; infinite where their number or classes differ."""
    if a.labels != b.labels:
        return float("inf")
    a, b = a.to(torch.float64), b.to(torch.float64)
    yaw = wrap_angle(a.yaw - b.yaw)[:, None]
    parts = [a.center - b.center, a.size - b.size, yaw, (a.scores - b.scores)[:, None]]
    return float(torch.cat(parts, -1).abs().max()) if len(a) else 0.0


def main(args: Sequence[str] | None = None) -> int:
    """Entry point; the exit code is 1 where live and offline detections differ or there are none to compare."""
    parser = argparse.ArgumentParser(prog="bag_evaluation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bag", type=Path, help="rosbag2 folder")
    parser.add_argument("--weights", default="default", help="weights file, or bundled: default, street, street-dsn")
    parser.add_argument("--out", type=Path, default=Path("out/bag_evaluation"), help="folder to write to")
    parser.add_argument("--rate", type=float, default=1.0, help="times real time (default 1)")
    parser.add_argument("--lossless", action="store_true", help="wait for the answer to each image; drops none")
    parser.add_argument("--check", action="store_true", help="compare with offline detections")
    parser.add_argument("--threshold", type=float, default=0.2, help="minimum score, 0 to 1 (default 0.2)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--params-file", type=Path, help="parameters of the node")
    parser.add_argument("--truth", help="topic of true boxes; default: the one that bag-make writes")
    parser.add_argument("--labels", type=Path, help="folder of KITTI label files, one per frame")
    parser.add_argument("--image-topic", help="image topic, if there are several cameras")
    parser.add_argument("--camera-info-topic", help="calibration topic, if it is not the one next to the image topic")
    parser.add_argument("--raw-images", action="store_true", help="undistort the images, in the node and offline")
    parser.add_argument("--json", type=Path, help="JSON file for all numbers")
    parsed = parser.parse_args(args)
    if parsed.rate <= 0:
        parser.error("--rate must be positive")
    options = NodeOptions(
        parsed.weights, parsed.device, parsed.threshold, parsed.params_file, rectified=not parsed.raw_images
    )
    try:
        camera = find_camera(parsed.bag, parsed.image_topic, parsed.camera_info_topic)
        scores = evaluate_live(
            parsed.bag, parsed.out, options, None if parsed.lossless else parsed.rate, image_topic=parsed.image_topic,
            camera_info_topic=parsed.camera_info_topic, truth_topic=parsed.truth, labels=parsed.labels,
            json_file=parsed.json,
        )  # fmt: skip
        print_scores(scores)
        print(f"wrote {parsed.out}/report.html, scores.json, results, detections, live")
        if parsed.check:
            found = compare(parsed.bag, parsed.out / "live", options, camera)
            if not found.frames:
                print("live and offline: no frame was answered, nothing to compare")
                return 1
            verdict = "identical" if not found.different else f"{found.different} DIFFER"
            print(f"live and offline: {found.frames} frames, {verdict} (largest difference {found.largest:.1e})")
            return int(found.different > 0)
    except UserError as error:
        print(f"bag_evaluation: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bag_evaluation: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
