# SPDX-License-Identifier: LGPL-2.1-or-later
"""Threads that run what may block, and that are counted while they do: a call that never comes back takes a thread with it.

libvirt may not answer (stopped, or waiting for a hung storage itself), a file of sysfs may block. The link's keepalive ends the calls of
a libvirt that is dead as a whole; what is left are calls that nothing ends. :meth:`Threads.stuck` says which they are, and
:meth:`Threads.exhausted` when they are too many to go on: then systemd's watchdog is to start the daemon anew.
"""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType
from typing import Any, Callable, NamedTuple, Optional, TypeVar

PATIENCE = 60.0
"""Seconds after which a thread counts as lost. The keepalive has ended the calls of a dead libvirt by then."""
SLOW = 15.0
"""Seconds after which a call is worth telling a person about."""

HINT = "is libvirt, or a storage of its, stuck? see: systemctl status libvirtd virtqemud"

T = TypeVar("T")


class Call(NamedTuple):
    """A call that is under way in ``thread``, since time.monotonic() was ``began``."""

    thread: int
    began: float
    about: tuple[Any, ...]


class Threads(ThreadPoolExecutor):
    """``size`` threads, with ``lost`` of which gone the pool is no use any more."""

    def __init__(self, size: int, name: str, lost: int) -> None:
        super().__init__(size, name)
        self._name = name
        self._lost = lost
        self._calls: dict[int, Call] = {}

    def submit(self, function: Callable[..., T], /, *arguments: Any, **named: Any) -> Future[T]:
        """As every executor does."""
        return super().submit(self._run, function, arguments, named)

    def _run(self, function: Callable[..., T], arguments: tuple[Any, ...], named: dict[str, Any]) -> T:
        thread = threading.get_ident()
        self._calls[thread] = Call(thread, time.monotonic(), arguments)
        try:
            return function(*arguments, **named)
        finally:
            del self._calls[thread]

    def exhausted(self) -> bool:
        """Whether so many threads do not come back that what is asked of this pool may never be done."""
        return len(self._older_than(PATIENCE)) >= self._lost

    def stuck(self) -> list[str]:
        """The calls that take long, each a sentence: what is being done, for which domain, for how long."""
        now, frames = time.monotonic(), sys._current_frames()
        return [
            f"{_doing(frames.get(call.thread))}{_about(call)} has not come back for {now - call.began:.0f} s: {HINT}"
            for call in self._older_than(SLOW)
        ]

    def _older_than(self, seconds: float) -> list[Call]:
        limit = time.monotonic() - seconds
        return [call for call in list(self._calls.values()) if call.began < limit]


def _doing(frame: Optional[FrameType]) -> str:
    """The innermost function of libvirt's or ours that a thread is in."""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module == "libvirt" or module.startswith("pcinuma."):
            return f"{module}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "a call"


def _about(call: Call) -> str:
    for value in call.about:
        name = getattr(value, "name", None)
        if callable(name):  # a virDomain, which knows its name without asking
            return f" for domain {name()}"
    return ""
