"""The console for tables and notes, without markup: a path such as ``p[/x]`` is printed as it is."""

from __future__ import annotations

from rich.console import Console


def output_console(*, wrap: bool = True) -> Console:
    """Standard output; without ``wrap`` lines may be longer than the terminal is wide."""
    return Console(markup=False, emoji=False, highlight=False, soft_wrap=not wrap)


def note_console() -> Console:
    """Standard error, for what needs a word; a line stays a line."""
    return Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
