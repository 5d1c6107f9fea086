"""Training: no 3D label gets in, runs resume to the bit, processes add up, each part works (method: Losses)."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from torch import Tensor

from skd_core.boxes import Boxes2D
from skd_core.camera import project
from skd_core.config import MethodConfig, ScheduleConfig, TrainConfig
from skd_core.data.kitti import KittiDataset
from skd_core.data.sets import build_dataset
from skd_core.errors import UserError
from skd_core.inference.detector import Detector
from skd_core.inference.weights import digest, load_weights
from skd_core.models.decode import Prediction3D
from skd_core.models.heads import Maps2D, Raw3D
from skd_core.models.student import Rois
from skd_core.training.batch import Batch, collate
from skd_core.training.checkpoint import load_checkpoint, save_checkpoint
from skd_core.training.dataset import TrainingSet, jitter_boxes, training_loader
from skd_core.training.evaluate import predict_dataset
from skd_core.training.modulation import ERROR_NAMES, Modulation, scale_gradient
from skd_core.training.module import StepContext, TeacherStudent
from skd_core.training.sampler import EpochSampler
from skd_core.training.schedule import learning_rate, ramp
from skd_core.training.trainer import Trainer

FRAMES = 6
TIMES = {"seconds", "images_per_second"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_dataset(tmp_path_factory.mktemp("data") / "train", FRAMES)


def run(config: TrainConfig, out: Path, stop_at: int | None = None, resume: bool = True) -> bool:
    """Train; as if a signal came after step ``stop_at``."""
    trainer = Trainer(config, out, "cpu", resume)
    trainer.raw.loss_2d.register_forward_hook(draw)
    if stop_at is not None:
        ask_to_stop(trainer, stop_at)
    return trainer.fit()


def draw(module: object, inputs: object, output: object) -> None:
    """Take from the random stream in every step, as a dropout layer would."""
    torch.rand(1)


def ask_to_stop(trainer: Trainer, step: int) -> None:
    whole_step = trainer._train_step

    def counted(batch: Batch) -> dict[str, float]:
        terms = whole_step(batch)
        trainer.stop_requested = trainer.step + 1 >= step
        return terms

    trainer._train_step = counted  # type: ignore[method-assign]


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two nested states differ in any bit, times aside."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = (a.keys() | b.keys()) - TIMES
        return [d for k in keys for d in differences(a.get(k), b.get(k), f"{path}/{k}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{path}/{i}")]
    same = torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
    return [] if same else [path]


def reports(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def batch_of(root: Path, config: TrainConfig | None = None, indices: tuple[int, ...] = (0, 1, 2)) -> Batch:
    config = config or tiny.make_config(root)
    source = KittiDataset(root, None, config.model.classes, config.data.depth_dir, config.method.supervised)
    dataset = TrainingSet(source, config)
    return collate([dataset[0, i, 0] for i in indices], config.model.classes)


# -- no 3D label reaches training --------------------------------------------------------------------------------------
def with_garbage(root: Path, to: Path) -> Path:
    """The data set with everything but class names and 2D boxes replaced by text."""
    shutil.copytree(root, to)
    shutil.rmtree(to / "training" / "depth_true")
    for path in (to / "training" / "label_2").iterdir():
        lines = [line.split() for line in path.read_text().splitlines()]
        kept = [[w[0], "no", "3D", "label", *w[4:8], *["garbage"] * 7] for w in lines]
        path.write_text("".join(" ".join(words) + "\n" for words in kept))
    for path in (to / "training" / "calib").iterdir():
        path.write_text("".join(line for line in path.read_text().splitlines(True) if line.startswith("P2:")))
    return to


METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "paper": {"student_targets": "teacher"},
    "mdn_proj": {"teacher": False},
    "direct_targets": {"teacher": False, "direct_targets": True},
}


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_no_3d_label_reaches_training(root: Path, tmp_path: Path, method: str) -> None:
    garbage = with_garbage(root, tmp_path / "garbage")
    digests = []
    for number, folder in enumerate((root, garbage)):
        config = tiny.make_config(folder, method=METHODS[method])
        assert run(config, tmp_path / str(number))
        state = load_checkpoint(tmp_path / str(number) / "checkpoint.pt")
        digests.append([digest(state["model"]), digest(state["ema"])])
    assert digests[0] == digests[1]
    exported = [load_weights(tmp_path / n / "student.safetensors")[1]["sha256"] for n in "01"]
    assert exported[0] == exported[1]


def test_the_proof_above_can_fail(root: Path, tmp_path: Path) -> None:
    """Supervised training does read the 3D columns: garbage stops it, other numbers give other weights."""
    supervised = {"supervised": True, "teacher": False}
    garbage = with_garbage(root, tmp_path / "garbage")
    with pytest.raises(UserError, match=r"label_2/\d+\.txt:1: "):
        run(tiny.make_config(garbage, method=supervised), tmp_path / "stopped")
    moved = tmp_path / "moved"
    shutil.copytree(root, moved)
    for path in (moved / "training" / "label_2").iterdir():
        lines = [line.split() for line in path.read_text().splitlines()]
        far = [[*w[:13], str(2 * float(w[13])), w[14]] if w[0] != "DontCare" else w for w in lines]
        path.write_text("".join(" ".join(words) + "\n" for words in far))
    digests = []
    for number, folder in enumerate((root, moved)):
        assert run(tiny.make_config(folder, method=supervised), tmp_path / str(number))
        digests.append(load_weights(tmp_path / str(number) / "student.safetensors")[1]["sha256"])
    assert digests[0] != digests[1]


def test_validation_changes_nothing_but_the_report(root: Path, tmp_path: Path) -> None:
    """The last weights are kept whatever the AP: choosing by AP would use 3D labels."""
    data = {"train": {"root": str(root)}, "depth_dir": "depth"}
    assert run(tiny.make_config(root), tmp_path / "without")
    assert run(tiny.make_config(root, data=data | {"val": {"root": str(root)}}), tmp_path / "with")
    a, b = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("without", "with"))
    assert differences(a, b) == ["/config/data/val"]
    assert "ap" in json.dumps(reports(tmp_path / "with")[-1])


# -- resume ------------------------------------------------------------------------------------------------------------
def resumable(root: Path, **schedule: Any) -> TrainConfig:
    data = {"train": {"root": str(root)}, "depth_dir": "depth", "val": {"root": str(root)}}
    return tiny.make_config(root, data=data, schedule={"batch_size": 2, **schedule})


@pytest.fixture(scope="module")
def uninterrupted(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 epochs of 3 steps."""
    out = tmp_path_factory.mktemp("run") / "whole"
    assert run(resumable(root), out)
    return out


