"""Pictures: boxes on the image and from above. All images are (H, W, 3) uint8 RGB arrays; none is changed in place.

OpenCV is imported where something is drawn and not before: inference does not need it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from skd_core.boxes import EDGES, Boxes2D, Boxes3D
from skd_core.camera import Camera
from skd_core.errors import UserError
from skd_core.files import write_atomic

RGB = npt.NDArray[np.uint8]
Color = tuple[int, int, int]
Points = npt.NDArray[np.float64]

COLORS: dict[str, Color] = {
    "car": (64, 170, 255),
    "van": (60, 215, 215),
    "truck": (185, 130, 255),
    "bus": (225, 110, 225),
    "pedestrian": (255, 95, 90),
    "cyclist": (255, 200, 40),
    "bicycle": (255, 200, 40),
    "motorcycle": (255, 150, 40),
    "dontcare": (150, 150, 150),
}
"""Colours of well-known classes, by lower-case name; :func:`color_of` makes one up for the others."""

TRUTH_COLOR: Color = (90, 225, 110)
MAX_RANGE = 1000.0  # metres, of a view from above
MAX_VIEW_SIZE = 2000  # pixels, likewise
NEAR_PLANE = 0.1
"""Metres; what is nearer is cut off before projection."""

_FRONT_CROSS = ((0, 5), (1, 4))  # the diagonals of the front face
_SHIFT = 4  # OpenCV draws at 1/16 pixel
_FARTHEST_PIXEL = 1e7  # beyond it, 1/16 pixels leave int32
_BLACK: Color = (0, 0, 0)
_BACKGROUND: Color = (24, 26, 30)
_GRID: Color = (62, 66, 74)
_TEXT: Color = (165, 170, 180)


def color_of(label: str) -> Color:
    """The class's colour, the same in every picture and every run."""
    name = label.lower()
    if name in COLORS:
        return COLORS[name]
    digest = zlib.crc32(name.encode())
    return (96 + (digest & 127), 96 + (digest >> 8 & 127), 96 + (digest >> 16 & 127))


def draw_boxes3d(image: RGB, boxes: Boxes3D, camera: Camera, color: Color | None = None, text: bool = True) -> RGB:
    """Draw the projected edges of 3D boxes, with the front face crossed where the heading is known.

    Args:
        image: shape (H, W, 3), the image ``camera`` belongs to.
        boxes: N boxes in the camera frame; far ones are drawn first, edges are cut at :data:`NEAR_PLANE`.
        camera: of this image.
        color: of all boxes; by class without it.
        text: write class, score and distance at each box; the score only where it is not 1.

    Raises:
        UserError: the image's size is not the camera's.
    """
    canvas = _canvas(image)
    if canvas.shape[:2] != (camera.height, camera.width):
        raise UserError(
            f"image is {canvas.shape[1]}x{canvas.shape[0]}, its camera for {camera.width}x{camera.height}; resize both"
        )
    width = _line_width(canvas)
    corners = boxes.corners.detach().cpu().double().numpy()
    P, known = camera.P.cpu().numpy(), boxes.heading_known.tolist()
    labels = []
    for i in boxes.center[:, 2].argsort(descending=True).tolist():
        edges, cross = _project_lines(corners[i], EDGES, P), _project_lines(corners[i], _FRONT_CROSS, P)
        chosen = color or color_of(boxes.labels[i])
        _lines(canvas, edges, _BLACK, width + 2)
        _lines(canvas, edges, chosen, width)
        if known[i]:
            _lines(canvas, cross, chosen, width)
        if len(edges):
            corner = edges.reshape(-1, 2).clip(0, [camera.width, camera.height]).min(0)
            labels.append((f"{_title(boxes, i)} {float(boxes.center[i, 2]):.0f} m", corner, chosen))
    if text:
        _labels(canvas, labels[::-1])
    return canvas


