# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the proxy costs: calls per second, a stream's throughput, and the time that it adds to a start, each beside the direct connection.

``python3 -m tests.bench.proxy [--quick] [--check]``; needs root and libvirt. Slices of both kinds are run in turn, so that a busy machine
slows both; a ratio is the median of the pairs' ratios. ``--check`` makes a broken limit an error.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Callable, NamedTuple

import libvirt

from tests.hosts.domains import two_cells
from tests.hosts.machines import eight_gpus
from tests.libvirt.harness import PrivateLibvirt
from tests.libvirt.running_daemon import RunningDaemon
from tests.libvirt.running_proxy import RunningProxy

CALLS_LEAST, STREAM_LEAST, START_MOST_MS = 0.8, 0.7, 10.0
POOL = "<pool type='dir'><name>images</name><target><path>/run/images</path></target></pool>"
PACKET = 262120  # what libvirt puts into one message of a stream


class Figure(NamedTuple):
    """One line of the result; ``kept`` says whether its limit is."""

    what: str
    value: str
    limit: str
    kept: bool
    detail: str

    def line(self) -> str:
        return f"{self.what:<48}{self.value:>10}  ({self.limit}: {'ok' if self.kept else 'MISSED'})  {self.detail}"


def sixteen_devices(name: str) -> str:
    """The XML of a domain with eight GPUs and eight NICs on the default root."""
    domain = replace(two_cells(), name=name)
    for switch in range(4):
        base = 0x20 + 0x30 * switch
        for bus in range(base + 4, base + 8):
            domain.hostdev(f"{bus:02x}:00.0")
    return re.sub("<uuid>.*</uuid>", f"<uuid>{uuid.uuid4()}</uuid>", domain.formatted().decode())


def pairs(direct: Callable[[], float], through: Callable[[], float], rounds: int) -> list[tuple[float, float]]:
    """Seconds of both, run in turn, each first in every other round."""
    direct(), through()
    found = []
    for number in range(rounds):
        if number % 2:
            first = direct()
            found.append((first, through()))
        else:
            second = through()
            found.append((direct(), second))
    return found


def calls(host: PrivateLibvirt, proxy: RunningProxy, rounds: int) -> Figure:
    """XMLDesc of a domain with sixteen devices, one client, one call after the other."""

    def slice_of(domain: libvirt.virDomain) -> Callable[[], float]:
        def run() -> float:
            began = time.perf_counter()
            for _ in range(200):
                domain.XMLDesc()
            return (time.perf_counter() - began) / 200

        return run

    ends = [libvirt.open(uri) for uri in (host.uri, proxy.uri)]
    measured = pairs(*(slice_of(end.lookupByName("still")) for end in ends), rounds)
    ratio = statistics.median(direct / through for direct, through in measured)
    direct, through = (statistics.median(column) * 1e6 for column in zip(*measured))
    best = min(pair[0] for pair in measured) / min(pair[1] for pair in measured)
    detail = f"{direct:.0f} / {through:.0f} us a call; best of both {best:.2f}"
    return Figure("calls through the proxy / direct (XMLDesc)", f"{ratio:.2f}", f"at least {CALLS_LEAST}", ratio >= CALLS_LEAST, detail)


def streams(host: PrivateLibvirt, proxy: RunningProxy, rounds: int, size: int) -> list[Figure]:
    """A volume up and down."""
    block = os.urandom(PACKET)
    direct, through = (libvirt.open(uri) for uri in (host.uri, proxy.uri))
    direct.storagePoolLookupByName("images").createXML(f"<volume><name>data</name><capacity>{size}</capacity></volume>")

    def up(end: libvirt.virConnect) -> Callable[[], float]:
        def run() -> float:
            stream = end.newStream()
            end.storagePoolLookupByName("images").storageVolLookupByName("data").upload(stream, 0, size)
            began = time.perf_counter()
            left = size
            while left:
                left -= stream.send(block[:left])
            stream.finish()
            return time.perf_counter() - began

        return run

    def down(end: libvirt.virConnect) -> Callable[[], float]:
        def run() -> float:
            stream = end.newStream()
            end.storagePoolLookupByName("images").storageVolLookupByName("data").download(stream, 0, size)
            began = time.perf_counter()
            while stream.recv(PACKET):
                pass
            stream.finish()
            return time.perf_counter() - began

        return run

    figures = []
    for what, action in (("upload", up), ("download", down)):
        measured = pairs(action(direct), action(through), rounds)
        ratio = statistics.median(one / other for one, other in measured)
        rates = [size / statistics.median(column) / 1e6 for column in zip(*measured)]
        detail = f"{rates[0]:.0f} / {rates[1]:.0f} MB/s"
        limit = f"at least {STREAM_LEAST}"
        figures.append(Figure(f"{what} through the proxy / direct", f"{ratio:.2f}", limit, ratio >= STREAM_LEAST, detail))
    return figures


