"""Units: what moves as one. The functions of one host device that share a guest slot are one; everything else is on its own."""

from __future__ import annotations

from typing import Mapping, NamedTuple, Optional

from pcinuma.address import PciAddress
from pcinuma.domain.model import Domain, Form, Given, Passthrough
from pcinuma.placement.plan_model import Target, Verdict
from pcinuma.placement.reason import Reason


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
    """Sources of the devices that the owner keeps, those that share a guest slot with one included."""
    if not domain.keep:
        return frozenset()
    kept = {device.source for device in domain.devices if device.source in domain.keep}
    slots = {slot_of(device.address) for device in domain.devices if device.source in kept and device.address}
    return frozenset(kept | {d.source for d in domain.devices if d.address and slot_of(d.address) in slots})


def shares_slot(domain: Domain) -> frozenset[str]:
    """Sources of host devices that share their guest slot with another: the only ones of which it matters whether they are VFs."""
    by_slot: dict[tuple[int, int], list[str]] = {}
    for device in domain.devices:
        if device.address is not None and device.form in (Form.HOSTDEV_PCI, Form.INTERFACE_HOSTDEV):
            by_slot.setdefault(slot_of(device.address), []).append(device.source)
    return frozenset(source for sources in by_slot.values() if len(sources) > 1 for source in sources)


def units_of(domain: Domain, verdicts: Mapping[str, Verdict], hosts: Mapping[str, PciAddress], virtual: frozenset[str]) -> list[Unit]:
    """The units of a domain in the order of their host addresses.

    ``hosts``: source -> host address whose place counts. ``virtual``: sources that are VFs, each a device of its own.
    """
    groups: dict[tuple[object, ...], list[Passthrough]] = {}
    for device in domain.devices:
        if device.given is not Given.PCI:
            continue
        key: tuple[object, ...] = (device.source,)
        single = device.source in virtual or device.form not in (Form.HOSTDEV_PCI, Form.INTERFACE_HOSTDEV)
        if not single and device.address is not None and device.host is not None:
            key = (*slot_of(device.address), device.host[:3])
        groups.setdefault(key, []).append(device)
    units = []
    for members in groups.values():
        if len(members) > 1:
            members.sort(key=lambda d: (d.address.function if d.address else 0, d.source))
        target, reason = _verdict(members, verdicts)
        first = members[0]
        host = hosts.get(first.source)
        order = (host is None, host or (), first.source)
        units.append(Unit(tuple(members), target, reason, order))
    return sorted(units, key=lambda unit: unit.order)


def _verdict(members: list[Passthrough], verdicts: Mapping[str, Verdict]) -> tuple[Optional[Target], Optional[Reason]]:
    if len(members) == 1:
        only = verdicts[members[0].source]
        return only.target, only.reason if only.target is None else only.target.note
    found = [verdicts[member.source] for member in members]
    targets = [verdict.target for verdict in found if verdict.target is not None]
    if any(verdict.reason is Reason.KEPT for verdict in found):
        return None, Reason.KEPT
    if not targets:
        return None, next((verdict.reason for verdict in found if verdict.reason is not None), None)
    elsewhere = any(verdict.reason in (Reason.NO_CELL, Reason.AMBIGUOUS_CELL) for verdict in found)
    if elsewhere or len({(target.cell, target.root_complex) for target in targets}) > 1:
        return None, Reason.MIXED_NODES
    return targets[0], targets[0].note
