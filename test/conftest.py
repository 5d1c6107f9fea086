"""Settings of all tests."""

import logging
import resource
import signal
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

# A busy machine must not fail a test, and a red run must be red again: no deadline, the same examples every time.
settings.register_profile("skd", deadline=None, derandomize=True)
settings.load_profile("skd")

# Whoever starts the tests in the background (nohup, a shell's &) lets them ignore these, and so all commands that they
# start: a command respects that, but the tests are about what it does with the signals.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """pytest's, which hears our loggers under a sourced ROS too: its pytest plugins load `launch`, whose class of
    loggers does not propagate, so that nothing reaches the root logger where pytest listens."""
    logging.setLoggerClass(logging.Logger)  # of those that are made from here on
    for name, logger in logging.root.manager.loggerDict.items():
        if name.partition(".")[0] in ("skd_core", "skd_wm3d_ros") and isinstance(logger, logging.Logger):
            logger.propagate = True
    return caplog


@pytest.fixture
def full_disk() -> Iterator[Callable[[int], None]]:
    """Call it with a number of bytes, and no file grows beyond it until the test ends."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
