# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma status --check`` and ``--json`` on a real libvirt and daemon: domains in every state that can be brought about, a host that
changed, no daemon, no libvirt. By reason and outcome, and with a daemon that hangs: tests/unit/cli/test_status_check.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Callable, NamedTuple, Optional

import libvirt
import pytest

from tests.hosts.small import GPU_0, GPU_1, small_host
from tests.libvirt.conftest import require
from tests.libvirt.domains import guest, hostdev
from tests.libvirt.harness import PrivateLibvirt
from tests.libvirt.running_daemon import RunningDaemon
from tests.waiting import until

BOTH = (GPU_0, GPU_1)
NODE_OF_GPU_1 = f"sys/bus/pci/devices/{GPU_1}/numa_node"
SOMEBODY_ELSES = (
    "<controller type='pci' index='0' model='pcie-root'/>"
    "<controller type='pci' index='1' model='pcie-expander-bus'><target busNr='64'><node>1</node></target></controller>"
    "<controller type='pci' index='2' model='pcie-root-port'><address type='pci' bus='1' slot='0'/></controller>"
    + hostdev(GPU_1).replace("</source>", "</source><address type='pci' bus='2' slot='0'/>")
)
OFF = "<p:pcinuma xmlns:p='urn:pcinuma:domain:1' policy='off'/>"
KEEP = f"<p:pcinuma xmlns:p='urn:pcinuma:domain:1'><p:keep device='{GPU_1}'/></p:pcinuma>"


def disable(daemon: RunningDaemon, domain: libvirt.virDomain) -> None:
    daemon.call("Disable", {"domain": domain.name(), "revert": True})


def disable_as_it_is(daemon: RunningDaemon, domain: libvirt.virDomain) -> None:
    daemon.call("Disable", {"domain": domain.name()})


def start(daemon: RunningDaemon, domain: libvirt.virDomain) -> None:
    domain.create()


def save_and_change(daemon: RunningDaemon, domain: libvirt.virDomain) -> None:
    domain.create()
    domain.managedSave(0)
    daemon.host.connect().defineXML(guest(domain.name(), [GPU_0], uuid=domain.UUIDString()))


def no_cells(name: str) -> str:
    return guest(name, BOTH).replace("<numa>", "<!--").replace("</numa>", "-->")


class State(NamedTuple):
    """A domain, what is done with it when the daemon has looked at it, and what the check says of it: a list that it is in, and why it is
    missing."""

    xml: Callable[[str], str]
    expected: Optional[str]
    reason: Optional[str] = None
    then: Optional[Callable[[RunningDaemon, libvirt.virDomain], None]] = None


