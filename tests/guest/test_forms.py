"""One guest with a device of every form: each is seen under the node of its cell, whatever element it came from."""

from __future__ import annotations

from pathlib import Path

from pcinuma.address import PciAddress
from pcinuma.engine import Request, place
from pcinuma.lab.kernel import Kernel
from tests.guest.boots import boot
from tests.hosts.domains import two_cells
from tests.hosts.machines import MACHINES, MDEV, MDEV_REMOTE

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
