# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two changes of one definition brought together: what somebody made of it (``theirs``) put onto what it became meanwhile (``onto``).

All three come from libvirt, which formats every definition alike, so what differs was changed. Compared is element by element: what
``theirs`` added to ``base``, removed from it or changed in it is done to ``onto``. Elements are the same by what identifies them in
libvirt's schema (a disk by its target, an interface by its MAC, a controller by type and index, ``vcpupin`` by vCPU, …), and by their
content where nothing does. Where both changed the same thing in different ways, theirs counts, as the later one, and a conflict says what
it was.

Guest addresses are libvirt's choice as a rule, made without knowledge of the other change: an added device whose address another device
has, or whose bus is not there, gets none and libvirt chooses anew. A PCI controller that both added is one and the same port.

Pure. Text is XML as libvirt formats it; white space between elements means nothing.
"""

from __future__ import annotations

import copy
from typing import Iterable, NamedTuple, Optional, Tuple, Union

from lxml import etree

from pcinuma.domain.metadata import NAMESPACE
from pcinuma.domain.xml import Document

Key = Tuple[str, ...]
Content = Tuple[object, ...]

_IDENTIFYING = ("id", "index", "vcpu", "vcpus", "vcpusched", "iothread", "cellid", "name", "dev", "uuid", "model", "port")
"""Attributes that tell elements of one name apart, wherever they have them."""
_OPAQUE = ("address", "source", "target", "placement", "cells")
"""Elements that are changed as a whole, as are those of foreign namespaces: half of one's address and half of another's is neither's."""
_DEVICES: dict[str, tuple[str, ...]] = {
    "disk": ("target/@dev", "target/@bus"),
    "interface": ("mac/@address",),
    "controller": ("@type", "@index"),
    "filesystem": ("target/@dir",),
    "channel": ("@type", "target/@type", "target/@name"),
    "serial": ("target/@port",),
    "parallel": ("target/@port",),
    "console": ("target/@type", "target/@port"),
    "graphics": ("@type",),
    "video": (),
    "memballoon": (),
    "watchdog": (),
    "emulator": (),
}
"""Devices that are known by something, and those of which there is one or which are known by their position."""
_UNIQUE_ADDRESSES = ("pci", "usb", "virtio-serial", "ccid", "drive", "ccw", "dimm")


class Merged(NamedTuple):
    """``conflicts``: what both had changed, in words; theirs counts."""

    xml: bytes
    conflicts: tuple[str, ...]


def merge(base: bytes, theirs: bytes, onto: bytes) -> Merged:
    """``onto`` with the changes that led from ``base`` to ``theirs``. Raises UnusableInput."""
    if base == onto:
        return Merged(theirs, ())
    if base == theirs:
        return Merged(onto, ())
    work = _Merge()
    document = Document(onto)
    root = document.root
    work.element(Document(base).root, Document(theirs).root, root, "")
    _resolve_addresses(root, work.added)
    xml: bytes = etree.tostring(root, encoding="UTF-8")
    return Merged(xml + b"\n", tuple(work.conflicts))


def same(one: bytes, other: bytes) -> bool:
    """Whether two definitions say the same. Raises UnusableInput."""
    return one == other or content(Document(one).root) == content(Document(other).root)


def distance(one: bytes, other: bytes) -> int:
    """How many things are in one definition and not in the other, or differ. 0: they say the same. Raises UnusableInput."""
    return _distance(Document(one).root, Document(other).root)


class Differences(NamedTuple):
    """How many things of what was wanted are not there, how many are still there that it no longer has, and how many are there besides."""

    lacking: int
    left: int
    besides: int


def differences(base: bytes, wanted: bytes, there: bytes) -> Differences:
    """How far ``there`` is from ``wanted``, which was made from ``base``. Raises UnusableInput."""
    return _differences(Document(base).root, Document(wanted).root, Document(there).root)


