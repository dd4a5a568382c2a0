# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests without NUMA cells on a host with the daemon: given some by command, by owner and by configuration, and the way back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest
from lxml import etree

from tests.hosts.small import GPU_0, GPU_1, small_host
from tests.libvirt.conftest import require
from tests.libvirt.domains import cells, guest, hostdev
from tests.libvirt.harness import PrivateLibvirt
from tests.libvirt.running_daemon import RunningDaemon
from tests.libvirt.running_proxy import RunningProxy
from tests.libvirt.test_command import SECURE, Command

PLACED = {GPU_0: 0, GPU_1: 1}
RECORD = "{urn:pcinuma:domain:1}cells"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[PrivateLibvirt]:
    require()
    with PrivateLibvirt(host_tree=small_host(tmp_path / "host")) as host:
        yield host


@pytest.fixture
def daemon(host: PrivateLibvirt) -> Iterator[RunningDaemon]:
    with RunningDaemon(host) as daemon:
        yield daemon


@pytest.fixture
def pcinuma(host: PrivateLibvirt) -> Command:
    return Command(host)


def flat(name: str, asked: str = "") -> str:
    """A guest without cells. ``asked``: what its owner says of them."""
    owner = f"<metadata><p:pcinuma xmlns:p='urn:pcinuma:domain:1' cells='{asked}'/></metadata>" if asked else ""
    return f"""<domain type='qemu'>
  <name>{name}</name><uuid>0d1e7a3c-52f7-4b0e-9d2b-9a1c3f6a8b22</uuid>{owner}
  <memory unit='MiB'>128</memory><vcpu>2</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>
  <devices>{hostdev(GPU_0)}{hostdev(GPU_1)}</devices>
</domain>"""


def inactive(domain: libvirt.virDomain) -> str:
    return str(domain.XMLDesc(SECURE))


def guest_cells(xml: str) -> list[tuple[str, str, str]]:
    """Of each cell its vCPUs, its memory in KiB and its node."""
    root = etree.fromstring(xml)
    bound = {memnode.get("cellid"): memnode.get("nodeset") for memnode in root.iterfind("numatune/memnode")}
    return [(cell.get("cpus"), cell.get("memory"), bound.get(cell.get("id"))) for cell in root.iterfind("cpu/numa/cell")]


BOTH = [("0", "65536", "0"), ("1", "65536", "1")]


def is_recorded(xml: str) -> bool:
    return next(etree.fromstring(xml).iter(RECORD), None) is not None


@pytest.mark.parametrize("with_daemon", [False, True])
def test_the_command_shows_writes_and_takes_out(with_daemon: bool, host: PrivateLibvirt, pcinuma: Command) -> None:
    domain = host.connect().defineXML(flat("vm1"))
    before = inactive(domain)
    if with_daemon:
        with RunningDaemon(host) as daemon:
            _shows_writes_and_takes_out(domain, before, pcinuma)
            assert daemon.settle()
    else:
        _shows_writes_and_takes_out(domain, before, pcinuma)


def _shows_writes_and_takes_out(domain: libvirt.virDomain, before: str, pcinuma: Command) -> None:
    shown = pcinuma.json("cells", "vm1")
    assert (shown["state"], shown["changed"], shown["report"]["outcome"]) == ("proposed", True, "placed")
    assert [(cell["host_node"], cell["vcpus"], cell["cpus"]) for cell in shown["report"]["cells"]] == [(0, "0", "0"), (1, "1", "1")]
    assert "would have 2 guest cells for the host nodes 0 and 1, 2 of 2 devices placed" in pcinuma("cells", "vm1")
    assert "+    <numa>" in pcinuma("cells", "vm1", "--diff")
    assert "`pcinuma cells vm1` shows" in pcinuma("plan", "vm1")
    assert inactive(domain) == before

    assert "2 guest cells, 2 of 2 devices placed; takes effect at the next start" in pcinuma("cells", "vm1", "--apply")
    written = inactive(domain)
    assert (guest_cells(written), cells(written), is_recorded(written)) == (BOTH, PLACED, True)
    assert "unchanged: it has 2 guest cells of pcinuma's" in pcinuma("cells", "vm1", "--apply")
    assert pcinuma.json("cells", "vm1")["state"] == "written"
    assert pcinuma.json("cells", "vm1", "--apply", "--replan", "--memory", "preferred")["changed"]
    assert inactive(domain).count("mode='preferred'") == 2

    assert "cells and placement are taken out" in pcinuma("cells", "vm1", "--remove")
    assert inactive(domain) == before
    assert "unchanged" in pcinuma("cells", "vm1", "--remove")


