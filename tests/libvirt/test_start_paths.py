# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every way to a start, with the reconciler alone and with the proxy: which of them boot placed. Prints the table as measured.

A domain with passthrough devices gets as far as the hook at ``prepare begin`` here, and the XML that libvirt gives to hooks there is
the one that it is about to boot; a recording hook keeps it. ``--full`` repeats 200 times where a race decides.
"""

from __future__ import annotations

import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

import libvirt
import pytest
from lxml import etree

from tests.hosts.small import GPU_0, GPU_1, NIC_0, NIC_1, small_host
from tests.libvirt.conftest import require
from tests.libvirt.domains import cells, guest, hostdev
from tests.libvirt.harness import PrivateLibvirt
from tests.libvirt.hooked import hooked_host
from tests.libvirt.running_daemon import RunningDaemon
from tests.libvirt.running_proxy import RunningProxy
from tests.waiting import until

ALL = (GPU_0, NIC_0, GPU_1, NIC_1)
PLACED = {GPU_0: 0, NIC_0: 0, GPU_1: 1, NIC_1: 1}
INACTIVE = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
RECORDER = """#!/bin/sh
mkdir -p /run/seen
cat > "/run/seen/$1.$2.$$.part"
mv "/run/seen/$1.$2.$$.part" "/run/seen/$1.$2.$(date +%s%N).xml"
"""
MANY = 200


class Column:
    """A host with daemon and hook, with or without the proxy in front of libvirt."""

    def __init__(self, title: str, host: PrivateLibvirt, daemon: RunningDaemon, proxy: Optional[RunningProxy]) -> None:
        self.title = title
        self.host = host
        self.daemon = daemon
        self.proxy = proxy
        self.uri = proxy.uri if proxy else host.uri
        self.connection = libvirt.open(self.uri)
        self._number = 0

    def name(self) -> str:
        self._number += 1
        return f"guest-{self._number}"

    def seen(self, name: str, operation: str = "prepare") -> list[str]:
        """What libvirt was about to boot, each time."""
        return [file.read_text() for file in sorted(self.host.path("/run/seen").glob(f"{name}.{operation}.*.xml"))]

    def define(self, xml: str) -> libvirt.virDomain:
        return self.connection.defineXML(xml)

    def await_placed(self, domain: libvirt.virDomain) -> None:
        until(lambda: cells(domain.XMLDesc(INACTIVE)) == PLACED, f"{domain.name()} to be placed")


def refused(start: Callable[[], object]) -> None:
    """Start; there is no VFIO here, so libvirt refuses after the hook has seen the domain."""
    try:
        start()
    except libvirt.libvirtError as error:
        assert "Hook script" not in str(error), error
    else:
        raise AssertionError("a guest with a passthrough device cannot start here")


@dataclass(frozen=True)
class StartPath:
    """A row of the table. ``walk`` goes the path once and says whether what booted was placed (or, for ``keeps``, kept as it was)."""

    title: str
    walk: Callable[[Column], bool]
    races: bool = False
    slow: bool = False
    keeps: bool = False
    without: Optional[bool] = None
    """What the reconciler alone must make of it: always (True), never (False), sometimes (None)."""


# Paths to a placed boot


def define_and_start(delay: float) -> Callable[[Column], bool]:
    def walk(column: Column) -> bool:
        name = column.name()
        domain = column.define(guest(name, ALL))
        if delay:
            time.sleep(delay)
        refused(domain.create)
        (booted,) = column.seen(name)
        return cells(booted) == PLACED

    return walk


def virsh_create(column: Column) -> bool:
    name = column.name()
    file = column.host.base / "transient.xml"
    file.write_text(guest(name, ALL))
    uri = column.proxy.inside if column.proxy else "qemu:///system"
    column.host.run(["virsh", "-c", uri, "create", str(file)], check=False)
    (booted,) = column.seen(name)
    return cells(booted) == PLACED


def virt_install(column: Column) -> bool:
    """createXML of what is installed, then defineXML of what boots later."""
    name = column.name()
    xml = guest(name, ALL, uuid="5ad3b1c4-6f1c-4a5e-8a39-%012x" % int(name.split("-")[1]))
    refused(lambda: column.connection.createXML(xml, 0))
    domain = column.define(xml)
    column.await_placed(domain)
    (booted,) = column.seen(name)
    return cells(booted) == PLACED


def nova_spawn(column: Column) -> bool:
    name = column.name()
    refused(lambda: column.define(guest(name, ALL)).createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED))
    (booted,) = column.seen(name)
    return cells(booted) == PLACED


def nova_hard_reboot(column: Column) -> bool:
    """destroy, undefine, define, create; the guest that is destroyed ran without its devices, since none can run here with them."""
    name = column.name()
    uuid = "6bd3b1c4-6f1c-4a5e-8a39-%012x" % int(name.split("-")[1])
    domain = column.define(guest(name, uuid=uuid))
    domain.createWithFlags(0)
    domain.destroy()
    domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
    again = column.define(guest(name, ALL, uuid=uuid))
    refused(lambda: again.createWithFlags(0))
    return cells(column.seen(name)[-1]) == PLACED


def vdsm(column: Column) -> bool:
    """defineXML, then createWithFlags, with a second connection's look in between."""
    name = column.name()
    domain = column.define(guest(name, ALL))
    domain.XMLDesc(INACTIVE)
    refused(lambda: domain.createWithFlags(0))
    (booted,) = column.seen(name)
    return cells(booted) == PLACED


