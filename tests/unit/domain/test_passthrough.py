# SPDX-License-Identifier: LGPL-2.1-or-later
"""Forms of passthrough that no golden has, some of which only newer releases of libvirt know."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from lxml import etree

from pcinuma.engine import Request, Result, place, revert
from pcinuma.reason import Outcome, Reason
from tests.hosts.domains import Domain, source_address, two_cells
from tests.hosts.judge import judge
from tests.hosts.machines import MACHINES


def _placed(machine: str, xml: bytes, folder: Path, *, judged: bool = True) -> Result:
    host = MACHINES[machine]()
    result = place(xml, Request(root=host.write(folder)))
    if judged:
        judge(xml, result.xml, host, result.report())
    return result


def _cells(result: Result) -> dict[str, Optional[int]]:
    return {line.source: line.guest_cell if line.placed else None for line in result.devices}


def _elements(xml: bytes, path: str) -> list[str]:
    found = []
    for element in etree.fromstring(xml).iterfind(path):
        element.tail = None
        found.append(etree.tostring(element).decode())
    return found


def _with(domain: Domain, devices: str) -> bytes:
    return domain.raw().replace(b"  </devices>", devices.encode() + b"  </devices>")


def test_a_vdpa_disk_is_placed_beside_its_device_and_on_another_bus_than_virtio_is_none_of_ours(tmp_path: Path) -> None:
    disk = "<disk type='vhostvdpa' device='disk'><source dev='/dev/vhost-vdpa-{}'/><target dev='{}' bus='{}'/></disk>\n"
    xml = _with(two_cells(), disk.format(0, "vda", "virtio") + disk.format(1, "sda", "scsi"))
    result = _placed("mediated", xml, tmp_path, judged=False)
    assert _cells(result) == {"/dev/vhost-vdpa-0": 0, "/dev/vhost-vdpa-1": None}
    assert result.devices[1].reason is Reason.NOT_PCI


def test_of_a_teaming_pair_the_function_moves_and_the_pair_stays_one(tmp_path: Path) -> None:
    pair = (
        "<interface type='network'><mac address='52:54:00:00:00:aa'/><source network='default'/><model type='virtio'/>"
        "<teaming type='persistent'/><alias name='ua-backup'/></interface>\n"
        "<interface type='hostdev' managed='yes'><mac address='52:54:00:00:00:aa'/>"
        f"<source>{source_address('3b:01.0', chr(32) + 'type=' + chr(39) + 'pci' + chr(39))}</source>"
        "<teaming type='transient' persistent='ua-backup'/></interface>\n"
        "<hostdev mode='subsystem' type='pci' managed='yes'>"
        f"<source>{source_address('d8:01.0')}</source><teaming type='transient' persistent='ua-other'/></hostdev>\n"
    )
    result = _placed("sriov", _with(two_cells(), pair), tmp_path)
    assert _cells(result) == {"0000:3b:01.0": 0, "0000:d8:01.0": 1}
    assert len(_elements(result.xml, "devices/interface/teaming[@persistent='ua-backup']")) == 1
    assert len(_elements(result.xml, "devices/hostdev/teaming")) == 1
    persistent = etree.fromstring(result.xml).find("devices/interface[@type='network']")
    assert persistent is not None and persistent.find("address") is None


NEWER = """\
    <iommu model='smmuv3'><driver pciBus='1' accel='on'/></iommu>
    <hostdev mode='subsystem' type='pci' managed='yes'><driver name='vfio' iommufd='yes'/>
      <source><address domain='0x0000' bus='0x17' slot='0x00' function='0x0'/></source>
      <acpi nodeset='1'/>
    </hostdev>
"""


def test_initiators_iommus_and_iommufd_survive_and_point_at_the_same_controllers(tmp_path: Path) -> None:
    """libvirt 11.8 (acpi nodeset), 11.10 (smmuv3 of an expander), 12.1 (iommufd)."""
    domain = two_cells().controller(1, "pcie-expander-bus", "<target busNr='180'><node>0</node></target>", "00:04.0")
    domain.controller(2, "pcie-root-port", "<target chassis='2' port='0x0'/>", "01:00.0")
    xml = _with(domain, NEWER)
    result = _placed("two-sockets", xml, tmp_path)
    assert _cells(result) == {"0000:17:00.0": 0}
    for path in ("devices/iommu", "devices/hostdev/acpi", "devices/hostdev/driver"):
        assert _elements(result.xml, path) == _elements(xml, path) != []
    controllers = "devices/controller[@index='1']"
    assert _elements(result.xml, controllers) == _elements(xml, controllers)
    assert _elements(revert(result.xml).xml, "devices/hostdev") == _elements(xml, "devices/hostdev")


def test_an_iommu_of_the_main_root_alone_keeps_its_devices(tmp_path: Path) -> None:
    xml = _with(two_cells(), NEWER.replace("pciBus='1'", "pciBus='0'"))
    result = _placed("two-sockets", xml, tmp_path)
    assert (result.outcome, result.reason, result.xml) == (Outcome.UNCHANGED, Reason.IOMMU_BUS, xml)


def test_an_iommu_of_the_machine_is_no_obstacle(tmp_path: Path) -> None:
    xml = _with(two_cells().hostdev("17:00.0"), "    <iommu model='intel'><driver intremap='on' caching_mode='on'/></iommu>\n")
    result = _placed("two-sockets", xml, tmp_path)
    assert _cells(result) == {"0000:17:00.0": 0}
    assert _elements(result.xml, "devices/iommu") == _elements(xml, "devices/iommu")
