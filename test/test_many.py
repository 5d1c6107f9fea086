"""One command over many recordings: the command lines, a real Ray of two workers, a lost worker, merged scores."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from typer.testing import CliRunner

from skd_core import many
from skd_core.cli import app
from skd_core.cluster import spread
from skd_core.errors import UserError
from skd_core.evaluation.kitti import evaluate, read_folders
from skd_core.many import Outcome, Task, _together, run_many, run_task, tasks_of


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of frames, and one without calibrations."""
    folder = tmp_path_factory.mktemp("trees")
    for number in range(2):
        tiny.make_dataset(folder / f"set{number}", frames=2, seed=number)
    shutil.copytree(folder / "set0", folder / "broken")
    shutil.rmtree(folder / "broken" / "training" / "calib")
    return folder


def test_command_lines_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b").mkdir()
    (tmp_path / "c.mcap").touch()
    command = "skd_core bag-eval {} --labels '{}/labels of' --out out/{name}"
    first, second = tasks_of(command, [Path("a b"), Path("c.mcap")], 2)
    assert first.words == ("bag-eval", f"{tmp_path}/a b", "--labels", f"{tmp_path}/a b/labels of", "--out", "out/a b")
    assert (second.name, second.words[-1], second.folder, second.cores) == ("c", "out/c", str(tmp_path), 2)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to("a b")
    (linked,) = tasks_of("lift {} --out=~/{name} --camera ~/c.yaml", [Path("link")], 1)
    assert linked.words == ("lift", f"{tmp_path}/link", f"--out={tmp_path}/link", "--camera", f"{tmp_path}/c.yaml")


@pytest.mark.parametrize(
    ("command", "recordings", "said"),
    [
        ("train {} --out out/{name}", ["a"], "begin with one of autolabel, bag-eval"),
        ("", ["a"], "begin with one of"),
        ("lift 'a", ["a"], "No closing quotation"),
        ("lift --out out/{name}", ["a"], "write {} where"),
        ("lift {} --out out", ["a", "b"], "write {name} for"),
        ("lift {} --out=out", ["a", "b"], "write {name} for"),
        ("pseudo {} --json x.json", ["a", "b"], "all would write to one --json"),
        ("lift {} --out out/{name}", ["a", "none"], "none: no such recording"),
        ("lift {} --out out/{name}", ["loop"], "loop: "),
        ("lift {} --out out/{name}", ["pipe"], "pipe: is a pipe"),
        ("lift {} --out out/{name}", ["a", "b/a"], "another recording is called a"),
    ],
)
def test_command_lines_that_cannot_be(
    command: str, recordings: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b/a"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=said):
        CliRunner().invoke(app, ["many", command, *recordings], catch_exceptions=False)


def test_a_lost_workers_work_is_done_again(tmp_path: Path) -> None:
    """On a local Ray; the first worker that gets number 1 kills itself."""
    marker, tries = str(tmp_path / "lost"), str(tmp_path / "tries")

    def square(number: int) -> int:
        import os
        import signal
        from pathlib import Path

        with open(tries, "a", encoding="utf-8") as file:
            file.write(f"{number}\n")
        if number == 1 and not Path(marker).exists():
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number * number

    assert dict(spread(square, [0, 1, 2, 3], None, 1)) == {0: 0, 1: 1, 2: 4, 3: 9}
    assert sorted((tmp_path / "tries").read_text().split()) == ["0", "1", "1", "2", "3"]
    with pytest.raises(UserError, match=r"--ray 127\.0\.0\.1:1: no Ray cluster can be reached there"):
        next(spread(square, [0], "127.0.0.1:1", 1))
    with pytest.raises(UserError, match="each takes 10000 CPU cores, and no machine has so many; buy some"):
        next(spread(square, [0], None, 10000, cure="buy some"))
    with pytest.raises(UserError, match="each takes 1 CPU cores and 100 GPUs"):
        next(spread(square, [0], None, 1, 100))


def test_a_command_ends_with_its_worker(tmp_path: Path) -> None:
    """Else it would write beside the one that takes its place."""
    code = (
        "import subprocess, time; from skd_core.cluster import end_with_parent\n"
        "child = subprocess.Popen(['sleep', '600'], preexec_fn=end_with_parent)\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    child = Path("/proc") / worker.stdout.readline().strip()
    assert child.exists()
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    end = time.monotonic() + 30
    while time.monotonic() < end and child.exists() and "Z" not in (child / "stat").read_text().split()[2]:
        time.sleep(0.05)
    assert not child.exists() or "Z" in (child / "stat").read_text().split()[2]


def test_an_interrupt_keeps_what_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def spread_two(*arguments: object, **options: object) -> Iterator[tuple[int, Outcome | str]]:
        yield 1, Outcome(0, "wrote b", "", 2.0)
        yield 0, "its worker was lost 4 times"
        raise KeyboardInterrupt

    monkeypatch.setattr(many, "spread", spread_two)
    for name in "abc":
        (tmp_path / name).mkdir()
    recordings = [tmp_path / name for name in "abc"]
    with pytest.raises(KeyboardInterrupt):
        run_many("pseudo {}", recordings, None, 1, json_file=tmp_path / "all.json")
    assert capsys.readouterr().out == "b: wrote b\na: failed: its worker was lost 4 times\n"
    rows = json.loads((tmp_path / "all.json").read_text())["recordings"]
    assert [(row["name"], row["status"]) for row in rows] == [("a", -1), ("b", 0), ("c", None)]


def test_a_killed_command_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho half a line >&2\nkill -9 $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(many.sys, "executable", str(script))
    found = run_task(Task("a", ("pseudo", "a"), str(tmp_path), 1))
    assert (found.status, found.error) == (-9, "killed by signal 9, perhaps for lack of memory")


def test_recordings_that_fail_are_named_after_the_others_are_done(trees: Path, tmp_path: Path) -> None:
    recordings = [str(trees / name) for name in ("set0", "broken", "set1")]
    words = ["many", "pseudo {} --json " + str(tmp_path / "{name}.json"), *recordings]
    with pytest.raises(UserError, match=r"1 of 3 recordings failed, first broken: skd_core: error: .*calib"):
        CliRunner().invoke(app, [*words, "--json", str(tmp_path / "all.json")], catch_exceptions=False)
    rows = json.loads((tmp_path / "all.json").read_text())["recordings"]
    assert [(row["name"], row["status"]) for row in rows] == [("set0", 0), ("broken", 2), ("set1", 0)]
    assert {path.name for path in tmp_path.iterdir()} == {"all.json", "set0.json", "set1.json"}


def test_scores_of_recordings_together_are_those_of_all_their_frames(trees: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    for number in range(2):
        for kind in ("labels", "results"):
            target = tmp_path / f"out{number}" / kind
            target.mkdir(parents=True)
            (both / kind).mkdir(parents=True, exist_ok=True)
            for path in (trees / f"set{number}" / "training" / "label_2").iterdir():
                text = path.read_text()
                if kind == "results":
                    text = "".join(f"{line} 0.{9 - number}\n" for line in text.splitlines() if "DontCare" not in line)
                (target / path.name).write_text(text)
                (both / kind / f"{number}{path.name}").write_text(text)
    merged = _together([tmp_path / "out0", tmp_path / "out1"])
    assert merged is not None
    folders = read_folders(both / "labels", both / "results")
    assert merged[0] == evaluate(folders.labels, folders.results)
    shutil.rmtree(tmp_path / "out1" / "labels")
    assert _together([tmp_path / "out0", tmp_path / "out1"]) is None
