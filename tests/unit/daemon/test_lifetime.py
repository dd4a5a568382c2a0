# SPDX-License-Identifier: LGPL-2.1-or-later
"""How pcinumad starts, stops and reloads: with systemd, without it, after a crash, and never twice."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pcinuma.daemon import client
from pcinuma.errors import EXIT_UNUSABLE, DaemonError
from tests.hosts.small import small_host
from tests.unit.daemon_process import DaemonProcess
from tests.waiting import CHECKOUT

AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DaemonProcess:
    """One that was not started yet."""
    monkeypatch.setenv("PCINUMA_SOCKET", str(tmp_path / "socket"))
    return DaemonProcess(tmp_path, small_host(tmp_path / "host"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_cleanly(daemon: DaemonProcess, number: int) -> None:
    daemon.start()
    assert client.call("Status")["libvirt"]["connected"] is False
    assert daemon.stop(number) == 0
    assert not daemon.socket.exists()
    assert "stopped" in daemon.log()
    assert "Traceback" not in daemon.log()


def test_it_starts_again_after_it_was_killed(daemon: DaemonProcess) -> None:
    daemon.start()
    daemon.stop(signal.SIGKILL)
    assert daemon.socket.exists()
    with daemon:
        daemon.await_log("started", 2)
        assert client.call("Status")["version"]


def test_there_is_never_a_second_one(daemon: DaemonProcess) -> None:
    with daemon:
        second = subprocess.run(daemon.command(), cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=False)
        assert second.returncode == 1
        assert "another pcinumad is running" in second.stderr
        assert client.call("Status")["version"], "the first one's socket is still its own"


def test_a_configuration_that_cannot_be_used_is_an_error_that_names_the_file(daemon: DaemonProcess) -> None:
    folder = daemon.root / "etc/pcinuma"
    folder.mkdir(parents=True)
    (folder / "pcinuma.conf").write_text("[placement]\npolcy = off\n")
    refused = subprocess.run(daemon.command(), cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=False)
    assert refused.returncode == EXIT_UNUSABLE
    assert "pcinuma.conf" in refused.stderr
    assert "polcy" in refused.stderr


def test_a_hangup_reads_the_configuration_again_and_keeps_the_old_one_if_it_is_unusable(daemon: DaemonProcess) -> None:
    folder = daemon.root / "etc/pcinuma"
    folder.mkdir(parents=True)
    with daemon:
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        daemon.await_log("configuration read again")
        (folder / "pcinuma.conf").write_text("[placement]\npolcy = off\n")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.await_log("configuration not read again")
        assert client.call("Status")["version"]


def test_a_hangup_while_it_starts_is_kept_until_it_is_ready(daemon: DaemonProcess) -> None:
    with (daemon.base / "daemon.log").open("ab") as log:
        daemon.process = process = subprocess.Popen(daemon.command(), cwd=CHECKOUT, stdout=log, stderr=log)
    with daemon_ended_at_last(daemon):
        maps = Path(f"/proc/{process.pid}/maps")
        while "libvirt" not in maps.read_text():  # it is importing what it needs
            assert process.poll() is None
        process.send_signal(signal.SIGHUP)
        daemon.await_log("configuration read again")
        assert client.call("Status")["version"]


@contextmanager
def daemon_ended_at_last(daemon: DaemonProcess) -> Iterator[None]:
    try:
        yield
    finally:
        daemon.__exit__(None, None, None)


def test_systemd_hears_that_it_is_ready_alive_and_stopping(daemon: DaemonProcess) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(daemon.base / "notify"))
        systemd.settimeout(120)
        daemon.start({"NOTIFY_SOCKET": str(daemon.base / "notify"), "WATCHDOG_USEC": "400000"})
        heard = [systemd.recv(1000).decode() for _ in range(6)]
        assert heard[0].startswith("READY=1")
        assert "WATCHDOG=1" in heard
        assert any(message.startswith("STATUS=waiting for libvirt") for message in heard)
        assert daemon.stop() == 0
        while "STOPPING=1" not in heard:
            heard.append(systemd.recv(1000).decode())


def test_systemd_may_hand_over_the_socket_which_then_outlives_the_daemon(daemon: DaemonProcess) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(daemon.socket))
        listener.listen(8)
        argv = [sys.executable, "-c", AS_SYSTEMD, str(listener.fileno()), *daemon.command()]
        with (daemon.base / "daemon.log").open("ab") as log:
            daemon.process = subprocess.Popen(argv, cwd=CHECKOUT, pass_fds=[listener.fileno()], stdout=log, stderr=log)
        daemon.await_log("started")
        assert client.call("Status")["version"]
        assert daemon.stop() == 0
        assert daemon.socket.exists()


def test_on_the_journal_each_line_has_its_priority(daemon: DaemonProcess) -> None:
    (daemon.base / "daemon.log").touch()
    status = os.stat(daemon.base / "daemon.log")
    daemon.start({"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
    daemon.await_log("libvirt cannot be reached")
    daemon.stop()
    lines = daemon.log().splitlines()
    assert [line[:3] for line in lines if "libvirt cannot be reached" in line] == ["<4>"]
    assert all(line[:3] in ("<6>", "<4>") for line in lines), lines


LARGE = [
    "<domain><name>vm</name><devices>" + "<disk a='b'/>" * 70_000 + "</devices></domain>",
    "<domain><name>vm</name><description>" + "x" * 4_000_000 + "</description></domain>",
    "<domain><name>vm</name>" + "<cell id='1' cpus='1'/>" * 30_000 + "</domain>",
    "<" * 1_000_000,
]


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.full)])
def test_after_large_messages_it_is_as_small_as_before(daemon: DaemonProcess, rounds: int) -> None:
    with daemon:
        client.call("Status")
        before = daemon.resident()
        for xml in LARGE * rounds:
            for method, parameters in (
                ("Hook", {"xml": xml, "operation": "prepare", "suboperation": "begin", "domain": "vm"}),
                ("Place", {"xml": xml, "caller": "test"}),
                ("Disable", {"domain": xml}),
            ):
                try:
                    client.call(method, parameters, timeout=300)
                except DaemonError as error:
                    assert "did not answer" not in error.what
        deadline = time.monotonic() + 60
        while daemon.resident() > before + 20e6 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert (daemon.resident() - before) / 1e6 < 20


def test_it_is_small(daemon: DaemonProcess) -> None:
    with daemon:
        client.call("Status")
        assert daemon.resident() < 60e6
