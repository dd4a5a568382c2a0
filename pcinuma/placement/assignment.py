"""One attempt at a plan, for one grouping.

1. ``units`` groups the passthrough devices; each unit has a target (cell, root complex, switches) or a reason for none.
2. ``standing`` tells of a placed domain which units sit where they belong, which must move, and what each expander stands for.
3. Seats: units without one are put on free ports of the right expander, else on new ports behind the last one, else below a new expander;
   what belongs nowhere goes back to the main root. Nobody else moves, neither in the XML nor in the guest's bus numbers.
4. Bus numbers are dealt out to new expanders last, when their sizes are known.

Anything that does not fit raises :class:`NoRoom`.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Optional

from pcinuma.address import PciAddress
from pcinuma.model import Domain, MachineKind, Original, Passthrough, Placement
from pcinuma.placement.aperture import Aperture
from pcinuma.placement.existing import Key, Standing, key_of
from pcinuma.placement.grouping import Shape, Switch, branching, shapes
from pcinuma.placement.layout import Layout
from pcinuma.placement.main_root import MainRoot
from pcinuma.placement.replan import means_the_same, withdrawn
from pcinuma.placement.units import Unit, slot_of
from pcinuma.plan import Move, NoRoom, Plan
from pcinuma.reason import Reason
from pcinuma.settings import GroupBy


@dataclass(frozen=True)
class Wish:
    """What shapes a plan besides the domain and the host.

    ``replan``: lay a placed domain out afresh (:mod:`pcinuma.placement.replan`). ``ran_with``: addresses of strangers that the guest
    already ran with. ``aperture``: what the devices' windows must fit in.
    """

    group_by: GroupBy = GroupBy.ROOT_COMPLEX
    spare_ports: int = 0
    replan: bool = False
    ran_with: frozenset[PciAddress] = frozenset()
    aperture: Optional[Aperture] = None


class Attempt:
    """One attempt at a plan; lives for one :meth:`run`."""

    def __init__(self, domain: Domain, units: list[Unit], grouping: GroupBy, wish: Wish, left_out: frozenset[str]) -> None:
        self.domain = domain
        self.units = units
        self.grouping = grouping
        self.wish = wish
        self.left_out = left_out
        self.withdrawn = withdrawn(domain, units, wish.ran_with) if wish.replan else frozenset()
        self.layout = Layout(domain, self.withdrawn)
        self.standing = Standing(domain, units, grouping, self.layout, self.withdrawn)
        self.anew = domain.placement is None or wish.replan
        self.moves: list[Move] = []
        self.seats: dict[str, PciAddress] = {}
        self.reasons: dict[str, Reason] = {}
        self.hotplug: dict[int, bool] = {}
        self.strangers: list[tuple[PciAddress, PciAddress]] = []
        self._free_ports: dict[int, list[int]] = {}

    def run(self) -> Plan:
        standing = self.standing
        self._stay(standing.right)
        for unit in (*standing.wrong, *standing.leaving):
            for device in unit.devices:
                if device.address is not None:
                    self.layout.release(device.address)
        newcomers = self._admitted(standing.newcomers)
        if self.anew and (newcomers or self.wish.replan):
            self._main_ports_first(newcomers)
        main_root = MainRoot(self.domain, self.layout, standing, newcomers)
        self._vacate_main_slots(newcomers)
        self._move_strangers(main_root)
        self._send_back(main_root)
        by_key: dict[Key, list[Unit]] = {}
        for unit in (*standing.wrong, *newcomers):
            assert unit.target is not None
            by_key.setdefault(key_of(unit.target, self.grouping), []).append(unit)
        for key in sorted(by_key, key=lambda k: (k.cell, k.root_complex or "")):
            self._seat_all(key, sorted(by_key[key], key=attrgetter("order")))
        self._keep_spare_ports()
        if self.withdrawn:
            self.layout.fill_freed(min(self.domain.cells))
        self._leave_slots(newcomers)
        self.layout.number_expanders()
        self._check_buses()
        self._say_apart()
        return self._plan()

    # Who takes part.

    def _stay(self, units: list[Unit]) -> None:
        for unit in units:
            if unit.target is not None and unit.address is not None and unit.address.function:
                self._begin_with_function_zero(unit)
                continue
            for device in unit.devices:
                assert device.address is not None
                self.seats[device.source] = device.address
                if unit.reason is not None:
                    self.reasons[device.source] = unit.reason

    def _begin_with_function_zero(self, unit: Unit) -> None:
        """Function 0 of a slot of ours was taken out of the domain: the guest sees the others if one of them is that now."""
        assert unit.address is not None
        for device in unit.devices:
            if device.address is not None:
                self.layout.release(device.address)
        self._plug(unit, unit.address.bus, unit.address.slot)

    def _admitted(self, newcomers: list[Unit]) -> list[Unit]:
        """The newcomers that may move: not those left out for room, and not out of a slot that would lose its function 0."""
        admitted = []
        for unit in newcomers:
            if unit.devices[0].source in self.left_out:
                self._remark(unit, Reason.NO_ROOM)
            else:
                admitted.append(unit)
        for unit in self.standing.others:
            if unit.reason is not None:
                self._remark(unit, unit.reason)
        taken = self.layout.taken
        if not [unit for unit in admitted if (at := unit.devices[0].address) is not None and len(taken[at.bus]) != len(unit.devices)]:
            return admitted  # each alone on its bus
        moving = {device.address for unit in admitted for device in unit.devices if device.address is not None}
        slots = {slot_of(address) for address in moving}
        staying: dict[tuple[int, int], int] = {}  # the lowest function that stays in each of the slots
        for address in self.domain.addresses():
            if address not in moving and address[1:3] in slots:
                staying[address[1:3]] = min(staying.get(address[1:3], 7), address.function)
        for unit in list(admitted) if any(staying.values()) else ():
            if unit.address is not None and staying.get(slot_of(unit.address)):
                self._remark(unit, Reason.SHARED_SLOT)
                admitted.remove(unit)
        return admitted

    def _remark(self, unit: Unit, reason: Reason) -> None:
        for device in unit.devices:
            self.reasons[device.source] = reason

    # The main root.

    def _main_ports_first(self, newcomers: list[Unit]) -> None:
        """In XML that libvirt has yet to format: a main port for everything that it will put somewhere, and one spare."""
        if self.domain.machine is not MachineKind.PCIE:
            return
        if self.domain.placement is None:
            moving = {device.source for unit in newcomers for device in unit.devices}
            staying = [d.address.bus for d in self.domain.devices if d.address is not None and d.source not in moving]
            self.layout.add_named_ports([*staying, *(address.bus for address in self.domain.others)])
        count = self._waiting(newcomers)
        if count:
            there = sum(1 for index in self.standing.ours if self.layout.expander_of(index) is None and self.layout.is_free(index))
            self.layout.add_main_ports(max(0, count + 1 - there))

    def _leave_slots(self, newcomers: list[Unit]) -> None:
        """The same on machines whose roots take devices directly: there must be a slot of the main root for each."""
        if self.anew and self.domain.machine is not MachineKind.PCIE:
            self.layout.require_main_slots(self._waiting(newcomers))

    def _waiting(self, newcomers: list[Unit]) -> int:
        """How many devices libvirt has yet to find an address for."""
        waiting = {d.source for unit in self.units for d in unit.devices if d.address is None}
        if waiting:
            waiting.difference_update([device.source for unit in newcomers for device in unit.devices])
        return self.domain.unaddressed + len(waiting)

    def _vacate_main_slots(self, newcomers: list[Unit]) -> None:
        """What newcomers leave directly on the main root is free, for an expander that finds no other slot."""
        for unit in newcomers:
            for device in unit.devices:
                if device.address is not None and device.address.bus == 0:
                    self.layout.release(device.address)

    def _move_strangers(self, main_root: MainRoot) -> None:
        if not self.standing.ours and not self.withdrawn:
            return
        strangers = [
            stranger
            for stranger in sorted(self.domain.others)
            if stranger.bus in self.withdrawn
            or (stranger not in self.wish.ran_with and self.layout.expander_of(stranger.bus) in self.standing.ours)
        ]
        for stranger in strangers:
            self.layout.release(stranger)
        for stranger in strangers:
            address = main_root.free_seat(own=False)
            self.layout.take(address)
            self.strangers.append((stranger, address))

    def _send_back(self, main_root: MainRoot) -> None:
        """Off our ports what belongs nowhere now."""
        self.moves += main_root.send_back(self.standing.leaving)
        for unit in self.standing.leaving:
            if unit.reason is not None:
                self._remark(unit, unit.reason)

    def _check_buses(self) -> None:
        """Whoever added bridges, ours or somebody's: every hierarchy must fit before the next expander's first bus."""
        layout = self.layout
        numbered = layout.numbers_of_expanders()
        if numbered and layout.main_buses() > min(numbered):
            raise NoRoom(f"the main PCI root needs {layout.main_buses()} bus numbers where {min(numbered)} are free")
        if layout.machine is MachineKind.PCIE and self.standing.ours:
            for index, room in layout.rooms().items():
                if room < 0 and index in self.standing.ours:
                    raise NoRoom(f"the bridges below bus {layout.controllers[index].bus_nr} reach into the next expander's")

    # Below the expanders.

    def _seat_all(self, key: Key, units: list[Unit]) -> None:
        """Seat the units of one place: below the expanders that stand for it, and what finds no room there below a new one."""
        overflow: list[Unit] = []
        expanders = self.standing.expanders_for(key)
        if not expanders:
            overflow = units
        else:
            alone: list[Unit] = []
            for unit in units:
                related = self.grouping is GroupBy.SWITCH and self.standing.has_relative(unit, expanders)
                if not related:
                    alone.append(unit)
                elif not self._join_switch(unit, expanders) and not self._seat_on_any(unit, expanders, key):
                    overflow.append(unit)
            for shape in self._shapes(alone):
                if not self._seat_on_any(shape, expanders, key):
                    overflow.extend(_members(shape))
        if not overflow:
            return
        expander = self.layout.add_expander(key.cell)
        fresh = self._shapes(overflow)
        for shape in fresh:
            if self.domain.machine is not MachineKind.PCIE and not self.layout.has_direct_slot(expander):
                expander = self.layout.add_expander(key.cell)
            self._seat(shape, expander, dense=len(fresh) + 4 > 32)

    def _shapes(self, units: list[Unit]) -> list[Shape]:
        return shapes(units) if self.grouping is GroupBy.SWITCH else list(units)

    def _seat_on_any(self, shape: Shape, expanders: list[int], key: Key) -> bool:
        for expander in expanders:
            needs = 1 + (shape.bridges if isinstance(shape, Switch) else 0)
            if isinstance(shape, Unit) and self.domain.machine is MachineKind.PCIE:
                port = self._free_port(expander)
                if port is not None:
                    self._plug(shape, port)
                    self.standing.claim(expander, key)
                    return True
            if self.layout.room_below(expander) < needs:
                continue
            try:
                self._seat(shape, expander)
            except NoRoom as error:
                if isinstance(shape, Switch):
                    raise error
                continue
            self.standing.claim(expander, key)
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

    def _seat(self, shape: Shape, expander: int, *, dense: bool = False) -> None:
        if self.domain.machine is not MachineKind.PCIE:
            assert isinstance(shape, Unit)
            self._plug(shape, expander, slot=self.layout.direct_slot(expander))
            return
        self._hang(shape, self.layout.add_port(expander, dense=dense))

    def _hang(self, shape: Shape, port: int) -> None:
        if isinstance(shape, Unit):
            self._plug(shape, port)
            return
        upstream = self.layout.add_upstream(port)
        for leg in shape.legs:
            self._hang(leg, self.layout.add_port(upstream))

    def _join_switch(self, unit: Unit, expanders: list[int]) -> bool:
        """Put a newcomer below a switch that the guest already has, where that moves nobody; say whether it was possible."""
        found = self.standing.deepest_mirrored(unit, expanders)
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
            self.standing.mirrors[deeper] = host
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
        return port in self.standing.ours and self.layout.controllers[port].model == model and self.layout.is_free(port)

    def _plug(self, unit: Unit, bus: int, slot: int = 0) -> None:
        several = len(unit.devices) > 1
        for device, function in zip(unit.devices, unit.functions() if several else (0,)):
            address = PciAddress(0, bus, slot, function)
            self.layout.take(address)
            self.moves.append(Move(device.source, address, "on" if several and function == 0 else None))
            self.seats[device.source] = address
        if unit.reason is not None:
            self._remark(unit, unit.reason)
        controller = self.domain.controllers.get(bus) if bus in self.standing.ours else None
        if controller is not None and controller.hotplug is not False and self.domain.machine is MachineKind.PCIE:
            self.hotplug[bus] = False

    def _keep_spare_ports(self) -> None:
        if not self.wish.spare_ports or self.domain.machine is not MachineKind.PCIE:
            return
        for expander in sorted(self.standing.ours.union(self.layout.added)):
            if not self.layout.is_expander(self.layout.controllers[expander]):
                continue
            ports = [self.layout.controllers[port] for port in self.layout.ports(expander)]
            spare = sum(1 for port in ports if port.hotplug is not False and self.layout.is_free(port.index))
            for _ in range(self.wish.spare_ports - spare):
                self.layout.add_port(expander, hotplug=None)

    # What came of it.

    def roots(self) -> list[list[str]]:
        """The devices on each PCI root, the main root first, expanders in the order of their bus numbers."""
        layout = self.layout
        expanders = [c for c in layout.controllers.values() if layout.is_expander(c)]
        order = [None, *(c.index for c in sorted(expanders, key=lambda c: (c.bus_nr or 0, c.index)))]
        found: dict[Optional[int], list[str]] = {home: [] for home in order}
        for unit in self.units:
            for device in unit.devices:
                address = self.seats.get(device.source, device.address)
                found[layout.expander_of(address.bus) if address is not None else None].append(device.source)
        return list(found.values())

    def _say_apart(self) -> None:
        """Remark on devices whose switch the guest does not show although they branch there from one that came before."""
        if self.grouping is not GroupBy.SWITCH or self.domain.placement is None:  # a fresh layout shows every switch of a branching
            return
        below: dict[str, list[Unit]] = {}
        for unit in self.units:
            if unit.target is not None and unit.devices[0].source in self.seats:
                for upstream, _ in unit.chain:
                    below.setdefault(upstream, []).append(unit)
        apart: dict[PciAddress, tuple[Unit, frozenset[int]]] = {}
        for units in below.values():
            shown = [self._guest_switches(unit) for unit in units]
            if len(units) > 1 and not frozenset.intersection(*shown):
                apart.update({self.seats[unit.devices[0].source]: (unit, switches) for unit, switches in zip(units, shown)})
        ordered = [apart[seat] for seat in sorted(apart)]
        for position, (unit, switches) in enumerate(ordered):
            for earlier, others in ordered[:position]:
                if not switches & others and self._same_key(unit, earlier) and branching(unit.chain, earlier.chain):
                    self._remark(unit, Reason.KEPT_APART)
                    break

    def _guest_switches(self, unit: Unit) -> frozenset[int]:
        """The guest's upstream ports above a seated unit."""
        return frozenset([upstream for upstream, _ in self.standing.guest_chain(self.seats[unit.devices[0].source].bus)])

    def _same_key(self, unit: Unit, other: Unit) -> bool:
        assert unit.target is not None and other.target is not None
        return key_of(unit.target, self.grouping) == key_of(other.target, self.grouping)

    def _plan(self) -> Plan:
        layout, standing = self.layout, self.standing
        new = frozenset(layout.added)
        ours = standing.ours | new
        changed = self._changed() if self.withdrawn else new
        holds = any(layout.is_expander(layout.controllers[index]) for index in ours)
        return Plan(
            placement=Placement(self.grouping, tuple(sorted(ours)), self._originals(ours)) if holds else None,
            remove=tuple(sorted(index for index in self.withdrawn if index in changed or index not in new)),
            add=tuple([layout.controllers[index] for index in layout.added if index in changed]),
            moves=tuple(self.moves) if not self.withdrawn else tuple(self._moves_that_move()),
            strangers=tuple(self.strangers),
            set_node=tuple(sorted(standing.relabelled.items())),
            set_hotplug=tuple(sorted(self.hotplug.items())),
            gain_multifunction=tuple(sorted(layout.gained - new)),
            seats=self.seats,
            reasons=self.reasons,
            stepped_down=None,
        )

    def _changed(self) -> frozenset[int]:
        """The added controllers but for those that stand already just as they are wanted."""
        there = self.domain.controllers
        wanted = [(index, self.layout.controllers[index]) for index in self.layout.added]
        return frozenset(index for index, new in wanted if index not in there or not means_the_same(new, there[index]))

    def _moves_that_move(self) -> list[Move]:
        stands = {device.source: (device.address, device.address in self.domain.multifunction) for device in self.domain.devices}
        return [move for move in self.moves if stands[move.source] != (move.address, move.multifunction == "on")]

    def _originals(self, ours: frozenset[int]) -> tuple[Original, ...]:
        """What to record: of every device that is where we put it, the address that its owner gave it."""
        standing, devices = self.standing, {device.source: device for unit in self.units for device in unit.devices}
        originals, at_home, seats = standing.originals, standing.at_home, self.seats
        found: list[Original] = []
        for source in {**originals, **devices} if originals else devices:
            entry = originals.get(source) if source in at_home else None
            if source in seats:
                found.append(entry or Original(source, () if source in standing.below else devices[source].original))
            elif entry is not None and source in devices and self._is_aside(devices[source], ours):
                found.append(entry)
        return tuple(found)

    def _is_aside(self, device: Passthrough, ours: frozenset[int]) -> bool:
        """Whether a device that is not placed is, after this plan, where we put it: on a main port of ours, or since we have its slot."""
        address = next((move.address for move in self.moves if move.source == device.source), device.address)
        original = self.standing.original_address(device.source)
        displaced = original is not None and original in [self.layout.controllers[index].address for index in ours]
        return address is not None and (address.bus in ours or displaced)


def _members(shape: Shape) -> list[Unit]:
    if isinstance(shape, Unit):
        return [shape]
    return [unit for leg in shape.legs for unit in _members(leg)]
