# SPDX-License-Identifier: LGPL-2.1-or-later
"""What each ``group-by`` would show the guest of one domain, what it gains and what it costs.

Every figure is measured on a plan that the engine really makes for that grouping (afresh, as ``apply --replan`` would). The facts about
emulated ports are QEMU's: a root port shows 16 GT/s x32 unless it is told otherwise (``link = host``), a switch 2.5 GT/s x1; QEMU announces
AtomicOps completion only for a single-function vfio device directly below a root port (QEMU ``hw/vfio/pci.c``,
``vfio_pci_enable_rp_atomics``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Optional

from pcinuma.address import PciAddress
from pcinuma.engine import Request, Result, place
from pcinuma.host.topology import HostDevice, Topology
from pcinuma.printable import printable
from pcinuma.reason import Outcome, Reason
from pcinuma.settings import GroupBy
from pcinuma.show.describe import count
from pcinuma.show.distance import Distance, distance, guest_location, host_location
from pcinuma.show.guest import SWITCH, Guest
from pcinuma.show.links import QEMUS, shown_links

LINK_BELOW_ROOT_PORT = QEMUS.text
LINK_BELOW_SWITCH = "2.5 GT/s x1"
ORDER = (GroupBy.NODE, GroupBy.ROOT_COMPLEX, GroupBy.SWITCH)


@dataclass(frozen=True)
class Pair:
    """Two devices that the guest sees at another distance than the host has them."""

    first: str
    second: str
    host: Distance
    guest: Distance


@dataclass(frozen=True)
class Shown:
    """What one layout shows the guest. ``right``: pairs of devices with the host's distance, of ``pairs``; ``atomics``: devices that keep
    AtomicOps, of ``devices``; ``behind_switch``: devices that show a switch port's link; ``links``: what root ports were told to show."""

    devices: int
    expanders: int
    pairs: int
    right: int
    behind_switch: int
    atomics: int
    wrong: tuple[Pair, ...]
    links: tuple[str, ...] = ()

    @property
    def link_below_root_port(self) -> str:
        """In words."""
        return ", ".join(self.links) or LINK_BELOW_ROOT_PORT

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "devices": self.devices,
            "expanders": self.expanders,
            "pairs": self.pairs,
            "pairs_as_on_host": self.right,
            "devices_behind_switch": self.behind_switch,
            "devices_with_atomicops": self.atomics,
            "links_told": list(self.links),
            "pairs_not_as_on_host": [
                {"first": pair.first, "second": pair.second, "host": pair.host.value, "guest": pair.guest.value} for pair in self.wrong
            ],
        }


@dataclass(frozen=True)
class Grouping:
    """One ``group-by`` for a domain; ``shown`` is None if it would not fit or not be placed, and ``message`` says why."""

    group_by: GroupBy
    shown: Optional[Shown]
    message: Optional[str]

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        shown = None if self.shown is None else self.shown.as_json()
        return {"group_by": self.group_by.value, "fits": self.shown is not None, "message": self.message, "shown": shown}


def groupings(xml: bytes, request: Request, topology: Topology) -> list[Grouping]:
    """All groupings for the domain ``xml``, from coarse to fine; none if pcinuma does not place it at all."""
    found = []
    for group_by in ORDER:
        result = place(xml, replace(request, group_by=group_by, replan=True))
        as_it_is = result.reason is Reason.ALREADY_PLACED  # laid out afresh it would be the same
        if not as_it_is and (result.group_by is not group_by or result.outcome is Outcome.FALLBACK):
            reason = result.reason.sentence if result.reason else None
            found.append(Grouping(group_by, None, result.message or reason))
        else:
            found.append(Grouping(group_by, shown_by(result, frozenset(request.pools), topology), None))
    return found if any(grouping.shown is not None for grouping in found) else []


def shown_by(result: Result, pools: frozenset[str], topology: Topology) -> Shown:
    """What the layout of a result shows the guest."""
    guest = Guest.read(result.xml, pools)
    hosts = {str(device.address): device for device in topology.devices}
    known: list[tuple[str, HostDevice, PciAddress]] = []
    for report in result.devices:
        device, seen = hosts.get(report.device or ""), guest.device(report.source)
        if device is not None and seen is not None and seen.address is not None:
            known.append((report.source, device, seen.address))
    wrong = []
    for (one, one_host, first), (other, other_host, second) in combinations(known, 2):
        on_host = distance(host_location(one_host), host_location(other_host))
        in_guest = distance(guest_location(guest, first), guest_location(guest, second))
        if on_host is not in_guest:
            wrong.append(Pair(one, other, on_host, in_guest))
    placed = [address for _, _, address in known]
    tops = {top.index for address in placed if (top := guest.top(address)) is not None}
    switched = [address for address in placed if any(controller.model == SWITCH for controller in guest.path(address))]
    pairs = len(known) * (len(known) - 1) // 2
    return Shown(
        devices=len(known),
        expanders=len(tops),
        pairs=pairs,
        right=pairs - len(wrong),
        behind_switch=len(switched),
        atomics=sum(address not in switched and not guest.has_neighbours(address) for address in placed),
        wrong=tuple(wrong),
        links=shown_links(guest.domain),
    )


@dataclass(frozen=True)
class Trade:
    """One thing that another grouping would change for the guest, for the better or for the worse."""

    better: bool
    text: str


def trade(now: Shown, other: Grouping) -> list[Trade]:
    """What the guest would gain and lose under another grouping."""
    if other.shown is None:
        return [Trade(False, printable(other.message or Reason.NO_ROOM.sentence))]
    trades = []
    pairs = other.shown.right - now.right
    if pairs:
        word = "more" if pairs > 0 else "fewer"
        trades.append(Trade(pairs > 0, f"{abs(pairs)} {word} of {now.pairs} pairs of devices at the host's distance"))
    links = other.shown.behind_switch - now.behind_switch
    if links:
        link = LINK_BELOW_SWITCH if links > 0 else other.shown.link_below_root_port
        trades.append(Trade(links < 0, f"{count(abs(links), 'device')} would show a link of {link}, which NCCL computes bandwidths from"))
    atomics = other.shown.atomics - now.atomics
    if atomics:
        verb = "gain" if atomics > 0 else "lose"
        trades.append(Trade(atomics > 0, f"{count(abs(atomics), 'device')} would {verb} AtomicOps, which AMD's ROCm needs"))
    return trades
