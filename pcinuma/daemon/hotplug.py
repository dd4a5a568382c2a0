# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest address for a host device that is about to be plugged into a running domain.

A placed domain may have spare ports (``spare-ports`` in the configuration): root ports on pcinuma's expanders that are empty
and not ``hotplug='off'``. A device without an address gets the first of them below an expander that stands for its own guest
cell and host root complex; what an expander stands for is told by the passthrough devices below it. With no such port the
device stays as it came, and libvirt chooses.
"""

from __future__ import annotations

from typing import Mapping, NamedTuple, Optional

from lxml import etree

from pcinuma.address import PciAddress
from pcinuma.domain.edit import set_address
from pcinuma.domain.read import read_domain
from pcinuma.domain.xml import Document
from pcinuma.engine import Request
from pcinuma.errors import UnusableInput
from pcinuma.host.place import HostReader
from pcinuma.model import AttachedAs, Domain
from pcinuma.placement.layout import Layout
from pcinuma.plan import Target
from pcinuma.resolve import resolve
from pcinuma.settings import GroupBy, Policy
from pcinuma.xml_parser import parse


class AddressedDevice(NamedTuple):
    """The device's XML, with a guest address if one was found (``changed``), and what to tell about it."""

    device_xml: str
    changed: bool
    message: Optional[str]


def assign_address(live: bytes, device_xml: str, request: Request) -> AddressedDevice:
    """Find a guest address for the device ``device_xml`` in the running domain ``live``. Raises UnusableInput for XML that is none."""
    document = Document(live)
    devices = document.root.find("devices")
    element = parse(device_xml, "device XML")
    if devices is None:
        raise UnusableInput("a domain without <devices>", subject="domain XML")
    before, _ = read_domain(document, frozenset(request.pools), request.settings.near_backing)
    if before.placement is None:
        return AddressedDevice(device_xml, False, "the running domain is not placed by pcinuma")
    if (before.policy or request.settings.policy) is Policy.OFF:
        return AddressedDevice(device_xml, False, "the policy of this domain is off")
    devices.append(element)
    domain, _ = read_domain(document, frozenset(request.pools), request.settings.near_backing)
    new = [device for device in domain.devices if device.source not in {old.source for old in before.devices}]
    if len(domain.devices) != len(before.devices) + 1 or not new:
        return AddressedDevice(device_xml, False, None)  # no host device, or one that the guest has already
    if new[0].attached_as is not AttachedAs.PCI or new[0].address is not None:
        return AddressedDevice(device_xml, False, "the device has its address already")
    switches = before.placement.group_by is GroupBy.SWITCH
    resolution = resolve(domain, HostReader(request.root), request.pools, request.settings.unaligned, switches)
    its_own = resolution.resolved[new[0].source]
    if its_own.target is None:
        return AddressedDevice(device_xml, False, f"{new[0].source}: {its_own.reason.sentence}" if its_own.reason else None)
    targets = {source: one.target for source, one in resolution.resolved.items() if one.target is not None}
    port = _spare_port(before, targets, its_own.target)
    if port is None:
        text = f"{new[0].source}: no spare hot-pluggable port for guest cell {its_own.target.cell} is left (see spare-ports)"
        return AddressedDevice(device_xml, False, text)
    devices.remove(element)
    element.tail = None
    set_address(element, PciAddress(0, port, 0, 0), None)
    return AddressedDevice(etree.tostring(element, encoding="unicode"), True, f"{new[0].source}: port {port}")


def _spare_port(domain: Domain, targets: Mapping[str, Target], wanted: Target) -> Optional[int]:
    """The first empty hot-pluggable root port of ours for ``wanted``."""
    assert domain.placement is not None
    ours = domain.placement.controllers
    layout = Layout(domain)
    stands_for: dict[int, set[Optional[str]]] = {}
    for device in domain.devices:
        expander = layout.expander_of(device.address.bus) if device.address is not None else None
        if expander is not None and device.source in targets:
            stands_for.setdefault(expander, set()).add(targets[device.source].root_complex)
    for index in sorted(ours):
        controller = domain.controllers.get(index)
        if controller is None or not layout.is_expander(controller) or controller.node != wanted.cell:
            continue
        complexes = stands_for.get(index, set())
        if domain.placement.group_by is not GroupBy.NODE and complexes != {wanted.root_complex}:
            continue
        for port in layout.ports(index):
            root_port = domain.controllers[port]
            spare = root_port.model == "pcie-root-port" and root_port.hotplug is not False
            if port in ours and spare and layout.is_free(port):
                return port
    return None
