# SPDX-License-Identifier: LGPL-2.1-or-later
"""Other versions of libvirt and QEMU: Debian releases as chroots, made by debootstrap from the mirror that apt uses here.

A chroot is made once and kept (about 900 MB each) in :func:`folder`. It holds libvirt, QEMU and what pcinuma needs to run inside with
the release's own Python; :class:`~tests.libvirt.harness.PrivateLibvirt` runs it (``root=``). Nothing is installed on this machine:
where debootstrap is missing, its package is unpacked into the same folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGES = (
    *("libvirt-daemon-system", "libvirt-clients", "iproute2", "kmod", "make"),
    *("qemu-system-x86", "qemu-system-arm", "qemu-system-ppc", "ovmf", "qemu-efi-aarch64"),
    *("python3", "python3-libvirt", "python3-lxml", "python3-psutil", "python3-structlog"),
)
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Release:
    """A Debian release. ``why``: what makes it worth a run. ``modular``: its modular daemons are built and tried too."""

    suite: str
    why: str
    modular: bool = False


RELEASES = (
    Release("bullseye", "the oldest that Debian has: libvirt 7.0, QEMU 5.2, Python 3.9, structlog 20.1"),
    Release("trixie", "the present stable: libvirt 11.3, QEMU 10.0", modular=True),
    Release("sid", "the newest that Debian has", modular=True),
)


class ChrootError(Exception):
    """A chroot could not be made; the text holds the end of what the failed step printed."""


def folder() -> Path:
    """Where chroots are kept: ``PCINUMA_CHROOTS``, or /var/tmp/pcinuma-chroots."""
    return Path(os.environ.get("PCINUMA_CHROOTS", "/var/tmp/pcinuma-chroots"))


def chroot(release: Release) -> Path:
    """The root directory of ``release``; made if it is not there (one to three minutes). Needs root and the network."""
    return made(release.suite, release.suite, PACKAGES)


def made(name: str, suite: str, packages: Sequence[str]) -> Path:
    """The root directory ``name`` in :func:`folder`, of a release by its ``suite``, with these packages; made if it is not there."""
    target = folder() / name
    if target.is_dir():
        lacking = sorted(set(packages) - installed(target))
        if lacking:
            install(target, lacking)
        return target
    folder().mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    environment, program = _debootstrap()
    _run([program, "--variant=minbase", suite, str(unfinished), _mirror()], environment)
    # apt resolves what debootstrap's --include cannot (virtual packages, pre-dependencies); no service may start there.
    (unfinished / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
    (unfinished / "usr/sbin/policy-rc.d").chmod(0o755)
    install(unfinished, packages)
    unfinished.rename(target)
    return target


def install(root: Path, packages: Sequence[str]) -> None:
    """Install packages in a chroot, from its own release."""
    # A mirror may be older than its own promise to be fresh (a frozen copy of sid): what it has is what is tested.
    stale = "-o Acquire::Check-Valid-Until=false"
    script = f'apt-get -q {stale} update && apt-get -q -y --no-install-recommends install "$@" && apt-get -q clean'
    environment = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/root", "DEBIAN_FRONTEND": "noninteractive"}
    _run(["chroot", str(root), "sh", "-c", script, "sh", *packages], environment)


def installed(root: Path) -> set[str]:
    """The names of the packages that are installed in a chroot."""
    found = set()
    for entry in (root / "var/lib/dpkg/status").read_text().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in entry.splitlines() if ": " in line and not line.startswith(" "))
        if fields.get("Status", "").endswith(" installed"):
            found.add(fields["Package"])
    return found


def run_inside(root: Path, script: str) -> str:
    """What a shell script prints in a chroot, with the network of this machine."""
    return _run(["chroot", str(root), "sh", "-euc", script], {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/root"})


def _run(command: list[str], environment: dict[str, str]) -> str:
    """Run one step in namespaces of its own: whatever a package's scripts mount or start ends with it. What it printed."""
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", *command],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        raise ChrootError(f"{' '.join(command)}: exit {done.returncode}: {done.stdout[-3000:]}")
    return done.stdout


def _mirror() -> str:
    """The Debian mirror of this machine's own apt configuration."""
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian", "Label: Debian"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.split()
    return targets[0] if targets else "http://deb.debian.org/debian"


def _debootstrap() -> tuple[dict[str, str], str]:
    """debootstrap's environment and path: the installed one, else its package unpacked."""
    environment = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/root"}
    program = shutil.which("debootstrap", path=PATH)
    if program:
        return environment, program
    unpacked = folder() / "debootstrap"
    if not (unpacked / "usr/sbin/debootstrap").exists():
        _unpack("debootstrap", unpacked)
    return {**environment, "DEBOOTSTRAP_DIR": str(unpacked / "usr/share/debootstrap")}, str(unpacked / "usr/sbin/debootstrap")


def _unpack(package: str, target: Path) -> None:
    """Unpack a package of this machine's distribution below ``target``, without installing it."""
    with tempfile.TemporaryDirectory() as download:
        os.chmod(download, 0o755)  # apt downloads as a user of its own
        subprocess.run(["apt-get", "-qq", "download", package], cwd=download, stderr=subprocess.DEVNULL, check=True)
        (archive,) = Path(download).glob(f"{package}_*.deb")
        target.mkdir(parents=True, exist_ok=True)
        subprocess.run(["dpkg", "-x", str(archive), str(target)], check=True)
