# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma status --check``: what passes and what does not, by every reason there is; one line, JSON and an exit code from the same value.

What a real daemon says in the states that can be brought about is in tests/libvirt/test_status_check.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import pytest

from pcinuma.cli import main, status_check
from pcinuma.model import Form
from pcinuma.reason import Reason
from tests.unit.cli.answering import answering
from tests.unit.cli.test_foreign_text import IN_XML, assert_readable
from tests.unit.cli.test_metrics import RULES, domain
from tests.unit.cli.test_metrics import status as usual_status

FINE, ALONE, MISSING = "fine", "left alone", "missing"
DEVICE_REASONS: dict[Reason, str] = {
    Reason.NO_AFFINITY: FINE,
    Reason.NO_CELL: MISSING,
    Reason.AMBIGUOUS_CELL: MISSING,
    Reason.SEVERAL_NODES: FINE,
    Reason.KEPT: FINE,
    Reason.QEMU_OVERRIDE: MISSING,
    Reason.UNASSIGNED: FINE,
    Reason.NOT_PCI: FINE,
    Reason.SHARED_SLOT: MISSING,
    Reason.MIXED_NODES: MISSING,
    Reason.POOL_UNRESOLVED: MISSING,
    Reason.BACKING_UNKNOWN: FINE,
    Reason.NO_ROOM: MISSING,
    Reason.DEVICE_ABSENT: MISSING,
    Reason.HOST_UNREADABLE: MISSING,
}
PLACED_ALL_THE_SAME = (Reason.KEPT_APART, Reason.NEAREST)
DOMAIN_REASONS: dict[Reason, str] = {
    Reason.ALREADY_PLACED: MISSING,  # of which a device is not placed, for no reason of its own
    Reason.NOTHING_TO_PLACE: MISSING,
    Reason.NO_CELLS: MISSING,
    Reason.POLICY_OFF: ALONE,
    Reason.MACHINE_TYPE: MISSING,
    Reason.NO_MACHINE: MISSING,
    Reason.NO_ACPI: MISSING,
    Reason.FOREIGN_EXPANDER: ALONE,
    Reason.QEMU_COMMANDLINE: MISSING,
    Reason.IOMMU_BUS: MISSING,
    Reason.BAD_VALUE: MISSING,
    Reason.NO_APERTURE: MISSING,
    Reason.REQUIRED: MISSING,
    Reason.INTERNAL: MISSING,
    Reason.NOT_ENABLED: ALONE,
    Reason.RUNNING: MISSING,
    Reason.MANAGED_SAVE: MISSING,
    Reason.CONTENDED: MISSING,
}


@pytest.fixture
def socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PCINUMA_SOCKET", str(tmp_path / "socket"))
    monkeypatch.setattr(status_check, "PATIENCE", 600.0)  # no busy machine decides
    monkeypatch.setattr(status_check, "SETTLES", 0.3)
    return tmp_path / "socket"