class _Merge:
    def __init__(self) -> None:
        self.conflicts: list[str] = []
        self.added: list[etree._Element] = []  # in the result

    def element(self, base: etree._Element, theirs: etree._Element, onto: etree._Element, path: str) -> None:
        """Do to ``onto`` what was done to ``base``; the three are the same element."""
        self._attributes(base, theirs, onto, path)
        if _text(base) != _text(theirs):
            if _text(onto) not in (_text(base), _text(theirs)):
                self.conflicts.append(path or "domain")
            onto.text = theirs.text
        old, new, now = _by_key(base), _by_key(theirs), _by_key(onto)
        for key, element in old.items():
            if key not in new and key in now:
                there = now[key]
                if content(there) != content(element) and _is_group(there):
                    self.element(element, etree.Element(element.tag), there, _named(path, key))
                    if len(there) or there.attrib:
                        continue
                elif content(there) != content(element):
                    self.conflicts.append(_named(path, key))
                onto.remove(_without_tail(now.pop(key)))
        previous = None  # what stands in ``onto`` for the last one that is there
        for key, element in new.items():
            self._child(old.get(key), element, onto, previous, now, key, _named(path, key))
            previous = now.get(key, previous)

    def _child(
        self,
        before: Optional[etree._Element],
        theirs: etree._Element,
        onto: etree._Element,
        previous: Optional[etree._Element],
        now: dict[Key, etree._Element],
        key: Key,
        path: str,
    ) -> None:
        """Do to what ``onto`` has under ``key`` what was done to ``before``; what it has not goes behind ``previous``."""
        present = now.get(key)
        if before is not None and content(before) == content(theirs):
            return
        if present is None and before is not None and _is_group(theirs):
            group = now[key] = self._add(onto, etree.Element(theirs.tag), previous)  # emptied by one, altered by the other
            self.element(before, theirs, group, path)
            if not len(group) and not group.attrib:
                onto.remove(now.pop(key))
        elif present is None:
            if before is not None:
                self.conflicts.append(path)  # changed by one, removed by the other
            now[key] = self._add(onto, _copied(theirs), previous)
        elif content(present) != content(theirs):
            self._both(before, theirs, present, path, now, key)
            if _is_group(theirs) and not len(now[key]) and not now[key].attrib:  # each took something else out of it
                onto.remove(_without_tail(now.pop(key)))

    def _both(
        self,
        before: Optional[etree._Element],
        theirs: etree._Element,
        present: etree._Element,
        path: str,
        now: dict[Key, etree._Element],
        key: Key,
    ) -> None:
        if before is None and theirs.tag == "controller" and theirs.get("type") == "pci":
            return  # a port that libvirt added for either
        unchanged = before is not None and content(before) == content(present)
        if not unchanged and before is None and _is_group(theirs):
            before = etree.Element(theirs.tag)
        if not unchanged and before is not None and not _opaque(theirs):
            self.element(before, theirs, present, path)
            return
        if not unchanged:
            self.conflicts.append(path)
        now[key] = _copied(theirs)
        _replace(present, now[key])
        self.added.append(now[key])

    def _attributes(self, base: etree._Element, theirs: etree._Element, onto: etree._Element, path: str) -> None:
        for name in sorted({*base.attrib, *theirs.attrib}):
            before, after, present = base.get(name), theirs.get(name), onto.get(name)
            if before == after:
                continue
            if present not in (before, after):
                self.conflicts.append(f"{path}/@{name}")
            if after is not None:
                onto.set(name, after)
            elif present is not None:
                del onto.attrib[name]

    def _add(self, onto: etree._Element, new_one: etree._Element, previous: Optional[etree._Element]) -> etree._Element:
        """Add ``new_one`` behind ``previous``, else before everything else."""
        if previous is not None and previous.getparent() is onto:
            previous.addnext(new_one)
        else:
            onto.insert(0, new_one)
        self.added.append(new_one)
        return new_one


def _is_group(element: etree._Element) -> bool:
    """Whether the element only holds others, of which each may come from somebody else (``metadata``, ``cputune``, …)."""
    parent = element.getparent()
    return parent is not None and parent.tag == "domain" and len(element) > 0 and not _opaque(element)


def _opaque(element: etree._Element) -> bool:
    namespace = etree.QName(element).namespace
    return element.tag in _OPAQUE or namespace not in (None, NAMESPACE)


def content(element: etree._Element) -> Content:
    """What an element says, white space between elements apart."""
    return (
        element.tag,
        tuple(sorted(element.attrib.items())),
        _text(element),
        tuple((content(child), (child.tail or "").strip()) for child in _children(element)),
    )


def _distance(one: etree._Element, other: etree._Element) -> int:
    mine, its = _by_key(one), _by_key(other)
    own = sum(one.get(name) != other.get(name) for name in {*one.attrib, *other.attrib}) + (_text(one) != _text(other))
    return own + sum(
        1 if key not in mine or key not in its else 0 if content(mine[key]) == content(its[key]) else _distance(mine[key], its[key])
        for key in {*mine, *its}
    )


