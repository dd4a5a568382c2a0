# SPDX-License-Identifier: LGPL-2.1-or-later
"""One assignment of devices to addresses, for one grouping.

1. ``units`` groups the passthrough devices; each unit has a target (cell, root complex, switches) or a reason for none.
2. ``existing`` tells of a placed domain which units sit where they belong, which must move, and what each expander stands for.
3. Units without the right address are put on free ports of the right expander, else on new ports behind the last one, else below a new
   expander; what belongs nowhere goes back to the main root. Nobody else moves, neither in the XML nor in the guest's bus numbers.
4. Bus numbers are dealt out to new expanders last, when their sizes are known.

Anything that does not fit raises :class:`NoRoom`.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Optional

from pcinuma.address import PciAddress
from pcinuma.model import Domain, MachineKind, Original, Passthrough, Placement
from pcinuma.placement.bus_numbers import check_bus_numbers, number_expanders
from pcinuma.placement.existing import ExistingPlacement, Locality, locality_of, must_stay
from pcinuma.placement.grouping import Subtree, Switch, subtrees
from pcinuma.placement.kept_apart import kept_apart
from pcinuma.placement.layout import Layout
from pcinuma.placement.main_root import MainRoot
from pcinuma.placement.options import PlanOptions
from pcinuma.placement.replan import means_the_same, withdrawn
from pcinuma.placement.units import Unit, slot_of
from pcinuma.plan import Move, NoRoom, Plan
from pcinuma.reason import Reason
from pcinuma.settings import GroupBy


class Assignment:
    """One assignment of devices to addresses; lives for one :meth:`run`."""

    def __init__(self, domain: Domain, units: list[Unit], grouping: GroupBy, options: PlanOptions, left_out: frozenset[str]) -> None:
        self.domain = domain
        self.units = units
        self.grouping = grouping
        self.options = options
        self.left_out = left_out
        self.withdrawn = withdrawn(domain, units, options.ran_with) if options.replan else frozenset()
        self.layout = Layout(domain, self.withdrawn)
        self.existing = ExistingPlacement(domain, units, grouping, self.layout, self.withdrawn)
        self.anew = domain.placement is None or options.replan
        self.moves: list[Move] = []
        self.addresses: dict[str, PciAddress] = {}
        self.reasons: dict[str, Reason] = {}
        self.hotplug: dict[int, bool] = {}
        self.foreign_moves: list[tuple[PciAddress, PciAddress]] = []
        self._free_ports: dict[int, list[int]] = {}

    def run(self) -> Plan:
        existing = self.existing
        self._stay(existing.right)
        for unit in (*existing.wrong, *existing.leaving):
            for device in unit.devices:
                if device.address is not None:
                    self.layout.release(device.address)
        new_units = self._admitted(existing.new_units)
        if self.anew and (new_units or self.options.replan):
            self._main_ports_first(new_units)
        foreign = self._foreign_devices()
        if new_units or existing.wrong or existing.leaving or foreign or self.withdrawn:
            main_root = MainRoot(self.domain, self.layout, existing, new_units)
            self._vacate_main_slots(new_units)
            self._move_foreign_devices(foreign, main_root)
            self._send_back(main_root)
        by_locality: dict[Locality, list[Unit]] = {}
        for unit in (*existing.wrong, *new_units):
            assert unit.target is not None
            by_locality.setdefault(locality_of(unit.target, self.grouping), []).append(unit)
        for locality in sorted(by_locality, key=lambda one: (one.cell, one.root_complex or "")):
            self._assign_all(locality, sorted(by_locality[locality], key=attrgetter("order")))
        self._keep_spare_ports()
        if self.withdrawn:
            self.layout.fill_freed(min(self.domain.cells))
        self._leave_slots(new_units)
        number_expanders(self.layout)
        check_bus_numbers(self.layout, existing.ours)
        if self.grouping is GroupBy.SWITCH and self.domain.placement is not None:  # a fresh layout shows every switch of a branching
            for unit in kept_apart(self.units, self.addresses, existing):
                self._remark(unit, Reason.KEPT_APART)
        return self._plan()

    # Who takes part.

    def _stay(self, units: list[Unit]) -> None:
        for unit in units:
            address = unit.address
            if unit.target is not None and address is not None and address.function:
                self._begin_with_function_zero(unit)
                continue
            for device in unit.devices:
                assert device.address is not None
                self.addresses[device.source] = device.address
                if unit.reason is not None:
                    self.reasons[device.source] = unit.reason

    def _begin_with_function_zero(self, unit: Unit) -> None:
        """Function 0 of a slot of ours was taken out of the domain: the guest sees the others if one of them is that now."""
        assert unit.address is not None
        for device in unit.devices:
            if device.address is not None:
                self.layout.release(device.address)
        self._plug(unit, unit.address.bus, unit.address.slot)

    def _admitted(self, new_units: list[Unit]) -> list[Unit]:
        """The new units that may move: not those left out for room, and not out of a slot that would lose its function 0."""
        admitted = []
        for unit in new_units:
            if unit.devices[0].source in self.left_out:
                self._remark(unit, Reason.NO_ROOM)
            else:
                admitted.append(unit)
        for unit in self.existing.others:
            if unit.reason is not None:
                self._remark(unit, unit.reason)
        taken = self.layout.taken
        if not [unit for unit in admitted if (at := unit.devices[0].address) is not None and len(taken[at.bus]) != len(unit.devices)]:
            return admitted  # each alone on its bus
        moving = {device.address for unit in admitted for device in unit.devices if device.address is not None}
        slots = {slot_of(address) for address in moving}
        staying: dict[tuple[int, int], int] = {}  # the lowest function that stays in each of the slots
        for address in self.domain.addresses():
            slot = slot_of(address)
            if address not in moving and slot in slots:
                staying[slot] = min(staying.get(slot, 7), address.function)
        for unit in list(admitted) if any(staying.values()) else ():
            if unit.address is not None and staying.get(slot_of(unit.address)):
                self._remark(unit, Reason.SHARED_SLOT)
                admitted.remove(unit)
        return admitted

    def _remark(self, unit: Unit, reason: Reason) -> None:
        for device in unit.devices:
            self.reasons[device.source] = reason

    # The main root.

    def _main_ports_first(self, new_units: list[Unit]) -> None:
        """In XML that libvirt has yet to format: a main port for everything that it will put somewhere, and one spare."""
        if self.domain.machine is not MachineKind.PCIE:
            return
        if self.domain.placement is None:
            moving = {device.source for unit in new_units for device in unit.devices}
            staying = [d.address.bus for d in self.domain.devices if d.source not in moving and d.address is not None]
            self.layout.add_named_ports([*staying, *(address.bus for address in self.domain.others)])
        count = self._waiting(new_units)
        if count:
            there = sum(1 for index in self.existing.ours if self.layout.expander_of(index) is None and self.layout.is_free(index))
            self.layout.add_main_ports(max(0, count + 1 - there))

    def _leave_slots(self, new_units: list[Unit]) -> None:
        """The same on machines whose roots take devices directly: there must be a slot of the main root for each."""
        if self.anew and self.domain.machine is not MachineKind.PCIE:
            self.layout.require_main_slots(self._waiting(new_units))

    def _waiting(self, new_units: list[Unit]) -> int:
        """How many devices libvirt has yet to find an address for."""
        waiting = {d.source for unit in self.units for d in unit.devices if d.address is None}
        if waiting:
            waiting.difference_update([device.source for unit in new_units for device in unit.devices])
        return self.domain.unaddressed + len(waiting)

    def _vacate_main_slots(self, new_units: list[Unit]) -> None:
        """What new units leave directly on the main root is free, for an expander that finds no other slot."""
        for unit in new_units:
            for device in unit.devices:
                if device.address is not None and device.address.bus == 0:
                    self.layout.release(device.address)

    def _foreign_devices(self) -> list[PciAddress]:
        """Where devices that are not passed through sit on our ports, and may not stay."""
        if not self.existing.ours and not self.withdrawn:
            return []
        return [
            old
            for old in sorted(self.domain.others)
            if old.bus in self.withdrawn or (old not in self.options.ran_with and self.layout.expander_of(old.bus) in self.existing.ours)
        ]

    def _move_foreign_devices(self, foreign: list[PciAddress], main_root: MainRoot) -> None:
        for old in foreign:
            self.layout.release(old)
        for old in foreign:
            new = main_root.free_address(own=False)
            self.layout.take(new)
            self.foreign_moves.append((old, new))

    def _send_back(self, main_root: MainRoot) -> None:
        """Off our ports what belongs nowhere now."""
        self.moves += main_root.send_back(self.existing.leaving)
        for unit in self.existing.leaving:
            if unit.reason is not None:
                self._remark(unit, unit.reason)

    # Below the expanders.

    def _assign_all(self, locality: Locality, units: list[Unit]) -> None:
        """Give the units of one place their addresses: below the expanders that stand for it, and what finds no room there below a new
        one."""
        overflow: list[Unit] = []
        expanders = self.existing.expanders_for(locality)
        if not expanders:
            overflow = units
        else:
            alone: list[Unit] = []
            for unit in units:
                shares_switch = self.grouping is GroupBy.SWITCH and self.existing.shares_switch(unit, expanders)
                if not shares_switch:
                    alone.append(unit)
                elif not self._join_switch(unit, expanders) and not self._assign_below_any(unit, expanders, locality):
                    overflow.append(unit)
            for subtree in self._subtrees(alone):
                if not self._assign_below_any(subtree, expanders, locality):
                    overflow.extend(_members(subtree))
        if not overflow:
            return
        expander = self.layout.add_expander(locality.cell)
        fresh = self._subtrees(overflow)
        for subtree in fresh:
            if self.domain.machine is not MachineKind.PCIE and not self.layout.has_direct_slot(expander):
                expander = self.layout.add_expander(locality.cell)
            self._assign_below(subtree, expander, dense=len(fresh) + 4 > 32)

    def _subtrees(self, units: list[Unit]) -> list[Subtree]:
        return subtrees(units) if self.grouping is GroupBy.SWITCH else list(units)

    def _assign_below_any(self, subtree: Subtree, expanders: list[int], locality: Locality) -> bool:
        for expander in expanders:
            needs = 1 + (subtree.bridges if isinstance(subtree, Switch) else 0)
            if isinstance(subtree, Unit) and self.domain.machine is MachineKind.PCIE:
                port = self._free_port(expander)
                if port is not None:
                    self._plug(subtree, port)
                    self.existing.claim(expander, locality)
                    return True
            if self.layout.room_below(expander) < needs:
                continue
            try:
                self._assign_below(subtree, expander)
            except NoRoom as error:
                if isinstance(subtree, Switch):
                    raise error
                continue
            self.existing.claim(expander, locality)
            return True
        return False

    def _free_port(self, expander: int) -> Optional[int]:
        """The first free root port of an expander that stood before this plan."""
        free = self._free_ports.get(expander)
        if free is None:
            free = self._free_ports[expander] = [p for p in self.layout.ports(expander) if self._is_free_port(p, "pcie-root-port")][::-1]
        while free and not self.layout.is_free(free[-1]):
            free.pop()
        return free[-1] if free else None

    def _assign_below(self, subtree: Subtree, expander: int, *, dense: bool = False) -> None:
        if self.domain.machine is not MachineKind.PCIE:
            assert isinstance(subtree, Unit)
            self._plug(subtree, expander, slot=self.layout.direct_slot(expander))
            return
        self._attach(subtree, self.layout.add_port(expander, dense=dense))

    def _attach(self, subtree: Subtree, port: int) -> None:
        if isinstance(subtree, Unit):
            self._plug(subtree, port)
            return
        upstream = self.layout.add_upstream(port)
        for child in subtree.children:
            self._attach(child, self.layout.add_port(upstream))

    def _join_switch(self, unit: Unit, expanders: list[int]) -> bool:
        """Put a new unit below a switch that the guest already has, where that moves nobody; say whether it was possible."""
        found = self.existing.deepest_mirrored(unit, expanders)
        if found is None:
            return False
        upstream, remaining = found
        if not remaining:
            port = next((p for p in self.layout.ports(upstream) if self._is_free_port(p, "pcie-switch-downstream-port")), None)
            if port is not None:
                self._plug(unit, port)
                return True
        expander = self.layout.expander_of(upstream)
        assert expander is not None
        if not self._is_last(upstream) or self.layout.room_below(expander) < 1 + 2 * len(remaining):
            return False
        try:
            port = self.layout.add_port(upstream)
        except NoRoom:
            return False
        for host, _ in remaining:
            deeper = self.layout.add_upstream(port)
            self.existing.mirrors[deeper] = host
            port = self.layout.add_port(deeper)
        self._plug(unit, port)
        return True

    def _is_last(self, bridge: int) -> bool:
        """Whether firmware numbers nothing of the same expander after what lies below ``bridge``."""
        while not self.layout.is_expander(self.layout.controllers[bridge]):
            address = self.layout.controllers[bridge].address
            if address is None or self.layout.ports(address.bus)[-1] != bridge:
                return False
            bridge = address.bus
        return True

    def _is_free_port(self, port: int, model: str) -> bool:
        return port in self.existing.ours and self.layout.controllers[port].model == model and self.layout.is_free(port)

    def _plug(self, unit: Unit, bus: int, slot: int = 0) -> None:
        several = len(unit.devices) > 1
        for device, function in zip(unit.devices, unit.functions() if several else (0,)):
            address = PciAddress(0, bus, slot, function)
            self.layout.take(address)
            self.moves.append(Move(device.source, address, "on" if several and function == 0 else None))
            self.addresses[device.source] = address
        if unit.reason is not None:
            self._remark(unit, unit.reason)
        controller = self.domain.controllers.get(bus) if bus in self.existing.ours else None
        if controller is not None and controller.hotplug is not False and self.domain.machine is MachineKind.PCIE:
            self.hotplug[bus] = False

    def _keep_spare_ports(self) -> None:
        if not self.options.spare_ports or self.domain.machine is not MachineKind.PCIE:
            return
        for expander in sorted(self.existing.ours.union(self.layout.added)):
            if not self.layout.is_expander(self.layout.controllers[expander]):
                continue
            ports = [self.layout.controllers[port] for port in self.layout.ports(expander)]
            spare = sum(1 for port in ports if port.hotplug is not False and self.layout.is_free(port.index))
            for _ in range(self.options.spare_ports - spare):
                self.layout.add_port(expander, hotplug=None)

    # What came of it.

    def roots(self) -> list[list[str]]:
        """The devices on each PCI root, the main root first, expanders in the order of their bus numbers."""
        layout = self.layout
        expanders = [c for c in layout.controllers.values() if layout.is_expander(c)]
        order = [None, *(c.index for c in sorted(expanders, key=lambda c: (c.bus_nr or 0, c.index)))]
        found: dict[Optional[int], list[str]] = {expander: [] for expander in order}
        for unit in self.units:
            for device in unit.devices:
                address = self.addresses.get(device.source, device.address)
                found[layout.expander_of(address.bus) if address is not None else None].append(device.source)
        return list(found.values())

    def _plan(self) -> Plan:
        layout, existing = self.layout, self.existing
        new = frozenset(layout.added)
        ours = existing.ours | new
        changed = self._changed() if self.withdrawn else new
        holds = any(layout.is_expander(layout.controllers[index]) for index in ours)
        return Plan(
            placement=Placement(self.grouping, tuple(sorted(ours)), self._originals(ours)) if holds else None,
            remove=tuple(sorted(index for index in self.withdrawn if index in changed or index not in new)),
            add=tuple([layout.controllers[index] for index in layout.added if index in changed]),
            moves=tuple(self.moves) if not self.withdrawn else tuple(self._moves_that_move()),
            foreign_moves=tuple(self.foreign_moves),
            set_node=tuple(sorted(existing.set_node.items())),
            set_hotplug=tuple(sorted(self.hotplug.items())),
            gain_multifunction=tuple(sorted(layout.gained - new)),
            addresses=self.addresses,
            reasons=self.reasons,
            stepped_down=None,
            staying=frozenset() if holds else self._staying(),
        )

    def _staying(self) -> frozenset[str]:
        return frozenset(device.source for unit in self.existing.others if must_stay(unit) for device in unit.devices)

    def _changed(self) -> frozenset[int]:
        """The added controllers but for those that stand already just as they are wanted."""
        there = self.domain.controllers
        wanted = [(index, self.layout.controllers[index]) for index in self.layout.added]
        return frozenset(index for index, new in wanted if index not in there or not means_the_same(new, there[index]))

    def _moves_that_move(self) -> list[Move]:
        there = {device.source: (device.address, device.address in self.domain.multifunction) for device in self.domain.devices}
        return [move for move in self.moves if there[move.source] != (move.address, move.multifunction == "on")]

    def _originals(self, ours: frozenset[int]) -> tuple[Original, ...]:
        """What to record: of every device that is where we put it, the address that its owner gave it."""
        existing, devices = self.existing, {device.source: device for unit in self.units for device in unit.devices}
        originals, as_placed, addresses = existing.originals, existing.as_placed, self.addresses
        found: list[Original] = []
        for source in {**originals, **devices} if originals else devices:
            entry = originals.get(source) if source in as_placed else None
            if source in addresses:
                found.append(entry or Original(source, () if source in as_placed else devices[source].original))
            elif entry is not None and source in devices and self._is_aside(devices[source], ours):
                found.append(entry)
        return tuple(found)

    def _is_aside(self, device: Passthrough, ours: frozenset[int]) -> bool:
        """Whether a device that is not placed is, after this plan, where we put it: on a main port of ours, or since we have its slot."""
        address = next((move.address for move in self.moves if move.source == device.source), device.address)
        original = self.existing.original_address(device.source)
        displaced = original is not None and original in [self.layout.controllers[index].address for index in ours]
        return address is not None and (address.bus in ours or displaced)


def _members(subtree: Subtree) -> list[Unit]:
    if isinstance(subtree, Unit):
        return [subtree]
    return [unit for child in subtree.children for unit in _members(child)]
