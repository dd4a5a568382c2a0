# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma apply``: place the definition of a domain now, instead of waiting for the daemon."""

from __future__ import annotations

import argparse

from pcinuma.cli.definition import Backend, Definition
from pcinuma.cli.each import add_choice, add_dry_run, for_each
from pcinuma.cli.plan import REPLAN_HELP, as_json, conclusion, left_alone
from pcinuma.errors import EXIT_DONE, EXIT_NEGATIVE
from pcinuma.printable import printable
from pcinuma.show.screen import Screen
from pcinuma.show.words import fell_back, is_fallback, missed, placed_of, why

NAME = "apply"
HELP = "place the devices in a domain's definition, for its next start"
EPILOG = """\
examples:
  pcinuma apply vm1             place it now, whether it is enabled or not
  pcinuma apply vm1 --dry-run   only say what would be done (pcinuma plan shows more)
  pcinuma apply vm1 --replan    lay it out afresh: the devices' addresses in the guest may all change
  pcinuma apply --all           every domain that is enabled

The definition changes, never a running guest: the change counts from the next start on. Policy off and <keep> in the domain's
metadata always win. Exit code 1 if a domain could not be placed. With the daemon stopped, the work is done here on libvirt.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_choice(parser, "every persistent domain that is enabled")
    parser.add_argument("--replan", action="store_true", help=REPLAN_HELP)
    add_dry_run(parser)


def run(args: argparse.Namespace) -> int:
    def place(worker: Backend, name: str) -> Definition:
        return worker.place(name, replan=args.replan, force=not args.all, dry_run=args.dry_run)

    done = for_each(args, "applying", place, write=not args.dry_run)
    if args.json:
        done.print_json(as_json)
    else:
        screen = Screen.of()
        lines = [f"{printable(definition.domain)}: {_outcome(definition, screen, args)}" for definition in done.definitions]
        print("\n".join([*lines, *done.failures(screen)] or ["libvirt has no persistent domains"]))
    unplaced = any(missed(definition.report) and not _skipped(definition, args) for definition in done.definitions)
    return EXIT_NEGATIVE if done.failed or unplaced else EXIT_DONE


def _skipped(definition: Definition, args: argparse.Namespace) -> bool:
    """Whether the real thing would not touch the domain: a dry run makes a plan for any."""
    return args.all and args.dry_run and definition.enabled is False


def _outcome(definition: Definition, screen: Screen, args: argparse.Namespace) -> str:
    report = definition.report or {}
    if args.dry_run:
        return left_alone(definition) if _skipped(definition, args) else conclusion(definition)
    if is_fallback(report):
        return screen.paint(fell_back(report, changed=definition.changed), "red") + f": {why(report)}"
    if not definition.changed:
        return f"unchanged: {why(report)}" if why(report) else "unchanged"
    when = "when the running guest has been shut off and started" if definition.running else "at the next start"
    return screen.paint("placed", "green") + f", {placed_of(report)}, grouped by {report['group_by']}; takes effect {when}"
