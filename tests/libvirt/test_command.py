# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command on a real libvirt, without the daemon and with it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from pcinuma.lab import guest_agent
from tests.hosts.small import GPU_0, GPU_1, NIC_0, NIC_1, small_host
from tests.libvirt.conftest import require
from tests.libvirt.domains import cells, guest
from tests.libvirt.harness import PrivateLibvirt
from tests.libvirt.running_daemon import RunningDaemon
from tests.waiting import CHECKOUT

ALL = (GPU_0, NIC_0, GPU_1, NIC_1)
PLACED = {GPU_0: 0, NIC_0: 0, GPU_1: 1, NIC_1: 1}
PASSWORD = "<graphics type='vnc' port='-1' autoport='yes' passwd='s3cret'/>"
SECURE = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE


class Command:
    """``pcinuma`` inside the private host."""

    def __init__(self, host: PrivateLibvirt) -> None:
        self.host = host

    def __call__(self, *words: str, exit_code: int = 0, user: str = "") -> str:
        """Run it, check its exit code, and return what it printed on stdout (on stderr if it failed)."""
        become = ["setpriv", f"--reuid={user}", "--clear-groups"] if user else []
        done = self.host.run([*become, self.host.python, "-m", "pcinuma", *words], check=False)
        assert done.returncode == exit_code, done.stderr or done.stdout
        return done.stdout or done.stderr

    def json(self, *words: str, exit_code: int = 0) -> Any:
        return json.loads(self(*words, "--json", exit_code=exit_code))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[PrivateLibvirt]:
    require()
    with PrivateLibvirt(host_tree=small_host(tmp_path / "host")) as host:
        yield host


@pytest.fixture
def pcinuma(host: PrivateLibvirt) -> Command:
    return Command(host)


def inactive(domain: libvirt.virDomain) -> str:
    return str(domain.XMLDesc(SECURE))


def test_without_the_daemon_plan_apply_and_revert_do_the_same_work(host: PrivateLibvirt, pcinuma: Command) -> None:
    domain = host.connect().defineXML(guest("vm1", ALL, extra=PASSWORD))
    before = inactive(domain)

    plan = pcinuma.json("plan", "vm1")["domains"][0]
    assert plan["changed"]
    assert {move["source"] for move in plan["moves"]} == set(ALL)
    text, diff = pcinuma("plan", "vm1"), pcinuma("plan", "vm1", "--diff")
    assert all(move["after"] in text for move in plan["moves"])
    assert "+      <pcinuma:placement" in diff
    assert "s3cret" not in diff
    assert "would be placed" in pcinuma("apply", "vm1", "--dry-run")
    assert inactive(domain) == before

    assert "placed, 4 of 4 devices" in pcinuma("apply", "vm1")
    assert cells(inactive(domain)) == PLACED
    assert "s3cret" in inactive(domain)
    assert "unchanged" in pcinuma("apply", "vm1")
    seen = pcinuma.json("topology", "vm1")["guest"]["devices"]
    assert {device["source"]: device["guest_cell"] for device in seen} == PLACED

    assert "4 devices back" in pcinuma("revert", "--all")
    assert inactive(domain) == before
    assert "no domain is placed" in pcinuma("revert", "--all")


def test_reading_needs_no_root() -> None:
    require()
    with tempfile.TemporaryDirectory() as folder, PrivateLibvirt(host_tree=small_host(Path(folder))) as host, RunningDaemon(host):
        Path(folder).chmod(0o755)
        pcinuma = Command(host)
        host.connect().defineXML(guest("vm1", ALL, extra=PASSWORD))
        for words in (["plan", "vm1", "--diff"], ["explain", "vm1"], ["topology", "vm1"]):
            assert "s3cret" not in pcinuma(*words, user="65534")
        refusal = pcinuma("apply", "vm1", user="65534", exit_code=1)
        assert refusal.startswith("pcinuma: ")
        assert refusal.count("\n") == 1


def test_a_domain_that_libvirt_does_not_know_is_one_line_and_exit_1(pcinuma: Command) -> None:
    for words in (["plan", "nope"], ["apply", "nope"], ["revert", "nope"], ["explain", "nope"], ["verify", "nope"], ["policy", "nope"]):
        assert "nope: libvirt knows no such domain" in pcinuma(*words, exit_code=1)


