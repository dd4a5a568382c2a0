# SPDX-License-Identifier: LGPL-2.1-or-later
"""Link speed and width of pcinuma's root ports in a domain's XML: written, recognised later, taken out again.

libvirt has no element for them. Written is, for each port, what libvirt hands to QEMU as it is (``docs/drvqemu.rst``, "Override of
properties of devices"; since 8.2, older ones drop it)::

    <qemu:override>
      <qemu:device alias='pci.7'>
        <qemu:frontend>
          <qemu:property name='x-speed' type='string' value='32'/>
          <qemu:property name='x-width' type='string' value='16'/>

``pci.N`` is libvirt's alias of PCI controller N. The record of what was written is ``link='32x16'`` on the ``<controller>`` in pcinuma's
metadata; a speed or width alone is ``32x`` or ``x16``. An override is pcinuma's as long as it is as recorded. One that somebody changed
is the owner's, as is one that was there before: it stays, its port is left alone, and only the record goes.

Taking out gives back what was there, byte for byte, from the text that was written as from what libvirt made of it. libvirt moves the
declaration of its QEMU namespace to the root element and writes it only where something of that namespace is; so the declaration goes
with the last of those. What raw XML had to no purpose, the declaration or an empty ``<qemu:override>``, is recorded (``declared``).
"""

from __future__ import annotations

import re
from typing import Iterator, Mapping, NamedTuple, Optional, Sequence

from lxml import etree

from pcinuma.domain.commandline import NAMESPACE
from pcinuma.domain.metadata import write_links
from pcinuma.domain.xml import Document, append, child, remove, space_before
from pcinuma.host.links import LANES, Link
from pcinuma.model import Controller, Placement

MODEL = "pcie-root-port"
SPEEDS: Mapping[float, str] = {2.5: "2_5", 5.0: "5", 8.0: "8", 16.0: "16", 32.0: "32", 64.0: "64"}
"""GT/s -> QEMU's word (``PCIELinkSpeed`` in ``qapi/common.json``)."""

_URI = NAMESPACE[1:-1]
_OVERRIDE, _DEVICE, _FRONTEND, _PROPERTY = (f"{NAMESPACE}{name}" for name in ("override", "device", "frontend", "property"))
_BEFORE_NAMESPACE, _BEFORE_OVERRIDE = "namespace", "override"
_RECORDED = re.compile(r"(?:(2\.5|5|8|16|32|64))?x(?:(\d{1,2}))?\Z")


class Emulator(NamedTuple):
    """What a domain runs on; None where it leaves that to libvirt."""

    path: Optional[str]
    arch: Optional[str]


def spelled(link: Link) -> str:
    """A link as the record says it."""
    return f"{'' if link.speed is None else f'{link.speed:g}'}x{'' if link.width is None else link.width}"


def read_link(text: str) -> Optional[Link]:
    """What a record says; None where that means nothing."""
    found = _RECORDED.match(text)
    if found is None:
        return None
    speed, width = found.groups()
    link = Link(float(speed) if speed else None, int(width) if width else None)
    return link if link != Link() and link.width in (None, *LANES) else None


def emulator_of(document: Document) -> Emulator:
    """The emulator and the architecture that the domain names."""
    kind, devices = document.root.find("os/type"), child(document.root, "devices")
    emulator = child(devices, "emulator") if devices is not None else None
    return Emulator((emulator.text or "").strip() if emulator is not None else None, None if kind is None else kind.get("arch"))


def settles_links(document: Document) -> bool:
    """Whether the owner's ``<qemu:commandline>`` says something about the links of ports."""
    commandline = child(document.root, f"{NAMESPACE}commandline")
    arguments = commandline.iterchildren(f"{NAMESPACE}arg") if commandline is not None else ()
    return any(word in argument.get("value", "") for argument in arguments for word in ("x-speed", "x-width"))


def takes_link(document: Document, controller: Controller, element: etree._Element) -> bool:
    """Whether a controller is a root port of the model that has these properties, under libvirt's own alias, and not overridden."""
    model, alias = child(element, "model"), child(element, "alias")
    plain = model is None or model.get("name", MODEL) == MODEL
    own = alias is None or not alias.get("name", "").startswith("ua-")
    return controller.model == MODEL and plain and own and next(_devices(document, controller.index), None) is None


