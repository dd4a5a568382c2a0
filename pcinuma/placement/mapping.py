# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which guest cell stands for a host node.

Rule (VEP 115 and DESIGN of this project): the only cell whose memory libvirt binds to the node, by ``<memnode>``, or by the nodeset of
``<numatune><memory>``, which holds for every cell without a memnode; where no cell or several are, the only cell with a vCPU that is pinned
to the node's CPUs, by ``<vcpupin>``, or by ``<vcpu cpuset>``, which holds for every vCPU without a vcpupin; where that leaves none or
several, no cell. Ambiguity excludes. Source: libvirt's ``virDomainNumatuneGetNodeset`` and ``qemuProcessInitCpuAffinity``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, NamedTuple, Optional

from pcinuma.model import Domain
from pcinuma.ranges import Ranges
from pcinuma.reason import Reason
from pcinuma.settings import Unaligned


class Mapped(NamedTuple):
    """The cell for a host node, or why there is none (``reason``); ``NEAREST`` is a reason with a cell."""

    cell: Optional[int]
    reason: Optional[Reason]


@dataclass(frozen=True)
class NodeFacts:
    """The little of the host that mapping may ask for. Each function raises HostError where the host cannot tell.

    ``cpus``: the CPUs of a node. ``distance``: from one node to another, None if unknown. ``online``: all node numbers.
    """

    cpus: Callable[[int], frozenset[int]]
    distance: Callable[[int, int], Optional[int]]
    online: Callable[[], frozenset[int]]


def map_node(domain: Domain, node: int, host: NodeFacts, unaligned: Unaligned) -> Mapped:
    """The guest cell for ``node``; with ``Unaligned.NEAREST`` the cell of the closest node that has one, ties to the lower number."""
    mapped = _exact(domain, node, host)
    if mapped.reason is not Reason.NO_CELL or unaligned is not Unaligned.NEAREST:
        return mapped
    ranked = sorted(
        (distance, other)
        for other in host.online()
        if other != node and (distance := host.distance(node, other)) is not None
    )
    for _, other in ranked:
        cell = _exact(domain, other, host).cell
        if cell is not None:
            return Mapped(cell, Reason.NEAREST)
    return mapped


def map_nodes(domain: Domain, nodes: tuple[int, ...], host: NodeFacts, unaligned: Unaligned) -> Mapped:
    """The guest cell for a device that is equally local to several nodes: none, since that would be a guess.

    With ``Unaligned.NEAREST`` the cell of the lowest of ``nodes`` that has one, else that of the node closest to any of them.
    """
    if unaligned is Unaligned.NEAREST:
        others = [(host.distance(node, other), other) for other in host.online() if other not in nodes for node in nodes]
        for node in [*sorted(nodes), *(other for _, other in sorted((d, other) for d, other in others if d is not None))]:
            cell = _exact(domain, node, host).cell
            if cell is not None:
                return Mapped(cell, Reason.NEAREST)
    return Mapped(None, Reason.SEVERAL_NODES)


def cells_by_memory(domain: Domain, node: int) -> set[int]:
    """The cells whose memory libvirt binds to ``node``, perhaps among others."""
    cells = {cell for cell, nodes in domain.memnodes if node in nodes}
    if domain.memory is not None and node in domain.memory:
        cells |= domain.cells.keys() - {cell for cell, _ in domain.memnodes}
    return cells


def _exact(domain: Domain, node: int, host: NodeFacts) -> Mapped:
    by_memory = cells_by_memory(domain, node)
    if len(by_memory) == 1:
        return Mapped(by_memory.pop(), None)
    by_pin: set[int] = set()
    if domain.pins:
        cpus = Ranges.of(host.cpus(node))
        by_pin = {cell for cell, pinned in domain.pins if pinned.overlaps(cpus)}
    if len(by_pin) == 1:
        return Mapped(by_pin.pop(), None)
    return Mapped(None, Reason.AMBIGUOUS_CELL if by_memory or by_pin else Reason.NO_CELL)
