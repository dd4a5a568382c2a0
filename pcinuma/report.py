# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the engine answers: a :class:`Result` with the XML to start and one :class:`DeviceReport` per passthrough device.

``Result.report`` is the frozen JSON format of ``pcinuma place --report``; log, command, daemon and hook show the same values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Sequence

from pcinuma.model import BACKED, AttachedAs, Domain, Form, MadeCells
from pcinuma.placement.layout import Layout
from pcinuma.plan import Plan
from pcinuma.ranges import format_ranges
from pcinuma.reason import Outcome, Reason
from pcinuma.resolve import Resolution
from pcinuma.settings import GroupBy

_NOT_ATTACHED = {AttachedAs.UNASSIGNED: Reason.UNASSIGNED, AttachedAs.NOT_PCI: Reason.NOT_PCI}
_BY_ADDRESS = (Form.HOSTDEV_PCI, Form.INTERFACE_HOSTDEV)  # whose source is the address
_GOOD_ENOUGH = (Reason.NO_AFFINITY, Reason.SEVERAL_NODES, Reason.KEPT, Reason.UNASSIGNED, Reason.NOT_PCI, Reason.BACKING_UNKNOWN)
_BACKED = tuple(form.value for form in BACKED)
_NOT_ASKED = (Reason.POOL_UNRESOLVED, Reason.BACKING_UNKNOWN)


class DeviceReport(NamedTuple):
    """One passthrough device; the fields are those of the frozen format, ``guest_address`` as the output XML says it."""

    device: Optional[str]
    source: str
    form: str
    host_node: Optional[int]
    guest_cell: Optional[int]
    guest_address: Optional[str]
    placed: bool
    reason: Optional[Reason]

    def as_json(self) -> dict[str, Any]:
        """Plain data in the frozen format."""
        return {**self._asdict(), "reason": self.reason.value if self.reason else None}


class CellReport(NamedTuple):
    """One guest cell that pcinuma wrote, or would; the fields are those of the frozen format."""

    cell: int
    host_node: int
    vcpus: str
    memory_kib: int
    cpus: str


@dataclass(frozen=True)
class Result:
    """What the engine made of a domain.

    ``xml``: the XML to start (the input's own bytes unless something changed). ``refused``: policy ``required`` is not met.
    ``warnings``: whole sentences for the log. ``cells``: pcinuma's in ``xml``, None where the guest has none or its owner's.
    """

    outcome: Outcome
    reason: Optional[Reason]
    message: Optional[str]
    group_by: Optional[GroupBy]
    devices: tuple[DeviceReport, ...]
    xml: bytes
    refused: bool = False
    warnings: tuple[str, ...] = ()
    cells: Optional[tuple[CellReport, ...]] = None

    def report(self) -> dict[str, Any]:
        """Plain data in the frozen format."""
        return {
            "outcome": self.outcome.value,
            "reason": self.reason.value if self.reason else None,
            "message": self.message,
            "group_by": self.group_by.value if self.group_by else None,
            "cells": None if self.cells is None else [cell._asdict() for cell in self.cells],
            "devices": [device.as_json() for device in self.devices],
        }


def cell_reports(made: MadeCells) -> tuple[CellReport, ...]:
    """A report on the cells that pcinuma wrote."""
    return tuple(
        [CellReport(c.number, c.node, format_ranges(c.vcpus), c.memory_kib, format_ranges(c.cpus)) for c in made.cells]
    )


def device_reports(
    domain: Domain, resolution: Resolution, plan: Optional[Plan], fallback: Optional[Reason] = None
) -> tuple[DeviceReport, ...]:
    """A report on every passthrough device of ``domain``, in the order of the XML: as ``plan`` leaves it, else as it is.

    ``fallback`` is the reason for which the whole domain stays; of those only want of room is also each device's own.
    """
    moved = {}
    if plan is not None:
        moved = {move.source: move.address for move in plan.moves}
    ours = frozenset(domain.placement.controllers if domain.placement else ())
    layout = Layout(domain) if plan is None and ours else None
    hosts, nodes, cells = resolution.hosts, resolution.nodes, resolution.cells
    reports = []
    for device in domain.devices:
        source, form = device.source, device.form
        resolved = resolution.resolved.get(source)
        reason = _NOT_ATTACHED.get(device.attached_as) if resolved is None else resolved.reason
        address = moved.get(source, device.address)
        if plan is not None:
            placed = source in plan.addresses
            reason = plan.reasons.get(source, reason)
        else:
            expander = layout.expander_of(device.address.bus) if layout and device.address else None
            placed = expander is not None and expander in ours
            if fallback in (Reason.NO_ROOM, Reason.NO_APERTURE) and resolved is not None and resolved.target is not None and not placed:
                reason = fallback
        if placed and reason is not None:
            placed = reason is not Reason.QEMU_OVERRIDE
            if reason in _NOT_ASKED:
                reason = None  # it is where it was put when that could be told
        host = hosts.get(source)
        reports.append(
            DeviceReport(
                (source if form in _BY_ADDRESS else str(host)) if host else None,
                source,
                form.value,
                nodes.get(source),
                cells.get(source),
                str(address) if address else None,
                placed,
                reason,
            )
        )
    return tuple(reports)


def unmet(devices: Sequence[DeviceReport]) -> Optional[DeviceReport]:
    """The first device for which policy ``required`` is not met: the guest gets it, the host may know its node, and it is not placed."""
    return next((device for device in devices if not device.placed and not _good_enough(device)), None)


def _good_enough(device: DeviceReport) -> bool:
    backed = device.form in _BACKED  # a disk on several drives has no node that it could miss
    return device.reason in _GOOD_ENOUGH or (backed and device.reason is Reason.MIXED_NODES)
