# SPDX-License-Identifier: LGPL-2.1-or-later
"""A domain's XML from a few lines of Python, as a person writes it (``raw``) or as libvirt keeps it (``formatted``)::

    Domain().cells("0-1", "2-3").memnode(0, "0").memnode(1, "1").hostdev("17:00.0").interface("18:00.0").raw()

``formatted`` gives every PCI device the address that libvirt 9.0 gives it (``qemuDomainAssignDevicePCISlots``): network interfaces, the
USB controller, virtio disks, passthrough devices (interfaces first), memballoon, each on a root port of its own; one spare port;
eight ports a slot. A test compares it with the real libvirt.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Optional

CPU_MODELS = {"x86_64": "qemu64", "aarch64": "cortex-a57", "ppc64": "POWER9"}
ARCHITECTURES = {
    "q35": "x86_64",
    "pc-q35-7.2": "x86_64",
    "pc": "x86_64",
    "virt": "aarch64",
    "pseries": "ppc64",
    "s390-ccw-virtio": "s390x",
}
UUID = "0d1e7a3c-52f7-4b0e-9d2b-9a1c3f6a8b11"
EXTRAS = """\
    <graphics type='vnc' port='-1' autoport='yes' passwd='s&amp;cret'><listen type='address' address='127.0.0.1'/></graphics>
    <!-- the owner's comment: leave the tablet -->
    <input type='tablet' bus='usb'/>
"""


@dataclass(frozen=True)
class Device:
    """One device: its XML before the guest address, that address, and the place in libvirt's order of assigning addresses."""

    form: str
    head: str
    tail: str
    address: Optional[str] = None
    multifunction: bool = False
    order: int = 0

    def text(self) -> str:
        return f"    {self.head}\n{self._address()}    {self.tail}\n"

    def _address(self) -> str:
        if self.address is None:
            return ""
        if self.address == "unassigned":
            return "      <address type='unassigned'/>\n"
        return f"      {address_xml(self.address, self.multifunction)}\n"


def address_xml(address: str, multifunction: bool = False) -> str:
    """``<address type='pci'>`` for ``bus:slot.function``."""
    bus, rest = address.split(":")
    slot, function = rest.split(".")
    tail = " multifunction='on'" if multifunction else ""
    return f"<address type='pci' domain='0x0000' bus='0x{bus}' slot='0x{slot}' function='0x{function}'{tail}/>"


def source_address(address: str, kind: str = "") -> str:
    """The host's ``<address>`` of ``[domain:]bus:slot.function``."""
    domain, bus, rest = address.split(":") if address.count(":") == 2 else ("0000", *address.split(":"))
    slot, function = rest.split(".")
    return f"<address{kind} domain='0x{domain}' bus='0x{bus}' slot='0x{slot}' function='0x{function}'/>"


