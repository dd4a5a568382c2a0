# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which NUMA cells a guest without any would get: a right-sized mirror of the host nodes that it runs on.

Comes in: what the domain says about vCPUs and memory (:class:`~pcinuma.domain.flat.Flat`), the host nodes of its passthrough devices, what
the host's nodes have. Goes out: a :class:`~pcinuma.plan.Proposal`, or
:class:`~pcinuma.plan.NoProposal` with the element that stands in the way and what to write
instead. Pure. The rules, in this order:

* Nodes. Every vCPU pinned, each within one node: those nodes. Else the nodeset of ``<numatune><memory>``. Else the nodes of the devices
  and of the vCPUs that are pinned, and the nearest others (by the sum of distances, ties to the lower number) until the vCPUs fit the CPUs
  of all, and each cell's memory that of its node. A cell's memory is bound to its node, so where it does not fit nothing is proposed.
* vCPUs. A pinned one is in the cell of its node, and its core with it. The others are dealt out core by core, in their order, so that the
  cells are as even as they can be, larger ones first. A socket is a cell wherever the numbers allow, since cores are in sockets in order.
  A node without CPUs, and one for which no core is left, gets a cell with memory alone.
* Memory. In proportion to the vCPUs where all are pinned, else even, in the units in which QEMU takes it; what is no whole unit is the last
  cell's, where libvirt rounds it up at the start as it does without cells.
