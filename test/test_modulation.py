"""GTM's forms and measures, object by object and by hand, and the gradients that are logged with them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from skd_core.config import MethodConfig
from skd_core.data.kitti import KittiDataset
from skd_core.evaluation.plots import plot_runs
from skd_core.losses.features import FeatureLoss
from skd_core.training import trainer as trainer_module
from skd_core.training.batch import Batch, collate
from skd_core.training.checkpoint import load_checkpoint
from skd_core.training.dataset import TrainingSet
from skd_core.training.gradients import describe, feature_gradients, group_of
from skd_core.training.modulation import MEASURES, Modulation, feedback_weight, lag_weight
from skd_core.training.module import StepContext, TeacherStudent, weak_loss_sum
from skd_core.training.trainer import Trainer

LAGS = {"student_depth": 0.3, "teacher_depth": 0.2}  # rho 1.5: lag tanh(4 x .5) = .964
LEVEL = {"student_depth": 0.2, "teacher_depth": 0.2}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_dataset(tmp_path_factory.mktemp("data") / "train", 4)


@pytest.fixture(scope="module")
def batch(root: Path) -> Batch:
    config = tiny.make_config(root, augment={"photometric": 0, "flip": 0})
    dataset = TrainingSet(KittiDataset(root, None, config.model.classes, "depth"), config)
    made = collate([dataset[0, i, 0] for i in (0, 1, 2)], config.model.classes)
    assert len(made.boxes) >= 3
    assert made.pseudo.z.isfinite().sum() >= 2
    return made


def model_of(root: Path, errors: dict[str, float], **method: Any) -> TeacherStudent:
    torch.manual_seed(0)
    model = TeacherStudent(tiny.make_config(root, method=method)).eval()
    model.modulation.load_state_dict(errors)
    return model


def terms_of(model: TeacherStudent, batch: Batch, step: StepContext | None = None) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in model(batch, step or StepContext()).items()}


def gradients(model: TeacherStudent, batch: Batch, kind: str, step: StepContext) -> dict[str, Tensor]:
    """Of the sum of the terms that begin with ``kind``; zeros where none arrives."""
    value = torch.stack([v for name, v in model(batch, step).items() if name.startswith(kind)]).sum()
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)}


# -- factors -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("form", "k_teacher", "k_student", "k_feedback"),
    [
        ("damp_teacher", 0.2, 1.0, 0.05 / 2.25),
        ("lift_student", 1.0, 1 + 2 * math.tanh(2), 0.05 / 2.25),
        ("per_object", 1.0, 1.0, 0.05),
        ("feedback", 1.0, 1.0, 0.05 / 2.25),
    ],
)
def test_factors_of_each_form_by_hand(form: str, k_teacher: float, k_student: float, k_feedback: float) -> None:
    modulation = Modulation(MethodConfig(gtm_form=form, gtm_lift=3.0))
    modulation.load_state_dict(LAGS)
    assert modulation.rho == pytest.approx(1.5)
    assert modulation.k_teacher == pytest.approx(k_teacher)
    assert modulation.k_student == pytest.approx(k_student)
    assert modulation.k_feedback == pytest.approx(k_feedback)
    modulation.load_state_dict(LEVEL)  # the student has caught up
    assert (modulation.k_teacher, modulation.k_student, modulation.k_feedback) == (1.0, 1.0, 0.05)


def test_the_lift_falls_back_to_one_as_the_student_catches_up() -> None:
    modulation = Modulation(MethodConfig(gtm_form="lift_student", gtm_lift=3.0))
    modulation.load_state_dict({"student_depth": 0.8, "teacher_depth": 0.2})
    course = [modulation.k_student]
    for _ in range(800):
        modulation.update({"depth": 0.2}, {"depth": 0.2})
        course.append(modulation.k_student)
    assert course == sorted(course, reverse=True)
    assert course[0] == pytest.approx(3, abs=1e-3)
    assert course[-1] < 1.02


def test_pace_by_hand() -> None:
    """Means .99 and .95 from 4; then a loss of 2: they are 3.98 and 3.9, the spread is 2, the pace .04."""
    modulation = Modulation(MethodConfig(gtm_measure="loss_slope"))
    assert modulation.rho == 1
    modulation.update_losses(4.0, 4.0)
    assert (modulation.loss_slope("student"), modulation.rho) == (0, 1)
    modulation.update_losses(4.0, 2.0)
    assert modulation.loss_slope("teacher") == pytest.approx(0.04)
    assert modulation.loss_slope("student") == 0
    assert modulation.rho == pytest.approx(math.exp(0.04))
    before = modulation.state_dict()
    modulation.update_losses(math.nan, 1.0)  # of no object
    assert modulation.state_dict() == before
    assert before.keys() <= set(MEASURES)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (5.0, -20.0)])
def test_who_still_falls_while_the_other_rests_is_ahead_in_pace_whatever_the_losses_scale(
    scale: float, shift: float
) -> None:
    """Losses may be negative, and may be of another make than the other's."""
    noise = torch.randn(300, generator=torch.Generator().manual_seed(0)).tolist()
    falls, rests = (
        Modulation(MethodConfig(gtm_measure="loss_slope")),
        Modulation(MethodConfig(gtm_measure="loss_slope")),
    )
    for t, e in enumerate(noise):
        resting, falling = scale * (0.1 * e) + shift, 3 - 0.01 * t + 0.1 * e
        falls.update_losses(resting, falling)
        rests.update_losses(falling, resting)
    assert falls.rho > 1.5
    assert rests.rho == pytest.approx(1 / falls.rho)


