# SPDX-License-Identifier: LGPL-2.1-or-later
"""The hook as libvirt runs it: what a start looks like to its owner, with the daemon well, slow, frozen, killed or absent.

No device can really be passed through here, so a start of a domain with one gets past the hook, at ``prepare begin``, and then fails
in libvirt with libvirt's own sentence about the device. A guest without one starts whole.
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import libvirt
import pytest

from tests.hosts.small import GPU_0, GPU_1, NIC_0, NIC_1
from tests.libvirt.conftest import require
from tests.libvirt.domains import cells, guest, other_form
from tests.libvirt.harness import PrivateLibvirt
from tests.libvirt.hooked import hooked_host
from tests.libvirt.running_daemon import RunningDaemon
from tests.waiting import until

ALL = (GPU_0, NIC_0, GPU_1, NIC_1)
PLACED = {GPU_0: 0, NIC_0: 0, GPU_1: 1, NIC_1: 1}
HOOK_FAILED = "Hook script execution failed"

# Runs before ours and keeps what libvirt gives to hooks, each start's as /run/seen/DOMAIN.OPERATION.N.xml in order.
RECORDER = """#!/bin/sh
mkdir -p /run/seen
number=$(ls /run/seen | grep -c "^$1\\.")
cat > "/run/seen/$1.$2-$3.$number.xml"
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateLibvirt]:
    """A private libvirt with our hook in qemu.d and a recording one as hooks/qemu, on a host of two nodes."""
    require()
    with hooked_host(tmp_path_factory.mktemp("hook"), RECORDER) as host:
        yield host


@pytest.fixture
def host(shared: PrivateLibvirt) -> Iterator[PrivateLibvirt]:
    """That host, with no daemon unless the test asks for one, and no guest of another test."""
    yield shared
    for domain in shared.connect().listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        domain.destroy()


@pytest.fixture
def daemon(host: PrivateLibvirt) -> Iterator[RunningDaemon]:
    with RunningDaemon(host) as daemon:
        yield daemon


def seen(host: PrivateLibvirt, name: str, operation: str = "prepare-begin") -> list[str]:
    """The XML that hooks got for a domain at an operation, in order."""
    return [file.read_text() for file in sorted(host.path("/run/seen").glob(f"{name}.{operation}.*.xml"))]


def start(host: PrivateLibvirt, name: str) -> subprocess.CompletedProcess[str]:
    return host.virsh("start", name, check=False)


def placed(domain: libvirt.virDomain) -> None:
    until(lambda: cells(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)) == PLACED, f"{domain.name()} to be placed")


