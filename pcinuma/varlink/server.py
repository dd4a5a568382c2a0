# SPDX-License-Identifier: LGPL-2.1-or-later
"""A varlink service on a unix socket: calls of many peers, answered in order on each connection.

A peer costs nobody else anything: it must be root or the service's own user (SO_PEERCRED), a message has a bounded length and ten seconds
to arrive, a reply ten seconds to be taken, and what is no varlink call ends the connection. A connection may stay open and idle; where
there are too many, the one goes that has been waiting for its peer longest.

A call of a method that is one of ``urgent`` is answered by a thread, and by one that is kept for them; a long one has a thread of its own,
as it may take that for seconds. Nothing is worked out for a peer that has hung up meanwhile. A first message that arrives in one piece does
not even get streams before it is answered. Whatever is unusual about such a call takes the usual way.

:meth:`Server._answer` is the boundary where every error of a call becomes an error reply, in the words of ``error_reply``.
"""

from __future__ import annotations

import asyncio
import os
import socket
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import EADDRINUSE
from pathlib import Path
from typing import Any, Awaitable, Callable, Iterator, Mapping, Optional, Tuple

import structlog

from pcinuma.varlink.interface import STANDARD, Interface, Parameter, unfit_parameter
from pcinuma.varlink.peer import Peer, has_hung_up
from pcinuma.varlink.wire import SERVICE, ErrorReply, decode_call, encode_reply

log: structlog.types.FilteringBoundLogger = structlog.get_logger("varlink")

MESSAGE_TIME = 10.0
MAX_CONNECTIONS = 512
LONG = 128 * 1024
"""Bytes of an urgent message above which it waits for those of its kind, and nobody else for it."""
BACKLOG = 1024
_CHUNK = 65536

Parameters = Mapping[str, Any]
Handler = Callable[[Parameters], Awaitable[Mapping[str, Any]]]
Urgent = Callable[[Parameters], Tuple[Mapping[str, Any], Callable[[], None]]]
"""Answers a call in a thread: the reply, and what is left to be done in the event loop."""


@dataclass(frozen=True)
class Service:
    """Whom a server speaks for.

    ``interfaces``: what it answers besides ``org.varlink.service``. ``handlers``: full method name -> coroutine function. ``urgent``:
    handlers of methods that are not in there, for threads. ``error_reply``: what an exception of a handler is to a caller, by the full
    name of the method; called while it is being handled. ``longest``: bytes of a call.
    """

    vendor: str
    product: str
    version: str
    interfaces: tuple[Interface, ...]
    handlers: Mapping[str, Handler]
    error_reply: Callable[[str, Exception], ErrorReply]
    longest: int
    urgent: Mapping[str, Urgent] = field(default_factory=dict)
    url: str = ""


