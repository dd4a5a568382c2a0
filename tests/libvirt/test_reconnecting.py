# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's link to a libvirt that comes and goes, or stops answering."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Optional

import pytest

from pcinuma.errors import DaemonError
from tests.hosts.small import GPU_0, small_host
from tests.libvirt.conftest import require
from tests.libvirt.domains import guest
from tests.libvirt.harness import PrivateLibvirt
from tests.libvirt.running_daemon import RunningDaemon
from tests.waiting import until


@pytest.fixture
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateLibvirt]:
    require()
    with PrivateLibvirt(host_tree=small_host(tmp_path_factory.mktemp("host"))) as host:
        yield host


def descriptors(daemon: RunningDaemon) -> list[str]:
    """What the daemon has open."""
    assert daemon.process is not None
    folder = f"/proc/{daemon.process.pid}/fd"
    found = []
    for number in os.listdir(folder):
        try:
            found.append(os.readlink(f"{folder}/{number}").split(":")[0])
        except FileNotFoundError:
            continue
    return sorted(found)


def settled(daemon: RunningDaemon) -> Optional[list[str]]:
    """What the daemon has open, if that is the same for a second."""
    first = descriptors(daemon)
    time.sleep(1)
    return first if descriptors(daemon) == first else None


@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.full)])
def test_no_descriptor_is_left_of_a_connection_that_ended(host: PrivateLibvirt, times: int) -> None:
    with RunningDaemon(host) as daemon:
        host.connect().defineXML(guest("vm", [GPU_0]))
        until(lambda: daemon.outcome("vm"), "the domain to be looked at")
        until(lambda: daemon.call("Status")["pending"] == 0, "nothing to be pending")
        before = until(lambda: settled(daemon), "what is open to stay the same")
        for number in range(times):
            host.restart()
            until(lambda number=number: daemon.log().count("connected to libvirt") == number + 2, "the link to be there again", 30)
            until(lambda: daemon.call("Status")["libvirt"]["connected"], "the daemon to have listed the domains", 30)
        until(lambda: len(descriptors(daemon)) <= len(before), f"{before} to be all, not {descriptors(daemon)}", 60, 0.1)


IMPATIENT = """
import runpy
from pcinuma.daemon import threads
threads.PATIENCE, threads.SLOW = 2.0, 1.0
runpy.run_module("pcinuma.daemon", run_name="__main__")
"""


class Watched(RunningDaemon):
    """A daemon with little patience, to whose signs of life the test listens."""

    def __init__(self, host: PrivateLibvirt) -> None:
        super().__init__(host)
        host.path("/run/pcinuma").mkdir(exist_ok=True)
        self.ears = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ears.bind(str(host.path("/run/pcinuma/notify")))
        environment = {"NOTIFY_SOCKET": "/run/pcinuma/notify", "WATCHDOG_USEC": "600000"}
        with self._log.open("ab") as log:
            self._entered = host.popen([host.python, "-c", IMPATIENT], env=environment, stdout=log, stderr=log)

    def start(self, *, connected: bool = True) -> None:
        found = until(lambda: [process for process in self.host.processes() if IMPATIENT in process.cmdline()], "the daemon to start")
        self.process = found[-1]
        until(lambda: self._answers(connected), "the daemon to answer", 30)

    def alive(self, seconds: float) -> bool:
        """Whether it gives a sign of life in that time."""
        self.ears.setblocking(False)
        try:
            while True:
                self.ears.recv(4096)
        except BlockingIOError:
            pass
        self.ears.settimeout(seconds)
        try:
            while b"WATCHDOG=1" not in self.ears.recv(4096):
                pass
        except socket.timeout:
            return False
        return True


def test_a_libvirt_that_stops_answering_is_named_and_ends_the_signs_of_life(host: PrivateLibvirt) -> None:
    with Watched(host) as daemon:
        for name in ("a", "b", "c", "d"):
            host.connect().defineXML(guest(name, [GPU_0]))
            until(lambda name=name: daemon.outcome(name), "the domain to be looked at")
        assert daemon.alive(20)
        (libvirtd,) = host.processes("libvirtd")
        libvirtd.suspend()
        try:
            for name in ("a", "b", "c", "d"):
                threading.Thread(target=ask_for, args=(daemon, name), daemon=True).start()
            told = until(lambda: [p for p in daemon.call("Status")["problems"] if "domain c has not come back" in p], "Status to tell")
            assert told[0].startswith("libvirt.")
            until(lambda: not daemon.alive(2), "the signs of life to end", 40)
            assert "too many calls do not come back" in daemon.log()
        finally:
            libvirtd.resume()
        assert daemon.alive(60), "it goes on when libvirt does"
        until(lambda: daemon.call("Status")["problems"] == [], "nothing to be wrong any more", 60)


def ask_for(daemon: RunningDaemon, name: str) -> None:
    try:
        daemon.call("PlaceDomain", {"domain": name, "force": True}, timeout=60)
    except DaemonError:
        pass
