# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a guest's kernel says of its passed-through devices, from its sysfs; and what of that cannot be right.

In: the domain, and a function that reads a file of the guest's sysfs (through the agent, or of a tree on disk). From the root buses, whose
numbers the domain has, it goes down bridge by bridge to each device, along the domain's addresses and the secondary bus numbers in the
bridges' configuration space: where the guest's kernel has a device does not depend on how firmware was thought to number buses. Out: a
value for each device; None for one of which libvirt has yet to choose the address.

A file with something else than the kernel writes there raises :class:`AgentError` (``nonsense``).
"""

from __future__ import annotations

import re
from typing import Callable, NamedTuple, Optional, Sequence

from pcinuma.address import PciAddress
from pcinuma.guest.addresses import Bus, root_bus
from pcinuma.guest.agent import AgentError, AgentState
from pcinuma.host.links import Link, both_ends
from pcinuma.host.pci_config import link_capability, secondary_bus
from pcinuma.model import Controller, Domain, Passthrough

DEVICES = "/sys/bus/pci/devices"
LINUX = "/sys/devices/system/cpu/online"
"""A file that each kernel with a sysfs has: whether there is one at all."""

_CONFIG = 256
_IDS = re.compile(r"([0-9A-F]{4,8}):([0-9A-F]{4,8})\Z")
_DRIVER = re.compile(r"[\x21-\x7e]{1,64}\Z")
_IO, _MEMORY = 0x100, 0x200  # the kernel's include/linux/ioport.h
_BARS = 6
_TOP = 1 << 64

Read = Callable[[str, int], Optional[bytes]]


class Region(NamedTuple):
    """A BAR by its line in the ``resource`` file; ``start`` is 0 where the kernel found no address for it."""

    start: int
    size: int
    memory: bool


class Seen(NamedTuple):
    """A device as the guest's kernel has it.

    ``bridges``: above it, topmost first. ``missing``: which of all these the kernel does not have; what is behind that is None. ``node``:
    None for -1. ``link``: the most that the device and the port above it say they can do. ``regions``: its BARs by number.
    """

    address: Optional[PciAddress]
    bridges: tuple[PciAddress, ...]
    missing: Optional[PciAddress] = None
    vendor: Optional[int] = None
    device: Optional[int] = None
    driver: Optional[str] = None
    node: Optional[int] = None
    link: Link = Link()
    regions: tuple[tuple[int, Region], ...] = ()


class KernelView:
    """The PCI tree of a running guest, read as far as it is asked for; bridges are read once."""

    def __init__(self, domain: Domain, read: Read) -> None:
        self._domain = domain
        self._read = read
        self._behind: dict[int, _Way] = {}

    def place(self, device: Passthrough) -> Optional[Seen]:
        """Where the guest's kernel has a device, if it has its bridges; nothing is read of the device itself."""
        if device.address is None:
            return None
        way = self._to(device.address.bus, frozenset())
        address = None if way.missing is not None else way.function(device.address)
        return Seen(address, way.bridges, way.missing, link=way.link)

    def present(self, device: Passthrough) -> Optional[Seen]:
        """The same, if it has the device itself as well."""
        place = self.place(device)
        if place is None or place.missing is not None or self._read(f"{DEVICES}/{place.address}/uevent", 4096) is not None:
            return place
        return place._replace(missing=place.address)

    def device(self, device: Passthrough) -> Optional[Seen]:
        """All that the guest's kernel says of a device."""
        place = self.place(device)
        if place is None or place.missing is not None:
            return place
        folder = f"{DEVICES}/{place.address}"
        event = self._read(f"{folder}/uevent", 4096)
        if event is None:
            return place._replace(missing=place.address)
        vendor, product, driver = uevent(event)
        config = self._read(f"{folder}/config", _CONFIG)
        own = Link() if config is None else link_capability(config)
        node, resource = self._read(f"{folder}/numa_node", 64), self._read(f"{folder}/resource", 4096)
        if resource is None:
            raise AgentError(AgentState.NONSENSE, f"{place.address} has no resource file")
        return place._replace(
            vendor=vendor,
            device=product,
            driver=driver,
            node=None if node is None else numa_node(node),
            link=both_ends(own, place.link),
            regions=regions(resource),
        )

    def _to(self, index: int, above: frozenset[int]) -> _Way:
        """The way to the bus behind a controller."""
        if index not in self._behind:
            self._behind[index] = self._find(index, above)
        return self._behind[index]

    def _find(self, index: int, above: frozenset[int]) -> _Way:
        # libvirt does not insist on having the default root spelled out.
        controller = self._domain.controllers.get(index) or (Controller(0, "pcie-root") if index == 0 else None)
        if controller is None:
            raise AgentError(AgentState.NONSENSE, f"the domain has no PCI controller {index}")
        expander = controller.model in ("pcie-expander-bus", "pci-expander-bus")
        if index == 0 or expander or controller.model in ("pcie-root", "pci-root"):
            way = _Way(root_bus(controller), ())
            # On the root bus of a pci-expander-bus QEMU puts a bridge, and everything behind that.
            return self._through(way, PciAddress(0, 0, 0, 0)) if controller.model == "pci-expander-bus" else way
        if controller.address is None or index in above:
            raise AgentError(AgentState.NONSENSE, f"the domain's PCI controller {index} hangs on none")
        return self._through(self._to(controller.address.bus, above | {index}), controller.address)

    def _through(self, way: _Way, at: PciAddress) -> _Way:
        """The way on, through the bridge in slot and function of ``at``."""
        bridge = way.function(at)
        if way.missing is not None:
            return way
        config = self._read(f"{DEVICES}/{bridge}/config", _CONFIG)
        number = None if config is None else secondary_bus(config)
        if config is None or not number:  # a bridge without a bus behind it leads nowhere
            return way._replace(missing=bridge)
        return _Way(Bus(way.bus.domain, number), (*way.bridges, bridge), None, link_capability(config))


