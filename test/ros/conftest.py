"""What all ROS tests share: skipped without rclpy, on this machine only, in a DDS domain of their own."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent

# Before anything imports rclpy, and inherited by the processes the tests start. The domain keeps other checkouts, other
# test workers and running robots out; 1-101 are the numbers whose ports are free on Linux.
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 101)
prefixes = [p for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
if sys.prefix not in prefixes:  # for get_package_share_directory("skd_wm3d_ros")
    os.environ["AMENT_PREFIX_PATH"] = os.pathsep.join([sys.prefix, *prefixes])

if importlib.util.find_spec("rclpy") is None:
    collect_ignore_glob = ["test_*.py"]  # test_house.py says so in the summary


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.ros)
            item.add_marker(pytest.mark.xdist_group("ros"))  # one worker: no two at a time on a small machine


@pytest.fixture(scope="module")
def ros() -> Iterator[None]:
    """rclpy in this process; for modules with `pytestmark = pytest.mark.usefixtures("ros")`."""
    import rclpy  # only where it is installed

    rclpy.init()
    yield
    rclpy.try_shutdown()
