"""Why a frame is skipped."""

from __future__ import annotations

from skd_core.errors import UserError


class Rejection(UserError):
    """A frame that is skipped, and why.

    Attributes:
        kind: what it is counted under in the diagnostics.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