def starts(host: PrivateLibvirt, proxy: RunningProxy, rounds: int) -> list[Figure]:
    """A start with sixteen devices, until libvirt refuses it for want of VFIO: what the proxy adds does not depend on what follows."""
    direct, through = (libvirt.open(uri) for uri in (host.uri, proxy.uri))

    def start(end: libvirt.virConnect, wait: float) -> Callable[[], float]:
        def run() -> float:
            domain = end.defineXML(sixteen_devices(f"vm-{uuid.uuid4()}"))
            time.sleep(wait)
            began = time.perf_counter()
            try:
                domain.create()
            except libvirt.libvirtError:
                pass
            took = time.perf_counter() - began
            domain.undefine()
            return took

        return run

    def create(end: libvirt.virConnect, _wait: float) -> Callable[[], float]:
        def run() -> float:
            xml = sixteen_devices(f"vm-{uuid.uuid4()}")
            began = time.perf_counter()
            try:
                end.createXML(xml)
            except libvirt.libvirtError:
                pass
            return time.perf_counter() - began

        return run

    figures = []
    for what, action, wait in (
        ("defined and started in one breath", start, 0.0),
        ("defined, placed, and started later", start, 0.1),
        ("transient", create, 0.0),
    ):
        measured = pairs(action(direct, wait), action(through, wait), rounds)
        added = statistics.median(other - one for one, other in measured) * 1000
        one, other = (statistics.median(column) * 1000 for column in zip(*measured))
        limit = f"at most {START_MOST_MS:g} ms"
        figures.append(Figure(f"added to a start, {what}", f"{added:.1f} ms", limit, added <= START_MOST_MS, f"{one:.1f} / {other:.1f} ms"))
    return figures


def connections(host: PrivateLibvirt, proxy: RunningProxy, rounds: int) -> str:
    """Opening a connection, and the memory of one."""

    def opening(uri: str) -> Callable[[], float]:
        def run() -> float:
            began = time.perf_counter()
            connection = libvirt.open(uri)
            took = time.perf_counter() - began
            connection.close()
            return took

        return run

    one, other = (statistics.median(column) * 1000 for column in zip(*pairs(opening(host.uri), opening(proxy.uri), rounds)))
    held = [libvirt.open(proxy.uri) for _ in range(5)]
    memory = statistics.median(relay.memory_full_info().uss for relay in proxy.relays()) / 1e6
    del held
    return f"opening a connection: {one:.1f} ms direct, {other:.1f} ms through the proxy; {memory:.1f} MB of its own for each"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.bench.proxy", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--check", action="store_true", help="exit 1 if a limit is not kept")
    arguments = parser.parse_args()
    rounds = 10 if arguments.quick else 40
    with tempfile.TemporaryDirectory(prefix="pcinuma-bench-") as folder:
        tree = eight_gpus().write(Path(folder))
        with PrivateLibvirt(host_tree=tree) as host, RunningDaemon(host), RunningProxy(host) as proxy:
            host.path("/run/images").mkdir()
            direct = host.connect()
            direct.storagePoolDefineXML(POOL).create()
            direct.defineXML(sixteen_devices("still"))
            time.sleep(0.5)
            figures = [calls(host, proxy, rounds)]
            figures += streams(host, proxy, max(4, rounds // 5), (64 if arguments.quick else 256) << 20)
            figures += starts(host, proxy, rounds)
            for figure in figures:
                print(figure.line())
            print(connections(host, proxy, rounds))
    return 1 if arguments.check and not all(figure.kept for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
