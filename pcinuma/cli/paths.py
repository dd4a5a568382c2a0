# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma paths``: which way traffic between devices goes, what is in its way, and whether a link does what it can."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Optional, Sequence

from pcinuma.cli.connect import host_root
from pcinuma.cli.sources import DomainSource, read_source
from pcinuma.engine import place
from pcinuma.errors import EXIT_DONE
from pcinuma.host.links import Link
from pcinuma.host.sysfs import Sysfs
from pcinuma.host.topology import HostDevice, Topology, read_topology
from pcinuma.model import BACKED, Form
from pcinuma.paths.facts import Ats, Facts, Kind, PathReader
from pcinuma.paths.verdict import Verdict, Way, below_switch, same_device, together, without_switch
from pcinuma.printable import command, printable
from pcinuma.show.describe import Describer, count
from pcinuma.show.distance import Distance, distance, guest_location, host_location
from pcinuma.show.guest import Guest
from pcinuma.show.progress import Progress
from pcinuma.show.screen import Screen

NAME = "paths"
HELP = "say which way traffic between devices goes, and what slows it: switches, ACS, ATS, links"
EPILOG = """\
examples:
  pcinuma paths                 the GPUs, NICs and drives of this host, as its own drivers use them
  pcinuma paths vm1             the devices of a guest, on the host and as the guest sees them
  pcinuma paths vm1 --json      every pair, for programs

direct: the switch passes requests on; redirected: a switch is shared, but they go up to the root port; cpu: no switch is shared;
remote: the devices are on two NUMA nodes. Whatever a sentence tells to change has its cost beside it; nothing is changed here.

Between GPUs in a guest NVIDIA's driver does peer-to-peer over PCIe only where x-nv-gpudirect-clique (a property of QEMU's vfio-pci)
says that it works. That is a promise of the owner's, which pcinuma never makes: where it is wrong, data is lost without an error.
"""
_SHOWN_PAIRS = 4
_NEAR = (Distance.PIX, Distance.PXB)
_EMULATED = (*BACKED, Form.NVME_DISK, Form.VDPA)


@dataclass(frozen=True)
class Member:
    """A device. ``source``: the domain's name for it; ``address``: the guest's, by controller index; ``atomics``: whether QEMU (8.1 and
    later) can tell the guest that its port completes AtomicOps; both None without a domain."""

    facts: Facts
    source: str
    address: Optional[str] = None
    atomics: Optional[bool] = None


@dataclass(frozen=True)
class Pair:
    """Two devices. ``in_guest`` is None without a domain, or where the guest has no address for one of them yet."""

    one: Member
    other: Member
    on_host: Distance
    in_guest: Optional[Distance]
    verdict: Verdict

    @property
    def kinds(self) -> str:
        """What they are, such as ``GPU and NIC``."""
        order = list(Kind)
        one, other = sorted((self.one.facts.kind, self.other.facts.kind), key=order.index)
        return f"two {one.value}s" if one is other else f"{one.value} and {other.value}"

    @property
    def hidden(self) -> bool:
        """Whether the guest sees a GPU and a NIC too far apart for NCCL's GPUDirect RDMA, and the host does not."""
        kinds = {self.one.facts.kind, self.other.facts.kind}
        return kinds == {Kind.GPU, Kind.NIC} and self.on_host in _NEAR and self.in_guest not in (None, *_NEAR)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("domain", nargs="?", metavar="DOMAIN", help="a domain's name or UUID, or a file with its XML (- for stdin)")
    parser.add_argument("--root", type=Path, metavar="DIR", help="read the host from DIR/sys instead of /sys")
    parser.add_argument("--json", action="store_true", help="plain data")


