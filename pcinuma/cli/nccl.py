# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma topology DOMAIN --nccl``: what :mod:`pcinuma.guest.nccl` needs, read from the host, the domain, and the running guest.

Where a running guest can be asked, the devices have the addresses that its kernel has for them; else those that are computed. ``--install``
writes the file where NCCL looks for it by itself (``src/graph/topo.cc``), which lasts until the guest's next boot.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Callable, Mapping, Optional

from pcinuma.address import PciAddress
from pcinuma.cli.guest_agent import ask, readable, require_agent
from pcinuma.cli.sources import DomainSource
from pcinuma.domain.read import read_domain
from pcinuma.domain.xml import Document
from pcinuma.engine import Result
from pcinuma.errors import DomainError, PcinumaError, UnusableInput
from pcinuma.guest.addresses import address_in_guest, bus_numbers
from pcinuma.guest.agent import ABSENT, WRITING, AgentError, AgentState, GuestAgent, Refused
from pcinuma.guest.nccl import GuestDevice, HostCpu, HostSwitch, Ids, topology_file
from pcinuma.guest.seen import KernelView, Seen
from pcinuma.host.links import best_link
from pcinuma.host.place import DEVICES, HostReader
from pcinuma.host.sysfs import Sysfs
from pcinuma.host.topology import Topology
from pcinuma.model import AttachedAs, Domain, Form, MachineKind, Passthrough

FOLDER = "/var/run/nvidia-topologyd"
FILE = f"{FOLDER}/virtualTopology.xml"
"""Where NCCL looks for a topology file that nobody told it of."""

Asked = Mapping[str, Optional[Seen]]
Where = Callable[[Passthrough], Optional[PciAddress]]

_BY_HAND = "without --install the file is printed, to be put into the guest by hand (docs/applications.md)"
# In these forms the guest gets a PCI device of the host, or a part of one; in the others QEMU emulates what the guest sees.
_FORMS = (Form.HOSTDEV_PCI, Form.INTERFACE_HOSTDEV, Form.NETWORK_POOL, Form.MDEV)


def nccl_topology(
    xml: bytes, pools: frozenset[str], result: Result, topology: Topology, root: Path, asked: Optional[Asked] = None
) -> tuple[str, list[str]]:
    """The file, and remarks about it, a sentence each: which device of the domain is not in it, and why it may be wrong.

    ``asked``: where the running guest's kernel has each device, by its ``source``; None where it is to be computed.
    """
    document = Document(xml)
    domain, _ = read_domain(document, pools)
    if domain.problem is not None:
        raise DomainError(domain.problem)
    where, remarks = (_computed(domain), []) if asked is None else _told(domain, asked)
    reader = HostReader(root)
    hosts = {str(device.address): device for device in topology.devices}
    reports = {report.source: report for report in result.devices}
    devices = []
    if asked is None and domain.unaddressed and domain.machine is MachineKind.PCIE:
        remarks.append("libvirt has yet to give devices of this XML their addresses; if it adds ports for them, the file is wrong")
    for device in domain.devices:
        if not _in_file(device):
            continue
        report = reports[device.source]
        host = hosts.get(report.device or "")
        if host is None:
            remarks.append(f"{device.source}: not on the host at the moment, and not in the file")
            continue
        address = where(device)
        if address is None:
            remarks.append(f"{device.source}: the guest's kernel does not have it, and it is not in the file")
            continue
        switches = tuple(_switch(reader.sysfs, upstream) for upstream, _ in host.switches)
        link = best_link(reader.sysfs, str(host.address))
        ids = _ids(reader.sysfs, str(host.address))
        devices.append(GuestDevice(address, host.class_code, ids, link, report.host_node, report.guest_cell, switches))
    cells = {number: frozenset(domain.cells[number]) for number in domain.cells}
    cpu = reader.cpu()
    kind = document.root.find("os/type")
    arch = None if kind is None else kind.get("arch")
    vcpus = _vcpus(document)
    return topology_file(devices, cells, vcpus, arch, HostCpu(cpu.vendor, cpu.family, cpu.model)), remarks


def ask_places(source: DomainSource, seconds: float) -> Asked:
    """Where the running guest's kernel has each device. Raises AgentError where it cannot be asked."""
    document = Document(source.xml)
    domain, _ = read_domain(document, frozenset(source.pools))
    require_agent(source.xml, domain)
    return ask(source.name, partial(_places, domain), seconds)


def install(source: DomainSource, text: str, seconds: float) -> list[str]:
    """Write the file into the running guest, and say what was done, a sentence each."""
    try:
        return ask(source.name, partial(_install, text.encode()), seconds)
    except AgentError as error:
        raise PcinumaError(str(error), subject=source.name, hint=_BY_HAND) from error


def asked_for_install(source: DomainSource, seconds: float) -> Asked:
    """The same as :func:`ask_places`, for somebody who will not do without."""
    try:
        return ask_places(source, seconds)
    except AgentError as error:
        raise PcinumaError(str(error), subject=source.name, hint=_BY_HAND) from error


def _places(domain: Domain, agent: GuestAgent) -> Asked:
    readable(agent)
    view = KernelView(domain, agent.read)
    return {device.source: view.present(device) for device in domain.devices if _in_file(device)}


def _install(data: bytes, agent: GuestAgent) -> list[str]:
    agent.require(WRITING)
    done = []
    before = agent.read(FILE, len(data) + 1)
    try:
        try:
            agent.write(FILE, data)
        except Refused as refusal:
            if ABSENT not in str(refusal):
                raise
            _make_folder(agent)
            done.append(f"made {FOLDER}")
            agent.write(FILE, data)
    except Refused as refusal:
        raise AgentError(AgentState.READ_ONLY, str(refusal)) from None
    if agent.read(FILE, len(data) + 1) != data:
        raise AgentError(AgentState.NONSENSE, f"{FILE} holds something else than was written there")
    instead = "" if before in (None, data) else ", in place of another"
    return [*done, f"wrote {FILE}, {len(data)} bytes{instead}"]


def _make_folder(agent: GuestAgent) -> None:
    try:
        agent.make_folder(FOLDER)
    except (AgentError, Refused) as error:
        if isinstance(error, AgentError) and error.state is not AgentState.FORBIDDEN:
            raise
        text = f"the guest has no {FOLDER}, and its agent does not make it: {error}"
        raise AgentError(AgentState.READ_ONLY, text) from None


def _in_file(device: Passthrough) -> bool:
    return device.form in _FORMS and device.attached_as is AttachedAs.PCI


def _computed(domain: Domain) -> Where:
    """Where firmware puts the devices. What libvirt or the guest has yet to decide raises UnusableInput."""
    buses = bus_numbers(domain)
    return lambda device: address_in_guest(buses, device)


def _told(domain: Domain, asked: Asked) -> tuple[Where, list[str]]:
    """Where the guest's kernel has the devices, and a remark for each of which something else would be computed."""
    told = {source: None if seen is None or seen.missing is not None else seen.address for source, seen in asked.items()}
    remarks = []
    try:
        computed = _computed(domain)
        for device in domain.devices:
            address = told.get(device.source)
            if address is not None and address != computed(device):
                remarks.append(f"{device.source}: the guest's kernel has it at {address}, where {computed(device)} was computed")
    except UnusableInput:
        pass  # so the guest has decided it
    return lambda device: told.get(device.source), remarks


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
