"""The DEVICE argument of attach and detach: a host device as libvirt's XML, and the matching element of a domain."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Optional

from lxml import etree

from pcinuma.address import PciAddress
from pcinuma.cli.sources import is_file
from pcinuma.domain.backing import read_backed
from pcinuma.domain.passthrough import Named, read_passthrough
from pcinuma.domain.xml import Document, parts_of
from pcinuma.errors import UnusableInput
from pcinuma.xml_parser import parse

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")
DEVICE_HELP = "a host PCI address (0000:17:00.0 or 17:00.0), a mediated device's UUID, or a file with a device's XML"


def source_of(xml: bytes) -> Optional[str]:
    """The ``source`` by which reports name the device in a device's XML; None if it is no passthrough device."""
    device = _read(parse(xml, "device XML"))
    return None if device is None else device.source


def _read(element: etree._Element) -> Optional[Named]:
    parts = parts_of(element)
    return read_passthrough(element, parts, frozenset()) or read_backed(element, parts)


def device_xml(text: str) -> bytes:
    """A DEVICE argument as the XML that libvirt attaches. Raises UnusableInput if it names no device."""
    address = PciAddress.parse(text) or PciAddress.parse(f"0000:{text}")
    if address is not None:
        return (
            b"<hostdev mode='subsystem' type='pci' managed='yes'><source>"
            b"<address domain='0x%04x' bus='0x%02x' slot='0x%02x' function='0x%x'/></source></hostdev>" % tuple(address)
        )
    if _UUID.match(text):
        address_xml = f"<address uuid='{text.lower()}'/>"
        return f"<hostdev mode='subsystem' type='mdev' model='vfio-pci'><source>{address_xml}</source></hostdev>".encode()
    if not is_file(text):
        hint = "a file's name needs a slash: ./nic.xml"
        raise UnusableInput("is neither a PCI address, nor an mdev's UUID, nor a file", subject=text, hint=hint)
    try:
        xml = Path(text).read_bytes()
    except OSError as error:
        raise UnusableInput(f"cannot be read ({error.strerror})", subject=text) from error
    element = parse(xml, text)
    if element.tag not in ("hostdev", "interface", "disk"):
        raise UnusableInput(f"holds <{element.tag}>, not a hostdev, interface or disk", subject=text)
    return xml


def element_of(xml: bytes, source: str) -> Optional[bytes]:
    """The element of a domain's XML that gives the guest the device ``source``, as libvirt detaches it; None if there is none."""
    for element in Document(xml).root.iterfind("devices/*"):
        if element.tag in ("hostdev", "interface", "disk"):
            device = _read(element)
            if device is not None and source in (device.source, device.source.partition("#")[0]):
                return etree.tostring(element, with_tail=False)
    return None
