"""The detector as users meet it: predictions, weights files, and `skd_core predict`."""

import json
import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tiny
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import save_file

from skd_core import Boxes3D, Camera, Detector
from skd_core.boxes import Boxes2D
from skd_core.cli import main
from skd_core.data.kitti import read_objects
from skd_core.devices import pick_device
from skd_core.errors import UserError
from skd_core.inference.bundled import BUNDLED, resolve
from skd_core.inference.origin import domain_warning
from skd_core.inference.predict import predict_images
from skd_core.inference.weights import digest, load_weights, save_weights
from skd_core.models.decode import Prediction3D
from skd_core.models.student import Detections, Student, to_boxes3d
from skd_core.priors import PRIORS, ClassPrior

WIDTH, HEIGHT = 320, 96


@pytest.fixture(scope="module")
def detector() -> Detector:
    return tiny.spread_detector()


@pytest.fixture(scope="module")
def weights(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    detector.save(path)
    return path


def camera(width: int = WIDTH, height: int = HEIGHT) -> Camera:
    return tiny.kitti_camera(width, height)


def picture(width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth blobs: the same scene at any size."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (6, 16, 3)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 255), dtype=np.uint8)


def same(a: Boxes3D, b: Boxes3D) -> bool:
    names = ("center", "size", "yaw", "scores", "xyxy", "depth_std")
    return a.labels == b.labels and all(torch.equal(getattr(a, n), getattr(b, n)) for n in names)


@pytest.mark.parametrize("outside", [False, True], ids=["own boxes", "given boxes"])
@pytest.mark.parametrize("column", [[-173.0, 0, 0], [14.4, 0.07, 0.0027], [30.0, -20, 0.1]])
def test_a_camera_beside_the_origin_moves_the_boxes_and_nothing_else(
    detector: Detector, column: list[float], outside: bool
) -> None:
    """The network sees the picture, not the frame: in the camera's own one, boxes and headings are the same."""
    P = camera().centred().P.clone()
    P[:, 3] = torch.tensor(column)
    beside = Camera(P, WIDTH, HEIGHT)
    found = detector.predict(picture(), camera(), 0.0)
    given = Boxes2D(found.xyxy, found.labels, found.scores) if outside else None
    own = detector.predict(picture(), beside.centred(), 0.0, boxes2d=given)
    boxes = detector.predict(picture(), beside, 0.0, boxes2d=given).moved(beside.offset)
    assert len(own) > 3
    torch.testing.assert_close(boxes.center, own.center, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(boxes.yaw, own.yaw, rtol=0, atol=1e-5)
    torch.testing.assert_close(boxes.size, own.size)


# -- predict -----------------------------------------------------------------------------------------------------------
def test_predictions_are_whole_ordered_and_repeatable(detector: Detector) -> None:
    boxes = detector.predict(picture(), camera(), 0.05)
    assert len(boxes) > 3
    assert same(boxes, detector.predict(picture(), camera(), 0.05))
    assert (boxes.scores.diff() <= 0).all()
    assert (boxes.scores >= 0.05).all()
    assert (boxes.scores <= 1).all()
    assert set(boxes.labels) <= set(detector.classes)
    for name in ("center", "size", "yaw", "xyxy", "depth_std"):
        assert getattr(boxes, name).isfinite().all(), name
        assert getattr(boxes, name).device.type == "cpu"
    assert (boxes.size > 0).all()
    assert (boxes.center[:, 2] > 0).all()
    assert (boxes.depth_std > 0).all()
    assert (boxes.yaw.abs() <= math.pi + 1e-6).all()


def test_threshold_takes_the_best(detector: Detector) -> None:
    every = detector.predict(picture(), camera(), 0.0)
    assert 0 < len(every) <= 50
    middle = float(every.scores.median())
    best = detector.predict(picture(), camera(), middle)
    assert 0 < len(best) < len(every)
    assert same(best, every[every.scores >= middle])
    assert len(detector.predict(picture(), camera(), 1.0)) == 0


def test_2d_boxes_lie_in_the_full_image(detector: Detector) -> None:
    big = camera(2 * WIDTH, 2 * HEIGHT)
    boxes = detector.predict(picture(2 * WIDTH, 2 * HEIGHT), big, 0.0)
    assert (boxes.xyxy >= 0).all()
    assert (boxes.xyxy[:, 2] <= 2 * WIDTH + 1e-3).all()
    assert (boxes.xyxy[:, 3] <= 2 * HEIGHT + 1e-3).all()
    assert boxes.xyxy[:, 2].max() > WIDTH
    # the projected centre lies in the 2D box: its place is a share of the box
    uv = big.project(boxes.center.double())
    low, high = boxes.xyxy[:, :2].double() - 0.5, boxes.xyxy[:, 2:].double() + 0.5
    assert ((uv > low) & (uv < high)).all()


def test_twice_the_resolution_gives_the_same_boxes(detector: Detector) -> None:
    """Virtual focal length: the image is scaled to the training one, so that pixels mean the same metres."""
    once, twice = (detector.predict(picture(k * WIDTH, k * HEIGHT), camera(k * WIDTH, k * HEIGHT), 0.0) for k in (1, 2))
    matched = 0
    for i in range(5):
        gap = (twice.xyxy / 2 - once.xyxy[i]).abs().amax(-1)
        j = int(gap.argmin())
        if gap[j] < 1.5 and once.labels[i] == twice.labels[j]:
            matched += 1
            assert twice.center[j].tolist() == pytest.approx(once.center[i].tolist(), rel=0.05, abs=0.3)
            assert twice.size[j].tolist() == pytest.approx(once.size[i].tolist(), rel=0.05)
    assert matched >= 4


def test_network_camera_has_the_training_focal_length(detector: Detector) -> None:
    fx, fy = detector.metadata["focal"]
    for zoom in (0.5, 0.8, 1.3, 2.0):
        P = torch.tensor([[fx * zoom, 0, 150, 3], [0, fy * zoom, 40, 1], [0, 0, 1, 0]])
        target = detector.network_camera(Camera(P, 640, 480))
        assert target.fx == pytest.approx(fx, rel=0.51 / target.width)
        assert target.fy == pytest.approx(fy, rel=0.51 / target.height)
    training = Camera(torch.tensor([[fx, 0, 150, 3], [0, fy, 40, 1], [0, 0, 1, 0]]), WIDTH, HEIGHT)
    same_size = detector.network_camera(training)
    assert (same_size.width, same_size.height) == (WIDTH, HEIGHT)
    assert torch.equal(same_size.P, training.P)


def test_a_camera_much_like_the_training_one_gets_the_training_size(detector: Detector) -> None:
    """As validation in training does, so that `skd_core predict` and `eval` give the same AP to the last digit."""
    fx, fy = detector.metadata["focal"]
    width, height = detector.student.config.input_size
    for zoom, kept in ((1.04, True), (0.97, True), (1.06, False), (0.9, False)):
        P = torch.tensor([[2 * fx * zoom, 0, width, 3], [0, 2 * fy * zoom, height, 1], [0, 0, 1, 0]])
        target = detector.network_camera(Camera(P, 2 * width, 2 * height))
        assert ((target.width, target.height) == (width, height)) is kept


def test_an_absurd_focal_length_is_an_error_not_a_full_memory(detector: Detector) -> None:
    P = torch.tensor([[1.0, 0, 160, 0], [0, 1, 48, 0], [0, 0, 1, 0]], dtype=torch.float64)
    with pytest.raises(UserError, match="focal"):
        detector.predict(picture(), Camera(P, WIDTH, HEIGHT))


@pytest.mark.parametrize("size", [(97, 33), (640, 100), (321, 95), (40, 200)])
def test_images_of_any_size(detector: Detector, size: tuple[int, int]) -> None:
    boxes = detector.predict(picture(*size), camera(*size), 0.0)
    assert boxes.center.isfinite().all()


def test_wrong_images_are_refused(detector: Detector) -> None:
    good = picture()
    for bad in (good[..., 0], good[..., :2], good.astype(np.float32), np.zeros((0, 0, 3), np.uint8)):
        with pytest.raises(UserError, match="image"):
            detector.predict(bad, camera())
    with pytest.raises(UserError, match=r"320x96.*640x192"):
        detector.predict(good, camera(640, 192))


def test_views_and_read_only_images_work(detector: Detector) -> None:
    """As ROS messages give them: padded rows, BGR turned around, memory that must not be written."""
    padded = np.zeros((HEIGHT, WIDTH + 16, 3), np.uint8)
    padded[:, :WIDTH] = picture()
    view = padded[:, :WIDTH]
    view.flags.writeable = False
    frozen = picture()
    frozen.flags.writeable = False
    expected = detector.predict(picture(), camera(), 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(detector.predict(view, camera(), 0.0), expected)
        assert same(detector.predict(frozen, camera(), 0.0), expected)
        assert same(detector.predict(picture()[..., ::-1][..., ::-1], camera(), 0.0), expected)


def test_boxes_are_ordinary_tensors(detector: Detector) -> None:
    boxes = detector.predict(picture(), camera(), 0.0)
    boxes.center[:, 2] += 1.0
    (boxes.center * torch.ones(3, requires_grad=True)).sum().backward()


def test_warmup(detector: Detector) -> None:
    detector.warmup()
    detector.warmup(640, 480)


def test_depth_std_is_a_share_of_depth() -> None:
    """20 m at sigma_z = .1: 2 m."""
    one = torch.ones(1)
    prediction = Prediction3D(
        torch.tensor([[0.0, 1, 20]]), torch.ones(1, 3), one, one * math.log(20), one * math.log(0.1),
        torch.ones(1, 2), torch.ones(1, 2), one, torch.ones(1, 2),
    )  # fmt: skip
    found = Detections(torch.tensor([[10.0, 20, 30, 40]]), one * 0.5, torch.tensor([1]), prediction)
    boxes = to_boxes3d(found, ("Car", "Pedestrian"), 2.0, 3.0)
    assert boxes.depth_std.item() == pytest.approx(2.0)
    assert boxes.xyxy.tolist() == [[20, 60, 60, 120]]
    assert boxes.labels == ("Pedestrian",)


def test_devices_that_are_not_there() -> None:
    assert pick_device("cpu").type == "cpu"
    for name in ("tpu9", "cuda:99", "mps", ""):
        with pytest.raises(UserError, match=r"device"):
            pick_device(name)


def test_random_detectors_leave_the_random_stream_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    a, b = Detector.random(1), Detector.random(1)
    assert torch.equal(torch.rand(2), expected)
    assert (
        digest(a.student.state_dict())
        == digest(b.student.state_dict())
        != digest(Detector.random(2).student.state_dict())
    )


# -- weights files -----------------------------------------------------------------------------------------------------
def test_saved_and_loaded_is_the_same_detector(detector: Detector, weights: Path, tmp_path: Path) -> None:
    again = Detector.load(weights, "cpu")
    assert same(again.predict(picture(), camera(), 0.0), detector.predict(picture(), camera(), 0.0))
    assert again.metadata["focal"] == [186.0, 186.0]
    assert again.metadata["training"] == "none: random weights"
    assert again.metadata["model"]["classes"] == list(detector.classes)
    assert again.metadata["normalisation"]["mean"] == [0.485, 0.456, 0.406]
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == weights.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["again.safetensors"]  # no temporary file left


def refused(path: Path, *reasons: str) -> None:
    with pytest.raises(UserError) as caught:
        Detector.load(path, "cpu")
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for reason in reasons:
        assert reason in message


def test_missing_weights_list_the_bundled_ones(tmp_path: Path) -> None:
    refused(tmp_path / "none.safetensors", "no such file", "bundled")
    refused(tmp_path, "no such file")  # a folder


def test_damaged_weights(weights: Path, tmp_path: Path) -> None:
    whole = weights.read_bytes()
    for name, content in (("half", whole[: len(whole) // 2]), ("empty", b""), ("text", b"hello, I am text" * 9)):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        refused(path, "damaged")
    altered = bytearray(whole)
    altered[-1] ^= 0x40
    path = tmp_path / "altered.safetensors"
    path.write_bytes(bytes(altered))
    refused(path, "sha256")


def rewritten(weights: Path, to: Path, **changes: Any) -> Path:
    student, metadata = load_weights(weights)
    state = {name: value.contiguous() for name, value in student.state_dict().items()}
    metadata = {k: v for k, v in (metadata | changes).items() if v is not None}
    save_file(state, str(to), {"skd_core": json.dumps(metadata)})
    return to


def test_foreign_weights(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"w": torch.zeros(3)}, str(path))
    refused(path, "not written by skd_core")
    save_file({"w": torch.zeros(3)}, str(path), {"skd_core": "not json"})
    refused(path)
    refused(rewritten(weights, path, format="skd_core.student.v99"), "v99")
    refused(rewritten(weights, path, sha256=None))
    refused(rewritten(weights, path, focal=None))
    refused(rewritten(weights, path, model=None))


def test_weights_of_an_unknown_network(weights: Path, tmp_path: Path) -> None:
    student, metadata = load_weights(weights)
    for value in ("resnet", 3, None):
        path = tmp_path / "odd.safetensors"
        save_weights(path, student, (186.0, 186.0), **{"network": value})
        refused(path, "network must be mdn or dsn")


def test_weights_of_another_model(weights: Path, tmp_path: Path) -> None:
    model = load_weights(weights)[1]["model"]
    path = tmp_path / "other.safetensors"
    refused(rewritten(weights, path, model=model | {"neck_channels": 24}))
    refused(rewritten(weights, path, model=model | {"necks": 24}), "necks")
    refused(rewritten(weights, path, model=model | {"backbone": "resnot18"}), "resnot18")


def test_weights_of_every_class_list(tmp_path: Path) -> None:
    student = Student(tiny.make_config("x", model={"classes": ["Van", "Truck"]}).model)
    save_weights(tmp_path / "sub" / "w.safetensors", student, (100.0, 90.0), seed=3)
    again = Detector.load(tmp_path / "sub" / "w.safetensors", "cpu")
    assert again.classes == ("Van", "Truck")
    assert again.metadata["seed"] == 3
    assert again.metadata["focal"] == [100.0, 90.0]


def test_weights_keep_the_sizes_they_were_trained_with(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_weights(weights)[0]
    name = before.config.classes[0]
    monkeypatch.setitem(PRIORS, name, ClassPrior((9.0, 9.0, 9.0)))
    assert torch.equal(load_weights(weights)[0].prior, before.prior)
    assert Student(before.config).prior[0].tolist() == [9, 9, 9]
    refused(rewritten(weights, tmp_path / "w.safetensors", prior_sizes=[[1.0, 2.0, 3.0]]))


@pytest.mark.parametrize("path", sorted(BUNDLED.glob("*.safetensors")), ids=lambda p: p.stem)
def test_bundled_weights_load(path: Path) -> None:
    assert path.stat().st_size < 20e6
    assert resolve(path.stem) == path
    found = Detector.load(path.stem, "cpu")
    assert found.metadata["learnt_from"] == "2D boxes, no 3D labels"
    width, height = found.config.input_size
    found.predict(picture(width, height), camera(width, height))


# -- skd_core predict --------------------------------------------------------------------------------------------------
def write_cameras(folder: Path) -> dict[str, Path]:
    """The same camera as KITTI calibration, ROS calibration YAML and CameraInfo YAML."""
    P = camera().P.flatten().tolist()
    kitti = folder / "calib.txt"
    kitti.write_text("".join(f"P{k}: {' '.join(map(repr, P))}\n" for k in range(4)))
    K = camera().K.flatten().tolist()
    calibration = folder / "calibration.yaml"
    calibration.write_text(
        yaml.safe_dump(
            {
                "image_width": WIDTH, "image_height": HEIGHT, "camera_name": "front",
                "camera_matrix": {"rows": 3, "cols": 3, "data": K}, "distortion_model": "plumb_bob",
                "distortion_coefficients": {"rows": 1, "cols": 5, "data": [0.0] * 5},
                "projection_matrix": {"rows": 3, "cols": 4, "data": P},
            }
        )
    )  # fmt: skip
    info = folder / "info.yaml"
    info.write_text(
        yaml.safe_dump(
            {"height": HEIGHT, "width": WIDTH, "distortion_model": "plumb_bob", "d": [0.0] * 5, "k": K, "p": P}
        )
        + "---\n"
    )
    return {"kitti": kitti, "calibration": calibration, "info": info}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(2):
        cv2.imwrite(str(folder / f"frame{i}.png"), picture(seed=i)[..., ::-1])
    return folder


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "skd_core.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_predict_writes_exact_results_and_pictures(
    detector: Detector, weights: Path, images: Path, tmp_path: Path
) -> None:
    calib = write_cameras(tmp_path)["kitti"]
    done = cli("predict", images, "--camera", calib, "--weights", weights, "--out", tmp_path / "out",
               "--threshold", "0.05", "--device", "cpu")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "detections" in done.stdout
    total = 0
    for i in range(2):
        expected = detector.predict(picture(seed=i), camera(), 0.05)
        found = read_objects(tmp_path / "out" / "results" / f"frame{i}.txt", results=True)
        boxes = found.boxes3d()
        assert boxes.labels == expected.labels
        exact = expected.to(torch.float64)
        assert torch.equal(boxes.scores, exact.scores)  # every digit
        assert torch.equal(boxes.size, exact.size)
        assert torch.equal(boxes.yaw, exact.yaw)
        assert torch.allclose(boxes.center, exact.center, atol=1e-12)
        assert torch.equal(boxes.xyxy, exact.xyxy)
        total += len(boxes)
        drawn = cv2.imread(str(tmp_path / "out" / "pictures" / f"frame{i}.png"))
        assert drawn is not None
        assert drawn.shape[0] >= HEIGHT
        assert drawn.shape[1] > WIDTH  # the view from above stands beside
    assert total > 0
    assert f"{total} detections" in done.stdout


def test_every_kind_of_camera_file_gives_the_same(detector: Detector, images: Path, tmp_path: Path) -> None:
    texts = []
    for kind, path in write_cameras(tmp_path).items():
        predict_images([images], path, detector, tmp_path / kind, 0.05, draw=False)
        texts.append((tmp_path / kind / "results" / "frame0.txt").read_text())
        assert not (tmp_path / kind / "pictures").exists()
    assert texts[0]
    assert texts[0] == texts[1] == texts[2]


def test_weights_that_saw_rendered_scenes_only_say_so(detector: Detector, images: Path, tmp_path: Path) -> None:
    assert domain_warning(load_weights("default")[1]) == ""
    assert domain_warning(load_weights("street")[1]) == ""
    assert "rendered scenes only" in domain_warning({"trained_on": {"streets": "Apache-2.0"}})
    for metadata in ({}, {"trained_on": None}, {"trained_on": {}}, {"trained_on": {"a": "Apache-2.0", "b": "MIT"}}):
        assert domain_warning(metadata) == ""
    calib = write_cameras(tmp_path)["kitti"]
    plain = predict_images([images], calib, detector, tmp_path / "plain", 1.0)
    rendered = Detector(detector.student, detector.metadata | {"trained_on": {"s": "Apache-2.0"}}, "cpu")
    summary = predict_images([images], calib, rendered, tmp_path / "noted", 1.0)
    assert plain.note == ""
    assert str(summary).endswith(f"\n{summary.note}")
    sizes = [cv2.imread(str(tmp_path / kind / "pictures" / "frame0.png")).shape for kind in ("plain", "noted")]
    assert sizes[1][0] > sizes[0][0]


def test_nothing_found_gives_empty_files(detector: Detector, images: Path, tmp_path: Path) -> None:
    calib = write_cameras(tmp_path)["kitti"]
    summary = predict_images([images], calib, detector, tmp_path / "out", 1.0)
    assert (summary.images, summary.boxes) == (2, 0)
    assert (
        str(summary)
        == f"2 images, 0 detections, pictures in {tmp_path}/out/pictures, results in {tmp_path}/out/results"
    )
    assert (tmp_path / "out" / "results" / "frame1.txt").read_text() == ""
    assert (tmp_path / "out" / "pictures" / "frame1.png").stat().st_size > 0


def in_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[object, str]:
    """Exit code and stderr of the command line, without the seconds that a new process takes."""
    monkeypatch.setattr(sys, "argv", ["skd_core", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code, capsys.readouterr().err


def test_wrong_input_is_one_line_and_exit_code_2(
    weights: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cameras = write_cameras(tmp_path)
    other = tmp_path / "other.yaml"
    other.write_text(cameras["info"].read_text().replace(f"width: {WIDTH}", "width: 999"))
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "file").write_text("")
    good = [images, "--camera", cameras["kitti"], "--weights", weights, "--out", tmp_path / "out"]
    cases: list[tuple[list[object], str]] = [
        ([tmp_path / "nowhere", *good[1:]], "nowhere"),
        ([tmp_path / "text.png", *good[1:]], "text.png"),
        ([images, "--camera", tmp_path / "no.yaml", *good[3:]], "no.yaml"),
        ([images, "--camera", other, *good[3:]], "999"),
        ([*good[:4], tmp_path / "none.safetensors", *good[5:]], "none.safetensors"),
        ([*good[:6], tmp_path / "file"], "file"),
        ([*good, "--device", "tpu"], "tpu"),
    ]
    for arguments, named in cases:
        code, message = in_process(monkeypatch, capsys, "predict", *arguments)
        assert code == 2, named
        assert named in message
        assert message.startswith("skd_core: error: ")
        assert message.count("\n") == 1
        assert not (tmp_path / "out").exists()
    done = cli("predict", *cases[0][0])  # and a whole process: no traceback, no warning
    assert done.returncode == 2
    assert done.stderr == f"skd_core: error: {tmp_path / 'nowhere'}: no such image or folder\n"


def test_train_command_reports_wrong_input_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("data: {train: {root: nowhere}}\nschedule: {epoch: 3}\n")
    command = ("train", config, "--out", tmp_path / "out", "--device", "cpu")
    code, message = in_process(monkeypatch, capsys, *command)
    assert (code, message.count("\n")) == (2, 1)
    assert "did you mean 'epochs'" in message
    code, message = in_process(monkeypatch, capsys, *command, "--set", "schedule={}")
    assert (code, message.count("\n")) == (2, 1), message
    assert "nowhere" in message
    assert not (tmp_path / "out").exists()