@pytest.mark.parametrize("stops", [(1,), (3,), (2, 4, 5)], ids=str)
def test_interrupted_and_resumed_is_uninterrupted(
    root: Path, tmp_path: Path, uninterrupted: Path, stops: tuple[int, ...]
) -> None:
    """Model, optimiser, running means, modulation, random streams, reports: to the bit, also at an epoch's end."""
    for stop in stops:
        assert not run(resumable(root), tmp_path, stop)
        assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == stop
        torch.rand(7)  # whatever else the process does in between
    assert run(resumable(root), tmp_path)
    whole, pieces = (load_checkpoint(out / "checkpoint.pt") for out in (uninterrupted, tmp_path))
    assert differences(whole, pieces) == []
    assert {"model", "ema", "optimizer", "modulation", "rng", "step"} <= whole.keys()
    assert whole["modulation"]  # it has moved
    assert differences(reports(uninterrupted), reports(tmp_path)) == []
    assert len(reports(tmp_path)) == 2
    a, b = (load_weights(out / "student.safetensors")[1] for out in (uninterrupted, tmp_path))
    assert a == b


def test_a_checkpoint_whose_config_has_earlier_names_is_resumed(
    root: Path, tmp_path: Path, uninterrupted: Path
) -> None:
    assert not run(resumable(root), tmp_path, 5)
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    method, augment, data = (state["config"][section] for section in ("method", "augment", "data"))
    earlier = {"teacher_and_pseudo": "best", "teacher": "paper"}
    method["mode"], method["slow_teacher"] = earlier[method.pop("student_targets")], method.pop("ema_teacher")
    augment["own_boxes"], data["ruler"] = method.pop("roi_source") == "predicted", data.pop("test")
    save_checkpoint(tmp_path / "checkpoint.pt", {k: v for k, v in state.items() if k != "format"})
    assert run(resumable(root), tmp_path)
    assert differences(*(load_checkpoint(out / "checkpoint.pt") for out in (uninterrupted, tmp_path))) == []
    method["mode"] = "paper"
    save_checkpoint(tmp_path / "checkpoint.pt", {k: v for k, v in state.items() if k != "format"})
    with pytest.raises(UserError, match=r"another config \(method\.student_targets\)"):
        run(resumable(root), tmp_path)


def test_the_exported_teacher_is_the_one_that_training_measures(root: Path, uninterrupted: Path) -> None:
    """`teacher.safetensors` predicts by itself what validation says of the teacher, box for box."""
    config = resumable(root)
    state = load_checkpoint(uninterrupted / "checkpoint.pt")
    both = TeacherStudent(config)
    both.load_state_dict(state["ema"])
    deployed = Detector.load(uninterrupted / "teacher.safetensors", "cpu")
    assert deployed.metadata["network"] == "dsn"
    assert Detector.load(uninterrupted / "student.safetensors", "cpu").metadata["network"] == "mdn"
    fx, fy = deployed.metadata["focal"]
    dataset = build_dataset(config.data.sets[0], config.model.classes)
    measured = predict_dataset(both, dataset, torch.device("cpu"), (fx, fy), teacher=True, threshold=0.01)
    students = predict_dataset(both, dataset, torch.device("cpu"), (fx, fy), threshold=0.01)
    assert sum(map(len, measured)) > 0
    for index, expected in enumerate(measured):
        sample = dataset[index]
        found = deployed.predict(sample.image.permute(1, 2, 0).numpy(), sample.camera, 0.01)
        assert len(found) == len(expected)
        torch.testing.assert_close(found.center, expected.center, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.xyxy, expected.xyxy, rtol=1e-4, atol=1e-2)
        given = Boxes2D(found.xyxy, found.labels, torch.ones(len(found)))
        placed = deployed.predict(sample.image.permute(1, 2, 0).numpy(), sample.camera, 0.0, boxes2d=given)
        assert len(placed) == len(found)
    centers = [torch.cat([boxes.center for boxes in results]) for results in (measured, students)]  # two networks
    assert centers[0].shape != centers[1].shape or not torch.allclose(*centers)


