# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trees and tables of the demonstration, from what kernels printed; nothing here knows XML or plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Optional

from pcinuma.lab.compare import Finding, Pairing, distance
from pcinuma.lab.guest_tree import PciPath, SeenDevice, SeenTree
from pcinuma.lab.layout import MAIN_ROOT
from pcinuma.show.screen import PALETTE, Line, Row, Screen, pad, visible

UPSTREAM_PORTS = {(0x104C, 0x8232)}
DOWNSTREAM_PORTS = {(0x104C, 0x8233)}


def is_emulated_switch(device: SeenDevice) -> bool:
    """Whether the device is the upstream port of QEMU's switch."""
    return (device.vendor, device.device) in UPSTREAM_PORTS


def tree(
    title: str,
    seen: SeenTree,
    devices: Mapping[str, Optional[SeenDevice]],
    screen: Screen,
    is_switch: Callable[[SeenDevice], bool] = is_emulated_switch,
) -> list[Line]:
    """The named devices by node, root complex and switch, as one kernel sees them. ``is_switch``: whether a bridge is an upstream port."""
    rows = [Row((screen.paint(title, "bold"),))]
    order = sorted(devices, key=lambda name: _order(devices[name]))
    for name in order:
        device = devices[name]
        if device is None:
            rows.append(Row((screen.paint("not seen", "red"), name), name))
            continue
        labels = [
            _node(device.numa_node, screen),
            "default PCI root" if device.path.root == MAIN_ROOT else f"root complex {device.path.root}",
        ]
        for bridge in device.path.bridges:
            there = seen.at(bridge)
            if there is not None and is_switch(there):
                labels.append(f"switch {there.address}")
        rows.append(Row((*labels, f"{screen.paint(name, *_colour(device.numa_node))}\t{device.address}"), name))
    return screen.tree(rows)


def _order(device: Optional[SeenDevice]) -> tuple[int, PciPath]:
    if device is None:
        return (99, PciPath("", ()))
    return (98 if device.numa_node is None else device.numa_node, device.path)


def _node(node: Optional[int], screen: Screen) -> str:
    return screen.paint("no node (-1)" if node is None else f"node {node}", "bold", *_colour(node))


def _colour(node: Optional[int]) -> tuple[str, ...]:
    return () if node is None else (PALETTE[node % len(PALETTE)],)


def verdict(findings: Sequence[Finding], screen: Screen) -> str:
    """The judge's, in words."""
    if not findings:
        return screen.paint("Every device is in the guest where it is on the host", "green", "bold")
    return "\n".join([screen.paint("The guest does not agree with the host:", "red", "bold"), *map(str, findings)])


def columns(trees: Sequence[Sequence[Line]]) -> list[str]:
    """Trees side by side."""
    widths = [max((visible(line.text) for line in lines), default=0) for lines in trees]
    height = max(len(lines) for lines in trees)
    text = []
    for row in range(height):
        cells = [pad(lines[row].text if row < len(lines) else "", width) for lines, width in zip(trees, widths)]
        text.append("    ".join(cells).rstrip())
    return text


def relation(one: PciPath, other: PciPath) -> str:
    """How two devices are related, in the words of ``nvidia-smi topo``: PIX (one switch), PXB (several), PHB (root complex), SYS."""
    if one.root != other.root:
        return "SYS"
    apart = distance(one, other)
    if apart is None:
        return "PHB"
    return "PIX" if apart <= 2 else "PXB"


def peers(name: str, paths: Mapping[str, Optional[PciPath]]) -> list[str]:
    """The devices that share a switch with ``name``."""
    mine = paths[name]
    if mine is None:
        return []
    return [other for other, path in paths.items() if other != name and path is not None and relation(mine, path) in ("PIX", "PXB")]


def facts(names: Sequence[str], host: Mapping[str, Pairing], before: Mapping[str, Optional[SeenDevice]]) -> list[dict[str, object]]:
    """The table's content, device by device."""
    on_host: dict[str, Optional[PciPath]] = {name: host[name].host.path for name in names}
    without = {name: _path(before[name]) for name in names}
    after = {name: _path(host[name].guest) for name in names}
    rows: list[dict[str, object]] = []
    for name in names:
        seen, plain = host[name].guest, before[name]
        rows.append(
            {
                "name": name,
                "device": str(host[name].host.address),
                "host_node": host[name].host_node,
                "guest_node_before": plain.numa_node if plain else None,
                "guest_node_after": seen.numa_node if seen else None,
                "host_root_complex": host[name].host.path.root,
                "guest_root_complex_before": plain.path.root if plain else None,
                "guest_root_complex_after": seen.path.root if seen else None,
                "host_switch_peers": peers(name, on_host),
                "guest_switch_peers_before": peers(name, without),
                "guest_switch_peers_after": peers(name, after),
            }
        )
    return rows


def _path(device: Optional[SeenDevice]) -> Optional[PciPath]:
    return device.path if device is not None else None


def table(rows: Sequence[Mapping[str, object]], screen: Screen) -> list[str]:
    """The table of :func:`facts`."""

    def text(value: object) -> str:
        if isinstance(value, list):
            return ", ".join(value) or "-"
        return "-1" if value is None else str(value).replace("0000:00", "default")

    header = ("DEVICE", "HOST", "NODE", "WITHOUT", "WITH", "ROOT COMPLEX", "WITHOUT", "WITH", "SAME SWITCH", "WITHOUT", "WITH")
    keys = list(rows[0]) if rows else []
    body = [[str(row["name"]), str(row["device"]), *(text(row[key]) for key in keys[2:])] for row in rows]
    return screen.table(body, header)
