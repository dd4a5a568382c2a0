# SPDX-License-Identifier: LGPL-2.1-or-later
"""systemd's side of a service in a few lines: readiness, status, watchdog, and the socket that it may hand over.

Protocols: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3). Without systemd none of the variables is set, and nothing
here does anything.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Callable, Optional

from pcinuma.log import log

LISTEN_FDS_START = 3
WITHOUT = 15.0
"""Seconds between two looks where no systemd watches."""


class Notifier:
    """Tells systemd how the daemon is. A message that cannot be sent is lost, as sd_notify(3) has it."""

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._status = ""

    def send(self, *assignments: str) -> None:
        """Send ``NAME=value`` lines."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.sendto("\n".join(assignments).encode(), self._address)
        except OSError as error:
            log.warning("systemd does not listen", error=str(error))

    def status(self, text: str) -> None:
        """The line that ``systemctl status`` shows."""
        if text != self._status:
            self._status = text
            self.send(f"STATUS={text}")


def watchdog_interval() -> Optional[float]:
    """Seconds between two signs of life, half of what systemd allows; None if it watches nobody here."""
    try:
        if int(os.environ.get("WATCHDOG_PID", os.getpid())) != os.getpid():
            return None
        microseconds = int(os.environ["WATCHDOG_USEC"])
    except (KeyError, ValueError):
        return None
    return microseconds / 2e6 if microseconds > 0 else None


async def watchdog(notifier: Notifier, hangs: Callable[[], list[str]] = list) -> None:
    """Show signs of life for ever, from the event loop: if it hangs, or ``hangs`` says that too much else does, systemd restarts the
    daemon. Without systemd, that is logged and no more."""
    interval = watchdog_interval()
    silent = False
    while True:
        stuck = hangs()
        if stuck and not silent:
            log.critical("too many calls do not come back", calls=stuck)
        silent = bool(stuck)
        if interval is not None and not silent:
            notifier.send("WATCHDOG=1")
        await asyncio.sleep(interval or WITHOUT)


def inherited_socket() -> Optional[socket.socket]:
    """The listening unix socket that systemd handed over, if it did; others that came with it are closed."""
    try:
        if int(os.environ.pop("LISTEN_PID", "0")) != os.getpid():
            return None
        count = int(os.environ.pop("LISTEN_FDS", "0"))
    except ValueError:
        return None
    found: Optional[socket.socket] = None
    for descriptor in range(LISTEN_FDS_START, LISTEN_FDS_START + count):
        try:
            candidate = socket.socket(fileno=descriptor)
        except OSError:
            continue
        candidate.set_inheritable(False)
        if found is None and candidate.family == socket.AF_UNIX and candidate.type == socket.SOCK_STREAM:
            found = candidate
        else:
            candidate.close()
    return found
