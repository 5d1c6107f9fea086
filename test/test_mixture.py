"""Training on a mixture of sets through windows at one focal length: what moves together, and who gets which share."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nuscenes_tree
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from skd_core.boxes import at_border, project_boxes
from skd_core.config import AugmentConfig, SetConfig, TrainConfig, load_config
from skd_core.data.occlusion import covered_edges, covered_share
from skd_core.data.sample import Sample
from skd_core.data.sets import build_dataset
from skd_core.data.transforms import degrade, network_camera
from skd_core.errors import UserError
from skd_core.inference.bundled import BUNDLED
from skd_core.inference.detector import Detector
from skd_core.inference.weights import load_weights
from skd_core.losses.object_depth import ObjectDepthLoss
from skd_core.supervision.pseudo import PseudoTargets
from skd_core.training.ablation import REAL_ROWS, row_config
from skd_core.training.batch import collate
from skd_core.training.dataset import TrainingSet, place_window
from skd_core.training.evaluate import predict_dataset
from skd_core.training.module import StepContext, TeacherStudent
from skd_core.training.provenance import Origin
from skd_core.training.sampler import EpochSampler
from skd_core.training.trainer import Trainer

MODEL = {"focal": 120.0, "center_range": 2.5, "border_flags": True, "input_size": [96, 64]}
AUGMENT = {"zoom": [0.6, 1.8], "crop_to_objects": 0.8, "crop_cuts": 0.4}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_dataset(tmp_path_factory.mktemp("mixture") / "a")


def mixture(root: Path, **sections: dict[str, object]) -> TrainConfig:
    train = [
        {"root": str(root), "share": 3, "depth_dir": "depth"},
        {"root": str(root), "share": 1, "boxes": "tight"},
        {"root": str(root), "share": 1, "only_2d": True},
    ]
    parts = {"model": MODEL, "augment": AUGMENT, **sections}
    return tiny.make_config(root, **parts, data={"train": train, "depth_dir": None})


def training_set(config: TrainConfig) -> TrainingSet:
    sources = [build_dataset(part, config.model.classes, part.depth_dir, with_3d=True) for part in config.data.sets]
    return TrainingSet(sources, config)


# -- windows -----------------------------------------------------------------------------------------------------------
def test_image_camera_boxes_depth_and_targets_move_together(root: Path) -> None:
    """In every window the 3D truth still projects to the whole 2D boxes, and the depth map still fits the camera."""
    dataset, seen_cut = training_set(mixture(root)), 0
    for epoch in range(25):
        for index in range(6):
            sample, pseudo, jittered, in_3d = dataset[epoch, index, 0]
            camera, truth = sample.camera, sample.boxes3d
            assert truth is not None
            assert in_3d
            assert camera.width <= 96
            assert camera.height <= 64
            assert 0.6 * 120 * 0.97 < camera.fx < 1.8 * 120 * 1.03
            n = len(sample.boxes2d)
            assert len(truth) == len(pseudo.z) == len(jittered) == len(sample.full_xyxy) == len(sample.hidden) == n
            projected = project_boxes(camera.P.float(), truth.center, truth.size, truth.yaw)
            own = ~sample.hidden
            assert torch.allclose(projected[own], sample.full_xyxy[own], atol=2.0)
            clipped = sample.boxes2d.clip(camera.width, camera.height).xyxy
            bound = torch.tensor([camera.width, camera.height] * 2)
            assert torch.allclose(torch.minimum(sample.full_xyxy.clamp(min=0), bound), clipped, atol=1e-3)
            cut = at_border(sample.full_xyxy, camera.width, camera.height) & own
            seen_cut += int(cut.any(-1).sum())
            whole_height = truth.size[:, 2] * camera.fy / truth.center[:, 2]
            near = (sample.full_xyxy[:, 3] - sample.full_xyxy[:, 1]) / whole_height
            upright = own[:, [1, 3]].all(-1)
            assert ((near[upright] > 0.8) & (near[upright] < 2.0)).all()
    assert seen_cut > 30  # windows cut objects, which keep their whole boxes


def test_a_cut_object_keeps_the_targets_of_the_whole(root: Path) -> None:
    dataset = training_set(mixture(root, augment=AUGMENT | {"flip": 0, "crop_cuts": 1.0}))
    whole = {i: dataset.prepared(i)[1].z for i in range(6)}
    for epoch in range(10):
        for index in range(6):
            pseudo = dataset[epoch, index, 0][1]
            for z in pseudo.z[pseudo.z.isfinite()]:
                assert z in whole[index]


def test_a_focal_length_by_median_is_that_of_sets_that_teach_depth(root: Path, tmp_path: Path) -> None:
    """``only_2d`` is for sets whose focal length is uncertain."""
    tree = shutil.copytree(root, tmp_path / "guessed")
    for path in (tree / "training" / "calib").iterdir():
        words = path.read_text().split("P2: ")[1].split()
        words[0] = words[5] = str(3 * float(words[0]))
        path.write_text(f"P2: {' '.join(words[:12])}\n")
    guessed = {"root": str(tree), "only_2d": True}
    train = [{"root": str(root), "depth_dir": "depth"}, guessed, guessed]
    plain = {"focal": None, "input_size": [96, 64]}
    config = tiny.make_config(root, model=plain, data={"train": train, "depth_dir": None})
    alone = tiny.make_config(root, model=plain)
    assert training_set(config).focal == training_set(alone).focal


def test_cuts_are_asked_for(root: Path) -> None:
    """With crop_cuts 1 most windows cut their object; without, and far from the border, few do."""

    def share(cuts: float) -> float:
        config = mixture(root, augment=AUGMENT | {"zoom": [1.5, 1.5], "crop_cuts": cuts, "crop_to_objects": cuts})
        dataset, count = training_set(config), 0
        for epoch in range(20):
            for index in range(6):
                sample = dataset[epoch, index, 0][0]
                edges = at_border(sample.full_xyxy, sample.camera.width, sample.camera.height) & ~sample.hidden
                count += int(edges.any())
        return count / 120

    assert share(1.0) > share(0.0) + 0.1


@settings(max_examples=60, deadline=None)
@given(
    st.integers(40, 300), st.integers(40, 200), st.integers(10, 400), st.integers(10, 300), st.integers(0, 10**6),
    st.floats(0, 1), st.floats(0, 1), st.integers(0, 4),
)  # fmt: skip
def test_windows_lie_in_the_image(
    W: int, H: int, width: int, height: int, seed: int, to_objects: float, cuts: float, count: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([W, H]) * 0.8
    boxes = torch.cat([corner, corner + 5 + 0.2 * torch.tensor([W, H])], -1)
    sample = tiny.plain_sample(W, H, boxes)
    width, height = min(width, W), min(height, H)
    augment = AugmentConfig(crop_to_objects=to_objects, crop_cuts=cuts)
    x0, y0 = place_window(sample, width, height, augment, generator)
    assert 0 <= x0 <= W - width
    assert 0 <= y0 <= H - height


def test_repetitions_of_a_frame_differ(root: Path) -> None:
    dataset = training_set(mixture(root))
    first, same, other = dataset[0, 1, 0][0], dataset[0, 1, 0][0], dataset[0, 1, 1][0]
    assert torch.equal(first.image, same.image)
    assert first.image.shape != other.image.shape or not torch.equal(first.image, other.image)


def test_smaller_images_are_padded_and_say_their_size(root: Path) -> None:
    """Boxes at the right border of a padded image are cut there, not at the edge of the batch."""
    config = mixture(root, model=MODEL | {"input_size": [320, 128]}, augment={"zoom": [0.5, 1.5], "flip": 0.0})
    dataset = training_set(config)
    items = [dataset[epoch, index, 0] for epoch in range(2) for index in range(3)]
    batch = collate(items, config.model.classes)
    widths = [item[0].camera.width for item in items]
    assert len(set(widths)) > 1
    assert batch.images.shape[-1] == max(widths)
    for i, (sample, *_) in enumerate(items):
        of_image = batch.rois.batch_index == i
        assert (batch.rois.size[of_image, 0] == sample.camera.width).all()
        assert not batch.images[i, :, :, sample.camera.width :].any()
        assert not batch.depth[i, :, sample.camera.width :].any()
        assert torch.equal(batch.rois.cut[of_image], at_border(batch.rois.boxes[of_image], *sample.image.shape[:0:-1]))


def test_degraded_images_stay_pictures_and_follow_from_the_seed() -> None:
    sample = tiny.rendered_sample(1)
    twice = [degrade(sample, torch.Generator().manual_seed(3), 1, 1, 1).image for _ in range(2)]
    assert torch.equal(*twice)
    assert twice[0].dtype == torch.uint8
    difference = (twice[0].float() - sample.image.float()).abs()
    assert 1 < difference.mean() < 30
    assert torch.equal(degrade(sample, torch.Generator().manual_seed(3)).image, sample.image)


# -- one resize rule ---------------------------------------------------------------------------------------------------
@settings(max_examples=50, deadline=None)
@given(st.floats(0.3, 3), st.integers(200, 1500), st.integers(100, 800))
def test_a_car_has_the_same_size_whatever_the_camera(factor: float, width: int, height: int) -> None:
    camera = tiny.kitti_camera().resize(width, height)
    camera = replace(camera, P=camera.P * torch.tensor([[factor], [factor], [1.0]], dtype=torch.float64))
    small = network_camera(camera, (300.0, 310.0), None)
    assert small.fx == pytest.approx(300, abs=300 * 0.6 / small.width)
    assert small.fy == pytest.approx(310, abs=310 * 0.6 / small.height)


# -- shares ------------------------------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.floats(0.05, 5)), min_size=2, max_size=5), st.integers(1, 9))
def test_every_set_gets_its_share_of_every_epoch(sets: list[tuple[int, float]], batch: int) -> None:
    counts, shares = [n for n, _ in sets], [share for _, share in sets]
    if sum(counts) < batch:
        return
    sampler = EpochSampler(counts, batch, seed=1, shares=shares)
    keys = [key for step in sampler for key in step]
    assert len(keys) == len(sampler) * batch
    first = [sum(counts[:i]) for i in range(len(counts) + 1)]
    for i, share in enumerate(shares):
        mine = [(index, repetition) for _, index, repetition in keys if first[i] <= index < first[i + 1]]
        assert abs(len(mine) - share / sum(shares) * len(keys)) <= len(sets)
        assert len(set(mine)) == len(mine)  # a frame comes again only in another repetition
        times = Counter(index for index, _ in mine)
        assert not mine or max(times.values()) - (min(times.values()) if len(times) == counts[i] else 0) <= 1


def test_ranks_share_a_mixture(root: Path) -> None:
    whole = list(EpochSampler([5, 9], 4, 3, shares=[1, 1]))
    parts = [list(EpochSampler([5, 9], 4, 3, rank, 2, shares=[1, 1])) for rank in range(2)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert sorted(key for share in shares for key in share) == sorted(batch)


@pytest.mark.parametrize("shares", [[1, 1], [1, 1, 1, 1], [3, 1, 2, 2], [1, 7]])
@pytest.mark.parametrize("world", [2, 4])
def test_every_rank_sees_every_set(shares: list[float], world: int) -> None:
    """Batch statistics and, of 2D-only sets, gradients would else be those of some sets alone."""
    counts = [50] * len(shares)
    seen = [Counter[int]() for _ in range(world)]
    for rank in range(world):
        for batch in EpochSampler(counts, 8, 3, rank, world, shares, steps=200):
            seen[rank].update(index // 50 for _, index, _ in batch)
    for rank in range(world):
        mine = [seen[rank][which] / seen[rank].total() for which in range(len(shares))]
        assert mine == pytest.approx([share / sum(shares) for share in shares], abs=0.08)
    first, again = (list(EpochSampler(counts, 8, 3, 1, world, shares, steps=200)) for _ in range(2))
    assert first == again
    resumed = EpochSampler(counts, 8, 3, 1, world, shares, steps=200)
    resumed.first = 150
    assert list(resumed) == first[150:]


def test_sets_that_only_teach_2d_leave_the_3d_heads_alone(root: Path) -> None:
    config = mixture(root)
    dataset = training_set(config)
    only_2d = [dataset[0, 12 + i, 0] for i in range(3)]
    batch = collate(only_2d, config.model.classes)
    batch = replace(batch, truth=None)
    assert len(batch.boxes)
    assert not batch.in_3d.any()
    terms = TeacherStudent(config)(batch, StepContext())
    assert {name.split("/")[0] for name in terms} == {"heatmap", "offset_2d", "size_2d"}
    both = collate([*only_2d, dataset[0, 0, 0]], config.model.classes)
    kept = both.only(both.in_3d)
    assert len(kept.boxes) == len(kept.rois.boxes) == len(kept.pseudo.z) == int(both.in_3d.sum()) > 0
    assert (kept.rois.batch_index == 3).all()


# -- tight boxes -------------------------------------------------------------------------------------------------------
def test_supervision_needs_3d_labels_of_every_set_that_teaches_3d(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "weak")
    for path in (tmp_path / "weak" / "training" / "label_2").glob("*.txt"):
        rows = (line.split() for line in path.read_text().splitlines())
        unknown = "-1 -1 -1 -1000 -1000 -1000 -10"
        path.write_text("".join(f"{row[0]} -1 -1 -10 {' '.join(row[4:8])} {unknown}\n" for row in rows))
    weak = {"root": str(tmp_path / "weak"), "boxes": "tight"}

    def run(only_2d: bool) -> Trainer:
        train = [{"root": str(root)}, weak | {"only_2d": only_2d}]
        config = tiny.make_config(
            root, model=MODEL, augment=AUGMENT, data={"train": train, "depth_dir": None},
            method={"teacher": False, "supervised": True},
        )  # fmt: skip
        return Trainer(config, tmp_path / f"run{only_2d}", "cpu")

    with pytest.raises(UserError, match=r"weak: frame 00000\d: \w+ has no 3D label.*only_2d"):
        run(False).fit()
    assert run(True).fit()


def test_a_calibration_that_leaves_no_window_is_named(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "odd")
    for path in (tmp_path / "odd" / "training" / "calib").glob("*.txt"):
        path.write_text("P2: 0.5 0 80 0 0 0.5 32 0 0 0 1 0\n")
    with pytest.raises(UserError, match=r"^00000\d: focal length 0.5x0.5 px.*check the calibration"):
        training_set(mixture(tmp_path / "odd"))[0, 0, 0]


def test_what_is_said_of_sets_without_depth(root: Path) -> None:
    lines = training_set(mixture(root)).make_targets().splitlines()
    assert [line.endswith("it has no depth maps") for line in lines] == [False, True, True]


def test_edges_behind_a_nearer_object_are_not_the_objects_own() -> None:
    """A car whose right part a nearer, larger one hides: a 2D detector ends its box at the nearer one's left edge."""
    far, near = [100.0, 50, 150, 90], [148.0, 40, 260, 130]
    boxes = torch.tensor([far, near])
    assert covered_edges(boxes).tolist() == [[False, False, True, False], [False] * 4]
    below = torch.tensor([[100.0, 50, 150, 90], [90, 89, 170, 140]])  # hides its bottom
    assert covered_edges(below).tolist() == [[False, False, False, True], [False] * 4]
    apart = torch.tensor([far, [200.0, 40, 260, 130]])
    assert not covered_edges(apart).any()
    assert covered_edges(torch.zeros(0, 4)).shape == (0, 4)


