# SPDX-License-Identifier: LGPL-2.1-or-later
"""One direction of a connection: chunks of bytes, and descriptors, from one socket to another, never more than one
chunk waiting.

The rule for descriptors is the kernel's and libvirt's together: a read ends with the first piece that carries some,
and libvirt sends and receives each with a byte of its own (``virSocketSendFD``); a plain ``read`` that touches such a
byte loses them. So they are sent with exactly the last byte of the chunk that they came with, in a ``sendmsg`` of
their own.
"""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from typing import Any

CHUNK = 256 * 1024
_ANCILLARY = socket.CMSG_SPACE(32 * 4)  # VIR_NET_MESSAGE_NUM_FDS_MAX
_GONE = (BrokenPipeError, ConnectionResetError)


class Forwarder:
    """From ``source`` to ``sink``, both non-blocking."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.ended = False
        """The source said end of file."""
        self.broken = False
        """The sink takes no more."""
        self._receive, self._send = source.recvmsg_into, sink.send
        self._queue: deque[tuple[memoryview, list[int]]] = deque()

    @property
    def idle(self) -> bool:
        """Everything that was put has been sent."""
        return not self._queue

    @property
    def flows(self) -> bool:
        """Open at both ends and nothing waiting."""
        return not (self._queue or self.ended or self.broken)

    def receive(self, buffer: memoryview) -> tuple[int, list[int]]:
        """Read a chunk: its size, and the descriptors that came with its last byte. Sets ``ended`` at the end of
        file."""
        try:
            size, ancillary, _flags, _address = self._receive((buffer,), _ANCILLARY)
        except BlockingIOError:
            return 0, []
        except _GONE:
            size, ancillary = 0, []
        if not size:
            self.ended = True
        return size, _descriptors(ancillary) if ancillary else []

    def put(self, data: memoryview, descriptors: list[int]) -> None:
        """Send ``data``, the descriptors with its last byte. What does not go at once is copied and goes by
        :meth:`flush`."""
        if self.broken:
            _close(descriptors)
            return
        if not descriptors and not self._queue:
            self.send(data)
            return
        if descriptors and len(data) > 1:
            self._queue.append((memoryview(bytes(data[:-1])), []))
            data = data[-1:]
        self._queue.append((memoryview(bytes(data)), descriptors))
        self.flush()

    def send(self, data: memoryview) -> None:
        """:meth:`put` where this is idle and not broken, without descriptors."""
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        except _GONE:
            self.broken = True
            return
        if sent != len(data):
            self._queue.append((memoryview(bytes(data[sent:])), []))

    def flush(self) -> None:
        """Send as much of what waits as the sink takes."""
        while self._queue:
            data, descriptors = self._queue[0]
            try:
                sent = self.sink.sendmsg([data], _rights(descriptors))
            except BlockingIOError:
                return
            except _GONE:
                self.broken = True
                self.drop()
                return
            _close(descriptors)
            if sent < len(data):
                self._queue[0] = (data[sent:], [])
            else:
                self._queue.popleft()

    def drop(self) -> None:
        """Forget what has not been sent."""
        for _data, descriptors in self._queue:
            _close(descriptors)
        self._queue.clear()


def _rights(descriptors: list[int]) -> list[tuple[int, int, Any]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found.tolist()


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
