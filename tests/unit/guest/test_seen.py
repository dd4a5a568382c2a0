# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a guest's kernel says of its devices: found on whatever buses it has them, judged against the host."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcinuma.cli.guest_agent import readable
from pcinuma.cli.sources import DomainSource
from pcinuma.cli.verify import Check, Told, check_domain
from pcinuma.domain.read import read_domain
from pcinuma.domain.xml import Document
from pcinuma.guest.addresses import address_in_guest, bus_numbers
from pcinuma.guest.agent import AgentError, AgentState, GuestAgent
from pcinuma.guest.seen import DEVICES, KernelView, Seen, numa_node, regions, uevent
from tests.hosts.domains import Domain, two_cells
from tests.hosts.guest_kernel import Agent, kernel
from tests.hosts.machines import MACHINES
from tests.unit.guest.test_addresses import PLACED
from tests.waiting import CHECKOUT

GOLDEN = CHECKOUT / "tests/golden"
NUMBERS: dict[str, Callable[[int], int]] = {
    "as computed": lambda number: number,
    "as another firmware": lambda number: 1 + (number + 100) % 0xFF,
}
Files = dict[str, bytes]


def look(xml: bytes, files: Files) -> dict[str, Optional[Seen]]:
    domain = read_domain(Document(xml))[0]
    agent = GuestAgent(Agent(files), 30)
    readable(agent)
    view = KernelView(domain, agent.read)
    return {device.source: view.device(device) for device in domain.devices}


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("path", [*PLACED, GOLDEN / "pseries-out.xml"], ids=lambda path: path.name)
def test_each_device_is_found_where_the_kernel_has_it(path: Path, numbers: str) -> None:
    """Whether its bridges lead there is what is looked at here; a host with the devices is in the next test."""
    xml = path.read_bytes()
    domain = read_domain(Document(xml))[0]
    files = kernel(xml, CHECKOUT / "none", NUMBERS[numbers])
    view = KernelView(domain, lambda name, size: files.get(name))
    buses = bus_numbers(domain)
    for device in domain.devices:
        place = view.place(device)
        if device.address is None:
            assert place is None
            continue
        assert place is not None
        assert place.missing is None
        computed = address_in_guest(buses, device)
        if numbers == "as computed" or not place.bridges:
            assert place.address == computed
        else:
            assert place.address == computed._replace(bus=NUMBERS[numbers](computed.bus))
        assert all(f"{DEVICES}/{bridge}/config" in files for bridge in place.bridges)


TOLD = {
    "two-nodes-out": "two-sockets",
    "eight-gpus-switch-out": "eight-gpus",
    "eight-gpus-root-complex-out": "eight-gpus",
    "eight-gpus-node-out": "eight-gpus",
    "two-root-complexes-out": "two-root-complexes",
}


def checks(tmp_path: Path, name: str, change: Callable[[Files], object] = lambda files: None) -> list[Check]:
    """The checks of the golden, running in a guest whose kernel says what it should, but for ``change``."""
    MACHINES[TOLD[name]]().write(tmp_path)
    xml = (GOLDEN / f"{name}.xml").read_bytes()
    files = kernel(xml, tmp_path)
    change(files)
    return check_domain(DomainSource(name, xml, {}, True), tmp_path, Told(AgentState.ANSWERED, "", look(xml, files)))


@pytest.mark.parametrize("name", TOLD)
def test_a_guest_whose_kernel_has_all_as_placed_passes_by_its_own_word(name: str, tmp_path: Path) -> None:
    found = checks(tmp_path, name)
    assert {check.passed for check in found} == {True}
    assert all(check.seen is not None and check.seen.driver == "some" and check.seen.regions for check in found)
    assert {check.guest_cell for check in found} == {0, 1}


def device(files: Files, file: str = "uevent") -> str:
    """The path of a file of the first passed-through device."""
    return min(path for path in files if path.endswith("/uevent"))[: -len("uevent")] + file


def bridge(files: Files) -> str:
    """The path of the configuration space of the bridge above it."""
    bus = int(device(files).split(":")[1], 16)
    return next(path for path, content in files.items() if path.endswith("/config") and content[0x0E] == 1 and content[0x19] == bus)


