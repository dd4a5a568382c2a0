# SPDX-License-Identifier: LGPL-2.1-or-later
"""The proxy's understanding of libvirt's RPC: framing, the calls that matter, and a relay between two socket pairs, without libvirt."""

from __future__ import annotations

import array
import json
import os
import socket
import struct
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcinuma.proxy import calls, wire
from pcinuma.proxy.calls import Procedure
from pcinuma.proxy.relay import Relay
from pcinuma.proxy.requests import RequestPipe, frame
from pcinuma.proxy.wire import Framing, Header, Kind

UUID = uuid.UUID("5ad3b1c4-6f1c-4a5e-8a39-0d6f0c2c7e11")


def message(
    procedure: int, payload: bytes = b"", kind: int = 0, program: int = wire.REMOTE_PROGRAM, serial: int = 1, status: int = 0
) -> bytes:
    return struct.pack(">7I", 28 + len(payload), program, 1, procedure, kind, serial, status) + payload


def string(value: bytes) -> bytes:
    return wire.encode_string(value)


def domain(name: bytes = b"guest") -> bytes:
    return string(name) + UUID.bytes + struct.pack(">i", -1)


def opening(uri: Optional[bytes] = b"qemu:///system", flags: int = 0) -> bytes:
    name = b"\0\0\0\0" if uri is None else b"\0\0\0\1" + string(uri)
    return message(Procedure.CONNECT_OPEN, name + struct.pack(">I", flags))


# The calls that matter


@given(st.binary(max_size=300), st.binary(max_size=300), st.integers(0, 2**32 - 1), st.sampled_from([0, 4]))
def test_a_create_with_another_xml_differs_in_nothing_else(before: bytes, after: bytes, flags: int, kind: int) -> None:
    head = struct.pack(">I", 2) if kind == Kind.CALL_WITH_FDS else b""
    procedure = Procedure.DOMAIN_CREATE_XML_WITH_FILES if head else Procedure.DOMAIN_CREATE_XML
    original = message(procedure, head + string(before) + struct.pack(">I", flags), kind, serial=7)
    call = calls.read_call(original)
    assert isinstance(call, calls.Create) and call.xml.value == before
    assert calls.with_xml(original, call.xml, after) == message(procedure, head + string(after) + struct.pack(">I", flags), kind, serial=7)


@pytest.mark.parametrize("procedure", [Procedure.DOMAIN_CREATE, Procedure.DOMAIN_CREATE_WITH_FLAGS, Procedure.DOMAIN_CREATE_WITH_FILES])
@given(name=st.binary(max_size=70))
def test_a_start_names_the_domain_by_its_uuid(procedure: Procedure, name: bytes) -> None:
    head = struct.pack(">I", 0) if procedure == Procedure.DOMAIN_CREATE_WITH_FILES else b""
    kind = Kind.CALL_WITH_FDS if head else Kind.CALL
    assert calls.read_call(message(procedure, head + domain(name) + b"\0\0\0\0", kind)) == calls.Start(str(UUID))


@pytest.mark.parametrize(
    ("procedure", "flags", "xml", "asked"),
    [
        (Procedure.DOMAIN_ATTACH_DEVICE, None, b"<hostdev/>", True),
        (Procedure.DOMAIN_ATTACH_DEVICE_FLAGS, 0, b"<hostdev/>", True),
        (Procedure.DOMAIN_ATTACH_DEVICE_FLAGS, 1, b"<interface type='hostdev'/>", True),
        (Procedure.DOMAIN_ATTACH_DEVICE_FLAGS, 2, b"<hostdev/>", False),
        (Procedure.DOMAIN_ATTACH_DEVICE_FLAGS, 3, b"<hostdev/>", False),
        (Procedure.DOMAIN_ATTACH_DEVICE_FLAGS, 1, b"<disk type='nvme'/>", True),
        (Procedure.DOMAIN_ATTACH_DEVICE_FLAGS, 1, b"<disk type='file'/>", False),
        (Procedure.DOMAIN_ATTACH_DEVICE_FLAGS, 1, b"<memory model='dimm'/>", False),
    ],
)
def test_attaching_is_of_interest_where_a_passthrough_device_may_come_into_the_running_guest_only(
    procedure: Procedure, flags: Optional[int], xml: bytes, asked: bool
) -> None:
    tail = b"" if flags is None else struct.pack(">I", flags)
    call = calls.read_call(message(procedure, domain() + string(xml) + tail))
    assert (call is not None) == asked
    if asked:
        assert isinstance(call, calls.Attach) and (call.domain, call.xml.value) == (str(UUID), xml)


