# SPDX-License-Identifier: LGPL-2.1-or-later
"""From which version somebody made his, where several were there within milliseconds and some lacked another one's change.

What our definition overwrites is put back within milliseconds (:mod:`~pcinuma.daemon.overwritten`). Who *reads* the definition in between,
alters it and defines that, would take the change back without knowing. So what he changed is told by the version that he made his from:
the one that differs least from it. Two are special:

* A version that says exactly what an older one says was made by taking something back (``detach-device``), from the latest.
* A version that has none of our placement, where all of ours have it (or, where none of them is known, what we began with), was made from
  none that we had a part in; nothing was hidden from its author, and it counts as it is.

That is looked at for as long as something is being put back, and :data:`HORIZON` seconds longer.
"""

from __future__ import annotations

import threading
import time
from typing import NamedTuple, Optional, Sequence

from pcinuma.daemon.definition_files import DefinitionFiles, Followed
from pcinuma.domain.merge import distance
from pcinuma.domain.read import parse_domain

HORIZON = 2.0
SEEN = 32
"""Versions that somebody may have read, the latest ones."""


class Seen(NamedTuple):
    """A version that was there; ``ours``: it is a definition of ours."""

    text: bytes
    ours: bool


def made_from(seen: Sequence[Seen], theirs: bytes) -> Optional[bytes]:
    """The version that ``theirs`` was made from, of those that were there before, in order; None if from none of them. Raises
    UnusableInput."""
    latest = seen[-1].text
    ours = dict.fromkeys(version.text for version in seen if version.ours) or (seen[0].text,)
    if parse_domain(theirs).placement is None and all(parse_domain(text).placement is not None for text in ours):
        return None
    found, least = latest, distance(latest, theirs)
    for text in dict.fromkeys(version.text for version in reversed(seen[:-1])):  # who defines in a loop makes the same over and over
        differs = distance(text, theirs)
        if 0 < differs < least:
            found, least = text, differs
    return found


class _PutBack(NamedTuple):
    """``seen``: what was there, the last one of ours, libvirt's write ``number``, with everything in it."""

    until: float
    followed: Followed
    seen: tuple[Seen, ...]
    number: int


class Stale:
    """What was put back lately. May be used in any thread."""

    def __init__(self, files: DefinitionFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._recent: dict[str, _PutBack] = {}

    def defined(self, followed: Followed, seen: Sequence[Seen], number: int, *, lacking: bool) -> None:
        """The last of ``seen`` was defined, libvirt's write ``number``; ``lacking``: others of them lack a change that is in it."""
        with self._lock:
            old = self._recent.get(followed.uuid)
        if old is None and not lacking:
            return
        until = old.until if old is not None and not lacking else time.monotonic() + HORIZON
        new = _PutBack(until, self._files.keep(followed), (*(old.seen if old else ()), *seen)[-SEEN:], number)
        with self._lock:
            self._recent[followed.uuid] = new
        if old is not None:
            self._files.release(old.followed)

    def seen(self, uuid: str, number: Optional[int]) -> Optional[tuple[list[Seen], list[bytes]]]:
        """What was there when something was put back lately, and the versions since then up to write ``number``; None if nothing was."""
        recent = self._of(uuid)
        if recent is None or number is None:
            return None
        texts = [version.text for version in recent.followed.since(recent.number) if version.number <= number]
        return list(recent.seen), [text for text in texts if text is not None]

    def _of(self, uuid: str) -> Optional[_PutBack]:
        if not self._recent:
            return None
        now = time.monotonic()
        with self._lock:
            over = [self._recent.pop(each) for each in list(self._recent) if self._recent[each].until < now]
            found = self._recent.get(uuid)
        for recent in over:
            self._files.release(recent.followed)
        return found
