# SPDX-License-Identifier: LGPL-2.1-or-later
"""What people chose for domains, on a real libvirt: refused where it cannot be kept, and honoured whatever happened to the files."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from pcinuma.daemon import choices
from tests.hosts.small import GPU_0, GPU_1, small_host
from tests.libvirt.conftest import require
from tests.libvirt.domains import cells, guest
from tests.libvirt.harness import PrivateLibvirt
from tests.libvirt.running_daemon import RunningDaemon
from tests.waiting import until

STATE = "/var/lib/pcinuma"
UNPLACED = {GPU_0: None, GPU_1: None}


@pytest.fixture
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateLibvirt]:
    require()
    with PrivateLibvirt(host_tree=small_host(tmp_path_factory.mktemp("host"))) as host:
        yield host


def pcinuma(host: PrivateLibvirt, *words: str) -> tuple[int, str]:
    """The exit code of a command, and what it said."""
    done = host.run([host.python, "-m", "pcinuma", *words], check=False)
    return done.returncode, done.stdout + done.stderr


def test_disabling_on_a_full_disk_fails_and_what_is_lost_of_choices_touches_nothing(host: PrivateLibvirt) -> None:
    host.path(STATE).mkdir(parents=True, exist_ok=True)
    host.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", STATE])
    with RunningDaemon(host) as daemon:
        domain = host.connect().defineXML(guest("wished", [GPU_0, GPU_1], policy="required"))
        until(lambda: cells(domain.XMLDesc(0)) == {GPU_0: 0, GPU_1: 1}, "the domain to be placed")
        host.run(["sh", "-c", f"cat /dev/zero >{STATE}/filler"], check=False)
        code, said = pcinuma(host, "disable", "wished", "--revert")
        assert code == 1 and "not disabled" in said and "No space left" in said, said
        assert cells(domain.XMLDesc(0)) == {GPU_0: 0, GPU_1: 1}, "and nothing was reverted"
        assert (daemon.status("wished") or {})["enabled"]
        host.run(["rm", f"{STATE}/filler"])
        assert pcinuma(host, "disable", "wished", "--revert")[0] == 0
        assert cells(domain.XMLDesc(0)) == UNPLACED
        assert "was lost" not in pcinuma(host, "check")[1]
        daemon.kill()
        host.run(["sh", "-c", f"rm -r {STATE}/{choices.DISABLED}"])
        daemon.start()
        host.connect().defineXML(domain.XMLDesc(0))
        time.sleep(1)
        assert cells(domain.XMLDesc(0)) == UNPLACED
        for command in ("status", "check"):
            assert "what people chose for domains was lost" in pcinuma(host, command)[1]
        assert "pcinuma enable" in pcinuma(host, "check")[1]
        assert pcinuma(host, "enable", "wished")[0] == 0
        assert cells(domain.XMLDesc(0)) == {GPU_0: 0, GPU_1: 1}
        host.run(["rm", f"{STATE}/{choices.LOST}"])
        daemon.kill()
        daemon.start()
        assert "was lost" not in pcinuma(host, "check")[1]


@pytest.fixture(scope="module")
def characters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateLibvirt]:
    require()
    with PrivateLibvirt(host_tree=small_host(tmp_path_factory.mktemp("host"))) as host, RunningDaemon(host):
        yield host


@pytest.mark.parametrize("character", ["&#13;", "&#133;", "&#127;", "&#8232;", "&#8238;"])
def test_a_domain_is_placed_whatever_its_name_and_title_hold(characters: PrivateLibvirt, character: str) -> None:
    """libvirt writes a carriage return raw, and who reads that sees the end of a line: another name, another title."""
    xml = guest("x", [GPU_0, GPU_1], policy="required")
    domain = characters.connect().defineXML(xml.replace("<name>x</name>", f"<name>a{character}b</name><title>c{character}d</title>"))
    name = domain.name()
    until(lambda: cells(domain.XMLDesc(0)) == {GPU_0: 0, GPU_1: 1}, "the domain to be placed")
    assert (domain.name(), f"<title>c{name[1]}d</title>" in domain.XMLDesc(0)) == (name, True)
