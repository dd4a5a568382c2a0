# SPDX-License-Identifier: LGPL-2.1-or-later
"""oVirt's memory of a placement: the next start has the same one, and no guest starts from what is left of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional

import pytest
from hypothesis import given, settings
from lxml import etree

from pcinuma.cli import main
from pcinuma.engine import Request, place
from pcinuma.reason import Outcome, Reason
from tests.hosts.domains import Domain, two_cells
from tests.hosts.machines import MACHINES
from tests.hosts.ovirt import managed, remembered
from tests.hosts.strategies import Setup, setups
from tests.unit.test_properties import SHARED, THOROUGH, Tree, _place

EXPANDER = "pcie-expander-bus"


def expanders(xml: bytes) -> list[tuple[Optional[str], Optional[str]]]:
    """Bus number and node of each expander."""
    found = etree.fromstring(xml).findall("devices/controller")
    chosen = [c for c in found if c.get("model") in (EXPANDER, "pci-expander-bus")]
    return [(c.find("target").get("busNr") if c.find("target") is not None else None, c.findtext("target/node")) for c in chosen]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    MACHINES["two-sockets"]().write(tmp_path)
    return tmp_path


def vm(domain: Domain) -> bytes:
    return managed(domain.hostdev("17:00.0").hostdev("b3:00.0").nic().formatted())


@settings(max_examples=30 * THOROUGH, **SHARED)
@given(setups(formatted=True))
def test_the_next_start_is_laid_out_as_the_one_before(setup: Setup) -> None:
    with Tree(setup) as root:
        xml = managed(setup.xml())
        first = _place(xml, setup, root)
        if first.outcome is not Outcome.PLACED:
            return
        second = _place(remembered(xml, first.xml), setup, root)
        assert second.devices == first.devices and expanders(second.xml) == expanders(first.xml)
        third = _place(remembered(xml, second.xml), setup, root)
        assert (third.devices, third.xml) == (second.devices, second.xml)


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_each_machine_type_with_expanders(root: Path, machine: str) -> None:
    xml = managed(two_cells().on(machine).hostdev("17:00.0").hostdev("b3:00.0").raw())
    first = place(xml, Request(root=root))
    second = place(remembered(xml, first.xml), Request(root=root))
    assert all(line.placed for line in second.devices) and expanders(second.xml) == expanders(first.xml)


def test_where_nothing_can_be_placed_any_more_what_is_left_goes_all_the_same(root: Path, tmp_path: Path) -> None:
    xml = vm(two_cells())
    stale = remembered(xml, place(xml, Request(root=root)).xml)
    os.rename(root / "sys/bus/pci/devices/0000:b3:00.0", tmp_path / "gone")
    result = place(stale, Request(root=root))
    assert (result.outcome, result.reason) == (Outcome.FALLBACK, Reason.DEVICE_ABSENT)
    assert expanders(result.xml) == [] and "oVirt's engine remembers" in str(result.message)
    assert place(result.xml, Request(root=root)).xml == result.xml


def test_off_takes_what_is_left_out_too_since_a_guest_would_miss_devices(root: Path) -> None:
    xml = vm(two_cells())
    stale = remembered(xml, place(xml, Request(root=root)).xml)
    off = b"<pcinuma xmlns='urn:pcinuma:domain:1' policy='off'/></metadata>"
    result = place(stale.replace(b"</metadata>", off, 1), Request(root=root))
    assert (result.outcome, result.reason, expanders(result.xml)) == (Outcome.PLACED, Reason.POLICY_OFF, [])
    assert not any(line.placed for line in result.devices)


def test_the_filter_leaves_them_alone_since_without_metadata_nothing_is_pcinumas(
    root: Path, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    xml = vm(two_cells())
    file = tmp_path / "vm.xml"
    file.write_bytes(remembered(xml, place(xml, Request(root=root)).xml))
    assert main(["place", "--root", str(root), str(file)]) == 0
    assert capsysbinary.readouterr().out == file.read_bytes()


def test_other_managers_expanders_and_whole_ones_stay_somebody_elses(root: Path) -> None:
    xml = vm(two_cells())
    placed = place(xml, Request(root=root)).xml
    stale = remembered(xml, placed)
    plain = stale.replace(b"http://ovirt.org/vm/1.0", b"urn:somebody")
    tree = etree.fromstring(stale)
    first = next(c for c in tree.iter("controller") if c.get("model") == EXPANDER)
    first.insert(0, etree.fromstring("<target busNr='200'><node>0</node></target>"))
    for foreign in (plain, etree.tostring(tree)):
        result = place(foreign, Request(root=root))
        assert (result.outcome, result.reason, result.xml) == (Outcome.UNCHANGED, Reason.FOREIGN_EXPANDER, foreign)


@pytest.mark.parametrize("bus", ["0x", "banana", "-1", "99999999999"])
def test_an_address_that_means_nothing_is_no_address_on_an_expander(root: Path, bus: str) -> None:
    xml = vm(two_cells())
    stale = remembered(xml, place(xml, Request(root=root)).xml)
    tree = etree.fromstring(stale)
    etree.SubElement(tree.find("devices"), "sound", model="ich9").append(etree.Element("address", type="pci", bus=bus, slot="0x01"))
    result = place(etree.tostring(tree), Request(root=root))
    assert (result.outcome, result.reason, expanders(result.xml)) == (Outcome.FALLBACK, Reason.BAD_VALUE, [])
