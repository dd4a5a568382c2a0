# SPDX-License-Identifier: LGPL-2.1-or-later
"""The calls that start a guest or plug a device into one: what they ask for, and the same call with another XML.

Procedure numbers and arguments are those of libvirt's ``src/remote/remote_protocol.x``; they are wire ABI and never
change. Not here, on purpose: restore, migration's prepare calls and snapshot revert, whose guest state fits the
devices that it was saved with.
"""

from __future__ import annotations

import enum
import re
import uuid
from dataclasses import dataclass
from typing import Optional

from pcinuma.proxy import wire
from pcinuma.proxy.wire import Bytes, Header, Kind, String, WireError

HELD_MAX = wire.STRING_MAX + 64 * 1024
"""A longer message cannot be a valid call of this table, so it is never kept."""


class Procedure(enum.IntEnum):
    """``REMOTE_PROC_…``"""

    CONNECT_OPEN = 1
    DOMAIN_ATTACH_DEVICE = 8
    DOMAIN_CREATE = 9
    DOMAIN_CREATE_XML = 10
    DOMAIN_ATTACH_DEVICE_FLAGS = 160
    DOMAIN_CREATE_WITH_FLAGS = 196
    DOMAIN_CREATE_XML_WITH_FILES = 309
    DOMAIN_CREATE_WITH_FILES = 310


_STARTS = (Procedure.DOMAIN_CREATE, Procedure.DOMAIN_CREATE_WITH_FLAGS, Procedure.DOMAIN_CREATE_WITH_FILES)
_CREATES = (Procedure.DOMAIN_CREATE_XML, Procedure.DOMAIN_CREATE_XML_WITH_FILES)
_ATTACHES = (Procedure.DOMAIN_ATTACH_DEVICE, Procedure.DOMAIN_ATTACH_DEVICE_FLAGS)
PROCEDURES = frozenset({*_STARTS, *_CREATES, *_ATTACHES})

_CONNECT_READ_ONLY = 1  # VIR_CONNECT_RO
_AFFECT_LIVE, _AFFECT_CONFIG = 1, 2  # VIR_DOMAIN_AFFECT_…
_MAYBE_PASSTHROUGH = (b"<hostdev", b"<interface", b"nvme", b"block")


@dataclass(frozen=True)
class Open:
    """A connection is opened: to which URI (None: libvirt chooses) and whether only to read."""

    uri: Optional[str]
    read_only: bool

    @property
    def may_start_guests(self) -> bool:
        """Whether creates on this connection are for QEMU guests, of a client that asked for more than reading."""
        scheme = re.split(r"[:+]", self.uri, maxsplit=1)[0] if self.uri else "qemu"
        return scheme == "qemu" and not self.read_only


@dataclass(frozen=True)
class Start:
    """A persistent domain is to be started."""

    domain: str


@dataclass(frozen=True)
class Create:
    """A transient domain is to be started from this XML."""

    xml: String


@dataclass(frozen=True)
class Attach:
    """A device is to be plugged into a running guest."""

    domain: str
    xml: String


@dataclass(frozen=True)
class _Domain:
    uuid: str
    end: int


def is_wanted(header: Header) -> bool:
    """Whether the message has to be seen whole before it may go on."""
    return (
        header.procedure in PROCEDURES
        and header.program == wire.REMOTE_PROGRAM
        and header.kind in (Kind.CALL, Kind.CALL_WITH_FDS)
        and header.version == wire.VERSION
        and header.length <= HELD_MAX
    )


def is_open(header: Header) -> bool:
    """Whether the message opens a connection to a driver."""
    return (
        header.procedure == Procedure.CONNECT_OPEN
        and header.program == wire.REMOTE_PROGRAM
        and header.kind == Kind.CALL
        and header.version == wire.VERSION
        and header.length <= HELD_MAX
    )


def read_open(message: Bytes) -> Open:
    """The arguments of a connect-open call: an optional string and the flags."""
    offset = wire.HEADER_SIZE + 4
    uri = None
    if wire.read_word(message, wire.HEADER_SIZE):
        string = wire.read_string(message, offset)
        uri, offset = string.value.decode("utf-8", "replace"), string.end
    return Open(uri, bool(wire.read_word(message, offset) & _CONNECT_READ_ONLY))


def read_call(message: Bytes) -> Start | Create | Attach | None:
    """What the whole message asks for; None if it is nothing for us. Raises WireError for arguments that libvirt will
    refuse as well."""
    header = wire.read_header(message)
    offset = wire.HEADER_SIZE + (4 if header.carries_descriptors else 0)
    if header.procedure in _STARTS:
        return Start(_read_domain(message, offset).uuid)
    if header.procedure in _CREATES:
        return Create(wire.read_string(message, offset))
    if header.procedure in _ATTACHES:
        domain = _read_domain(message, offset)
        xml = wire.read_string(message, domain.end)
        live = header.procedure == Procedure.DOMAIN_ATTACH_DEVICE or _for_the_live_guest(wire.read_word(message, xml.end))
        if live and any(word in xml.value for word in _MAYBE_PASSTHROUGH):
            return Attach(domain.uuid, xml)
    return None


def with_xml(message: Bytes, old: String, xml: bytes) -> bytes:
    """The same call with ``xml`` in the place of ``old``. Raises WireError if libvirt would refuse a string of that
    size."""
    if len(xml) > wire.STRING_MAX:
        raise WireError("the placed XML is longer than libvirt allows")
    changed = bytes(message[: old.begin]) + wire.encode_string(xml) + bytes(message[old.end :])
    return wire.with_length(changed, len(changed))


def _for_the_live_guest(flags: int) -> bool:
    """Live, or current, which the daemon finds out. Not where the definition is to have the device too: a port that
    is free in the guest may be taken there, and then libvirt would refuse what it accepts without us."""
    return not flags & _AFFECT_CONFIG


def _read_domain(message: Bytes, offset: int) -> _Domain:
    name = wire.read_string(message, offset)
    end = name.end + 16 + 4
    if end > len(message):
        raise WireError("a domain is cut off")
    return _Domain(str(uuid.UUID(bytes=bytes(message[name.end : name.end + 16]))), end)
