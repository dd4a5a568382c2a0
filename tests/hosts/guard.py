# SPDX-License-Identifier: LGPL-2.1-or-later
"""A fixture under which reading the real host is an error: tests place on machines that they built."""

from __future__ import annotations

import os
import sys
from typing import Iterator

import pytest

_watching = False


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _watching and event in ("open", "os.listdir", "os.scandir") and arguments:
        path = arguments[0]
        if isinstance(path, (str, bytes)) and os.fsdecode(path).startswith("/sys/"):
            raise AssertionError(f"reads the real host: {os.fsdecode(path)}")


sys.addaudithook(_audit)


@pytest.fixture(autouse=True)
def no_real_host() -> Iterator[None]:
    """Fail where a file below the real /sys is opened or listed."""
    global _watching
    _watching = True
    yield
    _watching = False
