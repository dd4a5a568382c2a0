# SPDX-License-Identifier: LGPL-2.1-or-later
"""Prints what pcinuma costs, each figure with its baseline and its limit; ``--check`` makes a broken limit an error.

Processes are started in turn with their baseline, and the figure is the median of the pairs' ratios: what makes a machine slow for a while
slows both. Figures of one kind are taken in turn, too. Needs root and libvirt for the last parts (starts after a define, 500 domains on a
private libvirtd), which ``--quick`` leaves out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple, Optional

from pcinuma import engine
from pcinuma.engine import Request
from pcinuma.settings import GroupBy
from pcinuma.varlink import server
from tests.bench import starts
from tests.bench.domains import Sweep, many_domains
from tests.hosts.domains import Domain, two_cells
from tests.hosts.machines import eight_gpus
from tests.unit.daemon_process import DaemonProcess, write_state

HOOK = Path(__file__).parents[2] / "hook/qemu"
PYTHON = "/usr/bin/python3"
NOTHING_LIMIT, PREPARE_LIMIT = 2.0, 1.5
PLACE_LIMIT_MS, PLACE_BLOCK = 1.0, 20
CELLS_LIMIT_MS = 0.5
DOMAINS, SWEEP_LIMIT_S = 500, 10.0
MUTE_LIMIT = 1.05
MEMORY_LIMIT_MB = 60.0


class Figure(NamedTuple):
    """One line of the result: ``value`` in ``unit`` may be at most ``limit``."""

    what: str
    value: float
    unit: str
    limit: Optional[float]
    detail: str = ""

    def line(self) -> str:
        verdict = "" if self.limit is None else f"  (at most {self.limit:g}: {'ok' if self.value <= self.limit else 'MISSED'})"
        return f"{self.what:<58}{self.value:8.2f} {self.unit:<3}{verdict}  {self.detail}".rstrip()


def sixteen_devices() -> Domain:
    """All eight GPUs and eight NICs of :func:`~tests.hosts.machines.eight_gpus`."""
    domain = two_cells()
    for switch in range(4):
        base = 0x20 + 0x30 * switch
        for bus in range(base + 4, base + 8):
            domain.hostdev(f"{bus:02x}:00.0")
    return domain


def run_once(argv: list[str], given: Path) -> float:
    """Milliseconds from the start of a process to its end."""
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, str(given), os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
    ]
    began = time.perf_counter()
    child = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions)
    _, status = os.waitpid(child, 0)
    took = (time.perf_counter() - began) * 1000
    if status != 0:
        raise RuntimeError(f"{argv}: status {status}")
    return took


def beside(what: str, argv: list[str], baseline: list[str], given: Path, rounds: int, limit: float) -> Figure:
    """How many times as long as ``baseline`` ``argv`` takes, by runs in turn; the details are milliseconds."""
    for words in (argv, baseline):
        run_once(words, given)
    pairs = [(run_once(argv, given), run_once(baseline, given)) for _ in range(rounds)]
    took, least = (statistics.median(pair[which] for pair in pairs) for which in (0, 1))
    best, best_least = (min(pair[which] for pair in pairs) for which in (0, 1))
    detail = f"{took:.2f} / {least:.2f} ms; best {best:.2f} / {best_least:.2f} = {best / best_least:.2f}"
    return Figure(what, statistics.median(one / other for one, other in pairs), "x", limit, detail)


def hook_figures(base: Path, host: Path, rounds: int) -> list[Figure]:
    """The hook where there is nothing to do, and at a start of a placed and of an unplaced domain."""
    unplaced, placed = base / "unplaced.xml", base / "placed.xml"
    unplaced.write_bytes(sixteen_devices().formatted())
    placed.write_bytes(engine.place(unplaced.read_bytes(), Request(host)).xml)
    nothing, shell = [str(HOOK), "vm", "started", "begin", "-"], ["/bin/sh", "-c", ":"]
    figures = [beside("hook, nothing to do / sh -c :", nothing, shell, placed, 2 * rounds, NOTHING_LIMIT)]
    write_state(base / "state")
    with DaemonProcess(base, host) as daemon:
        os.environ["PCINUMA_SOCKET"] = str(daemon.socket)
        for name, given in (("placed", placed), ("not placed", unplaced)):
            what = f"hook, prepare, 16 devices {name} / python3 -IS -c pass"
            prepare, python = [str(HOOK), "vm", "prepare", "begin", "-"], [PYTHON, "-IS", "-c", "pass"]
            figures.append(beside(what, prepare, python, given, rounds, PREPARE_LIMIT))
    return figures


def place_figures(host: Path, rounds: int) -> list[Figure]:
    """The engine, from XML bytes to XML bytes, with live reads of the host's files.

    The limit is for a machine on which KubeVirt's planner, in Go, takes 0.57 ms from XML to XML for these devices in a domain with nothing
    else in it.
    """
    xml = sixteen_devices().formatted()
    inputs: dict[str, tuple[bytes, Request]] = {}
    for grouping in GroupBy:
        request = Request(host, group_by=grouping)
        inputs[f"place, 16 devices, {grouping.value}"] = xml, request
        inputs[f"place, 16 devices, {grouping.value}, again"] = engine.place(xml, request).xml, request
    times: dict[str, list[float]] = {what: [] for what in inputs}
    for _ in range(rounds // PLACE_BLOCK):
        for what, (given, request) in inputs.items():
            for _ in range(PLACE_BLOCK):
                began = time.perf_counter()
                engine.place(given, request)
                times[what].append((time.perf_counter() - began) * 1000)
    return [Figure(what, statistics.median(took), "ms", PLACE_LIMIT_MS, f"best {min(took):.2f} ms") for what, took in times.items()]


def cells_figures(host: Path, rounds: int) -> list[Figure]:
    """What it costs to give a guest cells, beside the same guest with cells of its own; and what it costs who asks for none."""
    flat = sixteen_devices()
    flat.cell_cpus, flat.memnodes = [], []
    flat.says(vcpu="<vcpu placement='static'>16</vcpu>")
    own, bare = sixteen_devices().formatted(), flat.formatted()
    inputs = (own, Request(host)), (bare, Request(host, cells=True)), (bare, Request(host))
    times: list[list[float]] = [[], [], []]
    for _ in range(rounds):
        for (given, request), took in zip(inputs, times):
            began = time.perf_counter()
            engine.place(given, request)
            took.append((time.perf_counter() - began) * 1000)
    more = statistics.median(with_cells - without for without, with_cells in zip(times[0], times[1]))
    detail = f"best {min(times[1]):.2f} / {min(times[0]):.2f} ms"
    return [
        Figure("cells for a guest with 16 devices, beside cells of its own", more, "ms", CELLS_LIMIT_MS, detail),
        Figure("a guest without cells that nobody asks any for", statistics.median(times[2]), "ms", PLACE_LIMIT_MS),
    ]


def mute_figure(base: Path, rounds: int) -> Figure:
    """What a daemon that accepts and never answers costs a start."""
    given = base / "mute.xml"
    given.write_bytes(sixteen_devices().formatted())
    listener = server.listen(base / "mute")
    os.environ["PCINUMA_SOCKET"] = str(base / "mute")
    prepare, second = [str(HOOK), "vm", "prepare", "begin", "-"], [PYTHON, "-IS", "-c", "import time; time.sleep(1)"]
    figure = beside("hook, a daemon that never answers / python3 that sleeps 1 s", prepare, second, given, rounds, MUTE_LIMIT)
    listener.close()
    return figure


def start_figures(base: Path, rounds: int) -> list[Figure]:
    """The race between the daemon and whoever starts what he has just defined."""
    measured = starts.starts(rounds, base)
    ratio, detail = starts.soon(measured)
    return [
        Figure("define to placed / the define itself", ratio, "x", None, detail),
        Figure("starts 5 ms after the define that boot placed", 100 * measured.won / measured.tried, "%", None, f"of {measured.tried}"),
    ]


def sweep_figures(sweep: Sweep) -> list[Figure]:
    """The daemon's start with many domains."""
    return [
        Figure(f"{sweep.domains} domains defined anew at the daemon's start", sweep.placing, "s", SWEEP_LIMIT_S),
        Figure(f"{sweep.domains} placed domains looked at at the daemon's start", sweep.looking, "s", SWEEP_LIMIT_S),
        Figure("daemon's memory after that", sweep.resident / 1e6, "MB", MEMORY_LIMIT_MB),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave out what needs libvirt")
    parser.add_argument("--check", action="store_true", help="exit 1 if a limit is missed")
    parser.add_argument("--rounds", type=int, default=120, help="how often a process is started (default: %(default)s)")
    options = parser.parse_args()
    figures: list[Figure] = []
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    if load > processors / 2:
        print(f"this machine is busy (load {load:.1f} on {processors} processors): look at the best values, not at the medians")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        host = eight_gpus().write(base / "host")
        alone = (
            lambda: hook_figures(base, host, options.rounds),
            lambda: [mute_figure(base, options.rounds // 10)],
            lambda: place_figures(host, 10 * options.rounds),
            lambda: cells_figures(host, 10 * options.rounds),
        )
        for part in alone:
            for figure in part():
                figures.append(figure)
                print(figure.line(), flush=True)
        if not options.quick:
            for part in (lambda: start_figures(base, options.rounds // 3), lambda: sweep_figures(many_domains(DOMAINS, base))):
                for figure in part():
                    figures.append(figure)
                    print(figure.line(), flush=True)
    missed = [figure for figure in figures if figure.limit is not None and figure.value > figure.limit]
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    raise SystemExit(main())
