"""``python -m skd_wm3d_ros.tools NAME ...``: one of the programs here."""

import sys

from skd_wm3d_ros.tools.programs import run_tool

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m skd_wm3d_ros.tools NAME ...")
    sys.exit(run_tool(sys.argv[1], sys.argv[2:]))
