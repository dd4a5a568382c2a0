# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where one device sits: NUMA node, root complex, chain of switches. Live, and only the files that the answer needs.

For a device with a ``numa_node`` that is one ``readlink`` and one read, plus one read of the online nodes per request. Rules:

* node: ``numa_node``; if it is negative, the one node whose cpulist contains ``local_cpulist``, where that list is a proper, not empty
  part of the machine (some firmware tells locality only there). Where it lies on several nodes, but not on all, those are told
  (``several``), and there is no one node; a VF without a node of its own has its PF's. A missing
  ``numa_node`` or a node that is not online means no affinity (None). Unreadable or garbage is an error.
* root complex: the first ``pciDDDD:BB`` of the real path (behind Intel VMD there are two).
* switches: of the bridges between the root port and the device, the (upstream, downstream) pairs, topmost first. Where the
  configuration space can be read, the PCIe port type decides which bridge is what (PCIe base specification, 7.5.3.2); where it cannot, two
  bridges in a row below the root port are taken for a switch.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple, Optional

from pcinuma.address import PciAddress, is_address
from pcinuma.errors import DeviceAbsent, HostError
from pcinuma.host.nodes import Nodes
from pcinuma.host.sysfs import Sysfs
from pcinuma.ranges import parse_ranges

DEVICES = "/sys/bus/pci/devices"
_ROOT_COMPLEX = re.compile(r"pci[0-9a-f]{4,8}:[0-9a-f]{2}\Z")

_TO_SYS = "../../../"  # from DEVICES
_BELOW_ROOT_COMPLEX = re.compile(r"\.\./\.\./\.\./devices/(pci[0-9a-f]{4,8}:[0-9a-f]{2})/")
_IO, _PREFETCHABLE_64 = 0x100, 0x102000

UPSTREAM_PORT = 5
_Told = tuple[Optional[int], Optional[str], tuple[int, ...]]
_UNTOLD: _Told = (None, None, ())


class Route(NamedTuple):
    """The way from the root complex to a device.

    ``root_complex``: such as ``pci0000:16``, None if the path does not tell. ``parents``: every PCI address on the path. ``switches``: the
    (upstream, downstream) pairs, topmost first, those of a nested domain (VMD) after its own root only. ``upper``: the lowest bridge, if it
    may be an upstream port; ``below_port``: whether the root port was passed.
    """

    root_complex: Optional[str]
    parents: tuple[str, ...]
    switches: tuple[tuple[str, str], ...]
    upper: Optional[str]
    below_port: bool


NO_ROUTE = Route(None, (), (), None, False)


class Place(NamedTuple):
    """Where a device sits on the host. ``node_from`` names the file that told the node: numa_node, local_cpulist or pf.

    ``several``: the nodes to which it is equally local, where the host tells of more than one and not of all.
    """

    address: PciAddress
    node: Optional[int]
    node_from: Optional[str]
    root_complex: Optional[str]
    switches: tuple[tuple[str, str], ...]
    several: tuple[int, ...] = ()


class Bars(NamedTuple):
    """``large``: sizes of the 64-bit prefetchable BARs, the only ones that a bridge passes above 4 GiB. ``io``: there is an I/O BAR."""

    large: tuple[int, ...]
    io: bool


class Cpu(NamedTuple):
    """The host's CPUs: vendor, physical address bits (None: not told), whether they have pages of 1 GiB; x86's family and model."""

    vendor: Optional[str]
    bits: Optional[int]
    gib_pages: bool
    family: Optional[int] = None
    model: Optional[int] = None


