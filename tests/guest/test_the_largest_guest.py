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


# With hundreds of bridges each firmware and QEMU takes its time; with forty the reserves of all fill the bus numbers as well.
@pytest.mark.parametrize("count", [40, pytest.param(160, marks=pytest.mark.full)])
def test_a_guest_whose_root_complexes_fill_the_bus_numbers_sees_every_device(count: int, lab_kernel: Kernel, tmp_path: Path) -> None:
    drives = Drives.each_on_its_own_complex(tmp_path, count)
    booted = largest.start(drives, lab_kernel, tmp_path)
    expanders = [controller.bus_nr for controller in booted.layout.controllers.values() if controller.bus_nr is not None]
    assert len(expanders) == len(booted.layout.passthrough) == min(count, 125)
    assert min(expanders) < 24
    assert booted.judge(largest.CELLS, GroupBy.ROOT_COMPLEX) == []


@pytest.mark.full
@pytest.mark.parametrize("firmware", ["seabios", "ovmf"])
def test_the_guest_with_the_most_devices_sees_each_where_the_host_has_it(firmware: str, lab_kernel: Kernel, tmp_path: Path) -> None:
    booted = largest.start(Drives.on_two_complexes(tmp_path), lab_kernel, tmp_path, firmware)
    assert len(booted.layout.passthrough) >= 240
    assert booted.judge(largest.CELLS, GroupBy.ROOT_COMPLEX) == []
