# SPDX-License-Identifier: LGPL-2.1-or-later
"""The existing placement of a domain: which units sit where they belong, and what each of pcinuma's expanders stands for.

An expander stands for one (cell, root complex). The metadata does not say which; its occupants do: the commonest place among those whose
cell is the expander's node, and where none is (the owner swapped the mapping), the commonest place, and the expander's node is set anew
without moving anybody. Likewise a guest switch stands for the host switch that most of its occupants sit below. An empty expander stands
for nothing until something is placed there (:meth:`ExistingPlacement.claim`): from then on, in the same plan too, it is that place's alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from typing import Hashable, NamedTuple, Optional, TypeVar

from pcinuma.address import PciAddress
from pcinuma.domain.metadata import original_address
from pcinuma.model import Domain, Original
from pcinuma.placement.grouping import branching
from pcinuma.placement.layout import Layout
from pcinuma.placement.units import Unit
from pcinuma.plan import Target
from pcinuma.reason import Reason
from pcinuma.settings import GroupBy

_STAYING = (Reason.KEPT, Reason.QEMU_OVERRIDE, Reason.POOL_UNRESOLVED, Reason.BACKING_UNKNOWN)
_DOWNSTREAM = "pcie-switch-downstream-port"
_T = TypeVar("_T", bound=Hashable)


class Locality(NamedTuple):
    """What one expander stands for; ``root_complex`` is None under ``group-by node`` and where the host does not tell."""

    cell: int
    root_complex: Optional[str]


def locality_of(target: Target, grouping: GroupBy) -> Locality:
    """The locality of the expander that a target belongs below."""
    return Locality(target.cell, None if grouping is GroupBy.NODE else target.root_complex)


def must_stay(unit: Unit) -> bool:
    """Whether a unit on one of pcinuma's expanders stays there although it has no target."""
    return unit.target is None and (unit.reason in _STAYING or unit.reason is None)


