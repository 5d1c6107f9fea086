"""The programs of this folder by name; a missing import is reported with its fix."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from skd_wm3d_ros.environment import import_advice

PROGRAMS = ("bag_evaluation", "bag_player", "demo", "rviz_frame", "soak")


def run_tool(name: str, args: Sequence[str] | None = None) -> int:
    """Run a program.

    Args:
        name: of its module.
        args: its command line without the program's name; the process's own if None.

    Returns:
        its exit status; 2, after one line, where it does not exist or its packages are not installed.
    """
    try:
        if name == "bag_evaluation":
            from skd_wm3d_ros.tools.bag_evaluation import main
        elif name == "bag_player":
            from skd_wm3d_ros.tools.bag_player import main
        elif name == "demo":
            from skd_wm3d_ros.tools.demo import main
        elif name == "rviz_frame":
            from skd_wm3d_ros.tools.rviz_frame import main
        elif name == "soak":
            from skd_wm3d_ros.tools.soak import main
        else:
            print(f"no program '{name}' in skd_wm3d_ros.tools; there are {', '.join(PROGRAMS)}", file=sys.stderr)
            return 2
    except ImportError as error:
        print(f"{name}: error: {import_advice(error)}", file=sys.stderr)
        return 2
    return int(main(args) or 0)
