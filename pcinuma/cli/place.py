# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma place``: the engine as a filter, from a domain's XML to the XML to start. A frozen contract (see the design).

stdin or a file goes in, stdout is the answer, and on every fallback the answer is the input byte for byte, taken from the bytes that were
read and never from a parsed copy. Nothing is written to stdout before the engine is done. The report says what happened.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pcinuma.engine import Request, place
from pcinuma.errors import EXIT_DONE, EXIT_NEGATIVE, UnusableInput
from pcinuma.host.topology import require_sys
from pcinuma.printable import printable
from pcinuma.settings import CELLS, LINK, GroupBy, Policy, load_settings

NAME = "place"
HELP = "read a domain's XML, write the XML to start (a filter; changes nothing)"
EPILOG = """\
The output is the placed domain or, whatever goes wrong, the input byte for byte; the report says which, and why for each device.

examples:
  virsh dumpxml --inactive --security-info VM | pcinuma place > placed.xml
  pcinuma place --report report.json VM.xml
  pcinuma place --root captured-host/ --group-by switch VM.xml
  pcinuma place --replan --group-by node PLACED.xml
  pcinuma place --cells auto FLAT.xml      NUMA cells and placement in one step, or neither
  pcinuma place --link host VM.xml         the guest's root ports tell the host's links

exit codes: 0 placed, unchanged or fallback; 1 policy 'required' is not met (no output); 2 input that is no domain XML, or wrong usage.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The frozen command line."""
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="directory that holds the host's sys/ (default: /)")
    groupings = [mode.value for mode in GroupBy]
    parser.add_argument("--group-by", choices=groupings, help="how finely to mirror the host (default: root-complex)")
    parser.add_argument("--policy", choices=["preferred", "required"], help="required: exit 1 unless every device is placed")
    parser.add_argument("--cells", choices=list(CELLS), help="auto: give a guest without NUMA cells those that its devices need")
    parser.add_argument("--link", choices=list(LINK), help="host: root ports tell the guest the host's link speed and width")
    parser.add_argument("--replan", action="store_true", help="lay a placed domain out afresh")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write what was decided, and why, as JSON")
    parser.add_argument("file", nargs="?", default="-", metavar="FILE", help="the domain's XML (default: standard input)")


def run(args: argparse.Namespace) -> int:
    """Place one domain."""
    require_sys(args.root)
    settings = load_settings(args.root)
    xml = _read(args.file)
    request = Request(
        stale_expanders=False,  # the filter's contract: without metadata of pcinuma's nothing is
        root=args.root,
        group_by=GroupBy(args.group_by) if args.group_by else None,
        policy=Policy(args.policy) if args.policy else None,
        settings=settings,
        replan=args.replan,
        cells=CELLS[args.cells] if args.cells else None,
        link=LINK[args.link] if args.link else None,
    )
    result = place(xml, request)
    if args.report is not None:
        _write_report(args.report, json.dumps(result.report(), indent=2) + "\n")
    for warning in result.warnings:
        print(f"pcinuma: {printable(warning)}", file=sys.stderr)
    if result.refused:
        print(f"pcinuma: {printable(result.message or result.outcome.value)}", file=sys.stderr)
        return EXIT_NEGATIVE
    sys.stdout.buffer.write(result.xml)
    return EXIT_DONE


def _read(name: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise UnusableInput(f"cannot be read ({error.strerror})", subject=name) from None


def _write_report(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UnusableInput(f"the report cannot be written ({error.strerror})", subject=str(file)) from None
