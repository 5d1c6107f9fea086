"""Self-describing weights: safetensors with everything in the metadata that rebuilds and explains the model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from skd_core.config import ModelConfig, parse_config
from skd_core.errors import UserError
from skd_core.files import make_folder, write_atomic
from skd_core.inference.bundled import resolve
from skd_core.inference.metadata import FORMAT, read_metadata
from skd_core.models.student import MEAN, STD, Student
from skd_core.models.teacher import DepthGuidedNetwork

MAX_PARAMETER, MAX_STATISTIC = 1e4, 1e12
"""Greatest magnitude of a trained network's parameters and of its batch norms' statistics; more is damage [ours]."""
TINY = 1e-12
"""Weights of a smaller magnitude may become zero: far below what float32 resolves of what they are added to [ours]."""
PROBE = 64
"""Pixels: side of the picture that loaded weights are tried on."""
WEAK = "2D boxes, no 3D labels"
"""What weights say they have learnt from, unless 3D labels had a part."""
NETWORKS: dict[str, type[Student]] = {kind.network: kind for kind in (Student, DepthGuidedNetwork)}
"""What weights may be of: MDN, the student, or DSN, the depth-guided teacher."""


def digest(state: dict[str, Tensor]) -> str:
    """sha256 over names and bytes of all tensors, in the order of names."""
    h = hashlib.sha256()
    for name in sorted(state):
        h.update(name.encode())
        h.update(state[name].contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def save_weights(path: str | Path, student: Student, focal: tuple[float, float], **more: Any) -> None:
    """Write a student, atomically.

    Args:
        path: file to write, .safetensors.
        student: the network.
        focal: median (fx, fy) of the training cameras, in pixels of the network's input.
        more: what else to keep, JSON-able (training command, seed, licence ...).
    """
    state = _tensors(student)
    make_folder(Path(path).parent)
    text = json.dumps(describe(student, focal, **more))
    write_atomic(path, to_bytes(state, {"skd_core": text}), durable=True)


def _tensors(student: Student) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in student.state_dict().items()}


def describe(student: Student, focal: tuple[float, float], **more: Any) -> dict[str, Any]:
    """The metadata of a weights file; arguments as of :func:`save_weights`."""
    return {
        "format": FORMAT,
        "network": student.network,
        "model": student.config.model_dump(mode="json"),
        "prior_sizes": student.prior.tolist(),
        "focal": list(focal),
        "normalisation": {"mean": list(MEAN), "std": list(STD), "of": "RGB in [0, 1]"},
        "heading_known": student.config.direction,
        "camera_convention": "P of the rectified image; pixel i covers [i, i+1); resized with the image",
        "sha256": digest(_tensors(student)),
        **more,
    }


def store(path: str | Path, **changes: Any) -> Path:
    """Change entries of a weights file's metadata, atomically; its tensors and all other entries stay as they are.

    Args:
        path: file, or the name of bundled weights.
        changes: what to keep there, such as ``threshold`` or ``calibration``, JSON-able.

    Returns:
        the file.

    Raises:
        UserError: a value that cannot be; a file that :func:`load_weights` refuses, or that cannot be written.
    """
    found = resolve(path).resolve()  # a link stays one
    _, metadata = load_weights(found)
    text = json.dumps(metadata | changes)
    read_metadata(text, f"weights '{found}'")
    write_atomic(found, to_bytes(load_file(str(found)), {"skd_core": text}), durable=True)
    return found


def check_tensors(state: dict[str, Tensor], module: nn.Module, name: str) -> None:
    """Refuse tensors that are not those of a trained network.

    Args:
        state: by the names of the module's own.
        module: what they are for.
        name: of the file, for messages.

    Raises:
        UserError: names the first tensor that is missing or unknown, of another shape or kind (a bool or a whole number
            where the network computes), that holds NaN, infinity, a number beyond MAX_PARAMETER or MAX_STATISTIC, or
            a negative variance.
    """
    own, parameters = module.state_dict(), {key for key, _ in module.named_parameters()}
    for key in (*own, *state):
        if key not in state or key not in own:
            reason = "no tensor" if key not in state else "a tensor that the network does not have,"
            raise UserError(f"{name}: {reason} '{key}': weights of another network")
    for key, mine in own.items():
        reason = _fault(state[key], mine, MAX_PARAMETER if key in parameters else MAX_STATISTIC)
        if not reason and key.endswith("running_var") and bool((state[key] < 0).any()):
            reason = "holds a negative variance"
        if reason:
            raise UserError(f"{name}: tensor '{key}' {reason}")


def _fault(value: Tensor, mine: Tensor, most: float) -> str:
    """What is wrong with a tensor that shall take the place of ``mine``; "" where nothing is."""
    if value.shape != mine.shape:
        return f"is of shape {tuple(value.shape)}, the network's of {tuple(mine.shape)}: weights of another network"
    if value.is_floating_point() != mine.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        return f"is of type {value.dtype}, the network's of {mine.dtype}"
    if not mine.is_floating_point():
        return "holds a negative count" if bool((value < 0).any()) else ""
    values = value.double()
    if not bool(values.isfinite().all()):
        return "holds NaN or infinity"
    greatest = float(values.abs().max()) if values.numel() else 0.0
    return f"holds {greatest:.3g}, no trained network's number" if greatest > most else ""


@torch.no_grad()
def flush_tiny(module: nn.Module) -> None:
    """Make numbers below :data:`TINY` zero, in place.

    Weight decay leaves channels that the losses do not need with numbers that are denormal, or whose products are. A
    CPU is many times slower with those; the answers stay the same.
    """
    for value in module.state_dict().values():
        if value.is_floating_point():
            value[value.abs() < TINY] = 0


def _check_answer(student: Student, name: str) -> None:
    """Tensors may each be sound and the network useless: answers must be finite, and differ between two pictures."""
    ramp = torch.linspace(0, 255, PROBE)
    picture = (ramp[:, None] + 7 * ramp).remainder(256).expand(1, 3, PROBE, PROBE)
    P = torch.tensor([[PROBE, 0, PROBE / 2, 0], [0, PROBE, PROBE / 2, 0], [0, 0, 1, 0.0]])[None]
    box = torch.tensor([[8.0, 8, 56, 56]])
    with torch.inference_mode():
        maps = student.maps_2d(student.features(torch.cat([picture, 255 - picture])))
        one = torch.zeros(1, dtype=torch.long)
        placed = student.place(picture, P, one, box, one, torch.ones(1)).boxes3d
        answers = [maps.heatmap, maps.offset, maps.size, placed.center, placed.size, placed.yaw, placed.log_sigma]
    if not all(bool(answer.isfinite().all()) for answer in answers):
        raise UserError(f"{name}: the network answers a picture with NaN or infinity; the weights are damaged")
    if torch.equal(maps.heatmap[0], maps.heatmap[1]):
        raise UserError(f"{name}: the network gives the same answer to different pictures; the weights are damaged")


def load_weights(path: str | Path) -> tuple[Student, dict[str, Any]]:
    """Rebuild a student from its file alone.

    Returns:
        the student in eval mode on the CPU, and the metadata.

    Raises:
        UserError: missing, damaged, foreign or altered file.
    """
    path = resolve(path)
    name = f"weights '{path}'"
    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get("skd_core", "{}")
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(f"{name}: not a safetensors file, or damaged ({error})") from None
    metadata = read_metadata(text, name)
    if digest(state) != metadata["sha256"]:
        raise UserError(f"{name}: the tensors do not match their sha256; copy the file again")
    config = parse_config(ModelConfig, metadata["model"], name)
    network = metadata.setdefault("network", Student.network)
    if not isinstance(network, str) or network not in NETWORKS:
        raise UserError(f"{name}: network must be {' or '.join(NETWORKS)}, got {network!r}"[:400])
    known = metadata.setdefault("heading_known", config.direction)
    if known != config.direction:
        raise UserError(f"{name}: heading_known is {known}, but model.direction {config.direction}")
    try:
        student = NETWORKS[network](config)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    check_tensors(state, student, name)
    student.load_state_dict(state)
    if "prior_sizes" in metadata:  # as trained with, whatever PRIORS says today
        sizes = metadata["prior_sizes"]
        if len(sizes) != len(config.classes):
            raise UserError(f"{name}: prior_sizes of {len(sizes)} classes, the model has {len(config.classes)}")
        student.prior.copy_(torch.tensor(sizes))
    _check_answer(student.eval(), name)
    return student, metadata
