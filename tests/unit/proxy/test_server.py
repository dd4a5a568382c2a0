# SPDX-License-Identifier: LGPL-2.1-or-later
"""The proxy as a process, before a socket that stands for libvirt's: listening, handing over, and its limits."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from pcinuma.proxy.server import ACCEPTED_AT_ONCE, CONNECTIONS_OF_A_USER
from tests import needs
from tests.waiting import CHECKOUT

PROXY = (needs.python(), "-m", "pcinuma.proxy")
USER = 4321
CROWD = 3 * ACCEPTED_AT_ONCE


@contextmanager
def echo(path: Path) -> Iterator[None]:
    """Something to connect to that sends back what it gets."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    path.chmod(0o666)
    listener.listen(512)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=[connection], daemon=True).start()

    def answer(connection: socket.socket) -> None:
        while data := connection.recv(4096):
            connection.sendall(data)
        connection.close()

    threading.Thread(target=serve, daemon=True).start()
    yield
    listener.close()


@contextmanager
def running(*words: str, prefix: tuple[str, ...] = (), **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*prefix, *PROXY, *words], cwd=CHECKOUT, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def connected(path: Path) -> socket.socket:
    deadline = time.monotonic() + 120
    while True:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(120)
        try:
            sock.connect(str(path))
            return sock
        except OSError:
            sock.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def answers(path: Path) -> bool:
    with connected(path) as sock:
        sock.sendall(b"is anybody there, on the other side of this?")
        return sock.recv(100) == b"is anybody there, on the other side of this?"


@pytest.fixture
def folder(everybodys_folder: Path) -> Path:
    return everybodys_folder


def test_a_client_reaches_what_is_behind_the_proxy(folder: Path) -> None:
    with echo(folder / "up"), running("--listen", str(folder / "own"), "--upstream", str(folder / "up")):
        assert answers(folder / "own")


def test_systemd_may_hand_over_the_socket_and_its_name_says_what_is_behind_it(folder: Path) -> None:
    activate = ("systemd-socket-activate", f"--listen={folder / 'own'}", f"--fdname={folder / 'up'}")
    with echo(folder / "up"), running(prefix=activate):
        assert answers(folder / "own")


def test_a_second_proxy_does_not_take_the_socket_away(folder: Path) -> None:
    words = ("--listen", str(folder / "own"), "--upstream", str(folder / "up"))
    with echo(folder / "up"), running(*words):
        assert answers(folder / "own")
        second = subprocess.run([*PROXY, *words], cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
        assert (second.returncode, second.stderr) == (2, f"pcinuma-proxy: {folder / 'own'}: somebody listens there already\n")
        assert answers(folder / "own")


def test_a_socket_left_over_is_replaced(folder: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(folder / "own"))
    left.close()
    with echo(folder / "up"), running("--listen", str(folder / "own"), "--upstream", str(folder / "up")) as process:
        assert process.stderr is not None and "listening" in process.stderr.readline()
        assert answers(folder / "own")


def test_nobody_behind_it_ends_the_clients_connection_and_nothing_else(folder: Path) -> None:
    with running("--listen", str(folder / "own"), "--upstream", str(folder / "up")) as process:
        for _ in range(2):
            with connected(folder / "own") as sock:
                assert sock.recv(1) == b""
        with echo(folder / "up"):
            assert answers(folder / "own")
        assert process.poll() is None


def test_a_client_that_gets_no_connection_hears_the_end_and_is_not_killed_by_what_it_sends(folder: Path) -> None:
    with running("--listen", str(folder / "own"), "--upstream", str(folder / "nobody")), connected(folder / "own") as client:
        assert client.recv(100) == b""
        client.sendall(b"what a client sends when it does not know yet" * 100)
        assert client.recv(100) == b""


def test_systemd_hears_when_it_is_ready(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(folder / "notify"))
        notified.settimeout(120)
        with running("--listen", str(folder / "own"), "--upstream", str(folder / "up"), NOTIFY_SOCKET=str(folder / "notify")):
            assert notified.recv(100) == b"READY=1"


@pytest.mark.skipif(needs.other_user() is not None, reason=str(needs.other_user()))
def test_one_user_cannot_take_all_the_connections(folder: Path) -> None:
    with echo(folder / "up"), running("--listen", str(folder / "own"), "--upstream", str(folder / "up")) as process:
        assert answers(folder / "own")
        script = f"""
import os, socket
os.setgid({USER}); os.setuid({USER})
held = []
for _ in range({CONNECTIONS_OF_A_USER} + 20):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect({str(folder / "own")!r})
    held.append(sock)
served = 0
for sock in held:
    try:
        sock.sendall(b"is anybody there, on the other side of this?")
        served += sock.recv(100) != b""
    except OSError:
        pass
print(served, flush=True)
input()
"""
        user = subprocess.Popen(["/usr/bin/python3", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert user.stdout is not None
        served = int(user.stdout.readline())
        process.send_signal(signal.SIGSTOP)
        complaints = os.read(process.stderr.fileno(), 1 << 16).decode() if process.stderr else ""
        process.send_signal(signal.SIGCONT)
        assert served == CONNECTIONS_OF_A_USER, complaints
        assert f"uid {USER}: it has {CONNECTIONS_OF_A_USER} connections already" in complaints
        assert answers(folder / "own"), "root is still served"
        relays = psutil.Process(process.pid).children()
        assert len(relays) >= CONNECTIONS_OF_A_USER
        user.communicate("\n")
        psutil.wait_procs(relays, timeout=120)
        assert not [relay for relay in relays if relay.is_running()]


KNOCKING = """
import os, socket, sys
os.setgid({user}); os.setuid({user})
held = [socket.socket(socket.AF_UNIX) for _ in range({number})]
for sock in held:
    sock.connect({path!r})
print("knocked", flush=True)
input()
"""


@pytest.mark.skipif(needs.other_user() is not None, reason=str(needs.other_user()))
@pytest.mark.parametrize("strangers", [1, 3])
def test_root_does_not_wait_for_the_relays_of_strangers_who_came_first(folder: Path, strangers: int) -> None:
    """A crowd of strangers' connections is there before root's, in the same queue of the kernel's."""
    own = folder / "own"
    with echo(folder / "up"), running("--listen", str(own), "--upstream", str(folder / "up")) as process:
        assert answers(own)
        process.send_signal(signal.SIGSTOP)
        crowd = []
        for number in range(strangers):
            script = KNOCKING.format(user=USER + number, number=CROWD // strangers, path=str(own))
            crowd.append(subprocess.Popen(["/usr/bin/python3", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        for stranger in crowd:
            assert stranger.stdout is not None
            assert stranger.stdout.readline() == "knocked\n"
        with connected(own) as sock:
            sock.settimeout(60)
            sock.sendall(b"hello")
            process.send_signal(signal.SIGCONT)
            assert sock.recv(100) == b"hello"
            deadline = time.monotonic() + 120
            relays: list[psutil.Process] = []
            of_root: list[int] = []
            while (len(relays) <= CROWD or len(of_root) > 1) and time.monotonic() < deadline:  # one that is new has yet to become its user
                time.sleep(0.3)  # to look at all processes of the machine costs as much as some relays
                relays = sorted(psutil.Process(process.pid).children(), key=lambda relay: (relay.create_time(), relay.pid))
                of_root = [place for place, relay in enumerate(relays) if relay.uids().real == 0]
            assert len(relays) == CROWD + 1, "the strangers are served too"
            (place,) = of_root
            assert place <= CROWD // ACCEPTED_AT_ONCE + 2
        for stranger in crowd:
            stranger.communicate("\n")
