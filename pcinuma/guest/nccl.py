# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest's topology as NCCL's XML (``NCCL_TOPO_FILE``; RCCL reads the same).

In: the domain, and for each of its devices the host device, cell and links. Out: the file. It says of each passed-through device, under the
address that the *guest* gives it, what NCCL would read of it on the host: the switches above it, its class and ids, and the link that
the hardware has, where the guest's kernel shows an emulated port's. A ``cpu`` stands for each cell; host nodes that no cell stands for, and
all of them in a guest without cells, follow as a ``cpu`` each, with every vCPU, since distances between devices hold there too.

What NCCL does with it (``src/graph/xml.cc``, ``topo.cc``): it looks its GPUs and NICs up by ``busid``, takes the attributes and the
elements above from the file and the rest from the guest's sysfs; a device that the file lacks is detected as ever, one that is no GPU or
NIC in use is dropped. The host's switches have no address in the guest: they keep their own in a PCI domain from f000 up, which
no guest has. NCCL fails over files that would give it more than 256 elements, so none is written then.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Iterable, NamedTuple, Optional, Sequence

from pcinuma.address import PciAddress
from pcinuma.errors import UnusableInput
from pcinuma.host.links import Link

ARCHITECTURES = {"x86_64": "x86_64", "i686": "x86_64", "aarch64": "arm64", "ppc64": "ppc64", "ppc64le": "ppc64"}
_BRIDGE = 0x060400
_NETWORK, _DISPLAY = 0x02, 0x03
_HOST_DOMAINS = 0xF000
_MOST_ELEMENTS = 256  # NCCL_TOPO_XML_MAX_NODES
_LONGEST_VALUE = 253  # MAX_STR_LEN, less what its parser needs


class Ids(NamedTuple):
    """The numbers by which a device is known; None where the host does not tell."""

    vendor: Optional[int]
    device: Optional[int]
    subsystem_vendor: Optional[int]
    subsystem_device: Optional[int]


class HostSwitch(NamedTuple):
    """A switch of the host by its upstream port, and the link above that."""

    upstream: PciAddress
    ids: Ids
    link: Link


class GuestDevice(NamedTuple):
    """A passed-through device. ``address``: the guest's; ``switches``: the host's above it, topmost first."""

    address: PciAddress
    class_code: Optional[int]
    ids: Ids
    link: Link
    host_node: Optional[int]
    cell: Optional[int]
    switches: tuple[HostSwitch, ...]


class HostCpu(NamedTuple):
    """The host's processor by ``/proc/cpuinfo``; None for what it does not tell."""

    vendor: Optional[str]
    family: Optional[int]
    model: Optional[int]


@dataclass
class _Element:
    tag: str
    attributes: dict[str, Optional[str]]
    children: list[_Element] = field(default_factory=list)

    def lines(self, depth: int = 0) -> Iterable[str]:
        head = "".join(f' {name}="{html.escape(value)}"' for name, value in self.attributes.items() if value is not None)
        if not self.children:
            yield f"{'  ' * depth}<{self.tag}{head}/>"
            return
        yield f"{'  ' * depth}<{self.tag}{head}>"
        for child in self.children:
            yield from child.lines(depth + 1)
        yield f"{'  ' * depth}</{self.tag}>"

    def count(self) -> int:
        return 1 + sum(child.count() for child in self.children)


def topology_file(devices: Sequence[GuestDevice], cells: dict[int, frozenset[int]], vcpus: int, arch: Optional[str], cpu: HostCpu) -> str:
    """The file for a guest with these devices, ``cells`` (cell -> vCPUs) and number of vCPUs. Raises UnusableInput where it cannot be."""
    system = _Element("system", {"version": "1"})
    homes = _homes(devices, cells)
    everything = frozenset(range(vcpus))
    for number, at_home in homes:
        affinity = cpu_mask(cells.get(number, everything), vcpus)
        element = _Element("cpu", {"numaid": str(number), "affinity": affinity, **_processor(arch, cpu)})
        _hang(element, at_home)
        system.children.append(element)
    own = 2 * sum(device.class_code is not None and device.class_code >> 16 in (_NETWORK, _DISPLAY) for device in devices)
    if (needed := system.count() + own) > _MOST_ELEMENTS:
        raise UnusableInput(f"NCCL reads topologies of {_MOST_ELEMENTS} elements at most, and this guest's has {needed}")
    return "\n".join(system.lines()) + "\n"  # without a declaration: NCCL's parser takes elements and comments only


