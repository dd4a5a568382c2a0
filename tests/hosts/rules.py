# SPDX-License-Identifier: LGPL-2.1-or-later
"""The judge's rules for where things are: PCI's own, and each device's place in the guest against that on the host."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations
from typing import Any, Optional

from tests.hosts.build import Host
from tests.hosts.guest import EXPANDERS, PORTS, ROOTS, Controller, Guest, Slot
from tests.hosts.passthrough import Passed, cell_numbers, is_passed, ours, passed


def layout_faults(before: bytes, after: bytes, owned: list[int], fresh: bool) -> list[str]:
    """PCI's rules and QEMU's, on the guest as libvirt completes it."""
    said, found = Guest.of(after), []
    guest = said.completed()
    found += [f"controller index {index} twice" for index in said.duplicates]
    for index in owned:
        if index not in said.controllers:
            found.append(f"<placement> lists controller {index}, which is not there")
    theirs = range(max(Guest.of(before).controllers, default=0))
    gaps = [i for i in range(1, max(said.controllers, default=0)) if i not in said.controllers and i not in theirs]
    found += [f"libvirt fills the gap at index {index} with a root port" for index in gaps]
    chassis: dict[int, int] = {}
    for controller in guest.controllers.values():
        if controller.model in PORTS or controller.model == "pci-bridge":
            number = controller.chassis if controller.chassis is not None else controller.index
            if number in chassis:
                found.append(f"chassis {number} of controllers {chassis[number]} and {controller.index}")
            if not 0 < number <= 255:
                found.append(f"chassis {number} of controller {controller.index}")
            chassis[number] = controller.index
    found += address_faults(guest)
    mine = {i for i in owned if i in guest.controllers}
    cells = cell_numbers(after)
    for index in sorted(mine):
        if guest.controllers[index].node is not None and guest.controllers[index].node not in cells:
            found.append(f"our expander {index} is for cell {guest.controllers[index].node}, which the guest does not have")
    for index in sorted(mine):
        found += _controller_faults(guest, guest.controllers[index])
    extents = guest.extents()
    for (first, last, index), (start, _, nxt) in zip(extents, extents[1:]):
        if last >= start:
            found.append(f"controller {index} needs the buses {first}-{last}, but {nxt} starts at {start}")
    if extents and extents[-1][1] > 255:
        found.append(f"controller {extents[-1][2]} needs the buses up to {extents[-1][1]}")
    found += _room_faults(guest, extents, mine) if fresh and guest.express else []
    for endpoint in guest.endpoints:
        expander = guest.expander(endpoint.at.bus) if endpoint.at else None
        passthrough = endpoint.element is not None and is_passed(endpoint.element)
        if expander is not None and expander.index in mine and not passthrough:
            found.append(f"{endpoint.name} lands on our expander {expander.index} at {endpoint.at}")
    return found


def address_faults(guest: Guest) -> list[str]:
    found, taken = [], defaultdict(list)
    chipset = 0x1F if guest.express else 1  # ICH9's, or PIIX3's, function 0 is nobody's to write down
    for controller in guest.controllers.values():
        if controller.at:
            taken[controller.at].append(f"controller {controller.index}")
    for endpoint in guest.endpoints:
        if endpoint.at:
            taken[endpoint.at].append(endpoint.name)
    for at, names in sorted(taken.items()):
        if len(names) > 1:
            found.append(f"{at} is given to {' and '.join(names)}")
        if at.bus and at.bus not in guest.controllers:  # the root bus is there, said or not
            found.append(f"{names[0]} at {at}, where there is no controller")
        elif at.bus in guest.controllers and guest.controllers[at.bus].model in PORTS and at.slot != 0:
            found.append(f"{names[0]} at {at}, but a port has slot 0 only")
        if at.function and Slot(at.bus, at.slot, 0) not in taken and not (at.bus == 0 and at.slot == chipset):
            found.append(f"{names[0]} at {at}, but nobody has function 0")
    for endpoint in guest.endpoints:
        if (
            endpoint.at
            and endpoint.at.bus in guest.controllers
            and guest.controllers[endpoint.at.bus].model in ("pcie-expander-bus", "pcie-switch-upstream-port")
        ):
            found.append(f"{endpoint.name} sits directly on controller {endpoint.at.bus}")
    return found


def _controller_faults(guest: Guest, controller: Controller) -> list[str]:
    index, model, at = controller.index, controller.model, controller.at
    if model in ROOTS:
        return [] if controller.node is not None or index == 0 else [f"our PHB {index} has no node"]
    if at is None:
        return [f"our controller {index} has no address"]
    found = []
    above = guest.controllers.get(at.bus)
    allowed = {
        "pcie-expander-bus": ("pcie-root",),
        "pci-expander-bus": ("pci-root",),
        "pcie-root-port": ("pcie-root", "pcie-expander-bus"),
        "pcie-switch-upstream-port": PORTS,
        "pcie-switch-downstream-port": ("pcie-switch-upstream-port",),
        "pci-bridge": ("pci-root", "pci-expander-bus", "pci-bridge"),
    }.get(model, ())
    if above is None or above.model not in allowed:
        found.append(f"our {model} {index} sits on {above.model if above else 'nothing'}")
    if not 0 <= at.slot <= 31 or (at.bus == 0 and at.slot in (0, 1, 0x1F)):
        found.append(f"our controller {index} is at {at}")
    if model in EXPANDERS:
        if controller.bus_nr is None:
            found.append(f"our expander {index} has no busNr")
        if controller.node is None:
            found.append(f"our expander {index} has no node")
    if model in PORTS:
        occupied = bool(guest.used(index))
        under_expander = guest.expander(index) is not None
        if occupied and under_expander and controller.hotplug != "off":
            found.append(f"our occupied port {index} has hotplug {controller.hotplug}")
    if model == "pcie-switch-upstream-port" and at.slot != 0:
        found.append(f"our upstream port {index} is at {at}")
    return found


def _room_faults(guest: Guest, extents: list[tuple[int, int, int]], mine: set[int]) -> list[str]:
    """Room for four more ports per expander, where the numbers allow it with plenty to spare."""
    used = sum(last - first + 1 for first, last, _ in extents)
    if used + 4 * len(extents) + 32 > 256:
        return []
    found = []
    for number, (_first, last, index) in enumerate(extents):
        end = extents[number + 1][0] if number + 1 < len(extents) else 256
        if index in mine and end - last - 1 < 4:
            found.append(f"our expander {index} has room for {end - last - 1} more ports only")
    return found


def place_faults(after: bytes, host: Host, report: dict[str, Any], fresh: bool) -> list[str]:
    """Each device under its cell, its root complex and, where asked for, its switches."""
    guest, found = Guest.of(after), []
    lines_by_source = {line["source"]: line for line in report["devices"]}
    placed = [(d, lines_by_source[d.source]) for d in passed(after, host) if lines_by_source[d.source]["placed"]]
    group_by = report["group_by"]
    expanders: dict[int, set[tuple[Any, ...]]] = defaultdict(set)
    for device, line in placed:
        expander = guest.expander(device.at.bus) if device.at else None
        if expander is None or expander.index not in ours(after):
            found.append(f"{device.source} is reported as placed, but sits at {device.at}")
            continue
        if line["reason"] in ("device-absent", "host-unreadable", "no-affinity", "kept"):
            continue
        if expander.node != line["guest_cell"]:
            found.append(f"{device.source} belongs to cell {line['guest_cell']}, its expander to {expander.node}")
        complex_of = host.root_of(device.host_address) if device.host_address in host.functions else None
        expanders[expander.index].add((expander.node, complex_of) if group_by != "node" else (expander.node,))
    for device, line in [(d, lines_by_source[d.source]) for d in passed(after, host)]:
        if (
            not line["placed"]
            and device.at
            and guest.expander(device.at.bus) is not None
            and guest.expander(device.at.bus).index in ours(after)
        ):
            found.append(f"{device.source} is not placed, but sits below our expander {guest.expander(device.at.bus).index}")
    homes = defaultdict(list)
    for index, places in expanders.items():
        if len(places) > 1:
            found.append(f"expander {index} holds several places: {sorted(map(str, places))}")
        for place in places:
            homes[place].append(index)
    if fresh:
        for place, indexes in homes.items():
            roomy = [index for index in indexes if guest.express or len({at.slot for at in guest.used(index)}) < 31]
            if len(indexes) > 1 and len(roomy) > 1:
                found.append(f"{place} has the expanders {indexes}")
        empty = [i for i in ours(after) if i in guest.controllers and guest.controllers[i].expander and i not in expanders]
        found += [f"our expander {index} holds nothing" for index in empty]
    found += _slot_faults(placed)
    if group_by == "switch":
        found += _switch_faults(placed, guest, host, fresh)
    else:
        deep, movable = (2,) if guest.express else (1, 2), [(d, line) for d, line in placed if line["reason"] != "kept"]
        found += [f"{d.source} is behind a switch under {group_by}" for d, _ in movable if d.at and len(guest.path(d.at.bus)) not in deep]
    return found


def _slot_faults(placed: list[tuple[Passed, dict[str, Any]]]) -> list[str]:
    """Nobody shares a guest slot who is not the same host device."""
    shared = defaultdict(set)
    for device, _ in placed:
        if device.at:
            shared[device.at.bus, device.at.slot].add((device.host_address or device.source).rsplit(".", 1)[0])
    return [f"slot {slot} of {bus} is shared by {sorted(names)}" for (bus, slot), names in shared.items() if len(names) > 1]


def _switch_faults(placed: list[tuple[Passed, dict[str, Any]]], guest: Guest, host: Host, fresh: bool) -> list[str]:
    """Any two devices have the host's distance: bridges between them below a common switch, or none in common."""
    found, settled = [], [(d, line) for d, line in placed if line["reason"] is None and d.at]
    for (one, line), (other, other_line) in combinations(settled, 2):
        if one.at.bus == other.at.bus:
            continue
        if line["guest_cell"] != other_line["guest_cell"]:  # an odd host's switch has devices of two nodes; a guest's is below one
            continue
        here = _distance([c.index for c in _switches(guest, one)], [c.index for c in _switches(guest, other)])
        there = _distance(_host_switches(host, one), _host_switches(host, other))
        if there == 0:  # functions of one host device in guest slots of their own: no layout can bring them that near
            continue
        if here != there:
            found.append(f"{one.source} and {other.source} are {there} bridges apart on the host, {here} in the guest")
    for device, _ in settled if fresh else []:
        mine = {c.index for c in _switches(guest, device)}
        partners = {c.index for other, _ in placed if other is not device and other.at for c in _switches(guest, other)}
        if mine and not mine & partners and len([d for d, _ in placed if d.at and d.at.bus == device.at.bus]) < 2:
            found.append(f"{device.source} is alone behind its switch")
    return found


def _switches(guest: Guest, device: Passed) -> list[Controller]:
    return [c for c in guest.path(device.at.bus if device.at else 0) if c.model.startswith("pcie-switch")]


def _host_switches(host: Host, device: Passed) -> list[str]:
    return [port for pair in host.switches_of(device.host_address or "") for port in pair]


def _distance(one: list[Any], other: list[Any]) -> Optional[int]:
    """Ports between two devices below their last common one; None where they share no switch."""
    common = 0
    for left, right in zip(one, other):
        if left != right:
            break
        common += 1
    return len(one) + len(other) - 2 * common if common else None
