# SPDX-License-Identifier: LGPL-2.1-or-later
"""Machine types by libvirt's own define: what it has formatted is placed, kept as it is, settled, and comes back as it was.

The raw XML of each machine type is a golden; here the input is what libvirt's daemon made of it.
"""

from __future__ import annotations

from pathlib import Path

import libvirt
import pytest
from lxml import etree

from pcinuma.engine import Request, place, revert
from pcinuma.reason import Outcome
from tests.hosts.domains import Domain, two_cells
from tests.hosts.machines import MACHINES
from tests.libvirt.domains import cells
from tests.libvirt.harness import PrivateLibvirt

PLACES = {"0000:17:00.0": 0, "0000:18:00.0": 0, "0000:b3:00.0": 1}


def _domain(machine: str) -> Domain:
    return two_cells().on(machine).nic().disk().hostdev("17:00.0").hostdev("18:00.0").interface("b3:00.0")


def _defined(connection: libvirt.virConnect, xml: str) -> str:
    domain = connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    try:
        return str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE))
    finally:
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)


@pytest.mark.parametrize("machine", ["q35", "pc", "virt", "pseries"])
def test_what_libvirt_formatted_is_placed_kept_settled_and_undone(machine: str, libvirt_host: PrivateLibvirt, tmp_path: Path) -> None:
    connection = libvirt_host.connect()
    request = Request(root=MACHINES["two-sockets"]().write(tmp_path))
    formatted = _defined(connection, _domain(machine).raw().decode())
    result = place(formatted.encode(), request)
    assert result.outcome is Outcome.PLACED
    kept = _defined(connection, result.xml.decode())
    assert {source: cell for source, cell in cells(kept).items() if source in PLACES} == PLACES
    assert cells(kept) == cells(result.xml.decode())
    assert place(kept.encode(), request).outcome is Outcome.UNCHANGED
    assert _defined(connection, revert(kept.encode()).xml.decode()) == formatted


_EXPANDERS = ("<model name='spapr-pci-host-bridge'/><target index='1'><node>0</node></target>", "<target busNr='180'/>")


@pytest.mark.parametrize("expander", _EXPANDERS)
def test_libvirt_itself_refuses_expanders_on_machines_that_have_none(expander: str, libvirt_host: PrivateLibvirt) -> None:
    """The reason ``machine-type`` is libvirt's, and not a lack of ours."""
    model = "pci-root" if "spapr" in expander else "pcie-expander-bus"
    controller = f"<controller type='pci' index='1' model='{model}'>{expander}</controller>"
    xml = two_cells().on("pc" if model == "pcie-expander-bus" else "q35").raw().decode()
    with pytest.raises(libvirt.libvirtError, match=r"expander-bus|pci-root"):
        _defined(libvirt_host.connect(), xml.replace("<devices>", f"<devices>{controller}"))


def test_pseries_devices_that_libvirt_isolates_come_together_by_node_and_go_back(tmp_path: Path) -> None:
    """libvirt gives each IOMMU group a PCI host bridge of its own there; a placed group shares one with its node's others."""
    host = MACHINES["two-sockets"]()
    root = host.write(tmp_path)
    with PrivateLibvirt(host_tree=root, show_tree=True) as private:
        connection = private.connect()
        formatted = _defined(connection, _domain("pseries").raw().decode())
        bridges = etree.fromstring(formatted).findall("devices/controller[@model='pci-root']")
        assert len(bridges) == 1 + len(PLACES)
        result = place(formatted.encode(), Request(root=root))
        kept = _defined(connection, result.xml.decode())
        assert {source: cell for source, cell in cells(kept).items() if source in PLACES} == PLACES
        assert place(kept.encode(), Request(root=root)).outcome is Outcome.UNCHANGED
        assert _defined(connection, revert(kept.encode()).xml.decode()) == formatted
