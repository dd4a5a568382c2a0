# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma-proxy``: reads the command line and the configuration, finds or makes its sockets, and runs the server."""

from __future__ import annotations

import argparse
import asyncio
import os
import stat
import sys
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socket
from typing import Optional, Sequence

from pcinuma.daemon import client
from pcinuma.errors import EXIT_DONE, PcinumaError, UnusableInput
from pcinuma.log import configure, log
from pcinuma.proxy.request_handler import RequestHandler
from pcinuma.proxy.server import Listener, Server
from pcinuma.settings import load_settings
from pcinuma.systemd import Notifier, watchdog

DEFAULT_LISTEN = Path("/run/pcinuma/libvirt-sock")
UPSTREAMS = (
    Path("/run/libvirt/virtqemud-sock-direct"),
    Path("/run/libvirt/libvirt-sock-direct"),
    Path("/run/libvirt/virtqemud-sock"),
    Path("/run/libvirt/libvirt-sock"),
)
"""Where libvirt is, modular before monolithic; the first two exist where ``pcinuma proxy enable`` moved libvirt's own socket aside."""

BACKLOG = 512
_FIRST_PASSED = 3  # sd_listen_fds(3)


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(prog="pcinuma-proxy", description="Relay libvirt's RPC and place domains as they are started.")
    parser.add_argument("--listen", type=Path, metavar="PATH", help=f"listen here (default {DEFAULT_LISTEN}, or what systemd passes)")
    parser.add_argument("--upstream", type=Path, metavar="PATH", help="libvirt's socket (default: where libvirt usually is)")
    arguments = parser.parse_args(argv)
    try:
        settings = load_settings(Path(os.environ.get("PCINUMA_ROOT") or "/"))
        upstreams = (arguments.upstream,) if arguments.upstream else UPSTREAMS
        listeners = passed_listeners(upstreams) if arguments.listen is None else []
        if not listeners:
            listeners = [listen(arguments.listen or DEFAULT_LISTEN, upstreams)]
    except PcinumaError as error:
        print(f"pcinuma-proxy: {error.sentence()}", file=sys.stderr)
        return error.exit_code
    configure()
    asyncio.run(_serve(listeners, RequestHandler(client.socket_path(), settings.proxy_timeout), settings.proxy_timeout))
    return EXIT_DONE


async def _serve(listeners: list[Listener], handler: RequestHandler, timeout: float) -> None:
    server = Server(listeners, handler, timeout)
    for listener in listeners:
        log.info("listening", path=listener.socket.getsockname(), upstream=str(listener.upstream()))
    notifier = Notifier()
    notifier.send("READY=1")
    alive = asyncio.create_task(watchdog(notifier))
    await server.run()
    notifier.send("STOPPING=1")
    alive.cancel()


def passed_listeners(upstreams: tuple[Path, ...]) -> list[Listener]:
    """The sockets that systemd passed. One that is named after a path (FileDescriptorName=) has that one behind it,
    and no other."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    number = int(os.environ.get("LISTEN_FDS") or 0)
    names = (os.environ.get("LISTEN_FDNAMES") or "").split(":")
    names += [""] * (number - len(names))
    for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(variable, None)
    listeners = []
    for offset, name in zip(range(number), names):
        sock = socket(fileno=_FIRST_PASSED + offset)
        sock.set_inheritable(False)
        listeners.append(Listener(sock, (Path(name),) if name.startswith("/") else upstreams))
    return listeners


def listen(path: Path, upstreams: tuple[Path, ...]) -> Listener:
    """Listen on ``path``, with the mode, owner and group of libvirt's own socket, so that the same users reach it."""
    listener = Listener(socket(AF_UNIX, SOCK_STREAM), upstreams)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _remove_stale(path)
        before = os.umask(0o177)
        try:
            listener.socket.bind(str(path))
        finally:
            os.umask(before)
        model = listener.upstream()
        if model.exists():
            look = model.stat()
            os.chown(path, look.st_uid, look.st_gid)
            path.chmod(stat.S_IMODE(look.st_mode))
        listener.socket.listen(BACKLOG)
    except OSError as error:
        raise UnusableInput(f"cannot listen: {error.strerror}", subject=str(path)) from error
    return listener


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on any more."""
    if not path.is_socket():
        return
    with socket(AF_UNIX, SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise UnusableInput("somebody listens there already", subject=str(path))


if __name__ == "__main__":
    sys.exit(main())