def test_errors_do_not_count_where_the_loss_slope_is_the_measure() -> None:
    modulation = Modulation(MethodConfig(gtm_measure="loss_slope"))
    modulation.update({"depth": 9.0}, {"depth": 0.1})
    assert modulation.rho == 1


# -- object by object --------------------------------------------------------------------------------------------------
def test_weights_of_objects_by_hand() -> None:
    """d = .02. Depth alone: .18 and .02 make 2 x .2 / .24; level 1; depth ahead, yaw behind: their mean; nothing: 1."""
    nan = math.nan
    student = torch.tensor([[0.18, 0.1, 0.02, nan], [nan, nan, 0.38, nan]])
    teacher = torch.tensor([[0.02, 0.1, 0.18, nan], [nan, nan, 0.08, nan]])
    expected = [2 * 0.2 / 0.24, 1.0, 0.5 * (2 * 0.04 / 0.24 + 2 * 0.4 / 0.5), 1.0]
    assert lag_weight(student, teacher).tolist() == pytest.approx(expected)
    ahead = feedback_weight(teacher, student, torch.tensor([True, True, True, True]))
    assert ahead.tolist() == pytest.approx([1 - 2 * 0.04 / 0.24, 0, 0.0, 0.0])
    unsure = feedback_weight(teacher, student, torch.tensor([False, True, True, True]))
    assert unsure.tolist() == [0, 0, 0, 0]


def test_weights_are_bounded_and_those_of_swapped_networks_add_up_to_two() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (10 * torch.rand(2, 200, generator=generator) ** 4 for _ in range(2))
    a[:, :20] = math.nan
    one, other = lag_weight(a, b), lag_weight(b, a)
    assert torch.allclose(one + other, torch.full_like(one, 2.0))
    assert ((one > 0) & (one < 2)).all()
    assert (lag_weight(torch.zeros(2, 0), torch.zeros(2, 0))).shape == (0,)


def test_per_object_distillation_is_the_plain_one_times_the_weights(root: Path, batch: Batch) -> None:
    """The loss sees the objects one by one: without one of them it is less by that one's share, times its weight."""
    plain, weighed = (model_of(root, {}, gtm_form=form, distillation="l1") for form in ("feedback", "per_object"))
    errors: list[Tensor] = []
    taken = TeacherStudent._errors

    def kept(*args: Any) -> Tensor:
        errors.append(taken(*args))
        return errors[-1]

    weighed._errors = kept  # type: ignore[method-assign, assignment]
    shares: list[Tensor] = []
    plain.loss_distillation.register_forward_hook(  # type: ignore[union-attr]
        lambda module, inputs, output: shares.append(output.detach())
    )
    step = StepContext(weight_distillation=0.5)  # no feedback yet
    terms = terms_of(plain, batch, step), terms_of(weighed, batch, step)
    assert terms[0]["student/distillation"] == pytest.approx(0.5 * float(shares[0].sum()) / len(batch.boxes), rel=1e-5)
    student, knowing = errors
    assert student.isfinite().any()
    expected = 0.5 * float((shares[0] * lag_weight(student, knowing)).sum()) / len(batch.boxes)
    assert terms[1]["student/distillation"] == pytest.approx(expected, rel=1e-5)
    assert {k: v for k, v in terms[0].items() if k != "student/distillation"} == {
        k: v for k, v in terms[1].items() if k != "student/distillation"
    }


