# SPDX-License-Identifier: LGPL-2.1-or-later
"""Metadata that somebody copied from another domain, or made up: no controller and no address is pcinuma's because a list says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

from pcinuma.engine import Request, place, revert
from pcinuma.reason import Outcome, Reason
from tests.hosts.domains import Domain, two_cells
from tests.hosts.guest import Guest
from tests.hosts.judge import faults
from tests.hosts.keeping import kept
from tests.hosts.machines import MACHINES
from tests.hosts.passthrough import NS, ours, passed, placement
from tests.hosts.rules import address_faults

MACHINE = "two-sockets"
SOURCES = ["0000:17:00.0", "0000:18:00.0", "0000:b3:00.0", "0000:99:00.0", ""]
SHARED: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}
_NUMBERS = st.sampled_from(["0", "0x00", "0x01", "0x02", "0x05", "0x06", "0x0a", "0x1f", "0x7", "999", "0xffff", "-1", "x", "", "１"])
_ENTRIES = st.lists(
    st.tuples(
        st.sampled_from(SOURCES),
        st.fixed_dictionaries(
            {},
            optional={
                "domain": st.sampled_from(["0x0000", "0", "0x0001", "y"]),
                "bus": _NUMBERS,
                "slot": _NUMBERS,
                "function": _NUMBERS,
                "multifunction": st.sampled_from(["on", "off", "maybe"]),
            },
        ),
    ),
    max_size=5,
)
_INDEXES = st.lists(st.sampled_from([*map(str, range(16)), "255", "256", "-1", "z", ""]), max_size=16)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MACHINES[MACHINE]().write(tmp_path_factory.mktemp(MACHINE))


def _forged(xml: bytes, indexes: list[str], entries: list[tuple[str, dict[str, str]]]) -> bytes:
    """``xml`` with these in its ``<placement>``, beside what is there."""
    root = etree.fromstring(xml)
    metadata = root.find("metadata")
    if metadata is None:
        metadata = etree.SubElement(root, "metadata")
    own = metadata.find(f"{NS}pcinuma")
    if own is None:
        own = etree.SubElement(metadata, f"{NS}pcinuma", nsmap={"pcinuma": NS[1:-1]})
    element = own.find(f"{NS}placement")
    if element is None:
        element = etree.SubElement(own, f"{NS}placement", {"group-by": "root-complex"})
    for index in indexes:
        etree.SubElement(element, f"{NS}controller", index=index)
    for source, address in entries:
        etree.SubElement(element, f"{NS}device", {"source": source, **address})
    return etree.tostring(root) + b"\n"


def _owners() -> Domain:
    """Ports, an upstream port and a bridge of the owner's, an expander without a node, a USB and a SCSI controller beside them."""
    domain = two_cells().nic().hostdev("17:00.0", "01:00.0").hostdev("18:00.0", "04:00.0").hostdev("b3:00.0", "02:00.0")
    for index, place_at in ((1, "00:03.0"), (2, "00:03.1"), (3, "00:03.2"), (4, "00:03.3"), (5, "00:03.4")):
        domain.controller(index, "pcie-root-port", f"<target chassis='{index}'/>", place_at, multifunction=index == 1)
    domain.controller(6, "pcie-switch-upstream-port", "", "05:00.0")
    domain.controller(7, "pcie-switch-downstream-port", "<target chassis='7'/>", "06:00.0")
    domain.controller(8, "pcie-to-pci-bridge", "", "07:00.0")
    domain.controllers.append("    <controller type='scsi' index='9' model='virtio-scsi'/>\n    <controller type='usb' index='0'/>\n")
    return domain


@settings(max_examples=40, **SHARED)
@given(indexes=_INDEXES, entries=_ENTRIES)
def test_what_nobody_placed_is_not_taken_back(root: Path, indexes: list[str], entries: list[tuple[str, dict[str, str]]]) -> None:
    xml = _forged(_owners().raw(), indexes, entries)
    back = revert(xml).xml
    assert placement(back) is None
    assert Guest.of(back).controllers == Guest.of(xml).controllers
    assert [(d.source, d.at) for d in passed(back)] == [(d.source, d.at) for d in passed(xml)]


@settings(max_examples=40, **SHARED)
@given(indexes=_INDEXES, entries=_ENTRIES, replan=st.booleans())
def test_what_nobody_placed_is_placed_by_the_rules(
    root: Path, indexes: list[str], entries: list[tuple[str, dict[str, str]]], replan: bool
) -> None:
    xml = _forged(_owners().raw(), indexes, entries)
    result = place(xml, Request(root, replan=replan))
    assert result.outcome is Outcome.PLACED and all(line.placed for line in result.devices)
    assert not faults(xml, result.xml, MACHINES[MACHINE](), result.report(), fresh=True)
    was = Guest.of(xml).controllers
    assert {index: c for index, c in Guest.of(result.xml).controllers.items() if index in was} == was
    assert [(d.source, d.at) for d in passed(revert(result.xml).xml)] == [(d.source, d.at) for d in passed(xml)]


@settings(max_examples=40, **SHARED)
@given(indexes=_INDEXES, entries=_ENTRIES, replan=st.booleans(), formatted=st.booleans())
def test_a_real_placement_with_forged_lines_costs_nobody_else_anything(
    root: Path, indexes: list[str], entries: list[tuple[str, dict[str, str]]], replan: bool, formatted: bool
) -> None:
    placed = place(_owners().raw(), Request(root)).xml
    xml = _forged(placed, indexes, entries)
    theirs = {i: c for i, c in Guest.of(xml).controllers.items() if i not in ours(xml)}
    for after in (revert(xml).xml, place(xml, Request(root, replan=replan)).xml):
        left = Guest.of(after).controllers
        assert {i: c for i, c in left.items() if i in theirs} == theirs
        before = address_faults(Guest.of(xml).completed())
        assert not [fault for fault in address_faults(Guest.of(after).completed()) if fault not in before]
        kept(after)


def test_a_record_of_nothing_is_taken_out_and_the_wished_grouping_counts(root: Path) -> None:
    plain = two_cells().hostdev("99:00.0", "unassigned").formatted()
    xml = _forged(plain, ["1", "2"], [("0000:17:00.0", {})])
    result = place(xml, Request(root))
    assert (result.outcome, result.reason, result.group_by) == (Outcome.PLACED, Reason.NOTHING_TO_PLACE, None)
    assert placement(result.xml) is None and "record" in str(result.message)
    assert place(result.xml, Request(root)).outcome is Outcome.UNCHANGED
    asked_for: Optional[bytes] = _forged(two_cells().metadata(group_by="node").hostdev("17:00.0").formatted(), ["1"], [])
    assert place(asked_for or b"", Request(root)).report()["group_by"] == "node"