def test_what_stands_in_the_way_is_said_and_nothing_is_written(host: PrivateLibvirt, pcinuma: Command) -> None:
    connection = host.connect()
    domain = connection.defineXML(flat("vm1").replace("<vcpu>", "<vcpu cpuset='0-1'>"))
    before = inactive(domain)
    for words in (("cells", "vm1"), ("cells", "vm1", "--apply")):
        assert "<vcpu cpuset='0-1'> lies on the host nodes 0 and 1" in pcinuma(*words, exit_code=1)
    connection.defineXML(guest("own", (GPU_0,)))
    assert "cells of its owner's, which pcinuma never changes" in pcinuma("cells", "own")
    assert "cells of its owner's" in pcinuma("cells", "own", "--apply", exit_code=1)
    assert inactive(domain) == before


def test_the_owners_auto_gives_cells_at_every_definition_until_there_are_others(
    host: PrivateLibvirt, daemon: RunningDaemon, pcinuma: Command
) -> None:
    connection = host.connect()
    connection.defineXML(flat("vm1"))
    daemon.settle()
    assert daemon.outcome("vm1") == ("unchanged", "no-cells")
    assert "cells auto" in pcinuma("policy", "vm1", "--cells", "auto")
    domain = connection.lookupByName("vm1")
    assert (guest_cells(inactive(domain)), cells(inactive(domain))) == (BOTH, PLACED)

    versions = []
    for undefined in (True, True, False):  # the last one over the one that has cells
        if undefined:
            domain.undefine()
        domain = connection.defineXML(flat("vm1", "auto"))
        daemon.settle()
        versions.append(inactive(domain))
    first = versions[0]
    assert (guest_cells(first), cells(first)) == (BOTH, PLACED)
    assert versions == [first] * 3

    mine = etree.fromstring(first)
    for cell, kib in zip(mine.iterfind("cpu/numa/cell"), ("98304", "32768")):
        cell.set("memory", kib)
    connection.defineXML(etree.tostring(mine).decode())
    daemon.settle()
    owners = inactive(domain)
    assert guest_cells(owners) == [("0", "98304", "0"), ("1", "32768", "1")]
    assert not is_recorded(owners) and cells(owners) == PLACED
    pcinuma("revert", "vm1")
    left = inactive(domain)
    assert guest_cells(left) == guest_cells(owners) and cells(left) == dict.fromkeys(PLACED)


def test_auto_for_the_host_is_for_all_but_those_that_say_off(host: PrivateLibvirt, tmp_path: Path, pcinuma: Command) -> None:
    folder = tmp_path / "host/etc/pcinuma"
    folder.mkdir(parents=True)
    (folder / "pcinuma.conf").write_text("[placement]\ncells = auto\n")
    connection = host.connect()
    with RunningDaemon(host) as daemon, RunningProxy(host) as proxy:
        reply = daemon.call("Place", {"xml": flat("vm1"), "caller": "proxy"})
        assert guest_cells(reply["xml"]) == BOTH and len(reply["report"]["cells"]) == 2
        through = proxy.connect()
        domain = through.defineXML(flat("vm1"))
        with pytest.raises(libvirt.libvirtError):
            domain.create()  # no VFIO here; what libvirt was about to boot is what it has now
        assert guest_cells(inactive(domain)) == BOTH and cells(inactive(domain)) == PLACED
        through.close()
        daemon.settle()
        original = flat("vm1", "off")
        connection.lookupByName("vm1").undefine()
        domain = connection.defineXML(original)
        daemon.settle()
        assert guest_cells(inactive(domain)) == []
        assert "cells off" in pcinuma("policy", "vm1")
        pcinuma("policy", "vm1", "--cells", "default")
        assert guest_cells(inactive(domain)) == BOTH
        pcinuma("revert", "--all")
        assert guest_cells(inactive(domain)) == []


