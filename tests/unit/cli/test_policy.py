# SPDX-License-Identifier: LGPL-2.1-or-later
"""Policies, metadata and exit code 1, through the real command."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import pytest

from tests.golden.cases import FOLDER
from tests.hosts.command import Command
from tests.hosts.domains import Domain, two_cells


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


def _pair(domain: Domain) -> Domain:
    return domain.hostdev("17:00.0").hostdev("b3:00.0")


def test_required_on_the_command_line_exits_1_when_it_is_not_met(command: Command) -> None:
    xml = _pair(Domain().cells("0-1").memnode(0, "0")).raw()
    answer = command.on("two-sockets").place(xml, "--policy", "required")
    assert (answer.code, answer.out) == (1, b"")
    assert answer.report is not None
    assert (answer.report["outcome"], answer.report["reason"]) == ("fallback", "required")
    assert answer.line("0000:b3:00.0")["reason"] == "no-cell"
    assert answer.err.strip() and "0000:b3:00.0" in answer.err


def test_required_in_the_metadata_alone_exits_1_too(command: Command) -> None:
    xml = _pair(Domain().cells("0-1").memnode(0, "0").metadata(policy="required")).raw()
    answer = command.on("two-sockets").place(xml)
    assert (answer.code, answer.out) == (1, b"")


def test_preferred_on_the_command_line_wins_over_required_in_the_metadata(command: Command) -> None:
    xml = _pair(Domain().cells("0-1").memnode(0, "0").metadata(policy="required")).raw()
    answer = command.on("two-sockets").place(xml, "--policy", "preferred")
    assert answer.code == 0 and answer.report is not None and answer.report["outcome"] == "placed"


def test_required_in_the_configuration_below_the_root_counts(command: Command) -> None:
    xml = _pair(Domain().cells("0-1").memnode(0, "0")).raw()
    answer = command.on("two-sockets").configure("[placement]\npolicy = required\n").place(xml)
    assert (answer.code, answer.out) == (1, b"")


def test_required_is_met_by_devices_that_are_placed_or_kept_or_without_affinity(command: Command) -> None:
    command.on("two-sockets")
    (command.root / "sys/bus/pci/devices/0000:18:00.0/numa_node").unlink()
    xml = two_cells().keep("0000:b3:00.0").hostdev("17:00.0").hostdev("18:00.0").hostdev("b3:00.0").hostdev("b4:00.0", "unassigned").raw()
    answer = command.place(xml, "--policy", "required")
    assert answer.code == 0 and answer.report is not None
    assert [(line["placed"], line["reason"]) for line in answer.report["devices"]] == [
        (True, None),
        (False, "no-affinity"),
        (False, "kept"),
        (False, "unassigned"),
    ]


@pytest.mark.parametrize(
    ("what", "domain", "damage"),
    [
        ("an absent device", _pair(two_cells()), "gone"),
        ("garbage", _pair(two_cells()), "garbage"),
        ("no cells", _pair(Domain()), ""),
        ("somebody else's expanders", None, ""),
        ("a machine type without expanders", _pair(two_cells().on("microvm")), ""),
    ],
)
def test_required_is_not_met_by(what: str, domain: Optional[Domain], damage: str, command: Command) -> None:
    command.on("two-sockets")
    device = command.root / "sys/bus/pci/devices/0000:17:00.0"
    if damage == "gone":
        device.unlink()
    elif damage:
        (device / "numa_node").write_text("what\n")
    xml = domain.raw() if domain else (FOLDER / "foreign-expander-in.xml").read_bytes()
    answer = command.place(xml, "--policy", "required")
    assert (answer.code, answer.out) == (1, b""), what
    assert answer.report is not None and (answer.report["outcome"], answer.report["reason"]) == ("fallback", "required")


def test_a_domain_without_passthrough_devices_meets_required(command: Command) -> None:
    xml = two_cells().nic().raw()
    command.on("two-sockets").place(xml, "--policy", "required").leaves(xml, "unchanged", "nothing-to-place")


@pytest.mark.parametrize("arguments", [[], ["--policy", "required"], ["--policy", "preferred"]])
def test_the_owners_off_wins_over_everything(arguments: list[str], command: Command) -> None:
    xml = _pair(two_cells().metadata(policy="off")).raw()
    command.on("two-sockets").place(xml, *arguments).leaves(xml, "unchanged", "policy-off")


def test_off_on_a_placed_domain_leaves_it_as_it_stands(command: Command) -> None:
    command.on("two-sockets")
    placed = command.place(_pair(two_cells()).formatted()).out
    xml = placed.replace(b"<pcinuma:pcinuma ", b"<pcinuma:pcinuma policy='off' ", 1)
    assert xml != placed
    answer = command.place(xml)
    assert (answer.code, answer.out == xml) == (0, True)
    assert answer.report is not None and (answer.report["outcome"], answer.report["reason"]) == ("unchanged", "policy-off")
    assert [line["placed"] for line in answer.report["devices"]] == [True, True]


def test_off_in_the_configuration_yields_to_the_owners_preferred(command: Command) -> None:
    command.on("two-sockets").configure("[placement]\npolicy = off\n")
    xml = _pair(two_cells()).raw()
    command.place(xml).leaves(xml, "unchanged", "policy-off")
    assert command.place(_pair(two_cells().metadata(policy="preferred")).raw()).out != xml


@pytest.mark.parametrize(("attribute", "value"), [("policy", "bogus"), ("group_by", "socket")])
def test_a_bogus_wish_in_the_metadata_is_a_fallback(attribute: str, value: str, command: Command) -> None:
    xml = _pair(two_cells().metadata(**{attribute: value})).raw()
    command.on("two-sockets").place(xml).leaves(xml, "fallback", "bad-value")


@pytest.mark.parametrize("group_by", ["switch", "node"])
def test_group_by_on_the_command_line_wins_over_the_owners(group_by: str, command: Command) -> None:
    xml = two_cells().metadata(group_by=group_by).hostdev("24:00.0").hostdev("26:00.0").raw()
    command.on("eight-gpus")
    for argument in ("root-complex", "node", "switch"):
        answer = command.place(xml, "--group-by", argument)
        assert answer.report is not None and answer.report["group_by"] == argument
    owners = command.place(xml).report
    assert owners is not None and owners["group_by"] == group_by


def test_group_by_is_null_where_nothing_is_placed(command: Command) -> None:
    answer = command.on("minus-one").place(_pair(two_cells()).raw())
    assert answer.report is not None and answer.report["group_by"] is None
