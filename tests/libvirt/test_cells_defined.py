# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guest cells on libvirt's daemon: what is written into a definition is taken with --validate, kept, and taken out without a trace."""

from __future__ import annotations

from pathlib import Path

import libvirt
import pytest

from pcinuma.engine import place, revert
from pcinuma.reason import Outcome
from tests.golden.cases import BY_NAME, FOLDER
from tests.golden.cells import CELL_CASES
from tests.libvirt.harness import PrivateLibvirt
from tests.libvirt.test_goldens_defined import SECURE, require_emulator

NAMES = [case.name for case in CELL_CASES if case.outcome == "placed" and case.proposed]
RAW_ALONE = {"cells-max-memory"}
"""libvirt takes these only with cells, so only who changes XML before libvirt sees it (the filter, the proxy) can give them some."""


@pytest.fixture(scope="module")
def connection(libvirt_host: PrivateLibvirt) -> libvirt.virConnect:
    return libvirt_host.connect()


def _defined(host: PrivateLibvirt, connection: libvirt.virConnect, xml: bytes, file: Path) -> bytes:
    """What libvirt's daemon keeps of ``xml``, which it was given with --validate."""
    file.write_bytes(xml)
    host.virsh("define", "--validate", file)
    domain = connection.lookupByName("guest")
    kept: str = domain.XMLDesc(SECURE)
    return kept.encode()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in RAW_ALONE])
def test_taking_the_cells_out_gives_back_what_libvirt_made_of_the_owners_xml(
    name: str, libvirt_host: PrivateLibvirt, connection: libvirt.virConnect, tmp_path: Path
) -> None:
    case = BY_NAME[name]
    require_emulator(libvirt_host, FOLDER / f"{name}-in.xml")
    request = case.request(case.host().write(tmp_path / "host"))
    assert isinstance(case.domain, bytes)
    try:
        owners = _defined(libvirt_host, connection, case.domain, tmp_path / "in.xml")
        placed = place(owners, request)
        assert placed.outcome is Outcome.PLACED
        kept = _defined(libvirt_host, connection, placed.xml, tmp_path / "placed.xml")
        again = place(kept, request)
        assert (again.outcome, again.xml, again.cells) == (Outcome.UNCHANGED, kept, placed.cells)
        assert _defined(libvirt_host, connection, revert(kept).xml, tmp_path / "back.xml") == owners
    finally:
        connection.lookupByName("guest").undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)


def test_libvirt_takes_no_such_guest_without_cells(libvirt_host: PrivateLibvirt, connection: libvirt.virConnect) -> None:
    """libvirt 9.0; 11.3 takes it."""
    for name in RAW_ALONE:
        defined = libvirt_host.virsh("define", FOLDER / f"{name}-in.xml", check=False)
        if defined.returncode == 0:
            connection.lookupByName("guest").undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
            assert connection.getLibVersion() > 9_000_999
