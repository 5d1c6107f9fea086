"""What is worth a line although nothing has failed: said once, not for each of a thousand files."""

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
