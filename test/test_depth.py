"""Depth sources, relative depth, and the pseudo-targets made of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from skd_core.boxes import Boxes2D
from skd_core.cli import app
from skd_core.data.kitti import KittiDataset
from skd_core.data.sample import Sample, read_depth
from skd_core.errors import UserError
from skd_core.priors import PRIORS, prior_of
from skd_core.supervision.depth import (
    _fit_line,
    align_relative,
    check_kind,
    encode_depth,
    fill_cache,
    load_estimator,
)
from skd_core.supervision.pseudo import (
    PseudoTargets,
    fit_alpha,
    fit_ground,
    nearest_mode,
    pseudo_targets,
    scale_factor,
)
from skd_core.supervision.target_report import measure
from skd_core.supervision.targets import TargetMaker, share_line
from skd_core.synthetic import DepthNoise, SynthConfig, render_frame
from skd_core.training.dataset import TrainingSet

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
run = CliRunner()
pytestmark = pytest.mark.filterwarnings("ignore:.*(legacy TorchScript|will be removed):DeprecationWarning")


# -- estimators --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number, size in enumerate([(60, 40), (60, 40), (72, 33)]):
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(folder / f"{number:06d}.png")
    return folder


def save_model(folder: Path, kind: str = "relative") -> Path:
    """A DepthAnything of a few thousand random weights, as transformers saves one."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    torch.manual_seed(0)
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=14,
        out_features=["stage1", "stage1", "stage2", "stage2"][1::2], reshape_hidden_states=False,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=16, reassemble_factors=[2, 1],
        neck_hidden_sizes=[8, 8], fusion_hidden_size=8, head_hidden_size=4, depth_estimation_type=kind, max_depth=80,
    )  # fmt: skip
    network = DepthAnythingForDepthEstimation(config)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.3)  # the usual first weights give a map that is all but flat
    network.save_pretrained(folder)
    DPTImageProcessor(
        size={"height": 28, "width": 42}, keep_aspect_ratio=False, ensure_multiple_of=14, do_pad=False
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def relative_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("relative"))


@pytest.fixture(scope="module")
def metric_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("metric"), "metric")


class Brightness(nn.Module):
    """10 m + 10 x the mean of the normalised channels: what the right preprocessing gives is known by hand."""

    def forward(self, image: Tensor) -> Tensor:
        return 10 + 10 * image.mean(1)


def export(module: nn.Module, path: Path, *inputs: Tensor, free: bool = True) -> Path:
    axes = {f"x{i}": {2: "height", 3: "width"} for i in range(len(inputs))} if free else None
    names = [f"x{i}" for i in range(len(inputs))]
    torch.onnx.export(module, inputs, str(path), input_names=names, dynamic_axes=axes, dynamo=False)
    return path


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(Brightness(), tmp_path_factory.mktemp("onnx") / "tiny.onnx", torch.zeros(1, 3, 28, 28))


