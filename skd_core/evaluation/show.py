"""``skd_core show``: truth and detections one above the other, and both from above; as PNGs or in a window."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skd_core.boxes import Boxes3D
from skd_core.camera import Camera
from skd_core.data.bag import find_camera, read_frames
from skd_core.data.kitti import KittiDataset, read_objects
from skd_core.errors import UserError
from skd_core.evaluation.bag_truth import find_truth
from skd_core.evaluation.plots import make_folder
from skd_core.inference.detector import Detector
from skd_core.visualize import RGB, TRUTH_COLOR, draw_bev, draw_boxes3d, stack, strip, write_image


@dataclass(eq=False)
class View:
    """A frame to show.

    Attributes:
        name: of the frame.
        image: shape (H, W, 3), uint8, RGB.
        camera: of the image.
        truth, found: boxes; None where nothing is known.
    """

    name: str
    image: RGB
    camera: Camera
    truth: Boxes3D | None
    found: Boxes3D | None = None


def show(
    source: Path,
    out: Path,
    weights: str | None = None,
    results: Path | None = None,
    frames: str = "::",
    threshold: float = 0.2,
    device: str = "auto",
    labels: Path | None = None,
    image_topic: str | None = None,
    range_m: float = 60.0,
    window: bool = False,
) -> int:
    """Draw frames of a KITTI tree or a bag.

    Args:
        source: root of a KITTI tree, or a bag.
        out: gets ``NAME.png``; not used with ``window``.
        weights: detect with these; results: or take KITTI result files, ``NAME.txt``, as bag-eval and predict write.
        frames: FIRST:LAST:STEP as Python slices, without negative numbers; or one number.
        threshold: least score that is shown.
        labels: of a bag without truth, folder of KITTI label files, one per frame.
        image_topic: if the bag has several cameras.
        range_m: how far the view from above reaches, metres.
        window: step through the frames in a window instead (right and left arrow keys, q).

    Returns:
        number of frames drawn.

    Raises:
        UserError: wrong source, options that do not go together, no frames, or no display for a window.
    """
    if weights is not None and results is not None:
        raise UserError("show: give --weights or --results, not both")
    chosen = _parse_frames(frames)
    detector = None if weights is None else Detector.load(weights, device)
    is_tree = (source / "training").is_dir()
    views = _kitti(source, chosen) if is_tree else _bag(source, chosen, labels, image_topic)
    pictures = ((view.name, draw(_detect(view, detector, results, threshold), range_m)) for view in views)
    if window:
        return _step_through(list(pictures))
    make_folder(out)
    count = 0
    for name, picture in pictures:
        write_image(out / f"{name}.png", picture)
        count += 1
    if not count:
        raise UserError(f"{source}: no frame in {frames}")
    return count


def draw(view: View, range_m: float = 60.0) -> RGB:
    """The image with the truth above the image with the detections (where there are both), and both from above."""
    rows = []
    if view.truth is not None:
        rows.append(draw_boxes3d(view.image, view.truth, view.camera, TRUTH_COLOR))
    if view.found is not None or view.truth is None:
        rows.append(draw_boxes3d(view.image, view.found or Boxes3D.empty(), view.camera))
    left = strip(rows)
    above = draw_bev(view.found or Boxes3D.empty(), view.truth, view.camera, range_m, (len(left), len(left)))
    return stack(left, above)


def _detect(view: View, detector: Detector | None, results: Path | None, threshold: float) -> View:
    if detector is not None:
        view.found = detector.predict(view.image, view.camera, threshold)
    elif results is not None:
        boxes = read_objects(results / f"{view.name}.txt", results=True).boxes3d()
        view.found = boxes[boxes.scores >= threshold]
    return view


def _kitti(root: Path, chosen: range) -> Iterator[View]:
    dataset = KittiDataset(root)
    for index in chosen:
        if index >= len(dataset):
            return
        sample = dataset[index]
        truth = read_objects(dataset.files(index)["label"]).boxes3d()
        yield View(sample.name, sample.image.permute(1, 2, 0).numpy(), sample.camera, truth)


def _bag(bag: Path, chosen: range, labels: Path | None, image_topic: str | None) -> Iterator[View]:
    """Frames are named as bag-eval names them."""
    camera = find_camera(bag, image_topic)
    with tempfile.TemporaryDirectory() as copies:
        truth = find_truth(bag, camera, None, labels, (), Path(copies))
    for number, frame in enumerate(read_frames(bag, camera.image, camera.camera_info, problems=[])):
        if number >= chosen.stop:
            return
        if number not in chosen:
            continue
        objects = None if truth is None else truth.at(frame.stamp, frame.camera)
        name = (truth.names.get(frame.stamp) if truth is not None else None) or f"{number:06d}"
        boxes = None if objects is None else objects.boxes3d()
        yield View(name, frame.image, frame.camera, boxes)


def _parse_frames(text: str) -> range:
    """ "5", "2:10", "::20" as numbers of frames, in order."""
    parts = text.split(":")
    if len(parts) > 3 or not all(part == "" or part.isdecimal() for part in parts) or parts[0] == text == "":
        raise UserError(f"--frames {text}: use NUMBER or FIRST:LAST:STEP, such as 3, 0:20 or ::10")
    if len(parts) == 1:
        return range(int(text), int(text) + 1)
    first, last, step = (int(part) if part else None for part in [*parts, ""][:3])
    if step == 0:
        raise UserError(f"--frames {text}: STEP must not be 0")
    return range(first or 0, 1 << 62 if last is None else last, step or 1)


def _step_through(pictures: list[tuple[str, RGB]]) -> int:
    """Frames in a window."""
    import matplotlib
    from matplotlib import pyplot
    from matplotlib.backend_bases import Event, KeyEvent

    if not pictures:
        raise UserError("show: no such frames")
    if matplotlib.get_backend().lower() == "agg":
        raise UserError("show: no display for a window; leave out --window to get PNG files")
    figure, axes = pyplot.subplots(figsize=(16, 7), layout="constrained")
    axes.axis("off")
    shown = axes.imshow(pictures[0][1])
    at = 0

    def turn(event: Event) -> None:
        nonlocal at
        key = event.key if isinstance(event, KeyEvent) else None
        at = int(np.clip(at + {"right": 1, "left": -1}.get(key or "", 0), 0, len(pictures) - 1))
        shown.set_data(pictures[at][1])
        axes.set_title(f"{pictures[at][0]} ({at + 1} of {len(pictures)})")
        figure.canvas.draw_idle()

    figure.canvas.mpl_connect("key_press_event", turn)
    axes.set_title(f"{pictures[0][0]} (1 of {len(pictures)}); arrow keys, q")
    pyplot.show()
    return len(pictures)
