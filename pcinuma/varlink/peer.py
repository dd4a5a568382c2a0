# SPDX-License-Identifier: LGPL-2.1-or-later
"""The process at the other end of a connection: who it is, and whether it still waits for an answer."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple


class Peer(NamedTuple):
    """Who it was when it connected (SO_PEERCRED, unix(7))."""

    pid: int
    uid: int
    gid: int

    @classmethod
    def of(cls, connection: socket.socket) -> Peer:
        """Who is at the other end of a unix socket."""
        size = struct.calcsize("3i")
        return cls(*struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)))


def has_hung_up(connection: socket.socket) -> bool:
    """Whether the peer is gone, and needs no answer any more."""
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
