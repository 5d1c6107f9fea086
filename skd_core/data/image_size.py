"""Parsing of image sizes on the command line."""

from __future__ import annotations

from skd_core.errors import UserError


def parse_size(text: str | None, option: str = "--size") -> tuple[int, int] | None:
    """ "WIDTHxHEIGHT" -> two numbers, pixels; None stays None.

    Args:
        option: the command line's name for it.

    Raises:
        UserError: not two whole numbers of 32 to 8192 pixels.
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and 32 <= int(part) <= 8192 for part in parts):
        raise UserError(f"{option} '{text}': write WIDTHxHEIGHT, 32 to 8192 pixels each, such as 1242x375")
    return int(parts[0]), int(parts[1])