def draw_boxes2d(image: RGB, boxes: Boxes2D, color: Color | None = None, text: bool = True) -> RGB:
    """Draw 2D boxes.

    Args:
        image: shape (H, W, 3).
        boxes: N boxes, pixels of this image.
        color: of all boxes; by class without it.
        text: write class and score at each box; the score only where it is not 1.
    """
    canvas = _canvas(image)
    width = _line_width(canvas)
    labels = []
    for i, (x1, y1, x2, y2) in enumerate(boxes.xyxy.detach().cpu().tolist()):
        outline = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
        lines = np.stack([outline, np.roll(outline, -1, 0)], 1)
        chosen = color or color_of(boxes.labels[i])
        _lines(canvas, lines, _BLACK, width + 2)
        _lines(canvas, lines, chosen, width)
        labels.append((_title(boxes, i), outline[0], chosen))
    if text:
        _labels(canvas, labels)
    return canvas


def draw_bev(
    boxes: Boxes3D,
    truth: Boxes3D | None = None,
    camera: Camera | None = None,
    range_m: float = 60.0,
    size: tuple[int, int] = (480, 480),
) -> RGB:
    """Draw boxes from above: camera at the bottom centre, z forward up, x right; a grid line every 10 m.

    At the bottom right stands what the colours mean. Boxes are filled, with a line from the centre to the front, or
    from end to end where the heading is not known; where ``depth_std`` is known, a line of plus and minus one standard
    deviation lies along the viewing ray. Truth is an outline in :data:`TRUTH_COLOR`.

    Args:
        boxes: N boxes in the camera frame.
        truth: boxes to compare with.
        camera: draws its field of view.
        range_m: range ahead, metres, up to :data:`MAX_RANGE`; the range to the sides follows from the width.
        size: width and height of the picture, pixels, up to :data:`MAX_VIEW_SIZE` each.

    Raises:
        UserError: range or size not positive, or beyond these.
    """
    import cv2

    if not (0 < range_m <= MAX_RANGE and 0 < min(size) <= max(size) <= MAX_VIEW_SIZE):
        raise UserError(
            f"bird's-eye view: range must be positive and at most {MAX_RANGE:g} m, size at most {MAX_VIEW_SIZE} "
            f"pixels, got {range_m:g} m and {size[0]}x{size[1]}"
        )
    width, height = size
    scale = height / (1.04 * range_m)  # pixels per metre, with a margin below the camera
    origin = np.array([0.5 * width, height - 0.04 * range_m * scale])

    def place(xz: Points) -> Points:
        return np.asarray(origin + xz * [scale, -scale], np.float64)

    canvas: RGB = np.full((height, width, 3), _BACKGROUND, np.uint8)
    _draw_grid(canvas, place, range_m, 0.5 * width / scale)
    if camera is not None:
        ends = np.array([[-camera.cx, camera.fx], [camera.width - camera.cx, camera.fx]]) * (2 * range_m / camera.fx)
        _lines(canvas, np.stack([place(np.zeros((2, 2))), place(ends)], 1), _TEXT, 1)
    _fill(canvas, place(np.array([[0, 0.02], [0.012, -0.015], [-0.012, -0.015]]) * range_m), (230, 230, 230))

    outlines = place(_footprints(boxes))
    filled = canvas.copy()
    for outline, label in zip(outlines, boxes.labels, strict=True):
        _fill(filled, outline, color_of(label))
    canvas = np.asarray(cv2.addWeighted(filled, 0.45, canvas, 0.55, 0), np.uint8)
    centers = boxes.center[:, [0, 2]].detach().cpu().double().numpy()
    spreads = (boxes.depth_std / boxes.center[:, 2].clamp(min=NEAR_PLANE)).detach().cpu().double().numpy()
    known = boxes.heading_known.tolist()
    for outline, label, center, spread, front in zip(outlines, boxes.labels, centers, spreads, known, strict=True):
        _lines(canvas, place(np.stack([center * (1 - spread), center * (1 + spread)]))[None], color_of(label), 1)
        _draw_outline(canvas, outline, color_of(label), front)
    if truth is not None:
        for outline, front in zip(place(_footprints(truth)), truth.heading_known.tolist(), strict=True):
            _draw_outline(canvas, outline, TRUTH_COLOR, front)
    _legend(canvas, boxes, truth is not None)
    return canvas


