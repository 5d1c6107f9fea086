"""Notes to the user that are not errors, each printed once."""

from __future__ import annotations

import logging
from collections.abc import Hashable

logger = logging.getLogger(__name__)
_said: set[Hashable] = set()


def warn_once(key: Hashable, text: str) -> None:
    """Log a warning, but only the first of each key: once for a topic, or for the files of a folder."""
    if key not in _said:
        _said.add(key)
        logger.warning("%s", text)
