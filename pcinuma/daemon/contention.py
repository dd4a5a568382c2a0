"""Backing off from a domain that another program keeps redefining.

Two programs that each undo what the other defines would do so for ever. The reconciler counts how often it had to define a
domain; more than :data:`OFTEN` times within :data:`WINDOW` seconds, and it leaves the domain alone for a minute, then, if its
next placement is undone within the window again, for two, four, … up to an hour. A start still finds the domain placed if the
proxy prepares it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Callable

OFTEN = 5
WINDOW = 60.0
FIRST_PAUSE = 60.0
LONGEST_PAUSE = 3600.0


@dataclass
class Contention:
    """One domain's history. ``clock`` gives seconds."""

    clock: Callable[[], float] = time.monotonic
    _defined: list[float] = field(default_factory=list)
    _pause: float = 0.0
    _until: float = 0.0

    def remaining(self) -> float:
        """For how many seconds the domain is to be left alone; 0 if it may be touched."""
        return max(0.0, self._until - self.clock())

    def may_define(self) -> bool:
        """Whether a definition that turned out to be necessary may be made; if not, a pause begins."""
        now = self.clock()
        if now < self._until:
            return False
        self._defined = [time for time in self._defined if now - time < WINDOW]
        if len(self._defined) < (1 if self._pause else OFTEN):
            if not self._defined and now - self._until > 2 * self._pause:
                self._pause = 0.0  # it was quiet for long
            return True
        self._pause = min(2 * self._pause, LONGEST_PAUSE) if self._pause else FIRST_PAUSE
        self._until = now + self._pause
        self._defined.clear()
        return False

    def defined(self) -> None:
        """A definition was made."""
        self._defined.append(self.clock())
