# SPDX-License-Identifier: LGPL-2.1-or-later
"""Domains that must not come back.

libvirt has no "define only if it exists". Where somebody undefines a domain in the millisecond between our last read and our
define, the define brings it back. libvirt's events then tell: the domain was undefined, and the only definition since then,
ours, *added* it where it should have *updated* it. Such a domain is undefined again, if it is still exactly what was defined
here; with another XML it is somebody else's, and stays. Whether that definition was ours is known where libvirt's writes are; where
they are not, nothing else may have happened meanwhile.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import Awaitable, Callable, Iterator, List, Tuple

import libvirt

from pcinuma.log import log

EVENTS_TAKE = 0.5
"""Seconds after a definition by which every event of that moment has arrived."""

Events = List[Tuple[int, int]]
"""VIR_DOMAIN_EVENT_… and detail, in order."""

Undefine = Callable[[], Awaitable[bool]]

_CAME_BACK = [
    (libvirt.VIR_DOMAIN_EVENT_UNDEFINED, libvirt.VIR_DOMAIN_EVENT_UNDEFINED_REMOVED),
    (libvirt.VIR_DOMAIN_EVENT_DEFINED, libvirt.VIR_DOMAIN_EVENT_DEFINED_ADDED),
]


class UndefineRaces:
    """Watches what libvirt says about domains while they are being defined here. Lives in the event loop."""

    def __init__(self) -> None:
        self._watches: dict[str, list[Events]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def event(self, uuid: str, event: int, detail: int) -> None:
        """libvirt sent an event that a definition came or went."""
        for events in self._watches.get(uuid, ()):
            events.append((event, detail))

    @contextmanager
    def watching(self, uuid: str) -> Iterator[Callable[[Undefine, bool], None]]:
        """Watch a domain; call what this gives after a definition, with a function that undefines the domain if it is as it was defined,
        and whether that function cannot tell whose definition it is.

        The check itself happens later, by itself.
        """
        events: Events = []
        self._watches.setdefault(uuid, []).append(events)
        kept = False

        def check_later(undefine: Undefine, guessing: bool) -> None:
            nonlocal kept
            kept = True
            task = asyncio.get_running_loop().create_task(self._check(uuid, events, undefine, guessing))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        try:
            yield check_later
        finally:
            if not kept:
                self._unwatch(uuid, events)

    def _unwatch(self, uuid: str, events: Events) -> None:
        watches = [other for other in self._watches.pop(uuid, []) if other is not events]
        if watches:
            self._watches[uuid] = watches

    async def _check(self, uuid: str, events: Events, undefine: Undefine, guessing: bool) -> None:
        try:
            await asyncio.sleep(EVENTS_TAKE)
            if (events if guessing else events[-2:]) == _CAME_BACK and await undefine():
                log.info("undefined again: somebody undefined the domain while it was being placed", uuid=uuid)
        except libvirt.libvirtError as error:
            log.warning("a domain that was undefined may be back", uuid=uuid, error=error.get_error_message())
        finally:
            self._unwatch(uuid, events)
