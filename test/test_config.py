"""Configs: strict, typed, and every fault is one line that names the key."""

import copy
import math
import re
from pathlib import Path

import pytest
import yaml

from skd_core.config import MethodConfig, ModelConfig, TrainConfig, load_config, parse_config
from skd_core.errors import UserError
from skd_core.inference.bundled import bundled_names
from skd_core.inference.weights import load_weights
from skd_core.priors import PRIORS, prior_of, prior_sizes, prior_tolerances

COMMITTED = sorted((Path(__file__).resolve().parents[1] / "config" / "train").glob("*.yaml"))


def write(folder: Path, content: object) -> Path:
    path = folder / "run.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def minimal(**more: object) -> dict[str, object]:
    return {"data": {"train": {"root": "somewhere"}}, **more}


def fault(path: Path, overrides: list[str] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_are_those_of_the_method(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, minimal()))
    assert config.model.backbone == "dla34"
    assert config.model.input_size == (1280, 384)
    assert config.model.neck_channels == 64
    assert config.model.classes == ("Car", "Pedestrian", "Cyclist")
    schedule = config.schedule
    assert (schedule.epochs, schedule.batch_size, schedule.learning_rate) == (140, 16, 1.25e-3)
    assert (schedule.weight_decay, schedule.warmup_epochs, schedule.gradient_clip) == (1e-5, 5, 35)
    assert [round(share * 140) for share in schedule.decay] == [90, 120]
    assert [round(share * 140) for share in schedule.start_3d + schedule.start_distillation] == [5, 10, 10, 20]
    assert config.augment.box_jitter == 0.06
    assert config.method.gtm_beta == 0.05


def test_unknown_key_names_the_nearest_valid_one(tmp_path: Path) -> None:
    message = fault(write(tmp_path, minimal(schedule={"epoch": 3})))
    assert "schedule.epoch'" in message
    assert "did you mean 'epochs'" in message
    message = fault(write(tmp_path, minimal(modell={})))
    assert "did you mean 'model'" in message
    # inside an optional section, and nothing alike: all valid ones
    message = fault(write(tmp_path, {"data": {"train": {"root": "x"}, "val": {"root": "y", "qqqq": 1}}}))
    assert "data.val.qqqq" in message
    assert "root, split" in message


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"schedule": {"epochs": "many"}}, "schedule.epochs"),
        ({"schedule": {"epochs": 0}}, "schedule.epochs"),
        ({"schedule": {"ema": 1.0}}, "schedule.ema"),
        ({"schedule": {"decay": [90, 120]}}, "schedule.decay"),  # epochs, where shares of the run are meant
        ({"schedule": {"start_3d": [5, 10]}}, "schedule.start_3d"),
        ({"schedule": {"start_distillation": [0.2, 0.1]}}, "schedule.start_distillation"),
        ({"method": {"dimension_weight": -3}}, "method.dimension_weight"),
        ({"augment": {"flip": 2}}, "augment.flip"),
        ({"method": {"distillation": "l2"}}, "method.distillation"),
        ({"method": {"mode": "good"}}, "method.mode"),
        ({"model": {"classes": ["Car", "Car"]}}, "model.classes"),
        ({"model": {"classes": []}}, "model.classes"),
        ({"model": {"classes": ["Spaceship"]}}, "Spaceship"),
        ({"model": {"input_size": [16, 384]}}, "model.input_size"),
        ({"model": None}, "model"),
        ({"precision": "64"}, "precision"),
        ({"model": {"direction": True}}, "model.direction"),  # nothing weak teaches it
        ({"augment": {"zoom": [2, 1]}}, "augment.zoom"),
        ({"model": {"focal": math.inf}}, "model.focal"),
        ({"data": {"train": [{"root": "a", "share": math.inf}]}}, "data.train.0.share"),
        ({"data": {"train": [{"root": "a", "only_2d": True, "depth_dir": "depth"}]}}, "depth_dir"),
        ({"data": {"train": {"root": "a", "only_2d": True}, "depth_dir": "depth"}}, "depth_dir"),
        ({"data": {"train": [{"root": "a"}], "depth_dir": "depth"}}, "depth_dir"),
        ({"data": {"train": [{"root": "a", "only_2d": True}]}}, "nothing teaches the 3D heads"),
        (
            {"data": {"train": [{"root": "a", "labels_3d": False}]}, "method": {"supervised": True, "teacher": False}},
            "nothing teaches the 3D heads",
        ),
    ],
)
def test_ill_typed_value_is_named(tmp_path: Path, section: dict[str, object], key: str) -> None:
    path = write(tmp_path, minimal(**section))
    message = fault(path)
    assert key in message
    assert message.startswith(str(path))
    assert "''" not in message  # a rule of the whole config has no key of its own,
    assert "got {" not in message  # and no reader wants the config back


