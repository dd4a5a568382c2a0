# SPDX-License-Identifier: LGPL-2.1-or-later
"""Many domains on a real libvirtd, and how long the daemon needs for all of them when it starts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from tests.hosts.small import GPU_0, GPU_1, NIC_0, NIC_1, small_host
from tests.libvirt.domains import guest
from tests.libvirt.harness import PrivateLibvirt
from tests.libvirt.running_daemon import RunningDaemon
from tests.unit.daemon_process import write_state
from tests.waiting import until


class Sweep(NamedTuple):
    """Seconds from the daemon's start until every domain was placed, and until it had looked at all of them a second time; bytes."""

    domains: int
    placing: float
    looking: float
    resident: int


def many_domains(count: int, base: Path) -> Sweep:
    """Define ``count`` domains with four passthrough devices each, and start the daemon twice."""
    with PrivateLibvirt(host_tree=small_host(base / "small")) as host:
        connection = host.connect()
        for number in range(count):
            connection.defineXML(guest(f"vm{number:03}", (GPU_0, NIC_0, GPU_1, NIC_1)))
        host.path("/var/lib/pcinuma").mkdir(parents=True, exist_ok=True)
        write_state(host.path("/var/lib/pcinuma"))
        daemon = RunningDaemon(host)
        began = time.monotonic()
        with daemon:
            until(lambda: _placed(daemon) == count, "all domains to be placed", 120, 0.05)
            placing = time.monotonic() - began
        began = time.monotonic()
        with RunningDaemon(host) as daemon:
            until(lambda: daemon.log().count("looked at all domains") >= 2, "all domains to be looked at", 120, 0.05)
            looking = time.monotonic() - began
            assert daemon.process is not None
            resident = int(daemon.process.memory_info().rss)
    return Sweep(count, placing, looking, resident)


def _placed(daemon: RunningDaemon) -> int:
    return sum(1 for entry in daemon.call("Status")["domains"] if entry["outcome"] == "placed")