def status(*domains: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    return {**usual_status(*domains), "pending": 0, "problems": [], **values}


def device(reason: Optional[str], *, placed: bool = False, form: Form = Form.HOSTDEV_PCI) -> dict[str, Any]:
    source = "0000:18:00.0" if placed else "0000:17:00.0"
    known = {"device": source, "source": source, "form": form.value, "host_node": 0, "guest_cell": 0}
    return {**known, "guest_address": "0000:05:00.0", "placed": placed, "reason": reason, "of_a_newer_daemon": 1}


def report(reason: Optional[str], *devices: Mapping[str, Any], outcome: str = "unchanged", message: str = "why") -> dict[str, Any]:
    return {"outcome": outcome, "reason": reason, "message": message, "group_by": None, "cells": None, "devices": list(devices)}


def looked_at(socket: Path, found: Mapping[str, Any], *, changed: bool = False, **values: Any) -> status_check.Check:
    reply = {"changed": changed, "xml": "", "before": "", "report": found}
    with answering(socket, {"PlaceDomain": reply, "Status": status(domain("vm", **values))}):
        return status_check.check(status(domain("vm", **values)))


def verdict(check: status_check.Check) -> str:
    assert check.passed is not bool(check.missing) and not check.problems
    return MISSING if check.missing else ALONE if check.left_alone else FINE


def test_the_tables_have_every_reason() -> None:
    assert {*DEVICE_REASONS, *PLACED_ALL_THE_SAME, *DOMAIN_REASONS} == set(Reason)


def test_the_alert_goes_by_the_same_reasons() -> None:
    rules = RULES.read_text()
    of_devices, of_domains = re.findall(r'reason!~"([^"]*)"', rules), re.findall(r'reason=~"([^"]*)"', rules)
    assert [set(text.split("|")) for text in of_devices] == [{reason.value for reason, kind in DEVICE_REASONS.items() if kind == FINE}]
    assert [set(text.split("|")) for text in of_domains] == [{reason.value for reason, kind in DOMAIN_REASONS.items() if kind == ALONE}]


@pytest.mark.parametrize(("reason", "expected"), DEVICE_REASONS.items(), ids=lambda value: getattr(value, "value", value))
def test_a_device_that_is_not_placed(reason: Reason, expected: str, socket: Path) -> None:
    check = looked_at(socket, report("already-placed", device(None, placed=True), device(reason.value)))
    assert verdict(check) == expected
    if expected == MISSING:
        assert check.missing == [
            {"domain": "vm", "uuid": "u 'vm'", "device": "0000:17:00.0", "reason": reason.value, "message": reason.sentence}
        ]


@pytest.mark.parametrize(("reason", "expected"), DOMAIN_REASONS.items(), ids=lambda value: getattr(value, "value", value))
def test_a_domain_whose_device_is_not_placed(reason: Reason, expected: str, socket: Path) -> None:
    check = looked_at(socket, report(reason.value, device(None)))
    assert verdict(check) == expected
    assert [(each["reason"], each["message"]) for each in check.missing] == [(reason.value, "why")] * (expected == MISSING)


@pytest.mark.parametrize(
    ("found", "changed", "values", "expected"),
    [
        (report("already-placed", device(None, placed=True)), False, {}, FINE),
        (report("already-placed", device("nearest", placed=True), device("kept-apart", placed=True)), False, {}, FINE),
        (report("running", device(None, placed=True)), False, {}, FINE),
        (report("nothing-to-place"), False, {}, FINE),
        (report(None, device("mixed-nodes", form=Form.BLOCK_DISK)), False, {}, FINE),
        (report(None, device("of-a-newer-daemon")), False, {}, MISSING),
        (report(None, device(None, placed=True), outcome="placed"), True, {}, MISSING),
        (report("already-placed", device(None, placed=True), outcome="fallback"), False, {}, MISSING),
        (report("host-unreadable", device(None, placed=True), outcome="fallback"), False, {}, MISSING),
        (report("not-enabled", outcome="fallback"), False, {}, MISSING),
        (report("managed-save", device(None, placed=True)), False, {}, MISSING),
        (report(None, device(None, placed=True), outcome="placed"), True, {"contended": True}, MISSING),
        (report(None, device(None), outcome="placed"), True, {"enabled": False}, ALONE),
        (report("no-cells", device(None)), False, {"enabled": False}, ALONE),
    ],
)
def test_a_domain_as_a_whole(found: dict[str, Any], changed: bool, values: dict[str, Any], expected: str, socket: Path) -> None:
    check = looked_at(socket, found, changed=changed, **values)
    assert verdict(check) == expected
    if values.get("contended"):
        assert check.missing[0]["reason"] == "contended"


NOT_CONNECTED = {"connected": False, "uri": "qemu:///system", "version": None, "since": None, "message": "no such file"}
DENIED = {"error": "org.varlink.service.PermissionDenied"}
GONE = {"error": "io.pcinuma.Error", "message": "vm: libvirt has no such domain"}
OK = {"changed": False, "xml": "", "before": "", "report": report("already-placed", device(None, placed=True))}
MOVED = {**OK, "changed": True}


@pytest.mark.parametrize(
    ("answers", "code", "line"),
    [
        ({"Status": status()}, 0, "everything is placed that may be placed (0 devices of 0 domains)"),
        ({"Status": status(domain("vm")), "PlaceDomain": OK}, 0, "everything is placed that may be placed (1 device of 1 domain)"),
        (
            {"Status": status(domain("a"), domain("b"), domain("c", enabled=False)), "PlaceDomain": OK},
            0,
            "everything is placed that may be placed (2 devices of 2 domains, 1 domain left alone)",
        ),
        (
            {"Status": status(domain("vm"), domain("vm 2")), "PlaceDomain": MOVED},
            1,
            "not placed: vm (its definition is not as the host is now; pcinuma plan vm shows what would change), "
            "vm 2 (its definition is not as the host is now; pcinuma plan 'vm 2' shows what would change)",
        ),
        (
            {"Status": status(domain("vm"), problems=["a call hangs"]), "PlaceDomain": {**OK, "report": report("no-cells", device(None))}},
            1,
            "not placed: vm (no-cells); problem: a call hangs",
        ),
        ({"Status": status(problems=["a call hangs"])}, 1, "problem: a call hangs"),
        (
            {"Status": status(domain("vm"), libvirt=NOT_CONNECTED)},
            1,
            "problem: the daemon is not connected to libvirt at qemu:///system: no such file",
        ),
        (
            {"Status": status(domain("vm"), pending=3), "PlaceDomain": OK},
            0,
            "everything is placed that may be placed (1 device of 1 domain)",
        ),
        ({"Status": status(domain("vm")), "PlaceDomain": GONE}, 1, "not placed: vm (vm: libvirt has no such domain)"),
        ({"Status": DENIED}, 1, "problem: the daemon answers only root; use sudo"),
        (None, 1, "problem: SOCKET: the daemon did not answer within 0.3 s; see: journalctl -u pcinuma"),
        ("nobody listens", 1, "problem: SOCKET: the pcinuma daemon is not running; start it with: systemctl start pcinuma"),
    ],
)
def test_one_line_json_and_exit_code_say_the_same(
    answers: Any, code: int, line: str, socket: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if answers is None:
        monkeypatch.setattr(status_check, "PATIENCE", 0.3)

    def run(*words: str) -> str:
        if answers == "nobody listens":
            assert main(["status", "--check", *words]) == code
        else:
            socket.unlink(missing_ok=True)
            with answering(socket, answers):
                assert main(["status", "--check", *words]) == code
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out

    assert run() == line.replace("SOCKET", str(socket)) + "\n"
    found = json.loads(run("--json"))
    assert found["check"]["passed"] is (code == 0)
    assert all(text in line.replace("SOCKET", str(socket)) for text in found["check"]["problems"])
    assert all(each["domain"] in line for each in found["check"]["missing"])
    known = isinstance(answers, dict) and "error" not in answers["Status"]
    assert ("domains" in found) is known


def test_a_domain_that_went_away_meanwhile_is_not_missing(socket: Path) -> None:
    with answering(socket, {"PlaceDomain": GONE, "Status": status()}) as calls:
        assert status_check.check(status(domain("vm"))).passed
    assert calls == ["PlaceDomain", "Status"]


def test_what_was_just_changed_is_waited_for(socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_check, "SETTLES", 600.0)
    pending = iter([2, 1, 0])
    with answering(socket, {"Status": lambda _: status(domain("vm"), pending=next(pending)), "PlaceDomain": OK}) as calls:
        assert main(["status", "--check"]) == 0
    assert calls == ["Status", "Status", "Status", "PlaceDomain"]


def test_only_those_that_are_named_are_looked_at(socket: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    def place(parameters: Mapping[str, Any]) -> dict[str, Any]:
        asked.append(parameters)
        return MOVED if parameters["domain"] == "u 'bad'" else OK

    with answering(socket, {"Status": status(domain("good"), domain("bad")), "PlaceDomain": place}):
        assert main(["status", "--check", "good"]) == 0
        assert main(["status", "--check", "bad"]) == 1
        assert main(["status", "--check", "ugly"]) == 1
    assert asked == [{"domain": "u 'good'", "dry_run": True}, {"domain": "u 'bad'", "dry_run": True}]
    assert "ugly: the daemon knows no such domain" in capsys.readouterr().err


def test_a_name_moves_no_cursor_and_forges_no_line(socket: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(socket, {"Status": status(domain(IN_XML), problems=[IN_XML]), "PlaceDomain": MOVED}):
        assert main(["status", "--check"]) == 1
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert_readable(out)
