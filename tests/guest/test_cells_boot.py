# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests that were defined without NUMA cells, booted with those that pcinuma gives them: the kernel's nodes are the proposal's cells, CPU
by CPU, distance by distance, and each device is where the host has it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from lxml import etree

from pcinuma.engine import Request, place
from pcinuma.lab import endpoints, guest_tree, layout
from pcinuma.lab.guest_tree import SeenTree
from pcinuma.lab.kernel import Kernel
from pcinuma.reason import Outcome
from pcinuma.report import Result
from pcinuma.settings import GroupBy
from tests.golden.cells import pair
from tests.guest import foreign
from tests.guest.boots import Booted, boot
from tests.guest.test_machine_types import aarch64, ppc64  # noqa: F401
from tests.hosts.build import list_format
from tests.hosts.domains import Domain
from tests.hosts.machines import MACHINES

KERNELS_SHARE_KIB = 128 << 10
"""At most this much of a node's memory is the kernel's own, or the firmware's."""
PINS = "<cputune>" + "".join(f"<vcpupin vcpu='{vcpu}' cpuset='{8 if vcpu == 1 else 0}'/>" for vcpu in range(4)) + "</cputune>"


@dataclass(frozen=True)
class Flat:
    """A guest without cells, on a machine. ``nodes``: cell -> the number by which its kernel calls it, where that is another."""

    machine: str
    domain: Domain
    nodes: dict[int, int] = field(default_factory=dict)


def _four(machine: str = "q35") -> Domain:
    guest = Domain(machine=machine).says(vcpu="<vcpu placement='static'>7</vcpu>", memory="<memory unit='MiB'>1300</memory>")
    return guest.hostdev("40:00.0").hostdev("81:00.0").interface("a1:00.0").interface("61:00.0")


FLAT = {
    "uneven": Flat("four-nodes", _four()),
    "pinned": Flat("two-sockets", pair(memory="<memory unit='MiB'>1024</memory>", cputune=PINS)),
    "one-vcpu": Flat("two-sockets", pair("<vcpu>1</vcpu>", memory="<memory unit='MiB'>768</memory>")),
}


def given(flat: Flat, root: Path) -> Result:
    result = place(flat.domain.raw(), Request(root=root, cells=True))
    assert result.outcome is Outcome.PLACED and result.cells is not None, result.report()
    return result


def numa(xml: bytes) -> list[str]:
    """QEMU's arguments for processors, memory and cells, as libvirt makes them of the XML (``qemuBuildNumaCommandLine``)."""
    root = etree.fromstring(xml)
    cells = root.findall("cpu/numa/cell")
    vcpus, total = root.findtext("vcpu"), sum(int(cell.get("memory")) for cell in cells)
    argv = ["-smp", f"{vcpus},sockets={vcpus},cores=1,threads=1", "-m", f"{total // 1024}M"]
    for cell in cells:
        cpus = "".join(f",cpus={part}" for part in cell.get("cpus", "").split(",") if part)
        number = cell.get("id")
        argv += ["-object", f"memory-backend-ram,id=ram{number},size={cell.get('memory')}K"]
        argv += ["-numa", f"node,nodeid={number}{cpus},memdev=ram{number}"]
    for cell in cells:
        for other in cell.findall("distances/sibling"):
            argv += ["-numa", f"dist,src={cell.get('id')},dst={other.get('id')},val={other.get('value')}"]
    return argv


def judge(result: Result, seen: SeenTree, nodes: dict[int, int]) -> None:
    """The kernel's nodes against the report and the XML that was booted."""
    assert result.cells is not None
    called = {cell.cell: nodes.get(cell.cell, cell.cell) for cell in result.cells}
    assert {node: list_format(set(cpus)) for node, cpus in seen.nodes.items()} == {called[c.cell]: c.vcpus for c in result.cells}
    rows = [[int(s.get("value")) for s in cell.findall("distances/sibling")] for cell in etree.fromstring(result.xml).iter("cell")]
    for cell in result.cells:
        assert 0 <= cell.memory_kib - seen.memory_kib[called[cell.cell]] <= KERNELS_SHARE_KIB
        told = seen.distances[called[cell.cell]]
        assert [told[sorted(called.values()).index(called[other.cell])] for other in result.cells] == rows[cell.cell]


@pytest.mark.parametrize(
    ("name", "firmware"),
    [
        ("uneven", "seabios"),
        ("pinned", "seabios"),
        ("one-vcpu", "seabios"),
        *(pytest.param(*case, marks=pytest.mark.full) for case in (("uneven", "ovmf"), ("pinned", "ovmf"), ("one-vcpu", "ovmf"))),
    ],
)
def test_the_kernels_nodes_are_the_cells_that_the_guest_was_given(name: str, firmware: str, lab_kernel: Kernel, tmp_path: Path) -> None:
    flat = FLAT[name]
    root = MACHINES[flat.machine]().write(tmp_path / "host")
    result = given(flat, root)
    booted = boot(result.xml, root, lab_kernel, tmp_path, firmware=firmware, numa=numa(result.xml))
    judge(result, booted.guest, flat.nodes)
    assert booted.judge({cell.cell: cell.host_node for cell in result.cells or ()}, GroupBy.ROOT_COMPLEX) == []


def _boot_foreign(result: Result, root: Path, guest: foreign.Foreign, scratch: Path) -> Booted:
    what = layout.read(result.xml)
    kinds = endpoints.kinds_of(what, root)
    run = foreign.boot(guest, endpoints.hardware(what, kinds, numa=numa(result.xml)), scratch)
    return Booted(what, guest_tree.read_sysfs(root), guest_tree.parse(run.console), kinds)


@pytest.mark.full
def test_aarch64_sees_them_too(aarch64: foreign.Foreign, tmp_path: Path) -> None:  # noqa: F811
    _sees(Flat("four-nodes", _four("virt")), aarch64, GroupBy.ROOT_COMPLEX, tmp_path)


@pytest.mark.full
def test_pseries_sees_them_too(ppc64: foreign.Foreign, tmp_path: Path) -> None:  # noqa: F811
    _sees(Flat("two-sockets", pair(memory="<memory unit='MiB'>1536</memory>").on("pseries")), ppc64, GroupBy.NODE, tmp_path, far=True)


def _sees(flat: Flat, guest: foreign.Foreign, group_by: GroupBy, tmp_path: Path, far: bool = False) -> None:
    """``far``: the architecture has distances of its own (20, 40, 80, …: the kernel's ``arch/powerpc/mm/numa.c``)."""
    root = MACHINES[flat.machine]().write(tmp_path / "host")
    result = given(flat, root)
    booted = _boot_foreign(result, root, guest, tmp_path)
    if not far:
        judge(result, booted.guest, flat.nodes)
    assert result.cells is not None
    assert {node: list_format(set(cpus)) for node, cpus in booted.guest.nodes.items()} == {cell.cell: cell.vcpus for cell in result.cells}
    assert booted.judge({cell.cell: cell.host_node for cell in result.cells}, group_by) == []
