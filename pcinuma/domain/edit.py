"""Edits of a domain's XML: carry out a plan, or take pcinuma's placement back out. Nothing else is touched.

What may change is invariant 3 of the design: controllers that pcinuma created, guest addresses of passthrough devices (and of a stranger on
one of our ports), and pcinuma's metadata element.
"""

from __future__ import annotations

from typing import Optional

from lxml import etree

from pcinuma.address import PciAddress
from pcinuma.domain import metadata
from pcinuma.domain.model import Domain, OccupantKind, Original
from pcinuma.domain.read import Elements
from pcinuma.domain.xml import Document, append, indent, insert_after, insert_first, remove, space_before
from pcinuma.placement.plan_model import NewController, Plan


def apply_plan(document: Document, elements: Elements, plan: Plan) -> None:
    """Carry ``plan`` out on ``document``, of which ``elements`` was read."""
    devices = document.root.find("devices")
    assert devices is not None
    for index, node in plan.set_node:
        element = elements.controllers[index].find("target/node")
        assert element is not None
        element.text = str(node)
    for index, hotplug in plan.set_hotplug:
        _target(elements.controllers[index]).set("hotplug", "on" if hotplug else "off")
    for index in plan.gain_multifunction:
        address = elements.controllers[index].find("address")
        assert address is not None
        address.set("multifunction", "on")
    controllers = [child for child in devices if child.tag == "controller"]
    last: Optional[etree._Element] = controllers[-1] if controllers else None
    for controller in plan.add:
        new = _controller(controller)
        if last is None:
            insert_first(devices, new)
        else:
            insert_after(last, new)
        indent(new, space_before(new))
        last = new
    for old, seat in plan.strangers:
        set_address(elements.others[old], seat, None)
    for move in plan.moves:
        set_address(elements.devices[move.source], move.address, move.multifunction)
    metadata.write_placement(document.root, plan.placement)


def withdraw(document: Document, domain: Domain, elements: Elements) -> tuple[int, ...]:
    """Take pcinuma's placement out of ``document``: addresses as they were, controllers gone that nobody else came to sit on.

    Returns the indexes of the removed controllers, ascending.
    """
    placement = domain.placement
    if placement is None:
        return ()
    back = set()
    for entry in placement.devices:
        element = elements.devices.get(entry.source)
        device = next((d for d in domain.devices if d.source == entry.source), None)
        if element is None or device is None or device.address is None or not _is_ours(domain, device.address.bus):
            continue  # gone, or its owner moved it since
        restore_address(element, entry)
        back.add(entry.source)
    removable = {index for index in placement.controllers if index in domain.controllers and index != 0}
    blocked = True
    while blocked:  # a port that somebody sits on keeps what is above it
        blocked = False
        for occupant in domain.occupants:
            goes = (occupant.kind is OccupantKind.PASSTHROUGH and occupant.name in back) or (
                occupant.kind is OccupantKind.CONTROLLER and int(occupant.name) in removable
            )
            if not goes and occupant.address.bus in removable:
                removable.discard(occupant.address.bus)
                blocked = True
    for index in removable:
        remove(elements.controllers[index])
    metadata.write_placement(document.root, None)
    return tuple(sorted(removable))


def set_address(element: etree._Element, address: Optional[PciAddress], multifunction: Optional[str]) -> None:
    """Give a device element the guest address ``address``, or none."""
    present = element.find("address")
    if address is None:
        if present is not None:
            remove(present)
        return
    if present is None:
        present = etree.Element("address")
        append(element, present)
    for name in list(present.attrib):
        del present.attrib[name]
    for child in list(present):
        present.remove(child)
    for name, value in _spelled(address, multifunction):
        present.set(name, value)


def restore_address(element: etree._Element, entry: Original) -> None:
    """Give a device element back the guest address that ``entry`` kept."""
    present = element.find("address")
    if not entry.attributes:
        set_address(element, None, None)
        return
    if present is None:
        present = etree.Element("address")
        append(element, present)
    for name in list(present.attrib):
        del present.attrib[name]
    present.set("type", "pci")
    for name, value in entry.attributes:
        present.set(name, value)


def _is_ours(domain: Domain, bus: int) -> bool:
    assert domain.placement is not None
    return bus in domain.placement.controllers


def _target(controller: etree._Element) -> etree._Element:
    target = controller.find("target")
    if target is None:
        target = etree.Element("target")
        controller.insert(0, target)
        target.tail = controller.text
    return target


def _controller(new: NewController) -> etree._Element:
    element = etree.Element("controller", {"type": "pci", "index": str(new.index), "model": new.model})
    attributes = {}
    if new.target_index is not None:
        attributes["index"] = str(new.target_index)
    if new.bus_nr is not None:
        attributes["busNr"] = str(new.bus_nr)
    if new.chassis is not None:
        attributes["chassis"] = str(new.chassis)
    if new.hotplug is not None:
        attributes["hotplug"] = "on" if new.hotplug else "off"
    if new.model == "pci-root":
        etree.SubElement(element, "model", {"name": "spapr-pci-host-bridge"})
    if attributes or new.node is not None:
        target = etree.SubElement(element, "target", attributes)
        if new.node is not None:
            etree.SubElement(target, "node").text = str(new.node)
    if new.address is not None:
        etree.SubElement(element, "address", dict(_spelled(new.address, "on" if new.multifunction else None)))
    return element


def _spelled(address: PciAddress, multifunction: Optional[str]) -> list[tuple[str, str]]:
    """An address as libvirt formats it."""
    spelled = [
        ("type", "pci"),
        ("domain", f"0x{address.domain:04x}"),
        ("bus", f"0x{address.bus:02x}"),
        ("slot", f"0x{address.slot:02x}"),
        ("function", f"0x{address.function:x}"),
    ]
    return spelled if multifunction is None else [*spelled, ("multifunction", multifunction)]
