# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures on a real libvirtd.

``libvirt_host`` is shared by the whole session: give domains names of your own, and leave none running. ``fresh_host`` is one for
the test alone: for tests that restart libvirtd, install hooks or start daemons.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.waiting import LOGS, OF_ENDED

if TYPE_CHECKING:  # where Python has no libvirt, this file can be read all the same, and those that need it say so
    from tests.libvirt.harness import PrivateLibvirt


@pytest.fixture(scope="session")
def libvirt_host() -> Iterator[PrivateLibvirt]:
    """One private libvirtd for all tests that only define, validate or look."""
    require()
    from tests.libvirt.harness import PrivateLibvirt

    with PrivateLibvirt() as host:
        yield host


@pytest.fixture
def fresh_host() -> Iterator[PrivateLibvirt]:
    """A private libvirtd for this test alone (about half a second)."""
    require()
    from tests.libvirt.harness import PrivateLibvirt

    with PrivateLibvirt() as host:
        yield host


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    OF_ENDED.clear()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, None]:
    """The logs of what ran meanwhile, with a test that fails: what a busy machine does once in a thousand times is not seen again."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        logs = {**OF_ENDED, **{name: log() for name, log in LOGS.items()}}
        report.sections += [(f"the log of {name}, its end", log[-20000:]) for name, log in logs.items()]


def require() -> None:
    from tests.libvirt.harness import unavailable

    reason = unavailable()
    if reason:
        pytest.skip(reason)
