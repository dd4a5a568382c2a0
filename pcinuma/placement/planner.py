"""The plan for one domain: fresh, or for a placed one the least change that makes it right again.

A fresh plan tries the groupings from the wished one to coarser ones, each in an assignment (:mod:`pcinuma.placement.assignment`) that is
thrown away if it does not fit; so does a layout afresh of a placed domain (``Wish.replan``). Else a placed domain keeps its grouping, and
leaves out the newcomers that do not fit.

Memory windows are judged wherever something moves. What stands has run, most likely, and the limits are estimates and those of the firmware
that was measured: taking such a guest back would change its addresses for what may be no fault. So there it is a remark (``doubt``), but
where the size was said (``X-PciMmio64Mb``, ``pcihole64``), the CPU adds nothing to it, and the same devices fit it unplaced, the layout is
known to be wrong, and goes. This happens to guests whose firmware or BARs changed after they were placed. What only some versions of
the firmware would not map is a remark too, also of a fresh plan.
"""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter
from typing import Mapping, Optional

from pcinuma.address import PciAddress
from pcinuma.model import Domain, MachineKind
from pcinuma.placement.aperture import NoAperture
from pcinuma.placement.assignment import Attempt, Wish
from pcinuma.placement.existing import Standing
from pcinuma.placement.layout import Layout
from pcinuma.placement.units import Unit, units_of
from pcinuma.plan import NoRoom, Plan, Verdict
from pcinuma.settings import GroupBy

_FINEST_FIRST = (GroupBy.SWITCH, GroupBy.ROOT_COMPLEX, GroupBy.NODE)
_FINEST_OF = {MachineKind.PCIE: GroupBy.SWITCH, MachineKind.PCI: GroupBy.ROOT_COMPLEX, MachineKind.PHB: GroupBy.NODE}


def groupings(domain: Domain, wish: Wish) -> tuple[GroupBy, ...]:
    """The groupings to try for a domain, finest first: that in force for a placed domain, else the wished and the coarser ones."""
    if domain.placement is not None and not wish.replan:
        return (domain.placement.group_by,)
    start = max(_FINEST_FIRST.index(wish.group_by), _FINEST_FIRST.index(_FINEST_OF.get(domain.machine, GroupBy.NODE)))
    return _FINEST_FIRST[start:]


def make_plan(
    domain: Domain, verdicts: Mapping[str, Verdict], hosts: Mapping[str, PciAddress], virtual: frozenset[str], wish: Wish
) -> Plan:
    """The plan for ``domain``. Raises NoRoom where not even the coarsest grouping fits, or where a placed domain cannot be mended.

    ``verdicts``: for every device that the guest gets as PCI device. ``hosts``, ``virtual``: see :func:`units_of`.
    """
    units = units_of(domain, verdicts, hosts, virtual)
    why: Optional[NoRoom] = None
    anew = domain.placement is None or wish.replan
    for grouping in groupings(domain, wish):
        for spare_ports in sorted({wish.spare_ports, 0}, reverse=True):
            try:
                wanted = wish if spare_ports == wish.spare_ports else replace(wish, spare_ports=spare_ports)
                found = _attempt(domain, units, grouping, wanted, frozenset())
            except NoRoom as error:
                why = why or error
                continue
            coarser = why is not None and grouping is not wish.group_by and anew
            return found._replace(stepped_down=f"group-by {wish.group_by.value} does not fit ({why})") if coarser else found
    assert why is not None
    if domain.placement is None or wish.replan:
        raise why
    return _without_some_newcomers(domain, units, domain.placement.group_by, replace(wish, spare_ports=0))


def _without_some_newcomers(domain: Domain, units: list[Unit], grouping: GroupBy, wish: Wish) -> Plan:
    """A placed domain whose newcomers do not all fit: as many of them as do, in the order of their host addresses."""
    newcomers = sorted(Standing(domain, units, grouping, Layout(domain)).newcomers, key=attrgetter("order"))
    left_out = frozenset(unit.devices[0].source for unit in newcomers)
    found = _attempt(domain, units, grouping, wish, left_out, standing=True)
    for unit in newcomers:
        try:
            found = _attempt(domain, units, grouping, wish, left_out - {unit.devices[0].source})
        except NoRoom:
            continue
        left_out -= {unit.devices[0].source}
    return found


def _attempt(
    domain: Domain, units: list[Unit], grouping: GroupBy, wish: Wish, left_out: frozenset[str], standing: bool = False
) -> Plan:
    """The plan of one attempt. Raises NoRoom where it does not fit. ``standing``: it is what stands, without any newcomer."""
    attempt = Attempt(domain, units, grouping, wish, left_out)
    found = attempt.run()
    if wish.aperture is None:
        return found
    roots = attempt.roots()
    misfit = wish.aperture.misfit(roots, attempt.layout.main_hotplug())
    if misfit is None:
        return found._replace(doubt=wish.aperture.caution(roots))
    stands = standing or not (wish.replan or found.add or found.moves)
    if stands and not wish.aperture.is_certain(roots):
        return found._replace(doubt=misfit)
    raise NoAperture(misfit)
