# SPDX-License-Identifier: LGPL-2.1-or-later
"""Prometheus' own tool, which judges metrics and rules: the machine's, or that of Debian's package ``promtool``, which until Debian 12 is
part of ``prometheus`` (19 MB)."""

from __future__ import annotations

import shutil
import subprocess

from tests import needs
from tests.unpacked import unpacked

_PROGRAM = "./usr/bin/promtool"


def program() -> tuple[str, needs.Reason]:
    """Where it is, or why there is none."""
    installed = shutil.which("promtool", path=needs.PATH)
    if installed:
        return installed, None
    for package in ("promtool", "prometheus"):
        root, lacking = unpacked(package, (_PROGRAM,))
        if not lacking:
            break
    return f"{root}/{_PROGRAM}", lacking and f"there is no promtool: {lacking}"


def run(*words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run it; a test without it is skipped, and says so."""
    promtool, lacking = program()
    needs.require(lacking)
    return subprocess.run([promtool, *words], input=given, capture_output=True, text=True, check=False)
