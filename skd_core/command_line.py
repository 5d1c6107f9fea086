"""What all commands have in common: options are checked before a command runs, and every fault ends as one line.

A command raises :class:`~skd_core.errors.UserError` for wrong input. What the system refuses (a full disk, no memory, a
closed pipe) becomes a line of the same form here, with the name of the file where the system gives one. Other
exceptions are bugs and keep their traceback.
"""

from __future__ import annotations

import errno
import math
import os
import re
import signal
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from skd_core.errors import UserError

FAULT, INTERRUPTED = 2, 130
"""Exit codes: wrong input, and Ctrl-C as a shell counts it."""

_USAGE: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
_WORKER = "skd_core.errors.UserError: "
_EMPTY_OPTION = re.compile(r"--[a-z0-9-]+=")
_LONGEST = 1000  # characters of a message
_CALLER: list[str] = []  # the command that runs and its first argument, to name where the system gives no file


class CheckedCommand(TyperCommand):
    """A command whose options are checked alike: ``~`` is the home folder, a path is a file or folder, a number fits.

    Raises:
        UserError: a path whose name is too long, a pipe or device instead of a file, an integer beyond 64 bits, or a
            number that is not finite.
    """

    def invoke(self, ctx: Any) -> Any:
        for parameter in self.params:
            value = ctx.params.get(parameter.name)
            if isinstance(value, (list, tuple)):
                ctx.params[parameter.name] = [_checked(parameter, part) for part in value]
            else:
                ctx.params[parameter.name] = _checked(parameter, value)
        first = next((value for value in ctx.params.values() if isinstance(value, (str, os.PathLike))), None)
        _CALLER[:] = [str(ctx.info_name), *([] if first is None else [str(first)])]
        return super().invoke(ctx)


def _check_words(words: Sequence[str]) -> None:
    """An empty word is a shell variable that is not set; as a path it would mean the working folder."""
    for before, word in zip(["the command line", *words], words, strict=False):
        if not word or _EMPTY_OPTION.fullmatch(word):
            raise UserError(
                f"{before if not word else word[:-1]}: is followed by an empty word; is a variable not set?"
            )


def _checked(parameter: Any, value: Any) -> Any:
    name = max(parameter.opts, key=len)  # of an argument its name, of an option with its dashes
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UserError(f"{name}: {str(value)[:20]}... does not fit into 64 bits")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}: must be a finite number, got {value:g}")
    if isinstance(value, (str, os.PathLike)):
        # typer before 0.20 makes the Path after this
        is_path = isinstance(value, os.PathLike) or "Path" in type(getattr(parameter, "type", None)).__name__
        text = os.path.expanduser(os.fspath(value))
        _check_place(name, text, is_path)
        return text if isinstance(value, str) else Path(text)
    return value


def _check_place(name: str, text: str, is_path: bool) -> None:
    """Refuse what is there but neither a file nor a folder; opening a pipe would wait for its other end."""
    try:
        mode = os.stat(text).st_mode
    except (OSError, ValueError) as error:
        if is_path and isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            shown = text if len(text) < 120 else f"{text[:50]}...{text[-50:]}"
            raise UserError(f"{name}: {shown}: {error.strerror}") from None
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{text}: is a pipe or a device ({name}); give a regular file or a folder")


def one_line(text: str) -> str:
    """A message as one line of printable characters: line breaks and control characters in a path are written out.

    What a loader's worker process wrapped in its traceback is taken out of it.
    """
    text = text.strip()
    if text.startswith("Caught ") and _WORKER in text:
        text = text.rpartition(_WORKER)[2]
    line = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def end_with_signals() -> None:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does, so that its temporary files go; ``nohup`` stays in force."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


def run_app(app: typer.Typer, extras: Mapping[str, str], arguments: Sequence[str] | None = None) -> int:
    """Run a command line and say in one line on stderr what is wrong.

    Args:
        extras: module -> the extra of this package that brings it.
        arguments: without the program's name; those of this process if left out.

    Returns:
        the exit code: 0, 2 for wrong input or what the system refuses, 130 when interrupted.
    """
    _CALLER.clear()
    _keep_streams()
    command = typer.main.get_command(app)
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _check_words(words)
        try:
            with command.make_context("skd_core", words) as context:
                command.invoke(context)
        except typer.Exit as leave:  # of --help and --version
            if leave.exit_code:
                return int(leave.exit_code)
        _CALLER.clear()  # what fails now is the output
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("skd_core: interrupted", file=sys.stderr)
        return INTERRUPTED
    except typer.Abort:
        return INTERRUPTED
    except _USAGE as error:
        return _say_usage(error)
    except Exception as error:
        message = _explain(error, extras)
        if message is None:
            raise
        return _say(message)
    return 0


def _say(message: str) -> int:
    print(f"skd_core: error: {one_line(message)}", file=sys.stderr)
    return FAULT


def _say_usage(error: Any) -> int:
    """An option that is unknown, missing or of the wrong kind; without any argument the help, as asked for."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError" and context is not None:
        print(context.get_help(), file=sys.stderr)
        return FAULT
    where = "" if context is None else f"; see {context.command_path} --help"
    return _say(f"{' '.join(error.format_message().split()).rstrip('.')}{where}")


def _explain(error: Exception, extras: Mapping[str, str]) -> str | None:
    """The line for a fault that is none of the program's; None for a bug."""
    caller = " ".join(_CALLER) or "standard output"
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        extra = extras.get((error.name or "").partition(".")[0])
        cure = f"run pip install '.[{extra}]' in the skd_wm3d_ros source folder"
        return None if extra is None else f"this command needs {error.name}, which is not installed: {cure}"
    if isinstance(error, BrokenPipeError):
        _mute(sys.stdout)
        return "standard output was closed before all was written"
    if isinstance(error, OSError):
        if error.filename is None and error.errno == errno.ENOSPC:
            _mute(sys.stdout)
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
        return f"{' -> '.join(names) or caller}: {error.strerror or error}"
    if isinstance(error, MemoryError) or _lacks_memory(error):
        return f"{caller}: not enough memory"
    if isinstance(error, RecursionError):
        return f"{caller}: an input is nested too deeply"
    if isinstance(error, OverflowError):
        return f"{caller}: a number in the input is too large ({error})"
    if isinstance(error, UnicodeError):
        return f"{caller}: an input or a name is not UTF-8 text ({error})"
    return None


def _lacks_memory(error: Exception) -> bool:
    """PyTorch and OpenCV have no error of their own for the host's memory."""
    said = str(error).lower()
    return (
        type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in said or "insufficient memory" in said
    )


def _keep_streams() -> None:
    """Closed standard streams are opened on the null device, or the next file opened would get what is printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: SIM115 (lives as long as the process)
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Callable[..., None] | None = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # file names need not be UTF-8, nor the terminal
            reconfigure(errors="backslashreplace")


def _mute(stream: Any) -> None:
    """Let go of what a stream could not write, so that Python does not try again when it ends."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):  # a stream without a file of the system
        return
