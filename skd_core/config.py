"""Typed, strict configuration: an unknown or ill-typed key is an error that names it and the nearest valid one."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from skd_core.config_aliases import rename
from skd_core.errors import UserError
from skd_core.priors import prior_of
from skd_core.yaml_files import load_yaml, read_yaml

Share = Annotated[float, Field(ge=0, le=1)]
"""Of a run, from its begin (0) to its end (1)."""
FOCAL_LIMITS = 1.0, 1e5
"""Pixels: a focal length of the network's input outside of them is a mistake."""
PLAIN_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)?")
"""Of a model in timm, with or without a tag. Others may name a hub or a folder ("hf-hub:...", "local-dir:...")."""


class Strict(BaseModel):
    """Base of all sections."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Strict):
    """What rebuilds the network; travels with every checkpoint and weights file."""

    classes: tuple[str, ...] = ("Car", "Pedestrian", "Cyclist")
    backbone: str = "dla34"
    neck_channels: int = Field(64, ge=8, le=4096)
    head_channels: int = Field(256, ge=8, le=4096)
    roi_size: int = Field(7, ge=1, le=64)
    depth_channels: int = Field(256, ge=8, le=4096)  # of the teacher's depth head
    input_size: tuple[int, int] = (1280, 384)  # width, height, pixels; with focal: of the window training crops
    # of the network's input, pixels; None: what input_size makes of the images
    focal: float | None = Field(None, ge=FOCAL_LIMITS[0], le=FOCAL_LIMITS[1])
    center_range: float = Field(1.0, ge=1, le=100)  # the projected centre lies in the 2D box grown by this factor
    border_flags: bool = False  # input channels of the 3D heads: which edges of a box the image border cuts
    direction: bool = False  # front and rear are told apart; only 3D labels can teach it
    center_offset: bool = True  # False: no way from the surface to the centre (ablation)

    @field_validator("classes")
    @classmethod
    def _known(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if not classes or len(set(classes)) != len(classes):
            raise ValueError("needs at least one class, each once")
        for name in classes:
            prior_of(name)
        return classes

    @field_validator("backbone")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not PLAIN_NAME.fullmatch(name):
            raise ValueError("needs a plain name of timm, such as dla34; nothing is fetched from a hub")
        return name

    @property
    def snap_size(self) -> tuple[int, int] | None:
        """The size that images which come near it are brought to; None where a focal length rules alone."""
        return self.input_size if self.focal is None else None

    @field_validator("input_size")
    @classmethod
    def _size(cls, size: tuple[int, int]) -> tuple[int, int]:
        if min(size) < 32 or max(size) > 16384:
            raise ValueError("width and height must be 32 to 16384 pixels")
        return size


Place = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path, in which ``~`` is the home folder."""


class SetConfig(Strict):
    """One data set."""

    kind: Literal["kitti", "nuscenes"] = "kitti"  # the layout of its folder
    root: Place
    split: str | None = None  # kitti: a name in ImageSets/; nuscenes: train, val, mini_train, ...; all images if none
    version: str | None = None  # nuscenes: v1.0-trainval, ...; may be left out where there is only one
    share: float = Field(1.0, ge=1e-6, le=1e6)  # of every batch, relative to the other sets' shares
    boxes: Literal["amodal", "tight"] = "amodal"  # tight: around the visible part, as a 2D detector gives them
    depth_dir: Place | None = None  # of this set, in a list of sets
    only_2d: bool = False  # teaches the 2D heads alone, such as where the focal length is uncertain
    labels_3d: bool = True  # method.supervised learns from its 3D labels; false: it then teaches the 2D heads alone
    rendered: bool = False  # computer-made pictures, which the ablation on real frames starts from
    licence: str | None = None  # of images and labels, such as CC-BY-NC-SA-4.0; the weights keep it in their metadata

    @model_validator(mode="after")
    def _version(self) -> SetConfig:
        if self.version is not None and self.kind != "nuscenes":
            raise ValueError("version is for kind: nuscenes")
        return self

    def teaches_3d(self, supervised: bool) -> bool:
        """Whether the 3D heads learn from it, in a run with method.supervised or without."""
        return not self.only_2d and (self.labels_3d or not supervised)


