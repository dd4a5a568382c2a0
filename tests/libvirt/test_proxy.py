# SPDX-License-Identifier: LGPL-2.1-or-later
"""The proxy before a real libvirtd: a client sees, gets and may do the same as without it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import libvirt
import pytest

from tests.libvirt.domains import guest
from tests.libvirt.events import _run_loop
from tests.libvirt.harness import PrivateLibvirt
from tests.libvirt.running_daemon import RunningDaemon
from tests.libvirt.running_proxy import RunningProxy
from tests.waiting import CHECKOUT, until

POOL = "<pool type='dir'><name>images</name><target><path>/run/images</path></target></pool>"
TALKER = """
<domain type='qemu'>
  <name>talker</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type><bios useserial='yes'/></os>
  <devices><serial type='pty'/><console type='pty'/></devices>
</domain>"""
VIRSH = (
    ["list", "--all"],
    ["dumpxml", "still"],
    ["dumpxml", "nobody"],
    ["capabilities"],
    ["domcapabilities"],
    ["nodeinfo"],
    ["pool-list", "--all"],
    ["pool-dumpxml", "images"],
    ["domxml-to-native", "qemu-argv", "--domain", "still"],
    ["start", "nobody"],
    ["attach-device", "still", "/dev/null"],
    ["version"],
    ["secret-list"],
    ["net-list", "--all"],
)


@pytest.fixture(scope="module")
def host() -> Iterator[PrivateLibvirt]:
    with PrivateLibvirt() as private:
        private.path("/run/images").mkdir()
        private.path("/var/lock").mkdir(exist_ok=True)  # where libvirt notes who has a console
        connection = private.connect()
        connection.defineXML(guest("still"))
        connection.storagePoolDefineXML(POOL).create()
        yield private


@pytest.fixture(scope="module")
def proxy(host: PrivateLibvirt) -> Iterator[RunningProxy]:
    with RunningProxy(host) as running:
        yield running


@pytest.fixture
def client(proxy: RunningProxy) -> Iterator[libvirt.virConnect]:
    connection = proxy.connect()
    yield connection
    connection.close()


# The same as without


@pytest.mark.parametrize("command", VIRSH, ids=" ".join)
def test_virsh_says_the_same(host: PrivateLibvirt, proxy: RunningProxy, command: list[str]) -> None:
    direct = host.run(["virsh", "-c", "qemu:///system", *command], check=False)
    through = host.run(["virsh", "-c", proxy.inside, *command], check=False)
    assert (through.returncode, through.stdout, through.stderr) == (direct.returncode, direct.stdout, direct.stderr)


def test_a_persistent_and_a_transient_guest_start_and_end(client: libvirt.virConnect) -> None:
    domain = client.defineXML(guest("kept"))
    domain.create()
    assert domain.isActive()
    transient = client.createXML(guest("passing"))
    assert transient.isActive() and not transient.isPersistent()
    for running in (domain, transient):
        running.destroy()
    domain.undefine()


def test_start_with_descriptors_hands_them_over(client: libvirt.virConnect) -> None:
    """libvirt refuses descriptors for QEMU guests, and has read them by then: the refusal is libvirt's own, the connection lives on."""
    domain = client.defineXML(guest("with-files"))
    with open("/dev/null") as one, open("/dev/zero") as other:
        with pytest.raises(libvirt.libvirtError) as refused:
            domain.createWithFiles([one.fileno(), other.fileno()], 0)
        assert refused.value.get_error_code() in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_UNSUPPORTED)
        with pytest.raises(libvirt.libvirtError):
            client.createXMLWithFiles(guest("with-files-too"), [one.fileno()], 0)
    assert client.lookupByName("with-files").UUIDString() == domain.UUIDString()
    domain.undefine()


