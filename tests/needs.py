# SPDX-License-Identifier: LGPL-2.1-or-later
"""What tests need of the machine, and why it is not there: each question is answered once, by trying.

``python -m tests.needs`` prints a line for each thing that is not there; a test that needs it is skipped with the same words
(:func:`require`). What can be installed is installed by ``tests/run`` before; what is left is a matter of rights (a container without
CAP_SYS_ADMIN, an ordinary user) or of packages that only root could install.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Optional

import pytest

from pcinuma.lab import kernel

CHECKOUT = Path(__file__).parents[1]
Reason = Optional[str]

_SYSTEMD = ("systemd-analyze", "systemd-socket-activate", "systemd-tmpfiles")
PACKAGES = {"groff": "groff", "make": "make", "zsh": "zsh", "shellcheck": "shellcheck", **dict.fromkeys(_SYSTEMD, "systemd")}
"""Programs that tests call, and the packages that they are in."""
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_OVERLAY = (
    "mount --make-rprivate / && mount -t tmpfs tmpfs /mnt && mkdir /mnt/lower /mnt/upper /mnt/work /mnt/all"
    " && mount -t overlay -o lowerdir=/mnt/lower,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/all && mount -t sysfs -o ro sysfs /sys"
)
_CGROUP = "mount -t cgroup2 cgroup2 /mnt && mkdir /mnt/pcinuma-needs && rmdir /mnt/pcinuma-needs"


@cache
def root() -> Reason:
    return None if os.geteuid() == 0 else "needs root"


@cache
def namespaces() -> Reason:
    """For the private hosts: mount, PID, network, IPC and hostname namespaces, and mounts in them."""
    if root():
        return "needs root, for namespaces and mounts"
    failed = _fails("unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "sh", "-c", _OVERLAY)
    return failed and f"needs namespaces and mounts in them (CAP_SYS_ADMIN; a container has it with --privileged): {failed}"


@cache
def booting() -> Reason:
    """For a systemd in namespaces: a cgroup of its own besides."""
    failed = namespaces() or _fails("unshare", "--mount", "sh", "-c", _CGROUP)
    return failed and (failed if failed == namespaces() else f"needs a cgroup2 hierarchy that can be written to: {failed}")


@cache
def other_user() -> Reason:
    """To become somebody else, and to run as him."""
    if root():
        return "needs root, to become another user"
    failed = _fails("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "true")
    return failed and f"cannot become another user here: {failed}"


@cache
def module(name: str) -> Reason:
    return None if importlib.util.find_spec(name) else f"Python has no module {name} (package python3-{name.replace('_', '-')})"


@cache
def program(name: str, package: str = "") -> Reason:
    return None if shutil.which(name, path=PATH) else f"{name} is not installed (package {package or name})"


@cache
def python() -> str:
    """The distribution's Python, which is what runs on a host; that of the tests where it lacks the modules."""
    failed = _fails("/usr/bin/python3", "-c", "import lxml, psutil, structlog")
    return sys.executable if failed else "/usr/bin/python3"


@cache
def libvirtd() -> Reason:
    return module("libvirt") or program("libvirtd", "libvirt-daemon-system") or program("virsh", "libvirt-clients")


@cache
def promtool() -> Reason:
    from tests import promtool  # it needs this

    return promtool.program()[1]


@cache
def apparmor() -> Reason:
    """For the virtual host, whatever this machine has."""
    from tests.lab import apparmor

    return apparmor.archive()[1]


def kernel_cache() -> Path:
    """Where the kernel for guests is kept: ``PCINUMA_LAB_CACHE``, else the lab's own folder, else one in the checkout."""
    given = os.environ.get("PCINUMA_LAB_CACHE")
    usual = kernel.DEFAULT_CACHE
    there = next(folder for folder in (usual, *usual.parents) if folder.is_dir())
    return Path(given) if given else usual if os.access(there, os.W_OK) else CHECKOUT / ".venv" / "kernel"


def require(*reasons: Reason) -> None:
    """Skip the test that asks for the first thing that is not there."""
    for reason in reasons:
        if reason:
            pytest.skip(reason)


def _fails(*argv: str) -> Reason:
    """Why a command fails, in one line; None if it does not."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, env={"PATH": PATH}, check=False)
    except OSError as error:
        return str(error)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


QUESTIONS: list[tuple[str, Callable[[], Reason]]] = [
    ("libvirt, some of unit and lab", namespaces),
    ("libvirt: the units under systemd", lambda: None if namespaces() else booting()),
    ("some of unit", other_user),
    ("libvirt, some of unit", libvirtd),
    ("unit: the man pages", lambda: program("groff")),
    ("unit: the metrics", lambda: module("prometheus_client")),
    ("unit: the metrics and alerts, by Prometheus", promtool),
    ("lab --full: AppArmor", apparmor),
    ("unit: the units", lambda: program("systemd-analyze", "systemd")),
    ("guest, lab", lambda: program("qemu-system-x86_64", "qemu-system-x86")),
    ("guest, lab", lambda: program("busybox", "busybox-static")),
]


def main() -> int:
    said = set()
    for where, question in QUESTIONS:
        reason = question()
        if reason and reason not in said:
            said.add(reason)
            print(f"{where}: {reason}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
