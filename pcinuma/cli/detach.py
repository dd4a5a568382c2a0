"""``pcinuma detach``: take a passthrough device away from a domain."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from pcinuma.cli.attach import targets
from pcinuma.cli.connect import connection, find_domain, libvirt_module
from pcinuma.cli.devices import DEVICE_HELP, device_xml, element_of, source_of
from pcinuma.cli.progress import Progress
from pcinuma.cli.screen import Screen
from pcinuma.errors import EXIT_DONE, EXIT_NEGATIVE, LibvirtError, UnusableInput

NAME = "detach"
HELP = "take a host device away from a domain"
EPILOG = """\
examples:
  pcinuma detach vm1 17:00.0               from the running guest and the definition, wherever it is
  pcinuma detach vm1 17:00.0 --config      only from the definition, for the next start
  pcinuma detach vm1 17:00.0 --live        only from the running guest

A running guest must let go of the device itself; exit code 1 if it has not within --timeout seconds. The other devices stay where they are.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="a domain's name or UUID")
    parser.add_argument("device", metavar="DEVICE", help=DEVICE_HELP)
    parser.add_argument("--live", action="store_true", help="change the running guest")
    parser.add_argument("--config", action="store_true", help="change the definition")
    parser.add_argument("--timeout", type=_seconds, default=30.0, metavar="SECONDS", help="how long a guest may take (default: 30)")
    parser.add_argument("--json", action="store_true", help="plain data")


def run(args: argparse.Namespace) -> int:
    libvirt = libvirt_module()
    source = source_of(device_xml(args.device))
    if source is None:
        raise UnusableInput("is no passthrough device", subject=args.device)
    done: list[dict[str, Any]] = []
    with connection(write=True) as opened:
        domain = find_domain(opened, args.domain)
        live, config = targets(domain, live=args.live, config=args.config)
        name = domain.name()
        definition = element_of(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE).encode(), source) if config else None
        running = element_of(domain.XMLDesc(0).encode(), source) if live else None
        if (args.config and definition is None) or (args.live and running is None) or (definition is None and running is None):
            where = "'s definition" if args.config and definition is None else ", as it runs," if args.live else ""
            raise LibvirtError(f"{name}{where} has no such device", subject=args.device, hint=f"`pcinuma explain {name}` lists them")
        if definition is not None:
            domain.detachDeviceFlags(definition.decode(), libvirt.VIR_DOMAIN_AFFECT_CONFIG)
            done.append({"where": "config", "detached": True})
        if running is not None:
            domain.detachDeviceFlags(running.decode(), libvirt.VIR_DOMAIN_AFFECT_LIVE)
            done.append({"where": "live", "detached": _gone(domain, source, args.timeout)})
    if args.json:
        print(json.dumps({"domain": name, "device": args.device, "done": done}, indent=2))
    else:
        screen = Screen.of()
        for item in done:
            where = "the running guest" if item["where"] == "live" else "the definition"
            if item["detached"]:
                print(f"{name}: {args.device} {screen.paint('removed', 'green')} from {where}")
            else:
                late = screen.paint(f"has not let go of it within {args.timeout:g} s", "red")
                print(f"{name}: {args.device}: {where} {late}; it may still do so")
    return EXIT_DONE if all(item["detached"] for item in done) else EXIT_NEGATIVE


def _gone(domain: Any, source: str, timeout: float) -> bool:
    """Wait until the running guest no longer has the device."""
    deadline = time.monotonic() + timeout
    with Progress(f"waiting for the guest to let go of {source}"):
        while domain.isActive() and element_of(domain.XMLDesc(0).encode(), source) is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
    return True


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError("takes seconds, above 0 and at most 3600")
    return value
