# SPDX-License-Identifier: LGPL-2.1-or-later
"""The work queue: which domains are to be looked at, in what order, and who gives way to whom. It knows nothing of libvirt.

A domain is on it at most once, and is given out to one worker at a time. One with an event comes before those of a sweep; and a look
without an event, when it is under way already, waits a moment (:meth:`WorkQueue.give_way`) for those with one: two looks at once share the
processor, and a client may start the domain of one of them a few milliseconds after its define.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import Callable

NOW, SOMETIME = 0, 1
GIVES_WAY = 0.02
"""Seconds that a look without an event waits at most, each time, for one with an event."""


class WorkQueue:
    """Lives in the event loop, but for what :meth:`give_way` returns. ``may_look``: whether a domain may be looked at now; one that may not
    stays wanted until :meth:`want` is called again."""

    def __init__(self, may_look: Callable[[str], bool]) -> None:
        self._may_look = may_look
        self._queue: asyncio.PriorityQueue[tuple[int, int, str]] = asyncio.PriorityQueue()
        self._order = itertools.count()
        self._wanted: set[str] = set()
        self._busy: set[str] = set()
        self._urgent: set[str] = set()  # of the wanted and the busy, what has an event
        self._nothing_urgent = threading.Event()
        self._nothing_urgent.set()

    def __contains__(self, uuid: str) -> bool:
        return uuid in self._wanted

    @property
    def idle(self) -> bool:
        """Nothing is wanted or under way."""
        return not self._busy and not self._wanted

    @property
    def domains(self) -> set[str]:
        """The domains that are wanted or under way."""
        return self._busy | self._wanted

    def want(self, uuid: str, priority: int) -> None:
        """Give the domain out as soon as possible."""
        if uuid in self._wanted and priority != NOW:
            return
        self._wanted.add(uuid)
        if uuid not in self._busy and self._may_look(uuid):
            self._queue.put_nowait((priority, next(self._order), uuid))
            if priority == NOW:
                self._urgent.add(uuid)
                self._nothing_urgent.clear()

    def drop(self, uuid: str) -> None:
        """Nobody wants it any more."""
        self._wanted.discard(uuid)

    def clear(self) -> None:
        """Nothing is wanted any more."""
        self._wanted.clear()

    async def next(self) -> str:
        """The next domain to be looked at; :meth:`done` is to be called after that."""
        while True:
            _, _, uuid = await self._queue.get()
            if uuid in self._wanted and uuid not in self._busy and self._may_look(uuid):
                self._wanted.discard(uuid)
                self._busy.add(uuid)
                return uuid
            if uuid not in self._busy:
                self._no_more_urgent(uuid)

    def done(self, uuid: str) -> None:
        """It has been looked at; if it is wanted again, its turn comes."""
        self._busy.discard(uuid)
        self._no_more_urgent(uuid)
        if uuid in self._wanted:
            self.want(uuid, NOW)

    def give_way(self, uuid: str) -> Callable[[], object]:
        """What a look at the domain calls in its thread before it uses the processor."""
        return (lambda: None) if uuid in self._urgent else (lambda: self._nothing_urgent.wait(GIVES_WAY))

    def _no_more_urgent(self, uuid: str) -> None:
        self._urgent.discard(uuid)
        if not self._urgent:
            self._nothing_urgent.set()
