# SPDX-License-Identifier: LGPL-2.1-or-later
"""The QEMU guest agent for guests of the lab: the distribution's own, with the libraries that it needs, as files of an initramfs.

It comes from this machine if it is installed there, else from ``apt-get download``, unpacked into the lab's cache and not installed. The
libraries are this machine's: those that QEMU needs as well.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

from pcinuma.lab import LabError

PACKAGE = "qemu-guest-agent"
CHANNEL = """    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
"""
MODULES = ("virtio_pci", "virtio_console")

START = """
mkdir -p /run /var/run
for port in /sys/class/virtio-ports/*; do
    read -r name <$port/name && [ "$name" = org.qemu.guest_agent.0 ] || continue
    /usr/sbin/qemu-ga -m virtio-serial -p /dev/${port##*/} -t /run </dev/null >/dev/null 2>&1 &
done
"""
"""What init does once the modules are there (shell)."""

_LIBRARY = re.compile(r"(/\S+) \(0x[0-9a-f]+\)")


def files(cache: Path) -> dict[str, bytes]:
    """Path in the guest -> content."""
    agent = program(cache)
    done = subprocess.run(["ldd", str(agent)], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode or "not found" in done.stdout:
        raise LabError("this machine lacks libraries for the QEMU guest agent", subject=str(agent), hint=f"install {PACKAGE}")
    found = {"usr/sbin/qemu-ga": agent.read_bytes()}
    found.update({path.lstrip("/"): Path(path).read_bytes() for path in _LIBRARY.findall(done.stdout)})
    return found


def program(cache: Path) -> Path:
    """The agent's program on this machine. Raises LabError where it cannot be had."""
    kept = cache / PACKAGE / "qemu-ga"
    there = next((path for path in (Path("/usr/sbin/qemu-ga"), Path("/usr/bin/qemu-ga"), kept) if path.is_file()), None)
    if there is not None:
        return there
    with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as scratch:
        for argv in (["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", PACKAGE], ["sh", "-c", "dpkg-deb -x *.deb tree"]):
            done = subprocess.run(argv, cwd=scratch, capture_output=True, text=True, check=False)
            if done.returncode:
                raise LabError(f"{argv[0]} failed: {' '.join(done.stderr.split())[-300:]}", hint=f"install {PACKAGE}")
        kept.parent.mkdir(exist_ok=True)
        (Path(scratch) / "tree/usr/sbin/qemu-ga").rename(kept)
    return kept
