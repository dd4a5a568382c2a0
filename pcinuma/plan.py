# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a plan is: values only, in terms of the guest's PCI controllers and addresses.

``resolve`` makes the targets, ``placement`` the plan, ``domain.edit`` carries it out, ``report`` tells of it.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

from pcinuma.address import PciAddress
from pcinuma.errors import PcinumaError
from pcinuma.model import Controller, GuestCell, Placement
from pcinuma.ranges import Ranges
from pcinuma.reason import Reason
from pcinuma.settings import MemoryMode


class Target(NamedTuple):
    """Where a device belongs: guest cell, host root complex, the host's (upstream, downstream) pairs above it, topmost first.

    ``note`` is a reason that a placed device keeps (``NEAREST``).
    """

    cell: int
    root_complex: Optional[str]
    switches: tuple[tuple[str, str], ...]
    note: Optional[Reason] = None


class Resolved(NamedTuple):
    """What the host and the mapping say of a passthrough device, before planning: its target, or the reason why it has none."""

    target: Optional[Target]
    reason: Optional[Reason]


class Move(NamedTuple):
    """A new guest address for the device ``source``; None takes the address away and leaves the choice to libvirt."""

    source: str
    address: Optional[PciAddress]
    multifunction: Optional[str]


class Plan(NamedTuple):
    """All that is to be done to a domain.

    ``placement``: None where nothing is pcinuma's any more. ``remove``: controllers that go, before ``add`` comes. ``foreign_moves``:
    (from, to) for devices that are not passed through and sit on a port of ours. ``set_node``, ``set_hotplug``, ``gain_multifunction``:
    changes to controllers that pcinuma created. ``addresses``: source -> guest address for every device that is placed when the plan is
    carried out; ``reasons``: source -> why a device is not placed, or is placed with a remark. ``stepped_down``: why a finer grouping did
    not fit. ``doubt``: why the firmware, or some versions of it, may not map the devices. ``staying``: where nothing is pcinuma's any more,
    the sources of those that may not move.
    """

    placement: Optional[Placement]
    remove: tuple[int, ...]
    add: tuple[Controller, ...]
    moves: tuple[Move, ...]
    foreign_moves: tuple[tuple[PciAddress, PciAddress], ...]
    set_node: tuple[tuple[int, int], ...]
    set_hotplug: tuple[tuple[int, bool], ...]
    gain_multifunction: tuple[int, ...]
    addresses: dict[str, PciAddress]
    reasons: dict[str, Reason]
    stepped_down: Optional[str]
    doubt: Optional[str] = None
    staying: frozenset[str] = frozenset()

    @property
    def empty(self) -> bool:
        """Whether carrying the plan out would change nothing but, perhaps, the metadata."""
        controllers = self.add or self.remove or self.set_node or self.set_hotplug or self.gain_multifunction
        return not (controllers or self.moves or self.foreign_moves)


class NoRoom(PcinumaError):
    """A layout that does not fit: bus numbers, slots or controller indexes."""


class Proposal(NamedTuple):
    """The NUMA cells that a guest without any would get. ``distances``: a row for each cell; none where the host does not tell them as
    libvirt takes them. ``pins``: (vCPU, host CPUs) for the vCPUs that have no pin of their own."""

    cells: tuple[GuestCell, ...]
    mode: MemoryMode
    distances: tuple[tuple[int, ...], ...]
    pins: tuple[tuple[int, Ranges], ...]


class NoProposal(PcinumaError):
    """There are no cells that could be given to this guest."""
