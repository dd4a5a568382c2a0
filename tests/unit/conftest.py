"""Fixtures of the unit tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.waiting import CHECKOUT


@pytest.fixture(scope="session")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation staged by install.sh, to be looked at and not to be changed."""
    root = tmp_path_factory.mktemp("staged")
    subprocess.run([CHECKOUT / "install.sh", "--root", root], check=True, capture_output=True)
    return root
