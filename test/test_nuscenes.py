"""nuScenes on a miniature v1.0 tree and on one real key frame, against the devkit and published 2D boxes."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import nuscenes_tree
import pytest
import tiny
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from nuscenes_tree import KeyFrame, Shot, Thing, quaternion
from torch import Tensor

pytest.importorskip("nuscenes", reason="needs the extra [nuscenes]")
from nuscenes.nuscenes import NuScenes
from nuscenes.scripts.export_2d_annotations_as_json import post_process_coords
from nuscenes.utils.data_classes import Box
from nuscenes.utils.geometry_utils import BoxVisibility
from pyquaternion import Quaternion
from typer.testing import CliRunner

from skd_core.boxes import Boxes3D, rotation_matrix, wrap_angle
from skd_core.camera import Camera
from skd_core.cli import app
from skd_core.config import load_config
from skd_core.data.bag import BagWriter, read_detections
from skd_core.data.kitti import read_objects, write_results
from skd_core.data.nuscenes import (
    CAMERAS,
    CLASSES,
    Annotations,
    Frame,
    NuScenesDataset,
    multiply,
    nearest_yaw,
    rotation_matrices,
)
from skd_core.data.nuscenes_schema import ROWS, read_table
from skd_core.data.nuscenes_tables import TABLES
from skd_core.data.sample import read_image
from skd_core.data.sets import build_dataset
from skd_core.errors import UserError
from skd_core.evaluation.nuscenes import (
    ATTRIBUTES,
    MAX_BOXES,
    evaluate,
    merge_cameras,
    report_nuscenes,
    score,
    to_records,
    write_submission,
)
from skd_core.inference.detector import Detector
from skd_core.priors import PRIORS
from skd_core.training.trainer import Trainer

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "nuscenes_sample"

angles = st.floats(-math.pi, math.pi)
tilts = st.floats(-0.06, 0.06)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nuscenes_tree.write_tree(tmp_path_factory.mktemp("nuscenes") / "mini", nuscenes_tree.miniature())


@pytest.fixture(scope="module")
def devkit(tree: Path) -> NuScenes:
    return NuScenes("v1.0-mini", str(tree), verbose=False)


@pytest.fixture(scope="module")
def truth(tree: Path) -> NuScenesDataset:
    return NuScenesDataset(tree, "mini_val", with_3d=True)


def true_boxes(dataset: NuScenesDataset) -> list[Boxes3D]:
    found = [dataset[i].boxes3d for i in range(len(dataset))]
    assert all(boxes is not None for boxes in found)
    return [boxes for boxes in found if boxes is not None]


def changed(boxes: list[Boxes3D], change: Callable[[Boxes3D], None]) -> list[Boxes3D]:
    copies = [b[slice(None)] for b in boxes]
    for b in copies:
        change(b)
    return copies


def submit(folder: Path, dataset: NuScenesDataset, boxes: list[Boxes3D]) -> Path:
    write_submission(folder / "submission.json", dataset, boxes)
    return folder / "submission.json"


def rotation_angle(a: Tensor, b: Tensor) -> Tensor:
    """Between rotations, shape (..., 3, 3), radians; exact for small ones (through the chord)."""
    return 2 * torch.asin((torch.linalg.matrix_norm(a - b) / math.sqrt(8)).clamp(max=1))


# -- quaternions and yaw ---------------------------------------------------------------------------------------------
@given(
    st.lists(st.floats(-1, 1), min_size=8, max_size=8).filter(
        lambda q: min(np.hypot.reduce(q[:4]), np.hypot.reduce(q[4:])) > 0.1
    )
)
def test_quaternions_are_those_of_the_devkit(numbers: list[float]) -> None:
    p, q = torch.tensor(numbers, dtype=torch.float64).reshape(2, 4)
    theirs = [Quaternion(part.tolist()).normalised for part in (p, q)]
    assert np.allclose(rotation_matrices(p), theirs[0].rotation_matrix, atol=1e-12)
    assert np.allclose(multiply(p, q), (theirs[0] * theirs[1]).elements, atol=1e-12)


@given(angles, tilts, tilts, tilts)
def test_nearest_yaw_is_nearest(yaw: float, a: float, b: float, c: float) -> None:
    upright = rotation_matrix(torch.tensor(yaw, dtype=torch.float64))
    assert abs(wrap_angle(nearest_yaw(upright) - yaw)) < 1e-12
    tilted = rotation_matrices(torch.tensor(quaternion(yaw=a, pitch=b, roll=c), dtype=torch.float64)) @ upright
    best = nearest_yaw(tilted)
    around = rotation_matrix(best + torch.linspace(-0.2, 0.2, 41, dtype=torch.float64))
    assert rotation_angle(rotation_matrix(best), tilted) <= rotation_angle(around, tilted).min() + 1e-12


# -- the reader ------------------------------------------------------------------------------------------------------
def test_samples_are_key_frame_images_by_time_and_camera(tree: Path, truth: NuScenesDataset) -> None:
    assert len(truth) == len(truth.names) == len(set(truth.names)) == 2 * 6
    assert [truth.frame(i).image.parent.name for i in range(6)] == list(CAMERAS)
    assert [truth.frame(i).sample_token for i in range(12)] == [t for t in truth.sample_tokens for _ in range(6)]
    both = NuScenesDataset(tree)
    assert len(both) == 24
    assert set(truth.names) < set(both.names)
    sample = truth[3]
    assert sample.image.shape == (3, 90, 160)
    assert sample.name == truth.names[3]
    assert torch.equal(sample.camera.K, torch.tensor([[80.9, 0, 81.2], [0, 80.9, 47], [0, 0, 1]], dtype=torch.float64))
    assert NuScenesDataset(tree, "mini_val")[3].boxes3d is None, "3D labels only where asked for"


def test_boxes_are_the_devkits(tree: Path, devkit: NuScenes) -> None:
    """Centre, size, rotation to the tilt, and the 2D box, for every object that any image shows."""
    dataset = NuScenesDataset(tree, "mini_val", with_3d=True, min_visibility=1)
    compared = 0
    for i in range(len(dataset)):
        frame, sample = dataset.frame(i), dataset[i]
        token = devkit.get("sample", frame.sample_token)["data"][frame.image.parent.name]
        path, boxes, K = devkit.get_sample_data(token, box_vis_level=BoxVisibility.NONE)  # none required
        assert Path(path) == frame.image
        ours, shown = sample.boxes3d, [devkit_box2d(box, K, sample.camera) for box in boxes]
        assert ours is not None
        for j in range(len(ours)):
            distances = [float(np.linalg.norm(box.center - ours.center[j].numpy())) for box in boxes]
            match = int(np.argmin(distances))
            box, xyxy = boxes[match], shown[match]
            assert distances[match] < 1e-5
            assert np.allclose(ours.size[j], box.wlh[[1, 0, 2]])
            turned = torch.from_numpy(box.orientation.rotation_matrix)
            assert rotation_angle(rotation_matrix(ours.yaw[j].double()), turned) < math.radians(2.5)
            assert xyxy is not None
            assert np.allclose(ours.xyxy[j], xyxy, atol=1e-3)
            assert torch.equal(ours.xyxy[j], sample.boxes2d.xyxy[j])
            compared += 1
        assert sum(box is not None for box in shown) == len(ours) + len(sample.ignore), "learnt or ignored"
    assert compared >= 28


def devkit_box2d(box: Box, K: np.ndarray, camera: Camera) -> tuple[float, ...] | None:
    corners = box.corners()
    front = corners[:, corners[2] > 0]
    if front.shape[1] < 3:
        return None
    uvw = K @ front
    found: tuple[float, ...] | None = post_process_coords((uvw[:2] / uvw[2]).T.tolist(), (camera.width, camera.height))
    return found


def test_pixels_lie_in_their_boxes(truth: NuScenesDataset) -> None:
    """The tree draws objects from its own geometry: an object's colour is found in its box and not around it."""
    for i in range(6):
        sample = truth[i]
        ground = (sample.image.int() - torch.tensor([95, 95, 98])[:, None, None]).abs().amax(0) > 25
        painted = ground & (torch.arange(90)[:, None] > 0.55 * 90)
        inside = torch.zeros(90, 160, dtype=torch.bool)
        for x1, y1, x2, y2 in [*sample.boxes2d.xyxy.tolist(), *sample.ignore.xyxy.tolist()]:
            inside[max(math.floor(y1) - 1, 0) : math.ceil(y2) + 1, max(math.floor(x1) - 1, 0) : math.ceil(x2) + 1] = (
                True
            )
        assert painted.sum() > 20
        assert not (painted & ~inside).any(), sample.name


