"""`skd_core bench`: speed of each part on this machine, with alternatives interleaved in one run.

Alternatives are interleaved, and each round gives one ratio, so that a busy or throttling machine slows both.
All pictures and labels are made up on the spot: no data set is needed. Times are wall clock.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from skd_core.benchmark_backends import lines, measure_backends
from skd_core.benchmark_machine import machine_lines, measure_machine, seconds, stage_marks
from skd_core.benchmark_report import describe_machine, print_result, summary
from skd_core.boxes import box_corners
from skd_core.camera import Camera
from skd_core.config import DataConfig, ModelConfig, SetConfig, TrainConfig
from skd_core.data.kitti import KittiObjects
from skd_core.data.sample import Sample
from skd_core.evaluation.kitti import CLASSES, evaluate
from skd_core.files import check_outputs, write_atomic
from skd_core.inference.detector import Detector, untrained
from skd_core.iou import bev_iou
from skd_core.models.decode import Prediction3D
from skd_core.priors import prior_of
from skd_core.synthetic import RenderedFrame, SynthConfig, render_frame
from skd_core.synthetic.config import KITTI_P2, KITTI_SIZE
from skd_core.training.ablation import row_config
from skd_core.training.batch import Batch, collate
from skd_core.training.dataset import TrainingSet
from skd_core.training.modulation import ERROR_NAMES, scale_gradient
from skd_core.training.module import StepContext, TeacherStudent
from skd_core.visualize import RGB

if TYPE_CHECKING:
    from skd_core.models.student import Student

Values = dict[str, list[float]]
"""Name of a measure, which ends in its unit -> one value a round (a call, for latencies)."""


@dataclass(frozen=True)
class Workload:
    """How much is measured.

    Attributes:
        rounds: turns of each measurement, after one that does not count.
        predictions: calls of `predict` a round.
        evaluated: frames of made-up detections; pairs: of footprints; shapely_pairs: how many shapely gets.
        rendered: pictures a round.
        batch_size: of the training step.
    """

    rounds: int = 10
    predictions: int = 20
    evaluated: int = 1000
    pairs: int = 100_000
    shapely_pairs: int = 2000
    rendered: int = 5
    batch_size: int = 8


QUICK = Workload(rounds=3, predictions=5, evaluated=200, pairs=20_000, shapely_pairs=500, rendered=2, batch_size=2)


def benchmark(detector: Detector, workload: Workload) -> dict[str, Any]:
    """Measure everything.

    Returns:
        {"machine": what it ran on, "settings": sizes and counts, "measures": {name: :func:`summary`}, "device": name,
        "backends": see :func:`skd_core.benchmark_backends.measure_backends`, "limits": see
        :func:`skd_core.benchmark_machine.measure_machine`}
    """
    machine, device = describe_machine(detector.device), detector.device
    size = detector.student.config.input_size
    frames = [render_frame(SynthConfig(*size), seed=1, frame=i) for i in range(workload.batch_size)]
    picture, camera = _picture(detector)
    limits = measure_machine(detector, picture, camera, workload.rounds)  # first: later parts take more memory
    values: Values = {}
    parts: dict[str, Callable[[], Values]] = {
        "predict": lambda: predictions(detector, workload),
        "teacher": lambda: teacher_cost(detector, frames[0], workload),
        "evaluator": lambda: evaluator(workload),
        "IoU": lambda: footprint_iou(workload, device),
        "synth": lambda: rendering(workload),
        "train": lambda: training_step(detector, frames, workload),
    }
    for name, part in (bar := tqdm(parts.items(), unit="part", dynamic_ncols=True)):
        bar.set_description(name)
        values |= part()
    noise = np.random.default_rng(0).integers(0, 256, picture.shape, dtype=np.uint8)
    backends = measure_backends(detector, [(picture, camera), (noise, camera)], workload.rounds)
    settings = {
        "input_size": list(size),
        "backbone": detector.student.config.backbone,
        "precision": detector.precision,
        "training": detector.metadata.get("training", detector.metadata.get("learnt_from", "unknown")),
        **asdict(workload),
    }
    about = {"machine": machine, "settings": settings, "device": str(device), "backends": backends, "limits": limits}
    return about | {"measures": {k: summary(v) for k, v in values.items()}}


def untrained_network(config: ModelConfig) -> tuple[Student, dict[str, Any]]:
    """A network with random weights and its metadata: no time depends on what it has learnt, but for the number of
    boxes, so all that the heatmap gives are kept."""
    focal = config.focal or KITTI_P2[0][0] * config.input_size[0] / KITTI_SIZE[0]
    student, about = untrained(config, focal)
    return student, about | {"threshold": 0.0}


# -- inference ---------------------------------------------------------------------------------------------------------
def predictions(detector: Detector, workload: Workload) -> Values:
    """`Detector.predict` on a rendered picture about as wide as KITTI's, whose camera leads to the weights' size.

    Shares of a call: "resize" is all before the backbone (upload, resize, normalisation), "network" the backbone with
    neck, the 2D heads and the 3D head, "decode" the rest (peaks, RoIAlign, boxes, download).
    """
    device = detector.device
    picture, camera = _picture(detector)
    for _ in range(2):
        detector.predict(picture, camera)
    found: Values = {"predict/ms": [], **{f"predict/{part}_share": [] for part in ("resize", "network", "decode")}}
    for _ in range(workload.rounds * workload.predictions):
        found["predict/ms"].append(1e3 * seconds(lambda: detector.predict(picture, camera), device))
    for _ in range(workload.rounds):
        for part, share in _stages(detector, picture, camera).items():
            found[f"predict/{part}_share"].append(share)
    return found


def _picture(detector: Detector) -> tuple[RGB, Camera]:
    """A rendered picture about as wide as KITTI's."""
    width, height = detector.config.input_size
    factor = max(1.0, 1242 / width)
    picture = render_frame(SynthConfig(round(width * factor), round(height * factor)), seed=1, frame=0).image
    return picture, _camera(detector, picture.shape[1], picture.shape[0])


