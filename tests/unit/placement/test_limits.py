# SPDX-License-Identifier: LGPL-2.1-or-later
"""At each limit of the guest's PCI: what fits is placed by every rule of the judge, and the next one falls back with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcinuma.engine import Request, Result, place
from pcinuma.reason import Outcome, Reason
from tests.hosts.build import NVME, Host
from tests.hosts.domains import Domain, two_cells
from tests.hosts.guest import Guest
from tests.hosts.judge import judge
from tests.hosts.machines import MACHINES, crowd


def _judged(domain: Domain, host: Host, folder: Path) -> Result:
    xml = domain.raw()
    result = place(xml, Request(root=host.write(folder)))
    judge(xml, result.xml, host, result.report())
    return result


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_one_to_eight_cells_with_three_devices_each(count: int, tmp_path: Path) -> None:
    host, domain = Host(), Domain().cells(*map(str, range(count)))
    for node in range(count):
        host.node(node, str(node))
    for node in range(count):
        domain.memnode(count - 1 - node, str(node))
        root = host.rc(f"pci{node:04x}:00", node=node)
        for drive in range(3):
            root.port(f"00:0{drive + 1}.0").device(f"0{drive + 1}:00.0", NVME)
            domain.hostdev(f"{node:04x}:0{drive + 1}:00.0")
    result = _judged(domain, host, tmp_path)
    assert {(line.host_node, line.guest_cell, line.placed) for line in result.devices} == {
        (node, count - 1 - node, True) for node in range(count)
    }


def _with_ports(last: int) -> Domain:
    """Root ports of the owner with the indexes 1 to ``last``, eight to a slot, and two devices."""
    domain = two_cells()
    for index in range(1, last + 1):
        place = f"00:{2 + (index - 1) // 8:02x}.{(index - 1) % 8}"
        domain.controller(index, "pcie-root-port", f"<target chassis='{index}' hotplug='off'/>", place, multifunction=index % 8 == 1)
    return domain.hostdev("17:00.0").hostdev("b3:00.0")


def test_the_indexes_and_chassis_up_to_255_are_used_and_no_further(tmp_path: Path) -> None:
    """Two expanders with a port each, three ports for what libvirt adds: seven controllers."""
    fits = {}
    for last in (100, 160, 170, 180, 184):
        result = _judged(_with_ports(last), MACHINES["two-sockets"](), tmp_path / str(last))
        fits[last] = result.outcome
        if result.outcome is Outcome.FALLBACK:
            assert result.reason is Reason.NO_ROOM
        else:
            assert max(Guest.of(result.xml).controllers) <= 255
    assert fits[100] is Outcome.PLACED


def test_bus_numbers_that_somebodys_expanders_take_are_left_to_them(tmp_path: Path) -> None:
    for low, outcome in ((100, Outcome.PLACED), (12, Outcome.PLACED), (6, Outcome.FALLBACK)):
        domain = two_cells().controller(1, "pcie-expander-bus", f"<target busNr='{low}'><node>0</node></target>", "00:04.0")
        above = 200 if low != 6 else 8
        domain.controller(2, "pcie-expander-bus", f"<target busNr='{above}'><node>1</node></target>", "00:05.0")
        index = 3
        for parent, count in ((1, 4 if low != 6 else 1), (2, 3 if low != 6 else 246)):
            for number in range(count):
                target = f"<target chassis='{index}' hotplug='off'/>"
                domain.controller(index, "pcie-root-port", target, f"{parent:02x}:{number % 32:02x}.{number // 32}", number // 32 == 0)
                index += 1
        result = _judged(domain.hostdev("17:00.0").hostdev("b3:00.0"), MACHINES["two-sockets"](), tmp_path / str(low))
        assert result.outcome is outcome, (low, result.message)
        assert outcome is Outcome.PLACED or result.reason is Reason.NO_ROOM


@pytest.mark.parametrize(("free", "outcome"), [(3, Outcome.PLACED), (2, Outcome.PLACED), (1, Outcome.FALLBACK), (0, Outcome.FALLBACK)])
def test_a_main_root_with_hardly_a_slot(free: int, outcome: Outcome, tmp_path: Path) -> None:
    """Needed: one slot for the ports of what libvirt adds, one for both expanders (the second is a function of it)."""
    domain = two_cells()
    slots = list(range(2, 31))
    for index, slot in enumerate(slots[: len(slots) - free], start=1):
        domain.controller(index, "pcie-root-port", f"<target chassis='{index}' hotplug='off'/>", f"00:{slot:02x}.0")
    result = _judged(domain.hostdev("17:00.0").hostdev("b3:00.0"), MACHINES["two-sockets"](), tmp_path)
    assert result.outcome is outcome, result.message
    assert outcome is Outcome.PLACED or result.reason is Reason.NO_ROOM


@pytest.mark.parametrize("count", [32, 33, 64, 100])
def test_many_devices_on_one_node_share_slots_as_functions(count: int, tmp_path: Path) -> None:
    domain = Domain().cells("0-3").memnode(0, "0")
    for number in range(count):
        domain.hostdev(f"0000:{number + 1:02x}:00.0")
    result = _judged(domain, crowd(count), tmp_path)
    assert all(line.placed for line in result.devices)