def _differences(base: Optional[etree._Element], wanted: etree._Element, there: etree._Element) -> Differences:
    old, new, now = _by_key(base) if base is not None else {}, _by_key(wanted), _by_key(there)
    lacking = sum(there.get(name) != value for name, value in wanted.attrib.items())
    besides = sum(name not in wanted.attrib for name in there.attrib) + sum(key not in new for key in now)
    left = sum(key not in new and key in now for key in old)
    if _text(wanted) != _text(there):
        lacking, besides = lacking + bool(_text(wanted)), besides + bool(_text(there))
    for key, element in new.items():
        if key not in now:
            lacking += 1
        elif content(element) != content(now[key]):
            below = _differences(old.get(key), element, now[key])
            lacking, left, besides = lacking + below.lacking, left + below.left, besides + below.besides
    return Differences(lacking, left, besides)


def _children(element: etree._Element) -> Iterable[etree._Element]:
    return (child for child in element if isinstance(child.tag, str))


def _text(element: etree._Element) -> str:
    return (element.text or "").strip()


def _by_key(parent: etree._Element) -> dict[Key, etree._Element]:
    """The children by what identifies them; the second of a kind has a number behind that."""
    found: dict[Key, etree._Element] = {}
    times: dict[Key, int] = {}
    devices = parent.tag == "devices"
    for element in _children(parent):
        key = _device_key(element) if devices else _key(element)
        times[key] = count = times.get(key, 0) + 1
        found[key if count == 1 else (*key, str(count))] = element
    return found


def _key(element: etree._Element) -> Key:
    return (str(element.tag), *(f"{name}={element.get(name)}" for name in _IDENTIFYING if name in element.attrib))


def _device_key(element: etree._Element) -> Key:
    tag = str(element.tag)
    known = _DEVICES.get(tag)
    if known is not None:
        return (tag, *(value for value in (_value(element, path) for path in known) if value is not None))
    source = element.find("source")
    if tag == "hostdev" and source is not None:
        return tag, repr(content(source))
    return tag, repr(_without_address(content(element)))


def _value(element: etree._Element, path: str) -> Optional[str]:
    child, _, attribute = path.rpartition("@")
    found: Union[etree._Element, None] = element.find(child.rstrip("/")) if child else element
    return found.get(attribute) if found is not None else None


def _without_address(what: Content) -> Content:
    tag, attributes, text, children = what
    assert isinstance(children, tuple)
    return tag, attributes, text, tuple(child for child in children if child[0][0] not in ("address", "alias"))


def _copied(element: etree._Element) -> etree._Element:
    copied = copy.deepcopy(element)
    copied.tail = None
    return copied


def _without_tail(element: etree._Element) -> etree._Element:
    """libvirt's formatting: what stands behind an element is white space."""
    element.tail = None
    return element


def _replace(old: etree._Element, new: etree._Element) -> None:
    parent = old.getparent()
    assert parent is not None
    new.tail = old.tail
    parent.replace(old, new)


def _named(path: str, key: Key) -> str:
    name = " ".join((key[0], *(part if len(part) < 80 else part[:80] + "…" for part in key[1:])))
    return f"{path}/{name}" if path else name


def _resolve_addresses(root: etree._Element, added: list[etree._Element]) -> None:
    """Take the addresses away that added devices cannot have."""
    devices = root.find("devices")
    if devices is None:
        return
    buses = {controller.get("index") for controller in devices.iterchildren("controller") if controller.get("type") == "pci"}
    new = dict.fromkeys(device for device in added if device.getparent() is devices)
    others = {_place(device) for device in _children(devices) if device not in new}
    for device in new:
        address = device.find("address")
        place = _place(device)
        if address is None or place is None:
            continue
        bus = address.get("bus", "0x00")
        if place in others or (place[0] == "pci" and _number(bus) not in buses):
            device.remove(address)
        else:
            others.add(place)


def _place(device: etree._Element) -> Optional[Key]:
    address = device.find("address")
    if address is None or address.get("type") not in _UNIQUE_ADDRESSES:
        return None
    kind = str(address.get("type"))
    bus = _value(device, "target/@bus") if kind == "drive" else None
    parts = sorted(str(name) for name in address.attrib if name not in ("type", "multifunction"))
    return (kind, bus or "", *(f"{name}={_number(address.get(name, ''))}" for name in parts))


def _number(text: str) -> str:
    """libvirt writes numbers decimal or with 0x."""
    try:
        return str(int(text, 0))
    except ValueError:
        return text
