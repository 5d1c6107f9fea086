"""The pseudo-targets of a whole data set: made once, kept in a file beside the depth maps."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from skd_core.data.occlusion import covered_edges
from skd_core.data.sample import Sample
from skd_core.errors import UserError
from skd_core.files import write_atomic
from skd_core.priors import prior_of
from skd_core.supervision.depth import align_relative, check_kind
from skd_core.supervision.pseudo import VERSION, PseudoTargets, pseudo_targets


class _OnDisk(Protocol):
    def files(self, index: int) -> dict[str, Path]: ...


@dataclass(frozen=True)
class TargetMaker:
    """Pseudo-targets of the samples of a data set.

    Attributes:
        depth_kind: "relative" maps are brought to metres first (method: Pseudo-targets, Scale).
        camera_height: metres above the road, for relative maps.
        center_offset: see :func:`skd_core.supervision.pseudo.pseudo_targets`.
        boxes: "tight" 2D boxes end where a nearer object begins; those edges are then marked as hidden.
    """

    depth_kind: Literal["metric", "relative"] = "metric"
    camera_height: float = 1.65
    center_offset: bool = True
    boxes: Literal["amodal", "tight"] = "amodal"

    def read(self, sample: Sample) -> Sample:
        """The sample as targets and losses need it.

        Its depth is in metres, or left out where a relative map could not be aligned; hidden edges of tight boxes are
        marked.
        """
        if self.boxes == "tight":
            sample = replace(sample, hidden=sample.hidden | covered_edges(sample.full_xyxy))
        return align_relative(sample, self.camera_height) if self.depth_kind == "relative" else sample

    def all(self, source: Dataset[Sample], workers: int = 0) -> list[PseudoTargets]:
        """The targets of every sample, in order; of the pictures only the size is read.

        A source that can name its files, as :meth:`skd_core.data.kitti.KittiDataset.files` does, has them kept in
        ``pseudo-*.npz`` beside the first sample's depth map, as long as no setting, no class's prior and no file (name,
        size, time) changes. Where that folder cannot be written they are made anew each time.

        Args:
            workers: processes that make them; 0: this one.

        Raises:
            UserError: a frame cannot be read, or the depth maps are of the other kind.
        """
        count = len(source)  # type: ignore[arg-type]
        cache, key = None, ""
        if hasattr(source, "files"):
            cache, key = self._cache(source, count)
            found = _load(cache, key, count) if cache is not None else None
            if found is not None:
                return found
        loader: DataLoader[Any] = DataLoader(
            _Made(self, source, count),
            batch_size=None,
            num_workers=min(workers, count),
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # the global stream stays as it is
        )
        made = []
        for arrays in tqdm(loader, desc="pseudo-targets", unit="frame", dynamic_ncols=True, mininterval=1):
            if isinstance(arrays, UserError):
                raise arrays
            made.append(PseudoTargets(**{name: torch.from_numpy(array) for name, array in arrays.items()}))
        if cache is not None:
            _save(cache, key, made)
        return made

    def _cache(self, source: _OnDisk, count: int) -> tuple[Path | None, str]:
        """Where the targets are kept, and what they depend on."""
        files = [source.files(index) for index in range(count)]
        if "depth" not in files[0]:
            return None, ""
        folder = files[0]["depth"].parent
        check_kind(folder, self.depth_kind)
        classes = getattr(source, "classes", ())
        settings = {**vars(self), "classes": classes, "names": [f["image"].stem for f in files]}
        which = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
        state = [(path.name, (s := path.stat()).st_size, s.st_mtime_ns) for f in files for path in f.values()]
        priors = [vars(prior_of(name)) for name in classes]
        key = hashlib.sha256(json.dumps([VERSION, priors, state]).encode()).hexdigest()
        return folder / f"pseudo-{which}.npz", key


class _Made(Dataset[Any]):
    """The targets of each sample as arrays: tensors would hold a file each on their way from a worker."""

    def __init__(self, maker: TargetMaker, source: Dataset[Sample], count: int) -> None:
        self.maker, self.count = maker, count
        self.read = getattr(source, "without_picture", source.__getitem__)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any] | UserError:
        try:
            targets = pseudo_targets(self.maker.read(self.read(index)), self.maker.center_offset)
        except UserError as error:  # as it is: a worker would wrap its traceback around it
            return error
        return {name: value.numpy() for name, value in vars(targets).items()}


def _as_it_is(item: Any) -> Any:
    return item


def _save(path: Path, key: str, targets: Sequence[PseudoTargets]) -> None:
    arrays: dict[str, Any] = {n: torch.cat([getattr(t, n) for t in targets]).numpy() for n in vars(targets[0])}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, key=np.array(key), counts=np.array([len(t.z) for t in targets]), **arrays)
    with contextlib.suppress(UserError):  # a read-only data set: only time is lost
        write_atomic(path, buffer.getvalue())


def _load(path: Path, key: str, count: int) -> list[PseudoTargets] | None:
    """None where there is no such file, or it is damaged or out of date."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["key"]) != key or len(file["counts"]) != count:
                return None
            counts = file["counts"].tolist()
            names = ("z", "alpha", "alpha_weight", "points")
            parts = {name: torch.split(torch.from_numpy(file[name]), counts) for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return [PseudoTargets(**{n: part[i].clone() for n, part in parts.items()}) for i in range(count)]


def share_line(targets: Sequence[PseudoTargets]) -> str:
    """What share of the boxes got a target, in one line."""
    z = torch.cat([t.z for t in targets])
    weight = torch.cat([t.alpha_weight for t in targets])
    if len(z) == 0:
        return "pseudo-targets: no boxes"
    with_z, with_yaw = int(z.isfinite().sum()), int((weight > 0).sum())
    confidence = float(weight.sum()) / max(with_yaw, 1)
    return (
        f"pseudo-targets: {with_z} of {len(z)} boxes have a depth ({with_z / len(z):.0%}; the rest f H / h2d + e), "
        f"{with_yaw} a yaw ({with_yaw / len(z):.0%}, mean confidence {confidence:.2f})"
    )
