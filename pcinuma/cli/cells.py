# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma cells``: which NUMA cells a guest without any would get, and what would be placed where; with ``--apply`` it gets them.

The proposal is the engine's, from the definition (or a file) and the host as it is now; what writes is the daemon, or libvirt where there
is no daemon, as for ``apply``. A running guest is never changed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Mapping, Optional

from pcinuma.cli.backend import backend
from pcinuma.cli.connect import host_root
from pcinuma.cli.definition import Definition
from pcinuma.cli.sources import DomainSource, is_file, read_source
from pcinuma.engine import Result, place
from pcinuma.errors import EXIT_DONE, EXIT_NEGATIVE, UnusableInput
from pcinuma.host.topology import Topology, read_topology
from pcinuma.printable import command, printable, printable_lines
from pcinuma.reason import Outcome
from pcinuma.settings import MemoryMode
from pcinuma.show.changes import diff
from pcinuma.show.describe import Describer, count, size
from pcinuma.show.guest import Guest
from pcinuma.show.progress import Progress
from pcinuma.show.screen import Screen
from pcinuma.show.trees import Passed, letters, side_by_side, tags
from pcinuma.show.words import fell_back, is_fallback, placed_of, reasons, sentence, why

NAME = "cells"
HELP = "show which NUMA cells a guest that has none would get, and give it those"
EPILOG = """\
examples:
  pcinuma cells vm1                       the host's nodes beside the guest's cells, and each device
  pcinuma cells vm1 --diff                the same as a diff of the definition
  pcinuma cells vm1 --apply               write it, together with the placement, for the next start
  pcinuma cells vm1 --apply --memory preferred
  pcinuma cells vm1 --remove              take cells and placement out again
  pcinuma cells vm1 --replan              those that it would get today; with --apply, write them
  pcinuma cells vm.xml --root DIR         a domain from a file on a captured host (see pcinuma capture)

Cells change what the guest sees of its CPUs and memory, so nobody gets them without asking: this, `pcinuma policy vm1 --cells auto`, or
"cells = auto" in pcinuma.conf. A domain that has cells of its owner's is never changed. Exit code 1 if there are none to give.
"""
_OWNERS = "has NUMA cells of its owner's, which pcinuma never changes"


