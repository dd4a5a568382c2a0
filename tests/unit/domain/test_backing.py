# SPDX-License-Identifier: LGPL-2.1-or-later
"""The setting near-backing: emulated devices that follow the host device behind them, and that nothing changes without it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Optional

import pytest

from pcinuma.address import PciAddress
from pcinuma.daemon.current_layout import with_current_layout
from pcinuma.daemon.hotplug import assign_address
from pcinuma.domain.read import parse_domain
from pcinuma.engine import Request, Result, place, revert
from pcinuma.errors import ConfigError
from pcinuma.host.backing import Backings
from pcinuma.host.sysfs import Sysfs
from pcinuma.reason import Outcome, Reason
from pcinuma.settings import Policy, Settings, load_settings
from tests.hosts.build import Host, unreadable
from tests.hosts.domains import Domain, two_cells
from tests.hosts.guard import no_real_host  # noqa: F401
from tests.hosts.judge import judge, without_ours
from tests.hosts.machines import MACHINES

ON, OFF = Settings(near_backing=True), Settings()
DISK, CARD = "vdb@/dev/nvme1n1", "52:54:00:00:00:02@eth0"


@pytest.fixture
def host() -> Host:
    return MACHINES["backed"]()


@pytest.fixture
def root(host: Host, tmp_path: Path) -> Path:
    return host.write(tmp_path)


def _both() -> Domain:
    return two_cells().block("/dev/nvme1n1").direct("eth0")


def _cells(result: Result) -> dict[str, Optional[int]]:
    return {line.source: line.guest_cell if line.placed else None for line in result.devices}


@pytest.mark.parametrize(
    ("path", "behind"),
    [
        ("/dev/nvme0n1", ["17:00.0"]),
        ("/dev/nvme1n1p1", ["b3:00.0"]),
        ("/dev/disk/by-id/nvme-a", ["17:00.0"]),
        ("/dev/mapper/vg-lv", ["b3:00.0"]),
        ("/dev/vg/../vg/lv", ["b3:00.0"]),
        ("/dev/dm-1p1", ["b3:00.0"]),
        ("/dev/dm-2", ["17:00.0", "b3:00.0"]),
        ("/dev/nvme9n1", ["17:00.0", "1a:00.0"]),
        ("/dev/nvme9n1p1", ["17:00.0", "1a:00.0"]),
        ("/dev/nvme10n1", None),
        ("/dev/dm-3", None),
        ("/dev/nothing", None),
        ("/dev/loop", None),
        ("/var/lib/image", None),
        ("nvme0n1", None),
        ("", None),
    ],
)
def test_of_a_block_device_the_pci_devices_behind_it_are_found(path: str, behind: Optional[list[str]], root: Path) -> None:
    (root / "dev/loop").symlink_to("loop")
    found = Backings(Sysfs(root)).of_block(path)
    assert found == (None if behind is None else {PciAddress.parse(f"0000:{address}") for address in behind})


@pytest.mark.parametrize(
    ("name", "behind"),
    [
        ("eth0", ["18:00.0"]),
        ("bond0", ["b4:00.0"]),
        ("bond0.7", ["b4:00.0"]),
        ("bond1", ["18:00.0", "b4:00.0"]),
        ("br0", None),
        ("tap0", None),
        ("nothing", None),
        ("../block/nvme0n1", None),
        ("", None),
    ],
)
def test_of_a_network_interface_the_pci_devices_behind_it_are_found(name: str, behind: Optional[list[str]], root: Path) -> None:
    found = Backings(Sysfs(root)).of_net(name)
    assert found == (None if behind is None else {PciAddress.parse(f"0000:{address}") for address in behind})


def test_virtual_devices_that_stand_on_each_other_end(root: Path) -> None:
    folder = root / "sys/devices/virtual/net"
    for one, other in (("ring0", "ring1"), ("ring1", "ring0")):
        (folder / one).mkdir()
        (folder / one / f"lower_{other}").symlink_to(f"../{other}")
        (root / f"sys/class/net/{one}").symlink_to(f"../../devices/virtual/net/{one}")
    assert Backings(Sysfs(root)).of_net("ring0") is None


@pytest.mark.parametrize("domain", [_both(), _both().hostdev("19:00.0"), _both().keep(DISK)], ids=["alone", "beside", "kept"])
@pytest.mark.parametrize("settings", [OFF, load_settings(Path("/nowhere"))], ids=["off", "no configuration"])
def test_without_the_setting_such_devices_are_not_looked_at(domain: Domain, settings: Settings, root: Path) -> None:
    for xml in (domain.raw(), domain.formatted()):
        result = place(xml, Request(root=root, settings=settings))
        assert [line.source for line in result.devices] == [d for d in ["0000:19:00.0"] if len(domain.devices) > 2]
        assert _emulated(result.xml) == _emulated(xml)
        if len(domain.devices) == 2:
            assert (result.outcome, result.reason, result.xml) == (Outcome.UNCHANGED, Reason.NOTHING_TO_PLACE, xml)


def _emulated(xml: bytes) -> list[bytes]:
    return re.findall(rb"<disk.*?</disk>|<interface type='direct'.*?</interface>", xml, re.DOTALL)


def test_the_setting_is_on_or_off_and_comes_with_the_root(root: Path) -> None:
    file = root / "etc/pcinuma/pcinuma.conf"
    file.parent.mkdir(parents=True)
    for text, wanted in (("on", True), ("off", False)):
        file.write_text(f"[placement]\nnear-backing = {text}\n")
        assert load_settings(root).near_backing is wanted
    file.write_text("[placement]\nnear-backing = yes\n")
    with pytest.raises(ConfigError, match="takes on or off"):
        load_settings(root)


def test_with_it_they_are_placed_and_taken_back_like_passthrough_devices(host: Host, root: Path) -> None:
    for xml in (_both().raw(), _both().formatted(), _both().on("pc").raw(), _both().on("pseries").raw()):
        result = place(xml, Request(root=root, settings=ON))
        judge(xml, result.xml, host, result.report())
        assert _cells(result) == {DISK: 1, CARD: 0}
        assert without_ours(revert(result.xml).xml) == without_ours(xml)
        assert place(result.xml, Request(root=root, settings=ON)).outcome is Outcome.UNCHANGED


@pytest.mark.parametrize(
    "device",
    [
        Domain().block("/dev/nvme0n1", "sdb", bus="sata"),
        Domain().block("/dev/nvme0n1", "sdb", bus="scsi"),
        Domain().block("/dev/nvme0n1", model="virtio-transitional"),
        Domain().direct("eth0", model="virtio-transitional"),
        Domain().direct("eth0", model="e1000e"),
        Domain().disk("vdb"),
        Domain().nic(),
    ],
    ids=lambda domain: re.sub(r"\W+", "-", domain.devices[0].head)[:60],
)
def test_only_virtio_devices_that_sit_in_a_pcie_slot_take_part(device: Domain, root: Path) -> None:
    domain = two_cells().hostdev("19:00.0")
    domain.devices += device.devices
    result = place(domain.raw(), Request(root=root, settings=ON))
    assert _cells(result) == {"0000:19:00.0": 0}


def test_a_bus_that_is_not_said_follows_from_the_target_as_libvirt_has_it(root: Path) -> None:
    xml = two_cells().block("/dev/nvme0n1", "vdb").block("/dev/nvme1n1", "sdb").raw().replace(b" bus='virtio'", b"")
    assert _cells(place(xml, Request(root=root, settings=ON))) == {"vdb@/dev/nvme0n1": 0}


def test_what_has_no_single_place_stays_and_hinders_nobody_not_even_under_required(host: Host, root: Path) -> None:
    domain = two_cells().block("/dev/dm-2").block("/dev/nothing", "vdc").direct("br0").direct("bond1").hostdev("19:00.0")
    for policy in Policy.PREFERRED, Policy.REQUIRED:
        result = place(domain.raw(), Request(root=root, settings=ON, policy=policy))
        judge(domain.raw(), result.xml, host, result.report())
        assert result.outcome is Outcome.PLACED
        assert [line.reason for line in result.devices] == [
            Reason.MIXED_NODES, Reason.BACKING_UNKNOWN, Reason.BACKING_UNKNOWN, Reason.MIXED_NODES, None
        ]  # fmt: skip


def test_a_backing_of_several_devices_in_one_place_is_placed_there(root: Path) -> None:
    """The two controllers of a namespace are on one root complex."""
    (line,) = place(two_cells().block("/dev/nvme9n1").raw(), Request(root=root, settings=ON)).devices
    assert (line.device, line.host_node, line.guest_cell, line.placed) == (None, 0, 0, True)


def test_required_is_not_met_while_a_card_of_a_known_node_has_no_cell(root: Path) -> None:
    xml = Domain().cells("0-1").memnode(0, "0").block("/dev/nvme1n1").hostdev("19:00.0").raw()
    result = place(xml, Request(root=root, settings=ON, policy=Policy.REQUIRED))
    assert result.refused and DISK in (result.message or "")


def test_two_cards_that_have_no_name_yet_are_no_mistake(root: Path) -> None:
    xml = re.sub(rb"<mac [^>]*/>", b"", two_cells().direct("eth0").direct("eth0").hostdev("19:00.0").raw())
    result = place(xml, Request(root=root, settings=ON))
    assert result.outcome is Outcome.PLACED and _cells(result) == {"@eth0": 0, "0000:19:00.0": 0}
    named = result.xml.replace(b"<source dev='eth0'", b"<mac address='52:54:00:00:00:09'/><source dev='eth0'", 1)
    again = place(named, Request(root=root, settings=ON))  # libvirt has named them
    assert _cells(again) == {"52:54:00:00:00:09@eth0": 0, "@eth0": 0, "0000:19:00.0": 0}


def test_one_that_lost_its_backing_stays_where_it_was_put(root: Path) -> None:
    placed = place(_both().formatted(), Request(root=root, settings=ON)).xml
    for gone in ("block/nvme1n1", "net/eth0"):
        (root / "sys/class" / gone).unlink()
    again = place(placed, Request(root=root, settings=ON))
    assert (again.outcome, again.xml) == (Outcome.UNCHANGED, placed)
    assert [(line.placed, line.reason) for line in again.devices] == [(True, None)] * 2


def test_one_whose_drive_moved_to_another_node_follows_it(host: Host, root: Path) -> None:
    placed = place(_both().formatted(), Request(root=root, settings=ON)).xml
    (root / f"sys/{host.functions['0000:b3:00.0'].path}/numa_node").write_text("0\n")
    assert _cells(place(placed, Request(root=root, settings=ON))) == {DISK: 0, CARD: 0}


def test_a_drive_that_cannot_be_read_is_the_fallback_of_all(root: Path) -> None:
    xml = _both().hostdev("19:00.0").formatted()
    unreadable(root / "sys/bus/pci/devices/0000:b3:00.0/numa_node")
    result = place(xml, Request(root=root, settings=ON))
    assert (result.outcome, result.reason, result.xml) == (Outcome.FALLBACK, Reason.HOST_UNREADABLE, xml)


def test_what_was_placed_with_the_setting_stands_without_it_and_can_be_taken_back(root: Path) -> None:
    xml = _both().hostdev("19:00.0").formatted()
    placed = place(xml, Request(root=root, settings=ON)).xml
    later = place(placed, Request(root=root, settings=OFF))
    assert (later.outcome, later.xml) == (Outcome.UNCHANGED, placed)
    assert _cells(later) == {DISK: 1, CARD: 0, "0000:19:00.0": 0}
    assert revert(placed).xml == xml
    more = placed.replace(b"  </devices>", Domain().block("/dev/nvme0n1", "vdx").devices[0].text().encode() + b"  </devices>")
    assert "vdx@/dev/nvme0n1" not in _cells(place(more, Request(root=root, settings=OFF)))
    assert _cells(place(more, Request(root=root, settings=ON)))["vdx@/dev/nvme0n1"] == 0
    afresh = place(placed, Request(root=root, settings=OFF, replan=True))
    assert _cells(afresh) == {"0000:19:00.0": 0} and _emulated(afresh.xml) == _emulated(xml)


def test_its_owner_keeps_one_by_its_source(root: Path) -> None:
    result = place(_both().keep(DISK).formatted(), Request(root=root, settings=ON))
    assert _cells(result) == {DISK: None, CARD: 0}
    assert result.devices[0].reason is Reason.KEPT and not result.warnings


def test_the_report_of_an_unplaced_definition_has_their_addresses(root: Path) -> None:
    """What the hook and the reconciler say of a domain that they do not change."""
    xml = _both().formatted()
    wanted = place(xml, Request(root=root, settings=ON))
    assert [line.guest_address for line in with_current_layout(parse_domain(xml), xml, wanted).devices] == ["0000:03:00.0", "0000:01:00.0"]


def test_one_that_is_plugged_in_gets_a_spare_port_of_its_place(root: Path) -> None:
    settings = Settings(near_backing=True, spare_ports=1)
    live = place(_both().formatted(), Request(root=root, settings=settings)).xml
    disk = Domain().block("/dev/nvme1n1p1", "vdz").devices[0].text()
    assert not assign_address(live, disk, Request(root=root, settings=Settings(spare_ports=1))).changed
    addressed = assign_address(live, disk, Request(root=root, settings=settings))
    assert addressed.changed
    found = place(live.replace(b"  </devices>", addressed.device_xml.encode() + b"  </devices>"), Request(root=root, settings=settings))
    assert _cells(found)["vdz@/dev/nvme1n1p1"] == 1
