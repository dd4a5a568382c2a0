# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs of Debian packages that are unpacked for the tests and not installed, each fetched once into the cache of the lab.

For what would otherwise put a service on the machine that starts at its next boot.
"""

from __future__ import annotations

import fcntl
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Optional

from tests import needs


@cache
def unpacked(package: str, parts: tuple[str, ...] = (".",)) -> tuple[Optional[Path], needs.Reason]:
    """A root directory with ``parts`` of ``package`` (members as dpkg-deb names them), or why there is none."""
    root = needs.kernel_cache() / "unpacked" / package
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with root.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not root.exists():
                _fetch(package, parts, root)
    except (OSError, subprocess.CalledProcessError) as error:
        return None, f"the package {package} is not there and cannot be fetched: {error}"
    return root, None


def _fetch(package: str, parts: Sequence[str], root: Path) -> None:
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        argv = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package]
        subprocess.run(argv, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=True)
        (file,) = Path(folder).glob("*.deb")
        made = Path(folder, "root")
        made.mkdir()
        tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", file], capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", made, *parts], input=tar, capture_output=True, check=True)
        made.rename(root)
