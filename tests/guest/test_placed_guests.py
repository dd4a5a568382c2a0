# SPDX-License-Identifier: LGPL-2.1-or-later
"""The promise, judged by the guest's own kernel: every device of a placed domain is where the host has it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from pcinuma.lab.kernel import Kernel
from pcinuma.lab.machine import binary
from pcinuma.settings import GroupBy
from tests.guest.boots import boot, placed
from tests.guest.handmade import plain
from tests.hosts.machines import MACHINES

SWITCH, ROOT_COMPLEX, NODE = GroupBy.SWITCH, GroupBy.ROOT_COMPLEX, GroupBy.NODE
STRAIGHT = {0: 0, 1: 1}
SWAPPED = {0: 1, 1: 0}
TWO_SOCKETS = ["0000:17:00.0", "0000:18:00.0", "0000:19:00.0", "0000:b3:00.0", "0000:b4:00.0", "0000:b5:00.0"]
EIGHT_GPUS = [f"0000:{0x20 + 0x30 * switch + offset:02x}:00.0" for switch in range(4) for offset in (4, 5, 6, 7)]
CASCADE = ["0000:24:00.0", "0000:25:00.0", "0000:28:00.0", "0000:2a:00.0", "0000:2c:00.0"]
FOUR_NODES = [f"0000:{0x40 + 0x20 * node + offset:02x}:00.0" for node in range(4) for offset in (0, 1)]
VFS = [f"0000:{bus}:01.{function}" for bus in ("3b", "d8") for function in range(4)]
CARDS = [("0000:17:00.0", "0000:17:00.1", "0000:17:00.2", "0000:17:00.3"), ("0000:65:00.0", "0000:65:00.1")]

LINKS = [("32.0", "16"), ("16.0", "16"), ("8.0", "8"), ("5.0", "4"), ("2.5", "1"), ("64.0", "16")]

CASES = [
    ("two-sockets", TWO_SOCKETS, SWAPPED, ROOT_COMPLEX, "seabios"),
    ("four-nodes", FOUR_NODES, {node: node for node in range(4)}, ROOT_COMPLEX, "seabios"),
    ("two-root-complexes", ["0000:17:00.0", "0000:18:00.0", "0000:4b:00.0", "0000:b3:00.0"], STRAIGHT, ROOT_COMPLEX, "seabios"),
    ("cascaded-switches", CASCADE, STRAIGHT, SWITCH, "seabios"),
    ("sriov", VFS, STRAIGHT, ROOT_COMPLEX, "seabios"),
    ("multifunction-gpu", CARDS, STRAIGHT, ROOT_COMPLEX, "seabios"),
    ("eight-gpus", EIGHT_GPUS, STRAIGHT, NODE, "seabios"),
    ("eight-gpus", EIGHT_GPUS, STRAIGHT, SWITCH, "seabios"),
]
# What OVMF does with the most bridges and the largest BARs (below), it does with fewer; and layouts whose likes boot above.
MORE_CASES = [
    *[("eight-gpus", EIGHT_GPUS, STRAIGHT, mode, "ovmf") for mode in (SWITCH, ROOT_COMPLEX, NODE)],
    ("cascaded-switches", CASCADE, STRAIGHT, SWITCH, "ovmf"),
    ("multifunction-gpu", CARDS, STRAIGHT, ROOT_COMPLEX, "ovmf"),
    ("two-sockets", TWO_SOCKETS, STRAIGHT, NODE, "seabios"),
    ("eight-gpus", EIGHT_GPUS, STRAIGHT, ROOT_COMPLEX, "seabios"),
    ("local-cpulist", ["0000:17:00.0", "0000:18:00.0", "0000:b3:00.0", "0000:b4:00.0"], STRAIGHT, ROOT_COMPLEX, "seabios"),
]


@pytest.mark.parametrize(
    ("machine", "sources", "cells", "group_by", "firmware"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.full) for case in MORE_CASES)],
    ids=[f"{case[0]}-{case[3].value}-{case[4]}{'-swapped' if case[2] == SWAPPED else ''}" for case in (*CASES, *MORE_CASES)],
)
def test_the_guest_sees_its_devices_where_the_host_has_them(
    machine: str, sources: list[str], cells: dict[int, int], group_by: GroupBy, firmware: str, lab_kernel: Kernel, tmp_path: Path
) -> None:
    root = MACHINES[machine]().write(tmp_path / "host")
    result = placed(plain(sources, cells), root, group_by)
    assert result.group_by is group_by
    booted = boot(result.xml, root, lab_kernel, tmp_path, firmware=firmware)
    assert len(booted.layout.passthrough) == len(result.devices)
    assert booted.judge(cells, group_by) == []


def test_a_domain_that_libvirt_has_not_formatted_is_right_too_and_tells_true_links(lab_kernel: Kernel, tmp_path: Path) -> None:
    """One port for each link that there is; QEMU before 9.0 knows none faster than 16 GT/s, and its port shows that."""
    host = MACHINES["two-sockets"]()
    for source, link in zip(TWO_SOCKETS, LINKS):
        host.functions[source].parent.link = (f"{link[0]} GT/s PCIe", link[1])  # type: ignore[union-attr]
    root = host.write(tmp_path / "host")
    qemu = qemu_version()
    result = placed(plain(TWO_SOCKETS, STRAIGHT, addresses=False), root, ROOT_COMPLEX, link=True, qemu=qemu)
    booted = boot(result.xml, root, lab_kernel, tmp_path)
    assert booted.judge(STRAIGHT, ROOT_COMPLEX) == []
    ports = [booted.guest.at(booted.layout.path(device.address).bridges[-1]) for device in booted.layout.passthrough]
    fastest = 64 if qemu >= (9, 0) else 16
    assert [port and port.link for port in ports] == [(speed if float(speed) <= fastest else "16.0", width) for speed, width in LINKS]
    assert (result.message is None) is (fastest == 64)


def qemu_version() -> tuple[int, int]:
    said = subprocess.run([binary(), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\d+)\.(\d+)", said)
    assert found is not None, said
    return int(found.group(1)), int(found.group(2))


# SeaBIOS maps eight BARs of 64 GiB in test_windows.
@pytest.mark.parametrize("firmware", ["ovmf", pytest.param("seabios", marks=pytest.mark.full)])
def test_gpus_with_16_gib_of_memory_behind_switches_are_all_there(firmware: str, lab_kernel: Kernel, tmp_path: Path) -> None:
    root = MACHINES["eight-gpus"]().write(tmp_path / "host")
    result = placed(plain(EIGHT_GPUS, STRAIGHT), root, SWITCH)
    booted = boot(result.xml, root, lab_kernel, tmp_path, firmware=firmware, gpu_bar_mib=16384)
    assert len(booted.layout.passthrough) == len(EIGHT_GPUS)
    assert booted.judge(STRAIGHT, SWITCH) == []


def test_the_same_devices_unplaced_have_no_node(lab_kernel: Kernel, tmp_path: Path) -> None:
    """What a guest sees without pcinuma; and the judge says so of every device."""
    root = MACHINES["two-sockets"]().write(tmp_path / "host")
    booted = boot(plain(TWO_SOCKETS, STRAIGHT), root, lab_kernel, tmp_path)
    findings = booted.judge(STRAIGHT, NODE)
    assert [str(finding) for finding in findings if "numa_node is -1" in finding.what] == [
        f"{source}: numa_node is -1 in the guest and must be {cell}" for source, cell in zip(TWO_SOCKETS, (0, 0, 0, 1, 1, 1))
    ]
