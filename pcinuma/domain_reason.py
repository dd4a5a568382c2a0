# SPDX-License-Identifier: LGPL-2.1-or-later
"""Why a domain with cells has nothing that can be placed: the devices' own reason, and what its owner can write so that it has.

Who writes a libvirt domain writes elements; a user of OpenStack Nova or oVirt sets what those have a name for. Sources: Nova's flavor extra
specs (``hw:numa_nodes``, which makes a memnode for each cell), oVirt's administration guide ("NUMA pinning").
"""

from __future__ import annotations

from typing import Optional, Sequence

from pcinuma.model import Domain, Manager
from pcinuma.printable import command
from pcinuma.reason import Reason
from pcinuma.report import DeviceReport

NO_CELLS_HINT = {
    Manager.NOVA: "a flavor with hw:numa_nodes gives the guest cells, which Nova binds to host nodes",
    Manager.OVIRT: "'NUMA Pinning' in the VM's host settings gives the guest cells that are bound to host nodes",
}
_BY_CELL = (Reason.AMBIGUOUS_CELL, Reason.NO_CELL)
_NO_DEVICE = (Reason.UNASSIGNED, Reason.NOT_PCI)
"""The guest gets no PCI device there, so it is nothing to place."""


def no_cells_hint(domain: Domain, manager: Manager) -> str:
    """What gives a guest cells that has none."""
    if domain.asks_for_cells is False:
        return f"its owner says cells='off', and `{command('policy', domain.name or 'DOMAIN', '--cells', 'default')}` takes that back"
    return NO_CELLS_HINT.get(manager) or f"`{command('cells', domain.name or 'DOMAIN')}` shows those that pcinuma can give it"


def why_nothing(domain: Domain, devices: Sequence[DeviceReport], manager: Manager) -> tuple[Reason, str]:
    """The reason that counts for the whole domain, and a sentence about it: what its owner can change comes first."""
    found: dict[Reason, list[DeviceReport]] = {}
    for device in devices:
        if device.reason is not None and device.reason not in _NO_DEVICE:
            found.setdefault(device.reason, []).append(device)
    if not found:
        return Reason.NOTHING_TO_PLACE, Reason.NOTHING_TO_PLACE.sentence
    reason = min(found, key=_rank)
    about = found[reason]
    named = about[0].source if len(about) == 1 else f"{about[0].source} and {len(about) - 1} more"
    nodes = sorted({device.host_node for device in about if device.host_node is not None})
    where = f", host node{'s' if len(nodes) > 1 else ''} {', '.join(map(str, nodes))}" if nodes else ""
    hint = _hint(domain, nodes[0], manager) if reason in _BY_CELL and nodes else None
    text = f"{reason.sentence} ({named}{where})"
    return reason, text if hint is None else f"{text}; {hint}"


def _rank(reason: Reason) -> int:
    """What its owner can mend by a cell counts most, what the host does not know least; between them, what comes first."""
    return _BY_CELL.index(reason) - len(_BY_CELL) if reason in _BY_CELL else int(reason is Reason.NO_AFFINITY)


def _hint(domain: Domain, node: int, manager: Manager) -> Optional[str]:
    if manager is Manager.NOVA:
        return f"{NO_CELLS_HINT[manager]}, to node {node} where the device's PCI policy asks for that"
    if manager is Manager.OVIRT:
        return f"{NO_CELLS_HINT[manager]}; one pinned to host node {node} stands for it"
    cells = sorted(domain.cells)
    cell = str(cells[0]) if len(cells) == 1 else "N"
    for_cell = f"<numatune><memnode cellid='{cell}' mode='strict' nodeset='{node}'/>"
    return f"{for_cell} makes a cell stand for node {node}; so does <vcpupin> of its vCPUs, and of no other cell's, to CPUs of that node"
