"""One ONNX graph from the image to boxes, and onnxruntime behind the same Detector."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray

from skd_core import Boxes2D, Camera, Detector
from skd_core.config import ModelConfig
from skd_core.errors import UserError
from skd_core.inference.bundled import BUNDLED, weights_metadata
from skd_core.inference.weights import digest, load_weights, save_weights
from skd_core.models.student import Student
from skd_core.models.teacher import DepthGuidedNetwork

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from skd_core.data.image_size import parse_size  # noqa: E402
from skd_core.export import command, lean  # noqa: E402
from skd_core.export.command import ExportOptions, compare, export_weights, target  # noqa: E402
from skd_core.inference.detector import OnnxDetector  # noqa: E402
from skd_core.inference.onnx_file import OnnxNetwork  # noqa: E402

SIZES = [(320, 96), (621, 188), (200, 333), (64, 48)]


def picture(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(np.kron(coarse, np.ones((16, 16, 1), np.uint8))[:height, :width])


def pictures() -> list[tuple[NDArray[np.uint8], Camera]]:
    return [(picture(w, h, seed), tiny.kitti_camera(w, h)) for seed, (w, h) in enumerate(SIZES)]


@pytest.fixture(scope="module")
def detector() -> Detector:
    spread = tiny.spread_detector()
    return Detector(spread.student, spread.metadata | {"threshold": 0.05}, "cpu")


@pytest.fixture(scope="module")
def weights(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    detector.save(path)
    return path


@pytest.fixture(scope="module")
def exported(weights: Path) -> Path:
    path = weights.parent / "elsewhere" / "random.onnx"
    path.parent.mkdir()
    export_weights(ExportOptions(str(weights)), path)
    return path


def test_the_graph_gives_the_same_boxes_for_any_image_and_camera(detector: Detector, exported: Path) -> None:
    found = compare(detector, Detector.load(exported, "cpu"), pictures())
    assert found.boxes > 20  # or nothing is compared
    assert found.missing == 0
    assert found.worst < 1e-3


def test_the_comparison_sees_a_difference(detector: Detector, weights: Path) -> None:
    student, metadata = load_weights(weights)
    with torch.no_grad():
        student.head_3d.fcs["size"].bias += 0.05
    moved = compare(detector, Detector(student, metadata, "cpu"), pictures())
    assert moved.worst > 3e-3
    fewer = Detector(detector.student, detector.metadata | {"threshold": 0.5}, "cpu")
    assert compare(detector, _Less(fewer.student, fewer.metadata, "cpu"), pictures()).missing > 0


class _Less(Detector):
    def predict(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        return super().predict(*args, **kwargs)[1:]


def test_boxes_from_outside_are_placed_alike(detector: Detector, exported: Path) -> None:
    onnx_detector = Detector.load(exported, "cpu")
    for image, camera in pictures():
        w, h = camera.width, camera.height
        given = Boxes2D(
            torch.tensor([[2.0, 3, 0.6 * w, 0.9 * h], [-9, 5, 30, h + 20], [w + 5, 2, w + 40, 30], [8, 8, 8.2, 30]]),
            ("Car", "pedestrian", "Cyclist", "Car"),
            torch.tensor([0.9, 0.4, 0.8, 0.7]),
        )
        (a, kept), (b, same) = (d.place(image, camera, given) for d in (detector, onnx_detector))
        assert kept.equal(same)
        assert len(a) >= 2
        assert a.labels == b.labels
        for name in ("center", "size", "yaw", "scores", "xyxy", "depth_std"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-3, atol=1e-3)
        assert len(onnx_detector.predict(image, camera, 0.0, boxes2d=Boxes2D.empty())) == 0
    with pytest.raises(UserError, match="unknown class 'Tram'"):
        onnx_detector.place(image, camera, replace(given, labels=("Tram",) * 4))


def test_channels_that_nobody_hears_are_left_out(tmp_path: Path) -> None:
    """As weight decay leaves them: their weights are next to nothing, some of them denormal."""
    torch.manual_seed(3)
    config = ModelConfig(backbone="tf_efficientnet_lite0", neck_channels=16, head_channels=16, input_size=(320, 96))
    student = Student(config).eval()
    block = student.backbone.body.blocks[5][1]
    with torch.no_grad():
        student.heads_2d.heatmap[1].bias.fill_(-1.0)
        student.heads_2d.heatmap[1].weight.mul_(20)
        block.conv_pw.weight[:50] *= 1e-20
        block.conv_pwl.weight[:, :50] *= 1e-39
    save_weights(path := tmp_path / "decayed.safetensors", student, (186.0, 186.0), threshold=0.2)
    found = export_weights(ExportOptions(str(path)), tmp_path / "lean.onnx")
    assert found.boxes > 0
    assert found.worst < 1e-4
    weights = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(tmp_path / "lean.onnx").graph.initializer
        if tensor.name.startswith("body/") and tensor.data_type == onnx.TensorProto.FLOAT
    ]
    shapes = {value.shape for value in weights}
    assert {(1104, 192, 1, 1), (1104, 1, 5, 5), (192, 1104, 1, 1)} <= shapes  # 1152 - 50 and what makes it a multiple
    assert not any(((np.abs(value) < 1e-12) & (value != 0)).any() for value in weights)
    state = Detector.load(path, "cpu", backend="torch").student.state_dict()
    assert (state["backbone.body.blocks.5.1.conv_pwl.weight"][:, :50] == 0).all()
    assert digest(load_weights(path)[0].state_dict()) == load_weights(path)[1]["sha256"]


def test_a_channel_that_is_heard_stays() -> None:
    weight = np.full((4, 40, 1, 1), 1e-9, np.float32)
    weight[:, :2] = 1e-3
    weight[2, 7] = 1e-6  # in one output only, too much with a limit of 6
    assert set(range(2)) | {7} <= set(lean._used_channels(weight, 6.0).tolist())
    assert len(lean._used_channels(weight, 6.0)) == 16
    assert len(lean._used_channels(np.full((4, 40, 1, 1), 1e-6, np.float32), 6.0)) == 40


@pytest.mark.parametrize(
    "options", [{}, {"focal": 186.0, "center_range": 2.0, "border_flags": True}], ids=["snap", "focal"]
)
def test_teachers_and_networks_of_one_focal_length(tmp_path: Path, options: dict[str, object]) -> None:
    torch.manual_seed(3)
    config = ModelConfig(
        backbone="tf_efficientnet_lite0", neck_channels=16, head_channels=16, input_size=(320, 96), **options
    )
    for kind in (Student, DepthGuidedNetwork):
        network = kind(config).eval()
        with torch.no_grad():
            network.heads_2d.heatmap[1].bias.fill_(-1.0)
            network.heads_2d.heatmap[1].weight.mul_(20)
        path = tmp_path / f"{kind.network}.safetensors"
        save_weights(path, network, (186.0, 186.0), threshold=0.2)
        found = export_weights(ExportOptions(str(path)), tmp_path / f"{kind.network}.onnx")
        assert found.boxes >= 2 * command.FEW  # noise shows it no objects
        again = compare(Detector.load(path, "cpu", backend="torch"), Detector.load(path, "cpu"), pictures())
        assert again.missing == 0
        assert again.worst < 1e-3


def test_a_file_beside_the_weights_runs_on_the_cpu_by_itself(
    detector: Detector, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(weights.read_bytes())
    assert Detector.load(mine, "cpu").backend == "torch"
    with pytest.raises(UserError, match=r"no mine\.onnx beside them"):
        Detector.load(mine, "cpu", backend="onnx")
    export_weights(ExportOptions(str(mine)), target(str(mine), None, "fp32"))
    assert Detector.load(mine, "cpu").backend == "onnx"
    assert Detector.load(mine, "cpu", backend="torch").backend == "torch"
    assert Detector.load(mine, "cpu", "bf16").backend == "torch"  # which the file cannot do
    with pytest.raises(UserError, match="backend 'tvm': use auto, torch, onnx"):
        Detector.load(mine, "cpu", backend="tvm")
    with pytest.raises(UserError, match="which PyTorch cannot run"):
        Detector.load(mine.with_suffix(".onnx"), "cpu", backend="torch")
    other = load_weights(weights)[0]
    with torch.no_grad():
        other.head_3d.fcs["size"].bias += 0.05
    save_weights(mine, other, (186.0, 186.0))
    with caplog.at_level("WARNING"):
        stale = Detector.load(mine, "cpu")
    assert stale.backend == "torch"
    assert "mine.onnx is of other weights" in stale.slow_because
    assert "mine.onnx: is of other weights than those beside it and is not used" in caplog.text
    with pytest.raises(UserError, match=r"mine\.onnx: is of other weights than those beside it"):
        Detector.load(mine, "cpu", backend="onnx")
    mine.with_suffix(".onnx").unlink()
    assert "no mine.onnx beside the weights" in Detector.load(mine, "cpu").slow_because


@pytest.mark.parametrize("path", sorted(BUNDLED.glob("*.onnx")), ids=lambda p: p.stem)
def test_bundled_files_are_of_the_weights_beside_them(path: Path) -> None:
    """`tools/export_bundled.sh` writes them anew."""
    assert path.stat().st_size < 20e6
    found = Detector.load(path.stem, "cpu")
    assert found.backend == "onnx"
    assert found.precision == "fp32"
    assert found.metadata == weights_metadata(path.with_suffix(".safetensors"))
    stored = {tensor.name for tensor in onnx.load(path).graph.initializer}
    assert any(name.startswith("place/") for name in stored)


def test_without_onnxruntime_bundled_weights_run_in_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = Detector.load("street", "cpu")
    assert found.backend == "torch"
    assert found.slow_because == "onnxruntime is not installed"


def test_onnxruntime_needs_no_network_of_pytorch() -> None:
    """timm and torchvision alone take as long to import as PyTorch."""
    code = """
