#!/usr/bin/env python3
"""Write requirements-lock.txt from the packages of the environment this runs in (`make lock`).

Left out: ROS (tools/ros_from_pypi has its own list), torch's CUDA packages (torch pins them) and this project.
"""

from __future__ import annotations

import os
import re
from importlib.metadata import distributions
from pathlib import Path

LOCK = Path(__file__).with_name("requirements-lock.txt")
LEFT_OUT = re.compile(
    r"(ros|rosidl|rmw|rcl)[-_].*|rclpy|rcutils|.*_(msgs|interfaces)|std_srvs|lark-parser|cv_bridge|message_filters"
    r"|nvidia-.*|cuda-.*|triton|pip|skd[-_]wm3d[-_]ros"
)


def main() -> None:
    header = [line for line in LOCK.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    pins = {f"{d.name}=={d.version}" for d in distributions() if not LEFT_OUT.fullmatch(d.name)}
    partial = LOCK.with_suffix(".tmp")
    partial.write_text("\n".join([*header, *sorted(pins, key=str.lower)]) + "\n", encoding="utf-8")
    os.replace(partial, LOCK)
    print(f"{LOCK}: {len(pins)} packages")


if __name__ == "__main__":
    main()
