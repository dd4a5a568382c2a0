# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tier 1: a placed domain as a QEMU command line, with emulated endpoints standing where the hostdevs are.

The controllers become the QEMU devices that libvirt makes of them (``src/qemu/qemu_command.c``), with the same bus numbers, slots,
functions, chassis and hot-plug switches; each passthrough device becomes an endpoint that QEMU emulates, of the kind that the host device
is; every other device with a PCI address becomes a virtio-serial controller, so that its slot is as taken as it would be. Memory and
vCPUs are cut down to what a kernel needs to print a tree: one vCPU for a cell that has any.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

from pcinuma.address import PciAddress
from pcinuma.lab import LabError
from pcinuma.lab.layout import EXPANDERS, ROOTS, Controller, Device, Layout
from pcinuma.lab.machine import GUEST_TCG

_BUILT_IN = {"q35": {PciAddress(0, 0, 0x1F, function) for function in (0, 2, 3)}, "pc": {PciAddress(0, 0, 1, n) for n in (0, 1, 3)}}
_OPTIONS = {
    "q35": ["-machine", "q35", "-cpu", "max"],
    "pc": ["-machine", "pc", "-cpu", "max"],
    "virt": ["-machine", "virt,gic-version=2", "-cpu", "cortex-a57"],
    # VOF starts the kernel at once, where SLOF takes 20 s. TCG has none of these four capabilities.
    "pseries": ["-machine", "pseries,x-vof=on,cap-cfpc=broken,cap-sbbc=broken,cap-ibs=broken,cap-ccf-assist=off", "-cpu", "POWER9"],
}
_OTHER = "virtio-serial-pci"


class Endpoint(enum.Enum):
    """What stands in for a host device: QEMU's device, and the vendor and device id that a guest reads.

    QEMU's time to map a BAR grows with the number of BARs: TINY has one small one, and stands in where a guest has a hundred devices.
    """

    vendor: int
    device: int

    NIC = "e1000e", 0x8086, 0x10D3
    NVME = "nvme", 0x1B36, 0x0010
    GPU = "ivshmem-plain", 0x1AF4, 0x1110
    OTHER = "virtio-net-pci", 0x1AF4, 0x1041
    DISK = "virtio-blk-pci", 0x1AF4, 0x1042
    TINY = "pvpanic-pci", 0x1B36, 0x0011

    def __new__(cls, model: str, vendor: int, device: int) -> Endpoint:
        member = object.__new__(cls)
        member._value_ = model
        member.vendor = vendor
        member.device = device
        return member

    @classmethod
    def of_class(cls, pci_class: int) -> Endpoint:
        """The endpoint for a host device of this class (24 bits, as in sysfs)."""
        return {0x0108: cls.NVME, 0x02: cls.NIC, 0x03: cls.GPU}.get(
            pci_class >> 8 if pci_class >> 16 == 0x01 else pci_class >> 16, cls.OTHER
        )


def kinds_of(layout: Layout, root: Path) -> dict[str, Endpoint]:
    """What stands for each passthrough device, by the class that the host below ``root`` says it has."""
    kinds = {}
    for device in layout.passthrough:
        assert device.source is not None
        if device.name == "disk" and device.host is None:
            kinds[device.source] = Endpoint.DISK
            continue
        file = root / "sys/bus/pci/devices" / str(device.host) / "class"
        kinds[device.source] = Endpoint.of_class(int(file.read_text(), 16)) if device.host and file.is_file() else Endpoint.OTHER
    return kinds


def hardware(
    layout: Layout, kinds: Mapping[str, Endpoint], *, gpu_bar_mib: int = 16, numa: Optional[Sequence[str]] = None
) -> list[str]:
    """QEMU's arguments for the machine, its cells, controllers and devices. ``gpu_bar_mib``: the size of a GPU's big BAR. ``numa``: those
    for processors, memory and cells; by default the least that a guest with those cells can do with."""
    machine = _machine(layout.machine)
    argv = ["-accel", GUEST_TCG, *_OPTIONS[machine]]
    argv += _cells(layout.cells, 256 if machine == "pseries" else 1) if numa is None else numa
    for controller in _parents_first(layout):
        argv += ["-device", _bridge(controller, machine)]
    for number, device in enumerate(layout.devices):
        if device.address in _BUILT_IN.get(machine, ()):
            continue
        kind = kinds[device.source] if device.source is not None else None
        argv += _endpoint(device, kind, number, machine, gpu_bar_mib)
    return argv


def aperture_mib(layout: Layout, kinds: Mapping[str, Endpoint], gpu_bar_mib: int) -> int:
    """The 64-bit window that OVMF must be told to make: twice the big BARs, rounded up to a power of two (0: its default will do)."""
    need = 2 * gpu_bar_mib * sum(1 for device in layout.passthrough if kinds[device.source or ""] is Endpoint.GPU)
    return 0 if need <= 16384 else 1 << (need - 1).bit_length()


