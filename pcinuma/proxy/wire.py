# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's RPC on the wire: the 28-byte header, where messages end, and XDR strings.

Source: libvirt's ``src/rpc/virnetprotocol.x``, ``src/rpc/virnetmessage.c`` and ``src/rpc/virnetserverclient.c``. A
message is a length word (of the whole message, itself included), six more words, and a payload. A message of type 4
or 5 starts its payload with a number of descriptors; that many single bytes follow *after* the message, outside its
length, each carrying one descriptor as SCM_RIGHTS.

:class:`Framing` finds the ends of messages in a stream without keeping any of it. What cannot be a message of this
protocol makes it ``unframed`` for good: everything passes and nothing is looked at any more. That is how nonsense
reaches libvirt, to be refused there, and how a connection goes on on which SASL has negotiated an encryption layer.
"""

from __future__ import annotations

import enum
import struct
from typing import AbstractSet, Callable, NamedTuple, Optional, Union

Bytes = Union[bytes, bytearray, memoryview]

REMOTE_PROGRAM = 0x20008086
QEMU_PROGRAM = 0x20008087
LXC_PROGRAM = 0x20008088
ADMIN_PROGRAM = 0x06900690
KEEPALIVE_PROGRAM = 0x6B656570
VERSION = 1

HEADER_SIZE = 28
MESSAGE_MAX = 32 * 1024 * 1024 + 4
"""VIR_NET_MESSAGE_MAX and the length word, which it does not count."""
STRING_MAX = 4 * 1024 * 1024
"""REMOTE_STRING_MAX: a longer string is no valid argument of any call."""
DESCRIPTORS_MAX = 32

_HEADER = struct.Struct(">7I")
_WORD = struct.Struct(">I")
_KNOWN_PROGRAMS = frozenset({REMOTE_PROGRAM, QEMU_PROGRAM, LXC_PROGRAM, ADMIN_PROGRAM, KEEPALIVE_PROGRAM})
_SASL_PROCEDURES = frozenset({67, 68, 69})


class Kind(enum.IntEnum):
    """``virNetMessageType``."""

    CALL = 0
    REPLY = 1
    MESSAGE = 2
    STREAM = 3
    CALL_WITH_FDS = 4
    REPLY_WITH_FDS = 5
    STREAM_HOLE = 6


_WITH_DESCRIPTORS = frozenset({Kind.CALL_WITH_FDS, Kind.REPLY_WITH_FDS})


class WireError(ValueError):
    """Bytes that are not what the protocol says; only ever a reason to let a message pass as it came."""


class Header(NamedTuple):
    """The header of a message; ``length`` is that of the whole message."""

    length: int
    program: int
    version: int
    procedure: int
    kind: int
    serial: int
    status: int

    def encode(self) -> bytes:
        return _HEADER.pack(*self)

    @property
    def carries_descriptors(self) -> bool:
        return self.kind in _WITH_DESCRIPTORS


def read_header(data: Bytes, offset: int = 0) -> Header:
    """The header at ``offset``; the caller has seen to it that 28 bytes are there."""
    return Header._make(_HEADER.unpack_from(data, offset))


def with_length(message: Bytes, length: int) -> bytes:
    """The message with another length in its header."""
    return _WORD.pack(length) + bytes(message[4:])


def read_word(data: Bytes, offset: int) -> int:
    if offset + 4 > len(data):
        raise WireError("a number is cut off")
    value: int = _WORD.unpack_from(data, offset)[0]
    return value


class String(NamedTuple):
    """An XDR string: its bytes, and where its encoding (length word, bytes, padding) begins and ends in the message."""

    value: bytes
    begin: int
    end: int


def read_string(data: Bytes, offset: int) -> String:
    """The string encoded at ``offset``."""
    size = read_word(data, offset)
    begin = offset + 4
    end = begin + size + (-size % 4)
    if size > STRING_MAX or end > len(data):
        raise WireError("a string is too long or cut off")
    return String(bytes(data[begin : begin + size]), offset, end)


def encode_string(value: bytes) -> bytes:
    return _WORD.pack(len(value)) + value + b"\0" * (-len(value) % 4)


class Framing:
    """Where the messages of one direction begin and end.

    ``procedures``: the only ones (of calls and replies) that ``wanted`` is asked about; ``wanted(header)`` says whether the message is
    to be held back until it is complete. Only the owner moves on from a held message, by :meth:`release`.
    """

    def __init__(self, procedures: AbstractSet[int], wanted: Callable[[Header], bool]) -> None:
        self.unframed = False
        self._looked_at = procedures | _SASL_PROCEDURES
        self._wanted = wanted
        self._rest = 0  # bytes of the current message that pass
        self._sasl = False

    def scan(self, data: Bytes) -> tuple[int, Optional[Header]]:
        """Look at the next bytes of the stream: how many of them may go on, and the header of the held message that begins there.

        Without a header, what is left is less than one (or nothing). What is left must be shown again, with what follows it.
        """
        if self.unframed:
            return len(data), None
        position, size, rest = 0, len(data), self._rest
        while True:
            if rest:
                if rest >= size - position:
                    self._rest = rest - (size - position)
                    return size, None
                position += rest
                self._rest = rest = 0
            if size - position < HEADER_SIZE:
                if size - position >= 4 and not HEADER_SIZE <= read_word(data, position) <= MESSAGE_MAX:
                    self.unframed = True  # libvirt hangs up on such a length without waiting for more
                    return size, None
                return position, None
            words = _HEADER.unpack_from(data, position)
            length, _program, _version, procedure, kind, _serial, status = words
            if not HEADER_SIZE <= length <= MESSAGE_MAX or kind > Kind.STREAM_HOLE or status > 2:
                self.unframed = True
                return size, None
            rest = length
            if self._sasl or procedure in self._looked_at:
                header = Header._make(words)
                if not self._plausible(header):
                    self.unframed = True
                    return size, None
                if self._wanted(header):
                    return position, header
            if kind in _WITH_DESCRIPTORS and length >= HEADER_SIZE + 4:
                if size - position < HEADER_SIZE + 4:
                    return position, None
                rest += trailing_bytes(data, position)

    def is_plain_call(self, data: Bytes, size: int) -> bool:
        """Whether the next ``size`` bytes of the stream, in ``data``, are one whole call that nobody looks at. They may go on then; the
        state stays as it is, between two messages. A quick answer for what :meth:`scan` would find out as well."""
        if size < HEADER_SIZE or self._rest or self._sasl or self.unframed:
            return False
        length, _, _, procedure, kind, _, status = _HEADER.unpack_from(data)
        return length == size and kind == 0 and status <= 2 and procedure not in self._looked_at

    def release(self, message: Bytes) -> None:
        """The held message has been dealt with: what follows it is next."""
        self._rest = trailing_bytes(message, 0) if read_header(message).carries_descriptors else 0

    def _plausible(self, header: Header) -> bool:
        """After SASL there may be an encryption layer, whose packets could look like messages of an unheard-of program."""
        if header.program == REMOTE_PROGRAM and header.procedure in _SASL_PROCEDURES:
            self._sasl = True
        return not self._sasl or (header.program in _KNOWN_PROGRAMS and header.version == VERSION)


def trailing_bytes(data: Bytes, offset: int) -> int:
    """How many single bytes with a descriptor each follow the message of type 4 or 5 at ``offset``; 0 where libvirt
    would refuse it."""
    if len(data) < offset + HEADER_SIZE + 4:
        return 0
    number = read_word(data, offset + HEADER_SIZE)
    return number if number <= DESCRIPTORS_MAX else 0
