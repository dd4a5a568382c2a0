# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's qemu hook as libvirt runs it: the real file, the real interpreter, the real daemon (or what is left of one)."""

from __future__ import annotations

import ast
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Optional

import pytest

from pcinuma import engine
from pcinuma.daemon import client
from pcinuma.engine import Request
from pcinuma.varlink import server
from tests.hosts.domains import UUID, two_cells
from tests.hosts.small import small_host
from tests.unit.daemon_process import DaemonProcess, write_state
from tests.waiting import CHECKOUT

HOOK = CHECKOUT / "hook/qemu"
UNPLACED = two_cells().hostdev("17:00.0").hostdev("b3:00.0").formatted()
STRICT = two_cells().metadata(policy="required").hostdev("17:00.0").hostdev("b3:00.0").formatted()
OPERATIONS = [
    ("start", "begin"),
    ("started", "begin"),
    ("stopped", "end"),
    ("release", "end"),
    ("reconnect", "begin"),
    ("attach", "begin"),
    ("migrate", "begin"),
    ("restore", "begin"),
    ("prepare", "end"),
    ("", ""),
]


PATIENT: list[Path] = []


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_host(tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, host: Path) -> Iterator[DaemonProcess]:
    """One for all tests that only ask it: a start of a domain that nobody defined leaves it as it was, but for the domain's status."""
    base = tmp_path_factory.mktemp("daemon")
    write_state(base / "state")
    with DaemonProcess(base, host) as daemon:
        yield daemon


@pytest.fixture(scope="module", autouse=True)
def patient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hook, but that it waits longer for an answer, so that no busy machine decides whether it gets one, and finds no command that
    somebody has installed on this machine."""
    text = HOOK.read_text()
    for old, new in (("\nDEADLINE = 1.0 ", "\nDEADLINE = 100.0 "), ('"/usr/bin/pcinuma"', '"/nonexistent/pcinuma"')):
        assert old in text
        text = text.replace(old, new)
    PATIENT.append(tmp_path_factory.mktemp("patient") / "qemu")
    PATIENT[-1].write_text(text)
    PATIENT[-1].chmod(0o755)
    return PATIENT[-1]


def run(
    at: Path, xml: bytes, operation: str = "prepare", suboperation: str = "begin", hook: Optional[Path] = None, name: str = "guest"
) -> subprocess.CompletedProcess[bytes]:
    """Run the hook, a patient one by default, with the daemon's socket ``at``."""
    argv = [str(hook or PATIENT[-1]), name, operation, suboperation, "-"]
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "PCINUMA_SOCKET": str(at)}
    return subprocess.run(argv, input=xml, env=env, capture_output=True, timeout=120, check=False)


def silent(shown: subprocess.CompletedProcess[bytes]) -> bool:
    """Whether the guest starts and nothing was said."""
    return (shown.returncode, shown.stdout, shown.stderr) == (0, b"", b"")