def test_verify_speaks_of_running_guests_only(host: PrivateLibvirt, pcinuma: Command) -> None:
    domain = host.connect().defineXML(guest("vm1"))
    assert "is not running" in pcinuma("verify", "vm1", exit_code=1)
    domain.create()
    said = pcinuma.json("verify", "vm1")
    assert said.pop("agent")["state"] == "none"
    assert said == {"domain": "vm1", "passed": True, "from": "xml", "devices": []}
    assert "GUEST vm1" in pcinuma("topology", "vm1", "--live")
    domain.destroy()


@pytest.mark.parametrize(
    ("policy", "channel", "state"),
    [
        ("preferred", guest_agent.CHANNEL, "disconnected"),
        ("preferred", "", "none"),
        ("off", guest_agent.CHANNEL.replace("name=", "state='connected' name="), "off"),
    ],
)
def test_a_guest_whose_agent_cannot_be_asked_is_judged_by_its_xml_and_not_written_to(
    host: PrivateLibvirt, pcinuma: Command, policy: str, channel: str, state: str
) -> None:
    domain = host.connect().defineXML(guest("vm1", extra=channel, policy=policy))
    domain.create()
    said = pcinuma.json("verify", "vm1")
    assert (said["from"], said["agent"]["state"]) == ("xml", state)
    refusal = pcinuma("topology", "vm1", "--nccl", "--install", exit_code=1)
    assert refusal.count("\n") == 1
    assert "by hand" in refusal
    assert said["agent"]["message"].partition(": ")[2] in refusal
    domain.destroy()


def test_a_saved_guest_keeps_its_definition(host: PrivateLibvirt, pcinuma: Command) -> None:
    domain = host.connect().defineXML(guest("vm1"))
    domain.create()
    domain.managedSave()
    changed = inactive(domain).replace("</devices>", guest("x", [GPU_0]).split("<devices>")[1].split("</devices>")[0] + "</devices>")
    host.connect().defineXML(changed)
    before = inactive(domain)
    assert "saved state" in pcinuma("apply", "vm1", exit_code=1)
    assert inactive(domain) == before
    domain.managedSaveRemove()


def test_status_enable_and_disable_tell_what_the_daemon_did(host: PrivateLibvirt, pcinuma: Command) -> None:
    domain = host.connect().defineXML(guest("old", ALL))
    before = inactive(domain)
    assert "daemon is not running" in pcinuma("status", exit_code=1)
    with RunningDaemon(host):
        (old,) = pcinuma.json("status")["domains"]
        assert (old["enabled"], old["reason"], old["placed"], old["devices"]) == (False, "not-enabled", 0, 4)
        assert "leaves this domain alone" in pcinuma("apply", "--all")
        assert inactive(domain) == before

        assert "old: enabled and placed, 4 of 4 devices" in pcinuma("enable", "old")
        assert cells(inactive(domain)) == PLACED
        status = pcinuma("status", "old")
        assert "4/4" in status
        assert "command" in status

        assert "stays as it stands" in pcinuma("disable", "old")
        assert cells(inactive(domain)) == PLACED
        assert "as its owner wrote it" in pcinuma("disable", "old", "--revert")
        assert inactive(domain) == before
        assert "knows no such domain" in pcinuma("status", "nope", exit_code=1)


def test_policy_writes_the_owners_wish_and_nothing_else(host: PrivateLibvirt, pcinuma: Command) -> None:
    domain = host.connect().defineXML(guest("vm1", ALL, extra=PASSWORD))
    before = inactive(domain)
    assert pcinuma.json("policy", "vm1")["policy"] is None
    pcinuma("policy", "vm1", "required", "--group-by", "node")
    assert pcinuma.json("policy", "vm1") == {
        "domain": "vm1",
        "policy": "required",
        "group_by": "node",
        "cells": None,
        "link": None,
        "report": None,
    }
    pcinuma("apply", "vm1")
    assert cells(inactive(domain)) == PLACED
    pcinuma("policy", "vm1", "off")
    assert cells(inactive(domain)) == PLACED
    assert "the policy of this domain is off" in pcinuma("plan", "vm1")
    pcinuma("policy", "vm1", "default", "--group-by", "default")
    pcinuma("revert", "vm1")
    assert inactive(domain) == before


