# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests of other architectures: Debian's kernel, busybox and firmware for them, fetched by a private apt, and QEMU's TCG.

Nothing is installed and the machine's own apt is not touched: state, cache and sources are directories below the cache. The firmware for
aarch64 is that of Debian 13, since with Debian 12's (edk2 2022.11) Linux takes the flash for memory of a node that does not exist and
shows one node only, whatever the machine has.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Sequence

from pcinuma.lab import LabError, initramfs, machine
from pcinuma.lab.machine import Run

MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_INIT = initramfs.TREE_INIT.replace("/dev/ttyS0", "/dev/console")


@dataclass(frozen=True)
class Architecture:
    """What a guest of an architecture is made of. ``package``: Debian's kernel; ``console``: as Linux calls it; ``uefi``: needs a firmware
    that the kernel is booted by."""

    debian: str
    package: str
    binary: str
    console: str
    uefi: bool


ARCHITECTURES = {
    "aarch64": Architecture("arm64", "linux-image-arm64", "qemu-system-aarch64", "ttyAMA0", True),
    "ppc64": Architecture("ppc64el", "linux-image-powerpc64le", "qemu-system-ppc64", "hvc0", False),
}


@dataclass(frozen=True)
class Foreign:
    """A fetched kernel with its userland."""

    architecture: Architecture
    kernel: Path
    busybox: Path
    firmware: Optional[Path]


def fetch(name: str, cache: Path) -> Foreign:
    """What a guest of architecture ``name`` needs, put into ``cache`` first if need be. Raises :class:`LabError`."""
    architecture = ARCHITECTURES[name]
    if shutil.which(architecture.binary) is None:
        raise LabError(f"{architecture.binary} is not installed", hint="install qemu-system-arm and qemu-system-ppc")
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "foreign.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = cache / "foreign" / architecture.debian
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as scratch:
                _build(architecture, Path(scratch), folder)
        firmware = folder / "firmware.fd" if architecture.uefi else None
        return Foreign(architecture, folder / "image", folder / "busybox", firmware)


def boot(foreign: Foreign, hardware: Sequence[str], scratch: Path, *, device_tree: bool = False, timeout: float = machine.PATIENCE) -> Run:
    """Boot ``hardware`` with the kernel that prints its tree. ``device_tree``: without firmware and ACPI (aarch64)."""
    architecture = foreign.architecture
    initrd = scratch / "tree.cpio"
    initrd.write_bytes(initramfs.tree_image(_INIT, box=foreign.busybox))
    argv = [architecture.binary, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", *hardware]
    if device_tree:
        argv += ["-machine", "acpi=off"]
    elif foreign.firmware is not None:
        argv += ["-bios", str(foreign.firmware)]
    argv += ["-kernel", str(foreign.kernel), "-initrd", str(initrd), "-append", f"console={architecture.console} quiet panic=-1"]
    return machine.run(argv, timeout=timeout, scratch=scratch, stop_at=initramfs.END)


def _build(architecture: Architecture, scratch: Path, folder: Path) -> None:
    apt = _Apt(architecture.debian, "bookworm", scratch / "apt")
    tree = scratch / "tree"
    apt.unpack(apt.dependency(architecture.package, "linux-image-"), tree)
    apt.unpack("busybox-static", tree)
    new = scratch / "new"
    new.mkdir()
    shutil.copy(next(file for file in (tree / "boot").iterdir() if file.name.startswith("vmlinu")), new / "image")
    shutil.copy(next(file for file in (tree / "bin/busybox", tree / "usr/bin/busybox") if file.is_file()), new / "busybox")
    if architecture.uefi:
        _Apt(architecture.debian, "trixie", scratch / "apt-of-firmware").unpack("qemu-efi-aarch64", tree)
        shutil.copy(tree / "usr/share/qemu-efi-aarch64/QEMU_EFI.fd", new / "firmware.fd")
    folder.parent.mkdir(exist_ok=True)
    new.rename(folder)


class _Apt:
    """An apt with one release of one architecture, in a directory of its own."""

    def __init__(self, architecture: str, release: str, folder: Path) -> None:
        self.folder = folder
        for name in ("state/lists/partial", "cache/archives/partial", "out"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        (folder / "sources.list").write_text(f"deb [signed-by={KEYRING}] {MIRROR} {release} main\n")
        settings = {
            "APT::Architecture": architecture,
            "APT::Architectures::": architecture,
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Dir::State": folder / "state",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder / "cache",
            "Dir::Etc::sourcelist": folder / "sources.list",
            "Dir::Etc::sourceparts": "/nonexistent",
        }
        self.options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        self._run("apt-get", "-q", "update")

    def dependency(self, package: str, prefix: str) -> str:
        """What ``package`` depends on whose name begins with ``prefix``."""
        lines = self._run("apt-cache", "depends", "--no-suggests", package).splitlines()
        found = [line.split()[-1] for line in lines if f"Depends: {prefix}" in line]
        if not found:
            raise LabError("apt knows no kernel package", subject=package)
        return found[0]

    def unpack(self, package: str, tree: Path) -> None:
        tree.mkdir(exist_ok=True)
        self._run("apt-get", "-q", "download", package)
        file = next((self.folder / "out").glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(file), str(tree)], check=True)

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run([program, *self.options, *arguments], cwd=self.folder / "out", capture_output=True, text=True)
        if done.returncode:
            raise LabError(f"{program} failed: {' '.join(done.stderr.split())[-300:]}", subject=" ".join(arguments))
        return done.stdout