import sys
import numpy as np
import torch
import skd_core.inference.predict
from skd_core import Camera, Detector
P = torch.tensor([[557.0, 0, 160, 0], [0, 557, 48, 0], [0, 0, 1, 0]], dtype=torch.float64)
Detector.load("street", "cpu").predict(np.zeros((96, 320, 3), np.uint8), Camera(P, 320, 96))
print(*({"timm", "torchvision", "scipy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "\n", done.stdout + done.stderr


def test_a_file_for_one_size_takes_only_that(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "fixed.onnx"
    export_weights(ExportOptions(str(weights), size=(320, 96)), path)
    shape = onnx.load(path).graph.input[0].type.tensor_type.shape
    assert [dimension.dim_value for dimension in shape.dim] == [96, 320, 3]
    fixed = Detector.load(path, "cpu")
    fixed.predict(picture(320, 96), tiny.kitti_camera(320, 96))
    with pytest.raises(UserError, match="is for images of 320x96, got 200x333"):
        fixed.predict(picture(200, 333), tiny.kitti_camera(200, 333))


def test_wrong_images_are_refused(exported: Path) -> None:
    detector = Detector.load(exported, "cpu")
    with pytest.raises(UserError, match=r"must be \(H, W, 3\) uint8"):
        detector.predict(np.zeros((96, 320), np.uint8), tiny.kitti_camera(320, 96))
    with pytest.raises(UserError, match="its camera says 320x96"):
        detector.predict(picture(64, 48), tiny.kitti_camera(320, 96))
    with pytest.raises(UserError, match="cannot be written as weights"):
        detector.save(exported)


def test_lower_precisions(detector: Detector, weights: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.onnx"
    assert export_weights(ExportOptions(str(weights), "fp16"), half).worst < command.TOLERANCE["fp16"]
    assert Detector.load(half, "cpu").precision == "fp16"
    assert half.stat().st_size < 0.75 * _size(weights)
    with pytest.raises(UserError, match="int8 needs typical images"):
        export_weights(ExportOptions(str(weights), "int8"), tmp_path / "no.onnx")
    images, camera = _folder(tmp_path)
    small = tmp_path / "small.onnx"
    export_weights(ExportOptions(str(weights), "int8", images=(images,), camera=camera), small)
    kinds = {node.op_type for node in onnx.load(small).graph.node}
    assert "QuantizeLinear" in kinds
    assert Detector.load(small, "cpu").precision == "int8"
    assert len(Detector.load(small, "cpu").predict(picture(320, 96), tiny.kitti_camera(320, 96), 0.0)) > 0


def _size(path: Path) -> int:
    return path.stat().st_size


def _folder(tmp_path: Path) -> tuple[Path, Path]:
    import cv2

    images = tmp_path / "images"
    images.mkdir()
    for seed in range(3):
        cv2.imwrite(str(images / f"{seed}.png"), picture(320, 96, seed))
    camera = tmp_path / "calib.txt"
    camera.write_text("P2: " + " ".join(str(v) for v in tiny.kitti_camera(320, 96).P.flatten().tolist()) + "\n")
    return images, camera


def test_an_export_that_differs_is_not_written(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(command.TOLERANCE, "fp32", 1e-12)
    with pytest.raises(UserError, match=r"differs from PyTorch by .* nothing was written"):
        export_weights(ExportOptions(str(weights)), tmp_path / "no.onnx")
    assert list(tmp_path.iterdir()) == []


def test_files_of_others_are_refused(exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    for name, change in {"foreign": lambda m: None, "lacking": lambda m: m.pop("sha256")}.items():
        properties = json.loads(model.metadata_props[0].value)
        change(properties)
        if name == "foreign":
            properties = {"made_by": "somebody"}
        altered = onnx.ModelProto.FromString(exported.read_bytes())
        altered.metadata_props[0].value = json.dumps(properties)
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(altered.SerializeToString())
        with pytest.raises(UserError, match=rf"{name}\.onnx"):
            Detector.load(path, "cpu")
    (tmp_path / "broken.onnx").write_bytes(exported.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"broken\.onnx: onnxruntime cannot load it"):
        Detector.load(tmp_path / "broken.onnx", "cpu")
    with pytest.raises(UserError, match="no such file"):
        Detector.load(tmp_path / "none.onnx", "cpu")


def test_metadata_travel_with_the_file(detector: Detector, exported: Path) -> None:
    network = OnnxNetwork(exported)
    assert network.metadata["model"] == detector.config.model_dump(mode="json")
    assert network.metadata["precision"] == "fp32"
    again = OnnxDetector(network)
    assert again.threshold == 0.05
    assert again.classes == detector.classes
    assert again.network_camera(tiny.kitti_camera()).width == detector.network_camera(tiny.kitti_camera()).width


@pytest.mark.parametrize("text", ["320", "0x96", "9999999x96", "axb", "320x96x3", "-320x96"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="write WIDTHxHEIGHT"):
        parse_size(text)


def test_export_on_the_command_line(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    run = [sys.executable, "-m", "skd_core.cli", "export", str(weights), "--out"]
    done = subprocess.run([*run, str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "differs from PyTorch by at most" in done.stdout
    assert Detector.load(out, "cpu").backend == "onnx"
    wrong = subprocess.run([*run, str(tmp_path / "x.txt")], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "name a file NAME.onnx" in wrong.stderr
