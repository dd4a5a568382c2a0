# SPDX-License-Identifier: LGPL-2.1-or-later
"""The whole host at once: every node and every PCI device, for people and for captures.

Placement never comes here (it reads single places, ``host.place``); both read through the same :class:`HostReader`, so what a person is
shown is what placement sees. A device of which something cannot be read keeps its line, with the trouble in ``problem``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from pcinuma.address import PciAddress
from pcinuma.errors import DeviceAbsent, HostError, UnusableInput
from pcinuma.host.nodes import Node
from pcinuma.host.place import DEVICES, NO_ROUTE, HostReader, Place
from pcinuma.host.sysfs import Sysfs
from pcinuma.ranges import format_ranges


@dataclass(frozen=True)
class HostDevice:
    """One PCI device of the host.

    ``path``: addresses of the bridges above it, topmost first. ``class_code``: 24 bits, base class first. ``bars``: sizes in bytes of the
    memory and I/O regions in the order of the ``resource`` file, empty ones left out. ``numa_node``: the file's own number, which may be
    -1; ``node``: what it comes to, None for no affinity; ``node_from``: numa_node, local_cpulist or pf.
    """

    address: PciAddress
    path: tuple[str, ...]
    class_code: Optional[int]
    vendor: Optional[int]
    product: Optional[int]
    numa_node: Optional[int]
    node: Optional[int]
    node_from: Optional[str]
    root_complex: Optional[str]
    switches: tuple[tuple[str, str], ...]
    physfn: Optional[str]
    virtfns: tuple[str, ...]
    driver: Optional[str]
    bars: tuple[int, ...]
    iommu_group: Optional[str]
    problem: Optional[str]

    @property
    def is_bridge(self) -> bool:
        """Whether the device is a PCI-to-PCI bridge (class 0604)."""
        return self.class_code is not None and self.class_code >> 8 == 0x0604

    def as_json(self) -> dict[str, Any]:
        """Plain data; class, vendor and product as hexadecimal text, as sysfs and lspci have them."""
        return {
            "address": str(self.address),
            "class": None if self.class_code is None else f"{self.class_code:06x}",
            "vendor": None if self.vendor is None else f"{self.vendor:04x}",
            "product": None if self.product is None else f"{self.product:04x}",
            "numa_node": self.numa_node,
            "node": self.node,
            "node_from": self.node_from,
            "root_complex": self.root_complex,
            "path": list(self.path),
            "switches": [{"upstream": up, "downstream": down} for up, down in self.switches],
            "physfn": self.physfn,
            "virtfns": list(self.virtfns),
            "driver": self.driver,
            "bars": list(self.bars),
            "iommu_group": self.iommu_group,
            "problem": self.problem,
        }


@dataclass(frozen=True)
class Topology:
    """All online nodes and all PCI devices, each in ascending order."""

    nodes: tuple[Node, ...]
    devices: tuple[HostDevice, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``pcinuma topology --json``."""
        return {
            "nodes": [
                {
                    "node": node.number,
                    "cpus": format_ranges(node.cpus),
                    "distances": list(node.distances),
                    "memory_kib": node.memory_kib,
                }
                for node in self.nodes
            ],
            "devices": [device.as_json() for device in self.devices],
        }


def require_sys(root: Path) -> None:
    """Raise UnusableInput unless ``root`` holds a ``sys/``."""
    if not (root / "sys").is_dir():
        raise UnusableInput("holds no sys/", subject=str(root), hint="--root takes the directory above a host's sys/")


def read_topology(root: Path) -> Topology:
    """Read everything below ``root``. Raises UnusableInput without ``sys/``, HostError where not even the nodes can be read."""
    require_sys(root)
    reader = HostReader(root)
    nodes = tuple(reader.nodes.node(number) for number in sorted(reader.nodes.online()))
    addresses = sorted(a for a in map(PciAddress.parse, reader.sysfs.names(DEVICES)) if a is not None)
    return Topology(nodes, tuple(_device(reader, address) for address in addresses))


def _device(reader: HostReader, address: PciAddress) -> HostDevice:
    sysfs, folder, problems = reader.sysfs, f"{DEVICES}/{address}", []

    def number(name: str, base: int = 16) -> Optional[int]:
        try:
            return sysfs.read_int(f"{folder}/{name}", base)
        except HostError as error:
            problems.append(error.sentence())
            return None

    try:
        place, route = reader.place(address, switches=True), reader.route(str(address))
    except (HostError, DeviceAbsent) as error:
        problems.append(error.sentence())
        place, route = Place(address, None, None, None, ()), NO_ROUTE
        try:
            route = reader.route(str(address))
            place = place._replace(root_complex=route.root_complex, switches=route.switches)
        except HostError:
            pass  # the first problem says it
    virtfns = [name for name in sysfs.names(folder) if name.startswith("virtfn") and name[6:].isdecimal()]
    return HostDevice(
        address=address,
        path=route.parents,
        class_code=number("class"),
        vendor=number("vendor"),
        product=number("device"),
        numa_node=number("numa_node", 10),
        node=place.node,
        node_from=place.node_from,
        root_complex=place.root_complex,
        switches=place.switches,
        physfn=_target(sysfs, f"{folder}/physfn"),
        virtfns=tuple(t for n in sorted(virtfns, key=lambda n: int(n[6:])) if (t := _target(sysfs, f"{folder}/{n}"))),
        driver=_target(sysfs, f"{folder}/driver"),
        bars=_bars(sysfs, f"{folder}/resource"),
        iommu_group=_target(sysfs, f"{folder}/iommu_group"),
        problem=problems[0] if problems else None,
    )


def _target(sysfs: Sysfs, path: str) -> Optional[str]:
    link = sysfs.link(path)
    return link.rstrip("/").rsplit("/", 1)[-1] if link else None


def _bars(sysfs: Sysfs, path: str) -> tuple[int, ...]:
    """Sizes from the first six lines of ``resource`` (start, end, flags in hexadecimal); the ROM and bridge windows are no BARs."""
    sizes = []
    for line in (sysfs.read(path) or "").splitlines()[:6]:
        words = line.split()
        try:
            start, end = int(words[0], 16), int(words[1], 16)
        except (IndexError, ValueError):
            continue
        if end > start:
            sizes.append(end - start + 1)
    return tuple(sizes)
