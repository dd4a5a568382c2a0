# SPDX-License-Identifier: LGPL-2.1-or-later
"""Nothing that libvirt accepted from somebody is lost, whatever the daemon does to the same definition at that moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import libvirt
import pytest

from pcinuma.daemon import overwritten
from pcinuma.daemon.definition_files import DefinitionFiles
from pcinuma.daemon.overwritten import LONGEST, LONGEST_PAUSE, read, replace_definition
from pcinuma.daemon.stale import Stale
from pcinuma.daemon.starts import TAKES
from tests.hosts.small import GPU_0, GPU_1, NIC_0, NIC_1, small_host
from tests.libvirt.changing_client import CONFIG, INACTIVE, disk, found_state
from tests.libvirt.conftest import require
from tests.libvirt.domains import cells, guest, hostdev
from tests.libvirt.harness import PrivateLibvirt
from tests.libvirt.running_daemon import RunningDaemon
from tests.waiting import CHECKOUT, until

QUIET = 1.5
"""Seconds without a new definition after which the daemon is done, as far as these tests are concerned."""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[PrivateLibvirt]:
    require()
    with PrivateLibvirt(host_tree=small_host(tmp_path / "host")) as host:
        yield host


@pytest.fixture(params=["fanotify", "inotify"])
def daemon(host: PrivateLibvirt, request: pytest.FixtureRequest) -> Iterator[RunningDaemon]:
    with RunningDaemon(host, prefix=WITHOUT_FANOTIFY if request.param == "inotify" else ()) as daemon:
        host.connect().defineXML(guest("first"))  # so that the folder is there
        until(lambda: daemon.call("Status")["definitions"] == request.param, "the definitions to be watched")
        yield daemon


WITHOUT_FANOTIFY = ("setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin")


def sees_every_version(daemon: RunningDaemon) -> bool:
    """Whether nothing may be lost: inotify tells that a definition was written, and what it said may be gone when it is read."""
    return bool(daemon.call("Status")["definitions"] == "fanotify")


class Figures(NamedTuple):
    """What came of a run."""

    changes: int
    refused: int
    lost: list[str]
    put_back: int


def await_quiet(host: PrivateLibvirt) -> None:
    folder = host.path("/etc/libvirt/qemu")
    until(lambda: time.time() - max(file.stat().st_mtime for file in folder.glob("*.xml")) > QUIET, "the daemon to be done", 60, 0.1)


def change_all_the_time(
    host: PrivateLibvirt, daemon: RunningDaemon, folder: Path, *, clients: int, changes: int, seed: int, kinds: str
) -> Figures:
    """Have ``clients`` change definitions, ``changes`` in all, and look what became of it."""
    folder.mkdir()
    command = [sys.executable, "-m", "tests.libvirt.changing_client", host.uri, str(folder)]
    processes = [
        subprocess.Popen(
            [*command, f"c{number}", str(seed * 100 + number), str(changes // clients), kinds],
            cwd=CHECKOUT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(clients)
    ]
    counts = [tuple(map(int, process.communicate(timeout=3600)[0].split())) for process in processes]
    await_quiet(host)
    connection = host.connect()
    lost = []
    for file in sorted(folder.glob("*.json")):
        if not file.read_text():
            continue
        expected = json.loads(file.read_text())
        found = found_state(connection.lookupByName(file.stem).XMLDesc(INACTIVE))
        for name, value in found.items():
            wanted = sorted(expected[name]) if name == "devices" else expected[name]
            if (sorted(value) if name == "devices" else value) != wanted:
                lost.append(f"{file.stem}: {name}: {value} instead of {wanted}; {expected['story']}")
    put_back = daemon.log().count("is put back")
    return Figures(sum(done for done, _ in counts), sum(refused for _, refused in counts), lost, put_back)


def report(figures: Figures) -> None:
    print(f"\n{figures.changes} changes, {figures.refused} refused, {figures.put_back} rounds to put back, {len(figures.lost)} lost")


def test_no_change_of_several_clients_is_lost(host: PrivateLibvirt, daemon: RunningDaemon, tmp_path: Path) -> None:
    seed = int(os.environ.get("PCINUMA_TEST_SEED", "1"))
    figures = change_all_the_time(host, daemon, tmp_path / "changes", clients=3, changes=600, seed=seed, kinds="calls")
    report(figures)
    assert figures.changes >= 600
    assert not figures.lost or not sees_every_version(daemon), "\n".join([*figures.lost, daemon.log()])


@pytest.mark.full
def test_none_of_ten_thousand_changes_is_lost(host: PrivateLibvirt, daemon: RunningDaemon, tmp_path: Path) -> None:
    figures = change_all_the_time(host, daemon, tmp_path / "changes", clients=4, changes=10000, seed=2, kinds="all")
    report(figures)
    told = 0 if sees_every_version(daemon) else daemon.log().count("could not be read in time")
    assert len(figures.lost) <= told, "\n".join([*figures.lost, daemon.log()])


def test_eight_attaches_in_a_row_are_all_there_and_placed(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    """As a person does it: virsh, one device after the other."""
    domain = host.connect().defineXML(guest("row", (GPU_0,)))
    devices = [NIC_0, GPU_1, NIC_1]
    for number, what in enumerate([*map(hostdev, devices), *(disk(f"vd{letter}", f"file-{letter}") for letter in "bcdef")]):
        file = host.path(f"/run/device-{number}.xml")
        file.write_text(what)
        host.virsh("attach-device", "row", f"/run/device-{number}.xml", "--config")
    until(lambda: cells(domain.XMLDesc(INACTIVE)) == {GPU_0: 0, NIC_0: 0, GPU_1: 1, NIC_1: 1}, "all four to be placed")
    assert sorted(found_state(domain.XMLDesc(INACTIVE))["disks"]) == [f"vd{letter}" for letter in "bcdef"]


def test_attaches_without_end_are_no_contention(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    domain = host.connect().defineXML(guest("patient", (GPU_0,)))
    until(lambda: cells(domain.XMLDesc(INACTIVE)) == {GPU_0: 0}, "it to be placed")  # a change in that moment is another test's
    for _ in range(4):
        for address, cell in ((NIC_0, 0), (GPU_1, 1)):
            domain.attachDeviceFlags(hostdev(address), CONFIG)
            until(lambda: cells(domain.XMLDesc(INACTIVE)).get(address) == cell, "the device to be placed")  # noqa: B023
            domain.detachDeviceFlags(hostdev(address), CONFIG)
    assert not [line for line in daemon.decided("patient", "reconciler") if "reason=contended" in line]


@pytest.mark.parametrize("kind", ["attach", "define"])
def test_a_change_milliseconds_after_a_define_is_there_and_the_domain_placed(
    host: PrivateLibvirt, daemon: RunningDaemon, kind: str
) -> None:
    connection = host.connect()
    rounds = 48
    for number in range(rounds):
        xml = guest(f"{kind}-{number}", (GPU_0,))
        domain = connection.defineXML(xml)
        time.sleep(number % 8 / 1000)
        if kind == "attach":
            domain.attachDeviceFlags(hostdev(GPU_1), CONFIG)
        else:
            second = xml.replace("<memory", f"<uuid>{domain.UUIDString()}</uuid><title>second</title><memory", 1)
            connection.defineXML(second)
    await_quiet(host)
    lost = []
    for number in range(rounds):
        xml = connection.lookupByName(f"{kind}-{number}").XMLDesc(INACTIVE)
        there = GPU_1 in cells(xml) if kind == "attach" else "<title>second</title>" in xml
        if not there:
            lost.append(number)
        assert cells(xml) == ({GPU_0: 0, GPU_1: 1} if kind == "attach" and there else {GPU_0: 0})
    assert not lost or not sees_every_version(daemon), daemon.log()


class Raced:
    """A domain, its connection, and the clock of :mod:`pcinuma.daemon.overwritten`: somebody else changes the title ``times`` times, right
    before each definition of ours and in each pause. When the longest pause is reached, all the time is up."""

    def __init__(self, domain: libvirt.virDomain, monkeypatch: pytest.MonkeyPatch, times: int = 1000) -> None:
        self.domain = domain
        self.times = times
        self.titles = 0
        self.late = False
        self._connection = domain.connect()
        monkeypatch.setattr(overwritten, "time", self)

    def connect(self) -> Raced:
        return self

    def name(self) -> str:
        return str(self.domain.name())

    def XMLDesc(self, flags: int) -> str:
        return str(self.domain.XMLDesc(flags))

    def defineXMLFlags(self, xml: str, flags: int) -> libvirt.virDomain:
        self.somebody_changes()
        return self._connection.defineXMLFlags(xml, flags)

    def somebody_changes(self) -> None:
        if self.titles == self.times:
            return
        self.titles += 1
        self.domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_TITLE, f"title {self.titles}", None, None, CONFIG)

    def sleep(self, seconds: float) -> None:
        self.somebody_changes()
        self.late = 2 * seconds >= LONGEST_PAUSE

    def monotonic(self) -> float:
        return time.monotonic() + (2 * LONGEST if self.late else 0)


def test_who_runs_out_of_time_takes_nothing_back(host: PrivateLibvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody changes a definition in a loop. When that has gone on for too long, what he made last stays, though nobody looked at it."""
    domain = host.connect().defineXML(guest("loop", (GPU_0,)))
    files = DefinitionFiles(lambda uuid: None, host.path("/etc/libvirt/qemu"))
    files.watch()
    with closing(files), files.follow(domain.UUIDString(), "loop") as followed:
        before = read(domain)
        raced = Raced(domain, monkeypatch)
        new = before.replace(b"</uuid>", b"</uuid><description>ours</description>", 1)
        done = replace_definition(raced, followed, files.now(), before, new, lambda xml: xml, Stale(files))  # type: ignore[arg-type]
    assert done is not None and done.defines == 1
    assert raced.late and raced.titles > 5
    assert f"<title>title {raced.titles}</title>" in domain.XMLDesc(INACTIVE)


