"""Training that goes wrong: weights that are no numbers, foreign checkpoints, signals, full disks, odd environments."""

from __future__ import annotations

import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from torch import nn

from skd_core.config import TrainConfig, load_config
from skd_core.data.kitti import KittiDataset
from skd_core.errors import UserError
from skd_core.files import lock_folder
from skd_core.training.batch import Batch, collate
from skd_core.training.checkpoint import load_checkpoint, save_checkpoint
from skd_core.training.command import INTERRUPTED, run_training
from skd_core.training.dataset import TrainingSet
from skd_core.training.module import StepContext, TeacherStudent
from skd_core.training.processes import is_first, world_sizes
from skd_core.training.provenance import Origin
from skd_core.training.trainer import Trainer

LEFT = {"config.yaml", "checkpoint.pt", "metrics.jsonl", "tensorboard"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_dataset(tmp_path_factory.mktemp("data") / "train", 6)


@pytest.fixture(scope="module")
def file(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of two epochs of two steps."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny.make_config(root).model_dump(mode="json")))
    return path


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, Callable[[Trainer], object]]]:
    """What is done before a step: fill it with step -> what."""
    whole_step, actions = Trainer._train_step, {}

    def stepped(trainer: Trainer, batch: Batch) -> dict[str, float]:
        actions.get(trainer.step, lambda trainer: None)(trainer)
        return whole_step(trainer, batch)

    monkeypatch.setattr(Trainer, "_train_step", stepped)
    return actions


# -- NaN ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "item",
    [
        *(f"schedule.{key}={value}" for key in ("learning_rate", "weight_decay") for value in ("1e308", ".inf", "x")),
        "schedule.learning_rate=1e30", "schedule.gradient_clip=1e308", "method.points_weight=1e308",
        "method.gtm_alpha=.inf", "model.focal=1e308", "model.center_range=1e308", "data.camera_height=1e308",
        "data.workers=100000", "data.workers=99999999999999999999", "model.head_channels=99999999999999999999",
        "model.input_size=[1280, 99999999999999999999]", "schedule.epochs=99999999999999999999",
        "schedule.batch_size=99999999999999999999", "seed=99999999999999999999", "seed=-99999999999999999999",
        "schedule.warmup_epochs=1e308",
    ],
)  # fmt: skip
def test_values_that_no_run_can_have_are_refused_by_name(file: Path, item: str) -> None:
    key = item.partition("=")[0]
    with pytest.raises(UserError, match=rf"tiny\.yaml: '{key}"):
        load_config(file, [item])


def spoil(find: Callable[[Trainer], nn.Module], value: float) -> Callable[[Trainer], object]:
    """The next optimizer step leaves this value in a parameter or buffer of a module."""

    def act(trainer: Trainer) -> object:
        def fill(*_: object) -> None:
            with torch.no_grad():
                next(iter(find(trainer).state_dict().values())).fill_(value)

        return trainer.optimizer.optimizer.register_step_post_hook(fill)

    return act


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_after_a_step_stop_the_run(
    file: Path, tmp_path: Path, at_step: dict[int, Callable[[Trainer], object]], value: float
) -> None:
    """The step's own loss was finite; the checkpoint before stays, and nothing is exported."""
    at_step[3] = spoil(lambda trainer: trainer.raw.student.head_3d, value)
    with pytest.raises(UserError, match=r"step 3: student\.head_3d\S+ and 0 more weights are not finite"):
        run_training(file, [], tmp_path / "out", "cpu")
    assert {path.name for path in (tmp_path / "out").iterdir()} == LEFT
    state = load_checkpoint(tmp_path / "out" / "checkpoint.pt")
    assert state["step"] == 2
    assert all(bool(value.isfinite().all()) for part in ("model", "ema") for value in state[part].values())
    at_step.clear()
    assert run_training(file, [], tmp_path / "out", "cpu") == 0


def test_statistics_of_batch_norm_count_as_weights(
    file: Path, tmp_path: Path, at_step: dict[int, Callable[[Trainer], object]]
) -> None:
    def norms(trainer: Trainer) -> nn.Module:
        norm = next(m for m in trainer.raw.teacher.modules() if isinstance(m, nn.BatchNorm2d))  # type: ignore[union-attr]
        holder = nn.Module()
        holder.register_buffer("mean", norm.running_mean)
        return holder

    at_step[0] = spoil(norms, math.nan)
    with pytest.raises(UserError, match=r"step 0: teacher\.\S+running_mean"):
        run_training(file, [], tmp_path / "out", "cpu")


