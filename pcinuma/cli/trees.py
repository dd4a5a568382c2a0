"""The host's tree and the guest's tree as rows to draw, and the two side by side.

Host: node, root complex, switch, device. Guest: cell, expander bus, switch, device. Root ports and downstream ports carry one device
each and would only double the lines, so they are left out (``--all`` shows the host's). A device has the same letter and colour on both
sides, and stands on the same line wherever the order of the two trees allows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Optional, Sequence

from pcinuma.cli.describe import Describer, count, is_chipset, size
from pcinuma.cli.guest import SWITCH, Guest
from pcinuma.cli.screen import PALETTE, Row, Screen
from pcinuma.domain.model import Controller, Given, Passthrough
from pcinuma.host.topology import HostDevice, Topology
from pcinuma.ranges import format_ranges

_ADDRESSLESS = {
    Given.PCI: "no guest address yet",
    Given.UNASSIGNED: "not given to the guest",
    Given.NOT_PCI: "no PCI device in the guest",
}


@dataclass(frozen=True)
class Passed:
    """A passthrough device to draw: its ``source`` (as in the report) and the host device behind it, None if that is not there."""

    source: str
    device: Optional[HostDevice]


def host_tree(topology: Topology, screen: Screen, describer: Describer, *, everything: bool = False) -> list[str]:
    """The whole host; without ``everything`` only what could be passed through, VFs folded into their PF's line."""
    known = {str(device.address) for device in topology.devices}
    shown = [
        device
        for device in topology.devices
        if everything or not (device.is_bridge or is_chipset(device) or (device.physfn in known))
    ]
    by_address = {str(device.address): device for device in topology.devices}
    rows = [Row((_node_label(topology, node.number, screen),)) for node in topology.nodes]
    for device in _in_order(shown):
        above = (
            tuple(_device_label(by_address[bridge], screen, describer) for bridge in device.path if bridge in by_address)
            if everything
            else _switch_labels(device, screen)
        )
        rows.append(Row((*_root_labels(topology, device, screen), *above, _device_label(device, screen, describer))))
    lines = [line.text for line in screen.tree(rows)]
    hidden = sum(device not in shown and device.physfn is None for device in topology.devices)
    if hidden:
        lines += ["", screen.paint(f"{count(hidden, 'bridge or chipset device')} not shown; --all shows them", "dim")]
    return lines


def side_by_side(
    topology: Topology, guest: Guest, passed: Sequence[Passed], nodes: Mapping[int, int], screen: Screen, describer: Describer
) -> list[str]:
    """The host tree beside the guest tree, with only the passthrough devices in both. ``nodes``: guest cell -> host node, for colours."""
    marks = tags(passed, screen)
    left = [Row((screen.paint("HOST", "bold"),))]
    for item in sorted(passed, key=lambda item: _order(item.device)):
        if item.device is None:
            left.append(Row(("not on the host at the moment", f"{marks[item.source]} {item.source}"), item.source))
            continue
        name = str(item.device.address)
        more = "" if item.source == name else screen.paint(f"  {_short(item.source, name)}", "dim")
        label = f"{marks[item.source]} {name}\t{describer.kind(item.device)}{more}"
        above = (*_root_labels(topology, item.device, screen), *_switch_labels(item.device, screen))
        left.append(Row((*above, label), item.source))
    right = [Row((screen.paint(f"GUEST {guest.domain.name}", "bold"),)), *guest_rows(guest, marks, screen, nodes)]
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
        return Row((screen.paint(_ADDRESSLESS[device.given], "bold"), f"{marks[device.source]} {device.source}"), device.source)
    labels = [_cell_label(guest, guest.cell(device.address), screen, nodes)]
    top = guest.top(device.address)
    for controller in guest.path(device.address):
        if controller is top:
            labels.append(_top_label(guest, controller, screen))
        elif controller.model == SWITCH:
            labels.append(f"switch  {screen.paint(_whose(guest, controller), 'dim')}")
    return Row((*labels, f"{marks[device.source]} {device.address}"), device.source)


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
    name = device.root_complex[3:] if device.root_complex else "unknown"
    return _node_label(topology, device.node, screen), f"root complex {name}"


def _switch_labels(device: HostDevice, screen: Screen) -> tuple[str, ...]:
    return tuple(f"switch {upstream}" for upstream, _ in device.switches)


def _device_label(device: HostDevice, screen: Screen, describer: Describer) -> str:
    words = [describer.kind(device), describer.product(device)]
    if device.virtfns:
        words.append(count(len(device.virtfns), "VF"))
    if sum(device.bars) >= 1 << 28:
        words.append(f"BARs {size(sum(device.bars))}")
    if device.driver and not device.is_bridge:
        words.append(device.driver)
    if device.iommu_group is not None and not device.is_bridge:
        words.append(f"group {device.iommu_group}")
    if device.node_from == "local_cpulist":
        words.append("node told by local_cpulist")
    label = f"{device.address}\t" + f" {screen.mark('dot')} ".join(word for word in words if word)
    return label if device.problem is None else f"{label} {screen.paint(device.problem, 'red')}"


def tags(passed: Sequence[Passed], screen: Screen) -> dict[str, str]:
    """Source -> the device's letter (a … z, aa, ab, …) in the colour of its host node, in the order of the host's tree."""
    ordered = sorted(passed, key=lambda item: _order(item.device))
    return {
        item.source: screen.paint(_letter(number), node_colour(item.device.node if item.device else None), "bold")
        for number, item in enumerate(ordered)
    }


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


def _in_order(devices: Sequence[HostDevice]) -> list[HostDevice]:
    return sorted(devices, key=_order)


def _order(device: Optional[HostDevice]) -> tuple[bool, bool, int, str, object]:
    """By node, root complex and address; what has no node after what has, what is absent last."""
    if device is None:
        return (True, True, 0, "", ())
    return (False, device.node is None, device.node or 0, device.root_complex or "", tuple(device.address))