def test_a_descriptor_comes_back_from_libvirt(client: libvirt.virConnect) -> None:
    """openGraphicsFD: a socket to QEMU's VNC server, by a reply with a descriptor."""
    graphics = "<graphics type='vnc' port='-1' autoport='no' socket='/run/vnc.sock'/><video><model type='vga'/></video>"
    domain = client.createXML(guest("drawing", extra=graphics))
    try:
        descriptor = domain.openGraphicsFD(0, libvirt.VIR_DOMAIN_OPEN_GRAPHICS_SKIPAUTH)
        assert os.read(descriptor, 12).startswith(b"RFB 003.")
        os.close(descriptor)
    finally:
        domain.destroy()


def test_the_console_speaks(client: libvirt.virConnect) -> None:
    domain = client.createXML(TALKER, libvirt.VIR_DOMAIN_START_PAUSED)
    try:
        stream = client.newStream()
        domain.openConsole(None, stream)
        time.sleep(1.5)  # QEMU 5.2 looks once a second whether somebody reads, and drops what a guest writes until then
        domain.resume()
        heard = b""
        while b"SeaBIOS" not in heard:
            heard += stream.recv(1024)
        stream.abort()
    finally:
        domain.destroy()


def test_events_arrive(proxy: RunningProxy) -> None:
    _run_loop()
    connection = proxy.connect()
    seen: list[tuple[str, int]] = []
    registered = connection.domainEventRegisterAny(
        None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lambda _c, domain, event, _detail, _o: seen.append((domain.name(), event)), None
    )
    connection.setKeepAlive(1, 3)
    connection.defineXML(guest("watched")).undefine()
    until(lambda: len(seen) == 2, "two events")
    assert seen == [("watched", libvirt.VIR_DOMAIN_EVENT_DEFINED), ("watched", libvirt.VIR_DOMAIN_EVENT_UNDEFINED)]
    time.sleep(2.5)  # the keepalive asks twice meanwhile, and would have closed the connection
    assert connection.isAlive()
    connection.domainEventDeregisterAny(registered)
    connection.close()


