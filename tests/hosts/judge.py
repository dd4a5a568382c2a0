# SPDX-License-Identifier: LGPL-2.1-or-later
"""The judge of a placed domain: every rule of the design, worked out from scratch from the XML before, the XML after, and the host.

``faults`` lists what is wrong, a sentence each; :func:`judge` fails with all of them. It knows the host from the model that the test
built (never from the files that the code under test read), and takes nothing from the code under test but its output and report.
"""

from __future__ import annotations

import difflib
from typing import AbstractSet, Any, Optional

from lxml import etree

from tests.hosts.build import Host
from tests.hosts.cells_judge import cells_faults, cells_of, strip
from tests.hosts.guest import Guest
from tests.hosts.passthrough import NS, Passed, cells_for, is_passed, listed, ours, passed, placement
from tests.hosts.rules import layout_faults, place_faults

QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
DEVICE_KEYS = ["device", "source", "form", "host_node", "guest_cell", "guest_address", "placed", "reason"]
REPORT_KEYS = ["outcome", "reason", "message", "group_by", "cells", "devices"]


def judge(before: bytes, after: bytes, host: Host, report: dict[str, Any], *, fresh: bool = True) -> None:
    """Fail with every fault. ``fresh``: nothing was placed before, so the layout owes nothing to history."""
    found = faults(before, after, host, report, fresh=fresh)
    assert not found, "\n  - ".join([f"{len(found)} faults:", *found])


def faults(before: bytes, after: bytes, host: Host, report: dict[str, Any], *, fresh: bool = True) -> list[str]:
    """What is wrong with ``after`` and ``report``."""
    found = report_faults(before, after, host, report)
    found += ours_only_faults(before, after)
    found += cells_faults(before, after, host, report)
    if report["outcome"] != "placed" and before != after:
        found.append(f"outcome {report['outcome']} but the output differs from the input")
    if report["outcome"] == "placed" and before == after:
        found.append("outcome placed but nothing changed")
    owned = ours(after) if before == after else listed(after)  # what was not written may list anything
    if owned:
        found += layout_faults(before, after, owned, fresh)
        found += place_faults(after, host, report, fresh)
        found += record_faults(before, after)
    elif report["outcome"] == "placed" and placement(before) is None:
        found.append("outcome placed but there is no <placement>")
    return found


# The report.


def report_faults(before: bytes, after: bytes, host: Host, report: dict[str, Any]) -> list[str]:
    """The report's form, and each line of it against host and domain."""
    found = []
    before = before if cells_of(before) else after
    if list(report) != REPORT_KEYS:
        found.append(f"report has the keys {list(report)}")
    devices = passed(after, host)
    lines = {line["source"]: line for line in report["devices"]}
    if sorted(line["source"] for line in report["devices"]) != sorted(d.source for d in devices):
        found.append(f"report lists {[line['source'] for line in report['devices']]}, the domain has {[d.source for d in devices]}")
        return found
    for device in devices:
        line = lines[device.source]
        if list(line) != DEVICE_KEYS:
            found.append(f"{device.source}: line has the keys {list(line)}")
        node = _node(device, host)
        cells = cells_for(before, host, node) if node is not None else set()
        wanted = {
            "form": device.form,
            "device": device.host_address,
            "guest_address": str(device.at) if device.at else None,
        }
        if line["reason"] not in ("kept", "unassigned", "not-pci", "device-absent", "host-unreadable"):
            wanted["host_node"] = node
            wanted["guest_cell"] = next(iter(cells)) if len(cells) == 1 else None
        if line["reason"] == "nearest" and node is not None:
            wanted["guest_cell"] = None if len(cells) == 1 else _nearest(before, host, node)
        elif line["reason"] == "nearest":
            wanted["guest_cell"] = _nearest_of(before, host, _several(device, host))
        for key, value in wanted.items():
            if line[key] != value:
                found.append(f"{device.source}: report says {key} {line[key]!r}, it is {value!r}")
        stands = report["outcome"] == "fallback" and line["reason"] in ("device-absent", "host-unreadable")
        rides_along = line["reason"] == "no-affinity" and len([d for d in devices if d.at and device.at and d.at[:2] == device.at[:2]]) > 1
        if line["placed"] and line["reason"] not in (None, "kept-apart", "nearest", "kept") and not stands and not rides_along:
            found.append(f"{device.source}: placed, and yet a reason {line['reason']}")
        if not line["placed"] and line["reason"] is None and report["reason"] is None:
            found.append(f"{device.source}: not placed, and no reason why")
        if not line["placed"] and report["outcome"] == "placed":
            found += _reason_faults(device, line, node, cells, before, host)
    return found


