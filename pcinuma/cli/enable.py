# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma enable``: let pcinuma place a domain from now on."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pcinuma.cli.backend import backend
from pcinuma.errors import EXIT_DONE, EXIT_NEGATIVE, PcinumaError, UnusableInput
from pcinuma.printable import printable
from pcinuma.show.progress import Progress
from pcinuma.show.screen import Screen
from pcinuma.show.words import fell_back, is_fallback, missed, placed_of, why

NAME = "enable"
HELP = "let pcinuma place a domain from now on, and place its definition"
EPILOG = """\
examples:
  pcinuma enable vm1 vm2
  pcinuma enable --all

Domains that existed before pcinuma was first started are left alone until they are enabled: placing them gives their devices new
addresses in the guest (network interfaces may get new names). Look first with `pcinuma plan vm1`. Exit code 1, as of `pcinuma apply`, if a
domain was enabled but could not be placed. Works with the daemon stopped.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("domains", nargs="*", metavar="DOMAIN", help="names or UUIDs")
    parser.add_argument("--all", action="store_true", help="every persistent domain")
    parser.add_argument("--json", action="store_true", help="plain data")


def run(args: argparse.Namespace) -> int:
    if args.all == bool(args.domains):
        raise UnusableInput("name the domains to enable, or --all", hint="see `pcinuma enable --help`")
    results: list[dict[str, Any]] = []
    with Progress("enabling") as progress, backend(write=True) as worker:
        names = worker.names() if args.all else args.domains
        for number, name in enumerate(names, 1):
            progress.step(f"{name} ({number} of {len(names)})")
            try:
                done = worker.enable(name)
                results.append({"domain": name, "changed": done.changed, "report": done.report, "error": None})
            except PcinumaError as error:
                if len(names) == 1:
                    raise
                results.append({"domain": name, "changed": False, "report": None, "error": str(error)})
    if args.json:
        print(json.dumps({"domains": results}, indent=2))
    else:
        screen = Screen.of()
        for result in results:
            print(f"{printable(result['domain'])}: {_outcome(result, screen)}")
        if not results:
            print("libvirt has no persistent domains")
    return EXIT_NEGATIVE if any(result["error"] or missed(result["report"]) for result in results) else EXIT_DONE


def _outcome(result: dict[str, Any], screen: Screen) -> str:
    if result["error"]:
        return screen.paint("failed", "red") + f": {printable(result['error'])}"
    report = result["report"]
    if is_fallback(report):
        return f"{screen.paint('enabled', 'green')}, but {screen.paint(fell_back(report, changed=False), 'red')}: {why(report)}"
    if report["outcome"] == "placed":
        how = f"{placed_of(report)}, grouped by {report['group_by']}"
        return screen.paint("enabled and placed", "green") + f", {how}; takes effect at the next start"
    return screen.paint("enabled", "green") + (f": {why(report)}" if why(report) else "")
