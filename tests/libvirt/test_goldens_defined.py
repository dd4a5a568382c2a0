# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every golden output is what libvirt's daemon takes with --validate, keeps, and hands back for nothing to be changed in it.

The files are tests/golden's; here they meet ``virsh define`` and, with ``tests/run --versions``, other releases.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest
from lxml import etree

from pcinuma.engine import place
from pcinuma.reason import Outcome
from tests.golden.cases import BY_NAME, CASES, FOLDER
from tests.libvirt.domains import cells, controllers
from tests.libvirt.harness import PrivateLibvirt

NAMES = [case.name for case in CASES if case.stored and case.outcome == "placed"]
SECURE = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE


@pytest.fixture(scope="module")
def connection(libvirt_host: PrivateLibvirt) -> Iterator[libvirt.virConnect]:
    connection = libvirt_host.connect()
    yield connection
    for domain in connection.listAllDomains():
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)


def test_there_is_a_file_for_every_placed_case() -> None:
    assert len(NAMES) >= 16
    assert {f"{name}-out.xml" for name in NAMES} <= {file.name for file in FOLDER.glob("*-out.xml")}


def require_emulator(host: PrivateLibvirt, golden: Path) -> None:
    """libvirt takes a domain only if the QEMU of its architecture is there."""
    architecture = etree.fromstring(golden.read_bytes()).find("os/type").get("arch", "x86_64")
    if not (host.root / f"usr/bin/qemu-system-{architecture}").exists():
        pytest.skip(f"qemu-system-{architecture} is not installed")
    if architecture == "aarch64" and host.connect().getLibVersion() < 9_000_000:
        pytest.skip("this libvirt knows expander buses on q35 only (7.0 says so, 9.0 takes them)")


@pytest.mark.parametrize("name", NAMES)
def test_libvirt_keeps_it_as_it_is(
    name: str, libvirt_host: PrivateLibvirt, connection: libvirt.virConnect, tmp_path: Path
) -> None:
    golden = FOLDER / f"{name}-out.xml"
    require_emulator(libvirt_host, golden)
    libvirt_host.virsh("define", "--validate", golden)
    root = etree.fromstring(golden.read_bytes())
    domain = connection.lookupByName(root.findtext("name"))
    try:
        kept = domain.XMLDesc(SECURE)
    finally:
        domain.undefine()

    ours, theirs = controllers(golden.read_text()), controllers(kept)
    for said in ours:
        found = [row for row in theirs if row.number == said.number]
        assert found, f"controller {said.number} is gone"
        assert found[0].model == said.model
        assert said.address is None or found[0].address == said.address
        assert said.bus_nr is None or found[0].bus_nr == said.bus_nr
    added = [row for row in theirs if row.number not in {said.number for said in ours}]
    assert {row.model for row in added if row.number} <= {"pcie-root-port"}
    assert not [row for row in added if row.cell is not None], "libvirt put a port of its own below an expander"
    placed = cells(golden.read_text())
    assert cells(kept) == {**dict.fromkeys(cells(kept)), **placed}, "every placed device is where it was, every other one on the root"

    case = BY_NAME[name]
    request = case.request(case.host().write(tmp_path))
    again = place(kept.encode(), request)
    assert (again.outcome, again.xml.decode()) == (Outcome.UNCHANGED, kept)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_passthrough_devices_lands_on_our_ports(
    name: str, libvirt_host: PrivateLibvirt, connection: libvirt.virConnect
) -> None:
    """libvirt gives a device without an address the first free port by index, ours included."""
    golden = FOLDER / f"{name}-out.xml"
    require_emulator(libvirt_host, golden)
    domain = connection.defineXML(golden.read_text())
    try:
        kept = etree.fromstring(domain.XMLDesc(SECURE))
    finally:
        domain.undefine()
    below = {row.number for row in controllers(etree.tostring(kept).decode()) if row.cell is not None}
    for device in kept.iterfind("devices/*"):
        address = device.find("address[@type='pci']")
        if device.tag != "controller" and address is not None and int(address.get("bus", ""), 16) in below:
            kind = (device.tag, device.get("type"))
            passed = {("hostdev", "pci"), ("hostdev", "mdev"), ("interface", "hostdev"), ("interface", "vdpa"), ("disk", "nvme")}
            assert kind in passed | {("disk", "block"), ("interface", "direct")}
