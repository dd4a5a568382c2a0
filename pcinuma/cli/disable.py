# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma disable``: leave a domain alone from now on."""

from __future__ import annotations

import argparse
import json

from pcinuma.cli.backend import backend
from pcinuma.errors import EXIT_DONE
from pcinuma.printable import printable
from pcinuma.show.progress import Progress
from pcinuma.show.screen import Screen

NAME = "disable"
HELP = "leave a domain alone from now on"
EPILOG = """\
examples:
  pcinuma disable vm1            what is placed stays as it stands
  pcinuma disable vm1 --revert   and its definition goes back to what it was before pcinuma

The opposite of `pcinuma enable`. With --revert it does both or, where the definition cannot be restored, neither. Works with the daemon
stopped. To keep pcinuma off a domain wherever it is defined, write policy="off" into its metadata.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="a name or UUID")
    parser.add_argument("--revert", action="store_true", help="restore the definition as well")
    parser.add_argument("--json", action="store_true", help="plain data")


def run(args: argparse.Namespace) -> int:
    with Progress("disabling"), backend(write=True) as worker:
        changed = worker.disable(args.domain, revert=args.revert)
    if args.json:
        print(json.dumps({"domain": args.domain, "changed": changed, "revert": args.revert}, indent=2))
        return EXIT_DONE
    screen = Screen.of()
    word = "disabled" if changed else "was disabled already"
    rest = "; its definition is as its owner wrote it" if args.revert else "; its definition stays as it stands"
    print(f"{printable(args.domain)}: {screen.paint(word, 'green')}{rest}")
    return EXIT_DONE
