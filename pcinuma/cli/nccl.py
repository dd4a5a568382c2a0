# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma topology DOMAIN --nccl``: what :mod:`pcinuma.guest.nccl` needs, read from the host and the domain."""

from __future__ import annotations

from pathlib import Path

from pcinuma.address import PciAddress
from pcinuma.domain.read import read_domain
from pcinuma.domain.xml import Document
from pcinuma.engine import Result
from pcinuma.errors import DomainError, UnusableInput
from pcinuma.guest.addresses import address_in_guest, bus_numbers
from pcinuma.guest.nccl import GuestDevice, HostCpu, HostSwitch, Ids, topology_file
from pcinuma.host.links import best_link
from pcinuma.host.place import DEVICES, HostReader
from pcinuma.host.sysfs import Sysfs
from pcinuma.host.topology import Topology
from pcinuma.model import AttachedAs, Form, MachineKind

# In these forms the guest gets a PCI device of the host, or a part of one; in the others QEMU emulates what the guest sees.
_FORMS = (Form.HOSTDEV_PCI, Form.INTERFACE_HOSTDEV, Form.NETWORK_POOL, Form.MDEV)


def nccl_topology(xml: bytes, pools: frozenset[str], result: Result, topology: Topology, root: Path) -> tuple[str, list[str]]:
    """The file, and remarks about it, a sentence each: which device of the domain is not in it, and why it may be wrong."""
    document = Document(xml)
    domain, _ = read_domain(document, pools)
    if domain.problem is not None:
        raise DomainError(domain.problem)
    buses = bus_numbers(domain)
    reader = HostReader(root)
    hosts = {str(device.address): device for device in topology.devices}
    reports = {report.source: report for report in result.devices}
    devices, remarks = [], []
    if domain.unaddressed and domain.machine is MachineKind.PCIE:
        remarks.append("libvirt has yet to give devices of this XML their addresses; if it adds ports for them, the file is wrong")
    for device in domain.devices:
        if device.form not in _FORMS or device.attached_as is not AttachedAs.PCI:
            continue
        report = reports[device.source]
        host = hosts.get(report.device or "")
        if host is None:
            remarks.append(f"{device.source}: not on the host at the moment, and not in the file")
            continue
        switches = tuple(_switch(reader.sysfs, upstream) for upstream, _ in host.switches)
        link = best_link(reader.sysfs, str(host.address))
        ids = _ids(reader.sysfs, str(host.address))
        address = address_in_guest(buses, device)
        devices.append(GuestDevice(address, host.class_code, ids, link, report.host_node, report.guest_cell, switches))
    cells = {number: frozenset(domain.cells[number]) for number in domain.cells}
    cpu = reader.cpu()
    kind = document.root.find("os/type")
    arch = None if kind is None else kind.get("arch")
    vcpus = _vcpus(document)
    return topology_file(devices, cells, vcpus, arch, HostCpu(cpu.vendor, cpu.family, cpu.model)), remarks


def _switch(sysfs: Sysfs, upstream: str) -> HostSwitch:
    address = PciAddress.parse(upstream)
    assert address is not None, upstream
    return HostSwitch(address, _ids(sysfs, upstream), best_link(sysfs, upstream))


def _ids(sysfs: Sysfs, name: str) -> Ids:
    return Ids(*(sysfs.read_int(f"{DEVICES}/{name}/{file}", 16) for file in ("vendor", "device", "subsystem_vendor", "subsystem_device")))


def _vcpus(document: Document) -> int:
    text = (document.root.findtext("vcpu") or "1").strip()
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise UnusableInput(f"says <vcpu>{text[:40]}</vcpu>", subject="domain XML")
    return int(text)
