"""Weights files from anywhere: what is no trained network's is refused by name, in one line; nothing is fetched."""

from __future__ import annotations

import json
import math
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from skd_core.config import ModelConfig, load_config, parse_config
from skd_core.errors import UserError
from skd_core.inference.metadata import FORMAT, Metadata, read_metadata
from skd_core.inference.weights import digest, load_weights, save_weights
from skd_core.models.backbone import Backbone
from skd_core.models.student import Student

State, Told = dict[str, Tensor], dict[str, Any]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[State, Told]:
    """Tensors and metadata of an untrained network's file."""
    path = tmp_path_factory.mktemp("weights") / "good.safetensors"
    torch.manual_seed(0)
    save_weights(path, Student(tiny.make_config("x").model), (100.0, 90.0), licence="Apache-2.0")
    student, metadata = load_weights(path)
    return {name: value.contiguous() for name, value in student.state_dict().items()}, metadata


def write(path: Path, state: State, metadata: object) -> Path:
    """A file whose sha256 is right: what is wrong must be found in the values."""
    told = metadata | {"sha256": digest(state)} if isinstance(metadata, dict) else metadata
    save_file(state, str(path), {"skd_core": told if isinstance(told, str) else json.dumps(told)})
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_weights(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# -- tensors -----------------------------------------------------------------------------------------------------------
def first(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        changed.view(-1)[0] = value
        return changed

    return change


WEIGHT, VARIANCE, COUNT = "backbone.body.conv_stem.weight", "backbone.body.bn1.running_var", "num_batches_tracked"
TENSORS: dict[str, tuple[str, Callable[[Tensor], Tensor], str]] = {
    "NaN": (WEIGHT, first(math.nan), "NaN or infinity"),
    "inf": ("backbone.neck.lateral.0.bias", first(math.inf), "NaN or infinity"),
    "-inf in a statistic": ("backbone.body.bn1.running_mean", first(-math.inf), "NaN or infinity"),
    "huge": (WEIGHT, first(-3e7), "holds 3e\\+07"),
    "huge float64": (WEIGHT, lambda t: first(1e300)(t.double()), "holds 1e\\+300"),
    "huge statistic": (VARIANCE, first(1e20), "holds 1e\\+20"),
    "negative variance": (VARIANCE, first(-0.5), "negative variance"),
    "bool": (WEIGHT, lambda t: t > 0, "torch.bool"),
    "int": (WEIGHT, lambda t: t.int(), "torch.int32"),
    "uint8": (VARIANCE, lambda t: t.to(torch.uint8), "torch.uint8"),
    "complex": (WEIGHT, lambda t: t.to(torch.complex64), "torch.complex64"),
    "shape": (WEIGHT, lambda t: t[:1].clone(), "of shape"),
    "count as float": (f"backbone.body.bn1.{COUNT}", lambda t: t.float(), "torch.float32"),
    "count as bool": (f"backbone.body.bn1.{COUNT}", lambda t: t > 0, "torch.bool"),
    "negative count": (f"backbone.body.bn1.{COUNT}", lambda t: t - 3, "negative count"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_that_no_training_makes_are_refused_by_name(
    kind: str, good: tuple[State, Told], tmp_path: Path
) -> None:
    name, change, said = TENSORS[kind]
    state = good[0] | {name: change(good[0][name])}
    pattern = rf"tensor '{name}' .*{said}"
    with pytest.raises(UserError, match=pattern):
        load_weights(write(tmp_path / "w.safetensors", state, good[1]))


@settings(max_examples=15, deadline=None)
@given(data=st.data(), value=st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -1e38]))
def test_one_bad_number_anywhere_is_refused(
    data: st.DataObject, value: float, good: tuple[State, Told], tmp_path_factory: pytest.TempPathFactory
) -> None:
    state, metadata = good
    name = data.draw(st.sampled_from(sorted(name for name, tensor in state.items() if tensor.is_floating_point())))
    bad = state[name].clone()
    bad.view(-1)[data.draw(st.integers(0, bad.numel() - 1))] = value
    path = write(tmp_path_factory.mktemp("w") / "w.safetensors", state | {name: bad}, metadata)
    assert f"'{name}'" in refusal(path)


def test_missing_and_unknown_tensors_are_named(good: tuple[State, Told], tmp_path: Path) -> None:
    state, metadata = good
    less = {name: value for name, value in state.items() if name != WEIGHT}
    assert f"no tensor '{WEIGHT}'" in refusal(write(tmp_path / "w.safetensors", less, metadata))
    more = state | {"backbone.body.extra": torch.zeros(2)}
    assert "'backbone.body.extra'" in refusal(write(tmp_path / "w.safetensors", more, metadata))


def test_a_network_that_answers_nan_is_refused_though_each_number_is_sound(
    good: tuple[State, Told], tmp_path: Path
) -> None:
    state = {k: v * 9000 if v.is_floating_point() and v.dim() == 4 and v.abs().max() < 1 else v for k, v in
             good[0].items()}  # fmt: skip
    assert "answers a picture with NaN or infinity" in refusal(write(tmp_path / "w.safetensors", state, good[1]))


def test_a_network_of_zeros_is_refused(good: tuple[State, Told], tmp_path: Path) -> None:
    """Whatever part is zero that cuts the way from the image to the heatmap."""
    for part in ("", "backbone.body", "backbone.neck"):
        state = {k: torch.zeros_like(v) if k.startswith(part) else v for k, v in good[0].items()}
        assert "same answer to different pictures" in refusal(write(tmp_path / "w.safetensors", state, good[1]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_are_read(dtype: torch.dtype, good: tuple[State, Told], tmp_path: Path) -> None:
    state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in good[0].items()}
    student, _ = load_weights(write(tmp_path / "w.safetensors", state, good[1]))
    assert student.state_dict()[WEIGHT].dtype == torch.float32
    assert torch.equal(student.state_dict()[WEIGHT], state[WEIGHT].float())


# -- metadata ----------------------------------------------------------------------------------------------------------
TEXTS = {
    "empty": "", "no JSON": "{", "list": "[]", "text": '"weights"', "number": "3", "null": "null", "true": "true",
    "list of pairs": '[["format", "skd_core.student.v1"]]', "not a number": "NaN", "deep": "[" * 100_000,
    "deep and closed": '{"format":' + "[" * 50_000 + "]" * 50_000 + "}", "digits": '{"format": ' + "7" * 5000 + "}",
    "format is a list": '{"format": ["skd_core.student.v1"]}', "only the format": f'{{"format": "{FORMAT}"}}',
}  # fmt: skip


@pytest.mark.parametrize("kind", TEXTS)
def test_metadata_of_another_kind_are_one_line(kind: str, good: tuple[State, Told], tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(good[0], str(path), {"skd_core": TEXTS[kind]})
    assert len(refusal(path)) < 400


CALIBRATION = {"depth_scale": 1.2, "lateral_std": 0.01, "vertical_std": 0.02, "yaw_std": 0.3, "flip": 0.5, "count": 40}
NESTED: Any = 3
for _ in range(300):
    NESTED = [NESTED]
VALUES: dict[str, list[Any]] = {
    "focal": [
        [0.0, 90.0], [-100.0, 90.0], [math.nan, 90.0], [100.0, math.inf], [100.0, 1e9], [1e-300, 1e-300], [100.0],
        [100.0, 90.0, 80.0], 100.0, "100", ["100", "90"], [True, True], [[100.0], [90.0]], None, {}, {"x": 100.0},
        [10**400, 90], NESTED,
    ],
    "model": [None, [], "dla34", 3, NESTED, {"backbone": ["dla34"]}, {"backbone": None}, {"classes": {}},
              {"classes": ["Car", "Car"]}, {"classes": "Car"}, {"input_size": [1e9, 64]},
              {"input_size": [10**8, 10**8]},
              {"neck_channels": 10**9}, {"neck_channels": 10**400}, {"head_channels": -8}, {"roi_size": 10**6},
              {"focal": -557.0}, {"focal": math.inf}, {"center_range": math.nan}, {"roi_size": NESTED}],
    "sha256": [None, 3, [], {}],
    "prior_sizes": [None, [], [[3.9, 1.6, 1.5]], [[3.9, 1.6]] * 3, [[0.0, 1.6, 1.5]] * 3, [[math.nan, 1.6, 1.5]] * 3,
                    [[-3.9, 1.6, 1.5]] * 3, [[1e9, 1.6, 1.5]] * 3, "large", 3, [["3.9", "1.6", "1.5"]] * 3, NESTED],
    "threshold": [None, "0.3", 2, -0.1, math.nan, True, [0.3], {"Car": 0.3}],
    "learnt_from": [None, 3, ["2D boxes"]],
    "trained_on": [None, "kitti", ["kitti"], {"kitti": 3}, {"kitti": ["MIT"]}],
    "licence": [None, 3, ["MIT"]],
    "heading_known": [None, True, "no", 0, []],
    "calibration": [None, [], "Car", {"Car": None}, {"Car": {}}, {"Car": CALIBRATION | {"depth_scale": 0.0}},
                    {"Car": CALIBRATION | {"yaw_std": math.nan}}, {"Car": CALIBRATION | {"yaw_std": -0.3}},
                    {"Car": CALIBRATION | {"lateral_std": 1e9}}, {"Car": CALIBRATION | {"flip": 0.7}},
                    {"Car": CALIBRATION | {"count": 2.5}}, {"Car": CALIBRATION | {"yaw": 1.0}}, {"Car": NESTED}],
}  # fmt: skip


@pytest.mark.parametrize("key", VALUES)
def test_metadata_with_values_that_cannot_be_name_the_entry(key: str, good: tuple[State, Told], tmp_path: Path) -> None:
    state, metadata = good
    for value in VALUES[key]:
        changed = metadata[key] | value if key == "model" and isinstance(value, dict) else value
        path = tmp_path / "w.safetensors"
        save_file(state, str(path), {"skd_core": json.dumps(metadata | {key: changed})})
        message = refusal(path)
        assert len(message) < 600
        assert key in message or any(part in message for part in (value if isinstance(value, dict) else ())), message


def test_sound_entries_pass(good: tuple[State, Told], tmp_path: Path) -> None:
    more = {"calibration": {"Car": CALIBRATION}, "threshold": 1, "own": {"anything": [None, 3]}}
    student, metadata = load_weights(write(tmp_path / "w.safetensors", good[0], good[1] | more))
    assert {key: metadata[key] for key in more} == more
    assert metadata["heading_known"] is student.config.direction is False


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(changes=st.dictionaries(st.sampled_from([*Metadata.model_fields, "more"]), json_values, min_size=1, max_size=4))
def test_whatever_the_metadata_say_is_an_answer_or_one_line(changes: Told) -> None:
    base = {"format": FORMAT, "model": {}, "focal": [100.0, 90.0], "sha256": ""}
    message, found = "", base
    try:
        found = read_metadata(json.dumps(base | changes), "file")
    except UserError as error:
        message = str(error)
    assert not message or re.fullmatch("file: .+", message)
    assert all(1 <= side <= 1e5 for side in found["focal"])  # type: ignore[attr-defined]


# -- names of backbones ------------------------------------------------------------------------------------------------
FETCHING = (
    "hf-hub:timm/resnet18.a1_in1k", "hf_hub:timm/resnet18", "local-dir:/tmp/model", "local-dir:resnet18",
    "timm/resnet18", "https://example.org/model.pth", "file:///tmp/model", "../resnet18", "/resnet18", "resnet18@main",
    "hf-hub://resnet18", "HF-HUB:resnet18", " resnet18", "resnet18\n", "", "resnet18.",
)  # fmt: skip


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call to any host is an error of another kind than what is expected."""

    def connect(*arguments: object, **options: object) -> None:
        raise AssertionError(f"connects to {arguments}")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)


@pytest.mark.parametrize("name", FETCHING)
@pytest.mark.usefixtures("offline")
def test_only_plain_names_of_timm_are_backbones(name: str, good: tuple[State, Told], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"c: 'backbone'.*plain name of timm.*nothing is fetched"):
        parse_config(ModelConfig, {"backbone": name}, "c")
    with pytest.raises(UserError, match="not a timm feature backbone"):
        Backbone(name, 8)
    told = good[1] | {"model": good[1]["model"] | {"backbone": name}}
    assert "plain name of timm" in refusal(write(tmp_path / "w.safetensors", good[0], told))
    config = tmp_path / "c.yaml"
    config.write_text(json.dumps({"data": {"train": {"root": "x"}}, "model": {"backbone": name}}))
    with pytest.raises(UserError, match="plain name of timm"):
        load_config(config)


def test_a_tag_is_part_of_a_plain_name() -> None:
    assert parse_config(ModelConfig, {"backbone": "mobilenetv3_small_050.lamb_in1k"}, "c")
    assert Backbone("mobilenetv3_small_050.lamb_in1k", 8)
    with pytest.raises(UserError, match="not a timm feature backbone"):
        Backbone("mobilenetv3_small_050.no_such_tag", 8)
