# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma explain``: where each device is on the host, where the guest has it, and why; and what other groupings would change."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Sequence

from pcinuma.cli.connect import host_root
from pcinuma.cli.sources import DomainSource, read_source
from pcinuma.cli.verify import Check, check_devices
from pcinuma.domain.xml import Document
from pcinuma.engine import DeviceReport, Result, place
from pcinuma.errors import EXIT_DONE
from pcinuma.host.topology import HostDevice, Topology, read_topology
from pcinuma.model import AttachedAs
from pcinuma.placement.mapping import cells_by_memory
from pcinuma.printable import command, printable
from pcinuma.reason import Outcome, Reason
from pcinuma.settings import GroupBy
from pcinuma.show.describe import Describer
from pcinuma.show.distance import Distance
from pcinuma.show.groupings import LINK_BELOW_SWITCH, Grouping, Shown, groupings, shown_by, trade
from pcinuma.show.guest import SWITCH, Guest
from pcinuma.show.links import links_sentence
from pcinuma.show.progress import Progress
from pcinuma.show.screen import Screen
from pcinuma.show.trees import device_state
from pcinuma.show.words import fell_back, names, placed_of, reasons, sentence, why

NAME = "explain"
HELP = "say for each passthrough device where it is, where the guest has it, and why"
EPILOG = """\
examples:
  pcinuma explain vm1                   the definition as it would start next
  pcinuma explain vm.xml                a domain from a file
  pcinuma explain vm.xml --root DIR     on a captured host (see pcinuma capture)

The last part compares the three groupings (group-by in the domain's metadata or in pcinuma.conf). Distances are those of NCCL and
nvidia-smi topo: PIX under one switch, PXB under several, PHB under one root complex, NODE, SYS.
"""
_SHOWN_PAIRS = 8
_OUTCOMES = {
    Outcome.PLACED: "pcinuma would change the definition to this",
    Outcome.UNCHANGED: "the definition stays as it is",
}
_TAKE_A_CELL_OUT = "A cell that an expander bus of pcinuma belongs to cannot be taken out of the domain (libvirt refuses it):"


@dataclass(frozen=True)
class Explained:
    """Everything that explain says. ``result``: what would start; ``layout``: what that shows the guest."""

    source: DomainSource
    result: Result
    guest: Guest
    topology: Topology
    layout: Shown
    groupings: tuple[Grouping, ...]

    def host(self, report: DeviceReport) -> Optional[HostDevice]:
        """The host device behind a device of the report."""
        return next((device for device in self.topology.devices if str(device.address) == report.device), None)

    def cell_by(self, report: DeviceReport) -> Optional[str]:
        """What in the domain's XML makes the cell stand for the node: memnode or memory, or pinned vCPUs: vcpupin, or vcpu's cpuset (or
        nearest)."""
        if report.guest_cell is None or report.host_node is None:
            return None
        if report.reason is Reason.NEAREST:
            return "nearest"
        domain = self.guest.domain
        if cells_by_memory(domain, report.host_node) != {report.guest_cell}:
            pinned = {pin.get("vcpu") for pin in Document(self.source.xml).root.iterfind("cputune/vcpupin")}
            return "vcpupin" if any(str(vcpu) in pinned for vcpu in domain.cells[report.guest_cell]) else "vcpu"
        return "memnode" if any(cell == report.guest_cell for cell, _ in domain.memnodes) else "memory"

    def as_json(self) -> dict[str, Any]:
        """Plain data: the report of ``place``, and beside it what only explain knows."""
        report = self.result.report()
        for device, plain in zip(self.result.devices, report["devices"]):
            host = self.host(device)
            plain["cell_by"] = self.cell_by(device)
            plain["sentence"] = device.reason.sentence if device.reason else None
            plain["host"] = None if host is None else host.as_json()
            plain["guest_path"] = [f"{c.index}: {c.model}" for c in self.path(device)]
        return {
            "domain": self.source.name,
            **report,
            "refused": self.result.refused,
            "warnings": list(self.result.warnings),
            "layout": self.layout.as_json(),
            "groupings": [grouping.as_json() for grouping in self.groupings],
        }

    def path(self, report: DeviceReport) -> Any:
        """The guest's controllers above the device."""
        device = self.guest.device(report.source)
        return () if device is None or device.address is None else self.guest.path(device.address)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("domain", metavar="DOMAIN|FILE", help="a domain's name or UUID, or a file with its XML (- for stdin)")
    parser.add_argument("--root", type=Path, metavar="DIR", help="read the host from DIR/sys instead of /sys")
    parser.add_argument("--json", action="store_true", help="plain data")


