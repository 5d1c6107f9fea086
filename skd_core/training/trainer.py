"""The training loop, on Lightning Fabric: visible, exact to resume, stopped by a NaN.

A run's folder::

    config.yaml           the complete config
    checkpoint.pt         everything an exact resume needs
    metrics.jsonl         one JSON object per report
    tensorboard/          the same for TensorBoard
    student.safetensors   the student's running mean (EMA), ready for `skd_core predict`
    teacher.safetensors   the teacher's with the backbone and 2D heads that it shares, ready for the same commands
    *.previous            those of the run before, where one was begun anew
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from skd_core.config import TrainConfig, load_config, parse_config
from skd_core.data.sets import build_dataset, check_frames
from skd_core.devices import pick_device
from skd_core.errors import UserError
from skd_core.evaluation.dataset_scores import score_dataset
from skd_core.files import finite, make_folder, write_atomic
from skd_core.inference.weights import save_weights
from skd_core.models.student import Student
from skd_core.training.batch import Batch
from skd_core.training.checkpoint import (
    check_optimizer,
    check_parts,
    check_weights,
    foreign,
    load_checkpoint,
    not_finite,
    save_checkpoint,
)
from skd_core.training.dataset import TrainingSet, training_loader
from skd_core.training.evaluate import predict_dataset
from skd_core.training.gradients import GRADIENTS_EVERY, describe
from skd_core.training.modulation import ERROR_NAMES
from skd_core.training.module import StepContext, TeacherStudent
from skd_core.training.pretrained import freeze, load_initial
from skd_core.training.processes import mean_terms, world_sizes
from skd_core.training.provenance import Origin
from skd_core.training.records import Means, append_record, read_records, show_record
from skd_core.training.sampler import EpochSampler, RunSampler
from skd_core.training.schedule import learning_rate, ramp

BARRIER_TIMEOUT = timedelta(hours=12)  # of the other processes while the first one evaluates

WRITTEN = ("config.yaml", "checkpoint.pt", "metrics.jsonl", "student.safetensors", "teacher.safetensors")
"""Files of a run's folder."""