def test_running_means_that_are_no_numbers_are_never_written(root: Path, tmp_path: Path) -> None:
    trainer = Trainer(tiny.make_config(root), tmp_path, "cpu")
    trainer.save()
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with torch.no_grad():
        next(trainer.ema.student.head_3d.parameters()).fill_(math.nan)
    for write, what in ((trainer.save, "checkpoint"), (trainer.export, "weights file")):
        with pytest.raises(UserError, match=rf"running means are not finite; no {what} is written"):
            write()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not (tmp_path / "student.safetensors").exists()


# -- checkpoints with foreign parts ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def stopped(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Path]:
    """A run that has made one step, and its folder."""
    out = tmp_path_factory.mktemp("stopped")
    trainer = Trainer(tiny.make_config(root), out, "cpu")
    trainer.stop_requested = True
    assert not trainer.fit()
    return trainer, out


def change(*keys: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def act(state: dict[str, Any]) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = to

    return act


def first_weight(value: float) -> Callable[[dict[str, Any]], None]:
    return lambda state: next(iter(state["ema"].values())).fill_(value)


WEIGHT = "student.head_3d.fcs.depth.weight"
FOREIGN: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    **{f"without {part}": (lambda state, part=part: state.pop(part), f"has no '{part}'")
       for part in ("config", "step", "seconds", "model", "ema", "optimizer", "modulation", "rng", "means")},
    "negative step": (change("step", to=-5), "step -5 of 4"),
    "a step after the last": (change("step", to=5), "step 5 of 4"),
    "a step of 70 bits": (change("step", to=1 << 70), "step"),
    "a step that is a word": (change("step", to="1"), "'step' is a str"),
    "a step that is true": (change("step", to=True), "'step' is a bool"),
    "no time": (change("seconds", to=math.nan), "seconds nan"),
    "a list of weights": (change("model", to=[]), "'model' is a list"),
    "NaN": (first_weight(math.nan), "ema: .* is not finite"),
    "a weight too few": (lambda state: state["model"].pop(WEIGHT), WEIGHT),
    "a weight of another shape": (change("model", WEIGHT, to=torch.zeros(1)), WEIGHT),
    "a weight of another kind": (lambda state: state["ema"].update({WEIGHT: state["ema"][WEIGHT].long()}), WEIGHT),
    "a weight too many": (change("model", "extra", to=torch.zeros(1)), "extra is unknown"),
    "a weight that is none": (change("ema", WEIGHT, to="x"), WEIGHT),
    "another optimizer": (change("optimizer", to={"state": {}, "param_groups": []}), "is not an optimizer's state"),
    "other settings": (lambda state: state["optimizer"]["param_groups"][0].update(weight_decay=9.0), "weight_decay 9"),
    "other parameters": (lambda state: state["optimizer"]["param_groups"][0].update(params=[0]), "other parameters"),
    "moments of nothing": (change("optimizer", "state", 10**6, to={}), "other parameters"),
    "a moment of another shape": (change("optimizer", "state", 0, "exp_avg", to=torch.zeros(1)), "another shape"),
    "a moment that is NaN": (lambda state: state["optimizer"]["state"][0]["exp_avg"].fill_(math.nan), "not finite"),
    "a short random state": (change("rng", to=torch.zeros(3, dtype=torch.uint8)), "RNG|rng"),
    "a random state of floats": (change("rng", to=torch.zeros(5056)), "RNG|rng|Byte"),
    "modulation that is NaN": (change("modulation", "student_depth", to=math.nan), "student_depth is nan"),
    "modulation in words": (change("modulation", "student_depth", to="low"), "student_depth is 'low'"),
    "modulation of something else": (change("modulation", "weather", to=1.0), "modulation"),
    "means of nothing": (change("means", to={}), "'means'"),
    "means never counted": (change("means", "counts", to={}), "'means' counts other terms"),
    "a config that is none": (change("config", to={}), "config"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_checkpoint_with_foreign_parts_is_refused_by_name(
    stopped: tuple[Trainer, Path], tmp_path: Path, kind: str
) -> None:
    trainer, out = stopped
    spoil_state, message = FOREIGN[kind]
    state = load_checkpoint(out / "checkpoint.pt")
    del state["format"]
    spoil_state(state)
    save_checkpoint(tmp_path / "c.pt", state)
    with pytest.raises(UserError, match=rf"c\.pt: .*{message}") as caught:
        trainer.load(tmp_path / "c.pt")
    assert "\n" not in str(caught.value)


def test_the_checkpoint_itself_is_taken(stopped: tuple[Trainer, Path]) -> None:
    trainer, out = stopped
    trainer.load(out / "checkpoint.pt")
    assert trainer.step == 1


# -- one run a folder, and none resumes another's checkpoint ------------------------------------------------------
def test_a_run_begun_anew_puts_the_old_one_by(
    file: Path, tmp_path: Path, at_step: dict[int, Callable[[Trainer], object]]
) -> None:
    """Before its first step, so that the same command cannot resume the old run."""
    assert run_training(file, [], tmp_path, "cpu") == 0
    names = ("checkpoint.pt", "metrics.jsonl", "student.safetensors", "teacher.safetensors")
    old = {name: (tmp_path / name).read_bytes() for name in names}
    seen = []
    at_step[0] = lambda trainer: seen.extend(path.name for path in tmp_path.iterdir())
    at_step[1] = lambda trainer: os.kill(os.getpid(), signal.SIGINT)
    assert run_training(file, ["seed=5"], tmp_path, "cpu", resume=False) == INTERRUPTED
    assert not set(names) & set(seen)
    assert {name: (tmp_path / f"{name}.previous").read_bytes() for name in names} == old
    assert load_config(tmp_path / "config.yaml").seed == 5


def test_a_second_run_in_a_folder_is_refused(file: Path, tmp_path: Path) -> None:
    with lock_folder(tmp_path), pytest.raises(UserError, match="another command is writing there"):
        run_training(file, [], tmp_path, "cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_run_does_not_write_over_what_it_reads(root: Path, file: Path, tmp_path: Path) -> None:
    assert run_training(file, ["schedule.epochs=1"], tmp_path, "cpu") == 0
    own = tmp_path / "config.yaml"
    own.write_text("# mine\n" + own.read_text())
    text = own.read_text()
    assert run_training(own, [], tmp_path, "cpu") == 0  # resumes, and leaves it as it is
    weights = [f"initial.weights={tmp_path / 'student.safetensors'}"]
    for overrides, given in ((["seed=7"], own), (weights, file)):
        with pytest.raises(UserError, match="would write over an input"):
            run_training(given, overrides, tmp_path, "cpu", resume=False)
    assert own.read_text() == text
    assert not list(tmp_path.glob("*.previous"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_says_so_and_goes_on(
    file: Path, tmp_path: Path, at_step: dict[int, Callable[[Trainer], object]], capsys: Any, number: signal.Signals
) -> None:
    at_step[0] = lambda trainer: os.kill(os.getpid(), number)
    assert run_training(file, [], tmp_path, "cpu") == INTERRUPTED == 130
    assert "interrupted at step 1; run the same command to resume" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == LEFT - {"metrics.jsonl"}
    at_step.clear()
    assert run_training(file, [], tmp_path, "cpu", stop_after=0.0) == 0  # asked for: no interruption
    assert "stopped at step 2" in capsys.readouterr().out


def test_a_signal_that_is_ignored_stays_so(root: Path, tmp_path: Path) -> None:
    """``nohup skd_core train``."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        trainer = Trainer(tiny.make_config(root), tmp_path, "cpu")
        assert signal.SIGHUP not in trainer._catch_signals()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.parametrize("minutes", [-1.0, math.nan, math.inf])
def test_times_to_stop_after_are_checked(file: Path, tmp_path: Path, minutes: float) -> None:
    with pytest.raises(UserError, match=r"--stop-after"):
        run_training(file, [], tmp_path, "cpu", stop_after=minutes)


def test_a_full_disk_is_named_and_leaves_the_last_checkpoint(
    stopped: tuple[Trainer, Path], tmp_path: Path, full_disk: Callable[[int], None]
) -> None:
    trainer, out = stopped
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    full_disk(10_000)
    with pytest.raises(UserError, match=r"checkpoint\.pt: cannot write"):
        trainer.save()
    with pytest.raises(UserError, match=r"student\.safetensors: cannot write"):
        trainer.export()
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


# -- what is read when a run starts ------------------------------------------------------------------------------------
@pytest.mark.parametrize("what", ["val", "train"])
@pytest.mark.parametrize(
    ("place", "text"), [("label_2/000004.txt", "Car 0 0 0 1 2 x 4"), ("calib/000004.txt", "P2: 1 2 3")]
)
def test_labels_and_calibrations_are_read_when_a_run_starts(
    root: Path, tmp_path: Path, what: str, place: str, text: str
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(root, bad)
    (bad / "training" / place).write_text(text + "\n")
    sets = {"train": {"root": str(root)}, "val": {"root": str(root)}} | {what: {"root": str(bad)}}
    with pytest.raises(UserError, match=rf"bad/training/{place.replace('.', '[.]')}"):
        Trainer(tiny.make_config(root, data=sets, method={"teacher": False}), tmp_path / "out", "cpu")
    assert not (tmp_path / "out").exists()


def test_weights_tell_when_2d_boxes_are_projected_3d_labels() -> None:
    kitti, nuscenes = tiny.make_config("/data/street").data.sets[0], None
    nuscenes = kitti.model_copy(update={"kind": "nuscenes", "root": "/data/nuscenes"})
    weak = Origin.of_run([kitti], False, None)
    assert weak.learnt_from == "2D boxes, no 3D labels"
    mixed = Origin.of_run([kitti, nuscenes], False, weak)
    assert mixed.learnt_from == "2D boxes; those of nuscenes are projections of its 3D labels"
    later = Origin.of_run([kitti], False, mixed)
    assert later.learnt_from == f"2D boxes, no 3D labels; its start from: {mixed.learnt_from}"
    assert Origin.of_run([nuscenes], True, None).learnt_from == "3D labels (supervised)"


# -- several processes -------------------------------------------------------------------------------------------------
TORCHRUN = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "3", "LOCAL_RANK": "1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORLD_SIZE", "abc"), ("WORLD_SIZE", ""), ("WORLD_SIZE", "-2"), ("WORLD_SIZE", "0"), ("WORLD_SIZE", "3"),
        ("WORLD_SIZE", "9" * 30), ("LOCAL_WORLD_SIZE", "0"), ("LOCAL_WORLD_SIZE", "1.5"), ("RANK", "x"), ("RANK", "4"),
        ("RANK", None), ("LOCAL_RANK", "2"), ("LOCAL_RANK", None), ("MASTER_PORT", "here"), ("MASTER_PORT", None),
    ],
)  # fmt: skip
def test_an_environment_that_is_not_torchruns_is_named(
    monkeypatch: pytest.MonkeyPatch, root: Path, tmp_path: Path, name: str, value: str | None
) -> None:
    for variable, good in TORCHRUN.items():
        monkeypatch.setenv(variable, good)
    assert world_sizes() == (4, 2)
    assert not is_first()
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf"^environment: .*{name}"):
        Trainer(tiny.make_config(root), tmp_path, "cpu")


def gradients(model: TeacherStudent, batches: list[Batch], objects: float) -> dict[str, torch.Tensor]:
    """The mean over processes, each with its batch, of the gradients of the loss."""
    model.zero_grad()
    for batch in batches:
        (torch.stack(list(model(batch, StepContext(num_objects=objects)).values())).sum() / len(batches)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def batch_of(root: Path, config: TrainConfig, indices: list[int]) -> Batch:
    classes = config.model.classes
    dataset = TrainingSet(KittiDataset(root, None, classes, "depth"), config)
    return collate([dataset[0, index, 0] for index in indices], classes)


@pytest.fixture(scope="module")
def few(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames with 0, 1, 0, 0, and many objects."""
    few = tmp_path_factory.mktemp("few") / "few"
    shutil.copytree(root, few)
    for number, kept in enumerate((0, 1, 0, 0)):
        path = few / "training" / "label_2" / f"{number:06d}.txt"
        objects = [line for line in path.read_text().splitlines(True) if not line.startswith("DontCare")]
        path.write_text("".join(objects[:kept]))
    return few


@pytest.mark.parametrize("rho", [1.0, 1.2, 10.0])
@pytest.mark.parametrize("pair", [(0, 1), (2, 3), (0, 4)], ids=["0 and 1 object", "no object", "0 and many"])
def test_the_mean_gradient_of_two_processes_is_that_of_one(few: Path, pair: tuple[int, int], rho: float) -> None:
    """As the trainer calls it: all objects, at least 1, by the number of processes. GTM scales with and without any."""
    config = tiny.make_config(few, method={"distillation": "l1"}, schedule={"freeze_norm": True})
    torch.manual_seed(0)
    model = TeacherStudent(config).eval()
    model.modulation.errors = {"student_depth": rho, "teacher_depth": 1.0}
    whole = batch_of(few, config, list(pair))
    total = max(len(whole.boxes), 1)
    one = gradients(model, [whole], total)
    two = gradients(model, [batch_of(few, config, [index]) for index in pair], total / 2)
    assert one.keys() == two.keys()
    a, b = (torch.cat([part[name].flatten().double() for name in one]) for part in (one, two))
    assert a.norm() > 0
    assert (a - b).norm() / a.norm() < 1e-4


def test_modulation_scales_the_depth_maps_gradient_with_and_without_objects(few: Path) -> None:
    """k_D = .2 on what L_depth gives back to the shared features, whatever the batch holds; the teacher's own: all."""
    config = tiny.make_config(few)
    model = TeacherStudent(config).eval()
    for index in (0, 4):
        batch = batch_of(few, config, [index])
        found = {}
        for rho in (1.0, 10.0):
            model.modulation.errors = {"student_depth": rho, "teacher_depth": 1.0}
            model.zero_grad()
            model(batch, StepContext())["teacher/depth_map"].backward()
            found[rho] = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        assert any(name.startswith("student.backbone") for name in found[1.0])
        for name, gradient in found[1.0].items():
            factor = 1.0 if name.startswith("teacher.") else 0.2
            torch.testing.assert_close(found[10.0][name], factor * gradient, rtol=1e-4, atol=1e-9)
