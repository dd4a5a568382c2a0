# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices that are local to several nodes, but not to all: a reason of their own, and what ``unaligned = nearest`` makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import pytest

from pcinuma.engine import Request, place
from pcinuma.reason import Outcome, Reason
from pcinuma.settings import Policy, Settings, Unaligned
from tests.hosts.build import NIC, NVME, Host
from tests.hosts.domains import Domain
from tests.hosts.judge import judge


def _host(cpulist: str, nodes: int = 4) -> Host:
    """Four CPUs a node; 41:00.0 says -1 and ``cpulist``, 42:00.0 is on node 0."""
    host = Host()
    for node in range(nodes):
        host.node(node, f"{node * 4}-{node * 4 + 3}", [10 if other == node else 12 + abs(other - node) for other in range(nodes)])
    root = host.rc("pci0000:40", node=0)
    root.port("40:01.0").device("41:00.0", NIC, node=-1, cpulist=cpulist)
    root.port("40:02.0").device("42:00.0", NVME)
    return host


def _domain(*nodes: Optional[int]) -> bytes:
    """A cell a node of ``nodes``; None for a cell that is bound to none."""
    domain = Domain().cells(*map(str, range(len(nodes))))
    for cell, node in enumerate(nodes):
        if node is not None:
            domain.memnode(cell, str(node))
    return domain.hostdev("41:00.0").hostdev("42:00.0").formatted()


@pytest.mark.parametrize(("cpulist", "nodes"), [("0-7", "0 and 1"), ("4-15", "1, 2 and 3"), ("3-4", "0 and 1"), ("0,8", "0 and 2")])
def test_a_device_local_to_several_nodes_is_left_with_a_reason_that_names_them(cpulist: str, nodes: str, tmp_path: Path) -> None:
    host = _host(cpulist)
    xml = _domain(0, 1, 2, 3)
    result = place(xml, Request(host.write(tmp_path)))
    line = result.devices[0]
    assert (line.placed, line.host_node, line.reason) == (False, None, Reason.SEVERAL_NODES)
    assert [warning for warning in result.warnings if "0000:41:00.0" in warning and f"host nodes {nodes};" in warning]
    judge(xml, result.xml, host, result.report())


@pytest.mark.parametrize(("cpulist", "nodes"), [("0-15", 4), ("1-14", 4), ("0-7", 2), ("2-5", 2)])
def test_all_nodes_tell_nothing(cpulist: str, nodes: int, tmp_path: Path) -> None:
    result = place(_domain(0, 1), Request(_host(cpulist, nodes).write(tmp_path)))
    assert result.devices[0].reason is Reason.NO_AFFINITY and not result.warnings


@pytest.mark.parametrize(
    ("cells", "cell"), [((0, 1), 0), ((1, 0), 1), ((3, 1), 1), ((3, 2), 1), ((2, 3), 0), ((None, 3), 1), ((None, 0, 1), 1)]
)
def test_nearest_takes_the_lowest_of_its_nodes_with_a_cell_else_the_closest(
    cells: tuple[Optional[int], ...], cell: int, tmp_path: Path
) -> None:
    host, xml = _host("0-7"), _domain(*cells)
    result = place(xml, Request(host.write(tmp_path), settings=Settings(unaligned=Unaligned.NEAREST)))
    line = result.devices[0]
    assert (line.placed, line.guest_cell, line.host_node, line.reason) == (True, cell, None, Reason.NEAREST)
    judge(xml, result.xml, host, result.report())


def test_it_does_not_keep_a_guest_with_policy_required_from_starting(tmp_path: Path) -> None:
    result = place(_domain(0, 1), Request(_host("0-7").write(tmp_path), policy=Policy.REQUIRED))
    assert result.outcome is Outcome.PLACED and not result.refused
