# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma verify``: is every device of a *running* guest where the host has it now?

Two independent readings are compared: what the guest sees (which node does it have for the device?) and the host's sysfs with the
domain's pinning (which cell should it be?). Where the QEMU guest agent runs in the guest, its kernel says itself what it sees
(:mod:`pcinuma.guest.seen`); else the live XML says what it must see. Never half of each: an agent that fails in between counts as none.
pcinuma's metadata is not asked, so a placement made by hand is judged like one of ours.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Optional, Sequence

from pcinuma.cli.connect import host_root
from pcinuma.cli.guest_agent import SECONDS, ask, readable, require_agent
from pcinuma.cli.sources import DomainSource, read_source
from pcinuma.engine import DeviceReport, place
from pcinuma.errors import EXIT_DONE, EXIT_NEGATIVE, UnusableInput
from pcinuma.guest.agent import AgentError, AgentState, GuestAgent
from pcinuma.guest.seen import KernelView, Region, Seen, regions, without_address
from pcinuma.host.links import Link, best_link
from pcinuma.host.place import DEVICES
from pcinuma.host.sysfs import Sysfs
from pcinuma.host.topology import HostDevice, Topology, read_topology
from pcinuma.model import Form
from pcinuma.printable import command, printable
from pcinuma.reason import Reason
from pcinuma.settings import GroupBy
from pcinuma.show.describe import count
from pcinuma.show.distance import guest_location, host_location
from pcinuma.show.guest import Guest
from pcinuma.show.progress import Progress
from pcinuma.show.screen import Screen
from pcinuma.show.words import cell, names, node, sentence

NAME = "verify"
HELP = "check a running guest against the host as it is now: PASS or FAIL for each device"
EPILOG = """\
examples:
  pcinuma verify vm1 && echo "vm1 sees its devices where they are"
  pcinuma verify vm1 --json

Where the QEMU guest agent runs in the guest, the guest's kernel is asked (files of its sysfs are read, nothing else); else the live XML
tells what it must see. The last lines say which. A device passes if the guest sees it under the cell that stands for its host node (and,
unless the domain is grouped by node, under no expander bus together with a device of another root complex), or if there is a reason why it
has no such place; and, where the kernel is asked, if it has the device there, with an address for each memory BAR.
Exit code 1 if any device fails.
"""

# A device without a place of its own belongs on the default root; these reasons say so.
_OWNERS = (Reason.KEPT, Reason.QEMU_OVERRIDE)
_EXCUSES = (
    *_OWNERS, Reason.NO_AFFINITY, Reason.SEVERAL_NODES, Reason.NO_CELL, Reason.AMBIGUOUS_CELL, Reason.UNASSIGNED, Reason.NOT_PCI,
)  # fmt: skip


class Told(NamedTuple):
    """What came of asking the guest: by ``source`` what its kernel has, None where the agent could not be asked, or not to the end."""

    state: AgentState
    detail: str
    seen: Optional[Mapping[str, Optional[Seen]]]

    @property
    def sentence(self) -> str:
        """Who said what is shown."""
        text = self.state.sentence + (f" ({printable(self.detail)})" if self.detail else "")
        return text if self.seen is not None else f"from the live XML: {text}"


NOT_ASKED = Told(AgentState.NONE, "", None)


@dataclass(frozen=True)
class Check:
    """What came of checking one device. ``guest_cell``: the cell that the guest sees; ``message``: what is wrong, or why it is right.

    ``seen``: what the guest's kernel says, where it was asked; ``link``: what the host's can do.
    """

    device: DeviceReport
    address: Optional[str]
    guest_cell: Optional[int]
    passed: bool
    message: str
    seen: Optional[Seen] = None
    link: Optional[Link] = None

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
            "guest": None if self.seen is None else _seen_json(self.seen),
            "host_link": None if self.link is None else self.link._asdict(),
        }


def _seen_json(seen: Seen) -> dict[str, Any]:
    """The guest kernel's own words; what it does not have is null throughout."""
    there = seen.missing is None
    ids = None if seen.vendor is None or seen.device is None else f"{seen.vendor:04x}:{seen.device:04x}"
    return {
        "address": None if seen.address is None else str(seen.address),
        "missing": None if there else str(seen.missing),
        "bridges": [str(bridge) for bridge in seen.bridges],
        "id": ids,
        "numa_node": seen.node,
        "driver": seen.driver,
        "link": seen.link._asdict(),
        "bars_without_address": [number for number, region in seen.regions if not region.start],
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="a running domain's name or UUID")
    parser.add_argument("--timeout", type=float, default=SECONDS, metavar="SECONDS", help=f"for asking the guest (default {SECONDS:g})")
    parser.add_argument("--json", action="store_true", help="plain data")