"""

from __future__ import annotations

from typing import Iterable, Mapping, Optional, Sequence

from pcinuma.domain.flat import Flat, Pin, whole_units
from pcinuma.host.capacity import Capacity
from pcinuma.model import GuestCell
from pcinuma.plan import NoProposal, Proposal
from pcinuma.ranges import Ranges, format_ranges
from pcinuma.settings import MemoryMode

_LOCAL, _FARTHEST = 10, 254
_LARGEST_BASE_PAGE = 64
_WITHIN = "a cpuset within one node puts a vCPU in a cell"


def propose(flat: Flat, device_nodes: Mapping[str, int], host: Capacity, mode: Optional[MemoryMode] = None) -> Proposal:
    """The cells for the guest ``flat`` with its devices (source -> host node) on ``host``. Raises NoProposal. ``mode``: asked for."""
    return _Planner(flat, device_nodes, host, mode).run()


def elsewhere(proposal: Proposal, device_nodes: Mapping[str, int]) -> str:
    """Why ``proposal`` is of no use: no device is on a node of its cells."""
    cells, devices = _named([cell.node for cell in proposal.cells]), _named(sorted(set(device_nodes.values())))
    elements = "<vcpupin>, <vcpu cpuset> and the nodeset of <numatune><memory>"
    return f"its vCPUs or its memory are on {cells}, and its devices on {devices}; {elements} decide on that"


class _Planner:
    def __init__(self, flat: Flat, device_nodes: Mapping[str, int], host: Capacity, mode: Optional[MemoryMode]) -> None:
        self.flat = flat
        self.device_nodes = device_nodes
        self.host = host
        self.mode = mode
        self.page_kib = self._page_size()
        self.unit_kib = whole_units(flat.unit_kib, self.page_kib or 1)
        self._node_of: dict[Ranges, int] = {}

    def run(self) -> Proposal:
        flat = self.flat
        if flat.obstacle is not None:
            raise NoProposal(flat.obstacle)
        mode = self._memory_mode()
        if not self.device_nodes:
            raise NoProposal("the host knows no NUMA node for any of its passthrough devices")
        if self.page_kib and flat.memory_kib % self.page_kib:
            pages = f"<memory> of {flat.memory_kib} KiB is no whole number of hugepages of {self.page_kib} KiB"
            raise NoProposal(pages, hint=f"{-(-flat.memory_kib // self.page_kib) * self.page_kib} KiB is one")
        pinned = {vcpu: self._node(pin) for vcpu, pin in flat.pins.items()}
        everything = len(pinned) == flat.vcpus
        cores = self._pinned_cores(pinned)
        if everything:
            nodes = sorted(set(pinned.values()))
        elif flat.nodeset is not None:
            nodes = self._nodes_of_nodeset(flat.nodeset, pinned)
        else:
            nodes = self._nodes_of_devices(pinned)
        vcpus = _as_pinned(nodes, pinned) if everything else self._dealt_out(nodes, cores)
        memory = self._memory(nodes, [len(vcpus[node]) for node in nodes] if everything else [1] * len(nodes))
        lacking = self._lacking_memory(nodes, memory)
        if lacking is not None:
            raise NoProposal(lacking, hint="a smaller guest, or other nodes for it, would fit")
        pins = {vcpu: pin.cpus for vcpu, pin in flat.pins.items()}
        new = {vcpu: self.host.nodes[node].cpus for node in nodes for vcpu in vcpus[node] if vcpu not in pins}
        pins.update(new)
        cells = [
            GuestCell(number, node, Ranges.of(vcpus[node]), size, _union(pins[vcpu] for vcpu in vcpus[node]))
            for number, (node, size) in enumerate(zip(nodes, memory))
        ]
        return Proposal(tuple(cells), mode, self._distances(nodes), tuple(sorted(new.items())))

    # What the domain says.

    def _memory_mode(self) -> MemoryMode:
        owners = self.flat.mode
        if owners is MemoryMode.RESTRICTIVE and self.mode not in (None, owners):
            every = "<numatune><memory mode='restrictive'> makes every cell's mode restrictive"
            raise NoProposal(every, hint="mode='strict' there leaves a choice")
        if self.mode is MemoryMode.RESTRICTIVE and owners is not None and owners is not self.mode:
            other = f"<numatune><memory mode='{owners.value}'> lets libvirt take no cell whose mode is restrictive"
            raise NoProposal(other, hint="mode='restrictive' there, or no <memory> there, does")
        return self.mode or owners or MemoryMode.STRICT

    def _page_size(self) -> Optional[int]:
        """Of hugepages; None for none. A size that is the kernel's usual one names no hugepages."""
        size = self.flat.hugepage_kib
        if size is None:
            return None
        sizes = {size for node in self.host.nodes.values() for size in node.hugepages}
        if size:
            return size if size > _LARGEST_BASE_PAGE or size in sizes else None
        if self.host.hugepage_kib is not None:
            return self.host.hugepage_kib
        if len(sizes) == 1:
            return min(sizes)
        raise NoProposal("the host does not tell the size of <hugepages/>", hint="<hugepages><page size='…' unit='KiB'/> names one")

    def _node(self, pin: Pin) -> int:
        known = self._node_of.get(pin.cpus)
        if known is not None:
            return known
        nodes = [node for node, has in sorted(self.host.nodes.items()) if has.cpus.overlaps(pin.cpus)]
        if not nodes:
            raise NoProposal(f"{pin.element} names no CPU that is online on the host", hint=_WITHIN)
        if len(nodes) > 1:
            listed = f"{', '.join(map(str, nodes[:-1]))} and {nodes[-1]}"
            raise NoProposal(f"{pin.element} lies on the host nodes {listed}", hint=_WITHIN)
        self._with_memory(nodes[0], pin.element)
        self._node_of[pin.cpus] = nodes[0]
        return nodes[0]

    def _with_memory(self, node: int, named: str) -> None:
        if not self.host.nodes[node].memory_kib:
            raise NoProposal(f"{named} names host node {node}, which has no memory that a cell could be bound to")

    def _pinned_cores(self, pinned: Mapping[int, int]) -> dict[int, int]:
        """The node of each core with a vCPU that is pinned."""
        cores: dict[int, int] = {}
        for vcpu, node in sorted(pinned.items()):
            core = vcpu // self.flat.threads
            if cores.setdefault(core, node) != node and len(pinned) < self.flat.vcpus:
                element = self.flat.pins[vcpu].element
                raise NoProposal(f"{element} is on another host node than the other threads of its core in <topology>")
        return cores

    # Nodes.

    def _nodes_of_nodeset(self, nodeset: Ranges, pinned: Mapping[int, int]) -> list[int]:
        named = f"<numatune><memory nodeset='{format_ranges(nodeset)}'>"
        nodes = list(nodeset)
        for node in nodes:
            if node not in self.host.nodes:
                raise NoProposal(f"{named} names host node {node}, which is not online")
            self._with_memory(node, named)
        for vcpu, node in sorted(pinned.items()):
            if node not in nodeset:
                raise NoProposal(f"{self.flat.pins[vcpu].element} is on host node {node}, which {named} leaves out")
        if not any(self.host.nodes[node].cpus for node in nodes):
            raise NoProposal(f"{named} names no host node with CPUs")
        return nodes

    def _nodes_of_devices(self, pinned: Mapping[int, int]) -> list[int]:
        here = self.host.nodes
        wanted = {node for node in self.device_nodes.values() if node in here and here[node].memory_kib}
        if not wanted:
            source, node = min(self.device_nodes.items())
            raise NoProposal(f"host node {node} of {source} has no memory that a cell could be bound to")
        nodes = sorted(wanted.union(pinned.values()))
        if self.flat.memory_kib // self.unit_kib < len(nodes):
            self._memory(nodes, [1] * len(nodes))  # says why not
        lacking = first = self._lacking(nodes)
        while lacking is not None:
            nearest = self._nearest(nodes)
            if nearest is None:
                raise NoProposal(first or lacking, hint="no other nodes make up for that, a smaller guest would fit")
            nodes = sorted([*nodes, nearest])
            lacking = self._lacking(nodes)
        return nodes

    def _lacking(self, nodes: Sequence[int]) -> Optional[str]:
        """What these nodes have too little of."""
        cpus = sum([len(self.host.nodes[node].cpus) for node in nodes])
        if cpus < self.flat.vcpus:
            return f"the guest has up to {self.flat.vcpus} vCPUs (<vcpu>), and {_named(nodes)} {_have(nodes)} {cpus} CPUs"
        return self._lacking_memory(nodes, self._memory(nodes, [1] * len(nodes)))

    def _lacking_memory(self, nodes: Sequence[int], memory: Sequence[int]) -> Optional[str]:
        for node, size in zip(nodes, memory):
            there = self._memory_of(node)
            if size > there:
                pages = f" in hugepages of {self.page_kib} KiB" if self.page_kib else ""
                return f"the cell for host node {node} would need {size} KiB of <memory>, and the node has {there} KiB{pages}"
        return None

    def _memory_of(self, node: int) -> int:
        has = self.host.nodes[node]
        return has.hugepages.get(self.page_kib, 0) * self.page_kib if self.page_kib else has.memory_kib

    def _nearest(self, nodes: Sequence[int]) -> Optional[int]:
        """The next node to take in: one with CPUs and memory, and room for a cell in smaller pieces than now."""
        if (len(nodes) + 1) * self.unit_kib > self.flat.memory_kib:
            return None
        others = [n for n, has in self.host.nodes.items() if n not in nodes and has.cpus and has.memory_kib and self._memory_of(n)]
        return min(others, key=lambda other: (sum([self._distance(node, other) for node in nodes]), other), default=None)

    def _distance(self, node: int, other: int) -> int:
        return self.host.distances.get((node, other), _FARTHEST)

    def _distances(self, nodes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """As libvirt takes them: 10 to a node itself, more to others."""
        rows = tuple([tuple([self.host.distances.get((node, other), 0) for other in nodes]) for node in nodes])
        for row, node in zip(rows, nodes):
            for distance, other in zip(row, nodes):
                if not (distance == _LOCAL if node == other else _LOCAL < distance <= _FARTHEST):
                    return ()
        return rows if len(nodes) > 1 else ()

    # What each gets.

    def _dealt_out(self, nodes: Sequence[int], pinned_cores: Mapping[int, int]) -> dict[int, list[int]]:
        """The vCPUs of each node, whole cores, as even as the pinned ones allow."""
        threads, vcpus = self.flat.threads, self.flat.vcpus
        cores: dict[int, list[int]] = {node: [] for node in nodes}
        for core, node in pinned_cores.items():
            cores[node].append(core)
        free = [core for core in range(-(-vcpus // threads)) if core not in pinned_cores]
        takers = [node for node in nodes if self.host.nodes[node].cpus]
        sizes = _levelled([len(cores[node]) for node in takers], len(free))
        at = 0
        for node, size in zip(takers, sizes):
            more = size - len(cores[node])
            cores[node] += free[at : at + more]
            at += more
        return {
            node: [vcpu for core in sorted(own) for vcpu in range(core * threads, min((core + 1) * threads, vcpus))]
            for node, own in cores.items()
        }

    def _memory(self, nodes: Sequence[int], weights: Sequence[int]) -> list[int]:
        units, rest = divmod(self.flat.memory_kib, self.unit_kib)
        if units < len(nodes):
            why = f"<memory> of {self.flat.memory_kib} KiB cannot be divided among {len(nodes)} cells in units of {self.unit_kib} KiB"
            raise NoProposal(why, hint="more memory, or smaller hugepages, can" if self.page_kib else "more memory can")
        sizes = [size * self.unit_kib for size in _shares(units, weights)]
        sizes[-1] += rest
        return sizes


def _as_pinned(nodes: Sequence[int], pinned: Mapping[int, int]) -> dict[int, list[int]]:
    vcpus: dict[int, list[int]] = {node: [] for node in nodes}
    for vcpu, node in sorted(pinned.items()):
        vcpus[node].append(vcpu)
    return vcpus


def _levelled(sizes: list[int], more: int) -> list[int]:
    """``sizes`` after ``more`` were added one by one to the smallest, the first of equal ones."""
    sizes = list(sizes)
    for _ in range(more):
        sizes[sizes.index(min(sizes))] += 1
    return sizes


def _shares(units: int, weights: Sequence[int]) -> list[int]:
    """``units`` in proportion to ``weights``, at least 1 each (there are that many); what does not come out even goes to those who are
    farthest below their part, the first of equal ones."""
    whole = sum(weights)
    shares = [max(1, units * weight // whole) for weight in weights]
    while sum(shares) != units:
        step = 1 if sum(shares) < units else -1
        missing = [step * (units * weight - share * whole) if step > 0 or share > 1 else -1 << 80 for weight, share in zip(weights, shares)]
        shares[missing.index(max(missing))] += step
    return shares


def _union(sets: Iterable[Ranges]) -> Ranges:
    distinct = set(sets)
    return distinct.pop() if len(distinct) == 1 else Ranges.of({cpu for cpus in distinct for cpu in cpus})


def _named(nodes: Sequence[int]) -> str:
    return f"host node {nodes[0]}" if len(nodes) == 1 else f"the host nodes {', '.join(map(str, nodes[:-1]))} and {nodes[-1]}"


def _have(nodes: Sequence[int]) -> str:
    return "has" if len(nodes) == 1 else "have"