@dataclass(frozen=True)
class Shown:
    """Everything that is shown. ``state``: ``proposed``, ``written`` (they are pcinuma's and stand), ``owner`` or ``none``."""

    source: DomainSource
    result: Result
    topology: Topology
    state: str

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        changed = self.result.xml != self.source.xml
        return {"domain": self.source.name, "state": self.state, "changed": changed, "report": self.result.report()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("domain", metavar="DOMAIN|FILE", help="a domain's name or UUID, or a file with its XML (- for stdin)")
    change = parser.add_mutually_exclusive_group()
    change.add_argument("--apply", action="store_true", help="write cells and placement into the definition, for the next start")
    change.add_argument("--remove", action="store_true", help="take pcinuma's cells and its placement out of the definition")
    parser.add_argument("--replan", action="store_true", help="of a guest that has pcinuma's: those that it would get today")
    modes = [mode.value for mode in MemoryMode]
    parser.add_argument("--memory", choices=modes, help="how memory is bound to host nodes (default: as <numatune> says, else strict)")
    parser.add_argument("--diff", action="store_true", help="the difference in the XML (passwords masked)")
    parser.add_argument("--root", type=Path, metavar="DIR", help="read the host from DIR/sys instead of /sys")
    parser.add_argument("--json", action="store_true", help="plain data")


def run(args: argparse.Namespace) -> int:
    _check_usage(args)
    if args.remove:
        return _remove(args)
    if args.apply:
        return _apply(args)
    with Progress("reading the host"):
        root = args.root or host_root()
        shown = _look(args, root)
    if args.json:
        print(json.dumps(_with_diff(shown) if args.diff else shown.as_json(), indent=2))
    elif args.diff:
        lines = diff(shown.source.name, shown.source.xml, shown.result.xml)
        print("\n".join(map(printable_lines, lines)) if lines else _head(shown, Screen.of()))
    else:
        print("\n".join(_lines(shown, args, Screen.of(), Describer(root))))
    return EXIT_NEGATIVE if shown.state == "none" else EXIT_DONE


def _check_usage(args: argparse.Namespace) -> None:
    if (args.apply or args.remove) and (is_file(args.domain) or args.root is not None):
        option = "--apply" if args.apply else "--remove"
        raise UnusableInput(f"{option} changes a definition on this host", hint="`pcinuma place --cells auto FILE` writes XML from XML")
    if args.diff and (args.apply or args.remove):
        raise UnusableInput("--diff only shows, and takes neither --apply nor --remove")
    if args.remove and (args.replan or args.memory):
        raise UnusableInput("--remove takes neither --replan nor --memory")


def _look(args: argparse.Namespace, root: Path) -> Shown:
    source = read_source(args.domain)
    memory = MemoryMode(args.memory) if args.memory else None
    result = place(source.xml, replace(source.request(root), cells=True, memory=memory, replan_cells=args.replan))
    had_cells = bool(Guest.read(source.xml).domain.cells)
    if result.cells is None:
        state = "owner" if had_cells else "none"
    else:
        state = "proposed" if not had_cells or (args.replan and result.outcome is Outcome.PLACED) else "written"
    return Shown(source, result, read_topology(root), state)


def _with_diff(shown: Shown) -> dict[str, Any]:
    return {**shown.as_json(), "diff": diff(shown.source.name, shown.source.xml, shown.result.xml)}


def _apply(args: argparse.Namespace) -> int:
    with Progress("writing cells"), backend(write=True) as worker:
        done = worker.place(args.domain, force=True, cells="replan" if args.replan else "auto", memory=args.memory)
    report = done.report or {}
    got = bool(report.get("cells"))
    if args.json:
        print(json.dumps({"domain": done.domain, "changed": done.changed, "running": done.running, "report": report}, indent=2))
    else:
        print(f"{printable(done.domain)}: {_applied(done, report, got)}")
    return EXIT_DONE if got and not is_fallback(report) else EXIT_NEGATIVE


def _applied(done: Definition, report: Mapping[str, Any], got: bool) -> str:
    if not got:
        return _OWNERS if Guest.read(done.after).domain.cells else f"no cells: {why(report)}"
    if is_fallback(report):
        return f"{fell_back(report, changed=done.changed)}: {why(report)}"
    cells = count(len(report["cells"]), "guest cell")
    if not done.changed:
        return f"unchanged: it has {cells} of pcinuma's, and {placed_of(report)} placed"
    when = "when the running guest has been shut off and started" if done.running else "at the next start"
    return f"{cells}, {placed_of(report)} placed; takes effect {when}"


def _remove(args: argparse.Namespace) -> int:
    with Progress("removing cells"), backend(write=True) as worker:
        done = worker.revert(args.domain)
    left = bool(Guest.read(done.after).domain.cells)
    if args.json:
        print(json.dumps({"domain": done.domain, "changed": done.changed, "running": done.running, "cells_left": left}, indent=2))
    else:
        print(f"{printable(done.domain)}: {_removed(done, left)}")
    return EXIT_NEGATIVE if left and done.changed else EXIT_DONE


def _removed(done: Definition, left: bool) -> str:
    if not done.changed:
        return f"unchanged: it {_OWNERS}" if left else "unchanged: pcinuma wrote nothing into it"
    what = "the placement is taken out, the cells stay, since something else needs them" if left else "cells and placement are taken out"
    return f"{what}; pcinuma leaves it alone until `{command('enable', done.domain)}`"


def _head(shown: Shown, screen: Screen) -> str:
    name, result = screen.paint(printable(shown.source.name), "bold"), shown.result
    if shown.state == "owner":
        return f"{name}: {_OWNERS}"
    if shown.state == "none" or result.cells is None:
        return f"{name}: no cells: {why(result.report())}"
    nodes = [cell.host_node for cell in result.cells]
    of = f"host node {nodes[0]}" if len(nodes) == 1 else f"the host nodes {', '.join(map(str, nodes[:-1]))} and {nodes[-1]}"
    verb = "would have" if shown.state == "proposed" else "has"
    return f"{name}: {verb} {count(len(nodes), 'guest cell')} for {of}, {placed_of(result.report())} placed"


def _lines(shown: Shown, args: argparse.Namespace, screen: Screen, describer: Describer) -> list[str]:
    result, lines = shown.result, [_head(shown, screen)]
    if result.cells is None or shown.state == "owner":
        return lines
    report = result.report()
    guest = Guest.read(result.xml, frozenset(shown.source.pools))
    by_address = {str(device.address): device for device in shown.topology.devices}
    passed = [Passed(device.source, by_address.get(device.device or "")) for device in result.devices]
    marks = tags(passed, screen)
    rows = []
    for cell in result.cells:
        devices = [marks[device.source] for device in result.devices if device.placed and device.guest_cell == cell.cell]
        rows.append((
            f"cell {cell.cell}", f"node {cell.host_node}", cell.vcpus or "none", cell.cpus or "-", size(cell.memory_kib * 1024),
            " ".join(devices) or "-",
        ))  # fmt: skip
    lines += ["", *screen.table(rows, ("GUEST", "HOST", "VCPUS", "ON CPUS", "MEMORY", "DEVICES")), ""]
    nodes = {cell.cell: cell.host_node for cell in result.cells}
    lines += side_by_side(shown.topology, guest, passed, nodes, screen, describer)
    notes = [f"{letters(marks, sources)}: {sentence(code)}" for code, sources in reasons(report)]
    lines += ["", *notes] if notes else []
    return [*lines, "", *screen.wrap(_what_next(shown, args))]


def _what_next(shown: Shown, args: argparse.Namespace) -> str:
    name = shown.source.name
    if is_file(args.domain) or args.root is not None:
        return "Nothing has been changed. `pcinuma place --cells auto` writes it, from XML to XML."
    if shown.state == "written":
        replan = command("cells", name, "--replan")
        return f"These are pcinuma's, and stay as they are. `{replan}` shows those of today, `--remove` takes them out."
    options: list[Optional[str]] = ["--apply", "--replan" if args.replan else None, f"--memory {args.memory}" if args.memory else None]
    apply = command("cells", name, *filter(None, options))
    return f"Nothing has been changed. `{apply}` does it, for the next start; `{command('cells', name, '--diff')}` shows the XML."
