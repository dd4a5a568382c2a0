# SPDX-License-Identifier: LGPL-2.1-or-later
"""For one domain, what the host says about each passthrough device that counts.

It joins the two frozen sides, a :class:`~pcinuma.model.Domain` and a :class:`~pcinuma.host.place.HostReader`, into a
:class:`~pcinuma.plan.Resolved` for each: a target (cell, root complex, switches) or a reason. Every device is looked at even after one gave
trouble, so that a report is whole; a device that cannot be read makes the whole domain fall back (``trouble``).
"""

from __future__ import annotations

from typing import Mapping, NamedTuple, Optional

from pcinuma.address import PciAddress
from pcinuma.errors import DeviceAbsent, HostError
from pcinuma.host.place import HostReader, Place
from pcinuma.model import BACKED, AttachedAs, Domain, Form, Passthrough
from pcinuma.placement.aperture import Aperture, firmware_range
from pcinuma.placement.mapping import Mapped, NodeFacts, map_node, map_nodes
from pcinuma.placement.units import kept_sources, shares_slot
from pcinuma.plan import Resolved, Target
from pcinuma.reason import Reason
from pcinuma.settings import Unaligned

_WITH_BARS = (Form.HOSTDEV_PCI, Form.INTERFACE_HOSTDEV, Form.NETWORK_POOL)


class Resolution(NamedTuple):
    """What is known of a domain's devices, each by its source.

    ``hosts``: the PCI address whose place counts (the parent's for mdev and vDPA). ``nodes``: host node. ``cells``: the mapped guest cell.
    ``virtual``: which are VFs, told only of devices that share a guest slot. ``trouble``: why no plan can be made, and the sentence.
    ``aperture``: what UEFI firmware has to map where; None where it does not matter. ``remarks``: sentences for the log.
    """

    resolved: dict[str, Resolved]
    hosts: dict[str, PciAddress]
    nodes: dict[str, int]
    cells: dict[str, int]
    virtual: frozenset[str]
    trouble: Optional[tuple[Reason, str]]
    aperture: Optional[Aperture] = None
    remarks: tuple[str, ...] = ()

    @classmethod
    def nothing(cls) -> Resolution:
        """What is known before any device was looked at."""
        return cls({}, {}, {}, {}, frozenset(), None)


def resolve(
    domain: Domain,
    reader: HostReader,
    pools: Mapping[str, tuple[PciAddress, ...]],
    unaligned: Unaligned,
    switches: bool,
    earlier: Optional[Resolution] = None,
) -> Resolution:
    """Look up every device of ``domain`` that the guest gets as PCI device and that its owner does not keep.

    ``switches``: whether chains of switches are wanted. ``earlier``: of the same devices, before the guest got other cells.
    """
    return _Resolver(domain, reader, pools, unaligned, switches, earlier).run()


