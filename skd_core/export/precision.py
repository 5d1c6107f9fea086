"""Lower precision of backbone and neck, where nearly all of the time goes; heads and decoding stay in fp32 [ours]."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto

from skd_core.camera import Camera
from skd_core.errors import UserError
from skd_core.export import glue
from skd_core.inference.detector import Detector
from skd_core.visualize import RGB

PRECISIONS = ("fp32", "fp16", "int8")
QUANTIZED = ["Conv", "Add", "Clip", "Relu"]
"""Activations too: a convolution's 256 steps then cover what ReLU6 lets through, 0 to 6, and not what it cuts off,
which reaches 250."""
Pixels = NDArray[np.float32]


def body_changer(precision: str, calibration: Iterable[Pixels]) -> Callable[[ModelProto], ModelProto] | None:
    """A function that lowers the precision of the body's model; None for fp32.

    Args:
        precision: one of PRECISIONS.
        calibration: for int8: what the body is given for typical images, each (1, 3, H, W).

    Raises:
        UserError: unknown precision; int8 without images.
    """
    if precision == "fp32":
        return None
    if precision == "fp16":
        return _to_half
    if precision == "int8":
        return lambda body: _to_int8(body, calibration)
    raise UserError(f"precision '{precision}': use {', '.join(PRECISIONS)}")


def _to_half(body: ModelProto) -> ModelProto:
    """Weights and sums in half precision; input and output stay fp32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    half = OnnxModel(convert_float_to_float16(body, keep_io_types=True))
    half.topological_sort()
    model: ModelProto = half.model
    return model


def _to_int8(body: ModelProto, calibration: Iterable[Pixels]) -> ModelProto:
    """Static quantisation: int8 weights per channel, uint8 activations with the ranges that typical images give.

    Weights have eight bits, for CPUs with VNNI; sums may saturate on others, for which onnxruntime advises seven.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, values: Iterator[Pixels]) -> None:
            self.values, self.count = values, 0

        def get_next(self) -> dict[str, Pixels] | None:
            value = next(self.values, None)
            self.count += value is not None
            return None if value is None else {"pixels": value}

    reader = Reader(iter(calibration))
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, small = (Path(folder) / f"{name}.onnx" for name in ("plain", "ready", "small"))
        onnx.save(body, plain)
        quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
        kept = [node.name for node in onnx.load(ready).graph.node if _in_fp32(node.name)]
        quantize_static(
            str(ready), str(small), reader, quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, op_types_to_quantize=QUANTIZED,
            nodes_to_exclude=kept,
        )  # fmt: skip
        if not reader.count:
            raise UserError("int8: give typical images with --check; quantisation takes its ranges from them")
        return onnx.load(small)


def _in_fp32(name: str) -> bool:
    """The first convolution and the neck: they take little time, and all the rest depends on them."""
    return any(part in name for part in ("conv_stem", "body/bn1/", "lateral.", "smooth."))


def body_inputs(detector: Detector, pairs: Sequence[tuple[RGB, Camera]]) -> Iterator[Pixels]:
    """What the body is given for images, by the same graph that will give it."""
    student = detector.student
    fx, fy = detector.metadata["focal"]
    front = glue.front((fx, fy), detector.config.snap_size, student.backbone.multiple)
    session = onnxruntime.InferenceSession(front.SerializeToString(), providers=["CPUExecutionProvider"])
    for image, camera in pairs:
        yield session.run(["pixels"], {"image": image, "P": camera.P.double().numpy()})[0]
