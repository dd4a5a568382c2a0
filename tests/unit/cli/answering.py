# SPDX-License-Identifier: LGPL-2.1-or-later
"""A daemon's socket on which each method has the answer that a test wants, or none."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Optional, Union

Answer = Union[Mapping[str, Any], Callable[[Mapping[str, Any]], Mapping[str, Any]]]


@contextmanager
def answering(path: Path, answers: Optional[Mapping[str, Answer]]) -> Iterator[list[str]]:
    """Listen on ``path``; the calls that came, by method. ``answers``: method of io.pcinuma -> the reply's parameters, what makes them of
    the call's, or, with a key ``error``, an error; None: connections are accepted and nothing is ever answered."""
    calls: list[str] = []
    kept: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                kept.append(connection)
                if answers is None:
                    continue
                call = b""
                while not call.endswith(b"\0"):
                    call += connection.recv(1 << 16)
                asked = json.loads(call[:-1])
                method = asked["method"].rpartition(".")[2]
                calls.append(method)
                answer = answers[method]
                reply = dict(answer(asked.get("parameters") or {}) if callable(answer) else answer)
                error = reply.pop("error", None)
                connection.sendall(json.dumps({"parameters": reply, **({"error": error} if error else {})}).encode() + b"\0")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield calls
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            for connection in kept:
                connection.close()