def stream_there_and_back(client: libvirt.virConnect, size: int) -> None:
    block = os.urandom(1 << 20)
    pool = client.storagePoolLookupByName("images")
    volume = pool.createXML(f"<volume><name>data-{size}</name><capacity>{size}</capacity></volume>")
    try:
        digest = hashlib.sha256()
        stream = client.newStream()
        volume.upload(stream, 0, size)
        for _ in range(size // len(block)):
            digest.update(block)
            sent = 0
            while sent < len(block):
                sent += stream.send(block[sent : sent + 262120])
        stream.finish()
        back = hashlib.sha256()
        stream = client.newStream()
        volume.download(stream, 0, size)
        while data := stream.recv(262120):
            back.update(data)
        stream.finish()
        assert back.hexdigest() == digest.hexdigest()
    finally:
        volume.delete()


def test_a_volume_goes_up_and_comes_down(client: libvirt.virConnect) -> None:
    stream_there_and_back(client, 64 << 20)


@pytest.mark.full
def test_a_volume_of_a_gibibyte_goes_up_and_comes_down(client: libvirt.virConnect) -> None:
    stream_there_and_back(client, 1 << 30)


def test_a_sparse_volume_keeps_its_holes(client: libvirt.virConnect, proxy: RunningProxy, host: PrivateLibvirt, tmp_path: Path) -> None:
    """Stream holes are messages of a type of their own."""
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(8 << 20)
        file.seek(4 << 20)
        file.write(b"in the middle")
    client.storagePoolLookupByName("images").createXML(
        "<volume><name>holes</name><capacity>8388608</capacity><allocation>0</allocation></volume>"
    )
    host.run(["virsh", "-c", proxy.inside, "vol-upload", "--sparse", "--pool", "images", "holes", str(sparse)])
    host.run(["virsh", "-c", proxy.inside, "vol-download", "--sparse", "--pool", "images", "holes", str(tmp_path / "back")])
    assert (tmp_path / "back").read_bytes() == sparse.read_bytes()


def test_the_longest_xml_that_libvirt_takes_goes_through(client: libvirt.virConnect) -> None:
    filler = "x" * (4 * 1024 * 1024 - 20_000)
    domain = client.createXML(guest("wordy", metadata=f"<a:a xmlns:a='urn:a'>{filler}</a:a>"))
    try:
        assert filler in domain.XMLDesc()
    finally:
        domain.destroy()


def test_memory_after_a_long_call_is_what_it_was_before(fresh_host: PrivateLibvirt) -> None:
    """The parent's and the relay's, after creates of megabytes that the daemon was asked about."""
    filler = "x" * (4 * 1024 * 1024 - 20_000)
    with RunningDaemon(fresh_host) as daemon, RunningProxy(fresh_host) as proxy:
        client = proxy.connect()
        client.createXML(guest("short")).destroy()
        assert proxy.parent is not None
        processes = [proxy.parent, *proxy.relays()]
        before = [process.memory_info().rss for process in processes]
        for number in range(3):
            client.createXML(guest(f"long-{number}", metadata=f"<a:a xmlns:a='urn:a'>{filler}</a:a>")).destroy()
        assert daemon.log().count("placed an XML") == 4, "it was asked"
        grown = [process.memory_info().rss - size for process, size in zip(processes, before)]
        assert max(grown) < 2 << 20, grown


# Many, and bad ones


def many_clients(proxy: RunningProxy, clients: int, calls: int) -> None:
    failures: list[BaseException] = []
    expected = proxy.connect().lookupByName("still").XMLDesc()

    def one() -> None:
        try:
            connection = proxy.connect()
            domain = connection.lookupByName("still")
            for number in range(calls):
                if number % 10 == 0:
                    assert domain.XMLDesc() == expected
                else:
                    domain.info()
            connection.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_many_clients_at_once_all_get_their_answers(proxy: RunningProxy) -> None:
    many_clients(proxy, 30, 50)


@pytest.mark.full
def test_a_hundred_clients_with_ten_thousand_calls_all_get_their_answers(proxy: RunningProxy) -> None:
    many_clients(proxy, 100, 100)


RAW = """
import os, socket, struct, sys, time
def connect():
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(sys.argv[1])
    sock.settimeout(120)
    return sock
def message(procedure, payload=b"", serial=0, program=0x20008086):
    return struct.pack(">7I", 28 + len(payload), program, 1, procedure, 0, serial, 0) + payload
"""


def raw_client(socket_path: Path, script: str) -> str:
    """What a client without libvirt's library gets from the socket: it prints, we compare."""
    run = subprocess.run([sys.executable, "-c", RAW + script, str(socket_path)], capture_output=True, text=True, timeout=180, check=True)
    return run.stdout


MALFORMED = {
    "noise": r"s.sendall(b'\xff' * 5000)",
    "http": r"s.sendall(b'GET / HTTP/1.1\r\nHost: x\r\n\r\n')",
    "too long": "s.sendall(struct.pack('>7I', 50_000_000, 0x20008086, 1, 1, 0, 0, 0))",
    "too short": "s.sendall(struct.pack('>7I', 3, 0x20008086, 1, 1, 0, 0, 0))",
    "unknown program": "s.sendall(message(1, program=0x1234))",
    "unknown procedure": "s.sendall(message(66)); s.recv(4096); s.sendall(message(9999))",
    "broken arguments": r"s.sendall(message(66)); s.recv(4096); s.sendall(message(10, b'\xff\xff\xff\xff'))",
    "create before open": "s.sendall(message(9, struct.pack('>I', 1) + b'a000' + bytes(20)))",
    "half a message, then gone": "s.sendall(message(1, bytes(60))[:50]); s.shutdown(socket.SHUT_WR)",
    "half a header, then gone": "s.sendall(message(1)[:11]); s.shutdown(socket.SHUT_WR)",
}
ASK = """
s = connect()
try:
    {}
    print(repr(s.recv(4096)))
except ConnectionError:
    print(repr(b""))
"""


@pytest.mark.parametrize("what", MALFORMED)
def test_nonsense_gets_the_answer_that_libvirt_gives(host: PrivateLibvirt, proxy: RunningProxy, what: str) -> None:
    def answer(socket_path: Path) -> str:
        return raw_client(socket_path, ASK.format(MALFORMED[what]))

    assert answer(proxy.socket) == answer(host.path("/run/libvirt/libvirt-sock"))
    proxy.wait_for_relays_to_end()


def test_half_a_message_that_stays_hurts_nobody_else(proxy: RunningProxy) -> None:
    script = "s = connect(); s.sendall(message(1, bytes(60))[:50]); print('half', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", RAW + script, str(proxy.socket)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "half\n"
        assert proxy.connect().lookupByName("still").info()
        process.kill()
    proxy.wait_for_relays_to_end()


def test_a_client_that_never_reads_stops_only_itself_and_takes_no_memory(host: PrivateLibvirt, proxy: RunningProxy) -> None:
    # Opens the connection and then asks for the capabilities (7) for ever.
    script = """
s = connect()
s.sendall(message(66)); s.recv(4096)
name = b"qemu:///system\\0\\0"
s.sendall(message(1, struct.pack(">II", 1, 14) + name + struct.pack(">I", 0), 1)); s.recv(4096)
s.setblocking(False)
sent = 0
began = time.monotonic()
while time.monotonic() - began < 2:
    try:
        sent += s.send(message(7, b"", 2) * 100)
    except BlockingIOError:
        time.sleep(0.05)
print(sent, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", RAW + script, str(proxy.socket)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 0
        (relay,) = proxy.relays()
        assert relay.memory_full_info().uss < 24 << 20
        assert proxy.connect().lookupByName("still").XMLDesc()
        process.kill()
    proxy.wait_for_relays_to_end()


def test_clients_that_vanish_leave_nothing_behind(host: PrivateLibvirt, proxy: RunningProxy) -> None:
    (daemon,) = host.processes("libvirtd")
    before = daemon.num_fds()
    script = f"""
import libvirt, os
connections = [libvirt.open({proxy.uri!r}) for _ in range(10)]
streams = [c.newStream() for c in connections]
for c in connections:
    c.lookupByName("still").XMLDesc()
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT)
    proxy.wait_for_relays_to_end()
    until(lambda: daemon.num_fds() <= before, "libvirtd to let go")


