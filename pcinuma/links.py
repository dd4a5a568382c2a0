# SPDX-License-Identifier: LGPL-2.1-or-later
"""Truthful links (``link = host``): the root ports that pcinuma made tell the guest the speed and width of the host's ports.

QEMU's root port says 16 GT/s x32, whatever is below it, and a passed-through device says the truth of itself. Who takes the smaller of
both, as NCCL does, then counts a PCIe 5.0 device half. What a port is to tell is the maximum of the *host's* port above the device: a VF's
and a mediated device's parent has one too, so theirs is the same. A device whose host port tells nothing keeps QEMU's link, as do
devices of different host ports in one guest slot, emulated devices that follow what is behind them, and everything that is not directly
below a root port of pcinuma's: QEMU's switch ports have no such properties.

The engine takes what was written out of a domain (:func:`without`), places what is left, and comes back here (:func:`tell`). So whatever
becomes of the placement, there is nothing that could be left over, and a host whose links changed is told of at the next look. Nobody else
pays for it.

What libvirt and QEMU take is known by their versions where libvirt may be asked (``Request.hypervisor``): libvirt from 8.2, 32 and
64 GT/s from QEMU 9.0 if it is libvirt's default emulator that the domain runs. Where it may not (hook, filter), what every QEMU from 4.0
takes is written, and what a port tells already stands if it is the truth. A speed that cannot be told is left out, so that the port keeps
QEMU's, and a sentence says so. Nothing here raises for what the host or the domain is like.
"""

from __future__ import annotations

from collections import Counter
from typing import Callable, Mapping, NamedTuple, Optional, Sequence

from pcinuma.address import PciAddress
from pcinuma.domain.links import (
    MODEL,
    SPEEDS,
    Emulator,
    are_as_made,
    emulator_of,
    read_link,
    settles_links,
    spelled,
    takes_link,
    without,
    write,
)
from pcinuma.domain.read import read_domain
from pcinuma.domain.xml import Document
from pcinuma.errors import HostError
from pcinuma.host.links import Link, port_link
from pcinuma.host.sysfs import Sysfs
from pcinuma.model import BACKED, Domain, Hypervisor
from pcinuma.report import DeviceReport

__all__ = ["Told", "says_so", "tell", "without"]

_OVERRIDES_SINCE = (8, 2)
_FASTEST_OF_ALL = 16.0
_FASTER_SINCE = (9, 0)
_BACKED = tuple(form.value for form in BACKED)

Ask = Callable[[], Optional[Hypervisor]]


class Told(NamedTuple):
    """``xml``: with what the ports tell. ``links``: that, by controller. ``lacking``: what could not be told, and why."""

    xml: bytes
    links: Mapping[int, Link]
    lacking: Optional[str]


def tell(
    xml: bytes,
    devices: Sequence[DeviceReport],
    sysfs: Sysfs,
    pools: Mapping[str, tuple[PciAddress, ...]],
    ask: Optional[Ask],
    standing: Sequence[tuple[int, str]],
) -> Told:
    """Make the ports in the placed domain ``xml`` tell the truth. ``standing``: what they told before it was taken out."""
    document = Document(xml)
    domain, elements = read_domain(document, frozenset(pools))
    truths = _truths(domain, devices, sysfs, pools)
    if not truths:
        return Told(xml, {}, None)
    if settles_links(document):
        return Told(xml, {}, "the ports' links are as its owner's <qemu:commandline> says")
    theirs = [index for index in truths if not takes_link(document, domain.controllers[index], elements.controllers[index])]
    truths = {index: truth for index, truth in truths.items() if index not in theirs}
    hypervisor = ask() if ask is not None else None
    if hypervisor is not None and hypervisor.libvirt < _OVERRIDES_SINCE:
        return Told(xml, {}, f"the ports show QEMU's links: libvirt {_version(hypervisor.libvirt)} takes no others, 8.2 does")
    before = {index: link for index, text in standing if (link := read_link(text)) is not None}
    qemu = None if hypervisor is None else _version_of(emulator_of(document), hypervisor)
    fast = qemu is not None and qemu >= _FASTER_SINCE
    links, lacking = {}, []
    for index, truth in truths.items():
        if hypervisor is None and before.get(index) == truth:
            links[index] = truth
            continue
        if truth.speed is not None and (truth.speed not in SPEEDS or (truth.speed > _FASTEST_OF_ALL and not fast)):
            lacking.append(truth.speed)
            truth = truth._replace(speed=None)
        if truth != Link():
            links[index] = truth
    write(document, links)
    return Told(document.serialise() if links else xml, links, _sentence(lacking, qemu, hypervisor is not None, theirs))


def says_so(document: Document, standing: Sequence[tuple[int, str]], told: Told) -> bool:
    """Whether the domain as it was, of which ``standing`` is the record, tells already what was ``told``."""
    return dict(standing) == {index: spelled(link) for index, link in told.links.items()} and are_as_made(document, standing)


def _truths(
    domain: Domain, devices: Sequence[DeviceReport], sysfs: Sysfs, pools: Mapping[str, tuple[PciAddress, ...]]
) -> dict[int, Link]:
    """For the occupied root ports of pcinuma's, by index, the link of the host's port above their devices."""
    ours = domain.placement.controllers if domain.placement is not None else ()
    reports = {report.source: report for report in devices}
    found: dict[int, set[Link]] = {}
    for device in domain.devices:
        report = reports.get(device.source)
        if report is None or not report.placed or report.form in _BACKED or device.address is None:
            continue
        index = device.address.bus
        if index in ours and domain.controllers[index].model == MODEL:
            members = [report.device] if report.device is not None else [str(member) for member in pools.get(device.name or "", ())]
            found.setdefault(index, set()).update([_port_link(sysfs, name) for name in members] or [Link()])
    strangers = {address.bus for address in domain.others}
    alone = {index: links for index, links in found.items() if len(links) == 1 and index not in strangers}
    return {index: link for index, links in sorted(alone.items()) for link in links if link != Link()}


def _port_link(sysfs: Sysfs, name: str) -> Link:
    try:
        return port_link(sysfs, name)
    except HostError:
        return Link()  # a link is no reason to leave a domain unplaced


def _version_of(emulator: Emulator, hypervisor: Hypervisor) -> Optional[tuple[int, int]]:
    """The version of the QEMU that the domain runs, where it is libvirt's default one."""
    same = emulator.path in (None, hypervisor.emulator) and emulator.arch in (None, hypervisor.arch)
    return hypervisor.qemu if same else None


def _sentence(lacking: Sequence[float], qemu: Optional[tuple[int, int]], asked: bool, theirs: Sequence[int]) -> Optional[str]:
    said = []
    for speed, number in sorted(Counter(lacking).items()):
        ports = f"{number} port{'' if number == 1 else 's'}"
        if qemu is not None:
            why = f"QEMU {_version(qemu)} knows no such speed"
        elif asked:
            why = "the version of the domain's own QEMU is not known, and before 9.0 there is no such speed"
        else:
            why = "libvirt was not asked for QEMU's version, and before 9.0 there is no such speed"
        said.append(f"{ports} to a device at {speed:g} GT/s on the host cannot tell so ({why})")
    if theirs:
        said.append(f"the owner decides on the link of PCI controller {', '.join(map(str, theirs))}")
    return "; ".join(said) or None


def _version(number: tuple[int, int]) -> str:
    return "%d.%d" % number
