"""One command over many recordings: the command lines, a real Ray of two workers, a lost worker, merged scores."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from typer.testing import CliRunner

from skd_core.cli import app
from skd_core.cluster import spread
from skd_core.errors import UserError
from skd_core.evaluation.kitti import evaluate, read_folders
from skd_core.many import _together, tasks_of


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


@pytest.mark.parametrize(
    ("command", "recordings", "said"),
    [
        ("train {} --out out/{name}", ["a"], "begin with one of autolabel, bag-eval"),
        ("", ["a"], "begin with one of"),
        ("lift 'a", ["a"], "No closing quotation"),
        ("lift --out out/{name}", ["a"], "write {} where"),
        ("lift {} --out out", ["a", "b"], "write {name} for"),
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
    with pytest.raises(UserError, match="10000 CPU cores for each: the largest machine has"):
        next(spread(square, [0], None, 10000))
    with pytest.raises(UserError, match="100 GPUs for each: the largest machine has"):
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