@pytest.mark.parametrize("kind", ["relative", "metric"])
def test_transformers_model_says_its_kind(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(f"{kind}_model")
    estimate, found = load_estimator(str(folder), None, "cpu")
    assert found == kind
    image = torch.randint(0, 255, (3, 33, 72), dtype=torch.uint8)
    depth = estimate(image)
    assert depth.shape == (33, 72)
    assert depth.isfinite().all()
    assert torch.equal(depth, estimate(image))
    assert not torch.equal(depth, estimate(255 - image))
    with pytest.raises(UserError, match=f"estimates {kind} depth"):
        load_estimator(str(folder), "metric" if kind == "relative" else "relative", "cpu")


def test_onnx_input_is_normalised_as_for_imagenet(onnx_file: Path) -> None:
    estimate, _ = load_estimator(str(onnx_file), "metric", "cpu")
    depth = estimate(torch.full((3, 30, 50), 128, dtype=torch.uint8))
    normalised = np.mean((128 / 255 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225])
    assert depth.shape == (30, 50)
    assert depth.numpy() == pytest.approx(10 + 10 * normalised, abs=1e-4)


def test_onnx_of_a_fixed_size(tmp_path: Path) -> None:
    path = export(Brightness(), tmp_path / "fixed.onnx", torch.zeros(1, 3, 16, 20), free=False)
    assert load_estimator(str(path), "metric", "cpu")[0](torch.zeros(3, 30, 50, dtype=torch.uint8)).shape == (30, 50)


class TwoInputs(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a + b).mean(1)


class TwoMaps(nn.Module):
    def forward(self, a: Tensor) -> Tensor:
        return a[:, :2]


class Grey(nn.Module):
    def forward(self, a: Tensor) -> Tensor:
        return a.mean(1)


def test_unsuitable_models_are_named_in_one_line(tmp_path: Path, relative_model: Path) -> None:
    image = torch.zeros(1, 3, 28, 28)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    empty = tmp_path / "empty"
    empty.mkdir()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text("{}")
    cases: list[tuple[str, str]] = [
        (str(tmp_path / "no.onnx"), "no such file"),
        (str(broken), "not a usable ONNX model"),
        (str(export(TwoInputs(), tmp_path / "two.onnx", image, image)), "needs one float32 image input"),
        (str(export(Grey(), tmp_path / "grey.onnx", image[:, :1])), "needs one float32 image input"),
        (str(empty), "no config.json"),
        (str(damaged), "cannot load"),
        ("someone/no-such-model", "--download"),
    ]
    for model, text in cases:
        with pytest.raises(UserError, match=text) as error:
            load_estimator(model, "metric", "cpu")
        assert model in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="--kind"):
        load_estimator(str(tmp_path / "two.onnx"), None, "cpu")
    maps = export(TwoMaps(), tmp_path / "maps.onnx", image)
    with pytest.raises(UserError, match="one depth map"):
        load_estimator(str(maps), "metric", "cpu")[0](torch.zeros(3, 30, 50, dtype=torch.uint8))


# -- the cache ---------------------------------------------------------------------------------------------------------
def test_metric_maps_survive_the_png(tmp_path: Path) -> None:
    depth = np.array([[0.0, 1.0, 37.123], [np.nan, -2.0, 300.0]], np.float32)
    (tmp_path / "a.png").write_bytes(encode_depth(depth, "metric"))
    expected = [[0, 1, 37.123], [0, 0, 65535 / 256]]
    assert read_depth(tmp_path / "a.png").numpy() == pytest.approx(np.array(expected), abs=1 / 512)


def test_relative_maps_keep_differences_and_stay_positive(tmp_path: Path) -> None:
    depth = np.array([[-3.0, 0.5, np.inf], [2.0, 7.0, 1.0]], np.float32)
    (tmp_path / "a.npy").write_bytes(encode_depth(depth, "relative"))
    found = read_depth(tmp_path / "a.npy").numpy()
    assert found[0, 2] == 0
    known = np.isfinite(depth)
    assert (found[known] > 0).all()
    assert found[known] - found[1, 0] == pytest.approx(depth[known] - 2, abs=1e-5)
    plain = np.array([[0.0, 0.5], [2.0, 7.0]], np.float32)  # not negative: stays as it is, 0 is "infinitely far"
    (tmp_path / "b.npy").write_bytes(encode_depth(plain, "relative"))
    assert np.array_equal(read_depth(tmp_path / "b.npy").numpy(), plain)


