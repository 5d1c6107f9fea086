"""The training loop, on Lightning Fabric: visible, exact to resume, stopped by a NaN.

A run's folder::

    config.yaml           the complete config
    checkpoint.pt         everything an exact resume needs
    metrics.jsonl         one JSON object per report
    tensorboard/          the same for TensorBoard
    student.safetensors   the student's running mean (EMA), ready for `skd_core predict`
    teacher.safetensors   the teacher's with the backbone and 2D heads that it shares, ready for the same commands
"""

from __future__ import annotations

import json
import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor
from tqdm import tqdm

from skd_core.config import TrainConfig, parse_config
from skd_core.data.sets import open_set
from skd_core.devices import pick_device
from skd_core.errors import UserError
from skd_core.evaluation.dataset_scores import score_dataset
from skd_core.files import finite, make_folder, write_atomic
from skd_core.inference.weights import save_weights
from skd_core.models.student import Student
from skd_core.training.batch import Batch
from skd_core.training.checkpoint import load_checkpoint, save_checkpoint
from skd_core.training.dataset import TrainingSet, training_loader
from skd_core.training.evaluate import predict_dataset
from skd_core.training.modulation import YARDSTICKS
from skd_core.training.module import Step, TeacherStudent
from skd_core.training.pretrained import freeze, load_initial
from skd_core.training.provenance import Origin
from skd_core.training.records import read_records
from skd_core.training.sampler import EpochSampler
from skd_core.training.schedule import learning_rate, ramp

PATIENCE = timedelta(hours=12)  # of the other processes while the first one evaluates

LOOSE = {"Car": "0.50", "Pedestrian": "0.25", "Cyclist": "0.25"}
"""The IoU at which the progress line reports AP."""


