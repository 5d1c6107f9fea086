"""Off-the-shelf depth: estimators, their maps on disk, and what gives a relative map its metres (METHOD 5.5).

A cache folder holds one map per image, ``NAME.png`` (uint16, metres x 256) of a metric estimator or ``NAME.npy``
(float32 inverse depth, any scale and shift) of a relative one, and ``depth.json``, which says where they come from.
"""

from __future__ import annotations

import io
import json
import math
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
from skd_core.data.folder import image_files
from skd_core.data.kitti import write_atomic
from skd_core.data.sample import Sample, read_image
from skd_core.errors import UserError
from skd_core.inference.detector import pick_device
from skd_core.supervision.priors import prior_of

Kind = Literal["metric", "relative"]
Estimate = Callable[[Tensor], Tensor]
"""(3, H, W) uint8 RGB -> (H, W) float32: metres (metric) or inverse depth (relative)."""

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def load_estimator(model: str, kind: Kind | None, device: str, download: bool = False) -> tuple[Estimate, Kind]:
    """A depth estimator.

    Args:
        model: an ONNX file, a folder saved by transformers, or a hub name of one.
        kind: what its output is; None asks the model's config, which an ONNX file has not.
        device: "cpu" or "cuda".
        download: whether a hub name may be fetched; without, only what is on this machine.

    Raises:
        UserError: missing or unsuitable model; kind needed but not given.
    """
    if model.endswith(".onnx"):
        if kind is None:
            raise UserError(f"{model}: an ONNX file does not say what it estimates; pass --kind metric or relative")
        return _onnx(model), kind
    return _transformers(model, kind, device, download)


def _transformers(model: str, kind: Kind | None, device: str, download: bool) -> tuple[Estimate, Kind]:
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    try:
        processor = AutoImageProcessor.from_pretrained(model, local_files_only=not download)
        network = AutoModelForDepthEstimation.from_pretrained(model, local_files_only=not download)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "" if download else " (nothing is downloaded without --download)"
        raise UserError(f"depth model '{model}': cannot load: {reason}{hint}") from None
    network = network.eval().to(device)
    if kind is None:
        says = getattr(network.config, "depth_estimation_type", None)
        kind = (
            "metric"
            if says == "metric" or network.config.model_type in ("zoedepth", "glpn", "depth_pro")
            else "relative"
        )

    @torch.inference_mode()
    def estimate(image: Tensor) -> Tensor:
        inputs = processor(images=image.permute(1, 2, 0).numpy(), return_tensors="pt").to(device)
        predicted: Tensor = network(**inputs).predicted_depth
        return _to_size(predicted.reshape(1, 1, *predicted.shape[-2:]).float(), image.shape[-2:]).cpu()

    return estimate, kind


def _onnx(path: str) -> Estimate:
    import onnxruntime

    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    try:
        session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
    except Exception as error:  # onnxruntime raises many kinds for a damaged file
        raise UserError(f"{path}: not a usable ONNX model ({type(error).__name__})") from None
    inputs = session.get_inputs()
    shape = inputs[0].shape
    if len(inputs) != 1 or len(shape) != 4 or shape[1] not in (3, "3"):
        raise UserError(
            f"{path}: needs one image input of shape (1, 3, H, W), has {[(i.name, i.shape) for i in inputs]}"
        )
    fixed = [s if isinstance(s, int) and s > 0 else None for s in shape[2:]]
    mean, std = (torch.tensor(IMAGENET[k]).view(3, 1, 1) for k in ("mean", "std"))

    def estimate(image: Tensor) -> Tensor:
        size = [f or 14 * max(round(s / 14), 1) for f, s in zip(fixed, image.shape[-2:], strict=True)]  # ViT patches
        pixels = F.interpolate(image[None].float() / 255, size, mode="bilinear", antialias=True, align_corners=False)
        output = session.run(None, {inputs[0].name: ((pixels - mean) / std).numpy()})[0]
        predicted = torch.from_numpy(np.asarray(output, np.float32))
        return _to_size(predicted.reshape(1, 1, *predicted.shape[-2:]), image.shape[-2:])

    return estimate


