# SPDX-License-Identifier: LGPL-2.1-or-later
"""The judge: a guest's tree as its kernel printed it, against the host's tree and the domain that was booted.

It knows nothing of a plan. From the domain it takes which guest device stands for which host device and where it must turn up; from the
host, what is true: node, root complex, switches; from the caller, which guest cell stands for which host node, and how fine the
hierarchy is to be. Everything that is not so is a :class:`Finding`, in a sentence.

The switch distance of two devices below one root is the number of bridges between them and the lowest bridge that they share: what NCCL
calls PIX and PXB. Two host devices on one bus (functions of a slot, VFs of a NIC) have no switch between them, and a guest may give
each a port of its own: such pairs are not judged by distance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Optional

from pcinuma.lab.endpoints import Endpoint
from pcinuma.lab.guest_tree import PciPath, SeenDevice, SeenTree
from pcinuma.lab.layout import MAIN_ROOT, Layout
from pcinuma.settings import GroupBy


@dataclass(frozen=True)
class Finding:
    """Something that is not as it must be: which device (host address or path in the guest), and what."""

    device: str
    what: str

    def __str__(self) -> str:
        return f"{self.device}: {self.what}"


@dataclass(frozen=True)
class Pairing:
    """A host device and what stands for it in the guest. ``guest`` is None if the guest's kernel does not see it where it must be."""

    source: str
    host: SeenDevice
    guest: Optional[SeenDevice]
    path: PciPath
    host_node: Optional[int]


def host_node(device: SeenDevice, host: SeenTree) -> Optional[int]:
    """The host node of a device; where the kernel says none, the only node that has all of the device's CPUs, if those are not all CPUs."""
    if device.numa_node is not None:
        return device.numa_node if device.numa_node in host.nodes else None
    everything = frozenset().union(*host.nodes.values())
    if not device.local_cpus or device.local_cpus >= everything:
        return None
    nodes = [node for node, cpus in host.nodes.items() if device.local_cpus <= cpus]
    return nodes[0] if len(nodes) == 1 else None


def pair(layout: Layout, host: SeenTree, guest: SeenTree) -> list[Pairing]:
    """Each passthrough device of the domain that names a host address, with what the guest sees at its place."""
    pairs = []
    for device in layout.passthrough:
        on_host = host.by_address(device.host) if device.host is not None else None
        if on_host is not None and device.source is not None:
            path = layout.path(device.address)
            pairs.append(Pairing(device.source, on_host, guest.at(path), path, host_node(on_host, host)))
    return pairs


def judge(
    layout: Layout,
    host: SeenTree,
    guest: SeenTree,
    cells: Mapping[int, int],
    group_by: GroupBy,
    kinds: Optional[Mapping[str, Endpoint]] = None,
) -> list[Finding]:
    """All that is wrong with what the guest sees. ``cells``: host node -> guest cell. ``kinds``: what was emulated for each source."""
    pairs = pair(layout, host, guest)
    findings = [*_bridges(layout, guest), *_foreign_devices(layout, guest)]
    for item in pairs:
        findings += [*_device(item, guest, cells, kinds), *_link(item, layout, host, guest)]
    for one, other in combinations([item for item in pairs if item.guest is not None], 2):
        findings += _relation(one, other, cells, group_by)
    return findings


def _bridges(layout: Layout, guest: SeenTree) -> list[Finding]:
    """Every controller of the domain must be there, or what hangs on it is not."""
    missing = []
    for index, controller in sorted(layout.controllers.items()):
        if controller.address is not None and guest.at(layout.path(controller.address)) is None:
            missing.append(Finding(str(layout.path(controller.address)), f"the guest does not see controller {index} ({controller.model})"))
    return missing


def _foreign_devices(layout: Layout, guest: SeenTree) -> list[Finding]:
    """On an expander sits what the domain puts there, and nothing else: a device that is elsewhere than it should be shows here."""
    known = {layout.path(device.address) for device in layout.devices}
    return [
        Finding(str(seen.path), f"the guest sees {seen.vendor:04x}:{seen.device:04x} where the domain has nothing")
        for seen in guest.endpoints
        if seen.path.root != MAIN_ROOT and seen.path not in known
    ]


def _device(item: Pairing, guest: SeenTree, cells: Mapping[int, int], kinds: Optional[Mapping[str, Endpoint]]) -> list[Finding]:
    seen = item.guest
    if seen is None:
        return [Finding(item.source, f"the guest does not see it at {item.path}")]
    findings = []
    if kinds is not None and (seen.vendor, seen.device) != (kinds[item.source].vendor, kinds[item.source].device):
        findings.append(Finding(item.source, f"at {item.path} the guest sees {seen.vendor:04x}:{seen.device:04x}, another device"))
    cell = cells.get(item.host_node) if item.host_node is not None else None
    if seen.numa_node != cell:
        findings.append(Finding(item.source, f"numa_node is {_node(seen.numa_node)} in the guest and must be {_node(cell)}"))
    if cell is None and item.path.root != MAIN_ROOT:
        findings.append(Finding(item.source, f"is on the expander {item.path.root} without a guest cell to be in"))
    if cell is not None and guest.nodes.get(cell) and seen.local_cpus != guest.nodes[cell]:
        findings.append(Finding(item.source, f"local_cpulist {sorted(seen.local_cpus)} is not that of cell {cell}"))
    return findings


def _link(item: Pairing, layout: Layout, host: SeenTree, guest: SeenTree) -> list[Finding]:
    """A port of which QEMU is told a link shows that of the host's port; what it is not told is QEMU's own."""
    port = guest.at(item.path.bridges[-1]) if item.path.bridges else None
    above = host.at(item.host.path.bridges[-1]) if item.host.path.bridges else None
    device = next(device for device in layout.passthrough if device.source == item.source)
    told = dict(layout.controllers[device.address.bus].properties) if device.address.bus in layout.controllers else {}
    if port is None or above is None:
        return []
    wrong = [(seen, real) for name, seen, real in zip(("x-speed", "x-width"), port.link, above.link) if name in told and seen != real]
    return [Finding(item.source, f"the port above it shows a link of {seen} and must show {real}") for seen, real in wrong]


def _node(node: Optional[int]) -> str:
    return "-1" if node is None else str(node)


def distance(one: PciPath, other: PciPath) -> Optional[int]:
    """The number of bridges below the lowest bridge that both paths share; None if they share none (or not even a root)."""
    shared = 0
    for mine, yours in zip(one.bridges, other.bridges):
        if mine != yours:
            break
        shared += 1
    return len(one.bridges) + len(other.bridges) - 2 * shared if shared else None


def _relation(one: Pairing, other: Pairing, cells: Mapping[int, int], group_by: GroupBy) -> list[Finding]:
    """How two devices are related, on the host and in the guest."""
    cell, cell_other = (cells.get(item.host_node) if item.host_node is not None else None for item in (one, other))
    if cell is None or cell_other is None:
        return []
    both = f"{one.source} and {other.source}"
    same_root = cell == cell_other and (group_by is GroupBy.NODE or one.host.path.root == other.host.path.root)
    if (one.path.root == other.path.root) != same_root:
        return [Finding(both, "share a root complex in the guest" if not same_root else "are on two root complexes in the guest")]
    if group_by is not GroupBy.SWITCH or not same_root:
        return []
    real, seen = distance(one.host.path, other.host.path), distance(one.path, other.path)
    if real == 0 or real == seen:
        return []
    return [Finding(both, f"their switch distance is {seen} in the guest and {real} on the host")]
