# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a PCI function's configuration space says about the way of its requests: kind of port, ACS, ATS. From bytes, without I/O.

Layouts: PCI Express base specification, 7.5.3.2 (device/port type), 7.7.11 (Access Control Services, extended capability 000D) and 10.5.1
(Address Translation Services, 000F). The kernel gives 4096 bytes to root, 64 to everybody else; what was not read is not known, and told
apart from what a function does not have.
"""

from __future__ import annotations

import struct
from typing import Iterator, NamedTuple, Optional

from pcinuma.host.links import LANES, Link
from pcinuma.host.place import express_capability, port_type

SIZE = 4096
DOWNSTREAM_PORTS = (4, 6)
"""Port types of root ports and of a switch's downstream ports: those that look at requests from below (ACS is theirs)."""

_ACS, _ATS = 0x000D, 0x000F
_REQUEST_REDIRECT, _DIRECT_TRANSLATED = 1 << 2, 1 << 6
_ATS_ENABLE = 1 << 15
_EXTENDED = 0x100
_SPEEDS = {1: 2.5, 2: 5.0, 3: 8.0, 4: 16.0, 5: 32.0, 6: 64.0}


class Acs(NamedTuple):
    """The two services that decide where peer-to-peer requests go. ``can_translate``: direct translated P2P is there to be switched on."""

    redirect: bool
    translated: bool
    can_translate: bool


class Config(NamedTuple):
    """``port_type`` is None where it is not told. ``acs`` and ``ats`` (whether it is enabled) are None for a function that has no such
    capability, and mean nothing unless ``whole``."""

    port_type: Optional[int]
    whole: bool
    acs: Optional[Acs] = None
    ats: Optional[bool] = None


def read_config(data: bytes) -> Config:
    """What the bytes say, as many as there are."""
    kind = port_type(data)
    if len(data) < SIZE:
        return Config(kind, False)
    acs, ats = None, None
    for number, offset in _extended(data):
        capability, control = struct.unpack_from("<HH", data, offset + 4)
        if number == _ACS and acs is None:
            redirect, translated = bool(control & _REQUEST_REDIRECT), bool(control & _DIRECT_TRANSLATED)
            acs = Acs(redirect, translated, bool(capability & _DIRECT_TRANSLATED))
        elif number == _ATS and ats is None:
            ats = bool(control & _ATS_ENABLE)
    return Config(kind, True, acs, ats)


def secondary_bus(data: bytes) -> Optional[int]:
    """The number of the bus behind a bridge (header of type 1); None for what is no bridge."""
    return data[0x19] if len(data) >= 64 and data[0x0E] & 0x7F == 1 else None


def link_capability(data: bytes) -> Link:
    """What the function's Link Capabilities Register says (PCI Express base specification, 7.5.3.6)."""
    offset = express_capability(data)
    if offset is None or offset + 0x10 > len(data):
        return Link()
    (register,) = struct.unpack_from("<I", data, offset + 0x0C)
    width = register >> 4 & 0x3F
    return Link(_SPEEDS.get(register & 0xF), width if width in LANES else None)


def without_identity(data: bytes, keep: int) -> bytes:
    """The first ``keep`` bytes, and of the rest what :func:`read_config` understands: no serial number, no vendor's secrets."""
    if len(data) < SIZE:
        return data[:keep]
    kept = bytearray(SIZE)
    kept[:keep] = data[:keep]
    found = [(number, data[offset + 4 : offset + 8]) for number, offset in _extended(data) if number in (_ACS, _ATS)]
    for position, (number, registers) in enumerate(found):
        offset = _EXTENDED + 8 * position
        following = offset + 8 if position + 1 < len(found) else 0
        struct.pack_into("<I4s", kept, offset, number | 1 << 16 | following << 20, registers)
    return bytes(kept)


def _extended(data: bytes) -> Iterator[tuple[int, int]]:
    """Number and offset of each extended capability; a list that runs in a circle ends."""
    offset, seen = _EXTENDED, set()
    while _EXTENDED <= offset <= SIZE - 8 and offset not in seen:
        seen.add(offset)
        (header,) = struct.unpack_from("<I", data, offset)
        if header in (0, 0xFFFFFFFF):
            return
        yield header & 0xFFFF, offset
        offset = header >> 20 & 0xFFC
