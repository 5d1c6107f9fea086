"""Every command x every kind of bad input: exit code 2, one line that names the thing, nothing written, no waiting."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import typer
import yaml
from PIL import Image
from yolox_like import square_finder

from skd_core.cli import EXTRAS, app
from skd_core.command_line import run_app
from skd_core.data.bag import Frame, write_frames
from skd_core.inference.detector import Detector

BAD = "BAD"

COMMANDS: dict[str, str] = {
    "synth layouts": "synth OUT --frames 1 --layouts BAD",
    "depth images": "depth BAD --model ONNX --kind metric --out OUT",
    "depth model": "depth IMAGE --model BAD --out OUT",
    "autolabel source": "autolabel BAD --detector ONNX --out OUT",
    "autolabel detector": "autolabel IMAGES --camera CALIB --detector BAD --out OUT",
    "autolabel camera": "autolabel IMAGES --camera BAD --detector ONNX --out OUT",
    "pseudo": "pseudo BAD",
    "train": "train BAD --out OUT",
    "ablate": "ablate BAD --out OUT",
    "predict images": "predict BAD --camera CALIB --weights WEIGHTS --out OUT",
    "predict camera": "predict IMAGE --camera BAD --weights WEIGHTS --out OUT",
    "predict weights": "predict IMAGE --camera CALIB --weights BAD --out OUT",
    "predict boxes": "predict IMAGE --camera CALIB --weights WEIGHTS --boxes BAD --out OUT",
    "predict detector": "predict IMAGE --camera CALIB --weights WEIGHTS --detector BAD --out OUT",
    "lift images": "lift BAD --camera CALIB --boxes LABELS --out OUT",
    "lift camera": "lift IMAGE --camera BAD --boxes LABELS --out OUT",
    "lift boxes": "lift IMAGE --camera CALIB --boxes BAD --out OUT",
    "bench weights": "bench --quick --weights BAD",
    "predict-nuscenes root": "predict-nuscenes BAD --weights WEIGHTS --out OUT",
    "predict-nuscenes weights": "predict-nuscenes TREE --weights BAD --out OUT",
    "bag-make source": "bag-make kitti BAD OUT",
    "bag-make images": "bag-make folder BAD OUT --camera CALIB",
    "bag-make camera": "bag-make folder IMAGES OUT --camera BAD",
    "bag-make nuscenes": "bag-make nuscenes BAD OUT",
    "bag-eval bag": "bag-eval BAD --weights WEIGHTS --out OUT",
    "bag-eval weights": "bag-eval BAG --weights BAD --out OUT",
    "bag-eval labels": "bag-eval BAG --weights WEIGHTS --labels BAD --out OUT",
    "bag-eval boxes": "bag-eval BAG --weights WEIGHTS --boxes BAD --out OUT",
    "show source": "show BAD --out OUT",
    "show weights": "show TREE --weights BAD --out OUT",
    "show results": "show TREE --results BAD --out OUT",
    "show labels": "show BAG --labels BAD --out OUT",
    "plot": "plot BAD --out OUT",
    "eval kitti labels": "eval kitti --labels BAD --results LABELS --json OUT",
    "eval kitti results": "eval kitti --labels LABELS --results BAD --json OUT",
    "eval real": "eval real BAD --weights WEIGHTS --json OUT",
    "eval real weights": "eval real TREE --weights BAD --json OUT",
    "eval nuscenes root": "eval nuscenes --root BAD --results SUBMISSION --json OUT",
    "eval nuscenes results": "eval nuscenes --root TREE --results BAD --json OUT",
    "export weights": "export BAD --out OUT.onnx",
    "export images": "export WEIGHTS --out OUT.onnx --check BAD --camera CALIB",
    "export camera": "export WEIGHTS --out OUT.onnx --check IMAGE --camera BAD",
    "doctor": "doctor --weights BAD --json OUT",
}
"""What is bad: the words of the command. Those of a command that is not there are left out."""


def _picture(path: Path) -> None:
    Image.new("RGB", (8, 8)).save(path, format="PNG")


KINDS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "empty": lambda path: path.touch(),
    "folder": lambda path: path.mkdir(),
    "words": lambda path: path.write_text("these are words: [\n"),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 8),
    "not UTF-8": lambda path: path.write_bytes(b"Car \xff\xfe 0 0\n"),
    "picture": _picture,
    "loop": lambda path: path.symlink_to(path.name),
    "pipe": lambda path: os.mkfifo(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
}
PICTURES = ("depth images", "predict images", "lift images", "autolabel source", "bag-make images", "export images")
"""What takes a picture."""
NOTES = {"out/depth.json", "out/autolabel.json"}
"""What a folder is filled with; written first, so that the same command can resume."""
NAMES = {
    "line break": "first\nsecond",
    "markup": "p[/x] [bold]",
    "long": "n" * 300,
    "not UTF-8": "\udcff",
    "dash": "é ü",
}


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One good input of every kind."""
    folder = tmp_path_factory.mktemp("good")
    tree = tiny.make_dataset(folder / "tree", frames=2)
    training = tree / "training"
    Detector.random(seed=0).save(folder / "tiny.safetensors")
    image = np.zeros((tiny.HEIGHT, tiny.WIDTH, 3), np.uint8)
    write_frames(folder / "bag", [Frame(image, tiny.kitti_camera(tiny.WIDTH, tiny.HEIGHT), 10**9)])
    square_finder(folder / "one.onnx")
    box = {"sample_token": "a", "translation": [0, 0, 0], "size": [1, 1, 1], "rotation": [1, 0, 0, 0]}
    box |= {"velocity": [0, 0], "detection_name": "car", "detection_score": 1, "attribute_name": ""}
    (folder / "submission.json").write_text(json.dumps({"meta": {}, "results": {"a": [box]}}))
    first = sorted((training / "image_2").iterdir())[0]
    return {
        "TREE": tree, "IMAGES": training / "image_2", "IMAGE": first, "CALIB": training / "calib" / f"{first.stem}.txt",
        "LABELS": training / "label_2", "WEIGHTS": folder / "tiny.safetensors", "BAG": folder / "bag",
        "ONNX": folder / "one.onnx", "SUBMISSION": folder / "submission.json",
    }  # fmt: skip


