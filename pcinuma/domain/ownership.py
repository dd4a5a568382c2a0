# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which controllers are pcinuma's: those that the metadata lists *and* that are as pcinuma makes them.

The list alone proves nothing: it travels with copied XML, and whoever may write to libvirt may write one. What counts is

* an expander: the machine's model, on the main root, with a node and a bus number (a further PHB of pseries: a node and its own index);
* below one of those: root ports on the expander, upstream ports on such ports, downstream ports on such upstream ports;
* root ports of the main root, and only beside an expander: pcinuma adds none without.

Everything else that is listed belongs to somebody, and is neither removed nor used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pcinuma.address import PciAddress
from pcinuma.model import Controller, MachineKind, Placement

_BELOW = {
    "pcie-root-port": ("pcie-expander-bus",),
    "pcie-switch-upstream-port": ("pcie-root-port", "pcie-switch-downstream-port"),
    "pcie-switch-downstream-port": ("pcie-switch-upstream-port",),
}


def as_made(placement: Placement, controllers: Mapping[int, Controller], machine: MachineKind) -> Placement:
    """``placement`` with those of its controllers that are as pcinuma makes them."""
    ours: dict[int, str] = {}
    main_ports: list[int] = []
    expander, ports = machine.value, machine is MachineKind.PCIE
    for index in placement.controllers:  # ascending: what a controller is plugged into has a lower index
        controller = controllers.get(index)
        if controller is None or index == 0:
            continue
        model, address = controller.model, controller.address
        if model == expander:
            on_root = controller.bus_nr is not None and address is not None and address.bus == 0
            if controller.node is not None and (on_root or (machine is MachineKind.PHB and controller.target_index is not None)):
                ours[index] = model
        elif ports and address is not None:
            above = ours.get(address.bus)
            if above is not None:
                if above in _BELOW.get(model, ()):
                    ours[index] = model
            elif is_main_port(controller):
                main_ports.append(index)
    if len(ours) == len(placement.controllers):
        return placement
    kept = sorted([*ours, *main_ports]) if ours else []
    return placement._replace(controllers=tuple(kept))


def is_main_port(controller: Controller) -> bool:
    """Whether a controller is a root port of the main root."""
    return controller.model == "pcie-root-port" and controller.address is not None and controller.address.bus == 0


def removable(candidates: Iterable[int], controllers: Mapping[int, Controller], others: Iterable[PciAddress]) -> set[int]:
    """Those of ``candidates`` that nothing else needs: the devices at ``others``, and the controllers that are no candidates.

    A controller that somebody sits on keeps what is above it, and function 0 of a slot stays while there are others.
    """
    found = set(candidates)
    first_of_slot = {c.address.device: index for index, c in controllers.items() if c.address is not None and not c.address.function}
    pending = [*others, *(c.address for index, c in controllers.items() if index not in found and c.address is not None)]
    while pending:
        address = pending.pop()
        for index in {address.bus, first_of_slot.get(address.device, address.bus) if address.function else address.bus} & found:
            found.discard(index)
            above = controllers[index].address
            if above is not None:
                pending.append(above)
    return found
