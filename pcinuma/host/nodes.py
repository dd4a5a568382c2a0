# SPDX-License-Identifier: LGPL-2.1-or-later
"""NUMA nodes of the host (``Documentation/ABI/stable/sysfs-devices-node``): CPUs, distances, memory; HostError for what cannot be read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Optional

from pcinuma.errors import HostError
from pcinuma.host.sysfs import Sysfs
from pcinuma.ranges import parse_ranges

NODES = "/sys/devices/system/node"
_MEMORY = re.compile(r"MemTotal:\s*(\d+) kB")


@dataclass(frozen=True)
class Node:
    """One online node: its CPUs, its distances to the online nodes in ascending order, its memory (None where not told)."""

    number: int
    cpus: frozenset[int]
    distances: tuple[int, ...]
    memory_kib: Optional[int]


class Nodes:
    """The nodes below a root, each file read once, when it is first asked for."""

    def __init__(self, sysfs: Sysfs) -> None:
        self._sysfs = sysfs
        self._online: Optional[frozenset[int]] = None
        self._cpus: dict[int, frozenset[int]] = {}

    def online(self) -> frozenset[int]:
        """The numbers of the online nodes; none on a kernel without NUMA."""
        if self._online is None:
            text = self._sysfs.read(NODES + "/online")
            if text is None:
                names = self._sysfs.names(NODES)
                self._online = frozenset(int(name[4:]) for name in names if name.startswith("node") and name[4:].isdecimal())
            else:
                self._online = self._list(NODES + "/online", text)
        return self._online

    def cpus(self, node: int) -> frozenset[int]:
        """The CPUs of an online node; an error if its ``cpulist`` is missing or nonsense."""
        known = self._cpus.get(node)
        if known is None:
            path = f"{NODES}/node{node}/cpulist"
            text = self._sysfs.read(path)
            if text is None:
                raise HostError("is missing", subject=path)
            known = self._cpus[node] = self._list(path, text)
        return known

    def distances(self, node: int) -> tuple[int, ...]:
        """The node's row of the distance table, one entry per online node in ascending order; empty where not told."""
        path = f"{NODES}/node{node}/distance"
        text = self._sysfs.read(path)
        try:
            return tuple(int(word) for word in (text or "").split())
        except ValueError:
            raise HostError(f"holds {(text or '')[:40]!r} where distances belong", subject=path) from None

    def distance(self, node: int, other: int) -> Optional[int]:
        """The distance from ``node`` to ``other`` (10 is local); None where not told."""
        row = self.distances(node)
        order = sorted(self.online())
        if other not in order or len(row) != len(order):
            return None
        return row[order.index(other)]

    def node(self, number: int) -> Node:
        """Everything about an online node."""
        memory = _MEMORY.search(self._sysfs.read(f"{NODES}/node{number}/meminfo") or "")
        return Node(number, self.cpus(number), self.distances(number), int(memory.group(1)) if memory else None)

    @staticmethod
    def _list(path: str, text: str) -> frozenset[int]:
        numbers = parse_ranges(text)
        if numbers is None:
            raise HostError(f"holds {text[:40]!r} where a list of numbers belongs", subject=path)
        return numbers
