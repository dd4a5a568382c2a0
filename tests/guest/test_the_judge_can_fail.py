# SPDX-License-Identifier: LGPL-2.1-or-later
"""Layouts with a mistake in them, booted all the same: QEMU starts every one without a word, and the judge must object."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcinuma.lab.compare import Finding
from pcinuma.lab.endpoints import Endpoint
from pcinuma.lab.kernel import Kernel
from pcinuma.settings import GroupBy
from tests.guest.boots import boot
from tests.guest.handmade import ByHand
from tests.hosts.machines import MACHINES

CELLS = {0: 0, 1: 1}
SOURCES = {0: ["0000:17:00.0", "0000:18:00.0", "0000:19:00.0"], 1: ["0000:b3:00.0", "0000:b4:00.0", "0000:b5:00.0"]}


@pytest.fixture
def host(tmp_path: Path) -> Path:
    return MACHINES["two-sockets"]().write(tmp_path / "host")


def by_hand(buses: tuple[int, int], cells: tuple[int, int] = (0, 1), strays: int = 0) -> bytes:
    """Three devices on an expander per node; ``strays``: populated root ports of pcie.0 before them."""
    domain = ByHand(CELLS)
    for slot in range(strays):
        domain.port(0, 8 + slot)
    for node, (bus_nr, cell) in enumerate(zip(buses, cells)):
        expander = domain.expander(bus_nr, cell, 2 + node)
        for slot, source in enumerate(SOURCES[node]):
            domain.port(expander, slot, 0, source)
    return domain.xml()


def findings(xml: bytes, host: Path, kernel: Kernel, scratch: Path, group_by: GroupBy = GroupBy.ROOT_COMPLEX) -> list[Finding]:
    return boot(xml, host, kernel, scratch, kind=Endpoint.NIC).judge(CELLS, group_by)


def test_a_right_layout_by_hand_passes(host: Path, lab_kernel: Kernel, tmp_path: Path) -> None:
    assert findings(by_hand((32, 64)), host, lab_kernel, tmp_path) == []


def test_expanders_whose_bus_numbers_overlap_are_found(host: Path, lab_kernel: Kernel, tmp_path: Path) -> None:
    found = findings(by_hand((8, 10)), host, lab_kernel, tmp_path)
    assert any("does not see" in finding.what for finding in found), found


def test_an_expander_in_the_range_of_the_main_root_is_found(host: Path, lab_kernel: Kernel, tmp_path: Path) -> None:
    found = findings(by_hand((3, 64), strays=4), host, lab_kernel, tmp_path)
    assert any("does not see" in finding.what for finding in found), found


def test_swapped_cells_are_found_for_every_device(host: Path, lab_kernel: Kernel, tmp_path: Path) -> None:
    found = findings(by_hand((32, 64), cells=(1, 0)), host, lab_kernel, tmp_path)
    wrong = {finding.device for finding in found if finding.what.startswith("numa_node is")}
    assert wrong == {source for sources in SOURCES.values() for source in sources}


def test_a_missing_switch_is_found(lab_kernel: Kernel, tmp_path: Path) -> None:
    host = MACHINES["eight-gpus"]().write(tmp_path / "host")
    domain = ByHand(CELLS)
    expander = domain.expander(32, 0, 2)
    domain.port(expander, 0, 0, "0000:24:00.0")
    domain.port(expander, 1, 0, "0000:26:00.0")
    found = findings(domain.xml(), host, lab_kernel, tmp_path, GroupBy.SWITCH)
    assert [finding.what for finding in found] == ["their switch distance is None in the guest and 2 on the host"]


def test_two_root_complexes_in_one_are_found(lab_kernel: Kernel, tmp_path: Path) -> None:
    host = MACHINES["two-root-complexes"]().write(tmp_path / "host")
    domain = ByHand(CELLS)
    expander = domain.expander(32, 0, 2)
    domain.port(expander, 0, 0, "0000:17:00.0")
    domain.port(expander, 1, 0, "0000:4b:00.0")
    booted = boot(domain.xml(), host, lab_kernel, tmp_path)
    assert booted.judge(CELLS, GroupBy.NODE) == []
    assert [finding.what for finding in booted.judge(CELLS, GroupBy.ROOT_COMPLEX)] == ["share a root complex in the guest"]
