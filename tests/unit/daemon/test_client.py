# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's socket: varlink's wire format, its limits, and that a bad peer costs nobody else anything."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Optional

import pytest

from pcinuma.daemon import client, interface
from pcinuma.errors import DaemonError
from pcinuma.varlink import server
from pcinuma.varlink.interface import STANDARD, Interface
from pcinuma.varlink.wire import ErrorReply
from tests import needs
from tests.hosts.small import small_host
from tests.unit.daemon_process import DaemonProcess
from tests.waiting import CHECKOUT


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    base = tmp_path_factory.mktemp("daemon")
    with DaemonProcess(base, small_host(base / "host")) as daemon:
        yield daemon


@pytest.fixture(autouse=True)
def its_socket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "daemon" in request.fixturenames:
        monkeypatch.setenv("PCINUMA_SOCKET", str(request.getfixturevalue("daemon").socket))


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(120)
    connection.connect(str(path))
    return connection


def receive(connection: socket.socket) -> Optional[dict[str, Any]]:
    """The next reply; None if the peer hung up."""
    message = b""
    while not message.endswith(b"\0"):
        try:
            part = connection.recv(1)
        except ConnectionResetError:
            return None
        if not part:
            return None
        message += part
    reply: dict[str, Any] = json.loads(message[:-1])
    return reply


def ask(path: Path, message: bytes) -> Optional[dict[str, Any]]:
    with connect(path) as connection:
        connection.sendall(message)
        return receive(connection)


def error_of(path: Path, method: str, parameters: Optional[Mapping[str, Any]] = None) -> tuple[str, dict[str, Any]]:
    reply = ask(path, client.encode(method, parameters))
    assert reply is not None
    return reply["error"], reply["parameters"]


def test_it_tells_who_it_is_and_what_it_speaks(daemon: DaemonProcess) -> None:
    information = client.call("org.varlink.service.GetInfo")
    assert information["interfaces"] == ["io.pcinuma", "org.varlink.service"]
    for name in information["interfaces"]:
        text = client.call("org.varlink.service.GetInterfaceDescription", {"interface": name})["description"]
        assert text == (interface.DESCRIPTION if name == interface.NAME else STANDARD.description)
        assert f"interface {name}\n" in text


def test_every_method_of_the_interface_is_answered(daemon: DaemonProcess) -> None:
    for method in (*Interface.parse(interface.DESCRIPTION).methods, *STANDARD.methods):
        reply = ask(daemon.socket, client.encode(method))
        assert reply is not None
        assert reply.get("error", "").rpartition(".")[2] not in ("MethodNotFound", "MethodNotImplemented"), method


def test_what_is_not_there_is_named(daemon: DaemonProcess) -> None:
    assert error_of(daemon.socket, "io.other.Do") == ("org.varlink.service.InterfaceNotFound", {"interface": "io.other"})
    assert error_of(daemon.socket, "Nothing") == ("org.varlink.service.MethodNotFound", {"method": "io.pcinuma.Nothing"})


@pytest.mark.parametrize(
    ("parameters", "wrong"),
    [
        ({}, "domain"),
        ({"domain": 7}, "domain"),
        ({"domain": None}, "domain"),
        ({"domain": "vm", "dry_run": "yes"}, "dry_run"),
        ({"domain": "vm", "more": 1}, "more"),
    ],
)
def test_a_wrong_parameter_is_named(daemon: DaemonProcess, parameters: Mapping[str, Any], wrong: str) -> None:
    assert error_of(daemon.socket, "RevertDomain", parameters) == ("org.varlink.service.InvalidParameter", {"parameter": wrong})


def test_calls_on_one_connection_are_answered_in_order(daemon: DaemonProcess) -> None:
    calls = [client.encode("Status"), client.encode("Nothing"), client.encode("org.varlink.service.GetInfo")]
    with connect(daemon.socket) as connection:
        connection.sendall(b"".join(calls))
        replies = [receive(connection) for _ in calls]
    assert ["domains" in (reply or {})["parameters"] for reply in replies] == [True, False, False]
    assert [(reply or {}).get("error") is not None for reply in replies] == [False, True, False]


UNKNOWN = "<domain type='qemu'><name>vm</name></domain>"


