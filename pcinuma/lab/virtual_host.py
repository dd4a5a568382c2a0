# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tiers 2 and 3: a host in a virtual machine, in which a job runs real libvirt, real vfio-pci and pcinuma as installed by install.sh.

A job is a shell script. It runs as root on the virtual host, writes what it finds to ``/job/out`` and says where it is by lines
``@@ TEXT`` on the console, which the caller sees at once. The host always ends by resetting itself; whether the job came to its end is
told by :data:`DONE` on the console, never by an exit code. The functions that a job may call are in :data:`LIBRARY`.

What the guests inside boot from and print to lies in the virtual host's memory (``/images``, ``/consoles``): QEMU maps a kernel page by
page and writes a console character by character, and over 9p each of these is a round trip. The consoles are in ``out`` in the end.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from pcinuma.lab import LabError, initramfs, machine, userland
from pcinuma.lab.hardware import HostPlan
from pcinuma.lab.kernel import Kernel

STEP = "@@ "
DONE = "=====PCINUMA-JOB-DONE====="
FAILED = "=====PCINUMA-JOB-FAILED====="
CMDLINE = f"{machine.BRISK} pcie_ports=compat intel_iommu=on iommu=nopt"
# What a kernel and glibc use where they see it, and what TCG emulates slowly: byte-wise `rep movsb`, a fifth level of page tables, a
# translation block that ends at each stac, vector helpers and their larger state. Without them a job needs a third less. One emulating
# thread (machine.GUEST_TCG) saves another third: no atomics, and no virtual CPU that spins for one which waits for a core.
TCG_CPU = "max,-erms,-fsrm,-smap,-la57,-avx,-avx2,-pku"
CHECKOUT = Path(__file__).resolve().parents[2]

LIBRARY = """
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 LIBVIRT_DEFAULT_URI=qemu:///system
step() { echo "@@ $*"; }
give_up() { echo "@@ failed: $*"; echo "%(failed)s"; finish; }
finish() { cp /consoles/* /job/out/ 2>/dev/null; sync; sleep 0.3; echo b >/proc/sysrq-trigger; sleep 60; }
# wait_for SECONDS COMMAND...: until it succeeds. To look costs the guest's emulation, so it looks less often the longer that takes.
wait_for() {
    left=$(($1 * 10)); pause=1; shift # tenths of a second
    until "$@" >/dev/null 2>&1; do
        left=$((left - pause)); [ $left -gt 0 ] || return 1
        sleep $((pause / 10)).$((pause %% 10))
        [ $pause -ge 20 ] || pause=$((pause + pause / 2 + 1))
    done
}
start_libvirt() {
    mkdir -p /run/dbus
    dbus-daemon --system --fork >/dev/null 2>&1
    virtlogd -d -p /run/virtlogd.pid && libvirtd -d -p /run/libvirtd.pid || give_up "libvirtd does not start"
    wait_for 60 virsh -q list || give_up "libvirtd does not answer"
}
start_pcinuma() {
    /usr/bin/pcinumad >/job/out/pcinumad.log 2>&1 &
    wait_for 60 test -S /run/pcinuma/pcinuma.sock || give_up "pcinumad does not answer"
}
""" % {"failed": FAILED}

START = """#!/bin/sh
cd /
exec </dev/null >/dev/ttyS0 2>&1
. /job/library
ip link set lo up 2>/dev/null
hostname virtual-host
mkdir /images /consoles
[ ! -d /job/dpkg ] || cp -R /job/dpkg /var/lib/dpkg
for image in /job/images/*; do dd "if=$image" "of=/images/${image##*/}" bs=512k 2>/dev/null; done
. /job/tree
print_tree >/job/out/host-tree
step "the virtual host is up"
. /job/job
echo "%(done)s"
finish
""" % {"done": DONE}


@dataclass(frozen=True)
class HostRun:
    """A virtual host that has ended. ``out`` is what its job wrote, by file name."""

    console: str
    seconds: float
    out: Mapping[str, str]
    done: bool

    def require(self) -> HostRun:
        """Itself; :class:`LabError` with what the console said last if the job did not come to its end."""
        if not self.done:
            tail = "\n".join(self.console.replace("\r", "").splitlines()[-25:])
            raise LabError(f"the job in the virtual host did not come to its end:\n{tail}")
        return self


def run(
    plan: HostPlan,
    job: str,
    kernel: Kernel,
    scratch: Path,
    *,
    files: Optional[Mapping[str, bytes]] = None,
    timeout: float = 300,
    progress: Optional[Callable[[str], None]] = None,
    checkout: Path = CHECKOUT,
    command_line: str = CMDLINE,
    extra: Sequence[str] = (),
    second_serial: Optional[str] = None,
    nice: int = 0,
    unwanted: Optional[threading.Event] = None,
) -> HostRun:
    """Boot the host and run ``job`` in it.

    ``files`` are put into ``/job`` before, those named ``images/…`` into ``/images``; ``progress`` is told each step of the job.
    ``command_line``: the host kernel's; ``extra``: further arguments for QEMU; ``second_serial``: what the host's ttyS1 is connected to;
    ``nice``: as for nice(1); ``unwanted``: ends it when it is set.
    """
    folder = scratch / "job"
    (folder / "out").mkdir(parents=True)
    (folder / "images").mkdir()
    userland.write_etc(folder / "etc", userland.root())
    userland.write_packages(folder / "dpkg", userland.root())
    (folder / "start").write_text(START)
    (folder / "library").write_text(LIBRARY)
    (folder / "tree").write_text(initramfs.PRINT_TREE)
    (folder / "job").write_text(job)
    shutil.copy(kernel.vmlinux, folder / "images" / "vmlinux")
    for name, content in (files or {}).items():
        (folder / name).write_bytes(content)
    initrd = scratch / "host.cpio"
    initrd.write_bytes(userland.image(kernel))
    accel = machine.accelerator(kernel)
    argv = ["nice", "-n", str(nice), machine.binary(), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += ["-accel", machine.GUEST_TCG, "-cpu", TCG_CPU] if accel == "tcg" else ["-accel", accel, "-cpu", "max"]
    argv += [*plan.argv(scratch), *userland.exports(kernel, checkout, folder)]
    argv += ["-kernel", str(kernel.vmlinux), "-initrd", str(initrd), "-append", command_line, *extra]

    def watch(line: str) -> None:
        if progress is not None and line.startswith(STEP):
            progress(line[len(STEP) :])

    ended = machine.run(argv, timeout=timeout, scratch=scratch, watch=watch, second_serial=second_serial, unwanted=unwanted)
    out = {file.name: file.read_text(errors="replace") for file in sorted((folder / "out").iterdir()) if file.is_file()}
    return HostRun(ended.console, ended.seconds, out, DONE in ended.console)