def run(args: argparse.Namespace) -> int:
    root = args.root or host_root()
    with Progress("reading the host"):
        topology = read_topology(root)
    reader = PathReader(Sysfs(root))
    source, guest = None, None
    if args.domain is None:
        members = [Member(reader.facts(device), str(device.address)) for device in topology.devices if _of_interest(device)]
    else:
        source = read_source(args.domain)
        guest = Guest.read(source.xml, frozenset(source.pools))
        members = _members(source, guest, topology, reader, root)
    pairs = [_pair(one, other, guest, reader) for one, other in combinations(members, 2)]
    if args.json:
        data = {
            "domain": None if source is None else source.name,
            "devices": [_member_json(member) for member in members],
            "pairs": [_pair_json(pair) for pair in pairs],
        }
        print(json.dumps(data, indent=2))
        return EXIT_DONE
    lines = _text(members, pairs, source, Screen.of(), Describer(root))
    print("\n".join(lines))
    return EXIT_DONE


def _of_interest(device: HostDevice) -> bool:
    """A GPU, NIC or drive of the host itself; VFs have their PF's ways."""
    return device.physfn is None and not device.is_bridge and Kind.of(device.class_code) is not Kind.OTHER


def _members(source: DomainSource, guest: Guest, topology: Topology, reader: PathReader, root: Path) -> list[Member]:
    hosts = {str(device.address): device for device in topology.devices}
    members = []
    for report in place(source.xml, source.request(root)).devices:
        device, host = guest.device(report.source), hosts.get(report.device or "")
        if host is None or device is None or device.form in _EMULATED:
            continue
        address, atomics = None, None
        if device.address is not None:
            address = str(device.address)
            path = guest.path(device.address)
            atomics = bool(path) and path[-1].model == "pcie-root-port" and not guest.has_neighbours(device.address)
        members.append(Member(reader.facts(host), report.source, address, atomics))
    return members


def _pair(one: Member, other: Member, guest: Optional[Guest], reader: PathReader) -> Pair:
    first, second = one.facts.device, other.facts.device
    on_host = distance(host_location(first), host_location(second))
    in_guest = None
    if guest is not None:
        mine, theirs = guest.device(one.source), guest.device(other.source)
        if mine is not None and theirs is not None and mine.address is not None and theirs.address is not None:
            in_guest = distance(guest_location(guest, mine.address), guest_location(guest, theirs.address))
    if first.address[:3] == second.address[:3]:
        verdict = same_device()
    elif on_host in _NEAR:
        shared = 0
        for mine_above, yours_above in zip(first.path, second.path):
            shared += mine_above == yours_above
        ports = (*reader.ports(first, shared), *reader.ports(second, shared))
        verdict = below_switch(one.facts, other.facts, ports, guest=guest is not None)
    else:
        known = first.node is not None and second.node is not None
        verdict = without_switch(on_host is Distance.PHB, first.node == second.node if known else None)
    return Pair(one, other, on_host, in_guest, verdict)


def _member_json(member: Member) -> dict[str, Any]:
    facts = member.facts
    return {
        "source": member.source,
        "device": facts.name,
        "kind": facts.kind.name.lower(),
        "host_node": facts.device.node,
        "guest_address": member.address,
        "link": {"speed_gts": facts.now.speed, "width": facts.now.width},
        "best_link": {"speed_gts": facts.best.speed, "width": facts.best.width},
        "ats": None if facts.ats is None else facts.ats.value,
        "iommu_group": facts.device.iommu_group,
        "iommu_type": facts.iommu,
        "atomicops": member.atomics,
    }


def _pair_json(pair: Pair) -> dict[str, Any]:
    return {
        "first": pair.one.source,
        "second": pair.other.source,
        "host": pair.on_host.value,
        "guest": None if pair.in_guest is None else pair.in_guest.value,
        "verdict": pair.verdict.way.value,
        "why": pair.verdict.why,
        "advice": pair.verdict.advice,
        "nccl_gpudirect_rdma_hidden": pair.hidden,
    }