def test_share_that_a_nearer_box_covers() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 0, 20, 20], [40, 40, 50, 50]])
    assert covered_share(boxes).tolist() == pytest.approx([0.5, 0, 0])
    assert covered_share(torch.zeros(0, 4)).shape == (0,)


def hidden_box(config: TrainConfig, edges: list[bool]) -> Tensor:
    """z_geo of an object 40 px high with the given edges hidden."""
    box = torch.tensor([[100.0, 60, 160, 100]])
    sample = tiny.plain_sample(320, 128, box)
    sample = replace(sample, hidden=torch.tensor([edges]))
    item = (sample, PseudoTargets.none(1), box, True)
    batch = collate([item], config.model.classes)
    model = TeacherStudent(config)
    features = model.student.features(batch.images)
    return model.geometric_target(model.student.boxes_3d(features, batch.P, batch.rois), batch)


def test_a_hidden_top_or_bottom_gives_no_geometric_depth(root: Path) -> None:
    config = mixture(root)
    assert hidden_box(config, [True, False, True, False]).isfinite().all()
    assert hidden_box(config, [False, True, False, False]).isnan().all()
    assert hidden_box(config, [False, False, False, True]).isnan().all()


def test_a_boxs_size_is_not_learnt_where_a_nearer_object_ends_it(root: Path) -> None:
    config = mixture(root)
    model = TeacherStudent(config)
    cost = []
    for edges in ([False] * 4, [False, False, True, False]):
        box = torch.tensor([[100.0, 60, 160, 100]])
        sample = replace(tiny.plain_sample(320, 128, box), hidden=torch.tensor([edges]))
        batch = collate([(sample, PseudoTargets.none(1), box, True)], config.model.classes)
        terms = model(batch, StepContext(weight_3d=0))
        cost.append((terms["size_2d"].item(), terms["offset_2d"].item(), terms["heatmap"].item()))
    assert cost[0][0] > 0
    assert cost[1][:2] == (0, 0)
    assert cost[1][2] == pytest.approx(cost[0][2])