@pytest.mark.parametrize(
    ("uri", "flags", "may"),
    [
        (b"qemu:///system", 0, True),
        (b"qemu+unix:///system", 2, True),
        (None, 0, True),
        (b"", 0, True),
        (b"qemu:///system", 1, False),
        (b"lxc:///system", 0, False),
        (b"test:///default", 0, False),
    ],
)
def test_only_a_connection_to_qemu_that_may_write_may_start_guests(uri: Optional[bytes], flags: int, may: bool) -> None:
    assert calls.read_open(opening(uri, flags)).may_start_guests == may


@given(st.sampled_from(sorted(calls.PROCEDURES)), st.binary(max_size=120), st.sampled_from([0, 4]))
def test_arguments_that_mean_nothing_are_a_wire_error_and_nothing_else(procedure: int, payload: bytes, kind: int) -> None:
    try:
        calls.read_call(message(procedure, payload, kind))
    except wire.WireError:
        pass


def test_an_xml_beyond_libvirts_limit_is_not_put_into_a_call() -> None:
    original = message(Procedure.DOMAIN_CREATE_XML, string(b"<domain/>") + b"\0\0\0\0")
    call = calls.read_call(original)
    assert isinstance(call, calls.Create)
    with pytest.raises(wire.WireError):
        calls.with_xml(original, call.xml, b" " * (wire.STRING_MAX + 1))


# Framing


def fed(framing: Framing, stream: bytes, cuts: list[int]) -> list[tuple[str, bytes]]:
    """What becomes of a stream that arrives in pieces: ("pass", bytes) and ("held", message), neighbouring passes joined."""
    seen: list[tuple[str, bytes]] = []
    kept = b""
    for begin, end in zip([0, *cuts], [*cuts, len(stream)]):
        kept += stream[begin:end]
        while kept:
            passed, held = framing.scan(kept)
            if passed:
                if seen and seen[-1][0] == "pass":
                    seen[-1] = ("pass", seen[-1][1] + kept[:passed])
                else:
                    seen.append(("pass", kept[:passed]))
            kept = kept[passed:]
            if held is None or len(kept) < held.length:
                break
            seen.append(("held", kept[: held.length]))
            framing.release(kept)
            kept = kept[held.length :]
    assert framing.unframed or len(kept) < wire.HEADER_SIZE + 4 or framing.scan(kept)[1] is not None
    return [*seen, ("kept", kept)] if kept else seen


def interest() -> Framing:
    return Framing(calls.PROCEDURES, calls.is_wanted)


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[bytes], list[int]]:
    parts = []
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from([0, 1, 2, 3, 4, 5, 6]))
        descriptors = draw(st.integers(0, 3))
        payload = (struct.pack(">I", descriptors) if kind in (4, 5) else b"") + draw(st.binary(max_size=80))
        procedure = draw(st.sampled_from([2, 9, 10, 14, 66, 160, 5000]))
        program = draw(st.sampled_from([wire.REMOTE_PROGRAM, wire.KEEPALIVE_PROGRAM, 0x12345678]))
        parts.append(message(procedure, payload, kind, program, status=draw(st.sampled_from([0, 1, 2]))))
        if kind in (4, 5):
            parts.append(b"\0" * descriptors)
    size = sum(map(len, parts))
    cuts = sorted(draw(st.lists(st.integers(0, size), max_size=8)))
    return parts, cuts


@given(streams())
def test_however_a_stream_is_cut_the_same_messages_are_held_and_every_byte_goes_on(stream: tuple[list[bytes], list[int]]) -> None:
    parts, cuts = stream
    whole = b"".join(parts)
    in_pieces, at_once = fed(interest(), whole, cuts), fed(interest(), whole, [])
    assert b"".join(data for _, data in in_pieces) == whole
    assert [data for what, data in in_pieces if what == "held"] == [data for what, data in at_once if what == "held"]
    wanted = [part for part in parts if len(part) >= 28 and calls.is_wanted(wire.read_header(part))]
    assert [data for what, data in at_once if what == "held"] == wanted


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=5))
def test_of_nonsense_not_a_byte_is_lost(noise: bytes, cuts: list[int]) -> None:
    seen = fed(interest(), noise, sorted(min(cut, len(noise)) for cut in cuts))
    assert b"".join(data for _, data in seen) == noise


@pytest.mark.parametrize("broken", [message(14)[:3] + b"\x05" + message(14)[4:], message(14, kind=9), message(14, status=77)])
def test_what_is_no_message_of_the_protocol_makes_it_blind(broken: bytes) -> None:
    framing = interest()
    assert framing.scan(broken + message(Procedure.DOMAIN_CREATE, domain())) == (len(broken) + len(message(9, domain())), None)
    assert framing.unframed


def test_a_length_that_libvirt_hangs_up_on_is_passed_on_at_once() -> None:
    framing = interest()
    assert framing.scan(b"GET / HTTP/1.1") == (14, None)
    assert framing.unframed


