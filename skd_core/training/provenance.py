"""Provenance in the metadata of weights: the supervision, the data sets and their licences."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skd_core.config import SetConfig
from skd_core.inference.weights import WEAK

OWN = "Apache-2.0"
"""Of rendered frames and of this project."""
UNSTATED = "not stated"
"""Of a set whose licence the config does not name."""
NON_COMMERCIAL = re.compile(r"\bNC\b|non-?commercial", re.IGNORECASE)
PERMISSIVE = re.compile(r"Apache-2\.0|MIT|BSD-[23]-Clause|CC0-1\.0|CC-BY-[34]\.0", re.IGNORECASE)
"""Licences that leave the weights under this project's own; of any other the reader has to judge."""


@dataclass(frozen=True)
class Origin:
    """What is known of the data behind weights.

    Attributes:
        learnt_from: :data:`skd_core.inference.weights.WEAK`, or which 3D labels had a part.
        trained_on: name of each data set -> its licence, "not stated" where the config names none. Where sets of one
            name have several licences, all of them, with "; " between.
    """

    learnt_from: str
    trained_on: dict[str, str]

    @staticmethod
    def of_weights(metadata: dict[str, Any]) -> Origin:
        """As a weights file says; files written before it was kept name no data sets."""
        return Origin(str(metadata.get("learnt_from", "unknown")), dict(metadata.get("trained_on", {})))

    @staticmethod
    def of_run(sets: Sequence[SetConfig], supervised: bool, start: Origin | None) -> Origin:
        """Of a run on these sets that starts from weights, or from none; what the start has seen stays on record.

        nuScenes has no 2D labels: its 2D boxes are drawn around the projected corners of the 3D ones.
        """
        projected = sorted({Path(part.root).resolve().name for part in sets if part.kind == "nuscenes"})
        learnt_from = WEAK
        if supervised:
            learnt_from = "3D labels (supervised)"
            if not all(part.teaches_3d(True) for part in sets):
                taught = sorted({Path(part.root).resolve().name for part in sets if part.teaches_3d(True)})
                learnt_from = f"3D labels of {', '.join(taught)} (supervised), 2D boxes"
        elif projected:
            learnt_from = f"2D boxes; those of {', '.join(projected)} are projections of its 3D labels"
        if start is not None and start.learnt_from != WEAK:
            learnt_from += f"; its start from: {start.learnt_from}"
        trained_on = dict(start.trained_on) if start is not None else {}
        for part in sets:
            name, licence = Path(part.root).resolve().name, part.licence or UNSTATED
            known = trained_on.get(name, licence).split("; ")
            trained_on[name] = "; ".join(dict.fromkeys([*known, licence]))
        return Origin(learnt_from, trained_on)

    @property
    def licence(self) -> str:
        """What may be done with the weights, in one line."""
        restricted = sorted(name for name, licence in self.trained_on.items() if NON_COMMERCIAL.search(licence))
        unknown = sorted(name for name, licence in self.trained_on.items() if not PERMISSIVE.fullmatch(licence))
        if restricted:
            return f"non-commercial use only: trained on {', '.join(restricted)}"
        if unknown:
            return f"{OWN} where the licences of the training data allow it: {', '.join(unknown)}"
        return OWN
