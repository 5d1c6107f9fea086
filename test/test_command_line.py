"""What all commands have in common: faults end as one line that names a file, options are checked before anything."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer

from skd_core.command_line import CheckedCommand, one_line, run_app
from skd_core.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def run_raising(error: BaseException | None, arguments: list[str]) -> tuple[int, list[object]]:
    """A command line of one command that raises; what it was given."""
    app, given = typer.Typer(), []

    @app.callback()
    def group() -> None:
        """More than one command."""

    @app.command(cls=CheckedCommand)
    def work(
        source: Annotated[Path, typer.Argument()],
        out: Annotated[Path | None, typer.Option()] = None,
        names: Annotated[list[str] | None, typer.Option("--set")] = None,
        seed: Annotated[int, typer.Option()] = 0,
        rate: Annotated[float, typer.Option()] = 1.0,
    ) -> None:
        given.extend([source, out, names, seed, rate])
        if error is not None:
            raise error

    return run_app(app, {"numba": "synth"}, ["work", *arguments]), given


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UserError("p: wrong"), "p: wrong"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/a.txt"), "/data/a.txt: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device", b"/data/b"), "/data/b: No space left on device"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"), "a -> b: Invalid cross-device link"),
        (OSError(errno.EIO, "Input/output error"), "work IN: Input/output error"),
        (MemoryError(), "work IN: not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 1 byte"), "work IN: not enough memory"),
        (RecursionError("maximum depth"), "work IN: an input is nested too deeply"),
        (OverflowError("int too large"), "work IN: a number in the input is too large (int too large)"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "work IN: an input or a name is not UTF-8 text"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "standard output was closed before all was written"),
        (ModuleNotFoundError("no", name="numba.core"), "this command needs numba.core, which is not installed: run"),
    ],
)  # fmt: skip
def test_what_the_system_refuses_is_one_line_and_exit_2(error, words, capsys, monkeypatch):
    monkeypatch.setattr("skd_core.command_line._mute", lambda stream: None)
    code, _ = run_raising(error, ["IN"])
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert said.err.startswith(f"skd_core: error: {words}")
    assert said.err.count("\n") == 1


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_raising(ZeroDivisionError(), ["IN"])
    with pytest.raises(RuntimeError, match="shapes"):
        run_raising(RuntimeError("shapes"), ["IN"])


def test_an_interrupt_is_130(capsys):
    assert run_raising(KeyboardInterrupt(), ["IN"])[0] == 130
    assert capsys.readouterr().err == "skd_core: interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing argument"),
        (["IN", "--nothing"], "No such option: --nothing"),
        (["IN", "--seed", "x"], "Invalid value for '--seed'"),
        (["IN", "--seed", str(2**63)], "--seed: 92233720368547758080"[:-1] + "... does not fit into 64 bits"),
        (["IN", "--seed", "9" * 3000], "--seed: 99999999999999999999... does not fit into 64 bits"),
        (["IN", "--rate", "inf"], "--rate: must be a finite number, got inf"),
        (["IN", "--rate", "nan"], "--rate: must be a finite number, got nan"),
        (["IN", "--out", ""], "--out: is followed by an empty word"),
        (["IN", "--out="], "--out: is followed by an empty word"),
        ([""], "work: is followed by an empty word"),
        (["x" * 5000], "source: xxxxxxxx"),
        (["IN", "--out", "/dev/null"], "/dev/null: is a pipe or a device (--out)"),
        (["fifo"], "fifo: is a pipe or a device (source)"),
        (["IN", "--set", "fifo"], "fifo: is a pipe or a device (--set)"),
    ],
)
def test_options_are_checked_before_a_command_runs(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    code, given = run_raising(None, arguments)
    said = capsys.readouterr()
    assert (code, given, said.out) == (2, [], "")
    assert said.err.startswith(f"skd_core: error: {words}")
    assert said.err.count("\n") == 1
    assert len(said.err) < 1100


def test_the_home_folder_is_meant_by_a_tilde_in_paths_and_in_words(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    code, given = run_raising(None, ["~/in", "--out=~/out", "--set", "~/tree:val", "--seed", str(2**63 - 1)])
    assert code == 0
    assert given == [tmp_path / "in", tmp_path / "out", [f"{tmp_path}/tree:val"], 2**63 - 1, 1.0]


def test_a_message_is_one_printable_line_and_keeps_its_beginning():
    assert one_line("first\nsecond.png: \x1b[31mred\x1b[0m é") == "first\\nsecond.png: \\x1b[31mred\\x1b[0m é"
    wrapped = (
        "Caught UserError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "a.py", line 1, in f\nskd_core.errors.UserError: a\nb.png: not an image\n'
    )
    assert one_line(wrapped) == "a\\nb.png: not an image"
    assert one_line("a\udce9b") == "a\\udce9b"
    assert len(one_line("x" * 10**6)) == 1000


def command_line(*arguments: str, redirect: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    script = f'exec "$0" -m skd_core.cli "$@" {redirect}'
    return subprocess.run(
        ["bash", "-c", script, sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def test_a_full_or_closed_standard_output_is_no_traceback(tmp_path):
    full = command_line("--version", redirect="> /dev/full")
    assert (full.returncode, full.stderr) == (2, "skd_core: error: standard output: No space left on device\n")
    closed = command_line("--version", redirect=">&- 2>&- <&-")
    assert (closed.returncode, closed.stderr) == (0, "")
    pipe = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c \"{WAITS}\" | true; echo ${{PIPESTATUS[0]}}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert pipe.stdout == "2\n"
    assert pipe.stderr == "skd_core: error: standard output was closed before all was written\n"


WAITS = (
    "import sys, time; time.sleep(.3); sys.argv = ['skd_core', '--version'];"
    "from skd_core.cli import main; main()"
)  # fmt: skip


def test_help_needs_neither_torch_nor_opencv_nor_matplotlib():
    code = (
        "import sys; from skd_core.cli import app; from skd_core.command_line import run_app;"
        "run_app(app, {}, ['predict', '--help']);"
        "print([m for m in ('torch', 'timm', 'cv2', 'matplotlib', 'numpy', 'scipy', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    heavy = done.stdout.splitlines()[-1]
    assert heavy in ("[]", "['pydantic']")  # typer itself brings the latter since 0.28


def test_predict_loads_no_more_than_it_needs():
    code = (
        "import sys, skd_core.inference.predict, skd_core.inference.outside;"
        "print([m for m in ('matplotlib', 'scipy', 'rosbags', 'lightning', 'onnxruntime', 'transformers',"
        "'numba', 'tensorboard', 'nuscenes', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_words_in_brackets_and_colons_are_printed_as_they_are(capsys):
    from rich.table import Table

    from skd_core.console import note_console, output_console

    output_console().print("p[/x] [bold]b[/bold] :smile:")
    note_console().print("[red]" + "x" * 300)
    table = Table("[i]head", title="[/t]")
    table.add_row("[/cell]")
    output_console().print(table)
    said = capsys.readouterr()
    assert said.out.startswith("p[/x] [bold]b[/bold] :smile:\n")
    assert all(word in said.out for word in ("[i]head", "[/t]", "[/cell]"))
    assert said.err == "[red]" + "x" * 300 + "\n"


def test_no_other_console_is_made():
    users = [file.name for file in (ROOT / "skd_core").rglob("*.py") if "import Console" in file.read_text("utf-8")]
    assert users == ["console.py"]


def test_no_other_yaml_reader_is_used():
    """But calibrations', which keeps scalars as text, and that of the package's own RViz file, which launch reads."""
    files = [*(ROOT / "skd_core").rglob("*.py"), *(ROOT / "skd_wm3d_ros").rglob("*.py")]
    pattern = re.compile(r"yaml\.(?:\w*_)?load|SafeLoader")
    assert [file.name for file in files if pattern.search(file.read_text("utf-8"))] == [
        "calibration.py", "yaml_files.py", "rviz_view.py",
    ]  # fmt: skip
