# SPDX-License-Identifier: LGPL-2.1-or-later
"""Starts that are under way, by the hook's word.

While a domain starts, libvirt holds it locked and every call about it would block a thread, so it is left alone. When that is over is
told by whatever comes first:

* libvirt's event that it runs or has stopped;
* a sign that libvirt's lock was free: somebody's definition was accepted, or its file written. In the first moment it may have been
  made just before the start and be late, so it counts at the end of that;
* the hook's ``release end``, where it sends that;
* libvirt itself. A start that fails early has no event, so one thread at most asks whether the domain is active, which is answered when
  the lock is free again (and only that tells that it failed);
* the time that no start takes.
"""

from __future__ import annotations

import asyncio
import time
from typing import Awaitable, Callable, NamedTuple

TAKES = 15.0
REFUSAL_TAKES = 1.0
SIGNS_ARE_LATE = 0.2
ASKED_FIRST, ASKED_AT_MOST_EVERY = 0.3, 3.0


class _Start(NamedTuple):
    began: float
    until: asyncio.TimerHandle
    asking: asyncio.Task[None]


class Starts:
    """Lives in the event loop. ``over``: called with a domain when its start is over, and whether it is known to have failed;
    ``is_active``: libvirt's answer, however long it takes; it may raise anything."""

    def __init__(self, over: Callable[[str, bool], None], is_active: Callable[[str], Awaitable[bool]]) -> None:
        self._over = over
        self._is_active = is_active
        self._starts: dict[str, _Start] = {}
        self._asking = asyncio.Lock()

    def __contains__(self, uuid: str) -> bool:
        return uuid in self._starts

    def begins(self, uuid: str, *, refused: bool) -> None:
        """The hook was asked about the domain, and refused the start or not."""
        self.forget(uuid)
        loop = asyncio.get_running_loop()
        until = loop.call_later(REFUSAL_TAKES if refused else TAKES, self.is_over, uuid)
        self._starts[uuid] = _Start(time.monotonic(), until, loop.create_task(self._ask(uuid)))

    def lock_was_free(self, uuid: str) -> None:
        """libvirt did something with the domain that it cannot do while it starts it."""
        start = self._starts.get(uuid)
        if start is not None:
            wait = start.began + SIGNS_ARE_LATE - time.monotonic()
            if wait > 0:
                start.until.cancel()
                until = asyncio.get_running_loop().call_later(wait, self.is_over, uuid)
                self._starts[uuid] = start._replace(until=until)
            else:
                self.is_over(uuid)

    def is_over(self, uuid: str, failed: bool = False) -> None:
        """The start is over, one way or the other."""
        if self.forget(uuid):
            self._over(uuid, failed)

    def forget(self, uuid: str) -> bool:
        """The domain is gone; return whether it was being started."""
        start = self._starts.pop(uuid, None)
        if start is None:
            return False
        start.until.cancel()
        start.asking.cancel()
        return True

    def clear(self) -> None:
        """There is no libvirt any more."""
        for uuid in list(self._starts):
            self.forget(uuid)

    async def _ask(self, uuid: str) -> None:
        pause = ASKED_FIRST
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, ASKED_AT_MOST_EVERY)
            try:
                async with self._asking:
                    active = await self._is_active(uuid)
            except Exception:  # libvirt is gone, or the domain: there is an event for either
                return
            if not active:
                asyncio.get_running_loop().call_soon(self.is_over, uuid, True)  # not from within: it cancels this
                return