def test_per_object_feedback_is_of_objects_where_the_student_is_ahead_and_surer(root: Path, batch: Batch) -> None:
    model = model_of(root, {}, gtm_form="per_object", distillation="l1")

    def student_worse(student: Tensor, teacher: Tensor) -> None:
        order = iter([student, teacher, student, teacher])  # lag_weight's two, feedback_weight's two
        model._errors = lambda *_: next(order)  # type: ignore[method-assign, assignment]

    n = len(batch.boxes)
    good, bad = torch.zeros(2, n), torch.ones(2, n)
    student_worse(bad, good)
    assert terms_of(model, batch)["teacher/feedback"] == 0
    student_worse(good, bad)
    assert model.teacher is not None
    with torch.no_grad():
        model.student.head_3d.fcs["depth"].bias[1] = -20.0  # type: ignore[operator]  # as sure as can be
        model.teacher.head_3d.fcs["depth"].bias[1] = 0.0  # type: ignore[operator]
    assert terms_of(model, batch)["teacher/feedback"] > 0


# -- what reaches the shared features ----------------------------------------------------------------------------------
def test_the_lift_scales_the_students_gradient_into_shared_features_and_its_distillation(
    root: Path, batch: Batch
) -> None:
    """Its own losses: k_S into F_G, 1 into its head. Distillation: k_S into its head, its square into F_G."""
    method = {"gtm_form": "lift_student", "gtm_lift": 3.0, "distillation": "l1"}
    free, lifted = model_of(root, LEVEL, **method), model_of(root, LAGS, **method)
    k = lifted.modulation.k_student
    assert k > 2.5
    step = StepContext(weight_distillation=0.5)
    for kind, into_features, into_head in (("student/projection", k, 1.0), ("student/distillation", k * k, k)):
        a, b = (gradients(model, batch, kind, step) for model in (free, lifted))
        assert any(float(g.norm()) > 0 for name, g in a.items() if name.startswith("student.backbone"))
        for name, gradient in a.items():
            factor = into_head if name.startswith("student.head_3d") else into_features
            torch.testing.assert_close(b[name], factor * gradient, rtol=1e-4, atol=1e-6)
    for kind in ("teacher/", "heatmap"):
        a, b = (gradients(model, batch, kind, step) for model in (free, lifted))
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_feedback_alone_leaves_gradients_as_they_are_without_modulation(root: Path, batch: Batch) -> None:
    alone, none = model_of(root, LAGS, gtm_form="feedback"), model_of(root, LAGS, modulation=False)
    with_it, without = terms_of(alone, batch), terms_of(none, batch)
    assert with_it.pop("teacher/feedback") > 0
    assert with_it == without
    for kind in ("student/", "teacher/depth"):
        a, b = (gradients(model, batch, kind, StepContext(weight_distillation=0.5)) for model in (alone, none))
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_switched_off_no_form_does_anything(root: Path, batch: Batch) -> None:
    expected = terms_of(model_of(root, LAGS, modulation=False), batch)
    for form in ("lift_student", "per_object", "feedback"):
        assert terms_of(model_of(root, LAGS, modulation=False, gtm_form=form), batch) == expected


def test_through_the_labels_box_the_teacher_is_measured_where_it_teaches(root: Path, batch: Batch) -> None:
    """The student's column is the same. The teacher's differs where the RoI is another box, and only there."""
    rois, labels = model_of(root, {}), model_of(root, {}, gtm_measure="labels")
    losses = terms_of(rois, batch), terms_of(labels, batch)
    assert losses[0] == losses[1]
    assert torch.equal(rois.error_sums[0], labels.error_sums[0])
    assert not torch.equal(rois.error_sums[1], labels.error_sums[1])
    no_jitter = {"box_jitter": 0.0}
    methods = {"roi_source": "labels", "gtm_measure": "labels"}, {"roi_source": "labels"}
    torch.manual_seed(0)
    exact = TeacherStudent(tiny.make_config(root, method=methods[0], augment=no_jitter)).eval()
    torch.manual_seed(0)
    same = TeacherStudent(tiny.make_config(root, method=methods[1], augment=no_jitter)).eval()
    batch = batch.only(torch.ones(len(batch.boxes), dtype=torch.bool))
    batch.rois.boxes = batch.boxes
    for model in (exact, same):
        model(batch, StepContext())
    torch.testing.assert_close(exact.error_sums, same.error_sums)


def test_own_losses_leave_points_and_transfer_out(root: Path, batch: Batch) -> None:
    parts = {
        "projection": torch.tensor([1.0, 2.0]),
        "depth": torch.tensor([-4.0, 0.5]),
        "points": torch.tensor([9.0, 9]),
    }
    assert weak_loss_sum(parts).tolist() == [-0.5, 2.0]
    model = model_of(root, {}, gtm_measure="loss_slope")
    terms = terms_of(model, batch, StepContext(weight_3d=0.5, weight_distillation=1.0))
    n = len(batch.boxes)
    for row, who, views in ((0, "student", 1), (1, "teacher", 2)):
        total = sum(terms[f"{who}/{name}"] for name in ("projection", "dimension", "depth", "yaw"))
        assert float(model.loss_sums[row, 1]) == views * n
        assert float(model.loss_sums[row, 0]) / (views * n) == pytest.approx(total / 0.5, rel=1e-4)


