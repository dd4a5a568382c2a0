# SPDX-License-Identifier: LGPL-2.1-or-later
"""A Debian host as its installer leaves it, booted: nothing of libvirt, QEMU or Python on it, and packages for all that pcinuma wants.

The release is a chroot of debootstrap's with systemd and D-Bus (:func:`root`); what apt will want for the package was fetched into its
archives before, since nothing of the network is to be seen inside. Each :class:`Host` is a view of it that forgets what happened.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import TracebackType
from typing import Optional

from tests.hosts.small import small_host
from tests.libvirt import chroot
from tests.libvirt.booted import Booted
from tests.waiting import HarnessError, until

SUITES = ("bookworm", "trixie", "sid")
PACKAGES = ("systemd-sysv", "dbus", "iproute2", "procps")
TOOLS = ("debhelper", "dh-python", "lintian", "python3", "rpm", "rpmlint")
TREE = "/srv/host"
SERVICES = ("pcinuma.service", "pcinuma-proxy.service")
APT = "DEBIAN_FRONTEND=noninteractive apt-get -qy -o Dpkg::Use-Pty=0"
# What every installation writes, and what libvirt and systemd write by themselves.
OTHERS = re.compile(
    r"/(proc|sys|dev|tmp|srv|run|root)/|/var/(cache|log|tmp)/|/var/lib/(dpkg|apt|systemd|libvirt|private|dbus|polkit-1)/|/etc/libvirt/qemu"
    r"|/etc/(ld.so.cache|mtab|machine-id)|/var/lib/swtpm-localca"
)


def tools(suite: str) -> Path:
    """A chroot of ``suite`` with what Debian packages are made with."""
    return chroot.made(f"{suite}-build", suite, TOOLS)


def root(suite: str, deb: Path) -> Path:
    """A chroot of ``suite`` in which apt has at hand all that the package ``deb`` depends on and recommends, rpm, and what metrics need."""
    target = chroot.made(f"{suite}-host", suite, PACKAGES)
    shutil.copy(deb, target / "srv/pcinuma.deb")
    stale = "-o Acquire::Check-Valid-Until=false"
    try:
        chroot.run_inside(target, f"{APT} {stale} update && {APT} --download-only install /srv/pcinuma.deb rpm python3-prometheus-client")
    finally:
        (target / "srv/pcinuma.deb").unlink()
    return target


class Host(Booted):
    """A booted host. ``packages`` lie in its /srv under these names."""

    def __init__(self, root: Path, packages: dict[str, Path]) -> None:
        super().__init__(root)
        self._packages = packages
        self.said = ""

    def __enter__(self) -> Host:
        super().__enter__()
        try:
            small_host(self.path(TREE))
            for service in SERVICES:
                folder = self.path(f"/run/systemd/system/{service}.d")
                folder.mkdir(parents=True)
                (folder / "test.conf").write_text(f"[Service]\nEnvironment=PCINUMA_ROOT={TREE}\n")
            for name, package in self._packages.items():
                shutil.copy(package, self.path(f"/srv/{name}{package.suffix}"))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], traceback: Optional[TracebackType]
    ) -> None:
        self.close()

    def apt(self, *words: str, check: bool = True) -> str:
        """What apt-get and the packages' scripts say. ``check``: HarnessError if it fails."""
        done = self.run("sh", "-c", f'{APT} "$@" 2>&1', "sh", *words, check=False, timeout=900)
        if check and done.returncode != 0:
            raise HarnessError(f"apt-get {' '.join(words)}: exit {done.returncode}: {done.stdout[-4000:]}")
        return done.stdout

    def install(self, name: str, *options: str) -> str:
        """Install the package that lies in /srv as ``name``, from whatever version."""
        return self.apt(*options, "--allow-downgrades", "--reinstall", "install", f"/srv/{name}.deb")

    def files(self) -> dict[str, str]:
        """Every file and link, and each empty folder, that the host has of its own: path -> what find says of it."""
        listed = self.shell(r"find / -xdev \( ! -type d -o -empty \) -printf '%p\t%y %m %U %l\n'")
        lines = (line.partition("\t") for line in listed.splitlines())
        return {path: what for path, _, what in lines if not OTHERS.match(path) and "/__pycache__" not in path}

    def define(self, xml: str) -> None:
        self.path("/srv/domain.xml").write_text(xml)
        self.run("virsh", "-q", "define", "/srv/domain.xml")

    def inactive(self, name: str) -> str:
        return self.run("virsh", "-q", "dumpxml", "--inactive", "--security-info", name).stdout

    def await_libvirt(self) -> None:
        self.run("systemctl", "start", "libvirtd.socket")
        until(lambda: self.run("virsh", "-q", "list", check=False).returncode == 0, "libvirtd to answer", interval=0.2)