@pytest.mark.parametrize("times", [1, 2, 3, 5])
def test_what_was_lacking_is_kept_when_putting_it_back_overwrites_another_change(
    host: PrivateLibvirt, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """What is there was made from a version that lacked a change, and before that is mended, somebody changes it once more."""
    domain = host.connect().defineXML(guest("lacks", (GPU_0,)))
    files = DefinitionFiles(lambda uuid: None, host.path("/etc/libvirt/qemu"))
    files.watch()
    with closing(files), files.follow(domain.UUIDString(), "lacks") as followed:
        before = read(domain)
        meant = before.replace(b"</uuid>", b"</uuid><description>lacking</description>", 1)
        raced = Raced(domain, monkeypatch, times)
        done = replace_definition(
            raced, followed, files.now(), before, placed(meant), placed, Stale(files), meant  # type: ignore[arg-type]
        )
    xml = domain.XMLDesc(INACTIVE)
    assert done is not None and done.defines == (2 if times == 1 else 1), "a later title takes the place of the one that was overwritten"
    assert f"<title>title {times}</title>" in xml
    assert "<description>lacking</description>" in xml
    assert "<note" in xml


def placed(xml: bytes) -> bytes:
    """As something of ours may be added to any definition."""
    if b"<note" in xml:
        return xml
    return xml.replace(b"</description>", b"</description><metadata><note xmlns='urn:test:placed'/></metadata>", 1)


def test_a_failed_start_does_not_make_it_blind(host: PrivateLibvirt, daemon: RunningDaemon) -> None:
    """A start with a device that this machine does not have ends in libvirt before there is an event for it."""
    host.install_hook(CHECKOUT / "hook/qemu")
    until(lambda: daemon.call("Status")["libvirt"]["connected"], "the daemon to be connected")
    domain = host.connect().defineXML(guest("fails", (GPU_0,)))
    until(lambda: cells(domain.XMLDesc(INACTIVE)) == {GPU_0: 0}, "it to be placed")
    for device, cell in ((NIC_0, 0), (GPU_1, 1)):
        with pytest.raises(libvirt.libvirtError):
            domain.create()
        domain.attachDeviceFlags(hostdev(device), CONFIG)
        placed = daemon.status("fails")
        assert placed is not None
        until(lambda: cells(domain.XMLDesc(INACTIVE)).get(device) == cell, "the new device to be placed", TAKES - 1)  # noqa: B023
