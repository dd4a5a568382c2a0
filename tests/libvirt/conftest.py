# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures on a real libvirtd.

``libvirt_host`` is shared by the whole session: give domains names of your own, and leave none running. ``fresh_host`` is one for
the test alone: for tests that restart libvirtd, install hooks or start daemons.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

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


def require() -> None:
    from tests.libvirt.harness import unavailable

    reason = unavailable()
    if reason:
        pytest.skip(reason)
