"""What stands between the parts with weights, written in ONNX: resize, normalisation, NMS, boxes from outside [ours].

Each function does what a function of the PyTorch path does, which its docstring names; `skd_core export --check` and
the tests hold the two equal.
"""

from __future__ import annotations

import onnx
from onnx import parser

from skd_core.boxes import MIN_SIDE
from skd_core.export.parts import LIMIT, OPSET
from skd_core.models.backbone import STRIDE
from skd_core.models.student import MEAN, NMS_IOU, STD

HEADER = f'<ir_version: 9, opset_import: ["" : {OPSET}]>'


def front(focal: tuple[float, float], snap: tuple[int, int] | None, multiple: int) -> onnx.ModelProto:
    """:func:`skd_core.data.transforms.network_camera` and ``scale_pixels``, and what ``Student.features`` does first.

    image (H, W, 3) uint8 and P (3, 4) double -> normalised pixels, padded to multiples of the backbone's stride; the
    camera of the network's input; its extent (w, h) and its scale (w/W, h/H); the rows and columns of F_G.

    Args:
        focal: (fx, fy) of the network's input, pixels; snap: ``ModelConfig.snap_size``; multiple: of the backbone.
    """
    mean, std = (_numbers(255 * value for value in values) for values in (MEAN, STD))
    snapped = "size = Identity(wanted)"
    if snap is not None:
        snapped = f"""
        snap = Constant <value = double[2] {{{snap[0]}, {snap[1]}}}> ()
        one = Constant <value = double[1] {{1}}> ()
        five = Constant <value = double[1] {{0.05}}> ()
        ratio = Div(wanted, snap)
        off = Sub(ratio, one)
        distance = Abs(off)
        most = ReduceMax <keepdims: int = 1> (distance)
        near = Less(most, five)
        size = Where(near, snap, wanted)"""
    text = f"""{HEADER}
    front (uint8[H, W, 3] image, double[3, 4] P) => (
        float[1, 3, HP, WP] pixels, float[3, 4] network_P, float[2] extent, float[2] scale, int64[2] cells
    ) {{
        shape = Shape(image)
        flipped = Constant <value = int64[2] {{1, 0}}> ()
        whole = Gather(shape, flipped)
        whole_d = Cast <to: int = 11> (whole)
        corner = Constant <value = int64[2, 2] {{0, 0, 1, 1}}> ()
        f = GatherND(P, corner)
        focal = Constant <value = double[2] {{{focal[0]!r}, {focal[1]!r}}}> ()
        product = Mul(whole_d, focal)
        quotient = Div(product, f)
        rounded = Round(quotient)
        minimum = Constant <value = double[1] {{32}}> ()
        wanted = Max(rounded, minimum)
        {snapped}
        size_i = Cast <to: int = 7> (size)
        extent = Cast <to: int = 1> (size)
        scale_d = Div(size, whole_d)
        scale = Cast <to: int = 1> (scale_d)
        unit = Constant <value = double[1] {{1}}> ()
        three = Concat <axis: int = 0> (scale_d, unit)
        last = Constant <value = int64[1] {{1}}> ()
        column = Unsqueeze(three, last)
        P_d = Mul(P, column)
        network_P = Cast <to: int = 1> (P_d)

        planes = Transpose <perm: ints = [2, 0, 1]> (image)
        first = Constant <value = int64[1] {{0}}> ()
        batch = Unsqueeze(planes, first)
        floats = Cast <to: int = 1> (batch)
        rows_columns = Gather(size_i, flipped)
        leading = Constant <value = int64[2] {{1, 3}}> ()
        sizes = Concat <axis: int = 0> (leading, rows_columns)
        resized = Resize <mode: string = "linear", antialias: int = 1, exclude_outside: int = 1,
            coordinate_transformation_mode: string = "half_pixel"> (floats, , , sizes)
        mean = Constant <value = float[1, 3, 1, 1] {{{mean}}}> ()
        std = Constant <value = float[1, 3, 1, 1] {{{std}}}> ()
        centred = Sub(resized, mean)
        normal = Div(centred, std)
        multiple = Constant <value = int64[1] {{{multiple}}}> ()
        negative = Neg(rows_columns)
        missing = Mod(negative, multiple)
        none = Constant <value = int64[6] {{0, 0, 0, 0, 0, 0}}> ()
        pads = Concat <axis: int = 0> (none, missing)
        pixels = Pad(normal, pads)

        stride = Constant <value = int64[1] {{{STRIDE}}}> ()
        one_less = Constant <value = int64[1] {{{STRIDE - 1}}}> ()
        more = Add(rows_columns, one_less)
        cells = Div(more, stride)
    }}"""
    return parser.parse_model(text)


def cut(channels: int) -> onnx.ModelProto:
    """The end of ``Backbone.forward``: F_G of the padded image -> F_G of the image."""
    text = f"""{HEADER}
    cut (float[1, {channels}, HC, WC] padded, int64[2] cells) => (float[1, {channels}, HF, WF] features) {{
        zero = Constant <value = int64[2] {{0, 0}}> ()
        axes = Constant <value = int64[2] {{2, 3}}> ()
        features = Slice(padded, zero, cells, axes)
    }}"""
    return parser.parse_model(text)


