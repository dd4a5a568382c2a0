# SPDX-License-Identifier: LGPL-2.1-or-later
"""The two columns of a picture (:mod:`pcinuma.show.svg`): the host's side and the guest's, with the passed-through devices in both."""

from __future__ import annotations

from pathlib import Path
from typing import Mapping, Optional, Sequence

from pcinuma.address import PciAddress
from pcinuma.errors import UnusableInput
from pcinuma.guest.addresses import address_in_guest, bus_numbers
from pcinuma.host.topology import HostDevice, Topology
from pcinuma.model import Controller, Passthrough
from pcinuma.ranges import format_ranges
from pcinuma.show.describe import Describer, count, size
from pcinuma.show.guest import SWITCH, Guest
from pcinuma.show.svg import Box, Column, Leaf, picture
from pcinuma.show.trees import ADDRESSLESS, Passed, in_order

_HOST_WIDTH, _GUEST_WIDTH = 440, 190


def topology_picture(topology: Topology, guest: Guest, passed: Sequence[Passed], nodes: Mapping[int, int], root: Path) -> str:
    """The picture of a domain beside its host. ``nodes``: guest cell -> host node, for colours."""
    describer = Describer(root)
    marks = {item.source: mark for mark, item in in_order(passed)}
    colours = {item.source: item.device.node if item.device else None for item in passed}
    left = _host(topology, passed, describer, marks)
    right = _guest(guest, marks, colours, nodes)
    text = f"Each passed-through device of the guest {guest.domain.name}, in the host's PCI hierarchy and in the guest's, joined by a line."
    return picture(Column("Host", left, _HOST_WIDTH), Column(f"Guest {guest.domain.name}", right, _GUEST_WIDTH), text)


def _host(topology: Topology, passed: Sequence[Passed], describer: Describer, marks: Mapping[str, str]) -> list[Box]:
    top = Box("")
    by_address = {str(device.address): device for device in topology.devices}
    for mark, item in in_order(passed):
        device = item.device
        if device is None:
            top.box("not on the host at the moment").inside.append(Leaf(item.source, mark, item.source, "", item.source, None))
            continue
        box = top.box(*_node(topology, device.node), device.node)
        box = box.box(f"root complex {device.root_complex[3:] if device.root_complex else 'unknown'}")
        for upstream, _ in device.switches:
            bridge = by_address.get(upstream)
            box = box.box(f"switch {upstream}", "" if bridge is None else describer.short(bridge))
        box.inside.append(_host_leaf(item.source, marks[item.source], device, describer))
    return [box for box in top.inside if isinstance(box, Box)]


def _host_leaf(source: str, mark: str, device: HostDevice, describer: Describer) -> Leaf:
    words = [describer.kind(device), describer.product(device)]
    words += [f"BARs {size(sum(device.bars))}"] if sum(device.bars) >= 1 << 28 else []
    words += [text for text in (device.driver and f"driver {device.driver}", source if source != str(device.address) else "") if text]
    title = f"{device.address}: {', '.join(word for word in words if word)}"
    return Leaf(source, mark, str(device.address), describer.short(device) or describer.kind(device), title, device.node)


def _node(topology: Topology, number: Optional[int]) -> tuple[str, str]:
    node = next((node for node in topology.nodes if node.number == number), None)
    if number is None or node is None:
        return "no node", "the host knows no affinity"
    memory = "" if node.memory_kib is None else f", {size(node.memory_kib * 1024)}"
    return f"node {number}", f"CPUs {format_ranges(node.cpus) or 'none'}{memory}"


def _guest(guest: Guest, marks: Mapping[str, str], colours: Mapping[str, Optional[int]], nodes: Mapping[int, int]) -> list[Box]:
    top = Box("")
    devices = [device for source in marks if (device := guest.device(source)) is not None]
    cells = [None if device.address is None else guest.cell(device.address) for device in devices]
    addresses = _addresses(guest, devices)
    with_cell = [(device, cell) for device, cell in zip(devices, cells) if cell is not None]
    without = sorted((device for device, cell in zip(devices, cells) if cell is None), key=lambda device: device.address is None)

    def draw(device: Passthrough, cell: Optional[int]) -> None:
        box = _guest_box(top, guest, device, cell, nodes)
        name, source = addresses.get(device.source), device.source
        box.inside.append(Leaf(source, marks[source], name or source, "", f"{name or 'no address'}: the host's {source}", colours[source]))

    for device, cell in with_cell:
        draw(device, cell)
    for device in without:
        draw(device, None)
    emulated = guest.emulated_at_root(marks)
    if emulated:
        top.box(*_cell(guest, None)).inside.append(Box("", count(emulated, "emulated device")))
    for number in sorted(set(guest.domain.cells) - set(cells)):
        top.box(*_cell(guest, number), nodes.get(number)).inside.append(Box("", "no such device"))
    return [box for box in top.inside if isinstance(box, Box)]


def _guest_box(top: Box, guest: Guest, device: Passthrough, number: Optional[int], nodes: Mapping[int, int]) -> Box:
    """The innermost box that a device of the guest is in."""
    if device.address is None:
        return top.box(ADDRESSLESS[device.attached_as])
    box = top.box(*_cell(guest, number), None if number is None else nodes.get(number))
    expander = guest.top(device.address)
    for controller in guest.path(device.address):
        if controller is expander:
            box = box.box(_expander(controller))
        elif controller.model == SWITCH:
            box = box.box(f"switch, controller {controller.index}")
    return box


def _cell(guest: Guest, number: Optional[int]) -> tuple[str, str]:
    if number is None:
        return "default root", "no cell"
    cpus = guest.domain.cells.get(number)
    return f"cell {number}", f"vCPUs {format_ranges(cpus)}" if cpus else "no vCPUs"


def _expander(controller: Controller) -> str:
    name = "PCI host bridge" if controller.model == "pci-root" else "expander bus"
    return name + ("" if controller.bus_nr is None else f" {controller.bus_nr:02x}")


def _addresses(guest: Guest, devices: Sequence[Passthrough]) -> dict[str, str]:
    """What ``lspci`` in the guest says of each device, or, where that cannot be computed, the address in the XML."""
    try:
        buses = bus_numbers(guest.domain)
        found: dict[str, PciAddress] = {d.source: address_in_guest(buses, d) for d in devices if d.address is not None}
    except UnusableInput:
        found = {device.source: device.address for device in devices if device.address is not None}
    return {source: str(address) for source, address in found.items()}
