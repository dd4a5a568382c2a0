# SPDX-License-Identifier: LGPL-2.1-or-later
"""The design's small print, a sentence a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Optional

import pytest

from pcinuma.address import PciAddress
from pcinuma.engine import Request, Result, place, revert
from pcinuma.reason import Outcome, Reason
from pcinuma.settings import GroupBy, Settings
from tests.hosts.build import NVME, Host, unreadable
from tests.hosts.domains import Domain, two_cells
from tests.hosts.edits import with_device
from tests.hosts.guard import no_real_host  # noqa: F401
from tests.hosts.guest import Guest
from tests.hosts.judge import judge
from tests.hosts.machines import MACHINES, crowd
from tests.hosts.passthrough import ours, passed

Placer = Callable[..., Result]


class Machine:
    """A machine's tree, and placing on it under the judge's eyes."""

    def __init__(self, host: Host, root: Path) -> None:
        self.host, self.root = host, host.write(root)

    def place(self, xml: bytes, fresh: bool = True, pools: Optional[dict[str, list[str]]] = None, **request: Any) -> Result:
        members = {name: tuple(filter(None, map(PciAddress.parse, addresses))) for name, addresses in (pools or {}).items()}
        result = place(xml, Request(root=self.root, pools=members, **request))
        if not pools:
            judge(xml, result.xml, self.host, result.report(), fresh=fresh)
        return result


@pytest.fixture
def machine(tmp_path: Path) -> Callable[[str], Machine]:
    return lambda name: Machine(MACHINES[name](), tmp_path / name)


Maker = Callable[[str], Machine]


def _pair(domain: Domain) -> Domain:
    return domain.hostdev("17:00.0").hostdev("b3:00.0")


def _why(result: Result, source: str) -> Optional[Reason]:
    return next(line for line in result.devices if line.source == source).reason


def test_a_placement_stands_where_something_cannot_be_read(machine: Maker) -> None:
    here = machine("two-sockets")
    placed = here.place(_pair(two_cells()).formatted()).xml
    unreadable(here.root / "sys/bus/pci/devices/0000:17:00.0/numa_node")
    result = place(placed, Request(root=here.root))
    assert (result.outcome, result.reason, result.xml == placed) == (Outcome.FALLBACK, Reason.HOST_UNREADABLE, True)
    assert [line.placed for line in result.devices] == [True, True]


def test_a_standing_placement_that_is_known_to_be_wrong_is_reverted_where_no_plan_fits(tmp_path: Path) -> None:
    host = crowd(110, 1, 2)
    domain = Domain().cells("0", "1").memnode(0, "0").memnode(1, "1")
    for drive in range(110):
        domain.hostdev(f"0000:{drive + 1:02x}:00.0")
    start = domain.formatted()
    placed = Machine(host, tmp_path / "one").place(start).xml
    moved = crowd(110, 1, 2)
    for number, function in enumerate(moved.functions.values()):
        if function.kind is NVME and number % 4 < 2:
            function.node = 1
    result = place(placed, Request(root=moved.write(tmp_path / "other")))
    assert result.outcome is Outcome.FALLBACK and result.reason is Reason.NO_ROOM
    assert not any(line.placed for line in result.devices)
    assert [d.at for d in passed(result.xml)] == [d.at for d in passed(start)]
    assert result.xml == revert(placed).xml


def test_a_newcomer_whose_expander_is_full_gets_a_second_one_for_the_same_place(tmp_path: Path) -> None:
    here = Machine(crowd(20, 1, 2), tmp_path)
    domain = two_cells().hostdev("0000:01:00.0").hostdev("0001:01:00.0").nic()
    xml = here.place(domain.formatted()).xml
    before = {d.source: d.at for d in passed(xml)}
    for drive in range(2, 9):
        result = here.place(with_device(f"0000:{drive:02x}:00.0")(xml), fresh=False)
        assert result.outcome is Outcome.PLACED and all(line.placed and line.reason is None for line in result.devices), result.devices
        xml = result.xml
    assert {source: at for source, at in {d.source: d.at for d in passed(xml)}.items() if source in before} == before
    nodes = [c.node for c in Guest.of(xml).controllers.values() if c.expander]
    assert sorted(nodes) == [0, 0, 1]


def test_a_newcomer_without_room_stays_on_the_default_root_and_says_so(tmp_path: Path) -> None:
    here = Machine(crowd(130, 1, 1), tmp_path)
    domain = Domain().cells("0").memnode(0, "0")
    for drive in range(125):
        domain.hostdev(f"0000:{drive + 1:02x}:00.0")
    xml = here.place(domain.formatted()).xml
    last = here.place(with_device("0000:7e:00.0")(xml), fresh=False)
    assert sum(line.placed for line in last.devices) == 126
    result = here.place(with_device("0000:7f:00.0")(last.xml), fresh=False)
    assert _why(result, "0000:7f:00.0") is Reason.NO_ROOM
    assert sum(line.placed for line in result.devices) == 126


def test_each_expander_reserves_room_for_four_more_ports(machine: Maker) -> None:
    here = machine("two-root-complexes")
    xml = here.place(_pair(two_cells()).hostdev("4b:00.0").formatted()).xml
    extents = Guest.of(xml).completed().extents()
    rooms = [nxt[0] - last - 1 for (_, last, _), nxt in zip(extents, [*extents[1:], (256, 0, 0)])]
    assert all(room >= 4 for room in rooms)


def test_a_device_whose_keep_was_taken_away_moves_and_the_others_do_not(machine: Maker) -> None:
    here = machine("two-sockets")
    kept = here.place(_pair(two_cells().keep("0000:b3:00.0")).formatted()).xml
    result = here.place(kept.replace(b"<p:keep device='0000:b3:00.0'/>", b""), fresh=False)
    assert [line.placed for line in result.devices] == [True, True]
    assert passed(kept)[0].at == passed(result.xml)[0].at


def test_reverting_a_domain_with_a_wish_keeps_the_wish(machine: Maker) -> None:
    start = _pair(two_cells().metadata(policy="required", group_by="node").keep("0000:19:00.0")).formatted()
    back = revert(machine("two-sockets").place(start).xml).xml
    assert b"policy='required'" in back and b"group-by='node'" in back and b"0000:19:00.0" in back


def test_somebody_elses_expander_that_holds_no_passthrough_device_is_no_hindrance(machine: Maker) -> None:
    guest = two_cells().controller(1, "pcie-expander-bus", "<target busNr='250'><node>0</node></target>", "00:10.0")
    guest.controller(2, "pcie-root-port", "<target chassis='2' port='0x0'/>", "01:00.0")
    xml = _pair(guest.nic("02:00.0")).raw()
    result = machine("two-sockets").place(xml, fresh=False)
    assert result.outcome is Outcome.PLACED


def test_somebody_elses_expander_without_a_bus_number_gets_libvirts_own_and_ours_keep_clear_of_it(machine: Maker) -> None:
    guest = two_cells().controller(1, "pcie-expander-bus", "<target><node>0</node></target>", "00:10.0")
    guest.controller(2, "pcie-root-port", "<target chassis='2' port='0x0'/>", "01:00.0")
    xml = _pair(guest.nic("02:00.0")).raw()
    result = place(xml, Request(root=machine("two-sockets").root))
    if result.outcome is Outcome.PLACED:
        extents = [(first, last) for first, last, index in Guest.of(result.xml).completed().extents() if index in ours(result.xml)]
        assert all(not first <= 254 <= last and not first <= 255 <= last for first, last in extents), extents
    else:
        assert result.xml == xml


def test_a_phb_with_a_node_that_is_not_ours_is_somebody_elses(machine: Maker) -> None:
    guest = two_cells().on("pseries").controller(1, "pci-root", "<target index='1'><node>0</node></target>").hostdev("17:00.0", "01:01.0")
    result = machine("two-sockets").place(guest.raw())
    assert (result.outcome, result.reason) == (Outcome.UNCHANGED, Reason.FOREIGN_EXPANDER)


@pytest.mark.parametrize("arguments", [("-fw_cfg", "name=opt/ovmf/X-PciMmio64Mb,string=65536"), ("-cpu", "host"), ("-s",)])
def test_a_qemu_commandline_that_names_no_bus_is_no_hindrance(arguments: tuple[str, ...], machine: Maker) -> None:
    assert machine("two-sockets").place(_pair(two_cells()).commandline(*arguments).raw()).outcome is Outcome.PLACED


_OWN_DEVICES = [
    ("-device", "vfio-pci,host=18:00.0"),
    ("-device", "e1000e,bus=pci.1,addr=0"),
    ("-device", '{"driver":"vfio-pci","host":"0000:18:00.0"}'),
    ("-device", "pxb-pcie,bus_nr=64,numa_node=0,bus=pcie.0"),
    ("-set", "device.hostdev0.bus=pci.3"),
]


@pytest.mark.parametrize("arguments", _OWN_DEVICES)
def test_a_qemu_commandline_with_pci_devices_of_its_own_leaves_the_domain_alone(arguments: tuple[str, ...], machine: Maker) -> None:
    result = machine("two-sockets").place(_pair(two_cells()).commandline(*arguments).raw())
    assert (result.outcome, result.reason) == (Outcome.UNCHANGED, Reason.QEMU_COMMANDLINE)


def test_a_pool_whose_members_share_the_place_is_placed(machine: Maker) -> None:
    here = machine("sriov")
    xml = two_cells().pool("near").hostdev("d8:01.3").formatted()
    result = here.place(xml, pools={"near": ["0000:3b:01.0", "0000:3b:01.1"]})
    line = next(line for line in result.devices if line.form == "network-pool")
    assert (line.source, line.placed, line.guest_cell, line.host_node) == ("near#52:54:00:00:00:01", True, 0, 0)
    assert revert(result.xml).xml == xml


def test_a_pool_across_nodes_says_so_and_the_others_are_placed(machine: Maker) -> None:
    xml = two_cells().pool("far").hostdev("d8:01.3").formatted()
    result = machine("sriov").place(xml, pools={"far": ["0000:3b:01.0", "0000:d8:01.0"]})
    assert _why(result, "far#52:54:00:00:00:01") is Reason.MIXED_NODES
    assert next(line for line in result.devices if line.source == "0000:d8:01.3").placed


def test_the_place_of_a_pool_already_placed_stands_where_libvirt_cannot_be_asked(machine: Maker) -> None:
    here = machine("sriov")
    placed = here.place(two_cells().pool("near").hostdev("d8:01.3").formatted(), pools={"near": ["0000:3b:01.0", "0000:3b:01.1"]}).xml
    assert place(placed, Request(root=here.root)).xml == placed


def test_functions_of_a_card_that_share_no_guest_slot_are_not_brought_together(machine: Maker) -> None:
    xml = two_cells().hostdev("17:00.0").hostdev("17:00.1").hostdev("17:00.2").formatted()
    result = machine("multifunction-gpu").place(xml)
    assert len({d.at for d in passed(result.xml)}) == 3 == len({d.at.bus for d in passed(result.xml) if d.at})


def test_functions_on_one_slot_whose_nodes_differ_stay_and_say_so(tmp_path: Path) -> None:
    host = MACHINES["multifunction-gpu"]()
    host.functions["0000:17:00.1"].node = 1
    domain = two_cells().hostdev("17:00.0", "03:00.0", multifunction=True).hostdev("17:00.1", "03:00.1").hostdev("65:00.0")
    result = Machine(host, tmp_path).place(domain.formatted())
    assert [_why(result, f"0000:17:00.{n}") for n in (0, 1)] == [Reason.MIXED_NODES] * 2
    assert _why(result, "0000:65:00.0") is None


def test_functions_on_one_slot_whose_nodes_differ_stay_even_if_one_node_has_no_cell(tmp_path: Path) -> None:
    host = MACHINES["multifunction-gpu"]()
    host.functions["0000:17:00.1"].node = 1
    domain = Domain().cells("0-1").memnode(0, "0").hostdev("17:00.0", "03:00.0", multifunction=True).hostdev("17:00.1", "03:00.1")
    result = place(domain.formatted(), Request(root=host.write(tmp_path)))
    assert [_why(result, f"0000:17:00.{n}") for n in (0, 1)] == [Reason.MIXED_NODES] * 2


def test_a_function_without_affinity_goes_along_with_its_card(tmp_path: Path) -> None:
    host = MACHINES["multifunction-gpu"]()
    host.functions["0000:17:00.1"].node = -1
    domain = two_cells().hostdev("17:00.0", "03:00.0", multifunction=True).hostdev("17:00.1", "03:00.1")
    result = Machine(host, tmp_path).place(domain.formatted())
    assert [line.placed for line in result.devices] == [True, True]


def test_a_foreign_device_that_shares_a_slot_with_a_device_keeps_it_there(machine: Maker) -> None:
    xml = two_cells().hostdev("17:00.0", "03:00.0", multifunction=True).nic("03:00.1").hostdev("b3:00.0").formatted()
    result = machine("two-sockets").place(xml)
    assert _why(result, "0000:17:00.0") is Reason.SHARED_SLOT
    assert [line.placed for line in result.devices] == [False, True]


def test_the_grouping_in_force_stays_when_the_owner_wishes_nothing_else(machine: Maker) -> None:
    here = machine("eight-gpus")
    placed = here.place(two_cells().hostdev("24:00.0").hostdev("26:00.0").formatted(), group_by=GroupBy.SWITCH).xml
    again = place(placed, Request(root=here.root, group_by=GroupBy.SWITCH))
    assert (again.outcome, again.group_by, again.xml == placed) == (Outcome.UNCHANGED, GroupBy.SWITCH, True)


_GONE = "an emptied expander stays although its <node> is a cell that the guest no longer has: libvirt refuses the domain"


def test_an_expander_does_not_outlive_its_guest_cell(machine: Maker) -> None:
    here = machine("two-sockets")
    placed = here.place(_pair(two_cells()).formatted()).xml
    for gone in (b"      <cell id='1' cpus='2-3' memory='524288' unit='KiB'/>\n", b"    <memnode cellid='1' mode='strict' nodeset='1'/>\n"):
        placed = placed.replace(gone, b"")
    result = here.place(placed, fresh=False)
    assert [line.placed for line in result.devices] == [True, False]


def test_a_placed_domain_without_numa_cells_any_more_does_not_keep_its_placement(machine: Maker) -> None:
    here = machine("two-sockets")
    start = _pair(two_cells()).formatted()
    placed = here.place(start).xml
    first, last = placed.index(b"    <numa>"), placed.index(b"    </numa>\n") + len(b"    </numa>\n")
    result = place(placed[:first] + placed[last:], Request(root=here.root))
    assert [d.at for d in passed(result.xml)] == [d.at for d in passed(start)]
    assert all(c.node is None for c in Guest.of(result.xml).controllers.values())


def test_spare_ports_stay_hot_pluggable_and_catch_no_foreign_device_in_raw_xml(machine: Maker) -> None:
    xml = _pair(two_cells().nic().disk()).raw()
    result = machine("two-sockets").place(xml, settings=Settings(spare_ports=2))
    guest = Guest.of(result.xml)
    spare = [c for c in guest.controllers.values() if c.index in ours(result.xml) and guest.expander(c.index) and not guest.used(c.index)]
    assert len([c for c in spare if c.model == "pcie-root-port" and c.hotplug == "on"]) == 4


def test_raw_xml_keeps_one_free_port_on_the_main_root_as_libvirt_would_give_it(machine: Maker) -> None:
    result = machine("two-sockets").place(_pair(two_cells().nic().disk()).raw())
    guest = Guest.of(result.xml).completed()
    main = [c for c in guest.controllers.values() if c.at and c.at.bus == 0 and c.model == "pcie-root-port"]
    assert len([c for c in main if not guest.used(c.index)]) == 1


def test_the_primary_display_keeps_slot_one_of_raw_xml(machine: Maker) -> None:
    result = machine("two-sockets").place(_pair(two_cells().with_extras()).raw())
    assert 1 not in {at.slot for at in Guest.of(result.xml).used(0)}


@pytest.mark.parametrize(
    ("written_by", "told"),
    [
        ("", "'pcinuma disable {name}' lets it start as it is"),
        ("<nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'/>", "'pcinuma disable {name}' lets it start as it is"),
        ("<ovirt-vm:vm xmlns:ovirt-vm='http://ovirt.org/vm/1.0'/>", "the VM's custom property pcinuma_policy set to 'preferred' or 'off'"),
    ],
    ids=["libvirt", "nova", "ovirt"],
)
def test_a_refusal_names_what_the_guests_owner_can_set(machine: Maker, written_by: str, told: str) -> None:
    domain = two_cells().hostdev("77:00.0").metadata(policy="required")
    xml = domain.formatted().replace(b"<metadata>", f"<metadata>{written_by}".encode(), 1)
    result = machine("two-sockets").place(xml)
    assert result.refused and result.message is not None
    assert told.format(name=domain.name) in result.message
    assert ("pcinuma disable" in told) == ("pcinuma disable" in result.message)
