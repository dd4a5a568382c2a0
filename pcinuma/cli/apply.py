"""``pcinuma apply``: place the definition of a domain now, instead of waiting for the daemon."""

from __future__ import annotations

import argparse
import json

from pcinuma.cli.backend import Definition, backend
from pcinuma.cli.plan import as_json, verdict
from pcinuma.cli.progress import Progress
from pcinuma.cli.screen import Screen
from pcinuma.cli.words import placed_of, why
from pcinuma.errors import EXIT_DONE, EXIT_NEGATIVE, PcinumaError

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
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("domain", nargs="?", metavar="DOMAIN", help="a domain's name or UUID")
    which.add_argument("--all", action="store_true", help="every persistent domain that is enabled")
    parser.add_argument("--replan", action="store_true", help="lay the domain out afresh instead of keeping what is in place")
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    parser.add_argument("--json", action="store_true", help="plain data")


def run(args: argparse.Namespace) -> int:
    done: list[Definition] = []
    failed: list[tuple[str, str]] = []
    with Progress("applying") as progress, backend(write=not args.dry_run) as worker:
        names = worker.names() if args.all else [args.domain]
        for number, name in enumerate(names, 1):
            progress.step(f"{name} ({number} of {len(names)})")
            try:
                done.append(worker.place(name, replan=args.replan, force=not args.all, dry_run=args.dry_run))
            except PcinumaError as error:
                if not args.all:
                    raise
                failed.append((name, str(error)))
    if args.json:
        errors = [{"domain": name, "error": message} for name, message in failed]
        print(json.dumps({"domains": [as_json(definition) for definition in done], "failed": errors}, indent=2))
    else:
        screen = Screen.of()
        for definition in done:
            print(f"{definition.domain}: {_outcome(definition, screen, args.dry_run)}")
        for name, message in failed:
            print(f"{name}: {screen.paint('failed', 'red')}: {message}")
        if not names:
            print("libvirt has no persistent domains")
    fell_back = any(definition.report and definition.report["outcome"] == "fallback" for definition in done)
    return EXIT_NEGATIVE if failed or fell_back else EXIT_DONE


def _outcome(definition: Definition, screen: Screen, dry_run: bool) -> str:
    report = definition.report or {}
    if dry_run:
        return verdict(definition)
    if report["outcome"] == "fallback":
        return screen.paint("not placed", "red") + f": {why(report)}"
    if not definition.changed:
        return f"unchanged: {why(report)}" if why(report) else "unchanged"
    when = "when the running guest has been shut off and started" if definition.running else "at the next start"
    return screen.paint("placed", "green") + f", {placed_of(report)}, grouped by {report['group_by']}; takes effect {when}"
