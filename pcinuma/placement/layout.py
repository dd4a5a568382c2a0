# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest's PCI tree while a plan is made: what is there, what is free, and what a new bridge would cost.

What bus numbers cost is counted here, and dealt out in :mod:`pcinuma.placement.bus_numbers`.

Indexes: libvirt puts a bridge on the main root at every index below the highest one that no controller has (a root port, on i440fx a
``pci-bridge``), and grows up to a bus that an address names. So new controllers come behind all of those; where a layout afresh withdrew
controllers, their indexes are used first, and :meth:`Layout.fill_freed` puts something of ours on those that would be left as gaps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from itertools import chain
from typing import Optional

from pcinuma.address import PciAddress
from pcinuma.model import Controller, Domain, MachineKind
from pcinuma.plan import NoRoom

BUSES = 256
HIGHEST_INDEX = 255
HIGHEST_PHB = 31
EXPANDERS = ("pcie-expander-bus", "pci-expander-bus")
_FIRST_FUNCTIONS = frozenset(range(0, 256, 8))
_TAKEN_MAIN_SLOTS = frozenset((0, 1, 0x1F))
_TAKEN_MAIN_SLOTS_OF_PCI = frozenset((0, 1, 2))  # of i440fx
_HABITUAL_MAIN_SLOTS = (0x1B, 0x1A, 0x1D)
"""Slots of pcie.0 that the chipset and the first VGA have, and those that ICH9's sound and USB have by habit: the last to be taken.

Source: libvirt, ``qemuDomainValidateDevicePCISlotsQ35``."""


