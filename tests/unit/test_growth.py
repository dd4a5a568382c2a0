# SPDX-License-Identifier: LGPL-2.1-or-later
"""What placing costs grows with the number of devices and no faster: counted in executed lines, which no busy machine can change."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Callable

import pcinuma
from pcinuma.engine import Request, place
from pcinuma.reason import Outcome
from tests.hosts.build import NVME, Host
from tests.hosts.domains import Domain
from tests.hosts.edits import with_device

SIZES = (16, 60, 120, 240)
OURS = os.path.dirname(pcinuma.__file__)


def _many(count: int) -> tuple[Host, list[str]]:
    """A host with ``count`` drives, half of them on each of two nodes, and their addresses."""
    host, drives = Host().node(0, "0-7").node(1, "8-15"), []
    for node in range(2):
        root = host.rc(f"pci000{node}:00", node=node)
        for number in range((count + 1 - node) // 2):
            address = f"000{node}:{number + 1:02x}:00.0"
            root.port(f"000{node}:00:{number // 8 + 1:02x}.{number % 8}").device(address, NVME)
            drives.append(address)
    return host, drives


def _domain(drives: list[str]) -> bytes:
    domain = Domain().cells("0-1", "2-3").memnode(0, "0").memnode(1, "1")
    for drive in drives:
        domain.hostdev(drive)
    return domain.raw()


def _lines(call: Callable[[], Any]) -> int:
    """How many lines of pcinuma ``call`` executes; what else runs meanwhile (a finaliser of what other tests left) does not count."""
    count = 0

    def local(_frame: Any, event: str, _argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return local

    before = sys.gettrace()
    sys.settrace(lambda frame, *_: local if frame.f_code.co_filename.startswith(OURS) else None)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def _calls(count: int, folder: Path) -> dict[str, Callable[[], Any]]:
    host, drives = _many(count)
    root = host.write(folder / str(count))
    fresh = _domain(drives)
    placed = place(fresh, Request(root))
    assert placed.outcome is Outcome.PLACED and all(line.placed for line in placed.devices)
    grown = place(_domain(drives[::2]), Request(root)).xml
    for drive in drives[1::2]:
        grown = with_device(drive)(grown)
    return {
        "afresh from raw XML": lambda: place(fresh, Request(root)),
        "once more": lambda: place(placed.xml, Request(root)),
        "with as many devices again": lambda: place(grown, Request(root)),
        "replanned": lambda: place(placed.xml, Request(root, replan=True)),
    }


def test_each_device_costs_the_same_whatever_their_number(tmp_path: Path) -> None:
    costs: dict[str, list[float]] = {}
    for count in SIZES:
        for what, call in _calls(count, tmp_path).items():
            call()  # what is remembered of attributes depends on the tests before this one, and a full memory is emptied whole
            costs.setdefault(what, []).append(min(_lines(call), _lines(call)) / count)
    for what, cost in costs.items():
        assert max(cost) == cost[0], (what, cost)  # what there is beside the devices is shared by more of them
        assert cost[-1] < 1.02 * cost[1], (what, cost)