def _to_size(depth: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(depth, tuple(size), mode="bilinear", align_corners=False)[0, 0]


def depth_command(
    images: Sequence[Path],
    model: str,
    out: Path,
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
    paths = image_files(images)
    calibration = None
    if camera is not None:
        height, width = read_image(paths[0]).shape[1:]
        calibration = Camera.from_file(camera, width, height)
    estimate, found = load_estimator(model, kind, str(pick_device(device)), download)  # type: ignore[arg-type]
    return fill_cache(paths, out, estimate, found, model, calibration, model_focal)


def fill_cache(
    images: Sequence[Path],
    out: Path,
    estimate: Estimate,
    kind: Kind,
    source: str,
    camera: Camera | None = None,
    model_focal: float | None = None,
) -> tuple[int, int]:
    """Estimate and store what is missing.

    Args:
        images: files and folders of images.
        out: the cache folder; maps that are there already stay, if they come from the same source.
        estimate, kind: see :func:`load_estimator`; source: its name, for ``depth.json``.
        camera, model_focal: a metric model that assumes a focal length (pixels) has its maps multiplied by f/f_model.

    Returns:
        the number of maps made, and of those that were there.

    Raises:
        UserError: no images, unreadable image, or the cache is another model's.
    """
    paths = image_files(images)
    about: dict[str, Any] = {"model": source, "kind": kind, "model_focal": model_focal}
    out.mkdir(parents=True, exist_ok=True)
    note = out / "depth.json"
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != about:
        raise UserError(f"{out}: holds maps of another model or setting ({note}); choose another --out")
    write_atomic(note, json.dumps(about, indent=1) + "\n")
    suffix = ".png" if kind == "metric" else ".npy"
    missing = [path for path in paths if not (out / f"{path.stem}{suffix}").exists()]
    factor = 1.0 if camera is None or model_focal is None else camera.fx / model_focal
    for path in tqdm(missing, unit="image", desc="depth"):
        depth = estimate(read_image(path)).numpy() * (factor if kind == "metric" else 1.0)
        write_atomic(out / f"{path.stem}{suffix}", encode_depth(depth, kind))
    return len(missing), len(paths) - len(missing)


def encode_depth(depth: NDArray[np.float32], kind: Kind) -> bytes:
    """The bytes of a cache file: PNG of metres x 256 (0 = none, at most 255 m), or .npy of inverse depth."""
    buffer = io.BytesIO()
    if kind == "metric":
        known = np.where(np.isfinite(depth) & (depth > 0), depth, 0)
        Image.fromarray((known * 256).round().clip(0, 65535).astype(np.uint16)).save(buffer, "PNG", compress_level=1)
    else:
        np.save(buffer, depth.astype(np.float32))
    return buffer.getvalue()


def align_relative(sample: Sample, camera_height: float = 1.65) -> Sample:
    """Give a relative map its metres: ``1 / z_geo = a d + b``, METHOD 5.5 [ours].

    Huber fit over the objects' geometric depths (at least 3, each at the 75th percentile of d inside its box: the
    object, not what is behind it) and, with a third of their weight, over road pixels whose depth follows from the
    camera's height above a flat road. Where it cannot be fitted, or the fit says that larger d is farther, the sample
    loses its depth, and the image takes part in training as one without.

    Args:
        sample: its ``depth`` holds inverse depth of unknown scale and shift.
        camera_height: metres above the road.
    """
    if sample.depth is None:
        return sample
    d = sample.depth.numpy().astype(np.float64)
    H, W = d.shape
    P = sample.camera.P.numpy()
    rows: list[tuple[float, float, float]] = []  # d, 1/z, weight
    for (x1, y1, x2, y2), label in zip(sample.boxes2d.xyxy.tolist(), sample.boxes2d.labels, strict=True):
        left, top, right, bottom = (round(v) for v in (x1, y1, x2, y2))
        patch = d[max(top, 0) : min(bottom, H), max(left, 0) : min(right, W)]
        if patch.size < 30 or y1 < 3 or y2 > H - 3:
            continue
        h, w, l = prior_of(label).size  # noqa: E741
        z = P[1, 1] * h / (y2 - y1) + (l + w) / math.pi
        rows.append((float(np.percentile(patch, 75)), 1 / z, 1.0))
    if len(rows) < 3:
        return replace(sample, depth=None)
    free = np.ones((H, W), bool)
    for x1, y1, x2, y2 in sample.boxes2d.xyxy.round().int().tolist():
        free[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = False
    lanes = free[:, W // 3 : 2 * W // 3]
    for v in range(int(P[1, 2] + 0.25 * (H - P[1, 2])), H, 4):
        if lanes[v].sum() > 20:
            inverse = (v + 0.5 - P[1, 2]) / (P[1, 1] * camera_height)
            rows.append((float(np.median(d[v, W // 3 : 2 * W // 3][lanes[v]])), inverse, 0.1))
    table = np.array(rows)
    a, b = _huber(table[:, 0], table[:, 1], table[:, 2])
    if a <= 0:
        return replace(sample, depth=None)
    inverse = a * d + b
    depth = np.where(inverse > 1 / 200, 1 / np.maximum(inverse, 1e-6), 0.0)
    return replace(sample, depth=torch.from_numpy(depth).float())


def _huber(x: NDArray[np.float64], y: NDArray[np.float64], weight: NDArray[np.float64]) -> tuple[float, float]:
    """Line y = a x + b by re-weighted least squares with a Huber loss on the relative error, threshold 10 %."""
    A = np.column_stack([x, np.ones_like(x)]) / y[:, None]
    target = np.ones_like(y)
    w = weight.copy()
    solution = np.zeros(2)
    for _ in range(20):
        root = np.sqrt(w)
        solution = np.linalg.lstsq(A * root[:, None], target * root, rcond=None)[0]
        residual = np.abs(A @ solution - target)
        w = weight * np.minimum(1, 0.1 / np.maximum(residual, 1e-9))
    return float(solution[0]), float(solution[1])