def test_a_start_is_reported_to_the_daemon(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    host.connect().defineXML(guest("reported"))
    assert start(host, "reported").returncode == 0
    entry = daemon.status("reported")
    assert entry is not None
    assert (entry["state"], entry["by"], entry["reason"]) == ("running", "hook", "nothing-to-place")


def test_starts_are_counted_by_whose_work_they_are_and_how_they_ended(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    connection = host.connect()
    placed(connection.defineXML(guest("counted", ALL)))
    connection.defineXML(guest("plain"))
    connection.defineXML(guest("refused", ALL, policy="required", pinned=False))
    expected = {("reconciler", "placed", "failed"): 1, ("nobody", "left", "running"): 1, ("nobody", "unplaced", "refused"): 1}
    for name in ("counted", "plain", "refused"):
        start(host, name)

    def counted() -> dict[tuple[str, str, str], int]:
        return {(s["by"], s["layout"], s["result"]): s["count"] for s in daemon.call("Counters")["starts"] if s["count"]}

    until(lambda: counted() == expected, "all of them to be counted")
    found = daemon.call("Counters")
    assert (sum(found["hook"]["counts"]), found["connections"]) == (3, 1)
    assert sum(found["reconcile"]["counts"]) >= 3


def test_what_starts_is_the_placed_definition(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    domain = host.connect().defineXML(guest("ready", ALL))
    placed(domain)
    shown = start(host, "ready")
    assert HOOK_FAILED not in shown.stderr
    assert "host PCI devices" in shown.stderr or "VFIO" in shown.stderr, f"libvirt's own reason: {shown.stderr}"
    (xml,) = seen(host, "ready")
    assert cells(xml) == PLACED
    (line,) = until(lambda: daemon.decided("ready", "hook"), "the daemon to log it")
    assert "reason=already-placed" in line and "placed=4/4" in line


@pytest.mark.parametrize("form", ["interface-hostdev", "nvme-disk", "mdev", "vdpa"])
def test_every_form_of_passthrough_gets_as_far_as_the_hook(host: PrivateLibvirt, daemon: RunningDaemon, form: str) -> None:
    host.connect().defineXML(guest(form, extra=other_form(form)))
    shown = start(host, form)
    assert shown.returncode == 1, "none can start without VFIO or vDPA"
    assert HOOK_FAILED not in shown.stderr
    assert len(seen(host, form)) == 1


def test_required_refuses_with_a_sentence_that_virsh_shows(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    host.connect().defineXML(guest("strict", ALL, policy="required", pinned=False))
    shown = start(host, "strict")
    assert shown.returncode == 1
    assert "required" in shown.stderr
    assert GPU_0 in shown.stderr
    assert "pcinuma " in shown.stderr, "the command that mends it"
    assert host.virsh("domstate", "strict").stdout.strip() == "shut off"


def test_required_and_met_is_no_obstacle(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    domain = host.connect().defineXML(guest("met", ALL, policy="required"))
    placed(domain)
    assert HOOK_FAILED not in start(host, "met").stderr


def test_required_refuses_what_the_host_has_changed_under(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    """The definition stood; the device moved to the other node since: only the check at the start can know."""
    assert host.host_tree is not None
    domain = host.connect().defineXML(guest("moved", ALL, policy="required"))
    placed(domain)
    time.sleep(2)  # the reconciler's own look at what it defined is over
    file = (host.host_tree / "sys/bus/pci/devices" / GPU_1).resolve() / "numa_node"
    file.write_text("0\n")
    try:
        shown = start(host, "moved")
    finally:
        file.write_text("1\n")
    assert shown.returncode == 1
    assert HOOK_FAILED in shown.stderr
    assert "pcinuma" in shown.stderr


def test_without_a_daemon_every_guest_starts(host: PrivateLibvirt) -> None:
    host.connect().defineXML(guest("orphan"))
    assert start(host, "orphan").returncode == 0
    host.connect().defineXML(guest("orphan-devices", ALL))
    assert HOOK_FAILED not in start(host, "orphan-devices").stderr


def test_without_a_daemon_required_refuses_and_says_how_to_mend_it(host: PrivateLibvirt) -> None:
    host.connect().defineXML(guest("strict-orphan", ALL, policy="required"))
    shown = start(host, "strict-orphan")
    assert shown.returncode == 1
    assert "systemctl start pcinuma" in shown.stderr


def test_the_daemon_killed_between_define_and_start(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    domain = host.connect().defineXML(guest("survivor", ALL))
    placed(domain)
    host.connect().defineXML(guest("emulated"))
    daemon.kill()
    assert HOOK_FAILED not in start(host, "survivor").stderr
    assert cells(seen(host, "survivor")[0]) == PLACED, "placed it is, daemon or not"
    assert start(host, "emulated").returncode == 0


def test_a_frozen_daemon_is_waited_for_one_second(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    host.connect().defineXML(guest("patient"))
    daemon.freeze()
    began = time.monotonic()
    shown = start(host, "patient")
    waited = time.monotonic() - began
    daemon.thaw()
    assert shown.returncode == 0, shown.stderr
    assert waited >= 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_daemon_killed_while_the_hook_waits(host: PrivateLibvirt, daemon: RunningDaemon, number: int) -> None:
    name = f"interrupted-{number}"
    host.connect().defineXML(guest(name))
    daemon.freeze()
    shown: list[subprocess.CompletedProcess[str]] = []
    thread = threading.Thread(target=lambda: shown.append(start(host, name)))
    thread.start()
    until(lambda: seen(host, name), "the hooks to run")
    time.sleep(0.2)
    daemon.kill(number)
    thread.join()
    assert shown[0].returncode == 0, shown[0].stderr


def test_guests_survive_libvirtd_restarting_with_the_hook_and_no_daemon(host: PrivateLibvirt) -> None:
    """libvirt kills a guest whose hook fails at reconnect."""
    domain = host.connect().defineXML(guest("lasting"))
    domain.create()
    (process,) = host.processes("qemu-system-x86_64")
    host.restart()
    domain = host.connect().lookupByName("lasting")
    assert [found.pid for found in host.processes("qemu-system-x86_64")] == [process.pid]
    until(lambda: seen(host, "lasting", "reconnect-begin"), "libvirt to run the hook")
    assert domain.isActive()


def test_every_operation_of_a_guests_life_passes(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    domain = host.connect().defineXML(guest("busy"))
    domain.create()
    domain.managedSave()
    domain.create()
    domain.suspend()
    domain.resume()
    domain.destroy()
    operations = {file.name.split(".")[1] for file in host.path("/run/seen").glob("busy.*")}
    assert operations >= {"prepare-begin", "start-begin", "started-begin", "stopped-end", "release-end", "restore-begin"}
    assert not [line for line in host.log().splitlines() if HOOK_FAILED in line and " busy " in line]


def test_many_starts_and_defines_at_once_do_not_wait_for_each_other_in_a_circle(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    """libvirt waits for the hook, the hook for the daemon: the daemon must not wait for libvirt."""
    names = [f"crowd-{number}" for number in range(6)]
    for name in names:
        host.connect().defineXML(guest(name))
    stop = threading.Event()
    connection = host.connect()

    def define_on() -> None:
        number = 0
        while not stop.is_set():
            connection.defineXML(guest(f"other-{number}", ALL))
            number += 1
            time.sleep(0.02)

    definer = threading.Thread(target=define_on)
    definer.start()
    shown: list[subprocess.CompletedProcess[str]] = []
    threads = [threading.Thread(target=lambda name=name: shown.append(start(host, name))) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    definer.join()
    assert [result.returncode for result in shown] == [0] * len(names)
    # In a circle each hook would wait for its whole second and then let the guest start unasked. (A busy machine may cost one its answer.)
    assert [name for name in names if (entry := daemon.status(name)) is not None and entry["by"] == "hook"]
