# SPDX-License-Identifier: LGPL-2.1-or-later
"""What only libvirt can tell the engine: host devices by name. Of a hostdev network pool its members, of an inactive mediated device its
parent (:mod:`~pcinuma.daemon.mdevs`).

A pool is what host devices an ``<interface type='network'>`` may get, as libvirt knows the network.

A running network lists the virtual functions themselves; one that is not running names a physical function (``<pf dev=…>``),
whose functions sysfs lists. What libvirt said is kept until it says that a network changed (:meth:`Pools.forget`): most domains
are on an ordinary network, and asking about it each time would double the cost of looking at them. Source: libvirt's
``docs/formatnetwork.rst``, ``<forward mode='hostdev'>``.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Iterable, Mapping, NamedTuple, Optional

import libvirt

from pcinuma.address import PciAddress
from pcinuma.daemon.mdevs import Mdevs
from pcinuma.log import log
from pcinuma.xml_parser import parse

_VIRTUAL_FUNCTION = re.compile(r"virtfn(\d+)\Z")


class Pool(NamedTuple):
    """A network whose forward mode is hostdev: its members' addresses, and the netdevs of the physical functions behind it."""

    members: tuple[PciAddress, ...]
    physical: tuple[str, ...]


class Pools:
    """What libvirt said about networks and inactive mediated devices; may be used from several threads."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._networks: dict[str, Optional[Pool]] = {}
        self.mdevs = Mdevs(root)

    def forget(self) -> None:
        """Networks changed, or this is another connection."""
        self.mdevs.changed()
        with self._lock:
            self._networks.clear()

    def known(self, xml: bytes) -> dict[str, tuple[PciAddress, ...]]:
        """The host devices behind names of the domain ``xml``, as far as libvirt told of them before; asks nobody."""
        return {**self._members({name: self._networks.get(name) for name in networks(xml)}), **self.mdevs.known(xml)}

    def resolve(self, connection: libvirt.virConnect, xml: bytes) -> dict[str, tuple[PciAddress, ...]]:
        """The host devices behind names of the domain ``xml``. A network that libvirt does not know is no pool."""
        found: dict[str, Optional[Pool]] = {}
        for name in networks(xml):
            if name not in self._networks:
                pool = _ask(connection, name)
                with self._lock:
                    self._networks[name] = pool
            found[name] = self._networks.get(name)
        return {**self._members(found), **self.mdevs.resolve(connection, xml)}

    def _members(self, pools: Mapping[str, Optional[Pool]]) -> dict[str, tuple[PciAddress, ...]]:
        return {
            name: pool.members or tuple(virtual_functions(self._root, pool.physical)) for name, pool in pools.items() if pool is not None
        }


def networks(xml: bytes) -> list[str]:
    """The networks that the interfaces of the domain ``xml`` name, sorted."""
    if b"'network'" not in xml and b'"network"' not in xml:  # every start comes by here
        return []
    root = parse(xml, "domain XML")
    names = {source.get("network") for source in root.iterfind("devices/interface[@type='network']/source")}
    return sorted(name for name in names if name)


def read_network(xml: str) -> Optional[Pool]:
    """The pool that a network's XML describes; None if its forward mode is another."""
    root = parse(xml, "network XML")
    forward = root.find("forward[@mode='hostdev']")
    if forward is None:
        return None
    members = []
    for address in forward.iterfind("address[@type='pci']"):
        try:
            members.append(PciAddress(*(int(address.get(part, "0"), 0) for part in ("domain", "bus", "slot", "function"))))
        except ValueError:
            log.warning("a network lists an address that is none", network=root.findtext("name"), address=dict(address.attrib))
    physical = tuple(dev for element in forward.iterfind("pf") if (dev := element.get("dev")))
    return Pool(tuple(sorted(members)), physical)


def virtual_functions(root: Path, netdevs: Iterable[str]) -> list[PciAddress]:
    """The virtual functions of the network devices ``netdevs``, sorted (``Documentation/ABI/testing/sysfs-bus-pci``, virtfnN)."""
    found: set[PciAddress] = set()
    for netdev in netdevs:
        device = root / "sys/class/net" / netdev / "device"
        try:
            links = [entry for entry in device.iterdir() if _VIRTUAL_FUNCTION.match(entry.name)]
            addresses = [PciAddress.parse(link.readlink().name) for link in links]
        except OSError as error:
            log.warning("the functions of a network device cannot be read", device=netdev, error=str(error))
            continue
        found.update(address for address in addresses if address is not None)
    return sorted(found)


def _ask(connection: libvirt.virConnect, name: str) -> Optional[Pool]:
    try:
        return read_network(connection.networkLookupByName(name).XMLDesc(0))
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_NETWORK:
            log.warning("libvirt does not tell about a network", network=name, error=error.get_error_message())
        return None
