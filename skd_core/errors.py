"""The one exception that means "the input is wrong", as opposed to a bug."""

from __future__ import annotations


class UserError(ValueError):
    """Wrong input. The message is one line that names the thing and the cure.

    The command line prints it without a traceback and exits with code 2.
    """
