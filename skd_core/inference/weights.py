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

from skd_core.config import ModelConfig, parse_config
from skd_core.errors import UserError
from skd_core.files import make_folder, write_atomic
from skd_core.models.student import MEAN, STD, Student
from skd_core.models.teacher import DepthGuidedNetwork

FORMAT = "skd_core.student.v1"
WEAK = "2D boxes, no 3D labels"
"""What weights say they have learnt from, unless 3D labels had a part."""
NETWORKS: dict[str, type[Student]] = {kind.network: kind for kind in (Student, DepthGuidedNetwork)}
"""What weights may be of: MDN, the student, or DSN, the depth-guided teacher."""
BUNDLED = Path(__file__).resolve().parents[1] / "weights"


def bundled_names() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.stem for path in BUNDLED.glob("*.safetensors"))


def resolve(path: str | Path) -> Path:
    """A path, or the name of bundled weights ("default").

    Raises:
        UserError: no such file; the message names it.
    """
    bundled = BUNDLED / f"{path}.safetensors"
    found = bundled if bundled.is_file() else Path(path).expanduser()
    if not found.is_file():
        have = ", ".join(bundled_names()) or "none"
        raise UserError(f"weights '{path}': no such file (bundled ones: {have})")
    return found


def digest(state: dict[str, torch.Tensor]) -> str:
    """sha256 over names and bytes of all tensors, in the order of names."""
    h = hashlib.sha256()
    for name in sorted(state):
        h.update(name.encode())
        h.update(state[name].contiguous().cpu().numpy().tobytes())
    return h.hexdigest()


def save_weights(path: str | Path, student: Student, focal: tuple[float, float], **more: Any) -> None:
    """Write a student, atomically.

    Args:
        path: file to write, .safetensors.
        student: the network.
        focal: median (fx, fy) of the training cameras, in pixels of the network's input.
        more: what else to keep, JSON-able (training command, seed, licence ...).
    """
    state = {name: value.detach().cpu().contiguous() for name, value in student.state_dict().items()}
    metadata = {
        "format": FORMAT,
        "network": student.network,
        "model": student.config.model_dump(mode="json"),
        "prior_sizes": student.prior.tolist(),
        "focal": list(focal),
        "normalisation": {"mean": list(MEAN), "std": list(STD), "of": "RGB in [0, 1]"},
        "camera_convention": "P of the rectified image; pixel i covers [i, i+1); resized with the image",
        "sha256": digest(state),
        **more,
    }
    make_folder(Path(path).parent)
    write_atomic(path, to_bytes(state, {"skd_core": json.dumps(metadata)}))


def store_threshold(path: str | Path, threshold: float) -> Path:
    """Write the least score of a detection into a weights file, atomically; its tensors stay as they are.

    Args:
        path: file, or the name of bundled weights; threshold: in [0, 1].

    Returns:
        the file.

    Raises:
        UserError: not a score; a file that :func:`load_weights` refuses, or that cannot be written.
    """
    if not is_score(threshold):
        raise UserError(f"threshold must be in [0, 1], got {threshold:g}")
    found = resolve(path)
    _, metadata = load_weights(found)
    state = load_file(str(found))
    write_atomic(found, to_bytes(state, {"skd_core": json.dumps(metadata | {"threshold": threshold})}))
    return found


def is_score(value: object) -> bool:
    """Whether a value is a number in [0, 1]."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def load_weights(path: str | Path) -> tuple[Student, dict[str, Any]]:
    """Rebuild a student from its file alone.

    Returns:
        the student in eval mode on the CPU, and the metadata.

    Raises:
        UserError: missing, damaged, foreign or altered file.
    """
    path = resolve(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get("skd_core")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"weights '{path}': not a safetensors file, or damaged ({error})") from None
    try:
        metadata = json.loads(text or "{}")
    except json.JSONDecodeError:
        metadata = {}
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"weights '{path}': not written by skd_core (format {metadata.get('format')!r}, not {FORMAT!r})"
        )
    missing = [key for key in ("model", "focal", "sha256") if key not in metadata]
    if missing:
        raise UserError(f"weights '{path}': the metadata lack {', '.join(missing)}; export the weights again")
    if digest(state) != metadata["sha256"]:
        raise UserError(f"weights '{path}': the tensors do not match their sha256; copy the file again")
    if not is_score(metadata.get("threshold", 0)):
        raise UserError(f"weights '{path}': threshold must be a number in [0, 1], got {metadata['threshold']!r}")
    config = parse_config(ModelConfig, metadata["model"], f"weights '{path}'")
    network = metadata.setdefault("network", Student.network)
    if not isinstance(network, str) or network not in NETWORKS:
        raise UserError(f"weights '{path}': network must be {' or '.join(NETWORKS)}, got {network!r}")
    try:
        student = NETWORKS[network](config)
        student.load_state_dict(state)
        if "prior_sizes" in metadata:  # sizes as trained with, whatever PRIORS says today
            student.prior.copy_(torch.tensor(metadata["prior_sizes"]).reshape(student.prior.shape))
    except (UserError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"weights '{path}': {' '.join(str(error).split())[:300]}") from None
    return student.eval(), metadata