def autostart(column: Column) -> bool:
    name = column.name()
    domain = column.define(guest(name, ALL))
    domain.setAutostart(1)
    column.await_placed(domain)
    column.connection.close()
    column.host.stop_libvirtd()
    column.host.path("/run/libvirt/qemu/autostarted").unlink(missing_ok=True)
    column.host.start_libvirtd()
    until(lambda: column.seen(name), "the autostart")
    column.connection = libvirt.open(column.uri)
    column.connection.lookupByName(name).setAutostart(0)
    until(lambda: column.daemon.call("Status")["libvirt"]["connected"], "the daemon to be back")
    return cells(column.seen(name)[0]) == PLACED


def redefine_while_running(column: Column) -> bool:
    name = column.name()
    domain = column.define(guest(name))
    domain.create()
    again = column.define(guest(name, ALL, uuid=domain.UUIDString()))
    domain.destroy()
    refused(again.create)
    return cells(column.seen(name)[-1]) == PLACED


# Paths that must change nothing


def managed_save_and_restore(column: Column) -> bool:
    name = column.name()
    domain = column.define(guest(name))
    domain.create()
    domain.managedSave()
    column.define(guest(name, ALL, uuid=domain.UUIDString()))
    before = domain.XMLDesc(INACTIVE)
    domain.create()
    live = domain.XMLDesc(0)
    domain.destroy()
    column.define(guest(name, uuid=domain.UUIDString()))
    return "pcie-expander-bus" not in live and cells(before) == dict.fromkeys(ALL)


def snapshot_revert(column: Column) -> bool:
    """An internal snapshot of a running guest, reverted to after the definition has got devices, which were placed."""
    name = column.name()
    disk = f"/run/{name}.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(column.host.path(disk)), "16M"], check=True)
    storage = f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{disk}'/><target dev='vda' bus='virtio'/></disk>"
    domain = column.define(guest(name, extra=storage))
    domain.create()
    snapshot = domain.snapshotCreateXML("<domainsnapshot/>")
    before = domain.XMLDesc(0)
    domain.destroy()
    column.await_placed(column.define(guest(name, ALL, extra=storage, uuid=domain.UUIDString())))
    domain.revertToSnapshot(snapshot)
    same = controllers_of(domain.XMLDesc(0)) == controllers_of(before)
    domain.destroy()
    return same