@contextmanager
def peer(path: Path, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """Something that listens where the daemon should, and treats its first caller in its own way."""
    listener = server.listen(path)

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            answer(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        listener.close()


@pytest.mark.parametrize(("operation", "suboperation"), OPERATIONS)
def test_nothing_is_done_but_at_prepare(tmp_path: Path, operation: str, suboperation: str) -> None:
    assert silent(run(tmp_path / "nobody", STRICT, operation, suboperation))


def test_an_unplaced_domain_is_printed_placed(daemon: DaemonProcess, host: Path) -> None:
    shown = run(daemon.socket, UNPLACED)
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert shown.stdout == engine.place(UNPLACED, Request(host)).xml != UNPLACED


def test_a_placed_domain_is_not_printed(daemon: DaemonProcess, host: Path) -> None:
    assert silent(run(daemon.socket, engine.place(UNPLACED, Request(host)).xml))


def test_a_large_domain_with_any_characters_arrives_whole(daemon: DaemonProcess, host: Path) -> None:
    xml = UNPLACED.replace(b"<metadata>", b"").replace(b"<memory ", "<title>\"\\é漢\U0001f600\t\x7f</title>\n  <memory ".encode(), 1)
    xml = xml.replace(b"<devices>", b"<devices>" + b"<!-- padding -->" * 60000, 1)
    assert run(daemon.socket, xml).stdout == engine.place(xml, Request(host)).xml


def test_a_domain_that_is_left_alone_starts_as_it_is(tmp_path: Path, host: Path) -> None:
    write_state(tmp_path / "state", existing=[UUID])
    with DaemonProcess(tmp_path, host) as daemon:
        assert silent(run(daemon.socket, UNPLACED))
        assert silent(run(daemon.socket, UNPLACED.replace(b"17", b"99")))


@pytest.mark.parametrize("character", ["\x1b[2J", "\r", "\n", "\x85", "\x9b", "\x7f", "\u202e", "\u2028", "\u061c", "\u200f"], ids=ascii)
def test_a_refusal_is_one_line_whatever_the_domain_is_called(daemon: DaemonProcess, character: str) -> None:
    reference = f"&#{ord(character[0])};{character[1:]}" if character[0] in "\r\n" else character
    named = STRICT.replace(b"<name>guest<", f"<name>gu{reference}est<".encode())
    if character[0] == "\x1b":
        named = STRICT  # no character of XML; an argument of the hook may have it
    shown = run(daemon.socket, named, name=f"gu{character}est")
    assert (shown.returncode, shown.stdout) == (1, b"")
    said = shown.stderr.decode()
    assert said.startswith("pcinuma: domain gu") and said.endswith("\n") and said[:-1].isprintable()


def test_disable_wins_over_required(tmp_path: Path, host: Path) -> None:
    write_state(tmp_path / "state", disabled=[UUID])
    with DaemonProcess(tmp_path, host) as daemon:
        assert silent(run(daemon.socket, STRICT))


def test_required_refuses_a_domain_that_is_not_placed_since_libvirt_would_boot_it_so(daemon: DaemonProcess) -> None:
    shown = run(daemon.socket, STRICT)
    assert (shown.returncode, shown.stdout) == (1, b"")
    (line,) = shown.stderr.decode().splitlines()
    assert line.startswith("pcinuma: domain guest: policy 'required' is not met")
    assert "pcinuma-proxy" in line, "the daemon has not heard of a definition of it, so it is transient"


def test_required_lets_a_placed_domain_start(daemon: DaemonProcess, host: Path) -> None:
    assert silent(run(daemon.socket, engine.place(STRICT, Request(host)).xml))


def test_required_refuses_what_cannot_be_placed_and_names_the_device(daemon: DaemonProcess) -> None:
    shown = run(daemon.socket, STRICT.replace(b"bus='0xb3'", b"bus='0x99'"))
    assert shown.returncode == 1
    assert b"0000:99:00.0" in shown.stderr
    assert b"pcinuma disable guest" in shown.stderr


def test_what_a_hook_saw_is_in_the_status(tmp_path: Path, host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_state(tmp_path / "state")
    with DaemonProcess(tmp_path, host) as daemon:
        monkeypatch.setenv("PCINUMA_SOCKET", str(daemon.socket))
        run(daemon.socket, UNPLACED)
        daemon.await_log(" decided ")
        (entry,) = client.call("Status")["domains"]
    assert (entry["name"], entry["by"], entry["outcome"], entry["devices"], entry["placed"]) == ("guest", "hook", "fallback", 2, 0)


def test_without_a_daemon_the_guest_starts(tmp_path: Path) -> None:
    assert silent(run(tmp_path / "nobody", UNPLACED))
    (tmp_path / "file").touch()
    assert silent(run(tmp_path / "file", UNPLACED))


def test_a_daemon_that_never_answers_is_waited_for_one_second(tmp_path: Path) -> None:
    listener = server.listen(tmp_path / "socket")
    began = time.monotonic()
    assert silent(run(tmp_path / "socket", UNPLACED, hook=HOOK))
    assert time.monotonic() - began >= 1
    listener.close()


def test_a_daemon_whose_queue_is_full_is_waited_for_one_second(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waiting:
        listener.bind(str(tmp_path / "socket"))
        listener.listen(0)
        waiting.connect(str(tmp_path / "socket"))
        began = time.monotonic()
        assert silent(run(tmp_path / "socket", UNPLACED, hook=HOOK))
        assert time.monotonic() - began >= 1


def test_a_queue_that_is_full_for_a_moment_is_no_obstacle_to_an_answer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waiting:
        listener.bind(str(tmp_path / "socket"))
        listener.listen(0)
        waiting.connect(str(tmp_path / "socket"))

        def serve() -> None:
            time.sleep(0.3)
            listener.accept()[0].close()
            connection, _ = listener.accept()
            with connection:
                while not connection.recv(65536).endswith(b"\0"):
                    pass
                connection.sendall(b'{"parameters":{"exit":1,"message":"no"}}\0')

        thread = threading.Thread(target=serve)
        thread.start()
        shown = run(tmp_path / "socket", UNPLACED)
        thread.join()
    assert refusal(shown) == "pcinuma: no"


def drip(connection: socket.socket) -> None:
    try:
        while True:
            connection.sendall(b" ")
            time.sleep(0.05)
    except OSError:
        pass


def test_a_daemon_that_answers_drop_by_drop_and_never_ends_is_not_waited_for(tmp_path: Path) -> None:
    with peer(tmp_path / "socket", drip):
        assert silent(run(tmp_path / "socket", UNPLACED, hook=HOOK))


def test_a_daemon_that_hangs_up_is_no_obstacle(tmp_path: Path) -> None:
    with peer(tmp_path / "socket", lambda connection: None):
        assert silent(run(tmp_path / "socket", UNPLACED))


ANSWERS = [
    b"\0",
    b"nonsense\0",
    b"[]\0",
    b"{}\0",
    b'{"parameters":{}}\0',
    b'{"parameters":{"exit":1}}\0',
    b'{"parameters":{"exit":1,"message":null}}\0',
    b'{"parameters":{"exit":"1","message":"no"}}\0',
    b'{"error":"io.pcinuma.Error","parameters":{"exit":1,"message":"no"}}\0',
    b"\xff\0",
]


@pytest.mark.parametrize("answer", ANSWERS, ids=range(len(ANSWERS)))
def test_an_answer_that_is_none_is_no_obstacle(tmp_path: Path, answer: bytes) -> None:
    def reply(connection: socket.socket) -> None:
        while not connection.recv(65536).endswith(b"\0"):
            pass
        connection.sendall(answer)

    with peer(tmp_path / "socket", reply):
        assert silent(run(tmp_path / "socket", UNPLACED))


def installed(tmp_path: Path, *, command: Optional[str] = None, python: Optional[str] = None) -> Path:
    """A copy of the hook that finds the command, or its interpreter, elsewhere."""
    text = HOOK.read_text()
    if command is not None:
        text = text.replace('COMMAND = "/usr/bin/pcinuma"', f'COMMAND = "{command}"')
        assert command in text
    if python is not None:
        text = text.replace("in /usr/bin/python3 /usr/libexec/platform-python", f"in {python}")
        assert python in text
    copy = tmp_path / "qemu"
    copy.write_text(text)
    copy.chmod(0o755)
    return copy


def launcher(tmp_path: Path, body: str) -> str:
    """An executable that stands where the command is installed."""
    file = tmp_path / "pcinuma"
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)
    return str(file)


def the_command(tmp_path: Path, host: Path) -> str:
    """The command itself, from the checkout, on the test's host."""
    return launcher(tmp_path, f'shift; cd {CHECKOUT} && exec {sys.executable} -m pcinuma place --root {host} "$@"')


def refusal(shown: subprocess.CompletedProcess[bytes]) -> str:
    """The one line with which the start is refused."""
    assert (shown.returncode, shown.stdout) == (1, b"")
    (line,) = shown.stderr.decode().splitlines()
    assert line.startswith("pcinuma: ") and line.count("pcinuma: ") == 1
    return line


def test_without_a_daemon_the_command_checks_what_is_required(tmp_path: Path, host: Path) -> None:
    hook = installed(tmp_path, command=the_command(tmp_path, host))
    assert silent(run(tmp_path / "nobody", engine.place(STRICT, Request(host)).xml, hook=hook))
    line = refusal(run(tmp_path / "nobody", STRICT, hook=hook))
    assert "not placed as the host is now" in line
    assert "systemctl start pcinuma" in line
    line = refusal(run(tmp_path / "nobody", STRICT.replace(b"bus='0xb3'", b"bus='0x99'"), hook=hook))
    assert "0000:99:00.0" in line


@pytest.mark.parametrize("body", ["exit 2", "exit 127", "kill -9 $$", "echo odd >&2; exit 3"])
def test_a_command_that_does_not_work_is_no_permission_where_it_is_required(tmp_path: Path, body: str) -> None:
    line = refusal(run(tmp_path / "nobody", STRICT, hook=installed(tmp_path, command=launcher(tmp_path, body))))
    assert "systemctl start pcinuma" in line
    assert "virsh edit guest" in line


def test_without_the_command_what_is_required_is_refused(tmp_path: Path) -> None:
    assert "systemctl start pcinuma" in refusal(run(tmp_path / "nobody", STRICT, hook=installed(tmp_path, command="/nonexistent/pcinuma")))


def test_only_the_owners_own_words_in_their_place_require_anything(tmp_path: Path) -> None:
    hook = installed(tmp_path, command="/nonexistent/pcinuma")
    element = b"<p:pcinuma xmlns:p='urn:pcinuma:domain:1' policy='required'/>"
    assert element[:-2] in STRICT
    for elsewhere in (
        UNPLACED.replace(b"<memory ", b"<!-- " + element + b" --><memory ", 1),
        UNPLACED.replace(b"<devices>", b"<devices><metadata>" + element + b"</metadata>", 1),
        STRICT.replace(b"urn:pcinuma:domain:1", b"urn:pcinuma:domain:2"),
        STRICT.replace(b"policy='required'", b"policy='preferred'"),
    ):
        assert silent(run(tmp_path / "nobody", elsewhere, hook=hook))
    assert silent(run(tmp_path / "nobody", b"urn:pcinuma:domain:1 no XML at all", hook=hook)) is False
    assert run(tmp_path / "nobody", b"urn:pcinuma:domain:1 no XML at all", hook=hook).returncode == 0


@pytest.mark.parametrize("python", ["/bin/false", "/nonexistent", "/usr/bin/env"])
def test_an_interpreter_that_does_not_work_is_no_obstacle(tmp_path: Path, python: str) -> None:
    assert run(tmp_path / "nobody", STRICT, hook=installed(tmp_path, python=python)).returncode == 0


@pytest.mark.parametrize("starts", [15, pytest.param(500, marks=pytest.mark.full)])
def test_no_start_is_refused_while_the_daemon_is_killed_and_started_again(tmp_path: Path, host: Path, starts: int) -> None:
    write_state(tmp_path / "state")
    chance, over = random.Random(7), threading.Event()
    placed = engine.place(UNPLACED, Request(host)).xml
    daemon = DaemonProcess(tmp_path, host)

    def kill_and_start() -> None:
        while not over.is_set():
            daemon.start()
            over.wait(chance.uniform(0, 0.5))
            daemon.stop(signal.SIGKILL)

    killer = threading.Thread(target=kill_and_start)
    killer.start()
    try:
        for number in range(starts):
            xml = (UNPLACED, placed)[number % 2]
            shown = run(daemon.socket, xml)
            assert (shown.returncode, shown.stderr) == (0, b"")
            assert shown.stdout in (b"", placed)
    finally:
        over.set()
        killer.join()


def test_a_reader_that_goes_away_is_no_obstacle(daemon: DaemonProcess) -> None:
    argv = ["sh", "-c", f"PCINUMA_SOCKET={daemon.socket} {HOOK} guest prepare begin - | true"]
    assert subprocess.run(argv, input=UNPLACED, timeout=120, check=False, capture_output=True).returncode == 0


def test_the_answer_of_the_daemon_is_varlink(daemon: DaemonProcess) -> None:
    """What the hook builds by hand is what the daemon's client would send."""
    heard: list[bytes] = []

    def listen(connection: socket.socket) -> None:
        message = b""
        while not message.endswith(b"\0"):
            message += connection.recv(65536)
        heard.append(message)

    odd = '<domain>"\\\té\x7f漢</domain>'
    with peer(daemon.base / "other", listen):
        run(daemon.base / "other", odd.encode())
    parameters = {"xml": odd, "operation": "prepare", "suboperation": "begin", "domain": "guest"}
    assert json.loads(heard[0][:-1]) == json.loads(client.encode("Hook", parameters)[:-1])


def test_the_usual_answer_is_known_to_the_hook_by_heart(daemon: DaemonProcess, host: Path) -> None:
    """It compares bytes, since whatever is imported to read JSON makes every start wait."""
    (line,) = [line for line in HOOK.read_text().splitlines() if line.startswith("RIGHT = ")]
    placed = engine.place(UNPLACED, Request(host)).xml.decode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(daemon.socket))
        call = {"xml": placed, "operation": "prepare", "suboperation": "begin", "domain": "guest"}
        connection.sendall(client.encode("Hook", call))
        assert connection.recv(65536) == ast.literal_eval(line.partition(" = ")[2])


def programs() -> list[str]:
    """Those that Python gets: what asks the daemon, what reads its answer, and what does without."""
    shell, *documents = HOOK.read_text().split("\n# %%\n")
    asking = shell.partition(" -c '\n")[2].partition("\n' ")[0]
    assert "sendall" in asking and len(documents) == 2
    return [asking, *documents]


def test_what_it_gives_to_python_is_python_3_9() -> None:
    for program in programs():
        ast.parse(program, str(HOOK), feature_version=(3, 9))


def test_python_reads_the_whole_of_it_at_once() -> None:
    (size,) = re.findall(r"read\(3, (\d+)\)", programs()[0])
    assert HOOK.stat().st_size < int(size)


def test_shellcheck_has_nothing_to_say() -> None:
    subprocess.run(["shellcheck", str(HOOK)], check=True)
