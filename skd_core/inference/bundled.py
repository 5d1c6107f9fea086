"""Weights files by name, and what they say about themselves, without PyTorch's network being built for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from skd_core.errors import UserError
from skd_core.inference.metadata import read_metadata

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


def weights_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a weights file, whose tensors are not read.

    Raises:
        UserError: a damaged or foreign file.
    """
    name = f"weights '{path}'"
    try:
        with safe_open(str(path), framework="numpy") as file:
            text = (file.metadata() or {}).get("skd_core", "{}")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{name}: not a safetensors file, or damaged ({error})") from None
    metadata = read_metadata(text, name)
    metadata.setdefault("network", "mdn")  # written before there were two
    return metadata
