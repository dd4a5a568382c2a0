# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which of the definitions that libvirt tells of are our own.

Its events do not say who caused them, but each definition causes one. So while a domain is being placed here, they are counted, and then
told apart by their number; those of our own that are still to come are expected (``own_events`` of
:class:`~pcinuma.daemon.inventory.Known`). Lives in the event loop.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Callable, Iterator, Mapping

from pcinuma.daemon.inventory import Known


class DefineEvents:
    """``known``: the domains that libvirt has. ``changed``: somebody else defined the domain while it was being placed here;
    ``check_later``: all that libvirt told of was ours, as far as that can be known."""

    def __init__(self, known: Mapping[str, Known], changed: Callable[[str], object], check_later: Callable[[str], object]) -> None:
        self._known = known
        self._changed = changed
        self._check_later = check_later
        self._told: dict[str, int] = {}  # for the domains that are being placed, since that began

    @property
    def idle(self) -> bool:
        """No domain is being placed."""
        return not self._told

    def came(self, uuid: str, known: Known) -> bool:
        """libvirt tells of a definition. Whether that is all: it is ours, or whose it is will be seen."""
        if uuid in self._told:
            self._told[uuid] += 1
        elif known.own_events:
            known.own_events -= 1
            self._check_later(uuid)
        else:
            return False
        return True

    def so_far(self, uuid: str) -> int:
        """How many there were since :meth:`counting` began."""
        return self._told[uuid]

    @contextmanager
    def counting(self, uuid: str) -> Iterator[Callable[[int], None]]:
        """While a domain is being placed. Call what this gives with the number of our definitions."""
        self._told[uuid] = 0
        ours = 0

        def defined(number: int) -> None:
            nonlocal ours
            ours = number

        try:
            yield defined
        finally:
            told, known = self._told.pop(uuid), self._known.get(uuid)
            if ours and known is not None:
                known.own_events += max(0, ours - told)
                if told >= ours:
                    self._check_later(uuid)
            if told > ours and known is not None:
                self._changed(uuid)
