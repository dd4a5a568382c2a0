# SPDX-License-Identifier: LGPL-2.1-or-later
"""Real guests: a domain is placed on a built host, booted with emulated endpoints, and judged by what its kernel prints.

The kernel package is fetched once into ``PCINUMA_LAB_CACHE`` (default ``/var/cache/pcinuma/lab``).
"""

from __future__ import annotations

import pytest

from pcinuma.lab import LabError, kernel, machine
from tests import needs


@pytest.fixture(scope="session")
def lab_kernel() -> kernel.Kernel:
    try:
        machine.binary()
        machine.ovmf()
        return kernel.fetch(needs.kernel_cache())
    except LabError as error:
        pytest.skip(str(error))
