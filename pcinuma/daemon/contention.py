# SPDX-License-Identifier: LGPL-2.1-or-later
"""Backing off from a domain that another program keeps redefining.

Two programs that each undo what the other defines would do so for ever. Counted is what was undone: a device that we gave a place is
still there, and somewhere else. That a domain has to be defined often is no contention: whoever attaches eight devices one after
the other wants each of them placed. Undone :data:`OFTEN` times within :data:`WINDOW` seconds, the domain is left alone for a minute,
then, if its next placement is undone within the window again, for two, four, … up to an hour. A start still finds the domain placed
if the proxy prepares it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Callable, Mapping, Optional

OFTEN = 5
WINDOW = 60.0
FIRST_PAUSE = 60.0
LONGEST_PAUSE = 3600.0

Addresses = Mapping[str, Optional[str]]
"""Where each passthrough device is in a definition: its source -> its guest address."""


@dataclass
class Contention:
    """One domain's history. ``clock`` gives seconds."""

    clock: Callable[[], float] = time.monotonic
    _ours: Addresses = field(default_factory=dict)  # as the last definition of ours had them, until somebody undid it
    _defined: float = 0.0
    _undone: list[float] = field(default_factory=list)  # when the definitions were made that were undone
    _pause: float = 0.0
    _until: float = 0.0

    def remaining(self) -> float:
        """For how many seconds the domain is to be left alone; 0 if it may be touched."""
        return max(0.0, self._until - self.clock())

    def may_define(self, found: Callable[[], Addresses]) -> bool:
        """Whether a definition that turned out to be necessary may be made; if not, a pause begins. ``found``: where the devices are in
        the definition as it is."""
        now = self.clock()
        if now < self._until:
            return False
        if self._ours and _undone(self._ours, found()):
            self._ours = {}  # counted
            self._undone.append(self._defined)
        self._undone = [time for time in self._undone if now - time < WINDOW]
        if len(self._undone) < (1 if self._pause else OFTEN):
            if not self._undone and now - self._until > 2 * self._pause:
                self._pause = 0.0  # it was quiet for long
            return True
        self._pause = min(2 * self._pause, LONGEST_PAUSE) if self._pause else FIRST_PAUSE
        self._until = now + self._pause
        self._undone.clear()
        return False

    def defined(self, placed: Addresses) -> None:
        """A definition was made, with the devices that we gave a place at these addresses."""
        self._ours, self._defined = placed, self.clock()


def _undone(ours: Addresses, found: Addresses) -> bool:
    return any(source in found and found[source] != address for source, address in ours.items())