# -- what a lifted depth may overrule ----------------------------------------------------------------------------------
def test_geometric_depth_is_free_within_its_own_error(root: Path) -> None:
    """Within 7.6 % of z_geo a car costs nothing and sigma takes no gradient; beyond, the excess counts."""
    log_z = torch.tensor([math.log(20.0), math.log(21.4), math.log(24.0)], requires_grad=True)
    log_sigma = torch.full((3,), -2.0, requires_grad=True)
    target, margin = torch.full((3,), 20.0), torch.full((3,), 0.076)
    loss = ObjectDepthLoss()(log_z, log_sigma, target, margin)
    assert loss[:2].tolist() == pytest.approx([-2, -2])
    expected = math.sqrt(2) * math.exp(2) * (math.log(1.2) - 0.076) - 2
    assert loss[2].item() == pytest.approx(expected, rel=1e-5)
    loss.sum().backward()
    assert log_sigma.grad is None or not log_sigma.grad.any()
    assert log_z.grad is not None
    assert log_z.grad[:2].tolist() == [0, 0]
    assert log_z.grad[2] > 0


def test_sample_checks_what_belongs_together() -> None:
    sample: Sample = tiny.plain_sample(64, 32, torch.tensor([[1.0, 2, 30, 31]]))
    assert sample.hidden.tolist() == [[True, True, False, True]]
    with pytest.raises(ValueError, match="full_xyxy"):
        replace(sample, full_xyxy=torch.zeros(2, 4))