class HostReader:
    """Reads places below one root; lives for one request, within which no file is read twice."""

    def __init__(self, root: Path) -> None:
        self.sysfs = Sysfs(root)
        self.nodes = Nodes(self.sysfs)
        self._port_types: dict[str, Optional[int]] = {}
        self._routes: dict[str, Route] = {}
        self._places: dict[tuple[PciAddress, bool], Place] = {}

    def place(self, address: PciAddress, *, switches: bool = False) -> Place:
        """The place of the device at ``address``; its chain of switches only where ``switches`` asks for it.

        Raises DeviceAbsent where the host has no such device, HostError for what cannot be read or means nothing.
        """
        key = address, switches
        known = self._places.get(key)
        if known is None:
            name = str(address)
            link = self.sysfs.link(f"{DEVICES}/{name}")
            node_from: Optional[str] = "numa_node"
            several: tuple[int, ...] = ()
            node = self._plain_node(link)
            if node is None:
                node, node_from, several = self._node(name)
            if switches:
                route = self._route(name, link)
                root_complex, chain = route.root_complex, route.switches
            else:
                root_complex, chain = self._root_complex(name, link), ()
            known = self._places[key] = Place(address, node, node_from, root_complex, chain, several)
        return known

    def route(self, name: str) -> Route:
        """The way to the device called ``name`` (``0000:17:00.0``)."""
        return self._route(name, self.sysfs.link(f"{DEVICES}/{name}"))

    def is_virtual_function(self, address: PciAddress) -> bool:
        """Whether the device is an SR-IOV VF."""
        return self.sysfs.link(f"{DEVICES}/{address}/physfn") is not None

    def bars(self, address: PciAddress) -> Bars:
        """The device's BARs as far as bridges care; none where not told.

        Source: ``include/linux/ioport.h`` for the flags in ``resource``; its first six lines are the BARs.
        """
        sizes, io = [], False
        for line in (self.sysfs.read(f"{DEVICES}/{address}/resource") or "").splitlines()[:6]:
            words = line.split()
            try:
                start, end, flags = (int(word, 16) for word in words)
            except ValueError:
                continue
            if flags & _PREFETCHABLE_64 == _PREFETCHABLE_64 and end > start:
                sizes.append(end - start + 1)
            io = io or bool(flags & _IO)
        return Bars(tuple(sizes), io)

    def cpu(self) -> Cpu:
        """What the first of the host's CPUs says of itself in ``/proc/cpuinfo``."""
        says: dict[str, str] = {}
        first = self.sysfs.read_bytes("/proc/cpuinfo", 8192).partition(b"\n\n")[0]
        for line in first.decode(errors="replace").splitlines():
            key, separator, value = line.partition(":")
            if separator:
                says.setdefault(key.strip(), value.strip())
        bits = _decimal(says.get("address sizes", "").partition(" ")[0])
        flags = says.get("flags", "").split()
        if bits is not None and "sme" in flags and says.get("vendor_id") == "AuthenticAMD":
            bits = max(bits, 48)  # the kernel has taken off those that encrypt memory, QEMU reads CPUID
        family, model = _decimal(says.get("cpu family", "")), _decimal(says.get("model", ""))
        return Cpu(says.get("vendor_id") or None, bits, "pdpe1gb" in flags or not flags, family, model)

    def mdev_parent(self, uuid: str) -> Optional[PciAddress]:
        """The PCI device that the mediated device ``uuid`` is a part of; None where its parent is of another kind.

        Source: ``Documentation/driver-api/vfio-mediated-device.rst``.
        """
        link = self.sysfs.link(f"/sys/bus/mdev/devices/{uuid}")
        if link is None:
            raise DeviceAbsent("the host has no such mediated device at the moment", subject=uuid)
        return PciAddress.parse(link.rsplit("/", 2)[-2]) if "/" in link else None

    def vdpa_parent(self, path: str) -> Optional[PciAddress]:
        """The PCI device behind ``/dev/vhost-vdpa-N``: its nearest PCI ancestor; None for a software device that has none."""
        name = path.rsplit("/", 1)[-1]
        folder = "/sys/bus/vdpa/devices"
        for device in self.sysfs.names(folder):
            if self.sysfs.exists(f"{folder}/{device}/{name}"):
                link = self.sysfs.link(f"{folder}/{device}") or ""
                return next((a for a in map(PciAddress.parse, reversed(link.split("/"))) if a is not None), None)
        raise DeviceAbsent("the host has no such vDPA device at the moment", subject=path)

    def _route(self, name: str, link: Optional[str]) -> Route:
        """:meth:`route` of the device whose link in DEVICES says ``link``."""
        if link is None:
            if not self.sysfs.exists(f"{DEVICES}/{name}"):
                raise DeviceAbsent("the host has no such device at the moment", subject=name)
            return NO_ROUTE
        return self._way(link.rpartition("/")[0])

    def _way(self, path: str) -> Route:
        """The route that the real path of what is above a device spells. Devices share most of it: each part is looked at once."""
        known = self._routes.get(path)
        if known is None:
            above, _, part = path.rpartition("/")
            known = self._routes[path] = self._extended(self._way(above) if above else NO_ROUTE, part)
        return known

    def _extended(self, route: Route, part: str) -> Route:
        """``route`` and one more component of the path."""
        root_complex, switches, upper = route.root_complex, route.switches, route.upper
        if part.startswith("pci") and _ROOT_COMPLEX.match(part):
            return Route(root_complex or part, route.parents, (), None, False)
        if root_complex is None or not is_address(part):
            return route
        parents = (*route.parents, part)
        if upper is None:
            return Route(root_complex, parents, switches, part if route.below_port else None, True)
        kind = self._port_type(upper)
        if kind == UPSTREAM_PORT or (kind is None and self._port_type(part) is None):  # below it are downstream ports
            return Route(root_complex, parents, (*switches, (upper, part)), None, True)
        return Route(root_complex, parents, switches, part, True)

    def _root_complex(self, name: str, link: Optional[str]) -> Optional[str]:
        """The root complex of a route at a third of its cost, where nothing else of it is wanted."""
        usual = _BELOW_ROOT_COMPLEX.match(link or "")
        return self._route(name, link).root_complex if usual is None else usual.group(1)

    def _plain_node(self, link: Optional[str]) -> Optional[int]:
        """The node of a device about which there is nothing odd: its file, found sooner by its real path, names an online node."""
        if link is None or not link.startswith(_TO_SYS):
            return None
        node = self.sysfs.read_plain_int(f"/sys/{link[len(_TO_SYS):]}/numa_node")
        return node if node is not None and node >= 0 and node in self.nodes.online() else None

    def _node(self, name: str) -> _Told:
        told = self._own_node(name)
        if told[0] is None:
            physical = self.sysfs.link(f"{DEVICES}/{name}/physfn")
            if physical is not None:
                node, _, several = self._own_node(physical.rsplit("/", 1)[-1])
                return (node, "pf", ()) if node is not None else (None, None, told[2] or several)
        return told

    def _own_node(self, name: str) -> _Told:
        node = self.sysfs.read_int(f"{DEVICES}/{name}/numa_node")
        if node is not None and node >= 0:
            return (node, "numa_node", ()) if node in self.nodes.online() else _UNTOLD
        if node is None:
            if not self.sysfs.exists(f"{DEVICES}/{name}"):
                raise DeviceAbsent("the host has no such device at the moment", subject=name)
            return _UNTOLD
        nodes = self._nodes_of_local_cpus(name)
        return (nodes[0], "local_cpulist", ()) if len(nodes) == 1 else (None, None, nodes)

    def _nodes_of_local_cpus(self, name: str) -> tuple[int, ...]:
        """The nodes that ``local_cpulist`` lies on; none where it lies on all that have CPUs, which tells nothing."""
        path = f"{DEVICES}/{name}/local_cpulist"
        text = self.sysfs.read(path)
        if text is None:
            return ()
        local = parse_ranges(text)
        if local is None:
            raise HostError(f"holds {text[:40]!r} where a list of CPUs belongs", subject=path)
        if not local:
            return ()
        by_node = {node: self.nodes.cpus(node) for node in sorted(self.nodes.online())}
        machine: frozenset[int] = frozenset().union(*by_node.values())
        if local >= machine or not local <= machine:
            return ()
        holders = tuple(node for node, cpus in by_node.items() if local & cpus)
        return holders if len(holders) == 1 or len(holders) < sum(1 for cpus in by_node.values() if cpus) else ()

    def _port_type(self, name: str) -> Optional[int]:
        if name not in self._port_types:
            self._port_types[name] = port_type(self.sysfs.read_bytes(f"{DEVICES}/{name}/config", 256))
        return self._port_types[name]


def _decimal(text: str) -> Optional[int]:
    return int(text) if text.isascii() and text.isdigit() else None


def port_type(config: bytes) -> Optional[int]:
    """The device/port type in the PCI Express capability of a configuration space; None if the bytes do not tell."""
    offset = express_capability(config)
    return None if offset is None else config[offset + 2] >> 4


def express_capability(config: bytes) -> Optional[int]:
    """Where the PCI Express capability of a configuration space begins; None if the bytes do not tell."""
    if len(config) < 64 or not config[6] & 0x10:
        return None
    pointer = config[0x34] & 0xFC
    for _ in range(48):
        if pointer < 64 or pointer + 3 >= len(config):
            return None
        if config[pointer] == 0x10:
            return pointer
        pointer = config[pointer + 1] & 0xFC
    return None
