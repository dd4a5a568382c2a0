# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which guest addresses a device may be sent back to: where its controller takes a device, nobody is, and the guest would see it.

A guest looks at function 0 of a slot first, and at the others only if that says ``multifunction``; QEMU refuses a further function in a
slot whose function 0 does not say so. So a device is never made a function of a slot that was not one of several functions before.
"""

from __future__ import annotations

from collections.abc import Mapping

from pcinuma.address import PciAddress
from pcinuma.model import Controller

_PORTS = ("pcie-root-port", "pcie-switch-downstream-port")
_TAKE_NO_DEVICE = ("pcie-expander-bus", "pcie-switch-upstream-port")


def takes_devices(address: PciAddress, controllers: Mapping[int, Controller]) -> bool:
    """Whether the bus of ``address`` is there and has such a slot for a device."""
    controller = controllers.get(address.bus)
    if controller is None:
        return address.bus == 0 and address.slot > 0
    if controller.model in _PORTS:
        return address.slot == 0
    return controller.model not in _TAKE_NO_DEVICE and (address.slot > 0 or controller.model == "pci-expander-bus")


class UsableAddresses:
    """The guest addresses in use, and which of those in function 0 say that their slot has more functions."""

    def __init__(self, taken: Mapping[PciAddress, bool]) -> None:
        """``taken``: address -> whether it says ``multifunction='on'``."""
        self._functions: dict[tuple[int, int], set[int]] = {}
        self._several: set[tuple[int, int]] = set()
        for address, several in taken.items():
            self.take(address, several)

    def take(self, address: PciAddress, several: bool) -> None:
        """Somebody is at ``address``. ``several``: and says ``multifunction='on'``."""
        slot = address.bus, address.slot
        self._functions.setdefault(slot, set()).add(address.function)
        if several and address.function == 0:
            self._several.add(slot)

    def leave(self, address: PciAddress) -> None:
        """Nobody is at ``address`` any more."""
        self._functions[address.bus, address.slot].discard(address.function)
        if not address.function:
            self._several.discard((address.bus, address.slot))

    def admit(self, address: PciAddress, several: bool) -> bool:
        """Whether a device may come to ``address``, saying ``multifunction='on'`` or not, and the guest would see all that is there."""
        slot = address.bus, address.slot
        functions = self._functions.get(slot, ())
        if address.function in functions:
            return False
        if address.function:
            return slot in self._several
        return several or not functions