# -- validation in training is prediction ------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["kitti", "kitti at a focal length", "kitti of several sizes", "nuscenes"])
def test_training_validates_what_predict_finds(tmp_path: Path, kind: str) -> None:
    """The boxes that training scores are those of `predict`, whatever the sizes and aspects of a set's images."""
    sections: dict[str, object] = {"model": MODEL} if kind == "kitti at a focal length" else {}
    if kind == "nuscenes":
        tree = nuscenes_tree.write_tree(tmp_path, nuscenes_tree.miniature(1))
        part = {"kind": "nuscenes", "root": str(tree), "split": "mini_train"}
        sections = {"model": {"classes": ["car", "pedestrian"]}, "data": {"train": part, "depth_dir": None}}
    else:
        tiny.make_dataset(tmp_path, 4)
    if kind == "kitti of several sizes":
        resize_frame(tmp_path, "000001", 224, 64)
        resize_frame(tmp_path, "000002", 120, 90)
    config = tiny.make_config(tmp_path, **sections)
    part = config.data.sets[0]
    source = build_dataset(part, config.model.classes)
    torch.manual_seed(0)
    model = TeacherStudent(config).eval()
    focal = TrainingSet([source], config).focal
    found = predict_dataset(model, source, torch.device("cpu"), focal, threshold=0.02)
    detector = Detector(model.student, {"focal": list(focal)}, "cpu")
    assert sum(len(boxes) for boxes in found) > 10
    for i, boxes in enumerate(found):
        sample = source[i]
        expected = detector.predict(sample.image.permute(1, 2, 0).numpy(), sample.camera, 0.02)
        assert boxes.labels == expected.labels
        for name in ("center", "size", "yaw", "scores", "xyxy", "depth_std"):
            torch.testing.assert_close(getattr(boxes, name), getattr(expected, name), atol=1e-4, rtol=1e-4)