def run(args: argparse.Namespace) -> int:
    if not 0 < args.timeout < 86400:
        raise UnusableInput("--timeout takes seconds, above 0 and below a day")
    with Progress("comparing guest and host"):
        source = read_source(args.domain, live=True)
        told = ask_guest(source, args.timeout)
        checks = check_domain(source, host_root(), told)
    passed = all(check.passed for check in checks)
    if args.json:
        asked = {"state": told.state.value, "message": told.sentence}
        says = "guest" if told.seen is not None else "xml"
        data = {"domain": source.name, "passed": passed, "from": says, "agent": asked, "devices": [check.as_json() for check in checks]}
        print(json.dumps(data, indent=2))
        return EXIT_DONE if passed else EXIT_NEGATIVE
    if not checks:
        print(f"{printable(source.name)}: no passthrough devices")
        return EXIT_DONE
    screen = Screen.of()
    print("\n".join(_table(checks, told, screen)))
    print("\n".join(["", *screen.wrap(f"{told.sentence[0].upper()}{told.sentence[1:]}."), *links(checks, screen)]))
    if not passed:
        print(f"\n`{command('plan', source.name)}` shows what its next start would change")
    return EXIT_DONE if passed else EXIT_NEGATIVE


def _table(checks: Sequence[Check], told: Told, screen: Screen) -> list[str]:
    """A row for each device; what is to be said of several follows, once."""
    said = Counter(check.message for check in checks if check.message)
    rows = []
    for check in checks:
        word = screen.paint("PASS", "green") if check.passed else screen.paint("FAIL", "red", "bold")
        address, more = check.address, []
        if told.seen is not None:  # what the guest's lspci says; in the XML the bus is a controller's index
            seen = check.seen
            address = None if seen is None or seen.address is None else str(seen.address)
            more = [printable((seen and seen.driver) or "-")]
        place_in_guest = (node(check.device.host_node), cell(check.guest_cell), address or "-")
        own = check.message if said[check.message] == 1 else ""
        rows.append((word, printable(check.device.source), *place_in_guest, *more, printable(own)))
    header = ("ADDRESS",) if told.seen is None else ("ADDRESS THERE", "DRIVER")
    lines = screen.table(rows, ("", "DEVICE", "HOST", "GUEST SEES", *header, ""))
    shared = [message for message, number in said.items() if number > 1]
    for message in shared:
        whom = [check.device.source for check in checks if check.message == message]
        text = f"{f'all {len(whom)} devices' if len(whom) == len(checks) else names(whom)}: {printable(message)}"
        lines += ["", *screen.wrap(text)]
    return lines


def links(checks: Sequence[Check], screen: Screen) -> list[str]:
    """The links that the guest is shown as slower or narrower than the host's are, said once for all devices that have them so."""
    found: dict[tuple[Link, Link], int] = {}
    for check in checks:
        if check.seen is not None and check.link is not None and _less(check.seen.link, check.link):
            found[(check.seen.link, check.link)] = found.get((check.seen.link, check.link), 0) + 1
    lines = []
    for (shown, real), number in found.items():
        text = f"{count(number, 'device')}: the guest is shown a link of {shown.text}, and the host's is {real.text}."
        lines += screen.wrap(text)
    return lines


def _less(one: Link, other: Link) -> bool:
    return any(mine is not None and theirs is not None and mine < theirs for mine, theirs in zip(one, other))


def ask_guest(source: DomainSource, seconds: float) -> Told:
    """What the guest's own kernel says of its passthrough devices."""
    guest = Guest.read(source.xml, frozenset(source.pools))
    try:
        require_agent(source.xml, guest.domain)
        if not guest.domain.devices:
            return NOT_ASKED
        return Told(AgentState.ANSWERED, "", ask(source.name, partial(_look, guest), seconds))
    except AgentError as error:
        return Told(error.state, error.detail, None)


def _look(guest: Guest, agent: GuestAgent) -> Mapping[str, Optional[Seen]]:
    readable(agent)
    view = KernelView(guest.domain, agent.read)
    return {device.source: view.device(device) for device in guest.domain.devices}