def are_as_made(document: Document, recorded: Sequence[tuple[int, str]]) -> bool:
    """Whether every port is overridden as recorded, and no other way."""
    for index, text in recorded:
        link, devices = read_link(text), list(_devices(document, index))
        if link is None or len(devices) != 1 or not _as_made(devices[0], link):
            return False
    return True


def write(document: Document, links: Mapping[int, Link]) -> None:
    """Make the ports of a domain tell ``links``, by controller index, and record that; none of them is overridden. Only text follows."""
    if not links:
        return
    root = document.root
    override, prefix = child(root, _OVERRIDE), _prefix(root)
    declared = None
    if override is not None:
        prefix = override.prefix or ""
        declared = None if len(override) else _BEFORE_OVERRIDE
    elif prefix is not None and not _used(root):
        declared = _BEFORE_NAMESPACE
    write_links(document, {index: spelled(link) for index, link in links.items()}, declared)
    slot = document.slot()
    append(root if override is None else override, slot)
    before = space_before(slot)
    name = "qemu:" if prefix is None else f"{prefix}:" if prefix else ""
    depth = before + "  " if override is None and before else before
    devices = [_device_text(index, link, name, depth) for index, link in sorted(links.items())]
    if override is not None:
        document.fill(slot, before.join(devices))
        return
    namespace = f" xmlns:qemu='{_URI}'" if prefix is None else ""
    document.fill(slot, f"<{name}override{namespace}>{depth}{depth.join(devices)}{before}</{name}override>")


def without(document: Document, placement: Placement) -> bytes:
    """The domain in ``document`` without what its ports were made to tell, and without the record; what is not as recorded stays."""
    root = document.root
    override, taken = child(root, _OVERRIDE), False
    for index, text in placement.links:
        link = read_link(text)
        for device in _devices(document, index):
            if link is not None and _as_made(device, link):
                remove(device)
                taken = True
    emptied = taken and override is not None and not len(override) and not override.attrib and not (override.text or "").strip()
    if override is not None and emptied and placement.declared != _BEFORE_OVERRIDE:
        remove(override)
    write_links(document, {}, None)
    prefix = _prefix(root)
    if emptied and prefix is not None and placement.declared is None and not _used(root):
        document.undeclare(prefix, _URI)
    return document.serialise()


def _as_made(device: etree._Element, link: Link) -> bool:
    parts = list(device)
    if len(parts) != 1 or parts[0].tag != _FRONTEND or parts[0].attrib or len(device.attrib) != 1:
        return False
    found = [dict(prop.attrib.items()) for prop in parts[0]]
    wanted = [{"name": name, "type": "string", "value": value} for name, value in _properties(link)]
    return all(prop.tag == _PROPERTY and not len(prop) for prop in parts[0]) and found == wanted


def _properties(link: Link) -> list[tuple[str, str]]:
    speed = [] if link.speed is None else [("x-speed", SPEEDS[link.speed])]
    return speed + ([] if link.width is None else [("x-width", str(link.width))])


def _device_text(index: int, link: Link, name: str, before: str) -> str:
    deeper, deepest = (before + "  ", before + "    ") if before else ("", "")
    properties = [f"{deepest}<{name}property name='{key}' type='string' value='{value}'/>" for key, value in _properties(link)]
    inner = f"{deeper}<{name}frontend>{''.join(properties)}{deeper}</{name}frontend>"
    return f"<{name}device alias='pci.{index}'>{inner}{before}</{name}device>"


def _devices(document: Document, index: int) -> Iterator[etree._Element]:
    """The overrides of a PCI controller, by libvirt's alias of it."""
    for override in list(document.root.iterchildren(_OVERRIDE)):
        yield from [device for device in override.iterchildren(_DEVICE) if device.get("alias") == f"pci.{index}"]


def _used(root: etree._Element) -> bool:
    """Whether anything in the domain is of libvirt's QEMU namespace."""
    return next(root.iter(f"{NAMESPACE}*"), None) is not None


def _prefix(root: etree._Element) -> Optional[str]:
    """The prefix by which the root element declares libvirt's QEMU namespace, None if it does not."""
    return next((prefix for prefix, uri in root.nsmap.items() if uri == _URI and prefix), None)

