# SPDX-License-Identifier: LGPL-2.1-or-later
"""The parent: listens, forks a relay for each client, reaps it, and runs the request handler. The only part that keeps its
privileges.

Whoever may connect may connect in a loop, and making a relay is the slow part. So clients are accepted as fast as they come, which tells
whose they are, and get their relays one at a time in the order of :mod:`~pcinuma.proxy.admission`, where also the limits are.

A relay is forked, not executed: its modules are there already, and pages stay shared. It closes every descriptor but
its three, so that no client's connection is kept open by another one's relay.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Optional, Sequence

from pcinuma.errors import PcinumaError
from pcinuma.log import log
from pcinuma.proxy.admission import Admission
from pcinuma.proxy.credentials import Credentials
from pcinuma.proxy.relay import Relay
from pcinuma.proxy.request_handler import RequestHandler
from pcinuma.proxy.requests import RequestPipe

CONNECTIONS_MAX = 1000
CONNECTIONS_FOR_ROOT = 100
CONNECTIONS_OF_A_USER = 250
ACCEPTED_AT_ONCE = 64
"""Clients that are let in before the loop does something else."""
LAST_WORDS = 10.0
"""Seconds for which a client that gets no connection may still send."""
COMPLAINTS_GATHER = 1.0
"""Seconds for which a user's further refusals are only counted: who floods the proxy does not flood the journal."""


@dataclass(frozen=True)
class Listener:
    """A listening socket and the sockets of libvirt that stand behind it: the first that exists when a client comes."""

    socket: socket.socket
    upstreams: tuple[Path, ...]

    def upstream(self) -> Path:
        return next((path for path in self.upstreams if path.exists()), self.upstreams[0])


class _Client(NamedTuple):
    """One that has not got its relay yet."""

    socket: socket.socket
    listener: Listener
    who: Credentials


class Server:
    """Accepts clients on ``listeners`` until :meth:`stop`."""

    def __init__(self, listeners: Sequence[Listener], handler: RequestHandler, timeout: float) -> None:
        self._listeners = tuple(listeners)
        self._handler = handler
        self._timeout = timeout
        self._relays: dict[int, Credentials] = {}
        self._admission: Admission[_Client] = Admission(
            in_all=CONNECTIONS_MAX, for_root=CONNECTIONS_FOR_ROOT, of_a_user=CONNECTIONS_OF_A_USER
        )
        self._serving = False  # the next turn is scheduled
        self._refused: Counter[int] = Counter()
        self._requests: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for listener in self._listeners:
            listener.socket.setblocking(False)
        gc.collect()
        gc.freeze()  # what is there now stays as it is: a relay's collections would only copy its pages
        self._accept_again()
        await self._stopped.wait()
        self._pause()  # the relays end when this process's ends of their socket pairs close
        for client in self._admission.drain():
            client.socket.close()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            loop.remove_signal_handler(number)  # asyncio closes its pipe for them first, and a relay may end meanwhile

    def stop(self) -> None:
        self._stopped.set()

    # Clients come and go

    def _accept_again(self) -> None:
        for listener in self._listeners:
            asyncio.get_running_loop().add_reader(listener.socket, self._accept, listener)

    def _pause(self) -> None:
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener.socket)

    def _accept(self, listener: Listener) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                client, _address = listener.socket.accept()
            except BlockingIOError:
                break
            except (ConnectionAbortedError, InterruptedError):
                continue
            except OSError as error:  # out of descriptors or memory: a moment's rest, the client waits
                log.error("cannot accept a client", error=str(error))
                self._pause()
                asyncio.get_running_loop().call_later(1.0, self._accept_again)
                break
            self._let_in(client, listener)
        self._serve()

    def _let_in(self, client: socket.socket, listener: Listener) -> None:
        uid = -1
        try:
            who = Credentials.of_peer(client)
            uid = who.uid
            self._admission.arrive(uid, _Client(client, listener, who))
        except PcinumaError as error:
            client.close()
            self._complain(uid, error.sentence())

    def _complain(self, uid: int, reason: str) -> None:
        self._refused[uid] += 1
        if self._refused[uid] == 1:
            log.warning("refused a client", reason=reason)
            asyncio.get_running_loop().call_later(COMPLAINTS_GATHER, self._complain_of_more, uid, reason)

    def _complain_of_more(self, uid: int, reason: str) -> None:
        more = self._refused.pop(uid) - 1
        if more:
            log.warning("refused more clients", reason=reason, clients=more)

    def _serve(self) -> None:
        """Have the next client served, if any waits, when the loop has done what else there is."""
        if not self._serving and not self._stopped.is_set():
            self._serving = True
            asyncio.get_running_loop().call_soon(self._serve_one)

    def _serve_one(self) -> None:
        self._serving = False
        client = None if self._stopped.is_set() else self._admission.next()
        if client is None:
            return
        with client.socket:
            try:
                if _has_gone(client.socket):
                    self._admission.leave(client.who.uid)
                else:
                    self._fork(client)
            except OSError as error:
                self._admission.leave(client.who.uid)
                self._complain(client.who.uid, str(error))
        if self._admission.served == CONNECTIONS_MAX:
            log.warning("no more clients are served until one leaves", connections=CONNECTIONS_MAX)
        self._serve()

    def _fork(self, client: _Client) -> None:
        mine, its = socket.socketpair()
        with its:
            try:
                pid = os.fork()
            except OSError:
                mine.close()
                raise
            if pid == 0:
                _run_relay(client.socket, its, client.listener.upstream(), client.who, self._timeout)
        self._relays[pid] = client.who
        task = asyncio.get_running_loop().create_task(self._handler.serve(mine, client.who))
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)

    def _reap(self) -> None:
        while self._relays:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            who = self._relays.pop(pid, None)
            if who is not None:
                self._admission.leave(who.uid)
                if status:
                    log.error("a relay ended badly", uid=who.uid, client_pid=who.pid, status=status)
        self._serve()


