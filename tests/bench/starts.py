# SPDX-License-Identifier: LGPL-2.1-or-later
"""How soon after a define a domain is placed, and how many starts shortly after a define are won by that."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import NamedTuple

import libvirt

from tests.hosts.small import GPU_0, GPU_1, NIC_0, NIC_1
from tests.libvirt.domains import cells, guest
from tests.libvirt.events import UPDATED, Listener
from tests.libvirt.hooked import hooked_host
from tests.libvirt.running_daemon import RunningDaemon
from tests.waiting import until

ALL = (GPU_0, NIC_0, GPU_1, NIC_1)
PLACED = {GPU_0: 0, NIC_0: 0, GPU_1: 1, NIC_1: 1}
RECORDER = '#!/bin/sh\n[ "$2" = prepare ] || exit 0\ncat >"/run/seen-$1.part"\nmv "/run/seen-$1.part" "/run/seen-$1"\n'


class Starts(NamedTuple):
    """``define``, ``placed``: seconds that each define took, and from its return to the placed definition. ``won``: of the ``tried`` starts
    5 ms after the define, those that booted placed."""

    define: list[float]
    placed: list[float]
    won: int
    tried: int


def starts(rounds: int, base: Path) -> Starts:
    """Define domains on a private libvirtd with daemon and hook, and as many again that are started 5 ms later."""
    define, placed, won = [], [], 0
    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # it would print each start that fails
    folder = base / "starts"
    folder.mkdir()
    with hooked_host(folder, RECORDER) as host, RunningDaemon(host), Listener(host) as listener:
        connection = host.connect()
        for number in range(rounds):
            name = f"measured-{number}"
            began = time.perf_counter()
            connection.defineXML(guest(name, ALL))
            define.append(time.perf_counter() - began)
            returned = time.monotonic()
            placed.append(until(lambda name=name: listener.first(name, UPDATED), f"{name} to be placed", interval=0.0005) - returned)
        for number in range(rounds):
            domain = connection.defineXML(guest(f"raced-{number}", ALL))
            time.sleep(0.005)
            try:
                domain.create()
            except libvirt.libvirtError:
                pass  # as expected: there is no VFIO here
            won += cells(host.path(f"/run/seen-raced-{number}").read_text()) == PLACED
    return Starts(define, placed, won, rounds)


def soon(measured: Starts) -> tuple[float, str]:
    """How many times as long as the define itself it takes from its return to the placed definition; and the milliseconds of both."""
    ratio = statistics.median(one / other for one, other in zip(measured.placed, measured.define))
    took, define = (statistics.median(times) * 1000 for times in (measured.placed, measured.define))
    return ratio, f"{took:.1f} / {define:.1f} ms; worst {max(measured.placed) * 1000:.1f} ms"
