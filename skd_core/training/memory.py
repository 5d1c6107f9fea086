"""How the process keeps its memory."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
"""glibc's names of the settings, see mallopt(3)."""


def keep_memory() -> bool:
    """Keep freed memory in the process instead of giving it back to the system after each use.

    A training step on a CPU frees and takes the same hundreds of megabytes of feature maps again and again. glibc takes
    blocks of that size from the system each time, which then fills them with zeros page by page.

    Returns:
        whether this system's library has the settings; without them nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return False
    settings = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 64 << 20}
    return all(mallopt(name, value) for name, value in settings.items())