class _Resolver:
    def __init__(
        self,
        domain: Domain,
        reader: HostReader,
        pools: Mapping[str, tuple[PciAddress, ...]],
        unaligned: Unaligned,
        switches: bool,
        earlier: Optional[Resolution],
    ) -> None:
        self.domain = domain
        self.pools = pools
        self.unaligned = unaligned
        self.switches = switches
        self.earlier = earlier
        self.reader = reader
        nodes = self.reader.nodes
        self.facts = NodeFacts(nodes.cpus, nodes.distance, nodes.online)
        self.resolved: dict[str, Resolved] = {}
        self.hosts: dict[str, PciAddress] = {}
        self.nodes: dict[str, int] = {}
        self.cells: dict[str, int] = {}
        self.mapped: dict[int, Mapped] = {}
        self.shared: dict[tuple[Mapped, Optional[str], tuple[tuple[str, str], ...]], Resolved] = {}
        self.trouble: Optional[tuple[Reason, str]] = None
        self.remarks: list[str] = []

    def run(self) -> Resolution:
        kept, resolved, hosts = kept_sources(self.domain), self.resolved, self.hosts
        for device in self.domain.devices:
            source = device.source
            if device.host is not None:
                hosts[source] = device.host
            if device.attached_as is not AttachedAs.PCI:
                continue
            if source in kept:
                resolved[source] = Resolved(None, Reason.QEMU_OVERRIDE if source in self.domain.overridden else Reason.KEPT)
            elif device.problem is not None:
                resolved[source] = Resolved(None, Reason.BAD_VALUE)
            else:
                resolved[source] = self._look_at(device)
        sharing = shares_slot(self.domain)
        virtual = frozenset(s for s in sharing if s in self.hosts and self.reader.is_virtual_function(self.hosts[s]))
        return Resolution(self.resolved, self.hosts, self.nodes, self.cells, virtual, self.trouble, self._aperture(), tuple(self.remarks))

    def _aperture(self) -> Optional[Aperture]:
        firmware = self.domain.firmware
        if firmware is None:
            return None
        if self.earlier is not None:
            return self.earlier.aperture
        bars, io = {}, set()
        for device in self.domain.devices:
            if device.attached_as is AttachedAs.PCI and device.source in self.hosts and device.form in _WITH_BARS:
                try:
                    bars[device.source], has_io = self.reader.bars(self.hosts[device.source])
                    io |= {device.source} if has_io else set()
                except HostError:
                    continue  # where it matters, the device's place could not be read either
        cpu = self.reader.cpu()
        found = firmware_range(firmware, cpu.vendor, cpu.bits, cpu.gib_pages)
        return Aperture(found.size, found.known, bars, frozenset(io), found.least, firmware, found.at_most)

    def _look_at(self, device: Passthrough) -> Resolved:
        form, source, reason = device.form, device.source, None
        try:
            if device.host is not None:
                place: Optional[Place] = self.reader.place(device.host, switches=self.switches)
            elif form is Form.NETWORK_POOL:
                place, reason = self._pool_place(device)
            elif form in BACKED:
                place, reason = self._backed_place(device)
            else:
                place = self._place_of_parent(device)
            if place is None or (place.node is None and not place.several):
                return Resolved(None, reason or Reason.NO_AFFINITY)
            if place.node is None:
                mapped = self._map_several(source, place.several)
            else:
                self.nodes[source] = place.node
                mapped = self.mapped.get(place.node) or self._map(place.node)
        except DeviceAbsent as error:
            return self._troubled(Reason.DEVICE_ABSENT, error)
        except HostError as error:
            return self._troubled(Reason.HOST_UNREADABLE, error)
        if mapped.cell is None:
            return Resolved(None, mapped.reason)
        self.cells[source] = mapped.cell
        key = mapped, place.root_complex, place.switches
        found = self.shared.get(key)
        if found is None:
            found = self.shared[key] = Resolved(Target(mapped.cell, place.root_complex, place.switches, mapped.reason), None)
        return found

    def _place_of_parent(self, device: Passthrough) -> Optional[Place]:
        """The place of the PCI device behind ``device``; None where there is none (a software vDPA device)."""
        address: Optional[PciAddress] = None
        if device.form is Form.MDEV:
            address = self._mdev_parent(device.name or "")
        elif device.form is Form.VDPA:
            address = self.reader.vdpa_parent(device.name or "")
        if address is None:
            return None
        self.hosts[device.source] = address
        return self.reader.place(address, switches=self.switches)

    def _mdev_parent(self, uuid: str) -> Optional[PciAddress]:
        """The parent in sysfs; of an inactive device what libvirt told of it."""
        try:
            return self.reader.mdev_parent(uuid)
        except DeviceAbsent:
            if uuid not in self.pools:
                raise
            return self.pools[uuid][0]

    def _pool_place(self, device: Passthrough) -> tuple[Optional[Place], Optional[Reason]]:
        """The place that all members of a hostdev pool share; else None and why."""
        members = self.pools.get(device.name or "")
        return self._shared_place(members) if members else (None, Reason.POOL_UNRESOLVED)

    def _backed_place(self, device: Passthrough) -> tuple[Optional[Place], Optional[Reason]]:
        """The place of what is behind an emulated device; what is gone is no reason to leave the passthrough devices unplaced."""
        from pcinuma.host.backing import Backings  # not for those who do without

        backings, name = Backings(self.reader.sysfs), device.name or ""
        behind = backings.of_block(name) if device.form is Form.BLOCK_DISK else backings.of_net(name)
        if behind is None:
            return None, Reason.BACKING_UNKNOWN
        members = tuple(sorted(behind))
        if len(members) == 1:
            self.hosts[device.source] = members[0]
        try:
            return self._shared_place(members)
        except DeviceAbsent:
            return None, Reason.BACKING_UNKNOWN

    def _shared_place(self, members: tuple[PciAddress, ...]) -> tuple[Optional[Place], Optional[Reason]]:
        """The place that all of ``members`` have; None and why where they have several."""
        places = [self.reader.place(member, switches=self.switches) for member in members]
        if len({(place.node, place.several, place.root_complex) for place in places}) > 1:
            return None, Reason.MIXED_NODES
        shared = places[0].switches if len({place.switches for place in places}) == 1 else ()
        return places[0]._replace(switches=shared), None

    def _map_several(self, source: str, nodes: tuple[int, ...]) -> Mapped:
        mapped = map_nodes(self.domain, nodes, self.facts, self.unaligned)
        if mapped.cell is None:
            named = f"{', '.join(map(str, nodes[:-1]))} and {nodes[-1]}"
            hint = "with unaligned = nearest the lowest that a guest cell stands for would count"
            self.remarks.append(f"{source} is equally local to the host nodes {named}; {hint}")
        return mapped

    def _map(self, node: int) -> Mapped:
        found = self.mapped[node] = map_node(self.domain, node, self.facts, self.unaligned)
        return found

    def _troubled(self, reason: Reason, error: HostError) -> Resolved:
        if self.trouble is None or (reason is Reason.HOST_UNREADABLE and self.trouble[0] is Reason.DEVICE_ABSENT):
            self.trouble = (reason, error.sentence())
        return Resolved(None, reason)
