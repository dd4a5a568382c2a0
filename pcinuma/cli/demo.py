# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma demo``: a virtual two-socket host in which pcinuma does its work before your eyes (:mod:`pcinuma.lab.demo`)."""

from __future__ import annotations

import argparse

NAME = "demo"
HELP = "boot a virtual two-socket host and show what a guest sees without pcinuma and with it"
EPILOG = """\
examples:
  pcinuma demo --quick          ten seconds: one guest on a server that was written down, no libvirt
  sudo pcinuma demo             four minutes: two virtual hosts with libvirt and VFIO, without pcinuma and with it
  sudo pcinuma demo --keep      ends with a shell in the virtual host
  sudo pcinuma demo --json

Everything is emulated: no NUMA machine and no passthrough hardware needed. Nothing is left behind.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep", action="store_true", help="end with a shell in the virtual host")
    parser.add_argument("--quick", action="store_true", help="boot only a guest, placed on a server that was written down")
    parser.add_argument("--json", action="store_true", help="print what the kernels saw, and the verdict, as JSON")


def run(args: argparse.Namespace) -> int:
    from pcinuma.lab import demo

    return demo.main([*(["--keep"] if args.keep else []), *(["--quick"] if args.quick else []), *(["--json"] if args.json else [])])