def without_addresses(content: bytes) -> bytes:
    """The lines of a ``resource`` file as a kernel writes them that found no room."""
    fields = [line.split() for line in content.decode().splitlines()]
    lines = [f"0x{0:016x} 0x{int(end, 16) - int(start, 16):016x} 0x{int(flags, 16) | 0x20000000:016x}" for start, end, flags in fields]
    return "\n".join(lines).encode()


FAULTS: dict[str, tuple[Callable[[Files], object], str]] = {
    "another node": (lambda files: files.update({device(files, "numa_node"): b"1"}), "the guest sees it under cell 1"),
    "no node": (lambda files: files.update({device(files, "numa_node"): b"-1"}), "the guest sees no node for it"),
    "no such device": (lambda files: files.pop(device(files)), "has no device at"),
    "no such bridge": (lambda files: files.pop(bridge(files)), "has no PCI bridge at"),
    "another device": (lambda files: files.update({device(files): b"PCI_ID=1AF4:1041\n"}), "1af4:1041, another device"),
    "no address": (
        lambda files: files.update({device(files, "resource"): without_addresses(files[device(files, "resource")])}),
        "found no address for BAR",
    ),
    "no BARs": (lambda files: files.update({device(files, "resource"): b"0x0 0x0 0x0\n" * 13}), "found no address for BAR"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_the_kernel_has_otherwise_fails_though_the_xml_is_right(fault: str, tmp_path: Path) -> None:
    change, message = FAULTS[fault]
    found = checks(tmp_path, "two-nodes-out", change)
    failed = [check for check in found if not check.passed]
    assert len(failed) == 1
    assert message in failed[0].message


def test_a_kernel_without_cells_says_nothing_by_its_only_node(tmp_path: Path) -> None:
    root = MACHINES["two-sockets"]().write(tmp_path)
    domain = two_cells().hostdev("17:00.0", "01:00.0").controller(1, "pcie-root-port", address="00:02.0")
    xml = domain.raw().replace(b"<numa>", b"<!--").replace(b"</numa>", b"-->")
    source = DomainSource("x", xml, {}, True)
    said = look(xml, {**kernel(xml, root), f"{DEVICES}/0000:01:00.0/numa_node": b"0"})
    by_kernel = check_domain(source, root, Told(AgentState.ANSWERED, "", said))[0]
    by_xml = check_domain(source, root)[0]
    assert (by_kernel.passed, by_kernel.message) == (by_xml.passed, by_xml.message)


@given(st.binary(max_size=200) | st.text(alphabet="0123456789abcdefx \n-=_PCIDRVE:", max_size=80).map(str.encode))
def test_a_file_that_no_kernel_wrote_is_nonsense_and_nothing_else(data: bytes) -> None:
    for parse in (uevent, numa_node, regions):
        try:
            parse(data)
        except AgentError as error:
            assert error.state is AgentState.NONSENSE


def test_a_guest_without_sysfs_is_not_held_to_what_it_cannot_say() -> None:
    with pytest.raises(AgentError) as caught:
        readable(GuestAgent(Agent({}), 30))
    assert caught.value.state is AgentState.UNREADABLE


@pytest.mark.parametrize(
    "written",
    [
        two_cells().hostdev("17:00.0", "07:00.0"),
        two_cells().hostdev("17:00.0", "01:00.0").controller(1, "pcie-root-port"),
        two_cells()
        .hostdev("17:00.0", "01:00.0")
        .controller(1, "pcie-root-port", address="02:00.0")
        .controller(2, "pcie-root-port", address="01:01.0"),
    ],
    ids=["nowhere", "no address", "circle"],
)
def test_a_domain_that_leads_nowhere_ends(written: Domain) -> None:
    domain = read_domain(Document(written.raw()))[0]
    with pytest.raises(AgentError):
        KernelView(domain, lambda path, size: b"").device(domain.devices[0])


@pytest.mark.parametrize("left_out", ["resource", "numa_node", "config"])
def test_a_device_without_one_of_its_files_is_no_traceback(left_out: str, tmp_path: Path) -> None:
    MACHINES["two-sockets"]().write(tmp_path)
    xml = (GOLDEN / "two-nodes-out.xml").read_bytes()
    files = kernel(xml, tmp_path)
    files.pop(device(files, left_out))
    if left_out == "resource":
        with pytest.raises(AgentError):
            look(xml, files)
    else:
        assert look(xml, files)
