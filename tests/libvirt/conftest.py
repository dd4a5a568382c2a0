"""Fixtures on a real libvirtd.

``libvirt_host`` is shared by the whole session: give domains names of your own, and leave none running. ``fresh_host`` is one for
the test alone: for tests that restart libvirtd, install hooks or start daemons.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.libvirt.harness import PrivateLibvirt, unavailable


@pytest.fixture(scope="session")
def libvirt_host() -> Iterator[PrivateLibvirt]:
    """One private libvirtd for all tests that only define, validate or look."""
    require()
    with PrivateLibvirt() as host:
        yield host


@pytest.fixture
def fresh_host() -> Iterator[PrivateLibvirt]:
    """A private libvirtd for this test alone (about half a second)."""
    require()
    with PrivateLibvirt() as host:
        yield host


def require() -> None:
    reason = unavailable()
    if reason:
        pytest.skip(reason)