def resize_frame(root: Path, name: str, width: int, height: int) -> None:
    path = next((root / "training" / "image_2").glob(f"{name}.*"))
    with Image.open(path) as picture:
        picture.convert("RGB").resize((width, height)).save(path)


# -- what weights say of their data ------------------------------------------------------------------------------------
def test_weights_name_their_data_and_its_licences() -> None:
    part = {"root": "x/astyx", "licence": "CC-BY-NC-SA-4.0"}
    free = {"root": "x/rendered", "licence": "Apache-2.0"}
    sets = [SetConfig(**p) for p in (free, part)]
    origin = Origin.of_run(sets, False, None)
    assert origin.trained_on == {"rendered": "Apache-2.0", "astyx": "CC-BY-NC-SA-4.0"}
    assert origin.licence == "non-commercial use only: trained on astyx"
    assert Origin.of_run(sets[:1], False, None).licence == "Apache-2.0"
    # what the start has seen stays on record
    after = Origin.of_run(sets[:1], False, origin)
    assert after.licence == origin.licence
    assert "where the licences" in Origin.of_run([SetConfig(root="mine")], False, None).licence
    # no licence is lost to a set of the same name, and none is taken for free that is not known to be
    for mixed in (
        Origin.of_run(
            [SetConfig(root="a/set", licence="CC-BY-NC-SA-4.0"), SetConfig(root="b/set", licence="MIT")], False, None
        ),
        Origin.of_run([SetConfig(root="y/astyx")], False, origin),
        Origin.of_run([SetConfig(root="x", licence="cc-by-nc-4.0")], False, None),
        Origin.of_run([SetConfig(root="x", licence="non-commercial research")], False, None),
    ):
        assert mixed.licence.startswith("non-commercial"), mixed
    assert "where the licences" in Origin.of_run([SetConfig(root="x", licence="proprietary")], False, None).licence
    assert "" not in Origin.of_run([SetConfig(root=".")], False, None).trained_on
    taught = Origin.of_run(sets[:1], False, Origin("3D labels (supervised)", {}))
    assert taught.learnt_from == "2D boxes, no 3D labels; its start from: 3D labels (supervised)"


