# SPDX-License-Identifier: LGPL-2.1-or-later
"""Changes of a definition that libvirt sends no event for, and domains that go while they are being placed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from tests.hosts.small import GPU_0, GPU_1, NIC_0, NIC_1, small_host
from tests.libvirt.conftest import require
from tests.libvirt.domains import cells, guest, hostdev
from tests.libvirt.events import Listener
from tests.libvirt.harness import PrivateLibvirt
from tests.libvirt.running_daemon import RunningDaemon
from tests.waiting import until

INACTIVE = libvirt.VIR_DOMAIN_XML_INACTIVE
CONFIG = libvirt.VIR_DOMAIN_AFFECT_CONFIG


@pytest.fixture
def host(tmp_path: Path) -> Iterator[PrivateLibvirt]:
    require()
    with PrivateLibvirt(host_tree=small_host(tmp_path / "host")) as host:
        yield host


@pytest.fixture
def daemon(host: PrivateLibvirt) -> Iterator[RunningDaemon]:
    with RunningDaemon(host) as daemon:
        yield daemon


def await_cells(domain: libvirt.virDomain, expected: dict[str, int]) -> None:
    until(lambda: cells(domain.XMLDesc(INACTIVE)) == expected, f"{domain.name()} to be placed as {expected}")


def test_libvirt_does_not_send_an_event_for_every_change(host: PrivateLibvirt) -> None:
    """The fact that :mod:`pcinuma.daemon.definition_files` exists for."""
    with Listener(host) as listener:
        domain = host.connect().defineXML(guest("silent", (GPU_0,)))
        domain.attachDeviceFlags(hostdev(GPU_1), CONFIG)
        domain.pinVcpuFlags(0, (False, True), CONFIG)
        time.sleep(0.5)
        assert len(listener.details("silent")) < 3, "one for the definition, in newer versions one more"


def test_a_device_that_is_attached_to_the_definition_is_placed(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    domain = host.connect().defineXML(guest("grows", (GPU_0,)))
    await_cells(domain, {GPU_0: 0})
    domain.attachDeviceFlags(hostdev(GPU_1), CONFIG)
    await_cells(domain, {GPU_0: 0, GPU_1: 1})
    domain.detachDeviceFlags(hostdev(GPU_0), CONFIG)
    await_cells(domain, {GPU_1: 1})


def test_nothing_is_pending_only_once_every_change_has_been_dealt_with(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    """With an event (a define) and without one (an attach): who waits for 0 sees the placed definition, and need not look twice."""
    connection = host.connect()
    for number in range(10):
        domain = connection.defineXML(guest(f"counted-{number}", (GPU_0,)))
        daemon.settle()
        assert cells(domain.XMLDesc(INACTIVE)) == {GPU_0: 0}
        domain.attachDeviceFlags(hostdev(GPU_1), CONFIG)
        daemon.settle()
        assert cells(domain.XMLDesc(INACTIVE)) == {GPU_0: 0, GPU_1: 1}


def test_vcpus_that_are_pinned_elsewhere_move_the_devices(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    domain = host.connect().defineXML(guest("moves", (GPU_0, GPU_1)))
    await_cells(domain, {GPU_0: 0, GPU_1: 1})
    for vcpu, cpus in ((0, (False, True)), (1, (True, False))):
        domain.pinVcpuFlags(vcpu, cpus, CONFIG)
    await_cells(domain, {GPU_0: 1, GPU_1: 0})


def test_a_policy_that_is_set_in_the_metadata_counts_at_once(host: PrivateLibvirt) -> None:
    domain = host.connect().defineXML(guest("wishes", (GPU_0,)))
    with RunningDaemon(host) as daemon:
        until(lambda: daemon.outcome("wishes") == ("unchanged", "not-enabled"), "the decision")
        metadata = "<pcinuma policy='preferred'/>"
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, metadata, "pcinuma", "urn:pcinuma:domain:1", CONFIG)
        await_cells(domain, {GPU_0: 0})


def test_a_renamed_domain_is_the_same_domain(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    domain = host.connect().defineXML(guest("before", (GPU_0,)))
    await_cells(domain, {GPU_0: 0})
    domain.rename("after", 0)
    until(lambda: daemon.status("after"), "the new name in the status")
    assert daemon.status("before") is None
    renamed = host.connect().lookupByName("after")
    renamed.attachDeviceFlags(hostdev(GPU_1), CONFIG)
    await_cells(renamed, {GPU_0: 0, GPU_1: 1})


def test_a_domain_that_is_undefined_while_it_is_placed_does_not_come_back(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    """Undefined at every moment of the few milliseconds in which the daemon reads, places and defines."""
    connection = host.connect()
    for round in range(60):
        domain = connection.defineXML(guest(f"short-{round}", (GPU_0, NIC_0, GPU_1, NIC_1)))
        time.sleep(round % 30 / 2000)
        domain.undefine()
    time.sleep(1.5)
    assert connection.listAllDomains(0) == []
    until(lambda: daemon.call("Status")["domains"] == [], "the daemon to forget them")


def test_a_domain_that_is_undefined_and_defined_again_while_it_is_placed_stays(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    connection = host.connect()
    devices = (GPU_0, NIC_0, GPU_1, NIC_1)
    names = [f"again-{round}" for round in range(40)]
    uuids = {}

    def churn(part: list[str]) -> None:
        for number, name in enumerate(part):
            domain = connection.defineXML(guest(name, devices))
            uuids[name] = domain.UUIDString()
            time.sleep(number % 20 / 2000)
            domain.undefine()
            connection.defineXML(guest(name, devices, uuid=uuids[name]))

    threads = [threading.Thread(target=churn, args=(names[start::2],)) for start in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(1.5)
    assert sorted(domain.name() for domain in connection.listAllDomains(0)) == sorted(names)
    for name in names:
        await_cells(connection.lookupByName(name), {GPU_0: 0, NIC_0: 0, GPU_1: 1, NIC_1: 1})