def test_what_is_not_learnt_is_ignored(tree: Path) -> None:
    for min_visibility, hidden_is_ignored in ((2, True), (1, False)):
        dataset = NuScenesDataset(tree, "mini_val", min_visibility=min_visibility)
        front = dataset[0]
        assert (front.boxes2d.labels.count("car"), front.ignore.labels.count("car")) == (
            (2, 1) if hidden_is_ignored else (3, 0)
        )
        assert "vehicle.emergency.police" in dataset[3].ignore.labels
    few = NuScenesDataset(tree, "mini_val", classes=("pedestrian",))[0]
    assert few.boxes2d.labels == ("pedestrian",)
    assert sorted(few.ignore.labels) == ["car", "car", "car"]


def test_an_object_whose_centre_is_beside_the_camera_is_ignored(tmp_path: Path) -> None:
    """A bus alongside: its front is in the picture, its centre behind the image plane has no depth to learn."""
    scene = nuscenes_tree.miniature(1)["scene-0103"][0]
    shot = scene.shots["CAM_FRONT"]
    heading = 2.7
    back, left = -2.0, 3.0  # metres from the camera
    mount = 1.0
    x = shot.ego_translation[0] + (mount + back) * math.cos(heading) - left * math.sin(heading)
    y = shot.ego_translation[1] + (mount + back) * math.sin(heading) + left * math.cos(heading)
    bus = Thing("bus", "vehicle.bus.rigid", (x, y, 1.7), (2.9, 24.0, 3.5), heading)
    scene.things = [bus]
    root = nuscenes_tree.write_tree(tmp_path / "n", {"scene-0103": [scene]})
    dataset = NuScenesDataset(root, with_3d=True)
    front, behind = dataset[0], dataset[CAMERAS.index("CAM_BACK_LEFT")]
    assert (front.boxes2d.labels, front.ignore.labels) == ((), ("bus",))
    assert behind.boxes2d.labels == ("bus",)