def test_after_sasl_an_encrypted_stream_is_left_alone() -> None:
    framing = interest()
    authentication = message(66) + message(67) + message(68, string(b"SCRAM") + b"\0\0\0\0" * 2)
    assert framing.scan(authentication) == (len(authentication), None)
    packet = struct.pack(">I", 400) + os.urandom(4) + struct.pack(">5I", 1, 9, 0, 1, 0) + bytes(376)
    assert framing.scan(packet) == (len(packet), None)
    assert framing.unframed


def test_after_sasl_without_encryption_calls_are_still_seen() -> None:
    framing = interest()
    framing.scan(message(67))
    start = message(Procedure.DOMAIN_CREATE, domain())
    assert framing.scan(start) == (0, wire.read_header(start))


def test_a_call_longer_than_any_valid_one_is_not_kept() -> None:
    header = Header(calls.HELD_MAX + 1, wire.REMOTE_PROGRAM, 1, Procedure.DOMAIN_CREATE_XML, Kind.CALL, 1, 0)
    assert not calls.is_wanted(header)


# A relay


class Rig:
    """A relay in a thread: ``client`` and ``libvirt`` are the far ends; ``answer`` answers its questions."""

    def __init__(self, answer: Callable[[dict[str, Any]], Optional[str]], patience: float = 5.0, read_only: bool = False) -> None:
        self.client, near_client = socket.socketpair()
        self.libvirt, near_libvirt = socket.socketpair()
        self.parent, near_parent = socket.socketpair()
        self.requests: list[dict[str, Any]] = []
        self.client.settimeout(120)
        self.libvirt.settimeout(120)
        self._answer = answer
        near_parent.setblocking(False)
        relay = Relay(near_client, near_libvirt, RequestPipe(near_parent, patience - 1), read_only)
        self._ends = [near_client, near_libvirt, near_parent]
        self.thread = threading.Thread(target=self._run, args=[relay], daemon=True)
        self.thread.start()
        threading.Thread(target=self._parent_answers, daemon=True).start()

    def _run(self, relay: Relay) -> None:
        relay.run()
        for end in self._ends:
            end.close()

    def _parent_answers(self) -> None:
        inbox = b""
        while True:
            try:
                data = self.parent.recv(1 << 20)
            except OSError:
                return
            if not data:
                return
            inbox += data
            while b"\0" in inbox:
                raw, _, inbox = inbox.partition(b"\0")
                request = json.loads(raw)
                self.requests.append(request)
                xml = self._answer(request)
                if xml != "never":
                    self.parent.sendall(frame({"number": request["number"], "xml": xml}))

    def open(self, flags: int = 0, status: int = 0) -> None:
        call = opening(flags=flags)
        self.client.sendall(call)
        assert exactly(self.libvirt, len(call)) == call
        reply = message(Procedure.CONNECT_OPEN, kind=Kind.REPLY, status=status)
        self.libvirt.sendall(reply)
        assert exactly(self.client, len(reply)) == reply

    def close(self) -> None:
        for end in (self.client, self.libvirt, self.parent):
            end.close()
        self.thread.join(5)
        assert not self.thread.is_alive()


@contextmanager
def rig(answer: Callable[[dict[str, Any]], Optional[str]] = lambda _request: None, **options: Any) -> Iterator[Rig]:
    relay = Rig(answer, **options)
    try:
        yield relay
    finally:
        relay.close()


def exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            break
        data += part
    return data


def test_a_create_goes_on_with_the_placed_xml_and_what_follows_does_not_overtake_it() -> None:
    with rig(lambda request: request["xml"].replace("plain", "placed & so on")) as relay:
        relay.open()
        create = message(Procedure.DOMAIN_CREATE_XML, string(b"<domain>plain</domain>") + b"\0\0\0\1", serial=3)
        after = message(14, b"later", serial=4)
        relay.client.sendall(create + after)
        expected = message(Procedure.DOMAIN_CREATE_XML, string(b"<domain>placed & so on</domain>") + b"\0\0\0\1", serial=3) + after
        assert exactly(relay.libvirt, len(expected)) == expected


def test_a_start_is_announced_and_goes_on_as_it_came() -> None:
    with rig() as relay:
        relay.open()
        start = message(Procedure.DOMAIN_CREATE_WITH_FLAGS, domain() + b"\0\0\0\0")
        relay.client.sendall(start)
        assert exactly(relay.libvirt, len(start)) == start
        assert [(request["kind"], request["domain"]) for request in relay.requests] == [("start", str(UUID))]


@pytest.mark.parametrize("how", ["not opened", "read-only", "refused", "read-only socket"])
def test_nobody_without_write_access_causes_a_placement(how: str) -> None:
    with rig(read_only=how == "read-only socket") as relay:
        if how != "not opened":
            relay.open(flags=1 if how == "read-only" else 0, status=1 if how == "refused" else 0)
        start = message(Procedure.DOMAIN_CREATE, domain())
        relay.client.sendall(start)
        assert exactly(relay.libvirt, len(start)) == start
        assert relay.requests == []


