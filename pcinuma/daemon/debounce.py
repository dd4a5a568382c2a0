# SPDX-License-Identifier: LGPL-2.1-or-later
"""When a changed domain is looked at: the first change at once, those that follow when it has been quiet for a moment.

Somebody who starts a domain right after he defined it is to find it placed, so a change that comes after a quiet time waits for nothing.
Who changes one thing after the other is not done yet: each of our definitions between two of his would be in his way for nothing. So a
change that follows another one within :data:`CALM` seconds waits until it has been calm for a moment, which grows with the burst, but no
longer than :data:`PATIENCE` after its beginning. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CALM = 0.05
LONGEST_CALM = 0.2
PATIENCE = 1.0


@dataclass
class Debounce:
    """One domain's latest changes. Times are seconds of one clock."""

    _last: float = -math.inf
    _began: float = 0.0
    _calm: float = CALM

    def delay(self, now: float) -> float:
        """The domain was changed ``now``: for how long its look waits if nothing else comes."""
        if now - self._last > CALM and now - self._last > self._calm:
            self._began, self._calm = now, CALM
            self._last = now
            return 0.0
        self._last = now
        if now - self._began >= PATIENCE:
            self._began = now
            return 0.0
        delay, self._calm = self._calm, min(1.5 * self._calm, LONGEST_CALM)
        return delay
