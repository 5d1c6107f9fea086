"""Student and teacher trained together: one batch in, the weighted loss and its parts out (method: Losses)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from skd_core.boxes import at_border
from skd_core.config import TrainConfig
from skd_core.geometry import geometric_depth, half_extent
from skd_core.losses.depth_map import DepthMapLoss
from skd_core.losses.detection_2d import Detection2DLoss, render_heatmap
from skd_core.losses.dimension import DimensionLoss
from skd_core.losses.distillation import DistillationLoss
from skd_core.losses.features import FeatureLoss
from skd_core.losses.object_depth import ObjectDepthLoss
from skd_core.losses.points import PointsLoss
from skd_core.losses.projection import ProjectionLoss, clip_to_visible
from skd_core.losses.supervised import SupervisedLoss
from skd_core.losses.yaw import YawLoss, yaw_error
from skd_core.models.backbone import STRIDE
from skd_core.models.decode import Prediction3D, boxes_at
from skd_core.models.heads import Maps2D
from skd_core.models.student import Rois, Student, select
from skd_core.models.teacher import DepthGuidedNetwork, DepthMap, Teacher
from skd_core.priors import prior_of, prior_tolerances
from skd_core.training.batch import Batch
from skd_core.training.gradients import feature_gradients
from skd_core.training.modulation import ERROR_NAMES, Modulation, feedback_weight, lag_weight, scale_gradient


@dataclass
class StepContext:
    """The inputs of a training step that are not in its batch.

    Attributes:
        weight_3d, weight_distillation: loss weights in [0, 1] that rise during training.
        num_objects: divisor of sums over objects; None: the number of objects in the batch, at least 1. With several
            processes it is the number of all objects, at least 1, divided by the number of processes, so that the mean
            of the processes' gradients is the gradient of the global mean.
        log_gradients: also measure :func:`skd_core.training.gradients.feature_gradients`.
        ema: the running mean of both networks; if given, the student learns from its teacher.
    """

    weight_3d: float = 1.0
    weight_distillation: float = 1.0
    num_objects: float | None = None
    log_gradients: bool = False
    ema: TeacherStudent | None = None


class TeacherStudent(nn.Module):
    """MDN and, unless the config leaves it out, DSN, with their losses.

    DSN processes each object twice [ours]: with the RoI that MDN gets, as at inference, and with the ground-truth 2D
    box as its RoI, where the depth error is smaller. MDN learns from the output for the ground-truth box.

    ``L = L_2D + .5 L_depth + L3D_DSN + L3D_MDN + lambda_d (L_UAD + k_fb L_rev)``
    ``L3D = L_proj + .5 L_dim + L_z + L_yaw + .1 L_points``
    """

    tolerance: Tensor
    side_weight: Tensor
    geometric_error: Tensor

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config = config
        method = config.method
        self.student = Student(config.model)
        self.teacher = Teacher(config.model, self.student.prior) if method.teacher else None
        self.modulation = Modulation(method)
        # of the last batch: student, teacher; E1 to E3; sum and count. Then: student, teacher; sum and count
        self.error_sums = torch.zeros(2, len(ERROR_NAMES), 2)
        self.loss_sums = torch.zeros(2, 2)  # gtm_measure: loss_slope only
        self.gradient_sums: Tensor | None = None  # of the last batch, if log_gradients was set: see feature_gradients
        self.register_buffer("tolerance", prior_tolerances(config.model.classes), persistent=False)
        side = [prior_of(name).side_edge_weight for name in config.model.classes]
        self.register_buffer("side_weight", torch.tensor(side), persistent=False)
        errors = [prior_of(name).geometric_error for name in config.model.classes]
        self.register_buffer("geometric_error", torch.tensor(errors), persistent=False)

        self.loss_2d, self.loss_depth_map = Detection2DLoss(), DepthMapLoss()
        self.loss_projection, self.loss_dimension = ProjectionLoss(), DimensionLoss()
        self.loss_depth, self.loss_yaw, self.loss_points = ObjectDepthLoss(), YawLoss(), PointsLoss()
        self.loss_supervised = SupervisedLoss(config.model.center_range)
        self.loss_features = None if method.features == "none" else FeatureLoss(method.features)
        self.loss_distillation = None if method.distillation == "none" else DistillationLoss(method.distillation)

    @property
    def yaw_is_taught(self) -> bool:
        """Whether depth or labels teach yaw; L_proj, which cannot tell a yaw from its mirror image, then must not.

        Without a depth source there is no target for yaw: then L_proj teaches it, with or without a teacher.
        """
        method = self.config.method
        has_depth = any(source.depth_dir is not None for source in self.config.data.sets)
        has_targets = (method.teacher or method.direct_targets) and has_depth
        return method.supervised or has_targets

    def forward(self, batch: Batch, step: StepContext) -> dict[str, Tensor]:
        """The weighted terms whose sum is the loss, each a scalar; their names say which network they train."""
        num_objects = step.num_objects if step.num_objects is not None else max(len(batch.boxes), 1)
        self.error_sums, self.loss_sums = batch.boxes.new_zeros(2, len(ERROR_NAMES), 2), batch.boxes.new_zeros(2, 2)
        features = self.student.features(batch.images)
        terms = self._terms(features, batch, step, num_objects)
        self.gradient_sums = feature_gradients(terms, features) if step.log_gradients else None
        return terms

    def _terms(self, features: Tensor, batch: Batch, step: StepContext, num_objects: float) -> dict[str, Tensor]:
        """See :meth:`forward`; features: F_G of the batch's images."""
        method, rois = self.config.method, batch.rois
        maps = self.student.maps_2d(features)
        outline = ~batch.hidden | at_border(batch.full_boxes, rois.size[:, 0], rois.size[:, 1])
        shape: tuple[int, int, int, int] = tuple(maps.heatmap.shape)  # type: ignore[assignment]
        heat = render_heatmap(batch.boxes, rois.classes, rois.batch_index, shape)
        places = rois.classes, rois.batch_index, batch.ignore, batch.ignore_index
        terms = self.loss_2d(maps, batch.boxes, *places, whole=outline.all(-1), target=heat)
        terms = {name: value / num_objects for name, value in terms.items()}
        full_batch, batch = batch, batch if batch.all_in_3d else batch.only(batch.in_3d)
        rois = batch.rois
        if len(rois.boxes) == 0 or step.weight_3d == 0:
            if self.teacher is not None:
                depth = self.teacher.depth_map(self._teacher_features(features), batch.P)
                terms |= self._depth_terms(full_batch, depth, heat)
            return terms

        if self.config.method.roi_source == "predicted":
            rois = self.predicted_rois(maps, batch)
            batch = replace(batch, rois=rois)
        detach_yaw = self.yaw_is_taught
        student_features = scale_gradient(features, self.modulation.k_student if method.modulation else 1.0)
        student_input = self.student.head_input(student_features, rois)
        student = self.student.decode(self.student.head_3d(student_input), rois, detach_yaw)
        if method.supervised:
            if batch.truth is None:
                raise ValueError("supervised training needs batches with truth")
            parts = self.loss_supervised(student, batch.truth, rois.boxes, rois.P)
            terms |= {f"student/{k}": step.weight_3d * v.sum() / num_objects for k, v in parts.items()}
            return terms

        use_targets = method.direct_targets or (method.student_targets == "teacher_and_pseudo" and method.teacher)
        density = self.loss_points.density(batch.pseudo.points) if method.direct_targets else None
        parts = self._weak_terms(student, batch, use_targets, density)
        if method.teacher and method.student_targets == "teacher":
            del parts["depth"]
        elif method.teacher:
            parts["depth"] = method.student_depth_weight * parts["depth"]
        terms |= {f"student/{k}": step.weight_3d * v.sum() / num_objects for k, v in parts.items()}
        if self.teacher is None:
            return terms
        student_loss = weak_loss_sum(parts)

        teacher_features = self._teacher_features(features)
        depth = self.teacher.depth_map(teacher_features, batch.P)
        terms |= self._depth_terms(full_batch, depth, heat)
        doubled = batch.with_rois(rois.boxes, batch.boxes)  # the student's RoIs, then the ground-truth 2D boxes
        teacher_input = self.teacher.head_input(teacher_features, depth, batch.P, doubled.rois)
        teacher = self.student.decode(self.teacher.head_3d(teacher_input), doubled.rois, detach_yaw)
        density = None
        if step.weight_distillation > 0:
            density = self.loss_points.density(batch.pseudo.points).repeat(2, 1)
        parts = self._weak_terms(teacher, doubled, True, density)
        if method.gtm_measure == "loss_slope":
            self.loss_sums = torch.stack([student_loss, weak_loss_sum(parts)])
        terms |= {f"teacher/{k}": step.weight_3d * v.sum() / (2 * num_objects) for k, v in parts.items()}
        from_student_rois = select(teacher, slice(len(rois.boxes)))
        from_label_boxes = select(teacher, slice(len(rois.boxes), None))
        if step.ema is not None and step.weight_distillation > 0:
            from_label_boxes = step.ema.teacher_in_label_boxes(batch)
        if self.loss_features is not None and step.weight_distillation > 0:
            channels = features.shape[1]
            distance = self.loss_features(student_input[:, :channels], teacher_input[: len(rois.boxes), :channels])
            terms["student/features"] = step.weight_distillation * method.feature_weight * distance.sum() / num_objects
        if self.loss_distillation is not None and step.weight_distillation > 0:
            weight = step.weight_distillation
            parts = self._distillation_terms(student, from_student_rois, from_label_boxes, batch, weight)
            terms |= {k: v.sum() / num_objects for k, v in parts.items()}
        compared = from_label_boxes if method.gtm_measure == "labels" else from_student_rois
        self.error_sums = torch.stack([self._error_sums(student, batch), self._error_sums(compared, batch)])
        return terms

    @torch.no_grad()
    def teacher_in_label_boxes(self, batch: Batch) -> Prediction3D:
        """The teacher's predictions with the N ground-truth 2D boxes as RoIs: what the student learns from.

        Raises:
            ValueError: there is no teacher.
        """
        if self.teacher is None:
            raise ValueError("this network has no teacher")
        features, rois = self.student.features(batch.images), batch.with_rois(batch.boxes).rois
        raw = self.teacher.boxes_raw(features, self.teacher.depth_map(features, batch.P), batch.P, rois)
        return self.student.decode(raw, rois)

    def depth_guided(self) -> DepthGuidedNetwork:
        """The teacher as a network of its own; it shares all parts with this one.

        Raises:
            ValueError: there is no teacher.
        """
        if self.teacher is None:
            raise ValueError("this network has no teacher")
        return DepthGuidedNetwork.of(self.student, self.teacher)

    @staticmethod
    @torch.no_grad()
    def predicted_rois(maps: Maps2D, batch: Batch) -> Rois:
        """RoIs as at inference [ours]: the boxes that the 2D heads predict at the centres of the ground-truth 2D boxes.

        Where the IoU of the two is .5 or less, the jittered ground-truth box is kept.
        """
        H, W = maps.heatmap.shape[-2:]
        center = (0.5 / STRIDE * (batch.boxes[:, :2] + batch.boxes[:, 2:])).long()
        column, row = center[:, 0].clamp(0, W - 1), center[:, 1].clamp(0, H - 1)
        predicted = boxes_at(maps, batch.rois.batch_index, row * W + column)
        predicted = torch.minimum(predicted.clamp(min=0), batch.rois.size.repeat(1, 2))
        good = box_iou(predicted, batch.boxes).diagonal() > 0.5
        return replace(batch.rois, boxes=torch.where(good[:, None], predicted, batch.rois.boxes))

    def _teacher_features(self, features: Tensor) -> Tensor:
        """F_G as the teacher's input: GTM scales the gradient that flows back from all of the teacher's losses."""
        return scale_gradient(features, self.modulation.k_teacher if self.config.method.modulation else 1.0)

    # -- parts ------------------------------------------------------------------------------------------------------
    def _weak_terms(
        self, boxes: Prediction3D, batch: Batch, targets: bool, density: Tensor | None
    ) -> dict[str, Tensor]:
        """L3D without any 3D label, terms of shape (N,).

        Args:
            density: of the targets' points, see :meth:`skd_core.losses.points.PointsLoss.density`; None: no L_points.
        """
        method, rois = self.config.method, batch.rois
        prior = self.student.prior[rois.classes]
        projected = boxes.project(rois.P)
        side_weight = self.side_weight[rois.classes]
        terms = {
            "projection": self.loss_projection(projected, batch.full_boxes, batch.hidden, side_weight),
            "dimension": method.dimension_weight * self.loss_dimension(boxes.size, prior, self.tolerance[rois.classes]),
        }
        z = self.geometric_target(boxes, batch)
        margin = method.geometric_margin * self.geometric_error[rois.classes]
        if targets:
            known = batch.pseudo.z.isfinite()
            z, margin = torch.where(known, batch.pseudo.z, z), torch.where(known, 0.0, margin)
            terms["yaw"] = self.loss_yaw(boxes.yaw_vector, batch.pseudo.alpha, batch.pseudo.alpha_weight)
        terms["depth"] = self.loss_depth(boxes.log_z, boxes.log_sigma, z, margin)
        if density is not None:
            values = self.loss_points(boxes.center, boxes.size, boxes.yaw, batch.pseudo.points, density)
            terms["points"] = method.points_weight * values
        return terms

    def geometric_target(self, boxes: Prediction3D, batch: Batch) -> Tensor:
        """shape (N,): z_geo = f H / h2d + e with the class's size (method: Notation); NaN where the box is cut."""
        rois = batch.rois
        prior = self.student.prior[rois.classes]
        height = (batch.full_boxes[:, 3] - batch.full_boxes[:, 1]).clamp(min=1.0)
        yaw = boxes.yaw.detach()
        extent = half_extent(prior, yaw) if self.config.model.center_offset else torch.zeros_like(yaw)
        z = geometric_depth(rois.P[:, 1, 1], prior[:, 2], height, extent)
        return torch.where(batch.hidden_vertically, torch.nan, z)

    def _depth_terms(self, batch: Batch, depth: DepthMap, heat: Tensor) -> dict[str, Tensor]:
        """L_depth, at stride 4; none if the batch has no depth at all."""
        if not batch.has_depth:
            return {}
        target = batch.depth_target
        heat = heat.amax(1)
        crop = (slice(None), slice(0, target.shape[1]), slice(0, target.shape[2]))
        loss = self.loss_depth_map(depth.log_depth[crop], depth.log_sigma[crop], target, heat[crop])
        return {"teacher/depth_map": self.config.method.depth_map_weight * loss}

    def _distillation_terms(
        self, student: Prediction3D, teacher: Prediction3D, from_label_boxes: Prediction3D, batch: Batch, weight: float
    ) -> dict[str, Tensor]:
        """L_UAD and the feedback k_fb L_rev; terms of shape (N,).

        Args:
            student, teacher: with the RoIs of the batch; from_label_boxes: the teacher with ground-truth 2D boxes.
        """
        assert self.loss_distillation is not None
        student, teacher = (p.relative_to(batch.boxes, batch.rois.boxes) for p in (student, teacher))
        method = self.config.method
        forward = self.loss_distillation(student, from_label_boxes, self.overlap(from_label_boxes, batch))
        per_object = method.modulation and method.gtm_form == "per_object"
        if per_object:
            forward = forward * lag_weight(self._errors(student, batch), self._errors(from_label_boxes, batch))
        k_student = self.modulation.k_student if method.modulation else 1.0
        terms = {"student/distillation": weight * k_student * forward}
        feedback = self.modulation.k_feedback if method.modulation and weight >= 1 else 0.0
        if feedback > 0:
            reverse = self.loss_distillation(teacher, student, self.overlap(student, batch), yaw=False)
            if per_object:
                errors = self._errors(student, batch), self._errors(teacher, batch)
                reverse = reverse * feedback_weight(*errors, student.log_sigma < teacher.log_sigma)
            terms["teacher/feedback"] = feedback * reverse
        return terms

    @staticmethod
    def overlap(boxes: Prediction3D, batch: Batch) -> Tensor:
        """shape (N,): IoU of each box's projection, clipped where its 2D box is, with that; no gradient."""
        with torch.no_grad():
            clipped = clip_to_visible(boxes.project(batch.rois.P), batch.full_boxes, batch.hidden)
            return box_iou(clipped, batch.full_boxes).diagonal()  # type: ignore[no-any-return]

    @staticmethod
    @torch.no_grad()
    def _errors(boxes: Prediction3D, batch: Batch) -> Tensor:
        """shape (2, N): E1 and E3 of each object against its pseudo-target; NaN where there is no target."""
        pseudo = batch.pseudo
        yaw = yaw_error(boxes.alpha, pseudo.alpha, pseudo.alpha_weight)
        depth = (boxes.log_z - pseudo.z.log()).abs()
        return torch.stack([depth, torch.where(pseudo.alpha_weight > 0, yaw, torch.nan)])

    @torch.no_grad()
    def _error_sums(self, boxes: Prediction3D, batch: Batch) -> Tensor:
        """shape (3, 2): for each of :data:`ERROR_NAMES` the sum over the boxes that have a target, and their number."""
        pseudo = batch.pseudo
        values = torch.stack(
            [
                (boxes.log_z - pseudo.z.log()).abs(),
                1 - self.overlap(boxes, batch),
                yaw_error(boxes.alpha, pseudo.alpha, pseudo.alpha_weight),
            ]
        )
        has_z = pseudo.z.isfinite()
        known = torch.stack([has_z, torch.ones_like(has_z), pseudo.alpha_weight > 0])
        return torch.stack([torch.where(known, values, 0.0).sum(-1), known.sum(-1)], -1)


def weak_loss_sum(parts: dict[str, Tensor]) -> Tensor:
    """shape (2,): sum and count over objects of a network's weakly supervised loss; no gradient.

    Without L_points, which starts in the middle of a run, and without the losses between the networks.

    Args:
        parts: terms of shape (N,) each.
    """
    total = torch.stack([value.detach() for name, value in parts.items() if name != "points"]).sum(0)
    return torch.stack([total.sum(), total.new_tensor(float(len(total)))])