ONE, MANY = "a single set", "a list of sets"
OneOrMany = Annotated[
    Annotated[SetConfig, Tag(ONE)] | Annotated[tuple[SetConfig, ...], Tag(MANY)],
    Discriminator(lambda value: MANY if isinstance(value, (list, tuple)) else ONE),
]


class DataConfig(Strict):
    """Where images, 2D boxes and depth maps come from."""

    train: OneOrMany  # a list is a mixture: every batch holds each set's share
    val: SetConfig | None = None  # 3D labels are read here only, and only to report
    test: tuple[SetConfig, ...] = ()  # and here: the ablation on real frames evaluates complete runs on them
    depth_dir: Place | None = None  # estimated depth, training only: beside image_2 (kitti), under root (nuscenes)
    depth_kind: Literal["metric", "relative"] = "metric"  # relative: inverse depth of any scale and shift
    camera_height: float = Field(1.65, gt=0, le=1000)  # metres above the road; relative depth only
    workers: int = Field(0, ge=0, le=256)
    cache: bool = True  # keep the resized images in memory

    @property
    def sets(self) -> tuple[SetConfig, ...]:
        """The training sets, each with its own folder of depth maps."""
        if isinstance(self.train, SetConfig):
            return (self.train.model_copy(update={"depth_dir": self.train.depth_dir or self.depth_dir}),)
        return self.train

    @model_validator(mode="after")
    def _depth_of_sets(self) -> DataConfig:
        if not isinstance(self.train, SetConfig):
            if not self.train:
                raise ValueError("train: name at least one set")
            if self.depth_dir is not None:
                raise ValueError("depth_dir: in a list of sets each names its own")
        for part in self.sets:
            if part.only_2d and part.depth_dir is not None:
                raise ValueError(f"train: {part.root} has only_2d, which teaches no depth; leave out its depth_dir")
        return self

    @model_validator(mode="after")
    def _test(self) -> DataConfig:
        if any(part.kind != "kitti" for part in self.test):
            raise ValueError("test: takes only sets of kind kitti")
        return self

    @model_validator(mode="after")
    def _split(self) -> DataConfig:
        if self.val is not None and self.val.kind == "nuscenes" and self.val.split is None:
            raise ValueError("val of kind nuscenes needs a split for its evaluation")
        return self


class AugmentConfig(Strict):
    """Augmentation of a training image; camera, boxes and depth change with it."""

    flip: float = Field(0.5, ge=0, le=1)  # probability
    zoom: tuple[float, float] = (1.0, 1.0)  # range of a random factor on the focal length; needs model.focal
    crop_to_objects: float = Field(0.7, ge=0, le=1)  # probability that a window is laid on an object, large ones first
    crop_cuts: float = Field(0.0, ge=0, le=1)  # probability that it cuts this object, as the image border does
    max_covered: float = Field(
        1.0, ge=0, le=1
    )  # maximum share of an object that a nearer box covers; others are ignored
    photometric: float = Field(0.3, ge=0, lt=1)  # largest relative change of brightness, contrast, saturation
    blur: float = Field(0.0, ge=0, le=1)  # probabilities of Gaussian blur, noise and JPEG compression
    noise: float = Field(0.0, ge=0, le=1)
    jpeg: float = Field(0.0, ge=0, le=1)
    box_jitter: float = Field(
        0.06, ge=0, lt=0.3
    )  # of ground-truth boxes used as RoIs: sd of the edges, share of the size


