# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether a client may start guests on its connection: what it asked for in its connect-open call, and what libvirt answered.

Nothing is held back for it: the calls' side shows the call, the replies' side shows what libvirt sends, chunk by chunk, until the answer
was among it. Of a header that is cut off, only a copy is kept to look at again. A direction that is not this protocol's settles it as well:
then nothing is ever held.
"""

from __future__ import annotations

from typing import Optional

from pcinuma.proxy import calls, wire
from pcinuma.proxy.wire import Bytes, Framing, Header, Kind


class Opening:
    """``pending``: libvirt's answer to a connect-open is still of interest; ``may_start``: it let the client in, for writing, to QEMU."""

    def __init__(self, read_only: bool) -> None:
        self.pending = not read_only
        self.may_start = False
        self._asked: Optional[tuple[int, calls.Open]] = None  # serial and arguments of the client's connect-open
        self._replies = Framing({calls.Procedure.CONNECT_OPEN}, self._is_answer)
        self._head = b""

    def called(self, header: Header, message: Bytes) -> None:
        """The client's call to open. Raises WireError."""
        self._asked = header.serial, calls.read_open(message)

    def reply(self, data: memoryview) -> None:
        """Look for the answer in what libvirt sent, while it is pending."""
        received = self._head + data
        passed, answer = self._replies.scan(received)
        self._head = received[passed:][: wire.HEADER_SIZE]
        if answer is not None and self._asked is not None:
            self.pending = False
            self.may_start = answer.status == 0 and self._asked[1].may_start_guests
        elif self._replies.unframed:
            self.pending = False

    def _is_answer(self, header: Header) -> bool:
        return (
            self._asked is not None
            and header.kind == Kind.REPLY
            and header.program == wire.REMOTE_PROGRAM
            and header.procedure == calls.Procedure.CONNECT_OPEN
            and header.serial == self._asked[0]
        )
