"""``skd_core show``: truth and detections drawn on the image and in bird's-eye view; as PNGs or in a window."""

from __future__ import annotations

import logging
import tempfile
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from skd_core.boxes import Boxes3D
from skd_core.camera import Camera
from skd_core.data.bag import find_camera, read_frames
from skd_core.data.kitti import KittiDataset, read_objects
from skd_core.errors import UserError
from skd_core.evaluation.bag_truth import TruthSource, find_truth
from skd_core.files import files_of, lock_folder
from skd_core.inference.detector import DEFAULT_THRESHOLD, Detector
from skd_core.visualize import RGB, TRUTH_COLOR, draw_bev, draw_boxes3d, stack, strip, view_size, write_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

KEPT = 100
"""Pictures a window can go back."""


@dataclass(eq=False)
class View:
    """A frame to show.

    Attributes:
        name: of the frame; number: in the source, from 0.
        image: shape (H, W, 3), uint8, RGB.
        camera: of the image.
        truth, found: boxes; None where nothing is known.
        stamp: of the image, nanoseconds, where the source knows it.
    """

    name: str
    number: int
    image: RGB
    camera: Camera
    truth: Boxes3D | None
    found: Boxes3D | None = None
    stamp: int | None = None


@dataclass(frozen=True)
class Choice:
    """What to show.

    Attributes:
        weights: detect with these; results: or take KITTI result files, ``NAME.txt``, as bag-eval and predict write.
        frames: FIRST:LAST:STEP as Python slices, without negative numbers; or one number.
        threshold: minimum score that is shown; None: that of the weights, of result files 0.4.
        device: where the network runs.
        labels: of a bag, folder of KITTI label files, one per frame.
        image_topic: if the bag has several cameras.
        rectified, camera: of the bag's images, see :func:`skd_core.data.bag.read_frames`.
        truth, class_map: of a bag, see :class:`skd_core.evaluation.bag_truth.TruthSource`.
    """

    weights: str | None = None
    results: Path | None = None
    frames: str = "::"
    threshold: float | None = None
    device: str = "auto"
    labels: Path | None = None
    image_topic: str | None = None
    rectified: bool = True
    camera: Path | None = None
    truth: str | None = None
    class_map: tuple[str, ...] = ()


def views(source: Path, choice: Choice) -> Iterator[View]:
    """Frames of a KITTI tree or a bag, one at a time, with truth and detections.

    Raises:
        UserError: wrong source, options that do not go together, or no such frames.
    """
    if choice.weights is not None and choice.results is not None:
        raise UserError("show: give --weights or --results, not both")
    chosen = _parse_frames(choice.frames)
    detector = None if choice.weights is None else Detector.load(choice.weights, choice.device)
    found = _kitti(source, chosen) if (source / "training").is_dir() else _bag(source, chosen, choice)
    view = None
    for view in found:
        if detector is not None:
            view.found = detector.predict(view.image, view.camera, choice.threshold)
        elif choice.results is not None:
            boxes = read_objects(choice.results / f"{view.name}.txt", results=True).boxes3d()
            view.found = boxes[boxes.scores >= (DEFAULT_THRESHOLD if choice.threshold is None else choice.threshold)]
        yield view
    if view is None:
        raise UserError(f"{source}: no frame in {choice.frames}")


def inputs(source: Path, choice: Choice) -> Iterator[Path]:
    """The files that the views are made of, for :func:`skd_core.files.keep_inputs`."""
    weights = None if choice.weights is None else Path(choice.weights)
    yield from files_of(source, choice.results, choice.labels, choice.camera, weights)


def draw_pictures(out: Path, found: Iterator[View], range_m: float = 60.0) -> int:
    """Write ``NAME.png`` of each view; the view from above reaches ``range_m`` metres. Returns their number."""
    count = 0
    with lock_folder(out):
        for view in found:
            write_image(out / f"{view.name}.png", draw(view, range_m))
            count += 1
    return count


