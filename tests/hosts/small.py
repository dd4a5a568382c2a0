# SPDX-License-Identifier: LGPL-2.1-or-later
"""The smallest host on which devices have different places: for tests that start a daemon, a libvirtd or a guest."""

from __future__ import annotations

from pathlib import Path

from tests.hosts.build import GPU, NIC, Host

GPU_0, NIC_0, GPU_1, NIC_1 = "0000:17:00.0", "0000:18:00.0", "0000:b3:00.0", "0000:b4:00.0"


def small_host(directory: Path) -> Path:
    """A tree of two nodes of one CPU each, so that vCPU pins to it exist on any two-core test machine: :data:`GPU_0` and
    :data:`NIC_0` on node 0, :data:`GPU_1` and :data:`NIC_1` on node 1."""
    host = Host().node(0, "0").node(1, "1")
    for name, node, bus in (("pci0000:16", 0, 0x17), ("pci0000:b2", 1, 0xB3)):
        root = host.rc(name, node=node)
        root.port(f"{bus - 1:02x}:00.0").device(f"{bus:02x}:00.0", GPU)
        root.port(f"{bus - 1:02x}:02.0").device(f"{bus + 1:02x}:00.0", NIC)
    return host.write(directory)
