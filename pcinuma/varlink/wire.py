# SPDX-License-Identifier: LGPL-2.1-or-later
"""The wire format: JSON messages, each with a NUL behind it; here without it, but for what the ``encode_…`` functions give.

A reply holds parameters or an error with parameters; reading an error raises it (:class:`ErrorReply`), and what is no reply at all
raises ValueError. What is no call reads as None, since all that a server can do about it is to hang up. Source: https://varlink.org.
"""

from __future__ import annotations

import json
from typing import Any, Mapping, Optional

SERVICE = "org.varlink.service"
"""The interface that every service answers, and whose errors are those of the format itself."""


class ErrorReply(Exception):
    """A reply that is an error: its full name and its parameters."""

    def __init__(self, error: str, **parameters: Any) -> None:
        super().__init__(error)
        self.error = error
        self.parameters: dict[str, Any] = parameters


def encode_call(method: str, parameters: Optional[Mapping[str, Any]] = None) -> bytes:
    """A call of a method by its full name."""
    return _encode({"method": method, "parameters": dict(parameters or {})})


def encode_reply(parameters: Mapping[str, Any], error: Optional[str] = None) -> bytes:
    """A reply; with ``error``, its full name, an error reply."""
    return _encode({"parameters": parameters} if error is None else {"error": error, "parameters": parameters})


def decode_call(message: bytes) -> Optional[dict[str, Any]]:
    """The fields of a call, among them ``method``; None if ``message`` is no call."""
    try:
        call = json.loads(message)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("method"), str):
        return None
    if not isinstance(call.get("parameters") or {}, dict):
        return None
    return call


def decode_reply(message: bytes) -> dict[str, Any]:
    """The parameters of a reply, which may still have its NUL. Raises ErrorReply for an error, ValueError (a clause) for what is none."""
    try:
        reply = json.loads(message.rstrip(b"\0").decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"is no JSON ({error})") from None
    if not isinstance(reply, dict) or not isinstance(reply.get("parameters", {}), dict):
        raise ValueError("is no varlink reply")
    parameters: dict[str, Any] = reply.get("parameters", {})
    code = reply.get("error")
    if code is None:
        return parameters
    failed = ErrorReply(str(code))
    failed.parameters = parameters
    raise failed


def _encode(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode("ascii") + b"\0"
