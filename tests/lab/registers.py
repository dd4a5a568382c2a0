# SPDX-License-Identifier: LGPL-2.1-or-later
"""Registers of devices that QEMU emulates, written from outside: what a guest may only read, and what QEMU has no property for.

QEMU answers a read of configuration space from one array of 4096 bytes per function. The array is found in the process's memory by the
function's header as the guest reads it: its BARs or bus numbers are nobody else's. What is written there is what the guest's kernel reads
from then on, at the next read. The guest's own memory is left out of the search, for the same bytes may lie in it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from pathlib import Path

import psutil

HEADER, SIZE = 64, 4096
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ \d+ *(.*)")
_LARGEST = 96 << 20
"""The bytes of a mapping that may be one of malloc's: its arenas have 64 MiB. A node's memory has more."""
_KEY = 3
"""The bytes of a header that are looked for first: the vendor and half of the device. Longer ones end in zeros, as memory is full of."""
_EXPRESS, _LINK_CAPABILITIES, _LINK_STATUS = 0x10, 0x0C, 0x12
_SPEEDS = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5}
_FREE = 0xF00
"""Where a new extended capability goes: QEMU's own end far below."""

Writes = Mapping[int, bytes]
"""Offset in configuration space -> what to write there."""


def links(config: bytes, speed: float, width: int, speed_now: float, width_now: int) -> Writes:
    """Link Capabilities and Link Status of a function (PCI Express base specification, 7.5.3.6 and 7.5.3.8)."""
    at = config[0x34]
    while config[at] != _EXPRESS:
        at = config[at + 1]
    (can,), (does,) = (struct.unpack_from(kind, config, at + offset) for kind, offset in (("<I", _LINK_CAPABILITIES), ("<H", _LINK_STATUS)))
    can = can & ~0x3FF | _SPEEDS[speed] | width << 4
    does = does & ~0x3FF | _SPEEDS[speed_now] | width_now << 4
    return {at + _LINK_CAPABILITIES: struct.pack("<I", can), at + _LINK_STATUS: struct.pack("<H", does)}


def extended(config: bytes, number: int, capability: int, control: int) -> Writes:
    """A new extended capability of two 16-bit registers, as ACS (7.7.11) and ATS (10.5.1) have them, at the end of the list."""
    at, last = 0x100, 0
    while at and struct.unpack_from("<I", config, at)[0]:
        last, at = at, struct.unpack_from("<I", config, at)[0] >> 20
    place = _FREE if last else 0x100
    writes = {place: struct.pack("<IHH", number | 1 << 16, capability, control)}
    if last:
        (header,) = struct.unpack_from("<I", config, last)
        writes[last] = struct.pack("<I", header & 0xFFFFF | place << 20)
    return writes


class Registers:
    """The configuration space of the functions of one QEMU process. ``configs``: what the guest reads of each, by any name."""

    def __init__(self, pid: int, configs: Mapping[str, bytes]) -> None:
        self._pid = pid
        self._at = _find(pid, {name: config[:HEADER] for name, config in configs.items()})
        self._before: list[tuple[int, bytes]] = []

    def write(self, name: str, writes: Writes) -> None:
        """Write registers of a function; remembers what was there."""
        with Path(f"/proc/{self._pid}/mem").open("r+b", buffering=0) as memory:
            for offset, new in writes.items():
                memory.seek(self._at[name] + offset)
                self._before.append((self._at[name] + offset, memory.read(len(new))))
                memory.seek(self._at[name] + offset)
                memory.write(new)

    def restore(self) -> None:
        """Whatever was written is as it was."""
        with Path(f"/proc/{self._pid}/mem").open("r+b", buffering=0) as memory:
            for at, old in reversed(self._before):
                memory.seek(at)
                memory.write(old)
        self._before.clear()


def process(word: str) -> int:
    """The one child of this process with ``word`` in its command line."""
    (found,) = [child.pid for child in psutil.Process().children(recursive=True) if any(word in part for part in child.cmdline())]
    return found


def _find(pid: int, headers: Mapping[str, bytes]) -> dict[str, int]:
    found: dict[str, list[int]] = {name: [] for name in headers}
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            match = _MAPPING.match(line)
            if match is None or match.group(3) not in ("", "[heap]"):
                continue
            first, end = int(match.group(1), 16), int(match.group(2), 16)
            if match.group(3) == "" and end - first > _LARGEST:
                continue
            memory.seek(first)
            content = memory.read(end - first)
            for key in {header[:_KEY] for header in headers.values()}:
                at = content.find(key)
                while at >= 0:
                    for name, header in headers.items():
                        if content.startswith(header, at):
                            found[name].append(first + at)
                    at = content.find(key, at + 1)
    for name, places in found.items():
        assert len(places) == 1, f"the configuration space of {name} is at {len(places)} places of QEMU's memory"
    return {name: places[0] for name, places in found.items()}