def _has_gone(client: socket.socket) -> bool:
    """Whether a client has hung up without a word, so that there is nothing to relay."""
    try:
        return client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False


def _run_relay(client: socket.socket, requests: socket.socket, upstream: Path, who: Credentials, timeout: float) -> None:
    """What the forked process does; never returns. Its descriptors are 0 to 2, the client's, the parent's, and
    libvirt's."""
    status = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        gc.disable()
        _close_others({client.fileno(), requests.fileno()})
        libvirt = _connect(upstream, who)
        if libvirt is not None:
            Relay(client, libvirt, RequestPipe(requests, timeout), read_only=upstream.name.endswith("-ro")).run()
        else:
            _hang_up(client)
        status = 0
    except Exception:
        log.exception("a relay failed", uid=who.uid, client_pid=who.pid)
    finally:
        os._exit(status)


def _hang_up(client: socket.socket) -> None:
    """End a connection in such a way that its client hears of it. One that is about to send something, as virsh is, would be killed by
    SIGPIPE if nobody could read any more; what it sends is thrown away until it goes, or :data:`LAST_WORDS` are over."""
    deadline = time.monotonic() + LAST_WORDS
    try:
        client.shutdown(socket.SHUT_WR)
        while (left := deadline - time.monotonic()) > 0:
            client.settimeout(left)
            if not client.recv(65536):
                break
    except OSError:
        pass  # it is gone, or does not go


def _close_others(kept: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor > 2 and descriptor not in kept:
            try:
                os.close(descriptor)
            except OSError:
                pass  # the one that listed them


def _connect(upstream: Path, who: Credentials) -> Optional[socket.socket]:
    """libvirt's end, connected as the client; None where that client is not let in, or nobody is there."""
    try:
        who.assume()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(upstream))
    except (PcinumaError, OSError) as error:
        log.warning("a client gets no connection", upstream=str(upstream), uid=who.uid, client_pid=who.pid, reason=str(error))
        return None
    return sock
