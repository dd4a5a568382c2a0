# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma check``: is this host ready, and is every part of pcinuma doing its work? One PASS, WARN or FAIL line each, and what to do.

FAIL: guests are not placed although they could be. WARN: something that a person should know or that cannot be told from here. The checks
themselves are in :mod:`pcinuma.cli.checks`.
"""

from __future__ import annotations

import argparse
import json

from pcinuma.cli.checks import daemon, domains, hook, host, hypervisor
from pcinuma.cli.checks.finding import Finding, Level
from pcinuma.cli.connect import host_root
from pcinuma.errors import EXIT_DONE, EXIT_NEGATIVE
from pcinuma.printable import printable
from pcinuma.show.progress import Progress
from pcinuma.show.screen import Screen

NAME = "check"
HELP = "check this host and this installation: PASS, WARN or FAIL, and what to do about it"
EPILOG = """\
examples:
  pcinuma check
  pcinuma check --json | jq '.findings[] | select(.level != "PASS")'

Exit code 1 if anything fails. Run it as root: what only root can see is said to be unknown otherwise.
"""

_COLOURS = {Level.PASS: "green", Level.WARN: "yellow", Level.FAIL: "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="plain data")


def run(args: argparse.Namespace) -> int:
    findings: list[Finding] = []
    with Progress("checking") as progress:
        progress.step("the host")
        findings += host.check(host_root())
        progress.step("libvirt and QEMU")
        findings += hypervisor.check()
        progress.step("the hook")
        findings += hook.check()
        progress.step("the daemon")
        findings += daemon.check()
        progress.step("the domains")
        findings += domains.check(host_root())
    failed = any(finding.level is Level.FAIL for finding in findings)
    if args.json:
        print(json.dumps({"passed": not failed, "findings": [finding.as_json() for finding in findings]}, indent=2))
        return EXIT_NEGATIVE if failed else EXIT_DONE
    screen = Screen.of()
    width = max(len(printable(finding.what)) for finding in findings)
    for finding in findings:
        what, message = printable(finding.what).ljust(width), printable(finding.message)
        print(f"{screen.paint(finding.level.value, _COLOURS[finding.level])}  {what}  {message}")
        if finding.hint:
            print(f"{' ' * (width + 8)}{screen.mark('arrow')} {printable(finding.hint)}")
    return EXIT_NEGATIVE if failed else EXIT_DONE
