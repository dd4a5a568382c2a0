# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a domain says, as frozen values: machine, cells, pinning, controllers, passthrough devices, firmware, and pcinuma's own metadata.

Addresses here are guest addresses: ``bus`` is the index of a PCI controller (libvirt, ``docs/formatdomain.rst``, "Device addresses").
"""

from __future__ import annotations

import enum
from typing import Mapping, NamedTuple, Optional

from pcinuma.address import PciAddress
from pcinuma.ranges import Ranges
from pcinuma.settings import GroupBy, Policy


class MachineKind(enum.Enum):
    """How a machine type lets the guest see a second PCI root."""

    PCIE = "pcie-expander-bus"  # q35, and aarch64 virt
    PCI = "pci-expander-bus"  # i440fx
    PHB = "pci-root"  # pseries: one more PCI host bridge
    NONE = "none"  # a machine type that cannot
    UNNAMED = "unnamed"  # the domain names no machine


class Form(enum.Enum):
    """In which element a passthrough device hides; the codes are those of the report."""

    HOSTDEV_PCI = "hostdev-pci"
    INTERFACE_HOSTDEV = "interface-hostdev"
    NETWORK_POOL = "network-pool"
    MDEV = "mdev"
    NVME_DISK = "nvme-disk"
    VDPA = "vdpa"
    BLOCK_DISK = "block-disk"  # these two with the setting near-backing only
    DIRECT_INTERFACE = "direct-interface"


BACKED = (Form.BLOCK_DISK, Form.DIRECT_INTERFACE)


class AttachedAs(enum.Enum):
    """Whether the guest gets the device, and as what."""

    PCI = "pci"
    UNASSIGNED = "unassigned"
    NOT_PCI = "not-pci"


class Controller(NamedTuple):
    """A PCI controller, present or to be added.

    ``address`` is None where libvirt has yet to choose it; ``hotplug`` None where the XML does not say. ``target_index``: of pseries PHBs.
    """

    index: int  # type: ignore[assignment]  # the field's own name, and nobody looks things up in this tuple
    model: str
    address: Optional[PciAddress] = None
    bus_nr: Optional[int] = None
    node: Optional[int] = None
    chassis: Optional[int] = None
    hotplug: Optional[bool] = None
    multifunction: bool = False
    target_index: Optional[int] = None


class Passthrough(NamedTuple):
    """A device of the host that the domain names.

    ``host``: its host address, where the XML has one; ``name``: otherwise the mdev's UUID, the vDPA path, the network, or the block device
    or network interface behind an emulated device. ``address``: where the guest has it, None where libvirt has yet to choose;
    ``original``: that address's attributes as they stand. ``problem``: why its values mean nothing.
    """

    source: str
    form: Form
    host: Optional[PciAddress]
    name: Optional[str]
    address: Optional[PciAddress]
    original: tuple[tuple[str, str], ...]
    attached_as: AttachedAs
    problem: Optional[str]


class Original(NamedTuple):
    """A moved device's guest address before pcinuma moved it: the attributes as they stood, none where there was no address."""

    source: str
    attributes: tuple[tuple[str, str], ...]


class Placement(NamedTuple):
    """The metadata element ``<placement>``: what pcinuma did to this domain.

    ``links``: controller index -> the link that its port was made to tell, as written; ``declared``: what of libvirt's QEMU namespace was
    there before, to no purpose (:mod:`pcinuma.domain.links`).
    """

    group_by: GroupBy
    controllers: tuple[int, ...]
    devices: tuple[Original, ...]
    links: tuple[tuple[int, str], ...] = ()
    declared: Optional[str] = None


class Manager(enum.Enum):
    """The software that wrote the domain, by its metadata: it decides on what its users can set."""

    LIBVIRT = "libvirt"
    NOVA = "nova"
    OVIRT = "ovirt"


POLICY_SETTINGS = {Manager.OVIRT: "the VM's custom property pcinuma_policy"}
"""What a manager's users set pcinuma's policy by, where the domain's metadata says whose it is."""