class Layout:
    """A domain's PCI controllers and what is plugged into them; grows as a plan is made."""

    def __init__(self, domain: Domain, withdrawn: Iterable[int] = ()) -> None:
        """``withdrawn``: controllers of an existing placement that are gone in a layout afresh; their indexes are used first."""
        self.machine = domain.machine
        self.controllers: dict[int, Controller] = dict(domain.controllers)
        self._freed = sorted(withdrawn)
        for index in self._freed:
            del self.controllers[index]
        self.children: defaultdict[int, list[int]] = defaultdict(list)
        self._expander_of_bus: dict[int, Optional[int]] = {0: None}
        self._below: dict[int, int] = {}
        self._by_place: dict[tuple[int, int], int] = {}  # (parent, slot and function) -> bridge, once somebody asked
        self._to_come = 2 if domain.unaddressed and self.machine is MachineKind.PCIE else 0  # for a conventional device: bridge and port
        self.taken: defaultdict[int, set[int]] = defaultdict(set)
        self.added: list[int] = []
        self.gained: set[int] = set()
        self.reserved: set[tuple[int, int]] = set()
        ordered = sorted(self.controllers.items())
        self._expanders = [index for index, c in ordered if (c.node is not None or c.model in EXPANDERS) and self.is_expander(c)]
        phbs = self.machine is MachineKind.PHB
        for index, controller in ordered:
            if index > 0 and not (phbs and self._is_phb(controller)):
                address = controller.address
                self.children[address.bus if address else 0].append(index)
        self._numbered = any(self.controllers[index].bus_nr is not None for index in self._expanders)
        present = domain._replace(controllers=self.controllers) if self._freed else domain
        for _, bus, slot, function in present.addresses():
            self.taken[bus].add(slot << 3 | function)
        self._highest = max(self.controllers, default=0)
        if domain.placement is not None or self.machine is not MachineKind.PCIE:  # else :meth:`add_named_ports` says which
            named = self.taken.keys() - self._freed if self._freed else self.taken.keys()
            self._highest = max(self._highest, max(named, default=0))

    # What is there.

    def expander_of(self, bus: int) -> Optional[int]:
        """The expander (or extra PHB) that the bus of controller ``bus`` lies below or is; None for the main hierarchy."""
        if bus not in self._expander_of_bus:
            controller = self.controllers.get(bus)
            if controller is None:
                return None
            self._expander_of_bus[bus] = None  # a controller that sits on itself, however it came about, is in the main hierarchy
            if self.is_expander(controller):
                self._expander_of_bus[bus] = bus
            elif controller.index and controller.address is not None:
                self._expander_of_bus[bus] = self.expander_of(controller.address.bus)
        return self._expander_of_bus[bus]

    def is_expander(self, controller: Controller) -> bool:
        """Whether the controller opens a PCI root with a NUMA node of its own."""
        return controller.model in EXPANDERS or (controller.node is not None and self._is_phb(controller))

    def ports(self, index: int) -> list[int]:
        """The bridges plugged into controller ``index``, in the order in which firmware visits them."""
        return sorted(self.children.get(index, ()), key=lambda child: (_devfn(self.controllers[child].address), child))

    def bridges_below(self, index: int) -> int:
        """How many bridges lie below controller ``index``, at any depth."""
        if index not in self._below:
            children = self.children
            below = children.get(index, ())
            self._below[index] = len(below) + sum([self.bridges_below(child) for child in below if child in children])
        return self._below[index]

    def is_free(self, index: int) -> bool:
        """Whether nothing is plugged into controller ``index``."""
        return not self.taken.get(index)

    def main_buses(self) -> int:
        """How many bus numbers the main hierarchy needs, root bus and the ports that libvirt puts into index gaps included."""
        elsewhere = sum([1 + self.bridges_below(index) for index in self._expanders if not self._is_nested(index)])
        present = len(self.controllers) + (0 not in self.controllers)
        gaps = 0 if self.machine is MachineKind.PHB else self._highest + 1 - present
        return present - elsewhere + gaps + self._to_come

    def main_hotplug(self) -> int:
        """How many bridges of the main hierarchy may take a device later, those that libvirt puts into index gaps included."""
        fixed = sum(1 for index, c in self.controllers.items() if index > 0 and c.hotplug is False and self.expander_of(index) is None)
        return self.main_buses() - 1 - self._to_come - fixed

    def set_bus_nr(self, index: int, bus_nr: int) -> None:
        """Give an expander its bus number."""
        self.controllers[index] = self.controllers[index]._replace(bus_nr=bus_nr)
        self._numbered = True

    def room_below(self, expander: int) -> int:
        """How many more bridges fit below an expander that has its bus number."""
        if self.machine is not MachineKind.PCIE or self.controllers[expander].bus_nr is None:
            return HIGHEST_INDEX  # a new one: bus numbers are dealt out at the end
        return self.rooms().get(expander, HIGHEST_INDEX)

    def rooms(self) -> dict[int, int]:
        """How many more bridges fit below each of the expanders that have their bus number; negative where there are too many."""
        numbers = sorted(self.numbers_of_expanders())
        ends = dict(zip(numbers, [*numbers[1:], BUSES]))
        numbered = [(index, bus_nr) for index in self._expanders if (bus_nr := self.controllers[index].bus_nr) is not None]
        return {index: ends[bus_nr] - bus_nr - 1 - self.bridges_below(index) for index, bus_nr in numbered}

    def numbers_of_expanders(self) -> dict[int, int]:
        """Bus number -> index of each expander that has its number."""
        numbered = [(self.controllers[index].bus_nr, index) for index in self._expanders]
        return {bus_nr: index for bus_nr, index in numbered if bus_nr is not None}

    # What is added.

    def new_expanders(self) -> list[int]:
        """The expanders that were added, in that order."""
        return sorted(set(self._expanders).intersection(self.added), key=self.added.index)

    def take(self, address: PciAddress) -> None:
        """Mark a guest address as occupied."""
        _, bus, slot, function = address
        self.taken[bus].add(slot << 3 | function)

    def release(self, address: PciAddress) -> None:
        """Mark a guest address as free."""
        self.taken.get(address.bus, set()).discard(_devfn(address))

    def add_expander(self, cell: int) -> int:
        """A new expander for ``cell`` on the main root; its bus number is dealt out by
        :func:`pcinuma.placement.bus_numbers.number_expanders`."""
        if self.machine is MachineKind.PHB:
            used = {c.target_index for c in self.controllers.values()}
            free = next((i for i in range(1, HIGHEST_PHB + 1) if i not in used), None)
            if free is None:
                raise NoRoom("all PCI host bridges of the machine are used")
            return self._add(Controller(self._next_index(0), "pci-root", node=cell, target_index=free))
        slot = self._main_slot()
        return self._add(Controller(self._next_index(0), self.machine.value, slot, node=cell))

    def add_port(self, parent: int, *, dense: bool = False, hotplug: Optional[bool] = False) -> int:
        """A root port on an expander, or a downstream port on an upstream port, behind the last one there.

        ``dense`` fills the eight functions of a slot before the next slot, for more than 32 ports on one bus.
        """
        model = "pcie-switch-downstream-port" if self.controllers[parent].model == "pcie-switch-upstream-port" else "pcie-root-port"
        self._require_room(parent)
        devfn = self._next_devfn(parent, model, dense) if self.taken.get(parent) else 0
        address = PciAddress(0, parent, devfn >> 3, devfn & 7)
        return self._add(Controller(self._next_index(parent), model, address, None, None, None, hotplug))

    def add_upstream(self, port: int) -> int:
        """An upstream port of a switch, plugged into a root port or downstream port."""
        self._require_room(port)
        return self._add(Controller(self._next_index(port), "pcie-switch-upstream-port", PciAddress(0, port, 0, 0)))

    def add_main_ports(self, count: int, hotplug: Optional[bool] = None) -> list[int]:
        """``count`` root ports on the main root, hot-pluggable unless said, eight to a slot, behind the ports that are there."""
        ports: list[int] = []
        slot = -1
        for position in range(count):
            if position % 8 == 0:
                slot = self._free_main_slot(from_slot=self._last_main_bridge() + 1 if slot < 0 else slot + 1)
            multifunction = position % 8 == 0 and count - position > 1
            address = PciAddress(0, 0, slot, position % 8)
            new = Controller(self._next_index(0), "pcie-root-port", address, hotplug=hotplug, multifunction=multifunction)
            ports.append(self._add(new))
        return ports

    def add_named_ports(self, buses: Iterable[int]) -> None:
        """The main ports that libvirt would add, since an address names their bus, so that nothing of ours gets their indexes."""
        self.add_main_ports(max(0, max(buses, default=0) - self._highest))

    def fill_freed(self, cell: int) -> None:
        """Leave no gap where something was withdrawn: a main port that reserves nothing, elsewhere an empty expander for ``cell``."""
        count = sum(1 for index in self._freed if index < self._highest)
        if self.machine is MachineKind.PCIE:
            self.add_main_ports(count, hotplug=False)
        else:
            for _ in range(count):
                self.add_expander(cell)

    def require_main_slots(self, count: int) -> None:
        """Raise NoRoom unless ``count`` devices find a slot on the main root (i440fx, pseries).

        libvirt would put what finds none there on the next bus by index, which is an expander.
        """
        used = {devfn >> 3 for devfn in self.taken.get(0, ())} | {0, *((1,) if self.machine is MachineKind.PCI else ())}
        if count and 32 - len(used) < count:
            raise NoRoom(f"{count} devices want a slot of the main PCI root where {32 - len(used)} are free")

    def free_main_slot(self) -> int:
        """A slot of the main root that nothing uses."""
        return self._free_main_slot(from_slot=self._last_main_bridge() + 1)

    def direct_slot(self, expander: int) -> int:
        """The first free slot directly on an expander of a machine whose expanders take devices.

        i440fx's has the slots 0 to 31 (libvirt takes, and a guest shows, all of them), a PHB of pseries 1 to 31.
        """
        slots = self._direct_slots(expander)
        if not slots:
            raise NoRoom("no slot is left on the expander")
        return slots[0]

    def has_direct_slot(self, expander: int) -> bool:
        """Whether :meth:`direct_slot` would find one."""
        return bool(self._direct_slots(expander))

    def _direct_slots(self, expander: int) -> list[int]:
        used = {devfn >> 3 for devfn in self.taken.get(expander, ())}
        slots = [*range(1, 32), *((0,) if self.machine is MachineKind.PCI else ())]
        return [slot for slot in slots if slot not in used]

    # Details.

    @cached_property
    def _chassis(self) -> set[int]:
        """The chassis numbers in use; asked for when something is added, and kept from then on."""
        return {index if controller.chassis is None else controller.chassis for index, controller in self.controllers.items()}

    def _require_room(self, bus: int) -> None:
        """Raise NoRoom unless one more bridge fits below the expander of ``bus``."""
        if self._numbered and self.room_below(self.expander_of(bus) or 0) < 1:
            raise NoRoom("no bus number is left below the expander")

    def _add(self, new: Controller) -> int:
        if new.index in self._chassis and new.model in ("pcie-root-port", "pcie-switch-downstream-port"):
            free = next((n for n in range(HIGHEST_INDEX, 0, -1) if n not in self._chassis), None)
            if free is None:
                raise NoRoom("all chassis numbers are used")
            new = new._replace(chassis=free)
        index, address, chassis = new.index, new.address, new.chassis
        self._chassis.add(index if chassis is None else chassis)
        self.added.append(index)
        self.controllers[index] = new
        if new.node is not None:
            self._expanders.append(index)
        if address is not None:
            _, bus, slot, function = address
            devfn = slot << 3 | function
            self.children[bus].append(index)
            self.taken[bus].add(devfn)
            if self._by_place:
                self._by_place[bus, devfn] = index
            if self._below:
                self._count_one_more(bus)
        return index

    def _count_one_more(self, bus: int) -> None:
        """A bridge came below controller ``bus``, and so below all that is above it."""
        above: list[int] = []
        while bus not in above:
            above.append(bus)
            if bus in self._below:
                self._below[bus] += 1
            controller = self.controllers.get(bus)
            if controller is None or controller.address is None or not bus:
                break
            bus = controller.address.bus

    def _next_devfn(self, parent: int, model: str, dense: bool) -> int:
        """Slot and function behind the last one used on a bus, as eight bits."""
        used = self.taken[parent]
        last = max(used)
        devfn = (last | 7) + 1
        if model == "pcie-root-port" and (dense or devfn > 255 or not used <= _FIRST_FUNCTIONS):
            devfn = last + 1
        if devfn > 255 or (devfn & 7 and not self._gain_multifunction(parent, devfn)):
            raise NoRoom("all slots of the bus are used")
        return devfn

    def _gain_multifunction(self, parent: int, devfn: int) -> bool:
        """Make function 0 of a slot say that there are more; False where function 0 is no port of this bus."""
        if not self._by_place:
            addressed = [(index, c.address) for index, c in self.controllers.items() if c.address is not None]
            self._by_place = {(address.bus, _devfn(address)): index for index, address in addressed}
        first = self._by_place.get((parent, devfn & ~7))
        if first is None:
            return False
        if not self.controllers[first].multifunction:
            self.controllers[first] = self.controllers[first]._replace(multifunction=True)
            self.gained.add(first)
        return True

    def _is_nested(self, expander: int) -> bool:
        """Whether it sits below another expander, or below itself."""
        address = self.controllers[expander].address
        return address is not None and address.bus != 0 and self.expander_of(address.bus) is not None

    def _is_phb(self, controller: Controller) -> bool:
        return self.machine is MachineKind.PHB and controller.model == "pci-root" and controller.index > 0

    def _next_index(self, above: int) -> int:
        for position, index in enumerate(self._freed):
            if index > above:  # libvirt wants it above that of the controller it is plugged into
                del self._freed[position]
                self._highest = max(self._highest, index)
                return index
        self._highest += 1
        if self._highest > HIGHEST_INDEX:
            raise NoRoom("all controller indexes are used")
        return self._highest

    def _last_main_bridge(self) -> int:
        bridges = [self.controllers[index].address for index in self.children.get(0, ()) if index not in self._expanders]
        return max([address.slot for address in bridges if address is not None], default=1)

    def _main_slot(self) -> PciAddress:
        """A place on the main root for an expander: a slot of its own from the middle up, else a further function of our last one."""
        try:
            return PciAddress(0, 0, self._free_main_slot(from_slot=0x10), 0)
        except NoRoom:
            for new in map(self.controllers.__getitem__, self.added):
                if new.address is not None and new.address.bus == 0 and self.is_expander(new):
                    used = self.taken[0]
                    base = new.address.slot << 3
                    free = next((base | f for f in range(1, 8) if (base | f) not in used), None)
                    if free is not None and self._gain_multifunction(0, free):
                        return PciAddress(0, 0, free >> 3, free & 7)
            raise

    def _free_main_slot(self, *, from_slot: int) -> int:
        taken = self.taken[0]
        chipset = _TAKEN_MAIN_SLOTS_OF_PCI if self.machine is MachineKind.PCI else _TAKEN_MAIN_SLOTS
        habitual: tuple[int, ...] = _HABITUAL_MAIN_SLOTS if self.machine is MachineKind.PCIE else ()
        reserved: Optional[int] = None
        for slots, others in ((chain(range(from_slot, 32), range(2, from_slot)), habitual), (habitual, ())):
            for slot in slots:
                if slot in chipset or slot in others or not taken.isdisjoint(range(slot << 3, (slot << 3) + 8)):
                    continue
                if (0, slot) not in self.reserved:
                    return slot
                if reserved is None:
                    reserved = slot
        if reserved is not None:
            return reserved
        raise NoRoom("no slot is left on the main PCI root")


def _devfn(address: Optional[PciAddress]) -> int:
    return 0 if address is None else address.slot << 3 | address.function
