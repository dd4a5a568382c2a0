# SPDX-License-Identifier: LGPL-2.1-or-later
"""PCI addresses as a type: ``domain:bus:slot.function``, of the host and of the guest alike.

Source of the form: ``Documentation/ABI/testing/sysfs-bus-pci`` (host) and libvirt's ``src/conf/device_conf.c`` (guest, where
``bus`` is the index of a controller and not a bus number).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple, Optional

_BDF = re.compile(r"([0-9a-fA-F]{4,8}):([0-9a-fA-F]{2}):([01][0-9a-fA-F])\.([0-7])\Z")


class PciAddress(NamedTuple):
    """A PCI address; sorts as a person would list it. ``domain`` may exceed 16 bits (Intel VMD: 10000)."""

    domain: int
    bus: int
    slot: int
    function: int

    def __str__(self) -> str:
        return _spelled(self)

    @property
    def device(self) -> tuple[int, int, int]:
        """Domain, bus and slot: what the functions of one device share."""
        return self[:3]

    @classmethod
    def parse(cls, text: str) -> Optional[PciAddress]:
        """The address that sysfs spells ``0000:17:00.0``; None if ``text`` is no such name."""
        match = _BDF.match(text)
        if match is None:
            return None
        domain, bus, slot, function = match.groups()
        return cls(int(domain, 16), int(bus, 16), int(slot, 16), int(function))


@lru_cache(maxsize=1024)  # a host has few devices, and a guest few slots
def _spelled(address: PciAddress) -> str:
    return "%04x:%02x:%02x.%d" % address


def is_address(text: str) -> bool:
    """Whether :meth:`PciAddress.parse` would find an address."""
    return _BDF.match(text) is not None
