# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the lives of :mod:`tests.libvirt.test_lives` are made of: a host whose devices move and go, the definitions of owners for it,
and what owners do to a definition that is there.

An owner's deed (:data:`Deed`) is a function of libvirt's connection and the domain, so that the same can be done on two libvirts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Callable, Optional

import libvirt
from lxml import etree

from tests.hosts.build import AUDIO, E810, GPU, NIC, NVME, VGA, Function, Host
from tests.hosts.domains import source_address
from tests.hosts.passthrough import passed

CONFIG = libvirt.VIR_DOMAIN_AFFECT_CONFIG
SECURE = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE
NAMESPACE = "urn:pcinuma:domain:1"
MDEV = "6f0b2ab3-8f2c-4c5b-9c26-0a45a01d8a11"

CARDS = ("0000:19:00", "0000:1a:00", "0000:1c:00", "0000:1d:00", "0000:3b:00", "0000:b3:00", "0000:b4:00", "0000:b5:00")
"""What can be pulled out of the host, or moved to another node."""
DEVICES = (
    *("0000:19:00.0", "0000:1a:00.0", "0000:1c:00.0", "0000:1d:00.0", "0000:3b:01.0", "0000:3b:01.1", "0000:3b:01.2"),
    *("0000:b3:00.0", "0000:b4:00.0", "0000:b4:00.1", "0000:b5:00.0", MDEV),
)
"""What domains pass through, by ``source`` but for the NVMe drive."""
NICS = ("0000:1a:00.0", "0000:3b:01.1", "0000:b5:00.0")
DRIVE = "0000:1d:00.0"


@dataclass
class Hardware:
    """What is odd about the host at the moment: cards that are not there, nodes other than those of old, whether the mdev is active."""

    gone: set[str] = field(default_factory=set)
    nodes: dict[str, Optional[int]] = field(default_factory=dict)
    mdev: bool = False

    def build(self) -> Host:
        """Two nodes of one CPU each; on node 0 a switch with a GPU and a NIC, a GPU and a drive, and in a root complex of its own a NIC
        with VFs; on node 1 a GPU, a card of two functions and a NIC."""
        host = Host().node(0, "0").node(1, "1")
        root = host.rc("pci0000:16", node=0)
        left, right = root.port("16:00.0").switch("17:00.0", ["18:00.0", "18:01.0"])
        left.device("19:00.0", GPU)
        right.device("1a:00.0", NIC)
        root.port("16:02.0").device("1c:00.0", GPU)
        root.port("16:04.0").device("1d:00.0", NVME)
        port = host.rc("pci0000:3a", node=0).port("3a:00.0")
        port.device("3b:00.0", E810).vfs("3b:01.0", "3b:01.1", "3b:01.2")
        root = host.rc("pci0000:b2", node=1)
        gpu = root.port("b2:00.0").device("b3:00.0", GPU)
        if self.mdev:
            gpu.mdev(MDEV)
        card = root.port("b2:02.0")
        card.device("b4:00.0", VGA)
        card.device("b4:00.1", AUDIO)
        root.port("b2:04.0").device("b5:00.0", NIC)
        for card_address, node in self.nodes.items():
            for function in self._functions(host, card_address):
                function.node = node
        for card_address in self.gone:
            for function in reversed(self._functions(host, card_address)):
                host.remove(function.address)
        return host

    @staticmethod
    def _functions(host: Host, card: str) -> list[Function]:
        """A card's functions, virtual ones after their physical one."""
        return [f for f in list(host.functions.values()) if f.address.startswith(card) or (f.physfn and f.physfn.address.startswith(card))]

    def __str__(self) -> str:
        return f"gone {sorted(self.gone)}, nodes {dict(sorted(self.nodes.items()))}, mdev {'active' if self.mdev else 'inactive'}"


# Definitions.

