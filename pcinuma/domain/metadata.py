# SPDX-License-Identifier: LGPL-2.1-or-later
"""pcinuma's metadata element, ``{urn:pcinuma:domain:1}pcinuma`` (a frozen format).

The owner writes ``policy``, ``group-by``, ``cells``, ``link`` and ``<keep device="…"/>``; pcinuma alone ``<placement>`` and ``<cells>``.
Children are accepted with the namespace and without, since ``<keep>`` below a prefixed element is easily written so. Where ``<metadata>``
or pcinuma's element was there and empty, the first of pcinuma's children says so by ``empty="metadata"`` or ``empty="pcinuma"``, so that
taking them out leaves what was there.

``<cells>`` has a ``<cell id node cpus memory pinned/>`` for each cell that pcinuma wrote (vCPUs, KiB, host CPUs), a ``<vcpupin vcpu
cpuset/>`` for each vCPU that it pinned, and in ``made`` the names of the elements that were not there.

A ``<controller>`` whose port tells a link (:mod:`pcinuma.domain.links`) says which in ``link``, such as ``32x16``; ``declared`` on
``<placement>`` says what of libvirt's QEMU namespace was there before it.
"""

from __future__ import annotations

from functools import partial
from typing import Callable, Mapping, NamedTuple, Optional

from lxml import etree

from pcinuma.address import PciAddress
from pcinuma.domain.address import attributes_of, number, original_attributes
from pcinuma.domain.remembered import Attributes, remembered
from pcinuma.domain.xml import Document, append, attribute, child, insert_after, insert_first, remove, space_before
from pcinuma.errors import DomainError
from pcinuma.model import GuestCell, MadeCells, Original, Placement
from pcinuma.ranges import Ranges, format_ranges, parse_spans
from pcinuma.settings import CELLS, LINK, GroupBy, Policy

NAMESPACE = "urn:pcinuma:domain:1"
_ELEMENT = f"{{{NAMESPACE}}}pcinuma"
_NAMES = {f"{{{NAMESPACE}}}{name}": name for name in ("keep", "placement", "controller", "device", "cells", "cell", "vcpupin")}
_BEFORE_METADATA = ("name", "uuid", "genid", "title", "description")


class Metadata(NamedTuple):
    """The whole element as values."""

    policy: Optional[Policy]
    group_by: Optional[GroupBy]
    keep: frozenset[str]
    placement: Optional[Placement]
    asks_for_cells: Optional[bool] = None
    cells: Optional[MadeCells] = None
    asks_for_link: Optional[bool] = None


NOTHING = Metadata(None, None, frozenset(), None)


def find(metadata: Optional[etree._Element]) -> Optional[etree._Element]:
    """The element in a domain's ``<metadata>``, None if it has none."""
    return None if metadata is None else child(metadata, _ELEMENT)


def read(metadata: Optional[etree._Element]) -> Metadata:
    """Read the element in a domain's ``<metadata>``. Raises DomainError for a value that means nothing."""
    element = find(metadata)
    if element is None:
        return NOTHING
    policy, group_by, cells, link = element.get("policy"), element.get("group-by"), element.get("cells"), element.get("link")
    children = _by_name(element)
    keep = frozenset([keep.get("device", "") for keep in children.get("keep", ())])
    placement = children["placement"][0] if "placement" in children else None
    return Metadata(
        None if policy is None else _policy(policy),
        None if group_by is None else _group_by(group_by),
        keep,
        None if placement is None else _placement(placement),
        None if cells is None else _asks_for_cells(cells),
        _made_cells(children["cells"][0]) if "cells" in children else None,
        None if link is None else _asks_for_link(link),
    )


def write_wishes(document: Document, wishes: Mapping[str, str]) -> None:
    """Set the owner's attributes to ``wishes``; the others stay."""
    there = child(document.root, "metadata")
    element = find(there)
    if element is None:
        element = _create(document.root, there)
    for name, value in wishes.items():
        element.set(name, value)


def write_placement(document: Document, placement: Optional[Placement]) -> None:
    """Put ``placement`` in the place of the old one; None takes it out, and with it whatever it leaves empty and was not there before."""
    _write(document, "placement", None if placement is None else partial(_placement_text, placement))


