# SPDX-License-Identifier: LGPL-2.1-or-later
"""One start of a VMI: virt-launcher defines with placeholders for hot-plug, reads back what its types hold, and defines again."""

from __future__ import annotations

from pathlib import Path

import libvirt
from lxml import etree

from pcinuma.managers.kubevirt import mutated
from tests.hosts.domains import two_cells
from tests.hosts.kubevirt import marshalled, read_back
from tests.hosts.small import GPU_0, GPU_1, NIC_0, small_host
from tests.libvirt.harness import PrivateLibvirt

VMI = b'{"metadata": {"annotations": {"pcinuma/policy": "required"}}}'


def layout(xml: bytes) -> list[tuple[str, ...]]:
    """Of each controller and hostdev what decides where the guest sees it."""
    found = []
    for element in etree.fromstring(xml).iterfind("devices/*"):
        target, address = element.find("target"), element.find("address")
        if element.tag in ("controller", "hostdev") and element.get("type") == "pci":
            where = [] if address is None else [address.get("bus"), address.get("slot"), address.get("function")]
            numbers = [] if target is None else [target.get("busNr"), target.get("hotplug"), target.findtext("node"), target.get("chassis")]
            found.append((element.tag, element.get("index"), element.get("model"), *where, *numbers))
    return sorted(found, key=str)


def test_the_layout_of_the_first_definition_is_that_of_the_last(libvirt_host: PrivateLibvirt, tmp_path: Path) -> None:
    root, connection = small_host(tmp_path), libvirt_host.connect()
    domain = two_cells().hostdev(GPU_0).hostdev(NIC_0).hostdev(GPU_1).nic().disk()
    domain.name = "kubevirt"
    bare = marshalled(domain.raw())
    for _ in range(4):
        domain.nic()
    with_placeholders, refused = mutated(marshalled(domain.raw()), VMI, root)
    assert b"pcie-expander-bus" in with_placeholders and not refused
    defined = connection.defineXML(with_placeholders.decode())
    try:
        first = defined.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE).encode()
        second = read_back(bare, first)
        assert b"urn:pcinuma" not in second
        assert mutated(second, VMI, root) == (second, False)
        last = connection.defineXML(second.decode()).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE).encode()
    finally:
        defined.undefine()
    assert layout(last) == layout(first)
