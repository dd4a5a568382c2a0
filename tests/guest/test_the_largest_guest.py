# SPDX-License-Identifier: LGPL-2.1-or-later
"""The largest domains that the bus numbers allow: every device is where it should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcinuma.lab.kernel import Kernel
from pcinuma.settings import GroupBy
from tests.guest import largest
from tests.guest.largest import Drives


@pytest.mark.parametrize("group_by", list(GroupBy))
def test_one_device_more_does_not_fit(group_by: GroupBy, tmp_path: Path) -> None:
    drives = Drives.on_two_complexes(tmp_path)
    most = largest.largest(drives, group_by)
    assert 240 <= most < len(drives.sources)
    assert not largest.fits(drives.place(most + 1, group_by), group_by)


def test_the_guest_with_the_most_root_complexes_sees_every_device_where_the_host_has_it(lab_kernel: Kernel, tmp_path: Path) -> None:
    drives = Drives.each_on_its_own_complex(tmp_path)
    booted = largest.start(drives, lab_kernel, tmp_path)
    assert 100 <= len(booted.layout.passthrough) < len(drives.sources)
    assert booted.judge(largest.CELLS, GroupBy.ROOT_COMPLEX) == []


@pytest.mark.full
@pytest.mark.parametrize("firmware", ["seabios", "ovmf"])
def test_the_guest_with_the_most_devices_sees_each_where_the_host_has_it(firmware: str, lab_kernel: Kernel, tmp_path: Path) -> None:
    booted = largest.start(Drives.on_two_complexes(tmp_path), lab_kernel, tmp_path, firmware)
    assert len(booted.layout.passthrough) >= 240
    assert booted.judge(largest.CELLS, GroupBy.ROOT_COMPLEX) == []