def _camera(detector: Detector, width: int, height: int) -> Camera:
    """A camera of this size whose pictures the detector takes at its training size."""
    w, h = detector.student.config.input_size
    fx, fy = detector.metadata["focal"]
    P = torch.tensor([[fx, 0, 0.5 * w, 0], [0, fy, 0.5 * h, 0], [0, 0, 1, 0]], dtype=torch.float64)
    return Camera(P, w, h).resize(width, height)


def _stages(detector: Detector, picture: Any, camera: Camera) -> dict[str, float]:
    """Shares of one call, by hooks on the network's parts."""
    marks = stage_marks(detector, picture, camera)
    total, resize = marks[-1] - marks[0], marks[1] - marks[0]
    network = sum(end - begin for begin, end in zip(marks[1:-1:2], marks[2:-1:2], strict=True))
    return {"resize": resize / total, "network": network / total, "decode": (total - resize - network) / total}


def teacher_cost(detector: Detector, frame: RenderedFrame, workload: Workload) -> Values:
    """The cost of inference if it needed the teacher: the same network with DSN's depth head, fusion and 3D head.

    In float32. Both get the same RoIs, all that the heatmap gives (at most 50). The weights of both 3D heads are
    random: no time depends on them.
    """
    device = detector.device
    model = TeacherStudent(_config(detector)).to(device).to(memory_format=torch.channels_last).eval()
    for part in ("backbone", "heads_2d"):
        getattr(model.student, part).load_state_dict(getattr(detector.student, part).state_dict())
    images = torch.from_numpy(frame.image).permute(2, 0, 1)[None].to(device)
    P = frame.camera.P[None].to(device, torch.float32)
    found: Values = {"inference/student_ms": [], "inference/with_teacher_ms": [], "inference/with_teacher_ratio": []}
    networks = (model.student, model.depth_guided())
    for round_ in range(-1, workload.rounds):
        alone, both = (seconds(partial(network.detect, images, P, min_heat=0.0), device) for network in networks)
        if round_ >= 0:
            for values, value in zip(found.values(), (1e3 * alone, 1e3 * both, both / alone), strict=True):
                values.append(value)
    return found


# -- evaluation --------------------------------------------------------------------------------------------------------
def evaluator(workload: Workload) -> Values:
    """KITTI's AP of all classes, metrics, difficulties and overlaps; 8 objects and 12 detections a frame."""
    rng = np.random.default_rng(0)
    frames = [objects_of_frame(rng) for _ in range(workload.evaluated)]
    labels, results = [label for label, _ in frames], [result for _, result in frames]
    evaluate(labels[:20], results[:20])
    rates = [workload.evaluated / seconds(lambda: evaluate(labels, results)) for _ in range(workload.rounds)]
    return {"evaluator/frames_per_second": rates}