@pytest.mark.parametrize("xml", [UNKNOWN, "no XML", UNKNOWN.replace("vm", "v" * 100_000)], ids=["domain", "nonsense", "large"])
def test_a_hooks_call_is_answered_alike_at_once_later_in_two_pieces_and_after_another(daemon: DaemonProcess, xml: str) -> None:
    """The first of these does not take the way of all others."""
    call = client.encode("Hook", {"xml": xml, "operation": "prepare", "suboperation": "begin", "domain": "vm"})
    answers = [ask(daemon.socket, call)]
    with connect(daemon.socket) as connection:
        time.sleep(0.05)
        connection.sendall(call)
        answers.append(receive(connection))
    with connect(daemon.socket) as connection:
        connection.sendall(call[:50])
        time.sleep(0.05)
        connection.sendall(call[50:])
        answers.append(receive(connection))
        connection.sendall(call)
        answers.append(receive(connection))
    with connect(daemon.socket) as connection:
        connection.sendall(call)
        answers.append(receive(connection))
        connection.sendall(client.encode("org.varlink.service.GetInfo"))
        assert receive(connection) is not None, "the connection goes on"
    assert answers == [answers[0]] * 5
    assert (answers[0] or {}).get("error") == ("io.pcinuma.Error" if xml == "no XML" else None)


def test_a_call_may_come_byte_by_byte(daemon: DaemonProcess) -> None:
    with connect(daemon.socket) as connection:
        for byte in client.encode("Status"):
            connection.sendall(bytes([byte]))
        assert receive(connection) is not None


def test_a_oneway_call_gets_no_reply(daemon: DaemonProcess) -> None:
    with connect(daemon.socket) as connection:
        connection.sendall(b'{"method":"io.pcinuma.Status","oneway":true}\0' + client.encode("Nothing"))
        assert "error" in (receive(connection) or {})


GARBAGE = [
    b"\0",
    b"nonsense\0",
    b"[]\0",
    b'{"method":7}\0',
    b'{"parameters":{}}\0',
    b'{"method":"io.pcinuma.Status","parameters":[1]}\0',
    b"\xff\xfe\0",
    b"[" * 100_000 + b"\0",
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_what_is_no_call_ends_its_own_connection_only(daemon: DaemonProcess, garbage: bytes) -> None:
    with connect(daemon.socket) as bystander:
        bystander.sendall(client.encode("Status")[:10])
        assert ask(daemon.socket, garbage) is None
        bystander.sendall(client.encode("Status")[10:])
        assert receive(bystander) is not None


def test_peers_that_vanish_are_forgotten(daemon: DaemonProcess) -> None:
    for _ in range(server.MAX_CONNECTIONS + 50):
        with connect(daemon.socket) as connection:
            connection.sendall(client.encode("Status") * 2)
    assert client.call("Status")["version"]


@pytest.mark.parametrize("begun", [b"", client.encode("Status"), client.encode("Status")[:20]], ids=["silent", "idle", "half a message"])
def test_connections_that_do_nothing_starve_nobody(daemon: DaemonProcess, begun: bytes) -> None:
    large = client.encode("Hook", {"xml": UNKNOWN + " " * 300_000, "operation": "prepare", "suboperation": "begin", "domain": "vm"})
    with ExitStack() as kept:
        for _ in range(server.MAX_CONNECTIONS + 20):
            connection = kept.enter_context(connect(daemon.socket))
            connection.sendall(begun)
            if begun.endswith(b"\0"):
                assert receive(connection) is not None
        assert client.call("Status")["version"]
        assert (ask(daemon.socket, large) or {}).get("parameters", {}).get("exit") == 0


def service(urgent: Mapping[str, server.Urgent]) -> server.Service:
    """One with the daemon's interface that can do nothing else."""
    interfaces = (Interface.parse(interface.DESCRIPTION),)
    refuse = lambda method, error: ErrorReply(interface.ERROR, message=str(error))  # noqa: E731
    return server.Service("", "", "", interfaces, {}, refuse, client.MAX_MESSAGE, urgent)


def test_nothing_is_worked_out_for_who_has_hung_up(tmp_path: Path) -> None:
    """However his call came: at once, or through streams."""
    asked: list[str] = []
    free = threading.Event()

    def hook(parameters: server.Parameters) -> tuple[Mapping[str, Any], Any]:
        asked.append(parameters["domain"])
        return {"exit": 0, "xml": None, "message": None}, lambda: None

    async def serve() -> None:
        threads = [ThreadPoolExecutor(1), ThreadPoolExecutor(1)]
        for executor in threads:
            executor.submit(free.wait)
        served = server.Server(service({"io.pcinuma.Hook": hook}), *threads)
        await served.start(server.listen(tmp_path / "socket"))
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, knock)
        await asyncio.sleep(0.3)  # the last of what they sent is read
        free.set()
        await loop.run_in_executor(None, stay)
        await served.stop()

    def call(domain: str, size: int) -> bytes:
        xml = "x" * size
        return client.encode("Hook", {"xml": xml, "operation": "prepare", "suboperation": "begin", "domain": domain})

    def knock() -> None:
        for size in (10, 50_000, 300_000):
            with connect(tmp_path / "socket") as connection:
                connection.sendall(call("gone", size))

    def stay() -> None:
        for size in (10, 300_000):
            assert ask(tmp_path / "socket", call("there", size)) is not None

    asyncio.run(serve())
    assert asked == ["there", "there"]