class Cpu(NamedTuple):
    """The guest's CPU, as far as its address bits go. ``vendor``, ``bits``, ``gib_pages``: None for the host's. ``limit``: no more bits.

    ``perhaps_hosts``: libvirt may give it the host's bits all the same.
    """

    vendor: Optional[str]
    bits: Optional[int]
    limit: Optional[int]
    gib_pages: Optional[bool]
    perhaps_hosts: bool


class Firmware(NamedTuple):
    """UEFI firmware, sizes in bytes.

    ``size``: its range where the machine type decides on that; else ``told``, what it was told, and the rest, from which it works it out.
    ``memory``: the guest's, with all that can be plugged in.
    """

    size: Optional[int]
    told: Optional[int]
    memory: int
    cpu: Cpu
    manager: Manager


class GuestCell(NamedTuple):
    """A guest cell of pcinuma's: the host node to which it is bound, its vCPUs (none of a cell with memory alone), and the host CPUs to
    which those are pinned."""

    number: int
    node: int
    vcpus: Ranges
    memory_kib: int
    cpus: Ranges


class MadeCells(NamedTuple):
    """The metadata element ``<cells>``: the cells that pcinuma wrote, the vCPUs that it pinned, and the elements that were not there."""

    cells: tuple[GuestCell, ...]
    pins: tuple[tuple[int, Ranges], ...]
    containers: tuple[str, ...]


class Hypervisor(NamedTuple):
    """What libvirt says of itself: its version and its default emulator's, as major, minor; that emulator's path and architecture."""

    libvirt: tuple[int, int]
    qemu: tuple[int, int]
    emulator: Optional[str]
    arch: Optional[str]


class Domain(NamedTuple):
    """A domain as placement sees it.

    ``without_acpi``: its firmware tells it of one PCI root only (aarch64 without ACPI: the device tree describes no expander bus).
    ``cells``: cell id -> its vCPUs. ``memnodes``: (cell, host nodes); ``memory``: the host nodes of cells without a memnode. ``pins``:
    (cell, host CPUs that a vCPU of it is pinned to). ``others``: where devices are that are neither controllers nor passed through.
    ``multifunction``: those of the devices' addresses that say so. ``unaddressed``: for how many of the others libvirt will have to find an
    address. ``root_iommu``: an IOMMU is for the main root only. ``placement``: with pcinuma's own controllers alone. ``commandline_pci``:
    an argument that hands QEMU a PCI device; ``overridden``: sources of devices whose bus or address ``<qemu:override>`` sets.
    ``firmware``: of UEFI guests. ``problem``: the first value in the XML that means nothing. ``asks_for_cells``,
    ``asks_for_link``: None where the owner says nothing. ``made_cells``: what pcinuma wrote, whatever became of it.
    """

    name: str
    uuid: Optional[str]
    machine: MachineKind
    machine_name: Optional[str]
    without_acpi: bool
    cells: Mapping[int, Ranges]
    memnodes: tuple[tuple[int, Ranges], ...]
    memory: Optional[Ranges]
    pins: tuple[tuple[int, Ranges], ...]
    controllers: Mapping[int, Controller]
    devices: tuple[Passthrough, ...]
    others: tuple[PciAddress, ...]
    multifunction: frozenset[PciAddress]
    unaddressed: int
    policy: Optional[Policy]
    group_by: Optional[GroupBy]
    keep: frozenset[str]
    placement: Optional[Placement]
    commandline_pci: Optional[str]
    overridden: frozenset[str]
    root_iommu: bool
    firmware: Optional[Firmware]
    problem: Optional[str]
    warnings: tuple[str, ...]
    asks_for_cells: Optional[bool] = None
    made_cells: Optional[MadeCells] = None
    asks_for_link: Optional[bool] = None

    def addresses(self) -> list[PciAddress]:
        """Every guest address that something has."""
        controllers = [controller.address for controller in self.controllers.values() if controller.address is not None]
        return [*controllers, *(device.address for device in self.devices if device.address is not None), *self.others]