def choose(classes: int) -> onnx.ModelProto:
    """``Student.detect`` between peaks and RoIs, ``Detector.place``'s clipping, and one RoI more: there is never none.

    boxes, heat, classes of the peaks, extent, scale, the minimum score, and boxes from outside in the image's pixels ->
    RoIs, their classes and 2D scores.
    """
    text = f"""{HEADER}
    choose (
        float[{LIMIT}, 4] boxes, float[{LIMIT}] heat, int64[{LIMIT}] classes, float[2] extent, float[2] scale,
        float score_threshold, float[M, 4] boxes2d, int64[M] classes2d, float[M] scores2d
    ) => (float[N, 4] rois, int64[N] roi_classes, float[N] roi_scores) {{
        zero = Constant <value = float {{0}}> ()
        border = Concat <axis: int = 0> (extent, extent)
        below = Min(boxes, border)
        clipped = Max(below, zero)
        left_top, right_bottom = Split <axis: int = 1, num_outputs: int = 2> (clipped)
        sides = Sub(right_bottom, left_top)
        axis = Constant <value = int64[1] {{1}}> ()
        side = ReduceMin <keepdims: int = 0> (sides, axis)
        min_side = Constant <value = float {{{MIN_SIDE!r}}}> ()
        large = Greater(side, min_side)
        min_heat = Mul(score_threshold, score_threshold)
        hot = Greater(heat, min_heat)
        good = And(large, hot)
        good_f = Cast <to: int = 1> (good)
        weight = Mul(heat, good_f)
        numbers = Constant <value = int64[{classes}, 1] {{{", ".join(map(str, range(classes)))}}}> ()
        same = Equal(classes, numbers)
        same_f = Cast <to: int = 1> (same)
        of_class = Mul(same_f, weight)
        first = Constant <value = int64[1] {{0}}> ()
        scores = Unsqueeze(of_class, first)
        all_boxes = Unsqueeze(clipped, first)
        most = Constant <value = int64 {{{LIMIT}}}> ()
        iou = Constant <value = float {{{NMS_IOU!r}}}> ()
        selected = NonMaxSuppression(all_boxes, scores, most, iou, zero)
        two = Constant <value = int64 {{2}}> ()
        places = Gather <axis: int = 1> (selected, two)
        flat = Constant <value = int64[1] {{-1}}> ()
        index = Reshape(places, flat)
        count = Shape(index)
        ones = ConstantOfShape <value = int64[1] {{1}}> (count)
        size = Constant <value = int64[1] {{{LIMIT}}}> ()
        no = ConstantOfShape <value = int64[1] {{0}}> (size)
        mask = ScatterElements <axis: int = 0> (no, index, ones)
        found = NonZero(mask)
        kept = Reshape(found, flat)
        own_boxes = Gather(clipped, kept)
        own_classes = Gather(classes, kept)
        own_scores = Gather(heat, kept)

        both = Concat <axis: int = 0> (scale, scale)
        scaled = Mul(boxes2d, both)
        inside = Min(scaled, border)
        given = Max(inside, zero)
        spare_box = Constant <value = float[1, 4] {{0, 0, 32, 32}}> ()
        spare_class = Constant <value = int64[1] {{0}}> ()
        spare_score = Constant <value = float[1] {{0}}> ()
        rois = Concat <axis: int = 0> (own_boxes, given, spare_box)
        roi_classes = Concat <axis: int = 0> (own_classes, classes2d, spare_class)
        roi_scores = Concat <axis: int = 0> (own_scores, scores2d, spare_score)
    }}"""
    return parser.parse_model(text)


def back() -> onnx.ModelProto:
    """:func:`skd_core.models.student.to_boxes3d`: rows without the spare one, 2D boxes in the image's pixels."""
    text = f"""{HEADER}
    back (
        float[N, 3] c, float[N, 3] s, float[N] y, float[N] q, float[N] d, float[N, 4] rois, int64[N] roi_classes,
        float[2] scale
    ) => (
        float[K, 3] center, float[K, 3] size, float[K] yaw, float[K] scores, float[K] depth_std, float[K, 4] xyxy,
        int64[K] labels
    ) {{
        start = Constant <value = int64[1] {{0}}> ()
        end = Constant <value = int64[1] {{-1}}> ()
        center = Slice(c, start, end, start)
        size = Slice(s, start, end, start)
        yaw = Slice(y, start, end, start)
        scores = Slice(q, start, end, start)
        depth_std = Slice(d, start, end, start)
        labels = Slice(roi_classes, start, end, start)
        inside = Slice(rois, start, end, start)
        both = Concat <axis: int = 0> (scale, scale)
        xyxy = Div(inside, both)
    }}"""
    return parser.parse_model(text)


def _numbers(values: object) -> str:
    return ", ".join(repr(float(v)) for v in values)  # type: ignore[attr-defined]
