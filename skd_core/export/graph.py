"""Parts and glue joined to one ONNX graph that explains itself [ours]."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, TensorProto, compose, helper

from skd_core.export import glue
from skd_core.export.lean import without_dead_channels
from skd_core.export.parts import OPSET, export_parts
from skd_core.files import make_folder, write_atomic
from skd_core.inference.onnx_file import FORMAT, INPUTS, OUTPUTS
from skd_core.models.student import Student

IR_VERSION = 9

# part -> its inputs and outputs, each with the name of the tensor that it is in the whole graph
CONNECTIONS: dict[str, dict[str, str]] = {
    "front": {name: name for name in ("image", "P", "pixels", "network_P", "extent", "scale", "cells")},
    "body": {"pixels": "pixels", "features": "padded_features"},
    "cut": {"padded": "padded_features", "cells": "cells", "features": "features"},
    "find": {"features": "features", "boxes": "peaks", "heat": "heat", "classes": "peak_classes"},
    "choose": {
        **{name: name for name in ("heat", "extent", "scale", "score_threshold", "boxes2d", "classes2d", "scores2d")},
        **{name: name for name in ("rois", "roi_classes", "roi_scores")},
        "boxes": "peaks",
        "classes": "peak_classes",
    },
    "place": {
        "features": "features", "P": "network_P", "boxes": "rois", "classes": "roi_classes", "scores": "roi_scores",
        "extent": "extent", "center": "c", "size": "s", "yaw": "y", "joint": "q", "depth_std": "d",
    },
    "back": {name: name for name in ("c", "s", "y", "q", "d", "rois", "roi_classes", "scale", *OUTPUTS)},
}  # fmt: skip


def build(
    student: Student,
    metadata: Mapping[str, Any],
    fixed: tuple[int, int] | None = None,
    change_body: Any = None,
) -> ModelProto:
    """The whole network as one graph.

    Inputs: image (H, W, 3) uint8 RGB; P (3, 4) double, camera of this image; score_threshold, a scalar; and boxes from
    outside, of which there may be none: boxes2d (M, 4) in the image's pixels, classes2d (M,), scores2d (M,). With a
    threshold above 1 it looks for none of its own. Outputs, a row for each object: those of its own in the order of
    their 2D scores, then one for each box from outside; see :mod:`skd_core.inference.onnx_file`.

    Args:
        student: in eval mode, on the CPU.
        metadata: of its weights file.
        fixed: (width, height) of the image, pixels: for engines that want constant sizes. None: any.
        change_body: a function on the model of backbone and neck, such as one that lowers its precision.
    """
    config, multiple = student.config, student.backbone.multiple
    fx, fy = metadata["focal"]
    parts = export_parts(student)
    parts["body"] = without_dead_channels(parts["body"])
    if change_body is not None:
        parts["body"] = change_body(parts["body"])
    channels = config.neck_channels
    parts |= {
        "front": glue.front((fx, fy), config.snap_size, multiple),
        "cut": glue.cut(channels),
        "choose": glue.choose(len(config.classes)),
        "back": glue.back(),
    }
    nodes, constants, functions = [], [], []
    imports = {"": OPSET}
    for name, wires in CONNECTIONS.items():
        part = _renamed(parts[name], name, wires)
        nodes += part.graph.node
        constants += part.graph.initializer
        functions += part.functions
        imports |= {entry.domain: entry.version for entry in part.opset_import}
    graph = helper.make_graph(nodes, "skd_core", _inputs(fixed), _outputs(), constants)
    model = helper.make_model(
        graph,
        producer_name="skd_core",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in imports.items()],
        functions=functions,
    )
    helper.set_model_props(model, {"skd_core": json.dumps({**metadata, "onnx_format": FORMAT})})
    onnx.checker.check_model(model, full_check=False)
    return model


def write(model: ModelProto, path: str | Path) -> None:
    """Write a graph, atomically."""
    make_folder(Path(path).parent)
    write_atomic(path, model.SerializeToString())


def _renamed(part: ModelProto, name: str, wires: Mapping[str, str]) -> ModelProto:
    """A part with the names of its wires, and with its own name before all others."""
    own = {value.name for value in [*part.graph.input, *part.graph.output]}
    if own - wires.keys() or wires.keys() - own:
        raise ValueError(f"{name}: wires {sorted(wires)} do not fit {sorted(own)}")
    part = compose.add_prefix(part, f"{name}/", rename_functions=False)
    swap = {f"{name}/{inner}": outer for inner, outer in wires.items()}
    for node in part.graph.node:
        for names in (node.input, node.output):
            for place, value in enumerate(names):
                names[place] = swap.get(value, value)
    return part


def _inputs(fixed: tuple[int, int] | None) -> list[onnx.ValueInfoProto]:
    width, height = fixed or ("W", "H")
    shapes: dict[str, tuple[int, list[Any]]] = {
        "image": (TensorProto.UINT8, [height, width, 3]),
        "P": (TensorProto.DOUBLE, [3, 4]),
        "score_threshold": (TensorProto.FLOAT, []),
        "boxes2d": (TensorProto.FLOAT, ["M", 4]),
        "classes2d": (TensorProto.INT64, ["M"]),
        "scores2d": (TensorProto.FLOAT, ["M"]),
    }
    assert tuple(shapes) == INPUTS
    return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in shapes.items()]


def _outputs() -> list[onnx.ValueInfoProto]:
    columns = {"center": [3], "size": [3], "yaw": [], "scores": [], "depth_std": [], "xyxy": [4], "labels": []}
    assert tuple(columns) == OUTPUTS
    return [
        helper.make_tensor_value_info(name, TensorProto.INT64 if name == "labels" else TensorProto.FLOAT, ["N", *more])
        for name, more in columns.items()
    ]
