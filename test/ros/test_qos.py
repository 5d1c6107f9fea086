"""Which profiles do not fit, and that one profile is never two topics'."""

from __future__ import annotations

import pytest
from rclpy.duration import Duration, Infinite
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.utilities import get_rmw_implementation_identifier

from skd_wm3d_ros import qos

BEST_EFFORT, RELIABLE = ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE
VOLATILE, LATCHED = DurabilityPolicy.VOLATILE, DurabilityPolicy.TRANSIENT_LOCAL


@pytest.mark.parametrize(
    ("offered", "asked", "policies"),
    [
        ({}, {}, ""),
        ({"reliability": RELIABLE}, {"reliability": BEST_EFFORT}, ""),
        ({"reliability": BEST_EFFORT}, {"reliability": BEST_EFFORT}, ""),
        ({"reliability": BEST_EFFORT}, {"reliability": RELIABLE}, "RELIABILITY"),
        ({"durability": LATCHED}, {"durability": VOLATILE}, ""),
        ({"durability": VOLATILE}, {"durability": LATCHED}, "DURABILITY"),
        ({"deadline": Duration(seconds=1)}, {"deadline": Duration(seconds=2)}, ""),
        ({"deadline": Duration(seconds=2)}, {"deadline": Duration(seconds=1)}, "DEADLINE"),
        ({}, {"deadline": Duration(seconds=1)}, "DEADLINE"),
        ({}, {"deadline": Infinite, "liveliness_lease_duration": Infinite}, ""),  # as DDS tells of the other side
        (
            {"reliability": BEST_EFFORT, "durability": VOLATILE},
            {"reliability": RELIABLE, "durability": LATCHED},
            "RELIABILITY, DURABILITY",
        ),
    ],
)
def test_what_does_not_fit(offered, asked, policies):
    assert qos._conflict(QoSProfile(depth=1, **offered), QoSProfile(depth=1, **asked)) == policies


def test_the_cure_names_only_parameters_that_there_are():
    assert "qos_overrides./i.subscription.reliability" in qos._qos_advice("/i", "subscription", "RELIABILITY, DEADLINE")
    assert "deadline" not in qos._qos_advice("/i", "subscription", "RELIABILITY, DEADLINE")
    assert qos._qos_advice("/i", "subscription", "DEADLINE") == ""


@pytest.mark.parametrize("make", [qos.sensor_qos, qos.output_qos, qos.heavy_qos, qos.latched_qos])
def test_a_profile_that_rclpy_changes_is_nobody_else_s(make):
    before = make().reliability
    make().reliability = BEST_EFFORT if before == RELIABLE else RELIABLE
    assert make().reliability == before


@pytest.mark.parametrize(
    ("middleware", "said"),
    [
        ("", "FASTRTPS_DEFAULT_PROFILES_FILE"),  # this process's: from PyPI there is only Fast DDS
        ("rmw_fastrtps_dynamic_cpp", "FASTRTPS_DEFAULT_PROFILES_FILE"),
        ("rmw_cyclonedds_cpp", "net.core.rmem_max"),
        ("rmw_zenoh_cpp", "rmw_zenoh_cpp"),
    ],
)
def test_what_to_do_about_lost_images_is_of_the_middleware(middleware, said):
    if not middleware and not get_rmw_implementation_identifier().startswith("rmw_fastrtps"):
        pytest.skip("another middleware")
    cure = qos.loss_advice(middleware)
    assert said in cure
    assert ("FASTRTPS" in cure) == ("fastrtps" in (middleware or "rmw_fastrtps_cpp"))
