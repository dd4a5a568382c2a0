# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bus addresses that a guest gives its devices, computed as firmware deals out bus numbers.

In: a domain (addresses as libvirt has them: ``bus`` is a controller's index). Out: what ``lspci`` in the guest says. Firmware goes depth
first: from a root bus, bridge by bridge in ascending slot and function, each bridge the next number (SeaBIOS ``pci_bios_init_bus_rec``,
edk2 ``PciScanBus``, QEMU ``spapr_phb_pci_enumerate``; Linux keeps what it finds). An expander's root bus has the number ``busNr``; that of
i440fx holds a bridge of its own, whose bus is the next. Every PHB of pseries is a PCI domain of its own. None of QEMU's ports reserves a
further bus unless it is told to.

What libvirt or the guest's kernel has yet to decide cannot be computed and raises :class:`UnusableInput`: a controller or device without
an address, and a guest without firmware tables (aarch64 without ACPI), whose kernel numbers the buses by itself. So do expanders whose
numbers overlap, which libvirt and QEMU take: there a guest misses devices.
"""

from __future__ import annotations

from typing import Iterator, NamedTuple

from pcinuma.address import PciAddress
from pcinuma.errors import UnusableInput
from pcinuma.model import Controller, Domain, MachineKind, Passthrough

_EXPANDERS = ("pcie-expander-bus", "pci-expander-bus")
_ROOTS = ("pcie-root", "pci-root")
_LIBVIRT_DECIDES = "libvirt chooses it when the domain is defined: give the domain's name, or the XML of `virsh dumpxml --inactive`"


class Bus(NamedTuple):
    """A bus as the guest numbers it."""

    domain: int
    number: int


def address_in_guest(buses: dict[int, Bus], device: Passthrough) -> PciAddress:
    """Where the guest sees ``device``; ``buses`` are :func:`bus_numbers` of its domain."""
    if device.address is None:
        raise UnusableInput("has no guest address yet", subject=device.source, hint=_LIBVIRT_DECIDES)
    bus = buses.get(device.address.bus)
    if bus is None:
        raise UnusableInput(f"is on PCI controller {device.address.bus}, which hangs on none", subject=device.source)
    return PciAddress(bus.domain, bus.number, device.address.slot, device.address.function)


def bus_numbers(domain: Domain) -> dict[int, Bus]:
    """The bus behind each PCI controller, by the controller's index."""
    _require_computable(domain)
    buses: dict[int, Bus] = {}
    taken: list[tuple[Bus, Bus, int]] = []
    roots = [c for _, c in sorted(domain.controllers.items()) if c.index == 0 or c.model in _EXPANDERS or c.model in _ROOTS]
    if 0 not in domain.controllers:  # libvirt does not insist on having the default root spelled out
        roots.insert(0, Controller(0, "pcie-root"))
    for root in roots:
        first = root_bus(root)
        # On the root bus of a pci-expander-bus QEMU puts a bridge, and everything behind that.
        start = first._replace(number=first.number + 1) if root.model == "pci-expander-bus" else first
        taken.append((first, _number(domain, root, start, buses), root.index))
    taken.sort()
    for (_, last, index), (first, _, other) in zip(taken, taken[1:]):
        if first <= last:
            raise UnusableInput(f"bus {first.number:02x} belongs to controller {index}, too", subject=f"PCI controller {other}")
    return buses


def root_bus(root: Controller) -> Bus:
    """The root bus that an expander or root complex begins."""
    return Bus((root.target_index or 0) if root.model == "pci-root" else 0, root.bus_nr or 0)


def _require_computable(domain: Domain) -> None:
    if domain.machine is MachineKind.NONE:
        raise UnusableInput("its guests number PCI buses in a way of their own", subject=f"machine type {domain.machine_name}")
    if domain.without_acpi:
        raise UnusableInput("without ACPI its kernel numbers the PCI buses by itself", subject=domain.name)
    for index, controller in sorted(domain.controllers.items()):
        if controller.model in _EXPANDERS and controller.bus_nr is None:
            raise UnusableInput("has no busNr yet", subject=f"PCI controller {index}", hint=_LIBVIRT_DECIDES)
        if controller.address is None and controller.model not in _ROOTS:
            raise UnusableInput("has no address yet", subject=f"PCI controller {index}", hint=_LIBVIRT_DECIDES)


def _number(domain: Domain, bridge: Controller, bus: Bus, buses: dict[int, Bus]) -> Bus:
    """Number the bus behind ``bridge`` and all below it; returns the last that was given."""
    if bus.number > 0xFF:
        raise UnusableInput("would get no bus number from firmware, which has 256", subject=f"PCI controller {bridge.index}")
    buses[bridge.index] = last = bus
    for below in _bridges_on(domain, bridge.index):
        last = _number(domain, below, Bus(last.domain, last.number + 1), buses)
    return last


def _bridges_on(domain: Domain, index: int) -> Iterator[Controller]:
    """The bridges on a controller's bus, in the order in which firmware meets them. An expander begins a root bus of its own."""
    found = [
        (controller.address, number)
        for number, controller in domain.controllers.items()
        if controller.address is not None and controller.address.bus == index and number
        and controller.model not in _EXPANDERS and controller.model not in _ROOTS
    ]  # fmt: skip
    return (domain.controllers[number] for _, number in sorted(found))