class ExistingPlacement:
    """The state of a domain with respect to its own placement.

    ``right``: units that stay. ``wrong``: units on an expander of ours that is not theirs, or is no more. ``leaving``: units there that
    belong nowhere now. ``new_units``: units with a target that are not on one of ours. ``others``: the rest. ``below``: sources of the
    devices below one of ours; ``as_placed``: of all that are where pcinuma put them, so that what is recorded of them is true.
    """

    def __init__(
        self, domain: Domain, units: list[Unit], grouping: GroupBy, layout: Layout, withdrawn: frozenset[int] = frozenset()
    ) -> None:
        """``withdrawn``: those of pcinuma's controllers that ``layout`` does without."""
        self.layout = layout
        placement = domain.placement
        listed = placement.controllers if placement else ()
        self.ours = frozenset(listed).difference(withdrawn)
        self.originals: dict[str, Original] = {entry.source: entry for entry in (placement.devices if placement else ())}
        self.set_node: dict[int, int] = {}
        self.right: list[Unit] = []
        self.wrong: list[Unit] = []
        self.leaving: list[Unit] = []
        self.new_units: list[Unit] = []
        self.others: list[Unit] = []
        self.mirrors: dict[int, str] = {}
        self._guest_chains: dict[int, list[tuple[int, int]]] = {}
        self._stands_for: dict[int, Optional[Locality]] = {}
        self._empty: dict[int, int] = {}
        by_expander: dict[int, list[Unit]] = {}
        inside: list[Unit] = []
        for unit in units:
            address = unit.address
            expander = layout.expander_of(address.bus) if self.ours and address is not None else None
            if withdrawn and address is not None and address.bus in withdrawn:
                (self.leaving if unit.target is None else self.wrong).append(unit)
                inside.append(unit)
            elif expander is not None and expander in self.ours:
                by_expander.setdefault(expander, []).append(unit)
                inside.append(unit)
            elif unit.target is not None:
                self.new_units.append(unit)
            else:
                self.others.append(unit)
        self.below = frozenset([device.source for unit in inside for device in unit.devices])
        self.as_placed = self.below
        if placement is not None:
            elsewhere = [device for unit in (*self.new_units, *self.others) for device in unit.devices]
            if elsewhere:
                own, slots = frozenset(listed), {domain.controllers[index].address for index in listed} - {None}
                self.as_placed = self.below.union([d.source for d in elsewhere if self._put_there(d.source, d.address, own, slots)])
        for expander in sorted(self.ours):
            if layout.is_expander(layout.controllers[expander]):
                self._classify(expander, by_expander.get(expander, []), grouping)
                node = layout.controllers[expander].node
                if domain.cells and node is not None and node not in domain.cells:
                    self._set_node(expander, min(domain.cells))  # its cell is gone, and libvirt refuses a node that is not there
        self._right_with_target = [unit for unit in self.right if unit.target is not None]

    def _put_there(self, source: str, address: Optional[PciAddress], listed: Container[int], ours: Container[Optional[PciAddress]]) -> bool:
        """Whether a device is on a controller of ours, or elsewhere since one of ours has its old slot."""
        if address is None:
            return False
        return address.bus in listed or (address.bus == 0 and source in self.originals and self.original_address(source) in ours)

    def original_address(self, source: str) -> Optional[PciAddress]:
        """Where the device was before pcinuma moved it; None if it had no address."""
        entry = self.originals.get(source)
        return None if entry is None else original_address(entry)

    def expanders_for(self, locality: Locality) -> list[int]:
        """pcinuma's expanders for a place: those that stand for it, then empty ones of its cell."""
        occupied = [expander for expander, stands_for in sorted(self._stands_for.items()) if stands_for == locality]
        return occupied + [expander for expander, cell in sorted(self._empty.items()) if cell == locality.cell]

    def claim(self, expander: int, locality: Locality) -> None:
        """Say that something that belongs to ``locality`` was placed below ``expander``."""
        if self._empty.pop(expander, None) is not None:
            self._stands_for[expander] = locality

    def shares_switch(self, unit: Unit, expanders: list[int]) -> bool:
        """Whether the host has a switch at which ``unit`` branches from a unit that stays below one of ``expanders``."""
        return any(
            branching(unit.chain, other.chain)
            for other in self._right_with_target
            if other.address is not None and self.layout.expander_of(other.address.bus) in expanders
        )

    def deepest_mirrored(self, unit: Unit, expanders: list[int]) -> Optional[tuple[int, tuple[tuple[str, str], ...]]]:
        """The guest's upstream port for the lowest switch above ``unit`` that the guest shows, and the host's switches below that."""
        by_host = {host: up for up, host in sorted(self.mirrors.items(), reverse=True) if self.layout.expander_of(up) in expanders}
        for level in range(len(unit.chain) - 1, -1, -1):
            upstream = by_host.get(unit.chain[level][0])
            if upstream is not None:
                return upstream, unit.chain[level + 1 :]
        return None

    def guest_chain(self, bus: int) -> list[tuple[int, int]]:
        """The (upstream, downstream) controllers above a device on ``bus``, topmost first."""
        controllers = self.layout.controllers
        if bus not in controllers or controllers[bus].model != _DOWNSTREAM:
            return []  # nearly always
        known = self._guest_chains.get(bus)
        if known is not None:
            return known
        port, pairs = bus, []
        while bus in controllers and controllers[bus].model == _DOWNSTREAM:
            address = controllers[bus].address
            if address is None or address.bus not in controllers:
                break
            upstream = address.bus
            pairs.append((upstream, bus))
            above = controllers[upstream].address
            if above is None:
                break
            bus = above.bus
        self._guest_chains[port] = pairs[::-1]
        return self._guest_chains[port]

    def _classify(self, expander: int, members: list[Unit], grouping: GroupBy) -> None:
        node = self.layout.controllers[expander].node
        belong = [(unit, None if unit.target is None else locality_of(unit.target, grouping)) for unit in members]
        localities = [locality for _, locality in belong if locality is not None]
        stands_for = _commonest([locality for locality in localities if locality.cell == node])
        staying = [unit for unit, locality in belong if locality is None and must_stay(unit)]
        if stands_for is None and localities and not staying:
            stands_for = _commonest(localities)
            assert stands_for is not None
            self._set_node(expander, stands_for.cell)
        self._stands_for[expander] = stands_for
        if not members and node is not None:
            self._empty[expander] = node
        candidates = []
        for unit, locality in belong:
            if locality is None:
                (self.right if unit in staying else self.leaving).append(unit)
            elif locality == stands_for:
                candidates.append(unit)
            else:
                self.wrong.append(unit)
        if grouping is GroupBy.SWITCH:
            candidates = self._agreeing_on_switches(candidates)
        else:  # where a kept device has held a switch over from another grouping, nobody else stays below it
            behind = [unit for unit in candidates if unit.address is not None and self.guest_chain(unit.address.bus)]
            if behind:
                self.wrong.extend(behind)
                candidates = [unit for unit in candidates if unit not in behind]
        self.right.extend(candidates)

    def _set_node(self, expander: int, cell: int) -> None:
        self.set_node[expander] = cell
        self.layout.controllers[expander] = self.layout.controllers[expander]._replace(node=cell)
        if expander in self._empty:
            self._empty[expander] = cell

    def _agreeing_on_switches(self, units: list[Unit]) -> list[Unit]:
        """The units whose guest switches can stand for their host switches; the others go to ``wrong``."""
        claims: dict[int, list[str]] = {}
        ways: list[tuple[Unit, bool, list[tuple[int, str]]]] = []  # does the guest show no more than there is; (guest's, host's) ports
        for unit in units:
            assert unit.address is not None
            chain = self.guest_chain(unit.address.bus)
            shown = unit.chain[-len(chain) :] if chain else ()
            pairs = [pair for guest, host in zip(chain[-len(shown) :], shown) for pair in zip(guest, host)]
            ways.append((unit, len(chain) <= len(unit.chain), pairs))
            for bridge, host_bridge in pairs:
                claims.setdefault(bridge, []).append(host_bridge)
        stand_for = {bridge: _commonest(hosts) for bridge, hosts in claims.items()}
        agreeing: list[Unit] = []
        for unit, fits, pairs in ways:
            agrees = fits and all(stand_for[bridge] == host_bridge for bridge, host_bridge in pairs)
            (agreeing if agrees else self.wrong).append(unit)
            if agrees:
                self.mirrors.update(pairs[::2])
        return agreeing


def _commonest(values: list[_T]) -> Optional[_T]:
    """The value that occurs most often; of several such the one that sorts first; None of none."""
    if values and values.count(values[0]) == len(values):  # nearly always
        return values[0]
    counted = Counter(values)
    return min(counted, key=lambda value: (-counted[value], str(value))) if counted else None
