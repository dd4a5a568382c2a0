# SPDX-License-Identifier: LGPL-2.1-or-later
"""Virtual hosts. Those that a session's tests want are started together when the first of them is asked for, two at a time, since each
keeps one core busy. In a usual run that is one, on which pcinuma lives and a guest boots.

The kernel package is fetched once into ``PCINUMA_LAB_CACHE`` (default ``/var/cache/pcinuma/lab``).
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Iterator

import pytest

from pcinuma.lab import LabError, demo, kernel
from pcinuma.lab.presets import PRESETS
from pcinuma.lab.virtual_host import HostRun
from tests import needs
from tests.lab import tier2, tier3
from tests.lab.table import FILE, Table

FIRST, WHOLE = "first_host", "whole_host"


@pytest.fixture(scope="session")
def lab_kernel() -> kernel.Kernel:
    lacking = demo.missing()
    if lacking:
        pytest.skip("; ".join(lacking))
    try:
        return kernel.fetch(needs.kernel_cache())
    except LabError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def hosts(
    request: pytest.FixtureRequest, lab_kernel: kernel.Kernel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[HostRun]]]:
    """The hosts that this session's tests want, running: the first one, and those of ``preset_host`` by preset."""
    fixtures = [getattr(item, "fixturenames", ()) for item in request.session.items]
    of_presets = {
        item.callspec.params["preset_host"] for item in request.session.items if "preset_host" in getattr(item, "fixturenames", ())
    }
    with ThreadPoolExecutor(2) as pool:
        runs = {}
        if any(FIRST in names for names in fixtures):
            runs[FIRST] = pool.submit(tier2.run, lab_kernel, tmp_path_factory.mktemp(FIRST))
        if any(WHOLE in names for names in fixtures):
            runs[WHOLE] = pool.submit(tier2.run, lab_kernel, tmp_path_factory.mktemp(WHOLE), whole=True)
        for name in sorted(of_presets):
            runs[name] = pool.submit(tier3.run, PRESETS[name](), lab_kernel, tmp_path_factory.mktemp(name))
        yield runs


@pytest.fixture(scope="session")
def first_host(hosts: dict[str, Future[HostRun]]) -> HostRun:
    """The host on which pcinuma lives a whole life, from install.sh to uninstall, and a guest boots and prints what it sees."""
    return _result(hosts[FIRST])


@pytest.fixture(scope="session")
def whole_host(hosts: dict[str, Future[HostRun]]) -> HostRun:
    """The same day on a host whose libvirt and guests are under AppArmor, with an agent in the guest."""
    return _result(hosts[WHOLE])


@pytest.fixture(scope="session")
def preset_host(request: pytest.FixtureRequest, hosts: dict[str, Future[HostRun]]) -> tuple[str, HostRun]:
    """The host of the preset that the test is parametrized with, and a booted guest on it."""
    return request.param, _result(hosts[request.param])


@pytest.fixture(scope="session")
def lab_table() -> Iterator[Table]:
    """What the guests saw, for docs/lab.md; written if this session ran every preset."""
    table = Table()
    yield table
    if table.complete:
        FILE.write_text(table.text(), encoding="utf-8")


def _result(future: Future[HostRun]) -> HostRun:
    return future.result().require()
