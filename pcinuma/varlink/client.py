# SPDX-License-Identifier: LGPL-2.1-or-later
"""A call: one connection, one reply, blocking, with a deadline for all of it together.

What goes wrong is a :class:`CallError` that says of what kind it is, for a caller who has words for it; an error reply is raised as it is
(:class:`~pcinuma.varlink.wire.ErrorReply`).
"""

from __future__ import annotations

import enum
import socket
import time
from pathlib import Path
from typing import Any, Mapping, Optional

from pcinuma.varlink.wire import decode_reply, encode_call


class Failure(enum.Enum):
    """Why there is no reply."""

    NOBODY_LISTENS = "nobody listens"
    NOT_PERMITTED = "not permitted"
    TIMEOUT = "no reply in time"
    HUNG_UP = "hung up"
    TOO_LONG = "too long"
    NO_REPLY = "no reply of the protocol"
    IO = "input or output"


class CallError(Exception):
    """A call without a reply. ``detail``: a clause where the kind alone does not say it."""

    def __init__(self, failure: Failure, detail: str = "") -> None:
        super().__init__(f"{failure.value}: {detail}" if detail else failure.value)
        self.failure = failure
        self.detail = detail


def call(path: Path, method: str, parameters: Optional[Mapping[str, Any]], *, timeout: float, longest: int) -> dict[str, Any]:
    """Call ``method``, by its full name, of the service that listens on ``path``; return the parameters of its reply.

    ``timeout``: seconds; ``longest``: bytes of a reply. Raises CallError and ErrorReply.
    """
    deadline = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            _connect(connection, path, deadline)
            connection.sendall(encode_call(method, parameters))
            message = _receive(connection, deadline, longest)
        except (FileNotFoundError, ConnectionRefusedError):
            raise CallError(Failure.NOBODY_LISTENS) from None
        except PermissionError:
            raise CallError(Failure.NOT_PERMITTED) from None
        except socket.timeout:
            raise CallError(Failure.TIMEOUT) from None
        except OSError as error:
            raise CallError(Failure.IO, error.strerror or str(error)) from None
    try:
        return decode_reply(message)
    except ValueError as error:
        raise CallError(Failure.NO_REPLY, str(error)) from None


def _connect(connection: socket.socket, path: Path, deadline: float) -> None:
    while True:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            connection.connect(str(path))
            return
        except BlockingIOError:  # the service's queue is full
            if time.monotonic() > deadline:
                raise socket.timeout from None
            time.sleep(0.01)


def _receive(connection: socket.socket, deadline: float, longest: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise socket.timeout
        connection.settimeout(remaining)
        part = connection.recv(65536)
        if not part:
            raise CallError(Failure.HUNG_UP)
        end = part.find(b"\0")
        if end >= 0:
            parts.append(part[:end])
            return b"".join(parts)
        parts.append(part)
        size += len(part)
        if size > longest:
            raise CallError(Failure.TOO_LONG)
