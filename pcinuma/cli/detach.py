# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma detach``: take a passthrough device away from a domain."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from pcinuma.cli.attach import targets
from pcinuma.cli.connect import connection, find_domain, libvirt_module
from pcinuma.cli.devices import DETACH_HELP, still_there, wanted
from pcinuma.errors import EXIT_DONE, EXIT_NEGATIVE, LibvirtError
from pcinuma.printable import command, printable
from pcinuma.show.progress import Progress
from pcinuma.show.screen import Screen

NAME = "detach"
HELP = "take a host device away from a domain"
EPILOG = """\
examples:
  pcinuma detach vm1 17:00.0               from the running guest and the definition, wherever it is
  pcinuma detach vm1 17:00.0 --config      only from the definition, for the next start
  pcinuma detach vm1 17:00.0 --live        only from the running guest
  pcinuma detach vm1 ./nic.xml             what `pcinuma attach vm1 ./nic.xml` attached
  pcinuma detach vm1 52:54:00:6b:3c:58     an interface by its MAC address

A running guest must let go of the device itself; exit code 1 if it has not within --timeout seconds. The other devices stay where they are.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="a domain's name or UUID")
    parser.add_argument("device", metavar="DEVICE", help=DETACH_HELP)
    parser.add_argument("--live", action="store_true", help="change the running guest")
    parser.add_argument("--config", action="store_true", help="change the definition")
    parser.add_argument("--timeout", type=_seconds, default=30.0, metavar="SECONDS", help="how long a guest may take (default: 30)")
    parser.add_argument("--json", action="store_true", help="plain data")


def run(args: argparse.Namespace) -> int:
    libvirt, device = libvirt_module(), wanted(args.device)
    done: list[dict[str, Any]] = []
    with connection(write=True) as opened:
        domain = find_domain(opened, args.domain)
        live, config = targets(domain, live=args.live, config=args.config)
        name = domain.name()
        definition = device.find(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE).encode()) if config else None
        running = device.find(domain.XMLDesc(0).encode()) if live else None
        if (args.config and definition is None) or (args.live and running is None) or (definition is None and running is None):
            where = "'s definition" if args.config and definition is None else ", as it runs," if args.live else ""
            hint = f"`{command('explain', name)}` lists what is passed through to it"
            raise LibvirtError(f"{name}{where} has no such device", subject=args.device, hint=hint)
        if definition is not None:
            domain.detachDeviceFlags(definition.decode(), libvirt.VIR_DOMAIN_AFFECT_CONFIG)
            done.append({"where": "config", "detached": True, "message": None})
        if running is not None:
            try:
                domain.detachDeviceFlags(running.decode(), libvirt.VIR_DOMAIN_AFFECT_LIVE)
                gone = _gone(domain, running, args)
                message = None if gone else f"has not let go of it within {args.timeout:g} s; it may still do so"
            except libvirt.libvirtError as error:
                if not done:
                    raise
                gone, message = False, f"does not let go of it: {error.get_error_message()}"
            done.append({"where": "live", "detached": gone, "message": message})
    if args.json:
        print(json.dumps({"domain": name, "device": args.device, "done": done}, indent=2))
    else:
        screen = Screen.of()
        what = printable(f"{name}: {args.device}")
        for item in done:
            where = "the running guest" if item["where"] == "live" else "the definition"
            if item["detached"]:
                print(f"{what} {screen.paint('removed', 'green')} from {where}")
            else:
                print(f"{what}: {where} {screen.paint(printable(item['message']), 'red')}")
    return EXIT_DONE if all(item["detached"] for item in done) else EXIT_NEGATIVE


def _gone(domain: Any, element: bytes, args: argparse.Namespace) -> bool:
    """Wait until the running guest no longer has the device of ``element``."""
    deadline = time.monotonic() + args.timeout
    with Progress(f"waiting for the guest to let go of {args.device}"):
        while domain.isActive() and still_there(domain.XMLDesc(0).encode(), element):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
    return True


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError("takes seconds, above 0 and at most 3600")
    return value
