"""2D boxes of another detector, a tracker or a person, in one file per frame."""

from __future__ import annotations

from pathlib import Path

from skd_core.boxes import Boxes2D
from skd_core.data.kitti import read_given_boxes2d
from skd_core.errors import UserError
from skd_core.files import natural_order


class BoxFolder:
    """A folder of KITTI label or result files, ``NAME.txt``.

    Attributes:
        folder: the folder.
        names: of the files without suffix, in their natural order (2 before 10).

    Raises:
        UserError: no such folder, or no ``.txt`` file in it.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder of 2D boxes")
        self.folder = folder
        files = sorted(folder.glob("*.txt"), key=lambda path: (natural_order(path), path.name))
        self.names = [path.stem for path in files]
        if not self.names:
            raise UserError(f"{folder}: no 2D boxes (NAME.txt in KITTI's format)")

    def read(self, name: str) -> Boxes2D:
        """The boxes of a frame, see :func:`skd_core.data.kitti.read_given_boxes2d`.

        Raises:
            UserError: no such file, or a malformed one.
        """
        path = self.path(name)
        if not path.is_file():
            raise UserError(f"{path}: no such file; a frame without boxes needs an empty one")
        return read_given_boxes2d(path)

    def path(self, name: str) -> Path:
        """The file of a frame."""
        return self.folder / f"{name}.txt"
