# SPDX-License-Identifier: LGPL-2.1-or-later
"""The reconciler on a real libvirt: which definitions it places, which it leaves alone, and what it survives."""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import libvirt
import pytest

from pcinuma.errors import DaemonError
from tests.hosts.machines import MACHINES
from tests.hosts.small import GPU_0, GPU_1, NIC_0, NIC_1, small_host
from tests.libvirt.conftest import require
from tests.libvirt.domains import cells, guest, hostdev
from tests.libvirt.events import ADDED, UPDATED, Listener
from tests.libvirt.harness import PrivateLibvirt
from tests.libvirt.running_daemon import RunningDaemon, state_files
from tests.waiting import PATIENCE, until

ALL = (GPU_0, NIC_0, GPU_1, NIC_1)
PLACED = {GPU_0: 0, NIC_0: 0, GPU_1: 1, NIC_1: 1}
UNPLACED = dict.fromkeys(ALL)
PASSWORD = "<graphics type='vnc' port='-1' autoport='yes' passwd='s3cret'/>"
SECURE = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """A private libvirt on a host of two nodes with a daemon, for all tests of this file that do not say otherwise."""
    require()
    tree = small_host(tmp_path_factory.mktemp("host"))
    with PrivateLibvirt(host_tree=tree) as host, RunningDaemon(host) as daemon:
        yield daemon


@pytest.fixture
def daemon(running: RunningDaemon) -> RunningDaemon:
    """The daemon, alive; a test may kill it."""
    running.ensure()
    return running


@pytest.fixture
def host(daemon: RunningDaemon) -> PrivateLibvirt:
    return daemon.host


@pytest.fixture
def untouched(tmp_path: Path) -> Iterator[PrivateLibvirt]:
    """A private libvirt of this test's own, on which no daemon ever ran."""
    require()
    with PrivateLibvirt(host_tree=small_host(tmp_path / "host")) as host:
        yield host


def inactive(domain: libvirt.virDomain) -> str:
    return str(domain.XMLDesc(SECURE))


def await_placed(domain: libvirt.virDomain, expected: Mapping[str, object]) -> None:
    until(lambda: cells(inactive(domain)) == expected, f"{domain.name()} to be placed as {expected}")


def await_event(listener: Listener, name: str, detail: int) -> float:
    """When the event arrived, as time.monotonic()."""
    return until(lambda: listener.first(name, detail), f"an event of {name}", interval=0.001)


def define(host: PrivateLibvirt, xml: str) -> libvirt.virDomain:
    return host.connect().defineXML(xml)


