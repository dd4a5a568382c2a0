# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a relay may ask the privileged parent, and how: JSON with a NUL behind it, over a socket pair.

Three kinds of request, one answer: the XML to put in the call's place, or none. A relay asks one at a time. It waits
somewhat longer than the parent allows the daemon, for the case that the parent itself is stuck, and numbers its
requests, so that an answer that nobody waits for any more is not taken for the next one's.
"""

from __future__ import annotations

import enum
import json
import socket
import time
from dataclasses import dataclass
from typing import Any, Optional

REQUEST_MAX = 32 * 1024 * 1024
"""4 MiB of XML, each byte of which JSON may spell in six, and the rest."""
_GRACE = 1.0


class RequestKind(enum.Enum):
    START = "start"
    CREATE = "create"
    ATTACH = "attach"


@dataclass(frozen=True)
class Request:
    """``domain`` is a uuid (start, attach), ``xml`` a domain (create) or a device (attach)."""

    kind: RequestKind
    domain: Optional[str] = None
    xml: Optional[str] = None

    def encode(self, number: int) -> bytes:
        return frame({"number": number, "kind": self.kind.value, "domain": self.domain, "xml": self.xml})


@dataclass(frozen=True)
class Answer:
    """``xml``: what to put in the call, None to leave it as it came."""

    xml: Optional[str] = None


class ParentGone(Exception):
    """The proxy's parent process has ended; so do its relays."""


def frame(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\0"


class RequestPipe:
    """The relay's end. ``patience``: seconds that the parent gives the daemon."""

    def __init__(self, pipe: socket.socket, patience: float) -> None:
        self._pipe = pipe
        self._patience = patience + _GRACE
        self._number = 0
        self._deadline: Optional[float] = None
        self._inbox = bytearray()

    def fileno(self) -> int:
        return self._pipe.fileno()

    @property
    def remaining(self) -> Optional[float]:
        """Seconds until the pending request is given up; None if none is pending."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def ask(self, request: Request) -> None:
        """Send a request. A parent that does not even take it is as good as gone."""
        self._number += 1
        self._deadline = time.monotonic() + self._patience
        self._pipe.settimeout(self._patience)
        try:
            self._pipe.sendall(request.encode(self._number))
        except OSError:
            raise ParentGone from None
        finally:
            self._pipe.setblocking(False)

    def take(self) -> Optional[Answer]:
        """The answer to the pending request, if it has come."""
        try:
            data = self._pipe.recv(256 * 1024)
        except BlockingIOError:
            return None
        except OSError:
            raise ParentGone from None
        if not data:
            raise ParentGone
        self._inbox += data
        found = None
        while b"\0" in data:
            end = self._inbox.index(0)
            raw, data = bytes(self._inbox[:end]), bytes(self._inbox[end + 1 :])
            self._inbox = bytearray(data)
            answer = json.loads(raw)
            if answer["number"] == self._number and self._deadline is not None:
                self._deadline = None
                found = Answer(answer["xml"])
        return found

    def give_up(self) -> Answer:
        """No answer came in time."""
        self._deadline = None
        return Answer()
