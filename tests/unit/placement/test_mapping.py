# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which guest cell stands for a host node, as libvirt binds memory and vCPUs; and what a domain says of which nothing can be placed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Optional

import pytest
from lxml import etree

from pcinuma.engine import Request, place
from pcinuma.reason import Outcome, Reason
from pcinuma.report import Result
from tests.hosts.domains import Domain
from tests.hosts.machines import MACHINES

NODE_OF = {"0000:17:00.0": 0, "0000:b3:00.0": 1}
CPUS_OF = {0: "0-7", 1: "8-15"}
NOVA = "<metadata><n:instance xmlns:n='http://openstack.org/xmlns/libvirt/nova/1.1'/></metadata>"
OVIRT = "<metadata><o:vm xmlns:o='http://ovirt.org/vm/1.0'/></metadata>"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MACHINES["two-sockets"]().write(tmp_path_factory.mktemp("root"))


def guest(
    cells: int, memnodes: dict[int, str], memory: str, pins: dict[int, str], vcpu: str, metadata: str = "", sources: str = "17 b3"
) -> bytes:
    """Two vCPUs a cell. ``memory`` and ``vcpu``: attributes of ``<memory>`` and ``<vcpu>``."""
    domain = Domain().cells(*(f"{2 * cell}-{2 * cell + 1}" for cell in range(cells)))
    for bus in sources.split():
        domain.hostdev(f"{bus}:00.0")
    tree = etree.fromstring(domain.raw())
    tree.find("vcpu").attrib.clear()
    for name, value in etree.fromstring(f"<vcpu {vcpu}/>").items():
        tree.find("vcpu").set(name, value)
    tuning = f"<memory mode='strict' {memory}/>" if memory else ""
    tuning += "".join(f"<memnode cellid='{cell}' mode='strict' nodeset='{nodes}'/>" for cell, nodes in memnodes.items())
    pinning = "".join(f"<vcpupin vcpu='{number}' cpuset='{cpus}'/>" for number, cpus in pins.items())
    more = f"{metadata}<numatune>{tuning}</numatune><cputune>{pinning}</cputune>"
    return etree.tostring(tree).replace(b"<os>", more.encode() + b"<os>")


def numbers(text: str) -> set[int]:
    parts = [part.split("-") for part in text.split(",") if part]
    return {number for part in parts for number in range(int(part[0]), int(part[-1]) + 1)}


def expected(cells: int, memnodes: dict[int, str], memory: str, pins: dict[int, str], vcpu: str, node: int) -> object:
    """The rule, said as plainly as it can be."""
    bound = {cell: memnodes.get(cell, memory) for cell in range(cells)}
    by_memory = [cell for cell, nodes in bound.items() if node in numbers(nodes)]
    if len(by_memory) == 1:
        return by_memory[0]
    pinned = {number: pins.get(number, vcpu) for number in range(2 * cells)}
    by_pin = sorted({number // 2 for number, cpus in pinned.items() if numbers(cpus) & numbers(CPUS_OF[node])})
    if len(by_pin) == 1:
        return by_pin[0]
    return "ambiguous-cell" if by_memory or by_pin else "no-cell"


CASES = list(
    itertools.product(
        [1, 2],
        [{}, {0: "0"}, {0: "1"}, {1: "0-1"}],
        ["", "0", "1", "0-1"],
        [{}, {0: "0-3"}, {0: "8", 1: "9"}, {0: "0", 1: "1", 2: "8", 3: "9"}],
        ["", "0-7", "8-15", "0-15"],
    )
)


@pytest.mark.parametrize("cells", [1, 2])
def test_cells_are_bound_as_libvirt_binds_them(root: Path, cells: int) -> None:
    for count, memnodes, memory, pins, vcpu in CASES:
        if count != cells or any(cell >= count for cell in memnodes) or any(number >= 2 * count for number in pins):
            continue
        nodeset, cpuset = f"nodeset='{memory}'" if memory else "", f"cpuset='{vcpu}'" if vcpu else ""
        found = place(guest(count, memnodes, nodeset, pins, cpuset), Request(root))
        for line in found.devices:
            right = expected(count, memnodes, memory, pins, vcpu, NODE_OF[line.source])
            said = line.guest_cell if line.reason is None else line.reason.value
            assert (said, line.placed) == (right, isinstance(right, int)), (count, memnodes, memory, pins, vcpu, line)


def test_what_numad_chooses_binds_nothing_that_is_known(root: Path) -> None:
    for memory, vcpu in (("placement='auto'", ""), ("placement='auto' nodeset='0'", ""), ("", "placement='auto' cpuset='0-7'")):
        found = place(guest(1, {}, memory, {}, vcpu), Request(root))
        assert (found.outcome, found.reason) == (Outcome.UNCHANGED, Reason.NO_CELL)
    assert place(guest(1, {}, "placement='auto'", {}, "cpuset='0-7'"), Request(root)).outcome is Outcome.PLACED


def why(root: Path, sources: str, memory: str = "", metadata: str = "", cells: int = 1, machine: Optional[Path] = None) -> Result:
    found = place(guest(cells, {}, memory, {}, "", metadata, sources), Request(machine or root))
    assert found.outcome is Outcome.UNCHANGED and found.message is not None
    return found


def test_a_domain_of_which_nothing_is_placed_has_its_devices_reason(root: Path, tmp_path: Path) -> None:
    found = why(root, "17 b3")
    assert found.reason is Reason.NO_CELL and found.message is not None
    assert "0000:17:00.0 and 1 more, host nodes 0, 1" in found.message
    assert "<memnode cellid='0' mode='strict' nodeset='0'/>" in found.message
    found = why(root, "b3")
    assert found.reason is Reason.NO_CELL and found.message is not None and "nodeset='1'" in found.message and "more" not in found.message
    found = why(root, "17 b3", "nodeset='0-1'", cells=2)
    assert found.reason is Reason.AMBIGUOUS_CELL and found.message is not None and "<memnode cellid='N'" in found.message
    found = why(root, "17 b3", machine=MACHINES["minus-one"]().write(tmp_path))
    assert found.reason is Reason.NO_AFFINITY and found.message is not None and "memnode" not in found.message
    assert why(root, "").reason is Reason.NOTHING_TO_PLACE


@pytest.mark.parametrize(("metadata", "word"), [(NOVA, "hw:numa_nodes"), (OVIRT, "NUMA Pinning")])
def test_who_does_not_write_xml_is_told_what_there_is_to_set(root: Path, metadata: str, word: str) -> None:
    for cells in (0, 1):
        found = why(root, "17 b3", metadata=metadata, cells=cells)
        assert found.reason is (Reason.NO_CELL if cells else Reason.NO_CELLS)
        assert found.message is not None and word in found.message and "memnode" not in found.message


def test_cells_that_share_a_vcpu_mean_nothing(root: Path) -> None:
    xml = guest(2, {}, "", {}, "").replace(b"cpus='2-3'", b"cpus='1-3'").replace(b'cpus="2-3"', b'cpus="1-3"')
    found = place(xml, Request(root))
    assert (found.outcome, found.reason) == (Outcome.FALLBACK, Reason.BAD_VALUE)
    assert found.message is not None and "vCPU 1" in found.message and "guest cell 1" in found.message
