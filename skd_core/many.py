"""`skd_core many`: one command over many recordings, spread over the cores of a machine or of a Ray cluster [ours].

Each recording is a task of Ray's and a process of its own. A task whose worker is lost with its machine is done again
elsewhere; commands resume or replace what the lost one has left. The files are those of the commands themselves, so
machines need the same paths (a shared file system) and this package.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from skd_core.cluster import end_with_parent, last_line, spread, wait
from skd_core.console import output_console
from skd_core.errors import UserError
from skd_core.evaluation.kitti import Scores, evaluate, label_counts, read_folders
from skd_core.evaluation.report import headline_table
from skd_core.files import check_outputs, write_atomic

COMMANDS = ("autolabel", "bag-eval", "depth", "lift", "predict", "pseudo")
"""What can be done for each recording."""


@dataclass(frozen=True)
class Task:
    """One recording's command.

    Attributes:
        name: of the recording, unique.
        words: of the command line, without the program.
        folder: to run it in.
        cores: threads that it may use.
    """

    name: str
    words: tuple[str, ...]
    folder: str
    cores: int


@dataclass(frozen=True)
class Outcome:
    """What became of a task: exit status, its last lines on stdout and stderr, and how long it took, seconds."""

    status: int
    said: str
    error: str
    seconds: float


def tasks_of(command: str, recordings: Sequence[Path], cores: int) -> list[Task]:
    """The command lines.

    Args:
        command: such as "bag-eval {} --out out/{name}"; {} stands for a recording's path, {name} for its name.
        recordings: files and folders.

    Raises:
        UserError: another command, a placeholder is missing, a recording is missing, or two have one name.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"many: {command!r}: {error}") from None
    words = words[words[:1] == ["skd_core"] :]
    if not words or words[0] not in COMMANDS:
        raise UserError(f"many: {command!r}: begin with one of {', '.join(COMMANDS)}")
    if not any("{}" in word for word in words):
        raise UserError(f"many: {command!r}: write {{}} where the recording's path belongs")
    words = [_expanded(word) for word in words]
    for option in ("--out", "--json"):
        for value in _values(words, option):
            if len(recordings) > 1 and "{name}" not in value and "{}" not in value:
                raise UserError(
                    f"many: {command!r}: all would write to one {option}; write {{name}} for the recording's name"
                )
    places = [Path(os.path.abspath(path)) for path in recordings]
    names = [place.name if place.is_dir() else place.stem for place in places]
    for path, name in zip(recordings, names, strict=True):
        if not os.path.exists(path):
            raise UserError(f"{path}: no such recording")
        if names.count(name) > 1:
            raise UserError(f"{path}: another recording is called {name} too; run them by two commands")
    return [
        Task(
            name,
            tuple(word.replace("{}", str(place)).replace("{name}", name) for word in words),
            os.getcwd(),
            cores,
        )
        for place, name in zip(places, names, strict=True)
    ]


def _expanded(word: str) -> str:
    """With ~ as a shell makes it: in quotes it does not."""
    option, equals, value = word.partition("=")
    return f"{option}={os.path.expanduser(value)}" if equals and option.startswith("--") else os.path.expanduser(word)


def _values(words: Sequence[str], option: str) -> list[str]:
    """What an option is set to, as two words or by =."""
    return [after for word, after in itertools.pairwise(words) if word == option] + [
        word.removeprefix(f"{option}=") for word in words if word.startswith(f"{option}=")
    ]


