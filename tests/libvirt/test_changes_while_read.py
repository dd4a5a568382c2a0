# SPDX-License-Identifier: LGPL-2.1-or-later
"""Changes while a definition is being looked at, generated: in the end, what is told of the domain is what its definition says.

This process is the daemon's place on a real libvirt, with its reconciler and its link. Whenever a definition has been read, and while it is
worked on, one client does what was drawn, and then some time passes: the daemon hears of his change in the middle of its work.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import libvirt
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pcinuma.daemon import definition, definition_files, overwritten, reconciler
from pcinuma.daemon.file_watch import open_watch
from pcinuma.daemon.link import Link
from pcinuma.daemon.pools import Pools
from pcinuma.daemon.reconciler import EVENT_TAKES, Reconciler
from pcinuma.daemon.state import State
from pcinuma.daemon.state_file import StateFile
from pcinuma.settings import Settings
from tests.hosts.passthrough import passed
from tests.hosts.small import GPU_0, GPU_1, small_host
from tests.libvirt.conftest import require
from tests.libvirt.domains import guest, hostdev
from tests.libvirt.harness import PrivateLibvirt
from tests.libvirt.lives_checks import placed
from tests.waiting import PATIENCE

CONFIG = libvirt.VIR_DOMAIN_AFFECT_CONFIG
INACTIVE = libvirt.VIR_DOMAIN_XML_INACTIVE
LONG = 2 * EVENT_TAKES
STEPS = st.lists(
    st.tuples(st.sampled_from((None, None, GPU_0, GPU_0, GPU_1, "nothing new")), st.sampled_from((0.0, LONG))), min_size=3, max_size=12
)
"""What is done each time (a device is attached, or detached where it is there; or libvirt is made to write what is there already), and how
long it takes until the daemon goes on."""
NOT = None, 0.0


class Client:
    """Who changes the domain."""

    def __init__(self, domain: libvirt.virDomain, steps: list[tuple[Optional[str], float]]) -> None:
        self._domain = domain
        self._left = steps[::-1]
        self._lock = threading.Lock()

    @property
    def over(self) -> bool:
        return not self._left

    def comes_between(self) -> None:
        """Called in any thread of the daemon."""
        with self._lock:
            deed, pause = self._left.pop() if self._left else (None, 0.0)
            if deed is not None:
                self.do(deed)
        time.sleep(pause)

    def do(self, deed: str) -> None:
        if deed == "nothing new":
            self._domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_TITLE, "a title", None, None, CONFIG)
            return
        there = deed in {device.source for device in passed(self._domain.XMLDesc(INACTIVE).encode())}
        (self._domain.detachDeviceFlags if there else self._domain.attachDeviceFlags)(hostdev(deed), CONFIG)


class SlowPools(Pools):
    """Somebody comes between whenever a definition is worked on."""

    def __init__(self, root: Path, client: Client) -> None:
        super().__init__(root)
        self._client = client

    def resolve(self, connection: libvirt.virConnect, xml: bytes) -> Any:
        self._client.comes_between()
        return super().resolve(connection, xml)


class Told(NamedTuple):
    """What the daemon says of a domain: how many devices it has, how many are placed, and that it was changed since."""

    devices: int
    placed: int
    unseen: object


async def live(host: PrivateLibvirt, folder: Path, domain: libvirt.virDomain, client: Client, *, enabled: bool) -> Told:
    """The daemon's life until the client is through and everything has been looked at."""
    number = domain.UUIDString()
    state = State()
    assert host.host_tree is not None
    with ThreadPoolExecutor(8) as threads:
        state_file = StateFile(folder, state)
        await state_file.choose(number, domain.name(), enabled=enabled)
        daemon = Reconciler(state, state_file, Settings(), host.host_tree, SlowPools(host.host_tree, client), threads)
        link = Link(host.uri, daemon, threads)
        tasks = [asyncio.create_task(link.run()), asyncio.create_task(daemon.run())]

        async def settled() -> None:
            while not link.ready or daemon.pending:
                await asyncio.sleep(0.001)

        try:
            await settled()
            while not client.over:
                await asyncio.get_running_loop().run_in_executor(None, client.do, "nothing new")
                await settled()
            await asyncio.sleep(2 * reconciler.LATER)  # the look for safety's sake, which does not count as pending, is over as well
            await settled()
            decision = daemon.placer.decisions.of(number)
            assert decision is not None
            return Told(decision.devices, decision.placed, daemon.unseen_change(number))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateLibvirt]:
    require()
    folder = tmp_path_factory.mktemp("changes")
    with PrivateLibvirt(host_tree=small_host(folder / "host")) as host, pytest.MonkeyPatch.context() as patch:
        watch = open_watch()
        patch.setattr(definition_files, "open_watch", lambda: watch)  # one for all lives: the kernel has a limited number
        files = functools.partial(definition_files.DefinitionFiles, folder=host.path("/etc/libvirt/qemu"))
        patch.setattr(reconciler, "DefinitionFiles", files)
        patch.setattr(reconciler, "LATER", LONG)
        yield host


@pytest.mark.parametrize("lives", [25, pytest.param(1000, marks=pytest.mark.full)])
def test_what_is_told_of_a_domain_is_what_it_is_now(host: PrivateLibvirt, tmp_path: Path, lives: int) -> None:
    connection = host.connect()

    def reading(client: Client) -> Callable[[libvirt.virDomain], bytes]:
        def read(domain: libvirt.virDomain) -> bytes:
            text = overwritten.read(domain)
            client.comes_between()
            return text

        return read

    @settings(max_examples=lives, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True)
    @example(steps=[NOT, NOT, (GPU_0, LONG)], enabled=False)  # while it is read for safety's sake
    @example(steps=[NOT, NOT, (GPU_0, 0.0), NOT, (GPU_0, LONG), NOT], enabled=False)  # while a look works on what was before
    @given(steps=STEPS, enabled=st.booleans())
    def lived(steps: list[tuple[Optional[str], float]], enabled: bool) -> None:
        domain = connection.defineXML(guest("vm", ()))
        Client(domain, []).do("nothing new")
        folder = tmp_path / domain.UUIDString()
        folder.mkdir()
        try:
            client = Client(domain, steps)
            with pytest.MonkeyPatch.context() as patch:
                for module in (reconciler, definition):
                    patch.setattr(module, "read", reading(client))
                told = asyncio.run(asyncio.wait_for(live(host, folder, domain, client, enabled=enabled), PATIENCE))
            xml = domain.XMLDesc(INACTIVE)
            there = len(passed(xml.encode()))
            assert told == (there, len(placed(xml)) if enabled else 0, None)
            if enabled:
                assert len(placed(xml)) == there
        finally:
            domain.undefine()

    lived()
