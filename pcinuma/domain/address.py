# SPDX-License-Identifier: LGPL-2.1-or-later
"""Numbers and PCI addresses as a domain's XML spells them (libvirt, ``virDomainDeviceInfoParseXML`` and ``virPCIDeviceAddressParseXML``).

What an ``<address>`` says is remembered by its attributes, which lxml hands out all at once at the price of one.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

from lxml import etree

from pcinuma.address import PciAddress
from pcinuma.domain.remembered import Attributes, remembered
from pcinuma.errors import DomainError

_NUMBERS = ("domain", "bus", "slot", "function")
_USUAL: dict[Optional[str], int] = {
    text: value for value in range(256) for text in (str(value), f"0x{value:x}", f"0x{value:02x}", f"0x{value:04x}")
}
_ORIGINAL = frozenset((*_NUMBERS, "multifunction"))


class Location(NamedTuple):
    """What an ``<address>`` says. ``kind``: its type. ``address``: None where it is of another type than ``pci``, or empty.

    ``text``: the address as sysfs spells it. ``original``: the attributes that pcinuma's metadata keeps of it, as they stand.
    """

    kind: Optional[str]
    address: Optional[PciAddress]
    text: str
    original: Attributes
    multifunction: bool


NOWHERE = Location(None, None, "", (), False)


def number(text: Optional[str], what: str) -> int:
    """A number as libvirt reads one in an address (decimal, 0x hexadecimal, 0 octal). DomainError naming ``what`` for anything else."""
    usual = _USUAL.get(text)
    if usual is not None:
        return usual
    try:
        if text is not None and len(text) <= 10 and text.isascii() and text.isalnum():
            if text[0] != "0":
                return int(text)
            return int(text, 16 if text[1:2] in ("x", "X") else 8)
    except ValueError:
        pass
    raise DomainError(f"{shortened(text)} is no number", subject=what)


def shortened(text: Optional[str]) -> str:
    """A value as a sentence quotes it: whatever its length, one line can hold it."""
    return repr(text) if text is None or len(text) <= 80 else f"{text[:60]!r}… ({len(text)} characters)"


def attributes_of(element: etree._Element) -> Attributes:
    """The attributes of ``element`` in their order."""
    return tuple(element.items())  # type: ignore[arg-type]  # lxml-stubs has bytes in it


def read_location(element: Optional[etree._Element], what: str) -> Location:
    """What a guest's ``<address>`` says; NOWHERE if it is missing. Raises DomainError naming ``what``."""
    if element is None:
        return NOWHERE
    try:
        return location_of(attributes_of(element))
    except DomainError as error:
        raise DomainError(error.what, subject=f"{what}{error.subject or ''}") from None


def original_attributes(attributes: Attributes) -> Attributes:
    """Those of ``attributes`` that pcinuma's metadata keeps of an address, as they stand, whatever they say."""
    return tuple([item for item in attributes if item[0] in _ORIGINAL])


@remembered
def location_of(attributes: Attributes) -> Location:
    """What the attributes of an ``<address>`` say. Raises DomainError whose subject is the attribute."""
    values = dict(attributes)
    kind = values.get("type")
    original = original_attributes(attributes)
    if kind not in (None, "pci"):
        return Location(kind, None, "", original, False)
    address = PciAddress(*(number(values.get(name, "0"), f": {name}") for name in _NUMBERS))
    if address.bus > 255 or address.slot > 31 or address.function > 7:
        raise DomainError(f"{address} is no PCI address")
    if not any(address) and not any(name in values for name in _NUMBERS[1:]):
        return Location(kind, None, "", original, False)  # libvirt has yet to choose
    return Location(kind, address, str(address), original, values.get("multifunction") == "on")
