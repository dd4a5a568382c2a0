# SPDX-License-Identifier: LGPL-2.1-or-later
"""A domain's PCI hierarchy: which controllers are above an address, and which cell the guest sees for it.

A view on :class:`pcinuma.model.Domain` for drawing and for judging. Strange values are no error here: what cannot be read is left
out, so that a command can show a domain that placement refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Container, Optional

from pcinuma.address import PciAddress
from pcinuma.domain.read import read_domain
from pcinuma.domain.xml import Document
from pcinuma.model import BACKED, Controller, Domain, Passthrough

EXPANDERS = ("pcie-expander-bus", "pci-expander-bus")
SWITCH = "pcie-switch-upstream-port"


@dataclass(frozen=True)
class Guest:
    """A domain, asked about its PCI hierarchy."""

    domain: Domain

    @classmethod
    def read(cls, xml: bytes, pools: frozenset[str] = frozenset()) -> Guest:
        """The guest that the domain ``xml`` describes, whatever may be asked about. Raises UnusableInput for what is no domain XML."""
        return cls(read_domain(Document(xml), pools, near_backing=True)[0])

    def device(self, source: str) -> Optional[Passthrough]:
        """The passthrough device with this ``source``."""
        return next((device for device in self.domain.devices if device.source == source), None)

    def path(self, address: PciAddress) -> tuple[Controller, ...]:
        """The controllers above ``address``, topmost first, without the default root that libvirt may not spell out."""
        chain: list[Controller] = []
        bus = address.bus
        while bus in self.domain.controllers and self.domain.controllers[bus] not in chain:
            controller = self.domain.controllers[bus]
            chain.append(controller)
            if controller.address is None:
                break
            bus = controller.address.bus
        return tuple(reversed(chain))

    def top(self, address: PciAddress) -> Optional[Controller]:
        """The expander bus or extra root that ``address`` hangs below; None for the default root."""
        return next((controller for controller in self.path(address) if is_top(controller)), None)

    def cell(self, address: PciAddress) -> Optional[int]:
        """The cell that the guest sees for ``address``; None for none."""
        top = self.top(address)
        return None if top is None else top.node

    def is_ours(self, controller: Controller) -> bool:
        """Whether pcinuma added the controller."""
        return self.domain.placement is not None and controller.index in self.domain.placement.controllers

    def emulated_at_root(self, listed: Container[str]) -> int:
        """How many devices that are not passed through have an address outside every cell, but for those that are ``listed``."""
        others = [*self.domain.others]
        others += [d.address for d in self.domain.devices if d.form in BACKED and d.address is not None and d.source not in listed]
        return sum(self.cell(address) is None for address in others)

    def has_neighbours(self, address: PciAddress) -> bool:
        """Whether other functions share the slot of ``address``."""
        return sum(other.device == address.device for other in self.domain.addresses()) > 1


def is_top(controller: Controller) -> bool:
    """Whether the controller begins a root complex of its own: an expander bus, or an extra root of pseries."""
    return controller.model in EXPANDERS or (controller.model == "pci-root" and controller.index > 0)
