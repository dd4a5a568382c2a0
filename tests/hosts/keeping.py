# SPDX-License-Identifier: LGPL-2.1-or-later
"""What libvirt keeps of a domain's PCI when it is defined: a model that is fast enough for every step of a generated life.

As ``Guest.completed``, but XML in and XML out: gaps in the indexes filled with root ports, an address for every device, the USB
controller and the memballoon, one spare port where there was no port at all, and what libvirt writes out of what it assumed. Devices
without an address get the first free port by index, whoever it belongs to. Sources: libvirt's ``src/qemu/qemu_domain_address.c``; a test
holds it against the real libvirt.
"""

from __future__ import annotations

from typing import Optional

from lxml import etree

from tests.hosts.domains import address_xml
from tests.hosts.guest import EXPANDERS, PORTS, ROOTS, Slot, guest_slot

_MODELS = {
    "pcie-root-port": "pcie-root-port",
    "pcie-expander-bus": "pxb-pcie",
    "pci-expander-bus": "pxb",
    "pcie-switch-upstream-port": "x3130-upstream",
    "pcie-switch-downstream-port": "xio3130-downstream",
    "pci-bridge": "pci-bridge",
    "pcie-to-pci-bridge": "pcie-pci-bridge",
}
_ORDER = ("interface", "controller", "disk", "hostdev", "memballoon")


def kept(xml: bytes) -> bytes:
    """``xml`` (q35 or i440fx) as libvirt keeps it."""
    root = etree.fromstring(xml)
    _Keeper(root).run()
    etree.indent(root, space="  ")
    return _namespace_on_root(etree.tostring(root)) + b"\n"


def _namespace_on_root(xml: bytes) -> bytes:
    """libvirt declares its QEMU namespace on the root element, and only where something of it follows."""
    declaration = b' xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0"'
    xml = xml.replace(declaration, b"")
    return xml.replace(b"<domain", b"<domain" + declaration, 1) if b"<qemu:" in xml else xml


class _Keeper:
    def __init__(self, root: etree._Element) -> None:
        self.devices = root.find("devices")
        self.express = "q35" in root.find("os/type").get("machine")
        self.controllers: dict[int, etree._Element] = {}
        for element in self.devices.findall("controller[@type='pci']"):
            index = int(element.get("index"))
            assert index not in self.controllers, f"libvirt refuses: Multiple 'pci' controllers with index '{index}'"
            self.controllers[index] = element
        self.endpoints = [e for e in self.devices.iterchildren(etree.Element) if not (e.tag == "controller" and e.get("type") == "pci")]

    def run(self) -> None:
        had_ports = any(index > 0 for index in self.controllers)
        if 0 not in self.controllers:
            self._new(0, "pcie-root" if self.express else "pci-root", None)
        piix = "<controller type='usb' index='0' model='piix3-uhci'>" + address_xml("00:01.2") + "</controller>"
        for tag, text in (
            ("controller[@type='usb']", "<controller type='usb' index='0' model='qemu-xhci'/>" if self.express else piix),
            ("memballoon", "<memballoon model='virtio'/>"),
        ):
            if self.devices.find(tag) is None:
                self.endpoints.append(self._append(etree.fromstring(text)))
        buses = [slot.bus for e in self.endpoints if (slot := guest_slot(e)) is not None]
        for index in range(1, max([*self.controllers, *buses])):
            if index not in self.controllers:
                self._new(index, "pcie-root-port" if self.express else "pci-bridge", self._aggregated() if self.express else self._slot())
        for tag in _ORDER:
            for element in self.endpoints:
                if element.tag == tag and self._wants(element):
                    where = self._free_port() if self.express else self._slot()
                    address = element.find("address")
                    if address is not None:
                        element.remove(address)
                    element.append(etree.fromstring(address_xml("%02x:%02x.%d" % where)))
        if self.express and not had_ports:
            self._free_port()
        for index, controller in self.controllers.items():
            self._write_out(index, controller)

    def _wants(self, element: etree._Element) -> bool:
        if element.find("address") is not None and (element.find("address[@type]") is not None):
            return False
        bus = element.find("target")
        if element.tag == "disk":
            return bus is not None and bus.get("bus") == "virtio"
        if element.tag == "controller":
            return element.get("type") == "usb"
        return element.tag in ("interface", "hostdev", "memballoon")

    def _used(self) -> set[Slot]:
        return {slot for e in self.devices.iterchildren(etree.Element) if (slot := guest_slot(e)) is not None}

    def _free_port(self) -> Slot:
        """The first port by index on which nothing is; a new one behind the last controller if there is none."""
        taken = {slot.bus for slot in self._used()}
        for index in sorted(self.controllers):
            if self.controllers[index].get("model") in PORTS and index not in taken:
                return Slot(index, 0, 0)
        index = max(self.controllers) + 1
        self._new(index, "pcie-root-port", self._aggregated())
        return Slot(index, 0, 0)

    def _aggregated(self) -> Slot:
        """The next function of a slot that holds root ports, else a slot of its own."""
        used = self._used()
        ports = {guest_slot(c) for c in self.controllers.values() if c.get("model") == "pcie-root-port"} - {None}
        for slot in range(1, 31):
            here = {at for at in used if at.bus == 0 and at.slot == slot}
            free = next((f for f in range(8) if Slot(0, slot, f) not in here), None)
            if free is not None and here <= ports:
                return Slot(0, slot, free)
        raise AssertionError("libvirt finds no slot on pcie.0")

    def _slot(self) -> Slot:
        used = {(at.bus, at.slot) for at in self._used()}
        for bus in sorted(self.controllers):
            model = self.controllers[bus].get("model")
            for slot in range(2 if bus == 0 else 0 if model in EXPANDERS else 1, 32):
                if (bus, slot) not in used:
                    return Slot(bus, slot, 0)
        raise AssertionError("libvirt finds no slot")

    def _new(self, index: int, model: str, at: Optional[Slot]) -> None:
        element = etree.fromstring(f"<controller type='pci' index='{index}' model='{model}'/>")
        if at is not None:
            element.append(etree.fromstring(address_xml("%02x:%02x.%d" % at)))
        self.controllers[index] = self._append(element)

    def _append(self, element: etree._Element) -> etree._Element:
        last = self.devices.findall("controller")
        if element.tag == "controller" and last:
            last[-1].addnext(element)
        else:
            self.devices.append(element)
        return element

    def _write_out(self, index: int, controller: etree._Element) -> None:
        model = controller.get("model", "")
        if model in ROOTS:
            return
        if controller.find("model") is None:
            controller.insert(0, etree.fromstring(f"<model name='{_MODELS[model]}'/>"))
        at = guest_slot(controller)
        if model in (*PORTS, "pci-bridge"):
            target = controller.find("target")
            if target is None:
                target = etree.Element("target")
                controller.insert(1, target)
            if target.get("chassis") is None:
                target.set("chassis", str(index))
            if target.get("port") is None and at is not None:
                target.set("port", hex(at.slot << 3 | at.function))
        if at is not None and at.function == 0:
            others = [c for c in self.controllers.values() if c is not controller and (guest_slot(c) or Slot(0, 0, 0))[:2] == at[:2]]
            if any(guest_slot(other) is not None for other in others):
                controller.find("address").set("multifunction", "on")
