# SPDX-License-Identifier: LGPL-2.1-or-later
"""The largest domains that the bus numbers allow: one drive more no longer fits.

Either all drives of a node are on one root complex (some 250 drives), or each is on one of its own, of which every one takes bus numbers in
reserve as far as there are any (125). QEMU needs minutes for hundreds of ports: its time to map a BAR grows with their number.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pcinuma.engine import Request, place
from pcinuma.lab.endpoints import Endpoint
from pcinuma.lab.kernel import Kernel
from pcinuma.report import Result
from pcinuma.settings import GroupBy
from tests.guest.boots import Booted, boot
from tests.guest.handmade import plain
from tests.hosts.machines import crowd

CELLS = {0: 0, 1: 1}
ON_A_NODE = 126


@dataclass(frozen=True)
class Drives:
    """A host below ``root``, and its drives, alternately of both nodes."""

    root: Path
    sources: tuple[str, ...]

    @classmethod
    def on_two_complexes(cls, folder: Path) -> Drives:
        sources = tuple(f"{number % 2:04x}:{1 + number // 2:02x}:00.0" for number in range(2 * ON_A_NODE))
        return cls(crowd(ON_A_NODE, 1, 2).write(folder), sources)

    @classmethod
    def each_on_its_own_complex(cls, folder: Path, count: int) -> Drives:
        sources = tuple(f"{number % 2 * (count // 2) + number // 2:04x}:01:00.0" for number in range(count))
        return cls(crowd(1, count // 2, 2).write(folder), sources)

    def place(self, devices: int, group_by: GroupBy) -> Result:
        """The first so many of them passed through to a guest that nobody has formatted yet."""
        return place(plain(self.sources[:devices], CELLS, addresses=False), Request(root=self.root, group_by=group_by))


def fits(result: Result, group_by: GroupBy) -> bool:
    return result.group_by is group_by and all(device.placed for device in result.devices)


def largest(drives: Drives, group_by: GroupBy) -> int:
    """The number of drives above which one is not placed."""
    low, high = 1, len(drives.sources)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(drives.place(middle, group_by), group_by) else (low, middle - 1)
    return low


def start(drives: Drives, kernel: Kernel, scratch: Path, firmware: str = "seabios") -> Booted:
    """Boot the largest domain."""
    result = drives.place(largest(drives, GroupBy.ROOT_COMPLEX), GroupBy.ROOT_COMPLEX)
    return boot(result.xml, drives.root, kernel, scratch, firmware=firmware, kind=Endpoint.TINY)
