# SPDX-License-Identifier: LGPL-2.1-or-later
"""Prometheus' own tool, which judges metrics and rules: the machine's, or that of Debian's package ``prometheus`` (19 MB)."""

from __future__ import annotations

import shutil
import subprocess

from tests import needs
from tests.unpacked import unpacked

_PROGRAM = "./usr/bin/promtool"


def run(*words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run it; a test without it is skipped, and says so."""
    program = shutil.which("promtool", path=needs.PATH)
    if program is None:
        root, lacking = unpacked("prometheus", (_PROGRAM,))
        needs.require(lacking and f"there is no promtool: {lacking}")
        program = f"{root}/{_PROGRAM}"
    return subprocess.run([program, *words], input=given, capture_output=True, text=True, check=False)
