"""What makes training fast changes no number: once instead of twice, several processes, kept frames, one look."""

from __future__ import annotations

import json
import math
import pickle
import platform
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from lightning.fabric import Fabric
from timm.utils.model_ema import ModelEmaV3
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from skd_core import benchmark_training as bench
from skd_core.cli import app
from skd_core.config import TrainConfig
from skd_core.data.kitti import KittiDataset
from skd_core.errors import UserError
from skd_core.inference.weights import digest
from skd_core.losses.detection_2d import Detection2DLoss, render_heatmap
from skd_core.losses.points import PointsLoss
from skd_core.models.heads import Maps2D
from skd_core.supervision.pseudo import PseudoTargets
from skd_core.supervision.targets import TargetMaker
from skd_core.training.batch import Batch
from skd_core.training.cache import SampleCache
from skd_core.training.checkpoint import load_checkpoint, not_finite, save_checkpoint
from skd_core.training.dataset import TrainingSet, training_loader
from skd_core.training.memory import keep_memory
from skd_core.training.module import TeacherStudent
from skd_core.training.sampler import EpochSampler, RunSampler
from skd_core.training.trainer import Trainer

FRAMES = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_dataset(tmp_path_factory.mktemp("data") / "train", FRAMES)


def config_of(root: Path, workers: int = 0, cache: bool = True, **sections: Any) -> TrainConfig:
    data = {"train": {"root": str(root)}, "depth_dir": "depth", "workers": workers, "cache": cache}
    return tiny.make_config(root, data=data, **sections)


def same(a: Batch, b: Batch) -> bool:
    pairs = [(a.images, b.images), (a.depth, b.depth), (a.rois.boxes, b.rois.boxes), (a.P, b.P)]
    pairs += [(getattr(a.pseudo, n).nan_to_num(-1), getattr(b.pseudo, n).nan_to_num(-1)) for n in vars(a.pseudo)]
    return a.names == b.names and all(torch.equal(x, y) for x, y in pairs)


# -- computed once -----------------------------------------------------------------------------------------------------
def test_what_is_computed_once_changes_no_loss() -> None:
    torch.manual_seed(0)
    maps = Maps2D(torch.randn(2, 3, 9, 16), torch.randn(2, 2, 9, 16), torch.randn(2, 2, 9, 16))
    boxes = torch.tensor([[4.0, 4, 30, 20], [20, 8, 60, 33], [0, 0, 12, 12]])
    places = torch.tensor([0, 2, 1]), torch.tensor([0, 0, 1]), torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    heat = render_heatmap(boxes, *places[:2], (2, 3, 9, 16))
    drawn, given = (Detection2DLoss()(maps, boxes, *places, target=target) for target in (None, heat))
    assert all(torch.equal(drawn[name], given[name]) for name in drawn)

    points = torch.rand(5, 20, 2) * 3
    points[1:3, 12:] = math.nan
    loss, twice = PointsLoss(), [torch.rand(10, 3), torch.rand(10, 3), torch.rand(10), points.repeat(2, 1, 1)]
    assert torch.equal(loss(*twice), loss(*twice, loss.density(points).repeat(2, 1)))


def test_the_running_mean_by_hand_and_what_is_no_number(root: Path) -> None:
    model = TeacherStudent(tiny.make_config(root))
    mean = ModelEmaV3(model, decay=0.75)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for value in model.state_dict().values():
        value.add_(1)
    mean.update(model)
    for name, value in mean.module.state_dict().items():
        moved = before[name] + 0.25 if value.is_floating_point() else before[name] + 1
        assert torch.allclose(value, moved, atol=1e-6), name
    assert not mean.module.training
    assert not not_finite(model.state_dict())
    for name in ("student.head_3d.fcs.depth.bias", "student.backbone.neck.smooth.0.1.running_var"):
        value = model.state_dict()[name]
        for bad in (math.nan, math.inf, -math.inf):
            kept = float(value[0])
            value[0] = bad
            assert not_finite(model.state_dict()) == [name], bad
            value[0] = kept
    value[0] = 1e38  # its square would overflow
    assert not not_finite(model.state_dict())


