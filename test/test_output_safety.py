"""No command writes over its input or over what is no regular file; two never share a folder; a full disk is named."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from skd_core.cli import EXTRAS, app
from skd_core.command_line import run_app
from skd_core.data.bag_make import BagOptions, make_bag
from skd_core.data.bag_writer import BagWriter
from skd_core.errors import UserError
from skd_core.files import files_of, fresh_folder, lock_folder
from skd_core.synthetic import SynthConfig, write_dataset

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """A command's exit code and what it says on stderr."""

    def command(*words: object) -> tuple[int, str]:
        code = run_app(app, EXTRAS, [str(word) for word in words])
        return code, capfd.readouterr().err.strip()

    return command


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three frames, their labels as results, a run's records."""
    tree = tiny.make_dataset(tmp_path / "tree", 3)
    (tmp_path / "results").mkdir()
    for path in (tree / "training" / "label_2").iterdir():
        lines = [f"{line} 0.9\n" for line in path.read_text().splitlines() if not line.startswith("DontCare")]
        (tmp_path / "results" / path.name).write_text("".join(lines))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "epoch": 1, "loss": 1.0}\n')
    return tree


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Kind and content of all that lies in a folder."""
    return {
        str(path.relative_to(folder)): (os.lstat(path).st_mode, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


COMMANDS: dict[str, tuple[list[str], str, str]] = {
    # words, with {out} for the output; an input that it must not write over; a new place that it may write to
    "eval kitti": (
        ["eval", "kitti", "--labels", "{tree}/training/label_2", "--results", "{tmp}/results", "--json", "{out}"],
        "{tmp}/results/000001.txt", "{tmp}/results/scores.json",
    ),
    "eval real": (
        ["eval", "real", "{tree}", "--boxes", "labels", "--lift", "--device", "cpu", "--json", "{out}"],
        "{tree}/training/calib/000000.txt", "{tree}/scores.json",
    ),
    "pseudo": (["pseudo", "{tree}", "--json", "{out}"], "{tree}/training/depth/000002.png", "{tree}/pseudo.json"),
    "plot": (["plot", "{tmp}/run", "--out", "{out}"], "{tmp}/run/metrics.jsonl", "{tmp}/run/runs.png"),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_files_are_not_written_over_inputs_nor_over_devices(tree: Path, tmp_path: Path, run: Run, command: str) -> None:
    words, over, new = COMMANDS[command]
    names = {"tree": str(tree), "tmp": str(tmp_path)}
    over, new = over.format(**names), new.format(**names)
    (tmp_path / "link").symlink_to(over)
    os.link(over, tmp_path / "hard")
    (tmp_path / "null").symlink_to("/dev/null")
    os.mkfifo(tmp_path / "pipe")
    before = state(tmp_path)
    wrong = [over, tmp_path / "link", tmp_path / "hard", tmp_path / "null", tmp_path / "pipe", tmp_path, "/dev/null"]
    for out in wrong:
        code, line = run(*(word.format(**names, out=out) for word in words))
        assert (code, len(line.splitlines())) == (2, 1), (out, line)
        assert Path(out).name in line
    code, line = run(*(word.format(**names, out=tmp_path / "nowhere" / "x") for word in words))
    assert (code, "nowhere" in line) == (2, True), line
    assert state(tmp_path) == before
    for _ in range(2):  # its own output may be replaced
        code, line = run(*(word.format(**names, out=new) for word in words))
        assert code == 0, line


def test_show_does_not_write_over_the_images_of_its_tree(tree: Path, tmp_path: Path, run: Run) -> None:
    images = tree / "training" / "image_2"
    (tmp_path / "linked").symlink_to(images)
    before = state(tmp_path)
    for out in (images, tmp_path / "linked", f"{tree}/training/../training/image_2"):
        code, line = run("show", tree, "--out", out)
        assert code == 2
        assert "would write over an input" in line
    assert state(tmp_path) == before
    for _ in range(2):
        assert run("show", tree, "--out", tree / "show")[0] == 0
    assert len(list((tree / "show").iterdir())) == 3


def test_depth_maps_are_not_made_beside_images_of_the_same_name(tree: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "model.onnx").touch()
    images = tree / "training" / "image_2"
    from skd_core.supervision.depth import fill_cache

    with pytest.raises(UserError, match="would write over an input"):
        fill_cache([images], images, lambda image: image, "metric", "none")


def test_what_replaces_a_folder_never_holds_its_input(tree: Path, tmp_path: Path, run: Run) -> None:
    bag = tmp_path / "bag"
    make_bag("kitti", tree, bag)
    (bag / "images").mkdir()
    shutil.copy(tree / "training" / "image_2" / "000000.png", bag / "images")
    (tree / "training" / "label_2" / "layouts").mkdir()
    before = state(tmp_path)
    calib = tree / "training" / "calib" / "000000.txt"
    layouts = tree / "training" / "label_2"
    for words in (
        ("bag-make", "folder", bag / "images", bag, "--camera", calib, "--overwrite"),
        ("synth", tree, "--frames", 1, "--layouts", layouts, "--overwrite"),
        ("synth", tmp_path, "--frames", 1, "--overwrite"),  # more than a data set
    ):
        code, line = run(*words)
        assert code == 2, words
        assert len(line.splitlines()) == 1
    assert state(tmp_path) == before


def test_what_a_source_consists_of(tree: Path, tmp_path: Path) -> None:
    bag = tmp_path / "bag"
    make_bag("kitti", tree, bag)
    (bag / "000000.png").touch()
    assert {path.name for path in files_of(bag)} == {"bag.mcap", "metadata.yaml"}
    assert {path.name for path in files_of(tmp_path / "results", None)} == {f"00000{n}.txt" for n in range(3)}
    assert len(list(files_of(tree, tmp_path / "run" / "metrics.jsonl"))) == 3 * 3 + 1 + 1


# -- one command a folder ----------------------------------------------------------------------------------------------
def test_two_commands_in_one_folder(tree: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    out.mkdir()
    calib = tree / "training" / "calib"
    images = tree / "training" / "image_2"
    with lock_folder(out):
        for words in (
            ("lift", tree, "--boxes", tree / "training" / "label_2", "--out", out),
            ("show", tree, "--out", out),
            ("synth", out, "--frames", 1),
            ("eval", "kitti", "--labels", tree / "training/label_2", "--results", tmp_path / "results", "--plots", out),
            ("predict", images, "--camera", calib, "--out", out, "--device", "cpu"),
        ):
            code, text = run(*words)
            assert code == 2
            assert "another command is writing there" in text.splitlines()[-1]  # after notes on the labels
    assert list(out.iterdir()) == []
    out.rmdir()
    with fresh_folder(out):
        for words in (("synth", out, "--frames", 1), ("bag-make", "kitti", tree, out)):
            code, line = run(*words)
            assert (code, len(line.splitlines())) == (2, 1), line
            assert "another command is making it" in line
    assert not out.exists()


# -- disks that are full, folders that are closed, signals -------------------------------------------------------------
@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_while_rendering(tmp_path: Path, full_disk: Callable[[int], None], workers: int) -> None:
    full_disk(4000)
    with pytest.raises(UserError, match=r"out/training/\S+\.png: cannot write: File too large"):
        write_dataset(tmp_path / "out", SynthConfig(tiny.WIDTH, tiny.HEIGHT), 3, 1, workers)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_full_disk_while_writing_a_bag(tree: Path, tmp_path: Path, full_disk: Callable, storage: str) -> None:
    make_bag("kitti", tree, tmp_path / "bag", BagOptions(storage=storage))
    before = state(tmp_path)
    full_disk(20_000)
    for overwrite, out in ((True, tmp_path / "bag"), (False, tmp_path / "new")):
        with pytest.raises(UserError, match=rf"{out.name}\S*: cannot write: "):
            make_bag("kitti", tree, out, BagOptions(storage=storage, overwrite=overwrite))
    assert state(tmp_path) == before


def test_closed_folders_are_named(tree: Path, run: Run) -> None:
    """Not even root can make a folder in /proc."""
    out = Path("/proc/skd/out")
    for words in (
        ("synth", out, "--frames", 1),
        ("bag-make", "kitti", tree, out),
        ("lift", tree, "--boxes", tree / "training" / "label_2", "--out", out),
        ("show", tree, "--out", out),
    ):
        code, line = run(*words)
        assert (code, len(line.splitlines())) == (2, 1), line
        assert "/proc/skd" in line


def test_a_bag_that_is_being_written_when_another_appears(tmp_path: Path) -> None:
    """The folder was free when the writer was made, and is not when it begins."""
    writer = BagWriter(tmp_path / "bag")
    (tmp_path / "bag").mkdir()
    with pytest.raises(UserError, match="exists already"), writer:
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["bag"]


STOPPED = """
import os, signal, sys
from skd_core.synthetic import writer
whole, number = writer._write_frame, getattr(signal, sys.argv.pop(1))
if signal.getsignal(number) is signal.SIG_IGN:  # as under nohup, which a command respects
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
def write(root, config, seed, frame):
    whole(root, config, seed, frame)
    if frame == 1:
        os.kill(os.getpid(), number)
writer._write_frame = write
from skd_core.cli import main
main()
"""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP", "SIGINT", "SIGKILL"])
def test_signals_leave_nothing_behind(tmp_path: Path, number: str) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", STOPPED, number, "synth", str(out), "--size", "160x64", "--frames", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    if number == "SIGKILL":
        assert done.returncode == -signal.SIGKILL
        assert len(list(tmp_path.iterdir())) == 1  # swept by the next one
        write_dataset(out, SynthConfig(tiny.WIDTH, tiny.HEIGHT), 1, 1)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
    else:
        assert (done.returncode, done.stderr.strip().splitlines()[-1]) == (130, "skd_core: interrupted")
        assert list(tmp_path.iterdir()) == []