def write_links(document: Document, links: Mapping[int, str], declared: Optional[str]) -> None:
    """Say in the placement's record what ports tell, and of no others; the rest of it stays."""
    element = find(child(document.root, "metadata"))
    for placement in _by_name(element).get("placement", ())[:1] if element is not None else ():
        _set(placement, "declared", declared)
        for controller in _by_name(placement).get("controller", ()):
            index = _number(controller.get("index"))
            _set(controller, "link", None if index is None else links.get(index))


def _set(element: etree._Element, name: str, value: Optional[str]) -> None:
    if value is not None:
        element.set(name, value)
    elif name in element.attrib:
        del element.attrib[name]


def write_cells(document: Document, cells: Optional[MadeCells]) -> None:
    """Put the record ``cells`` in the place of the old one; None takes it out, as :func:`write_placement` does."""
    _write(document, "cells", None if cells is None else partial(_cells_text, cells))


def _write(document: Document, name: str, text: Optional[Callable[[str, str, Optional[str]], str]]) -> None:
    """Put our child ``name`` in the place of the old one. ``text``: what it says, by its prefix, the space before it and what was empty."""
    there = child(document.root, "metadata")
    element = find(there)
    was_empty = _taken_out(element, name)
    if text is None:
        _tidy(element, was_empty)
        return
    if element is None:
        was_empty = "metadata" if there is not None and _is_blank(there) else None
        element = _create(document.root, there)
    slot = document.slot()
    append(element, slot)
    prefix = f"{element.prefix}:" if element.prefix else ""
    document.fill(slot, text(prefix, space_before(slot), was_empty))


def _cells_text(cells: MadeCells, prefix: str, before: str, was_empty: Optional[str]) -> str:
    deeper = before + "  " if before else ""
    spelled = {cpus: format_ranges(cpus) for cpus in {cpus for _, cpus in cells.pins}}
    text = f"<{prefix}cells"
    text += f" made='{' '.join(cells.containers)}'" if cells.containers else ""
    text += f" empty='{was_empty}'>" if was_empty else ">"
    for cell in cells.cells:
        of_vcpus = f" cpus='{format_ranges(cell.vcpus)}' pinned='{format_ranges(cell.cpus)}'" if cell.vcpus else ""
        text += f"{deeper}<{prefix}cell id='{cell.number}' node='{cell.node}' memory='{cell.memory_kib}'{of_vcpus}/>"
    text += "".join([f"{deeper}<{prefix}vcpupin vcpu='{vcpu}' cpuset='{spelled[cpus]}'/>" for vcpu, cpus in cells.pins])
    return f"{text}{before}</{prefix}cells>"


def _taken_out(element: Optional[etree._Element], name: str) -> Optional[str]:
    """Take pcinuma's child ``name`` out; return what was empty before pcinuma wrote anything, as far as that child says it."""
    if element is None:
        return None
    was_empty = "pcinuma" if not len(element) and not element.attrib else None
    for old in _by_name(element).get(name, ()):
        was_empty = {"metadata": "metadata", "pcinuma": "pcinuma"}.get(old.get("empty", ""))
        remove(old)
    return was_empty


def _tidy(element: Optional[etree._Element], was_empty: Optional[str]) -> None:
    """Take out what is empty now and was not before; where another child of pcinuma's is left, that says so from now on."""
    if element is None:
        return
    if was_empty is not None:
        children = _by_name(element)
        for left in [*children.get("placement", ()), *children.get("cells", ())][:1]:
            left.set("empty", was_empty)
    if len(element) or element.attrib or was_empty == "pcinuma":
        return
    parent = element.getparent()
    assert parent is not None
    remove(element)
    if was_empty != "metadata" and _is_blank(parent):
        remove(parent)


def original_address(entry: Original) -> Optional[PciAddress]:
    """The guest address that ``entry`` keeps; None if the device had none, or if what is kept is none that a guest could have."""
    return _kept_address(entry.attributes)


