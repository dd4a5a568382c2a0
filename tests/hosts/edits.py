# SPDX-License-Identifier: LGPL-2.1-or-later
"""What people and libvirt do to a placed domain between two placements: a device more, a device less, a foreign device on a port."""

from __future__ import annotations

from typing import Callable, Optional

from lxml import etree

from tests.hosts.domains import Domain
from tests.hosts.guest import Slot, guest_slot
from tests.hosts.passthrough import passed

Edit = Callable[[bytes], bytes]


def with_device(source: str, address: Optional[str] = None) -> Edit:
    """A ``hostdev`` more."""
    element = Domain().hostdev(source, address).devices[0].text()

    def edit(xml: bytes) -> bytes:
        return _with(xml, element)

    return edit


def without_device(source: str) -> Edit:
    """A passthrough device less, in the way ``virsh detach-device --config`` takes it out: the element with its line."""

    def edit(xml: bytes) -> bytes:
        return _without(xml, source)[0]

    return edit


def with_nic_on(source: str) -> Edit:
    """A passthrough device less, and an emulated NIC where it was: what libvirt makes of a device without an address."""

    def edit(xml: bytes) -> bytes:
        less, slot = _without(xml, source)
        assert slot is not None
        element = Domain().nic("%02x:%02x.%d" % slot).devices[0].text()
        return _with(less, element)

    return edit


def _with(xml: bytes, element: str) -> bytes:
    """``element``, with its line, as the last one in ``<devices>``, which may be empty."""
    end = b"  </devices>" if b"  </devices>" in xml else b"</devices>"
    return xml.replace(end, element.encode() + end, 1)


def _without(xml: bytes, source: str) -> tuple[bytes, Optional[Slot]]:
    root = etree.fromstring(xml)
    device = next(d.element for d in passed(root) if d.source.endswith(source))
    slot = guest_slot(device)
    before = device.getprevious()
    if before is not None:
        before.tail = device.tail
    device.getparent().remove(device)
    return etree.tostring(root) + b"\n", slot
