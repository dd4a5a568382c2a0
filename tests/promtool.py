# SPDX-License-Identifier: LGPL-2.1-or-later
"""Prometheus' own tool, which judges metrics and rules: the machine's, or unpacked from Debian's package ``prometheus`` (19 MB, once).

The package is not installed for it: that would put a service on the machine which starts at its next boot.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Optional

from tests import needs

PACKAGE = "prometheus"


@cache
def promtool() -> tuple[Optional[str], needs.Reason]:
    """The program, or why there is none."""
    found = shutil.which("promtool", path=needs.PATH)
    if found:
        return found, None
    program = needs.kernel_cache() / "promtool" / "promtool"
    try:
        program.parent.mkdir(parents=True, exist_ok=True)
        with (program.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not program.exists():
                _fetch(program)
    except (OSError, subprocess.CalledProcessError) as error:
        return None, f"there is no promtool (package {PACKAGE}), and it cannot be fetched: {error}"
    return str(program), None


def _fetch(program: Path) -> None:
    with tempfile.TemporaryDirectory(dir=program.parent) as folder:
        argv = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", PACKAGE]
        subprocess.run(argv, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=True)
        (package,) = Path(folder).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", package, f"{folder}/root"], check=True)
        Path(folder, "root/usr/bin/promtool").rename(program)


def run(*words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run it; a test without it is skipped, and says so."""
    program, lacking = promtool()
    needs.require(lacking)
    assert program is not None
    return subprocess.run([program, *words], input=given, capture_output=True, text=True, check=False)
