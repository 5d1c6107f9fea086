"""Parts of a trained network without effect are left out of its graph: channels that no later layer uses [ours].

Weight decay shrinks channels that the losses do not need towards zero, and their weights become denormal numbers, with
which CPUs are many times slower than with others. Both are removed: numbers too small to matter become zero, and
channels whose effect is too small to matter are removed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from skd_core.inference.weights import TINY

SLACK = 1e-6
"""By how much all channels that are removed before a convolution may together change any of its outputs, which are of
the order of 1."""
BLOCK = 16
"""What is left is a multiple of it: onnxruntime's fast convolutions take that many channels at once (AVX-512)."""
Array = NDArray[np.float32]


def without_dead_channels(model: ModelProto) -> ModelProto:
    """A body with the same outputs to within :data:`SLACK` a layer, and fewer channels inside.

    Args:
        model: of which every convolution's weights are initializers; it is changed.
    """
    _own_copies(model)
    graph = _Graph(model)
    for node in graph.convolutions():
        for name in node.input[1:]:
            graph.weights[name] = np.where(np.abs(graph.weights[name]) < TINY, 0, graph.weights[name])
    for node in graph.convolutions():
        chain = graph.chain_before(node)
        if chain is not None:
            graph.keep(chain, node, _used_channels(graph.weights[node.input[1]], chain.limit))
    graph.store()
    return model


def _own_copies(model: ModelProto) -> None:
    """Tensors that torch.onnx stored once because they are equal, each under its own name again."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "Identity" and node.input[0] in stored]:
        copy = model.graph.initializer.add()
        copy.CopyFrom(stored[node.input[0]])
        copy.name = node.output[0]
        model.graph.node.remove(node)


@dataclass(frozen=True)
class _Chain:
    """What makes the input of a convolution, channel by channel.

    Attributes:
        convolutions: the one that makes the channels, and depthwise ones behind it.
        limit: no value of the input is larger in magnitude.
    """

    convolutions: tuple[NodeProto, ...]
    limit: float


class _Graph:
    """Convolutions of a model, their weights, and who reads what."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.maker = {name: node for node in model.graph.node for name in node.output}
        self.readers = Counter(name for node in model.graph.node for name in node.input)
        self.readers.update(value.name for value in model.graph.output)
        names = {name for node in self.convolutions() for name in node.input[1:]}
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self.weights: dict[str, Array] = {name: numpy_helper.to_array(self.stored[name]) for name in names}

    def convolutions(self) -> list[NodeProto]:
        return [node for node in self.model.graph.node if node.op_type == "Conv"]

    def chain_before(self, node: NodeProto) -> _Chain | None:
        """None where a removed channel could be seen elsewhere, or where nothing bounds it."""
        if _groups(node) != 1:
            return None
        found: list[NodeProto] = []
        limit = np.inf
        name = node.input[0]
        while self.readers[name] == 1 and name in self.maker:
            maker = self.maker[name]
            if maker.op_type == "Conv":
                found.append(maker)
                if _groups(maker) == 1:
                    private = all(self.readers[w] == 1 for one in [*found, node] for w in one.input[1:])
                    return _Chain(tuple(reversed(found)), limit) if private and np.isfinite(limit) else None
                if _groups(maker) != len(self.weights[maker.input[1]]):
                    return None
            elif maker.op_type == "Clip":
                low, high = (self._number(given) for given in maker.input[1:3])
                if not found and max(abs(low), abs(high)) < limit:
                    limit = max(abs(low), abs(high))
            elif maker.op_type not in ("Relu", "Pad"):
                return None
            name = maker.input[0]
        return None

    def _number(self, name: str) -> float:
        if name in self.stored:
            return float(numpy_helper.to_array(self.stored[name]))
        maker = self.maker.get(name)
        if maker is None or maker.op_type != "Constant":
            return np.inf
        return float(numpy_helper.to_array(helper.get_attribute_value(maker.attribute[0])))

    def keep(self, chain: _Chain, reader: NodeProto, channels: NDArray[np.intp]) -> None:
        """Only these channels of a chain."""
        for node in chain.convolutions:
            for name in node.input[1:]:
                self.weights[name] = self.weights[name][channels]
            for attribute in node.attribute:
                if attribute.name == "group" and attribute.i != 1:
                    attribute.i = len(channels)
        weight = reader.input[1]
        self.weights[weight] = self.weights[weight][:, channels]

    def store(self) -> None:
        for name, value in self.weights.items():
            self.stored[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))
        del self.model.graph.value_info[:]


def _groups(node: NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "group"), 1)


def _used_channels(weight: Array, limit: float) -> NDArray[np.intp]:
    """Channels of a convolution's input that must stay; weight: (outputs, inputs, k, k)."""
    effect = limit * np.abs(weight.astype(np.float64)).sum((2, 3)).max(0)  # (inputs,), at most
    order = np.argsort(effect, kind="stable")
    dead = order[np.cumsum(effect[order]) <= SLACK]
    count = -(-max(len(effect) - len(dead), 1) // BLOCK) * BLOCK
    return np.sort(order[-count:])
