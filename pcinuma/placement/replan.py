# SPDX-License-Identifier: LGPL-2.1-or-later
"""A layout afresh of a placed domain: what of the existing one it does without.

Everything below pcinuma's expanders is laid out anew, but for an expander that holds something which may not move: a kept device, one of
which nobody can tell where it belongs, one that the guest already ran with, or somebody's own controller. Such an expander stands as it
would if nothing were laid out afresh. Main ports stay too: they belong to nobody's place, and what libvirt put on them is there to stay.
Only those that fill a gap in the indexes go, to come back where the gap does.
"""

from __future__ import annotations

from pcinuma.address import PciAddress
from pcinuma.domain.ownership import removable
from pcinuma.model import Controller, Domain
from pcinuma.placement.existing import must_stay
from pcinuma.placement.layout import Layout
from pcinuma.placement.units import Unit


def withdrawn(domain: Domain, units: list[Unit], ran_with: frozenset[PciAddress]) -> frozenset[int]:
    """The controllers of the existing placement that a layout afresh does without."""
    if domain.placement is None:
        return frozenset()
    layout = Layout(domain)
    expanders = {index: layout.expander_of(index) for index in domain.placement.controllers}
    going = {
        index
        for index, expander in expanders.items()
        if expander is not None or (layout.is_free(index) and fills_gap(domain.controllers[index]))
    }
    moving = {d.address for unit in units if not must_stay(unit) for d in unit.devices if d.address is not None}
    moving.update(address for address in domain.others if address not in ran_with)
    staying = [*(d.address for d in domain.devices if d.address is not None), *domain.others]
    others = [address for address in staying if address not in moving or address.bus not in going]
    while True:
        left = removable(going, domain.controllers, others)
        staying_expanders = {expanders[index] for index in going - left} - {None}
        left = {index for index in left if expanders[index] is None or expanders[index] not in staying_expanders}
        if left == going:
            return frozenset(left)
        going = left


def fills_gap(port: Controller) -> bool:
    """Whether one of pcinuma's main ports is there for its index only (:meth:`pcinuma.placement.layout.Layout.fill_freed`)."""
    return port.hotplug is False


def means_the_same(one: Controller, other: Controller) -> bool:
    """Whether two controllers are the same to libvirt, which writes out what it chose or assumed."""
    return _normal(one) == _normal(other)


def _normal(controller: Controller) -> Controller:
    chassis = controller.index if controller.chassis is None else controller.chassis
    return controller._replace(chassis=chassis, hotplug=controller.hotplug is not False)