def objects_of_frame(rng: np.random.Generator, count: int = 8, false: int = 4) -> tuple[KittiObjects, KittiObjects]:
    """Labels of one frame, and detections of them that are a little off, with false ones among them."""
    n = count + false
    names = [CLASSES[i] for i in rng.choice(3, n, p=(0.7, 0.2, 0.1))]
    size = np.array([prior_of(name).size for name in names])
    location = np.column_stack([rng.uniform(-15, 15, n), rng.uniform(1.4, 1.8, n), rng.uniform(6, 50, n)])
    yaw = rng.uniform(-np.pi, np.pi, n)

    def lines(location: Any, size: Any, yaw: Any, score: Any) -> KittiObjects:
        u, bottom = 610 + 720 * location[:, 0] / location[:, 2], 173 + 720 * location[:, 1] / location[:, 2]
        height = 720 * size[:, 0] / location[:, 2]
        xyxy = np.column_stack([u - 0.6 * height, bottom - height, u + 0.6 * height, bottom])
        alpha = yaw - np.arctan2(location[:, 0], location[:, 2])
        zeros = np.zeros(n)
        return KittiObjects(names, zeros, zeros, alpha, xyxy, size, location, yaw, score)

    moved = location * rng.normal(1, 0.02, (n, 1))
    found = lines(moved, size * rng.normal(1, 0.05, size.shape), yaw + rng.normal(0, 0.1, n), rng.uniform(0, 1, n))
    return lines(location, size, yaw, np.ones(n))[:count], found


def footprint_iou(workload: Workload, device: torch.device) -> Values:
    """IoU of oriented footprints from above: :func:`skd_core.iou.bev_iou` against a loop over shapely's polygons."""
    a, b = random_footprints(workload.pairs)
    on_a, on_b = a.to(device), b.to(device)
    names = ("iou/pairs_per_second", "iou/shapely_pairs_per_second", "iou/ratio_to_shapely")
    found: Values = {name: [] for name in names}
    corners = [_footprints(boxes[: workload.shapely_pairs]) for boxes in (a, b)]
    for round_ in range(-1, workload.rounds):
        ours = workload.pairs / seconds(lambda: bev_iou(on_a, on_b, aligned=True), device)
        theirs = _shapely_rate(*corners)
        if round_ < 0:
            continue
        found[names[0]].append(ours)
        if theirs is not None:
            found[names[1]].append(theirs)
            found[names[2]].append(ours / theirs)
    return {name: values for name, values in found.items() if values}


def random_footprints(pairs: int) -> tuple[Tensor, Tensor]:
    """Two sets of cars' footprints, shape (pairs, 5): x, z, length, width, yaw; most pairs overlap."""
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor([[-2.0, 8.0, 3.5, 1.5, -3.1], [2.0, 12.0, 4.5, 1.9, 3.1]])
    a, b = (low + (high - low) * torch.rand(pairs, 5, generator=generator) for _ in range(2))
    return a, b


def _footprints(bev: Tensor) -> Any:
    """(N, 5) -> (N, 4, 2), corners (x, z) as an array."""
    level = torch.zeros(len(bev), 1)
    center = torch.cat([bev[:, :1], level, bev[:, 1:2]], -1)
    return box_corners(center, torch.cat([bev[:, 2:4], level + 1], -1), bev[:, 4])[:, :4, [0, 2]].double().numpy()


def _shapely_rate(a: Any, b: Any) -> float | None:
    """Pairs per second of the loop that is usual where there is no vectorised IoU; None without shapely."""
    try:
        from shapely.geometry import Polygon
    except ImportError:
        return None

    def loop() -> None:
        for corners_a, corners_b in zip(a, b, strict=True):
            p, q = Polygon(corners_a), Polygon(corners_b)
            common = p.intersection(q).area
            common / (p.area + q.area - common)

    return len(a) / seconds(loop)


# -- data and training -------------------------------------------------------------------------------------------------
def rendering(workload: Workload) -> Values:
    """Pictures of `skd_core synth` at its own size, labels and depth included, files not; one core."""
    config = SynthConfig()
    render_frame(config, 2, 0)  # compiled before the clock starts
    rounds, count = workload.rounds, workload.rendered
    takes = [seconds(partial(render_frame, config, 2, 1 + frame)) for frame in range(rounds * count)]
    times = [sum(takes[i : i + count]) for i in range(0, rounds * count, count)]
    return {"synth/frames_per_second": [count / took for took in times]}