def _reason_faults(
    device: Passed, line: dict[str, Any], node: Optional[int], cells: set[int], before: bytes, host: Host
) -> list[str]:
    kept = {k.get("device") for k in etree.fromstring(before).findall(f"metadata/{NS}pcinuma/{NS}keep")}
    if device.unassigned:
        wanted = {"unassigned"}
    elif device.not_pci:
        wanted = {"not-pci"}
    elif device.source in kept:
        wanted = {"kept"}
    elif device.form in ("block-disk", "direct-interface") and device.host_address is None:
        wanted = {"backing-unknown", "mixed-nodes"}
    elif node is None:
        wanted = {"several-nodes"} if _several(device, host) else {"no-affinity"}
    elif not cells:
        wanted = {"no-cell"}
    elif len(cells) > 1:
        wanted = {"ambiguous-cell"}
    else:
        wanted = {"no-room", "shared-slot", "mixed-nodes", "kept"}
    if line["reason"] not in wanted | ({"shared-slot", "mixed-nodes", "kept"} if device.at and device.at.slot is not None else set()):
        return [f"{device.source}: left where it was because of {line['reason']}, but it should be {' or '.join(sorted(wanted))}"]
    return []


def _nearest(before: bytes, host: Host, node: int) -> Optional[int]:
    """The cell of the mapped host node with the smallest distance, of equal ones the lowest node."""
    candidates = []
    for other in sorted(host.nodes):
        cells = cells_for(before, host, other)
        if len(cells) == 1:
            candidates.append((host.distance(node, other), other, next(iter(cells))))
    return min(candidates)[2] if candidates else None


def _nearest_of(before: bytes, host: Host, nodes: list[int]) -> Optional[int]:
    """Of several equally local nodes the cell of the lowest that has one."""
    mapped = [next(iter(cells)) for node in nodes if len(cells := cells_for(before, host, node)) == 1]
    others = [(_nearest_distance(host, nodes, other), other) for other in host.nodes if other not in nodes]
    mapped += [next(iter(cells)) for _, other in sorted(others) if len(cells := cells_for(before, host, other)) == 1]
    return mapped[0] if mapped else None


def _nearest_distance(host: Host, nodes: list[int], other: int) -> int:
    return min(host.distance(node, other) for node in nodes)


def _several(device: Passed, host: Host) -> list[int]:
    return host.several_nodes_of(device.host_address) if device.host_address in host.functions else []


def _node(device: Passed, host: Host) -> Optional[int]:
    return host.node_of(device.host_address) if device.host_address in host.functions else None


# Only ours.


def ours_only_faults(before: bytes, after: bytes) -> list[str]:
    """The input and the output without what is ours must be the same."""
    foreign = _foreign(before)
    one, other = without_ours(before, foreign), without_ours(after, foreign)
    if one == other:
        return []
    lines = difflib.unified_diff(one.splitlines(), other.splitlines(), "before", "after", lineterm="", n=1)
    return ["something that is not ours changed:\n" + "\n".join(lines)]


def _foreign(xml: bytes) -> set[str]:
    """The devices that are not passed through and yet sit on a controller of ours, without their addresses."""
    guest, owned = Guest.of(xml), set(ours(xml))
    elements = [e.element for e in guest.endpoints if e.element is not None and e.at and e.at.bus in owned]
    return {_unaddressed(element) for element in elements if not is_passed(element)}


def _unaddressed(element: etree._Element) -> str:
    copy = etree.fromstring(etree.tostring(element))
    for address in copy.findall("address"):
        copy.remove(address)
    return lines(copy)


def without_ours(xml: bytes, foreign: AbstractSet[str] = frozenset()) -> str:
    """The domain without our controllers, our metadata and the guest addresses of passthrough devices and ``foreign``; a line per tag."""
    root = etree.fromstring(xml)
    owned = set(ours(xml))
    strip(root)
    _strip_links(root)
    for element in root.find("devices").iterchildren(etree.Element):
        if foreign and _unaddressed(element) in foreign:
            element.remove(element.find("address"))
    for controller in root.findall("devices/controller[@type='pci']"):
        if int(controller.get("index", "-1")) in owned:
            controller.getparent().remove(controller)
    for device in [d.element for d in passed(root)]:
        address = device.find("address")
        if address is not None and address.get("type") == "pci":
            device.remove(address)
    for address in root.iter("address"):
        if address.get("type") == "pci" and int(address.get("function", "0"), 0) == 0:
            address.attrib.pop("multifunction", None)
    if not len(root.find("devices")):
        root.find("devices").text = None
    metadata = root.find("metadata")
    if metadata is not None:
        for element in metadata.findall(f"{NS}pcinuma"):
            for child in element.findall(f"{NS}placement"):
                element.remove(child)
            if not len(element):
                element.text = None
            if not len(element) and not element.attrib:
                metadata.remove(element)
        if not len(metadata):
            root.remove(metadata)
    return lines(root)


