# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an XML *is*, as opposed to what it should become: which of its devices already sit where the engine would put them.

libvirt boots the XML as it is (it ignores what a hook prints at prepare), and some definitions may not be changed. Their report
must not count a device as placed because it *would* be: a device is in place if it keeps its address, and every controller above it
its model, address, bus number and cell, when the engine's answer is applied.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

from pcinuma.address import PciAddress
from pcinuma.domain.read import parse_domain, read_domain
from pcinuma.domain.xml import Document
from pcinuma.engine import Result
from pcinuma.model import BACKED, Domain
from pcinuma.reason import Outcome, Reason
from pcinuma.report import cell_reports

_BACKED = tuple(form.value for form in BACKED)


def as_it_is(domain: Domain, xml: bytes, wanted: Result, reason: Reason, hint: Optional[str] = None) -> Result:
    """The result of leaving ``xml`` (which says ``domain``) alone for ``reason``, where the engine would have made ``wanted`` of it."""
    message = f"{reason.sentence}; {hint}" if hint else reason.sentence
    return replace(with_current_layout(domain, xml, wanted), outcome=Outcome.UNCHANGED, reason=reason, message=message)


def with_current_layout(domain: Domain, xml: bytes, wanted: Result) -> Result:
    """``wanted`` with the devices and the XML as they are."""
    if wanted.xml == xml:
        return wanted
    cells = None if domain.made_cells is None else cell_reports(domain.made_cells)
    after = parse_domain(wanted.xml)
    addresses = {device.source: device.address for device in domain.devices}
    if any(device.form in _BACKED and device.source not in addresses for device in wanted.devices):
        addresses.update({device.source: device.address for device in read_domain(Document(xml), near_backing=True)[0].devices})
    targets = {device.source: device.address for device in after.devices}
    devices = []
    for device in wanted.devices:
        address = addresses.get(device.source)
        in_place = device.placed and address == targets.get(device.source) and same_controllers_above(domain, after, address)
        devices.append(device._replace(placed=in_place, guest_address=str(address) if address else None))
    return replace(wanted, devices=tuple(devices), xml=xml, cells=cells)


def all_in_place(wanted: Result, current: Result) -> bool:
    """Whether every device that ``wanted`` places is placed in the XML as it is."""
    return all(now.placed for then, now in zip(wanted.devices, current.devices) if then.placed)


def same_controllers_above(before: Domain, after: Domain, address: Optional[PciAddress]) -> bool:
    """Whether the controllers from ``address`` up to the root are the same in both."""
    for _ in range(len(before.controllers) + 1):
        if address is None:
            return False
        if address.bus == 0:
            return True
        old, new = before.controllers.get(address.bus), after.controllers.get(address.bus)
        if old is None or new is None:
            return False
        if (old.model, old.address, old.bus_nr, old.node) != (new.model, new.address, new.bus_nr, new.node):
            return False
        address = old.address
    return False


def foreign_devices(domain: Domain) -> frozenset[PciAddress]:
    """The guest addresses of devices that are not passed through and sit on a controller that pcinuma added."""
    if domain.placement is None:
        return frozenset()
    ours = domain.placement.controllers
    return frozenset(address for address in domain.others if address.bus in ours)