def _text(
    members: Sequence[Member], pairs: Sequence[Pair], source: Optional[DomainSource], screen: Screen, describer: Describer
) -> list[str]:
    if not members:
        return ["no GPUs, NICs or drives on this host" if source is None else f"{printable(source.name)}: no passthrough devices"]
    header = ["DEVICE", "KIND", "NODE", "LINK", "ATS", "IOMMU GROUP", *([] if source is None else ["IN THE GUEST", "ATOMICOPS"])]
    header.append("")
    rows = []
    for member in members:
        facts = member.facts
        group = f"{facts.device.iommu_group or '-'}{f' ({facts.iommu})' if facts.iommu else ''}"
        node = "-" if facts.device.node is None else str(facts.device.node)
        row = [printable(member.source), facts.kind.value, node, _link(facts, screen), _ats(facts.ats), printable(group)]
        if source is not None:
            row += [member.address or "-", {True: "yes", False: "no", None: "-"}[member.atomics]]
        row.append(describer.short(facts.device))
        rows.append(row)
    lines = screen.table(rows, header)
    lines += _link_faults(members, screen)
    for (what, verdict), found in _grouped(pairs):
        word = screen.paint(verdict.way.value, {Way.DIRECT: "green", Way.REDIRECTED: "yellow"}.get(verdict.way, "bold"))
        lines += ["", f"{word}  {what}: {_names(found)}", *screen.wrap(verdict.why, indent="  ")]
        lines += [] if verdict.advice is None else screen.wrap(verdict.advice, indent="  ")
    hidden = sum(pair.hidden for pair in pairs)
    if hidden and source is not None:
        file = command("topology", source.name, "--nccl")
        told = f"NCCL uses GPUDirect RDMA up to PXB, and the guest sees {count(hidden, 'pair')} of GPU and NIC farther apart than the host"
        lines += ["", *screen.wrap(f"{told}: `{file}` prints a file that tells it of the host.")]
    return lines


def _grouped(pairs: Sequence[Pair]) -> list[tuple[tuple[str, Verdict], list[Pair]]]:
    """The pairs of which the same is to be said, best ways first. Far ones are not told apart by kind; two NICs or drives say nothing."""
    groups: dict[tuple[str, Verdict], list[Pair]] = {}  # by what is said, whichever devices and ports it names
    for pair in pairs:
        kinds = {pair.one.facts.kind, pair.other.facts.kind}
        if len(kinds) == 1 and kinds != {Kind.GPU} and pair.on_host not in _NEAR:
            continue
        distances = pair.on_host.value
        if pair.in_guest is not None:
            distances += f" on the host, {pair.in_guest.value} in the guest"
        what = f"{distances}, {pair.kinds}" if pair.on_host in _NEAR else distances
        groups.setdefault((what, pair.verdict._replace(names=())), []).append(pair)
    order = list(Way)
    found = [((what, together([pair.verdict for pair in pairs])), pairs) for (what, _), pairs in groups.items()]
    return sorted(found, key=lambda item: (order.index(item[0][1].way), item[0][0]))


def _link(facts: Facts, screen: Screen) -> str:
    if facts.now == Link():
        return "-"
    colour = "red" if facts.narrow else "yellow" if facts.slow else None
    return facts.link_text if colour is None else screen.paint(facts.link_text, colour)


def _link_faults(members: Sequence[Member], screen: Screen) -> list[str]:
    narrow = [printable(member.source) for member in members if member.facts.narrow]
    slow = [member for member in members if member.facts.slow and not member.facts.narrow]
    gpus = [printable(member.source) for member in slow if member.facts.kind is Kind.GPU]
    others = [printable(member.source) for member in slow if member.facts.kind is not Kind.GPU]
    lines = []
    if narrow:
        lines.append(f"fewer lanes than both ends have: {', '.join(narrow)}; reseat the card, look at its riser and the slot's bifurcation")
    if others:
        lines.append(f"slower than both ends can: {', '.join(others)}; reseat the card, and look at the slot's speed in the firmware")
    if gpus:
        lines.append(f"slower than both ends can: {', '.join(gpus)}; idle GPUs save power so, look again under load")
    return ["", *(line for text in lines for line in screen.wrap(text))] if lines else []


def _ats(ats: Optional[Ats]) -> str:
    return "?" if ats is None else "-" if ats is Ats.NONE else ats.value


def _names(pairs: Sequence[Pair]) -> str:
    shown = ", ".join(f"{printable(pair.one.source)} + {printable(pair.other.source)}" for pair in pairs[:_SHOWN_PAIRS])
    return shown + (f" and {len(pairs) - _SHOWN_PAIRS} more" if len(pairs) > _SHOWN_PAIRS else "")