def test_depth_maps_go_by_the_images_names(tree: Path, tmp_path: Path) -> None:
    names = NuScenesDataset(tree, "mini_train").names
    for name in names:
        np.save(tmp_path / f"{name}.npy", np.full((90, 160), 7.5, np.float32))
    dataset = NuScenesDataset(tree, "mini_train", depth_dir=str(tmp_path))
    assert torch.equal(dataset[4].depth, torch.full((90, 160), 7.5))
    np.save(tmp_path / f"{names[4]}.npy", np.zeros((9, 16), np.float32))
    with pytest.raises(UserError, match="is 16x9, but nuScenes' table says 160x90"):
        dataset[4]
    (tmp_path / f"{names[2]}.npy").unlink()
    with pytest.raises(UserError, match=r"1 of 12 depth maps are missing"):
        NuScenesDataset(tree, "mini_train", depth_dir=str(tmp_path))


def test_a_custom_split(tree: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tree, tmp_path / "n")
    (root / "v1.0-mini" / "splits.json").write_text('{"mine": ["scene-0061"]}')
    assert NuScenesDataset(root, "mine").names == NuScenesDataset(tree, "mini_train").names


def test_all_classes_have_priors_and_attributes() -> None:
    assert set(CLASSES) <= set(PRIORS)
    assert set(CLASSES) == set(ATTRIBUTES)


# -- submissions -----------------------------------------------------------------------------------------------------
poses = st.builds(
    lambda yaw, pitch, roll, x, y: (quaternion(yaw=yaw, pitch=pitch, roll=roll), (x, y, 1.5)),
    angles, angles, angles, st.floats(-3000, 3000), st.floats(-3000, 3000),
)  # fmt: skip


def a_frame(rotation: tuple[float, ...], translation: tuple[float, ...], name: str = "n") -> Frame:
    camera = Camera(
        torch.tensor([[1266.0, 0, 800, 0], [0, 1266, 450, 0], [0, 0, 1, 0]], dtype=torch.float64), 1600, 900
    )
    exact = (torch.tensor(part, dtype=torch.float64) for part in (rotation, translation))
    return Frame(name, "key frame", Path(f"{name}.jpg"), camera, *exact)


@given(poses, st.integers(0, 1000))
def test_boxes_survive_the_submission(pose: tuple[Any, Any], seed: int) -> None:
    """Camera -> global -> JSON -> camera, for any pose of the camera, to float64's precision on a map of kilometres."""
    g = torch.Generator().manual_seed(seed)
    boxes = Boxes3D(
        60 * torch.rand(5, 3, generator=g, dtype=torch.float64) - 30,
        0.3 + 5 * torch.rand(5, 3, generator=g, dtype=torch.float64),
        7 * torch.rand(5, generator=g, dtype=torch.float64) - 3.5,
        ("car", "bus", "barrier", "pedestrian", "car"),
        torch.rand(5, generator=g, dtype=torch.float64),
    )
    frame = a_frame(*pose)
    entries = json.loads(json.dumps(to_records(boxes, frame)))
    column = {
        k: torch.tensor([e[k] for e in entries], dtype=torch.float64) for k in ("translation", "size", "rotation")
    }
    labels = tuple(e["detection_name"] for e in entries)
    back, corners = Annotations(**column, labels=labels, visibility=torch.full((5,), 4)).in_camera(frame)
    assert back.labels == boxes.labels
    assert torch.allclose(back.center, boxes.center, rtol=0, atol=1e-10)
    assert torch.equal(back.size, boxes.size)
    assert wrap_angle(back.yaw - boxes.yaw).abs().max() < 1e-12
    assert torch.allclose(corners, boxes.corners, rtol=0, atol=1e-10)
    assert [e["detection_score"] for e in entries] == boxes.scores.tolist()


