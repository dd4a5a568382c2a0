# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma demo``: two virtual two-socket hosts, alike but for pcinuma; in each ``virsh define`` and ``virsh start``; what the guests see.

The two hosts run side by side: the guest inside is TCG in TCG, and that is where the time goes. Everything lives in one temporary
folder; a kernel package that was fetched goes with it, unless the lab's cache has one already. Whatever ends the demonstration early (a
signal, a machine that failed) ends both hosts at once.

The verdict is that of :mod:`pcinuma.lab.compare`: exit code 0 if the kernel of the guest with pcinuma agrees with the host's in every
device, 1 if it does not or if a machine failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from pcinuma.errors import EXIT_DONE, EXIT_NEGATIVE, PcinumaError, UnusableInput
from pcinuma.lab import (
    LabError,
    compare,
    drawing,
    guest_tree,
    initramfs,
    jobs,
    kernel,
    layout,
    machine,
    nested,
    presets,
    quick,
    virtual_host,
)
from pcinuma.lab.guest_tree import SeenDevice, SeenTree
from pcinuma.lab.presets import Preset
from pcinuma.settings import GroupBy
from pcinuma.show.screen import Screen

GROUP_BY = GroupBy.SWITCH
TIMEOUT = 1500
_MINUTES = "about four minutes"
_MEMORY_FOR_TWO_MIB = 5000


@dataclass(frozen=True)
class Shown:
    """What a virtual host and the guest in it saw, and the guest's live XML."""

    host: SeenTree
    guest: SeenTree
    layout: layout.Layout

    def devices(self, preset: Preset) -> dict[str, Optional[SeenDevice]]:
        """Name -> the device in the guest."""
        names = {str(address): name for name, address in preset.host.addresses().items()}
        found: dict[str, Optional[SeenDevice]] = {}
        for device in self.layout.passthrough:
            found[names[device.source or ""]] = self.guest.at(self.layout.path(device.address))
        return {name: found.get(name) for name in preset.names}


class Progress:
    """One line per step, with the seconds since the beginning. Steps come from two threads."""

    def __init__(self, quiet: bool) -> None:
        self._begin = time.monotonic()
        self._quiet = quiet
        self._lock = threading.Lock()

    def seconds(self) -> float:
        return time.monotonic() - self._begin

    def __call__(self, text: str) -> None:
        if not self._quiet:
            with self._lock:
                print(f"[{self.seconds():5.1f} s] {text}", file=sys.stderr, flush=True)


