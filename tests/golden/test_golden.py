"""Every golden case: its meaning, the judge, the files, stability, undo, and what the real libvirt makes of it."""

from __future__ import annotations

import difflib
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pcinuma.engine import Result, place, revert
from pcinuma.reason import Outcome
from tests.golden.cases import BY_NAME, CASES, FOLDER, Case
from tests.hosts.guard import no_real_host  # noqa: F401
from tests.hosts.guest import Guest
from tests.hosts.judge import judge, without_ours
from tests.hosts.libvirt_format import define, missing
from tests.hosts.passthrough import ours, passed

NAMES = [case.name for case in CASES]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Place a case once: ``run(name) -> (case, input, result, root)``."""

    @cache
    def placed(name: str) -> tuple[Case, bytes, Result, Path]:
        case = BY_NAME[name]
        root = case.host().write(tmp_path_factory.mktemp(name))
        given = case.domain if isinstance(case.domain, bytes) else case.domain(placed(case.after or "")[2].xml)
        return case, given, place(given, case.request(root)), root

    return placed


@pytest.mark.parametrize("name", NAMES)
def test_means_what_the_design_says(name: str, run: Any) -> None:
    case, _given, result, _root = run(name)
    report = result.report()
    shown = {line["source"]: line["guest_cell"] if line["placed"] else line["reason"] for line in report["devices"]}
    wanted = {source: shown[source] if place is None else place for source, place in case.devices.items()}
    assert (report["outcome"], report["reason"], shown) == (case.outcome, case.reason, wanted)
    guest = Guest.of(result.xml)
    mine = [guest.controllers[index].model for index in ours(result.xml)]
    if case.expanders is not None:
        assert len([index for index in ours(result.xml) if guest.controllers[index].expander]) == case.expanders
    if case.outcome == "placed":
        assert mine.count("pcie-switch-upstream-port") == case.switches
        assert report["group_by"] == (case.grouping or case.group_by or "root-complex")
    cells = report["cells"] and [(c["host_node"], c["vcpus"], c["memory_kib"] / 1024, c["cpus"]) for c in report["cells"]]
    assert cells == case.proposed
    assert case.says is None or case.says in (report["message"] or "")


@pytest.mark.parametrize("name", NAMES)
def test_keeps_every_rule_of_the_judge(name: str, run: Any) -> None:
    case, given, result, _root = run(name)
    judge(given, result.xml, case.host(), result.report(), fresh=case.after is None)


@pytest.mark.parametrize("name", [case.name for case in CASES if case.stored])
def test_gives_the_golden_files(name: str, run: Any, request: pytest.FixtureRequest) -> None:
    _case, given, result, _root = run(name)
    report = json.dumps(result.report(), indent=2, ensure_ascii=False) + "\n"
    for ending, text in (("-in.xml", given.decode()), ("-out.xml", result.xml.decode()), (".json", report)):
        file = FOLDER / f"{name}{ending}"
        if request.config.getoption("--regenerate"):
            file.write_text(text, encoding="utf-8")
            continue
        golden = file.read_text(encoding="utf-8") if file.exists() else ""
        difference = difflib.unified_diff(golden.splitlines(), text.splitlines(), file.name, "now", lineterm="")
        assert golden == text, "\n" + "\n".join(difference)


@pytest.mark.parametrize("name", NAMES)
def test_placing_the_placed_domain_changes_nothing(name: str, run: Any) -> None:
    case, _given, result, root = run(name)
    again = place(result.xml, case.request(root))
    assert again.xml == result.xml
    if result.outcome is Outcome.PLACED:
        assert again.outcome is Outcome.UNCHANGED


@pytest.mark.parametrize("name", [case.name for case in CASES if case.after is None])
def test_reverting_gives_the_original(name: str, run: Any) -> None:
    _case, given, result, _root = run(name)
    back = revert(result.xml)
    if result.xml == given:
        assert back.xml == given and back.outcome is Outcome.UNCHANGED
        return
    assert without_ours(back.xml) == without_ours(given)
    assert [(d.source, str(d.at)) for d in passed(back.xml)] == [(d.source, str(d.at)) for d in passed(given)]
    assert not ours(back.xml)


def test_no_golden_file_is_left_over() -> None:
    stored = {case.name for case in CASES if case.stored}
    names = {file.name.removesuffix("-in.xml").removesuffix("-out.xml").removesuffix(".json") for file in FOLDER.glob("*.*ml")}
    assert names | {file.stem for file in FOLDER.glob("*.json")} <= stored


def test_the_real_libvirt_accepts_every_output_and_keeps_its_addresses(run: Any) -> None:
    if missing():
        pytest.skip(f"the real libvirt: {missing()}")
    names = [n for n in NAMES if BY_NAME[n].outcome == "placed" and b"mdev" not in run(n)[2].xml]
    answers = define([run(name)[2].xml for name in names])
    wrong = []
    for name, (formatted, error) in zip(names, answers):
        if formatted is None:
            wrong.append(f"{name}: {error}")
            continue
        case, _given, result, root = run(name)
        said, kept = Guest.of(result.xml), Guest.of(formatted)
        for index, controller in said.controllers.items():
            got = kept.controllers.get(index)
            if got is None or (got.at, got.bus_nr, got.node, got.model) != (
                controller.at,
                controller.bus_nr,
                controller.node,
                controller.model,
            ):
                wrong.append(f"{name}: controller {index} was {controller}, libvirt has {got}")
        told = {line["source"]: line for line in result.report()["devices"]}
        for device in passed(formatted):
            if told[device.source]["placed"] and str(device.at) != told[device.source]["guest_address"]:
                wrong.append(f"{name}: {device.source} was at {told[device.source]['guest_address']}, libvirt has {device.at}")
        again = place(formatted, case.request(root))
        if (again.outcome.value, again.xml) != ("unchanged", formatted):
            wrong.append(f"{name}: what libvirt keeps of it is not settled: {again.outcome.value} {again.reason}")
    assert not wrong, "\n" + "\n".join(wrong)