def listen(path: Path) -> socket.socket:
    """A socket that listens on ``path``, for its owner only. Raises OSError, with EADDRINUSE if somebody listens there already."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
            raise OSError(EADDRINUSE, os.strerror(EADDRINUSE))
        except FileNotFoundError:
            pass
        except ConnectionRefusedError:
            path.unlink()  # of a service that was killed
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)
    listener.listen(BACKLOG)
    return listener


class Server:
    """Answers calls on a listening socket as ``service``: urgent ones in ``executor``, and in ``heavy`` where the message is a long one.

    Without ``executor``, urgent ones wait for a thread of the event loop's.
    """

    def __init__(self, service: Service, executor: Optional[Executor] = None, heavy: Optional[Executor] = None) -> None:
        self._service = service
        self._interfaces = {interface.name: interface for interface in (*service.interfaces, STANDARD)}
        self._methods: dict[str, Mapping[str, Parameter]] = {}
        for interface in self._interfaces.values():
            self._methods.update(interface.methods)
        self._handlers: Mapping[str, Handler] = {
            **service.handlers,
            f"{SERVICE}.GetInfo": self._get_info,
            f"{SERVICE}.GetInterfaceDescription": self._get_interface_description,
        }
        self._allowed = {0, os.geteuid()}
        self._connections: set[asyncio.Task[None]] = set()
        self._silent: set[socket.socket] = set()  # connections on which nothing came yet
        self._waiting: dict[object, Callable[[], object]] = {}  # those that wait for their peer, longest first, and what ends each
        self._urgent = service.urgent
        self._executor = executor
        self._heavy = heavy or executor
        self._listener: Optional[socket.socket] = None

    async def start(self, listener: socket.socket) -> None:
        """Accept connections from now on."""
        self._listener = listener
        listener.setblocking(False)
        listener.listen(BACKLOG)
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    async def stop(self) -> None:
        """Accept no more connections and end those that there are; calls that are being answered get a moment to end."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        for silent in self._silent:
            asyncio.get_running_loop().remove_reader(silent)
            silent.close()
        for connection in self._connections:
            connection.cancel()
        if self._connections:
            await asyncio.wait(self._connections, timeout=2.0)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:  # out of descriptors or memory: a moment's rest, the peer waits
            log.error("cannot accept a connection", error=str(error))
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)
            loop.call_later(1.0, self._accept_again)
            return
        connection.setblocking(False)
        if len(self._connections) + len(self._silent) >= MAX_CONNECTIONS and not self._end_one():
            log.warning("connection refused: too many", connections=MAX_CONNECTIONS)
            connection.close()
            return
        if not self._has_spoken(connection):
            self._silent.add(connection)
            self._waiting[connection] = lambda: self._forget(connection)
            asyncio.get_running_loop().add_reader(connection, self._speaks, connection)

    def _end_one(self) -> bool:
        """End the connection that has been waiting for its peer longest."""
        for key, end in self._waiting.items():
            del self._waiting[key]
            end()
            return True
        return False

    def _forget(self, connection: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(connection)
        self._silent.discard(connection)
        connection.close()

    def _speaks(self, connection: socket.socket) -> None:
        """The first bytes of a peer are there, which were not when it connected."""
        asyncio.get_running_loop().remove_reader(connection)
        self._silent.discard(connection)
        self._waiting.pop(connection, None)
        if not self._has_spoken(connection):
            self._go_on(connection, b"")

    def _has_spoken(self, connection: socket.socket) -> bool:
        """Take the first bytes of a peer, which a hook's are as a rule when it is accepted. False: there are none yet."""
        try:
            begun = connection.recv(_CHUNK)
        except BlockingIOError:
            return False
        except OSError:  # the streams will see
            begun = b""
        if not self._answered_urgently(connection, begun):
            self._go_on(connection, begun)
        return True

    def _accept_again(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def _answered_urgently(self, connection: socket.socket, begun: bytes) -> bool:
        """Have the call ``begun``, if it is an urgent one, answered by a thread. False: nothing was done with it."""
        if self._executor is None or begun.find(b"\0") != len(begun) - 1 or Peer.of(connection).uid not in self._allowed:
            return False
        call = decode_call(begun[:-1])
        parameters = (call.get("parameters") or {}) if call is not None else {}
        handler = self._urgent.get(call["method"]) if call is not None and call.keys() <= {"method", "parameters"} else None
        if call is None or handler is None or unfit_parameter(self._methods[call["method"]], parameters) is not None:
            return False
        loop = asyncio.get_running_loop()

        def work(handler: Urgent) -> None:
            if has_hung_up(connection):
                loop.call_soon_threadsafe(self._go_on, connection, b"")
                return
            try:
                reply, then = handler(parameters)
            except Exception as error:  # the usual way has an answer to it
                log.debug("no urgent answer", error=str(error) or type(error).__name__)
                loop.call_soon_threadsafe(self._go_on, connection, begun)
                return
            answer = encode_reply(reply)
            loop.call_soon_threadsafe(then)  # before it is sent: what follows from the answer may be here soon
            try:
                sent = connection.send(answer)
            except OSError:  # its buffer is full, or it is gone: the streams will see
                sent = 0
            loop.call_soon_threadsafe(self._go_on, connection, b"", answer[sent:])

        self._executor.submit(work, handler)
        return True

    def _go_on(self, connection: socket.socket, begun: bytes, unsent: bytes = b"") -> None:
        """Converse with a peer: this much of its next message has arrived, that much of our answer is still to go."""
        task = asyncio.get_running_loop().create_task(self._connected(connection, begun, unsent))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _connected(self, connection: socket.socket, begun: bytes, unsent: bytes) -> None:
        peer = Peer.of(connection)
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=_CHUNK)
        try:
            writer.write(unsent)
            await self._converse(connection, reader, writer, peer, begun)
        except (OSError, asyncio.TimeoutError, asyncio.CancelledError) as error:
            log.debug("connection ended", error=str(error) or type(error).__name__)
        finally:
            writer.close()

    async def _converse(
        self, connection: socket.socket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer, begun: bytes
    ) -> None:
        buffer = bytearray(begun)
        while True:
            with self._waits():
                message = await _message(reader, buffer, self._service.longest)
            if message is None:
                return
            call = decode_call(message)
            if call is None:
                log.warning("connection ended: not a varlink call", pid=peer.pid, uid=peer.uid)
                return
            if peer.uid not in self._allowed:
                log.warning("call refused: not root", method=call.get("method"), pid=peer.pid, uid=peer.uid)
                reply = encode_reply({}, f"{SERVICE}.PermissionDenied")
            else:
                executor = self._executor if len(message) < LONG else self._heavy
                del message
                reply = await self._answer(call["method"], call.get("parameters") or {}, connection, executor)
            if not call.get("oneway"):
                writer.write(reply)
                with self._waits():
                    await asyncio.wait_for(writer.drain(), MESSAGE_TIME)
            if peer.uid not in self._allowed:
                return

    @contextmanager
    def _waits(self) -> Iterator[None]:
        """While this connection's task waits for its peer, it may be ended in favour of another."""
        task = asyncio.current_task()
        assert task is not None
        self._waiting[task] = task.cancel
        try:
            yield
        finally:
            self._waiting.pop(task, None)

    async def _answer(self, method: str, parameters: Parameters, connection: socket.socket, executor: Optional[Executor]) -> bytes:
        try:
            handler, urgent = self._handlers.get(method), self._urgent.get(method)
            if handler is None and urgent is None:
                interface = method.rpartition(".")[0]
                if interface not in self._interfaces:
                    raise ErrorReply(f"{SERVICE}.InterfaceNotFound", interface=interface)
                code = "MethodNotImplemented" if method in self._methods else "MethodNotFound"
                raise ErrorReply(f"{SERVICE}.{code}", method=method)
            unfit = unfit_parameter(self._methods[method], parameters)
            if unfit is not None:
                raise ErrorReply(f"{SERVICE}.InvalidParameter", parameter=unfit)
            if handler is not None:
                return encode_reply(await handler(parameters))
            assert urgent is not None
            loop = asyncio.get_running_loop()
            reply, then = await loop.run_in_executor(executor, lambda: _unless_gone(connection, urgent, parameters))
            then()
            return encode_reply(reply)
        except ErrorReply as error:
            return encode_reply(error.parameters, error.error)
        except Exception as error:
            failed = self._service.error_reply(method, error)
            return encode_reply(failed.parameters, failed.error)

    async def _get_info(self, _parameters: Parameters) -> Mapping[str, Any]:
        service = self._service
        return {
            "vendor": service.vendor,
            "product": service.product,
            "version": service.version,
            "url": service.url,
            "interfaces": sorted(self._interfaces),
        }

    async def _get_interface_description(self, parameters: Parameters) -> Mapping[str, Any]:
        interface = self._interfaces.get(parameters["interface"])
        if interface is None:
            raise ErrorReply(f"{SERVICE}.InterfaceNotFound", interface=parameters["interface"])
        return {"description": interface.description}


def _unless_gone(connection: socket.socket, handler: Urgent, parameters: Parameters) -> tuple[Mapping[str, Any], Callable[[], None]]:
    if has_hung_up(connection):
        raise ErrorReply(f"{SERVICE}.PermissionDenied")  # nobody hears it
    return handler(parameters)


async def _message(reader: asyncio.StreamReader, buffer: bytearray, longest: int) -> Optional[bytes]:
    """The next message without its NUL; None at the end of the stream, and when a message is longer than allowed.

    Raises TimeoutError if a message that has begun takes too long to arrive.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + MESSAGE_TIME if buffer else None
    searched = 0
    while True:
        end = buffer.find(b"\0", searched)
        if end >= 0:
            message = bytes(buffer[:end])
            del buffer[: end + 1]
            return message
        searched = len(buffer)
        if searched > longest:
            log.warning("connection ended: message too long", limit=longest)
            return None
        if deadline is None:
            part = await reader.read(_CHUNK)
            deadline = clock() + MESSAGE_TIME
        else:
            part = await asyncio.wait_for(reader.read(_CHUNK), max(0.0, deadline - clock()))
        if not part:
            return None
        buffer += part
