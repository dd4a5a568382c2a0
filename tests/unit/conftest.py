# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from tests.packages.conftest import staged

__all__ = ["staged"]


@pytest.fixture(autouse=True)
def log_as_at_the_start() -> Iterator[None]:
    """A command that ran in this process leaves the log with its own stderr, which is closed by the time of the next test."""
    yield
    structlog.reset_defaults()
