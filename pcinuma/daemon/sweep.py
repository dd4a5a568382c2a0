# SPDX-License-Identifier: LGPL-2.1-or-later
"""A sweep: a look at every domain there is. When the last one was looked at, the log says how long it took."""

from __future__ import annotations

import time
from collections.abc import Iterable

from pcinuma.log import log


class Sweep:
    """The latest sweep: what of it is still to be looked at."""

    def __init__(self) -> None:
        self._left: set[str] = set()
        self._size, self._began = 0, 0.0

    def begin(self, uuids: Iterable[str]) -> None:
        """All of ``uuids`` are to be looked at; of an earlier sweep nothing is any more."""
        self._left, self._began = set(uuids), time.monotonic()
        self._size = len(self._left)

    def looked_at(self, uuid: str) -> None:
        """A domain was looked at, or is gone."""
        if uuid in self._left:
            self._left.discard(uuid)
            if not self._left:
                took = round((time.monotonic() - self._began) * 1000, 1)
                log.info("looked at all domains", domains=self._size, duration_ms=took)

    def clear(self) -> None:
        """Nothing is to be looked at any more."""
        self._left.clear()