@remembered
def _kept_address(attributes: Attributes) -> Optional[PciAddress]:
    if not attributes:
        return None
    values = dict(attributes)
    domain, bus, slot, function = [number(values.get(name, "0"), name) for name in ("domain", "bus", "slot", "function")]
    if domain or bus > 255 or slot > 31 or function > 7 or values.get("multifunction", "on") not in ("on", "off"):
        return None
    return PciAddress(domain, bus, slot, function)


def says_several(entry: Original) -> bool:
    """Whether the address that ``entry`` keeps says that its slot has more functions."""
    return ("multifunction", "on") in entry.attributes


def _create(root: etree._Element, metadata: Optional[etree._Element]) -> etree._Element:
    if metadata is None:
        metadata = etree.Element("metadata")
        neighbour = next(root.iterchildren(*_BEFORE_METADATA, reversed=True), None)
        if neighbour is not None:
            insert_after(neighbour, metadata)
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
    parts += [f"{opening}{_spelled((('source', source), *attributes))}/>" for source, attributes in placement.devices]
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
        tag = part.tag
        found.setdefault(_NAMES.get(tag, tag), []).append(part)
    return found


def _placement(element: etree._Element) -> Placement:
    group_by = element.get("group-by")
    children = _by_name(element)
    originals: dict[str, Original] = {}
    for device in children.get("device", ()):
        entry = _original(attributes_of(device))
        if entry is not None:
            originals.setdefault(entry.source, entry)
    listed = [_listed(attributes_of(controller)) for controller in children.get("controller", ())]
    links = {index: link for index, link in listed if index is not None and link is not None}
    return Placement(
        GroupBy.ROOT_COMPLEX if group_by is None else _group_by(group_by),
        tuple(sorted({index for index, _ in listed if index is not None})),
        tuple(originals.values()),
        tuple(sorted(links.items())),
        element.get("declared"),
    )


@remembered
def _listed(controller: Attributes) -> tuple[Optional[int], Optional[str]]:
    """A controller's index, None where it means nothing, and the link that its port tells."""
    values = dict(controller)
    return _number(values.get("index")), values.get("link")


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


def _asks_for_cells(text: str) -> bool:
    if text not in CELLS:
        raise DomainError(f"cells {text!r} is neither auto nor off", subject="pcinuma's metadata")
    return CELLS[text]


def _asks_for_link(text: str) -> bool:
    if text not in LINK:
        raise DomainError(f"link {text!r} is neither host nor off", subject="pcinuma's metadata")
    return LINK[text]


def _made_cells(element: etree._Element) -> MadeCells:
    """The record; an empty one where what it says means nothing, so that nothing is pcinuma's."""
    children = _by_name(element)
    cells = [_made_cell(dict(attributes_of(cell))) for cell in children.get("cell", ())]
    pins = [_made_pin(dict(attributes_of(pin))) for pin in children.get("vcpupin", ())]
    whole = [cell for cell in cells if cell is not None], [pin for pin in pins if pin is not None]
    if not cells or (len(whole[0]), len(whole[1])) != (len(cells), len(pins)):
        return MadeCells((), (), ())
    return MadeCells(tuple(whole[0]), tuple(whole[1]), tuple(element.get("made", "").split()))


def _made_cell(says: dict[str, str]) -> Optional[GuestCell]:
    numbers = [_plain(says.get(name)) for name in ("id", "node", "memory")]
    vcpus, cpus = _list(says.get("cpus")), _list(says.get("pinned"))
    if numbers[0] is None or numbers[1] is None or numbers[2] is None or vcpus is None or cpus is None:
        return None
    return GuestCell(numbers[0], numbers[1], vcpus, numbers[2], cpus)


def _made_pin(says: dict[str, str]) -> Optional[tuple[int, Ranges]]:
    vcpu, cpus = _plain(says.get("vcpu")), _list(says.get("cpuset"))
    return None if vcpu is None or not cpus else (vcpu, cpus)


def _plain(text: Optional[str]) -> Optional[int]:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 20 else None


def _list(text: Optional[str]) -> Optional[Ranges]:
    return parse_spans(text or "")
