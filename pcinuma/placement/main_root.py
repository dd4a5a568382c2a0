# SPDX-License-Identifier: LGPL-2.1-or-later
"""Off pcinuma's ports and back to the main root: to the address that a device once had, else to one that nobody will ask for.

A device that cannot have its old address (somebody is there, or the guest would not see it there) goes to a main port that is pcinuma's,
and what is recorded of it stays: once nobody is in its way a revert gives it what its owner gave it. For the same reason the recorded
addresses of others are left free, as far as there is anything else.
"""

from __future__ import annotations

from typing import Optional

from pcinuma.address import PciAddress
from pcinuma.domain.metadata import says_several
from pcinuma.domain.usable_address import UsableAddresses, takes_devices
from pcinuma.model import Domain, MachineKind
from pcinuma.placement.existing import ExistingPlacement
from pcinuma.placement.layout import Layout
from pcinuma.placement.units import Unit, slot_of
from pcinuma.plan import Move, NoRoom


class MainRoot:
    """The main root during one assignment, after all that moves was released."""

    def __init__(self, domain: Domain, layout: Layout, existing: ExistingPlacement, new_units: list[Unit]) -> None:
        self.domain = domain
        self.layout = layout
        self.existing = existing
        reserved = [device.address for unit in new_units for device in unit.devices]
        if existing.originals:
            here = {device.source for device in domain.devices}
            reserved += [existing.original_address(source) for source in existing.originals if source in here]
        layout.reserved.update([slot_of(address) for address in reserved if address is not None])

    def send_back(self, units: list[Unit]) -> list[Move]:
        """Give ``units`` addresses on the main root."""
        usable = self._usable_addresses() if units else UsableAddresses({})
        back: dict[str, PciAddress] = {}
        for unit in sorted(units, key=self._function):
            addresses = self._original_addresses(unit, usable)
            if addresses is not None:
                back.update(zip([device.source for device in unit.devices], addresses))
                for address in addresses:
                    self.layout.take(address)
        moves: list[Move] = []
        for unit in units:
            if unit.devices[0].source in back:
                for device in unit.devices:
                    said = dict(self.existing.originals[device.source].attributes).get("multifunction")
                    moves.append(Move(device.source, back[device.source], said))
            else:
                first = self.free_address(own=True)
                for device, function in zip(unit.devices, unit.functions()):
                    address = first._replace(function=function)
                    self.layout.take(address)
                    moves.append(Move(device.source, address, "on" if function == 0 and len(unit.devices) > 1 else None))
        return moves

    def free_address(self, *, own: bool) -> PciAddress:
        """A free port of the main root, one of pcinuma's if ``own``; on machines without ports a free slot."""
        if self.domain.machine is not MachineKind.PCIE:
            return PciAddress(0, 0, self.layout.free_main_slot(), 0)
        free = [index for index in sorted(self.layout.controllers) if self._is_free_port(index)]
        unwanted = [index for index in free if (index, 0) not in self.layout.reserved]
        ours = [index for index in unwanted if index in self.existing.ours or index in self.layout.added]
        wanted = ours if own else unwanted
        if not wanted:
            try:
                wanted = self.layout.add_main_ports(1)
            except NoRoom:
                wanted = unwanted or free
                if not wanted:
                    raise
        return PciAddress(0, wanted[0], 0, 0)

    def _is_free_port(self, index: int) -> bool:
        model = self.layout.controllers[index].model
        return model == "pcie-root-port" and self.layout.is_free(index) and self.layout.expander_of(index) is None

    def _function(self, unit: Unit) -> int:
        """Function 0 of a slot comes back before the others, which nobody would see without it."""
        address = self.existing.original_address(unit.devices[0].source)
        return 0 if address is None else address.function

    def _usable_addresses(self) -> UsableAddresses:
        taken = self.layout.taken.items()
        present = [PciAddress(0, bus, devfn >> 3, devfn & 7) for bus, used in taken for devfn in used]
        several = {c.address for c in self.layout.controllers.values() if c.multifunction} | self.domain.multifunction
        return UsableAddresses({address: address in several for address in present})

    def _original_addresses(self, unit: Unit, usable: UsableAddresses) -> Optional[list[PciAddress]]:
        """The addresses that the functions of ``unit`` had, taken in ``usable``; None where one of them cannot have it."""
        found: list[PciAddress] = []
        for device in unit.devices:
            entry = self.existing.originals.get(device.source)
            address = self.existing.original_address(device.source)
            if entry is None or address is None or not self._is_on_main(address) or not usable.admit(address, says_several(entry)):
                for taken in found:
                    usable.leave(taken)
                return None
            usable.take(address, True)
            found.append(address)
        return found

    def _is_on_main(self, address: PciAddress) -> bool:
        return takes_devices(address, self.layout.controllers) and self.layout.expander_of(address.bus) is None
