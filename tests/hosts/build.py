# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host from a few lines of Python: nodes, root complexes, ports, switches, devices.

A :class:`Host` is a model first (``host.node_of(address)`` is what the *author* of a test means, the expected value) and a tree
of files second (``host.write(directory)``, the kernel's sysfs as ``sysfs.py`` writes it)::

    host = Host()
    host.node(0, "0-7").node(1, "8-15")
    port = host.rc("pci0000:16", node=0).port("16:02.0")
    left, right = port.switch("17:00.0", ["18:00.0", "18:01.0"])
    left.device("19:00.0", GPU)
    right.device("1a:00.0", NIC).vfs("1a:00.1", "1a:00.2")
    host.write(tmp_path)

What a test wants odd it says: ``node=None`` (no such file), ``node="garbage"`` (that text), ``cpulist=…`` likewise;
:func:`unreadable` turns a file into something that cannot be read even by root.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator, Optional, Union

INHERIT: Any = object()
Odd = Union[int, str, None]

ENDPOINT, ROOT_PORT, UPSTREAM, DOWNSTREAM, TO_PCI = 0, 4, 5, 6, 7
_MIB = 1 << 20


@dataclass(frozen=True)
class Kind:
    """What a device is: class code, ids, driver and BARs as ``(size, "mem32" | "pref64" | "io")``."""

    class_code: int
    vendor: int
    device: int
    driver: str
    bars: tuple[tuple[int, str], ...] = ((_MIB, "mem32"),)


GPU = Kind(0x030200, 0x10DE, 0x20B2, "nvidia", ((16 * _MIB, "mem32"), (1 << 36, "pref64"), (32 * _MIB, "pref64")))
VGA = Kind(0x030000, 0x10DE, 0x1E04, "nouveau", ((16 * _MIB, "mem32"), (256 * _MIB, "pref64"), (32 * _MIB, "pref64"), (128, "io")))
AUDIO = Kind(0x040300, 0x10DE, 0x10F7, "snd_hda_intel", ((16384, "mem32"),))
NIC = Kind(0x020000, 0x15B3, 0x101D, "mlx5_core", ((32 * _MIB, "pref64"),))
E810 = Kind(0x020000, 0x8086, 0x1592, "ice", ((128 * _MIB, "pref64"), (65536, "pref64")))
VF = Kind(0x020000, 0x8086, 0x1889, "iavf", ((131072, "pref64"), (16384, "pref64")))
NVME = Kind(0x010802, 0x144D, 0xA80A, "nvme", ((16384, "pref64"),))
USB = Kind(0x0C0330, 0x8086, 0xA12F, "xhci_hcd", ((65536, "pref64"),))
SATA = Kind(0x010601, 0x8086, 0xA102, "ahci", ((8192, "mem32"), (256, "mem32"), (8, "io"), (4, "io"), (32, "io"), (524288, "mem32")))
BRIDGE = Kind(0x060400, 0x8086, 0x2030, "pcieport", ())
SWITCH = Kind(0x060400, 0x10B5, 0x8796, "pcieport", ())


@dataclass
class Function:
    """One PCI function: an endpoint, or a bridge with others below it. ``node`` and ``cpulist``: see the module's docstring."""

    host: Host
    address: str
    kind: Kind
    parent: Union[RootComplex, Function]
    port_type: int = ENDPOINT
    node: Odd = INHERIT
    cpulist: Odd = INHERIT
    children: list[Function] = field(default_factory=list)
    physfn: Optional[Function] = None
    virtfns: list[Function] = field(default_factory=list)
    total_vfs: int = 0
    mdevs: dict[str, str] = field(default_factory=dict)
    vdpas: list[int] = field(default_factory=list)
    nets: list[str] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)
    nested: list[RootComplex] = field(default_factory=list)
    iommu_group: Optional[int] = None
    driver: Optional[str] = INHERIT
    link: Optional[tuple[str, str]] = ("16.0 GT/s PCIe", "16")
    """``max_link_speed`` and ``max_link_width`` as the kernel writes them; None where it has no such files."""
    now: Optional[tuple[str, str]] = INHERIT
    """``current_link_speed`` and ``current_link_width``; unless said, those of ``link``."""
    acs: Optional[tuple[int, int]] = None
    """The capability and control registers of ACS; None for a function without it."""
    ats: Optional[bool] = None
    """Whether ATS is enabled; None for a function without it."""

    # What hangs below a bridge.

    def device(
        self, address: str, kind: Kind = NVME, *, node: Odd = INHERIT, cpulist: Odd = INHERIT, driver: Optional[str] = INHERIT
    ) -> Function:
        """An endpoint below this bridge."""
        return self._below(address, kind, ENDPOINT, node=node, cpulist=cpulist, driver=driver)

    def switch(self, upstream: str, downstream: list[str]) -> list[Function]:
        """A PCIe switch below this port; returns its downstream ports."""
        up = self._below(upstream, SWITCH, UPSTREAM)
        return [up._below(address, SWITCH, DOWNSTREAM) for address in downstream]

    def pci_bridge(self, address: str) -> Function:
        """A PCIe-to-PCI bridge."""
        return self._below(address, BRIDGE, TO_PCI)

    def _below(self, address: str, kind: Kind, port_type: int, **odd: Any) -> Function:
        function = self.host._add(Function(self.host, self.host._full(address, self.address[:-8]), kind, self, port_type, **odd))
        self.children.append(function)
        return function

    # What an endpoint brings along.

    def vfs(
        self, *addresses: str, node: Odd = INHERIT, cpulist: Odd = INHERIT, kind: Kind = VF, driver: Optional[str] = INHERIT
    ) -> list[Function]:
        """Virtual functions of this physical function; returns them."""
        assert isinstance(self.parent, Function)
        for address in addresses:
            function = self.parent._below(address, kind, ENDPOINT, node=node, cpulist=cpulist, driver=driver)
            function.physfn = self
            self.virtfns.append(function)
        self.total_vfs = max(self.total_vfs, len(self.virtfns))
        return self.virtfns[-len(addresses) :] if addresses else []

    def mdev(self, uuid: str, kind: str = "nvidia-557") -> Function:
        """An active mediated device below this function."""
        self.mdevs[uuid] = kind
        return self

    def vdpa(self, number: int) -> Function:
        """A vDPA device with its ``/dev/vhost-vdpa-NUMBER``."""
        self.vdpas.append(number)
        return self

    def net(self, name: str) -> Function:
        """A network interface of this function."""
        self.nets.append(name)
        return self

    def block(self, name: str) -> Function:
        """An NVMe controller ``nvmeX`` with namespace 1 and one partition."""
        self.blocks.append(name)
        return self

    def vmd(self, name: str) -> RootComplex:
        """A PCI domain of its own behind this function (Intel VMD): ``pci10000:00``."""
        nested = RootComplex(self.host, name, INHERIT, self)
        self.nested.append(nested)
        return nested

    # What the author means.

    @property
    def root(self) -> RootComplex:
        """The outermost root complex."""
        return self.parent.root

    @property
    def path(self) -> str:
        return f"{self.parent.path}/{self.address}"

    def own_node(self) -> Odd:
        return self.parent.own_node() if self.node is INHERIT else self.node

    def chain(self) -> list[Function]:
        """The bridges above this function, outermost first."""
        above = self.parent.chain() if isinstance(self.parent, Function) else []
        return [*above, self.parent] if isinstance(self.parent, Function) else above

    def bridges(self) -> Iterator[Function]:
        yield self
        for child in self.children:
            yield from child.bridges()


