# SPDX-License-Identifier: LGPL-2.1-or-later
"""The promise on every machine type that has a second PCI root, judged by a kernel of the guest's own architecture."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcinuma.lab import LabError, endpoints, guest_tree, layout
from pcinuma.lab.kernel import Kernel
from pcinuma.settings import GroupBy
from tests import needs
from tests.guest import foreign
from tests.guest.boots import Booted, boot, compare_addresses, placed
from tests.guest.foreign import Foreign
from tests.hosts.domains import Domain, two_cells
from tests.hosts.machines import MACHINES

STRAIGHT = {0: 0, 1: 1}
CACHE = needs.kernel_cache()


def _fetched(name: str) -> Foreign:
    try:
        return foreign.fetch(name, CACHE)
    except LabError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def aarch64() -> Foreign:
    return _fetched("aarch64")


@pytest.fixture(scope="module")
def ppc64() -> Foreign:
    return _fetched("ppc64")


def _devices(machine: str) -> Domain:
    return two_cells().on(machine).hostdev("17:00.0").hostdev("18:00.0").hostdev("b3:00.0").interface("b4:00.0")


def _boot(xml: bytes, root: Path, guest: Foreign, scratch: Path, *, device_tree: bool = False) -> Booted:
    what = layout.read(xml)
    kinds = endpoints.kinds_of(what, root)
    run = foreign.boot(guest, endpoints.hardware(what, kinds), scratch, device_tree=device_tree)
    seen = guest_tree.parse(run.console)
    if not device_tree:  # without ACPI, and so without firmware, the kernel numbers the buses
        compare_addresses(xml, what, seen)
    return Booted(what, guest_tree.read_sysfs(root), seen, kinds)


def test_aarch64_with_acpi(aarch64: Foreign, tmp_path: Path) -> None:
    root = MACHINES["two-sockets"]().write(tmp_path / "host")
    result = placed(_devices("virt").raw(), root, GroupBy.ROOT_COMPLEX)
    assert _boot(result.xml, root, aarch64, tmp_path).judge(STRAIGHT, GroupBy.ROOT_COMPLEX) == []


@pytest.mark.full
def test_aarch64_without_acpi_would_lose_its_devices_and_so_stays_as_it_is(aarch64: Foreign, tmp_path: Path) -> None:
    """Why there is a reason ``no-acpi``: the layout that ACPI needs is what a device tree hides."""
    root = MACHINES["two-sockets"]().write(tmp_path / "host")
    result = placed(_devices("virt").raw(), root, GroupBy.ROOT_COMPLEX)
    booted = _boot(result.xml, root, aarch64, tmp_path, device_tree=True)
    lost = [finding for finding in booted.judge(STRAIGHT, GroupBy.ROOT_COMPLEX) if "the guest does not see it" in finding.what]
    assert len(lost) == 4


def test_pseries(ppc64: Foreign, tmp_path: Path) -> None:
    root = MACHINES["two-sockets"]().write(tmp_path / "host")
    result = placed(_devices("pseries").raw(), root, GroupBy.NODE)
    assert _boot(result.xml, root, ppc64, tmp_path).judge(STRAIGHT, GroupBy.NODE) == []


def test_i440fx_with_three_root_complexes(lab_kernel: Kernel, tmp_path: Path) -> None:
    root = MACHINES["two-root-complexes"]().write(tmp_path / "host")
    domain = two_cells().on("pc").hostdev("17:00.0").hostdev("4b:00.0").hostdev("b3:00.0").interface("18:00.0")
    result = placed(domain.raw(), root, GroupBy.ROOT_COMPLEX)
    booted = boot(result.xml, root, lab_kernel, tmp_path)
    assert booted.judge(STRAIGHT, GroupBy.ROOT_COMPLEX) == []