@pytest.mark.parametrize("name", ["street", "street-dsn"])
def test_street_names_every_licence(name: str) -> None:
    parts = load_config(STREET.with_name(f"{name}.yaml")).data.sets
    assert all(part.licence for part in parts)
    restricted = {Path(part.root).name for part in parts if "NC" in str(part.licence)}
    assert restricted == {"astyx", "kitti_dev", "kitti_crops", "kitti_unlabelled", "nuscenes_back"}


@pytest.mark.parametrize(("name", "network"), [("street", "mdn"), ("street-dsn", "dsn")])
def test_bundled_street_says_what_it_saw_and_may_be_used_for(name: str, network: str) -> None:
    student, metadata = load_weights(name)
    assert metadata["network"] == network
    assert metadata["licence"].startswith("non-commercial use only")
    assert metadata["learnt_from"] == "2D boxes, no 3D labels"
    assert 0 < metadata["threshold"] < 1
    assert metadata["focal"] == [student.config.focal] * 2
    assert {name for name in metadata["trained_on"] if "labelled" in name} == {"kitti_unlabelled"}
    assert metadata["calibration"]["Car"]["count"] > 100
    assert (BUNDLED / f"{name}.safetensors").stat().st_size < 20e6
    assert f"`{name}.safetensors`" in (BUNDLED / "LICENCES.md").read_text()


