"""Choice of the device and precision of networks."""

from __future__ import annotations

import torch

from skd_core.errors import UserError

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
"""What convolutions and linear layers compute in; boxes are decoded in fp32 in any case."""


def pick_device(device: str) -> torch.device:
    """ "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".

    Raises:
        UserError: unknown name, or no such device on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError:
        raise UserError(f"device '{device}': use auto, cpu, cuda or cuda:N") from None
    if picked.type == "cuda" and (picked.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device '{device}': this machine has {torch.cuda.device_count()} CUDA devices; use auto or cpu"
        )
    if picked.type not in ("cpu", "cuda"):
        raise UserError(f"device '{device}': use auto, cpu, cuda or cuda:N")
    return picked


def pick_precision(precision: str, device: torch.device) -> str:
    """ "fp32", "fp16", "bf16", or "auto": fp16 on a GPU (its 11 bits are finer than bf16's 8), fp32 on a CPU.

    Raises:
        UserError: unknown name.
    """
    if precision == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    if precision not in PRECISIONS:
        raise UserError(f"precision '{precision}': use auto, {', '.join(PRECISIONS)}")
    return precision