class MethodConfig(Strict):
    """Which parts take part (method: Losses); the rows of the ablation differ here only."""

    teacher: bool = True  # DSN
    # RoIs of the 3D heads in training. predicted: the 2D heads' boxes, as at inference, where their IoU with the
    # ground-truth 2D box is above .5, else that box with augment.box_jitter; labels: always that jittered box
    roi_source: Literal["predicted", "labels"] = "predicted"
    distillation: Literal["none", "l1", "uad"] = "uad"
    ema_teacher: bool = False  # the student learns from the teacher's running mean (schedule.ema)
    features: Literal["none", "cosine", "l2"] = "none"  # the student's RoI features learn from the teacher's fused ones
    feature_weight: float = Field(1.0, ge=0, le=1e4)
    modulation: bool = False  # GTM: not shown to help (docs/benchmarks.md, Gradient-targeted modulation)
    # if the student lags: damp_teacher scales the teacher's gradient into the shared features down; lift_student scales
    # the student's gradient and the distillation up; per_object weights distillation by how far the student is behind
    # on each object, and feedback where it is ahead and more certain; feedback changes only the weight of the feedback
    gtm_form: Literal["damp_teacher", "lift_student", "per_object", "feedback"] = "damp_teacher"
    # how the lag is measured. rois: by the errors of both networks with the student's RoIs; labels: the teacher's with
    # ground-truth 2D boxes, from which the student learns; loss_slope: by how fast each network's loss falls
    gtm_measure: Literal["rois", "labels", "loss_slope"] = "rois"
    # what teaches the student depth and yaw beside the projection: its teacher alone, or the pseudo-targets too
    student_targets: Literal["teacher", "teacher_and_pseudo"] = "teacher_and_pseudo"
    supervised: bool = False  # 3D labels instead of everything weak: the upper bound, never the product
    direct_targets: bool = False  # pseudo-targets on the student without a teacher

    depth_map_weight: float = Field(0.5, ge=0, le=1e4)
    dimension_weight: float = Field(0.5, ge=0, le=1e4)
    points_weight: float = Field(0.1, ge=0, le=1e4)
    student_depth_weight: float = Field(0.3, ge=0, le=1e4)  # L_z on the student; student_targets: teacher_and_pseudo
    geometric_margin: float = Field(0.0, ge=0, le=1e4)  # L_z to f H / h2d + e is free within this x its class's error
    gtm_alpha: float = Field(4.0, ge=0, le=1e4)
    gtm_beta: float = Field(0.05, ge=0, le=1e4)
    gtm_lift: float = Field(2.0, ge=1, le=100)  # gtm_form: lift_student: the largest factor on the student's gradient

    @model_validator(mode="after")
    def _consistent(self) -> MethodConfig:
        if self.teacher and (self.supervised or self.direct_targets):
            raise ValueError("supervised and direct_targets replace the teacher; set teacher: false")
        if self.supervised and self.direct_targets:
            raise ValueError("choose supervised or direct_targets")
        if self.ema_teacher and (not self.teacher or self.distillation == "none"):
            raise ValueError("ema_teacher needs a teacher and distillation")
        if self.features != "none" and not self.teacher:
            raise ValueError("features needs a teacher")
        return self


class ScheduleConfig(Strict):
    """See docs/method.md, Training, Schedule [peer]. The 3D losses' ramps scale with the number of epochs [ours]."""

    epochs: int = Field(140, ge=1, le=1_000_000)
    epoch_steps: int | None = Field(None, ge=1, le=1_000_000)  # None: as many as hold all frames once
    batch_size: int = Field(16, ge=1, le=65536)
    learning_rate: float = Field(1.25e-3, gt=0, le=10)
    weight_decay: float = Field(1e-5, ge=0, le=10)
    warmup_epochs: float = Field(5, ge=0, le=1_000_000)
    decay: tuple[Share, ...] = (90 / 140, 120 / 140)  # shares of the run after which the rate falls tenfold
    gradient_clip: float = Field(35.0, gt=0, le=1e6)
    ema: float = Field(0.998, ge=0, lt=1)
    start_3d: tuple[Share, Share] = (5 / 140, 10 / 140)  # shares of the run over which the 3D losses rise to 1
    start_distillation: tuple[Share, Share] = (10 / 140, 20 / 140)
    eval_every: int = Field(10, ge=1, le=1_000_000)  # epochs
    # batch norms keep their statistics; several processes then equal one, but for the certainty of distillation: uad,
    # which is relative to the boxes of its own process, and for images smaller than the window, which each process pads
    # to the largest of its own
    freeze_norm: bool = False

    @field_validator("start_3d", "start_distillation")
    @classmethod
    def _in_order(cls, ramp: tuple[float, float]) -> tuple[float, float]:
        if ramp[0] > ramp[1]:
            raise ValueError("the start of a rise must not come after its end")
        return ramp


