# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma plan``: what apply would change, and why; writes nothing."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from pcinuma.cli.connect import host_root
from pcinuma.cli.definition import Backend, Definition
from pcinuma.cli.each import add_choice, for_each
from pcinuma.errors import EXIT_DONE, EXIT_NEGATIVE, UnusableInput
from pcinuma.host.topology import read_topology
from pcinuma.printable import command, printable, printable_lines
from pcinuma.reason import Reason
from pcinuma.show.changes import Changes, controller_words, diff
from pcinuma.show.describe import count
from pcinuma.show.guest import Guest
from pcinuma.show.links import links_sentence
from pcinuma.show.screen import Row, Screen
from pcinuma.show.trees import Passed, device_state, guest_rows, letters, tags
from pcinuma.show.words import cell, fell_back, is_fallback, node, placed_of, reasons, sentence, why

REPLAN_HELP = "lay the domain out afresh instead of keeping what is in place"
NAME = "plan"
HELP = "show what apply would change in a domain's definition, and why; writes nothing"
EPILOG = """\
examples:
  pcinuma plan vm1              the guest's tree now and then, and each device with its reason
  pcinuma plan vm1 --diff       the same as a diff of the definition
  pcinuma plan vm1 --replan     as if the domain were laid out afresh: addresses in the guest may all change
  pcinuma plan --all            one line a domain: what the daemon, or apply --all, would do

With the daemon stopped, the plan is made here from what libvirt says.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_choice(parser, "every persistent domain")
    parser.add_argument("--replan", action="store_true", help=REPLAN_HELP)
    parser.add_argument("--diff", action="store_true", help="the difference in the XML (passwords masked)")


def run(args: argparse.Namespace) -> int:
    if args.all and args.diff and args.json:
        raise UnusableInput("--diff of all domains as JSON is not supported", hint="ask for one domain")

    def one(worker: Backend, name: str) -> Definition:
        return worker.place(name, replan=args.replan, force=True, dry_run=True)

    done = for_each(args, "planning", one, write=False)
    status = EXIT_NEGATIVE if done.failed else EXIT_DONE
    if args.json:
        done.print_json(partial(as_json, with_diff=args.diff))
        return status
    plans, screen = done.definitions, Screen.of()
    if args.diff:
        lines = [line for plan in plans for line in _coloured(diff(plan.domain, plan.before, plan.after), screen)]
    elif args.all:
        lines = _summary(plans, screen)
    else:
        lines = _whole(plans[0], screen, replan=args.replan)
    print("\n".join([*lines, *done.failures(screen)] or ["nothing would change"]))
    return status


def as_json(plan: Definition, *, with_diff: bool = False) -> dict[str, Any]:
    """A plan as plain data. ``enabled``: whether pcinuma places the domain without being asked."""
    data = {
        "domain": plan.domain,
        "changed": plan.changed,
        "enabled": plan.enabled,
        "running": plan.running,
        "report": plan.report,
        **Changes.between(Guest.read(plan.before), Guest.read(plan.after)).as_json(),
    }
    return {**data, "diff": diff(plan.domain, plan.before, plan.after)} if with_diff else data


def conclusion(plan: Definition) -> str:
    """What would become of the domain, in a few words."""
    report = plan.report or {}
    if is_fallback(report):
        return f"{fell_back(report, changed=plan.changed)}: {why(report)}"
    if not plan.changed:
        return f"stays as it is: {why(report)}" if why(report) else "stays as it is"
    new_cells = report.get("cells") if not Guest.read(plan.before).domain.cells else None
    with_cells = f", with {count(len(new_cells), 'new guest cell')}" if new_cells else ""
    more = f" ({why(report)})" if why(report) else ""
    return f"{placed_of(report)} would be placed{with_cells}, grouped by {report['group_by']}{more}"


def left_alone(plan: Definition) -> str:
    """What ``--all`` does with a domain that is not enabled."""
    return f"left alone: {Reason.NOT_ENABLED.sentence.partition(': ')[2]}; {command('enable', plan.domain)}"


def _summary(plans: list[Definition], screen: Screen) -> list[str]:
    rows = []
    for plan in plans:
        name = printable(plan.domain)
        if plan.changed and plan.enabled is False:
            rows.append((name, "no change", left_alone(plan)))
        else:
            rows.append((name, screen.paint("would change", "yellow") if plan.changed else "no change", conclusion(plan)))
    return screen.table(rows, ("DOMAIN", "PLAN", "WHY")) or ["libvirt has no persistent domains"]


def _whole(plan: Definition, screen: Screen, *, replan: bool) -> list[str]:
    before, after = Guest.read(plan.before), Guest.read(plan.after)
    changes = Changes.between(before, after)
    report = plan.report or {"devices": []}
    by_address = {str(device.address): device for device in read_topology(host_root()).devices}
    marks = tags([Passed(device["source"], by_address.get(device["device"] or "")) for device in report["devices"]], screen)
    lines = [f"{screen.paint(printable(plan.domain), 'bold')}: {conclusion(plan)}", ""]
    if report["devices"]:
        lines += [*device_table(report, changes, after, marks, screen), ""]
        notes = [f"{letters(marks, sources)}: {sentence(code)}" for code, sources in reasons(report)]
        lines += [*notes, ""] if notes else []
    if not plan.changed:
        return lines[:-1]
    nodes = {device["guest_cell"]: device["host_node"] for device in report["devices"] if device["host_node"] is not None}
    now = [Row((screen.paint("NOW", "bold"),)), *guest_rows(before, marks, screen, nodes)]
    then = [Row((screen.paint("THEN", "bold"),)), *guest_rows(after, marks, screen, nodes)]
    lines += screen.beside(screen.tree(now), screen.tree(then))
    for title, colour, controllers in (
        ("added", "green", changes.added), ("changed", "yellow", changes.changed), ("removed", "red", changes.removed),
    ):  # fmt: skip
        if controllers:
            lines += ["", screen.paint(f"{count(len(controllers), 'controller')} {title}", colour)]
            lines += screen.table([(str(c.index), controller_words(c)) for c in controllers], indent="  ")
    if (links := links_sentence(after.domain)) is not None:
        lines += ["", *screen.wrap(links)]
    apply = command("apply", plan.domain, *(["--replan"] if replan else []))
    running = " (the guest is running: once it has been shut off and started)" if plan.running else ""
    lines += ["", *screen.wrap(f"Nothing has been changed. `{apply}` does it, for the next start{running}.")]
    if plan.enabled is False:
        lines += screen.wrap(f"pcinuma does not do it by itself: it leaves this domain alone until `{command('enable', plan.domain)}`.")
    return lines


def device_table(report: Any, changes: Changes, after: Guest, marks: dict[str, str], screen: Screen) -> list[str]:
    """The devices of a report: host place, guest place, and what happens."""
    moved = {move.source: move for move in changes.moves}
    rows = []
    for device in report["devices"]:
        source = device["source"]
        move = moved.get(source)
        address = device["guest_address"] or "-"
        if move is not None:
            address = f"{move.before or 'none yet'} {screen.mark('arrow')} {address}"
        state = device_state(after, source, device["placed"], screen)
        rows.append((
            marks.get(source, " "), printable(source), node(device["host_node"]), cell(device["guest_cell"]), printable(address), state,
        ))  # fmt: skip
    return screen.table(rows, ("", "DEVICE", "HOST", "GUEST", "GUEST ADDRESS", "STATE"))


def _coloured(lines: list[str], screen: Screen) -> list[str]:
    colours = {"+": "green", "-": "red", "@": "cyan"}
    return [screen.paint(line, colours[line[0]]) if line[:1] in colours else line for line in map(printable_lines, lines)]