def reset(column: Column) -> bool:
    """A reboot within one QEMU process."""
    name = column.name()
    domain = column.define(guest(name))
    domain.create()
    before = domain.XMLDesc(0)
    column.await_placed(column.define(guest(name, ALL, uuid=domain.UUIDString())))
    domain.reset()
    same = domain.XMLDesc(0) == before and len(column.seen(name)) == 1
    domain.destroy()
    return same


def controllers_of(xml: str) -> list[str]:
    return [line.strip() for line in xml.splitlines() if "<controller" in line]


PATHS = [
    StartPath("define, start at once", define_and_start(0), races=True),
    StartPath("define, start 1 ms later", define_and_start(0.001), races=True),
    StartPath("define, start 5 ms later", define_and_start(0.005), races=True),
    StartPath("define, start 50 ms later", define_and_start(0.05), races=True),
    StartPath("transient: virsh create (Pacemaker, Terraform)", virsh_create, without=False),
    StartPath("virt-install: create, then define", virt_install, without=False),
    StartPath("Nova: define, createWithFlags", nova_spawn, races=True),
    StartPath("Nova, hard reboot: destroy, undefine, define, createWithFlags", nova_hard_reboot, races=True, slow=True),
    StartPath("vdsm: define, read, createWithFlags", vdsm, races=True),
    StartPath("autostart when libvirtd starts", autostart, without=True),
    StartPath("redefined while running, destroyed, started", redefine_while_running, races=True, slow=True),
    StartPath("managed save and restore", managed_save_and_restore, keeps=True),
    StartPath("revert to an internal snapshot", snapshot_revert, keeps=True),
    StartPath("reboot within QEMU", reset, keeps=True),
]


# Hot-plug


class Wire:
    """A relay of the test's own before libvirtd's socket: keeps what libvirt is told."""

    def __init__(self, host: PrivateLibvirt) -> None:
        self.path = "/run/wire-sock"
        self.told = b""
        self._upstream = str(host.path("/run/libvirt/libvirt-sock"))
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(host.path(self.path)))
        self._listener.listen(8)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            far = socket.socket(socket.AF_UNIX)
            far.connect(self._upstream)
            threading.Thread(target=self._pump, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, False), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, keep: bool) -> None:
        while data := source.recv(65536):
            if keep:
                self.told += data
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)

    def device(self) -> str:
        """The device XML of the last attach call that libvirt was told."""
        return "<hostdev" + self.told.decode("latin-1").rpartition("<hostdev")[2].partition("</hostdev>")[0] + "</hostdev>"


def test_a_device_that_is_plugged_in_gets_a_spare_port_of_its_node(tmp_path: Path) -> None:
    """A guest with a spare port on each expander; there is no VFIO, so what counts is what libvirt is told."""
    require()
    tree = small_host(tmp_path / "host")
    (tree / "etc/pcinuma").mkdir(parents=True)
    (tree / "etc/pcinuma/pcinuma.conf").write_text("[placement]\nspare-ports = 1\ngroup-by = node\n")
    with PrivateLibvirt(host_tree=tree) as host, RunningDaemon(host) as daemon:
        wire = Wire(host)
        with RunningProxy(host, ["--upstream", wire.path]) as proxy:
            placed = daemon.call("Place", {"xml": guest("plugged", (GPU_0, GPU_1)), "caller": "test"})["xml"]
            # Placed as for two devices, and running without them, which is as far as a machine without VFIO goes.
            without = re.sub(r"<hostdev .*?</hostdev>", "", placed, flags=re.DOTALL)
            host.connect().defineXML(without).create()
            live = host.connect().lookupByName("plugged").XMLDesc()

            def told(device: str, *options: str) -> Optional[str]:
                """The device as libvirt is told to plug it in, if it has an address."""
                host.path("/run/device.xml").write_text(hostdev(device))
                host.run(["virsh", "-c", proxy.inside, "attach-device", "plugged", "/run/device.xml", *options], check=False)
                return wire.device() if etree.fromstring(wire.device()).find("address") is not None else None

            for options in (["--live"], []):
                device = told(NIC_1, *options)
                assert device is not None
                assert cells(live.replace("</devices>", device + "</devices>")) == {NIC_1: 1}
            assert told(NIC_1, "--config") is None
            assert told("0000:99:00.0", "--live") is None