def test_missing_data_is_named(tmp_path: Path) -> None:
    assert "'data'" in fault(write(tmp_path, {"seed": 1}))
    assert "data.train.root" in fault(write(tmp_path, {"data": {"train": {}}}))


@pytest.mark.parametrize("content", ["[1, 2", "- a list", "", "\x00\xff"])
def test_unreadable_files(tmp_path: Path, content: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content.encode("latin-1"))
    assert fault(path).startswith(str(path))


def test_missing_file(tmp_path: Path) -> None:
    assert "nothing.yaml" in fault(tmp_path / "nothing.yaml")
    assert str(tmp_path) in fault(tmp_path)  # a folder


def test_overrides_win_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, minimal(schedule={"epochs": 7}))
    changes = ["schedule.epochs=8", "schedule.epochs=9", "model.input_size=[640, 192]", "data.val.root=v", "seed=3"]
    config = load_config(path, changes)
    assert config.schedule.epochs == 9
    assert config.model.input_size == (640, 192)
    assert config.data.val is not None
    assert config.data.val.root == "v"
    assert config.seed == 3
    assert config.data.train.root == "somewhere"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("schedule.epochs", "schedule.epochs"),
        ("schedule.epoch=3", "did you mean 'epochs'"),
        ("seed.x=3", "seed"),
        ("schedule.decay=[1, 2", "schedule.decay"),
    ],
)
def test_bad_override(tmp_path: Path, change: str, named: str) -> None:
    assert named in fault(write(tmp_path, minimal(seed=1)), [change])


def test_config_survives_its_own_dump(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, minimal(schedule={"decay": [0.5]}, model={"classes": ["Car"]})))
    again = load_config(write(tmp_path, config.model_dump(mode="json")))
    assert again == config


def test_config_cannot_be_changed() -> None:
    config = ModelConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.backbone = "other"  # type: ignore[misc]


def test_parse_config_names_what_it_read() -> None:
    with pytest.raises(UserError, match=r"^weights 'a': unknown key 'backbon'; did you mean 'backbone'\?"):
        parse_config(ModelConfig, {"backbon": "x"}, "weights 'a'")


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: p.name)
def test_committed_configs_load(path: Path) -> None:
    config = load_config(path)
    assert isinstance(config, TrainConfig)
    assert not config.method.supervised  # the product never sees 3D labels
    assert path.read_text(encoding="utf-8").startswith("#")  # the header tells the command and the result


def test_priors_are_the_tables_of_the_method() -> None:
    assert prior_of("Car").size == (1.53, 1.63, 3.88)  # h, w, l
    assert prior_of("Car").geometric_error == 0.076
    assert prior_of("Pedestrian").side_edge_weight == 0.25
    assert prior_of("Cyclist").side_edge_weight == 0.5
    sizes, tolerances = prior_sizes(["Car", "Cyclist"]), prior_tolerances(["Car", "Cyclist"])
    assert sizes.shape == tolerances.shape == (2, 3)
    assert sizes[0].tolist() == pytest.approx([3.88, 1.63, 1.53])  # l, w, h: the box's own order
    assert tolerances[0].tolist() == pytest.approx([0.11, 0.07, 0.09])
    assert all(min(p.size) > 0 and min(p.tolerance) > 0 for p in PRIORS.values())


