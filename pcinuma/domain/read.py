# SPDX-License-Identifier: LGPL-2.1-or-later
"""From a domain's XML to a :class:`~pcinuma.model.Domain`, in one pass over ``<devices>``.

Values that mean nothing do not raise here: the device or the domain carries the sentence as its ``problem``, so that a report can still
list every device. Numbers and lists are read as libvirt reads them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Mapping, NamedTuple, Optional

from lxml import etree

from pcinuma.address import PciAddress
from pcinuma.domain import metadata
from pcinuma.domain.address import attributes_of, location_of, number, read_location
from pcinuma.domain.aperture import read_firmware
from pcinuma.domain.commandline import NAMESPACE, NOTHING, CommandlineDevices, aliases_of, overridden_addresses, read_commandline
from pcinuma.domain.numa import read_numa
from pcinuma.domain.ownership import as_made
from pcinuma.domain.passthrough import Named, read_passthrough
from pcinuma.domain.remembered import Attributes, remembered
from pcinuma.domain.slots import implied_devices, wants_slot
from pcinuma.domain.xml import Document, Parts, child, parts_of
from pcinuma.errors import DomainError
from pcinuma.model import AttachedAs, Controller, Domain, MachineKind, Passthrough
from pcinuma.settings import Policy

_PC = re.compile(r"pc\Z|pc-i440fx-|pc-[01]\.")
_SWITCHED: Mapping[Optional[str], bool] = {"on": True, "off": False}
_MAY_PASS_THROUGH = ("hostdev", "interface", "disk")
_MACHINES_OF_VIRT = ("aarch64", "arm", "armv7l", "armv6l")


class Elements(NamedTuple):
    """Where in the document the things of a :class:`Domain` are, for edits: by source, by controller index, by address.

    ``addresses``: the ``<address>`` of a device that has one.
    """

    devices: Mapping[str, etree._Element]
    addresses: Mapping[str, etree._Element]
    controllers: Mapping[int, etree._Element]
    others: Mapping[PciAddress, etree._Element]


def read_domain(document: Document, pools: frozenset[str] = frozenset(), near_backing: bool = False) -> tuple[Domain, Elements]:
    """The domain in ``document``; ``pools`` names the networks that are known to be hostdev pools.

    ``near_backing``: emulated devices that have one host device behind them count as devices too (:mod:`pcinuma.domain.backing`).
    """
    return _Reader(document.root, pools, near_backing).read()


def parse_domain(xml: bytes) -> Domain:
    """What a domain XML says, for who needs none of its elements. Raises UnusableInput."""
    return read_domain(Document(xml))[0]


def machine_kind(element: Optional[etree._Element]) -> tuple[MachineKind, Optional[str]]:
    """The kind of the machine type in ``<os><type>`` and its name (libvirt's ``qemuDomainMachineIs…`` in ``src/qemu/qemu_domain.c``)."""
    name = element.get("machine") if element is not None else None
    if element is None or not name:
        return MachineKind.UNNAMED, None
    arch = element.get("arch")
    if arch in (None, "x86_64", "i686"):
        if name == "q35" or name.startswith("pc-q35"):
            return MachineKind.PCIE, name
        if _PC.match(name):
            return MachineKind.PCI, name
    if arch in _MACHINES_OF_VIRT and (name == "virt" or name.startswith("virt-")):
        return MachineKind.PCIE, name
    if arch in ("ppc64", "ppc64le", None) and (name == "pseries" or name.startswith("pseries-")):
        return MachineKind.PHB, name
    return MachineKind.NONE, name


class _Reader:
    def __init__(self, root: etree._Element, pools: frozenset[str], near_backing: bool) -> None:
        self.root = root
        self.top = parts_of(root)
        self.system: Parts = parts_of(self.top["os"]) if "os" in self.top else {}
        self.pools = pools
        self.near_backing = near_backing
        self.recorded: frozenset[str] = frozenset()
        self.problem: Optional[str] = None
        self.controllers: dict[int, Controller] = {}
        self.controller_elements: dict[int, etree._Element] = {}
        self.devices: list[Passthrough] = []
        self.device_elements: dict[str, etree._Element] = {}
        self.address_elements: dict[str, etree._Element] = {}
        self.others: dict[PciAddress, etree._Element] = {}
        self.multifunction: set[PciAddress] = set()
        self.unaddressed = 0
        self.root_iommu = False

    def read(self) -> tuple[Domain, Elements]:
        own = metadata.NOTHING
        try:
            own = metadata.read(self.top.get("metadata"))
        except DomainError as error:
            self._trouble(error)
            element = metadata.find(self.top.get("metadata"))
            if element is not None and element.get("policy") == "off":
                own = own._replace(policy=Policy.OFF)
        machine, machine_name = machine_kind(self.system.get("type"))
        pools = self.pools
        if own.placement is not None:
            pools = pools | {o.source.partition("#")[0] for o in own.placement.devices if "#" in o.source}
            self.recorded = frozenset(o.source for o in own.placement.devices if "@" in o.source)
        devices = self.top.get("devices")
        if devices is not None:
            self._devices(devices, machine, pools)
        numa = read_numa(self.top)
        self.problem = self.problem or numa.problem
        placement = None if own.placement is None else as_made(own.placement, self.controllers, machine)
        from_commandline = self._commandline(placement.controllers if placement is not None else ())
        overridden, elsewhere = self._overridden(pools)
        domain = Domain(
            name=self._text("name"),
            uuid=self._text("uuid") or None,
            machine=machine,
            machine_name=machine_name,
            without_acpi=self._without_acpi(),
            cells=numa.cells,
            memnodes=numa.memnodes,
            memory=numa.memory,
            pins=numa.pins,
            controllers=self.controllers,
            devices=tuple(self.devices),
            others=(*self.others, *from_commandline.occupied, *elsewhere),
            multifunction=frozenset(self.multifunction),
            unaddressed=self.unaddressed,
            policy=own.policy,
            group_by=own.group_by,
            keep=own.keep,
            placement=placement,
            commandline_pci=from_commandline.argument,
            overridden=overridden,
            root_iommu=self.root_iommu,
            firmware=read_firmware(self.root, self.top.get("os"), self.system),
            problem=self.problem,
            warnings=(*numa.warnings, *self._kept_in_vain(own.keep)),
            asks_for_cells=own.asks_for_cells,
            made_cells=own.cells,
            asks_for_link=own.asks_for_link,
        )
        return domain, Elements(self.device_elements, self.address_elements, self.controller_elements, self.others)

    def _kept_in_vain(self, keep: frozenset[str]) -> list[str]:
        if not keep:
            return []
        unknown = keep.difference([device.source for device in self.devices])
        return [f"<keep device='{name}'/> names no device of this domain" for name in sorted(unknown)]

    def _text(self, tag: str) -> str:
        element = self.top.get(tag)
        return "" if element is None else (element.text or "").strip()

    def _trouble(self, error: DomainError) -> None:
        self.problem = self.problem or error.sentence()

    def _devices(self, devices: etree._Element, machine: MachineKind, pools: frozenset[str]) -> None:
        unnumbered: list[tuple[etree._Element, str]] = []
        others: list[etree._Element] = []
        for element in devices:
            tag = element.tag
            if not isinstance(tag, str):
                continue
            try:
                if tag == "controller":
                    says = _said(attributes_of(element))
                    if says is not None:
                        index, model = says
                        if index is None:
                            unnumbered.append((element, model))
                        else:
                            self._controller(element, index, model)
                        continue
                if tag != "hostdev":
                    others.append(element)
                    if tag == "iommu":
                        self.root_iommu |= any(driver.get("pciBus") == "0" for driver in element.iterchildren("driver"))
                parts = parts_of(element)
                passthrough = read_passthrough(element, parts, pools) if tag in _MAY_PASS_THROUGH else None
                if passthrough is None and (self.near_backing or self.recorded) and tag in ("interface", "disk"):
                    passthrough = self._backed(element, parts)
                if passthrough is not None:
                    self._passthrough(element, parts.get("address"), passthrough)
                    continue
                location = read_location(parts.get("address"), f"<{tag}>")
                if location.address is not None and location.kind == "pci":
                    self.others[location.address] = element
                    if location.multifunction:
                        self.multifunction.add(location.address)
                elif location.kind in (None, "pci") and wants_slot(element):
                    self.unaddressed += 1
            except DomainError as error:
                self._trouble(error)
        free = 1
        for element, model in unnumbered:  # libvirt gives each the lowest index that is left (virDomainControllerFindUnusedIndex)
            while free in self.controllers:
                free += 1
            try:
                self._controller(element, 0 if model in ("pcie-root", "pci-root") else free, model)
            except DomainError as error:
                self._trouble(error)
        if machine is not MachineKind.NONE:
            self.unaddressed += implied_devices(others)

    def _controller(self, element: etree._Element, index: int, model: str) -> None:
        if index in self.controllers:
            raise DomainError("appears twice", subject=f"PCI controller {index}")
        parts = parts_of(element)
        target, address = parts.get("target"), parts.get("address")
        of_target = () if target is None else attributes_of(target)
        of_address = () if address is None else attributes_of(address)
        node = target.findtext("node") if target is not None and len(target) else None
        self.controllers[index] = _controller((index, model, of_target, node, of_address))
        self.controller_elements[index] = element

    def _passthrough(self, element: etree._Element, address_element: Optional[etree._Element], named: Named) -> None:
        source, attached_as, problem = named.source, named.attached_as, named.problem
        address: Optional[PciAddress] = None
        original: Attributes = ()
        try:
            location = read_location(address_element, source)
            if location.kind not in (None, "pci"):
                attached_as = AttachedAs.UNASSIGNED if location.kind == "unassigned" else AttachedAs.NOT_PCI
            elif attached_as is AttachedAs.PCI:
                address, original = location.address, location.original
                if address is not None and location.multifunction:
                    self.multifunction.add(address)
        except DomainError as error:
            problem = error.sentence() if attached_as is AttachedAs.PCI else problem
        if source in self.device_elements:
            problem = f"{source}: the domain names this device twice"
        else:
            self.device_elements[source] = element
            if address_element is not None:
                self.address_elements[source] = address_element
        if problem is not None:
            self.problem = self.problem or problem
        self.devices.append(Passthrough(source, named.form, named.host, named.name, address, original, attached_as, problem))

    def _backed(self, element: etree._Element, parts: Parts) -> Optional[Named]:
        """An emulated device that follows what is behind it. Several without a name yet (libvirt gives the MAC address) are left alone."""
        from pcinuma.domain.backing import read_backed  # not for those who do without

        named = read_backed(element, parts)
        if named is None or named.source in self.device_elements:
            return None
        known = named.source in self.recorded or f"@{named.name}" in self.recorded
        return named if self.near_backing or known else None

    def _without_acpi(self) -> bool:
        """Whether the guest boots by a device tree. Measured: Linux on aarch64 then sees nothing of what is below an expander bus."""
        kind = self.system.get("type")
        if kind is None or kind.get("arch") not in _MACHINES_OF_VIRT:
            return False
        features = self.top.get("features")
        acpi = child(features, "acpi") if features is not None else None
        return acpi is None or acpi.get("state", "on") == "off"

    def _commandline(self, ours: Sequence[int]) -> CommandlineDevices:
        given = self.top.get(f"{NAMESPACE}commandline")
        arguments = [] if given is None else [argument.get("value", "") for argument in given.iterchildren(f"{NAMESPACE}arg")]
        if not arguments:
            return NOTHING
        kind = self.system.get("type")
        on_x86 = kind is None or kind.get("arch") in (None, "x86_64", "i686")
        return read_commandline(arguments, on_x86, self.controllers.keys() - set(ours))

    def _overridden(self, pools: frozenset[str]) -> tuple[frozenset[str], list[PciAddress]]:
        """The sources of devices whose place ``<qemu:override>`` decides, and where whatever it moves comes to sit."""
        override, devices = self.top.get(f"{NAMESPACE}override"), self.top.get("devices")
        overridden_to = overridden_addresses(override) if override is not None else {}
        if not overridden_to or devices is None:
            return frozenset(), []
        named = {alias: element for element, alias in aliases_of(devices, pools)}
        sources = {element: source for source, element in self.device_elements.items()}
        addresses = {device.source: device.address for device in self.devices}
        addresses_of_others = {element: address for address, element in self.others.items()}
        found, occupied = set(), []
        for alias, (bus, slot_function) in overridden_to.items():
            element = named.get(alias)
            source = sources.get(element) if element is not None else None
            was = addresses.get(source) if source is not None else addresses_of_others.get(element) if element is not None else None
            if source is not None:
                found.add(source)
            bus = was.bus if bus is None and was is not None else bus
            slot_function = (was.slot, was.function) if slot_function is None and was is not None else slot_function
            if slot_function is not None and bus is not None and (bus == 0 or bus in self.controllers):
                occupied.append(PciAddress(0, bus, *slot_function))
        return frozenset(found), occupied


@remembered
def _said(controller: Attributes) -> Optional[tuple[Optional[int], str]]:
    """What the attributes of a ``<controller>`` say: index and model; None of one that is no PCI controller."""
    values = dict(controller)
    if values.get("type") != "pci":
        return None
    return number(values["index"], "PCI controller: index") if "index" in values else None, values.get("model", "")


@remembered
def _controller(says: tuple[int, str, Attributes, Optional[str], Attributes]) -> Controller:
    """A controller by index, model, attributes of its ``<target>``, text of the ``<node>`` there, and attributes of its ``<address>``."""
    index, model, target, node_text, guest_address = says
    values = dict(target)
    try:
        bus_nr, chassis, own = (number(values[name], f": {name}") if name in values else None for name in ("busNr", "chassis", "index"))
        node = None if node_text is None else number(node_text.strip(), ": node")
        location = location_of(guest_address)
    except DomainError as error:
        raise DomainError(error.what, subject=f"PCI controller {index}{error.subject or ''}") from None
    address = location.address if location.kind == "pci" else None
    several = address is not None and location.multifunction
    return Controller(index, model, address, bus_nr, node, chassis, _SWITCHED.get(values.get("hotplug")), several, own)
