# SPDX-License-Identifier: LGPL-2.1-or-later
"""pcinuma's metadata element, ``{urn:pcinuma:domain:1}pcinuma`` (a frozen format).

The owner writes ``policy``, ``group-by`` and ``<keep device="…"/>``; pcinuma alone writes ``<placement>``. Children are accepted with the
namespace and without, since ``<keep>`` below a prefixed element is easily written so. Where ``<metadata>`` or pcinuma's element was there
and empty, ``<placement>`` says so by ``empty="metadata"`` or ``empty="pcinuma"``, so that taking it out leaves what was there.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

from lxml import etree

from pcinuma.address import PciAddress
from pcinuma.domain.address import attributes_of, number, original_attributes
from pcinuma.domain.remembered import Attributes, remembered
from pcinuma.domain.xml import Document, append, attribute, child, insert_after, insert_first, remove, space_before
from pcinuma.errors import DomainError
from pcinuma.model import Original, Placement
from pcinuma.settings import GroupBy, Policy

NAMESPACE = "urn:pcinuma:domain:1"
_ELEMENT = f"{{{NAMESPACE}}}pcinuma"
_NAMES = {f"{{{NAMESPACE}}}{name}": name for name in ("keep", "placement", "controller", "device")}
_BEFORE_METADATA = ("name", "uuid", "genid", "title", "description")


class Metadata(NamedTuple):
    """The whole element as values."""

    policy: Optional[Policy]
    group_by: Optional[GroupBy]
    keep: frozenset[str]
    placement: Optional[Placement]


NOTHING = Metadata(None, None, frozenset(), None)


def find(metadata: Optional[etree._Element]) -> Optional[etree._Element]:
    """The element in a domain's ``<metadata>``, None if it has none."""
    return None if metadata is None else child(metadata, _ELEMENT)


def read(metadata: Optional[etree._Element]) -> Metadata:
    """Read the element in a domain's ``<metadata>``. Raises DomainError for a value that means nothing."""
    element = find(metadata)
    if element is None:
        return NOTHING
    policy, group_by = element.get("policy"), element.get("group-by")
    children = _by_name(element)
    keep = frozenset([keep.get("device", "") for keep in children.get("keep", ())])
    placement = children["placement"][0] if "placement" in children else None
    return Metadata(
        None if policy is None else _policy(policy),
        None if group_by is None else _group_by(group_by),
        keep,
        None if placement is None else _placement(placement),
    )


def write_placement(document: Document, placement: Optional[Placement]) -> None:
    """Put ``placement`` in the place of the old one; None takes it out, and with it whatever it leaves empty and was not there before."""
    there, was_empty = child(document.root, "metadata"), None
    element = find(there)
    if element is not None:
        if not len(element) and not element.attrib:
            was_empty = "pcinuma"
        for old in _by_name(element).get("placement", ()):
            was_empty = {"metadata": "metadata", "pcinuma": "pcinuma"}.get(old.get("empty", ""))
            remove(old)
    if placement is None:
        if element is not None and not len(element) and not element.attrib and was_empty != "pcinuma":
            parent = element.getparent()
            assert parent is not None
            remove(element)
            if was_empty != "metadata" and _is_blank(parent):
                remove(parent)
        return
    if element is None:
        was_empty = "metadata" if there is not None and _is_blank(there) else None
        element = _create(document.root, there)
    slot = document.slot()
    append(element, slot)
    prefix = f"{element.prefix}:" if element.prefix else ""
    document.fill(slot, _placement_text(placement, prefix, space_before(slot), was_empty))


def original_address(entry: Original) -> Optional[PciAddress]:
    """The guest address that ``entry`` keeps; None if the device had none, or if what is kept is none that a guest could have."""
    if not entry.attributes:
        return None
    values = dict(entry.attributes)
    domain, bus, slot, function = [number(values.get(name, "0"), entry.source) for name in ("domain", "bus", "slot", "function")]
    if domain or bus > 255 or slot > 31 or function > 7 or values.get("multifunction", "on") not in ("on", "off"):
        return None
    return PciAddress(domain, bus, slot, function)


def says_several(entry: Original) -> bool:
    """Whether the address that ``entry`` keeps says that its slot has more functions."""
    return ("multifunction", "on") in entry.attributes


def _create(root: etree._Element, metadata: Optional[etree._Element]) -> etree._Element:
    if metadata is None:
        metadata = etree.Element("metadata")
        neighbours = [child for child in root if child.tag in _BEFORE_METADATA]
        if neighbours:
            insert_after(neighbours[-1], metadata)
        else:
            insert_first(root, metadata)
    element = etree.Element(_ELEMENT, nsmap={"pcinuma": NAMESPACE})
    append(metadata, element)
    return element


def _is_blank(element: etree._Element) -> bool:
    return not len(element) and not (element.text or "").strip()


def _placement_text(placement: Placement, prefix: str, before: str, was_empty: Optional[str]) -> str:
    deeper = before + "  " if before else ""
    parts = [f"{deeper}<{prefix}controller index='{index}'/>" for index in placement.controllers]
    opening = f"{deeper}<{prefix}device"
    parts += [f"{opening}{attribute('source', source)}{_spelled(attributes)}/>" for source, attributes in placement.devices]
    content = f">{''.join(parts)}{before}</{prefix}placement>" if parts else "/>"
    empty = f" empty='{was_empty}'" if was_empty else ""
    return f"<{prefix}placement group-by='{placement.group_by.value}'{empty}{content}"


@remembered
def _spelled(attributes: Attributes) -> str:
    return "".join([attribute(name, value) for name, value in attributes])


def _by_name(element: etree._Element) -> dict[str, list[etree._Element]]:
    """The children by their name, in our namespace and without any."""
    found: dict[str, list[etree._Element]] = {}
    for part in element:
        found.setdefault(_NAMES.get(part.tag, part.tag), []).append(part)
    return found


def _placement(element: etree._Element) -> Placement:
    group_by = element.get("group-by")
    children = _by_name(element)
    originals: dict[str, Original] = {}
    for device in children.get("device", ()):
        entry = _original(attributes_of(device))
        if entry is not None:
            originals.setdefault(entry.source, entry)
    indexes = [index for controller in children.get("controller", ()) if (index := _number(controller.get("index"))) is not None]
    return Placement(
        GroupBy.ROOT_COMPLEX if group_by is None else _group_by(group_by), tuple(sorted(set(indexes))), tuple(originals.values())
    )


@remembered
def _original(device: Attributes) -> Optional[Original]:
    """An entry; of one whose numbers mean nothing only that the device was moved, and None of one that names no device."""
    source = dict(device).get("source")
    if not source:
        return None
    kept = original_attributes(device)
    garbage = any(name != "multifunction" and _number(value) is None for name, value in kept)
    return Original(source, () if garbage else kept)


def _number(text: Optional[str]) -> Optional[int]:
    try:
        return number(text, "")
    except DomainError:
        return None


def _policy(text: str) -> Policy:
    try:
        return Policy(text)
    except ValueError:
        raise DomainError(f"policy {text!r} is none of preferred, required, off", subject="pcinuma's metadata") from None


def _group_by(text: str) -> GroupBy:
    try:
        return GroupBy(text)
    except ValueError:
        raise DomainError(f"group-by {text!r} is none of root-complex, switch, node", subject="pcinuma's metadata") from None