def test_unknown_class_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"Hovercraft.*Car"):
        prior_of("Hovercraft")


@pytest.mark.parametrize("replacement", ["supervised", "direct_targets"])
def test_replacements_of_the_teacher_exclude_it(replacement: str) -> None:
    with pytest.raises(UserError, match="teacher: false"):
        parse_config(MethodConfig, {replacement: True}, "c")
    assert not parse_config(MethodConfig, {replacement: True, "teacher": False}, "c").teacher


# -- earlier names -----------------------------------------------------------------------------------------------------
EARLIER = {
    "augment": {"own_boxes": False, "box_jitter": 0.1},
    "method": {"mode": "paper", "slow_teacher": True, "gtm_measure": "pace"},
    "data": {"train": {"root": "somewhere"}, "ruler": [{"root": "elsewhere"}]},
}
TODAY = {
    "augment": {"box_jitter": 0.1},
    "method": {
        "roi_source": "labels",
        "student_targets": "teacher",
        "ema_teacher": True,
        "gtm_measure": "loss_slope",
    },
    "data": {"train": {"root": "somewhere"}, "test": [{"root": "elsewhere"}]},
}


def test_earlier_keys_are_read_under_their_names_of_today(tmp_path: Path) -> None:
    before = copy.deepcopy(EARLIER)
    expected = TrainConfig.model_validate(TODAY)
    assert load_config(write(tmp_path, EARLIER)) == expected
    assert parse_config(TrainConfig, EARLIER, "a checkpoint") == expected
    assert before == EARLIER
    assert expected.method.roi_source == "labels"
    for value, target in (("best", "teacher_and_pseudo"), ("paper", "teacher")):
        assert load_config(write(tmp_path, minimal(method={"mode": value}))).method.student_targets == target
    for own, source in ((True, "predicted"), (False, "labels")):
        assert load_config(write(tmp_path, minimal(augment={"own_boxes": own}))).method.roi_source == source


def test_earlier_keys_of_the_command_line_replace_the_files(tmp_path: Path) -> None:
    path = write(tmp_path, TODAY)
    assert load_config(path, ["method.mode=best"]).method.student_targets == "teacher_and_pseudo"
    assert load_config(path, ["augment.own_boxes=true"]).method.roi_source == "predicted"
    assert load_config(path, ["method.mode=best", "method.student_targets=teacher"]).method.student_targets == "teacher"
    assert load_config(write(tmp_path, minimal()), ["augment.own_boxes=false"]).method.roi_source == "labels"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"method": {"mode": "paper", "student_targets": "teacher"}},
            "method.mode is the earlier name of method.student",
        ),
        ({"augment": {"own_boxes": "perhaps"}}, "augment.own_boxes is now method.roi_source: predicted .*'perhaps'"),
        ({"method": {"mode": ["paper"]}}, "method.mode is now method.student_targets: teacher .earlier paper. or"),
        ({"augment": {"own_boxes": True}, "method": 3}, "'method'"),
    ],
)
def test_faults_with_earlier_keys_are_named(tmp_path: Path, section: dict[str, object], message: str) -> None:
    path = write(tmp_path, minimal(**section))
    assert re.search(message, fault(path))
    with pytest.raises(UserError, match=message):
        parse_config(TrainConfig, minimal(**section), "c")


@pytest.mark.parametrize("name", bundled_names())
def test_the_bundled_weights_and_their_configs_load(name: str) -> None:
    """Their metadata hold the config of their training as it was written then."""
    metadata = load_weights(name)[1]
    config = parse_config(TrainConfig, metadata["config"], name)
    assert {"own_boxes", "roi_source"} & (metadata["config"]["augment"].keys() | metadata["config"]["method"].keys())
    assert config.method.roi_source == "predicted"
    assert config.method.student_targets == "teacher_and_pseudo"
