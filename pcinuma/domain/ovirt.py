# SPDX-License-Identifier: LGPL-2.1-or-later
"""What oVirt's engine remembers of a placement: expanders without node and bus number, from which no guest should be started.

The engine keeps of each PCI controller of a VM that runs its index, model and address, and of each device its address
(``VmDevicesConverter.parseControllers``), and writes that into the XML of the next start (``LibvirtVmXmlBuilder.writeController``). So the
expanders of an earlier placement come back without node and bus number, the devices still on them, and pcinuma's metadata does not. libvirt
then chooses bus numbers that leave room for one port below each expander, and the guest does not see what is behind the others.

The engine itself makes no expanders. So where no expander of oVirt's XML has a node, all of them are left of a placement, with whatever is
plugged into them; devices then get the addresses that a placement of today gives them, on the same ports if nothing else has changed.
"""

from __future__ import annotations

from lxml import etree

from pcinuma.domain.address import number
from pcinuma.domain.aperture import manager_of
from pcinuma.domain.read import Elements
from pcinuma.domain.xml import Document, child, remove
from pcinuma.errors import DomainError
from pcinuma.model import Domain, Manager

EXPANDERS = ("pcie-expander-bus", "pci-expander-bus")


def has_stale_expanders(document: Document, domain: Domain) -> bool:
    """Whether the expanders of ``domain``, which was read of ``document``, are what oVirt's engine remembers."""
    if domain.placement is not None:
        return False
    expanders = [controller for controller in domain.controllers.values() if controller.model in EXPANDERS]
    return bool(expanders) and all(c.node is None for c in expanders) and manager_of(document.root) is Manager.OVIRT


def take_stale_expanders_out(document: Document, domain: Domain, elements: Elements) -> None:
    """Take the expanders out of ``document``, what is plugged into them, and the addresses there of devices alone in their slot."""
    gone = {index for index, controller in domain.controllers.items() if controller.model in EXPANDERS}
    found = True
    while found:
        found = False
        for index, controller in domain.controllers.items():
            if index not in gone and controller.address is not None and controller.address.bus in gone:
                gone.add(index)
                found = True
    for index in gone:
        remove(elements.controllers[index])
    devices = child(document.root, "devices")
    slots: dict[tuple[int, int], list[etree._Element]] = {}
    for device in devices if devices is not None else ():
        address = child(device, "address") if isinstance(device.tag, str) else None
        if address is not None and address.get("type") == "pci" and (bus := _number(address, "bus")) in gone:
            slots.setdefault((bus, _number(address, "slot")), []).append(address)
    for addresses in slots.values():
        if len(addresses) == 1:  # functions of one slot would not find together again: libvirt makes a port of that index for them
            remove(addresses[0])


def _number(address: etree._Element, name: str) -> int:
    try:
        return number(address.get(name), "")
    except DomainError:
        return -1
