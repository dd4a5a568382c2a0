# SPDX-License-Identifier: LGPL-2.1-or-later
"""Others' changes between any two steps of ours, generated: what somebody was told is done is there in the end.

What :mod:`tests.libvirt.test_concurrent_changes` leaves to chance is decided here: this process is the daemon's place on a real libvirt,
and before each of its definitions, in each of its pauses and between two looks one client does what was drawn. He does one thing after the
other; only who reads a definition, edits and defines it may do so with ours in between.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any, Optional

import libvirt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

from pcinuma.daemon import definition, overwritten
from pcinuma.daemon.definition import Definitions, Job
from pcinuma.daemon.definition_files import DefinitionFiles
from pcinuma.daemon.pools import Pools
from pcinuma.engine import Request
from pcinuma.errors import LibvirtError
from tests.hosts.small import small_host
from tests.libvirt.changing_client import INACTIVE, Client, State, first_state, found_state, new_domain
from tests.libvirt.conftest import require
from tests.libvirt.domains import cells
from tests.libvirt.harness import PrivateLibvirt

LOOKS = 40
INSTANT = (
    *("attach_disk", "attach_interface", "attach_device", "detach_disk", "detach_interface", "detach_device", "update_interface"),
    *("title", "metadata", "vcpus", "memory"),
)
NEEDS = {"detach_disk": "disks", "detach_interface": "interfaces", "update_interface": "interfaces", "detach_device": "devices"}
STEPS = st.lists(st.sampled_from((*INSTANT, *["read"] * 5, *["wait"] * 5)), max_size=16)
"""What the client does: one change, begin one by reading the definition (it is defined before his next one), or nothing."""


class Steps:
    """The client, and what is left for him to do."""

    def __init__(self, domain: libvirt.virDomain, client: Client, state: State, steps: list[str]) -> None:
        self.domain = domain
        self.state = state
        self._client = client
        self._left = steps[::-1]
        self._read: Optional[etree._Element] = None

    @property
    def over(self) -> bool:
        return not self._left and self._read is None

    def go_on(self) -> None:
        """Do what comes until he waits or has read. What libvirt refuses changes nothing: for a moment, what he added is not there."""
        while not self.over:
            step = self._left.pop() if self._left else ""
            if step == "wait":
                return
            if self._read is not None:
                root, self._read = self._read, None
                self._define(root)
            if step == "read":
                self._read = etree.fromstring(self.domain.XMLDesc(INACTIVE))
                return
            if step and (step not in NEEDS or self.state[NEEDS[step]]):
                with suppress(libvirt.libvirtError):
                    getattr(self._client, step)(self.domain, self.state)

    def _define(self, root: etree._Element) -> None:
        description = root.find("description")
        if description is None:
            description = etree.SubElement(root, "description")
        description.text = text = self._client.unique()
        self.domain.connect().defineXML(etree.tostring(root, encoding="unicode"))
        self.state["description"] = text


class Between:
    """A domain, its connection, or the time as the daemon's modules know them, with the client's steps in between."""

    def __init__(self, real: Any, steps: Steps) -> None:
        self._real = real
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def connect(self) -> Between:
        return Between(self._real.connect(), self._steps)

    def defineXMLFlags(self, xml: str, flags: int) -> libvirt.virDomain:
        self._steps.go_on()
        return self._real.defineXMLFlags(xml, flags)

    def sleep(self, _seconds: float) -> None:
        self._steps.go_on()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateLibvirt]:
    require()
    with PrivateLibvirt(host_tree=small_host(tmp_path_factory.mktemp("interleaved") / "host")) as host:
        yield host


def live(host: PrivateLibvirt, connection: libvirt.virConnect, files: DefinitionFiles, seed: int, steps: list[str]) -> None:
    """The life of one domain: looked at again and again while the client goes through ``steps``."""
    chance = random.Random(seed)
    assert host.host_tree is not None
    domain = connection.defineXML(new_domain("vm", chance))
    try:
        state = first_state(found_state(domain.XMLDesc(INACTIVE))["devices"])
        client = Steps(domain, Client(connection, "c", chance, "all"), state, steps)
        job, pools, known = Job(Request(host.host_tree), lambda owner: True), Pools(host.host_tree), Definitions.of(files)
        with pytest.MonkeyPatch.context() as patch:
            for module in (overwritten, definition):
                patch.setattr(module, "time", Between(time, client))
            for _ in range(LOOKS):
                client.go_on()
                over = client.over
                try:
                    change = definition.place(Between(domain, client), job, pools, known)  # type: ignore[arg-type]
                except LibvirtError:
                    continue  # it changed all the time
                if over and not change.changed:
                    break
        xml = domain.XMLDesc(INACTIVE)
        found = found_state(xml)
        for name, value in found.items():
            wanted = state[name]
            assert (sorted(value) if name == "devices" else value) == (sorted(wanted) if name == "devices" else wanted), (name, steps)
        assert None not in cells(xml).values()
    finally:
        domain.undefine()


@pytest.mark.parametrize("lives", [12, pytest.param(600, marks=pytest.mark.full)])
def test_whatever_comes_between_our_steps_is_there_in_the_end(host: PrivateLibvirt, lives: int) -> None:
    connection = host.connect()
    files = DefinitionFiles(lambda uuid: None, host.path("/etc/libvirt/qemu"))
    connection.defineXML("<domain type='qemu'><name>first</name><memory>1024</memory><os><type>hvm</type></os></domain>")
    files.watch()

    @settings(max_examples=lives, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True)
    @given(seed=st.integers(0, 1000), steps=STEPS)
    def lived(seed: int, steps: list[str]) -> None:
        live(host, connection, files, seed, steps)

    with closing(files):
        lived()
