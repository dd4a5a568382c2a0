# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the daemon counts since it started, for ``pcinuma metrics``: how starts went, and how long hooks and looks took.

Plain integers in the event loop's hands, of a size that does not grow: nothing is counted before a hook has its answer. A start is counted
once two things are known, in whatever order they come: what was about to boot (:meth:`Counters.start_is`), and how it ended
(:meth:`Counters.start_ended`). A start of which one of them never becomes known is forgotten when a thousand others are under way.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Optional, TypeVar

from pcinuma.daemon.start_check import StartCheck
from pcinuma.reason import Outcome
from pcinuma.report import Result

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Seconds. A hook gives up after one."""
MOST = 1024
"""Starts under way, and domains whose last placement was not the reconciler's."""

RESULTS = RUNNING, REFUSED, FAILED, UNKNOWN = "running", "refused", "failed", "unknown"
PLACED, UNPLACED, LEFT = "placed", "unplaced", "left"
LAYOUTS = {PLACED: ("reconciler", "proxy", "command", "other"), UNPLACED: ("hook", "nobody"), LEFT: ("nobody",)}
"""Whose work each can be."""

T = TypeVar("T")


class Histogram:
    """Durations: how many were at most each of :data:`BOUNDS` (and no less than the one before), and their sum in seconds."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds

    def as_json(self) -> dict[str, Any]:
        return {"bounds": list(BOUNDS), "counts": list(self.counts), "sum": self.sum}


@dataclass
class _Start:
    by: Optional[str] = None
    layout: Optional[str] = None
    result: Optional[str] = None


class Counters:
    """Lives in the event loop. ``connections``: how often libvirt was connected to."""

    def __init__(self) -> None:
        self.hook = Histogram()
        self.reconcile = Histogram()
        self.connections = 0
        # All are there from the beginning: of a series that appears with its first start, Prometheus would not see that start.
        self._starts = {(by, layout, result): 0 for layout in LAYOUTS for by in LAYOUTS[layout] for result in RESULTS}
        self._under_way: OrderedDict[str, _Start] = OrderedDict()
        self._placed_by: OrderedDict[str, str] = OrderedDict()

    def placed(self, name: str, by: str) -> None:
        """The domain called ``name`` was given its layout by the reconciler, the proxy or a command."""
        self._placed_by.pop(name, None)
        if by != "reconciler":
            _keep(self._placed_by, name, by)

    def start_begins(self, uuid: str) -> None:
        """A hook was answered. If the domain's last start has not ended by now, libvirt gave it up."""
        self.start_ended(uuid, FAILED)
        self._under_way.pop(uuid, None)
        _keep(self._under_way, uuid, _Start())

    def start_is(self, uuid: str, check: StartCheck, layout: Result, *, persistent: bool) -> None:
        """What that start boots: ``layout`` is the report on the XML as it is."""
        start = self._under_way.get(uuid)
        if start is not None:
            start.layout = _layout(layout)
            if start.layout == PLACED:
                start.by = self._placed_by.get(check.name, "reconciler" if persistent else "other")
            else:
                start.by = "hook" if check.placed is not None and check.refusal is None else "nobody"
            self._count(uuid, start)

    def start_ended(self, uuid: str, result: str) -> None:
        """A start that is under way came to this."""
        start = self._under_way.get(uuid)
        if start is not None and start.result is None:
            start.result = result
            self._count(uuid, start)

    def disconnected(self) -> None:
        """There is no libvirt any more that could tell how a start ended."""
        for uuid in list(self._under_way):
            self.start_ended(uuid, UNKNOWN)

    def _count(self, uuid: str, start: _Start) -> None:
        if start.by is not None and start.layout is not None and start.result is not None:
            self._starts[start.by, start.layout, start.result] += 1
            del self._under_way[uuid]

    def as_json(self) -> dict[str, Any]:
        """As the interface describes it."""
        return {
            "hook": self.hook.as_json(),
            "reconcile": self.reconcile.as_json(),
            "starts": [
                {"by": by, "layout": layout, "result": result, "count": count}
                for (by, layout, result), count in sorted(self._starts.items())
            ],
            "connections": self.connections,
        }


def _layout(result: Result) -> str:
    if result.outcome is Outcome.FALLBACK:
        return UNPLACED
    return PLACED if any(device.placed for device in result.devices) else LEFT


def _keep(table: OrderedDict[str, T], key: str, value: T) -> None:
    table[key] = value
    if len(table) > MOST:
        table.popitem(last=False)
