# SPDX-License-Identifier: LGPL-2.1-or-later
"""The plan for one domain: fresh, or for a placed one the least change that makes it right again.

A fresh plan tries the groupings from the one asked for to coarser ones, each in an assignment (:mod:`pcinuma.placement.assignment`) that is
thrown away if it does not fit; so does a layout afresh of a placed domain (``PlanOptions.replan``). Else a placed domain keeps its
grouping, and leaves out the new devices that do not fit.

Memory windows are judged wherever something moves. What is placed already has run, most likely, and the limits are estimates and those of
the firmware that was measured: taking such a guest back would change its addresses for what may be no fault. So there it is a remark
(``doubt``), but where the size was said (``X-PciMmio64Mb``, ``pcihole64``), the CPU adds nothing to it, and the same devices fit it
unplaced, the layout is known to be wrong, and goes. This happens to guests whose firmware or BARs changed after they were placed. What only
some versions of the firmware would not map is a remark too, also of a fresh plan.
"""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter
from typing import Mapping, Optional

from pcinuma.address import PciAddress
from pcinuma.model import Domain, MachineKind
from pcinuma.placement.aperture import NoAperture
from pcinuma.placement.assignment import Assignment
from pcinuma.placement.existing import ExistingPlacement
from pcinuma.placement.layout import Layout
from pcinuma.placement.options import PlanOptions
from pcinuma.placement.units import Unit, units_of
from pcinuma.plan import NoRoom, Plan, Resolved
from pcinuma.settings import GroupBy

_FINEST_FIRST = (GroupBy.SWITCH, GroupBy.ROOT_COMPLEX, GroupBy.NODE)
_FINEST_OF = {MachineKind.PCIE: GroupBy.SWITCH, MachineKind.PCI: GroupBy.ROOT_COMPLEX, MachineKind.PHB: GroupBy.NODE}


def groupings(domain: Domain, options: PlanOptions) -> tuple[GroupBy, ...]:
    """The groupings to try for a domain, finest first: that in force for a placed domain, else the one asked for and the coarser ones."""
    if domain.placement is not None and not options.replan:
        return (domain.placement.group_by,)
    start = max(_FINEST_FIRST.index(options.group_by), _FINEST_FIRST.index(_FINEST_OF.get(domain.machine, GroupBy.NODE)))
    return _FINEST_FIRST[start:]


def make_plan(
    domain: Domain, resolved: Mapping[str, Resolved], hosts: Mapping[str, PciAddress], virtual: frozenset[str], options: PlanOptions
) -> Plan:
    """The plan for ``domain``. Raises NoRoom where not even the coarsest grouping fits, or where a placed domain cannot be mended.

    ``resolved``: for every device that the guest gets as PCI device. ``hosts``, ``virtual``: see :func:`units_of`.
    """
    units = units_of(domain, resolved, hosts, virtual)
    why: Optional[NoRoom] = None
    anew = domain.placement is None or options.replan
    for grouping in groupings(domain, options):
        for spare_ports in sorted({options.spare_ports, 0}, reverse=True):
            try:
                wanted = options if spare_ports == options.spare_ports else replace(options, spare_ports=spare_ports)
                found = _assign(domain, units, grouping, wanted, frozenset())
            except NoRoom as error:
                why = why or error
                continue
            coarser = why is not None and grouping is not options.group_by and anew
            return found._replace(stepped_down=f"group-by {options.group_by.value} does not fit ({why})") if coarser else found
    assert why is not None
    if domain.placement is None or options.replan:
        raise why
    return _without_some_new_units(domain, units, domain.placement.group_by, replace(options, spare_ports=0))


def _without_some_new_units(domain: Domain, units: list[Unit], grouping: GroupBy, options: PlanOptions) -> Plan:
    """A placed domain whose new devices do not all fit: as many of them as do, in the order of their host addresses."""
    new_units = sorted(ExistingPlacement(domain, units, grouping, Layout(domain)).new_units, key=attrgetter("order"))
    left_out = frozenset(unit.devices[0].source for unit in new_units)
    found = _assign(domain, units, grouping, options, left_out, unchanged=True)
    for unit in new_units:
        try:
            found = _assign(domain, units, grouping, options, left_out - {unit.devices[0].source})
        except NoRoom:
            continue
        left_out -= {unit.devices[0].source}
    return found


def _assign(
    domain: Domain, units: list[Unit], grouping: GroupBy, options: PlanOptions, left_out: frozenset[str], unchanged: bool = False
) -> Plan:
    """The plan of one assignment. Raises NoRoom where it does not fit. ``unchanged``: it is what is there, without any new unit."""
    assignment = Assignment(domain, units, grouping, options, left_out)
    found = assignment.run()
    if options.aperture is None:
        return found
    roots = assignment.roots()
    misfit = options.aperture.misfit(roots, assignment.layout.main_hotplug())
    if misfit is None:
        return found._replace(doubt=options.aperture.caution(roots))
    nothing_moves = unchanged or not (options.replan or found.add or found.moves)
    if nothing_moves and not options.aperture.is_certain(roots):
        return found._replace(doubt=misfit)
    raise NoAperture(misfit)
