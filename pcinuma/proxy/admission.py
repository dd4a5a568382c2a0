# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whose turn it is: which client that waits gets a relay next.

Making a relay takes the parent several milliseconds and accepting one takes it microseconds, so clients are let in as fast as
they come and each user has a queue: root first, the others in turn. Whoever connects in a loop waits behind himself only, and not in
the listening socket's one queue, where everybody stands. Pure: no sockets, no processes, no clock.

Limits, so that clients cannot use up the machine by connecting: one user other than root has at most ``of_a_user`` connections,
waiting ones included, and is told at once when that is exceeded; all together have ``in_all``, of which ``for_root`` are kept for
root, and whoever comes above that waits until somebody leaves (as at libvirtd's max_clients).
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Deque, Generic, Optional, TypeVar

from pcinuma.errors import PcinumaError

Client = TypeVar("Client")


class Admission(Generic[Client]):
    """Clients by uid. Every client that :meth:`arrive` let in leaves once, by :meth:`leave`."""

    def __init__(self, *, in_all: int, for_root: int, of_a_user: int) -> None:
        self._in_all = in_all
        self._for_root = for_root
        self._of_a_user = of_a_user
        self._waiting: dict[int, Deque[Client]] = {}  # in the order of their turns; none is empty
        self._served = 0
        self._has: Counter[int] = Counter()  # waiting and served

    def arrive(self, uid: int, client: Client) -> None:
        """A client has come. Raises PcinumaError if its user has too many."""
        if uid and self._has[uid] >= self._of_a_user:
            raise PcinumaError(f"it has {self._of_a_user} connections already", subject=f"uid {uid}")
        self._has[uid] += 1
        self._waiting.setdefault(uid, deque()).append(client)

    def next(self) -> Optional[Client]:
        """The client that is to be served now; None if nobody waits who may."""
        uid = 0 if 0 in self._waiting else next(iter(self._waiting), None)
        if uid is None or self._served >= (self._in_all if uid == 0 else self._in_all - self._for_root):
            return None
        queue = self._waiting.pop(uid)
        client = queue.popleft()
        if queue:
            self._waiting[uid] = queue  # behind the others
        self._served += 1
        return client

    def leave(self, uid: int) -> None:
        """A client that was served has gone."""
        self._served -= 1
        self._has[uid] -= 1
        if not self._has[uid]:
            del self._has[uid]

    def drain(self) -> list[Client]:
        """Whoever still waits: nobody is served any more."""
        waiting = [client for queue in self._waiting.values() for client in queue]
        self._waiting.clear()
        return waiting

    @property
    def served(self) -> int:
        """How many are being served."""
        return self._served
