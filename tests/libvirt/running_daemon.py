# SPDX-License-Identifier: LGPL-2.1-or-later
"""pcinumad in a private host, started from the checkout as a process of its own, and calls to it over its socket."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import psutil

from pcinuma.daemon.client import decode, encode
from pcinuma.errors import DaemonError
from tests.libvirt.harness import PrivateLibvirt
from tests.waiting import LOGS, PATIENCE, HarnessError, ended, log_ends, until

SOCKET = "/run/pcinuma/pcinuma.sock"


class RunningDaemon:
    """The daemon inside ``host``, reading ``host.host_tree``. A context manager; :meth:`kill` and :meth:`start` in between are allowed.

    ``prefix``: a command that runs another one, to start it by.
    """

    def __init__(self, host: PrivateLibvirt, prefix: Sequence[str] = ()) -> None:
        self.host = host
        self._prefix = prefix
        self.process: Optional[psutil.Process] = None
        self._log = host.base / "pcinumad.log"
        self._entered: subprocess.Popen[str]

    def __enter__(self) -> RunningDaemon:
        LOGS["pcinumad"] = self.log
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        log_ends("pcinumad")
        if self.process is not None:
            self.kill()

    def start(self, *, connected: bool = True) -> None:
        """Start it and wait until it answers (``connected``: and until it has libvirt and looked at all domains)."""
        before = {process.pid for process in self._found()}
        self.host.path("/run/pcinuma").mkdir(exist_ok=True)
        with self._log.open("ab") as log:
            self._entered = entered = self.host.popen([*self._prefix, self.host.python, "-m", "pcinuma.daemon"], stdout=log, stderr=log)
        new = until(
            lambda: [p for p in self._found() if p.pid not in before] or entered.poll() is not None, "pcinumad to start"
        )
        if not isinstance(new, list):
            raise HarnessError(f"pcinumad ended at once; its log: {self.log()}")
        (self.process,) = new
        try:
            until(lambda: self._answers(connected), "pcinumad to answer")
        except HarnessError as error:
            raise HarnessError(f"{error}; its log: {self.log()}") from error

    def ensure(self) -> None:
        """Start it if it does not run."""
        if self.process is None or ended(self.process):
            self.start()

    def _found(self) -> list[psutil.Process]:
        found = []
        for process in self.host.processes():
            try:
                if process.cmdline()[1:3] == ["-m", "pcinuma.daemon"] and not ended(process):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found

    def _answers(self, connected: bool) -> bool:
        try:
            status = self.call("Status")
        except DaemonError:
            return False
        return not connected or bool(status["libvirt"]["connected"])

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it by a signal and wait until it is gone."""
        assert self.process is not None
        process, self.process = self.process, None
        if not ended(process):
            process.send_signal(number)
            self._continue(process)
        until(lambda: self._entered.poll() is not None, "pcinumad to end")

    def freeze(self) -> None:
        """Stop it without ending it: it accepts connections and never answers."""
        assert self.process is not None
        self.process.suspend()

    def thaw(self) -> None:
        """Undo :meth:`freeze`."""
        assert self.process is not None
        self._continue(self.process)

    def _continue(self, process: psutil.Process) -> None:
        # nsenter stops itself with the process that it started, and a stopped parent does not reap.
        for stopped in (process, psutil.Process(self._entered.pid)):
            try:
                stopped.resume()
            except psutil.NoSuchProcess:
                pass  # ended already

    def log(self) -> str:
        """What it wrote so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def call(self, method: str, parameters: Optional[Mapping[str, Any]] = None, timeout: float = PATIENCE) -> dict[str, Any]:
        """Call a method of io.pcinuma. Raises DaemonError as the command's own client does."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            try:
                connection.connect(str(self.host.path(SOCKET)))
                connection.sendall(encode(method, parameters))
                answer = b""
                while not answer.endswith(b"\0"):
                    part = connection.recv(1 << 20)
                    if not part:
                        raise DaemonError("the daemon hung up before it answered")
                    answer += part
            except OSError as error:
                raise DaemonError(f"no answer: {error}") from error
            return decode(answer)

    def settle(self, timeout: float = PATIENCE) -> dict[str, Any]:
        """Wait until it has dealt with every change so far; what Status says then."""

        def settled() -> bool:
            status = self.call("Status")
            return bool(status["libvirt"]["connected"]) and status["pending"] == 0

        until(settled, "pcinumad to have nothing to look at", timeout, 0.002)
        return self.call("Status")  # the last look may have ended within that very answer

    def decided(self, domain: str, by: str) -> list[str]:
        """The log's lines about decisions on a domain that ``by`` made, in order. The hook's are not the last ones where a start
        fails: the reconciler looks at a domain that stopped."""
        lines = [line for line in self.log().splitlines() if f" domain={domain} " in f"{line} " and " decided " in line]
        return [line for line in lines if f" by={by} " in f"{line} "]

    def status(self, domain: str) -> Optional[dict[str, Any]]:
        """What Status says of one domain, None if it does not list it."""
        for entry in self.call("Status")["domains"]:
            if entry["name"] == domain:
                return dict(entry)
        return None

    def outcome(self, domain: str) -> Optional[tuple[str, Optional[str]]]:
        """The last decision about a domain as (outcome, reason), None before the first."""
        entry = self.status(domain)
        return (entry["outcome"], entry["reason"]) if entry and entry["outcome"] else None


def state_files(host: PrivateLibvirt) -> list[Path]:
    """What the daemon keeps on disk."""
    return sorted(file for file in host.path("/var/lib/pcinuma").rglob("*") if file.is_file())
