# SPDX-License-Identifier: LGPL-2.1-or-later
"""What Linux makes of guest cells without CPUs or memory: the facts of docs/guest-cells.md."""

from __future__ import annotations

from pathlib import Path

from pcinuma.lab import guest_tree, machine
from pcinuma.lab.kernel import Kernel

CELLS = [(True, 128), (False, 128), (True, 0), (False, 0)]


def test_a_cell_with_neither_cpus_nor_memory_is_none(lab_kernel: Kernel, tmp_path: Path) -> None:
    argv = ["-accel", machine.GUEST_TCG, "-machine", "q35", "-cpu", "max", "-smp", "2", "-m", "256"]
    cpu = 0
    for cell, (manned, memory) in enumerate(CELLS):
        node = f"node,nodeid={cell}"
        if manned:
            node, cpu = f"{node},cpus={cpu}", cpu + 1
        if memory:
            argv += ["-object", f"memory-backend-ram,id=ram{cell},size={memory}M"]
            node += f",memdev=ram{cell}"
        argv += ["-numa", node]
        argv += ["-device", f"pxb-pcie,id=x{cell},bus_nr={64 + 8 * cell},numa_node={cell},bus=pcie.0,addr={16 + cell:#x}"]
        argv += ["-device", f"pcie-root-port,id=r{cell},chassis={cell + 1},bus=x{cell},hotplug=off"]
        argv += ["-device", f"virtio-serial-pci,bus=r{cell}"]
    seen = guest_tree.parse(machine.boot_tree(lab_kernel, argv, tmp_path).console)
    devices = [seen.at(guest_tree.PciPath(f"0000:{64 + 8 * cell:02x}", (guest_tree.Devfn(0, 0),) * 2)) for cell in range(len(CELLS))]
    nodes = [device.numa_node for device in devices if device is not None]
    assert nodes == [0, 2, 1, None], "numbered in the order of the tables, CPUs first"
    assert seen.nodes == {0: frozenset({0}), 1: frozenset({1}), 2: frozenset()}
