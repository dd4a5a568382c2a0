# SPDX-License-Identifier: LGPL-2.1-or-later
"""The private host itself: what other tests take for granted about it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import libvirt
import psutil
import pytest

from tests import needs
from tests.hosts.machines import MACHINES
from tests.libvirt.harness import PrivateLibvirt, unavailable
from tests.waiting import CHECKOUT, HarnessError, ended, names_below, until

GUEST = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>64</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>{devices}</devices>
</domain>
"""
HOSTDEV = """
<hostdev mode='subsystem' type='pci' managed='yes'>
  <source><address domain='0x0000' bus='0x17' slot='0x00' function='0x0'/></source>
</hostdev>
"""

LEFT_ALONE = """
import time
from tests.hosts.machines import MACHINES
from tests.libvirt.harness import PrivateLibvirt
host = PrivateLibvirt().__enter__()
print(host.base, host._init.pid, flush=True)
time.sleep(60)
"""


def test_a_guest_starts_and_stops(fresh_host: PrivateLibvirt) -> None:
    domain = fresh_host.connect().defineXML(GUEST.format(name="emulated", devices=""))
    domain.create()
    assert domain.isActive()
    assert [process.name() for process in fresh_host.processes("qemu-system-x86_64")]
    domain.destroy()
    assert "qemu-system-x86_64" in fresh_host.guest_log("emulated")


def test_guests_survive_a_restart_of_libvirtd(fresh_host: PrivateLibvirt) -> None:
    fresh_host.connect().defineXML(GUEST.format(name="lasting", devices="")).create()
    fresh_host.restart()
    assert fresh_host.connect().lookupByName("lasting").isActive()


def test_the_hook_runs_at_prepare_before_libvirt_looks_for_the_device(fresh_host: PrivateLibvirt, tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    hook.write_text('#!/bin/sh\ncat >> /run/seen.xml\necho "$*" >> /run/seen\n')
    fresh_host.install_hook(hook)
    domain = fresh_host.connect().defineXML(GUEST.format(name="absent", devices=HOSTDEV))
    with pytest.raises(libvirt.libvirtError):
        domain.create()
    assert fresh_host.path("/run/seen").read_text().splitlines()[0] == "absent prepare begin -"
    assert "<hostdev mode='subsystem' type='pci'" in fresh_host.path("/run/seen.xml").read_text()


def test_a_refusing_hook_stops_the_start_with_its_sentence(fresh_host: PrivateLibvirt, tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    hook.write_text("#!/bin/sh\necho 'not today' >&2\n[ \"$2\" != prepare ]\n")
    fresh_host.install_hook(hook)
    fresh_host.connect().defineXML(GUEST.format(name="refused", devices=""))
    shown = fresh_host.virsh("start", "refused", check=False)
    assert shown.returncode == 1
    assert "not today" in shown.stderr


def test_two_hosts_share_nothing() -> None:
    with PrivateLibvirt() as one, PrivateLibvirt() as other:
        one.connect().defineXML(GUEST.format(name="only-here", devices=""))
        assert other.connect().listAllDomains() == []
        one.run(["sh", "-c", "echo mine > /etc/pcinuma-test; mkdir -p /var/lib/pcinuma"])
        assert not Path("/etc/pcinuma-test").exists()
        assert other.run(["test", "-e", "/etc/pcinuma-test"], check=False).returncode == 1


def test_kvm_is_out_of_sight(libvirt_host: PrivateLibvirt) -> None:
    assert libvirt_host.run(["ls", "/dev"]).stdout.split() == sorted(
        ["fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"]
    )


def test_a_failing_command_says_why(libvirt_host: PrivateLibvirt) -> None:
    with pytest.raises(HarnessError, match="failed to get domain"):
        libvirt_host.virsh("domstate", "nobody")


def test_nothing_is_left_when_the_test_process_is_killed() -> None:
    needs.require(unavailable())
    with subprocess.Popen([sys.executable, "-c", LEFT_ALONE], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        base, init = process.stdout.readline().split()
        inside = psutil.Process(int(init))
        assert set(names_below(inside.pid).values()) >= {"libvirtd", "virtlogd"}
        process.kill()
    until(lambda: ended(inside), "the namespaces to end")
    until(lambda: not [p for p in psutil.process_iter(["cmdline"]) if base in (p.info["cmdline"] or [])], "unshare to end")
    subprocess.run(["rm", "-rf", base], check=True)


def test_libvirt_takes_networks_of_virtual_functions_that_only_the_tree_has(tmp_path: Path) -> None:
    tree = MACHINES["sriov"]().write(tmp_path)
    with PrivateLibvirt(host_tree=tree, show_tree=True) as host:
        network = host.connect().networkDefineXML(
            "<network><name>pool</name><forward mode='hostdev' managed='yes'><pf dev='ens1f0'/></forward></network>"
        )
        network.create()
        assert network.XMLDesc().count("<address type='pci'") == 4