def _machine(name: str) -> str:
    if "q35" in name:
        return "q35"
    if name == "pc" or "i440fx" in name:
        return "pc"
    family = name.split("-")[0]
    if family in ("virt", "pseries"):
        return family
    raise LabError("the lab boots guests of the machines q35, pc, virt and pseries only", subject=name)


def _cells(cells: Mapping[int, int], granule: int) -> list[str]:
    if not cells:
        return ["-smp", "1", "-m", "512"]
    each = -(-max(512 // len(cells), 128) // granule) * granule
    manned = [cell for cell in sorted(cells) if cells[cell]] or [min(cells)]
    argv = ["-smp", str(len(manned)), "-m", str(each * len(cells))]
    for cell in sorted(cells):
        cpus = f",cpus={manned.index(cell)}" if cell in manned else ""
        argv += ["-object", f"memory-backend-ram,id=ram{cell},size={each}M", "-numa", f"node,nodeid={cell}{cpus},memdev=ram{cell}"]
    return argv


def _parents_first(layout: Layout) -> Sequence[Controller]:
    ordered: list[Controller] = []
    waiting = [controller for index, controller in sorted(layout.controllers.items()) if index or controller.model not in ROOTS]
    known = {0}
    while waiting:
        ready = [item for item in waiting if item.model in ROOTS or (item.address is not None and item.address.bus in known)]
        if not ready:
            raise LabError("these PCI controllers hang on none", subject=", ".join(str(item.index) for item in waiting))
        ordered += ready
        known.update(item.index for item in ready)
        waiting = [item for item in waiting if item not in ready]
    return ordered


def _where(address: PciAddress, multifunction: bool, machine: str) -> str:
    bus = ("pcie.0" if machine in ("q35", "virt") else "pci.0") if address.bus == 0 else f"pci.{address.bus}"
    if machine == "pseries" and address.bus:
        bus += ".0"
    return f"bus={bus},addr={address.slot:#x}.{address.function:#x}" + (",multifunction=on" if multifunction else "")


def _bridge(controller: Controller, machine: str) -> str:
    if controller.model in ROOTS:
        node = f",numa_node={controller.cell}" if controller.cell is not None else ""
        return f"spapr-pci-host-bridge,index={controller.phb},id=pci.{controller.index}{node}"
    assert controller.address is not None
    where = f"id=pci.{controller.index}," + _where(controller.address, controller.multifunction, machine)
    chassis = controller.chassis if controller.chassis is not None else controller.index
    port = controller.port if controller.port is not None else controller.address.slot * 8 + controller.address.function
    hotplug = "" if controller.hotplug else ",hotplug=off"
    if controller.model in EXPANDERS:
        kind = "pxb-pcie" if controller.model == "pcie-expander-bus" else "pxb"
        node = f",numa_node={controller.cell}" if controller.cell is not None else ""
        return f"{kind},bus_nr={controller.bus_nr}{node},{where}"
    if controller.model == "pcie-root-port":
        more = "".join(f",{name}={value}" for name, value in controller.properties)
        return f"pcie-root-port,port={port},chassis={chassis}{hotplug}{more},{where}"
    if controller.model == "pcie-switch-upstream-port":
        return f"x3130-upstream,{where}"
    if controller.model == "pcie-switch-downstream-port":
        return f"xio3130-downstream,port={port},chassis={chassis}{hotplug},{where}"
    if controller.model == "pcie-to-pci-bridge":
        return f"pcie-pci-bridge,{where}"
    if controller.model == "dmi-to-pci-bridge":
        return f"i82801b11-bridge,{where}"
    if controller.model == "pci-bridge":
        return f"pci-bridge,chassis_nr={chassis},{where}"
    raise LabError("the lab cannot emulate this PCI controller", subject=controller.model)


def _endpoint(device: Device, kind: Optional[Endpoint], number: int, machine: str, gpu_bar_mib: int) -> list[str]:
    where = _where(device.address, device.multifunction, machine)
    if kind is None:
        return ["-device", f"{_OTHER},{where}"]
    if kind is Endpoint.NVME:
        drive = f"driver=null-co,node-name=drive{number},size=1048576,read-zeroes=on"
        return ["-blockdev", drive, "-device", f"nvme,serial=lab{number},drive=drive{number},{where}"]
    if kind is Endpoint.DISK:
        drive = f"driver=null-co,node-name=drive{number},size=1048576,read-zeroes=on"
        return ["-blockdev", drive, "-device", f"virtio-blk-pci,drive=drive{number},{where}"]
    if kind is Endpoint.GPU:
        # QEMU can leave memory unreserved from 6.1 on; only large BARs need that.
        memory = f"memory-backend-ram,id=bar{number},size={gpu_bar_mib}M,share=on" + (",reserve=off" if gpu_bar_mib > 256 else "")
        return ["-object", memory, "-device", f"ivshmem-plain,memdev=bar{number},{where}"]
    if kind is Endpoint.TINY:
        return ["-device", f"pvpanic-pci,{where}"]
    modern = ",disable-legacy=on" if kind is Endpoint.OTHER else ""
    return ["-device", f"{kind.value},romfile=,mac=52:54:00:00:{number >> 8:02x}:{number & 255:02x}{modern},{where}"]
