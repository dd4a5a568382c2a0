# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinumad``: start the daemon, in the foreground, with systemd or without.

SIGTERM and SIGINT stop it, SIGHUP reads the configuration again (an unusable one is logged, and the old one stays; a signal that comes
while it starts is kept until it is ready, hence what comes before the imports). It holds a lock in its state folder, so that there is
never a second one. A configuration that cannot be used when it starts is an error: guessing could place domains that the administrator
wanted left alone.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import socket
import sys
from concurrent.futures import Future
from errno import EADDRINUSE
from pathlib import Path
from typing import Optional, Sequence

_early: list[int] = []
signal.signal(signal.SIGHUP, lambda number, _frame: _early.append(number))

from pcinuma import __version__, systemd
from pcinuma.daemon import client, lock, memory, state
from pcinuma.daemon.link import Link
from pcinuma.daemon.methods import Methods
from pcinuma.daemon.pools import Pools
from pcinuma.daemon.reconciler import WORKERS, Reconciler
from pcinuma.daemon.state_file import StateFile
from pcinuma.daemon.threads import Threads
from pcinuma.errors import EXIT_DONE, ConfigError, DaemonError, PcinumaError
from pcinuma.log import configure, log
from pcinuma.settings import Settings, load_settings
from pcinuma.varlink.server import Server, listen

SWITCH_INTERVAL = 0.001
"""Seconds after which a busy thread lets another run: a hook waits no longer than that for a sweep over many domains."""
NICE = -10
"""Somebody who starts a domain right after defining it races with this process, and its work is over in milliseconds."""
LIBVIRT_THREADS = 8
HOOK_THREADS = 4


class Arguments(argparse.Namespace):
    """The command line."""

    socket: Path
    state: Path
    root: Path
    uri: Optional[str]
    debug: bool


def arguments(argv: Optional[Sequence[str]] = None) -> Arguments:
    """Read the command line; the environment gives the defaults."""
    environment = os.environ
    parser = argparse.ArgumentParser(
        prog="pcinumad",
        description="Keeps the definitions of libvirt's domains placed, and answers libvirt's hook and the pcinuma command.",
        epilog="Runs in the foreground. SIGHUP reads the configuration again. See pcinuma(8) and pcinuma.conf(5).",
    )
    parser.add_argument("--socket", type=Path, default=client.socket_path(), help="where to listen (default: %(default)s)")
    folder = Path(environment.get("PCINUMA_STATE") or state.DEFAULT_FOLDER)
    parser.add_argument("--state", type=Path, default=folder, metavar="DIR", help="state that outlives it (default: %(default)s)")
    root = Path(environment.get("PCINUMA_ROOT") or "/")
    parser.add_argument("--root", type=Path, default=root, metavar="DIR", help="what holds sys/ and etc/pcinuma (default: %(default)s)")
    uri = environment.get("PCINUMA_LIBVIRT_URI") or None
    parser.add_argument("--uri", default=uri, help="libvirt's URI (default: libvirt-uri in the configuration)")
    parser.add_argument("--debug", action="store_true", help="log more")
    parser.add_argument("--version", action="version", version=f"pcinumad {__version__}")
    return parser.parse_args(argv, namespace=Arguments())


