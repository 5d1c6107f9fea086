"""The network with fixed shapes, which a CUDA graph holds: the same boxes; and what happens where it fails."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skd_core import Camera, Detector, notes
from skd_core.config import ModelConfig
from skd_core.inference.cuda_graph import COLUMNS, SIZES, CudaGraphs, Run, _one_records, table_of
from skd_core.models.student import Student
from skd_core.models.teacher import DepthGuidedNetwork

CONFIG = ModelConfig(
    backbone="mobilenetv3_small_100", neck_channels=16, head_channels=16, depth_channels=16, input_size=(160, 96)
)


def detectors(device: str = "cpu") -> list[Detector]:
    """A student and a teacher with random weights, confident enough to find boxes of every class."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        networks = [Detector.random(2).student, DepthGuidedNetwork(CONFIG)]
        for network in networks:
            for name, parameter in network.named_parameters():
                if "heads_2d" in name and parameter.dim() > 1:
                    parameter.data.mul_(6)
    return [Detector(network.eval(), {"focal": [186.0, 186.0]}, device) for network in networks]


def recorder(detector: Detector, spoil: str = "") -> Callable[[tuple[int, ...], Camera], Run]:
    """What records, without CUDA: runs the network each time, with a fault if one is asked for."""

    def record(shape: tuple[int, ...], target: Camera) -> Run:
        weights = [part.detach() for part in detector.student.parameters()]  # as a graph does

        def run(image: NDArray[np.uint8], P: Tensor) -> Tensor:
            assert image.shape == shape
            assert weights
            if spoil == "image":
                image = np.zeros_like(image)
            if spoil == "P":
                P = target.P.float()
            with detector._computing():
                table = table_of(detector.student, torch.from_numpy(image), P, target.width, target.height)
            table = table.clone()  # an ordinary tensor
            table[:, sum(list(COLUMNS.values())[: list(COLUMNS).index("log_z")])] += 0.5 * (spoil == "depth")
            return table

        return run

    return record


def picture(seed: int, width: int, height: int) -> tuple[NDArray[np.uint8], Camera]:
    P = torch.tensor([[186.0, 0, width / 2, 5], [0, 186, height / 2, 1], [0, 0, 1, 0.01]], dtype=torch.float64)
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return np.kron(pixels, np.ones((8, 8, 1), np.uint8)), Camera(P, width // 8 * 8, height // 8 * 8)


def same(detector: Detector, image: NDArray[np.uint8], camera: Camera, score: float, atol: float = 1e-5) -> int:
    graphs, detector.graphs = detector.graphs, None
    plain = detector.predict(image, camera, score)
    detector.graphs = graphs
    found = detector.predict(image, camera, score)
    assert found.labels == plain.labels
    for name in ("center", "size", "yaw", "scores", "xyxy", "depth_std"):
        torch.testing.assert_close(getattr(found, name), getattr(plain, name), atol=atol, rtol=1e-4)
    return len(found)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 9999), st.integers(80, 200), st.integers(64, 120), st.sampled_from([0.0, 0.2, 0.5, 0.9]))
def test_the_boxes_are_those_without_a_graph(seed: int, width: int, height: int, score: float) -> None:
    for detector in detectors():
        detector.graphs = CudaGraphs(detector.student, detector._computing, 1, recorder(detector))
        assert same(detector, *picture(seed, width, height), score) > (0 if score == 0 else -1)
        assert not detector.graphs.failed


class CopiesBetweenDevices(TorchDispatchMode):
    """Which operators read from one device and write to another: a graph cannot hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read, written = (
            {leaf.device.type for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}
            for values in ((args, kwargs), out)
        )
        if read and written and read != written:
            self.found.append(str(func))
        return out


@pytest.mark.parametrize("network", [Student, DepthGuidedNetwork])
def test_nothing_in_it_waits_for_the_device(network: type[Student]) -> None:
    """On a made-up CUDA device, whose tensors have shapes and no values: what would need values raises."""
    with FakeTensorMode(), torch.no_grad():
        with torch.device("cuda"):
            student = network(CONFIG).eval()
        image = torch.empty((120, 200, 3), dtype=torch.uint8, device="cuda")
        P = torch.empty((3, 4), device="cuda")
        with CopiesBetweenDevices() as copies:
            table = table_of(student, image, P, 160, 96)
        assert (table.shape, table.device.type) == ((50, sum(COLUMNS.values())), "cuda")
        assert copies.found == []
        with pytest.raises(DynamicOutputShapeException):  # so the test would see it
            student.detect(torch.empty((1, 3, 96, 160), device="cuda"), P[None])
        with CopiesBetweenDevices() as copies:
            table[:, [1, 3]]
        assert copies.found


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("capture", "operation not permitted when stream is capturing"),
        ("memory", "there is no memory for it"),
        ("image", "its (heat|best box) differs by"),
        ("P", r"its log depth differs by 0\.2"),
        ("depth", "its log depth differs by 0.5"),
    ],
)
def test_where_it_fails_the_network_runs_without(
    fault: str, why: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told once, and tried once, also when images of another size come."""
    monkeypatch.setattr(notes, "_said", set())
    detector = detectors()[0]
    tried = []

    def record(shape: tuple[int, ...], target: Camera) -> Run:
        tried.append(shape)
        if fault == "memory":
            raise torch.cuda.OutOfMemoryError
        if fault == "capture":
            raise RuntimeError("operation not permitted when stream is capturing")
        return recorder(detector, fault)(shape, target)

    detector.graphs = CudaGraphs(detector.student, detector._computing, 1, record)
    for width in (160, 160, 200):
        assert same(detector, *picture(2, width, 96), 0.1) > 0
    assert len(tried) == 1
    (said,) = caplog.messages
    assert re.match(f"the network runs without a CUDA graph, which is slower: {why}", said)


def test_graphs_are_recorded_for_sizes_that_stay() -> None:
    """Not for a folder of many sizes; and one recording at a time, whatever the number of detectors."""
    detector = detectors()[0]
    recorded = []

    def record(shape: tuple[int, ...], target: Camera) -> Run:
        assert _one_records.locked()
        recorded.append(shape[1])
        return recorder(detector)(shape, target)

    detector.graphs = CudaGraphs(detector.student, detector._computing, 3, record)
    for width in (80, 96, 80, 96, 80, 80, 96, 96, 96, 80):
        detector.predict(*picture(3, width, 64))
    assert recorded == [96]
    detector.warmup(80, 64)
    assert recorded == [96, 80]
    assert not _one_records.locked()


def test_few_graphs_are_kept_and_moved_weights_get_another() -> None:
    detector = detectors()[0]
    detector.graphs = CudaGraphs(detector.student, detector._computing, 1, recorder(detector))
    for width in range(80, 80 + 8 * (SIZES + 2), 8):
        detector.predict(*picture(3, width, 64))
    assert len(detector.graphs.recordings) == SIZES
    before = set(detector.graphs.recordings)
    detector.student.double().float()  # elsewhere in memory
    detector.predict(*picture(3, width, 64))
    assert len(set(detector.graphs.recordings) - before) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_real_graph(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for detector in detectors("cuda"):
        detector = Detector(detector.student, detector.metadata, "cuda", precision)
        for seed in range(4):
            image, camera = picture(seed, 160, 96)
            if precision == "fp32":
                assert same(detector, image, camera, 0.3, 1e-2) >= 0
            detector.predict(image, camera)
        assert detector.graphs is not None
        assert len(detector.graphs.recordings) == 1
