"""How near the network comes to what the machine can do, and how its time grows with pixels and objects [ours].

The ceilings are measured in the same run: a large matrix product for arithmetic, a large copy for memory.
"""

from __future__ import annotations

import resource
import statistics
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from skd_core.boxes import Boxes2D
from skd_core.camera import Camera
from skd_core.inference.detector import Detector
from skd_core.visualize import RGB

SIDE = 1024
"""Of the square matrices that are multiplied."""
COPIED = 64 << 20
"""Bytes that are copied: more than caches hold."""
SCALES = (0.5, 1.0, 1.5)
"""Of the network input's sides."""
OBJECTS = (1, 10, 50)


def measure_machine(detector: Detector, picture: RGB, camera: Camera, rounds: int) -> dict[str, Any]:
    """Everything of this module.

    Args:
        detector: of PyTorch; picture: that it sees, with its camera; rounds: of each measurement.

    Returns:
        "stages_ms": decoding a JPEG of the picture, resize, network and decoding of boxes, medians; "ceilings":
        flops_per_second, bytes_per_second; "network": flops and bytes of one image and the shares of the ceilings
        that it reaches; "scaling_ms": "pixels", input size -> median, and "objects", their number -> median;
        "peak_memory_mib": of the process, or of the GPU; "device_allocations": of GPU memory from the driver during
        ``rounds`` calls of `predict` after the first ones, None on a CPU.
    """
    stages = stage_times(detector, picture, camera, rounds)
    memory, allocations = peak_memory(detector.device), device_allocations(detector, picture, camera, rounds)
    limits = ceilings(detector.device, rounds)
    target = detector.network_camera(camera)
    flops, moved = network_cost(detector, target.width, target.height)
    took = stages["network"] / 1e3
    network = {
        "flops": flops,
        "bytes": moved,
        "share_of_flops": flops / took / limits["flops_per_second"],
        "share_of_bytes": moved / took / limits["bytes_per_second"],
    }
    scaling = {"pixels": pixel_times(detector, rounds), "objects": object_times(detector, picture, camera, rounds)}
    return {
        "stages_ms": stages,
        "ceilings": limits,
        "network": network,
        "scaling_ms": scaling,
        "peak_memory_mib": memory,
        "device_allocations": allocations,
    }


def stage_times(detector: Detector, picture: RGB, camera: Camera, rounds: int) -> dict[str, float]:
    """Milliseconds of each stage of one image, medians; "network" is backbone, neck and heads."""
    _, file = cv2.imencode(".jpg", picture)
    found: dict[str, list[float]] = {"jpeg": [], "resize": [], "network": [], "decode": []}
    for turn in range(-1, rounds):
        marks = [_now(detector.device)]
        cv2.imdecode(file, cv2.IMREAD_COLOR)
        marks.append(_now(detector.device))
        inner = stage_marks(detector, picture, camera)
        total, resize = inner[-1] - inner[0], inner[1] - inner[0]
        network = sum(end - begin for begin, end in zip(inner[1:-1:2], inner[2:-1:2], strict=True))
        if turn >= 0:
            for name, value in zip(
                found, (marks[1] - marks[0], resize, network, total - resize - network), strict=True
            ):
                found[name].append(1e3 * value)
    return {name: statistics.median(values) for name, values in found.items()}


def stage_marks(detector: Detector, picture: RGB, camera: Camera) -> list[float]:
    """Seconds at the start of one call, before and after each part of the network with weights, and at the end."""
    student: Any = detector.student
    marks: list[float] = []

    def mark(*_: object) -> None:
        marks.append(_now(detector.device))

    hooks = []
    head_3d = student.teacher if hasattr(student, "teacher") else student
    for part in (student.backbone, student.heads_2d, head_3d.head_3d):
        hooks += [part.register_forward_pre_hook(mark), part.register_forward_hook(mark)]
    graphs, detector.graphs = detector.graphs, None  # in a graph there is nothing to hook into
    try:
        mark()
        detector.predict(picture, camera)
        mark()
    finally:
        detector.graphs = graphs
        for hook in hooks:
            hook.remove()
    return marks