def run(args: argparse.Namespace) -> int:
    with Progress("reading the host"):
        explained = explain(read_source(args.domain), args.root or host_root())
    if args.json:
        print(json.dumps(explained.as_json(), indent=2))
    else:
        print("\n".join(_lines(explained, Screen.of(), Describer(args.root or host_root()))))
    return EXIT_DONE


def explain(source: DomainSource, root: Path) -> Explained:
    """Explain a domain on the host below ``root``."""
    topology = read_topology(root)
    result = place(source.xml, source.request(root))
    pools = frozenset(source.pools)
    guest = Guest.read(result.xml, pools)
    layout = shown_by(result, pools, topology)
    return Explained(source, result, guest, topology, layout, tuple(groupings(source.xml, source.request(root), topology)))


def _lines(explained: Explained, screen: Screen, describer: Describer) -> list[str]:
    result, report = explained.result, explained.result.report()
    name = screen.paint(printable(explained.source.name), "bold")
    if result.outcome is Outcome.FALLBACK:
        head = f"{name}: {fell_back(report, changed=result.xml != explained.source.xml)}"
    else:
        head = f"{name}: {_OUTCOMES[result.outcome]}"
        if result.devices:
            head += f", {placed_of(report)} placed"
        if result.group_by is not None:
            head += f", grouped by {result.group_by.value}"
    lines = [head]
    if why(report):
        lines += screen.wrap(why(report), "  ")
    if result.refused:
        lines.append(screen.paint(f"  {Reason.REQUIRED.sentence}: this domain would not be started", "red"))
    lines += [screen.paint(f"  warning: {printable(warning)}", "yellow") for warning in result.warnings]
    shared = {code: sources for code, sources in reasons(report) if len(sources) > 1}
    notes = [*_cells(explained), *(f"{sentence(code)} ({code}): {_whom(sources, result)}" for code, sources in shared.items())]
    if (links := links_sentence(Guest.read(result.xml, frozenset(explained.source.pools)).domain)) is not None:
        notes.append(links)
    if notes:
        lines.append("")
        for note in notes:
            lines += screen.wrap(note, "  ")
    checks = {v.device.source: v for v in check_devices(result.devices, explained.guest, explained.topology)}
    for device in result.devices:
        own = device.reason is not None and device.reason is not result.reason and device.reason.value not in shared
        lines += ["", *_device(explained, device, checks[device.source], own, screen, describer)]
    if explained.groupings:
        lines += ["", *_groupings(explained, screen)]
    if result.outcome is not Outcome.PLACED and any(map(explained.guest.is_ours, explained.guest.domain.controllers.values())):
        revert, enable = command("revert", explained.source.name), command("enable", explained.source.name)
        lines += ["", *screen.wrap(f"{_TAKE_A_CELL_OUT} `{revert}` first, then change the cells, then `{enable}`.")]
    return lines


def _whom(sources: Sequence[str], result: Result) -> str:
    """Whom a reason is about, by name unless it is everybody."""
    return f"all {len(sources)} devices" if len(sources) == len(result.devices) else names(sources)


def _cells(explained: Explained) -> list[str]:
    """Which cell stands for which host node, and by what; each once."""
    found = []
    for report in explained.result.devices:
        by = explained.cell_by(report)
        if by is not None and by != "nearest":
            found.append(f"cell {report.guest_cell} stands for host node {report.host_node} by <{by}>")
    return sorted(set(found))


