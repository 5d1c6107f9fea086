"""Settings of all tests."""

from hypothesis import settings

# A busy machine must not fail a test, and a red run must be red again: no deadline, the same examples every time.
settings.register_profile("skd", deadline=None, derandomize=True)
settings.load_profile("skd")