def main(argv: Optional[list[str]] = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="pcinuma demo", description="what a guest sees without pcinuma and with it, on a virtual host")
    parser.add_argument("--keep", action="store_true", help="end with a shell in the virtual host")
    parser.add_argument("--quick", action="store_true", help="boot only a guest, placed on a server that was written down")
    parser.add_argument("--json", action="store_true", help="print plain data instead of the drawing")
    args = parser.parse_args(argv)
    if args.keep and (args.json or args.quick):
        parser.error("--keep goes with neither --json nor --quick")
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) is not signal.SIG_IGN:  # as below nohup
            signal.signal(ending, signal.default_int_handler)
    try:
        return _run(args)
    except PcinumaError as error:
        print(f"pcinuma demo: {error.sentence()}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("pcinuma demo: stopped", file=sys.stderr)
        return EXIT_NEGATIVE


def missing() -> list[str]:
    """What the demonstration needs and this machine does not have, each with what to install."""
    wanted: list[str] = []
    wanted += missing_for_guest()
    for program in ("libvirtd", "virtlogd", "virsh", "dbus-daemon", "depmod"):
        if not any(Path(folder, program).exists() for folder in ("/usr/bin", "/usr/sbin")):
            wanted.append(f"{program} is not installed below /usr")
    for module in ("libvirt", "lxml", "psutil", "structlog"):
        if importlib.util.find_spec(module) is None or not Path("/usr/bin/python3").exists():
            wanted.append(f"the distribution's Python has no module {module}")
    if not (virtual_host.CHECKOUT / "systemd").is_dir():
        wanted.append(f"{virtual_host.CHECKOUT} is no checkout of pcinuma, and the demonstration installs from one")
    return wanted


def missing_for_guest() -> list[str]:
    """The same for a guest alone."""
    wanted = []
    for need in (machine.binary, initramfs.busybox):
        try:
            need()
        except LabError as error:
            wanted.append(error.sentence())
    return wanted


def _run(args: argparse.Namespace) -> int:
    if args.quick:
        return _run_quick(args)
    if args.keep and not (os.isatty(0) and os.isatty(1)):
        raise UnusableInput("--keep needs a terminal to put the shell on")
    lacking = missing()
    if lacking:
        raise LabError("; ".join(lacking), hint="sudo ./install.sh --demo from a checkout installs what is missing")
    progress = Progress(args.json)
    progress(f"this takes {_MINUTES} where nothing else runs; `pcinuma demo --quick` takes ten seconds{_to_fetch()}")
    screen = Screen.of()
    preset = presets.two_sockets_with_switches()
    with tempfile.TemporaryDirectory(prefix="pcinuma-demo-", dir="/var/tmp") as folder:
        scratch = Path(folder)
        image = kernel.fetch(_cache(scratch))
        accel = machine.accelerator(image)
        progress(f"a stock kernel {image.release}; {'KVM' if accel == 'kvm' else 'no usable KVM: everything is emulated (TCG)'}")
        without, with_it = _both(preset, image, scratch, progress)
        findings = compare.judge(with_it.layout, with_it.host, with_it.guest, _nodes(preset), GROUP_BY)
        answer = _answer(preset, without, with_it, findings, progress.seconds())
        if args.json:
            print(json.dumps(answer, indent=2))
        else:
            print("\n".join(_drawing(preset, without, with_it, findings, screen, progress.seconds())))
        if args.keep:
            from pcinuma.lab import shell

            shell.keep(preset, image, scratch / "kept", progress)
    return EXIT_DONE if not findings else EXIT_NEGATIVE


def _run_quick(args: argparse.Namespace) -> int:
    lacking = missing_for_guest()
    if lacking:
        raise LabError("; ".join(lacking), hint="sudo ./install.sh --demo from a checkout installs what is missing")
    progress = Progress(args.json)
    progress(f"this takes ten seconds where nothing else runs{_to_fetch()}")
    return quick.run(lambda scratch: kernel.fetch(_cache(scratch)), progress, Screen.of(), args.json, progress.seconds)


def _to_fetch() -> str:
    return "" if kernel.kept(kernel.DEFAULT_CACHE) is not None else ", and a kernel package is to be fetched first"


def _cache(scratch: Path) -> Path:
    return kernel.DEFAULT_CACHE if kernel.kept(kernel.DEFAULT_CACHE) is not None else scratch / "kernel"


def _nodes(preset: Preset) -> dict[int, int]:
    return {node: cell for cell, node in preset.cells.items()}


def _both(preset: Preset, image: kernel.Kernel, scratch: Path, progress: Progress) -> tuple[Shown, Shown]:
    """The two hosts, side by side where there are the memory and the processors for it."""

    def one(name: str, job: str, nice: int) -> Shown:
        (scratch / name).mkdir()
        return show(preset, image, scratch / name, job, lambda step: progress(f"{name:15}  {step}"), nice, unwanted)

    # The one with more to do is served first, so that both end at about the same time.
    wanted = (("without pcinuma", jobs.without_pcinuma(), 4), ("with pcinuma", jobs.with_pcinuma(), 0))
    workers = 2 if _available_mib() >= _MEMORY_FOR_TWO_MIB else 1
    unwanted = threading.Event()
    with ThreadPoolExecutor(workers) as pool:
        runs = [pool.submit(one, *what) for what in wanted]
        try:
            ended, _ = wait(runs, return_when=FIRST_EXCEPTION)
            first, second = [run.result() for run in runs if run in ended]
            return first, second
        finally:
            unwanted.set()
            for run in runs:
                run.cancel()


def _available_mib() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    return 0


def show(preset: Preset, image: kernel.Kernel, scratch: Path, job: str, step: Any, nice: int, unwanted: threading.Event) -> Shown:
    """Run ``job``, which starts the guest, on the preset's host."""
    xml = nested.domain(jobs.NAME, preset.slots, None, group_by=GROUP_BY.value)
    files = {f"{jobs.NAME}.xml": xml, "images/nested.cpio": nested.image(image)}
    done = virtual_host.run(preset.host, job, image, scratch, files=files, timeout=TIMEOUT, progress=step, nice=nice, unwanted=unwanted)
    done.require()
    return Shown(
        guest_tree.parse(done.out["host-tree"]),
        guest_tree.parse(done.out[f"{jobs.NAME}.console"]),
        layout.read(done.out["live.xml"].encode()),
    )


def _host_devices(preset: Preset, host: SeenTree) -> dict[str, Optional[SeenDevice]]:
    return {name: host.by_address(preset.host.addresses()[name]) for name in preset.names}


def _facts(preset: Preset, without: Shown, with_it: Shown) -> list[dict[str, object]]:
    names = {str(address): name for name, address in preset.host.addresses().items()}
    pairs = {names[item.source]: item for item in compare.pair(with_it.layout, with_it.host, with_it.guest)}
    return drawing.facts(preset.names, pairs, without.devices(preset))


def _answer(preset: Preset, without: Shown, with_it: Shown, findings: list[compare.Finding], seconds: float) -> dict[str, object]:
    return {
        "group_by": GROUP_BY.value,
        "devices": _facts(preset, without, with_it),
        "findings": [str(finding) for finding in findings],
        "seconds": round(seconds, 1),
    }


def _drawing(preset: Preset, without: Shown, with_it: Shown, findings: list[compare.Finding], screen: Screen, seconds: float) -> list[str]:
    trees = [
        drawing.tree("HOST", with_it.host, _host_devices(preset, with_it.host), screen),
        drawing.tree("GUEST WITHOUT PCINUMA", without.guest, without.devices(preset), screen),
        drawing.tree("GUEST WITH PCINUMA", with_it.guest, with_it.devices(preset), screen),
    ]
    verdict = drawing.verdict(findings, screen)
    return ["", *drawing.columns(trees), "", *drawing.table(_facts(preset, without, with_it), screen), "", f"{verdict} ({seconds:.0f} s)."]
