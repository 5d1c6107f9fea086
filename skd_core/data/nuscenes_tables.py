"""nuScenes' tables, read through the devkit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from skd_core.data.nuscenes_schema import ROWS, read_splits, read_table
from skd_core.errors import UserError

TABLES = tuple(ROWS)


def find_version(root: Path) -> str:
    """The one version under root.

    Raises:
        UserError: there is none, or more than one.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the one that holds nuScenes' 'samples' and 'v1.0-*'")
    there = sorted(path.name for path in root.glob("v1.0-*") if path.is_dir())
    if not there:
        raise UserError(f"{root}: no folder 'v1.0-*' in it; unpack nuScenes' metadata there")
    if len(there) > 1:
        raise UserError(f"{root}: holds {', '.join(there)}; say which version")
    return there[0]


def load_tables(root: Path, version: str) -> Any:
    """The devkit's ``NuScenes`` object. All tables are read: v1.0-trainval takes about a minute and 10 GB of memory.

    Raises:
        UserError: the devkit is not installed, or the folder, a table or a map is missing or damaged.
    """
    try:
        from nuscenes.nuscenes import NuScenes
    except ImportError as error:
        raise UserError(
            f"nuScenes data are read through its devkit, of which {error.name or 'a part'} is missing here: "
            "pip install 'nuscenes-devkit>=1.2' (it needs numpy below 2)"
        ) from None
    folder = root / version
    if not folder.is_dir():
        there = ", ".join(sorted(path.name for path in root.glob("v1.0-*"))) or "none"
        raise UserError(f"{folder}: no such folder of tables; there are: {there}")
    missing = [name for name in TABLES if not (folder / f"{name}.json").is_file()]
    if missing:
        raise UserError(f"{folder / missing[0]}.json: no such table; unpack nuScenes' metadata again")

    class CheckedTables(NuScenes):  # type: ignore[misc]  # the devkit has no types
        """Reads the tables through their schema; of lidarseg's and others it may hold beside them the devkit knows."""

        def __load_table__(self, table_name: str) -> Any:
            if table_name in ROWS:
                return read_table(folder / f"{table_name}.json", table_name)
            return super().__load_table__(table_name)

    try:
        with tables_fit(folder):
            return CheckedTables(version, str(root), verbose=False)
    except (AssertionError, IndexError, Image.DecompressionBombError, UnidentifiedImageError) as error:  # of a map
        raise UserError(f"{root}: {error}; unpack nuScenes' metadata again") from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder}: a table other than the 13 standard ones is damaged: {error}") from None


@contextmanager
def tables_fit(folder: Path) -> Iterator[None]:
    """A reference to a record or field that is not there becomes a :class:`UserError`."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"{folder}: the tables do not fit together: no record is named {error}") from None


def samples_of(tables: Any, split: str | None) -> list[dict[str, Any]]:
    """The key frames of a split, by scene and time; of all scenes where split is None.

    Raises:
        UserError: no such split, or none of its scenes is in these tables; or a damaged ``splits.json``.
    """
    from nuscenes.utils.splits import create_splits_scenes

    scenes = {scene["token"]: scene["name"] for scene in tables.scene}
    chosen = set(scenes.values())
    if split is not None:
        splits = create_splits_scenes()
        own = Path(tables.table_root) / "splits.json"
        if split not in splits and own.exists():
            splits = splits | read_splits(own)
        if split not in splits:
            raise UserError(f"no split '{split}'; there are {', '.join(splits)}, and those of a splits.json")
        chosen &= set(splits[split])
        if not chosen:
            raise UserError(f"{tables.table_root}: has no scene of split '{split}'; is it of another version?")
    samples = [sample for sample in tables.sample if scenes[sample["scene_token"]] in chosen]
    return sorted(samples, key=lambda sample: (scenes[sample["scene_token"]], sample["timestamp"]))