@dataclass
class Domain:
    """A domain; every method returns it, so that calls chain."""

    machine: Optional[str] = "q35"
    name: str = "guest"
    devices: list[Device] = field(default_factory=list)
    controllers: list[str] = field(default_factory=list)
    cell_cpus: list[str] = field(default_factory=list)
    memnodes: list[tuple[int, str]] = field(default_factory=list)
    pins: list[tuple[int, str]] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    extras: bool = False
    foreign_metadata: bool = False
    tail: str = ""
    namespace: str = ""
    arch: Optional[str] = None
    acpi: bool = True
    texts: dict[str, str] = field(default_factory=dict)

    # The guest's NUMA.

    def cells(self, *cpus: str) -> Domain:
        """Cells 0, 1, … with these vCPUs."""
        self.cell_cpus += cpus
        return self

    def memnode(self, cell: int, nodeset: str) -> Domain:
        self.memnodes.append((cell, nodeset))
        return self

    def vcpupin(self, vcpu: int, cpuset: str) -> Domain:
        self.pins.append((vcpu, cpuset))
        return self

    def says(self, **texts: str) -> Domain:
        """Whole elements as they are to stand there, by their names: ``vcpu="<vcpu>4</vcpu>"``."""
        self.texts.update(texts)
        return self

    # Devices.

    def hostdev(self, source: str, address: Optional[str] = None, multifunction: bool = False) -> Domain:
        """``hostdev`` pci; ``address`` is the guest's ``bus:slot.function`` or ``unassigned``."""
        head = f"<hostdev mode='subsystem' type='pci' managed='yes'>\n      <source>\n        {source_address(source)}\n      </source>"
        return self._device(Device("hostdev-pci", head, "</hostdev>", address, multifunction, order=5))

    def interface(self, source: str, address: Optional[str] = None, mac: Optional[str] = None) -> Domain:
        """``interface type='hostdev'``."""
        mac = mac or self._mac()
        source = source_address(source, " type='pci'")
        head = f"<interface type='hostdev' managed='yes'>\n      <mac address='{mac}'/>\n      <source>\n        {source}\n      </source>"
        return self._device(Device("interface-hostdev", head, "</interface>", address, order=4))

    def pool(self, network: str, mac: Optional[str] = None, address: Optional[str] = None) -> Domain:
        """``interface type='network'``; whether that is a hostdev pool only libvirt knows."""
        head = f"<interface type='network'>\n      <mac address='{mac or self._mac()}'/>\n      <source network='{network}'/>"
        return self._device(Device("network-pool", head, "</interface>", address, order=1))

    def nic(self, address: Optional[str] = None) -> Domain:
        """An emulated virtio NIC."""
        head = f"<interface type='user'>\n      <mac address='{self._mac()}'/>\n      <model type='virtio'/>"
        return self._device(Device("emulated", head, "</interface>", address, order=1))

    def disk(self, target: str = "vda", address: Optional[str] = None) -> Domain:
        """An emulated virtio disk."""
        source = f"<source file='/var/tmp/{target}.img'/>"
        head = f"<disk type='file' device='disk'>\n      {source}\n      <target dev='{target}' bus='virtio'/>"
        return self._device(Device("emulated", head, "</disk>", address, order=3))

    def nvme(self, source: str, namespace: int = 1, bus: str = "virtio", target: str = "vdn", address: Optional[str] = None) -> Domain:
        """``disk type='nvme'``."""
        head = (
            f"<disk type='nvme' device='disk'>\n      <driver name='qemu' type='raw'/>\n"
            f"      <source type='pci' managed='yes' namespace='{namespace}'>\n        {source_address(source)}\n      </source>\n"
            f"      <target dev='{target}' bus='{bus}'/>"
        )
        return self._device(Device("nvme-disk", head, "</disk>", address, order=3 if bus == "virtio" else 9))

    def mdev(self, uuid: str, address: Optional[str] = None) -> Domain:
        head = (
            "<hostdev mode='subsystem' type='mdev' managed='no' model='vfio-pci'>\n      <source>\n"
            f"        <address uuid='{uuid}'/>\n      </source>"
        )
        return self._device(Device("mdev", head, "</hostdev>", address, order=5))

    def vdpa(self, number: int, address: Optional[str] = None) -> Domain:
        head = (
            f"<interface type='vdpa'>\n      <mac address='{self._mac()}'/>\n      <source dev='/dev/vhost-vdpa-{number}'/>\n"
            "      <model type='virtio'/>"
        )
        return self._device(Device("vdpa", head, "</interface>", address, order=1))

    def block(self, path: str, target: str = "vdb", bus: str = "virtio", model: str = "", address: Optional[str] = None) -> Domain:
        """``disk type='block'`` on a block device of the host."""
        named = f" model='{model}'" if model else ""
        head = (
            f"<disk type='block' device='disk'{named}>\n      <driver name='qemu' type='raw'/>\n      <source dev='{path}'/>\n"
            f"      <target dev='{target}' bus='{bus}'/>"
        )
        return self._device(Device("block-disk", head, "</disk>", address, order=3 if bus == "virtio" else 9))

    def direct(self, dev: str, model: str = "virtio", mac: Optional[str] = None, address: Optional[str] = None) -> Domain:
        """``interface type='direct'``: a macvtap on an interface of the host."""
        head = (
            f"<interface type='direct'>\n      <mac address='{mac or self._mac()}'/>\n      <source dev='{dev}' mode='bridge'/>\n"
            f"      <model type='{model}'/>"
        )
        return self._device(Device("direct-interface", head, "</interface>", address, order=1))

    def device_text(self, text: str) -> Domain:
        """A device that has no PCI address, as it is to stand there."""
        self.controllers.append(f"    {text}\n")
        return self

    def controller(self, index: int, model: str, target: str = "", address: Optional[str] = None, multifunction: bool = False) -> Domain:
        """A PCI controller that the owner wrote."""
        place = f"      {address_xml(address, multifunction)}\n" if address else ""
        target = f"      {target}\n" if target else ""
        self.controllers.append(f"    <controller type='pci' index='{index}' model='{model}'>\n{target}{place}    </controller>\n")
        return self

    def _device(self, device: Device) -> Domain:
        self.devices.append(device)
        return self

    def _mac(self) -> str:
        return f"52:54:00:00:00:{len(self.devices) + 1:02x}"

    def on(self, machine: Optional[str], arch: Optional[str] = None) -> Domain:
        """Another machine type; None for none. ``arch``: where the machine's name does not tell."""
        self.machine, self.arch = machine, arch
        return self

    def without_acpi(self) -> Domain:
        """On aarch64 such a guest boots by a device tree, and needs no UEFI."""
        self.acpi = False
        return self

    def with_extras(self) -> Domain:
        """With what must survive untouched: a password, a comment, a tablet, somebody else's metadata."""
        self.extras = self.foreign_metadata = True
        return self

    def commandline(self, *arguments: str) -> Domain:
        """``qemu:commandline``."""
        self.namespace = " xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"
        lines = "".join(f"    <qemu:arg value='{argument}'/>\n" for argument in arguments)
        self.tail = f"  <qemu:commandline>\n{lines}  </qemu:commandline>\n"
        return self

    # What the owner asks for.

    def metadata(self, **attributes: str) -> Domain:
        """Attributes of the metadata element: ``policy="required"``, ``group_by="switch"``."""
        self.attributes.update({name.replace("_", "-"): value for name, value in attributes.items()})
        return self

    def keep(self, source: str) -> Domain:
        self.kept.append(source)
        return self

    # The XML.

    def raw(self) -> bytes:
        """As a person writes it."""
        return self._xml("".join(self.controllers) + "".join(device.text() for device in self.devices)).encode()

    def formatted(self) -> bytes:
        """As libvirt keeps it (q35 only): controllers, addresses, balloon."""
        assert not self.controllers and self.machine is not None and "q35" in self.machine
        first = {d.address.split(".")[0] for d in self.devices if d.address and d.address != "unassigned"}
        wanting = sorted((d.order, n) for n, d in enumerate(self.devices) if d.address is None and d.order < 9)
        order = [n for o, n in wanting if o < 2] + [-1] + [n for o, n in wanting if o >= 2] + [-2]
        ports = iter(port for port in range(1, 256) if f"{port:02x}:00" not in first)
        places = {number: f"{next(ports):02x}:00.0" for number in order}
        used = [int(place[:2], 16) for place in places.values()] + [int(bus.split(":")[0], 16) for bus in first]
        count = max(used) + 1
        devices = [replace(d, address=places[n]) if n in places else d for n, d in enumerate(self.devices)]
        text = f"    <controller type='usb' index='0' model='qemu-xhci'>\n      {address_xml(places[-1])}\n    </controller>\n"
        text += "    <controller type='sata' index='0'>\n      " + address_xml("00:1f.2") + "\n    </controller>\n"
        text += "    <controller type='pci' index='0' model='pcie-root'/>\n"
        for port in range(1, count + 1):
            devfn = port + (15 if self.extras else 7)
            place = address_xml(f"00:{devfn >> 3:02x}.{devfn & 7}", multifunction=devfn & 7 == 0)
            text += (
                f"    <controller type='pci' index='{port}' model='pcie-root-port'>\n      <model name='pcie-root-port'/>\n"
                f"      <target chassis='{port}' port='0x{devfn:x}'/>\n      {place}\n    </controller>\n"
            )
        text += "".join(device.text() for device in devices)
        if self.extras:
            model = "<model type='cirrus' vram='16384' heads='1' primary='yes'/>"
            text += f"    <video>\n      {model}\n      {address_xml('00:01.0')}\n    </video>\n"
        text += f"    <memballoon model='virtio'>\n      {address_xml(places[-2])}\n    </memballoon>\n"
        return self._xml(text).encode()

    def _xml(self, devices: str) -> str:
        count = max((int(last) for cpus in self.cell_cpus for last in cpus.replace("-", ",").split(",") if last), default=0) + 1
        machine = f" machine='{self.machine}'" if self.machine else ""
        arch = self.arch or ARCHITECTURES.get(self.machine or "q35", "x86_64")
        text = f"<domain type='qemu'{self.namespace}>\n  <name>{self.name}</name>\n  <uuid>{UUID}</uuid>\n{self._metadata()}"
        memory = f"<memory unit='MiB'>{512 * max(1, len(self.cell_cpus))}</memory>"
        text += self._line("maxMemory") + self._line("memory", memory) + self._line("currentMemory") + self._line("memoryBacking")
        text += self._line("vcpu", f"<vcpu placement='static'>{count}</vcpu>") + self._line("vcpus") + self._line("iothreads")
        pins = "".join(f"    <vcpupin vcpu='{vcpu}' cpuset='{cpuset}'/>\n" for vcpu, cpuset in self.pins)
        text += self._line("cputune", f"<cputune>\n{pins}  </cputune>" if pins else "")
        memnodes = "".join(f"    <memnode cellid='{cell}' mode='strict' nodeset='{nodes}'/>\n" for cell, nodes in self.memnodes)
        text += self._line("numatune", f"<numatune>\n{memnodes}  </numatune>" if memnodes else "")
        firmware = " firmware='efi'" if arch == "aarch64" and self.acpi else ""
        text += f"  <os{firmware}>\n    <type arch='{arch}'{machine}>hvm</type>\n  </os>\n"
        features = {"x86_64": "<acpi/><apic/>", "aarch64": "<acpi/>"}.get(arch, "") if self.acpi else ""
        text += f"  <features>{features}</features>\n" if features else ""
        if self.cell_cpus:
            cells = "".join(
                f"      <cell id='{number}' cpus='{cpus}' memory='524288' unit='KiB'/>\n" if cpus else
                f"      <cell id='{number}' memory='524288' unit='KiB'/>\n"
                for number, cpus in enumerate(self.cell_cpus)
            )  # fmt: skip
            model = CPU_MODELS.get(arch)
            named = f"  <cpu mode='custom' match='exact'>\n    <model fallback='allow'>{model}</model>\n"
            text += named if model else "  <cpu>\n"
            text += f"    <numa>\n{cells}    </numa>\n  </cpu>\n"
        text += self._line("cpu")
        extras = EXTRAS if self.extras else ""
        return f"{text}  <devices>\n{devices}{extras}  </devices>\n{self.tail}</domain>\n"

    def _line(self, name: str, usual: str = "") -> str:
        text = self.texts.get(name, usual)
        return f"  {text}\n" if text else ""

    def _metadata(self) -> str:
        ours = ""
        if self.attributes or self.kept:
            written = "".join(f" {name}='{value}'" for name, value in self.attributes.items())
            keeps = "".join(f"<p:keep device='{source}'/>" for source in self.kept)
            ours = f"    <p:pcinuma xmlns:p='urn:pcinuma:domain:1'{written}>{keeps}</p:pcinuma>\n"
        other = "    <o:owner xmlns:o='urn:example:owner'><o:ticket n='7'>  a  b </o:ticket></o:owner>\n" if self.foreign_metadata else ""
        return f"  <metadata>\n{other}{ours}  </metadata>\n" if ours or other else ""


def two_cells() -> Domain:
    """Cells 0 and 1 with two vCPUs each, their memory on host nodes 0 and 1."""
    return Domain().cells("0-1", "2-3").memnode(0, "0").memnode(1, "1")
