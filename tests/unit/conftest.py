# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures of the unit tests."""

from __future__ import annotations

from tests.packages.conftest import staged

__all__ = ["staged"]
