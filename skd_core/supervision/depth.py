"""Off-the-shelf depth: estimators, maps on disk, metres for relative maps (method: Pseudo-targets, Scale).

A cache folder holds one map per image, ``NAME.png`` (uint16, metres x 256) of a metric estimator or ``NAME.npy``
(float32 inverse depth, any scale and shift) of a relative one, and ``depth.json``, which says where they come from.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from skd_core.camera import Camera
from skd_core.data.folder import camera_file, image_files
from skd_core.data.sample import NOTE, Sample, read_image
from skd_core.devices import pick_device
from skd_core.errors import UserError
from skd_core.files import files_of, keep_inputs, lock_folder, make_folder, write_atomic
from skd_core.geometry import geometric_depth, mean_half_extent
from skd_core.priors import prior_of

Floats = NDArray[np.float64]
Kind = Literal["metric", "relative"]
Estimate = Callable[[Tensor], Tensor]
"""(3, H, W) uint8 RGB -> (H, W) float32: metres (metric) or inverse depth (relative)."""

MAX_ALIGNED_DEPTH = 200.0
"""Metres beyond which aligned relative depth means nothing."""

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def load_estimator(model: str, kind: Kind | None, device: str, download: bool = False) -> tuple[Estimate, Kind]:
    """A depth estimator.

    Args:
        model: an ONNX file, a folder saved by transformers, or a hub name of one. An ONNX file takes one image, shape
            (1, 3, H, W), RGB normalised as for ImageNet, and gives one map of any size.
        kind: what its output is; None asks the model's config, which an ONNX file has not.
        device: "cpu" or "cuda".
        download: whether a hub name may be fetched; without, only what is on this machine.

    Raises:
        UserError: missing or unsuitable model; kind needed but not given, or other than the model's own.
    """
    if model.endswith(".onnx"):
        if kind is None:
            raise UserError(f"{model}: an ONNX file does not declare what it estimates; pass --kind metric or relative")
        return _onnx(model, device), kind
    return _transformers(model, kind, device, download)


def _transformers(model: str, kind: Kind | None, device: str, download: bool) -> tuple[Estimate, Kind]:
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        raise UserError(f"{model}: not a model saved by transformers: it has no config.json")
    try:
        processor: Any = AutoImageProcessor.from_pretrained(model, local_files_only=not download)  # type: ignore[no-untyped-call]
        network = AutoModelForDepthEstimation.from_pretrained(model, local_files_only=not download)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if not Path(model).exists() and not download:
            raise UserError(f"depth model '{model}': not on this machine; --download would fetch it") from None
        raise UserError(f"depth model '{model}': cannot load: {_first_line(error)}") from None
    network = network.eval().to(device)
    own: Kind = "metric" if _is_metric(network.config) else "relative"
    if kind not in (None, own):
        raise UserError(f"depth model '{model}': estimates {own} depth, but --kind says {kind}")

    @torch.inference_mode()
    def estimate(image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        inputs = processor(images=image.permute(1, 2, 0).numpy(), return_tensors="pt").to(device)
        finish = processor.post_process_depth_estimation  # takes off padding, turns DepthPro's output into metres
        sizes = {"source_sizes": [(height, width)]} if "source_sizes" in inspect.signature(finish).parameters else {}
        predicted: Tensor = finish(network(**inputs), target_sizes=[(height, width)], **sizes)[0]["predicted_depth"]
        return predicted.reshape(height, width).float().cpu()

    return estimate, own


def _is_metric(config: Any) -> bool:
    """What a transformers model says of itself, in its config or by its family."""
    says = getattr(config, "depth_estimation_type", None)
    return says == "metric" if says else config.model_type in ("zoedepth", "glpn", "depth_pro")


def _onnx(path: str, device: str) -> Estimate:
    import onnxruntime

    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    wanted = [*(["CUDAExecutionProvider"] if device.startswith("cuda") else []), "CPUExecutionProvider"]
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        session = onnxruntime.InferenceSession(path, providers=providers)
    except Exception as error:  # onnxruntime's kinds of error for a damaged file have no common base
        raise UserError(f"{path}: not a usable ONNX model ({type(error).__name__})") from None
    inputs = session.get_inputs()
    shape = inputs[0].shape if len(inputs) == 1 else []
    free = [s is None or isinstance(s, str) for s in shape]
    image = len(shape) == 4 and (free[0] or shape[0] == 1) and (free[1] or shape[1] == 3)
    if not image or inputs[0].type != "tensor(float)":
        has = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
        raise UserError(f"{path}: needs one float32 image input of shape (1, 3, H, W), has {has}")
    fixed = [s if isinstance(s, int) and s > 0 else None for s in shape[2:]]
    mean, std = (torch.tensor(IMAGENET[k]).view(3, 1, 1) for k in ("mean", "std"))

    def estimate(image: Tensor) -> Tensor:
        size = [f or 14 * max(round(s / 14), 1) for f, s in zip(fixed, image.shape[-2:], strict=True)]  # ViT patches
        pixels = F.interpolate(image[None].float() / 255, size, mode="bilinear", antialias=True, align_corners=False)
        try:
            output = np.asarray(session.run(None, {inputs[0].name: ((pixels - mean) / std).numpy()})[0], np.float32)
        except Exception as error:  # see above
            raise UserError(f"{path}: fails on an input of {size[1]}x{size[0]}: {_first_line(error)}") from None
        if output.ndim < 2 or output.size != output.shape[-1] * output.shape[-2]:
            raise UserError(f"{path}: must give one depth map, gives shape {output.shape}")
        depth = torch.from_numpy(output.reshape(1, 1, *output.shape[-2:]))
        return F.interpolate(depth, tuple(image.shape[-2:]), mode="bilinear", align_corners=False)[0, 0]

    return estimate


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def depth_command(
    images: Sequence[Path],
    model: str,
    out: Path,
    *,
    kind: str | None,
    camera: Path | None,
    model_focal: float | None,
    download: bool,
    device: str,
) -> tuple[int, int]:
    """`skd_core depth`: check the arguments, load the estimator, fill the cache; returns as :func:`fill_cache`."""
    if kind not in (None, "metric", "relative"):
        raise UserError(f"--kind {kind}: use metric or relative")
    if (camera is None) != (model_focal is None):
        raise UserError("--camera and --model-focal belong together: depth is multiplied by f / f_model")
    if model_focal is not None and not model_focal > 0:
        raise UserError(f"--model-focal {model_focal:g}: must be positive")
    paths = image_files(images)
    if camera is not None and not camera.exists():
        raise UserError(f"--camera {camera}: no such file or folder")
    estimate, found = load_estimator(model, kind, str(pick_device(device)), download)  # type: ignore[arg-type]
    if found == "relative" and model_focal is not None:
        raise UserError("--model-focal is for metric models: relative depth gets its scale when it is used")
    keep_inputs([out / NOTE], files_of(Path(model)))
    with lock_folder(out):
        return fill_cache(paths, out, estimate, found, _identity(model), camera=camera, model_focal=model_focal)


def _identity(model: str) -> str:
    """What a cache remembers of its model: the name, and of local weights their content, wherever they lie."""
    path = Path(model)
    if not path.exists():
        return model
    kinds = (".safetensors", ".bin", ".json")
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in kinds)
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return f"{path.resolve().name} sha256:{digest.hexdigest()[:16]}"


def fill_cache(
    images: Sequence[Path],
    out: Path,
    estimate: Estimate,
    kind: Kind,
    source: str,
    *,
    camera: Path | None = None,
    model_focal: float | None = None,
) -> tuple[int, int]:
    """Estimate and store what is missing.

    Args:
        images: files and folders of images.
        out: the cache folder; maps that are there already stay, if they come from the same source.
        estimate, kind: see :func:`load_estimator`; source: its name, for ``depth.json``.
        camera: calibration of all images, or folder of one ``NAME.txt`` an image, as KITTI's.
        model_focal: a metric model that is right for images of this focal length (pixels, at the images' own size) has
            its maps multiplied by f/f_model (method: Pseudo-targets, Scale).

    Returns:
        the number of maps made, and of those that were there.

    Raises:
        UserError: no images, unreadable image or calibration, or the cache is another model's.
    """
    paths = image_files(images)
    about = {"model": source, "kind": kind, "model_focal": model_focal, "camera": camera and str(camera.resolve())}
    suffix = ".png" if kind == "metric" else ".npy"
    keep_inputs((out / f"{path.stem}{suffix}" for path in paths), [*paths, *files_of(camera)])
    make_folder(out)
    known = _read_note(out)
    if known is not None and known != about:
        changed = ", ".join(f"{k} {known.get(k)!r}" for k in about if known.get(k) != about[k])
        raise UserError(f"{out}: holds maps of another model or setting ({changed}); choose another --out")
    if known is None:
        write_atomic(out / NOTE, json.dumps(about, indent=1) + "\n")
    missing = [path for path in paths if not (out / f"{path.stem}{suffix}").exists()]
    for path in tqdm(missing, unit="image", desc="depth", dynamic_ncols=True):
        image = read_image(path)
        depth = estimate(image).numpy()
        if camera is not None and model_focal is not None:
            file, name = camera_file(camera, path.stem)
            depth = depth * (Camera.from_file(file, image.shape[2], image.shape[1], name).fx / model_focal)
        write_atomic(out / f"{path.stem}{suffix}", encode_depth(depth, kind))
    return len(missing), len(paths) - len(missing)


def _read_note(folder: Path) -> dict[str, Any] | None:
    """``depth.json``; None where there is none."""
    path = folder / NOTE
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read: {_first_line(error)}; delete it with the maps beside it") from None
    if not isinstance(note, dict):
        raise UserError(f"{path}: not what `skd_core depth` writes; delete it with the maps beside it")
    return note


def check_kind(folder: Path, kind: Kind) -> None:
    """Refuse maps that :func:`fill_cache` made as the other kind; a folder from elsewhere is taken at the user's word.

    Raises:
        UserError: names both.
    """
    note = _read_note(folder)
    if note is not None and note.get("kind") not in (None, kind):
        raise UserError(f"{folder}: holds {note['kind']} depth, but the depth kind is set to {kind}")


def encode_depth(depth: NDArray[np.float32], kind: Kind) -> bytes:
    """The bytes of a cache file: PNG of metres x 256 (0 = none, at most 255 m), or .npy of inverse depth (0 = none).

    Inverse depth with negative values is shifted to positive ones, which its unknown shift allows.
    """
    buffer = io.BytesIO()
    finite = np.isfinite(depth)
    if kind == "metric":
        known = np.where(finite & (depth > 0), depth, 0)
        Image.fromarray((known * 256).round().clip(0, 65535).astype(np.uint16)).save(buffer, "PNG", compress_level=1)
    else:
        minimum = float(depth[finite].min()) if finite.any() else 0.0
        shift = 0.01 * float(np.ptp(depth[finite])) - minimum if minimum < 0 else 0.0
        np.save(buffer, np.where(finite, depth + shift, 0).astype(np.float32))
    return buffer.getvalue()


def align_relative(sample: Sample, camera_height: float = 1.65) -> Sample:
    """Give a relative map its metres: ``1 / z = a d + b`` (method: Pseudo-targets, Scale) [ours].

    The fit runs over the surfaces of at least 3 objects whose height the image does not cut (z is f H / h2d, and a
    fifth of the way from the near face to the centre; d the upper quartile of the box, less nearer boxes: the object,
    not what is behind it) and over road pixels whose depth follows from the camera's height above a flat road. A row of
    road weighs a tenth of an object, since the road may slope and the camera pitch. Where nothing can be fitted, or
    larger d would be farther, the sample loses its depth, and the image takes part in training as one without.

    Args:
        sample: its ``depth`` holds inverse depth of unknown scale and shift, 0 = unknown.
        camera_height: metres above the road.
    """
    if sample.depth is None:
        return sample
    d = sample.depth.numpy().astype(np.float64)
    objects = _object_rows(d, sample)
    line = _fit_line(*np.array(objects + _road_rows(d, sample, camera_height)).T) if len(objects) >= 3 else None
    if line is None:
        return replace(sample, depth=None)
    inverse = line[0] * d + line[1]
    depth = np.where((d > 0) & (inverse > 1 / MAX_ALIGNED_DEPTH), 1 / np.maximum(inverse, 1e-6), 0.0)
    return replace(sample, depth=torch.from_numpy(depth).float())


def _object_rows(d: Floats, sample: Sample) -> list[tuple[float, float, float]]:
    """(d, 1/z, weight) of the objects."""
    H, fy = len(d), sample.camera.fy
    edges = sample.boxes2d.xyxy.tolist()
    corners = sample.boxes2d.xyxy.round().int().clamp(min=0).tolist()
    rows = []
    for (left, top, right, bottom), (_, y1, _, y2), label in zip(corners, edges, sample.boxes2d.labels, strict=True):
        seen = d[top:bottom, left:right] > 0
        for a, b, e, f in corners:
            if f > bottom + 1:  # a nearer box is one whose bottom edge lies lower in the image
                seen[max(b - top, 0) : max(f - top, 0), max(a - left, 0) : max(e - left, 0)] = False
        if seen.sum() < 30 or y1 < 3 or y2 > H - 3:
            continue
        size = prior_of(label).size[::-1]
        z = geometric_depth(fy, size[2], y2 - y1, 0.2 * mean_half_extent(size))
        rows.append((float(np.percentile(d[top:bottom, left:right][seen], 75)), 1 / z, 1.0))
    return rows


def _road_rows(d: Floats, sample: Sample, camera_height: float) -> list[tuple[float, float, float]]:
    """(d, 1/z, weight) of image rows in the middle third, outside the boxes."""
    H, W = d.shape
    free = d > 0
    for left, top, right, bottom in sample.boxes2d.xyxy.round().int().clamp(min=0).tolist():
        free[top:bottom, left:right] = False
    cy, lane = sample.camera.cy, slice(W // 3, 2 * W // 3)
    rows = []
    for v in range(max(0, int(cy + 0.25 * (H - cy))), H, 4):
        if free[v, lane].sum() > 20:
            inverse = (v + 0.5 - cy) / (sample.camera.fy * camera_height)
            rows.append((float(np.median(d[v, lane][free[v, lane]])), inverse, 0.1))
    return rows


def _fit_line(x: Floats, y: Floats, weight: Floats) -> tuple[float, float] | None:
    """Line y = a x + b, a > 0, with a Huber loss on the relative error; None if it fits less than half of the weight.

    Half-hidden and misjudged objects are gross outliers, far ones among them with a long lever. So the fit starts from
    the best line through two of the points, by the sum of relative errors cut at 30 %, and then re-weights.
    """
    i, j = np.triu_indices(len(x), 1)
    apart = np.abs(x[i] - x[j]) > 1e-9 * np.abs(x).max()
    i, j = i[apart], j[apart]
    if len(i) == 0:
        return None
    slope = (y[i] - y[j]) / (x[i] - x[j])
    offset = y[i] - slope * x[i]
    errors = np.abs((slope[:, None] * x + offset[:, None]) / y - 1)  # (pairs, n)
    best = int(np.argmin((weight * np.minimum(errors, 0.3)).sum(1)))
    a, b = float(slope[best]), float(offset[best])
    for _ in range(20):
        error = np.abs((a * x + b) / y - 1)
        w = weight * np.where(error < 0.3, np.minimum(1, 0.1 / np.maximum(error, 1e-9)), 0) / y**2
        if w.sum() <= 0:
            return None
        mean_x, mean_y = np.average(x, weights=w), np.average(y, weights=w)
        spread = float((w * (x - mean_x) ** 2).sum())
        if spread <= 0:
            return None
        a = float((w * (x - mean_x) * (y - mean_y)).sum()) / spread
        b = float(mean_y - a * mean_x)
    fitting = weight[np.abs((a * x + b) / y - 1) < 0.3].sum()
    return (a, b) if a > 0 and fitting > 0.5 * weight.sum() else None
