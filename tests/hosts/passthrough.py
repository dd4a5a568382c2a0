# SPDX-License-Identifier: LGPL-2.1-or-later
"""The passthrough devices of a domain, form by form, and the guest cell of a host node: read independently of the program."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Mapping, Optional, Union

from lxml import etree

from tests.hosts.build import Host, cpu_set
from tests.hosts.guest import PORTS, ROOTS, Guest, Slot, guest_slot

Pools = Mapping[str, list[str]]
NS = "{urn:pcinuma:domain:1}"


@dataclass
class Passed:
    """One passthrough device."""

    element: etree._Element
    form: str
    source: str
    host_address: Optional[str]
    at: Optional[Slot]
    unassigned: bool
    not_pci: bool


def _host_address(address: Optional[etree._Element]) -> Optional[str]:
    if address is None or address.get("bus") is None:
        return None
    values = [int(address.get(name, "0"), 0) for name in ("domain", "bus", "slot", "function")]
    return "%04x:%02x:%02x.%d" % tuple(values)


def passed(domain: Union[bytes, etree._Element], host: Optional[Host] = None, pools: Optional[Pools] = None) -> list[Passed]:
    """The passthrough devices in the order of the XML.

    ``host`` finds the PCI parents of mdevs and vDPA devices; ``pools`` holds the networks that are known to be hostdev pools.
    """
    root = etree.fromstring(domain) if isinstance(domain, bytes) else domain
    devices = root.find("devices")
    found: list[Passed] = []
    for element in devices.iterchildren(etree.Element) if devices is not None else ():
        known = _form(element, host, pools or {})
        if known:
            unassigned = element.find("address[@type='unassigned']") is not None
            target = element.find("target")
            not_pci = known[0] == "nvme-disk" and (target is None or target.get("bus") != "virtio")
            found.append(Passed(element, *known, guest_slot(element), unassigned, not_pci))
    return found


def is_passed(element: etree._Element) -> bool:
    """Whether a device element is passed through, or may be (a network could be a pool)."""
    return (element.tag == "interface" and element.get("type") == "network") or _form(element, None, {}) is not None


def _form(element: etree._Element, host: Optional[Host], pools: Pools) -> Optional[tuple[str, str, Optional[str]]]:
    """Form, source and host address of a passthrough device; None for any other element."""
    kind, where = element.get("type"), element.find("source")
    functions = list(host.functions.values()) if host else []
    if where is None:
        return None
    address = _host_address(where.find("address"))
    if element.tag == "hostdev" and kind == "pci":
        return "hostdev-pci", address or "", address
    if element.tag == "hostdev" and kind == "mdev" and element.get("model") == "vfio-pci":
        uuid = where.find("address").get("uuid")
        return "mdev", uuid, next((f.address for f in functions if uuid in f.mdevs), None)
    if element.tag == "interface" and kind == "hostdev":
        return "interface-hostdev", address or "", address
    if element.tag == "interface" and kind == "network" and where.get("network") in pools:
        members = pools[where.get("network")]
        return "network-pool", f"{where.get('network')}#{element.find('mac').get('address')}", members[0] if members else None
    if element.tag == "disk" and kind == "nvme":
        return "nvme-disk", f"{address}#{where.get('namespace')}", address
    path = where.get("dev") or ""
    if (element.tag, kind) in (("disk", "block"), ("interface", "direct")):
        return _backed(element, path, host)
    if path.startswith("/dev/vhost-vdpa-"):
        number = int(path.rsplit("-", 1)[1])
        return "vdpa", path, next((f.address for f in functions if number in f.vdpas), None)
    return None


def _backed(element: etree._Element, path: str, host: Optional[Host]) -> Optional[tuple[str, str, Optional[str]]]:
    """An emulated device with a host device behind it, as near-backing sees it; domains without that setting should have none."""
    models = (None, "virtio", "virtio-non-transitional")
    if element.tag == "disk":
        if element.find("target").get("bus") != "virtio" or element.get("model") not in models:
            return None
        name = path.partition("/dev/")[2]
        form, source = "block-disk", f"{element.find('target').get('dev')}@{path}"
        name = host.dev_links.get(name, name) if host else name
    else:
        if element.find("model") is None or element.find("model").get("type") not in models[1:]:
            return None
        name, form, source = path, "direct-interface", f"{element.find('mac').get('address')}@{path}"
    behind = host.behind(name) if host else set()
    return form, source, next(iter(behind)) if len(behind) == 1 else None


def nodeset(text: str) -> set[int]:
    """libvirt's list format: ``0-3,^2,5``."""
    numbers: set[int] = set()
    for part in text.split(","):
        if part.startswith("^"):
            numbers -= cpu_set(part[1:])
        else:
            numbers |= cpu_set(part)
    return numbers


