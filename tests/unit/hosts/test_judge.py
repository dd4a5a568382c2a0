# SPDX-License-Identifier: LGPL-2.1-or-later
"""The judge itself: it passes what the engine makes, and finds each kind of mistake that is made on purpose."""

from __future__ import annotations

import copy
import re
from typing import Any, Callable

import pytest

from pcinuma.engine import Request, place
from pcinuma.settings import GroupBy
from tests.hosts.domains import Domain, two_cells
from tests.hosts.guard import no_real_host  # noqa: F401
from tests.hosts.guest import Guest
from tests.hosts.judge import faults
from tests.hosts.libvirt_format import define, missing
from tests.hosts.machines import MACHINES, MDEV
from tests.hosts.passthrough import passed

MACHINE = "eight-gpus"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, dict[str, Any]]:
    root = MACHINES[MACHINE]().write(tmp_path_factory.mktemp(MACHINE))
    xml = two_cells().nic().hostdev("24:00.0").hostdev("25:00.0").hostdev("54:00.0").hostdev("84:00.0").formatted()
    result = place(xml, Request(root=root, group_by=GroupBy.SWITCH))
    return xml, result.xml, result.report()


def _swap(old: str, new: str, count: int = 1) -> Callable[[bytes], bytes]:
    def change(xml: bytes) -> bytes:
        changed = re.sub(old.encode(), new.encode(), xml, count=count, flags=re.S)
        assert changed != xml
        return changed

    return change


MISTAKES = {
    "another node for an expander": (_swap(r"<node>0</node>", "<node>1</node>"), "belongs to cell 0"),
    "an expander without a node": (_swap(r"\s*<node>0</node>\s*", ""), "has no node"),
    "an expander without busNr": (_swap(r" busNr='\d+'", ""), "has no busNr"),
    "two expanders too close": (_swap(r"busNr='250'", "busNr='245'"), "starts at"),
    "an expander below the main ports": (_swap(r"busNr='\d+'", "busNr='5'"), "starts at"),
    "an expander too high": (_swap(r"busNr='250'", "busNr='255'"), "buses up to"),
    "a port that stays hot-pluggable": (_swap(r" hotplug='off'", ""), "hotplug on"),
    "the NIC moved": (_swap(r"(<interface.*?bus=')0x01", r"\g<1>0x07"), "not ours"),
    "the NIC on our port": (_swap(r"(<interface.*?bus=')0x01", r"\g<1>0x0f"), "not ours"),
    "a name changed": (_swap("<name>guest", "<name>host"), "not ours"),
    "a controller of libvirt's gone": (_swap(r"    <controller type='pci' index='3'.*?</controller>\n", ""), "not ours"),
    "a gap in our indexes": (_swap(r"(controller [^>]*)index='(\d+)'( model='pcie-expander-bus')", r"\1index='99'\3"), "fills the gap"),
    "a chassis twice": (_swap(r"<target hotplug='off'/>", "<target chassis='1' hotplug='off'/>"), "chassis 1"),
    "a device not recorded": (_swap(r"\s*<pcinuma:device source='0000:24[^>]*>", ""), "recorded None"),
    "a device recorded wrongly": (_swap(r"(source='0000:24:00.0' domain='0x0000' bus=')0x..", r"\g<1>0x1f"), "recorded {"),
    "a controller not listed": (_swap(r"\s*<pcinuma:controller index='\d+'/>", ""), "not in <placement>"),
    "a switch port missing": (_swap(r"pcie-switch-downstream-port", "pcie-root-port"), "sits on"),
}  # fmt: skip


def test_the_judge_passes_a_good_layout(good: tuple[bytes, bytes, dict[str, Any]]) -> None:
    before, after, report = good
    assert faults(before, after, MACHINES[MACHINE](), report) == []


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_the_judge_finds(mistake: str, good: tuple[bytes, bytes, dict[str, Any]]) -> None:
    before, after, report = good
    change, words = MISTAKES[mistake]
    found = faults(before, change(after), MACHINES[MACHINE](), report)
    assert any(words in fault for fault in found), found


LIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "host_node": lambda line: line.update(host_node=1),
    "guest_cell": lambda line: line.update(guest_cell=None),
    "guest_address": lambda line: line.update(guest_address="0000:01:00.0"),
    "form": lambda line: line.update(form="mdev"),
    "no reason": lambda line: line.update(placed=False),
    "because of no-affinity": lambda line: line.update(placed=False, reason="no-affinity"),
    "keys": lambda line: line.pop("reason") or line.update(reason=None, extra=1),
}


@pytest.mark.parametrize("lie", sorted(LIES))
def test_the_judge_finds_a_report_that_lies_about(lie: str, good: tuple[bytes, bytes, dict[str, Any]]) -> None:
    before, after, report = good
    changed = copy.deepcopy(report)
    LIES[lie](changed["devices"][0])
    assert any(lie in fault for fault in faults(before, after, MACHINES[MACHINE](), changed))


def test_a_domain_builder_addresses_devices_as_the_real_libvirt_does() -> None:
    if missing():
        pytest.skip(f"the real libvirt: {missing()}")
    domains = [
        two_cells().nic().disk().hostdev("17:00.0"),
        two_cells().hostdev("17:00.0").interface("18:00.0").nic().disk().nvme("19:00.0", target="vdb").mdev(MDEV).vdpa(0).with_extras(),
        two_cells().hostdev("b4:00.0", "unassigned").nvme("19:00.0", bus="sata", target="sda").hostdev("b3:00.0"),
        Domain(),
    ]
    answers = define([domain.raw() for domain in domains] + [domain.formatted() for domain in domains])
    for domain, (raw, error), (kept, other) in zip(domains, answers, answers[len(domains) :]):
        assert raw is not None and kept is not None, error or other
        assert _addresses(raw) == _addresses(kept) == _addresses(domain.formatted())


def _addresses(xml: bytes) -> tuple[list[str], list[str], list[str]]:
    guest = Guest.of(xml)
    controllers = [f"{c.index} {c.model} {c.at}" for _, c in sorted(guest.controllers.items())]
    return controllers, sorted(f"{e.name} {e.at}" for e in guest.endpoints if e.at), sorted(f"{d.source} {d.at}" for d in passed(xml))


def test_the_model_of_libvirts_completion_agrees_with_the_real_one() -> None:
    if missing():
        pytest.skip(f"the real libvirt: {missing()}")
    documents = [
        two_cells().nic().disk().hostdev("17:00.0").raw(),
        two_cells().with_extras().hostdev("17:00.0").raw(),
        two_cells().controller(4, "pcie-root-port").nic().hostdev("17:00.0").raw(),
        two_cells().controller(1, "pcie-expander-bus", "<target busNr='200'><node>0</node></target>").controller(
            2, "pcie-root-port", "<target hotplug='off'/>", "01:00.0").nic().nic().raw(),
    ]  # fmt: skip
    for document, (kept, error) in zip(documents, define(documents)):
        assert kept is not None, error
        ours, real = Guest.of(document).completed(), Guest.of(kept)
        assert {i: c.model for i, c in ours.controllers.items()} == {i: c.model for i, c in real.controllers.items()}
        assert {e.at for e in ours.endpoints if e.element is None or e.at} <= {e.at for e in real.endpoints}


def test_reading_the_real_host_is_an_error() -> None:
    with pytest.raises(AssertionError, match="reads the real host"), open("/sys/devices/system/node/online"):
        pass
