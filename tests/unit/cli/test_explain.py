# SPDX-License-Identifier: LGPL-2.1-or-later
"""explain and verify: distances, what the groupings gain and cost, and the judgement of a running guest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pcinuma.cli import main
from pcinuma.cli.explain import explain
from pcinuma.cli.sources import DomainSource
from pcinuma.cli.verify import check_domain
from pcinuma.host.topology import read_topology
from pcinuma.reason import Reason
from pcinuma.settings import GroupBy
from pcinuma.show.describe import is_endpoint
from pcinuma.show.distance import Distance, Location, distance
from tests.golden.cases import BY_NAME, CASES
from tests.hosts.domains import Domain, two_cells
from tests.hosts.machines import MACHINES
from tests.waiting import CHECKOUT

GOLDEN = CHECKOUT / "tests/golden"


def golden(name: str) -> DomainSource:
    return DomainSource(name, (GOLDEN / f"{name}.xml").read_bytes(), {}, True)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (Location(0, "a", ("s",), "1"), Location(0, "a", ("s",), "2"), Distance.PIX),
        (Location(0, "a", ("s", "t"), "1"), Location(0, "a", ("s",), "2"), Distance.PXB),
        (Location(0, "a", ("s", "t"), "1"), Location(0, "a", ("s", "u"), "2"), Distance.PXB),
        (Location(0, "a", ("s",), "1"), Location(0, "a", ("t",), "2"), Distance.PHB),
        (Location(0, "a", (), "1"), Location(0, "a", (), "2"), Distance.PHB),
        (Location(0, "a", (), "1"), Location(0, "a", (), "1"), Distance.PIX),
        (Location(0, "a", (), "1"), Location(0, "b", (), "2"), Distance.NODE),
        (Location(0, "a", (), "1"), Location(1, "b", (), "2"), Distance.SYS),
        (Location(None, "a", (), "1"), Location(None, "b", (), "2"), Distance.SYS),
    ],
)
def test_distances_are_those_of_nccl(one: Location, other: Location, expected: Distance) -> None:
    assert distance(one, other) is expected
    assert distance(other, one) is expected


def test_switch_gives_eight_gpus_the_hosts_distances_and_costs_links_and_atomics(tmp_path: Path) -> None:
    MACHINES["eight-gpus"]().write(tmp_path)
    explained = explain(golden("eight-gpus-root-complex-in"), tmp_path)
    by_mode = {grouping.group_by: grouping.shown for grouping in explained.groupings}
    node, complexes, switch = by_mode[GroupBy.NODE], by_mode[GroupBy.ROOT_COMPLEX], by_mode[GroupBy.SWITCH]
    assert node is not None and complexes is not None and switch is not None
    # 16 devices, four to a switch, two switches to a node: 24 pairs under one switch, 32 of one node, 64 across.
    assert (node.right, complexes.right, switch.right) == (64, 64 + 32, 120)
    assert (node.expanders, complexes.expanders, switch.expanders) == (2, 4, 4)
    assert (complexes.behind_switch, switch.behind_switch) == (0, 16)
    assert (complexes.atomics, switch.atomics) == (16, 0)
    assert {(pair.host, pair.guest) for pair in complexes.wrong} == {(Distance.PIX, Distance.PHB)}
    assert explained.layout == complexes


def test_a_multifunction_slot_keeps_no_atomics(tmp_path: Path) -> None:
    MACHINES["multifunction-gpu"]().write(tmp_path)
    layout = explain(golden("multifunction-out"), tmp_path).layout
    assert (layout.devices, layout.atomics) == (6, 2)


def test_a_domain_that_is_left_alone_is_offered_no_grouping(tmp_path: Path) -> None:
    MACHINES["two-sockets"]().write(tmp_path)
    assert explain(golden("no-cells-in"), tmp_path).groupings == ()


def checks(tmp_path: Path, machine: str, name: str) -> dict[str, tuple[bool, str]]:
    MACHINES[machine]().write(tmp_path)
    return {check.device.source: (check.passed, check.message) for check in check_domain(golden(name), tmp_path)}


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        ("two-sockets", "two-nodes-out"),
        ("two-sockets", "swapped-out"),
        ("eight-gpus", "eight-gpus-switch-out"),
        ("eight-gpus", "eight-gpus-root-complex-out"),
        ("eight-gpus", "eight-gpus-node-out"),
        ("two-root-complexes", "two-root-complexes-out"),
        ("vmd", "vmd-out"),
        ("mediated", "forms-out"),
    ],
)
def test_a_guest_that_runs_as_placed_passes(tmp_path: Path, machine: str, name: str) -> None:
    assert {passed for passed, _ in checks(tmp_path, machine, name).values()} == {True}


def test_a_guest_that_runs_unplaced_fails_for_each_device_with_a_cell(tmp_path: Path) -> None:
    found = checks(tmp_path, "two-sockets", "two-nodes-formatted-in")
    assert found["0000:17:00.0"] == (False, "host node 0 is cell 0, but the guest sees no node for it")
    assert found["0000:b3:00.0"] == (False, "host node 1 is cell 1, but the guest sees no node for it")


def test_a_device_under_the_wrong_cell_fails(tmp_path: Path) -> None:
    MACHINES["two-sockets"]().write(tmp_path)
    xml = (GOLDEN / "two-nodes-out.xml").read_bytes()
    swapped = xml.replace(b"<node>0</node>", b"<node>X</node>").replace(b"<node>1</node>", b"<node>0</node>").replace(b"X", b"1")
    found = check_domain(DomainSource("x", swapped, {}, True), tmp_path)
    assert [check.passed for check in found] == [False, False]
    assert found[0].message == "host node 0 is cell 0, but the guest sees it under cell 1"


def test_devices_of_two_root_complexes_on_one_expander_fail_unless_grouped_by_node(tmp_path: Path) -> None:
    MACHINES["two-root-complexes"]().write(tmp_path)
    by_node = golden("two-root-complexes-node-out")
    assert all(check.passed for check in check_domain(by_node, tmp_path))
    claimed = re.sub(rb"(placement group-by=.)node", rb"\1root-complex", by_node.xml)
    assert claimed != by_node.xml
    failed = [check for check in check_domain(DomainSource("x", claimed, {}, True), tmp_path) if not check.passed]
    assert failed
    assert all("another root complex" in check.message for check in failed)


def test_a_device_without_affinity_passes_on_the_default_root_with_the_reason(tmp_path: Path) -> None:
    found = checks(tmp_path, "minus-one", "no-affinity-in")
    assert set(found.values()) == {(True, Reason.NO_AFFINITY.sentence)}


@pytest.mark.parametrize("setting", ["on", "off"])
def test_emulated_devices_with_a_host_device_behind_them_are_explained_where_the_setting_is_on(
    setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = MACHINES["backed"]().write(tmp_path)
    (root / "etc/pcinuma").mkdir(parents=True)
    (root / "etc/pcinuma/pcinuma.conf").write_text(f"[placement]\nnear-backing = {setting}\n")
    (root / "vm.xml").write_bytes(two_cells().block("/dev/nvme1n1").direct("eth0").metadata(policy="off").formatted())
    assert main(["explain", str(root / "vm.xml"), "--root", str(root)]) == 0
    text = capsys.readouterr().out
    assert ("0000:b3:00.0: node 1 (from numa_node), root complex 0000:b2" in text) is (setting == "on")
    assert ("guest  0000:03:00.0: default root, no cell" in text) is (setting == "on")
    assert main(["topology", str(root / "vm.xml"), "--root", str(root)]) == 0
    assert ("5 emulated devices" in capsys.readouterr().out) is (setting == "off")


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("cell", "message"), [("0", "the guest sees it where the host has it"), ("1", "but the guest sees it under cell 1")]
)
def test_a_device_on_its_owners_expander_is_compared_with_the_host(
    cell: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    MACHINES["two-sockets"]().write(tmp_path)
    xml = (GOLDEN / "foreign-expander-in.xml").read_text()
    assert xml.count("<node>0</node>") == 1
    (tmp_path / "vm.xml").write_text(xml.replace("<node>0</node>", f"<node>{cell}</node>"))
    text = said(capsys, "explain", str(tmp_path / "vm.xml"), "--root", str(tmp_path))
    block = next(part for part in text.split("\n\n") if part.startswith("0000:17:00.0"))
    assert "default root" not in block
    assert f"cell {cell}, pcie-expander-bus 1" in block
    assert message in block


@pytest.mark.parametrize("devices", [1, 2, 5])
def test_a_reason_that_several_devices_have_is_said_once_with_all_of_them(
    devices: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    MACHINES["eight-gpus"]().write(tmp_path)
    domain = two_cells()
    names = [device.address for device in read_topology(tmp_path).devices if is_endpoint(device)][: devices + 1]
    for name in names:
        domain = domain.hostdev(str(name)[5:])
    for name in names[:devices]:
        domain = domain.keep(str(name))
    (tmp_path / "vm.xml").write_bytes(domain.formatted())
    for command in ("explain", "topology"):
        text = said(capsys, command, str(tmp_path / "vm.xml"), "--root", str(tmp_path))
        (line,) = (line for line in text.split("\n") if Reason.KEPT.sentence in line)
        if command == "explain" and devices > 1:
            assert all(str(name) in line for name in names[:devices])
            assert str(names[devices]) not in line


@pytest.mark.parametrize("name", [case.name for case in CASES if case.stored])
def test_no_header_says_not_placed_above_placed_devices(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = BY_NAME[name].host().write(tmp_path / "host")
    text = said(capsys, "explain", str(GOLDEN / f"{name}-in.xml"), "--root", str(root))
    header, placed = text.split("\n")[0], re.search(r"^\S+  .*  placed$", text, re.MULTILINE) is not None
    assert not (placed and header.endswith("not placed"))
    assert placed or "stays as it was placed" not in header


@pytest.mark.parametrize(
    ("vcpu", "pins", "expected"),
    [
        ("<vcpu>", "<vcpupin vcpu='0' cpuset='0-7'/><vcpupin vcpu='1' cpuset='0-7'/>", "vcpupin"),
        ("<vcpu cpuset='8-15'>", "<vcpupin vcpu='0' cpuset='0-7'/><vcpupin vcpu='1' cpuset='0-7'/>", "vcpupin"),
        ("<vcpu cpuset='0-7'>", "<vcpupin vcpu='2' cpuset='8-15'/><vcpupin vcpu='3' cpuset='8-15'/>", "vcpu"),
    ],
)
def test_what_binds_a_cell_is_named_as_the_owner_wrote_it(vcpu: str, pins: str, expected: str, tmp_path: Path) -> None:
    MACHINES["two-sockets"]().write(tmp_path)
    xml = Domain().cells("0-1", "2-3").hostdev("17:00.0").raw()
    xml = re.sub(rb"<vcpu[^>]*>", vcpu.encode(), xml).replace(b"</vcpu>", f"</vcpu><cputune>{pins}</cputune>".encode())
    explained = explain(DomainSource("vm", xml, {}, False), tmp_path)
    (device,) = explained.result.devices
    assert (device.guest_cell, explained.cell_by(device)) == (0, expected)
