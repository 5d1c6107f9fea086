"""The parts of the network that PyTorch exports to ONNX by itself: everything with weights [ours].

What stands between them (resize, NMS, sorting out) is written in ONNX by :mod:`skd_core.export.glue`: it has sizes that
depend on the data, which an exporter handles less surely than the operators that were made for it.
"""

from __future__ import annotations

import copy
import io
import itertools
import warnings
from collections.abc import Mapping
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from skd_core.models.backbone import STRIDE
from skd_core.models.decode import decode_2d
from skd_core.models.heads import Head3D, Maps2D, Raw3D
from skd_core.models.student import Rois, Student, joint_score

OPSET = 18
"""The first with an antialiased Resize."""
LIMIT = 50
"""Peaks of the heatmap that are looked at, as in :meth:`skd_core.models.student.Student.detect`."""
RESULTS = ("center", "size", "yaw", "joint", "depth_std")


class Body(nn.Module):
    """Backbone and neck: normalised pixels (1, 3, H, W), H and W multiples of its stride -> F_G.

    At such sizes all that ``Backbone.forward`` computes from the size is constant: padding and the factors of the neck.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        backbone: Any = student.backbone
        self.body = _with_constant_padding(copy.deepcopy(backbone.body))
        self.neck, self.levels = backbone.neck, backbone.levels
        strides = [backbone.body.feature_info.reduction()[level] for level in self.levels]
        self.factors = [coarse // fine for fine, coarse in itertools.pairwise(strides)]

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        features = self.body(pixels)
        fine = [features[level] for level in self.levels]
        x: Tensor = self.neck.lateral[-1](fine[-1])
        for i in range(len(fine) - 2, -1, -1):
            up = F.interpolate(x, scale_factor=float(self.factors[i]), mode="bilinear", align_corners=False)
            x = self.neck.smooth[i](self.neck.lateral[i](fine[i]) + up)
        return x


def _with_constant_padding(body: nn.Module) -> nn.Module:
    """timm's ``Conv2dSame`` pads by the size of its input; where that is a multiple of the stride, it is constant.

    TensorFlow's rule: ``(ceil(n / s) - 1) s + k - n`` pixels in all, the odd one at the end.
    """
    for name, child in body.named_children():
        if isinstance(child, Conv2dSame):
            same: Any = child
            pads = [max(k - s, 0) for k, s in zip(same.kernel_size, same.stride, strict=True)]
            (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in pads)
            convolution = nn.Conv2d(
                same.in_channels, same.out_channels, same.kernel_size, same.stride,
                groups=same.groups, bias=same.bias is not None,
            )  # fmt: skip
            convolution.load_state_dict(child.state_dict())
            setattr(body, name, nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), convolution))
        else:
            _with_constant_padding(child)
    return body


class Find(nn.Module):
    """2D heads: F_G -> boxes (LIMIT, 4), heat (LIMIT,), classes (LIMIT,), best first, not clipped."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.heads_2d = student.heads_2d

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        maps: Maps2D = self.heads_2d(features)
        boxes, heat, classes = decode_2d(maps, LIMIT)
        return boxes[0], heat[0], classes[0]


class OneConvolution(nn.Module):
    """A 3D head whose four convolutions, which read the same RoIs, are one with four times the channels."""

    def __init__(self, head: Head3D) -> None:
        super().__init__()
        layers: Any = [head.convs[name] for name, _ in head.OUTPUTS]
        folded: Any = [fuse_conv_bn_eval(layer[0], layer[1]) for layer in layers]
        outputs = sum(one.out_channels for one in folded)
        conv = nn.Conv2d(folded[0].in_channels, outputs, folded[0].kernel_size, padding=folded[0].padding)
        conv.weight = nn.Parameter(torch.cat([one.weight for one in folded]))
        conv.bias = nn.Parameter(torch.cat([one.bias for one in folded]))
        self.conv = conv
        self.head = head

    def forward(self, rois: Tensor) -> Raw3D:
        """As :meth:`skd_core.models.heads.Head3D.forward`; N is 1 or more."""
        means = F.relu(self.conv(rois)).mean((-2, -1)).chunk(len(self.head.OUTPUTS), 1)
        return self.head.outputs(
            [self.head.fcs[name](mean) for (name, _), mean in zip(self.head.OUTPUTS, means, strict=True)]
        )


class Place(nn.Module):
    """3D head and decoding.

    features (1, C, H/4, W/4), P (3, 4) of the network's input, boxes (N, 4), classes (N,), 2D scores (N,) and the
    image's (width, height), all in pixels of the network's input -> :data:`RESULTS`, N rows each; N is 1 or more.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = copy.deepcopy(student)
        parts: Any = list(self.student.modules())
        for part in parts:  # the student's, or the teacher's
            if isinstance(getattr(part, "head_3d", None), Head3D):
                part.head_3d = OneConvolution(part.head_3d)

    def forward(
        self, features: Tensor, P: Tensor, boxes: Tensor, classes: Tensor, scores: Tensor, extent: Tensor
    ) -> tuple[Tensor, ...]:
        """See the class."""
        index = torch.zeros_like(classes)
        rois = Rois(index, boxes, classes, P[None].expand(boxes.shape[0], -1, -1), extent.expand(boxes.shape[0], -1))
        found = self.student.boxes_3d(features, P[None], rois)
        joint = joint_score(scores, found.log_sigma).clamp(0, 1)
        return found.center, found.size, found.yaw, joint, torch.exp(found.log_z + found.log_sigma)


def export_parts(student: Student) -> dict[str, onnx.ModelProto]:
    """Body, Find and Place as ONNX models, for images of any size.

    Args:
        student: on the CPU, in eval mode.
    """
    multiple = student.backbone.multiple
    width, height = 4 * multiple, 3 * multiple
    features = torch.zeros(1, student.config.neck_channels, height // STRIDE, width // STRIDE)
    objects = 5
    rois = torch.tensor([[8.0, 8.0, 40.0, 40.0]]).repeat(objects, 1)
    P = torch.tensor([[100.0, 0, 64, 0], [0, 100, 48, 0], [0, 0, 1, 0]])
    classes, scores = torch.zeros(objects, dtype=torch.long), torch.ones(objects)
    given = {"features": features, "P": P, "boxes": rois, "classes": classes, "scores": scores}
    given["extent"] = torch.tensor([float(width), float(height)])
    cells, rows = {2: "HF", 3: "WF"}, {0: "N"}
    pixels = {"pixels": torch.zeros(1, 3, height, width)}
    with torch.no_grad():
        return {
            "body": _export(Body(student), pixels, {"features": {2: "HC", 3: "WC"}}, {"pixels": {2: "HP", 3: "WP"}}),
            "find": _export(
                Find(student),
                {"features": features},
                {"boxes": {}, "heat": {}, "classes": {}},
                {"features": cells},
            ),
            "place": _export(
                Place(student),
                given,
                dict.fromkeys(RESULTS, rows),
                {"features": cells, "boxes": rows, "classes": rows, "scores": rows},
            ),
        }


def _export(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, dict[int, str]],
    free: Mapping[str, dict[int, str]],
) -> onnx.ModelProto:
    """One part, by tracing; outputs and free: the names of the dimensions that may vary."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing, about sizes that are constant here
        torch.onnx.export(
            module.eval(), tuple(inputs.values()), file,  # type: ignore[arg-type]  # takes a file object too
            input_names=list(inputs), output_names=list(outputs), dynamic_axes={**free, **outputs},
            opset_version=OPSET, dynamo=False,
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())
