# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma attach``: give a domain a device of the host, in the right place from the start.

Live: the daemon names a spare hot-pluggable port under the right expander (``AttachAddress``); without one the device goes where
libvirt puts it, and the command says so. The definition gets the device as well, and is placed afterwards, so that both agree where
they can.
"""

from __future__ import annotations

import argparse
import json
from typing import Any, Optional

from pcinuma.cli.backend import backend
from pcinuma.cli.connect import connection, find_domain, libvirt_module
from pcinuma.cli.devices import ATTACH_HELP, device_xml, source_of
from pcinuma.daemon import client
from pcinuma.errors import EXIT_DONE, EXIT_NEGATIVE, DaemonError, LibvirtError, PcinumaError
from pcinuma.printable import printable
from pcinuma.show.guest import Guest
from pcinuma.show.screen import Screen
from pcinuma.show.words import cell, why

NAME = "attach"
HELP = "give a domain a device of the host, under the right cell"
EPILOG = """\
examples:
  pcinuma attach vm1 17:00.0               the running guest and the definition, whichever there is
  pcinuma attach vm1 17:00.0 --config      only the definition, for the next start
  pcinuma attach vm1 17:00.0 --live        only the running guest
  pcinuma attach vm1 ./nic.xml             an <interface>, <hostdev> or <disk> as for virsh attach-device

A running guest can take the device in its right place only on a spare port (spare-ports in pcinuma.conf, before the guest started).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="a domain's name or UUID")
    parser.add_argument("device", metavar="DEVICE", help=ATTACH_HELP)
    parser.add_argument("--live", action="store_true", help="change the running guest")
    parser.add_argument("--config", action="store_true", help="change the definition")
    parser.add_argument("--json", action="store_true", help="plain data")


def targets(domain: Any, *, live: bool, config: bool) -> tuple[bool, bool]:
    """(live, config): what is asked for, or whatever the domain has if nothing is. LibvirtError where it does not have it."""
    active, persistent = bool(domain.isActive()), bool(domain.isPersistent())
    if live and not active:
        raise LibvirtError("is not running", subject=domain.name(), hint="--config changes its next start")
    if config and not persistent:
        raise LibvirtError("is transient: it has no definition", subject=domain.name(), hint="--live changes the running guest")
    return (live, config) if live or config else (active, persistent)


def run(args: argparse.Namespace) -> int:
    libvirt, xml = libvirt_module(), device_xml(args.device)
    done: list[dict[str, Any]] = []
    with connection(write=True) as opened:
        domain = find_domain(opened, args.domain)
        live, config = targets(domain, live=args.live, config=args.config)
        name, addressed = domain.name(), xml
        if live:
            addressed, message = _address(domain.UUIDString(), xml)
            domain.attachDeviceFlags(addressed.decode(), libvirt.VIR_DOMAIN_AFFECT_LIVE)
            done.append(_seen("live", domain.XMLDesc(0).encode(), xml, message))
        if config:
            refusal = _define(domain, addressed, xml)
            if refusal is not None and not live:
                raise LibvirtError(refusal, subject=args.device)
            before = Guest.read(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE).encode())
    if config and refusal is None:
        done.append(_place(name, xml, placed_before=before.domain.placement is not None))
    elif config:
        done.append({"where": "config", "attached": False, "guest_cell": None, "guest_address": None, "message": refusal})
    status = EXIT_DONE if all(item["attached"] for item in done) else EXIT_NEGATIVE
    if args.json:
        print(json.dumps({"domain": name, "device": args.device, "attached": done}, indent=2))
        return status
    screen = Screen.of()
    for item in done:
        where = "the running guest" if item["where"] == "live" else "the definition"
        place = "outside every cell" if item["guest_cell"] is None else f"under {cell(item['guest_cell'])}"
        at = f" {place} at {item['guest_address']}" if item["guest_address"] else ""
        message = printable(item["message"] or "")
        if item["attached"]:
            note = f"; {screen.paint(message, 'yellow')}" if message else ""
            print(f"{printable(name)}: {printable(args.device)} attached to {where}{at}{note}")
        else:
            print(f"{printable(name)}: {printable(args.device)} {screen.paint('not attached', 'red')} to {where}: {message}")
    return status


def _define(domain: Any, addressed: bytes, xml: bytes) -> Optional[str]:
    """Put the device into the definition; libvirt's words if it refuses. The definition may have another layout than what runs, so that
    an address that fits there may be taken or not exist here."""
    libvirt = libvirt_module()
    refusal = ""
    for attempt in dict.fromkeys((addressed, xml)):
        try:
            domain.attachDeviceFlags(attempt.decode(), libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        except libvirt.libvirtError as error:
            refusal = str(error.get_error_message())
        else:
            return None
    return refusal


def _address(uuid: str, xml: bytes) -> tuple[bytes, Optional[str]]:
    """The device with the address of a spare port in the right place; as it came, and why, if there is none."""
    try:
        reply = client.call("AttachAddress", {"domain_uuid": uuid, "device_xml": xml.decode()})
    except DaemonError as error:
        return xml, f"libvirt chose the port: {error}"
    if reply["changed"]:
        return reply["device_xml"].encode(), None
    return xml, reply["message"]


def _place(name: str, xml: bytes, *, placed_before: bool) -> dict[str, Any]:
    """Place the definition with its new device, unless the domain is none of pcinuma's."""
    try:
        with backend(write=True) as worker:
            definition = worker.place(name, force=placed_before, dry_run=False)
    except PcinumaError as error:
        message = f"not placed: {error}"
        return {"where": "config", "attached": True, "guest_cell": None, "guest_address": None, "message": message}
    report = definition.report or {}
    return _seen("config", definition.after, xml, why(report) if report.get("outcome") != "placed" else None)


def _seen(where: str, domain_xml: bytes, xml: bytes, message: Optional[str]) -> dict[str, Any]:
    """Where the guest has the new device."""
    guest, source = Guest.read(domain_xml), source_of(xml)
    device = None if source is None else guest.device(source)
    address = None if device is None else device.address
    return {
        "where": where,
        "attached": True,
        "guest_cell": None if address is None else guest.cell(address),
        "guest_address": None if address is None else str(address),
        "message": message,
    }
