# SPDX-License-Identifier: LGPL-2.1-or-later
"""Undo and repair: what revert must never leave behind, and placed domains that somebody changed by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lxml import etree

from pcinuma.engine import Request, place, revert
from pcinuma.reason import Outcome, Reason
from tests.hosts.domains import Domain, two_cells
from tests.hosts.edits import with_device, without_device
from tests.hosts.guard import no_real_host  # noqa: F401
from tests.hosts.guest import Guest
from tests.hosts.judge import judge
from tests.hosts.keeping import kept
from tests.hosts.libvirt_format import define, missing
from tests.hosts.machines import MACHINES
from tests.hosts.passthrough import NS, ours, passed
from tests.hosts.rules import address_faults

MACHINE = "two-sockets"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MACHINES[MACHINE]().write(tmp_path_factory.mktemp(MACHINE))


def _pair(domain: Domain) -> Domain:
    return domain.hostdev("17:00.0").hostdev("b3:00.0")


def test_reverting_never_leaves_a_function_without_function_zero(root: Path) -> None:
    placed = place(_pair(two_cells().nic("01:00.0").nic("02:00.0")).raw(), Request(root=root)).xml
    less = re.sub(rb"    <interface type='user'>.*?</interface>\n", b"", placed, count=1, flags=re.S)
    assert address_faults(Guest.of(revert(less).xml)) == []


def test_reverting_what_libvirt_has_formatted_leaves_everybody_reachable(root: Path) -> None:
    if missing():
        pytest.skip(f"the real libvirt: {missing()}")
    placed = place(_pair(two_cells().nic()).raw(), Request(root=root)).xml
    ((formatted, error),) = define([placed])
    assert formatted is not None, error
    less = re.sub(rb"    <interface type='user'>.*?</interface>\n", b"", formatted, count=1, flags=re.S)
    ((again, error),) = define([revert(less).xml])
    assert again is not None, error
    assert address_faults(Guest.of(again)) == []


def test_a_foreign_device_keeps_the_controller_of_ours_that_it_came_to_sit_on(root: Path) -> None:
    placed = place(_pair(two_cells().nic("02:00.0")).raw(), Request(root=root)).xml
    back = Guest.of(revert(placed).xml)
    assert [e.at.bus in back.controllers for e in back.endpoints if e.name == "interface" and e.at] == [True]


def test_removing_the_metadata_makes_our_expanders_somebody_elses(root: Path) -> None:
    element = etree.fromstring(place(_pair(two_cells()).formatted(), Request(root=root)).xml)
    element.remove(element.find("metadata"))
    xml = etree.tostring(element)
    result = place(xml, Request(root=root))
    assert (result.outcome, result.reason, result.xml) == (Outcome.UNCHANGED, Reason.FOREIGN_EXPANDER, xml)
    assert revert(xml).xml == xml


def test_replanning_lays_out_afresh_and_forgets_what_is_gone(root: Path) -> None:
    start = _pair(two_cells().nic()).formatted()
    xml = place(with_device("18:00.0")(place(start, Request(root=root)).xml), Request(root=root)).xml
    xml = place(without_device("17:00.0")(xml), Request(root=root)).xml
    again = place(xml, Request(root=root, replan=True))
    judge(xml, again.xml, MACHINES[MACHINE](), again.report(), fresh=True)
    assert place(again.xml, Request(root=root, replan=True)).outcome is Outcome.UNCHANGED


def test_replanning_keeps_the_original_addresses(root: Path) -> None:
    start = _pair(two_cells().nic()).formatted()
    again = place(place(start, Request(root=root)).xml, Request(root=root, replan=True)).xml
    assert [d.at for d in passed(revert(again).xml)] == [d.at for d in passed(start)]


def test_an_emptied_expander_stays_until_the_domain_is_replanned(root: Path) -> None:
    placed = place(_pair(two_cells()).formatted(), Request(root=root)).xml
    less = place(without_device("17:00.0")(placed), Request(root=root)).xml
    assert ours(less) == ours(placed)
    assert len(ours(place(less, Request(root=root, replan=True)).xml)) == 2


def test_a_device_that_comes_back_takes_its_old_place(root: Path) -> None:
    placed = place(_pair(two_cells()).formatted(), Request(root=root)).xml
    less = place(without_device("17:00.0")(placed), Request(root=root)).xml
    more = place(with_device("17:00.0")(less), Request(root=root)).xml
    assert ours(more) == ours(placed)
    assert {d.source: d.at for d in passed(more)} == {d.source: d.at for d in passed(placed)}


def test_a_mapping_that_changed_moves_the_device_and_the_others_stay(root: Path) -> None:
    placed = place(_pair(Domain().cells("0-1", "2-3").memnode(0, "0")).formatted(), Request(root=root)).xml
    mapped = placed.replace(b"nodeset='0'/>", b"nodeset='0'/>\n    <memnode cellid='1' mode='strict' nodeset='1'/>", 1)
    result = place(mapped, Request(root=root))
    before, after = ({d.source: d.at for d in passed(xml)} for xml in (mapped, result.xml))
    assert [line.placed for line in result.devices] == [True, True]
    assert before["0000:17:00.0"] == after["0000:17:00.0"] and before["0000:b3:00.0"] != after["0000:b3:00.0"]
    judge(mapped, result.xml, MACHINES[MACHINE](), result.report(), fresh=False)


def test_a_placement_that_became_wrong_and_cannot_be_mended_is_reverted(root: Path) -> None:
    start = _pair(two_cells()).formatted()
    placed = place(start, Request(root=root)).xml
    unmapped = placed.replace(b"<memnode cellid='0' mode='strict' nodeset='0'/>", b"").replace(
        b"<memnode cellid='1' mode='strict' nodeset='1'/>", b""
    )
    result = place(unmapped, Request(root=root))
    assert [line.placed for line in result.devices] == [False, False]
    assert [d.at for d in passed(result.xml)] == [d.at for d in passed(start)]


def test_a_kept_device_of_a_placed_domain_goes_back(root: Path) -> None:
    start = _pair(two_cells()).formatted()
    placed = place(start, Request(root=root)).xml
    kept = placed.replace(b"<pcinuma:placement", b"<pcinuma:keep device='0000:17:00.0'/><pcinuma:placement", 1)
    result = place(kept, Request(root=root))
    line = next(line for line in result.devices if line.source == "0000:17:00.0")
    assert line.reason is Reason.KEPT


_DAMAGE = [
    "",
    "<target busNr='250'/>",
    "<target><node>9</node></target>",
    "<target busNr='x'><node>0</node></target>",
]


@pytest.mark.parametrize("target", _DAMAGE)
def test_an_expander_of_ours_that_somebody_broke_is_no_internal_error(target: str, root: Path) -> None:
    placed = place(_pair(two_cells()).formatted(), Request(root=root)).xml
    xml = re.sub(rb"<target busNr='250'>.*?</target>", target.encode(), placed, count=1, flags=re.S)
    assert xml != placed
    assert place(xml, Request(root=root)).reason is not Reason.INTERNAL


def test_a_placement_in_a_domain_without_devices_is_no_internal_error(root: Path) -> None:
    element = etree.fromstring(place(_pair(two_cells()).formatted(), Request(root=root)).xml)
    element.remove(element.find("devices"))
    assert element.find(f"metadata/{NS}pcinuma") is not None
    assert place(etree.tostring(element), Request(root=root)).reason is not Reason.INTERNAL


def test_two_hundred_virtio_nics_in_raw_xml_leave_room_for_two_expanders(root: Path) -> None:
    domain = two_cells()
    for _ in range(200):
        domain.nic()
    assert place(_pair(domain).raw(), Request(root=root)).outcome is Outcome.PLACED


@pytest.mark.parametrize("replan", [False, True])
@pytest.mark.parametrize("others", [0, 1])
def test_a_kept_device_stays_on_a_port_of_ours_also_when_nothing_is_placed_any_more(root: Path, replan: bool, others: int) -> None:
    """It sits on a main port, since somebody took its old place before it had to leave its expander."""
    placed = place(two_cells().hostdev("17:00.0").formatted(), Request(root=root)).xml
    old = re.search(rb"source='0000:17:00.0' domain='0x0000' bus='0x(..)' slot='0x(..)'", placed)
    assert old is not None
    occupied = with_device("18:00.0", f"{old.group(1).decode()}:{old.group(2).decode()}.0")(placed)
    cell_gone = re.sub(rb"(<memnode [^>]*nodeset=')\d", rb"\g<1>1", occupied)
    aside = kept(place(cell_gone, Request(root=root)).xml)
    (at,) = [device.at for device in passed(aside) if device.source == "0000:17:00.0"]
    assert at is not None and at.bus in ours(aside)
    asked = aside.replace(b"<pcinuma:placement", b'<pcinuma:keep device="0000:17:00.0"/><pcinuma:placement', 1)
    asked = asked if others else without_device("18:00.0")(asked)
    result = place(asked, Request(root=root, replan=replan))
    (line,) = [line for line in result.devices if line.source == "0000:17:00.0"]
    assert (line.guest_address, line.reason) == (f"0000:{at.bus:02x}:00.0", Reason.KEPT)
    again = place(kept(result.xml), Request(root=root, replan=replan))
    assert again.outcome is Outcome.UNCHANGED
