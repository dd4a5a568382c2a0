# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma status``: every domain, and what the daemon last decided about it; with ``--check``, whether all is as it should be."""

from __future__ import annotations

import argparse
import json
from typing import Any, Mapping, Optional

from pcinuma.daemon import client
from pcinuma.errors import EXIT_DONE, EXIT_NEGATIVE, DaemonError, LibvirtError
from pcinuma.printable import printable
from pcinuma.show.describe import count
from pcinuma.show.screen import Screen
from pcinuma.show.words import why

NAME = "status"
HELP = "list the domains, and whether their devices are placed"
EPILOG = """\
examples:
  pcinuma status
  pcinuma status vm1 vm2
  pcinuma status --json | jq '.domains[] | select(.outcome == "fallback")'
  pcinuma status --check || echo "something is not placed"

PLACED counts the passthrough devices that the definition has where the host has them. BY says who decided last: the reconciler, the
hook at a start, the proxy, or a command.

With --check each domain is looked at anew, which changes nothing, and one line says what is not placed although it may be; exit code 1 if
there is any, or if it cannot be told. Domains that are disabled or off are left alone.
"""

_OUTCOMES = {"placed": ("placed", "green"), "unchanged": ("unchanged", "dim"), "fallback": ("fallback", "red")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("domains", nargs="*", metavar="DOMAIN", help="only these (names or UUIDs)")
    parser.add_argument("--check", action="store_true", help="look at them anew: exit code 1 unless everything is placed that may be")
    parser.add_argument("--json", action="store_true", help="plain data")


def run(args: argparse.Namespace) -> int:
    if args.check:
        return _check(args)
    status = client.call("Status")
    if args.domains:
        status["domains"] = [_find(status, name) for name in args.domains]
    if args.json:
        print(json.dumps(status, indent=2))
        return EXIT_DONE
    screen = Screen.of()
    libvirt = status["libvirt"]
    print(printable(f"pcinumad {status['version']}, running since {_when(status['started'])}"))
    uri = printable(libvirt["uri"])
    if libvirt["connected"]:
        print(f"libvirt {printable(libvirt['version'])} at {uri}, connected since {_when(libvirt['since'])}")
    else:
        print(f"libvirt at {uri}: {screen.paint('not connected', 'red')}: {printable(libvirt['message'] or 'not yet')}")
    if status["pending"]:
        print(f"busy: {count(status['pending'], 'look')} at domains to come, so what is below may be outdated in a moment")
    for problem in status.get("problems", ()):
        print(f"{screen.paint('problem', 'red')}: {printable(problem)}")
    print()
    rows = [_row(domain, screen) for domain in status["domains"]]
    header = ("DOMAIN", "STATE", "POLICY", "ENABLED", "PLACED", "OUTCOME", "BY", "WHEN", "WHY")
    print("\n".join(screen.table(rows, header)) if rows else "libvirt has no persistent domains")
    return EXIT_DONE


def _check(args: argparse.Namespace) -> int:
    from pcinuma.cli import status_check  # not for those who only look

    status: Optional[dict[str, Any]] = None
    try:
        status = status_check.status()
        if args.domains:
            status["domains"] = [_find(status, name) for name in args.domains]
        check = status_check.check(status)
    except DaemonError as error:
        check = status_check.Check([error.sentence()])
    if args.json:
        print(json.dumps({**(status or {}), "check": check.as_json()}, indent=2))
    else:
        print(check.line())
    return EXIT_DONE if check.passed else EXIT_NEGATIVE


def _find(status: Mapping[str, Any], name: str) -> Any:
    for domain in status["domains"]:
        if name in (domain["name"], domain["uuid"]):
            return domain
    raise LibvirtError("the daemon knows no such domain", subject=name, hint="`pcinuma status` lists them")


def _row(domain: Mapping[str, Any], screen: Screen) -> tuple[str, ...]:
    word, colour = _OUTCOMES.get(domain["outcome"] or "", ("-", "dim"))
    return (
        printable(domain["name"]),
        printable(domain["state"] or "-"),
        printable(domain["policy"] or "-"),
        "yes" if domain["enabled"] else "no",
        f"{domain['placed']}/{domain['devices']}",
        screen.paint(word, colour),
        printable(domain["by"] or "-"),
        _when(domain["when"]),
        why(domain),
    )


def _when(text: Any) -> str:
    """An ISO 8601 time, to the second and without the ``T``."""
    return "-" if not text else printable(str(text)[:19].replace("T", " "))
