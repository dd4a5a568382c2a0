# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest with a device of every form: each is seen under the node of its cell, whatever element it came from."""

from __future__ import annotations

from pathlib import Path

from pcinuma.address import PciAddress
from pcinuma.engine import Request, place
from pcinuma.lab.kernel import Kernel
from pcinuma.settings import Settings
from tests.guest.boots import boot
from tests.hosts.domains import two_cells
from tests.hosts.machines import MACHINES, MDEV, MDEV_REMOTE

BACKED = {"block-disk", "direct-interface"}
FORMS = {"hostdev-pci", "interface-hostdev", "network-pool", "mdev", "nvme-disk", "vdpa"}


def test_every_form_is_seen_where_its_device_is_on_the_host(lab_kernel: Kernel, tmp_path: Path) -> None:
    root = MACHINES["mediated"]().write(tmp_path / "host")
    domain = two_cells().mdev(MDEV).mdev(MDEV_REMOTE).nvme("19:00.0").nvme("b5:00.0", target="vdo").vdpa(0).vdpa(1)
    domain.hostdev("3b:01.1").interface("d8:01.1").pool("vfs")
    members = tuple(filter(None, map(PciAddress.parse, ("0000:d8:01.0", "0000:d8:01.1"))))
    result = place(domain.formatted(), Request(root=root, pools={"vfs": members}))
    assert {line.form for line in result.devices if line.placed} == FORMS
    booted = boot(result.xml, root, lab_kernel, tmp_path)
    seen = {}
    for line in result.devices:
        address = PciAddress.parse(line.guest_address or "")
        assert address is not None
        device = booted.guest.at(booted.layout.path(address))
        seen[line.source] = device.numa_node if device is not None else "nothing there"
    assert seen == {line.source: line.guest_cell for line in result.devices}
    assert sorted(node for node in seen.values() if isinstance(node, int)) == [0] * 4 + [1] * 5


def test_a_virtio_disk_and_card_are_seen_where_the_drive_and_card_behind_them_are(lab_kernel: Kernel, tmp_path: Path) -> None:
    root = MACHINES["backed"]().write(tmp_path / "host")
    domain = two_cells().disk().block("/dev/nvme0n1").block("/dev/vg/lv", "vdc", model="virtio-non-transitional")
    domain.direct("eth0").direct("bond0.7").hostdev("19:00.0")
    result = place(domain.formatted(), Request(root=root, settings=Settings(near_backing=True)))
    assert {line.form for line in result.devices if line.placed} == {*BACKED, "hostdev-pci"}
    booted = boot(result.xml, root, lab_kernel, tmp_path)
    seen = {}
    for line in result.devices:
        device = booted.guest.at(booted.layout.path(PciAddress.parse(line.guest_address or "") or PciAddress(0, 0, 0, 0)))
        assert device is not None, line.source
        assert (device.vendor, device.device) == (booted.kinds[line.source].vendor, booted.kinds[line.source].device)
        seen[line.source.partition("@")[2] or line.source] = device.numa_node
    assert seen == {"/dev/nvme0n1": 0, "/dev/vg/lv": 1, "eth0": 0, "bond0.7": 1, "0000:19:00.0": 0}