def draw(view: View, range_m: float = 60.0) -> RGB:
    """The image with the truth above the image with the detections (where there are both), and both from above."""
    rows = []
    if view.truth is not None:
        rows.append(draw_boxes3d(view.image, view.truth, view.camera, TRUTH_COLOR))
    if view.found is not None or view.truth is None:
        rows.append(draw_boxes3d(view.image, view.found or Boxes3D.empty(), view.camera))
    left = strip(rows)
    above = draw_bev(view.found or Boxes3D.empty(), view.truth, view.camera, range_m, view_size(len(left)))
    return stack(left, above)


class Stepper:
    """Views one after the other, there and back: read and drawn when they are first wanted, :data:`KEPT` are kept."""

    def __init__(self, found: Iterator[View], range_m: float = 60.0) -> None:
        self._found, self._range_m = found, range_m
        self._seen: deque[tuple[str, RGB]] = deque(maxlen=KEPT)
        self._back = 0  # how far before the newest
        self.count = 0

    def step(self, by: int) -> tuple[str, RGB]:
        """Title and picture of the next view (1) or the one before (-1); at either end the same again."""
        if by < 0:
            self._back = min(self._back + 1, len(self._seen) - 1)
        elif self._back:
            self._back -= 1
        elif (view := next(self._found, None)) is not None:
            self.count += 1
            self._seen.append((f"{view.name} (frame {view.number})", draw(view, self._range_m)))
        return self._seen[-1 - self._back]


def step_through(found: Iterator[View], range_m: float = 60.0) -> int:
    """Show views in a window: right and left arrow keys, q. Returns how many were seen.

    Raises:
        UserError: no display.
    """
    import matplotlib
    from matplotlib import pyplot

    if matplotlib.get_backend().lower() == "agg":
        raise UserError("show: no display for a window; leave out --window to get PNG files, or use --rerun")
    stepper = Stepper(found, range_m)
    make_window(stepper)
    pyplot.show()
    return stepper.count


def make_window(stepper: Stepper) -> Figure:
    """A figure that steps when arrow keys are pressed in it."""
    from matplotlib import pyplot
    from matplotlib.backend_bases import Event, KeyEvent

    figure, axes = pyplot.subplots(figsize=(16, 7), layout="constrained")
    axes.axis("off")
    title, picture = stepper.step(1)
    shown = axes.imshow(picture)
    axes.set_title(f"{title}; arrow keys, q")

    def turn(event: Event) -> None:
        by = {"right": 1, "left": -1}.get(event.key or "") if isinstance(event, KeyEvent) else None
        if by is not None:
            title, picture = stepper.step(by)
            shown.set_data(picture)
            axes.set_title(title)
            figure.canvas.draw_idle()

    figure.canvas.mpl_connect("key_press_event", turn)
    return figure


def _kitti(root: Path, chosen: range) -> Iterator[View]:
    dataset = KittiDataset(root)
    for index in chosen:
        if index >= len(dataset):
            return
        sample = dataset[index]
        truth = read_objects(dataset.files(index)["label"]).boxes3d()
        yield View(sample.name, index, sample.image.permute(1, 2, 0).numpy(), sample.camera, truth)


def _bag(bag: Path, chosen: range, choice: Choice) -> Iterator[View]:
    """Frames are named as bag-eval names them."""
    camera = find_camera(bag, choice.image_topic, needs_info=choice.camera is None)
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as copies:
        source = TruthSource(choice.truth, choice.labels, choice.class_map)
        truth = find_truth(bag, camera, source, (), Path(copies), notes)
    for note in notes:
        logger.warning("%s", note)
    problems: list[str] = []
    frames = read_frames(
        bag, camera.image, camera.camera_info or None, problems, choice.rectified, camera_file=choice.camera
    )
    number = -1
    for number, frame in enumerate(frames):
        if number >= chosen.stop:
            return
        if number not in chosen:
            continue
        objects = None if truth is None else truth.at(frame)
        name = (truth.names.get(frame.number) if truth is not None else None) or f"{number:06d}"
        boxes = None if objects is None else objects.boxes3d()
        yield View(name, number, frame.image, frame.camera, boxes, stamp=frame.stamp)
    if number < 0:
        raise UserError(f"{bag}: no frame that can be used" + "".join(f"; {problem}" for problem in problems[:1]))
    for problem in problems[:3]:
        logger.warning("%s", problem)


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
