# SPDX-License-Identifier: LGPL-2.1-or-later
"""What libvirt's node devices say about mediated devices, read from the XML of several of its versions."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import pytest

from pcinuma.address import PciAddress
from pcinuma.daemon.mdevs import Mdevs, read_node_device, uuids
from pcinuma.engine import Request, place
from pcinuma.reason import Outcome, Reason
from tests.hosts.domains import two_cells
from tests.hosts.machines import MACHINES, MDEV, MDEV_REMOTE

UUID = "11111111-2222-4333-8444-5555555555aa"
PARENT = PciAddress(0, 0xB3, 0, 0)


def _device(parent: str, within: str, kind: str = "mdev") -> str:
    return f"<device><name>x</name><parent>{parent}</parent><capability type='{kind}'><type id='i915'/>{within}</capability></device>"


@pytest.mark.parametrize(
    ("xml", "told"),
    [
        (_device("computer", f"<uuid>{UUID}</uuid><parent_addr>0000:b3:00.0</parent_addr>"), (UUID, PARENT)),
        (_device("pci_0000_b3_00_0", f"<uuid>{UUID.upper()}</uuid>"), (UUID, PARENT)),
        (_device("pci_0000_17_00_0", f"<uuid>{UUID}</uuid><parent_addr>0000:b3:00.0</parent_addr>"), (UUID, PARENT)),
        (_device("pci_10000_b3_00_0", f"<uuid>{UUID}</uuid>"), (UUID, PARENT._replace(domain=0x10000))),
        (_device("computer", f"<uuid>{UUID}</uuid>"), None),
        (_device("css_0_0_0023", f"<uuid>{UUID}</uuid><parent_addr>0.0.0023</parent_addr>"), None),
        (_device("pci_0000_b3_00_0", ""), None),
        (_device("pci_0000_b3_00_0", f"<uuid>{UUID}</uuid>", kind="pci"), None),
    ],
    ids=["8.1 without the parent", "7.3", "both", "VMD", "no parent", "s390", "no uuid", "another capability"],
)
def test_uuid_and_parent_of_a_node_device(xml: str, told: Optional[tuple[str, PciAddress]]) -> None:
    assert read_node_device(xml) == told


def test_only_mediated_devices_of_a_domain_are_asked_about() -> None:
    domain = two_cells().mdev(MDEV.upper()).mdev(MDEV_REMOTE).hostdev("17:00.0")
    assert uuids(domain.raw()) == sorted([MDEV, MDEV_REMOTE])
    assert uuids(two_cells().hostdev("17:00.0").raw()) == []


def test_of_active_devices_nobody_asks_and_nothing_is_known_before_somebody_asked(tmp_path: Path) -> None:
    root = MACHINES["mediated"]().write(tmp_path)
    mdevs = Mdevs(root)
    active = two_cells().mdev(MDEV).raw()
    assert mdevs.resolve(None, active) == {}  # a connection that cannot be asked
    assert mdevs.known(two_cells().mdev(UUID).raw()) == {}


def test_sysfs_counts_before_what_was_told_and_without_either_the_device_is_absent(tmp_path: Path) -> None:
    root = MACHINES["mediated"]().write(tmp_path)
    xml = two_cells().mdev(MDEV).mdev(UUID).formatted()
    told = {MDEV: (PARENT,), UUID: (PARENT,)}
    result = place(xml, Request(root=root, pools=told))
    assert {line.source: (line.device, line.guest_cell) for line in result.devices} == {MDEV: ("0000:17:00.0", 0), UUID: (str(PARENT), 1)}
    alone = place(xml, Request(root=root))
    assert (alone.outcome, alone.reason, alone.xml) == (Outcome.FALLBACK, Reason.DEVICE_ABSENT, xml)
    stands = place(result.xml, Request(root=root))
    assert (stands.outcome, stands.reason, stands.xml) == (Outcome.FALLBACK, Reason.DEVICE_ABSENT, result.xml)
    assert all(line.placed for line in stands.devices)
    gone = place(xml, Request(root=root, pools={UUID: (PARENT._replace(bus=0xEE),)}))
    assert (gone.reason, gone.xml) == (Reason.DEVICE_ABSENT, xml)