def test_interrupted_cache_goes_on_and_equals_an_uninterrupted_one(images: Path, tmp_path: Path) -> None:
    calls = 0

    def estimate(image: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return image.float().mean(0) + 1

    with pytest.raises(KeyboardInterrupt):
        fill_cache([images], tmp_path / "a", estimate, "metric", "m")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["000000.png", "depth.json"]
    assert fill_cache([images], tmp_path / "a", estimate, "metric", "m") == (2, 1)
    assert calls == 4  # the first map was not made again
    fill_cache([images], tmp_path / "b", estimate, "metric", "m")
    for path in (tmp_path / "b").iterdir():
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()


def test_cache_of_another_model_or_kind_is_refused(images: Path, tmp_path: Path) -> None:
    def estimate(image: Tensor) -> Tensor:
        return torch.ones(image.shape[1:])

    fill_cache([images], tmp_path, estimate, "metric", "a")
    before = sorted(p.name for p in tmp_path.iterdir())
    for kind, source in (("metric", "b"), ("relative", "a")):
        with pytest.raises(UserError, match="another model or setting"):
            fill_cache([images], tmp_path, estimate, kind, source)  # type: ignore[arg-type]
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    check_kind(tmp_path, "metric")
    with pytest.raises(UserError, match="holds metric depth"):
        check_kind(tmp_path, "relative")
    (tmp_path / "depth.json").write_text("{")
    with pytest.raises(UserError, match=r"depth\.json: cannot read"):
        check_kind(tmp_path, "metric")


def test_metric_depth_is_scaled_by_each_images_focal_length(images: Path, tmp_path: Path) -> None:
    calibs = tmp_path / "calib"
    calibs.mkdir()
    for number, focal in enumerate((700, 1400, 350)):
        (calibs / f"{number:06d}.txt").write_text(f"P2: {focal} 0 30 0 0 {focal} 20 0 0 0 1 0\n")
    estimate: Callable[[Tensor], Tensor] = lambda image: torch.full(image.shape[1:], 8.0)  # noqa: E731
    fill_cache([images], tmp_path / "out", estimate, "metric", "m", camera=calibs, model_focal=700)
    means = [float(read_depth(tmp_path / "out" / f"{n:06d}.png").mean()) for n in range(3)]
    assert means == pytest.approx([8, 16, 4])


def test_depth_command(images: Path, tmp_path: Path, metric_model: Path, onnx_file: Path) -> None:
    def call(*more: Any) -> Any:
        return run.invoke(app, ["depth", str(images), "--device", "cpu", *map(str, more)])

    out = tmp_path / "depth"
    result = call("--model", metric_model, "--out", out)
    assert result.exit_code == 0, result.output
    assert "3 maps made, 0 were there" in result.output
    assert read_depth(out / "000002.png").shape == (33, 72)
    assert "0 maps made, 3 were there" in call("--model", metric_model, "--out", out).output
    inverse = tmp_path / "inverse"
    assert call("--model", onnx_file, "--kind", "relative", "--out", inverse).exit_code == 0
    assert np.load(inverse / "000001.npy").dtype == np.float32
    wrong: list[tuple[list[Any], str]] = [
        (["--model", onnx_file, "--kind", "metric", "--out", out], "another model"),
        (["--model", onnx_file, "--out", tmp_path / "x"], "--kind"),
        (["--model", onnx_file, "--kind", "depth", "--out", tmp_path / "x"], "metric or relative"),
        (["--model", onnx_file, "--kind", "metric", "--model-focal", 700, "--out", tmp_path / "x"], "belong together"),
        (["--model", tmp_path / "no", "--out", tmp_path / "x"], "--download"),
    ]
    for arguments, text in wrong:
        result = call(*arguments)
        assert isinstance(result.exception, UserError), arguments
        assert text in str(result.exception)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.png").write_bytes(b"no picture")
    more = ["--model", str(onnx_file), "--kind", "metric", "--out", str(tmp_path / "y")]
    result = run.invoke(app, ["depth", str(tmp_path / "bad"), *more])
    assert "1.png: cannot read image" in str(result.exception)


# -- relative depth ----------------------------------------------------------------------------------------------------
def relative_sample(number: int, rng: np.random.Generator, noise: float = 0.0) -> tuple[Sample, Tensor]:
    """A rendered frame with inverse depth of random scale and shift, and its true (or estimated) depth."""
    sample = tiny.rendered_sample(number, noise)
    frame = render_frame(SynthConfig(640, 192, depth_noise=DepthNoise(noise)), 5, number)
    truth = torch.from_numpy(frame.depth_true if noise == 0 else frame.depth).float()
    inverse = 1 / truth.clamp(min=0.1) + rng.uniform(0, 0.5)
    return replace(sample, depth=torch.where(truth > 0, rng.uniform(0.1, 50) * inverse, 0.0)), truth


def test_relative_depth_gets_its_metres() -> None:
    rng = np.random.default_rng(3)
    errors = []
    for number in range(12):
        sample, truth = relative_sample(number, rng)
        aligned = align_relative(sample)
        if aligned.depth is None:
            continue
        near = (truth > 3) & (truth < 50) & (aligned.depth > 0)
        errors.append(float((aligned.depth[near] / truth[near] - 1).abs().median()))
        assert (aligned.depth[truth == 0] == 0).all()
    assert len(errors) >= 10
    assert np.median(errors) < 0.05
    assert max(errors) < 0.15


def test_targets_of_relative_depth_are_about_as_good_as_of_metric() -> None:
    rng = np.random.default_rng(4)
    maker, metric, relative = TargetMaker("relative"), [], []
    for number in range(12):
        sample, truth = relative_sample(number, rng, 0.06)
        aligned, plain = maker.read(sample), replace(sample, depth=truth)
        relative.append((aligned, pseudo_targets(aligned)))
        metric.append((plain, pseudo_targets(plain)))
    a, b = (table.statistics(table.distance > 0) for table in (measure(relative), measure(metric)))
    assert a["with_depth"] > b["with_depth"] - 0.2
    assert a["depth_median"] < b["depth_median"] + 0.03
    assert abs(a["depth_bias"]) < 0.05
    assert a["yaw_cosine"] > b["yaw_cosine"] - 0.1


def test_too_few_objects_or_an_inverted_map_have_no_metres() -> None:
    sample, truth = relative_sample(0, np.random.default_rng(0))
    assert len(sample.boxes2d) >= 3
    assert align_relative(sample).depth is not None
    two = replace(sample, boxes2d=sample.boxes2d[[0, 1]], boxes3d=None, full_xyxy=None, hidden=None)
    assert align_relative(two).depth is None
    assert align_relative(replace(sample, depth=truth)).depth is None  # larger is farther
    assert align_relative(replace(sample, depth=torch.ones_like(truth))).depth is None
    assert align_relative(replace(sample, depth=torch.zeros_like(truth))).depth is None
    assert align_relative(replace(sample, depth=None)).depth is None


def test_line_ignores_gross_outliers() -> None:
    x = np.array([1.0, 2, 3, 4, 5, 6, 7])
    y = 0.02 * x + 0.01
    y[2], y[5] = 0.5, 0.001
    line = _fit_line(x, y, np.ones(7))
    assert line == pytest.approx((0.02, 0.01), rel=1e-3)
    assert _fit_line(x, y[::-1] * 0 + 0.3 - 0.02 * x, np.ones(7)) is None


# -- pseudo-targets ----------------------------------------------------------------------------------------------------
def test_scale_of_an_image() -> None:
    assert scale_factor([1.1, 1.2]) == 1
    assert scale_factor([1.1, 1.2, 1.0]) == pytest.approx(1.05)
    assert scale_factor([2.0, 3.0, 2.5]) == pytest.approx(1.125)
    assert scale_factor([0.1, 0.2, 0.3]) == pytest.approx(0.9)


def test_nearest_mode_is_the_object_and_not_what_is_behind() -> None:
    z = np.concatenate([np.full(20, 5.0), np.full(40, 12.0), np.full(60, 30.0)])  # a pole, a car, a wall
    points = np.column_stack([np.zeros_like(z), np.zeros_like(z), z])
    assert set(nearest_mode(points, 2.0)[:, 2]) == {12.0}


def test_ground_of_a_flat_road() -> None:
    camera = tiny.kitti_camera()
    P = camera.P.numpy()
    v = np.arange(375)[:, None] + 0.5
    depth = np.where(v > P[1, 2] + 5, (P[1, 1] * 1.65 - P[1, 3]) / np.maximum(v - P[1, 2], 1), 0) * np.ones((1, 1242))
    plane = fit_ground(depth, np.zeros((0, 4)), P)
    assert plane == pytest.approx([0, 0, 1.65], abs=0.02)
    assert fit_ground(np.zeros_like(depth), np.zeros((0, 4)), P) is None


def visible_points(yaw: float, center: tuple[float, float], l: float, w: float) -> np.ndarray:  # noqa: E741
    """(n, 2) points on the faces of a rectangle that the camera at the origin sees."""
    forward, left = np.array([math.cos(yaw), -math.sin(yaw)]), np.array([math.sin(yaw), math.cos(yaw)])
    c, t, points = np.array(center), np.linspace(-0.5, 0.5, 60)[:, None], []
    for normal, along, half, extent in ((forward, left, l / 2, w), (left, forward, w / 2, l)):
        for sign in (1, -1):
            middle = c + sign * half * normal
            if sign * (normal @ middle) < 0:  # the face looks towards the camera
                points.append(middle + t * extent * along)
    return np.concatenate(points)


@pytest.mark.parametrize("degrees", range(-85, 90, 10))
@pytest.mark.parametrize("center", [(0.0, 12.0), (-6.0, 15.0), (5.0, 25.0)])
def test_yaw_of_a_rectangle(degrees: float, center: tuple[float, float]) -> None:
    prior, camera = prior_of("Car"), tiny.kitti_camera()
    h, w, l = prior.size  # noqa: E741
    yaw = math.radians(degrees)
    tensors = torch.tensor([[center[0], 0.9, center[1]]]), torch.tensor([[l, w, h]]), torch.tensor([yaw])
    box = tiny.boxes_around(*tensors, camera)[0].double().numpy()
    alpha, weight = fit_alpha(visible_points(yaw, center, l, w), prior, box, camera.P.numpy(), whole=True)
    ray = math.atan2(0.5 * (box[0] + box[2]) - camera.cx, camera.fx)
    error = abs((alpha + ray - yaw + math.pi / 2) % math.pi - math.pi / 2)
    assert math.degrees(error) < 4
    assert weight > 0.7


def test_width_alone_knows_the_axis_but_not_the_mirror_image() -> None:
    prior, camera = prior_of("Car"), tiny.kitti_camera()
    h, w, l = prior.size  # noqa: E741
    found = {}
    for degrees in (0, 45, 90):
        tensors = torch.tensor([[0.0, 0.9, 20.0]]), torch.tensor([[l, w, h]]), torch.tensor([math.radians(degrees)])
        box = tiny.boxes_around(*tensors, camera)[0].double().numpy()
        found[degrees] = fit_alpha(None, prior, box, camera.P.numpy(), whole=True)
    assert abs(math.cos(found[0][0])) > 0.98
    assert abs(math.sin(found[90][0])) > 0.98
    assert found[90][1] > 0.8
    assert found[0][1] > 0.4  # seen from the side, 20 degrees change the width by little
    assert found[45][1] < 0.4  # 45 and -45 degrees look alike
    assert fit_alpha(None, prior, box, camera.P.numpy(), whole=False)[1] < 0.05  # nothing is known
    assert fit_alpha(None, prior_of("Pedestrian"), box, camera.P.numpy(), whole=True)[1] == 0  # no long side


@pytest.fixture(scope="module")
def rendered() -> list[tuple[Sample, PseudoTargets]]:
    samples = [tiny.rendered_sample(number, 0.06, seed=21) for number in range(30)]
    return [(sample, pseudo_targets(sample)) for sample in samples]


def test_targets_of_rendered_frames_are_near_the_truth(rendered: list[tuple[Sample, PseudoTargets]]) -> None:
    table = measure(rendered)
    car = table.statistics((table.label == "Car") & (table.distance > 8) & (table.distance < 35))
    assert car["boxes"] > 40
    assert car["with_depth"] > 0.8
    assert car["depth_median"] < 0.06
    assert abs(car["depth_bias"]) < 0.03
    assert car["yaw_median"] < 8
    sure = table.statistics((table.label == "Car") & (table.weight > 0.75))
    unsure = table.statistics((table.label == "Car") & (table.weight < 0.5))
    assert sure["yaw_gross"] < 0.1
    assert sure["yaw_cosine"] > 0.85
    assert sure["yaw_median"] < 0.5 * unsure["yaw_median"]


def test_targets_know_nothing_of_3d_labels(rendered: list[tuple[Sample, PseudoTargets]]) -> None:
    sample, made = rendered[0]
    again = pseudo_targets(replace(sample, boxes3d=None, full_xyxy=None, hidden=None))
    assert all(torch.equal(getattr(made, n).nan_to_num(-9), getattr(again, n).nan_to_num(-9)) for n in vars(made))


def test_surface_instead_of_centre_is_nearer_by_half_the_extent(rendered: list[tuple[Sample, PseudoTargets]]) -> None:
    for sample, made in rendered[:5]:
        surface = pseudo_targets(sample, center_offset=False)
        gap = (made.z - surface.z)[made.z.isfinite()]
        assert torch.equal(made.z.isfinite(), surface.z.isfinite())
        assert ((gap > 0.25) & (gap < 2.2)).all()


def test_targets_of_odd_samples() -> None:
    sample = tiny.rendered_sample(0)
    assert sample.depth is not None
    none = pseudo_targets(replace(sample, depth=None))
    assert none.z.isnan().all()
    assert (none.alpha_weight == 0).all()
    empty = pseudo_targets(replace(sample, boxes2d=Boxes2D.empty(), boxes3d=None, full_xyxy=None, hidden=None))
    assert len(empty.z) == 0
    W, H = sample.camera.width, sample.camera.height
    odd = torch.tensor([[10.0, 10, 10.5, 10.5], [0, 0, W, H], [W - 1.0, H - 1.0, W, H], [20, 20, 20, 20]])
    for depth in (sample.depth, torch.zeros_like(sample.depth), torch.full_like(sample.depth, 1e-3)):
        made = pseudo_targets(
            replace(sample, boxes2d=Boxes2D(odd, ("Car",) * 4), boxes3d=None, depth=depth, full_xyxy=None, hidden=None)
        )
        assert ((made.alpha_weight >= 0) & (made.alpha_weight <= 1)).all()
        assert (made.z[made.z.isfinite()] > 0).all()
        assert made.alpha[made.alpha_weight > 0].isfinite().all()


def test_a_box_cut_at_a_corner_of_the_image_has_no_depth() -> None:
    sample = tiny.rendered_sample(0)
    W, H = sample.camera.width, sample.camera.height
    depth = torch.full((H, W), 6.0)
    boxes = Boxes2D(torch.tensor([[0.0, 60, 150, H], [200, 60, 350, 150]]), ("Car", "Car"))
    made = pseudo_targets(replace(sample, boxes2d=boxes, boxes3d=None, depth=depth, full_xyxy=None, hidden=None))
    assert made.z[0].isnan()
    assert made.points[0].isfinite().any()  # its surface is still seen


# -- the targets of a data set -----------------------------------------------------------------------------------------
@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tiny.make_dataset(tmp_path / "set", 4)


def open_root(root: Path, depth_dir: str = "depth") -> KittiDataset:
    return KittiDataset(root, None, tiny.CLASSES, depth_dir)


def same(a: list[PseudoTargets], b: list[PseudoTargets]) -> bool:
    pairs = [(getattr(p, n), getattr(q, n)) for p, q in zip(a, b, strict=True) for n in vars(p)]
    return all(x.dtype == y.dtype and torch.equal(x.nan_to_num(-9), y.nan_to_num(-9)) for x, y in pairs)


def test_kept_targets_are_the_made_ones_until_something_changes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import skd_core.supervision.targets as module

    calls: list[str] = []

    def counted(sample: Sample, center_offset: bool = True) -> PseudoTargets:
        calls.append(sample.name)
        return pseudo_targets(sample, center_offset)

    monkeypatch.setattr(module, "pseudo_targets", counted)
    first = TargetMaker().all(open_root(root))
    assert len(calls) == 4
    assert same(TargetMaker().all(open_root(root)), first)
    assert len(calls) == 4
    assert not same(TargetMaker(center_offset=False).all(open_root(root)), first)
    assert len(calls) == 8
    assert same(TargetMaker().all(open_root(root)), first)  # both settings are kept
    assert len(calls) == 8
    kept = sorted((root / "training" / "depth").glob("pseudo-*.npz"))
    assert len(kept) == 2

    depth = root / "training" / "depth" / "000001.png"
    far = (np.asarray(Image.open(depth), np.float32) * 1.05).clip(0, 65535).astype(np.uint16)
    Image.fromarray(far).save(depth)
    changed = TargetMaker().all(open_root(root))
    assert len(calls) == 12
    assert not same(changed, first)
    assert sorted((root / "training" / "depth").glob("pseudo-*.npz")) == kept  # replaced, not piled up
    for path in kept:
        path.write_bytes(path.read_bytes()[:100])
    assert same(TargetMaker().all(open_root(root)), changed)
    assert len(calls) == 16
    monkeypatch.setattr(module, "VERSION", -1)
    TargetMaker().all(open_root(root))
    assert len(calls) == 20
    monkeypatch.setitem(PRIORS, "Car", replace(PRIORS["Car"], size=(1.6, 1.8, 4.5)))
    assert not same(TargetMaker().all(open_root(root)), changed)
    assert len(calls) == 24


def test_training_set_uses_the_kept_targets(root: Path) -> None:
    config = tiny.make_config(root)
    one, other = TrainingSet(open_root(root), config), TrainingSet(open_root(root), config)
    line = one.make_targets()
    assert "boxes have a depth" in line
    assert one.sources[0].targets is not None
    assert line == share_line(one.sources[0].targets)
    assert same([one.prepared(i)[1] for i in range(4)], [other.prepared(i)[1] for i in range(4)])
    supervised = tiny.make_config(root, method={"supervised": True, "teacher": False})
    assert "none" in TrainingSet(open_root(root), supervised).make_targets()


def test_training_on_relative_depth(root: Path) -> None:
    inverse = root / "training" / "inverse"
    inverse.mkdir()
    for path in (root / "training" / "depth").glob("*.png"):
        z = read_depth(path).numpy()
        np.save(inverse / f"{path.stem}.npy", np.where(z > 0, 7 / np.maximum(z, 0.1) + 0.4, 0).astype(np.float32))
    data = {"train": {"root": str(root)}, "depth_dir": "inverse", "depth_kind": "relative"}
    dataset = TrainingSet(open_root(root, "inverse"), tiny.make_config(root, data=data))
    dataset.make_targets()
    metric = TrainingSet(open_root(root), tiny.make_config(root))
    errors = []
    for i in range(4):
        aligned, plain = dataset.prepared(i)[0].depth, metric.prepared(i)[0].depth
        if aligned is not None:
            assert plain is not None
            known = (plain > 2) & (plain < 30) & (aligned > 0)
            errors.append(float((aligned[known] / plain[known] - 1).abs().median()))
    assert np.median(errors) < 0.3  # pictures of 160x64: objects of a few pixels
    (inverse / "depth.json").write_text(json.dumps({"kind": "relative"}))
    wrong = TrainingSet(open_root(root, "inverse"), tiny.make_config(root, data=data | {"depth_kind": "metric"}))
    with pytest.raises(UserError, match="holds relative depth"):
        wrong.make_targets()


def test_pseudo_command(root: Path, tmp_path: Path) -> None:
    result = run.invoke(app, ["pseudo", str(root), "--json", str(tmp_path / "p.json")])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "p.json").read_text())
    assert found["frames"] == 4
    assert found["labels_3d"]
    boxes = sum(len(open_root(root)[i].boxes2d) for i in range(4))
    assert found["class"]["all"]["boxes"] == boxes
    assert sum(of["boxes"] for of in found["distance"].values()) == boxes
    assert abs(found["class"]["Car"]["depth_bias"]) < 0.2
    for path in (root / "training" / "label_2").iterdir():  # 2D labels alone
        lines = [line.split() for line in path.read_text().splitlines()]
        path.write_text("".join(" ".join(words[:8]) + "\n" for words in lines))
    result = run.invoke(app, ["pseudo", str(root), "--json", str(tmp_path / "q.json")])
    assert result.exit_code == 0, result.output
    assert "no 3D labels" in result.output
    without = json.loads((tmp_path / "q.json").read_text())
    assert without["class"]["all"]["with_depth"] == found["class"]["all"]["with_depth"]
    assert without["class"]["all"]["depth_median"] is None
    for arguments, text in (
        (["--depth-kind", "inverse"], "metric or relative"),
        (["--classes", "Car,Plane"], "unknown class 'Plane'"),
        (["--depth-dir", "nowhere"], "nowhere"),
    ):
        result = run.invoke(app, ["pseudo", str(root), *arguments])
        assert isinstance(result.exception, UserError)
        assert text in str(result.exception)


