"""skd_core bench: it runs, says what it measured, and no test here looks at a time."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tiny  # noqa: F401 (sets one thread)
import torch
from typer.testing import CliRunner

from skd_core import benchmark as bench
from skd_core.benchmark_machine import device_allocations, network_cost
from skd_core.benchmark_scaling import Curve, curves, report_scaling
from skd_core.cli import app
from skd_core.config import load_config
from skd_core.errors import UserError
from skd_core.inference.detector import Detector
from skd_core.iou import bev_iou

TINY = bench.Workload(rounds=2, predictions=2, evaluated=3, pairs=50, shapely_pairs=20, rendered=1, batch_size=2)
SHARES = {f"predict/{part}_share" for part in ("resize", "network", "decode")}
MEASURES = SHARES | {
    "predict/ms", "inference/student_ms", "inference/with_teacher_ms", "inference/with_teacher_ratio",
    "evaluator/frames_per_second", "iou/pairs_per_second", "iou/shapely_pairs_per_second", "iou/ratio_to_shapely",
    "synth/frames_per_second", "train/mdn_proj_ms", "train/full_ms", "train/full_ratio", "train/gtm_ms",
    "train/gtm_share",
}  # fmt: skip


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.random()


@pytest.fixture(scope="module")
def result(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> dict:
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    bench.report_benchmark(detector, TINY, path)
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_measure_is_there_with_its_spread(result: dict):
    assert set(result["measures"]) == MEASURES
    for name, numbers in result["measures"].items():
        assert set(numbers) == {"median", "mean", "p90", "min", "max", "count"}
        assert numbers["count"] == (4 if name == "predict/ms" else 2), name
        assert 0 < numbers["min"] <= numbers["median"] <= numbers["p90"] <= numbers["max"] < math.inf, name


def test_the_shares_of_a_prediction_add_up(result: dict):
    assert math.isclose(sum(result["measures"][name]["mean"] for name in SHARES), 1.0, rel_tol=1e-9)


def test_backends_stand_beside_eager_pytorch(result: dict):
    """Equal boxes in fp32 whatever runs them; the ratio of PyTorch to itself is 1."""
    backends = result["backends"]
    assert result["device"] == "cpu"
    assert {name.partition(",")[0] for name in backends} == {
        "torch fp32", "torch fp32 without denormals", "onnx fp32", "onnx fp16", "onnx int8",
    }  # fmt: skip
    for name, numbers in backends.items():
        assert 0 < numbers["median_ms"] <= numbers["p95_ms"] < math.inf
        if name.startswith("torch fp32,"):
            assert numbers["speedup_vs_eager_fp32"] == 1
            assert numbers["max_box_difference"] == 0
        if "fp32" in name:
            assert numbers["max_box_difference"] < 1e-3
            assert numbers["missing_boxes"] == 0


def test_the_network_stays_below_what_the_machine_can_do(result: dict):
    found = result["limits"]
    assert set(found["stages_ms"]) == {"jpeg", "resize", "network", "decode"}
    assert all(value > 0 for value in found["stages_ms"].values())
    assert found["ceilings"].keys() == {"flops_per_second", "bytes_per_second"}
    assert found["network"]["share_of_flops"] > 0
    assert found["peak_memory_mib"] > 50
    assert list(found["scaling_ms"]["pixels"]) == ["160x48", "320x96", "480x144"]
    assert list(found["scaling_ms"]["objects"]) == ["1", "10", "50"]


def test_a_config_stands_in_for_weights():
    """The network of config/train/kitti.yaml, at the size it trains with."""
    config = load_config(Path(__file__).parents[1] / "config/train/kitti.yaml").model
    student, about = bench.untrained_network(config)
    assert student.config == config
    detector = Detector(student, about, "cpu")
    picture, camera = np.zeros((375, 1242, 3), np.uint8), bench._camera(detector, 1242, 375)
    target = detector.network_camera(camera)
    assert (target.width, target.height) == (1280, 384)
    assert len(detector.predict(picture, camera)) > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_nothing_is_allocated_in_the_steady_state_of_a_gpu():
    detector = Detector.random(device="cuda")
    picture, camera = bench._picture(detector)
    detector.predict(picture, camera)
    assert device_allocations(detector, picture, camera, 20) == 0


def test_operations_by_hand():
    """One convolution 3x3 from 3 to 8 channels, of 4 x 6 pixels: two operations for each weight and pixel."""
    layer = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
    student = SimpleNamespace(features=layer, maps_2d=lambda features: features, modules=lambda: [layer])
    flops, moved = network_cost(SimpleNamespace(student=student, device=torch.device("cpu")), 6, 4)
    assert flops == 2 * 8 * 3 * 9 * 4 * 6
    assert moved == 4 * (3 * 24 + 8 * 24 + 8 * 3 * 9)


def test_it_says_on_what_and_how_but_not_where(result: dict):
    assert result["machine"]["torch"] == torch.__version__
    assert result["machine"]["cores"] >= 1
    assert result["machine"]["gpu"] is None
    assert result["settings"]["input_size"] == [320, 96]
    assert result["settings"]["rounds"] == 2
    everything = json.dumps(result)
    assert str(Path.cwd()) not in everything
    assert __import__("platform").node() not in everything


def test_summary_by_hand():
    found = bench.summary([4.0, 1.0, 2.0, 3.0])
    assert found == {"median": 2.5, "mean": 2.5, "p90": pytest.approx(3.7), "min": 1.0, "max": 4.0, "count": 4}


def test_the_picture_reaches_the_network_at_the_weights_size(detector: Detector):
    camera = bench._camera(detector, 1242, 373)
    target = detector.network_camera(camera)
    assert (target.width, target.height) == (320, 96)


def test_the_teacher_is_measured_on_the_detectors_own_network(detector: Detector):
    config = bench._config(detector)
    assert config.model == detector.student.config
    assert config.method.teacher


def test_weights_of_a_teacher_can_be_measured():
    """Such as the bundled street-dsn: its own 3D head is no student's."""
    config = bench._config(Detector.random())
    network = bench.TeacherStudent(config).depth_guided().eval()
    teacher = Detector(network, Detector.random().metadata, "cpu")
    frame = bench.render_frame(bench.SynthConfig(320, 96), 1, 0)
    found = bench.teacher_cost(teacher, frame, TINY)
    assert {len(values) for values in found.values()} == {TINY.rounds}