def training_step(detector: Detector, frames: list[RenderedFrame], workload: Workload) -> Values:
    """Forward, backward, clipping and Adam, without loading, of the row mdn_proj and of the full method; GTM's share.

    The weights' network on a batch of rendered pictures, all losses switched on, no layer frozen.
    """
    device, base = detector.device, _config(detector, CLASSES)
    batch = _batch(frames, base).to(device)
    runs = {row: _Run(row_config(base, row, 0), device) for row in ("mdn_proj", "full")}
    full = runs["full"]
    found: Values = {f"train/{name}": [] for name in ("mdn_proj_ms", "full_ms", "full_ratio", "gtm_ms", "gtm_share")}
    for round_ in range(-1, workload.rounds):
        plain, whole = (seconds(partial(run.step, batch), device) for run in runs.values())
        modulation = _gtm_seconds(full.model, batch)
        if round_ >= 0:
            numbers = (1e3 * plain, 1e3 * whole, whole / plain, 1e3 * modulation, modulation / whole)
            for name, value in zip(found, numbers, strict=True):
                found[name].append(value)
    return found


class _Run:
    """One row's network with its optimiser."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        torch.manual_seed(0)
        self.clip = config.schedule.gradient_clip
        self.model = TeacherStudent(config).to(device).to(memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), config.schedule.learning_rate)

    def step(self, batch: Batch) -> None:
        terms = self.model(batch, StepContext())
        self.optimizer.zero_grad()
        torch.autograd.backward(torch.stack(list(terms.values())).sum())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()


def _gtm_seconds(model: TeacherStudent, batch: Batch) -> float:
    """What GTM adds to a step: both networks' errors, rho, the damped gradient into F_G, and L_rev with gradient.

    Taken apart from the step, because the difference of two step times would drown in their spread.
    """
    device = batch.images.device
    assert model.teacher is not None
    assert model.loss_distillation is not None
    with torch.no_grad():
        features = model.student.features(batch.images)
        student = model.student.boxes_3d(features, batch.P, batch.rois)
        raw = model.teacher.boxes_raw(features, model.teacher.depth_map(features, batch.P), batch.P, batch.rois)
        teacher = model.student.decode(raw, batch.rois)
    teacher = Prediction3D(**{name: value.requires_grad_() for name, value in vars(teacher).items()})
    features.requires_grad_()

    def work() -> None:
        sums = torch.stack([model._error_sums(boxes, batch) for boxes in (student, teacher)])
        errors = (dict(zip(ERROR_NAMES, row, strict=True)) for row in (sums[..., 0] / sums[..., 1]).tolist())
        model.modulation.update(*errors)
        shared = scale_gradient(features, 0.5 * model.modulation.k_teacher)
        torch.autograd.backward(shared, features.detach())
        overlap = model.overlap(student, batch)
        assert model.loss_distillation is not None
        feedback = model.loss_distillation(teacher, student, overlap, yaw=False).sum()
        torch.autograd.backward(model.modulation.k_feedback * feedback)

    work()
    return seconds(work, device)


def _config(detector: Detector, classes: tuple[str, ...] | None = None) -> TrainConfig:
    """A training config of the weights' network; its data set is never opened."""
    model = detector.student.config
    if classes is not None:
        model = model.model_copy(update={"classes": classes})
    return TrainConfig(model=model, data=DataConfig(train=SetConfig(root="."), depth_dir="depth"))


class _Frames(Dataset[Sample]):
    """Rendered frames as a data set, without their 3D labels."""

    def __init__(self, frames: list[RenderedFrame]) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample:
        frame = self.frames[index]
        known = torch.tensor([name in CLASSES for name in frame.boxes2d.labels], dtype=torch.bool)
        image = torch.from_numpy(frame.image).permute(2, 0, 1).contiguous()
        boxes, ignore = frame.boxes2d.to(torch.float32)[known], frame.dont_care.to(torch.float32)
        return Sample(str(index), image, frame.camera, boxes, ignore, torch.from_numpy(frame.depth).float())


def _batch(frames: list[RenderedFrame], config: TrainConfig) -> Batch:
    dataset = TrainingSet(_Frames(frames), config)
    return collate([dataset[0, index, 0] for index in range(len(frames))], config.model.classes)


# -- the command -------------------------------------------------------------------------------------------------------
def report_benchmark(detector: Detector, workload: Workload, json_file: Path | None = None) -> None:
    """Measure, print, and write the JSON file if one is named.

    Raises:
        UserError: the file cannot be written.
    """
    check_outputs([json_file])  # now, not after minutes of measuring
    result = benchmark(detector, workload)
    if json_file is not None:
        write_atomic(json_file, json.dumps(result, indent=1, allow_nan=False) + "\n")
    print_result(result)
    print(*lines(result["backends"]), *machine_lines(result["limits"]), sep="\n")
