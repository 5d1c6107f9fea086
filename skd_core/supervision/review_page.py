"""HTML pages to review 2D labels: crops by class, lowest score first, and whole frames.

Each page is one HTML file without outside parts, for a phone as for a desk. A touch marks a wrong box; the button gives
the marked ones as ``rejected.txt``, lines of NAME CLASS x1 y1 x2 y2, which :func:`reject` turns into DontCare.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from skd_core.boxes import Boxes2D
from skd_core.data.folder import image_files
from skd_core.data.sample import read_image
from skd_core.errors import UserError
from skd_core.files import make_folder, write_atomic
from skd_core.supervision.class_map import DONT_CARE
from skd_core.visualize import draw_boxes2d

RGB = NDArray[np.uint8]
CROP = 112
"""Height of a crop, pixels; at most twice as wide."""
PER_PAGE = 500
MOST = 2000
"""Crops of a class: those with the lowest scores; of DontCare, the highest."""
FRAMES = 200
"""Whole frames shown, evenly spaced; 50 a page."""

_STYLE = (
    "body{margin:6px;background:#181a1e;color:#ddd;font:15px sans-serif}a{color:#7bf}"
    "main{display:flex;flex-wrap:wrap;gap:4px}"
    "figure{margin:0;content-visibility:auto;contain-intrinsic-size:112px 130px}"
    "figcaption{font-size:11px;color:#999}img{display:block;max-width:100%;height:auto}"
    "figure.bad img{outline:4px solid #f33;opacity:.4}"
    "nav{position:sticky;top:0;background:#181a1e;padding:6px 0;z-index:1}button{font:inherit;padding:6px}"
)
_SCRIPT = """
const key = 'rejected ' + TREE, marked = new Set(JSON.parse(localStorage.getItem(key) || '[]'));
const show = () => { document.querySelectorAll('figure[data-box]').forEach(f =>
  f.classList.toggle('bad', marked.has(f.dataset.box)));
  document.querySelector('button').textContent = marked.size + ' marked: save rejected.txt'; };
document.querySelector('main').onclick = e => { const f = e.target.closest('figure[data-box]'); if (!f) return;
  marked.has(f.dataset.box) ? marked.delete(f.dataset.box) : marked.add(f.dataset.box);
  localStorage.setItem(key, JSON.stringify([...marked])); show(); };
document.querySelector('button').onclick = () => {
  const a = document.createElement('a'), lines = [...marked].map(line => line + '\\n');
  a.href = URL.createObjectURL(new Blob(lines)); a.download = 'rejected.txt'; a.click(); };