class Daemon:
    """The parts, put together."""

    def __init__(self, options: Arguments, settings: Settings) -> None:
        self.options = options
        self.settings = settings
        self.notifier = systemd.Notifier()
        self._code = EXIT_DONE

    async def run(self, listener: socket.socket) -> int:
        """Serve until told to stop; return the exit code."""
        options = self.options
        loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()  # Python 3.9 binds it to the loop that runs
        known = state.load(options.state)
        state_file = StateFile(options.state, known)
        threads = Threads(LIBVIRT_THREADS, "libvirt", WORKERS)
        self._hooks = hooks = Threads(HOOK_THREADS, "hook", HOOK_THREADS)
        heavy = Threads(1, "large", 1)
        self._pools = (threads, hooks, heavy)
        pools = Pools(options.root)
        self._reconciler = Reconciler(known, state_file, self.settings, options.root, pools, threads)
        link = Link(options.uri or self.settings.libvirt_uri, self._reconciler, threads)
        methods = Methods(self._reconciler, link, pools, state_file, hooks, threads, self._stuck)
        server = Server(methods.service(), hooks, heavy)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        if _early:
            loop.call_soon(self._reload)
        await server.start(listener)
        log.info("started", version=__version__, socket=str(options.socket), state=str(options.state), root=str(options.root))
        self.notifier.send("READY=1", "STATUS=starting")
        parts = [link.run(), self._reconciler.run(), systemd.watchdog(self.notifier, self._hangs), self._show_status(link)]
        tasks = [loop.create_task(part) for part in parts]
        for task in tasks:
            task.add_done_callback(self._ended)
        await self._stop.wait()
        self.notifier.send("STOPPING=1")
        await server.stop()
        for task in tasks:
            task.cancel()
        await state_file.written()
        log.info("stopped")
        return self._code

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A part that ends by itself is a fault of ours: better to be started again than to go on without it."""
        if not task.cancelled() and task.exception() is not None:
            log.critical("a part of the daemon failed", exc_info=task.exception())
            self._code = 1
            self._stop.set()

    def _reload(self) -> None:
        self.notifier.send("RELOADING=1")
        try:
            self._reconciler.placer.settings = load_settings(self.options.root)
        except ConfigError as error:
            log.error("configuration not read again; the old one stays in force", error=error.sentence())
        else:
            log.info("configuration read again")
            self._reconciler.sweep()
        self.notifier.send("READY=1")

    def _stuck(self) -> list[str]:
        """The calls that take long, of which a person should know."""
        return [text for pool in self._pools for text in pool.stuck()]

    def _hangs(self) -> list[str]:
        """The same if they are too many to go on."""
        return self._stuck() if any(pool.exhausted() for pool in self._pools) else []

    async def _show_status(self, link: Link) -> None:
        trimming: Optional[Future[None]] = None
        while True:
            domains = len(self._reconciler.known)
            libvirt = f"{domains} domains of libvirt {link.version}" if link.ready else f"waiting for libvirt: {link.message}"
            self.notifier.status(libvirt)
            if trimming is None or trimming.done():
                trimming = self._hooks.submit(memory.give_back_if_grown)
            await asyncio.sleep(2)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the daemon; return the exit code."""
    options = arguments(argv)
    configure(debug=options.debug)
    memory.settle()
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.freeze()  # what is loaded by now stays, so that no collection during a start looks at it
    try:
        os.setpriority(os.PRIO_PROCESS, 0, min(NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    except OSError as error:
        log.debug("priority not raised", error=error.strerror)
    made: Optional[tuple[int, int]] = None
    try:
        settings = load_settings(options.root)
        lock.take(options.state, "stop it first: systemctl stop pcinuma")
        listener = systemd.inherited_socket()
        if listener is None:
            listener = _listen(options.socket)
            made = _identity(options.socket)
        code = asyncio.run(Daemon(options, settings).run(listener))
    except PcinumaError as error:
        log.critical("not started", error=error.sentence())
        code = error.exit_code
    if made is not None and _identity(options.socket) == made:
        options.socket.unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread may be waiting for libvirt, and may go on waiting


def _listen(path: Path) -> socket.socket:
    """A socket on ``path``. Raises DaemonError if a daemon listens there already, or if that fails."""
    try:
        return listen(path)
    except OSError as error:
        if error.errno == EADDRINUSE:
            hint = "stop it first: systemctl stop pcinuma"
            raise DaemonError("a daemon listens here already", subject=str(path), hint=hint) from None
        raise DaemonError(f"cannot listen ({error.strerror or error})", subject=str(path)) from None


def _identity(path: Path) -> Optional[tuple[int, int]]:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


if __name__ == "__main__":
    main()