def _strip_links(root: etree._Element) -> None:
    """Take out what ``<placement>`` says that ports were made to tell, and with the last of it what came with it."""
    element = root.find(f"metadata/{NS}pcinuma/{NS}placement")
    override = root.find(f"{QEMU}override")
    if element is None or override is None:
        return
    for controller in element.findall(f"{NS}controller[@link]"):
        speed, _, width = controller.get("link").partition("x")
        values = {name: value for name, value in (("x-speed", speed.replace(".", "_")), ("x-width", width)) if value}
        for device in override.findall(f"{QEMU}device[@alias='pci.{controller.get('index')}']"):
            if {p.get("name"): p.get("value") for p in device.findall(f"{QEMU}frontend/{QEMU}property")} == values:
                override.remove(device)
                if not len(override) and element.get("declared") != "override":
                    root.remove(override)
                if not len(override) and element.get("declared") is None:
                    etree.cleanup_namespaces(root, keep_ns_prefixes=[prefix for prefix in root.nsmap if prefix != "qemu"])


def lines(root: etree._Element) -> str:
    """Canonical XML, white space between elements dropped, an element or comment a line."""
    for element in root.iter():
        if len(element) and not (element.text or "").strip():
            element.text = "\n"
        if not (element.tail or "").strip():
            element.tail = "\n"
    return str(etree.tostring(root, method="c14n").decode())


# The record.


def record_faults(before: bytes, after: bytes) -> list[str]:
    """The metadata hold each moved device's original address and nothing else, and list our controllers in full.

    What is recorded of devices that are gone may stay as long as nothing is written.
    """
    found = []
    element, earlier = placement(after), placement(before)
    assert element is not None
    names = [child.get("source") for child in element.findall(f"{NS}device")]
    if len(set(names)) != len(names):
        found.append(f"<placement> lists a device twice: {names}")
    if len(set(listed(after))) != len(listed(after)):
        found.append(f"<placement> lists a controller twice: {listed(after)}")
    if before != after and listed(after) != ours(after):
        found.append(f"<placement> lists {listed(after)}, of which {ours(after)} are as pcinuma makes them")
    strange = set(names) - {d.source for d in passed(after)}
    if strange and before != after and not any(name and "#" in name for name in strange):
        found.append(f"<placement> still lists {sorted(map(str, strange))}, which the domain does not have")
    recorded = {child.get("source"): {k: v for k, v in child.attrib.items() if k != "source"} for child in element.findall(f"{NS}device")}
    known = (
        {}
        if earlier is None
        else {c.get("source"): {k: v for k, v in c.attrib.items() if k != "source"} for c in earlier.findall(f"{NS}device")}
    )
    guest = Guest.of(after)
    was = {d.source: d for d in passed(before)}
    for device in passed(after):
        address = was[device.source].element.find("address") if device.source in was else None
        home = guest.expander(device.at.bus) if device.at else None
        moved = home is not None and home.index in ours(after)
        stood = was[device.source].at if device.source in was else None
        put_there = stood is not None and (stood.bus in ours(before) or _is_ours(guest, known.get(device.source), ours(before)))
        if device.source in known and put_there:
            wanted: Optional[dict[str, str]] = known[device.source]
        elif stood is not None and stood.bus in ours(before):  # libvirt put it there, for it had no address
            wanted = {}
        else:
            wanted = {} if address is None else {k: v for k, v in address.attrib.items() if k != "type"}
        if moved and recorded.get(device.source) != wanted:
            found.append(f"{device.source}: recorded {recorded.get(device.source)}, it was {wanted}")
        aside = device.at is not None and (device.at.bus in ours(after) or _is_ours(guest, recorded.get(device.source), ours(after)))
        if not moved and device.source in recorded and not device.unassigned and not aside and before != after:
            found.append(f"{device.source} is recorded, but was not moved")
    old = Guest.of(before).controllers
    new = [index for index in guest.controllers if index not in old]
    if sorted(set(new) - set(ours(after))):
        found.append(f"controllers {sorted(set(new) - set(ours(after)))} are new and not in <placement>")
    return found


def _is_ours(guest: Guest, address: Optional[dict[str, str]], owned: tuple[int, ...]) -> bool:
    """Whether one of our controllers is where a device once was."""
    if not address:
        return False
    try:
        was = tuple(int(address.get(name, "0"), 0) for name in ("bus", "slot", "function"))
    except ValueError:
        return False
    return any(guest.controllers[index].at == was for index in owned if index in guest.controllers)