# -- the default -------------------------------------------------------------------------------------------------------
def test_the_default_config_is_as_it_was(root: Path) -> None:
    """The terms of one step of the code before there were forms, for a fixed seed and rho 1.1; last digits may vary."""
    config = tiny.make_config(root)
    dataset = TrainingSet(KittiDataset(root, None, config.model.classes, "depth"), config)
    torch.manual_seed(0)
    model = TeacherStudent(config).train()
    model.modulation.load_state_dict({"student_depth": 1.1, "teacher_depth": 1.0})
    terms = terms_of(model, collate([dataset[0, i, 0] for i in (0, 1, 2)], config.model.classes))
    before = {
        "heatmap": 3.966106, "offset_2d": 0.589351, "size_2d": 2.658359, "student/projection": 0.458124,
        "student/dimension": 0.0, "student/yaw": 0.242195, "student/depth": -0.32888, "teacher/depth_map": 0.643463,
        "teacher/projection": 0.421151, "teacher/dimension": 0.0, "teacher/yaw": 0.242026, "teacher/depth": -1.459331,
        "teacher/points": 0.105546, "student/distillation": 0.467808, "teacher/feedback": 0.000325,
    }  # fmt: skip
    assert terms == pytest.approx(before, rel=1e-3, abs=2e-6)


# -- measured gradients ------------------------------------------------------------------------------------------------
def test_groups_by_name() -> None:
    terms = ("heatmap", "size_2d", "student/yaw", "student/distillation", "teacher/depth", "teacher/depth_map")
    assert [group_of(term) for term in terms] == ["2d", "2d", "student", "student", "teacher", "depth_map"]


def test_norms_and_cosine_by_hand() -> None:
    """Gradients: 2D (3, 4), student (1, 0) + (0, 1), teacher (1, 0), depth map (0, -2)."""
    x = torch.ones(2, requires_grad=True)
    features = 1.0 * x
    terms = {
        "heatmap": features @ torch.tensor([3.0, 4.0]),
        "student/yaw": features[0],
        "student/distillation": features[1],
        "teacher/yaw": features[0] + 0.0,
        "teacher/depth_map": -2 * features[1],
        "offset_2d": torch.tensor(0.0),  # of no object
    }
    found = describe(feature_gradients(terms, features), 1)
    assert found == pytest.approx(
        {
            "gtm/gradient_2d": 5.0,
            "gtm/gradient_student": math.sqrt(2),
            "gtm/gradient_teacher": 1.0,
            "gtm/gradient_depth_map": 2.0,
            "gtm/cosine": math.sqrt(0.5),
        }
    )
    assert x.grad is None
    torch.stack(list(terms.values())).sum().backward()  # the graph is still there
    assert x.grad is not None


def test_gradients_of_several_processes_are_one() -> None:
    """Squares 9 and 16 of two processes make 5, of which each has half; the students' products 1 and -4 add up, too."""
    sums = torch.tensor([9.0, 1.0, 1.0, 0.0, 1.0]) + torch.tensor([16.0, 8.0, 3.0, 0.0, -4.0])
    assert describe(sums.double(), 2) == pytest.approx(
        {"gtm/gradient_2d": 2.5, "gtm/gradient_student": 1.5, "gtm/gradient_teacher": 1.0, "gtm/cosine": -0.5}
    )


def test_gradients_that_are_missing_or_not_finite_are_left_out() -> None:
    features = 1.0 * torch.ones(2, requires_grad=True)

    def logged(**terms: Tensor) -> dict[str, float]:
        return describe(feature_gradients({k.replace("_", "/"): v for k, v in terms.items()}, features), 1)

    assert logged(student_yaw=features[0] * math.inf, teacher_yaw=features[0]) == {"gtm/gradient_teacher": 1.0}
    assert logged(student_yaw=features[0] * math.nan, teacher_yaw=features[0]) == {"gtm/gradient_teacher": 1.0}
    assert logged(student_yaw=0 * features[0], teacher_yaw=features[0]) == {"gtm/gradient_teacher": 1.0}
    assert logged(heatmap=features[0]) == {"gtm/gradient_2d": 1.0}
    assert logged(heatmap=torch.tensor(1.0)) == {}