def test_policy_takes_effect_at_once_with_the_daemon(host: PrivateLibvirt, pcinuma: Command) -> None:
    domain = host.connect().defineXML(guest("old", ALL))
    with RunningDaemon(host):
        said = pcinuma("policy", "old", "preferred")
        # The daemon hears of the new metadata, and may have placed it before the command asks for that.
        assert "4 of 4 devices placed" in said or "every device is where it should be" in said
        assert cells(inactive(domain)) == PLACED


def test_a_device_that_is_attached_to_the_definition_goes_to_its_place(host: PrivateLibvirt, pcinuma: Command, tmp_path: Path) -> None:
    domain = host.connect().defineXML(guest("vm1", (GPU_0, GPU_1)))
    with RunningDaemon(host):
        pcinuma("enable", "vm1")
        assert "under cell 1" in pcinuma("attach", "vm1", "b4:00.0")
        nic = tmp_path / "nic.xml"
        nic.write_text(
            "<interface type='hostdev' managed='yes'><mac address='52:54:00:00:00:01'/>"
            "<source><address type='pci' domain='0' bus='0x18' slot='0' function='0'/></source></interface>"
        )
        assert "under cell 0" in pcinuma("attach", "vm1", str(nic), "--config")
        assert cells(inactive(domain)) == PLACED
        assert "is not running" in pcinuma("attach", "vm1", "b4:00.0", "--live", exit_code=1)
        assert "removed from the definition" in pcinuma("detach", "vm1", "b4:00.0")
        assert "removed from the definition" in pcinuma("detach", "vm1", NIC_0)
        assert cells(inactive(domain)) == {GPU_0: 0, GPU_1: 1}
        assert "has no such device" in pcinuma("detach", "vm1", NIC_0, exit_code=1)


def test_a_running_guest_and_its_definition_get_a_device_together(host: PrivateLibvirt, pcinuma: Command, tmp_path: Path) -> None:
    domain = host.connect().defineXML(guest("vm1"))
    domain.create()
    nic = tmp_path / "nic.xml"
    nic.write_text("<interface type='user'><mac address='52:54:00:00:00:02'/><model type='virtio'/></interface>")
    with RunningDaemon(host):
        text = pcinuma("attach", "vm1", str(nic))
    assert "attached to the running guest" in text
    assert "attached to the definition" in text
    assert "52:54:00:00:00:02" in domain.XMLDesc(0)
    assert "52:54:00:00:00:02" in inactive(domain)
    domain.destroy()
    assert "removed from the definition" in pcinuma("detach", "vm1", str(nic))
    assert "52:54:00:00:00:02" not in inactive(domain)


def test_check_passes_once_hook_and_daemon_are_there(host: PrivateLibvirt, pcinuma: Command) -> None:
    host.connect().defineXML(guest("old", ALL))
    found = {finding["check"]: finding["level"] for finding in pcinuma.json("check", exit_code=1)["findings"]}
    assert (found["hook"], found["daemon"], found["libvirt"], found["machine types"]) == ("FAIL", "FAIL", "PASS", "PASS")
    host.install_hook(CHECKOUT / "hook/qemu", "qemu.d/pcinuma")
    with RunningDaemon(host):
        findings = pcinuma.json("check")["findings"]
        assert {finding["check"]: finding["level"] for finding in findings if finding["level"] != "PASS"} == {"domain old": "WARN"}
        pcinuma("enable", "old")
        assert "4 of 4 devices placed" in pcinuma("check")


def test_check_warns_once_that_placed_vms_of_ovirt_must_not_start_elsewhere(host: PrivateLibvirt, pcinuma: Command) -> None:
    def warnings() -> list[str]:
        return [finding["message"] for finding in pcinuma.json("check", exit_code=1)["findings"] if finding["check"] == "oVirt"]

    for name in ("one", "two"):
        host.connect().defineXML(guest(name, [GPU_0], metadata="<o:vm xmlns:o='http://ovirt.org/vm/1.0'/>"))
    host.connect().defineXML(guest("other", [GPU_1]))
    pcinuma("apply", "other")
    assert warnings() == []
    pcinuma("apply", "one")
    pcinuma("apply", "two")
    (said,) = warnings()
    assert "must not start on a host without pcinuma" in said