def test_status_and_check_name_the_command_that_shows_what_cells_would_be(
    host: PrivateLibvirt, daemon: RunningDaemon, pcinuma: Command
) -> None:
    connection = host.connect()
    connection.defineXML(flat("vm1"))
    daemon.settle()
    assert "`pcinuma cells vm1` shows" in pcinuma("status", "vm1")
    (entry,) = pcinuma.json("status", "vm1")["domains"]
    assert (entry["outcome"], entry["reason"]) == ("unchanged", "no-cells")
    assert "`pcinuma cells vm1` shows" in entry["message"]
    assert "`pcinuma cells vm1` shows" in pcinuma("explain", "vm1")
    (line,) = [line for line in pcinuma.json("check", exit_code=1)["findings"] if "vm1" in str(line)]
    assert line["message"].startswith("left as it is: ") and "`pcinuma cells vm1` shows" in line["message"]
    pcinuma("cells", "vm1", "--apply")
    (entry,) = pcinuma.json("status", "vm1")["domains"]
    assert (entry["outcome"], entry["reason"]) == ("placed", None)
    (line,) = [line for line in pcinuma.json("check", exit_code=1)["findings"] if "vm1" in str(line)]
    assert "left as it is" not in line["message"] and line["level"] == "PASS"


def test_neither_a_running_guest_nor_a_saved_one_gets_other_cells(host: PrivateLibvirt, daemon: RunningDaemon, pcinuma: Command) -> None:
    """What runs keeps its cells, and what is to come back from a saved state keeps its definition, whoever asks."""
    connection = host.connect()
    domain = connection.defineXML(flat("vm1", "auto").replace(hostdev(GPU_0) + hostdev(GPU_1), ""))
    domain.create()
    live = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)
    for gpu in (GPU_0, GPU_1):
        domain.attachDeviceFlags(hostdev(gpu), libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    daemon.settle()
    assert (guest_cells(inactive(domain)), cells(inactive(domain))) == (BOTH, PLACED)  # for its next start
    replanned = pcinuma("cells", "vm1", "--apply", "--replan", "--memory", "preferred")
    assert "takes effect when the running guest has been shut off and started" in replanned
    assert domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE) == live

    pcinuma("cells", "vm1", "--remove")
    before = inactive(domain)
    assert guest_cells(before) == []
    domain.managedSave()
    for words in (("enable", "vm1"), ("cells", "vm1", "--apply"), ("cells", "vm1", "--apply", "--replan")):
        assert "managedsave-remove vm1" in pcinuma(*words, exit_code=1)
    connection.lookupByName("vm1").setMetadata(libvirt.VIR_DOMAIN_METADATA_TITLE, "saved", None, None, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    daemon.settle()
    assert guest_cells(inactive(domain)) == []
    domain.managedSaveRemove(0)
    assert "2 guest cells, 2 of 2 devices placed" in pcinuma("cells", "vm1", "--apply")
    assert (guest_cells(inactive(domain)), cells(inactive(domain))) == (BOTH, PLACED)


def test_restarts_and_kills_in_between_change_no_cells(host: PrivateLibvirt, pcinuma: Command) -> None:
    connection = host.connect()
    seen = []
    with RunningDaemon(host) as daemon:
        domain = connection.defineXML(flat("vm1", "auto"))
        for number in range(3):
            daemon.settle()
            seen.append(inactive(domain))
            daemon.kill()
            domain = connection.defineXML(flat("vm1", "auto") if number else seen[0])
            daemon.start()
        daemon.settle()
        seen.append(inactive(domain))
        assert guest_cells(seen[0]) == BOTH and seen == [seen[0]] * 4
        pcinuma("revert", "vm1")
        daemon.kill()
        daemon.start()
        daemon.settle()
        assert guest_cells(inactive(domain)) == []
