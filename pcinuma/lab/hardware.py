# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host in a few lines of Python, and the QEMU command line that is it.

::

    host = HostPlan(nodes=2)
    host.complex(0).port(nic("nic0")).port(switch(gpu("gpu0"), nic("nic1")))
    host.complex(1).port(nvme("disk1"))

Every root complex is an expander bus with an IOMMU in front of it; what a plan calls a GPU is an e1000e to QEMU, which has the one thing
that matters here, memory and interrupts that VFIO can pass on. Names are the plan's; in the running host a device is found again by its
:class:`~pcinuma.lab.guest_tree.PciPath`, which :meth:`HostPlan.places` tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional, Union

from pcinuma.address import PciAddress
from pcinuma.lab.guest_tree import Devfn, PciPath

FIRST_BUS = 0x20
BUSES_EACH = 0x18


@dataclass(frozen=True)
class Device:
    """An endpoint: ``name`` for people, ``model`` for QEMU. ``vfs``: virtual functions that it can make."""

    name: str
    model: str
    vfs: int = 0

    def vf(self, number: int) -> Devfn:
        """Where a virtual function (from 1) is on the device's bus, by First VF Offset and VF Stride of QEMU's SR-IOV capabilities."""
        devfn = 0x80 + 2 * (number - 1) if self.model == "igb" else number
        return Devfn(devfn >> 3, devfn & 7)


@dataclass(frozen=True)
class Functions:
    """Several endpoints in one slot."""

    devices: tuple[Device, ...]


@dataclass(frozen=True)
class Switch:
    """A PCIe switch: what hangs on its downstream ports."""

    below: tuple[Union[Device, Functions, Switch], ...]


Item = Union[Device, Functions, Switch]


def nic(name: str) -> Device:
    return Device(name, "e1000e")


def gpu(name: str) -> Device:
    return Device(name, "e1000e")


def nvme(name: str, vfs: int = 0) -> Device:
    return Device(name, "nvme", vfs)


def igb(name: str, vfs: int) -> Device:
    """A NIC with virtual functions; QEMU has it from 8.0 on."""
    return Device(name, "igb", vfs)


def functions(*devices: Device) -> Functions:
    return Functions(devices)


def switch(*below: Item) -> Switch:
    return Switch(below)


@dataclass
class Complex:
    """A root complex: its node (None: the firmware says none) and what hangs on its root ports."""

    node: Optional[int]
    bus_nr: int
    ports: list[Item] = field(default_factory=list)

    def port(self, item: Item) -> Complex:
        self.ports.append(item)
        return self


@dataclass
class HostPlan:
    """The machine. ``expanders=False``: its devices hang on the main root and have no affinity, though the nodes exist."""

    nodes: int = 2
    memory_mib: int = 3072
    cpus: int = 2
    complexes: list[Complex] = field(default_factory=list)
    expanders: bool = True

    def complex(self, node: int) -> Complex:
        """Another root complex on a node."""
        number = len(self.complexes)
        self.complexes.append(Complex(node if self.expanders else None, FIRST_BUS + BUSES_EACH * number))
        return self.complexes[-1]

    def places(self) -> dict[str, PciPath]:
        """Name -> where the device is in the running host."""
        return {device.name: path for device, path in self._walk()}

    def addresses(self) -> dict[str, PciAddress]:
        """Name -> the device's address in the running host: firmware numbers buses depth first. A VF's name is ``PF/NUMBER``."""
        found: dict[str, PciAddress] = {}
        bus = 0
        for root in self.complexes:
            bus = root.bus_nr if self.expanders else bus
            for item in root.ports:
                bus = _number(item, bus + 1, found)
        return found

    def device_nodes(self) -> dict[str, Optional[int]]:
        """Name -> the node that the firmware says; None for none."""
        by_root = {"0000:%02x" % root.bus_nr: root.node for root in self.complexes}
        return {name: by_root.get(path.root) for name, path in self.places().items()}

    def _walk(self) -> Iterator[tuple[Device, PciPath]]:
        for number, root in enumerate(self.complexes):
            name = "0000:%02x" % root.bus_nr if self.expanders else "0000:00"
            for slot, item in enumerate(root.ports):
                top = Devfn(slot, 0) if self.expanders else Devfn(0x10 + number, slot)
                yield from _below(PciPath(name, (top,)), item)

    def argv(self, disks: Path) -> list[str]:
        """QEMU's arguments for processors, memory, IOMMU and all of PCI. ``disks``: where the drives' images are made."""
        each, cpus = self.memory_mib // self.nodes, max(self.cpus // self.nodes, 1)
        argv = ["-machine", "q35", "-m", str(each * self.nodes)]
        argv += ["-smp", f"{cpus * self.nodes},sockets={self.nodes},cores={cpus},threads=1"]
        for node in range(self.nodes):
            argv += ["-object", f"memory-backend-ram,id=ram{node},size={each}M"]
            argv += ["-numa", f"node,nodeid={node},cpus={node * cpus}-{node * cpus + cpus - 1},memdev=ram{node}"]
        for one in range(self.nodes):
            argv += [item for two in range(self.nodes) if one != two for item in ("-numa", f"dist,src={one},dst={two},val=21")]
        argv += ["-device", "intel-iommu,intremap=on,caching-mode=on"]
        build = _Builder(argv, disks)
        for number, root in enumerate(self.complexes):
            bus = "pcie.0"
            if self.expanders:
                bus = f"rc{number}"
                numa = f",numa_node={root.node}" if root.node is not None else ""
                argv += ["-device", f"pxb-pcie,id={bus},bus_nr={root.bus_nr}{numa},bus=pcie.0,addr={0x10 + number:#x}"]
            for slot, item in enumerate(root.ports):
                where = f"{slot:#x}" if self.expanders else f"{0x10 + number:#x}.{slot:#x}"
                build.port("pcie-root-port", bus, where, item)
        return argv