STATES = {
    "from-before": State(lambda name: guest(name, BOTH), "left_alone"),
    "empty": State(guest, None),
    "placed": State(lambda name: guest(name, BOTH), "placed"),
    "running": State(guest, None, then=start),
    "disabled": State(lambda name: guest(name, BOTH), "left_alone", then=disable),
    "disabled-as-it-is": State(lambda name: guest(name, BOTH), "left_alone", then=disable_as_it_is),
    "off": State(lambda name: guest(name, BOTH, metadata=OFF), "left_alone"),
    "somebody-elses": State(lambda name: guest(name, extra=SOMEBODY_ELSES), "left_alone"),
    "kept": State(lambda name: guest(name, BOTH, metadata=KEEP), "placed"),
    "no-cell": State(lambda name: guest(name, BOTH, pinned=False), "missing", "no-cell"),
    "no-cells": State(no_cells, "missing", "no-cells"),
    "absent": State(lambda name: guest(name, [*BOTH, "0000:c1:00.0"]), "missing", "device-absent"),
    "required": State(lambda name: guest(name, BOTH, policy="required", pinned=False), "missing", "required"),
    "saved": State(guest, "missing", "managed-save", save_and_change),
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """A daemon on a libvirt that had a domain before it was first started."""
    require()
    with PrivateLibvirt(host_tree=small_host(tmp_path_factory.mktemp("host"))) as host:
        host.connect().defineXML(STATES["from-before"].xml("from-before"))
        with RunningDaemon(host) as daemon:
            yield daemon


def checked(daemon: RunningDaemon, *words: str, code: int) -> dict[str, Any]:
    """What ``status --check --json`` says, with this exit code."""
    done = daemon.host.run([daemon.host.python, "-m", "pcinuma", "status", "--check", "--json", *words], check=False)
    assert (done.stderr, done.returncode) == ("", code)
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["check"]["passed"] is (code == 0)
    return found


def test_domains_in_every_state(daemon: RunningDaemon) -> None:
    connection = daemon.host.connect()
    domains = {name: connection.defineXML(state.xml(name)) for name, state in STATES.items() if name != "from-before"}
    daemon.settle()
    for name, domain in domains.items():
        then = STATES[name].then
        if then is not None:
            then(daemon, domain)
    found = checked(daemon, code=1)
    check = found["check"]
    assert check["problems"] == []
    for kind in ("placed", "left_alone"):
        assert check[kind] == sorted(name for name, state in STATES.items() if state.expected == kind)
    missing = {each["domain"]: each["reason"] for each in check["missing"]}
    assert missing == {name: state.reason for name, state in STATES.items() if state.expected == "missing"}
    assert all(each["message"] for each in check["missing"])
    unplaced = {entry["name"]: entry["unplaced"] for entry in found["domains"]}
    assert unplaced["kept"] == [{"reason": "kept", "devices": 1}]
    assert unplaced["no-cell"] == [{"reason": "no-cell", "devices": 2}]
    assert unplaced["placed"] == []


def test_a_host_that_changed_is_seen_although_nobody_told_the_daemon(daemon: RunningDaemon) -> None:
    before = {entry["name"]: entry["unplaced"] for entry in daemon.settle()["domains"]}
    daemon.kill()  # with it goes the second look that it would have at a definition of its own
    daemon.start()
    assert {entry["name"]: entry["unplaced"] for entry in daemon.settle()["domains"]} == before, "as far as it is told by the state"
    checked(daemon, "placed", code=0)
    assert daemon.host.host_tree is not None
    file = daemon.host.host_tree / NODE_OF_GPU_1
    file.write_text("0\n")
    try:
        found = checked(daemon, "placed", code=1)
        (entry,) = found["domains"]
        assert (entry["placed"], entry["devices"]) == (2, 2), "as far as the daemon remembers"
        assert [each["domain"] for each in found["check"]["missing"]] == ["placed"]
        assert checked(daemon, "placed", code=1) == found, "looking changes nothing"
    finally:
        file.write_text("1\n")


def test_a_contended_domain_is_missing_and_says_so(daemon: RunningDaemon) -> None:
    connection = daemon.host.connect()
    domain = connection.defineXML(guest("contended", BOTH))
    xml = guest("contended", BOTH, uuid=domain.UUIDString())

    def fought() -> bool:
        entry = daemon.status("contended")
        if entry is not None and entry["placed"] == 2:
            connection.defineXML(xml)
        return entry is not None and bool(entry["contended"])

    until(fought, "the daemon to back off", interval=0.005)
    found = checked(daemon, "contended", code=1)
    assert [(each["domain"], each["reason"]) for each in found["check"]["missing"]] == [("contended", "contended")]
    (entry,) = found["domains"]
    assert entry["contended"] and entry["unplaced"] == [{"reason": "contended", "devices": 2}]


def test_what_cannot_be_told_is_not_passed(daemon: RunningDaemon) -> None:
    daemon.host.stop_libvirtd()
    until(lambda: not daemon.call("Status")["libvirt"]["connected"], "the daemon to miss libvirt")
    assert "not connected to libvirt" in checked(daemon, "placed", code=1)["check"]["problems"][0]
    daemon.kill()
    assert "is not running" in checked(daemon, "placed", code=1)["check"]["problems"][0]