def cell_numbers(xml: bytes) -> set[int]:
    """The guest's NUMA cells."""
    return {int(cell.get("id", str(n))) for n, cell in enumerate(etree.fromstring(xml).findall("cpu/numa/cell"))}


@lru_cache(4)
def _tree(xml: bytes) -> etree._Element:
    """To look at only."""
    return etree.fromstring(xml)


def cells_for(xml: bytes, host: Host, node: int) -> set[int]:
    """The guest cells that stand for a host node: one is the answer; none or several leave the device where it is."""
    root = _tree(xml)
    cells = {int(c.get("id", str(n))): c.get("cpus") for n, c in enumerate(root.findall("cpu/numa/cell"))}
    memnodes = {int(m.get("cellid")): nodeset(m.get("nodeset")) for m in root.findall("numatune/memnode")}
    memory = _without_auto(root.find("numatune/memory"), "nodeset")
    by_memory = {cell for cell in cells if node in memnodes.get(cell, memory)}
    if len(by_memory) == 1:
        return by_memory
    local = cpu_set(host.nodes[node].cpus) - host.offline_cpus
    pins = {int(p.get("vcpu")): nodeset(p.get("cpuset")) for p in root.findall("cputune/vcpupin")}
    others = _without_auto(root.find("vcpu"), "cpuset")
    by_cpu = {cell for cell, cpus in cells.items() if cpus and any(pins.get(vcpu, others) & local for vcpu in nodeset(cpus))}
    return by_cpu or (by_memory if len(by_memory) > 1 else set())


def _without_auto(element: Optional[etree._Element], attribute: str) -> set[int]:
    """What an element binds to where nothing more exact is said; under ``placement='auto'`` that is not known beforehand."""
    if element is None or element.get(attribute) is None or element.get("placement") == "auto":
        return set()
    return nodeset(element.get(attribute))


def placement(xml: bytes) -> Optional[etree._Element]:
    return etree.fromstring(xml).find(f"metadata/{NS}pcinuma/{NS}placement")


@lru_cache(16)
def listed(xml: bytes) -> tuple[int, ...]:
    """The indexes of the controllers that the metadata says are ours."""
    element = placement(xml)
    indexes = [] if element is None else [c.get("index", "") for c in element.findall(f"{NS}controller")]
    return tuple(int(index) for index in indexes if index.isascii() and index.isdecimal())


@lru_cache(16)
def ours(xml: bytes) -> tuple[int, ...]:
    """Those of them that are as pcinuma makes them: anybody may have written the list."""
    indexes = listed(xml)
    if not indexes:
        return ()
    guest = Guest.of(xml)
    good: list[int] = []
    for index in indexes:
        controller = guest.controllers.get(index)
        above = guest.controllers.get(controller.at.bus) if controller is not None and controller.at is not None else None
        if controller is None or index == 0:
            continue
        if controller.expander:
            if controller.node is not None and (controller.model in ROOTS or (controller.bus_nr is not None and controller.at.bus == 0)):
                good.append(index)
        elif controller.at is not None and controller.at.bus == 0:
            if controller.model == "pcie-root-port" and any(i in guest.controllers and guest.controllers[i].expander for i in indexes):
                good.append(index)
        elif above is not None and above.index in indexes:
            port = controller.model in ("pcie-root-port", "pcie-switch-downstream-port")
            if (port and above.model in ("pcie-expander-bus", "pcie-switch-upstream-port")) or (
                controller.model == "pcie-switch-upstream-port" and above.model in PORTS
            ):
                good.append(index)
    return tuple(good) if any(guest.controllers[index].expander for index in good) else ()