def test_bundled_default_saw_only_what_anybody_may_use() -> None:
    student, metadata = load_weights("default")
    assert metadata["trained_on"] == {"rendered": "Apache-2.0", "udacity": "MIT"}
    assert metadata["licence"].startswith("Apache-2.0")
    assert metadata["learnt_from"] == "2D boxes, no 3D labels"
    assert metadata["focal"] == [student.config.focal] * 2
    assert metadata["calibration"]["Car"]["count"] > 100
    config = load_config(STREET.with_name("default.yaml"))
    assert {Path(part.root).name: part.licence for part in config.data.sets} == metadata["trained_on"]
    assert metadata["config"]["model"] == config.model_dump(mode="json")["model"]


# -- no validation frame in training -----------------------------------------------------------------------------------
STREET = Path(__file__).resolve().parents[1] / "config" / "train" / "street.yaml"
REAL = STREET.with_name("real.yaml")
DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.mark.parametrize("name", ["street", "street-dsn"])
def test_street_is_never_trained_on_what_it_is_measured_on(name: str) -> None:
    """Sets by name, and KITTI's drives by the table of drives: none of the validation frames' drives is trained on."""
    config = load_config(STREET.with_name(f"{name}.yaml"))
    parts = config.data.sets
    names = [Path(part.root).name for part in parts]
    assert "kitti_labelled" not in names
    assert "kitti_drive0052" not in names  # a drive of KITTI's validation split
    assert [part.split for part in parts if Path(part.root).name == "astyx"] == ["train"]
    assert [part.split for part in parts if Path(part.root).name == "kitti_dev"] == ["train"]
    assert not config.method.supervised