class _Way(NamedTuple):
    """How one comes to a bus; ``missing``: the bridge that is not there; ``link``: that of the port above the bus."""

    bus: Bus
    bridges: tuple[PciAddress, ...]
    missing: Optional[PciAddress] = None
    link: Link = Link()

    def function(self, at: PciAddress) -> PciAddress:
        """What is in slot and function of ``at`` on the bus."""
        return PciAddress(self.bus.domain, self.bus.number, at.slot, at.function)


def uevent(data: bytes) -> tuple[Optional[int], Optional[int], Optional[str]]:
    """Vendor, device and driver by a device's ``uevent`` (kernel ``drivers/pci/pci-driver.c``, ``pci_uevent``)."""
    lines = data.decode("ascii", "replace").splitlines()
    fields = {key: value for key, found, value in (line.partition("=") for line in lines) if found}
    ids = _IDS.match(fields.get("PCI_ID", ""))
    driver = fields.get("DRIVER")
    if ids is None or (driver is not None and not _DRIVER.match(driver)):
        raise AgentError(AgentState.NONSENSE, "a uevent file that the kernel would not write")
    return int(ids.group(1), 16), int(ids.group(2), 16), driver


def numa_node(data: bytes) -> Optional[int]:
    """The number in a ``numa_node`` file; None for -1."""
    text = data.decode("ascii", "replace").strip()
    if not re.match(r"-?[0-9]{1,5}\Z", text):
        raise AgentError(AgentState.NONSENSE, "a numa_node file without a number")
    return int(text) if int(text) >= 0 else None


def regions(data: bytes) -> tuple[tuple[int, Region], ...]:
    """The BARs in a ``resource`` file (kernel ``Documentation/ABI/testing/sysfs-bus-pci``), those that there are, by number."""
    found = []
    for number, line in enumerate(data.decode("ascii", "replace").splitlines()[:_BARS]):
        try:
            start, end, flags = (int(part, 16) for part in line.split())
        except ValueError:
            raise AgentError(AgentState.NONSENSE, "a resource file that the kernel would not write") from None
        if not (0 <= start < _TOP and 0 <= end < _TOP and 0 <= flags < _TOP):
            raise AgentError(AgentState.NONSENSE, "a resource file that the kernel would not write")
        if flags & (_IO | _MEMORY):
            found.append((number, Region(start, max(end - start + 1, 0), bool(flags & _MEMORY))))
    return tuple(found)


def without_address(seen: Sequence[tuple[int, Region]], host: Sequence[tuple[int, Region]]) -> list[int]:
    """The memory BARs that have an address on the host, and none in the guest. (Not I/O: drivers do without.)"""
    there = dict(seen)
    wanted = [number for number, region in host if region.memory and region.start]
    return [number for number in wanted if number not in there or not there[number].start]