def check_domain(source: DomainSource, root: Path, told: Told = NOT_ASKED) -> list[Check]:
    """The check of every passthrough device of a running domain."""
    guest = Guest.read(source.xml, frozenset(source.pools))
    # What place() would *do* does not matter here; its report says for each device the host node and the cell that stands for it.
    result = place(source.xml, replace(source.request(root), cells=False))
    checks = check_devices(result.devices, guest, read_topology(root), told.seen)
    return [_check_kernel(check, Sysfs(root)) for check in checks]


def check_devices(
    devices: Sequence[DeviceReport], guest: Guest, topology: Topology, seen: Optional[Mapping[str, Optional[Seen]]] = None
) -> list[Check]:
    """The check of each of ``devices`` where ``guest`` has them; ``seen``: what the guest's kernel says."""
    group_by = guest.domain.placement.group_by if guest.domain.placement is not None else None
    checks = [_check_cell(report, guest, None if seen is None else seen.get(report.source)) for report in devices]
    if group_by is GroupBy.NODE:
        return checks
    return [_check_expander(check, checks, guest, topology) for check in checks]


def _check_cell(report: DeviceReport, guest: Guest, seen: Optional[Seen] = None) -> Check:
    device = guest.device(report.source)
    address = None if device is None else device.address
    guest_cell = None if address is None else guest.cell(address)
    if seen is not None and seen.missing is None:
        # A kernel that was told of no cells has one node all the same, and may say so.
        guest_cell = seen.node if guest.domain.cells else None
    check = Check(report, None if address is None else str(address), guest_cell, False, "", seen)
    if report.reason in _EXCUSES and (guest_cell is None or guest_cell == report.guest_cell or report.reason in _OWNERS):
        return replace(check, passed=True, message=sentence(report.reason.value))
    if report.guest_cell is not None and guest_cell == report.guest_cell:
        return replace(check, passed=True)
    if report.host_node is None:
        reason = sentence(report.reason.value if report.reason else None) or sentence(Reason.NO_AFFINITY.value)
        return replace(check, passed=guest_cell is None and report.reason is not Reason.HOST_UNREADABLE, message=reason)
    where = "the guest sees no node for it" if guest_cell is None else f"the guest sees it under {cell(guest_cell)}"
    should = f"{node(report.host_node)} is {cell(report.guest_cell)}" if report.guest_cell is not None else "no cell stands for its node"
    return replace(check, message=f"host {should}, but {where}")


# In these forms the guest gets the host's function itself, with its ids and BARs.
_WHOLE = (Form.HOSTDEV_PCI.value, Form.INTERFACE_HOSTDEV.value)


def _check_kernel(check: Check, sysfs: Sysfs) -> Check:
    """The same check with the host's link, or a failure if the guest's kernel has no such device, or cannot use it."""
    seen, whole = check.seen, check.device.form in _WHOLE and check.device.device is not None
    host = f"{DEVICES}/{check.device.device}"
    if seen is not None and seen.missing is not None:
        what = "device" if seen.address is not None else "PCI bridge"
        return replace(check, guest_cell=None, passed=False, message=f"the guest's kernel has no {what} at {seen.missing}")
    if not whole:
        return check
    check = replace(check, link=best_link(sysfs, str(check.device.device)))
    if seen is None or not check.passed:
        return check
    ids = (sysfs.read_int(f"{host}/vendor", 16), sysfs.read_int(f"{host}/device", 16))
    if None not in ids and (seen.vendor, seen.device) != ids:
        return replace(check, passed=False, message=f"at {seen.address} the guest has {seen.vendor:04x}:{seen.device:04x}, another device")
    lost = without_address(seen.regions, _host_regions(sysfs, host))
    if lost:
        numbers = ", ".join(map(str, lost))
        message = f"the guest's kernel found no address for BAR {numbers}: its window for PCI memory is too small (pcinuma explain)"
        return replace(check, passed=False, message=message)
    return check


def _host_regions(sysfs: Sysfs, host: str) -> tuple[tuple[int, Region], ...]:
    try:
        return regions((sysfs.read(f"{host}/resource") or "").encode())
    except AgentError:
        return ()  # not the guest's fault


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
            return replace(check, passed=False, message=message)
    return check


def _known(one: Optional[HostDevice], other: Optional[HostDevice]) -> bool:
    return one is not None and other is not None and one.root_complex is not None and other.root_complex is not None