KINDS = ("pinned", "memnodes", "crossed", "one-cell", "unbound", "no-cells", "pc")
_CPUS = "<numa><cell id='0' cpus='0' memory='64' unit='MiB'/><cell id='1' cpus='1' memory='64' unit='MiB'/></numa>"
_BINDING = {
    "pinned": "<cputune><vcpupin vcpu='0' cpuset='0'/><vcpupin vcpu='1' cpuset='1'/></cputune>",
    "pc": "<cputune><vcpupin vcpu='0' cpuset='0'/><vcpupin vcpu='1' cpuset='1'/></cputune>",
    "memnodes": "<numatune><memnode cellid='0' mode='strict' nodeset='0'/><memnode cellid='1' mode='strict' nodeset='1'/></numatune>",
    "crossed": "<numatune><memnode cellid='0' mode='strict' nodeset='1'/><memnode cellid='1' mode='strict' nodeset='0'/></numatune>",
    "one-cell": "<cputune><vcpupin vcpu='0' cpuset='0'/><vcpupin vcpu='1' cpuset='0'/></cputune>",
}
_EXTRAS = """\
<interface type='user'><mac address='52:54:00:00:00:01'/><model type='virtio'/></interface>
<graphics type='vnc' port='-1' autoport='yes' passwd='s&amp;cret'/>
<input type='tablet' bus='usb'/>"""


def written(name: str, uuid: str, kind: str, sources: Sequence[str], *, extras: bool = False, policy: Optional[str] = None) -> str:
    """A domain as its owner writes it, without an address."""
    ticket = "<o:owner xmlns:o='urn:example:owner'><o:ticket n='7'>  a  b </o:ticket></o:owner>" if extras else ""
    metadata = f"<p:pcinuma xmlns:p='{NAMESPACE}' policy='{policy}'/>" if policy else ""
    numa = {"no-cells": "", "one-cell": "<numa><cell id='0' cpus='0-1' memory='128' unit='MiB'/></numa>"}.get(kind, _CPUS)
    return f"""<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  {f"<metadata>{ticket}{metadata}</metadata>" if ticket or metadata else ""}
  <memory unit='MiB'>128</memory>
  <vcpu>2</vcpu>
  {_BINDING.get(kind, "")}
  <os><type arch='x86_64' machine='{"pc" if kind == "pc" else "q35"}'>hvm</type></os>
  <features><acpi/></features>
  <cpu><model>qemu64</model>{numa}</cpu>
  <devices>{"".join(map(device, sources))}{_EXTRAS if extras else ""}</devices>
</domain>"""


def device(source: str) -> str:
    """A passthrough device without a guest address; NICs as interfaces, the drive as a disk."""
    if source == MDEV:
        return f"<hostdev mode='subsystem' type='mdev' model='vfio-pci'><source><address uuid='{MDEV}'/></source></hostdev>"
    if source == DRIVE:
        head = "<driver name='qemu' type='raw'/><source type='pci' managed='yes' namespace='1'>"
        return f"<disk type='nvme' device='disk'>{head}{source_address(source)}</source><target dev='vdn' bus='virtio'/></disk>"
    if source in NICS:
        mac = f"52:54:00:01:{source[5:7]}:{source[-1:]:>02}"
        address = source_address(source, " type='pci'")
        return f"<interface type='hostdev' managed='yes'><mac address='{mac}'/><source>{address}</source></interface>"
    return f"<hostdev mode='subsystem' type='pci' managed='yes'><source>{source_address(source)}</source></hostdev>"


def named(source: str) -> str:
    """A device of :data:`DEVICES` as reports name it."""
    return f"{source}#1" if source == DRIVE else source


# What owners do.

Deed = Callable[[libvirt.virConnect, Optional[libvirt.virDomain]], Optional[libvirt.virDomain]]
"""Done on a connection and a domain (None where there is none yet); returns the domain as it is called then."""
Edit = Callable[[etree._Element], None]


def inactive(domain: libvirt.virDomain) -> str:
    return str(domain.XMLDesc(SECURE))


def define(xml: str) -> Deed:
    return lambda connection, domain: connection.defineXML(xml)


def attach(source: str) -> Deed:
    def deed(connection: libvirt.virConnect, domain: Optional[libvirt.virDomain]) -> Optional[libvirt.virDomain]:
        assert domain is not None
        domain.attachDeviceFlags(device(source), CONFIG)
        return domain

    return deed


def detach(source: str) -> Deed:
    def deed(connection: libvirt.virConnect, domain: Optional[libvirt.virDomain]) -> Optional[libvirt.virDomain]:
        assert domain is not None
        domain.detachDeviceFlags(device(source), CONFIG)
        return domain

    return deed