def _homes(devices: Sequence[GuestDevice], cells: dict[int, frozenset[int]]) -> list[tuple[int, list[GuestDevice]]]:
    """The number of each ``cpu`` with its devices: cells first, host nodes without a cell behind, devices without a node at -1."""
    trees: dict[tuple[bool, PciAddress], list[GuestDevice]] = {}
    for device in sorted(devices, key=lambda device: device.address):
        root = (True, device.switches[0].upstream) if device.switches else (False, device.address)  # the host's address, or the guest's
        trees.setdefault(root, []).append(device)
    homes = [(_home(tree), tree) for tree in trees.values()]
    strays = sorted({home.host_node for home, _ in homes if home.cell is None and home.host_node is not None})
    behind = max(cells, default=-1) + 1
    found: dict[int, list[GuestDevice]] = {cell: [] for cell in sorted(cells)}
    found.update({behind + position: [] for position in range(len(strays))})
    for home, tree in homes:
        number = home.cell
        if number is None:
            number = -1 if home.host_node is None else behind + strays.index(home.host_node)
        found.setdefault(number, []).extend(tree)
    return list(found.items())


def _home(tree: Sequence[GuestDevice]) -> GuestDevice:
    """The device that says where all those below one switch are: some may have no node of their own, or be kept somewhere else."""
    with_cell = [device for device in tree if device.cell is not None]
    with_node = [device for device in tree if device.host_node is not None]
    return (with_cell or with_node or list(tree))[0]


def _hang(cpu: _Element, devices: Sequence[GuestDevice]) -> None:
    switches: dict[PciAddress, _Element] = {}
    for device in devices:
        above = cpu
        for switch in device.switches:
            below = switches.get(switch.upstream)
            if below is None:
                address = switch.upstream._replace(domain=_HOST_DOMAINS + switch.upstream.domain % 0x1000)
                below = switches[switch.upstream] = _pci(address, _BRIDGE, switch.ids, switch.link)
                above.children.append(below)
            above = below
        above.children.append(_pci(device.address, device.class_code, device.ids, device.link))


def _pci(address: PciAddress, class_code: Optional[int], ids: Ids, link: Link) -> _Element:
    attributes = {"busid": str(address), "class": None if class_code is None else f"0x{class_code:06x}"}
    attributes.update({name: None if number is None else f"0x{number:04x}" for name, number in ids._asdict().items()})
    attributes["link_speed"] = None if link.speed is None else f"{link.speed:.1f} GT/s PCIe"
    attributes["link_width"] = None if link.width is None else str(link.width)
    return _Element("pci", attributes)


def _processor(arch: Optional[str], cpu: HostCpu) -> dict[str, Optional[str]]:
    """NCCL's words for the processor; of other architectures than x86 it wants no more than the name."""
    name = ARCHITECTURES.get(arch or "x86_64")
    if name != "x86_64" or cpu.vendor is None or cpu.family is None or cpu.model is None:
        return {"arch": name}
    # From family 15 on Linux adds CPUID's extended family to the family, and NCCL puts it in front as a digit.
    family = cpu.family if cpu.family < 15 else 15 + ((cpu.family - 15) << 4)
    return {"arch": name, "vendor": cpu.vendor, "familyid": str(family), "modelid": str(cpu.model)}


def cpu_mask(cpus: frozenset[int], total: int) -> Optional[str]:
    """A set of CPUs as the kernel writes masks, words of 32 bits with the highest first; None where NCCL has no room for it."""
    words = [0] * max(1, -(-max(total, max(cpus, default=0) + 1) // 32))
    for number in cpus:
        words[-1 - number // 32] |= 1 << number % 32
    text = ",".join(f"{word:08x}" for word in words)
    return text if len(text) <= _LONGEST_VALUE else None