def test_a_message_without_end_is_cut_off(daemon: DaemonProcess) -> None:
    before = daemon.resident()
    with connect(daemon.socket) as connection:
        try:
            for _ in range(2 * client.MAX_MESSAGE // 65536):
                connection.sendall(b"x" * 65536)
        except (BrokenPipeError, ConnectionResetError):
            pass
        else:
            assert receive(connection) is None
    assert client.call("Status")["version"]
    assert daemon.resident() - before < 4 * client.MAX_MESSAGE


def test_a_peer_that_never_reads_is_let_go(daemon: DaemonProcess) -> None:
    with connect(daemon.socket) as connection:
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            for _ in range(100_000):
                connection.send(client.encode("org.varlink.service.GetInterfaceDescription", {"interface": "io.pcinuma"}))
        assert client.call("Status")["version"]


def test_half_a_message_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MESSAGE_TIME", 0.2)

    async def serve(stop: threading.Event, ready: threading.Event) -> None:
        served = server.Server(service({}))
        await served.start(server.listen(tmp_path / "socket"))
        ready.set()
        while not stop.is_set():
            await asyncio.sleep(0.02)
        await served.stop()

    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(serve(stop, ready)))
    thread.start()
    try:
        assert ready.wait(120)
        with connect(tmp_path / "socket") as idle, connect(tmp_path / "socket") as slow:
            slow.sendall(b'{"method":')
            assert receive(slow) is None
            idle.sendall(client.encode("org.varlink.service.GetInfo"))
            assert receive(idle) is not None, "a connection may be idle between calls"
    finally:
        stop.set()
        thread.join()


@pytest.mark.skipif(needs.other_user() is not None, reason=str(needs.other_user()))
def test_another_user_is_refused_even_if_he_gets_to_the_socket(everybodys_folder: Path) -> None:
    asker = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
connection = socket.socket(socket.AF_UNIX); connection.connect(sys.argv[1])
connection.sendall(b'{"method":"io.pcinuma.Status"}' + bytes(1)); print(connection.recv(1000).decode())
"""
    with DaemonProcess(everybodys_folder, small_host(everybodys_folder / "host")) as daemon:
        assert daemon.socket.stat().st_mode & 0o777 == 0o600
        argv = [sys.executable, "-IS", "-c", asker, str(daemon.socket)]
        shut_out = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert "PermissionError" in shut_out.stderr
        daemon.socket.chmod(0o666)
        refused = subprocess.run(argv, capture_output=True, text=True, check=True)
        assert "org.varlink.service.PermissionDenied" in refused.stdout


def test_what_needs_libvirt_fails_with_a_hint_while_there_is_none(daemon: DaemonProcess) -> None:
    for method, parameters in (
        ("PlaceDomain", {"domain": "vm"}),
        ("Enable", {"domain": "vm"}),
        ("PrepareStart", {"domain_uuid": "0d1e7a3c-52f7-4b0e-9d2b-9a1c3f6a8b11"}),
    ):
        with pytest.raises(DaemonError) as failure:
            client.call(method, parameters)
        assert "libvirt cannot be reached" in failure.value.what
        assert "systemctl start" in (failure.value.hint or "")


def test_the_client_says_what_to_do_without_a_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCINUMA_SOCKET", str(tmp_path / "nothing"))
    with pytest.raises(DaemonError) as failure:
        client.call("Status")
    assert failure.value.hint == client.START_HINT
    listener = server.listen(tmp_path / "mute")
    monkeypatch.setenv("PCINUMA_SOCKET", str(tmp_path / "mute"))
    with pytest.raises(DaemonError, match=r"did not answer within 0\.2 s"):
        client.call("Status", timeout=0.2)
    listener.close()
    with pytest.raises(DaemonError) as failure:
        client.call("Status")
    assert failure.value.hint == client.START_HINT, "the socket of a daemon that was killed"


def test_the_client_loads_neither_libvirt_nor_lxml() -> None:
    code = "import sys, pcinuma.daemon.client; print([m for m in ('libvirt', 'lxml', 'structlog', 'asyncio') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
