"""Puts this folder on the path, for `strategies`, and sets hypothesis up for all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No deadline: machines that run tests are shared. The same examples every time: a failure can be repeated.
settings.register_profile(
    "negawatt", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("negawatt")