def view_size(image_height: int) -> tuple[int, int]:
    """Width and height of the view from above beside an image: as high as the image, 240 to 1000 pixels."""
    side = min(max(image_height, 240), 1000)
    return side, side


def stack(image: RGB, bev: RGB) -> RGB:
    """The image and the bird's-eye view side by side; what is less high is filled up below."""
    height = max(len(image), len(bev))
    parts = (np.pad(_canvas(part), ((0, height - len(part)), (0, 0), (0, 0))) for part in (image, bev))
    return np.concatenate(list(parts), 1)


def add_caption(image: RGB, text: str) -> RGB:
    """The picture with a line of text below it; without text as it is."""
    if not text:
        return image
    ground: RGB = np.full((22, image.shape[1], 3), _BACKGROUND, np.uint8)
    _write(ground, text, (6, 15), (255, 200, 40), 0.42)
    return np.concatenate([_canvas(image), ground])


def strip(images: Sequence[RGB], gap: int = 4) -> RGB:
    """Images one below the other, ``gap`` pixels apart; narrower ones are filled up on the right.

    Raises:
        UserError: no images.
    """
    if not images:
        raise UserError("strip: no images to put together")
    width = max(image.shape[1] for image in images)
    rows = [np.pad(_canvas(image), ((0, gap), (0, width - image.shape[1]), (0, 0))) for image in images]
    return np.concatenate(rows)[: -gap or None]


def write_image(path: str | Path, image: RGB) -> None:
    """Write a picture, atomically; the suffix says the format (.png, .jpg).

    Raises:
        UserError: unknown suffix, or the file cannot be written.
    """
    import cv2

    try:
        encoded = cv2.imencode(Path(path).suffix, np.ascontiguousarray(image[..., ::-1]))[1]
    except cv2.error:
        raise UserError(f"{path}: cannot write a picture of this kind; use .png or .jpg") from None
    write_atomic(path, encoded.tobytes())


# -- what the pictures are made of ------------------------------------------------------------------------------------
def _canvas(image: RGB) -> RGB:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
    return np.array(image, order="C")


def _line_width(canvas: RGB) -> int:
    return max(1, round(min(canvas.shape[:2]) / 400))


def _text_scale(canvas: RGB) -> float:
    return min(max(min(canvas.shape[:2]) / 900, 0.38), 1.2)


def _title(boxes: Boxes2D | Boxes3D, i: int) -> str:
    score = float(boxes.scores[i])
    return boxes.labels[i] if score == 1 else f"{boxes.labels[i]} {score:.2f}"


def _project_lines(points: Points, pairs: Sequence[tuple[int, int]], P: Points) -> Points:
    """Lines between points in the camera frame, (M, 2, 2) pixels, cut at the near plane; M leaves out those behind."""
    lines = points[np.array(pairs)]  # (M, 2, 3)
    lines = lines[np.isfinite(lines).all((1, 2)) & (lines[..., 2] > NEAR_PLANE).any(1)]
    other = lines[:, ::-1]
    share = (NEAR_PLANE - lines[..., 2:]) / np.maximum(other[..., 2:] - lines[..., 2:], 1e-9)  # on the way to the other
    lines = lines + share.clip(0, 1) * (other - lines)
    uvw = lines @ P[:, :3].T + P[:, 3]
    return np.asarray(uvw[..., :2] / uvw[..., 2:], np.float64)


def _footprints(boxes: Boxes3D) -> Points:
    """shape (N, 4, 2), (x, z) of the bottom corners: front-left, front-right, rear-right, rear-left."""
    return np.asarray(boxes.corners[:, :4, [0, 2]].detach().cpu().double().numpy())