class InitialConfig(Strict):
    """What training starts from."""

    weights: Place | None = None  # a student's .safetensors, or a backbone's file or package (training.pretrained)
    head_3d: bool = False  # the 3D head starts from the weights too
    freeze: tuple[str, ...] = ()  # parts of the backbone that stay as they are, such as conv_stem, blocks.0


class TrainConfig(Strict):
    """All of `skd_core train`."""

    seed: int = Field(0, ge=0, lt=2**32)
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    tf32: bool = False  # GPUs: products and convolutions of float32 with 10 bits of mantissa, faster
    compile: bool = False  # the backbone through torch.compile; the first steps then take minutes
    model: ModelConfig = ModelConfig()
    initial: InitialConfig = InitialConfig()
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    method: MethodConfig = MethodConfig()
    schedule: ScheduleConfig = ScheduleConfig()

    @model_validator(mode="before")
    @classmethod
    def _earlier_names(cls, raw: Any) -> Any:
        return rename(raw)

    @model_validator(mode="after")
    def _zoom_needs_a_focal_length(self) -> TrainConfig:
        low, high = self.augment.zoom
        if not 0.2 <= low <= high <= 5:
            raise ValueError("augment.zoom: must be two factors between .2 and 5, the smaller first")
        if (low, high) != (1.0, 1.0) and self.model.focal is None:
            raise ValueError("augment.zoom needs model.focal, the focal length of the network's input")
        return self

    @model_validator(mode="after")
    def _something_teaches_3d(self) -> TrainConfig:
        supervised = self.method.supervised
        if not self.initial.head_3d and not any(part.teaches_3d(supervised) for part in self.data.sets):
            why = "only_2d or labels_3d: false" if supervised else "only_2d"
            raise ValueError(f"data.train: every set has {why}, so nothing teaches the 3D heads")
        return self

    @model_validator(mode="after")
    def _direction_has_labels(self) -> TrainConfig:
        if self.model.direction and not self.method.supervised:
            raise ValueError("model.direction is learnt from 3D labels alone; set method.supervised: true")
        return self


def load_config(path: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """Read a training config.

    Args:
        path: YAML file.
        overrides: "section.key=value" each, value in YAML; later ones win.

    Raises:
        UserError: unreadable file, unknown key (with the nearest valid one), ill-typed value.
    """
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a config is a mapping with at least 'data'")
    raw = _rename(raw, str(path))
    for item in overrides or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"override '{item}': write section.key=value")
        *parents, last = key.strip().split(".")
        section = raw
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise UserError(f"override '{item}': '{parent}' is not a section")
        section[last] = load_yaml(value, f"override '{item}'")
        raw = _rename(raw, f"override '{item}'", replace=True)
    config: TrainConfig = parse_config(TrainConfig, raw, str(path))
    return config


def _rename(raw: dict[str, Any], name: str, replace: bool = False) -> dict[str, Any]:
    try:
        renamed: dict[str, Any] = rename(raw, replace)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None
    return renamed


def parse_config(kind: type[Any], raw: object, name: str) -> Any:
    """Validate a mapping; the first fault becomes a one-line :class:`UserError` that starts with ``name``."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"] if part not in (ONE, MANY)]
        if first["type"] == "extra_forbidden":
            nearest = difflib.get_close_matches(path[-1], _keys(kind, path[:-1]), 1, 0.5)
            hint = (
                f"; did you mean '{nearest[0]}'?" if nearest else f"; valid here: {', '.join(_keys(kind, path[:-1]))}"
            )
            raise UserError(f"{name}: unknown key '{'.'.join(path)}'{hint}") from None
        if first["type"] == "value_error" and isinstance(first["input"], dict):  # a rule of a whole section
            where = f"{'.'.join(path)}: " if path else ""
            raise UserError(f"{name}: {where}{first['ctx']['error']}") from None
        raise UserError(f"{name}: '{'.'.join(path)}': {first['msg']}, got {first['input']!r}"[:400]) from None


def _keys(kind: type[BaseModel], path: list[str]) -> list[str]:
    """Valid keys of a nested section."""
    for part in path:
        if part in kind.model_fields:
            kind = _section(kind.model_fields[part].annotation) or kind
    return list(kind.model_fields)


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation speaks of, however deep in unions and lists."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _section(inner))), None)
