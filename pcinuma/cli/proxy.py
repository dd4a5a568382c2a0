# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma proxy``: put the proxy on libvirt's own socket, take it away again, or say how it stands (:mod:`pcinuma.proxy.activation`)."""

from __future__ import annotations

import argparse

NAME = "proxy"
HELP = "switch the proxy on or off, for domains that are defined and started in one breath"
EPILOG = """\
examples:
  pcinuma proxy status
  sudo pcinuma proxy enable      clients of libvirt's socket go through the proxy from now on
  sudo pcinuma proxy disable     libvirt's socket is libvirt's again

Either restarts libvirt's daemon: its clients connect anew, running guests are not touched. A single client can use the proxy without
this: virsh -c 'qemu+unix:///system?socket=/run/pcinuma/libvirt-sock'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="enable|disable|status", required=True)
    for action, text in (
        ("enable", "put the proxy on libvirt's own socket"),
        ("disable", "give libvirt its socket back"),
        ("status", "say whether the proxy is on libvirt's socket, and whether it runs"),
    ):
        command = actions.add_parser(action, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
        command.add_argument("--root", metavar="DIR", help="look and write below DIR, and leave the running system alone (for packagers)")
        if action == "status":
            command.add_argument("--json", action="store_true", help="plain data")


def run(args: argparse.Namespace) -> int:
    from pcinuma.proxy import activation as switch

    words = [args.action, *(["--root", args.root] if args.root else []), *(["--json"] if getattr(args, "json", False) else [])]
    return switch.main(words)
