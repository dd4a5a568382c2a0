# SPDX-License-Identifier: LGPL-2.1-or-later
"""A call to the daemon, for the command, the proxy and tests: a method of io.pcinuma in, the parameters of its reply out.

What fails is a DaemonError with a hint. :func:`encode` and :func:`decode` are for callers with an event loop of their own. Nothing here
imports libvirt, lxml or the daemon itself, so that a call costs little to start.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Mapping, NoReturn, Optional

from pcinuma.daemon.interface import ERROR, NAME
from pcinuma.errors import DaemonError
from pcinuma.varlink import client, wire
from pcinuma.varlink.client import CallError, Failure

DEFAULT_SOCKET = "/run/pcinuma/pcinuma.sock"
MAX_MESSAGE = 12 * 1024 * 1024 + 65536
"""Bytes of a call: libvirt's XML has 4 MiB at most (REMOTE_STRING_MAX), of each byte of which JSON makes three at most."""
MAX_ANSWER = 32 * 1024 * 1024
"""Bytes of an answer, which may hold two XML."""

START_HINT = "start it with: systemctl start pcinuma"
SUDO_HINT = "use sudo"
_LOG_HINT = "see: journalctl -u pcinuma"


def socket_path() -> Path:
    """Where the daemon listens (``PCINUMA_SOCKET``, or the default)."""
    return Path(os.environ.get("PCINUMA_SOCKET") or DEFAULT_SOCKET)


def encode(method: str, parameters: Optional[Mapping[str, Any]] = None) -> bytes:
    """A call as it goes over the wire. A ``method`` without a dot is one of io.pcinuma."""
    return wire.encode_call(_full(method), parameters)


def decode(message: bytes) -> dict[str, Any]:
    """The parameters of a reply. Raises DaemonError for an error reply and for anything that is no reply."""
    try:
        return wire.decode_reply(message)
    except wire.ErrorReply as error:
        _refused(error)
    except ValueError as error:
        raise DaemonError(f"the daemon's answer {error}") from None


def call(method: str, parameters: Optional[Mapping[str, Any]] = None, timeout: float = 30.0) -> dict[str, Any]:
    """Call ``method`` and return the parameters of its reply. ``timeout`` in seconds covers everything.

    Raises DaemonError, with a hint, when the daemon is not running, does not answer in time, or answers with an error.
    """
    path = socket_path()
    try:
        return client.call(path, _full(method), parameters, timeout=timeout, longest=MAX_ANSWER)
    except wire.ErrorReply as error:
        _refused(error)
    except CallError as error:
        raise _failed(error, str(path), timeout) from None


def _full(method: str) -> str:
    return method if "." in method else f"{NAME}.{method}"


def _refused(reply: wire.ErrorReply) -> NoReturn:
    """Raise what an error reply means."""
    code, parameters = reply.error, reply.parameters
    if code == ERROR:
        raise DaemonError(str(parameters.get("message")), hint=parameters.get("hint")) from None
    if code == f"{wire.SERVICE}.PermissionDenied":
        raise DaemonError("the daemon answers only root", hint=SUDO_HINT) from None
    details = ", ".join(f"{name} {value}" for name, value in sorted(parameters.items()))
    raise DaemonError(f"the daemon refused the call: {code}" + (f" ({details})" if details else "")) from None


def _failed(error: CallError, path: str, timeout: float) -> DaemonError:
    failure = error.failure
    if failure is Failure.NOBODY_LISTENS:
        return DaemonError("the pcinuma daemon is not running", subject=path, hint=START_HINT)
    if failure is Failure.NOT_PERMITTED:
        return DaemonError("no permission to talk to the daemon", subject=path, hint=SUDO_HINT)
    if failure is Failure.TIMEOUT:
        return DaemonError(f"the daemon did not answer within {timeout:g} s", subject=path, hint=_LOG_HINT)
    if failure is Failure.HUNG_UP:
        return DaemonError("the daemon hung up before it answered", hint=_LOG_HINT)
    if failure is Failure.TOO_LONG:
        return DaemonError(f"the daemon's answer is longer than {MAX_ANSWER} bytes")
    if failure is Failure.NO_REPLY:
        return DaemonError(f"the daemon's answer {error.detail}")
    return DaemonError(f"talking to the daemon failed ({error.detail})", subject=path, hint=_LOG_HINT)
