# SPDX-License-Identifier: LGPL-2.1-or-later
"""The DEVICE argument of attach and detach: a host device as libvirt's XML, and the element of a domain that it stands for.

``attach`` takes a PCI address, the UUID of a mediated device or a file. ``detach`` takes whatever ``attach`` took, and every other name by
which a person knows the device in the domain: its ``source`` in a report, an interface's MAC address, a disk's target, the path of a vDPA
device, an alias.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple, Optional

from lxml import etree

from pcinuma.address import PciAddress
from pcinuma.cli.sources import is_file
from pcinuma.domain.backing import read_backed
from pcinuma.domain.passthrough import Named, read_passthrough
from pcinuma.domain.xml import Document, parts_of
from pcinuma.errors import LibvirtError, UnusableInput
from pcinuma.model import Form
from pcinuma.xml_parser import parse

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")
_TAGS = ("hostdev", "interface", "disk")
ATTACH_HELP = "a host PCI address (0000:17:00.0 or 17:00.0), a mediated device's UUID, or a file with a device's XML"
DETACH_HELP = f"{ATTACH_HELP}; or its MAC address, its target (vda), or its source as pcinuma explain names it"


def source_of(xml: bytes, pools: frozenset[str] = frozenset()) -> Optional[str]:
    """The ``source`` by which reports name the device in a device's XML; None if it is no passthrough device."""
    device = _passthrough(parse(xml, "device XML"), pools)
    return None if device is None else device.source


def _passthrough(element: etree._Element, pools: frozenset[str] = frozenset()) -> Optional[Named]:
    parts = parts_of(element)
    return read_passthrough(element, parts, pools) or read_backed(element, parts)


def device_xml(text: str) -> bytes:
    """A DEVICE argument as the XML that libvirt attaches. Raises UnusableInput if it names no device."""
    address = _address(text)
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
    if element.tag not in _TAGS:
        raise UnusableInput(f"holds <{element.tag}>, not a hostdev, interface or disk", subject=text)
    return xml


def _address(text: str) -> Optional[PciAddress]:
    return PciAddress.parse(text) or PciAddress.parse(f"0000:{text}")


class Wanted(NamedTuple):
    """A device that a person asks for, as ``text``: by ``names`` that it may have, the surest first."""

    text: str
    names: tuple[str, ...]

    def find(self, domain_xml: bytes) -> Optional[bytes]:
        """The element of a domain's XML that is meant, as libvirt detaches it; None if there is none. Raises LibvirtError for several."""
        elements = [element for element in Document(domain_xml).root.iterfind("devices/*") if element.tag in _TAGS]
        for name in self.names:
            found = [element for element in elements if name in _names(element)]
            if len(found) > 1:
                called = ", ".join(sorted(filter(None, map(_own_name, found))))
                hint = f"name one of them: {called}" if called else None
                raise LibvirtError(f"{len(found)} devices of the domain are called so", subject=self.text, hint=hint)
            if found:
                return etree.tostring(found[0], with_tail=False)
        return None


def wanted(text: str) -> Wanted:
    """What a DEVICE argument of detach asks for. Raises UnusableInput for a file that holds no device."""
    address = _address(text)
    if address is not None:
        return Wanted(text, (str(address),))
    if "/" in text and not Path(text).is_file():
        return Wanted(text, (text,))  # /dev/vhost-vdpa-0
    if not is_file(text):
        return Wanted(text, (text, text.lower()))
    element = parse(device_xml(text), text)
    own, device = _own_name(element), _passthrough(element, _networks(element))
    if own is None and (device is None or device.form is Form.NETWORK_POOL):
        return Wanted(text, (_kind(element),))  # libvirt chose the MAC address, so nothing else is known of it
    return Wanted(text, tuple(name for name in (own, device.source if device else None) if name))


def still_there(domain_xml: bytes, element_xml: bytes) -> bool:
    """Whether a running domain's XML still has the device whose element in it was ``element_xml``."""
    alias = parse(element_xml, "device XML").find("alias")
    name = None if alias is None else alias.get("name")
    return any(alias.get("name") == name for alias in Document(domain_xml).root.iterfind("devices/*/alias"))


def _names(element: etree._Element) -> set[str]:
    """Every name by which a person may call the device of an element of a domain."""
    names = {_own_name(element), _kind(element)}
    alias = element.find("alias")
    if alias is not None:
        names.add(alias.get("name"))
    device = _passthrough(element, _networks(element))
    if device is not None:
        names |= {device.source, device.source.partition("#")[0], device.name, None if device.host is None else str(device.host)}
    return {name for name in names if name}


def _own_name(element: etree._Element) -> Optional[str]:
    """What no other device of the domain is called: an interface's MAC address, a disk's target; for a hostdev its source says it."""
    for tag, attribute in (("mac", "address"), ("target", "dev")):
        child = element.find(tag)
        if child is not None and (element.tag == "interface") == (tag == "mac"):
            return child.get(attribute, "").lower() or None
    return None


def _kind(element: etree._Element) -> str:
    """The name of a device that has none: what kind it is, and on what it is. No argument of a person looks like it."""
    source = element.find("source")
    behind = "" if source is None else source.get("network") or source.get("bridge") or source.get("dev") or source.get("file") or ""
    return f"<{element.tag} type='{element.get('type', '')}'> {behind}"


def _networks(element: etree._Element) -> frozenset[str]:
    """The network that the interface names, as if it were a pool of host devices: whether it is one does not matter here."""
    source = element.find("source")
    return frozenset([source.get("network", "")] if source is not None else [])