def test_measure_by_hand() -> None:
    sample = tiny.rendered_sample(0)
    assert sample.boxes3d is not None
    n = len(sample.boxes2d)
    seen = sample.boxes3d.center + sample.camera.offset.to(sample.boxes3d.center)  # from the optical centre
    truth, alpha = seen[:, 2], sample.boxes3d.yaw - torch.atan2(seen[:, 0], seen[:, 2])
    made = PseudoTargets.none(n)
    made.z[:] = truth * 1.1
    made.alpha[:] = alpha + math.pi + math.radians(10)  # modulo pi: 10 degrees off
    made.alpha_weight[:] = 0.5
    of = measure([(sample, made)]).statistics(np.ones(n, bool))
    assert of["with_depth"] == of["with_yaw"] == 1
    assert of["depth_bias"] == pytest.approx(0.1, abs=1e-5)
    assert of["yaw_median"] == pytest.approx(10, abs=1e-3)
    assert of["yaw_cosine"] == pytest.approx(math.cos(math.radians(20)), abs=1e-4)
    assert of["yaw_confidence"] == 0.5
    made.alpha[:] = -alpha
    assert measure([(sample, made)]).statistics(np.ones(n, bool))["yaw_folded_median"] == pytest.approx(0, abs=1e-3)


@pytest.mark.skipif(not DATA.is_dir(), reason="real data not at hand")
def test_targets_from_lidar_land_on_real_cars(tmp_path: Path) -> None:
    """A check of this code only: LiDAR never enters training."""
    (tmp_path / "training").symlink_to(DATA / "kitti_dev" / "training")
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets" / "lidar.txt").write_text("000000\n000003\n000060\n000080\n")
    source = KittiDataset(tmp_path, "lidar", depth_dir="lidar_depth", with_3d=True)
    table = measure((sample, pseudo_targets(sample)) for sample in source)  # type: ignore[attr-defined]
    near = table.statistics((table.distance < 32) & (table.label == "Car"))
    assert near["boxes"] == 4
    assert near["with_depth"] == 1
    assert near["depth_p90"] < 0.05
    assert near["yaw_p90"] < 6
