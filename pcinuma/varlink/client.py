"""A call to the daemon: varlink's wire format (JSON, NUL-terminated) over its unix socket.

For the command and for tests; blocking, one connection a call. :func:`encode` and :func:`decode` are the two halves of the wire
format for callers with an event loop of their own. Nothing here imports libvirt or lxml, so that a call costs little to start.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any, Mapping, Optional

from pcinuma.errors import DaemonError

INTERFACE = "io.pcinuma"
DEFAULT_SOCKET = "/run/pcinuma/pcinuma.sock"
MAX_MESSAGE = 12 * 1024 * 1024 + 65536
"""Bytes of a call: libvirt's XML has 4 MiB at most (REMOTE_STRING_MAX), of each byte of which JSON makes three at most."""
MAX_ANSWER = 32 * 1024 * 1024
"""Bytes of an answer, which may hold two XML."""

START_HINT = "start it with: systemctl start pcinuma"


def socket_path() -> Path:
    """Where the daemon listens (``PCINUMA_SOCKET``, or the default)."""
    return Path(os.environ.get("PCINUMA_SOCKET") or DEFAULT_SOCKET)


def encode(method: str, parameters: Optional[Mapping[str, Any]] = None) -> bytes:
    """A call as it goes over the wire. A ``method`` without a dot is one of io.pcinuma."""
    full = method if "." in method else f"{INTERFACE}.{method}"
    return json.dumps({"method": full, "parameters": dict(parameters or {})}).encode("ascii") + b"\0"


def decode(message: bytes) -> dict[str, Any]:
    """The parameters of a reply, without its NUL. Raises DaemonError for an error reply and for anything that is no reply."""
    try:
        reply = json.loads(message.rstrip(b"\0").decode("utf-8"))
    except ValueError as error:
        raise DaemonError(f"the daemon's answer is no JSON ({error})") from None
    if not isinstance(reply, dict) or not isinstance(reply.get("parameters", {}), dict):
        raise DaemonError("the daemon's answer is no varlink reply")
    parameters: dict[str, Any] = reply.get("parameters", {})
    code = reply.get("error")
    if code is None:
        return parameters
    if code == f"{INTERFACE}.Error":
        raise DaemonError(str(parameters.get("message")), hint=parameters.get("hint"))
    if code == "org.varlink.service.PermissionDenied":
        raise DaemonError("the daemon answers only root", hint="use sudo")
    details = ", ".join(f"{name} {value}" for name, value in sorted(parameters.items()))
    raise DaemonError(f"the daemon refused the call: {code}" + (f" ({details})" if details else ""))


def call(method: str, parameters: Optional[Mapping[str, Any]] = None, timeout: float = 30.0) -> dict[str, Any]:
    """Call ``method`` and return the parameters of its reply. ``timeout`` in seconds covers everything.

    Raises DaemonError, with a hint, when the daemon is not running, does not answer in time, or answers with an error.
    """
    path = socket_path()
    deadline = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            _connect(connection, path, deadline)
            connection.sendall(encode(method, parameters))
            return decode(_receive(connection, deadline))
        except (FileNotFoundError, ConnectionRefusedError):
            raise DaemonError("the pcinuma daemon is not running", subject=str(path), hint=START_HINT) from None
        except PermissionError:
            raise DaemonError("no permission to talk to the daemon", subject=str(path), hint="use sudo") from None
        except socket.timeout:
            raise DaemonError(
                f"the daemon did not answer within {timeout:g} s", subject=str(path), hint="see: journalctl -u pcinuma"
            ) from None
        except OSError as error:
            raise DaemonError(
                f"talking to the daemon failed ({error.strerror or error})", subject=str(path), hint="see: journalctl -u pcinuma"
            ) from None


def _connect(connection: socket.socket, path: Path, deadline: float) -> None:
    while True:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            connection.connect(str(path))
            return
        except BlockingIOError:  # the daemon's queue is full
            if time.monotonic() > deadline:
                raise socket.timeout from None
            time.sleep(0.01)


def _receive(connection: socket.socket, deadline: float) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise socket.timeout
        connection.settimeout(remaining)
        part = connection.recv(65536)
        if not part:
            raise DaemonError("the daemon hung up before it answered", hint="see: journalctl -u pcinuma")
        end = part.find(b"\0")
        if end >= 0:
            parts.append(part[:end])
            return b"".join(parts)
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER:
            raise DaemonError(f"the daemon's answer is longer than {MAX_ANSWER} bytes")
