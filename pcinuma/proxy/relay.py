# SPDX-License-Identifier: LGPL-2.1-or-later
"""One client's connection: a process that passes bytes and descriptors both ways, with the client's rights.

Two directions, each a :class:`Forwarder`: it reads only when everything that it read before has been written, so a peer
that does not read stops the other one, as it would without a proxy, and a connection never keeps more than one chunk
and one held call.

Client to libvirt, the messages are framed; one that starts a guest or plugs a device in is held until it is complete,
the parent is asked, and then it goes on, changed or as it came; nothing of the same client overtakes it. Libvirt to
client, messages are framed only until libvirt has answered the client's connect-open (:mod:`~pcinuma.proxy.opening`), then
chunks pass as they are. A call is held only on a connection that libvirt has opened for writing, so whoever libvirt turns away
never causes a placement.

Descriptors: the kernel ends a read at the byte that carries some, and a sender of this protocol gives each its own
byte, so they are sent on with the last byte of the chunk that they came with, alone.

Ends: end of file is passed on as such once everything before it has been; a client that is gone altogether (hang-up)
leaves what it sent to be delivered for ``LINGER`` seconds and no longer; when libvirt has closed, the client gets
what is left and the relay ends.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from typing import Optional, Union

from pcinuma.log import log
from pcinuma.proxy import calls
from pcinuma.proxy.forwarder import CHUNK, Forwarder
from pcinuma.proxy.opening import Opening
from pcinuma.proxy.requests import Answer, ParentGone, Request, RequestKind, RequestPipe
from pcinuma.proxy.wire import Framing, Header, WireError

LINGER = 2.0
_Call = Union[calls.Start, calls.Create, calls.Attach]


class Relay:
    """The connection of one client. ``requests`` leads to the parent; None where nothing is ever to be asked (a
    read-only upstream)."""

    def __init__(self, client: socket.socket, upstream: socket.socket, requests: RequestPipe, read_only: bool = False) -> None:
        for sock in (client, upstream):
            sock.setblocking(False)
        self._client = client
        self._upstream = upstream
        self._client_number, self._upstream_number = client.fileno(), upstream.fileno()
        self._requests = requests
        self._up = Forwarder(client, upstream)
        self._down = Forwarder(upstream, client)
        self._buffer = memoryview(bytearray(CHUNK))

        self._calls = Framing(calls.PROCEDURES | {calls.Procedure.CONNECT_OPEN}, self._holds)
        self._inbox = bytearray()  # what the client sent and may not go on yet
        self._inbox_descriptors: deque[tuple[int, list[int]]] = deque()  # what came with the inbox's byte before that offset
        self._needed = 0  # size of the inbox at which it is worth looking at again
        self._pending: Optional[tuple[bytes, _Call]] = None

        self._opening = Opening(read_only)

        self._poll = select.poll()
        self._masks: dict[int, int] = {}
        self._hung_up = False
        self._until: Optional[float] = None
        self._said_end = False

    def run(self) -> None:
        """Relay until both ends are done, or the parent is gone."""
        client, upstream, parent = self._client_number, self._upstream_number, self._requests.fileno()
        poll, handle, up, down = self._poll.poll, self._handle, self._up, self._down
        self._poll.register(parent, select.POLLIN)
        try:
            while not self._done():
                self._watch(client, self._wants_client(), down)
                self._watch(upstream, down.idle and not down.ended and not down.broken, up)
                handle(poll(self._patience()))
                if self._masks == {client: select.POLLIN, upstream: select.POLLIN}:
                    self._flow()
                self._keep_time()
        except ParentGone:
            return
        finally:
            up.drop()
            down.drop()

    # The loop's parts

    def _handle(self, ready: list[tuple[int, int]]) -> None:
        for descriptor, events in ready:
            if descriptor == self._client_number:
                if events == select.POLLIN:
                    self._from_client()
                else:
                    self._client_ready(events)
            elif descriptor == self._upstream_number:
                if events == select.POLLIN:
                    self._from_libvirt()
                else:
                    self._upstream_ready(events)
            else:
                self._take_answer()

    def _flow(self) -> None:
        """Relay as long as nothing waits anywhere and both ends are to be read and nothing else.

        Here a connection spends its life, so the usual things are done on the spot: a whole call that is of no interest, an answer.
        """
        poll, up, down, is_plain_call = self._poll.poll, self._up, self._down, self._calls.is_plain_call
        buffer, client, upstream = self._buffer, self._client_number, self._upstream_number
        while up.flows and down.flows and self._pending is None and not self._hung_up:
            ready = poll()
            descriptor, events = ready[0]
            if len(ready) > 1 or events != select.POLLIN:
                self._handle(ready)
            elif descriptor == client:
                size, descriptors = up.receive(buffer)
                if descriptors or self._inbox or not is_plain_call(buffer, size):
                    self._took(size, descriptors)
                else:
                    up.send(buffer[:size])
            elif descriptor == upstream and not self._opening.pending:
                size, descriptors = down.receive(buffer)
                if descriptors:
                    down.put(buffer[:size], descriptors)
                elif size:
                    down.send(buffer[:size])
            else:
                self._handle(ready)

    def _wants_client(self) -> bool:
        return self._up.idle and self._pending is None and not self._up.ended and not self._up.broken

    def _watch(self, descriptor: int, readable: bool, outgoing: Forwarder) -> None:
        mask = (select.POLLIN if readable else 0) | (0 if outgoing.idle else select.POLLOUT)
        if self._masks.get(descriptor) == mask:
            return
        if mask == 0 and self._hung_up and descriptor == self._client_number:
            if descriptor in self._masks:  # its hang-up is known: only not to be told of it again and again
                self._poll.unregister(descriptor)
                del self._masks[descriptor]
            return
        self._poll.register(descriptor, mask)
        self._masks[descriptor] = mask

    def _client_ready(self, events: int) -> None:
        if events & select.POLLOUT:
            self._down.flush()
        if events & select.POLLIN and self._wants_client():
            self._from_client()
        if events & (select.POLLHUP | select.POLLERR) and not self._hung_up:
            self._hung_up = True
            self._until = time.monotonic() + LINGER
            self._masks[self._client_number] = -1  # look at it anew

    def _upstream_ready(self, events: int) -> None:
        if events & select.POLLOUT:
            self._up.flush()
        if events & select.POLLIN and self._down.idle and not self._down.ended:
            self._from_libvirt()
        elif events & (select.POLLHUP | select.POLLERR) and (self._down.broken or not events & select.POLLIN):
            self._down.ended = True

    def _patience(self) -> Optional[float]:
        """Milliseconds until something has to be done though nothing happens."""
        if self._pending is None and self._until is None:
            return None
        waits = [seconds for seconds in (self._requests.remaining, self._lingering()) if seconds is not None]
        return min(waits) * 1000 + 1 if waits else None

    def _lingering(self) -> Optional[float]:
        return None if self._until is None else max(0.0, self._until - time.monotonic())

    def _keep_time(self) -> None:
        if self._pending is not None and self._requests.remaining == 0:
            log.warning("forwarded as it came", reason="the proxy's parent process did not answer in time")
            self._go_on(self._requests.give_up())

    def _done(self) -> bool:
        if self._down.ended and (self._down.idle or self._down.broken):
            return True
        everything_sent = self._up.ended and self._up.idle and self._pending is None
        if self._hung_up:
            return everything_sent or self._up.broken or self._lingering() == 0
        if everything_sent and not self._said_end and not self._up.broken:
            self._said_end = True
            try:
                self._upstream.shutdown(socket.SHUT_WR)
            except OSError:
                self._up.broken = True
        return False

    # From the client

    def _from_client(self) -> None:
        size, descriptors = self._up.receive(self._buffer)
        self._took(size, descriptors)

    def _took(self, size: int, descriptors: list[int]) -> None:
        """So much was read into the buffer."""
        if self._up.ended:
            self._calls.unframed = True  # whatever is left never becomes whole
        if self._inbox or descriptors:
            self._inbox += self._buffer[:size]
            if descriptors:
                self._inbox_descriptors.append((len(self._inbox), descriptors))
            self._drain()
            return
        data = self._buffer[:size]
        passed, held = self._calls.scan(data)
        if passed:
            self._up.put(data[:passed], [])
        if passed < size:
            self._inbox += data[passed:]
            if self._consider(held):
                self._drain()

    def _drain(self) -> None:
        """Let go on of the inbox what may."""
        while self._inbox and self._pending is None and (len(self._inbox) >= self._needed or self._calls.unframed):
            passed, held = self._calls.scan(self._inbox)
            self._pass_on(passed)
            if not self._consider(held):
                return

    def _consider(self, held: Optional[Header]) -> bool:
        """Deal with the message at the inbox's start, of which ``held`` is the header if there is enough for one;
        False if more has to come."""
        if held is None:
            self._needed = len(self._inbox) + 1
            return False
        if self._inbox_descriptors and self._inbox_descriptors[0][0] <= held.length:
            self._calls.unframed = True  # no sender of this protocol puts a descriptor inside a message
            return True
        self._needed = held.length
        if len(self._inbox) < held.length:
            return False
        message = bytes(self._inbox[: held.length])
        call = self._understood(held, message)
        self._calls.release(message)
        self._needed = 0
        if call is None or not self._ask(message, call):
            self._pass_on(held.length)
        else:
            self._take_from_inbox(held.length)
        return True

    def _understood(self, header: Header, message: bytes) -> Optional[_Call]:
        try:
            if header.procedure == calls.Procedure.CONNECT_OPEN:
                self._opening.called(header, message)
                return None
            return calls.read_call(message)
        except WireError:
            return None  # libvirt will say what is wrong with it

    def _ask(self, message: bytes, call: _Call) -> bool:
        try:
            if isinstance(call, calls.Start):
                request = Request(RequestKind.START, domain=call.domain)
            elif isinstance(call, calls.Create):
                request = Request(RequestKind.CREATE, xml=call.xml.value.decode())
            else:
                request = Request(RequestKind.ATTACH, domain=call.domain, xml=call.xml.value.decode())
        except UnicodeDecodeError:
            log.warning("forwarded as it came", reason="its XML is not UTF-8")
            return False
        self._requests.ask(request)
        self._pending = message, call
        return True

    def _take_answer(self) -> None:
        answer = self._requests.take()
        if answer is not None and self._pending is not None:
            self._go_on(answer)

    def _go_on(self, answer: Answer) -> None:
        """Send the held call, with the answer's XML if there is one, and what came after it."""
        assert self._pending is not None
        message, call = self._pending
        self._pending = None
        if answer.xml is not None and not isinstance(call, calls.Start):
            try:
                message = calls.with_xml(message, call.xml, answer.xml.encode())
            except WireError as error:
                log.warning("forwarded as it came", reason=str(error))
        self._up.put(memoryview(message), [])
        self._drain()

    def _pass_on(self, size: int) -> None:
        """Send the first bytes of the inbox, each descriptor with the byte that it came with."""
        sent = 0
        while self._inbox_descriptors and self._inbox_descriptors[0][0] <= size:
            end, descriptors = self._inbox_descriptors.popleft()
            self._up.put(memoryview(bytes(self._inbox[sent:end])), descriptors)
            sent = end
        if sent < size:
            self._up.put(memoryview(bytes(self._inbox[sent:size])), [])
        self._take_from_inbox(size)

    def _take_from_inbox(self, size: int) -> None:
        del self._inbox[:size]
        self._inbox_descriptors = deque((end - size, descriptors) for end, descriptors in self._inbox_descriptors)

    def _holds(self, header: Header) -> bool:
        if self._opening.may_start:
            return calls.is_wanted(header)
        return self._opening.pending and calls.is_open(header)

    # From libvirt

    def _from_libvirt(self) -> None:
        size, descriptors = self._down.receive(self._buffer)
        data = self._buffer[:size]
        if self._opening.pending:
            self._opening.reply(data)
        if size:
            self._down.put(data, descriptors)
