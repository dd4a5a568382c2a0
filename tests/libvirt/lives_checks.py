# SPDX-License-Identifier: LGPL-2.1-or-later
"""What must hold for a domain after every step of its life: the four invariants, what people decided, and that it can be undone.

Each function lists faults, a paragraph each; none asks the code under test but for the report that is judged.
"""

from __future__ import annotations

import difflib
from typing import Any, Optional

from lxml import etree

from tests.hosts.build import Host
from tests.hosts.guest import PORTS, Guest, Slot
from tests.hosts.judge import lines, record_faults, report_faults, without_ours
from tests.hosts.passthrough import NS, Passed, cells_for, ours, passed
from tests.hosts.rules import layout_faults, place_faults

Home = Optional[tuple[int, str]]


def difference(one: str, other: str, names: tuple[str, str] = ("before", "after")) -> str:
    """Two definitions, the lines that differ."""
    return "\n".join(difflib.unified_diff(one.splitlines(), other.splitlines(), *names, lineterm="", n=1))


def home(xml: str, host: Host, device: Passed) -> Home:
    """Where a device belongs: its cell and its root complex; None where it has no place."""
    if device.host_address not in host.functions or device.unassigned or device.not_pci:
        return None
    node = host.node_of(device.host_address)
    cells = cells_for(xml.encode(), host, node) if node is not None else set()
    return (min(cells), host.root_of(device.host_address)) if len(cells) == 1 else None


def homes(xml: str, host: Host) -> dict[str, Home]:
    return {device.source: home(xml, host, device) for device in passed(xml.encode(), host)}


def kept(xml: str) -> set[str]:
    """The devices that the owner wants to stay where they are."""
    element = etree.fromstring(xml).find(f"metadata/{NS}pcinuma")
    children = [] if element is None else [*element.findall(f"{NS}keep"), *element.findall("keep")]
    return {child.get("device", "") for child in children}


def metadata_attribute(xml: str, name: str) -> Optional[str]:
    """What the owner wrote into the metadata: ``policy`` or ``group-by``."""
    element = etree.fromstring(xml).find(f"metadata/{NS}pcinuma")
    return None if element is None else element.get(name)


def absent(xml: str, host: Host) -> list[str]:
    """The devices that the host does not have."""
    return [d.source for d in passed(xml.encode(), host) if d.host_address not in host.functions and d.source not in kept(xml)]


def placeable(xml: str, host: Host) -> list[str]:
    """The devices that have a place in the guest and may go there."""
    stays = kept(xml)
    return sorted(source for source, place in homes(xml, host).items() if place is not None and source not in stays)


def placed(xml: str) -> list[str]:
    """The devices that are below an expander of ours."""
    guest, mine = Guest.of(xml.encode()), ours(xml.encode())
    found = []
    for device in passed(xml.encode()):
        above = guest.expander(device.at.bus) if device.at else None
        if above is not None and above.index in mine:
            found.append(device.source)
    return sorted(found)


# The invariants.


def placement_faults(before: str, after: str, host: Host, report: dict[str, Any], *, exact: bool) -> list[str]:
    """A definition that is allowed to be placed, and was looked at. ``exact``: ``before`` is the very definition that was placed."""
    one, other = before.encode(), after.encode()
    owned, fresh = ours(other), not ours(one)
    outcome = "placed" if owned and report["outcome"] == "unchanged" else report["outcome"]  # placed a moment ago, it is unchanged now
    found = report_faults(one, other, host, {**report, "outcome": outcome})
    stands = report["outcome"] == "fallback"  # as long as a device is absent or the host cannot be read, right or wrong
    if owned and not (stands and same(before, after)):  # libvirt has put what came on whatever port was free
        found += layout_faults(one if exact else other, other, owned, fresh and exact)
    if owned and not stands:
        found += place_faults(other, host, report, fresh)
        if exact and not same(before, after):  # the entry of a device that is gone is no reason for a definition of ours
            found += record_faults(one, other)
    if stands:
        found = [fault for fault in found if ": placed, and yet a reason" not in fault]
    stays = kept(after)  # placed before its owner wrote that, it stands there, and nobody asks the host about it
    words = (": placed, and yet a reason kept", " belongs to cell None", ": report says device None")
    excused = tuple(f"{source}{text}" for source in stays for text in words)
    return [fault for fault in found if not fault.startswith(excused)]


def same(before: str, after: str) -> bool:
    """Whether two definitions say the same: libvirt shows metadata with other white space once it has read them back from its file, and PCI
    controllers in another order once it has been given what it shows. Of metadata that are taken out it leaves an empty element."""
    return lines(_ordered(before)) == lines(_ordered(after))