def _draw_outline(canvas: RGB, outline: Points, color: Color, front: bool) -> None:
    """A footprint of four points and a line to its front: from its centre, or from its rear where none is known."""
    width = _line_width(canvas)
    heading = np.stack([outline.mean(0) if front else outline[2:].mean(0), outline[:2].mean(0)])
    _lines(canvas, np.stack([outline, np.roll(outline, -1, 0)], 1), color, width)
    _lines(canvas, heading[None], color, width)


def _draw_grid(canvas: RGB, place: Callable[[Points], Points], range_m: float, side_m: float) -> None:
    """Lines every 10 m (of a long view 20, 50 or 100 m), the distances ahead written at the left."""
    step = next(step for step in (10, 20, 50, 100) if range_m <= 12 * step or step == 100)
    for metres in range(0, int(range_m) + 1, step):
        line = place(np.array([[-side_m, metres], [side_m, metres]]))
        _lines(canvas, line[None], _GRID, 1)
        if metres:
            _write(canvas, f"{metres} m", (4, int(line[0, 1]) - 4), _TEXT, 0.38)
    for metres in range(-int(side_m) // step * step, int(side_m) + 1, step):
        _lines(canvas, place(np.array([[metres, 0], [metres, 1.1 * range_m]]))[None], _GRID, 1)


def _legend(canvas: RGB, boxes: Boxes3D, with_truth: bool) -> None:
    """Names of the classes that are drawn, in their colours, and what else needs a word; left out where it is small."""
    entries = [(label, color_of(label)) for label in sorted(set(boxes.labels))]
    if bool((boxes.depth_std > 0).any()):
        entries.append(("line: distance +- 1 sd", _TEXT))
    if with_truth:
        entries.append(("outline: truth", TRUTH_COLOR))
    height, width = canvas.shape[:2]
    if width < 200 or height < 20 * len(entries) + 100:
        return
    for row, (text, color) in enumerate(reversed(entries)):
        _write(canvas, text, (width - 10 - 7 * len(text), height - 8 - 16 * row), color, 0.38)


def _fixed(points: Points) -> npt.NDArray[np.int32]:
    """Pixels as OpenCV's fixed-point numbers; OpenCV puts pixel centres on whole numbers, we half a pixel later."""
    return np.asarray(np.round((points - 0.5) * 2**_SHIFT), np.int32)


def _drawable(points: Points) -> bool:
    return bool((np.abs(points) < _FARTHEST_PIXEL).all())  # false for NaN


def _lines(canvas: RGB, lines: Points, color: Color, width: int) -> None:
    """Draw lines, shape (M, 2, 2) pixels; those that are not finite are left out."""
    import cv2

    for line in lines:
        if _drawable(line):
            start, end = _fixed(line).tolist()
            cv2.line(canvas, start, end, color, width, cv2.LINE_AA, _SHIFT)


def _fill(canvas: RGB, outline: Points, color: Color) -> None:
    import cv2

    if _drawable(outline):
        cv2.fillPoly(canvas, [_fixed(outline)], color, cv2.LINE_AA, _SHIFT)


def _write(canvas: RGB, text: str, at: tuple[int, int], color: Color, scale: float) -> None:
    import cv2

    cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, color, 1, cv2.LINE_AA)


def _labels(canvas: RGB, labels: Sequence[tuple[str, Points, Color]]) -> None:
    """Texts on a ground of the class's colour, each above its top left corner but inside the image.

    The first come first: a text that would cover another is left out.
    """
    import cv2

    scale = _text_scale(canvas)
    taken = np.zeros(canvas.shape[:2], bool)
    for text, corner, color in labels:
        if not _drawable(corner):
            continue
        (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        x = min(max(int(corner[0]), 0), max(canvas.shape[1] - width - 4, 0))
        y = min(max(int(corner[1]) - below, height + 2), canvas.shape[0] - below)
        ground = slice(max(y - height - 2, 0), y + below), slice(x, x + width + 4)
        if not taken[ground].any():
            taken[ground] = True
            canvas[ground] = color
            _write(canvas, text, (x + 2, y), _BLACK, scale)