show();
"""


@dataclass(frozen=True)
class _Line:
    """A line of a label file: its frame, its words, and the score behind it (NaN where it has none)."""

    frame: int
    words: tuple[str, ...]
    score: float

    @property
    def box(self) -> list[float]:
        return [float(word) for word in self.words[4:8]]


def write_review(tree: Path, names: Sequence[str], scores: Callable[[str], Sequence[float]]) -> Path:
    """Write the pages of a tree of labels.

    Args:
        tree: root of a KITTI tree; gets ``review/index.html`` and the pages beside it.
        names: of its frames.
        scores: of the lines of a frame's label file, by the frame's name; empty where they are unknown.

    Returns:
        The first page.

    Raises:
        UserError: an image or label file is missing or malformed, or the pages cannot be written.
    """
    images = {path.stem: path for path in image_files(tree / "training" / "image_2")}
    lines = [line for i, name in enumerate(names) for line in _lines(tree, i, name, list(scores(name)))]
    by_class: dict[str, list[_Line]] = {}
    for line in lines:
        by_class.setdefault(line.words[0], []).append(line)
    chosen: dict[str, list[_Line]] = {}
    for label in sorted(by_class, key=lambda label: (label == DONT_CARE, label)):
        sign = -1 if label == DONT_CARE else 1
        ordered = sorted(by_class[label], key=lambda line: sign * (2.0 if np.isnan(line.score) else line.score))
        chosen[label] = ordered[:MOST]
    whole = set(np.linspace(0, len(names) - 1, min(FRAMES, len(names))).round().astype(int).tolist())

    figures: dict[_Line, str] = {}
    frames: list[str] = []
    wanted: dict[int, list[_Line]] = {}
    for line in (line for part in chosen.values() for line in part):
        wanted.setdefault(line.frame, []).append(line)
    for i, name in enumerate(tqdm(names, desc="review", unit="image", disable=len(names) < 10)):
        if i not in wanted and i not in whole:
            continue
        if name not in images:
            raise UserError(f"{tree / 'training' / 'image_2'}: no image {name}")
        image = read_image(images[name]).permute(1, 2, 0).numpy()
        for line in wanted.get(i, []):
            figures[line] = _figure(_crop(image, line), _caption(line), _key(name, line))
        if i in whole:
            own = [line for line in lines if line.frame == i]
            boxes = Boxes2D(torch.tensor([line.box for line in own]).reshape(-1, 4), tuple(o.words[0] for o in own))
            frames.append(_figure(_narrow(draw_boxes2d(image, boxes, text=False)), html.escape(name)))

    folder = tree / "review"
    make_folder(folder)
    pages = {label: _split([figures[line] for line in part], PER_PAGE) for label, part in chosen.items()}
    pages["frames"] = _split(frames, 50)
    links = []
    for label, parts in pages.items():
        there = "frames" if label == "frames" else f"{len(by_class[label])} {label}"
        stem = re.sub(r"\W", "_", label.lower())
        for number, part in enumerate(parts, 1):
            name = f"{stem}-{number}.html"
            after = f"{stem}-{number + 1}.html" if number < len(parts) else "index.html"
            write_atomic(folder / name, _page(tree, f"{there}, page {number} of {len(parts)}", part, after))
            links.append(f'<p><a href="{html.escape(name)}">{html.escape(there)}, page {number}</a></p>')
    write_atomic(folder / "index.html", _page(tree, f"{len(names)} frames of {tree.name}", links, None))
    return folder / "index.html"


def reject(tree: Path, file: Path) -> int:
    """Turn boxes into DontCare that were marked as wrong on the pages.

    Args:
        tree: root of the KITTI tree.
        file: lines of NAME CLASS x1 y1 x2 y2, as the pages give them.

    Returns:
        How many boxes were turned; those that are DontCare already do not count.

    Raises:
        UserError: an unreadable file, a line of another form, or a box that no label file has. Nothing is then changed.
    """
    try:
        rows = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{file}: cannot read, or not a text file") from None
    texts: dict[Path, list[str]] = {}
    count = 0
    for number, row in enumerate(rows, 1):
        words = row.split()
        if not words:
            continue
        path = tree / "training" / "label_2" / f"{words[0]}.txt"
        if len(words) != 6 or Path(words[0]).name != words[0] or not path.is_file():
            raise UserError(f"{file}:{number}: not NAME CLASS x1 y1 x2 y2 of a frame in {tree}: {row.strip()!r}")
        own = texts.setdefault(path, path.read_text(encoding="utf-8").splitlines())
        same = [i for i, line in enumerate(own) if line.split()[4:8] == words[2:]]
        if not any(own[i].split()[0] in (words[1], DONT_CARE) for i in same):
            raise UserError(f"{file}:{number}: {path} has no such box: {row.strip()!r}")
        for i in same:
            if own[i].split()[0] == words[1] != DONT_CARE:
                own[i] = " ".join([DONT_CARE, "-1", "-1", "-10", *words[2:], "-1 -1 -1 -1000 -1000 -1000 -10"])
                count += 1
    for path, own in texts.items():
        write_atomic(path, "".join(f"{line}\n" for line in own))
    return count


def _lines(tree: Path, frame: int, name: str, scores: list[float]) -> list[_Line]:
    path = tree / "training" / "label_2" / f"{name}.txt"
    try:
        rows = [row.split() for row in path.read_text(encoding="utf-8").splitlines() if row.strip()]
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror}") from None
    known = scores if len(scores) == len(rows) else [float("nan")] * len(rows)
    return [_Line(frame, tuple(row), score) for row, score in zip(rows, known, strict=True)]


def _crop(image: RGB, line: _Line) -> RGB:
    """The box with a quarter of its size around it, :data:`CROP` pixels high, its outline drawn."""
    import cv2

    x1, y1, x2, y2 = line.box
    around = 0.25 * max(x2 - x1, y2 - y1, 8)
    left, top = int(max(x1 - around, 0)), int(max(y1 - around, 0))
    left, top = min(left, image.shape[1] - 1), min(top, image.shape[0] - 1)  # a hand-drawn box may lie outside
    right = max(int(min(x2 + around + 1, image.shape[1])), left + 1)
    bottom = max(int(min(y2 + around + 1, image.shape[0])), top + 1)
    scale = min(CROP / (bottom - top), 2 * CROP / (right - left))
    size = max(round((right - left) * scale), 1), max(round((bottom - top) * scale), 1)
    crop = np.asarray(cv2.resize(image[top:bottom, left:right], size, interpolation=cv2.INTER_AREA), np.uint8)
    box = (torch.tensor([line.box]) - torch.tensor([left, top, left, top])) * scale
    return draw_boxes2d(crop, Boxes2D(box, (line.words[0],)), text=False)


def _narrow(image: RGB, width: int = 900) -> RGB:
    import cv2

    height = round(image.shape[0] * width / image.shape[1])
    if image.shape[1] <= width:
        return image
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _figure(image: RGB, caption: str, key: str | None = None) -> str:
    import cv2

    encoded = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 72])[1]
    data = base64.b64encode(encoded.tobytes()).decode()
    attribute = "" if key is None else f' data-box="{html.escape(key)}"'
    size = f'width="{image.shape[1]}" height="{image.shape[0]}"'
    picture = f'<img loading="lazy" decoding="async" {size} src="data:image/jpeg;base64,{data}">'
    return f"<figure{attribute}>{picture}<figcaption>{caption}</figcaption></figure>"


def _caption(line: _Line) -> str:
    x1, y1, x2, y2 = line.box
    score = "" if np.isnan(line.score) else f"{line.score:.2f} "
    return f"{score}{x2 - x1:.0f}x{y2 - y1:.0f}"


def _key(name: str, line: _Line) -> str:
    return " ".join([name, line.words[0], *line.words[4:8]])


def _page(tree: Path, title: str, parts: Sequence[str], after: str | None) -> str:
    following = "" if after is None else f' <a href="index.html">all</a> <a href="{html.escape(after)}">next</a>'
    script = _SCRIPT.replace("TREE", repr(tree.name).replace("<", "\\x3c"))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<nav>{html.escape(title)}{following} <button></button></nav><main>{''.join(parts)}</main>"
        f"<script>{script}</script></body></html>\n"
    )


def _split(parts: list[str], size: int) -> list[list[str]]:
    return [parts[i : i + size] for i in range(0, len(parts), size)]