def run_task(task: Task) -> Outcome:
    """Run one command as a process that ends with this one."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as error:
        process = subprocess.Popen(
            [sys.executable, "-m", "skd_core.cli", *task.words],
            cwd=task.folder,
            env={**os.environ, "OMP_NUM_THREADS": str(task.cores)},
            stdout=said,
            stderr=error,
            preexec_fn=end_with_parent,
        )
        status = wait(process)
        said.seek(0)
        error.seek(0)
        lines = [last_line(file.read().decode("utf-8", "replace")) for file in (said, error)]
    if status < 0:
        lines[1] = f"killed by signal {-status}" + (", perhaps for lack of memory" if status == -signal.SIGKILL else "")
    return Outcome(status, lines[0], lines[1], time.monotonic() - start)


def run_many(
    command: str,
    recordings: Sequence[Path],
    address: str | None,
    cores: int,
    gpus: float = 0,
    json_file: Path | None = None,
) -> None:
    """Run a command for each recording, print what each said, and merge the scores of bag-eval.

    The JSON file gets for each recording its name, command, exit status, seconds and last lines; of bag-eval its
    scores too, and under "kitti" the AP of all recordings together, where all hold label lines. It is written after an
    interrupt too: the status of what had not ended is null.

    Args:
        command: see :func:`tasks_of`; address, cores, gpus: see :func:`skd_core.cluster.spread`.

    Raises:
        UserError: see there; or a recording failed: the others are done first, and the message names the first.
    """
    check_outputs([json_file], recordings)
    tasks = tasks_of(command, recordings, cores)
    outcomes: dict[int, Outcome] = {}
    console = output_console()
    try:
        with contextlib.closing(spread(run_task, tasks, address, cores, gpus, cure="lower --cores")) as ended:
            for number, found in tqdm(ended, total=len(tasks), unit="recording", disable=None):
                outcome = outcomes[number] = found if isinstance(found, Outcome) else Outcome(-1, "", found, 0.0)
                said = f"failed: {outcome.error}" if outcome.status else outcome.said
                with tqdm.external_write_mode():
                    console.print(f"{tasks[number].name}: {said}", soft_wrap=True, markup=False)
    except BaseException:
        if outcomes:
            _write(json_file, _result(tasks, outcomes))
        raise
    result = _result(tasks, outcomes)
    if tasks[0].words[0] == "bag-eval":
        folders = [_out_of(task) for number, task in enumerate(tasks) if outcomes[number].status == 0]
        if (together := _together(folders)) is not None:
            result["kitti"] = together[0]
            console.print(f"{len(folders)} recordings together:")
            console.print(headline_table(*together))
    _write(json_file, result)
    faults = [f"{task.name}: {outcomes[n].error}" for n, task in enumerate(tasks) if outcomes[n].status]
    if faults:
        raise UserError(f"{len(faults)} of {len(tasks)} recordings failed, first {faults[0]}")


def _write(json_file: Path | None, result: dict[str, Any]) -> None:
    if json_file is not None:
        write_atomic(json_file, json.dumps(result, indent=1) + "\n")


def _result(tasks: Sequence[Task], outcomes: Mapping[int, Outcome]) -> dict[str, Any]:
    return {"recordings": [_row(task, outcomes.get(number)) for number, task in enumerate(tasks)]}


def _row(task: Task, outcome: Outcome | None) -> dict[str, Any]:
    row: dict[str, Any] = {"name": task.name, "command": shlex.join(task.words)}
    row |= {"status": None} if outcome is None else asdict(outcome)
    if outcome is not None and outcome.status == 0 and task.words[0] == "bag-eval":
        row["scores"] = json.loads((_out_of(task) / "scores.json").read_text(encoding="utf-8"))
    return row


def _out_of(task: Task) -> Path:
    """Folder of a command's results."""
    return Path(task.folder) / _values(task.words, "--out")[-1]


def _together(folders: Sequence[Path]) -> tuple[Scores, dict[str, list[int]]] | None:
    """AP of all recordings as of one data set; None where one holds no label lines."""
    if not folders or not all((folder / "labels").is_dir() for folder in folders):
        return None
    read = [read_folders(folder / "labels", folder / "results") for folder in folders]
    labels = [frame for part in read for frame in part.labels]
    return evaluate(labels, [frame for part in read for frame in part.results]), label_counts(labels)
