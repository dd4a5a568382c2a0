# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a person decided lasts: with the daemon and without it, over restarts and kills, and whoever looks at all domains afterwards.

Every decision is made once while the daemon runs and once while it does not. Then each domain gets one more device by its owner, so that
whoever forgot the decision would have something to do, and everybody who places many domains comes by: ``apply --all`` without the daemon,
a daemon that starts, ``apply --all`` with it, one that was killed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import libvirt
import pytest

from tests.hosts.small import GPU_0, GPU_1, NIC_0, small_host
from tests.libvirt.conftest import require
from tests.libvirt.domains import cells, guest, hostdev
from tests.libvirt.harness import PrivateLibvirt
from tests.libvirt.running_daemon import RunningDaemon
from tests.libvirt.test_command import Command, inactive

PLACED = {GPU_0: 0, GPU_1: 1}
UNPLACED = {GPU_0: None, GPU_1: None}


class Decision(NamedTuple):
    """``placed``: whether the domain is placed beforehand; ``words``: what a person says then; ``then``: where its two devices are from
    then on; ``follows``: whether pcinuma places what its owner adds later."""

    name: str
    placed: bool
    words: tuple[str, ...]
    then: dict[str, object]
    follows: bool


DECISIONS = (
    Decision("untouched", False, (), UNPLACED, False),
    Decision("enabled", False, ("enable", "{}"), PLACED, True),
    Decision("disabled", True, ("disable", "{}"), PLACED, False),
    Decision("reverted", True, ("revert", "{}"), UNPLACED, False),
    Decision("disabled-and-reverted", True, ("disable", "{}", "--revert"), UNPLACED, False),
    Decision("off", True, ("policy", "{}", "off"), PLACED, False),
    Decision("wished-for", False, ("policy", "{}", "preferred"), PLACED, True),
    Decision("applied", False, ("apply", "{}"), PLACED, False),
)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateLibvirt]:
    require()
    with PrivateLibvirt(host_tree=small_host(tmp_path_factory.mktemp("host"))) as host:
        yield host


def names(decision: Decision) -> tuple[str, str]:
    return f"{decision.name}-heard", f"{decision.name}-alone"


def settled(daemon: RunningDaemon) -> None:
    daemon.ensure()
    daemon.settle()


def test_what_a_person_decided_lasts(host: PrivateLibvirt) -> None:
    pcinuma, connection = Command(host), host.connect()
    domains = {name: connection.defineXML(guest(name, (GPU_0, GPU_1))) for decision in DECISIONS for name in names(decision)}
    before = {name: inactive(domain) for name, domain in domains.items()}
    with RunningDaemon(host) as daemon:
        pcinuma("enable", *(name for decision in DECISIONS if decision.placed for name in names(decision)))
        for decision in DECISIONS:
            if decision.words:
                pcinuma(*(word.format(names(decision)[0]) for word in decision.words))
    for decision in DECISIONS:
        if decision.words:
            pcinuma(*(word.format(names(decision)[1]) for word in decision.words))

    for decision in DECISIONS:
        for name in names(decision):
            if name != "wished-for-alone":  # nobody was there to follow it; who comes next does
                assert cells(inactive(domains[name])) == decision.then, name
            if decision.then is UNPLACED:
                assert inactive(domains[name]) == before[name], name
            domains[name].attachDeviceFlags(hostdev(NIC_0), libvirt.VIR_DOMAIN_AFFECT_CONFIG)

    added = {name: inactive(domain) for name, domain in domains.items()}

    def check(who: str) -> None:
        for decision in DECISIONS:
            for name in names(decision):
                if decision.follows:
                    assert cells(inactive(domains[name])) == {**PLACED, NIC_0: 0}, (who, name)
                else:
                    assert inactive(domains[name]) == added[name], (who, name)

    promised(pcinuma, added=True)
    pcinuma("apply", "--all")
    check("apply --all without the daemon")
    with RunningDaemon(host) as daemon:
        daemon.settle()
        check("a daemon that starts")
        promised(pcinuma, added=False)
        pcinuma("apply", "--all")
        check("apply --all with the daemon")
        daemon.kill()
        daemon.start()
        daemon.settle()
        check("a daemon that was killed")


def promised(pcinuma: Command, *, added: bool) -> None:
    """What the two that look at all domains say beforehand: that they place those that follow, if there is something to place, no other."""
    plans = {plan["domain"]: plan for plan in pcinuma.json("plan", "--all")["domains"]}
    lines = dict(line.split(": ", 1) for line in pcinuma("apply", "--all", "--dry-run").splitlines())
    for decision in DECISIONS:
        for name in names(decision):
            plan = plans[name]
            assert (plan["changed"] and plan["enabled"]) is (decision.follows and added), name
            assert ("would be placed" in lines[name]) is (decision.follows and added), lines[name]
            assert ("left alone" in lines[name]) is (not plan["enabled"]), lines[name]


@pytest.mark.parametrize("heard", [True, False], ids=["with the daemon", "without it"])
def test_reverting_what_is_not_placed_does_nothing_at_all(heard: bool, host: PrivateLibvirt) -> None:
    pcinuma, name = Command(host), f"never-placed-{heard}"
    with RunningDaemon(host) as daemon:
        domain = host.connect().defineXML(guest(name))
        daemon.settle()
        if heard:
            assert "unchanged: pcinuma has not placed it" in pcinuma("revert", name)
    if not heard:
        assert "unchanged: pcinuma has not placed it" in pcinuma("revert", name)
    with RunningDaemon(host) as daemon:
        daemon.settle()
        domain.attachDeviceFlags(hostdev(GPU_0), libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        daemon.settle()
        assert cells(inactive(domain)) == {GPU_0: 0}
    domain.undefine()


@pytest.mark.parametrize("heard", [True, False], ids=["with the daemon", "without it"])
@pytest.mark.parametrize("words", [("revert",), ("disable", "--revert")], ids=" ".join)
def test_what_cannot_be_reverted_is_not_disabled_either(words: tuple[str, ...], heard: bool, host: PrivateLibvirt) -> None:
    pcinuma, name = Command(host), f"saved-{words[0]}-{heard}"
    with RunningDaemon(host) as daemon:
        domain = host.connect().defineXML(guest(name))
        domain.create()
        domain.attachDeviceFlags(hostdev(GPU_0), libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        daemon.settle()
        assert cells(inactive(domain)) == {GPU_0: 0}
        domain.managedSave()
        daemon.settle()
        if heard:
            assert "saved state" in pcinuma(words[0], name, *words[1:], exit_code=1)
    if not heard:
        assert "saved state" in pcinuma(words[0], name, *words[1:], exit_code=1)
    placed = inactive(domain)
    domain.managedSaveRemove()
    with RunningDaemon(host) as daemon:
        daemon.settle()
        status = daemon.status(name)
        assert status is not None and status["enabled"]
        assert inactive(domain) == placed
    domain.undefine()


def test_a_define_that_is_undone_at_once_is_no_warning(host: PrivateLibvirt) -> None:
    connection = host.connect()
    with RunningDaemon(host) as daemon:
        daemon.settle()
        for number in range(60):
            domain = connection.defineXML(guest(f"undone-{number}", (GPU_0, GPU_1)))
            time.sleep(number % 12 / 1000)
            domain.undefine()
        daemon.settle()
        log = daemon.log()
    assert "undone-" in log  # some were looked at in time
    assert not [line for line in log.splitlines() if "could not be looked at" in line]