class Trainer:
    """One run.

    Args:
        config: of the run.
        out: the run's folder.
        device: "auto", "cpu", "cuda" or "cuda:N"; under torchrun one process a device.
        resume: go on from ``out/checkpoint.pt`` where there is one.

    Raises:
        UserError: the folder holds another run's checkpoint, data are missing, or there are too few frames.
    """

    def __init__(self, config: TrainConfig, out: Path, device: str = "auto", resume: bool = True) -> None:
        self.config, self.out = config, out
        world_size, local = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        picked = pick_device(device)
        self.fabric = Fabric(
            accelerator=picked.type,
            devices=local if world_size > 1 or picked.index is None else [picked.index],
            num_nodes=world_size // local,
            strategy=DDPStrategy(find_unused_parameters=True, timeout=PATIENCE) if world_size > 1 else "auto",
            precision=config.precision,
        )
        self.fabric.launch()
        torch.manual_seed(config.seed)
        if config.schedule.batch_size % world_size:
            raise UserError(
                f"schedule.batch_size {config.schedule.batch_size} must be a multiple of {world_size} processes"
            )

        data, classes = config.data, config.model.classes
        sources = [open_set(part, classes, part.depth_dir, with_3d=config.method.supervised) for part in data.sets]
        self.dataset = TrainingSet(sources, config)
        if len(self.dataset) < config.schedule.batch_size:
            raise UserError(
                f"{self._roots}: {len(self.dataset)} frames are fewer than "
                f"schedule.batch_size {config.schedule.batch_size}"
            )
        self.sampler = EpochSampler(
            [len(source) for source in sources],
            config.schedule.batch_size,
            config.seed,
            self.fabric.global_rank,
            self.fabric.world_size,
            [part.share for part in data.sets],
        )
        self.val = open_set(data.val, classes) if data.val else None

        model = TeacherStudent(config).to(memory_format=torch.channels_last)  # a seventh faster on CPUs
        start = None
        if config.initial.weights:
            start = load_initial(model.student, config.initial.weights, config.initial.head_3d)
        self.origin = Origin.of_run(data.sets, config.method.supervised, start)
        freeze(model.student.backbone, config.initial.freeze)
        if config.schedule.freeze_norm:
            freeze_batch_norm(model)
        self.average = ModelEmaV3(model)
        optimizer = torch.optim.Adam(
            [p for p in model.parameters() if p.requires_grad],
            config.schedule.learning_rate,
            weight_decay=config.schedule.weight_decay,
        )
        self.raw = model
        self.model, self.optimizer = self.fabric.setup(model, optimizer)
        self.average.to(self.fabric.device)
        self.step, self.seconds = 0, 0.0
        self.means = _Means()  # of the epoch under way
        self.stop_requested = False
        if resume and (out / "checkpoint.pt").exists():
            self.load(out / "checkpoint.pt")
        with self.fabric.rank_zero_first():  # the others read what the first has written
            share = self.dataset.make_targets()
        self.fabric.print(share)
        if self.fabric.is_global_zero:
            make_folder(out)
            write_atomic(out / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
            if not self.step:  # of a run that is begun anew
                for name in ("student", "teacher"):
                    (out / f"{name}.safetensors").unlink(missing_ok=True)
            self._trim_metrics()

    @property
    def ema(self) -> TeacherStudent:
        """Running mean of the weights: what is measured and exported."""
        mean: TeacherStudent = self.average.module
        return mean

    # -- state --------------------------------------------------------------------------------------------------------
    def save(self) -> None:
        """Write the checkpoint."""
        if not self.fabric.is_global_zero:
            return
        state = {
            "config": self.config.model_dump(mode="json"),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.raw.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),  # the gradient scaler of 16-mixed
            "modulation": self.raw.modulation.state_dict(),
            "rng": torch.get_rng_state(),
            "means": vars(self.means),
        }
        save_checkpoint(self.out / "checkpoint.pt", state)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint of the same config."""
        state = load_checkpoint(path)
        written = parse_config(TrainConfig, state["config"], f"{path}: config")  # keys added since take their defaults
        if written != self.config:
            changed = _differences(written.model_dump(mode="json"), self.config.model_dump(mode="json"))
            raise UserError(f"{path}: is of a run with another config ({changed}); choose another --out or delete it")
        self.raw.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state.get("precision"):
            self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.raw.modulation.load_state_dict(state["modulation"])
        torch.set_rng_state(state["rng"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.means = _Means(**state["means"])

    def _trim_metrics(self) -> None:
        """Drop reports that a crash left beyond the checkpoint, or half written."""
        path = self.out / "metrics.jsonl"
        if path.exists():
            kept = [record for record in read_records(path) if record["step"] <= self.step] if self.step else []
            if kept:
                write_atomic(path, "".join(json.dumps(record) + "\n" for record in kept))
            else:
                path.unlink()

    # -- the loop -----------------------------------------------------------------------------------------------------
    def fit(self, stop_after: float | None = None) -> bool:
        """Train to the end, or until the time is up or a signal comes.

        Args:
            stop_after: minutes after which to stop with a checkpoint.

        Returns:
            whether the run is complete.
        """
        from torch.utils.tensorboard import SummaryWriter

        schedule, per_epoch = self.config.schedule, len(self.sampler)
        total, begun, saved = schedule.epochs * per_epoch, time.monotonic(), time.monotonic()
        main = self.fabric.is_global_zero
        writer = SummaryWriter(str(self.out / "tensorboard"), purge_step=self.step) if main else None
        bar = tqdm(total=total, initial=self.step, disable=not main, unit="step", dynamic_ncols=True, mininterval=1)
        before, stop = self._catch_signals(), False
        try:
            while self.step < total:
                self.sampler.epoch, self.sampler.first = divmod(self.step, per_epoch)
                start = time.monotonic()
                for batch in training_loader(self.dataset, self.sampler, self.config):
                    terms = self._train_step(batch.to(self.fabric.device))
                    self.seconds += time.monotonic() - start  # loading, too
                    start = time.monotonic()
                    self.means.add(terms)
                    self.step += 1
                    bar.update()
                    now = time.monotonic()
                    out_of_time = stop_after is not None and now - begun > 60 * stop_after
                    stop = self._any(out_of_time or self.stop_requested)
                    if self.step % per_epoch == 0:
                        break  # a whole epoch is reported first
                    if stop:
                        self.save()
                        return False
                    if now - saved > 120:
                        self.save()
                        saved = now
                epoch = self.step // per_epoch
                if self.means.values()["objects"] == 0:
                    raise UserError(self._no_objects())
                report = {
                    "epoch": epoch,
                    "step": self.step,
                    "lr": self._rate(),
                    **self.means.values(),
                    **self._course(),
                }
                if epoch % schedule.eval_every == 0 or self.step == total:
                    report |= self.evaluate()
                self.means = _Means()
                if main:
                    self._report(report, writer, bar)
                    self.save()
                self.fabric.barrier()
                if stop and self.step < total:
                    return False
            if main:
                self.export()
            return True
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            bar.close()
            if writer is not None:
                writer.close()

    def _train_step(self, batch: Batch) -> dict[str, float]:
        schedule = self.config.schedule
        progress = self.step / (schedule.epochs * len(self.sampler))
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        objects = float(self._sum(torch.tensor(float(len(batch.boxes))))) / self.fabric.world_size
        step = Step(ramp(progress, *schedule.start_3d), ramp(progress, *schedule.start_distillation), objects)
        self.model.train()
        freeze(self.raw.student.backbone, self.config.initial.freeze)
        if schedule.freeze_norm:
            freeze_batch_norm(self.raw)
        terms: dict[str, Tensor] = self.model(batch, step)
        loss = torch.stack(list(terms.values())).sum()
        self._check_finite(terms, "loss", batch)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(
            self.model, self.optimizer, max_norm=schedule.gradient_clip, error_if_nonfinite=False
        )
        if norm is not None:
            self._check_finite({"gradient norm": norm}, "gradient", batch)
        self.optimizer.step()
        self._update_modulation()
        self._update_ema()
        values = {name: float(value.detach()) for name, value in terms.items()}
        return values | {"loss": float(loss.detach()), "objects": objects * self.fabric.world_size}

    def _check_finite(self, values: dict[str, Tensor], kind: str, batch: Batch) -> None:
        if self.config.precision == "16-mixed" and kind == "gradient":
            return  # the scaler skips such a step by itself
        bad = [name for name, value in values.items() if not bool(torch.isfinite(value).all())]
        if bad:
            raise UserError(
                f"training stopped at step {self.step}: {', '.join(bad)} is not finite. Look at this step's frames "
                f"({', '.join(batch.names)}), or train with a lower schedule.learning_rate into another --out"
            )

    @property
    def _roots(self) -> str:
        return ", ".join(part.root for part in self.config.data.sets)

    def _no_objects(self) -> str:
        samples = (self.dataset.prepared(index)[0] for index in range(min(len(self.dataset), 50)))
        ignored = sorted({label for sample in samples for label in sample.ignore.labels})
        wanted = ", ".join(self.config.model.classes)
        return (
            f"{self._roots}: a whole epoch without a single 2D box of model.classes ({wanted})"
            f"; its labels name {', '.join(ignored) or 'nothing at all'}"
        )

    def _update_modulation(self) -> None:
        """Every process sees the same means, and takes part even when its own share of the batch has no object."""
        if self.raw.teacher is None:
            return
        sums = self._sum(self.raw.yardsticks)
        student, teacher = (sums[..., 0] / sums[..., 1]).tolist()  # NaN where nothing could be measured
        self.raw.modulation.update(
            dict(zip(YARDSTICKS, student, strict=True)), dict(zip(YARDSTICKS, teacher, strict=True))
        )

    def _update_ema(self) -> None:
        self.average.decay = min(self.config.schedule.ema, (1 + self.step) / (10 + self.step))
        self.average.update(self.raw)

    def _rate(self) -> float:
        return learning_rate(self.config.schedule, self.step, len(self.sampler))

    def _course(self) -> dict[str, float]:
        """GTM's measures, for the log."""
        modulation = self.raw.modulation
        if not modulation.errors:
            return {}
        factors = {"rho": modulation.rho, "k_teacher": modulation.k_teacher, "k_feedback": modulation.k_feedback}
        return {f"gtm/{k}": v for k, v in (factors | modulation.errors).items()}

    def _any(self, flag: bool) -> bool:
        return bool(self._sum(torch.tensor(float(flag))) > 0)

    def _sum(self, value: Tensor) -> Tensor:
        """Over all processes."""
        if self.fabric.world_size == 1:
            return value
        total = self.fabric.all_reduce(value.to(self.fabric.device), reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def _catch_signals(self) -> dict[signal.Signals, Any]:
        def request(number: int, frame: object) -> None:
            self.stop_requested = True

        try:
            return {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread
            return {}

    # -- results ------------------------------------------------------------------------------------------------------
    def evaluate(self) -> dict[str, Any]:
        """AP and errors of the running means of student and teacher on the validation set."""
        if self.val is None or not self.fabric.is_global_zero:
            return {}
        where, focal = self.fabric.device, self.dataset.focal
        results = {"student": predict_dataset(self.ema, self.val, where, focal)}
        if self.raw.teacher is not None:
            results["teacher"] = predict_dataset(self.ema, self.val, where, focal, teacher=True)
        return {"val": {who: score_dataset(self.val, boxes) for who, boxes in results.items()}}

    def _report(self, report: dict[str, Any], writer: Any, bar: Any) -> None:
        report["images_per_second"] = self.step * self.config.schedule.batch_size / max(self.seconds, 1e-9)
        with open(self.out / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(finite(report), allow_nan=False) + "\n")
        for name, value in report.items():
            if isinstance(value, (int, float)):
                writer.add_scalar(name, value, report["step"])
        line = f"epoch {report['epoch']}: loss {report['loss']:.3f}, {report['images_per_second']:.1f} images/s"
        for who, scores in report.get("val", {}).items():
            if "nuscenes" in scores:
                for measure in ("mAP", "NDS"):
                    writer.add_scalar(f"{who}/{measure}", scores["nuscenes"][measure], report["step"])
                line += f"\n  {who}: mAP {scores['nuscenes']['mAP']:.4f}, NDS {scores['nuscenes']['NDS']:.4f}"
            for name in self.config.model.classes:
                if name in scores["ap"]:
                    value, errors = scores["ap"][name]["3d"]["R40"][LOOSE[name]][1], scores["errors"][name]
                    writer.add_scalar(f"{who}/{name}_ap3d_{LOOSE[name]}_moderate", value or 0.0, report["step"])
                    line += f"\n  {who} {name}: AP3D@{LOOSE[name]} {value or 0:.2f}"
                    if not errors["count"]:
                        continue  # no detection on any label: no error to speak of
                    for axis in ("depth", "lateral", "length", "width", "height", "yaw_mod_pi", "yaw_folded"):
                        writer.add_scalar(f"{who}/{name}_{axis}_median", errors[f"{axis}_median"], report["step"])
                    line += f", depth {errors['depth_median']:.1%}, lateral {errors['lateral_median']:.2f} m"
                    line += f", length {errors['length_median']:.1%}, yaw {errors['yaw_mod_pi_median']:.1f}"
                    line += f" (folded {errors['yaw_folded_median']:.1f}) degrees"
        if "gtm/rho" in report:
            line += f", rho {report['gtm/rho']:.2f}"
        bar.write(line)

    def export(self) -> Path:
        """Write the weights files of student and teacher; returns the student's."""
        networks: dict[str, Student] = {"student": self.ema.student}
        if self.raw.teacher is not None:
            networks["teacher"] = self.ema.depth_guided()
        for name, network in networks.items():
            save_weights(
                self.out / f"{name}.safetensors",
                network,
                self.dataset.focal,
                learnt_from=self.origin.learnt_from,
                trained_on=self.origin.trained_on,
                seed=self.config.seed,
                steps=self.step,
                config=self.config.model_dump(mode="json"),
                licence=self.origin.licence,
            )
        return self.out / "student.safetensors"


def freeze_batch_norm(model: torch.nn.Module) -> None:
    """Batch norms use and keep their running statistics."""
    for part in model.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.eval()


class _Means:
    """Means of the terms of an epoch; a term counts the steps in which it took part."""

    def __init__(self, sums: dict[str, float] | None = None, counts: dict[str, int] | None = None) -> None:
        self.sums = sums or {}
        self.counts = counts or {}

    def add(self, terms: dict[str, float]) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def values(self) -> dict[str, float]:
        return {name: total / self.counts[name] for name, total in self.sums.items()}


def _differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> str:
    found = []
    for key in a.keys() | b.keys():
        if a.get(key) != b.get(key):
            both = isinstance(a.get(key), dict) and isinstance(b.get(key), dict)
            found.append(_differences(a[key], b[key], f"{prefix}{key}.") if both else f"{prefix}{key}")
    return ", ".join(sorted(found))