def test_runs_log_gradients_and_are_the_same_without(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured in every step and in none: the same weights to the bit."""
    monkeypatch.setattr(trainer_module, "GRADIENTS_EVERY", 1)
    states = []
    for name in ("each", "none"):
        assert Trainer(tiny.make_config(root, schedule={"epochs": 1, "batch_size": 2}), tmp_path / name, "cpu").fit()
        states.append(load_checkpoint(tmp_path / name / "checkpoint.pt")["model"])
        monkeypatch.setattr(trainer_module, "describe", lambda *_: {})
    each, none = states
    assert all(torch.equal(value, none[name]) for name, value in each.items())
    logged, bare = (json.loads((tmp_path / name / "metrics.jsonl").read_text()) for name in ("each", "none"))
    found = {key.removeprefix("gtm/") for key in logged.keys() - bare.keys()}
    assert found == {"cosine", "gradient_2d", "gradient_student", "gradient_teacher", "gradient_depth_map"}
    assert all(logged[key] == bare[key] for key in bare.keys() - {"images_per_second"})
    drawn = {axes.get_title() for axes in plot_runs({"run": [logged]}).axes}
    assert {f"gtm/{key}" for key in found} <= drawn


# -- what else the student may learn from its teacher ------------------------------------------------------------------
def test_feature_loss_by_hand() -> None:
    """Two objects, two channels, one bin: at right angles and 5 apart; the same direction, twice as long."""
    student = torch.tensor([[3.0, 0.0], [2.0, 4.0]]).view(2, 2, 1, 1).requires_grad_()
    teacher = torch.tensor([[0.0, 4.0], [1.0, 2.0]]).view(2, 2, 1, 1).requires_grad_()
    assert FeatureLoss("cosine")(student, teacher).tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    loss = FeatureLoss("l2")(student, teacher)
    assert loss.tolist() == pytest.approx([12.5, 2.5])
    loss.sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.flatten().tolist() == pytest.approx([3.0, -4.0, 1.0, 2.0])
    assert FeatureLoss("cosine")(torch.zeros(0, 2, 3, 3), torch.zeros(0, 2, 3, 3)).shape == (0,)


@pytest.mark.parametrize("kind", ["cosine", "l2"])
def test_features_are_one_more_term_that_reaches_the_shared_features_alone(root: Path, batch: Batch, kind: str) -> None:
    plain, model = model_of(root, {}), model_of(root, {}, features=kind, feature_weight=3.0)
    step = StepContext(weight_distillation=0.5)
    terms = terms_of(model, batch, step)
    assert terms.pop("student/features") > 0
    assert terms == terms_of(plain, batch, step)
    found = gradients(model, batch, "student/features", step)
    reached = {name for name, gradient in found.items() if float(gradient.norm()) > 0}
    assert any(name.startswith("student.backbone") for name in reached)
    assert not any("head" in name or name.startswith("teacher.") for name in reached)
    assert "student/features" not in terms_of(model, batch, StepContext(weight_distillation=0.0))


def test_a_slow_teacher_is_the_target_and_nothing_else(root: Path, batch: Batch) -> None:
    """Where the mean is the network itself, the terms are as without; where it is another, only distillation is."""
    model = model_of(root, {}, ema_teacher=True)
    plain = terms_of(model, batch, StepContext(weight_distillation=0.5))
    same = terms_of(model, batch, StepContext(weight_distillation=0.5, ema=model))
    assert same == pytest.approx(plain, rel=1e-5)
    torch.manual_seed(1)
    other = TeacherStudent(model.config).eval()
    mixed = terms_of(model, batch, StepContext(weight_distillation=0.5, ema=other))
    assert {name for name in plain if mixed[name] != plain[name]} == {"student/distillation"}
    model(batch, StepContext(weight_distillation=0.5, ema=other))["student/distillation"].backward()
    assert all(p.grad is None for p in other.parameters())


def test_runs_with_a_slow_teacher_and_features_train_and_resume(root: Path, tmp_path: Path) -> None:
    method = {"ema_teacher": True, "features": "cosine"}
    config = tiny.make_config(root, method=method, schedule={"epochs": 1, "batch_size": 2})
    assert Trainer(config, tmp_path, "cpu").fit()
    report = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert math.isfinite(report["loss"])
    assert report["student/features"] > 0
    assert Trainer(config, tmp_path, "cpu").step == 2


@pytest.mark.parametrize(
    "method", [{"teacher": False, "features": "l2"}, {"ema_teacher": True, "distillation": "none"}]
)
def test_options_of_the_transfer_need_a_teacher(method: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="teacher"):
        MethodConfig(**method)
