# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma topology``: the host's tree; with a domain, the host's tree beside the guest's."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from pcinuma.cli.connect import host_root
from pcinuma.cli.guest_agent import SECONDS
from pcinuma.cli.nccl import Asked, ask_places, asked_for_install, install, nccl_topology
from pcinuma.cli.sources import DomainSource, is_file, read_source
from pcinuma.cli.whole_file import write_whole
from pcinuma.engine import Result, place
from pcinuma.errors import EXIT_DONE, UnusableInput
from pcinuma.guest.agent import AgentError
from pcinuma.host.topology import Topology, read_topology
from pcinuma.printable import printable
from pcinuma.ranges import format_ranges
from pcinuma.reason import Reason
from pcinuma.show.changes import controller_json
from pcinuma.show.columns import topology_picture
from pcinuma.show.describe import Describer
from pcinuma.show.guest import Guest
from pcinuma.show.progress import Progress
from pcinuma.show.screen import Screen
from pcinuma.show.trees import Passed, host_tree, letters, side_by_side, tags
from pcinuma.show.words import reasons, sentence, why

NAME = "topology"
HELP = "draw the host's PCI and NUMA tree, or a domain's tree beside it"
EPILOG = """\
examples:
  pcinuma topology                    nodes, root complexes, switches and devices of this host
  pcinuma topology vm1                the host beside the guest; a device has the same letter on both sides
  pcinuma topology vm.xml --root DIR  a domain from a file on a captured host (see pcinuma capture)
  pcinuma topology vm1 --nccl         the guest's topology as NCCL and RCCL read it (NCCL_TOPO_FILE)
  pcinuma topology vm1 --nccl --install   the same, written into the running guest where NCCL looks for it
  pcinuma topology vm1 --svg vm1.svg  a picture: host and guest side by side, for a browser
  pcinuma topology --json             everything that was read, for programs

A domain is drawn from the XML of its next start, or from the live XML with --live. With --live or --install the addresses in the file for
NCCL are those that the running guest's kernel says through the QEMU guest agent; else, and where it cannot be asked, they are computed.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("domain", nargs="?", metavar="DOMAIN", help="a domain's name or UUID, or a file with its XML (- for stdin)")
    parser.add_argument("--root", type=Path, metavar="DIR", help="read the host from DIR/sys instead of /sys")
    parser.add_argument("--live", action="store_true", help="draw the running guest instead of its next start")
    parser.add_argument("--all", action="store_true", help="every device of the host, bridges and chipset included")
    parser.add_argument("--nccl", action="store_true", help="print the guest's topology as a file for NCCL (NCCL_TOPO_FILE)")
    parser.add_argument("--install", action="store_true", help="write that file into the running guest, by its QEMU guest agent")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw host and guest side by side as a picture in FILE")
    parser.add_argument("--timeout", type=float, default=SECONDS, metavar="SECONDS", help=f"for asking the guest (default {SECONDS:g})")
    parser.add_argument("--json", action="store_true", help="print plain data instead of the drawing")


def run(args: argparse.Namespace) -> int:
    if args.domain is None and args.live:
        raise UnusableInput("--live needs a DOMAIN")
    if args.domain is not None and args.all:
        raise UnusableInput("--all shows the whole host, and takes no DOMAIN")
    if args.nccl and args.domain is None:
        raise UnusableInput("--nccl needs a DOMAIN")
    if args.nccl and args.json:
        raise UnusableInput("--nccl is a format of its own, and takes no --json")
    if args.install and not args.nccl:
        raise UnusableInput("--install writes the file that --nccl makes, and needs --nccl")
    if args.install and is_file(args.domain):
        raise UnusableInput("--install needs a running domain, not a file", subject=args.domain)
    if args.svg is not None and args.domain is None:
        raise UnusableInput("--svg needs a DOMAIN")
    if args.svg is not None and (args.nccl or args.json):
        raise UnusableInput("--svg is a picture, and takes neither --nccl nor --json")
    if not 0 < args.timeout < 86400:
        raise UnusableInput("--timeout takes seconds, above 0 and below a day")
    root = args.root or host_root()
    with Progress("reading the host"):
        topology = read_topology(root)
    screen = Screen.of()
    if args.domain is None:
        if args.json:
            print(json.dumps(topology.as_json(), indent=2))
        else:
            print("\n".join(host_tree(topology, screen, Describer(root), everything=args.all)))
        return EXIT_DONE

    with Progress("reading the domain"):
        source = read_source(args.domain, live=args.live or args.install)
        result = place(source.xml, replace(source.request(root), cells=False))
    if args.nccl:
        return _nccl(args, source, result, topology, root)
    guest = Guest.read(source.xml, frozenset(source.pools))
    by_address = {str(device.address): device for device in topology.devices}
    passed = [Passed(device.source, by_address.get(device.device or "")) for device in result.devices]
    if args.json:
        data = {"domain": source.name, "live": source.live, "host": topology.as_json(), "guest": _guest_json(guest, result)}
        print(json.dumps(data, indent=2))
        return EXIT_DONE
    known = [(report.guest_cell, report.host_node) for report in result.devices]
    nodes = {cell: node for cell, node in known if cell is not None and node is not None}
    if args.svg is not None:
        write_whole(args.svg, topology_picture(topology, guest, passed, nodes, root))
        print(f"{printable(source.name)}: drawn in {printable(str(args.svg))}")
        return EXIT_DONE
    print("\n".join(side_by_side(topology, guest, passed, nodes, screen, Describer(root))))
    marks = tags(passed, screen)
    report = result.report()
    notes = [f"{letters(marks, sources)}: {sentence(code)}" for code, sources in reasons({**report, "reason": None})]
    notes += [why(report)] if result.reason is Reason.NO_CELLS else []
    if notes:
        print("\n".join(["", *notes]))
    return EXIT_DONE


def _nccl(args: argparse.Namespace, source: DomainSource, result: Result, topology: Topology, root: Path) -> int:
    asked: Optional[Asked] = None
    more = []
    if args.install:
        with Progress("asking the guest"):
            asked = asked_for_install(source, args.timeout)
    elif args.live:
        try:
            with Progress("asking the guest"):
                asked = ask_places(source, args.timeout)
        except AgentError as error:
            more = [f"the addresses in the guest are computed: {error}"]
    text, remarks = nccl_topology(source.xml, frozenset(source.pools), result, topology, root, asked)
    for line in [*more, *remarks]:
        print(f"pcinuma: {printable(line)}", file=sys.stderr)
    if not args.install:
        print(text, end="")
        return EXIT_DONE
    with Progress("writing into the guest"):
        done = install(source, text, args.timeout)
    for line in done:
        print(f"{printable(source.name)}: {printable(line)}")
    return EXIT_DONE


def _guest_json(guest: Guest, result: Result) -> dict[str, Any]:
    """The guest's side: cells, PCI controllers, and for each passthrough device the host device and its own place."""
    devices = []
    for report in result.devices:
        found = guest.device(report.source)
        address = None if found is None else found.address
        devices.append(
            {
                "source": report.source,
                "device": report.device,
                "guest_address": None if address is None else str(address),
                "guest_cell": None if address is None else guest.cell(address),
                "path": [] if address is None else [controller.index for controller in guest.path(address)],
            }
        )
    domain = guest.domain
    return {
        "cells": [{"cell": number, "cpus": format_ranges(domain.cells[number])} for number in sorted(domain.cells)],
        "controllers": [controller_json(domain.controllers[index]) for index in sorted(domain.controllers)],
        "devices": devices,
    }
