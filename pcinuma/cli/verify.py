# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma verify``: is every device of a *running* guest where the host has it now?

Two independent readings are compared: the guest's live XML (which cell does the guest see for the address that the device has?) and the
host's sysfs with the domain's pinning (which cell should it be?). pcinuma's metadata is not asked, so a placement made by hand
is judged like one of ours.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional, Sequence

from pcinuma.cli.connect import host_root
from pcinuma.cli.sources import DomainSource, read_source
from pcinuma.engine import DeviceReport, place
from pcinuma.errors import EXIT_DONE, EXIT_NEGATIVE
from pcinuma.host.topology import HostDevice, Topology, read_topology
from pcinuma.printable import command, printable
from pcinuma.reason import Reason
from pcinuma.settings import GroupBy
from pcinuma.show.distance import guest_location, host_location
from pcinuma.show.guest import Guest
from pcinuma.show.progress import Progress
from pcinuma.show.screen import Screen
from pcinuma.show.words import cell, node, sentence

NAME = "verify"
HELP = "check a running guest against the host as it is now: PASS or FAIL for each device"
EPILOG = """\
examples:
  pcinuma verify vm1 && echo "vm1 sees its devices where they are"
  pcinuma verify vm1 --json

A device passes if the guest sees it under the cell that stands for its host node (and, unless the domain is grouped by node, under no
expander bus together with a device of another root complex), or if there is a reason why it has no such place.
Exit code 1 if any device fails.
"""

# A device without a place of its own belongs on the default root; these reasons say so.
_OWNERS = (Reason.KEPT, Reason.QEMU_OVERRIDE)
_EXCUSES = (
    *_OWNERS, Reason.NO_AFFINITY, Reason.SEVERAL_NODES, Reason.NO_CELL, Reason.AMBIGUOUS_CELL, Reason.UNASSIGNED, Reason.NOT_PCI,
)  # fmt: skip


@dataclass(frozen=True)
class Check:
    """What came of checking one device. ``guest_cell``: the cell that the guest sees; ``message``: what is wrong, or why it is right."""

    device: DeviceReport
    address: Optional[str]
    guest_cell: Optional[int]
    passed: bool
    message: str

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "source": self.device.source,
            "device": self.device.device,
            "host_node": self.device.host_node,
            "expected_cell": self.device.guest_cell,
            "guest_cell": self.guest_cell,
            "guest_address": self.address,
            "passed": self.passed,
            "message": self.message,
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="a running domain's name or UUID")
    parser.add_argument("--json", action="store_true", help="plain data")


def run(args: argparse.Namespace) -> int:
    with Progress("comparing guest and host"):
        source = read_source(args.domain, live=True)
        checks = check_domain(source, host_root())
    passed = all(check.passed for check in checks)
    if args.json:
        data = {"domain": source.name, "passed": passed, "devices": [check.as_json() for check in checks]}
        print(json.dumps(data, indent=2))
        return EXIT_DONE if passed else EXIT_NEGATIVE
    screen = Screen.of()
    rows = []
    for check in checks:
        word = screen.paint("PASS", "green") if check.passed else screen.paint("FAIL", "red", "bold")
        device = check.device
        place_in_guest = (node(device.host_node), cell(check.guest_cell), check.address or "-")
        rows.append((word, printable(device.source), *place_in_guest, printable(check.message)))
    if not rows:
        print(f"{printable(source.name)}: no passthrough devices")
    else:
        print("\n".join(screen.table(rows, ("", "DEVICE", "HOST", "GUEST SEES", "ADDRESS", ""))))
    if not passed:
        print(f"\n`{command('plan', source.name)}` shows what its next start would change")
    return EXIT_DONE if passed else EXIT_NEGATIVE


def check_domain(source: DomainSource, root: Path) -> list[Check]:
    """The check of every passthrough device of a running domain."""
    guest = Guest.read(source.xml, frozenset(source.pools))
    # What place() would *do* does not matter here; its report says for each device the host node and the cell that stands for it.
    result = place(source.xml, replace(source.request(root), cells=False))
    return check_devices(result.devices, guest, read_topology(root))


def check_devices(devices: Sequence[DeviceReport], guest: Guest, topology: Topology) -> list[Check]:
    """The check of each of ``devices`` where ``guest`` has them."""
    group_by = guest.domain.placement.group_by if guest.domain.placement is not None else None
    checks = [_check_cell(report, guest) for report in devices]
    if group_by is GroupBy.NODE:
        return checks
    return [_check_expander(check, checks, guest, topology) for check in checks]


def _check_cell(report: DeviceReport, guest: Guest) -> Check:
    device = guest.device(report.source)
    address = None if device is None else device.address
    guest_cell = None if address is None else guest.cell(address)
    shown = None if address is None else str(address)
    if report.reason in _EXCUSES and (guest_cell is None or guest_cell == report.guest_cell or report.reason in _OWNERS):
        return Check(report, shown, guest_cell, True, sentence(report.reason.value))
    if report.guest_cell is not None and guest_cell == report.guest_cell:
        return Check(report, shown, guest_cell, True, "")
    if report.host_node is None:
        reason = sentence(report.reason.value if report.reason else None) or sentence(Reason.NO_AFFINITY.value)
        return Check(report, shown, guest_cell, guest_cell is None and report.reason is not Reason.HOST_UNREADABLE, reason)
    where = "the guest sees no node for it" if guest_cell is None else f"the guest sees it under {cell(guest_cell)}"
    should = f"{node(report.host_node)} is {cell(report.guest_cell)}" if report.guest_cell is not None else "no cell stands for its node"
    return Check(report, shown, guest_cell, False, f"host {should}, but {where}")


def _check_expander(check: Check, others: list[Check], guest: Guest, topology: Topology) -> Check:
    """The same check, or a failure if the device shares an expander with a device of another root complex."""
    hosts = {str(device.address): device for device in topology.devices}
    device = guest.device(check.device.source)
    if not check.passed or device is None or device.address is None or guest.top(device.address) is None:
        return check
    mine = hosts.get(check.device.device or "")
    for other in others:
        neighbour, theirs = guest.device(other.device.source), hosts.get(other.device.device or "")
        if neighbour is None or neighbour.address is None or not _known(mine, theirs):
            continue
        assert mine is not None and theirs is not None
        together = guest_location(guest, device.address).root_complex == guest_location(guest, neighbour.address).root_complex
        if together and host_location(mine).root_complex != host_location(theirs).root_complex:
            message = f"shares an expander bus with {other.device.source}, which is under another root complex on the host"
            return Check(check.device, check.address, check.guest_cell, False, message)
    return check


def _known(one: Optional[HostDevice], other: Optional[HostDevice]) -> bool:
    return one is not None and other is not None and one.root_complex is not None and other.root_complex is not None
