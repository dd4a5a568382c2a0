# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices of a placed domain that have a port of their own, though the host has them below a switch with others (reason ``kept-apart``).

Their right place would move others. A remark, no change: which of the units that are placed branch on the host at a switch that the guest
does not show between them. Of each such group the first, by guest address, is not remarked on.
"""

from __future__ import annotations

from typing import Mapping, Sequence

from pcinuma.address import PciAddress
from pcinuma.placement.existing import ExistingPlacement
from pcinuma.placement.grouping import branching
from pcinuma.placement.units import Unit


def kept_apart(units: Sequence[Unit], addresses: Mapping[str, PciAddress], existing: ExistingPlacement) -> list[Unit]:
    """Those of ``units``, placed at ``addresses`` (by source) and grouped by switch, whose switch the guest does not show."""
    below: dict[str, list[Unit]] = {}
    for unit in units:
        if unit.target is not None and unit.devices[0].source in addresses:
            for upstream, _ in unit.chain:
                below.setdefault(upstream, []).append(unit)
    apart: dict[PciAddress, tuple[Unit, frozenset[int]]] = {}
    for members in below.values():
        shown = [_guest_switches(addresses[unit.devices[0].source], existing) for unit in members]
        if len(members) > 1 and not frozenset.intersection(*shown):
            apart.update({addresses[unit.devices[0].source]: (unit, switches) for unit, switches in zip(members, shown)})
    ordered = [apart[address] for address in sorted(apart)]
    found = []
    for position, (unit, switches) in enumerate(ordered):
        for earlier, others in ordered[:position]:
            if not switches & others and _same_root_complex(unit, earlier) and branching(unit.chain, earlier.chain):
                found.append(unit)
                break
    return found


def _guest_switches(address: PciAddress, existing: ExistingPlacement) -> frozenset[int]:
    """The guest's upstream ports above a device."""
    return frozenset([upstream for upstream, _ in existing.guest_chain(address.bus)])


def _same_root_complex(unit: Unit, other: Unit) -> bool:
    """And in the same guest cell."""
    assert unit.target is not None and other.target is not None
    return (unit.target.cell, unit.target.root_complex) == (other.target.cell, other.target.root_complex)
