# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the host's nodes have to give to guests: CPUs, memory, hugepages, and how far they are from each other.

Read live and only where guest cells are asked for. A node's CPUs are those of its ``cpulist`` that are online, whatever cgroup this process
is in: a service's cpuset says nothing about QEMU's, and isolated CPUs are kept free for guests. A node without ``MemTotal`` above 0 (a GPU
that a guest has, a CXL slot) has nothing to bind memory to. Source: ``Documentation/ABI/stable/sysfs-devices-node`` and
``Documentation/admin-guide/mm/hugetlbpage.rst`` in Linux.

A file that a kernel may lack is "none of that"; one that cannot be read or holds nonsense is a :class:`~pcinuma.errors.HostError`.
"""

from __future__ import annotations

import re
from typing import Mapping, NamedTuple, Optional

from pcinuma.errors import HostError
from pcinuma.host.nodes import NODES, Nodes
from pcinuma.host.sysfs import Sysfs
from pcinuma.ranges import Ranges, parse_ranges

_ONLINE_CPUS = "/sys/devices/system/cpu/online"
_HUGEPAGES = re.compile(r"hugepages-([1-9][0-9]{0,8})kB\Z")
_MEMORY = re.compile(r"MemTotal:\s*(\d+) kB")
_DEFAULT_SIZE = re.compile(r"^Hugepagesize:\s*(\d+) kB$", re.MULTILINE)
_MEMINFO_BYTES = 16384


class NodeCapacity(NamedTuple):
    """``cpus``: the online ones. ``memory_kib``: 0 of a node without memory. ``hugepages``: page size in KiB -> pages, used ones too."""

    cpus: Ranges
    memory_kib: int
    hugepages: Mapping[int, int]


class Capacity(NamedTuple):
    """``nodes``: the online ones. ``distances``: from node to node, as far as told. ``hugepage_kib``: the size that the kernel takes where
    none is named, None where not told."""

    nodes: Mapping[int, NodeCapacity]
    distances: Mapping[tuple[int, int], int]
    hugepage_kib: Optional[int]


def read_capacity(sysfs: Sysfs, nodes: Nodes, hugepages: bool) -> Capacity:
    """Read every online node; hugepages only if ``hugepages`` asks for them. Raises HostError."""
    numbers = sorted(nodes.online())
    online = _online_cpus(sysfs)
    found, distances = {}, {}
    for node in numbers:
        cpus = nodes.cpus(node)
        own = Ranges.of(cpus if online is None else cpus & online)
        found[node] = NodeCapacity(own, _memory_kib(sysfs, node), _hugepages(sysfs, node) if hugepages else {})
        row = nodes.distances(node)
        if len(row) == len(numbers):
            distances.update({(node, other): distance for other, distance in zip(numbers, row)})
    return Capacity(found, distances, default_hugepage_kib(sysfs) if hugepages else None)


def _online_cpus(sysfs: Sysfs) -> Optional[frozenset[int]]:
    text = sysfs.read(_ONLINE_CPUS)
    if not text:
        return None
    online = parse_ranges(text)
    if online is None:
        raise HostError(f"holds {text[:40]!r} where a list of CPUs belongs", subject=_ONLINE_CPUS)
    return online


def _memory_kib(sysfs: Sysfs, node: int) -> int:
    path = f"{NODES}/node{node}/meminfo"
    text = sysfs.read(path)
    told = _MEMORY.search(text or "")
    if told is None:
        raise HostError("is missing" if text is None else "tells no MemTotal", subject=path)
    return int(told.group(1))


def _hugepages(sysfs: Sysfs, node: int) -> dict[int, int]:
    folder = f"{NODES}/node{node}/hugepages"
    sizes = [(int(size.group(1)), name) for name in sysfs.names(folder) if (size := _HUGEPAGES.match(name)) is not None]
    return {size: sysfs.read_int(f"{folder}/{name}/nr_hugepages") or 0 for size, name in sorted(sizes)}


def default_hugepage_kib(sysfs: Sysfs) -> Optional[int]:
    """The size of hugepages that the kernel takes where none is named, None where not told."""
    text = sysfs.read_bytes("/proc/meminfo", _MEMINFO_BYTES).decode("ascii", "replace")
    told = _DEFAULT_SIZE.search(text)
    return int(told.group(1)) if told is not None else None
