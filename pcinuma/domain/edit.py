# SPDX-License-Identifier: LGPL-2.1-or-later
"""Edits of a domain's XML: carry out a plan, or take pcinuma's placement back out. Nothing else is touched.

What may change is invariant 3 of the design: controllers that pcinuma created, guest addresses of passthrough devices (and of a foreign
device on one of our ports), and pcinuma's metadata element.
"""

from __future__ import annotations

from collections.abc import Container
from functools import lru_cache
from typing import Optional

from lxml import etree

from pcinuma.address import PciAddress
from pcinuma.domain import metadata
from pcinuma.domain.address import attributes_of
from pcinuma.domain.ownership import is_main_port, removable
from pcinuma.domain.read import Elements
from pcinuma.domain.usable_address import UsableAddresses, takes_devices
from pcinuma.domain.xml import Document, append, child, insert_after, insert_first, remove, space_before
from pcinuma.model import Controller, Domain, Original, Placement
from pcinuma.plan import Plan

NO_ADDRESS = PciAddress(0, 0, 0, 0)
_ADDRESS = frozenset(("type", "domain", "bus", "slot", "function"))
_TWO = tuple(f"0x{number:02x}" for number in range(256))
_ONE = tuple(f"0x{number:x}" for number in range(8))
_MULTIFUNCTION = " multifunction='on'"


def apply_plan(document: Document, elements: Elements, plan: Plan) -> None:
    """Carry ``plan`` out on ``document``, of which ``elements`` was read."""
    for index, node in plan.set_node:
        target = _target(elements.controllers[index])
        element = child(target, "node")
        if element is None:
            element = etree.SubElement(target, "node")
        element.text = str(node)
    for index, hotplug in plan.set_hotplug:
        _target(elements.controllers[index]).set("hotplug", "on" if hotplug else "off")
    for index in plan.gain_multifunction:
        address = elements.controllers[index].find("address")
        assert address is not None
        address.set("multifunction", "on")
    devices = child(document.root, "devices")
    for index in plan.remove:
        remove(elements.controllers[index])
    if plan.add and devices is not None:
        _add_controllers(document, devices, plan.add)
    for old, new in plan.foreign_moves:
        set_address(elements.others[old], new, None)
    for move in plan.moves:
        set_address(elements.devices[move.source], move.address, move.multifunction, elements.addresses.get(move.source))
    metadata.write_placement(document, plan.placement)


def withdraw(document: Document, domain: Domain, elements: Elements, staying: Container[str] = ()) -> None:
    """Take pcinuma's placement out of ``document``: addresses as they were, controllers gone that nobody else came to sit on.

    A passthrough device that libvirt put below one of our expanders (no record says that pcinuma did) is left to libvirt once more.
    ``staying``: sources of devices that remain where they are; a controller of ours below them is the owner's from then on.
    """
    placement = domain.placement
    if placement is None:
        return
    back = [entry for entry in _going_back(domain, placement) if entry.source not in staying]
    by_chance = _below_by_chance(domain, placement, staying)
    leaving = {entry.source for entry in back} | by_chance
    others = [*domain.others, *(d.address for d in domain.devices if d.address is not None and d.source not in leaving)]
    gone = removable(placement.controllers, domain.controllers, others)
    for source in by_chance:
        set_address(elements.devices[source], None, None)
    _restore_addresses(domain, elements, back, others, gone)
    for index in sorted(gone):
        remove(elements.controllers[index])
    metadata.write_placement(document, None)


def _going_back(domain: Domain, placement: Placement) -> list[Original]:
    """The recorded devices that are where pcinuma put them: on a controller of ours, or elsewhere since one of ours has their old slot.

    A device that is gone, or that its owner moved since, is none of ours.
    """
    here = {device.source: device for device in domain.devices}
    ours = {domain.controllers[index].address for index in placement.controllers}
    return [
        entry
        for entry in placement.devices
        if (device := here.get(entry.source)) is not None
        and device.address is not None
        and (device.address.bus in placement.controllers or (device.address.bus == 0 and metadata.original_address(entry) in ours - {None}))
    ]


def _below_by_chance(domain: Domain, placement: Placement, staying: Container[str]) -> set[str]:
    """The devices below expanders of ours that pcinuma did not put there and whose owner did not say that they stay, nor anything else in
    their slot."""
    recorded = {entry.source for entry in placement.devices}
    below = {index for index in placement.controllers if not is_main_port(domain.controllers[index])}
    stays = domain.keep | domain.overridden
    slots = {d.address.device for d in domain.devices if d.address is not None and d.source in stays}
    return {
        d.source
        for d in domain.devices
        if d.address is not None
        and d.address.bus in below
        and d.address.device not in slots
        and d.source not in recorded
        and d.source not in staying
    }