class Looks(TorchDispatchMode):
    """Counts how often a value is taken from its device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_step_looks_at_the_device_a_few_times(root: Path, tmp_path: Path) -> None:
    """Not once for each term of the loss. On a CPU `one_hot` checks its classes, which a GPU does not wait for."""
    trainer = Trainer(config_of(root), tmp_path, "cpu")
    trainer.step = 1  # every 100 steps gradients are logged
    batch = next(iter(trainer.batches()))
    with Looks() as looks:
        terms = trainer._train_step(batch)
    assert len(terms) > 15
    assert looks.count <= 12


def test_frozen_stages_are_cut_from_the_graph(root: Path, tmp_path: Path) -> None:
    trainer = Trainer(config_of(root, initial={"freeze": ["conv_stem", "bn1", "blocks.0"]}), tmp_path, "cpu")
    body, seen = trainer.raw.student.backbone.body, {}
    for name in ("blocks.0", "blocks.1"):
        body.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: seen.update({name: out}))
    before = {k: v.clone() for k, v in body.state_dict().items()}
    trainer._train_step(next(iter(trainer.batches())))
    assert not seen["blocks.0"].requires_grad
    assert seen["blocks.1"].requires_grad
    after = body.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items() if k.startswith(("conv_stem", "bn1", "blocks.0")))


# -- loading -----------------------------------------------------------------------------------------------------------
def test_a_run_goes_on_across_epochs() -> None:
    epochs = EpochSampler(23, 4, seed=3)
    whole = []
    for epoch in range(3):
        epochs.epoch, epochs.first = epoch, 0
        whole += list(epochs)
    assert list(RunSampler(EpochSampler(23, 4, seed=3), 0, 15)) == whole
    assert list(RunSampler(EpochSampler(23, 4, seed=3), 7, 12)) == whole[7:12]
    assert len(RunSampler(epochs, 7, 12)) == 5


def test_what_a_spawned_worker_gets_gives_the_same_batches(root: Path) -> None:
    config = config_of(root, workers=2)
    dataset = TrainingSet(KittiDataset(root, None, config.model.classes, "depth"), config)
    loader = training_loader(dataset, EpochSampler(FRAMES, 3, 0), config)
    assert loader.persistent_workers
    there, collate = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn)))
    keys = [(0, 1, 0), (0, 4, 0)]
    assert same(collate([there[key] for key in keys]), loader.collate_fn([dataset[key] for key in keys]))


class Counted(KittiDataset):
    """Notes each frame that is read, whatever process reads it."""

    def __getitem__(self, index: int) -> Any:
        with open(self.root / "reads", "a", encoding="utf-8") as file:
            file.write(f"{index}\n")
        return super().__getitem__(index)


@pytest.mark.parametrize("cache", [True, False])
def test_frames_are_read_once_whatever_worker_wants_them(root: Path, tmp_path: Path, cache: bool) -> None:
    shutil.copytree(root, tmp_path / "data")
    config = config_of(tmp_path / "data", workers=2, cache=cache)
    dataset = TrainingSet(Counted(tmp_path / "data", None, config.model.classes, "depth"), config)
    _ = dataset.focal
    (tmp_path / "data" / "reads").unlink()
    epochs = 8
    found = list(training_loader(dataset, RunSampler(EpochSampler(FRAMES, 3, 0), 0, 2 * epochs), config))
    reads = len((tmp_path / "data" / "reads").read_text().splitlines())
    assert reads == FRAMES * epochs if not cache else FRAMES <= reads <= 2 * FRAMES  # two may read a frame at a time
    plain = config_of(root)
    alone = TrainingSet(KittiDataset(root, None, plain.model.classes, "depth"), plain)
    expected = training_loader(alone, RunSampler(EpochSampler(FRAMES, 3, 0), 0, 2 * epochs), plain)
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))


def test_a_cache_that_is_full_keeps_what_it_has() -> None:
    sample = tiny.rendered_sample(0, size=(64, 32))
    prepared = sample, PseudoTargets.none(len(sample.boxes2d))
    cache = SampleCache(3, workers=1, limit=100_000)
    for index in range(3):
        cache.put(index, prepared)
        cache.put(index, prepared)
    kept = [index for index in range(3) if cache.get(index) is not None]
    assert 0 < len(kept) < 3
    found = cache.get(kept[-1])
    assert found is not None
    assert torch.equal(found[0].image, sample.image)
    assert found[0].boxes2d.labels == sample.boxes2d.labels
    assert pickle.loads(pickle.dumps(cache)).get(kept[0]) is None


def test_runs_with_workers_resume_exactly_and_equal_those_without(root: Path, tmp_path: Path) -> None:
    for name, workers, stops in (("alone", 0, ()), ("whole", 2, ()), ("pieces", 2, (1, 3))):
        config = config_of(root, workers=workers)
        for stop in (*stops, None):
            trainer = Trainer(config, tmp_path / name, "cpu")
            step = trainer._train_step

            def counted(batch: Batch, trainer: Any = trainer, step: Any = step, stop: Any = stop) -> dict[str, float]:
                trainer.stop_requested = stop is not None and trainer.step + 1 >= stop
                return step(batch)

            trainer._train_step = counted  # type: ignore[method-assign]
            assert trainer.fit() == (stop is None)
    states = [load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("alone", "whole", "pieces")]
    for part in ("model", "ema"):
        assert len({digest(state[part]) for state in states}) == 1, part
    assert states[0]["modulation"] == states[1]["modulation"] == states[2]["modulation"]
    assert torch.equal(states[1]["rng"], states[2]["rng"])


def test_pseudo_targets_by_several_processes_without_a_picture(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for workers in (0, 2):
        copy = tmp_path / str(workers)
        shutil.copytree(root, copy, ignore=shutil.ignore_patterns("pseudo-*"))
        source = KittiDataset(copy, None, tiny.CLASSES, "depth")
        whole = [source[i] for i in range(FRAMES)]
        with monkeypatch.context() as patch:
            patch.setattr("skd_core.data.kitti.read_image", lambda path: pytest.fail("a picture was decoded"))
            found.append(TargetMaker().all(source, workers))
        black = source.without_picture(1)
        assert (black.image.shape, int(black.image.amax())) == (whole[1].image.shape, 0)
        assert torch.equal(black.boxes2d.xyxy, whole[1].boxes2d.xyxy)
    for a, b in zip(*found, strict=True):
        assert all(torch.equal(getattr(a, n).nan_to_num(-9), getattr(b, n).nan_to_num(-9)) for n in vars(a))
    assert sum(int(t.z.isfinite().sum()) for t in found[0]) > 0


def test_a_frame_that_a_worker_cannot_read_is_named_in_one_line(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "data", ignore=shutil.ignore_patterns("pseudo-*"))
    (tmp_path / "data" / "training" / "depth" / "000004.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"depth/000004\.png: ") as caught:
        TargetMaker().all(KittiDataset(tmp_path / "data", None, tiny.CLASSES, "depth"), 2)
    assert "\n" not in str(caught.value)


def test_only_the_first_process_loads_the_validation_set(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"train": {"root": str(root)}, "depth_dir": "depth", "val": {"root": str(root)}}
    assert Trainer(tiny.make_config(root, data=data), tmp_path / "first", "cpu").val is not None
    monkeypatch.setattr(Fabric, "is_global_zero", False)
    assert Trainer(tiny.make_config(root, data=data), tmp_path / "second", "cpu").val is None


# -- settings ----------------------------------------------------------------------------------------------------------
def test_a_run_begun_with_another_form_of_adam_keeps_it(root: Path, tmp_path: Path) -> None:
    trainer = Trainer(config_of(root), tmp_path, "cpu")
    assert trainer.optimizer.param_groups[0]["fused"]
    trainer._train_step(next(iter(trainer.batches())))
    trainer.step = 1
    trainer.save()
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = None
    save_checkpoint(tmp_path / "checkpoint.pt", {k: v for k, v in state.items() if k != "format"})
    again = Trainer(config_of(root), tmp_path, "cpu")
    assert again.optimizer.param_groups[0]["fused"] is None
    assert again.fit()


def test_what_is_compiled(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No name changes, and what is measured and exported stays as it is; whether it is faster no test tells."""
    compiled: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    names = Trainer(config_of(root), tmp_path, "cpu").raw.state_dict().keys()
    assert compiled == []
    trainer = Trainer(config_of(root, compile=True, tf32=True), tmp_path / "compiled", "cpu")
    assert compiled == [trainer.raw.student.backbone]
    assert trainer.raw.state_dict().keys() == names


