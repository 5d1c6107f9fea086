"""A warning about the training data of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENDERED_LICENCE = "Apache-2.0"
"""Of rendered frames, as :mod:`skd_core.training.provenance` writes it."""


def domain_warning(metadata: Mapping[str, Any]) -> str:
    """One sentence if the weights were trained on rendered scenes only, else "".

    Args:
        metadata: of the weights, see :func:`skd_core.inference.weights.load_weights`.
    """
    sets = metadata.get("trained_on")
    licences = list(sets.values()) if isinstance(sets, Mapping) else []
    if licences and all(licence == RENDERED_LICENCE for licence in licences):
        return "weights trained on rendered scenes only: expect misses and wrong distances on real images"
    return ""