class Trainer:
    """One run.

    Args:
        config: of the run.
        out: the run's folder.
        device: "auto", "cpu", "cuda" or "cuda:N"; under torchrun one process a device.
        resume: continue from ``out/checkpoint.pt`` where there is one.

    Raises:
        UserError: the folder holds another run's checkpoint, data are missing, or there are too few frames.
    """

    def __init__(self, config: TrainConfig, out: Path, device: str = "auto", resume: bool = True) -> None:
        self.config, self.out = config, out
        world_size, local = world_sizes()
        picked = pick_device(device)
        self.fabric = Fabric(
            accelerator=picked.type,
            devices=local if world_size > 1 or picked.index is None else [picked.index],
            num_nodes=world_size // local,
            strategy=DDPStrategy(find_unused_parameters=True, timeout=BARRIER_TIMEOUT) if world_size > 1 else "auto",
            precision=config.precision,
        )
        self.fabric.launch()
        if config.tf32 and picked.type == "cuda":
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        torch.manual_seed(config.seed)
        if config.schedule.batch_size % world_size:
            raise UserError(
                f"schedule.batch_size {config.schedule.batch_size} must be a multiple of {world_size} processes"
            )

        data, classes = config.data, config.model.classes
        truth = [config.method.supervised and part.teaches_3d(True) for part in data.sets]
        sources = [
            build_dataset(part, classes, part.depth_dir, with_3d)
            for part, with_3d in zip(data.sets, truth, strict=True)
        ]
        self.dataset = TrainingSet(sources, config)
        if len(self.dataset) < config.schedule.batch_size:
            raise UserError(
                f"{self._roots}: {len(self.dataset)} frames are fewer than "
                f"schedule.batch_size {config.schedule.batch_size}; add frames or lower it"
            )
        self.sampler = EpochSampler(
            [len(source) for source in sources],
            config.schedule.batch_size,
            config.seed,
            self.fabric.global_rank,
            self.fabric.world_size,
            [part.share for part in data.sets],
            steps=config.schedule.epoch_steps,
        )
        self.val = build_dataset(data.val, classes) if data.val and self.fabric.is_global_zero else None
        for source, with_3d in zip(sources, truth, strict=True):
            check_frames(source, with_3d, classes)
        if self.val is not None:
            check_frames(self.val, with_3d=True)

        model = TeacherStudent(config).to(memory_format=torch.channels_last)  # a seventh faster on CPUs
        start = None
        if config.initial.weights:
            start = load_initial(model.student, config.initial.weights, config.initial.head_3d)
        self.origin = Origin.of_run(data.sets, config.method.supervised, start)
        freeze(model.student.backbone, config.initial.freeze)
        if config.schedule.freeze_norm:
            freeze_batch_norm(model)
        optimizer = torch.optim.Adam(
            [p for p in model.parameters() if p.requires_grad],
            config.schedule.learning_rate,
            weight_decay=config.schedule.weight_decay,
            fused=config.precision != "16-mixed",  # there it would unscale the gradients after they are clipped
        )
        self.raw = model
        self.model, self.optimizer = self.fabric.setup(model, optimizer)
        self.average = ModelEmaV3(model)
        if config.compile:
            model.student.backbone.compile()  # the running mean, a copy, and all names stay as they are
        self._train_mode()
        self.step, self.seconds = 0, 0.0
        self.means = Means()  # of the epoch under way
        self.stop_requested = False
        self.lap: Callable[[str], object] = lambda part: (
            None
        )  # called with what has just been done; set by the benchmark
        if resume and (out / "checkpoint.pt").exists():
            self.load(out / "checkpoint.pt")
        with self.fabric.rank_zero_first():  # the others read what the first has written
            share = self.dataset.make_targets()
        self.fabric.print(share)
        if self.fabric.is_global_zero:
            make_folder(out)
            self._begin_files()

    @property
    def ema(self) -> TeacherStudent:
        """Running mean of the weights: what is measured and exported."""
        mean: TeacherStudent = self.average.module
        return mean

    # -- state --------------------------------------------------------------------------------------------------------
    def save(self) -> None:
        """Write the checkpoint.

        Raises:
            UserError: it would hold NaN or inf, or cannot be written; the last one stays.
        """
        if not self.fabric.is_global_zero:
            return
        self._check_mean("checkpoint")
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
        """Resume from a checkpoint of the same config."""
        state = load_checkpoint(path)
        check_parts(path, state, self.config.schedule.epochs * len(self.sampler))
        written = parse_config(TrainConfig, state["config"], f"{path}: config")  # keys added since take their defaults
        if written != self.config:
            changed = _differences(written.model_dump(mode="json"), self.config.model_dump(mode="json"))
            raise UserError(
                f"{path}: belongs to a run with another config ({changed}); choose another --out or delete it"
            )
        check_weights(path, self.raw.state_dict(), state["model"])
        check_weights(path, self.ema.state_dict(), state["ema"])
        check_optimizer(path, self.optimizer.optimizer, state["optimizer"])
        try:
            self.raw.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            if state.get("precision"):
                self.fabric.strategy.precision.load_state_dict(state["precision"])
            torch.set_rng_state(state["rng"])
        except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise foreign(path, " ".join(str(error).split())[:200]) from None
        self.raw.modulation.load_state_dict(state["modulation"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.means = Means(**state["means"])

    def _begin_files(self) -> None:
        """Keep what an earlier run left, if this one starts over: nothing can resume from it by mistake."""
        if not self.step:
            for name in WRITTEN[1:]:
                if (self.out / name).exists():
                    os.replace(self.out / name, self.out / f"{name}.previous")
        file, same = self.out / "config.yaml", False
        with contextlib.suppress(UserError):  # one that is damaged is written anew
            same = file.exists() and load_config(file) == self.config
        if not same:
            write_atomic(file, yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False))
        self._trim_metrics()

    def _trim_metrics(self) -> None:
        """Drop reports that a crash left beyond the checkpoint, or half written."""
        path = self.out / "metrics.jsonl"
        if path.exists():
            kept = [record for record in read_records(path) if record["step"] <= self.step]
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
            batches = iter(self.batches()) if self.step < total else None
            while self.step < total:
                start = time.monotonic()
                for batch in batches or ():
                    terms = self._train_step(batch.to(self.fabric.device))
                    self.seconds += time.monotonic() - start  # loading, too
                    start = time.monotonic()
                    self.means.add(terms)
                    self.step += 1
                    bar.update()
                    now = time.monotonic()
                    out_of_time = stop_after is not None and now - begun > 60 * stop_after
                    flags = self._sum(torch.tensor([float(self.stop_requested), float(out_of_time)])).tolist()
                    self.stop_requested = flags[0] > 0  # of any process
                    stop = self.stop_requested or flags[1] > 0
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
                    **self._modulation_metrics(),
                }
                if epoch % schedule.eval_every == 0 or self.step == total:
                    report |= self.evaluate()
                self.means = Means()
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

    def batches(self) -> DataLoader[Batch]:
        """All batches of the run that are left, from the same workers to the end."""
        run = RunSampler(self.sampler, self.step, self.config.schedule.epochs * len(self.sampler))
        return training_loader(self.dataset, run, self.config, pin_memory=self.fabric.device.type == "cuda")

    def _train_step(self, batch: Batch) -> dict[str, float]:
        schedule = self.config.schedule
        progress = self.step / (schedule.epochs * len(self.sampler))
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        objects = float(self._sum(torch.tensor(float(len(batch.boxes)))))
        num_objects = max(objects, 1.0) / self.fabric.world_size
        ramps = ramp(progress, *schedule.start_3d), ramp(progress, *schedule.start_distillation)
        log_gradients = self.raw.teacher is not None and self.step % GRADIENTS_EVERY == 0
        step = StepContext(*ramps, num_objects, log_gradients, self.ema if self.config.method.ema_teacher else None)
        terms: dict[str, Tensor] = self.model(batch, step)
        loss = torch.stack(list(terms.values())).sum()
        self.lap("forward")
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(
            self.model, self.optimizer, max_norm=schedule.gradient_clip, error_if_nonfinite=False
        )
        self.lap("backward")
        scalars = {**terms, "loss": loss} | ({} if norm is None else {"gradient norm": norm})
        values, errors = self._read(scalars)  # waits for the device; nothing above does
        self._check_finite({name: values[name] for name in terms}, batch)
        if norm is not None and self.config.precision != "16-mixed":  # there the scaler skips such a step by itself
            self._check_finite({"gradient norm": values["gradient norm"]}, batch)
        values.pop("gradient norm", None)
        gradients = {}
        if self.raw.gradient_sums is not None:
            gradients = describe(self._sum(self.raw.gradient_sums), self.fabric.world_size)
        self.lap("logging")
        self._update_modulation(errors)
        self.lap("modulation")
        self.optimizer.step()
        self.average.decay = min(schedule.ema, (1 + self.step) / (10 + self.step))
        self.average.update(self.raw)
        if bad := not_finite(self.raw.state_dict()):
            raise UserError(
                f"training stopped at step {self.step}: {bad[0]} and {len(bad) - 1} more weights are not finite after "
                "the step; train with a lower schedule.learning_rate or schedule.weight_decay into another --out"
            )
        self.lap("optimizer")
        return mean_terms(values) | gradients | {"objects": objects}

    def _read(self, scalars: dict[str, Tensor]) -> tuple[dict[str, float], list[float]]:
        """The values of scalars, and :meth:`_mean_errors`, in a single transfer from the device."""
        numbers = [value.detach().double() for value in scalars.values()]
        found = torch.cat([torch.stack(numbers), self._mean_errors().double()]).tolist()
        return dict(zip(scalars, found, strict=False)), found[len(numbers) :]

    def _mean_errors(self) -> Tensor:
        """What GTM takes in, over all processes: means of the student's errors, of the teacher's, of both losses.

        Every process takes part even when its own share of the batch has no object. NaN where nothing was measured.
        """
        sums = self._sum(torch.cat([self.raw.error_sums.flatten(), self.raw.loss_sums.flatten()])).view(-1, 2)
        return sums[:, 0] / sums[:, 1]

    def _check_finite(self, values: dict[str, float], batch: Batch) -> None:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise UserError(
                f"training stopped at step {self.step}: {', '.join(bad)} is not finite. Look at this step's frames "
                f"({', '.join(batch.names)}), or train with a lower schedule.learning_rate into another --out"
            )

    def _check_mean(self, what: str) -> None:
        if bad := not_finite(self.ema.state_dict()):
            raise UserError(
                f"training stopped at step {self.step}: {bad[0]} and {len(bad) - 1} more running means are not finite; "
                f"no {what} is written"
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

    def _update_modulation(self, errors: list[float]) -> None:
        """Take in :meth:`_mean_errors`."""
        if self.raw.teacher is None:
            return
        n = len(ERROR_NAMES)
        student, teacher = (dict(zip(ERROR_NAMES, part, strict=True)) for part in (errors[:n], errors[n : 2 * n]))
        self.raw.modulation.update(student, teacher)
        if self.config.method.gtm_measure == "loss_slope":
            self.raw.modulation.update_losses(*errors[2 * n :])

    def _train_mode(self) -> None:
        self.model.train()
        freeze(self.raw.student.backbone, self.config.initial.freeze)
        if self.config.schedule.freeze_norm:
            freeze_batch_norm(self.raw)

    def _rate(self) -> float:
        return learning_rate(self.config.schedule, self.step, len(self.sampler))

    def _modulation_metrics(self) -> dict[str, float]:
        """GTM's errors, rho, and the factors if GTM is on, for the log."""
        modulation = self.raw.modulation
        if not modulation.errors:
            return {}
        names = ("rho", "k_teacher", "k_student", "k_feedback") if self.config.method.modulation else ("rho",)
        factors = {name: getattr(modulation, name) for name in names}
        return {f"gtm/{k}": v for k, v in (factors | modulation.errors).items()}

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
            wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            return {s: signal.signal(s, request) for s in wanted if signal.getsignal(s) is not signal.SIG_IGN}
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
        append_record(self.out / "metrics.jsonl", finite(report))
        bar.write(show_record(report, self.config.model.classes, writer))

    def export(self) -> Path:
        """Write the weights files of student and teacher; returns the student's.

        Raises:
            UserError: they would hold NaN or inf, or cannot be written.
        """
        self._check_mean("weights file")
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


def _differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> str:
    found = []
    for key in a.keys() | b.keys():
        if a.get(key) != b.get(key):
            both = isinstance(a.get(key), dict) and isinstance(b.get(key), dict)
            found.append(_differences(a[key], b[key], f"{prefix}{key}.") if both else f"{prefix}{key}")
    return ", ".join(sorted(found))