def test_without_an_answer_the_call_goes_on_as_it_came_and_a_late_answer_is_nobodys() -> None:
    with rig(lambda _request: "never", patience=1.2) as relay:
        relay.open()
        create = message(Procedure.DOMAIN_CREATE_XML, string(b"<domain/>") + b"\0\0\0\0")
        relay.client.sendall(create)
        assert exactly(relay.libvirt, len(create)) == create
        relay.parent.sendall(frame({"number": 1, "xml": "<late/>"}))
        relay.client.sendall(create)
        assert exactly(relay.libvirt, len(create)) == create


def test_descriptors_arrive_with_their_messages_both_ways() -> None:
    read_end, write_end = os.pipe()
    with rig(lambda request: "<domain>placed</domain>") as relay:
        relay.open()
        create = message(
            Procedure.DOMAIN_CREATE_XML_WITH_FILES, struct.pack(">I", 2) + string(b"<domain/>") + b"\0\0\0\0", Kind.CALL_WITH_FDS
        )
        placed = message(
            Procedure.DOMAIN_CREATE_XML_WITH_FILES,
            struct.pack(">I", 2) + string(b"<domain>placed</domain>") + b"\0\0\0\0",
            Kind.CALL_WITH_FDS,
        )
        after = message(14, b"afterwards")
        for sender, receiver, sent, expected in (
            (relay.client, relay.libvirt, create, placed),
            (relay.libvirt, relay.client, message(14, struct.pack(">I", 2), Kind.REPLY_WITH_FDS), None),
        ):
            sender.sendall(sent)
            for descriptor in (read_end, write_end):
                sender.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))])
            sender.sendall(after)
            assert exactly(receiver, len(expected or sent)) == (expected or sent)
            got = [received_descriptor(receiver) for _ in range(2)]
            assert [os.fstat(descriptor).st_ino for descriptor in got] == [os.fstat(read_end).st_ino] * 2
            assert exactly(receiver, len(after)) == after
            for descriptor in got:
                os.close(descriptor)
    os.close(read_end)
    os.close(write_end)


def received_descriptor(sock: socket.socket) -> int:
    """As libvirt does it: one byte, one descriptor."""
    data, descriptors, _flags, _address = socket.recv_fds(sock, 1, 1)
    assert len(data) == 1 and len(descriptors) == 1
    return descriptors[0]


def test_a_peer_that_does_not_read_stops_the_other_and_loses_nothing() -> None:
    with rig() as relay:
        relay.open()
        sent = 0
        relay.libvirt.setblocking(False)
        try:
            while sent < 1 << 30:
                sent += relay.libvirt.send(bytes(65536))
        except BlockingIOError:
            pass
        assert sent < 4 << 20
        assert exactly(relay.client, sent) == bytes(sent)


def test_end_of_file_comes_after_everything_else() -> None:
    with rig() as relay:
        relay.open()
        relay.client.sendall(message(14, b"last")[:-2])
        relay.client.shutdown(socket.SHUT_WR)
        assert exactly(relay.libvirt, 1000) == message(14, b"last")[:-2]
        relay.libvirt.sendall(b"answer")
        relay.libvirt.close()
        assert exactly(relay.client, 1000) == b"answer"


def test_a_client_that_vanishes_is_no_longer_there_for_libvirt() -> None:
    with rig() as relay:
        relay.open()
        relay.client.sendall(message(Procedure.DOMAIN_CREATE, domain()))
        relay.client.close()
        assert exactly(relay.libvirt, 1000) == message(Procedure.DOMAIN_CREATE, domain())


def test_a_relay_ends_with_its_parent() -> None:
    with rig() as relay:
        relay.open()
        relay.parent.shutdown(socket.SHUT_RDWR)
        assert exactly(relay.client, 1) == b""


@settings(deadline=None, max_examples=25)
@given(streams(), st.booleans())
def test_through_a_relay_every_byte_arrives_in_order(stream: tuple[list[bytes], list[int]], opened: bool) -> None:
    parts, cuts = stream
    whole = b"".join(parts)
    with rig() as relay:
        if opened:
            relay.open()
        for begin, end in zip([0, *cuts], [*cuts, len(whole)]):
            relay.client.sendall(whole[begin:end])
        relay.client.shutdown(socket.SHUT_WR)
        assert exactly(relay.libvirt, len(whole) + 1) == whole


def test_no_call_of_the_proxy_is_one_that_carries_a_guests_state() -> None:
    """Restore (54, 233, 441), migration (61, 108, 148, 214, 215, 303, 304) and snapshot revert (192) stay out."""
    assert not calls.PROCEDURES & {54, 233, 441, 61, 108, 148, 214, 215, 303, 304, 192}
