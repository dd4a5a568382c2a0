"""This folder's tests on other versions of libvirt and QEMU (``tests/run --versions``): one run of them a release."""

from __future__ import annotations

import pytest

from tests.libvirt.chroot import RELEASES, Release
from tests.libvirt.conftest import require
from tests.libvirt.versions import run, table


@pytest.mark.versions
@pytest.mark.parametrize("release", RELEASES, ids=[release.suite for release in RELEASES])
def test_everything_holds_on(release: Release) -> None:
    require()
    row = run(release)
    print(table([row]))
    assert not row.failures
