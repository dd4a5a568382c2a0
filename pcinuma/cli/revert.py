"""``pcinuma revert``: take pcinuma's placement back out of a domain's definition."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pcinuma.cli.backend import Definition, backend
from pcinuma.cli.changes import Changes
from pcinuma.cli.describe import count
from pcinuma.cli.guest import Guest
from pcinuma.cli.progress import Progress
from pcinuma.cli.screen import Screen
from pcinuma.errors import EXIT_DONE, EXIT_NEGATIVE, PcinumaError

NAME = "revert"
HELP = "restore a domain's definition to what it was before pcinuma placed it"
EPILOG = """\
examples:
  pcinuma revert vm1             devices back to their old addresses, pcinuma's controllers removed
  pcinuma revert vm1 --dry-run   only say what would be done
  pcinuma revert --all           every domain that pcinuma placed, as before an uninstall

A reverted domain is left alone until `pcinuma enable`. The definition changes, never a running guest. Works with the daemon stopped.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("domain", nargs="?", metavar="DOMAIN", help="a domain's name or UUID")
    which.add_argument("--all", action="store_true", help="every persistent domain that pcinuma placed")
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    parser.add_argument("--json", action="store_true", help="plain data")


def run(args: argparse.Namespace) -> int:
    done: list[Definition] = []
    failed: list[tuple[str, str]] = []
    with Progress("reverting") as progress, backend(write=not args.dry_run) as worker:
        names = worker.names() if args.all else [args.domain]
        for number, name in enumerate(names, 1):
            progress.step(f"{name} ({number} of {len(names)})")
            try:
                # With --all, domains that pcinuma never placed are not even named to the daemon: a revert also disables.
                if not args.all or args.dry_run or worker.revert(name, dry_run=True).changed:
                    done.append(worker.revert(name, dry_run=args.dry_run))
            except PcinumaError as error:
                if not args.all:
                    raise
                failed.append((name, str(error)))
    if args.all:
        done = [definition for definition in done if definition.changed]
    if args.json:
        errors = [{"domain": name, "error": message} for name, message in failed]
        print(json.dumps({"domains": [_as_json(definition) for definition in done], "failed": errors}, indent=2))
    else:
        screen = Screen.of()
        for definition in done:
            print(f"{definition.domain}: {_outcome(definition, screen, args.dry_run)}")
        for name, message in failed:
            print(f"{name}: {screen.paint('failed', 'red')}: {message}")
        if not done and not failed:
            print("no domain is placed by pcinuma")
    return EXIT_NEGATIVE if failed else EXIT_DONE


def _as_json(definition: Definition) -> dict[str, Any]:
    changes = Changes.between(Guest.read(definition.before), Guest.read(definition.after))
    return {"domain": definition.domain, "changed": definition.changed, "running": definition.running, **changes.as_json()}


def _outcome(definition: Definition, screen: Screen, dry_run: bool) -> str:
    if not definition.changed:
        return "unchanged: pcinuma's placement is not in its definition"
    changes = Changes.between(Guest.read(definition.before), Guest.read(definition.after))
    what = f"{count(len(changes.moves), 'device')} back where the owner had them, {count(len(changes.removed), 'controller')} removed"
    if dry_run:
        return f"would be reverted: {what}"
    when = "when the running guest has been shut off and started" if definition.running else "at the next start"
    return screen.paint("reverted", "green") + f": {what}; takes effect {when}"
