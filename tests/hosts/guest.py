# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a guest sees of a domain's PCI controllers: an independent model of libvirt's completion and of the firmware's bus numbers.

Nothing here comes from the code under test. Sources: libvirt's ``src/qemu/qemu_domain_address.c`` (what gets an address, and where),
SeaBIOS's ``pci_bios_init_bus`` and Linux's ``pci_scan_bridge`` (depth first, ascending device and function).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Iterator, NamedTuple, Optional

from lxml import etree

ROOTS = ("pcie-root", "pci-root")
EXPANDERS = ("pcie-expander-bus", "pci-expander-bus")
PORTS = ("pcie-root-port", "pcie-switch-downstream-port")


class Slot(NamedTuple):
    """A guest address: ``bus`` is a controller's index."""

    bus: int
    slot: int
    function: int

    def __str__(self) -> str:
        return "0000:%02x:%02x.%d" % self


@dataclass
class Controller:
    """A PCI controller."""

    index: int
    model: str
    at: Optional[Slot] = None
    bus_nr: Optional[int] = None
    node: Optional[int] = None
    chassis: Optional[int] = None
    hotplug: str = "on"
    implied: bool = False

    @property
    def expander(self) -> bool:
        """Whether it starts a hierarchy of its own with a node: an expander bus, or a further PHB of pseries."""
        return self.model in EXPANDERS or (self.model in ROOTS and self.index > 0)


@dataclass
class Endpoint:
    """A device with (or wanting) a PCI address."""

    name: str
    at: Optional[Slot]
    wants: str = "port"
    element: Optional[etree._Element] = None


