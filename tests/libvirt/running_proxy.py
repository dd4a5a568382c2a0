# SPDX-License-Identifier: LGPL-2.1-or-later
"""The proxy in a private host, started from the checkout as a process of its own."""

from __future__ import annotations

import gc
import signal
import subprocess
from collections.abc import Sequence
from typing import Optional

import libvirt
import psutil

from tests.libvirt.harness import PrivateLibvirt
from tests.waiting import CHECKOUT, LOGS, HarnessError, ended, log_ends, until

SOCKET = "/run/pcinuma/libvirt-sock"


def unit_environment() -> dict[str, str]:
    """What the proxy's unit sets."""
    lines = (CHECKOUT / "systemd/pcinuma-proxy.service").read_text().splitlines()
    words = [word for line in lines if line.startswith("Environment=") for word in line.partition("=")[2].split()]
    return {name: value for name, _, value in (word.partition("=") for word in words)}


class RunningProxy:
    """The proxy inside ``host``, before its libvirtd, in its unit's environment. A context manager. ``arguments``: for its command line."""

    def __init__(self, host: PrivateLibvirt, arguments: Sequence[str] = ()) -> None:
        self.host = host
        self.socket = host.path(SOCKET)
        self.uri = f"qemu+unix:///system?socket={self.socket}"
        self.inside = f"qemu+unix:///system?socket={SOCKET}"
        self.parent: Optional[psutil.Process] = None
        self._arguments = arguments
        self._entered: subprocess.Popen[str]
        self._log = host.base / "pcinuma-proxy.log"

    def __enter__(self) -> RunningProxy:
        LOGS["pcinuma-proxy"] = self.log
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        log_ends("pcinuma-proxy")
        if self.parent is not None:
            self.kill(signal.SIGTERM)

    def start(self) -> None:
        """Start it and wait until it listens."""
        heard = self.log().count("listening")
        with self._log.open("ab") as log:
            command = [self.host.python, "-m", "pcinuma.proxy", "--listen", SOCKET, *self._arguments]
            self._entered = self.host.popen(command, env=unit_environment(), stdout=log, stderr=log)
        try:
            until(lambda: self.log().count("listening") > heard, "the proxy to listen")
        except HarnessError as error:
            raise HarnessError(f"{error}; its log: {self.log()}") from error
        (self.parent,) = psutil.Process(self._entered.pid).children()  # nsenter's

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it by a signal and wait until it and its relays are gone."""
        assert self.parent is not None
        parent, self.parent = self.parent, None
        relays = parent.children() if parent.is_running() else []
        parent.send_signal(number)
        until(lambda: all(map(ended, [parent, *relays])), "the proxy to end")
        self._entered.wait()

    def relays(self) -> list[psutil.Process]:
        """One process for each connection."""
        assert self.parent is not None
        return [child for child in self.parent.children() if not ended(child)]

    def wait_for_relays_to_end(self) -> None:
        """Until no client is left. A connection of ours that a traceback keeps (``pytest.raises(…) as`` makes a cycle with its frame)
        is a client, and only the collector of cycles lets go of it."""
        gc.collect()
        until(lambda: not self.relays(), "the relays to end")

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def connect(self) -> libvirt.virConnect:
        return libvirt.open(self.uri)