def test_a_crash_loses_no_more_than_what_followed_the_checkpoint(
    root: Path, tmp_path: Path, uninterrupted: Path
) -> None:
    """Reports beyond the checkpoint are dropped, and so is a line that was being written."""
    assert not run(resumable(root), tmp_path, 3)
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"epoch": 2, "step": 6, "loss": 0}\n{"epoch": 3, "st')
    assert run(resumable(root), tmp_path)
    assert differences(reports(uninterrupted), reports(tmp_path)) == []


def test_a_complete_run_is_complete(root: Path, tmp_path: Path, uninterrupted: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "again")
    assert run(resumable(root), tmp_path / "again")
    whole, again = (load_checkpoint(out / "checkpoint.pt") for out in (uninterrupted, tmp_path / "again"))
    assert differences(whole, again) == []


def test_resume_with_another_config_names_the_key(root: Path, tmp_path: Path, uninterrupted: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "copy")
    with pytest.raises(UserError, match=r"checkpoint\.pt: .*schedule\.learning_rate"):
        Trainer(resumable(root, learning_rate=1e-5), tmp_path / "copy", "cpu")


def test_a_run_begun_anew_leaves_nothing_of_the_old_one(root: Path, tmp_path: Path, uninterrupted: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "copy")
    with open(tmp_path / "copy" / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write("damaged\n" * 2)
    assert not Trainer(resumable(root, learning_rate=1e-5), tmp_path / "copy", "cpu", resume=False).step
    assert not (tmp_path / "copy" / "student.safetensors").exists()
    assert not (tmp_path / "copy" / "metrics.jsonl").exists()


def test_a_first_report_that_was_cut_does_not_stop_a_run(root: Path, tmp_path: Path, uninterrupted: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "copy")
    (tmp_path / "copy" / "metrics.jsonl").write_text('{"epoch": 1, "st')
    assert Trainer(resumable(root), tmp_path / "copy", "cpu").step > 0
    assert not (tmp_path / "copy" / "metrics.jsonl").exists()


def test_weights_tell_when_their_start_had_3d_labels(root: Path, tmp_path: Path) -> None:
    runs = {
        "weak": ({}, None),
        "supervised": ({"method": {"supervised": True, "teacher": False}}, None),
        "after": ({}, "supervised"),
        "again": ({}, "weak"),
    }
    learnt_from = {}
    for name, (change, start) in runs.items():
        initial = {"weights": start and str(tmp_path / start / "student.safetensors")}
        trainer = Trainer(tiny.make_config(root, initial=initial, **change), tmp_path / name, "cpu")
        learnt_from[name] = load_weights(trainer.export())[1]["learnt_from"]
    assert learnt_from["weak"] == learnt_from["again"] == "2D boxes, no 3D labels"
    assert learnt_from["supervised"] == "3D labels (supervised)"
    assert learnt_from["after"] == "2D boxes, no 3D labels; its start from: 3D labels (supervised)"


def test_time_limit_stops_with_a_checkpoint(root: Path, tmp_path: Path) -> None:
    trainer = Trainer(resumable(root), tmp_path, "cpu")
    assert not trainer.fit(stop_after=0.0)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 1
    assert not (tmp_path / "student.safetensors").exists()


def test_ctrl_c_stops_with_a_checkpoint_and_gives_the_signal_back(root: Path, tmp_path: Path) -> None:
    trainer = Trainer(resumable(root), tmp_path, "cpu")
    whole_step, before = trainer._train_step, signal.getsignal(signal.SIGINT)

    def interrupted(batch: Batch) -> dict[str, float]:
        if trainer.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return whole_step(batch)

    trainer._train_step = interrupted  # type: ignore[method-assign]
    assert not trainer.fit()
    assert trainer.step == 2
    assert signal.getsignal(signal.SIGINT) is before
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 2


# -- checkpoints -------------------------------------------------------------------------------------------------------
def test_checkpoints_are_plain_and_rebuild_the_model(root: Path, uninterrupted: Path) -> None:
    state = torch.load(uninterrupted / "checkpoint.pt", weights_only=True)
    model = TeacherStudent(TrainConfig.model_validate(state["config"]))
    model.load_state_dict(state["model"])
    assert state["config"]["model"]["classes"] == list(tiny.CLASSES)
    saved = TrainConfig.model_validate(yaml.safe_load((uninterrupted / "config.yaml").read_text()))
    assert saved == resumable(root)


def test_what_is_no_checkpoint_is_named(tmp_path: Path, uninterrupted: Path) -> None:
    with pytest.raises(UserError, match=r"none\.pt"):
        load_checkpoint(tmp_path / "none.pt")
    whole = (uninterrupted / "checkpoint.pt").read_bytes()
    for name, content in (("half.pt", whole[: len(whole) // 2]), ("text.pt", b"hello"), ("empty.pt", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            load_checkpoint(tmp_path / name)
    torch.save({"weights": torch.zeros(2)}, tmp_path / "foreign.pt")
    with pytest.raises(UserError, match=r"foreign\.pt: not a checkpoint of this program"):
        load_checkpoint(tmp_path / "foreign.pt")


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(tmp_path / "c.pt", {"step": lambda: 2})
    assert load_checkpoint(tmp_path / "c.pt")["step"] == 1


# -- NaN ---------------------------------------------------------------------------------------------------------------
def spoil(trainer: Trainer, at: int) -> Callable[..., Tensor]:
    return lambda module, inputs, output: output * (math.nan if trainer.step == at else 1)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(root: Path, tmp_path: Path) -> None:
    trainer = Trainer(resumable(root), tmp_path, "cpu")
    trainer.raw.loss_points.register_forward_hook(spoil(trainer, 4))
    with pytest.raises(UserError, match=r"step 4: .*teacher/points.*\(0000\d\d, 0000\d\d\)") as caught:
        trainer.fit()
    assert "heatmap" not in str(caught.value)
    assert "\n" not in str(caught.value)
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert state["step"] == 3
    assert all(value.isfinite().all() for value in state["model"].values())
    assert run(resumable(root), tmp_path)  # without the fault the run resumes


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(root: Path, tmp_path: Path) -> None:
    trainer = Trainer(resumable(root), tmp_path, "cpu")
    before = {name: value.clone() for name, value in trainer.raw.named_parameters()}
    next(trainer.raw.parameters()).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(UserError, match=r"step 0: .*gradient"):
        trainer.fit()
    assert all(torch.equal(before[name], value) for name, value in trainer.raw.named_parameters())


# -- what a user gets wrong --------------------------------------------------------------------------------------------
def test_wrong_runs_are_refused_in_one_line(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"6 frames are fewer than schedule\.batch_size 7"):
        Trainer(tiny.make_config(root, schedule={"batch_size": 7}), tmp_path, "cpu")
    with pytest.raises(UserError, match="abacus"):
        Trainer(tiny.make_config(root), tmp_path, "abacus")
    with pytest.raises(UserError, match="resnot18"):
        Trainer(tiny.make_config(root, model={"backbone": "resnot18"}), tmp_path, "cpu")
    with pytest.raises(UserError, match="nowhere"):
        Trainer(tiny.make_config(tmp_path / "nowhere"), tmp_path, "cpu")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        Trainer(tiny.make_config(root), tmp_path / "file", "cpu")
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_set_without_one_object_of_the_classes_is_refused(root: Path, tmp_path: Path) -> None:
    """nuScenes' class names on KITTI's labels: nothing would be learnt, and nothing said."""
    config = tiny.make_config(root, model={"classes": ["car"]}, method={"teacher": False, "distillation": "none"})
    with pytest.raises(UserError, match=r"no 2D box of model\.classes \(car\); its labels name Car, "):
        run(config, tmp_path / "out")
    assert not (tmp_path / "out" / "student.safetensors").exists()
    shutil.copytree(root, tmp_path / "spelled")
    for path in (tmp_path / "spelled" / "training" / "label_2").iterdir():
        path.write_text("car 0 0 0 10 10 30 30\n")
    mixture = {"train": [{"root": str(root)}, {"root": str(tmp_path / "spelled")}], "depth_dir": None}
    with pytest.raises(UserError, match=r"spelled: no 2D box of model\.classes .*; its labels name car"):
        Trainer(tiny.make_config(root, data=mixture), tmp_path / "out", "cpu")


def test_images_without_objects_may_be_one_of_the_sets_but_not_all(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "empty")
    for path in (tmp_path / "empty" / "training" / "label_2").iterdir():
        path.write_text("")
    sets = [{"root": str(root)}, {"root": str(tmp_path / "empty")}]
    Trainer(tiny.make_config(root, data={"train": sets, "depth_dir": None}), tmp_path / "both", "cpu")
    config = tiny.make_config(tmp_path / "empty", method={"teacher": False, "distillation": "none"})
    with pytest.raises(UserError, match=r"without a single 2D box .*; its labels name nothing at all"):
        run(config, tmp_path / "out")


# -- GTM ---------------------------------------------------------------------------------------------------------------
def modulation_of(**method: Any) -> Modulation:
    return Modulation(MethodConfig(**method))


def measured(student: float, teacher: float, **method: Any) -> Modulation:
    modulation = modulation_of(**method)
    modulation.update(dict.fromkeys(ERROR_NAMES, student), dict.fromkeys(ERROR_NAMES, teacher))
    return modulation


def test_modulation_before_any_measure() -> None:
    modulation = modulation_of()
    assert (modulation.rho, modulation.k_teacher, modulation.k_feedback) == (1.0, 1.0, 0.05)


def test_rho_by_hand() -> None:
    """The geometric mean of the ratios 2, 1/2 and 8 is 2."""
    modulation = modulation_of(gtm_alpha=0.1)
    modulation.update({"depth": 0.2, "projection": 0.1, "yaw": 0.8}, {"depth": 0.1, "projection": 0.2, "yaw": 0.1})
    assert modulation.rho == pytest.approx(2)
    assert modulation.k_teacher == pytest.approx(1 - math.tanh(0.1))
    assert modulation.k_feedback == pytest.approx(0.05 / 4)


def test_a_lagging_student_damps_the_teachers_pull_and_feeds_little_back() -> None:
    by_lag = [measured(s, 0.1) for s in (0.05, 0.1, 0.105, 0.12, 0.2, 0.5)]
    pulls, feedback = [m.k_teacher for m in by_lag], [m.k_feedback for m in by_lag]
    assert pulls[:2] == [1.0, 1.0]  # level or ahead: the teacher pulls freely
    assert pulls[1:5] == sorted(pulls[1:5], reverse=True)
    assert pulls[2] < 1
    assert pulls[-1] == 0.2  # never less
    assert feedback[:2] == [0.05, 0.05]
    assert feedback[1:] == sorted(feedback[1:], reverse=True)
    assert feedback[-1] == pytest.approx(0.05 / 25)


def test_feedback_grows_while_the_student_catches_up() -> None:
    modulation = measured(0.4, 0.1)
    course = [(modulation.rho, modulation.k_feedback, modulation.k_teacher)]
    for _ in range(600):
        modulation.update(dict.fromkeys(ERROR_NAMES, 0.1), dict.fromkeys(ERROR_NAMES, 0.1))
        course.append((modulation.rho, modulation.k_feedback, modulation.k_teacher))
    rho, feedback, pull = zip(*course, strict=True)
    assert list(rho) == sorted(rho, reverse=True)
    assert list(feedback) == sorted(feedback)
    assert list(pull) == sorted(pull)
    assert feedback[-1] > 0.049
    assert pull[-1] > 0.9


def test_rho_is_clipped_and_survives_zeros_and_gaps() -> None:
    assert measured(1e6, 1e-6).rho == 10
    assert measured(0.0, 1.0).rho == 0.1
    assert measured(0.0, 0.0).rho == 1
    modulation = modulation_of()
    modulation.update({"depth": 0.2, "yaw": math.nan}, {"depth": 0.1, "yaw": 0.3})
    assert modulation.rho == pytest.approx(2)  # yaw has been measured on one side only
    modulation.update({"depth": math.nan}, {"depth": math.inf})
    assert modulation.rho == pytest.approx(2)


def test_running_means_start_at_the_first_value() -> None:
    modulation = measured(0.4, 0.1)
    assert modulation.errors["student_depth"] == 0.4
    modulation.update({"depth": 1.4}, {})
    assert modulation.errors["student_depth"] == pytest.approx(0.99 * 0.4 + 0.01 * 1.4)


def test_modulation_state() -> None:
    modulation, again = measured(0.4, 0.1), modulation_of()
    again.load_state_dict(modulation.state_dict())
    for m in (modulation, again):
        m.update(dict.fromkeys(ERROR_NAMES, 0.2), dict.fromkeys(ERROR_NAMES, 0.1))
    assert again.rho == modulation.rho


def test_scale_gradient() -> None:
    x = torch.randn(3, requires_grad=True)
    y = scale_gradient(x, 0.3)
    assert torch.equal(x, y)
    (y * torch.tensor([1.0, 2, 3])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx([0.3, 0.6, 0.9])


def gradients(module: TeacherStudent, batch: Batch, step: StepContext, kind: str) -> dict[str, Tensor]:
    """Of the sum of the terms whose name starts with ``kind``, by parameter; zeros where none arrives."""
    torch.manual_seed(1)
    terms = [value for name, value in module(batch, step).items() if name.startswith(kind)]
    names, parameters = zip(*module.named_parameters(), strict=True)
    found = torch.autograd.grad(torch.stack(terms).sum(), parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)}


def norm(found: dict[str, Tensor], part: str) -> float:
    return float(torch.stack([g.norm() for name, g in found.items() if name.startswith(part)]).norm())


@pytest.fixture
def pair(root: Path) -> tuple[TeacherStudent, Batch]:
    """A teacher and a student, batch norms frozen, and a batch with objects and targets."""
    config = tiny.make_config(root, augment={"photometric": 0, "flip": 0})
    batch = batch_of(root, config)
    assert len(batch.boxes) >= 3
    assert batch.pseudo.z.isfinite().sum() >= 2
    torch.manual_seed(0)
    return TeacherStudent(config).eval(), batch


def test_modulation_damps_the_teachers_gradient_into_shared_features_only(pair: tuple[TeacherStudent, Batch]) -> None:
    model, batch = pair
    step = StepContext(weight_distillation=0.5)  # no feedback yet
    free = gradients(model, batch, step, "teacher/")
    model.modulation.errors = measured(0.5, 0.1).errors
    assert model.modulation.k_teacher == 0.2
    damped = gradients(model, batch, step, "teacher/")
    assert norm(free, "student.backbone") > 0
    for name, gradient in free.items():
        factor = 0.2 if name.startswith("student.") else 1.0
        assert torch.allclose(damped[name], factor * gradient, atol=1e-6 + 1e-5 * float(gradient.abs().max())), name
    # the student's own terms are not damped
    own = gradients(model, batch, step, "student/")
    model.modulation.errors = {}
    assert torch.equal(own["student.head_3d.fcs.depth.weight"],
                       gradients(model, batch, step, "student/")["student.head_3d.fcs.depth.weight"])  # fmt: skip


def test_who_teaches_whom(pair: tuple[TeacherStudent, Batch]) -> None:
    model, batch = pair
    step = StepContext()
    assert norm(gradients(model, batch, step, "student/"), "teacher.") == 0
    assert norm(gradients(model, batch, step, "student/distillation"), "student.head_3d") > 0
    for term in ("depth", "projection", "yaw", "depth_map", "points", "dimension"):
        assert norm(gradients(model, batch, step, f"teacher/{term}"), "student.head_3d") == 0, term
    feedback = gradients(model, batch, step, "teacher/feedback")
    assert norm(feedback, "teacher.head_3d") > 0
    assert norm(feedback, "student.head_3d") == 0
    assert norm(feedback, "teacher.head_3d.fcs.yaw") == 0  # without the yaw term


def test_feedback_waits_for_distillation_to_be_up(pair: tuple[TeacherStudent, Batch]) -> None:
    model, batch = pair
    assert "teacher/feedback" not in model(batch, StepContext(weight_distillation=0.99))
    full = model(batch, StepContext(weight_distillation=1.0))["teacher/feedback"]
    model.modulation.errors = measured(0.2, 0.1).errors  # rho 2: a quarter
    assert model(batch, StepContext(weight_distillation=1.0))["teacher/feedback"].item() == pytest.approx(
        full.item() / 4, rel=1e-4
    )


def test_ramps_scale_the_3d_terms(pair: tuple[TeacherStudent, Batch]) -> None:
    model, batch = pair
    whole, half, none = (model(batch, StepContext(weight_3d=w, weight_distillation=0.5)) for w in (1.0, 0.5, 0.0))
    for name in ("student/projection", "teacher/projection", "teacher/depth"):
        assert half[name].item() == pytest.approx(0.5 * whole[name].item(), rel=1e-5)
    assert set(none) == {"heatmap", "offset_2d", "size_2d", "teacher/depth_map"}
    assert none["heatmap"].item() == pytest.approx(whole["heatmap"].item(), rel=1e-5)
    late = model(batch, StepContext(weight_distillation=0.0))
    assert not {"student/distillation", "teacher/points"} & late.keys()


def test_every_term_has_its_weight(root: Path) -> None:
    """With losses that are all 1, a term is its weight in L and L3D (method: Losses)."""
    weights = {"depth_map_weight": 0.6, "dimension_weight": 0.7, "points_weight": 0.2, "student_depth_weight": 0.4}
    config = tiny.make_config(root, method=weights, augment={"photometric": 0, "flip": 0})
    batch, model = batch_of(root, config), TeacherStudent(config).eval()
    asked: dict[str, tuple[Any, ...]] = {}

    def one(name: str) -> Callable[..., Tensor]:
        def loss(*arguments: Any, **options: Any) -> Tensor:
            asked[name] = arguments
            if name == "depth_map":
                return torch.tensor(1.0)
            return torch.ones(len(batch.boxes) if name == "distillation" else len(arguments[0]))

        return loss

    for name in ("depth_map", "projection", "dimension", "depth", "yaw", "points", "distillation"):
        getattr(model, f"loss_{name}").forward = one(name)
    whole = {name: value.item() for name, value in model(batch, StepContext()).items() if "/" in name}
    assert whole == pytest.approx({
        "student/projection": 1, "student/dimension": 0.7, "student/yaw": 1, "student/depth": 0.4,
        "student/distillation": 1, "teacher/depth_map": 0.6, "teacher/projection": 1, "teacher/dimension": 0.7,
        "teacher/yaw": 1, "teacher/depth": 1, "teacher/points": 0.2, "teacher/feedback": 0.05,
    })  # fmt: skip
    half = {name: value.item() for name, value in model(batch, StepContext(0.5, 0.5)).items() if "/" in name}
    full = ("teacher/depth_map", "teacher/feedback")
    assert half == pytest.approx({n: v if n in full else v / 2 for n, v in whole.items() if n != "teacher/feedback"})
    shared = {
        name: value.item() for name, value in model(batch, StepContext(num_objects=2.0 * len(batch.boxes))).items()
    }
    assert shared["student/yaw"] == pytest.approx(0.5)
    # targets are the labels' boxes, not the RoIs, and z_f where there is one; the teacher, asked last, has each twice
    assert torch.equal(asked["projection"][1], batch.boxes.repeat(2, 1))
    known, z = batch.pseudo.z.isfinite().repeat(2), batch.pseudo.z.repeat(2)
    assert torch.equal(asked["depth"][2][known], z[known])


def test_the_optimiser_is_told_what_the_schedule_says(root: Path, tmp_path: Path) -> None:
    config = tiny.make_config(root, schedule={"weight_decay": 0.25, "gradient_clip": 0.01, "learning_rate": 0.5})
    trainer = Trainer(config, tmp_path, "cpu")
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.25]
    trainer._train_step(batch_of(root, config))
    found = torch.stack([p.grad.norm() for p in trainer.raw.parameters() if p.grad is not None])
    assert float(found.norm()) == pytest.approx(0.01, rel=1e-3)


def test_the_3d_heads_see_the_boxes_that_the_2d_heads_find(pair: tuple[TeacherStudent, Batch]) -> None:
    """As at inference; where these miss the label, the jittered label stays."""
    _, batch = pair
    n, (height, width) = len(batch.boxes), batch.images.shape[-2:]
    shape = (len(batch.images), -1, height // 4, width // 4)
    offset, size = torch.full((*shape[:1], 2, *shape[2:]), 0.5), torch.zeros(shape[0], 2, *shape[2:])
    middle, sides = (batch.boxes[:, :2] + batch.boxes[:, 2:]) / 8, (batch.boxes[:, 2:] - batch.boxes[:, :2]) / 4
    cell = middle.long()
    cells = list(zip(batch.rois.batch_index.tolist(), cell[:, 1].tolist(), cell[:, 0].tolist(), strict=True))
    assert n > 3
    alone = [i for i in range(n) if cells.count(cells[i]) == 1 and sides[i].amin() > 1]
    assert len(alone) > 2
    for i, (image, row, column) in enumerate(cells):
        offset[image, :, row, column] = middle[i] - cell[i]
        size[image, :, row, column] = (sides[i] * torch.tensor([1.1, 1.2])).log()  # wider and higher than the label
    missed = alone[0]
    image, row, column = cells[missed]
    size[image, :, row, column] = (sides[missed] * 3).log()
    rois = TeacherStudent.predicted_rois(Maps2D(torch.zeros(shape[0], 3, *shape[2:]), offset, size), batch)
    assert torch.equal(rois.boxes[missed], batch.rois.boxes[missed])
    grown = torch.cat([middle - sides * torch.tensor([0.55, 0.6]), middle + sides * torch.tensor([0.55, 0.6])], -1) * 4
    bound = torch.tensor([width, height, width, height])
    for i in alone[1:]:
        assert torch.allclose(rois.boxes[i], grown[i].clamp(min=0).minimum(bound), atol=1e-3)
    assert torch.equal(rois.classes, batch.rois.classes)
    assert torch.equal(rois.P, batch.rois.P)


def test_objects_seen_through_several_boxes(pair: tuple[TeacherStudent, Batch]) -> None:
    _, batch = pair
    n, moved = len(batch.boxes), batch.boxes + 1
    both = batch.with_rois(moved, batch.boxes)
    assert torch.equal(both.rois.boxes, torch.cat([moved, batch.boxes]))
    assert torch.equal(both.boxes, batch.boxes[torch.arange(2 * n) % n])
    for name, value in vars(batch.pseudo).items():
        for half in getattr(both.pseudo, name).chunk(2):
            assert torch.equal(half.nan_to_num(-1), value.nan_to_num(-1)), name
    assert both.images is batch.images
    assert len(batch.boxes) == len(batch.rois.boxes) == n  # itself unchanged


@pytest.mark.parametrize("own", [True, False])
def test_which_rois_student_and_teacher_get(root: Path, monkeypatch: pytest.MonkeyPatch, own: bool) -> None:
    config = tiny.make_config(root, method={"roi_source": "predicted" if own else "labels"})
    model, batch = TeacherStudent(config).eval(), batch_of(root, config)
    found = replace(batch.rois, boxes=batch.boxes + torch.tensor([1.0, 1, 2, 2]))
    monkeypatch.setattr(model, "predicted_rois", lambda maps, batch: found)
    decode, seen, raws = model.student.decode, [], []

    def watched(raw: Raw3D, rois: Rois, *more: Any) -> Prediction3D:
        seen.append(rois)
        raws.append((raw, rois, *more))
        return decode(raw, rois, *more)

    monkeypatch.setattr(model.student, "decode", watched)
    told = []
    loss = model.loss_distillation
    assert loss is not None
    monkeypatch.setattr(
        loss, "forward", lambda *arguments, **_: told.append(arguments) or torch.zeros(len(found.boxes))
    )
    model(batch, StepContext())
    rois = found if own else batch.rois
    student, teacher = seen
    assert student is rois
    # the teacher sees each object through the same box and through the label's, of the same image, class and camera
    assert torch.equal(teacher.boxes, torch.cat([rois.boxes, batch.boxes]))
    for name in ("batch_index", "classes", "P", "size"):
        assert torch.equal(getattr(teacher, name), torch.cat([getattr(rois, name)] * 2)), name
    # L_UAD hears the teacher through the label's box; L_rev teaches it through the student's
    (student_3d, knowing, _), (taught, by, _) = told
    n = len(rois.boxes)
    both = decode(*raws[1])
    assert torch.equal(knowing.log_z, both.log_z[n:])
    assert torch.equal(taught.log_z, both.log_z[:n])
    assert by is student_3d
    # and centres are compared as shares of one and the same box
    for prediction, boxes in ((knowing, batch.boxes), (student_3d, batch.boxes), (taught, batch.boxes)):
        uv = boxes[:, :2] + prediction.center_uv * (boxes[:, 2:] - boxes[:, :2])
        assert torch.allclose(uv, project(batch.rois.P, prediction.center[:, None])[:, 0], atol=1e-2)


def test_error_sums_add_up_over_parts(root: Path, pair: tuple[TeacherStudent, Batch]) -> None:
    model, batch = pair
    model(batch, StepContext())
    whole = model.error_sums
    parts = torch.zeros_like(whole)
    for i in range(3):
        model(batch_of(root, model.config, (i,)), StepContext())
        parts += model.error_sums
    assert torch.allclose(whole, parts, rtol=1e-4)
    assert whole[0, 1, 1] == len(batch.boxes)
    assert whole[:, 0, 1].tolist() == [float(batch.pseudo.z.isfinite().sum())] * 2
    means = whole[..., 0] / whole[..., 1]
    assert (means >= 0).all()
    assert (means[:, 1] <= 1).all()


def test_yaw_takes_no_gradient_from_the_projection_where_something_better_teaches_it(root: Path) -> None:
    """Detached if depth teaches yaw; otherwise only the projection does (method: Losses, Projection)."""
    rows: tuple[tuple[dict[str, Any], str | None, bool], ...] = (
        ({}, "depth", False),
        ({"teacher": False, "direct_targets": True}, "depth", False),
        ({"teacher": False}, "depth", True),
        ({}, None, True),
        ({"teacher": False, "direct_targets": True}, None, True),
    )
    for method, depth_dir, reaches in rows:
        config = tiny.make_config(root, method=method, data={"train": {"root": str(root)}, "depth_dir": depth_dir})
        torch.manual_seed(0)
        model, batch = TeacherStudent(config).eval(), batch_of(root, config)
        found = gradients(model, batch, StepContext(), "student/projection")["student.head_3d.fcs.yaw.weight"][:2]
        assert bool(found.abs().max() > 0) == reaches, (method, depth_dir)
        if config.method.teacher:
            found = gradients(model, batch, StepContext(), "teacher/projection")["teacher.head_3d.fcs.yaw.weight"][:2]
            assert bool(found.abs().max() > 0) == reaches, (method, depth_dir)


def test_a_batch_without_objects_trains_the_2d_heads(root: Path) -> None:
    config = tiny.make_config(root, model={"classes": ["traffic_cone"]})
    batch = batch_of(root, config)
    assert len(batch.boxes) == 0
    assert len(batch.ignore) > 0
    model = TeacherStudent(config).train()
    terms = model(batch, StepContext())
    torch.stack(list(terms.values())).sum().backward()
    assert terms["heatmap"] > 0
    assert set(terms) == {"heatmap", "offset_2d", "size_2d", "teacher/depth_map"}
    assert model.error_sums.abs().sum() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_absent_classes_and_border_boxes_train(root: Path) -> None:
    """Objects cut on every side and of one pixel; depth unknown everywhere."""
    config = tiny.make_config(root)
    batch = batch_of(root, config)
    n = len(batch.boxes)
    odd = torch.tensor([[0.0, 0, 160, 64], [0, 30, 1, 31], [159, 0, 160, 64], [80, 20, 80.5, 20.4]]).repeat(n, 1)[:n]
    batch.boxes = batch.rois.boxes = odd
    batch.depth, batch.has_depth = torch.zeros_like(batch.depth), False
    batch.pseudo.z.fill_(math.nan)
    model = TeacherStudent(config).train()
    terms = model(batch, StepContext())
    torch.stack(list(terms.values())).sum().backward()
    assert "teacher/depth_map" not in terms
    assert all(value.isfinite() for value in terms.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# -- every combination trains ------------------------------------------------------------------------------------------
ROWS: dict[str, dict[str, Any]] = {
    "mdn_proj": {"method": {"teacher": False}},
    "mdn_proj_surface": {"method": {"teacher": False}, "model": {"center_offset": False}},
    "dsn": {"method": {"distillation": "none", "modulation": False}},
    "dsn_gtm": {"method": {"distillation": "none"}},
    "distill_l1": {"method": {"distillation": "l1", "modulation": False}},
    "distill_l1_gtm_paper": {"method": {"distillation": "l1", "student_targets": "teacher"}},
    "distill_uad": {"method": {"modulation": False}},
    "full": {},
    "full_paper": {"method": {"student_targets": "teacher"}},
    "lift_student_loss_slope_paper": {
        "method": {"gtm_form": "lift_student", "gtm_measure": "loss_slope", "student_targets": "teacher"}
    },
    "per_object": {"method": {"gtm_form": "per_object", "gtm_measure": "labels"}},
    "full_no_centre_offset": {"model": {"center_offset": False}},
    "full_no_depth": {"data": {"depth_dir": None}},
    "full_paper_no_depth": {"data": {"depth_dir": None}, "method": {"student_targets": "teacher"}},
    "supervised": {"method": {"supervised": True, "teacher": False}},
    "supervised_direction": {"method": {"supervised": True, "teacher": False}, "model": {"direction": True}},
    "direct_targets": {"method": {"teacher": False, "direct_targets": True}},
    "direct_targets_no_depth": {"method": {"teacher": False, "direct_targets": True}, "data": {"depth_dir": None}},
    "one_class": {"model": {"classes": ["Car"]}},
    "bfloat16": {"precision": "bf16-mixed"},
}


@pytest.mark.parametrize("row", ROWS)
def test_every_row_trains(root: Path, tmp_path: Path, row: str) -> None:
    sections = dict(ROWS[row])
    data = {"train": {"root": str(root)}, "depth_dir": "depth"} | sections.pop("data", {})
    config = tiny.make_config(root, data=data, schedule={"epochs": 1}, **sections)
    assert run(config, tmp_path)
    (report,) = reports(tmp_path)
    assert report["step"] == 2
    numbers = {name: value for name, value in report.items() if isinstance(value, float)}
    assert all(math.isfinite(value) for value in numbers.values())
    assert report["loss"] > 0
    method = config.method
    trained_teacher = method.teacher and not method.supervised
    assert any(name.startswith("teacher/") for name in numbers) == trained_teacher
    assert ("student/distillation" in numbers) == (trained_teacher and method.distillation != "none")
    pseudo_targets = method.teacher and method.student_targets == "teacher_and_pseudo"
    assert ("student/yaw" in numbers) == (method.supervised or method.direct_targets or pseudo_targets)
    assert ("teacher/depth_map" in numbers) == (trained_teacher and config.data.depth_dir is not None)
    load_weights(tmp_path / "student.safetensors")


def test_learning_one_batch_by_heart(root: Path) -> None:
    """The sum of terms is a loss indeed: on one batch it falls, and both networks' boxes fit their 2D boxes better."""
    config = tiny.make_config(
        root, augment={"photometric": 0, "flip": 0, "box_jitter": 0}, method={"roi_source": "labels"}
    )
    torch.manual_seed(0)
    model, batch = TeacherStudent(config).train(), batch_of(root, config)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    course = []
    for _ in range(60):
        terms = model(batch, StepContext())
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        course.append({name: float(value.detach()) for name, value in terms.items()})
    falling = ("heatmap", "size_2d", "student/projection", "teacher/projection", "teacher/depth", "teacher/depth_map")
    for name in (*falling, "student/yaw", "teacher/yaw"):
        first, last = (sum(c[name] for c in part) / 4 for part in (course[:4], course[-4:]))
        assert last < first - 0.05 * abs(first), (name, first, last)


# -- batches -----------------------------------------------------------------------------------------------------------
def test_epochs_cover_each_frame_at_most_once() -> None:
    sampler = EpochSampler(23, 4, seed=3)
    seen = {}
    for epoch in range(3):
        sampler.epoch = epoch
        batches = list(sampler)
        assert len(batches) == len(sampler) == 5
        indices = [index for batch in batches for _, index, _ in batch]
        assert len(set(indices)) == len(indices) == 20
        assert all(e == epoch for batch in batches for e, *_ in batch)
        seen[epoch] = indices
    assert seen[0] != seen[1] != seen[2]
    sampler.epoch = 1
    assert [i for batch in sampler for _, i, _ in batch] == seen[1]
    sampler.first = 3
    assert [i for batch in sampler for _, i, _ in batch] == seen[1][12:]
    assert [i for batch in EpochSampler(23, 4, seed=4) for _, i, _ in batch] != seen[0]


def test_ranks_share_each_global_batch() -> None:
    whole = list(EpochSampler(23, 6, seed=3))
    shares = [list(EpochSampler(23, 6, 3, rank, 3)) for rank in range(3)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert [len(part) for part in parts] == [2, 2, 2]
        assert sorted(key for part in parts for key in part) == sorted(batch)


def training_set(root: Path, **augment: float) -> TrainingSet:
    config = tiny.make_config(root, augment=augment)
    return TrainingSet(KittiDataset(root, None, config.model.classes, "depth"), config)


def same_item(a: Any, b: Any) -> bool:
    (s, p, j, _), (t, q, k, _) = a, b
    pairs = [(s.image, t.image), (s.boxes2d.xyxy, t.boxes2d.xyxy), (s.camera.P, t.camera.P), (j, k)]
    pairs += [(getattr(p, n).nan_to_num(-1), getattr(q, n).nan_to_num(-1)) for n in vars(p)]
    return all(x.shape == y.shape and torch.equal(x, y) for x, y in pairs)


def test_augmentation_follows_from_seed_epoch_and_frame_alone(root: Path) -> None:
    first, again = training_set(root), training_set(root)
    items = [first[epoch, i, 0] for epoch in range(3) for i in range(FRAMES)]
    torch.rand(5)
    others = [again[epoch, i, 0] for epoch in reversed(range(3)) for i in reversed(range(FRAMES))]
    assert all(same_item(a, b) for a, b in zip(items, reversed(others), strict=True))
    assert not same_item(first[0, 0, 0], first[1, 0, 0])
    flips = [not torch.equal(item[0].camera.P, first.prepared(k % FRAMES)[0].camera.P) for k, item in enumerate(items)]
    assert 0 < sum(flips) < len(flips)


def test_without_augmentation_nothing_changes(root: Path) -> None:
    plain = training_set(root, flip=0, photometric=0, box_jitter=0)
    sample, pseudo = plain.prepared(1)
    found = plain[3, 1, 0]
    assert torch.equal(found[0].image, sample.image)
    assert torch.equal(found[2], sample.boxes2d.xyxy)
    assert found[1] is pseudo


def test_flip_mirrors_everything(root: Path) -> None:
    plain, mirrored = (training_set(root, flip=f, photometric=0, box_jitter=0) for f in (0, 1))
    for i in range(FRAMES):
        (a, p, jittered_a, _), (b, q, jittered_b, _) = plain[0, i, 0], mirrored[0, i, 0]
        assert torch.equal(a.image.flip(-1), b.image)
        assert a.depth is not None
        assert b.depth is not None
        assert torch.equal(a.depth.flip(-1), b.depth)
        W = tiny.WIDTH
        assert torch.allclose(jittered_b[:, [0, 2]], W - jittered_a[:, [2, 0]], atol=1e-4)
        assert torch.allclose(b.camera.P, a.camera.flip().P)
        assert torch.equal(p.z.nan_to_num(-1), q.z.nan_to_num(-1))
        assert torch.equal(p.alpha.nan_to_num(9), -q.alpha.nan_to_num(-9))
        assert torch.allclose(p.points.nan_to_num(0) * torch.tensor([-1.0, 1]), q.points.nan_to_num(0))


def test_photometric_changes_stay_pictures(root: Path) -> None:
    plain, changed = (training_set(root, flip=0, photometric=p) for p in (0, 0.3))
    a, b = plain[0, 0, 0][0].image.float(), changed[0, 0, 0][0].image.float()
    assert not torch.equal(a, b)
    assert 0.6 < b.mean() / a.mean() < 1.4


def test_jittered_boxes() -> None:
    boxes = torch.tensor([[20.0, 10, 60, 40], [0, 10, 30, 64], [100, 0, 160, 30]]).repeat(2000, 1)
    moved = jitter_boxes(boxes, 0.03, 160, 64, torch.Generator().manual_seed(0))
    share = (moved - boxes)[::3] / torch.tensor([40.0, 30, 40, 30])
    assert share.std(0).tolist() == pytest.approx([0.03] * 4, rel=0.1)
    assert share.mean(0).tolist() == pytest.approx([0] * 4, abs=0.003)
    assert share.abs().max() < 0.0901
    # edges at the image border are cut there, and stay; nothing leaves the image
    assert (moved[1::3, 0] == 0).all()
    assert (moved[1::3, 3] == 64).all()
    assert (moved[2::3, [1, 2]] == torch.tensor([0.0, 160])).all()
    assert (moved >= 0).all()
    assert jitter_boxes(torch.zeros(0, 4), 0.03, 160, 64, torch.Generator()).shape == (0, 4)


def test_collate(root: Path) -> None:
    batch = batch_of(root)
    dataset = training_set(root)
    counts = [len(dataset.prepared(i)[0].boxes2d) for i in range(3)]
    n = sum(counts)
    assert batch.images.shape == (3, 3, tiny.HEIGHT, tiny.WIDTH)
    assert batch.images.dtype == torch.uint8
    assert batch.P.shape == (3, 3, 4)
    assert batch.depth.shape == (3, tiny.HEIGHT, tiny.WIDTH)
    assert batch.rois.batch_index.tolist() == [i for i, count in enumerate(counts) for _ in range(count)]
    assert batch.rois.P.shape == (n, 3, 4)
    assert torch.equal(batch.rois.P, batch.P[batch.rois.batch_index])
    assert batch.rois.size.tolist() == [[tiny.WIDTH, tiny.HEIGHT]] * n
    names = [name for i in range(3) for name in dataset.prepared(i)[0].boxes2d.labels]
    assert [tiny.CLASSES[c] for c in batch.rois.classes.tolist()] == names
    assert len(batch.boxes) == len(batch.rois.boxes) == len(batch.pseudo.z) == n
    assert len(batch.ignore) == len(batch.ignore_index)
    assert batch.truth is None
    moved = batch.to(torch.device("cpu"))
    assert torch.equal(moved.rois.boxes, batch.rois.boxes)


def test_worker_processes_give_the_same_batches(root: Path) -> None:
    found = []
    for workers in (0, 2):
        data = {"train": {"root": str(root)}, "depth_dir": "depth", "workers": workers}
        config = tiny.make_config(root, data=data)
        dataset = TrainingSet(KittiDataset(root, None, config.model.classes, "depth"), config)
        found.append(list(training_loader(dataset, EpochSampler(FRAMES, 3, 0), config)))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.rois.boxes, b.rois.boxes)
        assert torch.equal(a.pseudo.z.nan_to_num(-1), b.pseudo.z.nan_to_num(-1))


def test_the_global_random_stream_is_left_alone(root: Path) -> None:
    config = tiny.make_config(root)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(training_loader(training_set(root), EpochSampler(FRAMES, 3, 0), config))
    assert torch.equal(torch.rand(3), expected)


# -- schedule ----------------------------------------------------------------------------------------------------------
def test_learning_rate_by_hand() -> None:
    """140 epochs of 10 steps: linear warm-up over 5 epochs, a tenth after 90, a hundredth after 120."""
    schedule = ScheduleConfig()
    rate = {step: learning_rate(schedule, step, 10) for step in (0, 24, 49, 50, 899, 900, 1199, 1200, 1399)}
    base = 1.25e-3
    assert rate[0] == pytest.approx(base / 50)
    assert rate[24] == pytest.approx(base / 2)
    assert rate[49] == rate[50] == rate[899] == base
    assert rate[900] == rate[1199] == pytest.approx(base / 10)
    assert rate[1200] == rate[1399] == pytest.approx(base / 100)
    assert learning_rate(ScheduleConfig(warmup_epochs=0), 0, 10) == base


def test_ramp() -> None:
    assert [ramp(p, 0.2, 0.6) for p in (0, 0.2, 0.3, 0.6, 1)] == pytest.approx([0, 0, 0.25, 1, 1])
    assert [ramp(p, 0.2, 0.2) for p in (0.1, 0.2)] == [0, 1]
    assert ramp(0, 0, 0) == 1


def test_running_mean_by_hand(root: Path, tmp_path: Path) -> None:
    """Weights (1 + t) / (10 + t) at first, so that it forgets the random start, and not more than ema later."""
    trainer = Trainer(resumable(root, ema=0.15), tmp_path, "cpu")
    name = "student.head_3d.fcs.depth.weight"
    expected = trainer.raw.state_dict()[name].clone()
    whole_step = trainer._train_step

    def watched(batch: Batch) -> dict[str, float]:
        nonlocal expected
        terms = whole_step(batch)
        decay = (0.1, 0.15, 0.15, 0.15, 0.15, 0.15)[trainer.step]
        expected = decay * expected + (1 - decay) * trainer.raw.state_dict()[name]
        return terms

    trainer._train_step = watched  # type: ignore[method-assign]
    assert trainer.fit()
    state = load_checkpoint(tmp_path / "checkpoint.pt")["ema"]
    found = state[name] if name in state else state[name.removeprefix("student.")]
    assert torch.allclose(found, expected, atol=1e-6)
    exported = load_weights(tmp_path / "student.safetensors")[0].state_dict()
    assert torch.equal(exported[name.removeprefix("student.")], found)


# -- several processes -------------------------------------------------------------------------------------------------
def test_two_processes_equal_one(root: Path, tmp_path: Path) -> None:
    """torchrun over gloo, one image a process, with 0 and 1, no, 1 and all objects: the steps of one process of two.

    The student lags, so that GTM scales the teacher's gradient from the first step on.
    """
    data = tmp_path / "data"
    shutil.copytree(root, data)
    order = [index for batch in EpochSampler(FRAMES, 2, 0) for _, index, _ in batch]
    for index, kept in zip(order, (0, 1, 0, 0, 1, 99), strict=True):
        path = data / "training" / "label_2" / f"{index:06d}.txt"
        objects = [line for line in path.read_text().splitlines(True) if not line.startswith("DontCare")]
        path.write_text("".join(objects[:kept]))
    config = tiny.make_config(
        data,
        method={"distillation": "l1"},  # UAD's certainty is relative to the boxes of a process
        schedule={"batch_size": 2, "epochs": 1, "freeze_norm": True, "learning_rate": 1e-4},
        augment={"photometric": 0},
    )
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    start = Trainer(config, tmp_path / "one", "cpu")
    start.raw.modulation.load_state_dict({"student_depth": 10.0, "teacher_depth": 1.0})
    start.save()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "skd_core.cli", "train", str(path), "--out", str(tmp_path / "two"), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

    before = {name: value.clone() for name, value in start.raw.state_dict().items()}
    assert start.raw.modulation.k_teacher == 0.2
    assert start.fit()
    one, two = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("one", "two"))
    assert one["step"] == two["step"] == 3
    assert one["modulation"] == pytest.approx(two["modulation"], rel=1e-3)
    a, b, z = (torch.cat([s[n].flatten().double() for n in before]) for s in (one["model"], two["model"], before))
    assert (a - z).norm() > 0
    assert (a - b).norm() / (a - z).norm() < 0.02
    momenta = [
        torch.cat([s["exp_avg"].flatten() for s in state["optimizer"]["state"].values()]) for state in (one, two)
    ]
    assert (momenta[0] - momenta[1]).norm() / momenta[0].norm() < 1e-3
    said, said_by_two = (reports(tmp_path / name)[0] for name in ("one", "two"))
    for report in (said, said_by_two):
        del report["images_per_second"]
    assert said_by_two == pytest.approx(said, rel=1e-3)  # the logged terms are the whole batch's


def test_batch_must_divide_among_processes(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stub:
        def __init__(self, **options: Any) -> None:
            assert options["devices"] == 2
            assert options["num_nodes"] == 2

        def launch(self) -> None:
            pass

    for name, value in (("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setattr("skd_core.training.trainer.Fabric", Stub)
    with pytest.raises(UserError, match=r"batch_size 3 .* 4 processes"):
        Trainer(tiny.make_config(root), tmp_path, "cpu")
