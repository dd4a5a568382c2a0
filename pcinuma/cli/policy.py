# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma policy``: what the owner of a domain wants of pcinuma, in the domain's own metadata, without an editor.

Writes the four attributes of ``{urn:pcinuma:domain:1}pcinuma`` that belong to the owner, by libvirt's metadata call, which leaves the rest
of the definition alone.
"""

from __future__ import annotations

import argparse
import json
from typing import Any, Mapping, Optional

from lxml import etree

from pcinuma.cli.backend import daemon_is_down
from pcinuma.cli.connect import connection, find_domain, libvirt_module
from pcinuma.daemon import client
from pcinuma.domain.metadata import NAMESPACE
from pcinuma.errors import EXIT_DONE, DaemonError, LibvirtError
from pcinuma.printable import command, printable
from pcinuma.settings import CELLS, LINK, GroupBy, Policy
from pcinuma.show.words import placed_of, why
from pcinuma.xml_parser import parse

NAME = "policy"
HELP = "show or set what the owner of a domain wants: preferred, required or off, the grouping, NUMA cells, true links"
EPILOG = """\
examples:
  pcinuma policy vm1                       show it
  pcinuma policy vm1 required              vm1 must not start while a device could be placed and is not
  pcinuma policy vm1 preferred             place it, or let it start as it is
  pcinuma policy vm1 off                   pcinuma keeps off this domain, wherever it is defined
  pcinuma policy vm1 default               what pcinuma.conf says
  pcinuma policy vm1 --group-by switch     mirror PCIe switches (pcinuma explain vm1 says what that costs)
  pcinuma policy vm1 --cells auto          give vm1 NUMA cells whenever it has none (pcinuma cells vm1 shows which)
  pcinuma policy vm1 --link host           its root ports tell the host's link speed and width (libvirt logs it as tainted: custom-device)

A domain that is placed keeps the grouping it was placed by, for devices that come later too, until `pcinuma apply vm1 --replan` lays it out
afresh by the new one (which changes the addresses that its guest sees).
"""
_DEFAULT = "default"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="a domain's name or UUID")
    choices = [policy.value for policy in Policy] + [_DEFAULT]
    parser.add_argument("policy", nargs="?", choices=choices, metavar="POLICY", help=", ".join(choices))
    parser.add_argument("--group-by", choices=[g.value for g in GroupBy] + [_DEFAULT], help="how finely the guest mirrors the host")
    parser.add_argument("--cells", choices=[*CELLS, _DEFAULT], help="auto: NUMA cells, if it has none; off: never")
    parser.add_argument("--link", choices=[*LINK, _DEFAULT], help="host: root ports tell the host's links; off: QEMU's")
    parser.add_argument("--json", action="store_true", help="plain data")


def run(args: argparse.Namespace) -> int:
    libvirt = libvirt_module()
    asked = (("policy", args.policy), ("group-by", args.group_by), ("cells", args.cells), ("link", args.link))
    changes = {name: value for name, value in asked if value is not None}
    with connection(write=bool(changes)) as opened:
        domain = find_domain(opened, args.domain)
        if not domain.isPersistent():
            raise LibvirtError("is transient: it has no definition", subject=domain.name())
        name, element = domain.name(), _element(domain, libvirt)
        for attribute, value in changes.items():
            if value == _DEFAULT:
                element.attrib.pop(attribute, "")
            else:
                element.set(attribute, value)
        if changes:
            text: Optional[str] = etree.tostring(element).decode() if len(element) or element.attrib else None
            kind, where = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_CONFIG
            domain.setMetadata(kind, text, "pcinuma", NAMESPACE, where)
    report = _placed_now(name) if changes else None
    placed = element.find(f"{{{NAMESPACE}}}placement")
    policy, group_by, cells, link = (element.get(attribute) for attribute, _ in asked)
    shown = {"domain": name, "policy": policy, "group_by": group_by, "cells": cells, "link": link, "report": report}
    if args.json:
        print(json.dumps(shown, indent=2))
        return EXIT_DONE
    owners = ", ".join(f"{attribute} {element.get(attribute) or 'as in pcinuma.conf'}" for attribute, _ in asked)
    print(printable(f"{name}: {owners}"))
    if report is not None:
        outcome = f"{placed_of(report)} placed" if report["outcome"] == "placed" else why(report)
        print(f"{printable(name)}: {outcome}")
    elif changes:
        print(f"{printable(name)}: the daemon is not running, and looks at it when it starts; `{command('apply', name)}` does it now")
    placed_by = "" if placed is None else placed.get("group-by", "")
    if placed_by not in ("", shown["group_by"] or placed_by):
        print(f"{printable(name)}: stays grouped by {printable(placed_by)} until `{command('apply', name, '--replan')}`")
    return EXIT_DONE


def _placed_now(name: str) -> Optional[Mapping[str, Any]]:
    """What the daemon makes of the new setting: a change of metadata is no event that it would look at a domain for. None without it."""
    try:
        report: Mapping[str, Any] = client.call("PlaceDomain", {"domain": name}, timeout=120)["report"]
    except DaemonError as error:
        if not daemon_is_down(error):
            raise
        return None
    return report


def _element(domain: Any, libvirt: Any) -> etree._Element:
    """pcinuma's element in the definition, or a new one."""
    try:
        text = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            raise
        text = "<pcinuma/>"  # libvirt gives it the namespace that goes with the key
    return parse(text, "pcinuma's metadata")