def _ordered(xml: str) -> etree._Element:
    """A definition with its PCI controllers in the order of their indexes."""
    root = etree.fromstring(xml)
    controllers = root.findall("devices/controller[@type='pci']")
    for controller in sorted(controllers, key=lambda controller: int(controller.get("index", "0"))):
        controllers[0].getparent().append(controller)
    metadata = root.find("metadata")
    if metadata is not None and not len(metadata):
        root.remove(metadata)
    for own in root.findall(f"metadata/{NS}pcinuma"):
        own.text = own.text if (own.text or "").strip() else None  # white space for children that it has or not
    return root


def foreign_device_faults(before: str, after: str, *, exact: bool) -> list[str]:
    """What is not ours must be as it was."""
    one, other = (without_ours(xml.encode()) if exact else shape(xml) for xml in (before, after))
    return [] if one == other else [f"something that is not ours changed:\n{difference(one, other)}"]


def shape(xml: str) -> str:
    """A definition without controllers of ours, ports, and places of passthrough devices, as a sorted list of lines: what stays comparable
    where libvirt may have put a new device on another port, or made one for it."""
    root = etree.fromstring(without_ours(xml.encode()))
    for controller in root.findall("devices/controller[@type='pci']"):
        if controller.get("model") in (*PORTS, "pcie-root", "pci-root"):
            controller.getparent().remove(controller)
    return lines(root)


def movement_faults(stood: str, before: str, then: dict[str, Home], after: str, now: dict[str, Home]) -> list[str]:
    """Nobody moves whose place did not change: neither in the XML nor in the bus numbers that the guest sees. ``stood``: what
    ``before`` was made from; where libvirt has put a device since, by chance on a port of ours, it need not stay."""
    seen, sees = _seen(before), _seen(after)
    standing, devices = set(placed(before)), {device.source for device in passed(before.encode())}
    was = {device.source: device.at for device in passed(stood.encode())}
    found = []
    for name, at in seen.items():
        if name in devices and (name not in standing or name not in then or then[name] != now.get(name) or was.get(name) != at[0]):
            continue
        if name in sees and sees[name] != at:
            found.append(f"{name} moved from {at} to {sees[name]} (address and bus number), for no reason of its own")
    return found


def _seen(xml: str) -> dict[str, tuple[Optional[Slot], Optional[int]]]:
    """What a guest sees of each device: address and bus number."""
    guest = Guest.of(xml.encode()).completed()
    numbers = guest.numbers()
    shown = {device.source: (device.at, numbers.get(device.at.bus)) for device in passed(xml.encode()) if device.at}
    for endpoint in guest.endpoints:
        if endpoint.element is not None and endpoint.at and not endpoint.name.startswith(("hostdev", "interface {", "disk {")):
            shown[f"{endpoint.name} {endpoint.at}"] = (endpoint.at, numbers.get(endpoint.at.bus))
    return shown


def undo_faults(owners: str, exact: bool, back: str) -> list[str]:
    """``back`` is a definition that was reverted, ``owners`` what it is without us. ``exact``: no device came or went since."""
    if ours(back.encode()):
        return [f"reverted, and yet it lists controllers of ours: {ours(back.encode())}"]
    if exact:
        return [] if same(owners, back) else [f"not what the owner had before:\n{difference(owners, back, ('owner', 'reverted'))}"]
    one, other = shape(owners), shape(back)
    found = [] if one == other else [f"not what the owner would have without us:\n{difference(one, other, ('owner', 'reverted'))}"]
    guest = Guest.of(back.encode())
    taken: dict[Slot, list[str]] = {}
    for endpoint in guest.endpoints:
        if endpoint.at:
            taken.setdefault(endpoint.at, []).append(endpoint.name)
    found += [f"{at} is given to {' and '.join(names)}" for at, names in taken.items() if len(names) > 1]
    return found


def status_faults(after: str, entry: Optional[dict[str, Any]], allowed: bool) -> list[str]:
    """What ``pcinuma status`` says of a domain, against its definition."""
    if entry is None:
        return ["status does not list it"]
    found = []
    sits, devices = placed(after), [d.source for d in passed(after.encode())]
    counts = entry["placed"] == len(sits) or (not allowed and entry["placed"] < len(sits))  # by chance on a port of ours is not placed
    if not counts or entry["devices"] != len(devices):
        found.append(f"status says {entry['placed']} of {entry['devices']} devices placed, the definition {len(sits)} of {len(devices)}")
    if entry["enabled"] != allowed:
        found.append(f"status says enabled: {entry['enabled']}")
    if entry["outcome"] not in ("placed", "unchanged", "fallback"):
        found.append(f"status says outcome {entry['outcome']!r}")
    if entry["reason"] == "already-placed" and not sits:
        found.append("status says that every device is where it should be, and none is placed")
    return [*found, f"status: {entry}"] if found else []


