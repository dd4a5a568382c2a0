# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host's tree and the guest's tree as rows to draw, and the two side by side.

Host: node, root complex, switch, device. Guest: cell, expander bus, switch, device. Root ports and downstream ports carry one device
each and would only double the lines, so they are left out (``--all`` shows the host's). A device has the same letter and colour on both
sides, and stands on the same line wherever the order of the two trees allows it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Mapping, Optional, Sequence

from pcinuma.host.topology import HostDevice, Topology
from pcinuma.model import AttachedAs, Controller, Passthrough
from pcinuma.printable import printable
from pcinuma.ranges import format_ranges
from pcinuma.show.describe import Describer, count, is_chipset, is_endpoint, size
from pcinuma.show.guest import SWITCH, Guest
from pcinuma.show.screen import PALETTE, Row, Screen

ADDRESSLESS = {
    AttachedAs.PCI: "no guest address yet",
    AttachedAs.UNASSIGNED: "not given to the guest",
    AttachedAs.NOT_PCI: "no PCI device in the guest",
}


@dataclass(frozen=True)
class Passed:
    """A passthrough device to draw: its ``source`` (as in the report) and the host device behind it, None if that is not there."""

    source: str
    device: Optional[HostDevice]


def host_tree(topology: Topology, screen: Screen, describer: Describer, *, everything: bool = False) -> list[str]:
    """The whole host; without ``everything`` only what could be passed through: VFs folded into their PF's line, the functions of the
    chipset into one line for each root complex."""
    by_address = {str(device.address): device for device in topology.devices}
    endpoints = [device for device in topology.devices if is_endpoint(device) and device.physfn not in by_address]
    chipset = [] if everything else [device for device in endpoints if is_chipset(device)]
    shown = topology.devices if everything else [device for device in endpoints if not is_chipset(device)]
    rows = [Row((_node_label(topology, node.number, screen),)) for node in topology.nodes]
    drawn = []
    for device in shown:
        above = (
            tuple(_device_label(by_address[bridge], screen, describer) for bridge in device.path if bridge in by_address)
            if everything
            else _switch_labels(device)
        )
        drawn.append((device, False, (*above, _device_label(device, screen, describer))))
    drawn += [(functions[0], True, (_chipset_label(functions, screen, describer),)) for functions in _by_root_complex(chipset)]
    for device, _, labels in sorted(drawn, key=lambda item: (_order(item[0])[:4], item[1], _order(item[0]))):
        rows.append(Row((*_root_labels(topology, device, screen), *labels)))
    lines = [line.text for line in screen.tree(rows)]
    bridges = 0 if everything else sum(not is_endpoint(device) for device in topology.devices)
    if bridges or chipset:
        hidden = f"{count(bridges, 'bridge')} not shown; " if bridges else ""
        lines += ["", screen.paint(f"{hidden}--all shows every function of the host", "dim")]
    return lines


def _by_root_complex(devices: Sequence[HostDevice]) -> list[list[HostDevice]]:
    """The devices that stand in one place of the tree together."""
    found: dict[tuple[object, ...], list[HostDevice]] = {}
    for device in devices:
        found.setdefault(_order(device)[:4], []).append(device)
    return list(found.values())


def _chipset_label(functions: Sequence[HostDevice], screen: Screen, describer: Describer) -> str:
    kinds = Counter(describer.kind(device) for device in functions)
    text = ", ".join(kind if number == 1 else f"{number} {kind}" for kind, number in sorted(kinds.items()))
    return screen.paint(f"{count(len(functions), 'function')} of the chipset: {text}", "dim")


def side_by_side(
    topology: Topology, guest: Guest, passed: Sequence[Passed], nodes: Mapping[int, int], screen: Screen, describer: Describer
) -> list[str]:
    """The host tree beside the guest tree, with only the passthrough devices in both. ``nodes``: guest cell -> host node, for colours."""
    marks = tags(passed, screen)
    left = [Row((screen.paint("HOST", "bold"),))]
    for item in sorted(passed, key=lambda item: _order(item.device)):
        if item.device is None:
            left.append(Row(("not on the host at the moment", f"{marks[item.source]} {printable(item.source)}"), item.source))
            continue
        name = str(item.device.address)
        more = "" if item.source == name else screen.paint(f"  {printable(_short(item.source, name))}", "dim")
        label = f"{marks[item.source]} {name}\t{describer.short(item.device) or describer.kind(item.device)}{more}"
        above = (*_root_labels(topology, item.device, screen), *_switch_labels(item.device))
        left.append(Row((*above, label), item.source))
    right = [Row((screen.paint(f"GUEST {printable(guest.domain.name)}", "bold"),)), *guest_rows(guest, marks, screen, nodes)]
    return screen.beside(screen.tree(left), screen.tree(right))


def guest_rows(guest: Guest, marks: Mapping[str, str], screen: Screen, nodes: Mapping[int, int]) -> list[Row]:
    """The guest's cells with the tagged devices below them, and below the default root what has no cell. Ordered like ``marks``;
    ``nodes``: guest cell -> host node, for colours."""
    devices = [device for source in marks if (device := guest.device(source)) is not None]
    cells = [None if device.address is None else guest.cell(device.address) for device in devices]
    rows = [_guest_row(guest, device, marks, screen, nodes) for device, cell in zip(devices, cells) if cell is not None]
    rows += [Row((_cell_label(guest, number, screen, nodes),)) for number in sorted(guest.domain.cells) if number not in cells]
    rows += [_guest_row(guest, device, marks, screen, nodes) for device, cell in zip(devices, cells) if cell is None]
    emulated = guest.emulated_at_root(marks)
    if emulated:
        rows.append(Row((_cell_label(guest, None, screen, nodes), screen.paint(count(emulated, "emulated device"), "dim"))))
    return rows


def _guest_row(guest: Guest, device: Passthrough, marks: Mapping[str, str], screen: Screen, nodes: Mapping[int, int]) -> Row:
    if device.address is None:
        head = screen.paint(ADDRESSLESS[device.attached_as], "bold")
        return Row((head, f"{marks[device.source]} {printable(device.source)}"), device.source)
    labels = [_cell_label(guest, guest.cell(device.address), screen, nodes)]
    top = guest.top(device.address)
    for controller in guest.path(device.address):
        if controller is top:
            labels.append(_top_label(guest, controller, screen))
        elif controller.model == SWITCH:
            labels.append(f"switch  {screen.paint(_whose(guest, controller), 'dim')}")
    return Row((*labels, f"{marks[device.source]} {device.address}"), device.source)


def device_state(guest: Guest, source: str, placed: bool, screen: Screen) -> str:
    """In a word or two, whether and where the guest has the device: what is not placed may still sit on somebody's own expander bus."""
    device = guest.device(source)
    if placed:
        return screen.paint("placed", "green")
    if device is not None and device.attached_as is not AttachedAs.PCI:
        return screen.paint(ADDRESSLESS[device.attached_as], "dim")
    top = None if device is None or device.address is None else guest.top(device.address)
    if top is None:
        return screen.paint("default root", "yellow")
    return screen.paint(f"controller {top.index}" if guest.is_ours(top) else "its owner's expander", "yellow")


def _cell_label(guest: Guest, number: Optional[int], screen: Screen, nodes: Mapping[int, int]) -> str:
    if number is None:
        return screen.paint("default root", "bold") + "  no cell"
    cpus = guest.domain.cells.get(number)
    colours = (node_colour(nodes[number]), "bold") if number in nodes else ("bold",)
    return screen.paint(f"cell {number}", *colours) + (f"  vCPUs {format_ranges(cpus)}" if cpus else "")


def _top_label(guest: Guest, controller: Controller, screen: Screen) -> str:
    name = "PCI host bridge" if controller.model == "pci-root" else "expander bus"
    number = "" if controller.bus_nr is None else f" {controller.bus_nr:02x}"
    return f"{name}{number}  {screen.paint(_whose(guest, controller), 'dim')}"


def _whose(guest: Guest, controller: Controller) -> str:
    return f"controller {controller.index}" + ("" if guest.is_ours(controller) else ", not made by pcinuma")


def _node_label(topology: Topology, number: Optional[int], screen: Screen) -> str:
    node = next((node for node in topology.nodes if node.number == number), None)
    if number is None or node is None:
        return screen.paint("no node", "bold") + "  the host knows no affinity"
    label = screen.paint(f"node {number}", node_colour(number), "bold") + f"  CPUs {format_ranges(node.cpus) or 'none'}"
    if node.memory_kib is not None:
        label += f"  {size(node.memory_kib * 1024)}"
    return label + (f"  distances {' '.join(map(str, node.distances))}" if len(topology.nodes) > 1 and node.distances else "")


def _root_labels(topology: Topology, device: HostDevice, screen: Screen) -> tuple[str, str]:
    name = printable(device.root_complex[3:]) if device.root_complex else "unknown"
    return _node_label(topology, device.node, screen), f"root complex {name}"


def _switch_labels(device: HostDevice) -> tuple[str, ...]:
    return tuple(f"switch {printable(upstream)}" for upstream, _ in device.switches)


def _device_label(device: HostDevice, screen: Screen, describer: Describer) -> str:
    words = [describer.kind(device), describer.product(device)]
    if device.virtfns:
        words.append(count(len(device.virtfns), "VF"))
    if sum(device.bars) >= 1 << 28:
        words.append(f"BARs {size(sum(device.bars))}")
    if device.driver and is_endpoint(device):
        words.append(printable(device.driver))
    if device.iommu_group is not None and is_endpoint(device):
        words.append(f"group {printable(device.iommu_group)}")
    if device.node_from == "local_cpulist":
        words.append("node told by local_cpulist")
    label = f"{device.address}\t" + f" {screen.mark('dot')} ".join(word for word in words if word)
    return label if device.problem is None else f"{label} {screen.paint(printable(device.problem), 'red')}"


def tags(passed: Sequence[Passed], screen: Screen) -> dict[str, str]:
    """Source -> the device's letter in the colour of its host node, in the order of the host's tree."""
    return {
        item.source: screen.paint(letter, node_colour(item.device.node if item.device else None), "bold")
        for letter, item in in_order(passed)
    }


def in_order(passed: Sequence[Passed]) -> list[tuple[str, Passed]]:
    """The devices in the order of the host's tree, each with its letter (a … z, aa, ab, …)."""
    ordered = sorted(passed, key=lambda item: _order(item.device))
    return [(_letter(number), item) for number, item in enumerate(ordered)]


def letters(marks: Mapping[str, str], sources: Sequence[str]) -> str:
    """The devices' letters in a row, in the order of the drawing; three and more neighbours as ``a to c``."""
    runs: list[list[str]] = [[]]
    for source, mark in marks.items():
        if source in sources:
            runs[-1].append(mark)
        elif runs[-1]:
            runs.append([])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(run) for run in runs if run)


def _letter(number: int) -> str:
    text, rest = "", number + 1
    while rest:
        rest, digit = divmod(rest - 1, 26)
        text = chr(ord("a") + digit) + text
    return text


def node_colour(node: Optional[int]) -> str:
    """The colour of a node and of everything that sits on it."""
    return "dim" if node is None else PALETTE[node % len(PALETTE)]


def _short(source: str, address: str) -> str:
    """What of a ``source`` is news beside the host address."""
    return source[len(address) :].replace("#", "namespace ") if source.startswith(address) else source


def _order(device: Optional[HostDevice]) -> tuple[bool, bool, int, str, object]:
    """By node, root complex and address; what has no node after what has, what is absent last."""
    if device is None:
        return (True, True, 0, "", ())
    return (False, device.node is None, device.node or 0, device.root_complex or "", tuple(device.address))
