# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's modular daemons in a chroot: virtqemud and virtproxyd, built from the source package of the chroot's own libvirt.

No Debian release packages them. What is built is kept beside the chroots, one folder a version of libvirt; the build takes some minutes
and needs root and the network. With ``PCINUMA_TEST_MODULAR`` naming that folder, :class:`~tests.libvirt.harness.PrivateLibvirt` runs the
two in libvirtd's place: virtproxyd has the socket that clients know, and passes on to virtqemud's.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.libvirt.chroot import ChrootError, folder

SCRIPT = Path(__file__).with_name("modular_build.sh")
NO_SOURCE = 3


class NoSource(ChrootError):
    """The mirror lists the source of the chroot's libvirt and does not have it."""


def modular(root: Path) -> Path:
    """The folder with the programs for the chroot ``root``; built if it is not there."""
    target = folder() / f"modular-{_version(root)}"
    if target.is_dir():
        return target
    unfinished = target.with_name(f"{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="modular-build-", dir=folder()) as scratch:
        done = subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", str(SCRIPT), str(root), scratch, str(unfinished)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    if done.returncode == NO_SOURCE:
        raise NoSource(f"the mirror does not keep the source of libvirt {_version(root)}")
    if done.returncode != 0:
        raise ChrootError(f"the modular daemons could not be built: exit {done.returncode}: {done.stdout[-3000:]}")
    unfinished.rename(target)
    return target


def _version(root: Path) -> str:
    """The version of the libvirt package in a chroot."""
    status = (root / "var/lib/dpkg/status").read_text()
    found = re.search(r"^Package: libvirt-daemon\n(?:.+\n)*?Version: (\S+)$", status, re.MULTILINE)
    if found is None:
        raise ChrootError(f"{root} has no libvirt-daemon")
    return found.group(1)