@dataclass
class Guest:
    """The controllers and endpoints of a domain."""

    controllers: dict[int, Controller] = field(default_factory=dict)
    endpoints: list[Endpoint] = field(default_factory=list)
    duplicates: list[int] = field(default_factory=list)
    express: bool = True

    @classmethod
    def of(cls, xml: bytes) -> Guest:
        """The guest as the XML says it, before libvirt completes it."""
        root = etree.fromstring(xml)
        kind = root.find("os/type")
        machine = "q35" if kind is None else kind.get("machine", "q35")
        guest = cls(express="q35" in machine or machine.startswith("virt"))
        devices = root.find("devices")
        if devices is None:
            return guest
        for element in devices.iterchildren(etree.Element):
            if element.tag == "controller" and element.get("type") == "pci":
                guest._controller(element)
            else:
                at = guest_slot(element)
                wants = _wants(element)
                if at is not None or wants:
                    guest.endpoints.append(Endpoint(_name(element), at, wants or "port", element))
        guest._implied(devices)
        return guest

    def _controller(self, element: etree._Element) -> None:
        index = int(element.get("index", "-1"))
        target = element.find("target")
        target = target if target is not None else etree.Element("target")
        node = target.findtext("node")
        if index in self.controllers:
            self.duplicates.append(index)
        self.controllers[index] = Controller(
            index,
            element.get("model", ""),
            guest_slot(element),
            _number(target.get("busNr")),
            int(node) if node is not None else None,
            _number(target.get("chassis")),
            target.get("hotplug", "on"),
        )

    def _implied(self, devices: etree._Element) -> None:
        """What libvirt adds to a q35 guest's XML by itself."""
        if devices.find("controller[@type='usb']") is None:
            self.endpoints.append(Endpoint("implied USB controller", None))
        if devices.find("memballoon") is None:
            self.endpoints.append(Endpoint("implied memballoon", None))
        if devices.find("channel/target[@type='virtio']") is not None and devices.find("controller[@type='virtio-serial']") is None:
            self.endpoints.append(Endpoint("implied virtio-serial", None))
        if devices.find("graphics") is not None and devices.find("video") is None:
            self.endpoints.append(Endpoint("implied video", None, "vga"))

    def used(self, bus: int) -> list[Slot]:
        """Everything that sits on controller ``bus``."""
        slots = [c.at for c in self.controllers.values() if c.at and c.at.bus == bus]
        return sorted(slots + [e.at for e in self.endpoints if e.at and e.at.bus == bus])

    def completed(self) -> Guest:
        """The guest as libvirt defines it: gaps in the indexes filled with root ports, every device on a port, one spare port.

        On i440fx and pseries only the root is added: devices without an address find a slot on it.
        """
        guest = Guest({i: Controller(**vars(c)) for i, c in self.controllers.items()}, [Endpoint(**vars(e)) for e in self.endpoints])
        guest.express = self.express
        if not self.express:
            guest.controllers.setdefault(0, Controller(0, "pci-root", implied=True))
            return guest
        had_ports = any(index > 0 for index in guest.controllers)
        guest.controllers.setdefault(0, Controller(0, "pcie-root", implied=True))
        for index in range(1, max(guest.controllers)):
            guest.controllers.setdefault(index, Controller(index, "pcie-root-port", implied=True))
        waiting = [e for e in guest.endpoints if e.at is None]
        for endpoint in waiting:
            if endpoint.wants == "vga":
                endpoint.at = Slot(0, 1, 0)
        for endpoint in waiting:
            if endpoint.wants == "port":
                endpoint.at = Slot(guest._free_port(), 0, 0)
        if not had_ports:
            guest._free_port()
        taken = {slot.slot for slot in guest.used(0)} | {0, 0x1F}
        places = (Slot(0, slot, function) for slot in range(1, 31) if slot not in taken for function in range(8))
        for _, controller in sorted(guest.controllers.items()):
            if controller.at is None and controller.model not in ROOTS:
                controller.at = next(places)
        return guest

    def _free_port(self) -> int:
        for index, controller in sorted(self.controllers.items()):
            if controller.model in PORTS and not self.used(index):
                return index
        index = max(self.controllers) + 1
        self.controllers[index] = Controller(index, "pcie-root-port", implied=True)
        return index

    # Bus numbers.

    def below(self, index: int) -> Iterator[Controller]:
        """The bridges on a bus in the order in which firmware numbers them; expanders are not below pcie.0."""
        at = [c for c in self.controllers.values() if c.at and c.at.bus == index and not c.expander and c.index != index]
        yield from sorted(at, key=lambda controller: controller.at or Slot(0, 0, 0))

    def numbers(self) -> dict[int, int]:
        """Controller index -> the bus number that firmware gives it; of an i440fx expander the internal bridge's."""
        numbers: dict[int, int] = {}
        for top in [c for c in self.controllers.values() if c.expander or c.index == 0]:
            self._count(top.index, (top.bus_nr or 0) + (1 if top.model == "pci-expander-bus" else 0), numbers)
        return numbers

    def _count(self, index: int, number: int, numbers: dict[int, int]) -> int:
        numbers[index] = number
        for bridge in self.below(index):
            number = self._count(bridge.index, number + 1, numbers)
        return number

    def extents(self) -> list[tuple[int, int, int]]:
        """``(first, last, controller index)`` of the main hierarchy and of each expander, by first bus number."""
        extents = []
        for top in self.controllers.values():
            if top.index == 0 or top.model in EXPANDERS:  # a PHB of pseries numbers its buses for itself
                numbers: dict[int, int] = {}
                first = top.bus_nr or 0
                last = self._count(top.index, first + (1 if top.model == "pci-expander-bus" else 0), numbers)
                extents.append((first, last, top.index))
        return sorted(extents)

    def path(self, bus: int) -> list[Controller]:
        """The controllers from the root's child (an expander, or a port of the main root) down to ``bus``."""
        path: list[Controller] = []
        while bus in self.controllers and bus != 0 and len(path) < 256:
            path.insert(0, self.controllers[bus])
            at = self.controllers[bus].at
            bus = at.bus if at else 0
        return path

    def expander(self, bus: int) -> Optional[Controller]:
        """The expander above ``bus``."""
        path = self.path(bus)
        return path[0] if path and path[0].expander else None


def guest_slot(element: etree._Element) -> Optional[Slot]:
    """The guest PCI address of a device element."""
    address = element.find("address")
    if address is None or address.get("type") != "pci":
        return None
    return Slot(*(_number(address.get(name, "0")) or 0 for name in ("bus", "slot", "function")))


def _number(text: Optional[str]) -> Optional[int]:
    return None if text is None else int(text, 0)


def _name(element: etree._Element) -> str:
    source = element.find("source/address")
    return f"{element.tag} {dict(source.attrib) if source is not None else ''}".strip()


def _wants(element: etree._Element) -> Optional[str]:
    """What a device without a PCI address gets from libvirt: a port, the VGA slot, or None for nothing on PCI."""
    if element.find("address[@type='unassigned']") is not None:
        return None
    tag, kind, bus = element.tag, element.get("type"), element.find("target")
    if tag in ("interface", "rng", "filesystem", "vsock"):
        return "port"
    if tag == "hostdev":
        return "port" if kind in ("pci", "mdev") else None
    if tag == "disk":
        return "port" if bus is not None and bus.get("bus") == "virtio" else None
    if tag == "controller":
        return "port" if kind in ("usb", "scsi", "virtio-serial") else None
    if tag == "memballoon":
        return None if element.get("model") == "none" else "port"
    if tag == "video":
        model = element.find("model")
        return None if model is not None and model.get("type") == "none" else "vga"
    return None