def test_boxes_survive_bag_kitti_file_and_submission_one_after_the_other(tmp_path: Path) -> None:
    """The same numbers everywhere: to 1e-10 m and rad through all three, sizes and scores to the last bit."""
    g = torch.Generator().manual_seed(4)
    n = 20
    boxes = Boxes3D(
        torch.tensor([40.0, 3, 60], dtype=torch.float64) * torch.rand(n, 3, generator=g, dtype=torch.float64),
        0.3 + 5 * torch.rand(n, 3, generator=g, dtype=torch.float64),
        7 * torch.rand(n, generator=g, dtype=torch.float64) - 3.5,
        ("car", "bus", "barrier", "pedestrian") * (n // 4),
        torch.rand(n, generator=g, dtype=torch.float64),
        torch.rand(n, 4, generator=g, dtype=torch.float64),
    )
    with BagWriter(tmp_path / "bag") as bag:
        bag.write_detections("/found", boxes, 1, "camera")
    ((_, _, of_bag),) = read_detections(tmp_path / "bag")
    of_bag.xyxy = boxes.xyxy  # a message has none
    write_results(tmp_path / "0.txt", of_bag)
    of_file = read_objects(tmp_path / "0.txt", results=True).boxes3d()
    frame = a_frame(quaternion(yaw=0.7, pitch=0.02, roll=-1.6), (611.0, 1204.0, 1.5))
    (tmp_path / "0.json").write_text(json.dumps(to_records(of_file, frame)))
    entries = json.loads((tmp_path / "0.json").read_text())
    keys = ("translation", "size", "rotation")
    column = {key: torch.tensor([e[key] for e in entries], dtype=torch.float64) for key in keys}
    labels = tuple(e["detection_name"] for e in entries)
    back, _ = Annotations(**column, labels=labels, visibility=torch.full((n,), 4)).in_camera(frame)
    assert back.labels == boxes.labels
    assert torch.allclose(back.center, boxes.center, rtol=0, atol=1e-10)
    assert wrap_angle(back.yaw - boxes.yaw).abs().max() < 1e-10
    assert torch.equal(back.size, boxes.size)
    assert [e["detection_score"] for e in entries] == boxes.scores.tolist()


def test_an_entry_by_hand() -> None:
    """A camera at (100, 200, 1.5) that looks along the map's x: its z is x, its x is -y, its y is -z."""
    frame = a_frame((0.5, -0.5, 0.5, -0.5), (100.0, 200.0, 1.5))
    boxes = Boxes3D(
        torch.tensor([[2.0, 0.5, 10.0]]), torch.tensor([[4.0, 2.0, 1.5]]), torch.tensor([-math.pi / 2]), ("car",)
    )
    (entry,) = to_records(boxes, frame)
    assert entry["translation"] == pytest.approx([110, 198, 1.0])
    assert entry["size"] == [2.0, 4.0, 1.5]
    heading = Quaternion(entry["rotation"]).rotation_matrix @ [1, 0, 0]
    assert heading == pytest.approx([1, 0, 0], abs=1e-6), "yaw -90 degrees looks away from the camera"
    assert Quaternion(entry["rotation"]).rotation_matrix @ [0, 0, 1] == pytest.approx([0, 0, 1], abs=1e-6)
    assert (entry["velocity"], entry["attribute_name"]) == ([0.0, 0.0], "vehicle.parked")
    with pytest.raises(UserError, match="'Car' is not a nuScenes class"):
        to_records(Boxes3D(boxes.center, boxes.size, boxes.yaw, ("Car",)), frame)
    with pytest.raises(UserError, match="NaN or infinity"):
        to_records(Boxes3D(boxes.center * math.inf, boxes.size, boxes.yaw, ("car",)), frame)


def entry(
    x: float, y: float, label: str, confidence: float, size: tuple[float, ...] = (2.0, 4.6, 1.7)
) -> dict[str, Any]:
    return {"translation": [x, y, 0.0], "size": list(size), "detection_name": label, "detection_score": confidence}


def merged(
    *cameras: list[dict[str, Any]], place: tuple[float, float, float] = (0.0, -5.0, 1.5)
) -> list[dict[str, Any]]:
    return merge_cameras([(a_frame((0.5, -0.5, 0.5, -0.5), place), entries) for entries in cameras])


def test_one_object_in_two_cameras_is_kept_once() -> None:
    """Half the diagonal of 2.0 x 4.6 m is 2.508 m."""
    best, near, far = entry(0, 0, "car", 0.5), entry(2.5, 0, "car", 0.4), entry(2.52, 0, "car", 0.3)
    assert merged([near], [best]) == [best]
    assert merged([far], [best]) == [best, far]
    assert merged([best, near]) == [best, near], "one camera sees no object twice"
    assert merged([best], [near, entry(-1, 0, "car", 0.1)]) == [best, near], "of its boxes the nearest is the same"
    assert merged([best], [near], [entry(0, 1, "car", 0.1)]) == [best], "in every other camera"
    truck = entry(0, 0, "truck", 0.4)
    assert merged([best], [truck]) == [best, truck]
    chain = entry(5.0, 0, "car", 0.3)
    assert merged([best], [near], [chain]) == [best, chain], "what is gone stands for nothing"


def test_far_objects_may_be_placed_further_apart() -> None:
    """A tenth of the distance from the camera, where it is more than half of the 1 m diagonal."""
    one, other = entry(0, 0, "pedestrian", 0.5, (0.6, 0.8, 1.8)), entry(1.9, 0, "pedestrian", 0.4, (0.6, 0.8, 1.8))
    assert merged([one], [other], place=(0.0, -20.0, 1.5)) == [one]
    assert merged([one], [other], place=(0.0, -18.0, 1.5)) == [one, other]


def test_a_key_frame_has_at_most_500_boxes() -> None:
    many = [entry(10 * i, 0, "car", i / 1000) for i in range(600)]
    best = [e["detection_score"] for e in merged(many)]
    assert len(best) == MAX_BOXES == 500
    assert best == sorted(best, reverse=True)
    assert best[0] == 0.599


# -- the devkit's evaluation -----------------------------------------------------------------------------------------
def test_the_truth_scores_one(truth: NuScenesDataset, tmp_path: Path) -> None:
    boxes = true_boxes(truth)
    assert sum(map(len, boxes)) > 2 * 12, "some objects are seen by two cameras"
    scores = evaluate(submit(tmp_path, truth, boxes), truth.root, "mini_val")
    assert scores.present == list(CLASSES)
    assert scores.labels == scores.detections, "each once"
    assert scores.labels["car"] == 4
    assert scores.summary["mean_ap"] == pytest.approx(1)
    assert scores.summary["nd_score"] == pytest.approx(1, abs=1e-3)
    errors = scores.summary["tp_errors"]
    assert errors["trans_err"] < 1e-4
    assert errors["scale_err"] < 1e-4
    assert errors["orient_err"] < math.radians(0.05)


def test_errors_show_where_they_are_made(truth: NuScenesDataset, tmp_path: Path) -> None:
    boxes = true_boxes(truth)

    def farther(b: Boxes3D) -> None:
        flat = b.center * b.center.new_tensor([1, 0, 1])
        b.center = b.center + 3 * flat / flat.norm(dim=-1, keepdim=True)

    def turned(b: Boxes3D) -> None:
        b.yaw = b.yaw + math.pi

    def larger(b: Boxes3D) -> None:
        b.size = b.size * 1.25

    moved = evaluate(submit(tmp_path, truth, changed(boxes, farther)), truth.root, "mini_val").summary
    assert moved["mean_ap"] == pytest.approx(0.25, abs=0.01), "3 m off: right at the threshold of 4 m only"
    assert moved["label_aps"]["car"][2.0] == 0
    assert moved["label_aps"]["car"][4.0] == pytest.approx(1)

    reversed_ = evaluate(submit(tmp_path, truth, changed(boxes, turned)), truth.root, "mini_val").summary
    assert reversed_["mean_ap"] == pytest.approx(1)
    assert reversed_["label_tp_errors"]["car"]["orient_err"] == pytest.approx(math.pi, abs=1e-3)
    assert reversed_["label_tp_errors"]["barrier"]["orient_err"] < 1e-3, "a barrier has no front"

    inflated = evaluate(submit(tmp_path, truth, changed(boxes, larger)), truth.root, "mini_val").summary
    assert inflated["tp_errors"]["scale_err"] == pytest.approx(1 - 1.25**-3, abs=1e-4)


def test_nothing_found_scores_nothing(truth: NuScenesDataset) -> None:
    assert score(truth, [Boxes3D.empty()] * len(truth))["mAP"] == 0
    assert score(truth, true_boxes(truth))["mAP"] == pytest.approx(1)


def test_absent_classes_are_named(truth: NuScenesDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = nuscenes_tree.miniature(1)["scene-0103"]
    scene[0].things = [t for t in scene[0].things if t.category == "vehicle.truck"]
    root = nuscenes_tree.write_tree(tmp_path / "n", {"scene-0103": scene})
    dataset = NuScenesDataset(root, "mini_val", with_3d=True)
    report_nuscenes(submit(tmp_path, dataset, true_boxes(dataset)), root, "mini_val", None, tmp_path / "numbers.json")
    shown = capsys.readouterr()
    assert "no labels of car, bus" in shown.err
    assert "mAP of the others 1.0000" in shown.err
    assert "mAP 0.1000" in shown.out
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["labels"]["truck"] == numbers["detections"]["truck"] == 1
    assert numbers["label_tp_errors"]["traffic_cone"]["orient_err"] is None


def test_the_commands(tree: Path, tmp_path: Path) -> None:
    """Random weights of KITTI's classes: what they find is nonsense, but the devkit takes it."""
    Detector.random().save(tmp_path / "w.safetensors")
    out = tmp_path / "new" / "submission.json"
    found = CliRunner().invoke(
        app,
        ["predict-nuscenes", str(tree), "--split", "mini_val", "--out", str(out), "--threshold", "0",
         "--weights", str(tmp_path / "w.safetensors"), "--device", "cpu"],
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "in 12 images of 2 key frames" in found.output
    data = json.loads(out.read_text())
    assert {e["detection_name"] for part in data["results"].values() for e in part} <= {"car", "pedestrian"}
    assert data["meta"]["use_camera"] is True
    assert data["meta"]["use_lidar"] is False
    scored = CliRunner().invoke(
        app,
        ["eval", "nuscenes", "--root", str(tree), "--split", "mini_val", "--results", str(out),
         "--json", str(tmp_path / "n.json"), "--plots", str(tmp_path / "plots")],
    )  # fmt: skip
    assert scored.exit_code == 0, scored.output
    assert "NDS 0." in scored.output
    assert json.loads((tmp_path / "n.json").read_text())["split"] == "mini_val"
    assert read_image(tmp_path / "plots" / "nuscenes_summary.png").float().std() > 10


def test_the_front_camera_alone(tree: Path, tmp_path: Path) -> None:
    """The other images need not be there, and labels that the front camera does not see do not count."""
    copy = tmp_path / "front"
    shutil.copytree(tree, copy)
    for folder in (copy / "samples").iterdir():
        if folder.name != "CAM_FRONT":
            shutil.rmtree(folder)
    with pytest.raises(UserError, match=r"10 of 12 images are missing \(of CAM_FRONT_RIGHT, .*--cameras"):
        NuScenesDataset(copy, "mini_val")
    front = NuScenesDataset(copy, "mini_val", with_3d=True, cameras=["cam_front"])
    assert (len(front), len(front.sample_tokens)) == (2, 2)
    assert all("__CAM_FRONT__" in name for name in front.names)
    results = submit(tmp_path, front, true_boxes(front))
    everywhere = evaluate(results, copy, "mini_val")
    seen = evaluate(results, copy, "mini_val", cameras=["CAM_FRONT"])
    assert 0 < sum(seen.labels.values()) < sum(everywhere.labels.values())
    assert seen.present
    for name in seen.present:
        assert seen.summary["mean_dist_aps"][name] == pytest.approx(1, abs=0.01)
    missed = {name for name in everywhere.present if everywhere.summary["mean_dist_aps"][name] < 0.5}
    assert missed
    assert not missed & set(seen.present)
    for names, fault in ((["CAM_TOP"], "'CAM_TOP' is not a nuScenes camera; they are CAM_FRONT,"), ([], "no camera")):
        with pytest.raises(UserError, match=fault):
            NuScenesDataset(copy, "mini_val", cameras=names)


# -- training --------------------------------------------------------------------------------------------------------
def test_training_takes_nuscenes_as_it_takes_kitti(tree: Path, tmp_path: Path) -> None:
    names = NuScenesDataset(tree).names
    (tmp_path / "depth").mkdir()
    for name in names:
        np.save(tmp_path / "depth" / f"{name}.npy", np.full((90, 160), 12.0, np.float32))
    sets = {split: {"kind": "nuscenes", "root": str(tree), "split": f"mini_{split}"} for split in ("train", "val")}
    config = tiny.make_config(
        tree,
        data=sets | {"depth_dir": str(tmp_path / "depth")},
        model=tiny.make_config(tree).model.model_dump() | {"classes": CLASSES},
        schedule={"epochs": 1, "batch_size": 6, "warmup_epochs": 0, "start_3d": [0, 0], "start_distillation": [0, 0]},
    )
    trainer = Trainer(config, tmp_path / "run", "cpu")
    assert trainer.fit()
    report = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert math.isfinite(report["loss"])
    assert len(list((tmp_path / "depth").glob("pseudo-*.npz"))) == 1, "made once, kept beside the depth maps"
    for who in ("student", "teacher"):
        assert 0 <= report["val"][who]["nuscenes"]["mAP"] < 0.5
    assert Detector.load(tmp_path / "run" / "student.safetensors", "cpu").classes == CLASSES


def test_the_committed_config_names_the_task(tree: Path) -> None:
    path = Path(__file__).resolve().parents[1] / "config" / "train" / "nuscenes.yaml"
    overrides = [f"data.{s}.{k}" for s in ("train", "val") for k in (f"root={tree}", f"split=mini_{s}")]
    config = load_config(path, overrides)
    assert config.model.classes == CLASSES
    assert isinstance(build_dataset(config.data.train, config.model.classes), NuScenesDataset)


@pytest.mark.parametrize(
    ("train", "val", "fault"),
    [
        ({"kind": "nuscene"}, None, "nuscenes"),
        ({"version": "v1.0-mini"}, None, "version is for kind: nuscenes"),
        ({"kind": "nuscenes"}, {"kind": "nuscenes", "root": "r"}, "needs a split"),
    ],
)
def test_config_faults(tmp_path: Path, train: dict[str, str], val: dict[str, str] | None, fault: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"data": {"train": {"root": "r", **train}, "val": val}}))
    with pytest.raises(UserError, match=fault):
        load_config(path)


# -- wrong input -----------------------------------------------------------------------------------------------------
def fault(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_folders_tables_and_files(tree: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tree, tmp_path / "n")
    version = root / "v1.0-mini"

    def opened(**more: Any) -> Callable[[], object]:
        return lambda: NuScenesDataset(root, **{"split": "mini_val"} | more)

    assert "no such folder" in fault(lambda: NuScenesDataset(tmp_path / "absent"))
    assert "no folder 'v1.0-*'" in fault(lambda: NuScenesDataset(tmp_path))
    assert "there are: v1.0-mini" in fault(opened(version="v1.0-trainval"))
    assert "'Car' is not a nuScenes class" in fault(opened(classes=("Car",)))
    assert "no split 'vall'; there are train, val" in fault(opened(split="vall"))
    assert "no scene of split 'test'" in fault(opened(split="test"))
    (root / "v1.0-test").mkdir()
    assert "holds v1.0-mini, v1.0-test; say which version" in fault(opened())
    (root / "v1.0-test").rmdir()

    image = NuScenesDataset(root, "mini_val").frame(5).image
    jpeg = image.read_bytes()
    image.write_bytes(jpeg[:300])
    assert image.name in fault(lambda: NuScenesDataset(root, "mini_val")[5])
    shutil.copy(tree / "maps" / "map.png", image)  # a picture of another size
    assert "is 20x20, but nuScenes' table says 160x90" in fault(lambda: NuScenesDataset(root, "mini_val")[5])
    image.unlink()
    assert f"{image}: no such file; 1 of 12 images" in fault(opened())
    image.write_bytes(jpeg)

    (root / "maps" / "map.png").rename(root / "gone.png")
    assert "map.png" in fault(opened())
    (root / "gone.png").rename(root / "maps" / "map.png")
    whole = (version / "sample.json").read_text()
    (version / "sample.json").write_text(whole[:100])
    assert "sample.json: not valid JSON" in fault(opened())
    (version / "sample.json").write_text(whole.replace("scene_token", "scene"))
    assert "sample.json: record 0, 'scene_token': Field required" in fault(opened())
    (version / "sample.json").write_text("[]")
    assert "do not fit together" in fault(opened())
    for table in TABLES:
        (version / f"{table}.json").rename(version / "aside")
        assert f"{table}.json: no such table" in fault(opened())
        (version / "aside").rename(version / f"{table}.json")


BAD_TABLES = {
    "null": b"null", "number": b"7", "text": b'"a"', "object": b"{}", "nulls": b"[null]", "numbers": b"[1, 2]",
    "lists": b"[[]]", "empty records": b"[{}]", "not UTF-8": b'[{"token": "\xff"}]', "UTF-16": "[]".encode("utf-16"),
    "cut": b'[{"token": ', "nothing": b"", "deep": b"[" * 100_000, "digits": b"[" + b"9" * 5000 + b"]",
    "token null": b'[{"token": null}]', "two documents": b"[] []",
}  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
def test_a_table_that_is_none_is_named(tree: Path, tmp_path: Path, table: str) -> None:
    root = shutil.copytree(tree, tmp_path / "n", symlinks=True)
    path = root / "v1.0-mini" / f"{table}.json"
    whole = path.read_bytes()
    for kind, content in BAD_TABLES.items():
        path.write_bytes(content)
        said = fault(lambda: NuScenesDataset(root, "mini_val"))
        assert said.startswith(f"{path}: "), kind
        assert len(said.splitlines()) == 1
    rows = json.loads(whole)
    path.write_text(json.dumps([*rows, rows[0]]))
    assert fault(lambda: NuScenesDataset(root, "mini_val")) == f"{path}: two records have one token"


FIELDS = [(table, field) for table, kind in ROWS.items() for field in kind.__annotations__]


@pytest.mark.parametrize(("table", "field"), FIELDS)
def test_a_field_of_another_kind_length_or_range_is_named(tree: Path, table: str, field: str) -> None:
    path = tree / "v1.0-mini" / f"{table}.json"
    rows = json.loads(path.read_text())
    number = next((i for i, row in enumerate(rows) if row[field] not in ("", [])), 0)
    good = rows[number][field]
    bad: list[Any] = [None, {}, [None], [1], 1.5e308, math.nan, -(10**400)]
    if isinstance(good, list) and good and isinstance(good[0], float):  # a place, a size or a quaternion
        bad += [good[:-1], [*good, 1.0], [1e308, *good[1:]], [math.inf, *good[1:]], ["1", *good[1:]]]
        bad += [[0.0] * len(good)] if field != "translation" else []
    if field == "camera_intrinsic":
        bad += [good[:2], [row[:2] for row in good], [[1e308] * 3] * 3]
    for value in bad:
        changed = [*rows]
        changed[number] = {**rows[number], field: value}
        copy = tree / f"{table}-{field}.json"
        copy.write_text(json.dumps(changed))
        said = fault(partial(read_table, copy, table))
        assert said.startswith(f"{copy}: record {number}, '{field}'"), value
        copy.unlink()


@pytest.mark.parametrize(
    "content", [b"null", b"[]", b'{"mine": null}', b'{"mine": [1]}', b"\xff", b"{", b'{"mine": "a"}']
)
def test_a_splits_file_that_is_none_is_named(tree: Path, tmp_path: Path, content: bytes) -> None:
    root = shutil.copytree(tree, tmp_path / "n", symlinks=True)
    path = root / "v1.0-mini" / "splits.json"
    path.write_bytes(content)
    assert fault(lambda: NuScenesDataset(root, "mine")).startswith(f"{path}: ")


def test_without_the_devkit(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nuscenes.nuscenes", None)
    assert "pip install 'nuscenes-devkit>=1.2'" in fault(lambda: NuScenesDataset(tree, "mini_val"))


def test_faulty_submissions(truth: NuScenesDataset, tmp_path: Path) -> None:
    path = submit(tmp_path, truth, true_boxes(truth))
    good = json.loads(path.read_text())
    first, second = good["results"]

    def said(data: object) -> str:
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        return fault(lambda: evaluate(path, truth.root, "mini_val"))

    def with_entry(**more: Any) -> dict[str, Any]:
        entry = {**good["results"][first][0], **more}
        return {"meta": good["meta"], "results": {first: [entry], second: []}}

    assert "not valid JSON" in said("{")
    for wrong in ([], {"results": {}}, {"meta": {}, "results": []}, {"meta": {}, "results": {first: {}}}):
        assert "is it a nuScenes submission?" in said(wrong)
    assert "no detection at all" in said({"meta": {}, "results": {first: [], second: []}})
    assert "1 of 2 key frames of split 'mini_val'" in said({"meta": {}, "results": {first: good["results"][first]}})
    assert "1 entries are not key frames" in said({"meta": {}, "results": {**good["results"], "other": []}})
    assert "Unknown detection_name Car" in said(with_entry(detection_name="Car"))
    assert "Unknown attribute_name" in said(with_entry(attribute_name="vehicle.flying"))
    entry = f"{path}: 'results', '{first}', record 0, "
    assert f"{entry}'translation': List should have at least 3 items" in said(with_entry(translation=[1.0, 2.0]))
    assert f"{entry}'rotation': Value error, must be a quaternion" in said(with_entry(rotation=[0, 0, 0, 0]))
    assert f"{entry}'translation': Input should be less than or equal" in said(with_entry(translation=[1e308, 0, 0]))
    assert f"{entry}'detection_score': Input should be a finite number" in said(with_entry(detection_score=math.inf))
    for field in with_entry()["results"][first][0]:
        for value in (None, {}, [None], -(10**400)):
            assert f"{entry}'{field}': " in said(with_entry(**{field: value}))
    lacking = with_entry()
    del lacking["results"][first][0]["size"]
    assert f"{entry}'size': Field required" in said(lacking)
    assert "500 boxes" in said({"meta": {}, "results": {first: 501 * [good["results"][first][0]], second: []}})
    assert "cannot read" in fault(lambda: evaluate(tmp_path / "absent.json", truth.root, "mini_val"))
    path.write_text(json.dumps(good))
    assert "no scene of split 'test'" in fault(lambda: evaluate(path, truth.root, "test"))
    assert "not compatible with NuScenes version" in fault(lambda: evaluate(path, truth.root, "val"))


def test_a_split_without_labels(tmp_path: Path) -> None:
    scene = nuscenes_tree.miniature(1)["scene-0103"]
    scene[0].things = []
    root = nuscenes_tree.write_tree(tmp_path / "n", {"scene-0103": scene})
    dataset = NuScenesDataset(root, with_3d=True)
    assert len(dataset[0].boxes2d) == 0
    box = Boxes3D(torch.tensor([[0.0, 0, 9]]), torch.ones(1, 3), torch.zeros(1), ("car",))
    path = submit(tmp_path, dataset, [box] + [Boxes3D.empty()] * 5)
    assert "has no labels here" in fault(lambda: evaluate(path, root, "mini_val"))


def test_weights_without_a_class_of_nuscenes(tree: Path, tmp_path: Path) -> None:
    detector = Detector.random()
    detector.classes = ("Cyclist",)
    from skd_core.evaluation.nuscenes import predict_split

    message = fault(lambda: predict_split(NuScenesDataset(tree), detector, tmp_path / "s.json", 0.1))
    assert "the weights know Cyclist" in message
    assert not (tmp_path / "s.json").exists()


# -- the real key frame ----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[NuScenesDataset, dict[str, Any]]:
    """The key frame of mmdetection3d's info file as a v1.0 tree, and the file's boxes by camera."""
    if not REAL.is_dir():
        pytest.skip(f"{REAL}: no real key frame on this machine")
    info = json.loads((REAL / "info.json").read_text())
    data = info["data_list"][0]
    names = {number: name for name, number in info["metainfo"]["categories"].items()}
    categories = {
        "car": "vehicle.car", "truck": "vehicle.truck", "trailer": "vehicle.trailer", "bus": "vehicle.bus.rigid",
        "construction_vehicle": "vehicle.construction", "bicycle": "vehicle.bicycle",
        "motorcycle": "vehicle.motorcycle", "pedestrian": "human.pedestrian.adult",
        "traffic_cone": "movable_object.trafficcone", "barrier": "movable_object.barrier",
    }  # fmt: skip
    ego, lidar = np.array(data["ego2global"]), np.array(data["lidar_points"]["lidar2ego"])
    lidar_to_global = ego @ lidar

    def shot(to_ego: np.ndarray, ego_pose: np.ndarray, *more: Any) -> Shot:
        return Shot(_quaternion(to_ego), tuple(to_ego[:3, 3]), _quaternion(ego_pose), tuple(ego_pose[:3, 3]), *more)

    shots = {}
    for channel, image in data["images"].items():
        to_ego = np.array(image["cam2ego"])
        pose = lidar_to_global @ np.linalg.inv(image["lidar2cam"]) @ np.linalg.inv(to_ego)  # at the image's own time
        path = REAL / image["img_path"]
        shots[channel] = shot(to_ego, pose, image["cam2img"], (1600, 900), path, path.stem)
    shots["LIDAR_TOP"] = shot(lidar, ego)
    things = []
    for i, instance in enumerate(data["instances"]):
        x, y, z, length, width, height, yaw = instance["bbox_3d"]
        ahead = lidar_to_global[:3, :3] @ [math.cos(yaw), math.sin(yaw), 0]
        category = categories.get(names.get(instance["bbox_label_3d"], ""), "movable_object.debris")
        center = tuple((lidar_to_global @ [x, y, z, 1])[:3].tolist())
        points = instance["num_lidar_pts"] + instance["num_radar_pts"]
        things.append(
            Thing(str(i), category, center, (width, length, height), math.atan2(ahead[1], ahead[0]), points=points)
        )
    frame = KeyFrame(int(data["timestamp"] * 1e6), shots, things)
    root = nuscenes_tree.write_tree(tmp_path_factory.mktemp("real") / "n", {"scene-0103": [frame]})
    return NuScenesDataset(root, "mini_val", with_3d=True), data["cam_instances"]


def _quaternion(pose: np.ndarray) -> tuple[float, ...]:
    u, _, v = np.linalg.svd(pose[:3, :3])  # the file has float32's rounding
    return tuple(Quaternion(matrix=u @ v).elements.tolist())


def test_the_real_boxes_are_those_published(real: tuple[NuScenesDataset, dict[str, Any]]) -> None:
    """84 boxes in six cameras, made by another tool from the full data set."""
    dataset, published = real
    total = 0
    for i in range(len(dataset)):
        sample, theirs = dataset[i], published[dataset.frame(i).image.parent.name]
        ours = sample.boxes3d
        assert ours is not None
        assert len(ours) == len(theirs)
        center, yaw = (torch.tensor([t["bbox_3d"] for t in theirs])[:, part] for part in (slice(0, 3), 6))
        distance, match = (center[:, None] - ours.center).norm(dim=-1).min(1)
        assert sorted(match.tolist()) == list(range(len(theirs)))
        assert distance.max() < 1e-3
        assert wrap_angle(ours.yaw[match] - yaw).abs().max() < math.radians(0.1)
        xyxy = torch.tensor([t["bbox"] for t in theirs])
        assert (sample.boxes2d.xyxy[match] - xyxy).abs().max() < 0.5, "pixels of 1600x900"
        total += len(theirs)
    assert total == 84


def test_the_real_truth_scores_one(real: tuple[NuScenesDataset, dict[str, Any]], tmp_path: Path) -> None:
    dataset, _ = real
    scores = evaluate(submit(tmp_path, dataset, true_boxes(dataset)), dataset.root, "mini_val")
    pedestrians = scores.labels["pedestrian"] + 1  # one without a LiDAR or radar point is no label of the task
    assert scores.detections == scores.labels | {"pedestrian": pedestrians}
    assert {"car", "truck", "pedestrian", "barrier", "traffic_cone"} <= set(scores.present)
    for name in scores.present:
        assert scores.summary["mean_dist_aps"][name] > 0.99, name
        assert scores.summary["label_tp_errors"][name]["trans_err"] < 1e-3
        if name != "traffic_cone":
            assert scores.summary["label_tp_errors"][name]["orient_err"] < math.radians(0.1)
