# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures of the packages' tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.waiting import CHECKOUT


@pytest.fixture(scope="session")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make install` stages, to be looked at and not to be changed."""
    root = tmp_path_factory.mktemp("staged")
    subprocess.run(["make", "-s", "-C", CHECKOUT, "install", f"DESTDIR={root}"], check=True, capture_output=True)
    return root