@dataclass
class RootComplex:
    """A host bridge ``pciDDDD:BB``; ``node`` is what its devices say unless they say something else."""

    host: Host
    name: str
    node: Odd
    behind: Optional[Function] = None
    functions: list[Function] = field(default_factory=list)
    below: str = ""

    def port(self, address: str, *, node: Odd = INHERIT) -> Function:
        """A root port."""
        return self._below(address, BRIDGE, ROOT_PORT, node)

    def device(self, address: str, kind: Kind = NVME, *, node: Odd = INHERIT, cpulist: Odd = INHERIT) -> Function:
        """A device directly on the root bus (an integrated endpoint)."""
        function = self._below(address, kind, 9, node)
        function.cpulist = cpulist
        return function

    def _below(self, address: str, kind: Kind, port_type: int, node: Odd) -> Function:
        function = self.host._add(Function(self.host, self.host._full(address, self.name[3:-3]), kind, self, port_type, node))
        self.functions.append(function)
        return function

    @property
    def root(self) -> RootComplex:
        return self.behind.root if self.behind else self

    @property
    def path(self) -> str:
        return f"{self.behind.path}/{self.name}" if self.behind else f"devices/{self.below}{self.name}"

    def own_node(self) -> Odd:
        return self.behind.own_node() if self.behind and self.node is INHERIT else self.node

    def chain(self) -> list[Function]:
        return [*self.behind.chain(), self.behind] if self.behind else []