def test_a_call_of_a_client_that_vanishes_is_still_carried_out(host: PrivateLibvirt, proxy: RunningProxy) -> None:
    """As without a proxy: what was sent was sent."""
    script = f"""
import os, threading, time, libvirt
connection = libvirt.open({proxy.uri!r})
domain = connection.defineXML({guest("orphan")!r})
threading.Thread(target=domain.create).start()
time.sleep(0.05)
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT)
    connection = host.connect()
    domain = connection.lookupByName("orphan")
    until(domain.isActive, "the guest to run")
    domain.destroy()
    domain.undefine()


# Ends


def closing_reason(uri: str, end: Callable[[], Any]) -> tuple[int, int]:
    """How a client learns that its connection is gone: the close callback's reason and the next call's error."""
    _run_loop()
    connection = libvirt.open(uri)
    reasons: list[int] = []
    connection.registerCloseCallback(lambda _connection, reason, _opaque: reasons.append(reason), None)
    end()
    until(lambda: reasons, "the connection to close")
    with pytest.raises(libvirt.libvirtError) as error:
        connection.getHostname()
    return reasons[0], error.value.get_error_code()


@pytest.mark.parametrize("kill", [False, True], ids=["terminated", "killed"])
def test_libvirtd_going_away_looks_the_same(fresh_host: PrivateLibvirt, kill: bool) -> None:
    with RunningProxy(fresh_host) as running:
        seen = []
        for uri in (fresh_host.uri, running.uri):
            seen.append(closing_reason(uri, lambda: fresh_host.stop_libvirtd(kill=kill)))
            fresh_host.start_libvirtd()
            assert libvirt.open(running.uri).getHostname()
        assert seen[0] == seen[1]


def test_the_proxy_going_away_loses_no_guest_and_it_can_be_started_again(fresh_host: PrivateLibvirt) -> None:
    with RunningProxy(fresh_host) as running:
        connection = running.connect()
        connection.defineXML(guest("lasting")).create()
        running.kill()
        with pytest.raises(libvirt.libvirtError):
            connection.getHostname()
        running.start()
        assert running.connect().lookupByName("lasting").isActive()
