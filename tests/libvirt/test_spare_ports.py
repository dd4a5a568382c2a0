# SPDX-License-Identifier: LGPL-2.1-or-later
"""Why spare-ports is 0 by default: what libvirt makes of a free port of ours, and what pcinuma makes of that.

libvirt gives a device without an address the first free port by index. On the main root that is libvirt's own spare port and, in a domain
that libvirt had formatted before it was placed, the port of each device that moved; the new device after those finds ours. In a
definition the next placing moves it away; in a running guest nothing can.
"""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import libvirt
import pytest
from lxml import etree

from pcinuma.engine import Request, place
from pcinuma.reason import Outcome
from pcinuma.settings import Settings
from tests.hosts.domains import two_cells
from tests.hosts.machines import MACHINES
from tests.libvirt.domains import controllers
from tests.libvirt.harness import PrivateLibvirt

SECURE = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE
FREE = 3
"""Two devices' former ports, and the spare one."""
NIC = "<interface type='user'><mac address='52:54:00:00:01:{:02x}'/><model type='virtio'/></interface>"


def _cells_of_nics(xml: str) -> list[Optional[int]]:
    """Of each added NIC the cell of the expander that it is below."""
    ports = {row.number: row.cell for row in controllers(xml)}
    nics = etree.fromstring(xml).findall("devices/interface[@type='user']")
    found = {nic.find("mac").get("address"): nic.find("address").get("bus") for nic in nics}  # type: ignore[union-attr]
    return [ports[int(bus or "", 16)] for mac, bus in sorted(found.items()) if mac and mac.startswith("52:54:00:00:01:")]


@pytest.fixture
def request_with_spare(tmp_path: Path) -> Request:
    return Request(root=MACHINES["two-sockets"]().write(tmp_path), settings=Settings(spare_ports=1))


def _placed(connection: libvirt.virConnect, request: Request, name: str) -> str:
    raw = two_cells().nic().hostdev("17:00.0").hostdev("b3:00.0").raw().decode().replace(">guest<", f">{name}<")
    uuid = etree.fromstring(raw).findtext("uuid") or ""
    raw = raw.replace(uuid, uuid[:-2] + ("aa" if name.endswith("live") else "bb"))
    domain = connection.defineXML(raw)
    domain = connection.defineXML(place(domain.XMLDesc(SECURE).encode(), request).xml.decode())
    return str(domain.XMLDesc(SECURE))


def test_in_a_definition_the_last_newcomer_lands_on_ours_and_is_moved_away(
    libvirt_host: PrivateLibvirt, request_with_spare: Request
) -> None:
    connection = libvirt_host.connect()
    xml = _placed(connection, request_with_spare, "spare-cold")
    nics = "".join(NIC.format(number) for number in range(FREE + 1))
    domain = connection.defineXML(xml.replace("</devices>", nics + "</devices>"))
    try:
        with_foreign = domain.XMLDesc(SECURE)
        assert _cells_of_nics(with_foreign) == [None] * FREE + [0]
        mended = place(with_foreign.encode(), request_with_spare)
        assert mended.outcome is Outcome.PLACED
        settled = connection.defineXML(mended.xml.decode()).XMLDesc(SECURE)
        assert _cells_of_nics(settled) == [None] * (FREE + 1)
        assert place(settled.encode(), request_with_spare).outcome is Outcome.UNCHANGED
    finally:
        domain.undefine()


def test_in_a_running_guest_the_last_newcomer_lands_on_ours_and_stays(
    libvirt_host: PrivateLibvirt, request_with_spare: Request
) -> None:
    connection = libvirt_host.connect()
    root = etree.fromstring(_placed(connection, request_with_spare, "spare-live"))
    devices = root.find("devices")
    assert devices is not None
    for hostdev in devices.findall("hostdev"):
        devices.remove(hostdev)  # there is no VFIO here; the ports stay
    root.remove(root.find("numatune"))  # type: ignore[arg-type]  # nor a second node
    domain = connection.defineXML(etree.tostring(root).decode())
    domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    try:
        for number in range(FREE + 1):
            domain.attachDeviceFlags(NIC.format(number), libvirt.VIR_DOMAIN_AFFECT_LIVE)
        assert _cells_of_nics(domain.XMLDesc(0)) == [None] * FREE + [0]
    finally:
        domain.destroy()
        domain.undefine()
