# SPDX-License-Identifier: LGPL-2.1-or-later
"""Units: what moves as one. The functions of one host device that share a guest slot are one; everything else is on its own.

In: a domain and what was resolved of its devices. Out: the units, in the order of their host addresses, each with the target or the reason
that counts for all of it.
"""

from __future__ import annotations

from collections import Counter
from operator import attrgetter
from typing import Mapping, NamedTuple, Optional

from pcinuma.address import PciAddress
from pcinuma.model import AttachedAs, Domain, Form, Passthrough
from pcinuma.plan import Resolved, Target
from pcinuma.reason import Reason

_WITH_FUNCTIONS = (Form.HOSTDEV_PCI, Form.INTERFACE_HOSTDEV)


class Unit(NamedTuple):
    """Devices with one guest slot. ``order`` sorts units as the host lists them; ``chain`` is the target's chain of switches."""

    devices: tuple[Passthrough, ...]
    target: Optional[Target]
    reason: Optional[Reason]
    order: tuple[object, ...]

    @property
    def chain(self) -> tuple[tuple[str, str], ...]:
        """The host's (upstream, downstream) pairs above it, topmost first."""
        return self.target.switches if self.target else ()

    @property
    def address(self) -> Optional[PciAddress]:
        """The guest address of its first function, None where libvirt has yet to choose one."""
        return self.devices[0].address

    def functions(self) -> list[int]:
        """The guest functions that its devices get, in order: as they are, but beginning with 0."""
        if len(self.devices) == 1:
            return [0]
        present = [device.address.function if device.address else 0 for device in self.devices]
        return present if present[0] == 0 else list(range(len(present)))


def slot_of(address: PciAddress) -> tuple[int, int]:
    """The guest slot of an address, as (bus, slot)."""
    return address.bus, address.slot


def kept_sources(domain: Domain) -> frozenset[str]:
    """Sources of the devices that the owner keeps, or places by ``<qemu:override>``, those that share a guest slot with one included."""
    stays = domain.keep | domain.overridden
    if not stays:
        return frozenset()
    kept = {device.source for device in domain.devices if device.source in stays}
    slots = {slot_of(device.address) for device in domain.devices if device.source in kept and device.address}
    return frozenset(kept | {d.source for d in domain.devices if d.address and slot_of(d.address) in slots})


def shares_slot(domain: Domain) -> frozenset[str]:
    """Sources of host devices that share their guest slot with another: the only ones of which it matters whether they are VFs."""
    addressed = [(d.source, d.address.device) for d in domain.devices if d.address is not None and d.form in _WITH_FUNCTIONS]
    slots = {slot for _, slot in addressed}
    if len(slots) == len(addressed):
        return frozenset()  # nearly always
    counted = Counter([slot for _, slot in addressed])
    return frozenset([source for source, slot in addressed if counted[slot] > 1])


def units_of(domain: Domain, resolved: Mapping[str, Resolved], hosts: Mapping[str, PciAddress], virtual: frozenset[str]) -> list[Unit]:
    """The units of a domain in the order of their host addresses.

    ``hosts``: source -> host address whose place counts. ``virtual``: sources that are VFs, each a device of its own.
    """
    sharing = shares_slot(domain) - virtual
    units: list[Unit] = []
    together: dict[tuple[object, ...], list[Passthrough]] = {}
    for device in domain.devices:
        if device.attached_as is not AttachedAs.PCI:
            continue
        source = device.source
        if source in sharing and device.address is not None and device.host is not None:
            together.setdefault((*slot_of(device.address), device.host.device), []).append(device)
            continue
        target, reason = resolved[source]
        units.append(Unit((device,), target, reason if target is None else target.note, _order(source, hosts)))
    for members in together.values():
        members.sort(key=lambda d: (d.address.function if d.address else 0, d.source))
        target, reason = _resolved_together(members, resolved)
        units.append(Unit(tuple(members), target, reason, _order(members[0].source, hosts)))
    units.sort(key=attrgetter("order"))
    return units


def _order(source: str, hosts: Mapping[str, PciAddress]) -> tuple[object, ...]:
    host = hosts.get(source)
    return host is None, host or (), source


def _resolved_together(members: list[Passthrough], resolved: Mapping[str, Resolved]) -> tuple[Optional[Target], Optional[Reason]]:
    """What counts for functions that move together."""
    found = [resolved[member.source] for member in members]
    targets = [one.target for one in found if one.target is not None]
    staying = [one.reason for one in found if one.reason in (Reason.KEPT, Reason.QEMU_OVERRIDE)]
    if staying:
        return None, staying[0]
    if not targets:
        return None, next((one.reason for one in found if one.reason is not None), None)
    elsewhere = any(one.reason in (Reason.NO_CELL, Reason.AMBIGUOUS_CELL) for one in found)
    if elsewhere or len({(target.cell, target.root_complex) for target in targets}) > 1:
        return None, Reason.MIXED_NODES
    return targets[0], targets[0].note