def edit(*edits: Edit) -> Deed:
    """``virsh edit``: what is there, changed, defined."""

    def deed(connection: libvirt.virConnect, domain: Optional[libvirt.virDomain]) -> Optional[libvirt.virDomain]:
        assert domain is not None
        root = etree.fromstring(inactive(domain))
        for change in edits:
            change(root)
        return connection.defineXML(etree.tostring(root).decode())

    return deed


def rename(name: str) -> Deed:
    def deed(connection: libvirt.virConnect, domain: Optional[libvirt.virDomain]) -> Optional[libvirt.virDomain]:
        assert domain is not None
        domain.rename(name, 0)
        return connection.lookupByName(name)

    return deed


def keep(source: str, on: bool) -> Deed:
    """The owner's ``<keep>`` in the metadata, added or taken out, by libvirt's call for that."""

    def deed(connection: libvirt.virConnect, domain: Optional[libvirt.virDomain]) -> Optional[libvirt.virDomain]:
        assert domain is not None
        element = _metadata(domain)
        for old in [old for old in element if etree.QName(old).localname == "keep" and old.get("device") == source]:
            element.remove(old)
        if on:
            element.insert(0, etree.Element("keep", device=source))
        _set_metadata(domain, element)
        return domain

    return deed


def owner_sets(policy: str, group_by: Optional[str]) -> Deed:
    """What ``pcinuma policy`` does to the metadata."""

    def deed(connection: libvirt.virConnect, domain: Optional[libvirt.virDomain]) -> Optional[libvirt.virDomain]:
        assert domain is not None
        element = _metadata(domain)
        for name, value in (("policy", policy), ("group-by", group_by)):
            if value == "default":
                element.attrib.pop(name, "")
            elif value is not None:
                element.set(name, value)
        _set_metadata(domain, element)
        return domain

    return deed


def _metadata(domain: libvirt.virDomain) -> etree._Element:
    """pcinuma's element of the definition as libvirt gives it, without namespaces, or a new one."""
    try:
        return etree.fromstring(domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, CONFIG))
    except libvirt.libvirtError:
        return etree.Element("pcinuma")


def _set_metadata(domain: libvirt.virDomain, element: etree._Element) -> None:
    text = etree.tostring(element).decode() if len(element) or element.attrib else None
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, "pcinuma", NAMESPACE, CONFIG)


# Edits.


def add(source: str) -> Edit:
    return lambda root: root.find("devices").append(etree.fromstring(device(source)))


def take_out(source: str) -> Edit:
    def change(root: etree._Element) -> None:
        for found in passed(root):
            if found.source == named(source):
                found.element.getparent().remove(found.element)

    return change


def titled(text: str) -> Edit:
    def change(root: etree._Element) -> None:
        title = root.find("title")
        if title is None:
            title = etree.Element("title")
            root.find("name").addnext(title)
        title.text = text

    return change


def last_first(root: etree._Element) -> None:
    """The last hostdev before the others: libvirt keeps the order in which they are written."""
    hostdevs = root.findall("devices/hostdev")
    if len(hostdevs) > 1:
        hostdevs[0].addprevious(hostdevs[-1])


def bound_otherwise(root: etree._Element) -> None:
    """The cells change places: what stood for host node 0 stands for 1."""
    for element, name in ((e, name) for name in ("cpuset", "nodeset") for e in root.iter("vcpupin", "memnode") if e.get(name)):
        element.set(name, {"0": "1", "1": "0"}.get(element.get(name), element.get(name)))


def unbound(root: etree._Element) -> None:
    """No cell stands for a host node any more."""
    for element in [*root.findall("cputune"), *root.findall("numatune")]:
        root.remove(element)


def bound(root: etree._Element) -> None:
    """Cells 0 and 1 stand for host nodes 0 and 1."""
    unbound(root)
    root.find("vcpu").addnext(etree.fromstring(_BINDING["pinned"]))


def addressless(root: etree._Element) -> None:
    """The passthrough devices without their addresses, as in a file that was never libvirt's."""
    for found in passed(root):
        address = found.element.find("address")
        if address is not None and address.get("type") == "pci":
            found.element.remove(address)


EDITS: dict[str, Edit] = {
    "a title": titled("somebody's"),
    "another title": titled("somebody else's"),
    "the last hostdev first": last_first,
    "the cells bound to each other's nodes": bound_otherwise,
    "the cells bound to no node": unbound,
    "the cells bound to their nodes": bound,
    "the devices' addresses left out": addressless,
}



