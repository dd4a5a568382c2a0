"""The largest domain that the bus numbers allow: hundreds of devices, every one of them where it should be."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from pcinuma.lab.kernel import Kernel
from pcinuma.settings import GroupBy
from tests.guest import largest
from tests.guest.boots import Booted


@pytest.mark.parametrize("group_by", list(GroupBy))
def test_one_device_more_does_not_fit(group_by: GroupBy, tmp_path: Path) -> None:
    root = largest.write_host(tmp_path)
    most = largest.largest(root, group_by)
    assert most >= 240
    assert not largest.fits(largest.attempt(most + 1, root, group_by), group_by)


def test_the_largest_guest_sees_every_device_where_the_host_has_it(largest_guest: Future[Booted]) -> None:
    booted = largest_guest.result()
    assert len(booted.layout.passthrough) >= 240
    assert booted.judge(largest.CELLS, GroupBy.ROOT_COMPLEX) == []


@pytest.mark.full
def test_so_does_the_largest_guest_with_ovmf(lab_kernel: Kernel, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        booted = largest.start(lab_kernel, tmp_path, pool, "ovmf").result()
    assert booted.judge(largest.CELLS, GroupBy.ROOT_COMPLEX) == []