def commands_there() -> set[str]:
    group = typer.main.get_command(app)
    return set(group.commands) | {f"eval {name}" for name in group.commands["eval"].commands}


def chosen() -> list[str]:
    return [name for name, words in COMMANDS.items() if words.split()[0] in commands_there()]


def test_every_command_is_in_the_table() -> None:
    spoken_of = {" ".join(words.split()[: 2 if words.startswith("eval") else 1]) for words in COMMANDS.values()}
    own_tests = {"many"}  # a recording's faults are those of the command that it runs
    assert commands_there() - {"eval"} - own_tests <= spoken_of


def files_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}


def said_by(command: str, bad: str, out: Path, things: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> str:
    """What the command says of bad input, in its one line."""
    words = [bad if w == BAD else str(out) if w == "OUT" else str(things.get(w, w)) for w in COMMANDS[command].split()]
    capfd.readouterr()
    code = run_app(app, EXTRAS, words)
    printed = capfd.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("skd_core: error: ")]
    assert code == 2, (command, printed)
    assert len(lines) == 1, printed.err
    assert printed.err.rstrip().endswith(lines[0])
    assert "Traceback" not in printed.err
    return lines[0]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", chosen())
def test_bad_input_is_one_line(command: str, things: dict[str, Path], tmp_path: Path, capfd) -> None:
    for kind, make in KINDS.items():
        if kind == "picture" and command in PICTURES:
            continue
        folder = tmp_path / kind.replace(" ", "_")
        folder.mkdir()
        bad = folder / "bad_input"
        make(bad)
        before = files_under(folder)
        said = said_by(command, str(bad), folder / "out", things, capfd)
        assert "bad_input" in said, (kind, said)
        assert files_under(folder) - NOTES == before, kind
        shutil.rmtree(folder)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", chosen())
def test_a_missing_input_of_an_odd_name_is_one_line(command: str, things: dict[str, Path], tmp_path, capfd) -> None:
    for kind, name in NAMES.items():
        said = said_by(command, str(tmp_path / name), tmp_path / "out", things, capfd)
        start = name.encode("unicode_escape", "surrogatepass").decode() if kind in ("line break", "not UTF-8") else name
        assert start[:20] in said, (kind, said)
    assert files_under(tmp_path) == set()


@pytest.mark.parametrize("out", ["", ".", "/", "/dev/null", "n" * 300, "file/under"])
@pytest.mark.parametrize("command", ["eval kitti --labels LABELS --results LABELS --json", "plot RUN --out"])
def test_a_bad_output_is_one_line(command: str, out: str, things, tmp_path, capfd, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    words = [str(tmp_path) if w == "RUN" else str(things.get(w, w)) for w in command.split()]
    code = run_app(app, EXTRAS, [*words, out])
    printed = capfd.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("skd_core: error: ")]
    assert (code, len(lines)) == (2, 1), printed
    assert (tmp_path / "file").read_text() == "kept"
    assert files_under(tmp_path) == {"file", "metrics.jsonl"}


@pytest.mark.parametrize(
    "words",
    ["synth OUT --frames 99999999999999999999", "synth OUT --seed 99999999999999999999", "synth OUT --frames 0",
     "synth OUT --frames -1", "synth OUT --size 99999999999999999999x1", "synth OUT --size 0x0", "synth OUT --size axb",
     "synth OUT --size 1000000x1000000", "synth OUT --depth-noise nan", "synth OUT --depth-noise inf",
     "synth OUT --seed -1 --frames 1", "show TREE --out OUT --range inf", "show TREE --out OUT --range 1e9",
     "show TREE --out OUT --range 0", "show TREE --out OUT --frames 99999999999999999999999",
     "predict IMAGE --camera CALIB --weights WEIGHTS --out OUT --threshold nan",
     "train CONFIG --out OUT --seed 99999999999999999999", "train CONFIG --out OUT --set seed=99999999999999999999",
     "train CONFIG --out OUT --stop-after inf", "bag-make kitti TREE OUT --rate 0",
     "bag-make kitti TREE OUT --rate nan", "bag-make kitti TREE OUT --rate 1e-300"],
)  # fmt: skip
@pytest.mark.timeout(120)
def test_numbers_out_of_range_are_one_line(words: str, things, tmp_path, capfd) -> None:
    config = tmp_path / "train.yaml"
    config.write_text(yaml.safe_dump(tiny.make_config(things["TREE"]).model_dump(mode="json")))
    given = {**things, "OUT": tmp_path / "out", "CONFIG": config}
    code = run_app(app, EXTRAS, [str(given.get(word, word)) for word in words.split()])
    printed = capfd.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("skd_core: error: ")]
    assert (code, len(lines)) == (2, 1), printed
    assert files_under(tmp_path) == {"train.yaml"}