def _device(
    explained: Explained, report: DeviceReport, check: Check, own: bool, screen: Screen, describer: Describer
) -> list[str]:
    """The device's block. ``own``: its reason is said here, since no other device and not the domain has it."""
    host = explained.host(report)
    words = "" if host is None else f"{describer.kind(host)} {describer.product(host)}".rstrip()
    source = printable(report.source)
    state = device_state(explained.guest, report.source, report.placed, screen)
    lines = ["  ".join(filter(None, (screen.paint(source, "bold"), words, state)))]
    if host is None:
        place_on_host = "not on the host at the moment"
    else:
        place_on_host = "no node" if host.node is None else f"node {host.node}" + f" (from {host.node_from})"
        if host.root_complex:
            place_on_host += f", root complex {host.root_complex[3:]}"
        place_on_host += "".join(f", switch {upstream}" for upstream, _ in host.switches)
        if str(host.address) != report.source:
            place_on_host = f"{host.address}: {place_on_host}"
    lines.append(f"  host   {printable(place_on_host)}")
    device = explained.guest.device(report.source)
    reason = [f"{report.reason.sentence} ({report.reason.value})"] if own and report.reason is not None else []
    if device is None or device.address is None:
        lines.append("  guest  no address yet" if device is None or device.attached_as is AttachedAs.PCI else "  guest  no PCI address")
    else:
        top = explained.guest.top(device.address)
        cell = explained.guest.cell(device.address)
        where = "default root, no cell" if top is None else "no cell" if cell is None else f"cell {cell}"
        if top is not None:
            where += f", {top.model} {top.index}" + ("" if top.bus_nr is None else f" (bus {top.bus_nr:02x})")
            where += "" if explained.guest.is_ours(top) else ", not made by pcinuma"
        where += "".join(f", switch {c.index}" for c in explained.guest.path(device.address) if c.model == SWITCH)
        lines.append(f"  guest  {device.address}: {printable(where)}")
        if top is not None and not report.placed:
            if not check.passed:
                reason.append(printable(check.message))
            elif cell is not None and cell == report.guest_cell:
                reason.append("the guest sees it where the host has it")
    if reason:
        lines.append(f"  why    {'; '.join(reason)}")
    return lines


def _how(explained: Explained) -> list[str]:
    """How to get another grouping, for a domain that libvirt knows."""
    name = explained.source.name
    return [f"({command('policy', name, '--group-by', 'switch')}; {command('apply', name, '--replan')})"]


def _trade(now: Shown, grouping: Grouping, screen: Screen) -> list[str]:
    """What a grouping would change, better things marked + and worse ones -."""
    changes = trade(now, grouping)
    lines = [f"  {grouping.group_by.value} instead:"] if changes else []
    return lines + [screen.paint(f"    {'+' if t.better else '-'} {t.text}", "green" if t.better else "red") for t in changes]


def _groupings(explained: Explained, screen: Screen) -> list[str]:
    now = explained.layout
    if len({grouping.shown for grouping in explained.groupings}) == 1:
        return ["All three groupings (node, root-complex, switch) would show this guest the same."]
    rows: list[tuple[str, ...]] = []
    trades: list[str] = []
    for grouping in explained.groupings:
        mine = grouping.group_by is explained.result.group_by
        name = f"{'*' if mine else ' '} {grouping.group_by.value}"
        shown = grouping.shown
        if shown is None:
            rows.append((name, "-", "-", "-", "-"))
            trades += _trade(now, grouping, screen)
            continue
        link = f"{LINK_BELOW_SWITCH} for {shown.behind_switch} of {shown.devices}" if shown.behind_switch else shown.link_below_root_port
        rows.append((name, str(shown.expanders), f"{shown.right} of {shown.pairs}", link, f"{shown.atomics} of {shown.devices}"))
        if not mine:
            trades += _trade(now, grouping, screen)
    lines = screen.table(rows, ("  GROUP-BY", "EXPANDERS", "PAIRS AS ON HOST", "LINK SHOWN", "ATOMICOPS KEPT"))
    lines += trades
    near = [pair for pair in now.wrong if pair.host in (Distance.PIX, Distance.PXB)]
    wrong = sorted(now.wrong, key=lambda pair: (pair not in near, pair.first, pair.second))
    if wrong:
        lines += ["", "Pairs that this guest sees at another distance than the host has them:"]
        arrow = screen.mark("arrow")
        rows = [(printable(p.first), printable(p.second), f"{p.host.value} {arrow} {p.guest.value}") for p in wrong[:_SHOWN_PAIRS]]
        lines += screen.table(rows, indent="  ")
        if len(wrong) > _SHOWN_PAIRS:
            lines.append(f"  and {len(wrong) - _SHOWN_PAIRS} more (--json has them all)")
    switch = next((grouping for grouping in explained.groupings if grouping.group_by is GroupBy.SWITCH), None)
    if near and switch is not None and switch.shown is not None and switch.shown.right > now.right:
        file = f"`{command('topology', explained.source.name, '--nccl')}` prints a file that tells it of the host"
        lines += ["", *screen.wrap(f"NCCL uses GPUDirect RDMA by itself up to PXB, not at PHB: {file}.")]
        lines += ["Where GPUs have NVLink, switch may be worth its price for guests without that file", *_how(explained)]
    return lines
