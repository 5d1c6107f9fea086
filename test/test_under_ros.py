"""The tests under a sourced ROS 2, whose pytest plugins load `launch` and with it another class of loggers."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

SILENT = """
import logging

class Silent(logging.Logger):  # as launch's are
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.propagate = False

logging.setLoggerClass(Silent)
early = logging.getLogger("skd_core.early")
"""

TEST = """
import logging

def test_caplog_hears_us(caplog):
    logging.getLogger("skd_core.early").warning("first")
    logging.getLogger("skd_core.late").warning("second")
    assert "first" in caplog.text and "second" in caplog.text
"""


def test_caplog_hears_our_loggers(pytester: pytest.Pytester) -> None:
    fixture = (Path(__file__).parent / "conftest.py").read_text(encoding="utf-8")
    pytester.makeconftest(fixture)
    pytester.makepyfile(silent=SILENT, test_it=TEST)
    pytester.syspathinsert()
    found = pytester.runpytest_subprocess("-p", "silent", "-p", "no:cacheprovider")
    found.assert_outcomes(passed=1)