def test_memory_is_kept_where_the_library_can() -> None:
    assert keep_memory() == (platform.libc_ver()[0] == "glibc")


# -- the benchmark -----------------------------------------------------------------------------------------------------
def test_bench_training(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tiny.make_config(root).model_dump(mode="json", exclude={"data"})
    monkeypatch.setattr(bench, "SMALL", small)
    monkeypatch.setattr(bench, "FRAMES", 4)
    out = tmp_path / "bench.json"
    done = CliRunner().invoke(app, ["bench", "--training", "--repeat", "2", "--device", "cpu", "--json", str(out)])
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text(encoding="utf-8"))
    measures = result["measures"]
    assert set(measures) == {"train/images_per_second", "train/step_ms", *(f"train/{p}_share" for p in bench.PARTS)}
    assert all(numbers["count"] == 2 and numbers["min"] > 0 for numbers in measures.values())
    assert sum(measures[f"train/{p}_share"]["mean"] for p in bench.PARTS) == pytest.approx(1)
    assert result["settings"]["steps"] == 2
    assert "train/data_share" in done.output
    assert str(tmp_path) not in done.output


@pytest.mark.parametrize("what", [[], ["--training"]])
def test_bench_names_a_config_that_is_missing(what: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bench", *what, "--config", str(tmp_path / "none.yaml")])
    assert isinstance(done.exception, UserError)
    assert "none.yaml" in str(done.exception)
