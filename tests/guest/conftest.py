"""Real guests: a domain is placed on a built host, booted with emulated endpoints, and judged by what its kernel prints.

The kernel package is fetched once into ``PCINUMA_LAB_CACHE`` (default ``/var/cache/pcinuma/lab``).
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Iterator

import pytest

from pcinuma.lab import LabError, kernel, machine
from tests import needs
from tests.guest import largest
from tests.guest.boots import Booted


@pytest.fixture(scope="session")
def lab_kernel() -> kernel.Kernel:
    try:
        machine.binary()
        machine.ovmf()
        return kernel.fetch(needs.kernel_cache())
    except LabError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def largest_guest(lab_kernel: kernel.Kernel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Future[Booted]]:
    """The largest guest, which boots."""
    with ThreadPoolExecutor(1) as pool:
        yield largest.start(lab_kernel, tmp_path_factory.mktemp("largest"), pool)
