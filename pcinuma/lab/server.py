# SPDX-License-Identifier: LGPL-2.1-or-later
"""A two-socket server with PCIe switches, as the files that ``pcinuma capture`` takes of such a machine: what ``pcinuma demo --quick``
places a guest on, where there is no such machine.

On each node two root complexes with a switch each, a GPU and a NIC below every switch, and a drive on a third root complex.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pcinuma.address import PciAddress

_ENDPOINT, _ROOT_PORT, _UPSTREAM, _DOWNSTREAM = 0, 4, 5, 6  # PCI Express base specification, 7.5.3.2
_CPUS = (range(32), range(32, 64))


class _Kind(NamedTuple):
    class_code: int
    vendor: int
    device: int


_GPU = _Kind(0x030200, 0x10DE, 0x2330)
_NIC = _Kind(0x020000, 0x15B3, 0x1021)
_DRIVE = _Kind(0x010802, 0x144D, 0xA80A)
_PORT = _Kind(0x060400, 0x8086, 0x352A)
_SWITCH = _Kind(0x060400, 0x1000, 0xC030)


@dataclass(frozen=True)
class Server:
    """The tree below ``root``. ``names``: address of each device that can be passed through -> what it is called; ``cells``: guest cell ->
    host node, for a guest on all of it."""

    root: Path
    names: dict[PciAddress, str]
    cells: dict[int, int]


def write(root: Path) -> Server:
    """Write the tree below ``root``."""
    names: dict[PciAddress, str] = {}
    for node, cpus in enumerate(_CPUS):
        folder = root / f"sys/devices/system/node/node{node}"
        distances = " ".join("10" if other == node else "21" for other in range(len(_CPUS)))
        _files(folder, cpulist=f"{cpus[0]}-{cpus[-1]}", distance=distances, meminfo=f"Node {node} MemTotal: {256 << 20} kB")
        for number in range(2):
            bus = 0x20 + 0x60 * node + 0x20 * number
            below = _function(root, f"pci0000:{bus:02x}", (bus, 1), _PORT, _ROOT_PORT, node, bus + 1)
            below = _function(root, below, (bus + 1, 0), _SWITCH, _UPSTREAM, node, bus + 2)
            for slot, (name, kind) in enumerate((("gpu", _GPU), ("nic", _NIC))):
                port = _function(root, below, (bus + 2, slot), _SWITCH, _DOWNSTREAM, node, bus + 3 + slot)
                _function(root, port, (bus + 3 + slot, 0), kind, _ENDPOINT, node)
                names[PciAddress(0, bus + 3 + slot, 0, 0)] = f"{name}{2 * node + number}"
        bus = 0x60 + 0x60 * node
        port = _function(root, f"pci0000:{bus:02x}", (bus, 1), _PORT, _ROOT_PORT, node, bus + 1)
        _function(root, port, (bus + 1, 0), _DRIVE, _ENDPOINT, node)
        names[PciAddress(0, bus + 1, 0, 0)] = f"drive{node}"
    system = root / "sys/devices/system"
    _files(system / "node", online="0-1")
    _files(system / "cpu", online="0-63", possible="0-63", present="0-63")
    return Server(root, names, {node: node for node in range(len(_CPUS))})


def _function(root: Path, above: str, at: tuple[int, int], kind: _Kind, port: int, node: int, behind: int = 0) -> str:
    """One PCI function below ``above``; returns its own path below ``sys/devices``. ``behind``: the bus that a bridge leads to."""
    address = PciAddress(0, at[0], at[1], 0)
    path = f"{above}/{address}"
    folder = root / "sys/devices" / path
    cpus = _CPUS[node]
    ids = {"class": f"0x{kind.class_code:06x}", "vendor": f"0x{kind.vendor:04x}", "device": f"0x{kind.device:04x}"}
    _files(folder, numa_node=str(node), local_cpulist=f"{cpus[0]}-{cpus[-1]}", resource=_RESOURCE, **ids)
    config = bytearray(64 + 20)
    struct.pack_into("<HHHH", config, 0, kind.vendor, kind.device, 6, 0x10)
    struct.pack_into("<I", config, 8, kind.class_code << 8)
    if behind:
        config[0x0E], config[0x18], config[0x19], config[0x1A] = 1, at[0], behind, behind
    config[0x34] = 0x40
    struct.pack_into("<BBH", config, 0x40, 0x10, 0, 2 | port << 4)
    (folder / "config").write_bytes(bytes(config))
    devices = root / "sys/bus/pci/devices"
    devices.mkdir(parents=True, exist_ok=True)
    os.symlink(f"../../../devices/{path}", devices / str(address))
    return path


_RESOURCE = "\n".join(["0x0000000090000000 0x000000009000ffff 0x0000000000040200"] + ["0x0 0x0 0x0"] * 12)


def _files(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n")
