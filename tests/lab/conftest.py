"""Virtual hosts. Those that a session's tests want are started before the first test, two at a time, since each keeps one core busy.

The kernel package is fetched once into ``PCINUMA_LAB_CACHE`` (default ``/var/cache/pcinuma/lab``).
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Iterator, Optional

import pytest

from pcinuma.lab import LabError, demo, kernel
from pcinuma.lab.presets import PRESETS
from pcinuma.lab.virtual_host import HostRun
from tests.lab import tier2, tier3
from tests.lab.table import FILE, Table

EARLY = {"tier2_host": tier2.run, "tier3_host": tier3.run_two_sockets}


@pytest.fixture(scope="session")
def lab_kernel() -> kernel.Kernel:
    lacking = demo.missing()
    if lacking:
        pytest.skip("; ".join(lacking))
    try:
        return kernel.fetch(Path(os.environ.get("PCINUMA_LAB_CACHE", kernel.DEFAULT_CACHE)))
    except LabError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", autouse=True)
def early(
    request: pytest.FixtureRequest, lab_kernel: kernel.Kernel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[HostRun]]]:
    """The hosts that this session's tests want, running since its beginning: by fixture, and those of ``preset_host`` by preset."""
    wanted = {name for item in request.session.items for name in getattr(item, "fixturenames", ()) if name in EARLY}
    of_presets = {
        item.callspec.params["preset_host"] for item in request.session.items if "preset_host" in getattr(item, "fixturenames", ())
    }
    with ThreadPoolExecutor(2) as pool:
        runs = {name: pool.submit(EARLY[name], lab_kernel, tmp_path_factory.mktemp(name)) for name in sorted(wanted)}
        for name in sorted(of_presets):
            runs[name] = pool.submit(tier3.run, PRESETS[name](), lab_kernel, tmp_path_factory.mktemp(name))
        yield runs


@pytest.fixture(scope="session")
def tier2_host(early: dict[str, Future[HostRun]]) -> HostRun:
    """The host on which pcinuma lives a whole life, from install.sh to uninstall."""
    return _result(early["tier2_host"])


@pytest.fixture(scope="session")
def tier3_host(early: dict[str, Future[HostRun]]) -> HostRun:
    """The host on which a guest boots and prints what it sees."""
    return _result(early["tier3_host"])


@pytest.fixture(scope="session")
def preset_host(request: pytest.FixtureRequest, early: dict[str, Future[HostRun]]) -> tuple[str, HostRun]:
    """The host of the preset that the test is parametrized with, and a booted guest on it."""
    return request.param, _result(early[request.param])


@pytest.fixture(scope="session")
def lab_table() -> Iterator[Table]:
    """What the guests saw, for docs/lab.md; written if this session ran every preset."""
    table = Table()
    yield table
    if table.complete:
        FILE.write_text(table.text(), encoding="utf-8")


def _result(future: Optional[Future[HostRun]]) -> HostRun:
    assert future is not None
    return future.result(timeout=1800).require()
