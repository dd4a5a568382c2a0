# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a kernel says about PCI and NUMA, as a frozen value: printed by a guest, or read from a host's (or a captured) sysfs.

A device is identified by its :class:`PciPath`: its root bus and then, bridge by bridge, slot and function. Bus numbers below
the root are left out, since the firmware hands them out and they say nothing about where a device sits; a root bus's number is what the
expander's ``busNr`` says (and 0 for the main root), so a path is the same thing in the XML, in QEMU and in the guest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Optional

from pcinuma.address import PciAddress
from pcinuma.lab import LabError
from pcinuma.lab.initramfs import BEGIN, END


class Devfn(NamedTuple):
    """Slot and function on a bus."""

    slot: int
    function: int

    def __str__(self) -> str:
        return "%02x.%d" % self


class PciPath(NamedTuple):
    """Where a device hangs: its root bus (``0000:40``) and the chain of bridges down to it, its own slot and function last."""

    root: str
    chain: tuple[Devfn, ...]

    def __str__(self) -> str:
        return "%s/%s" % (self.root, "/".join(map(str, self.chain)))

    @property
    def bridges(self) -> tuple[PciPath, ...]:
        """The bridges above the device, topmost first."""
        return tuple(PciPath(self.root, self.chain[:depth]) for depth in range(1, len(self.chain)))


@dataclass(frozen=True)
class SeenDevice:
    """A PCI device as a kernel sees it. ``numa_node`` is None where the kernel says -1 or nothing; ``behind``: of a bridge in a guest, the
    number of the bus behind it. ``link``: GT/s and lanes that it can do at most, in the kernel's words; empty where it says nothing."""

    path: PciPath
    address: PciAddress
    pci_class: int
    vendor: int
    device: int
    numa_node: Optional[int]
    local_cpus: frozenset[int]
    behind: Optional[int] = None
    link: tuple[str, str] = ("", "")

    @property
    def is_bridge(self) -> bool:
        return self.pci_class >> 16 == 0x06


@dataclass(frozen=True)
class SeenTree:
    """A kernel's view: its devices in the order of their addresses, and of each online node its CPUs; of a guest's also the memory in KiB
    that the kernel has there, and the distances to all nodes."""

    devices: tuple[SeenDevice, ...]
    nodes: dict[int, frozenset[int]]
    memory_kib: dict[int, int] = field(default_factory=dict)
    distances: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def at(self, path: PciPath) -> Optional[SeenDevice]:
        return next((device for device in self.devices if device.path == path), None)

    def by_address(self, address: PciAddress) -> Optional[SeenDevice]:
        return next((device for device in self.devices if device.address == address), None)

    @property
    def endpoints(self) -> tuple[SeenDevice, ...]:
        return tuple(device for device in self.devices if not device.is_bridge)


_FIELD = re.compile(r"(\w+)=(\S*)")
_ROOT = re.compile(r"/pci([0-9a-f]{4,}:[0-9a-f]{2})/")


def parse(console: str, begin: str = BEGIN, end: str = END) -> SeenTree:
    """The tree between the markers (the last complete one). Raises :class:`LabError` if there is none, or if a line makes no sense."""
    text = between(console, begin, end)
    devices: list[SeenDevice] = []
    nodes: dict[int, frozenset[int]] = {}
    memory: dict[int, int] = {}
    distances: dict[int, tuple[int, ...]] = {}
    for line in text.splitlines():
        kind, _, rest = line.strip().partition(" ")
        fields = dict(_FIELD.findall(rest))
        try:
            if kind == "pci":
                devices.append(_device(fields))
            elif kind == "node":
                node = int(fields["id"])
                nodes[node] = cpus(fields["cpus"])
                memory[node] = int(fields.get("memory") or "0")
                distances[node] = tuple([int(part) for part in fields.get("distance", "").split(",") if part])
        except (KeyError, ValueError, AttributeError, TypeError) as error:
            raise LabError(f"the guest printed a line that makes no sense: {line!r}") from error
    return SeenTree(tuple(sorted(devices, key=lambda device: device.address)), nodes, memory, distances)


def between(console: str, begin: str, end: str) -> str:
    """The text between the last ``end`` and the ``begin`` before it."""
    stop = console.rfind(end)
    start = console.rfind(begin, 0, stop) if stop >= 0 else -1
    if start < 0:
        tail = "\n".join(console.replace("\r", "").splitlines()[-15:])
        raise LabError(f"the guest did not print what it sees; its last lines were:\n{tail}")
    return console[start + len(begin) : stop].replace("\r", "")


def _device(fields: dict[str, str]) -> SeenDevice:
    address = PciAddress.parse(fields["path"].rsplit("/", 1)[1])
    assert address is not None, fields["path"]
    node = fields["numa_node"]
    return SeenDevice(
        path=path_of(fields["path"]),
        address=address,
        pci_class=int(fields["class"] or "0", 16),
        vendor=int(fields["vendor"] or "0", 16),
        device=int(fields["device"] or "0", 16),
        numa_node=int(node) if node and int(node) >= 0 else None,
        local_cpus=cpus(fields["local_cpulist"]),
        behind=int(fields["behind"], 16) if fields.get("behind") else None,
        link=(fields.get("speed", ""), fields.get("width", "")),
    )


def path_of(real_path: str) -> PciPath:
    """The path of ``/sys/devices/pci0000:40/0000:40:00.0/0000:41:00.0`` (below any root directory)."""
    root = _ROOT.search(real_path)
    assert root is not None, real_path
    steps = [PciAddress.parse(step) for step in real_path[root.end() :].split("/")]
    return PciPath(root.group(1), tuple(Devfn(step.slot, step.function) for step in steps if step is not None))


def read_sysfs(root: Path) -> SeenTree:
    """The tree of the kernel whose ``sys/`` is below ``root``. A VF without an affinity of its own has its PF's."""
    devices = []
    for entry in sorted((root / "sys/bus/pci/devices").iterdir()):
        real = entry.resolve()
        fields = {"path": str(real), "numa_node": _line(real / "numa_node"), "local_cpulist": _line(real / "local_cpulist")}
        fields.update({"class": _line(real / "class"), "vendor": _line(real / "vendor"), "device": _line(real / "device")})
        fields.update({"speed": _line(real / "max_link_speed").partition(" ")[0], "width": _line(real / "max_link_width")})
        if _negative(fields["numa_node"]) and (real / "physfn").exists():
            fields["numa_node"] = _line(real / "physfn" / "numa_node")
        devices.append(_device(fields))
    nodes = {}
    for folder in (root / "sys/devices/system/node").glob("node[0-9]*"):
        nodes[int(folder.name[4:])] = cpus(_line(folder / "cpulist"))
    return SeenTree(tuple(sorted(devices, key=lambda device: device.address)), dict(sorted(nodes.items())))


def _line(file: Path) -> str:
    return file.read_text().strip() if file.is_file() else ""


def _negative(node: str) -> bool:
    return not node or int(node) < 0


def cpus(text: str) -> frozenset[int]:
    """A kernel's list of CPUs (``0-3,8``) as a set."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)
