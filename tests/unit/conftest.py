"""Fixtures of the unit tests."""

from __future__ import annotations

from tests.packages.conftest import staged

__all__ = ["staged"]
