# SPDX-License-Identifier: LGPL-2.1-or-later
"""The link to libvirt: one connection, its events, and reconnecting for ever.

libvirt's own event loop runs in a thread, and each event is handed to asyncio's loop from there. libvirtaio was rejected:
libvirt calls its event implementation from whichever thread makes a blocking call, and libvirtaio then changes asyncio's loop
from that thread, which asyncio does not allow.

An event is handled by the loop in the order in which libvirt sent it. When the connection ends (libvirt was restarted, or does
not answer the keepalive), the link tries again, first at once and then ever more slowly, and tells its owner when there is a
new one. A connection lives as long as one of its callbacks is registered (each holds a reference), also when it is closed: all of them
are taken back first, which works without an answer from the other side. Domains hold it as well, and asyncio's futures leave cycles
behind that hold either, hence a garbage collection after that.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import Executor
from datetime import datetime, timezone
from typing import Any, Callable, NamedTuple, Optional, Protocol

import libvirt

from pcinuma.daemon.definition import Prefetched
from pcinuma.errors import LibvirtError
from pcinuma.log import log

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0
COLLECT_AFTER = 3.0
KEEPALIVE_INTERVAL = 5
KEEPALIVE_COUNT = 6
HINT = "is libvirt running? systemctl start libvirtd (or virtqemud)"

_loop_started = False


class DomainEvent(NamedTuple):
    """A lifecycle event of a domain: VIR_DOMAIN_EVENT_… and its detail. ``prefetched``: what the owner asked about the domain at once."""

    domain: libvirt.virDomain
    event: int
    detail: int
    prefetched: Optional[Prefetched] = None


class Owner(Protocol):
    """Who is told; everything but :meth:`defined` is called in asyncio's loop."""

    def defined(self, domain: libvirt.virDomain) -> Optional[Prefetched]:
        """Called in libvirt's thread, which must not be kept waiting, when the event that a domain was defined has just arrived."""

    def domain_event(self, event: DomainEvent) -> None: ...

    def nodes_changed(self) -> None: ...

    def networks_changed(self) -> None: ...

    async def connected(self, connection: libvirt.virConnect) -> None: ...

    def disconnected(self) -> None: ...


class Link:
    """The connection to ``uri`` for as long as :meth:`run` runs. ``executor`` makes the blocking calls."""

    def __init__(self, uri: str, owner: Owner, executor: Executor) -> None:
        self.uri = uri
        self.version: Optional[str] = None
        self.since: Optional[str] = None
        self.message: Optional[str] = "not connected yet"
        self._owner = owner
        self._executor = executor
        self._connection: Optional[libvirt.virConnect] = None
        self._ready = False

    @property
    def ready(self) -> bool:
        """Whether there is a connection, and its owner has taken it over."""
        return self._ready

    def connection(self) -> libvirt.virConnect:
        """The connection. Raises LibvirtError when there is none."""
        if self._connection is None:
            raise LibvirtError(f"libvirt cannot be reached ({self.message})", subject=self.uri, hint=HINT)
        return self._connection

    async def run(self) -> None:
        """Connect, and connect again whenever the connection ends, until cancelled."""
        loop = asyncio.get_running_loop()
        _start_event_loop()
        pause = FIRST_PAUSE
        while True:
            closed = asyncio.Event()
            opened: Optional[_Opened] = None
            try:
                opened = await loop.run_in_executor(self._executor, self._open, loop, closed)
                self._connection, self.message = opened.connection, None
                self.since = datetime.now(timezone.utc).isoformat(timespec="seconds")
                log.info("connected to libvirt", uri=self.uri, version=self.version)
                pause = FIRST_PAUSE
                await self._owner.connected(opened.connection)
                self._ready = True
                await closed.wait()
                self.message = "libvirt closed the connection"
                log.warning("connection to libvirt lost", uri=self.uri)
            except libvirt.libvirtError as error:
                text = error.get_error_message() or str(error)
                if text != self.message:
                    log.warning("libvirt cannot be reached", uri=self.uri, error=text)
                self.message = text
            finally:
                self._connection, self._ready = None, False
                if opened is not None:
                    self._owner.disconnected()
                    loop.run_in_executor(self._executor, opened.close)
                    loop.call_later(COLLECT_AFTER, gc.collect)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _open(self, loop: asyncio.AbstractEventLoop, closed: asyncio.Event) -> _Opened:
        opened = _Opened(libvirt.open(self.uri))
        connection, owner = opened.connection, self._owner

        def tell(function: Callable[..., None], *arguments: Any) -> None:
            if not closed.is_set():
                function(*arguments)

        def hand_over(function: Callable[..., None], *arguments: Any) -> None:
            try:
                loop.call_soon_threadsafe(tell, function, *arguments)
            except RuntimeError:
                pass  # the loop has ended, and the daemon with it

        def on_close(_connection: Any, reason: int, _opaque: Any) -> None:
            hand_over(closed.set)

        def on_domain(_connection: Any, domain: Any, event: int, detail: int, _opaque: Any) -> None:
            prefetched = owner.defined(domain) if event == libvirt.VIR_DOMAIN_EVENT_DEFINED else None
            hand_over(owner.domain_event, DomainEvent(domain, event, detail, prefetched))

        def on_node(*_arguments: Any) -> None:
            hand_over(owner.nodes_changed)

        def on_network(*_arguments: Any) -> None:
            hand_over(owner.networks_changed)

        try:
            connection.registerCloseCallback(on_close, None)
            connection.setKeepAlive(KEEPALIVE_INTERVAL, KEEPALIVE_COUNT)
            lifecycle = connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, on_domain, None)
            opened.callbacks.append((connection.domainEventDeregisterAny, lifecycle))
            opened.optional(
                connection.nodeDeviceEventRegisterAny,
                connection.nodeDeviceEventDeregisterAny,
                libvirt.VIR_NODE_DEVICE_EVENT_ID_LIFECYCLE,
                on_node,
                "node device",
            )
            opened.optional(
                connection.networkEventRegisterAny,
                connection.networkEventDeregisterAny,
                libvirt.VIR_NETWORK_EVENT_ID_LIFECYCLE,
                on_network,
                "network",
            )
            number = connection.getLibVersion()
            self.version = f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"
        except BaseException:
            opened.close()
            raise
        return opened


class _Opened:
    """A connection, and how to take back each callback that is registered on it."""

    def __init__(self, connection: libvirt.virConnect) -> None:
        self.connection = connection
        self.callbacks: list[tuple[Callable[[int], object], int]] = []

    def optional(
        self, register: Callable[..., int], deregister: Callable[[int], object], event: int, callback: Callable[..., None], what: str
    ) -> None:
        """Register for events of a driver that this libvirt may lack."""
        try:
            self.callbacks.append((deregister, register(None, event, callback, None)))
        except libvirt.libvirtError as error:
            log.warning("libvirt sends no events of a kind", kind=what, error=error.get_error_message())

    def close(self) -> None:
        """Take everything back. A libvirt that is gone says that it is, after it was done on this side."""
        steps = [lambda back=back, number=number: back(number) for back, number in self.callbacks]
        for step in (*steps, self.connection.unregisterCloseCallback, self.connection.close):
            try:
                step()
            except libvirt.libvirtError as error:
                log.debug("closing the connection to libvirt", error=error.get_error_message())
        self.callbacks.clear()


def _start_event_loop() -> None:
    """Start libvirt's event loop, once in a process. Errors that libvirt would print itself come as exceptions anyway."""
    global _loop_started
    if _loop_started:
        return
    _loop_started = True
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_run_event_loop, name="libvirt-events", daemon=True).start()


def _run_event_loop() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()
