"""The parent: listens, forks a relay for each client, reaps it, and runs the broker. The only part that keeps its
privileges.

Limits, so that clients cannot use up the machine by connecting: ``CONNECTIONS_MAX`` relays at a time, of which one
user other than root has at most ``CONNECTIONS_OF_A_USER``. Above the first, nobody is accepted until somebody leaves
(as libvirtd does at max_clients); above the second, that user's connection is closed at once.

A relay is forked, not executed: its modules are there already, and pages stay shared. It closes every descriptor but
its three, so that no client's connection is kept open by another one's relay.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Sequence

from pcinuma.daemon.log import log
from pcinuma.errors import PcinumaError
from pcinuma.proxy.broker import Broker
from pcinuma.proxy.identity import Identity
from pcinuma.proxy.questions import QuestionPipe
from pcinuma.proxy.relay import Relay

CONNECTIONS_MAX = 1000
CONNECTIONS_OF_A_USER = 250


@dataclass(frozen=True)
class Listener:
    """A listening socket and the sockets of libvirt that stand behind it: the first that exists when a client comes."""

    socket: socket.socket
    upstreams: tuple[Path, ...]

    def upstream(self) -> Path:
        return next((path for path in self.upstreams if path.exists()), self.upstreams[0])


class Server:
    """Accepts clients on ``listeners`` until :meth:`stop`."""

    def __init__(self, listeners: Sequence[Listener], broker: Broker, timeout: float) -> None:
        self._listeners = tuple(listeners)
        self._broker = broker
        self._timeout = timeout
        self._relays: dict[int, Identity] = {}
        self._questions: set[asyncio.Task[None]] = set()
        self._accepting = False
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
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            loop.remove_signal_handler(number)  # asyncio closes its pipe for them first, and a relay may end meanwhile

    def stop(self) -> None:
        self._stopped.set()

    # Clients come and go

    def _accept_again(self) -> None:
        if not self._accepting and len(self._relays) < CONNECTIONS_MAX:
            self._accepting = True
            for listener in self._listeners:
                asyncio.get_running_loop().add_reader(listener.socket, self._accept, listener)

    def _pause(self) -> None:
        self._accepting = False
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener.socket)

    def _accept(self, listener: Listener) -> None:
        try:
            client, _address = listener.socket.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return
        except OSError as error:  # out of descriptors or memory: a moment's rest, the client waits
            log.error("cannot accept a client", error=str(error))
            self._pause()
            asyncio.get_running_loop().call_later(1.0, self._accept_again)
            return
        with client:
            try:
                who = Identity.of_peer(client)
                self._admit(who)
                self._fork(client, listener, who)
            except (PcinumaError, OSError) as error:
                log.warning("refused a client", reason=str(error))
        if len(self._relays) >= CONNECTIONS_MAX:
            log.warning("no more clients are accepted until one leaves", connections=len(self._relays))
            self._pause()

    def _admit(self, who: Identity) -> None:
        if who.uid and Counter(other.uid for other in self._relays.values())[who.uid] >= CONNECTIONS_OF_A_USER:
            raise PcinumaError(f"it has {CONNECTIONS_OF_A_USER} connections already", subject=f"uid {who.uid}")

    def _fork(self, client: socket.socket, listener: Listener, who: Identity) -> None:
        mine, its = socket.socketpair()
        with its:
            pid = os.fork()
            if pid == 0:
                _be_the_relay(client, its, listener.upstream(), who, self._timeout)
        self._relays[pid] = who
        task = asyncio.get_running_loop().create_task(self._broker.serve(mine, who))
        self._questions.add(task)
        task.add_done_callback(self._questions.discard)

    def _reap(self) -> None:
        for pid in list(self._relays):
            try:
                ended, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                ended, status = pid, 0
            if ended:
                who = self._relays.pop(pid)
                if status:
                    log.error("a relay ended badly", uid=who.uid, client_pid=who.pid, status=status)
        self._accept_again()


def _be_the_relay(client: socket.socket, questions: socket.socket, upstream: Path, who: Identity, timeout: float) -> None:
    """What the forked process does; never returns. Its descriptors are 0 to 2, the client's, the parent's, and
    libvirt's."""
    status = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        gc.disable()
        _close_others({client.fileno(), questions.fileno()})
        libvirt = _connect(upstream, who)
        if libvirt is not None:
            Relay(client, libvirt, QuestionPipe(questions, timeout), read_only=upstream.name.endswith("-ro")).run()
        status = 0
    except Exception:
        log.exception("a relay failed", uid=who.uid, client_pid=who.pid)
    finally:
        os._exit(status)


def _close_others(kept: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor > 2 and descriptor not in kept:
            try:
                os.close(descriptor)
            except OSError:
                pass  # the one that listed them


def _connect(upstream: Path, who: Identity) -> Optional[socket.socket]:
    """libvirt's end, connected as the client; None (and the client's connection ends) where that client is not let
    in, or nobody is there."""
    try:
        who.assume()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(upstream))
    except (PcinumaError, OSError) as error:
        log.warning("a client gets no connection", upstream=str(upstream), uid=who.uid, client_pid=who.pid, reason=str(error))
        return None
    return sock