def test_the_real_benchmark_is_never_trained_on_what_it_is_measured_on() -> None:
    """No 3D label of a KITTI frame has a part in any row; all rows but their sets and labels are the same."""
    config = load_config(REAL)
    trained = {(Path(part.root).name, part.split) for part in config.data.sets}
    measured = {(Path(part.root).name, part.split) for part in config.data.test}
    assert trained == {("rendered", None), ("astyx", "train"), ("kitti_dev", "train"), ("kitti_crops", None)}
    assert measured == {("astyx", "val"), ("kitti_labelled", None)}
    assert [Path(part.root).name for part in config.data.sets if part.rendered] == ["rendered"]
    assert {Path(p.root).name for p in config.data.sets if p.teaches_3d(True)} == {"rendered", "astyx"}
    assert all(part.teaches_3d(False) for part in config.data.sets)
    rows = [row_config(config, row, 0) for row in REAL_ROWS]
    assert len({(row.schedule, row.augment, row.initial) for row in rows}) == 1


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}")
def test_drives_of_training_and_validation_are_disjoint() -> None:
    streets = DATA / "real_streets"
    lines = [line.split("\t") for line in (DATA / "kitti_drives.tsv").read_text().splitlines()[1:]]
    drive = {(name, frame): where for name, frame, where, *_ in lines}
    trained = {("kitti_dev", f) for f in (DATA / "kitti_dev/ImageSets/train.txt").read_text().split()}
    crops = [path.stem for path in (streets / "kitti_crops/training/image_2").iterdir()]
    trained |= {("kitti_crops", f) for f in crops}
    measured = {("kitti_labelled", f) for f in (streets / "kitti_labelled/ImageSets/all.txt").read_text().split()}
    assert len(trained) == 13 + 76
    assert len(measured) == 90
    assert not {drive[key] for key in trained} & {drive[key] for key in measured}
    train, val = ((streets / "astyx/ImageSets" / f"{split}.txt").read_text().split() for split in ("train", "val"))
    assert not set(train) & set(val)
    unlabelled = {path.stem for path in (streets / "kitti_unlabelled/training/image_2").iterdir()}
    assert not unlabelled & {frame for _, frame in measured}


# -- 3D labels set by set ----------------------------------------------------------------------------------------------
def test_supervision_set_by_set(root: Path, tmp_path: Path) -> None:
    """3D labels of the set that allows it; of the other not even the columns are read, and only its 2D boxes teach."""
    shutil.copytree(root, tmp_path / "weak")
    for path in (tmp_path / "weak" / "training" / "label_2").glob("*.txt"):
        rows = (line.split() for line in path.read_text().splitlines())
        path.write_text("".join(f"{r[0]} no 3D label {' '.join(r[4:8])} {'garbage ' * 7}\n" for r in rows))
    train = [{"root": str(root)}, {"root": str(tmp_path / "weak"), "labels_3d": False}]
    config = tiny.make_config(
        root, model=MODEL, augment=AUGMENT, data={"train": train, "depth_dir": None},
        method={"teacher": False, "supervised": True}, schedule={"epochs": 1, "batch_size": 4},
    )  # fmt: skip
    trainer = Trainer(config, tmp_path / "run", "cpu")
    batch = collate([trainer.dataset[0, i, 0] for i in (0, 1, 6, 7)], config.model.classes)
    assert batch.truth is not None
    first = batch.rois.batch_index < 2
    assert first.any()
    assert (~first).any()
    assert torch.equal(batch.in_3d, first)
    assert torch.equal(batch.truth.center.isfinite().all(-1), first)
    terms = TeacherStudent(config)(batch, StepContext())
    assert all(term.isfinite() for term in terms.values())
    only_weak = collate([trainer.dataset[0, i, 0] for i in (6, 7)], config.model.classes)
    assert only_weak.truth is None
    assert not any("/" in name for name in TeacherStudent(config)(only_weak, StepContext()))
    assert trainer.fit()
    learnt_from = load_weights(tmp_path / "run" / "student.safetensors")[1]["learnt_from"]
    assert learnt_from == f"3D labels of {root.name} (supervised), 2D boxes"


def test_without_supervision_labels_3d_changes_nothing(root: Path) -> None:
    for labels_3d in (True, False):
        part = SetConfig(root=str(root), labels_3d=labels_3d)
        assert part.teaches_3d(False)
        assert part.teaches_3d(True) == labels_3d
        assert not part.model_copy(update={"only_2d": True}).teaches_3d(True)


def test_an_epochs_steps_may_be_given() -> None:
    """Fewer, or more than all frames make: a set then comes again, also an only one."""
    assert [len(list(EpochSampler([5, 9], 4, 0, steps=n))) for n in (None, 1, 10)] == [3, 1, 10]
    seen = Counter(index for batch in EpochSampler(5, 2, 0, steps=5) for _, index, _ in batch)
    assert seen == dict.fromkeys(range(5), 2)