def ceilings(device: torch.device, rounds: int) -> dict[str, float]:
    """The best of some rounds: a product of two float32 matrices, and a copy (each byte is read and written)."""
    a, b = torch.rand(SIDE, SIDE, device=device), torch.rand(SIDE, SIDE, device=device)
    source = torch.zeros(COPIED // 4, device=device)
    goal = torch.ones_like(source)
    product = min(seconds(lambda: a @ b, device) for _ in range(rounds + 2))
    copy = min(seconds(lambda: goal.copy_(source), device) for _ in range(rounds + 2))
    return {"flops_per_second": 2 * SIDE**3 / product, "bytes_per_second": 2 * COPIED / copy}


def network_cost(detector: Detector, width: int, height: int) -> tuple[int, int]:
    """Floating-point operations of one image, and the bytes that its layers read and write, weights included.

    A multiplication with an addition counts as two operations. Caches spare some of the bytes.
    """
    moved = 0

    def count(module: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        nonlocal moved
        values = [*given, result, *module.parameters(recurse=False)]
        moved += sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))

    layers = [module for module in detector.student.modules() if not list(module.children())]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    image = torch.zeros(1, 3, height, width, device=detector.device)
    try:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            features = detector.student.features(image)
            detector.student.maps_2d(features)
    finally:
        for hook in hooks:
            hook.remove()
    return int(counter.get_total_flops()), moved


def pixel_times(detector: Detector, rounds: int) -> dict[str, float]:
    """Input size -> median milliseconds of `predict`, for images that need no resize."""
    works: dict[str, Callable[[], object]] = {}
    fx, fy = detector.metadata["focal"]
    rng = np.random.default_rng(0)
    for scale in SCALES:
        width, height = (max(32, round(scale * side)) for side in detector.config.input_size)
        P = [[fx, 0, width / 2, 0], [0, fy, height / 2, 0], [0, 0, 1, 0]]
        camera = Camera(torch.tensor(P, dtype=torch.float64), width, height)
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        works[f"{width}x{height}"] = lambda image=image, camera=camera: detector.predict(image, camera)  # type: ignore[misc]
    return _medians(works, rounds, detector.device)


def object_times(detector: Detector, picture: RGB, camera: Camera, rounds: int) -> dict[str, float]:
    """Number of objects -> median milliseconds of `place`: the whole network, with so many RoIs."""
    w, h = camera.width, camera.height

    def boxes(count: int) -> Boxes2D:
        left, top = torch.linspace(0, 0.7 * w, count), torch.linspace(0.1 * h, 0.5 * h, count)
        xyxy = torch.stack([left, top, left + 0.2 * w, top + 0.4 * h], 1)
        return Boxes2D(xyxy, (detector.classes[0],) * count, torch.ones(count))

    given = {str(count): boxes(count) for count in OBJECTS}
    works: dict[str, Callable[[], object]] = {
        name: lambda own=own: detector.place(picture, camera, own)  # type: ignore[misc]
        for name, own in given.items()
    }
    return _medians(works, rounds, detector.device)


def peak_memory(device: torch.device) -> float:
    """MiB: the most that PyTorch has held on a GPU, or this process in main memory, so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def device_allocations(detector: Detector, picture: RGB, camera: Camera, calls: int) -> int | None:
    """How often PyTorch takes memory from the GPU's driver in the steady state: 0 is right."""
    if detector.device.type != "cuda":
        return None
    before = torch.cuda.memory_stats(detector.device)["num_device_alloc"]
    for _ in range(calls):
        detector.predict(picture, camera)
    return int(torch.cuda.memory_stats(detector.device)["num_device_alloc"] - before)


def machine_lines(found: dict[str, Any]) -> list[str]:
    """For people."""
    limits, network = found["ceilings"], found["network"]

    def times(values: dict[str, float]) -> str:
        return ", ".join(f"{name} {value:.1f}" for name, value in values.items())

    lines = [
        f"stages, ms: {times(found['stages_ms'])}",
        f"network: {network['flops'] / 1e9:.2f} GFLOP, {network['bytes'] / 1e6:.0f} MB an image; reaches "
        f"{network['share_of_flops']:.0%} of {limits['flops_per_second'] / 1e9:.0f} GFLOP/s (matrix product) and "
        f"{network['share_of_bytes']:.0%} of {limits['bytes_per_second'] / 1e9:.1f} GB/s (copy)",
        f"ms by input size: {times(found['scaling_ms']['pixels'])}",
        f"ms by objects: {times(found['scaling_ms']['objects'])}",
        f"peak memory: {found['peak_memory_mib']:.0f} MiB",
    ]
    if found["device_allocations"] is not None:
        lines.append(f"allocations of GPU memory in the steady state: {found['device_allocations']}")
    return lines


def _medians(works: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Milliseconds, the works in turns."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(-1, rounds):
        for name, work in works.items():
            took = seconds(work, device)
            if turn >= 0:
                times[name].append(1e3 * took)
    return {name: statistics.median(values) for name, values in times.items()}


def seconds(work: Callable[[], object], device: torch.device | None = None) -> float:
    """Wall time of one call; a GPU has finished before and after."""
    start = _now(device)
    work()
    return _now(device) - start


def _now(device: torch.device | None) -> float:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()