# Without an answer


def test_a_start_waits_for_a_hanging_daemon_and_then_goes_its_way(tmp_path: Path) -> None:
    """Frozen: two seconds and a line in the log. Killed: not that long. Back again: placed again."""
    require()
    with PrivateLibvirt(host_tree=small_host(tmp_path / "host")) as host, RunningDaemon(host) as daemon, RunningProxy(host) as proxy:
        connection = proxy.connect()

        def waits(name: str) -> list[float]:
            """Seconds that calls that went as they came had waited for the daemon, after one more start."""
            connection.createXML(guest(name)).destroy()
            return [float(found) / 1000 for found in re.findall(r"forwarded as it came.*duration_ms=(\S+)", proxy.log())]

        assert waits("usual") == []
        daemon.freeze()
        (frozen,) = waits("frozen")
        assert frozen >= 1.9
        daemon.thaw()
        daemon.kill()
        _, killed = waits("killed")
        assert killed < frozen
        daemon.start()
        assert len(waits("back")) == 2


# Migration


def test_what_migrates_in_is_not_touched(tmp_path: Path) -> None:
    """Two hosts, both with pcinuma; the destination is reached through its proxy."""
    require()
    with (
        PrivateLibvirt(host_tree=small_host(tmp_path / "one")) as source,
        PrivateLibvirt(host_tree=small_host(tmp_path / "other"), libvirtd=False) as destination,
    ):
        destination.start_libvirtd()
        with RunningDaemon(destination), RunningProxy(destination) as proxy:
            domain = source.connect().defineXML(guest("wanderer"))
            domain.create()
            before = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE)
            there = proxy.connect()
            flags = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
            moved = domain.migrate3(there, {libvirt.VIR_MIGRATE_PARAM_URI: f"unix://{tmp_path}/migration"}, flags)
            assert moved.isActive()
            assert controllers_of(moved.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE)) == controllers_of(before)
            moved.destroy()


# The table


@pytest.fixture(scope="module", params=["reconciler only", "proxy"])
def column(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Column]:
    require()
    with hooked_host(tmp_path_factory.mktemp("column"), RECORDER) as host, RunningDaemon(host) as daemon:
        if request.param == "proxy":
            with RunningProxy(host) as proxy:
                yield Column(request.param, host, daemon, proxy)
        else:
            yield Column(request.param, host, daemon, None)


@pytest.fixture(scope="module")
def table() -> Iterator[dict[tuple[str, str], str]]:
    """What was measured, by row and column; printed at the end."""
    cells_: dict[tuple[str, str], str] = {}
    yield cells_
    titles = sorted({column for _, column in cells_}, reverse=True)
    print("\n\n| start path | " + " | ".join(titles) + " |\n|---" + "|---" * len(titles) + "|")
    for path in PATHS:
        print(f"| {path.title} | " + " | ".join(cells_.get((path.title, title), "") for title in titles) + " |")


def walk(column: Column, path: StartPath, times: int, table: dict[tuple[str, str], str]) -> None:
    good = sum(path.walk(column) for _ in range(times))
    word = "kept" if path.keeps else "placed"
    table[path.title, column.title] = f"{word} {good} of {times}"
    if path.keeps or column.proxy or path.without is True:
        assert good == times
    elif path.without is False:
        assert good == 0


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.title)
def test_start_path(column: Column, path: StartPath, table: dict[tuple[str, str], str]) -> None:
    walk(column, path, 3 if path.races and not path.slow else 1, table)


@pytest.mark.full
@pytest.mark.parametrize("path", [path for path in PATHS if path.races or path.without is False], ids=lambda path: path.title)
def test_start_path_two_hundred_times(column: Column, path: StartPath, table: dict[tuple[str, str], str]) -> None:
    walk(column, path, MANY, table)