def _restore_addresses(domain: Domain, elements: Elements, back: list[Original], others: list[PciAddress], gone: set[int]) -> None:
    """Give devices back the addresses that they had, and none where that would not do any more: libvirt finds another."""
    controllers = {index: controller for index, controller in domain.controllers.items() if index not in gone}
    taken = {c.address: c.multifunction for c in controllers.values() if c.address is not None}
    taken.update({address: address in domain.multifunction for address in others})
    usable = UsableAddresses(taken)
    highest = max(domain.controllers, default=0)
    for entry in sorted(back, key=lambda e: (metadata.original_address(e) or NO_ADDRESS).function):
        address = metadata.original_address(entry)
        if address is not None and not takes_devices(address, controllers):
            libvirts = address.bus in gone or (address.bus not in controllers and 0 < address.bus < highest)  # it adds a port there
            address = address if libvirts and address.slot == 0 else None
        if address is not None and usable.admit(address, metadata.says_several(entry)):
            restore_address(elements.devices[entry.source], entry)
            usable.take(address, True)
        else:
            set_address(elements.devices[entry.source], None, None)


def set_address(
    element: etree._Element, address: Optional[PciAddress], multifunction: Optional[str], present: Optional[etree._Element] = None
) -> None:
    """Give a device element the guest address ``address``, or none. ``present``: its ``<address>``, where that is known."""
    if present is None:
        present = child(element, "address")
    if address is None:
        if present is not None:
            remove(present)
        return
    if present is None:
        present = etree.Element("address")
        append(element, present)
    says = dict(attributes_of(present))
    if len(says) > 5 or len(present):
        _clear(present)
        says = dict(attributes_of(present))
    for name, value in _spelled(address, multifunction):
        if says.get(name) != value:
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
    _clear(present)
    present.set("type", "pci")
    for name, value in entry.attributes:
        present.set(name, value)


def _clear(address: etree._Element) -> None:
    """Take from a guest address what the new one may not have; what stays is overwritten in its place."""
    for name in set(address.attrib).difference(_ADDRESS):
        del address.attrib[name]
    for inner in list(address):
        address.remove(inner)


def _target(controller: etree._Element) -> etree._Element:
    target = controller.find("target")
    if target is None:
        target = etree.Element("target")
        controller.insert(0, target)
        target.tail = controller.text
    return target


def _add_controllers(document: Document, devices: etree._Element, new: tuple[Controller, ...]) -> None:
    """Put the controllers behind the last one there is, else in front of all devices."""
    last = next(devices.iterchildren("controller", reversed=True), None)
    slot = document.slot()
    if last is None:
        insert_first(devices, slot)
    else:
        insert_after(last, slot)
    before = space_before(slot)
    deeper, deepest = (before + "  ", before + "    ") if before else ("", "")
    document.fill(slot, before.join([_controller_text(controller, before, deeper, deepest) for controller in new]))


def _controller_text(new: Controller, before: str, deeper: str, deepest: str) -> str:
    """A controller as libvirt formats one; every value in it is a number or one of libvirt's own words.

    ``before``, ``deeper``, ``deepest``: the white space before it, its elements and theirs.
    """
    model, address = new.model, new.address
    content = f"{deeper}<model name='spapr-pci-host-bridge'/>" if model == "pci-root" else ""
    attributes = ""
    if new.target_index is not None:
        attributes += f" index='{new.target_index}'"
    if new.bus_nr is not None:
        attributes += f" busNr='{new.bus_nr}'"
    if new.chassis is not None:
        attributes += f" chassis='{new.chassis}'"
    if new.hotplug is not None:
        attributes += " hotplug='on'" if new.hotplug else " hotplug='off'"
    if new.node is not None:
        content += f"{deeper}<target{attributes}>{deepest}<node>{new.node}</node>{deeper}</target>"
    elif attributes:
        content += f"{deeper}<target{attributes}/>"
    if address is not None:
        _, bus, slot, function = address
        where = f"bus='{_TWO[bus]}' slot='{_TWO[slot]}' function='{_ONE[function]}'"
        content += f"{deeper}<address type='pci' domain='0x0000' {where}{_MULTIFUNCTION if new.multifunction else ''}/>"
    return f"<controller type='pci' index='{new.index}' model='{model}'>{content}{before}</controller>"


@lru_cache(maxsize=1024)  # a guest has few slots
def _spelled(address: PciAddress, multifunction: Optional[str]) -> tuple[tuple[str, str], ...]:
    """An address as libvirt formats it; the guest's PCI domain is always 0."""
    slot_and_function = ("slot", _TWO[address.slot]), ("function", _ONE[address.function])
    spelled = ("type", "pci"), ("domain", "0x0000"), ("bus", _TWO[address.bus]), *slot_and_function
    return spelled if multifunction is None else (*spelled, ("multifunction", multifunction))