def test_the_measured_gtm_changes_no_weight(detector: Detector):
    base = bench._config(detector, bench.CLASSES)
    frames = [bench.render_frame(bench.SynthConfig(320, 96), 1, i) for i in range(2)]
    batch, run = bench._batch(frames, base), bench._Run(base, torch.device("cpu"))
    before = {name: value.clone() for name, value in run.model.named_parameters()}
    bench._gtm_seconds(run.model, batch)
    assert all(torch.equal(before[name], value) for name, value in run.model.named_parameters())
    assert all(value.grad is None for value in run.model.parameters())
    assert run.model.modulation.errors.keys() >= {"student_projection", "teacher_projection"}
    run.step(batch)
    assert any(not torch.equal(before[name], value) for name, value in run.model.named_parameters())


def test_the_batch_holds_no_3d_label(detector: Detector):
    frames = [bench.render_frame(bench.SynthConfig(320, 96), 1, i) for i in range(2)]
    batch = bench._batch(frames, bench._config(detector, bench.CLASSES))
    assert batch.truth is None
    assert len(batch.boxes) > 0
    assert batch.pseudo.z.isfinite().any()


def test_shapely_gets_the_same_footprints():
    polygon = pytest.importorskip("shapely.geometry").Polygon
    a, b = torch.tensor([[0.5, 10.0, 4.0, 1.8, 0.4]]), torch.tensor([[1.0, 10.5, 4.2, 1.6, -0.2]])
    p, q = (polygon(bench._footprints(boxes)[0]) for boxes in (a, b))
    expected = p.intersection(q).area / p.union(q).area
    assert 0.2 < expected < 0.9
    assert float(bev_iou(a, b, aligned=True)) == pytest.approx(expected, rel=1e-4)


def test_the_made_up_detections_score_between_nothing_and_everything():
    rng = np.random.default_rng(0)
    frames = [bench.objects_of_frame(rng) for _ in range(60)]
    scores = bench.evaluate([label for label, _ in frames], [found for _, found in frames])
    assert 5 < scores["Car"]["3d"]["R40"]["0.50"][1] < 95


def test_the_command(detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    weights, out = tmp_path / "tiny.safetensors", tmp_path / "bench.json"
    detector.save(weights)
    monkeypatch.setattr(bench, "QUICK", TINY)
    arguments = ["bench", "--weights", str(weights), "--quick", "--repeat", "1", "--device", "cpu", "--json", str(out)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text(encoding="utf-8"))["settings"]["rounds"] == 1
    assert "train/gtm_share" in done.output
    assert str(tmp_path) not in done.output


def test_a_missing_folder_is_told_before_anything_is_measured(detector: Detector, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(bench, "benchmark", lambda *_: pytest.fail("measured"))
    with pytest.raises(UserError, match="nowhere"):
        bench.report_benchmark(detector, TINY, tmp_path / "nowhere" / "bench.json")


def test_scaling_measures_every_curve_at_growing_sizes(tmp_path: Path):
    report, picture = tmp_path / "scaling.json", tmp_path / "scaling.png"
    report_scaling(1, 0.01, report, picture)
    found = json.loads(report.read_text(encoding="utf-8"))["scaling"]
    assert list(found) == list(curves())
    for name, curve in found.items():
        assert curve["sizes"] == sorted(set(curve["sizes"])), name
        assert all(0 < ms < math.inf for ms in curve["median_ms"]), name
        assert math.isfinite(curve["growth"]), name
    assert cv2.imread(str(picture)).shape[0] > 100


def test_the_growth_is_the_exponent_between_the_last_two_sizes(monkeypatch: pytest.MonkeyPatch):
    """A clock that says cost = size squared."""
    monkeypatch.setattr("skd_core.benchmark_scaling.seconds", lambda work: work())
    curve = Curve("things", (1, 10, 30), lambda size: lambda: 1e-3 * size**2)
    found = curve.measure(2)
    assert found["growth"] == pytest.approx(2.0)
    assert found["median_ms"] == pytest.approx([1.0, 100.0, 900.0])


def test_what_grows_has_the_size_it_says():
    frames, objects = curves()["KITTI evaluation, 12 objects a frame"], curves()["KITTI evaluation, 100 frames"]
    assert len(frames.prepare(7).args[0]) == 7
    labels, results = objects.prepare(30).args
    assert {len(frame) for frame in labels} == {20}
    assert {len(frame) for frame in results} == {30}


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        (["--plot", "a.png"], "--plot: needs --scaling"),
        (["--scaling", "--training"], "not both"),
        (["--scaling", "--weights", "street"], "take none"),
        (["--training", "--weights", "street"], "take none"),
        (["--scaling", "--json", "a", "--plot", "./a"], "named for two outputs"),
        (["--scaling", "--config", "a.yaml"], "--config: stands in place"),
        (["--config", "a.yaml", "--weights", "street"], "--config: stands in place"),
        (["--scaling", "--plot", "missing/a.png"], "missing"),
    ],
)
def test_scaling_options_that_do_not_fit(
    options: list[str], cure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=cure):
        CliRunner().invoke(app, ["bench", *options], catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []
