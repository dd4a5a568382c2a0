# SPDX-License-Identifier: LGPL-2.1-or-later
"""Faults of links and ACS on the virtual host: what is planted, and what ``pcinuma paths`` and ``pcinuma check`` must make of it.

One more fault is one more line in :data:`LINKS` or :data:`PAIRS`. All are planted at once, on different devices, and taken back before a
guest starts. QEMU 7.2 has no device whose link does less than it can, and its switch ports have no ACS: so the registers are written in
QEMU's memory (:mod:`tests.lab.registers`). From there on everything is real: the kernel reads the device's configuration space.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pcinuma.lab import jobs
from tests.lab import registers
from tests.lab.registers import Registers, Writes

PLANT, RESTORE = "registers: plant", "registers: restore"
_ACS, _ATS = 0x000D, 0x000F
REDIRECT, DIRECT_TRANSLATED = 1 << 2, 1 << 6
ON, OFF = 1 << 15, 0


class Link(NamedTuple):
    """``can`` and ``does``: GT/s and lanes. ``told``: the sentence that ``paths`` has for it."""

    device: str
    can: tuple[float, int]
    does: tuple[float, int]
    told: str


class Pair(NamedTuple):
    """Two devices below one switch. ``acs``: the control register of both ports above them, None: they have no ACS. ``ats``: of both
    devices. What the host's own drivers are told (``host``) and a guest that has both (``guest``): the verdict, and words of its reason
    and of the advice; the reason's ``{ports}`` are both ports."""

    devices: tuple[str, str]
    acs: int
    ats: int
    host: tuple[str, str, str]
    guest: tuple[str, str, str]


LINKS = (
    Link("disk0", can=(16.0, 4), does=(16.0, 1), told="fewer lanes than both ends have"),
    Link("other-nic1", can=(16.0, 8), does=(8.0, 8), told="slower than both ends can"),
)
"""On devices directly below a root port, which can 16 GT/s on 32 lanes; a switch's port of QEMU's can 2.5 GT/s."""
PAIRS = (
    Pair(
        ("gpu0", "nic0"),
        acs=REDIRECT,
        ats=ON,
        host=("redirected", "ACS sends requests up to the root port at {ports}", "this gives up the isolation"),
        guest=("redirected", "ACS at {ports} sends translated requests up, too", "pci=config_acs="),
    ),
    Pair(
        ("gpu1", "nic1"),
        acs=0,
        ats=ON,
        host=("redirected", "the IOMMU translates the addresses that they use", "iommu=pt"),
        guest=("direct", "the devices have addresses translated (ATS)", ""),
    ),
)
UNPLANTED = Pair(
    ("gpu0", "nic0"), 0, OFF, ("redirected", "the IOMMU translates", "iommu=pt"), ("redirected", "without ATS in {devices}", "")
)
"""Before: no ACS in the ports and no ATS in the devices."""

JOB = """
port_of() { cd -P "/sys/bus/pci/devices/$1/.."; port=${PWD##*/}; cd /; }
for at in %(devices)s; do
    cat /sys/bus/pci/devices/$at/config >/job/out/config-$at
    port_of $at
    cat /sys/bus/pci/devices/$port/config >/job/out/config-port-of-$at
done
# The command, by its own entry point: an interpreter and its imports for each question would cost three seconds each.
/usr/bin/python3 -I - <<'TEXT' || give_up "pcinuma cannot be asked"
import contextlib, pathlib, sys, time

sys.path.insert(0, "/usr/share/pcinuma")
from pcinuma.cli import main


def ask(file, *words):
    with open("/job/out/" + file, "w") as out, open("/job/out/" + file + ".err", "w") as errors:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            main(list(words))


def hands(step, file):
    print("@@ " + step, flush=True)
    end = time.monotonic() + 600
    while not pathlib.Path("/job/" + file).exists():
        assert time.monotonic() < end, "nobody has done that: " + step
        time.sleep(0.05)


ask("paths-unplanted.json", "paths", "--json")
ask("guest-paths-unplanted.json", "paths", "%(vm)s", "--json")
ask("check-unplanted", "check")
hands("%(plant)s", "planted")
for at in "%(linked)s".split():
    speed = pathlib.Path("/sys/bus/pci/devices", at, "max_link_speed").read_text()
    pathlib.Path("/job/out/max-link-speed-" + at).write_text(speed)
ask("paths", "paths")
ask("paths.json", "paths", "--json")
ask("guest-paths", "paths", "%(vm)s")
ask("guest-paths.json", "paths", "%(vm)s", "--json")
ask("check", "check")
hands("%(restore)s", "restored")
TEXT
for at in %(devices)s; do
    cmp -s /sys/bus/pci/devices/$at/config /job/out/config-$at || give_up "the registers of $at are not what they were"
done
step "planted faults of links and ACS were looked at"
"""


def job(addresses: dict[str, str]) -> str:
    """The part of the virtual host's job that plants faults and asks; before the guest starts."""
    linked = " ".join(addresses[link.device] for link in LINKS)
    return JOB % {"devices": " ".join(addresses.values()), "linked": linked, "vm": jobs.NAME, "plant": PLANT, "restore": RESTORE}


def hands(scratch: Path, addresses: dict[str, str]) -> Callable[[str], None]:
    """What does as the job's steps say, for a host that runs in ``scratch``."""
    planted: list[Registers] = []

    def step(text: str) -> None:
        if text == PLANT:
            configs = {file.name[len("config-") :]: file.read_bytes() for file in (scratch / "job/out").glob("config-*")}
            planted.append(Registers(registers.process(f"file:{scratch}/console.log"), configs))
            for name, writes in _writes(configs, addresses):
                planted[0].write(name, writes)
            (scratch / "job/planted").touch()
        elif text == RESTORE:
            planted[0].restore()
            (scratch / "job/restored").touch()

    return step


def _writes(configs: dict[str, bytes], addresses: dict[str, str]) -> list[tuple[str, Writes]]:
    found = [(addresses[link.device], registers.links(configs[addresses[link.device]], *link.can, *link.does)) for link in LINKS]
    for pair in PAIRS:
        for at in (addresses[name] for name in pair.devices):
            found.append((at, registers.extended(configs[at], _ATS, 0, pair.ats)))
            port = f"port-of-{at}"
            found.append((port, registers.extended(configs[port], _ACS, REDIRECT | DIRECT_TRANSLATED, pair.acs)))
    return found
