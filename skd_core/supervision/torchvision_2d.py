"""torchvision's detection models as 2D detectors: ``torchvision:MODEL@FILE``, weights from a file only."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skd_core.errors import UserError

Network = Callable[[Tensor, float], tuple[Tensor, Tensor, Tensor]]
"""A 2D network: (3, H, W) uint8 RGB, minimum score -> boxes (N, 4) in its pixels, scores (N,), class ids (N,)."""

COCO_CLASSES = 91
"""Of torchvision's COCO models, background and gaps in COCO's ids among them."""


def load_torchvision(model: str, device: str = "cpu") -> tuple[Network, tuple[str, ...]]:
    """A detection model of torchvision with weights from a file.

    Args:
        model: ``MODEL@FILE``: MODEL as torchvision calls it ("fasterrcnn_resnet50_fpn"), FILE its state dict (.pth, or
            a checkpoint that holds it under "model") or .safetensors. A model trained for other classes is recognised
            by its last layer; its classes are called by their numbers, 1 the first.
        device: "cpu" or "cuda".

    Returns:
        The network, see :data:`Network`, and its class names.

    Raises:
        UserError: not of that form, no such model or file, or weights of another model.
    """
    from torchvision.models import detection as models
    from torchvision.models import get_model, get_model_weights, list_models

    name, _, file = model.partition("@")
    if not file:
        raise UserError(f"torchvision:{model}: write torchvision:MODEL@FILE")
    there = [m for m in list_models(module=models) if not m.startswith(("maskrcnn", "keypointrcnn"))]
    if name not in there:
        raise UserError(f"torchvision:{model}: torchvision has no detector {name!r}; it has {', '.join(there)}")
    state = _read_state(file)
    with torch.device("meta"):
        shapes = get_model(name, weights=None, weights_backbone=None).state_dict()
    ratios = {state[key].shape[0] / shapes[key].shape[0] for key in shapes if _differ(state, shapes, key)}
    classes = round(COCO_CLASSES * ratios.pop()) if len(ratios) == 1 else COCO_CLASSES
    network = get_model(name, weights=None, weights_backbone=None, num_classes=classes)
    try:
        network.load_state_dict(state)
    except RuntimeError:
        raise UserError(f"{file}: not the weights of torchvision's {name}") from None
    network = network.eval().to(device)
    names = tuple(map(str, range(classes)))
    if classes == COCO_CLASSES:
        names = tuple(next(iter(get_model_weights(name))).meta["categories"])

    @torch.inference_mode()
    def detect(image: Tensor, score: float) -> tuple[Tensor, Tensor, Tensor]:
        found = network([image.to(device).float() / 255])[0]
        good = found["scores"] >= score
        return found["boxes"][good].cpu(), found["scores"][good].cpu(), found["labels"][good].cpu()

    return detect, names


def _differ(state: Mapping[str, Tensor], shapes: Mapping[str, Tensor], key: str) -> bool:
    """Whether only the number of outputs of a layer differs."""
    if key not in state or not shapes[key].ndim or not state[key].ndim:
        return False
    return state[key].shape[0] != shapes[key].shape[0] and state[key].shape[1:] == shapes[key].shape[1:]


def _read_state(file: str) -> dict[str, Tensor]:
    if not Path(file).is_file():
        raise UserError(f"{file}: no such file")
    try:
        if file.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(file)
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"{file}: not a file of weights ({type(error).__name__})") from None
    except Exception as error:  # safetensors' own kind of error is a bare Exception
        if type(error).__name__ != "SafetensorError":
            raise
        raise UserError(f"{file}: not a file of weights ({type(error).__name__})") from None
    state = state.get("model", state) if isinstance(state, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{file}: holds no state dict")
    return dict(state)
