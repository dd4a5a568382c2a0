# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma revert``: take pcinuma's placement back out of a domain's definition."""

from __future__ import annotations

import argparse
from typing import Any, Optional

from pcinuma.cli.definition import Backend, Definition
from pcinuma.cli.each import add_choice, add_dry_run, for_each
from pcinuma.errors import EXIT_DONE, EXIT_NEGATIVE
from pcinuma.printable import command, printable
from pcinuma.show.changes import Changes
from pcinuma.show.describe import count
from pcinuma.show.guest import Guest
from pcinuma.show.screen import Screen

NAME = "revert"
HELP = "restore a domain's definition to what it was before pcinuma placed it"
EPILOG = """\
examples:
  pcinuma revert vm1             devices back to their old addresses, pcinuma's controllers removed
  pcinuma revert vm1 --dry-run   only say what would be done
  pcinuma revert --all           every domain that pcinuma placed, as before an uninstall

A reverted domain is left alone until `pcinuma enable`. A domain that is not placed has nothing to revert and is not touched at all:
`pcinuma disable` keeps pcinuma off it. The definition changes, never a running guest. Works with the daemon stopped.

Revert a domain before you take a guest NUMA cell out of it, or change its machine type: libvirt refuses a definition whose expander
buses belong to cells that are gone. `pcinuma enable` places it anew afterwards.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_choice(parser, "every persistent domain that pcinuma placed")
    add_dry_run(parser)


def run(args: argparse.Namespace) -> int:
    def revert(worker: Backend, name: str) -> Optional[Definition]:
        definition = worker.revert(name, dry_run=args.dry_run)
        return definition if definition.changed or not args.all else None

    done = for_each(args, "reverting", revert, write=not args.dry_run)
    if args.json:
        done.print_json(_as_json)
    else:
        screen = Screen.of()
        lines = [f"{printable(definition.domain)}: {_outcome(definition, screen, args.dry_run)}" for definition in done.definitions]
        print("\n".join([*lines, *done.failures(screen)] or ["no domain is placed by pcinuma"]))
    return EXIT_NEGATIVE if done.failed else EXIT_DONE


def _as_json(definition: Definition) -> dict[str, Any]:
    changes = Changes.between(Guest.read(definition.before), Guest.read(definition.after))
    return {"domain": definition.domain, "changed": definition.changed, "running": definition.running, **changes.as_json()}


def _outcome(definition: Definition, screen: Screen, dry_run: bool) -> str:
    if not definition.changed:
        return f"unchanged: pcinuma has not placed it; `{command('disable', definition.domain)}` keeps pcinuma off it"
    changes = Changes.between(Guest.read(definition.before), Guest.read(definition.after))
    what = f"{count(len(changes.moves), 'device')} back where the owner had them, {count(len(changes.removed), 'controller')} removed"
    if dry_run:
        return f"would be reverted: {what}"
    when = "when the running guest has been shut off and started" if definition.running else "at the next start"
    left = f"left alone until `{command('enable', definition.domain)}`"
    return screen.paint("reverted", "green") + f": {what}; takes effect {when}; {left}"
