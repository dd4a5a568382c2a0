# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures of the unit tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.packages.conftest import staged

__all__ = ["staged"]


@pytest.fixture(autouse=True)
def log_as_at_the_start() -> Iterator[None]:
    """A command that ran in this process leaves the log with its own stderr, which is closed by the time of the next test."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def everybodys_folder() -> Iterator[Path]:
    """A folder that every user may enter, whoever began the tests and wherever he keeps their files."""
    with tempfile.TemporaryDirectory(prefix="pcinuma-test-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