def _below(path: PciPath, item: Item) -> Iterator[tuple[Device, PciPath]]:
    if isinstance(item, Device):
        yield item, PciPath(path.root, (*path.chain, Devfn(0, 0)))
    elif isinstance(item, Functions):
        for function, device in enumerate(item.devices):
            yield device, PciPath(path.root, (*path.chain, Devfn(0, function)))
    else:
        for slot, below in enumerate(item.below):
            yield from _below(PciPath(path.root, (*path.chain, Devfn(0, 0), Devfn(slot, 0))), below)


def _number(item: Item, bus: int, found: dict[str, PciAddress]) -> int:
    """Note the addresses of what is on ``bus``; returns the last bus that is used up."""
    if isinstance(item, Switch):
        last = bus + 1
        for below in item.below:
            last = _number(below, last + 1, found)
        return last
    for function, device in enumerate(item.devices if isinstance(item, Functions) else (item,)):
        found[device.name] = PciAddress(0, bus, 0, function)
        for vf in range(1, device.vfs + 1):
            found[f"{device.name}/{vf}"] = PciAddress(0, bus, *device.vf(vf))
    return bus


def sector(name: str) -> bytes:
    """What the first sector of a drive begins with, so that a guest can show that it read that very drive."""
    return f"first sector of {name}\n".encode()


class _Builder:
    def __init__(self, argv: list[str], disks: Path) -> None:
        self._argv = argv
        self._disks = disks
        self._chassis = 0
        self._endpoints = 0

    def port(self, model: str, bus: str, where: str, item: Item) -> None:
        self._chassis += 1
        name = f"port{self._chassis}"
        several = ",multifunction=on" if "." in where else ""
        self._argv += ["-device", f"{model},id={name},bus={bus},addr={where},chassis={self._chassis},port={self._chassis}{several}"]
        if isinstance(item, Device):
            self._endpoint(item, name, 0, False)
        elif isinstance(item, Functions):
            for function, device in enumerate(item.devices):
                self._endpoint(device, name, function, True)
        else:
            self._argv += ["-device", f"x3130-upstream,id=up-{name},bus={name},addr=0x0"]
            for slot, below in enumerate(item.below):
                self.port("xio3130-downstream", f"up-{name}", f"{slot:#x}", below)

    def _endpoint(self, device: Device, bus: str, function: int, several: bool) -> None:
        self._endpoints += 1
        number = self._endpoints
        where = f"bus={bus},addr=0x0.{function:#x}" + (",multifunction=on" if several else "")
        if device.model == "nvme":
            image = self._disks / f"{device.name}.img"
            image.write_bytes(sector(device.name).ljust(1 << 20, b"\0"))
            drive = f"driver=file,filename={image},node-name=drive{number}"
            many = f",sriov_max_vfs={device.vfs},sriov_vq_flexible={2 * device.vfs},sriov_vi_flexible={device.vfs}" if device.vfs else ""
            extra = f",subsys=subsys{number},max_ioqpairs={2 * device.vfs + 3},msix_qsize={2 * device.vfs}{many}" if device.vfs else ""
            if device.vfs:
                self._argv += ["-device", f"nvme-subsys,id=subsys{number}"]
            self._argv += ["-blockdev", drive, "-device", f"nvme,serial={device.name},id=ep{number},{where}{extra}"]
            self._argv += ["-device", f"nvme-ns,drive=drive{number},bus=ep{number},nsid=1"]
        else:
            mac = f"52:54:00:1a:{number >> 8:02x}:{number & 255:02x}"
            self._argv += ["-device", f"{device.model},romfile=,mac={mac},{where}"]