def test_a_defined_domain_is_placed(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    domain = define(host, guest("plain", ALL))
    await_placed(domain, PLACED)
    until(lambda: daemon.outcome("plain"), "the daemon to record it")
    entry = daemon.status("plain")
    assert entry is not None
    assert (entry["devices"], entry["placed"], entry["by"]) == (4, 4, "reconciler")


def test_a_placed_domain_is_defined_once_and_then_left_in_peace(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    with Listener(host) as listener:
        domain = define(host, guest("calm", ALL))
        await_placed(domain, PLACED)
        placed = inactive(domain)
        time.sleep(0.5)
    assert inactive(domain) == placed
    assert listener.details("calm") == [ADDED, UPDATED]


def test_a_redefine_by_somebody_else_is_placed_again(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    domain = define(host, guest("redefined", ALL))
    await_placed(domain, PLACED)
    define(host, guest("redefined", (GPU_0, GPU_1), uuid=domain.UUIDString()))
    await_placed(domain, {GPU_0: 0, GPU_1: 1})


def test_the_vnc_password_is_kept(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    domain = define(host, guest("secret", ALL, extra=PASSWORD))
    await_placed(domain, PLACED)
    assert "passwd='s3cret'" in inactive(domain)


def test_domains_from_before_the_first_start_are_left_alone_until_enabled(untouched: PrivateLibvirt) -> None:
    domain = define(untouched, guest("old", ALL))
    before = inactive(domain)
    with RunningDaemon(untouched) as daemon:
        await_placed(define(untouched, guest("new", ALL)), PLACED)
        assert inactive(domain) == before
        assert daemon.outcome("old") == ("unchanged", "not-enabled")
        daemon.kill()
        daemon.start()
        assert inactive(domain) == before, "a second start is no first start"
        daemon.call("Enable", {"domain": "old"})
        await_placed(domain, PLACED)


def test_revert_restores_the_original_definition(untouched: PrivateLibvirt) -> None:
    domain = define(untouched, guest("there-and-back", ALL, extra=PASSWORD))
    before = inactive(domain)
    with RunningDaemon(untouched) as daemon:
        daemon.call("Enable", {"domain": "there-and-back"})
        await_placed(domain, PLACED)
        assert daemon.call("RevertDomain", {"domain": "there-and-back"})["changed"]
        assert inactive(domain) == before
        time.sleep(0.3)
        assert inactive(domain) == before, "a reverted domain is left alone"


def test_disable_with_revert_restores_too_and_without_it_leaves_the_placement(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    domain = define(host, guest("disabled", ALL))
    await_placed(domain, PLACED)
    placed = inactive(domain)
    daemon.call("Disable", {"domain": "disabled"})
    assert inactive(domain) == placed
    daemon.call("Disable", {"domain": "disabled", "revert": True})
    assert cells(inactive(domain)) == UNPLACED


def test_policy_off_is_obeyed(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    domain = define(host, guest("off", ALL, policy="off"))
    until(lambda: daemon.outcome("off") == ("unchanged", "policy-off"), "the decision")
    assert cells(inactive(domain)) == UNPLACED


def test_a_running_domain_keeps_its_live_definition(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    domain = define(host, guest("running"))
    domain.create()
    live = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)
    define(host, guest("running", ALL, uuid=domain.UUIDString()))
    await_placed(domain, PLACED)
    assert domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE) == live
    assert domain.isActive()


def test_a_domain_with_a_managed_save_is_left_alone(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    domain = define(host, guest("saved"))
    domain.create()
    domain.managedSave()
    define(host, guest("saved", ALL, uuid=domain.UUIDString()))
    until(lambda: daemon.outcome("saved") == ("unchanged", "managed-save"), "the decision")
    assert cells(inactive(domain)) == UNPLACED
    domain.managedSaveRemove(0)
    daemon.call("PlaceDomain", {"domain": "saved"})
    await_placed(domain, PLACED)


def test_fifty_domains_at_once(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    connection = host.connect()
    domains = [connection.defineXML(guest(f"many-{number}", ALL)) for number in range(50)]
    for domain in domains:
        await_placed(domain, PLACED)


def test_a_broken_host_tree_means_the_default_layout_and_a_mended_one_recovery(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    assert host.host_tree is not None
    standing = define(host, guest("standing", ALL))
    await_placed(standing, PLACED)
    placed = inactive(standing)
    file = (host.host_tree / "sys/bus/pci/devices" / GPU_1).resolve() / "numa_node"
    text = file.read_text()
    # In one step: a file that is missing for a moment says something else, that the device has no affinity.
    broken = file.with_name("numa_node.new")
    broken.write_text("garbage\n")
    broken.replace(file)
    try:
        domain = define(host, guest("unlucky", ALL))
        until(lambda: daemon.outcome("unlucky") == ("fallback", "host-unreadable"), "the decision")
        assert cells(inactive(domain)) == UNPLACED, "all or nothing"
        assert inactive(standing) == placed
    finally:
        broken.write_text(text)
        broken.replace(file)
    daemon.call("PlaceDomain", {"domain": "unlucky"})
    await_placed(domain, PLACED)


@pytest.mark.parametrize("members", ["<pf dev='ens2f0'/>", "<address type='pci' domain='0' bus='0xd8' slot='1' function='1'/>"])
def test_an_interface_of_a_hostdev_network_is_placed(tmp_path: Path, members: str) -> None:
    require()
    tree = MACHINES["sriov"]().write(tmp_path)
    with PrivateLibvirt(host_tree=tree, show_tree=True) as host, RunningDaemon(host):
        network = host.connect().networkDefineXML(
            f"<network><name>pool</name><forward mode='hostdev' managed='yes'>{members}</forward></network>"
        )
        network.create()
        pins = "<vcpupin vcpu='0' cpuset='0'/><vcpupin vcpu='1' cpuset='1'/>"
        xml = guest("pooled", extra="<interface type='network'><source network='pool'/></interface>")
        domain = define(host, xml.replace(pins, "<vcpupin vcpu='0' cpuset='0-7'/><vcpupin vcpu='1' cpuset='8-15'/>"))
        until(lambda: cells(inactive(domain)) == {"pool": 1}, "the interface to be placed")


def test_libvirtd_may_restart_under_the_daemon(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    await_placed(define(host, guest("first", ALL)), PLACED)
    host.stop_libvirtd(kill=True)
    until(lambda: not daemon.call("Status")["libvirt"]["connected"], "the daemon to notice")
    host.start_libvirtd()
    domain = define(host, guest("second", ALL))
    await_placed(domain, PLACED)
    until(lambda: daemon.call("Status")["libvirt"]["connected"], "the daemon to be connected")
    await_placed(define(host, guest("third", ALL)), PLACED)


def test_the_daemon_may_start_before_libvirtd(tmp_path: Path) -> None:
    require()
    with PrivateLibvirt(host_tree=small_host(tmp_path / "host"), libvirtd=False) as host:
        daemon = RunningDaemon(host)
        daemon.start(connected=False)
        host.start_libvirtd()
        until(lambda: daemon.call("Status")["libvirt"]["connected"], "the daemon to be connected")
        await_placed(define(host, guest("late", ALL)), PLACED)


def test_domains_defined_while_the_daemon_was_down_are_placed_when_it_is_back(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    daemon.kill()
    domain = define(host, guest("meanwhile", ALL))
    daemon.start()
    await_placed(domain, PLACED)


def test_a_contended_domain_is_backed_off_from(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    """A manager that answers each of our definitions with its own must not be fought with for ever."""
    xml = guest("contended", ALL)
    domain = define(host, xml)
    ours = xml.replace("<name>contended</name>", f"<name>contended</name><uuid>{domain.UUIDString()}</uuid>")
    connection = host.connect()
    rounds = 0
    deadline = time.monotonic() + PATIENCE
    while daemon.outcome("contended") != ("unchanged", "contended"):
        assert time.monotonic() < deadline, f"still fighting after {rounds} rounds"
        if cells(inactive(domain)) == PLACED:
            connection.defineXML(ours)
            rounds += 1
        time.sleep(0.005)
    assert rounds >= 2, "one redefine is no contention"
    time.sleep(0.5)
    assert cells(inactive(domain)) == UNPLACED
    daemon.call("PlaceDomain", {"domain": "contended", "force": True})
    assert cells(inactive(domain)) == PLACED


def test_no_kill_at_any_moment_leaves_half_a_domain_or_a_daemon_that_does_not_start(
    host: PrivateLibvirt, daemon: RunningDaemon
) -> None:
    """Domains are defined all the time while the daemon is killed by SIGKILL at random moments; every definition seen is whole."""
    daemon.kill()
    before = define(host, guest("from-before", ALL))
    original = inactive(before)
    daemon.start()
    await_placed(before, PLACED)
    daemon.call("RevertDomain", {"domain": "from-before"})
    connection = host.connect()
    domains: list[libvirt.virDomain] = []
    chance = random.Random(7)
    stop = threading.Event()

    def define_on() -> None:
        while not stop.is_set():
            domains.append(connection.defineXML(guest(f"storm-{len(domains)}", ALL)))
            time.sleep(0.02)

    thread = threading.Thread(target=define_on)
    thread.start()
    try:
        for _ in range(8):
            time.sleep(chance.uniform(0, 0.15))
            daemon.kill()
            for domain in list(domains):
                assert cells(inactive(domain)) in (PLACED, UNPLACED)
            daemon.start(connected=False)
    finally:
        stop.set()
        thread.join()
    for domain in domains:
        await_placed(domain, PLACED)
    assert inactive(before) == original, "a reverted domain stays reverted over every crash"


def test_a_state_file_full_of_rubbish_is_no_reason_not_to_start(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    domain = define(host, guest("known", ALL))
    await_placed(domain, PLACED)
    daemon.kill()
    files = state_files(host)
    assert files
    for file in files:
        file.write_bytes(b"\x00\xff{{{")
    daemon.start()
    with pytest.raises(DaemonError):
        daemon.call("PlaceDomain", {"domain": "nobody"})
    assert cells(inactive(domain)) == PLACED


USER = "54321"
"""A user of whom the kernel counts nothing else."""
AS_USER = ("setpriv", "--reuid", USER, "--bounding-set", "-sys_admin")
HOG = """
import ctypes, resource, time
resource.setrlimit(resource.RLIMIT_NOFILE, 2 * (resource.getrlimit(resource.RLIMIT_NOFILE)[1],))
libc = ctypes.CDLL(None)
while libc.inotify_init1(0) >= 0: pass
print("none left", flush=True)
time.sleep(3600)
"""


def test_a_daemon_for_which_the_kernel_watches_nothing_says_so_and_sees_changes_all_the_same(tmp_path: Path) -> None:
    """All inotify instances that its user may have are taken, and fanotify is not allowed."""
    require()
    with PrivateLibvirt(host_tree=small_host(tmp_path / "host")) as host:
        with host.path("/etc/passwd").open("a") as users:
            users.write(f"starved:x:{USER}:0::/:/bin/sh\n")  # libvirt asks for it
        hog = subprocess.Popen([*AS_USER, "/usr/bin/python3", "-c", HOG], stdout=subprocess.PIPE, text=True)
        try:
            assert hog.stdout is not None and hog.stdout.readline() == "none left\n"
            with RunningDaemon(host, (*AS_USER, "--inh-caps", "-all,+dac_override", "--ambient-caps", "-all,+dac_override")) as daemon:
                domain = host.connect().defineXML(guest("vm"))
                status = daemon.settle()
                (problem,) = status["problems"]
                assert "Too many open files" in problem and "fs.inotify.max_user_instances" in problem and status["definitions"] is None
                for device in ALL[:2]:
                    domain.attachDeviceFlags(hostdev(device), libvirt.VIR_DOMAIN_AFFECT_CONFIG)  # libvirt sends no event for that
                until(lambda: cells(domain.XMLDesc(SECURE)) == dict.fromkeys(ALL[:2], 0), "the devices to be placed")
                hog.kill()
                until(lambda: daemon.call("Status")["definitions"] == "inotify", "the definitions to be watched")
                assert daemon.call("Status")["problems"] == []
                assert daemon.log().count("definitions cannot be watched") == 1
        finally:
            hog.kill()
            hog.communicate()
