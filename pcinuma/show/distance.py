# SPDX-License-Identifier: LGPL-2.1-or-later
"""How far apart two devices are, in the classes that NCCL, ``nvidia-smi topo`` and ``rocm-smi`` print, for host and guest alike.

Source of the classes: NCCL's documentation of ``NCCL_P2P_LEVEL`` (``src/graph/topo.h``).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Optional

from pcinuma.address import PciAddress
from pcinuma.host.topology import HostDevice
from pcinuma.show.guest import SWITCH, Guest


class Distance(enum.Enum):
    """From near to far."""

    PIX = "PIX", "under one PCIe switch"
    PXB = "PXB", "under several switches of one root port"
    PHB = "PHB", "under one root complex"
    NODE = "NODE", "in one NUMA node, under different root complexes"
    SYS = "SYS", "in different NUMA nodes, or in none that is known"

    meaning: str

    def __new__(cls, code: str, meaning: str) -> Distance:
        member = object.__new__(cls)
        member._value_ = code
        member.meaning = meaning
        return member


@dataclass(frozen=True)
class Location:
    """Where a device is, for distances. ``switches``: its upstream ports, topmost first; ``slot``: what its functions share."""

    node: Optional[int]
    root_complex: Optional[str]
    switches: tuple[str, ...]
    slot: str


def host_location(device: HostDevice) -> Location:
    """The spot of a host device."""
    slot = str(device.address).rsplit(".", 1)[0]
    return Location(device.node, device.root_complex, tuple(upstream for upstream, _ in device.switches), slot)


def guest_location(guest: Guest, address: PciAddress) -> Location:
    """The spot of a guest address."""
    path = guest.path(address)
    top = guest.top(address)
    switches = tuple(str(controller.index) for controller in path if controller.model == SWITCH)
    return Location(guest.cell(address), str(top.index if top else 0), switches, str(address).rsplit(".", 1)[0])


def distance(one: Location, other: Location) -> Distance:
    """The distance between two devices of the same machine."""
    if one.slot == other.slot or (one.switches and other.switches and one.switches == other.switches):
        return Distance.PIX
    if one.switches and other.switches and one.switches[0] == other.switches[0]:
        return Distance.PXB
    if one.root_complex is not None and one.root_complex == other.root_complex:
        return Distance.PHB
    if one.node is not None and one.node == other.node:
        return Distance.NODE
    return Distance.SYS
