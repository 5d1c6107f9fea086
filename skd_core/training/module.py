"""Student and teacher trained together: one batch in, the weighted loss and its parts out (METHOD 6)."""

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
from skd_core.losses.projection import ProjectionLoss, clip_to_seen
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
from skd_core.training.modulation import YARDSTICKS, Modulation, feedback_weight, lag_weight, scale_gradient


@dataclass
class Step:
    """What one training step needs to know besides its batch.

    Attributes:
        boxes_3d, distillation: weights in [0, 1] that grow during training.
        objects: what sums over objects are divided by; None: the batch's own number, at least 1. With several processes
            it is all objects, at least 1, by the number of processes, so that the mean of their gradients is the
            gradient of the global mean.
        watch: also measure :func:`skd_core.training.gradients.feature_gradients`.
        slow: the running mean of both networks; with it, the student learns from its teacher.
    """

    boxes_3d: float = 1.0
    distillation: float = 1.0
    objects: float | None = None
    watch: bool = False
    slow: TeacherStudent | None = None


class TeacherStudent(nn.Module):
    """MDN and, unless the config leaves it out, DSN, with their losses.

    DSN sees each object twice [ours]: through the RoI that MDN gets, as it would at inference, and through the label's
    own box, where depth errs less. What it says through the label's box is what MDN learns from it.

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
        self.yardsticks = torch.zeros(2, len(YARDSTICKS), 2)  # student, teacher; E1-E3; sum and count in the last batch
        self.own_losses = torch.zeros(2, 2)  # student, teacher; sum and count in the last batch; gtm_measure: pace only
        self.watched: Tensor | None = None  # of the last batch, if its step asked: see feature_gradients
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
        """Whether depth or labels teach yaw; the projection, which cannot tell it from its mirror image, then must not.

        Without a depth source there is no target of yaw: the projection is all there is, teacher or not.
        """
        method = self.config.method
        has_depth = any(source.depth_dir is not None for source in self.config.data.sets)
        has_targets = (method.teacher or method.direct_targets) and has_depth
        return method.supervised or has_targets

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        """The weighted terms whose sum is the loss, each a scalar; their names say which network they teach."""
        objects = step.objects if step.objects is not None else max(len(batch.boxes), 1)
        self.yardsticks, self.own_losses = batch.boxes.new_zeros(2, len(YARDSTICKS), 2), batch.boxes.new_zeros(2, 2)
        features = self.student.features(batch.images)
        terms = self._terms(features, batch, step, objects)
        self.watched = feature_gradients(terms, features) if step.watch else None
        return terms

    def _terms(self, features: Tensor, batch: Batch, step: Step, objects: float) -> dict[str, Tensor]:
        """See :meth:`forward`; features: F_G of the batch's images."""
        method, rois = self.config.method, batch.rois
        maps = self.student.maps_2d(features)
        outline = ~batch.hidden | at_border(batch.full_boxes, rois.size[:, 0], rois.size[:, 1])
        terms = self.loss_2d(
            maps, batch.boxes, rois.classes, rois.batch_index, batch.ignore, batch.ignore_index, whole=outline.all(-1)
        )
        terms = {name: value / objects for name, value in terms.items()}
        everything, batch = batch, batch.only(batch.in_3d)
        rois = batch.rois
        if len(rois.boxes) == 0 or step.boxes_3d == 0:
            if self.teacher is not None:
                depth = self.teacher.depth_map(self._shared(features), batch.P)
                terms |= self._depth_terms(everything, depth, maps.heatmap.shape)
            return terms

        if self.config.augment.own_boxes:
            rois = self.own_rois(maps, batch)
            batch = replace(batch, rois=rois)
        detach_yaw = self.yaw_is_taught
        lifted = scale_gradient(features, self.modulation.k_student if method.modulation else 1.0)
        given = self.student.head_input(lifted, rois)
        student = self.student.decode(self.student.head_3d(given), rois, detach_yaw)
        if method.supervised:
            if batch.truth is None:
                raise ValueError("supervised training needs batches with truth")
            parts = self.loss_supervised(student, batch.truth, rois.boxes, rois.P)
            terms |= {f"student/{k}": step.boxes_3d * v.sum() / objects for k, v in parts.items()}
            return terms

        sees_targets = method.direct_targets or (method.mode == "best" and method.teacher)
        parts = self._weak_terms(student, batch, sees_targets, points=method.direct_targets)
        if method.teacher and method.mode == "paper":
            del parts["depth"]
        elif method.teacher:
            parts["depth"] = method.student_depth_weight * parts["depth"]
        terms |= {f"student/{k}": step.boxes_3d * v.sum() / objects for k, v in parts.items()}
        if self.teacher is None:
            return terms
        own = [own_loss(parts)]

        shared = self._shared(features)
        depth = self.teacher.depth_map(shared, batch.P)
        terms |= self._depth_terms(everything, depth, maps.heatmap.shape)
        both = batch.seen_through(rois.boxes, batch.boxes)
        fused = self.teacher.head_input(shared, depth, batch.P, both.rois)
        seen = self.student.decode(self.teacher.head_3d(fused), both.rois, detach_yaw)
        parts = self._weak_terms(seen, both, True, points=step.distillation > 0)
        if method.gtm_measure == "pace":
            self.own_losses = torch.stack([*own, own_loss(parts)])
        terms |= {f"teacher/{k}": step.boxes_3d * v.sum() / (2 * objects) for k, v in parts.items()}
        teacher, knowing = select(seen, slice(len(rois.boxes))), select(seen, slice(len(rois.boxes), None))
        if step.slow is not None and step.distillation > 0:
            knowing = step.slow.knowledge(batch)
        if self.loss_features is not None and step.distillation > 0:
            channels = features.shape[1]
            apart = self.loss_features(given[:, :channels], fused[: len(rois.boxes), :channels])
            terms["student/features"] = step.distillation * method.feature_weight * apart.sum() / objects
        if self.loss_distillation is not None and step.distillation > 0:
            parts = self._distillation_terms(student, teacher, knowing, batch, step.distillation)
            terms |= {k: v.sum() / objects for k, v in parts.items()}
        rival = knowing if method.gtm_measure == "labels" else teacher
        self.yardsticks = torch.stack([self._yardsticks(student, batch), self._yardsticks(rival, batch)])
        return terms

    @torch.no_grad()
    def knowledge(self, batch: Batch) -> Prediction3D:
        """What the teacher says through the labels' boxes, which the student is taught, of N objects.

        Raises:
            ValueError: there is no teacher.
        """
        if self.teacher is None:
            raise ValueError("this network has no teacher")
        features, rois = self.student.features(batch.images), batch.seen_through(batch.boxes).rois
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
    def own_rois(maps: Maps2D, batch: Batch) -> Rois:
        """The RoIs as they will be at inference [ours]: the boxes that the 2D heads give at the labels' centres.

        Where such a box and the label overlap by half or less, the jittered label stays.
        """
        H, W = maps.heatmap.shape[-2:]
        center = (0.5 / STRIDE * (batch.boxes[:, :2] + batch.boxes[:, 2:])).long()
        column, row = center[:, 0].clamp(0, W - 1), center[:, 1].clamp(0, H - 1)
        own = boxes_at(maps, batch.rois.batch_index, row * W + column)
        own = torch.minimum(own.clamp(min=0), batch.rois.size.repeat(1, 2))
        good = box_iou(own, batch.boxes).diagonal() > 0.5
        return replace(batch.rois, boxes=torch.where(good[:, None], own, batch.rois.boxes))

    def _shared(self, features: Tensor) -> Tensor:
        """The features as the teacher sees them: GTM scales what it gives back to them, whatever a batch holds."""
        return scale_gradient(features, self.modulation.k_teacher if self.config.method.modulation else 1.0)

    # -- parts ------------------------------------------------------------------------------------------------------
    def _weak_terms(self, boxes: Prediction3D, batch: Batch, targets: bool, points: bool) -> dict[str, Tensor]:
        """L3D without any 3D label, terms of shape (N,)."""
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
        if points:
            values = self.loss_points(boxes.center, boxes.size, boxes.yaw, batch.pseudo.points)
            terms["points"] = method.points_weight * values
        return terms

    def geometric_target(self, boxes: Prediction3D, batch: Batch) -> Tensor:
        """shape (N,): z_geo = f H / h2d + e of METHOD 5.4 with the class's size; NaN where the box is cut."""
        rois = batch.rois
        prior = self.student.prior[rois.classes]
        height = (batch.full_boxes[:, 3] - batch.full_boxes[:, 1]).clamp(min=1.0)
        yaw = boxes.yaw.detach()
        extent = half_extent(prior, yaw) if self.config.model.center_offset else torch.zeros_like(yaw)
        z = geometric_depth(rois.P[:, 1, 1], prior[:, 2], height, extent)
        return torch.where(batch.hidden_vertically, torch.nan, z)

    def _depth_terms(self, batch: Batch, depth: DepthMap, shape: torch.Size) -> dict[str, Tensor]:
        """L_depth, at stride 4; none if the batch has no depth at all."""
        target = batch.depth[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
        if not bool((target > 0).any()):
            return {}
        B, C, H, W = shape
        rois = batch.rois
        heat = render_heatmap(batch.boxes, rois.classes, rois.batch_index, (B, C, H, W)).amax(1)
        crop = (slice(None), slice(0, target.shape[1]), slice(0, target.shape[2]))
        loss = self.loss_depth_map(depth.log_depth[crop], depth.log_sigma[crop], target, heat[crop])
        return {"teacher/depth_map": self.config.method.depth_map_weight * loss}

    def _distillation_terms(
        self, student: Prediction3D, teacher: Prediction3D, knowing: Prediction3D, batch: Batch, weight: float
    ) -> dict[str, Tensor]:
        """L_UAD and the feedback k_fb L_rev; terms of shape (N,).

        Args:
            student, teacher: through the RoIs of the batch; knowing: the teacher through the labels' boxes.
        """
        assert self.loss_distillation is not None
        student, teacher = (p.relative_to(batch.boxes, batch.rois.boxes) for p in (student, teacher))
        method = self.config.method
        learnt = self.loss_distillation(student, knowing, self.overlap(knowing, batch))
        per_object = method.modulation and method.gtm_form == "per_object"
        if per_object:
            learnt = learnt * lag_weight(self._errors(student, batch), self._errors(knowing, batch))
        lift = self.modulation.k_student if method.modulation else 1.0
        terms = {"student/distillation": weight * lift * learnt}
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
            clipped = clip_to_seen(boxes.project(batch.rois.P), batch.full_boxes, batch.hidden)
            return box_iou(clipped, batch.full_boxes).diagonal()  # type: ignore[no-any-return]

    @staticmethod
    @torch.no_grad()
    def _errors(boxes: Prediction3D, batch: Batch) -> Tensor:
        """shape (2, N): E1 and E3 of each object, what its pseudo-target knows; NaN where it knows nothing."""
        pseudo = batch.pseudo
        yaw = yaw_error(boxes.alpha, pseudo.alpha, pseudo.alpha_weight)
        depth = (boxes.log_z - pseudo.z.log()).abs()
        return torch.stack([depth, torch.where(pseudo.alpha_weight > 0, yaw, torch.nan)])

    @torch.no_grad()
    def _yardsticks(self, boxes: Prediction3D, batch: Batch) -> Tensor:
        """shape (3, 2): each of :data:`YARDSTICKS`, its sum over the boxes that it can measure and their number."""
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


def own_loss(parts: dict[str, Tensor]) -> Tensor:
    """shape (2,): sum and count over objects of a network's own weak loss, terms of shape (N,) each; no gradient.

    Without L_points, which joins in the middle of a run, and without what the networks teach each other.
    """
    total = torch.stack([value.detach() for name, value in parts.items() if name != "points"]).sum(0)
    return torch.stack([total.sum(), total.new_tensor(float(len(total)))])
