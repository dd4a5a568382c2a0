# SPDX-License-Identifier: LGPL-2.1-or-later
"""Start after start of an oVirt VM: the engine writes what it remembers, pcinuma places, libvirt defines; nothing ever moves."""

from __future__ import annotations

from pathlib import Path

import libvirt
from lxml import etree

from pcinuma.engine import Request, place
from tests.hosts.domains import two_cells
from tests.hosts.ovirt import managed, remembered
from tests.hosts.small import GPU_0, GPU_1, NIC_0, small_host
from tests.libvirt.harness import PrivateLibvirt

SPARE_PORTS = b"<controller type='pci' model='pcie-root'/>" + 16 * b"<controller type='pci' model='pcie-root-port'/>"
"""What the engine adds by NumOfPciExpressPorts."""


def defined(host: PrivateLibvirt, xml: bytes) -> bytes:
    """What libvirt makes of it."""
    domain = host.connect().defineXML(xml.decode())
    try:
        return domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE).encode()
    finally:
        domain.undefine()


def expanders(xml: bytes) -> dict[str, tuple[str, str]]:
    found = etree.fromstring(xml).findall("devices/controller[@model='pcie-expander-bus']")
    return {c.get("index"): (c.find("target").get("busNr"), c.findtext("target/node")) for c in found}


def test_what_the_engine_remembers_is_laid_out_as_before_and_would_lose_devices_without(
    libvirt_host: PrivateLibvirt, tmp_path: Path
) -> None:
    request = Request(root=small_host(tmp_path))
    domain = two_cells().hostdev(GPU_0).hostdev(NIC_0).hostdev(GPU_1).nic().disk()
    domain.name = "ovirt"
    vm = managed(domain.raw()).replace(b"<devices>", b"<devices>" + SPARE_PORTS, 1)
    ran = [defined(libvirt_host, place(vm, request).xml)]
    for _ in range(2):
        result = place(remembered(vm, ran[-1]), request)
        assert all(line.placed for line in result.devices), result.message
        ran.append(defined(libvirt_host, result.xml))
    layouts = [[etree.tostring(element) for element in etree.fromstring(xml).iterfind("devices/*/address/..")] for xml in ran]
    assert layouts[0] == layouts[1] == layouts[2] and sorted(node for _, node in expanders(ran[2]).values()) == ["0", "1"]
    stale = defined(libvirt_host, remembered(vm, ran[-1]))
    assert sorted(expanders(stale).values()) == [("252", None), ("254", None)]  # room for one port each, and one of them has two
    assert expanders(place(stale, request).xml) == expanders(ran[0])
