# SPDX-License-Identifier: LGPL-2.1-or-later
"""A domain's XML as a PCI hierarchy: its controllers, its devices, and the path under which a kernel must find each of them.

This reads the XML by itself and shares no line with ``pcinuma.domain``: the judge does not trust the code that it judges. It wants XML in
which every controller and every device that matters has an address (what libvirt has formatted, or what pcinuma has placed).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from lxml import etree

from pcinuma.address import PciAddress
from pcinuma.lab import LabError
from pcinuma.lab.guest_tree import Devfn, PciPath
from pcinuma.xml_parser import parse

MAIN_ROOT = "0000:00"
ROOTS = ("pcie-root", "pci-root")
EXPANDERS = ("pcie-expander-bus", "pci-expander-bus")
_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"


@dataclass(frozen=True)
class Controller:
    """A PCI controller. ``bus_nr`` and ``cell`` are an expander's; ``address`` is None for the roots; ``phb`` is the index that pseries
    knows a PCI host bridge by, and the PCI domain under which Linux shows it; ``properties``: QEMU's, by ``<qemu:override>``."""

    index: int
    model: str
    address: Optional[PciAddress]
    multifunction: bool
    hotplug: bool
    bus_nr: Optional[int]
    cell: Optional[int]
    chassis: Optional[int]
    port: Optional[int]
    phb: Optional[int] = None
    properties: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Device:
    """A device that has a guest PCI address. ``source`` names a passthrough device, and an emulated one with a host device behind it, as
    pcinuma's report does; None for all others."""

    name: str
    source: Optional[str]
    host: Optional[PciAddress]
    address: PciAddress
    multifunction: bool


@dataclass(frozen=True)
class Layout:
    """The PCI side of a domain."""

    machine: str
    cells: dict[int, int]
    """Guest cell -> number of vCPUs in it."""
    controllers: dict[int, Controller]
    devices: tuple[Device, ...]

    def path(self, address: PciAddress) -> PciPath:
        """The path of what sits at ``address``, whose bus is a controller's index."""
        steps = [Devfn(address.slot, address.function)]
        controller = self._controller(address.bus)
        while controller.model not in ROOTS:
            if controller.model in EXPANDERS:
                if controller.model == "pci-expander-bus":
                    steps.insert(0, Devfn(0, 0))  # the bridge inside QEMU's pxb
                assert controller.bus_nr is not None
                return PciPath("0000:%02x" % controller.bus_nr, tuple(steps))
            assert controller.address is not None
            steps.insert(0, Devfn(controller.address.slot, controller.address.function))
            controller = self._controller(controller.address.bus)
        if controller.index:
            return PciPath(f"{controller.phb:04x}:00", tuple(steps))
        return PciPath(MAIN_ROOT, tuple(steps))

    def _controller(self, index: int) -> Controller:
        if index == 0:
            return self.controllers.get(0) or Controller(0, ROOTS[0], None, False, True, None, None, None, None)
        if index not in self.controllers:
            raise LabError("the domain has no PCI controller with this index", subject=str(index))
        return self.controllers[index]

    @property
    def passthrough(self) -> tuple[Device, ...]:
        return tuple(device for device in self.devices if device.source is not None)


def read(xml: bytes) -> Layout:
    """The layout of a domain XML."""
    root = parse(xml, "domain XML")
    cells = {
        int(cell.get("id", str(position))): _count(cell.get("cpus", "")) for position, cell in enumerate(root.iterfind("cpu/numa/cell"))
    }
    overridden = {str(device.get("alias")): _properties(device) for device in root.iterfind(f"{_QEMU}override/{_QEMU}device")}
    controllers = {}
    devices = []
    for element in root.iterfind("devices/*"):
        if element.tag == "controller" and element.get("type") == "pci":
            controller = _controller(element, overridden.get(f"pci.{element.get('index')}", ()))
            if controller.index in controllers:
                raise LabError("two PCI controllers share an index", subject=str(controller.index))
            controllers[controller.index] = controller
        else:
            device = _device(element)
            if device is not None:
                devices.append(device)
    kind = root.find("os/type")
    machine = kind.get("machine", "") if kind is not None else ""
    _reject_collisions(controllers, devices)
    return Layout(machine, cells, controllers, tuple(devices))


def _properties(device: etree._Element) -> tuple[tuple[str, str], ...]:
    return tuple((str(item.get("name")), str(item.get("value"))) for item in device.iterfind(f"{_QEMU}frontend/{_QEMU}property"))


def _reject_collisions(controllers: dict[int, Controller], devices: list[Device]) -> None:
    taken = [controller.address for controller in controllers.values() if controller.address is not None]
    taken += [device.address for device in devices]
    for address in taken:
        if taken.count(address) > 1:
            raise LabError("two things of the domain sit at one address", subject=str(address))


def _count(cpus: str) -> int:
    total = 0
    for part in filter(None, cpus.split(",")):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total


def _number(element: Optional[etree._Element], name: str) -> Optional[int]:
    text = element.get(name) if element is not None else None
    return int(text, 0) if text is not None else None


def _address(element: Optional[etree._Element]) -> Optional[PciAddress]:
    if element is None or (element.get("type", "pci") != "pci") or element.get("bus") is None:
        return None
    values = [_number(element, name) or 0 for name in ("domain", "bus", "slot", "function")]
    return PciAddress(*values)


def _multifunction(element: etree._Element) -> bool:
    address = element.find("address")
    return address is not None and address.get("multifunction") == "on"


def _controller(element: etree._Element, properties: tuple[tuple[str, str], ...]) -> Controller:
    target = element.find("target")
    node = element.findtext("target/node")
    return Controller(
        index=int(element.get("index", "0")),
        model=element.get("model", ""),
        address=_address(element.find("address")),
        multifunction=_multifunction(element),
        hotplug=target is None or target.get("hotplug") != "off",
        bus_nr=_number(target, "busNr"),
        cell=int(node) if node is not None else None,
        chassis=_number(target, "chassis") or _number(target, "chassisNr"),
        port=_number(target, "port"),
        phb=_number(target, "index"),
        properties=properties,
    )


def _device(element: etree._Element) -> Optional[Device]:
    address = _address(element.find("address"))
    if address is None:
        return None
    source = element.find("source")
    inner = source.find("address") if source is not None else None
    host = _address(inner)
    name = element.tag if isinstance(element.tag, str) else "comment"
    label: Optional[str] = None
    if name == "hostdev" and inner is not None:
        label = inner.get("uuid") or str(host)
    elif name == "interface" and element.get("type") == "hostdev":
        label = str(host)
    elif name == "interface" and element.get("type") == "vdpa" and source is not None:
        label = source.get("dev")
    elif name == "disk" and element.get("type") == "nvme" and source is not None:
        label = f"{host}#{source.get('namespace', '1')}"
    elif source is not None and (name, element.get("type")) in (("disk", "block"), ("interface", "direct")):
        named = element.find("target") if name == "disk" else element.find("mac")
        label = f"{'' if named is None else named.get('dev') or named.get('address')}@{source.get('dev')}"
    return Device(name, label, host if label else None, address, _multifunction(element))