@dataclass
class Node:
    number: int
    cpus: str
    distance: Optional[list[int]]
    memory_kib: int
    hugepages: dict[int, int] = field(default_factory=dict)


class Host:
    """A machine; see the module's docstring."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {}
        self.roots: list[RootComplex] = []
        self.functions: dict[str, Function] = {}
        self.online: Optional[str] = None
        self.offline_cpus: set[int] = set()
        self.hugepage_kib: Optional[int] = None
        self.virtual_blocks: dict[str, list[str]] = {}
        self.virtual_nets: dict[str, list[str]] = {}
        self.subsystems: dict[str, list[str]] = {}
        self.dev_links: dict[str, str] = {}
        self.iommu_type: Optional[str] = "DMA-FQ"

    def node(
        self,
        number: int,
        cpus: str = "",
        distance: Optional[list[int]] = None,
        memory_kib: int = 64 << 20,
        hugepages: Optional[dict[int, int]] = None,
    ) -> Host:
        """A NUMA node with its CPUs ("" for none), its distances to all nodes in order of number (default: 10 and 21), and its hugepages
        (size in KiB -> pages)."""
        self.nodes[number] = Node(number, cpus, distance, memory_kib, hugepages or {})
        return self

    def without_cpus(self, cpus: str) -> Host:
        """CPUs that are offline."""
        self.offline_cpus |= cpu_set(cpus)
        return self

    def rc(self, name: str, node: Odd = -1, below: str = "") -> RootComplex:
        """A root complex such as ``pci0000:16``; ``below``: as ``platform/soc/``, where it is not directly in ``devices``."""
        root = RootComplex(self, name, node, below=below)
        self.roots.append(root)
        return root

    # What is virtual: it has no place of its own.

    def virtual_block(self, name: str, *slaves: str) -> Host:
        """A block device of the kernel's own (``dm-0``, ``md0``, ``loop0``) on others."""
        self.virtual_blocks[name] = list(slaves)
        return self

    def virtual_net(self, name: str, *lower: str) -> Host:
        """A network interface of the kernel's own (bond, VLAN, macvlan, dummy) on others."""
        self.virtual_nets[name] = list(lower)
        return self

    def subsystem(self, disk: str, *controllers: str) -> Host:
        """An NVMe namespace ``disk`` that the kernel reaches over several controllers (native multipath), or over a network."""
        self.subsystems[disk] = list(controllers)
        return self

    def dev_link(self, path: str, target: str) -> Host:
        """A link as udev makes them: ``disk/by-id/nvme-x`` to ``nvme0n1``, both below ``/dev``."""
        self.dev_links[path] = target
        return self

    def behind(self, name: str) -> set[Optional[str]]:
        """The PCI addresses behind a block device or network interface; None among them for what is none."""
        below = self.virtual_blocks.get(name, self.virtual_nets.get(name, self.subsystems.get(name)))
        if below is not None:
            return set().union(*(self.behind(other) for other in below)) if below else {None}
        for function in self.functions.values():
            own = [*function.nets, *(text for block in function.blocks for text in (block, f"{block}n1", f"{block}n1p1"))]
            if name in own:
                return {function.address}
        return {None}

    def remove(self, address: str) -> None:
        """Unplug an endpoint."""
        function = self.functions.pop(self._full(address))
        siblings = function.parent.children if isinstance(function.parent, Function) else function.parent.functions
        siblings.remove(function)
        if function.physfn:
            function.physfn.virtfns.remove(function)

    def _full(self, address: str, domain: str = "0000") -> str:
        return address if address.count(":") == 2 else f"{domain}:{address}"

    def _add(self, function: Function) -> Function:
        assert function.address not in self.functions, f"{function.address} exists already"
        self.functions[function.address] = function
        return function

    # What the author means: the expected values, worked out from the model and never from files.

    def cpus(self) -> set[int]:
        """All CPUs of the machine."""
        return set().union(*(cpu_set(node.cpus) for node in self.nodes.values()))

    def node_of(self, address: str) -> Optional[int]:
        """The host node of a function as it follows from the files; None for no affinity. ValueError where a file holds garbage."""
        function = self.functions[self._full(address)]
        node = self._derived(function)
        return self._derived(function.physfn) if node is None and function.physfn else node

    def _derived(self, function: Function) -> Optional[int]:
        node, cpulist = function.own_node(), function.cpulist
        if node is None:
            return None
        if int(node) >= 0:
            return int(node) if int(node) in self.nodes and (self.online is None or int(node) in cpu_set(self.online)) else None
        if cpulist is INHERIT or cpulist is None:
            return None
        local = cpu_set(str(cpulist))
        if not local or local >= self.cpus():
            return None
        holding = [n.number for n in self.nodes.values() if local <= cpu_set(n.cpus)]
        return holding[0] if len(holding) == 1 else None

    def several_nodes_of(self, address: str) -> list[int]:
        """The nodes to which a function without a node of its own is equally local, where they are more than one and not all."""
        function = self.functions[self._full(address)]
        if self.node_of(address) is not None:
            return []
        own = self._spread(function)
        return own or (self._spread(function.physfn) if function.physfn else [])

    def _spread(self, function: Function) -> list[int]:
        node, cpulist = function.own_node(), function.cpulist
        if node is None or int(node) >= 0 or cpulist is INHERIT or cpulist is None or not cpu_set(str(cpulist)) <= self.cpus():
            return []
        with_cpus = [n for n in self.nodes.values() if n.cpus]
        found = sorted(n.number for n in with_cpus if cpu_set(n.cpus) & cpu_set(str(cpulist)))
        return found if 1 < len(found) < len(with_cpus) else []

    def distance(self, one: int, other: int) -> int:
        """The distance between two nodes."""
        row = self.nodes[one].distance
        return row[sorted(self.nodes).index(other)] if row else 10 if one == other else 21

    def root_of(self, address: str) -> str:
        """The name of the outermost root complex above a function."""
        return self.functions[self._full(address)].root.name

    def switches_of(self, address: str) -> list[tuple[str, str]]:
        """The ``(upstream, downstream)`` ports between root port and function, outermost first."""
        chain = self.functions[self._full(address)].chain()
        pairs = [(up, down) for up, down in zip(chain, chain[1:]) if up.port_type == UPSTREAM and down.port_type == DOWNSTREAM]
        return [(up.address, down.address) for up, down in pairs]

    def write(self, root: Path) -> Path:
        """Write ``root``/sys; returns ``root``."""
        from tests.hosts.sysfs import Writer

        Writer(self, Path(root) / "sys").write()
        return Path(root)


def cpu_set(text: str) -> set[int]:
    """The kernel's list format, for well-formed lists."""
    cpus: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def list_format(numbers: set[int]) -> str:
    """The kernel's list format: ``0-3,8``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def unreadable(file: Path) -> None:
    """Make ``file`` fail to read for everybody, root included (as a dying device's sysfs files fail with EIO)."""
    file.unlink()
    file.mkdir()
